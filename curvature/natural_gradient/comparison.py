r"""Steps of many charts compared with the natural gradient where they meet: on the weights.

One damping metric is fixed there, $A = F + \lambda I$, because damping is not invariant under a chart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.charts import Chart, Parameterization, Standard
from curvature.charts.distinct import distinct
from curvature.errors import ConfigurationError, NotDefinedError
from curvature.linalg.lapack import eigenvalues
from curvature.linalg.operator import SymmetricOperator
from curvature.models import Problem
from curvature.natural_gradient.controls import Controls, control_charts
from curvature.natural_gradient.preconditioners import Preconditioners, absolute_damping
from curvature.precision import full_precision
from curvature.records import StepComparison
from curvature.records.damping import RELATIVE_DAMPING, Damping

__all__ = ["compare_charts", "efficiency", "step_efficiencies"]

_COINCIDE = 1e-12  # difference of two efficiencies that is rounding


@full_precision()
def efficiency(
    problem: Problem,
    chart: Parameterization,
    *,
    damping: float | None = None,
    relative_damping: float | None = None,
    fisher: SymmetricOperator | None = None,
) -> StepComparison:
    r"""Share of the natural gradient's progress that one gradient step of a chart makes.

    $$E = \frac{(g^T K g)^2}{g^T K A K g \; g^T A^{-1} g} \in [0, 1], \quad A = F + \lambda I.$$

    This is the best line-search decrease of the quadratic model along $-K g$, over that of the full damped
    natural-gradient step, and the squared cosine between the two steps in the $A$-norm.

    Parameters
    ----------
    problem
        Model, loss and data at the point.
    chart
        Any parameterization.
    damping
        $\lambda$, added to $F$ on the weights.
    relative_damping
        $a$ in $\lambda = a \operatorname{tr}(F)/P$, instead of ``damping``; 1e-3 if neither is given.
    fisher
        The Fisher, if it has been computed already.

    Returns
    -------
    StepComparison
        With its ``index`` (gradient descent is 0, neuron-block natural gradient 1) and its distance from $A^{-1}$.

    Raises
    ------
    ConfigurationError
        If both dampings are given, or the damping is not positive.
    NotDefinedError
        If the gradient is zero.

    Notes
    -----
    The gradient is that of the objective, with its penalty; $F$ is that of the data, without it, unless ``fisher`` says
    otherwise. $E \ge 4\kappa/(1 + \kappa)^2$ with $\kappa$ the condition number of $K^{1/2} A K^{1/2}$ (Kantorovich).

    Examples
    --------
    >>> from curvature import zoo
    >>> from curvature.natural_gradient.preconditioners import preconditioner
    >>> problem = zoo.digits_problem(num_examples=40, widths=(4,))
    >>> natural = preconditioner(problem, "full", relative_damping=1e-2)
    >>> round(efficiency(problem, natural, relative_damping=1e-2).efficiency, 6)
    1.0
    """
    chosen = Damping.chosen(damping, relative_damping)
    return _compared(problem, [chart], [chosen], "all", Controls(problem, fisher), closeness=True)[0]


@full_precision()
def compare_charts(
    problem: Problem,
    charts: Sequence[Parameterization] | None = None,
    *,
    dampings: Iterable[float] | None = None,
    relative_dampings: Iterable[float] | None = None,
    block: str = "all",
    fisher: SymmetricOperator | None = None,
    controls: Controls | None = None,
    closeness: bool = True,
) -> tuple[StepComparison, ...]:
    r"""Compare the steps of many charts with the natural gradient, over dampings and blocks.

    Parameters
    ----------
    problem
        Model, loss and data at the point.
    charts
        None: :func:`~curvature.natural_gradient.controls.control_charts` at each damping. Different charts of one
        label are numbered.
    dampings
        $\lambda$, added to $F$ on the weights.
    relative_dampings
        $a$ in $\lambda = a \operatorname{tr}(F)/P$, instead of ``dampings``; 1e-3 if neither is given.
    block
        ``"all"``, or one comparison per ``"layer"`` or per ``"neuron"``, with the blocks of $F$, $K$ and the gradient
        that belong to it.
    fisher
        The Fisher, if it has been computed already.
    controls
        What calls at one point share (Fisher and covariance factorized once); built if None.
    closeness
        For ``block="all"``: also the distance of $K$ from a multiple of $A^{-1}$, at the cost of one set of eigenvalues
        per chart and damping.

    Returns
    -------
    tuple
        One :class:`StepComparison` per damping, block with a gradient, and chart, in this order.

    Raises
    ------
    ConfigurationError
        If both kinds of dampings are given, or one is not positive.
    NotDefinedError
        If the gradient is zero.

    Notes
    -----
    Costs the Fisher once, and one factorization per block and damping.
    """
    if dampings is not None and relative_dampings is not None:
        raise ConfigurationError(
            "dampings and relative_dampings both set the damping. Give dampings (in the unit of the eigenvalues) or "
            "relative_dampings (times the mean eigenvalue), not both."
        )
    if dampings is not None:
        chosen = [Damping.chosen(value, None) for value in dampings]
    else:
        values = (RELATIVE_DAMPING,) if relative_dampings is None else relative_dampings
        chosen = [Damping.chosen(None, value) for value in values]
    return _compared(problem, charts, chosen, block, controls or Controls(problem, fisher), closeness=closeness)


def _compared(
    problem: Problem,
    charts: Sequence[Parameterization] | None,
    dampings: Sequence[Damping],
    block: str,
    controls: Controls,
    *,
    closeness: bool,
) -> tuple[StepComparison, ...]:
    matrix, gradient = controls.preconditioners.matrix, problem.gradient()
    if not gradient.any():
        raise NotDefinedError("the gradient is zero here: there is no step to compare.")
    blocks = {name: index.to(problem.device) for name, index in problem.layout.blocks(block).items()}
    comparisons = []
    for damping in dampings:
        absolute, relative = damping.damping, damping.relative_damping
        shift = absolute_damping(matrix, damping)
        damped = matrix.clone()
        damped.diagonal().add_(shift)
        compared = charts
        if compared is None:
            compared = control_charts(problem, damping=absolute, relative_damping=relative, controls=controls)
        compared = distinct(compared)
        neuron_block = controls.preconditioners.chart("neuron-block", damping=absolute, relative_damping=relative)
        ends = (Standard(), neuron_block)
        at_weights = [chart.at(problem.layout, problem.weights) for chart in (*ends, *compared)]
        triangles = controls.preconditioners.factorized(block, shift)  # "all" first: others may be parts of it
        distances: list[dict[str, float]] = [{}] * len(compared)
        if closeness and block == "all":
            distances = [_closeness(chart, damped, controls.preconditioners, shift) for chart in at_weights[2:]]
        for (name, rows), (_, triangle) in zip(blocks.items(), triangles, strict=True):
            local = damped if block == "all" else damped[rows][:, rows]
            values = _efficiencies(at_weights, rows, local, triangle, gradient)
            if values is None:
                continue
            low, high, *values = values
            for chart, value, distance in zip(at_weights[2:], values, distances, strict=True):
                comparisons.append(
                    StepComparison(
                        chart=chart.name,
                        gauge=chart.gauge,
                        relative_damping=damping.relative(float(matrix.trace()), len(matrix)),
                        damping=shift,
                        efficiency=value,
                        block=name,
                        index=(value - low) / (high - low) if high - low > _COINCIDE else math.nan,
                        num_examples=problem.num_examples,
                        **distance,
                    )
                )
    return tuple(comparisons)


def _efficiencies(
    charts: Sequence[Chart], rows: Tensor, damped: Tensor, triangle: Tensor, gradient: Tensor
) -> list[float] | None:
    """``E`` of each chart in one block of ``F + lambda I = L L^T``; None where the gradient has nothing there."""
    local = gradient[rows]
    if not local.any():
        return None
    embedded = torch.zeros_like(gradient)
    embedded[rows] = local
    return step_efficiencies(local, [chart.metric(embedded[:, None])[rows, 0] for chart in charts], damped, triangle)


def step_efficiencies(
    gradient: Float[Tensor, "dim"],
    steps: Iterable[Float[Tensor, "dim"]],
    damped: Float[Tensor, "dim dim"],
    triangle: Float[Tensor, "dim dim"],
) -> list[float]:
    r"""Compute the efficiency of steps that need not come from a metric.

    Parameters
    ----------
    gradient
        $g$.
    steps
        Directions $d$ of any length.
    damped, triangle
        $A = F + \lambda I$, and its lower Cholesky factor.

    Returns
    -------
    list of float
        $(g^T d)^2 / (d^T A d \; g^T A^{-1} g)$ for each, at most 1 up to rounding.
    """
    best = gradient @ torch.cholesky_solve(gradient[:, None], triangle)[:, 0]
    columns = torch.stack(list(steps), dim=1)
    lengths = (columns * (damped @ columns)).sum(dim=0)
    return ((gradient @ columns).square() / (lengths * best)).tolist()


def _closeness(chart: Chart, damped: Tensor, preconditioners: Preconditioners, shift: float) -> dict[str, float]:
    """Distances of ``K^(1/2) A K^(1/2)`` from a multiple of the identity, by name of the record's field."""
    conjugated = chart.similar(damped)
    if torch.equal(conjugated, damped):  # K = I to the last bit: F + lambda I has the eigenvectors of F
        values = preconditioners.eigenvalues + shift
    else:
        values = eigenvalues(((conjugated + conjugated.T) / 2).cpu().numpy())
    if not values[0] > 0:
        return {}  # K is singular: no multiple of it is close to an inverse
    logs = np.log(values)
    return {
        "kappa": float(values[-1] / values[0]),
        "am_gm": max(0.0, float(np.log(values.mean()) - logs.mean())),
        "ai_distance": float(logs.std()),
    }
