"""Charts between gradient descent and the natural gradient: the controls that give an efficiency its meaning."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.charts import Parameterization, Placebo, Standard, WeightNorm
from curvature.linalg.operator import SymmetricOperator
from curvature.matrices import gradient_covariance
from curvature.models import Problem
from curvature.natural_gradient.preconditioners import KINDS, Preconditioners, absolute_damping
from curvature.natural_gradient.stretches import stretch_in_closed_form
from curvature.precision import full_precision
from curvature.records.damping import Damping

__all__ = ["Controls", "control_charts", "top_directions"]


class Controls:
    """What the control charts of one problem share: the factorized Fisher and the gradient covariance.

    Parameters
    ----------
    problem
        Model, loss and data at the point.
    fisher, covariance
        The Fisher and the gradient covariance, if they have been computed already.
    eigenvalues
        Those of the Fisher, ascending, if they have been computed already.
    """

    def __init__(
        self,
        problem: Problem,
        fisher: SymmetricOperator | None = None,
        covariance: SymmetricOperator | None = None,
        eigenvalues: Float[np.ndarray, "weights"] | None = None,
    ):
        self.problem = problem
        self.preconditioners = Preconditioners(problem, fisher, eigenvalues)
        self._covariance = covariance

    @cached_property
    def top_directions(self) -> dict[str, Float[Tensor, "..."]]:
        """Top eigenvector of each neuron's gradient covariance."""
        return top_directions(self.problem, self._covariance)


@full_precision()
def control_charts(
    problem: Problem,
    *,
    damping: float | None = None,
    relative_damping: float | None = None,
    stretch: float | None = None,
    seed: int = 0,
    controls: Controls | None = None,
) -> list[Parameterization]:
    r"""List the charts between gradient descent and the natural gradient.

    Gradient descent; weight norm at the canonical gauge, at the paper's (or ``stretch``) and at the module's own; the
    same $\rho$ around random directions (placebo) and around the top eigenvector of each neuron's gradient covariance;
    the best single $\rho$; Jacobi, neuron-block and layer-block natural gradient, K-FAC, PRONG, full natural gradient.

    Parameters
    ----------
    problem
        Model, loss and data at the point.
    damping, relative_damping
        As for :func:`curvature.efficiency`.
    stretch
        Replaces the paper's gauge.
    seed
        Of the placebo's directions.
    controls
        What calls at one point share; built if None.

    Returns
    -------
    list
        Parameterizations, in the order above.
    """
    chosen = Damping.chosen(damping, relative_damping)
    controls = controls or Controls(problem)
    preconditioners = controls.preconditioners
    gauge = "paper" if stretch is None else None
    charts: list[Parameterization] = [Standard(), WeightNorm(), WeightNorm(gauge, stretch=stretch)]
    if not isinstance(problem.chart, Standard):
        charts.append(problem.chart)
    matrix = preconditioners.matrix
    best = WeightNorm(stretch=stretch_in_closed_form(problem, matrix, absolute_damping(matrix, chosen)))
    best.gauge = "best stretch"
    placebo = Placebo(gauge, stretch=stretch, seed=seed)
    placebo.gauge = charts[2].gauge  # without the seed, for results of all seeds are pooled
    charts += [
        placebo,
        Placebo(gauge, stretch=stretch, directions=controls.top_directions, name="e1-direction"),
        best,
    ]
    charts += [preconditioners.chart(kind, damping=damping, relative_damping=relative_damping) for kind in KINDS]
    return charts


@full_precision()
def top_directions(problem: Problem, covariance: SymmetricOperator | None = None) -> dict[str, Float[Tensor, "..."]]:
    """Return the top eigenvector of each neuron's gradient covariance.

    Parameters
    ----------
    problem
        Model, loss and data at the point.
    covariance
        The gradient covariance on the weights, if it has been computed already.

    Returns
    -------
    dict
        By name of the normalized weight a tensor of its shape, each row a unit vector.
    """
    matrix = (covariance or gradient_covariance(problem)).entries()
    directions = {}
    for entry, span in problem.layout.pairs():
        if not entry.normalized:
            continue
        rows = entry.rows(torch.arange(span.start, span.stop, device=problem.device))
        tops = [torch.linalg.eigh(matrix[row][:, row]).eigenvectors[:, -1] for row in rows]
        directions[entry.name] = entry.from_rows(torch.stack(tops)).view(entry.shape)
    return directions
