"""The same problem at the nearest weights that a parameterization can represent."""

from __future__ import annotations

from dataclasses import replace

import torch

from curvature.charts import Parameterization
from curvature.errors import ConfigurationError
from curvature.models.problem import Problem
from curvature.precision import full_precision

__all__ = ["nearest"]


@full_precision()
def nearest(problem: Problem, chart: Parameterization) -> Problem:
    """Move to the nearest weights that a parameterization can represent, and note how far that is.

    Some parameterizations are not onto: weight standardization has rows of mean zero only. At other weights they are
    refused, since a matrix there would be that of another function. This is the way to ask for the nearest function.

    Parameters
    ----------
    problem
        Model, loss and data at a point.
    chart
        The parameterization that is to represent the weights.

    Returns
    -------
    Problem
        The problem at the nearest weights in the Euclidean norm, weight by weight, with ``chart`` as its chart. A
        sentence in ``notes``, which every report repeats, says how far the weights moved and what the loss is before
        and after. The problem at its own weights, if they can be represented.

    Raises
    ------
    ConfigurationError
        If ``chart`` is no parameterization.

    Examples
    --------
    >>> import curvature as cv
    >>> problem = cv.zoo.digits_problem(num_examples=50, widths=(8,))
    >>> moved = cv.nearest(problem, cv.WeightStandardization())
    >>> cv.pullback(cv.ggn(moved), moved.chart)
    SymmetricOperator(ggn, weight-standardization (canonical), 628 x 628, float64, cpu)
    """
    if not isinstance(chart, Parameterization):
        raise ConfigurationError(
            f"chart must be a Parameterization such as WeightStandardization(), got {type(chart).__name__}."
        )
    weights = chart.nearest(problem.layout, problem.weights)
    distance = float(torch.linalg.vector_norm(weights - problem.weights) / torch.linalg.vector_norm(problem.weights))
    if distance <= 1e3 * torch.finfo(weights.dtype).eps:  # what a chart takes for rounding at its point
        return replace(problem, chart=chart)
    moved = problem.at(weights)
    note = (
        f"These are not the weights of the model but the nearest that {chart.name} can represent: they differ by "
        f"{distance:.2g} (relative), and the loss is {moved.value():.6g} in place of {problem.value():.6g}."
    )
    return replace(moved, chart=chart, notes=(*problem.notes, note))
