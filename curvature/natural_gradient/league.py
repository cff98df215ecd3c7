r"""The whitening league: every method that claims to be close to the natural gradient, measured from the same weights.

A method that multiplies the gradient by a positive semidefinite $K$ is close to the natural gradient where $K$ is close
to a multiple of $A^{-1}$, $A = F + \lambda I$ with one $\lambda$ for all methods. Adam, Shampoo and SOAP have the
expectation of their moments at these weights: the state of an optimizer that stayed there long enough. Muon has a step
and no $K$. Weight standardization cannot represent most weights: it is measured at the nearest ones, and compared with
gradient descent there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from curvature.charts import (
    DoRA,
    Parameterization,
    Placebo,
    RandomWeightFactorization,
    Sphere,
    Standard,
    WeightNorm,
    WeightStandardization,
)
from curvature.errors import ConfigurationError, InputError
from curvature.linalg.operator import SymmetricOperator
from curvature.models import Problem, nearest
from curvature.natural_gradient.comparison import compare_charts, step_efficiencies
from curvature.natural_gradient.controls import Controls
from curvature.natural_gradient.optimizer_metrics import optimizer_metric
from curvature.natural_gradient.steps import muon_step
from curvature.natural_gradient.stretches import best_stretches
from curvature.precision import full_precision
from curvature.records import LeagueEntry, StepComparison
from curvature.records.damping import Damping

__all__ = ["ENDS", "METHODS", "whitening_league"]

_RANK = 2  # of DoRA
ENDS = ("gradient descent", "neuron-block natural gradient")  # at which the index R is 0 and 1
_LOW, _HIGH = ENDS
_MUON = "Muon (step on matrices)"
_REACHED, _NEAREST = "weight norm, gauge reached", "weight standardization *"
_UNRESOLVED = 1e14  # a larger condition number is rounding, in double precision
_PRECONDITIONERS = {
    "Jacobi": "jacobi",
    "PRONG": "prong",
    "K-FAC": "kfac",
    "EKFAC": "ekfac",
    _HIGH: "neuron-block",
    "layer-block natural gradient": "layer-block",
    "natural gradient": "full",
}
METHODS: Mapping[str, str] = {  # to the family of each
    _LOW: "gradient descent",
    "weight norm, canonical": "weight norm",
    _REACHED: "weight norm",
    "weight norm, paper's gauge": "weight norm",
    "weight norm, best gauge": "weight norm",
    "placebo, paper's gauge": "random directions",
    "sphere": "another parameterization",
    "random weight factorization": "another parameterization",
    _NEAREST: "another parameterization",
    f"DoRA, rank {_RANK}": "another parameterization",
    "Adam": "optimizer",
    _MUON: "optimizer",
    "Shampoo": "optimizer",
    "SOAP": "optimizer",
    **dict.fromkeys(_PRECONDITIONERS, "inverts the Fisher or parts of it"),
}


@full_precision()
def whitening_league(
    problem: Problem,
    chart: Parameterization | None = None,
    *,
    damping: float | None = None,
    relative_damping: float | None = None,
    seed: int = 0,
    controls: Controls | None = None,
) -> tuple[LeagueEntry, ...]:
    r"""Measure how close every method of the whitening league comes to the natural gradient, at one point.

    Parameters
    ----------
    problem
        Model, loss and data at the point.
    chart
        Weight norm at the gauge that training has reached. None: that of the module, if it has weight norm; otherwise
        the league has no such entry. Another chart is refused: every other entry chooses its own.
    damping
        $\lambda$, added to $F$ on the weights.
    relative_damping
        $a$ in $\lambda = a \operatorname{tr}(F)/P$, instead of ``damping``; 1e-3 if neither is given.
    seed
        Of the random directions of the placebo, and of what random weight factorization and DoRA draw.
    controls
        What calls at one point share (Fisher and covariance factorized once); built if None.

    Returns
    -------
    tuple of LeagueEntry
        One for each method, with its efficiency $E$, $E$ over that of gradient descent, index $R$ and the condition
        number of $K^{1/2} A K^{1/2}$. A method that these weights do not have (an adapter without a layer to adapt, a
        direction of a row that is zero) has NaN, and the reason in its ``note``; so has a condition number that the
        precision does not resolve.

    Raises
    ------
    ConfigurationError
        If ``chart`` is not weight norm, both dampings are given, or the damping is not positive.
    NotDefinedError
        If the gradient is zero, or the loss has no Fisher.

    Notes
    -----
    The gauges of weight norm are the canonical one, that of ``chart``, that of Salimans & Kingma, and the most
    efficient one (:func:`~curvature.natural_gradient.best_stretches`). Costs the Fisher at two points and the
    eigenvalues of about twenty matrices of its size; one method at a time is in memory.

    Examples
    --------
    >>> import curvature as cv
    >>> problem = cv.zoo.digits_problem(num_examples=40, widths=(4,))
    >>> league = {entry.method: entry for entry in cv.whitening_league(problem)}
    >>> round(league["natural gradient"].efficiency, 6), league["gradient descent"].ratio
    (1.0, 1.0)
    """
    chart = _weight_norm(problem, chart)
    chosen = Damping.chosen(damping, relative_damping)
    controls = controls or Controls(problem)
    high_chart = _preconditioner(controls, "neuron-block", chosen)
    low, high = _compared(problem, [Standard(), high_chart], chosen, controls)
    ends = {_LOW: low, _HIGH: high}
    entries = []
    for method, build in _charts(problem, chart, chosen, seed, controls).items():
        try:
            step = ends[method] if method in ends else _compared(problem, [build()], chosen, controls)[0]
        except (ConfigurationError, InputError) as error:
            entries.append(_absent(method, low, str(error)))
        else:
            entries.append(_entry(method, step, low, _limit(problem)))
    return (*entries, _muon(problem, low, high, controls), _at_the_nearest(problem, chosen, low))


def _weight_norm(problem: Problem, chart: Parameterization | None) -> Parameterization | None:
    """The weight norm whose gauge the league compares: the one that was passed, or that of the module if it has one."""
    of_module = problem.chart if chart is None else chart
    if isinstance(of_module, WeightNorm) and not isinstance(of_module, Placebo):
        return of_module
    if chart is None:
        return None
    raise ConfigurationError(
        f"chart must be a WeightNorm, got {chart!r}: the league compares its gauge. Leave it out to use that of the "
        "model."
    )


def _charts(
    problem: Problem, chart: Parameterization | None, damping: Damping, seed: int, controls: Controls
) -> dict[str, Callable[[], Parameterization]]:
    """What builds each method that has a metric: their dense blocks are large, so one is built at a time."""

    def best_gauge() -> WeightNorm:
        stretches = best_stretches(
            problem,
            damping=damping.damping,
            relative_damping=damping.relative_damping,
            fisher=SymmetricOperator.from_dense(controls.preconditioners.matrix, name="fisher"),
        )
        return WeightNorm(stretch=stretches)

    return {
        _LOW: Standard,
        "weight norm, canonical": WeightNorm,
        **({} if chart is None else {_REACHED: lambda: chart}),
        "weight norm, paper's gauge": partial(WeightNorm, "paper"),
        "weight norm, best gauge": best_gauge,
        "placebo, paper's gauge": partial(Placebo, "paper", seed=seed),
        "sphere": Sphere,
        "random weight factorization": partial(RandomWeightFactorization, seed=seed),
        f"DoRA, rank {_RANK}": partial(DoRA, _RANK, seed=seed),
        **{name: partial(optimizer_metric, problem, name.lower()) for name in ("Adam", "Shampoo", "SOAP")},
        **{name: partial(_preconditioner, controls, kind, damping) for name, kind in _PRECONDITIONERS.items()},
    }


def _preconditioner(controls: Controls, kind: str, damping: Damping) -> Parameterization:
    return controls.preconditioners.chart(kind, damping=damping.damping, relative_damping=damping.relative_damping)


def _compared(
    problem: Problem, charts: Sequence[Parameterization], damping: Damping, controls: Controls | None = None
) -> tuple[StepComparison, ...]:
    values = (damping.value,)
    if damping.is_relative:
        return compare_charts(problem, charts, relative_dampings=values, controls=controls)
    return compare_charts(problem, charts, dampings=values, controls=controls)


def _entry(method: str, step: StepComparison, standard: StepComparison, limit: float) -> LeagueEntry:
    """The entry of a method, next to gradient descent at the same weights."""
    resolved = step.kappa < limit
    power = f"{limit:.2g}".replace("e+0", "e").replace("e+", "e")
    return LeagueEntry(
        method=method,
        relative_damping=step.relative_damping,
        damping=step.damping,
        efficiency=step.efficiency,
        ratio=step.efficiency / standard.efficiency,
        index=step.index,
        kappa=step.kappa if resolved else math.nan,
        num_examples=step.num_examples,
        note="" if resolved else f"condition number above {power}: not resolved.",
    )


def _absent(method: str, standard: StepComparison, note: str) -> LeagueEntry:
    """The entry of a method that has no number here."""
    return LeagueEntry(
        method=method,
        relative_damping=standard.relative_damping,
        damping=standard.damping,
        efficiency=math.nan,
        ratio=math.nan,
        num_examples=standard.num_examples,
        note=note,
    )


def _limit(problem: Problem) -> float:
    """The largest condition number that the precision resolves."""
    return _UNRESOLVED * torch.finfo(torch.float64).eps / torch.finfo(problem.dtype).eps


def _muon(problem: Problem, low: StepComparison, high: StepComparison, controls: Controls) -> LeagueEntry:
    step = muon_step(problem)
    if not step.any():
        return _absent(_MUON, low, "no matrix of weights has a gradient here.")
    damped = controls.preconditioners.matrix.clone()
    damped.diagonal().add_(low.damping)
    ((_, triangle),) = controls.preconditioners.factorized("all", low.damping)
    (value,) = step_efficiencies(problem.gradient(), [step], damped, triangle)
    index = math.nan if math.isnan(low.index) else (value - low.efficiency) / (high.efficiency - low.efficiency)
    return LeagueEntry(
        method=_MUON,
        relative_damping=low.relative_damping,
        damping=low.damping,
        efficiency=value,
        ratio=value / low.efficiency,
        index=index,
        num_examples=low.num_examples,
    )


def _at_the_nearest(problem: Problem, damping: Damping, low: StepComparison) -> LeagueEntry:
    """Weight standardization at the nearest weights that it can represent, next to gradient descent there."""
    chart = WeightStandardization()
    try:
        standard, step = _compared(nearest(problem, chart), [Standard(), chart], damping)
    except (ConfigurationError, InputError) as error:
        return _absent(_NEAREST, low, str(error))
    return _entry(_NEAREST, step, standard, _limit(problem))
