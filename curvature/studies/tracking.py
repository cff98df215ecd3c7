"""What is measured at one step of training, with the vectors of the step before as a start."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.charts import Parameterization
from curvature.charts.chart import Chart
from curvature.errors import ConfigurationError, NonFiniteError
from curvature.linalg.eigen import spectrum
from curvature.linalg.extremal import KrylovSpace, extremal_eigenvalues
from curvature.linalg.operator import SymmetricOperator
from curvature.linalg.planning import plan
from curvature.linalg.traces import trace
from curvature.linalg.work import CHECKS, Counts, num_products
from curvature.models import Problem
from curvature.precision import full_precision
from curvature.records import Quantity, TrackedMatrix, TrackPoint, Where
from curvature.studies.budget import EVALUATION, Loop, OverBudgetError
from curvature.studies.critical import critical_sharpness
from curvature.studies.measuring import in_chart, matrix_of
from curvature.studies.settings import known_matrices

__all__ = [
    "TrackOptions",
    "TrackSettings",
    "WarmStart",
    "diverged_point",
    "expected_seconds",
    "measure_track_point",
    "tracked_headers",
]

_WHOLE = Quantity(math.nan, "undefined", "needs the whole spectrum: raise whole_spectrum_up_to")
_PRODUCTS_OF_A_SECOND_START = 50  # at least
_SKIPPED = Quantity(math.nan, "undefined", "not measured")


@dataclass(frozen=True)
class TrackSettings:
    """What is tracked.

    Attributes
    ----------
    matrices
        Names from ``curvature.matrices.MATRICES``.
    chart
        Coordinates; None: those of the model at each step, which are ``(g, v)`` for weight-normalized layers.
    num_eigenvalues
        Largest eigenvalues of each matrix.
    tolerance
        Error of an eigenvalue by Lanczos, relative to the largest.
    verify
        Look for missed eigenvalues from a second random start: at least 50 products more for each matrix.
    trace_products
        Random probes of the trace (Hutchinson), where it is estimated; at least 8.
    whole_spectrum_up_to
        Largest dimension at which the whole spectrum is computed: then every number is exact up to rounding, and
        condition numbers are defined.
    sharpness
        Also measure the critical sharpness, by 5 to 20 evaluations of the objective.
    seed
        Of start vectors and probes, the same at every step.

    Raises
    ------
    ConfigurationError
        If a number is out of range, or a matrix is unknown.
    """

    matrices: tuple[str, ...] = ("hessian", "ggn")
    chart: Parameterization | None = None
    num_eigenvalues: int = 3
    tolerance: float = 1e-3
    verify: bool = False
    trace_products: int = 20
    whole_spectrum_up_to: int = 300
    sharpness: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.matrices:
            known_matrices(self.matrices)
        if len(set(self.matrices)) < len(self.matrices):
            raise ConfigurationError(f"matrices must be distinct, got {', '.join(self.matrices)}.")
        if self.num_eigenvalues < 1 or not self.tolerance > 0 or self.trace_products < 8:
            raise ConfigurationError(
                "num_eigenvalues must be at least 1, tolerance positive and trace_products at least 8; got "
                f"{self.num_eigenvalues}, {self.tolerance} and {self.trace_products}."
            )


class TrackOptions(TypedDict, total=False):
    """Fields of :class:`TrackSettings`."""

    matrices: tuple[str, ...]
    chart: Parameterization | None
    num_eigenvalues: int
    tolerance: float
    verify: bool
    trace_products: int
    whole_spectrum_up_to: int
    sharpness: bool
    seed: int


@dataclass(frozen=True)
class WarmStart:
    """What one step leaves for the next.

    Attributes
    ----------
    vectors
        Ritz vectors of the largest eigenvalues ``(D, k)``, by the name of the matrix.
    rate
        The critical learning rate.
    """

    vectors: Mapping[str, Float[Tensor, "dim columns"]] = field(default_factory=dict)
    rate: float = 1.0


@full_precision()
def measure_track_point(
    problem: Problem,
    settings: TrackSettings,
    *,
    step: int,
    warm: WarmStart | None = None,
    matrices: Sequence[str] | None = None,
    checks: bool = True,
    name: str = "",
    loop: Loop | None = None,
) -> tuple[TrackPoint, WarmStart]:
    """Measure one step of training.

    Parameters
    ----------
    problem
        At the weights of the step.
    settings
        What is measured.
    step
        Optimizer steps so far.
    warm
        From the step before: saves products, and changes eigenvalues by no more than the tolerance. None: random start
        vectors, so that the result does not depend on other steps.
    matrices
        Those to measure now; None: all of the settings.
    checks
        Run the self-checks of each matrix, which cost some products. Once in a run is enough.
    name
        Name of the checkpoint.
    loop
        The optimizer, and the time that is left. Where the time does not suffice for a matrix, this one and those after
        it are left out, and ``loop.allowance.stopped`` names it.

    Returns
    -------
    point, warm
        The row, and what the next step can start from.

    Raises
    ------
    OverBudgetError
        If the time does not suffice for the loss and the critical sharpness.
    """
    started = time.perf_counter()
    warm, loop = warm or WarmStart(), loop or Loop()
    problem_chart = problem.chart if settings.chart is None else settings.chart
    loss = problem.value()
    if not math.isfinite(loss):
        return diverged_point(step, "the loss is not finite", name=name, seconds=time.perf_counter() - started), warm
    try:
        gradient = problem.gradient()
    except NonFiniteError as error:
        return diverged_point(step, str(error), name=name, seconds=time.perf_counter() - started), warm
    chart = problem_chart.at(problem.layout, problem.weights)
    gradient = chart.pull(gradient[:, None])[:, 0]
    sharpness = _sharpness(problem, loss, gradient, chart, warm.rate, loop) if settings.sharpness else _SKIPPED
    parts: list[TrackedMatrix] = []
    notes: list[str] = []
    vectors = dict(warm.vectors)
    for matrix in settings.matrices if matrices is None else matrices:
        operator = loop.allowance.limited_operator(_operator(problem, matrix, problem_chart, settings.seed))
        try:
            part, vectors[matrix] = _measured(operator, matrix, settings, vectors.get(matrix), checks=checks)
            parts.append(part)
        except NonFiniteError as error:
            notes.append(f"{matrix}: {error}")
        except OverBudgetError:
            loop.allowance.stopped = matrix
            break
    point = TrackPoint(
        step=step,
        loss=loss,
        gradient_norm=float(torch.linalg.vector_norm(gradient)),
        critical_sharpness=sharpness,
        update=loop.optimizer if settings.sharpness else "",
        matrices=tuple(parts),
        name=name,
        note="; ".join(notes),
        seconds=time.perf_counter() - started,
    )
    rate = 2 / sharpness.value if sharpness.status == "resolved" else warm.rate
    return point, WarmStart(vectors, rate)


def diverged_point(step: int, note: str, *, name: str = "", seconds: float = math.nan) -> TrackPoint:
    """Make the row of a step at which nothing can be measured.

    Parameters
    ----------
    step
        Optimizer steps so far.
    note
        What is not finite.
    name
        Name of the checkpoint.
    seconds
        Time spent.

    Returns
    -------
    TrackPoint
        With a loss of NaN.
    """
    nothing = Quantity(math.nan, "undefined", "training diverged")
    return TrackPoint(step, math.nan, math.nan, nothing, diverged=True, name=name, note=note, seconds=seconds)


def tracked_headers(problem: Problem, settings: TrackSettings) -> tuple[Where, ...]:
    """Write the header of each matrix of a track.

    Parameters
    ----------
    problem
        At any point.
    settings
        What is tracked.

    Returns
    -------
    tuple of Where
        In the order of the settings.
    """
    chart = problem.chart if settings.chart is None else settings.chart
    return tuple(_operator(problem, matrix, chart, settings.seed).where for matrix in settings.matrices)


def _operator(problem: Problem, matrix: str, chart: Parameterization, seed: int) -> SymmetricOperator:
    return in_chart(matrix_of(problem, matrix, seed, 1), chart)


def expected_seconds(problem: Problem, matrix: str, settings: TrackSettings) -> tuple[float, float]:
    """Time products with a matrix, and say how long its first measurement will take.

    Parameters
    ----------
    problem
        At any point: the time of a product does not depend on the weights.
    matrix
        Its name.
    settings
        What is measured of it.

    Returns
    -------
    tuple of float
        Seconds of the measurement with its self-checks, and of one product; the latter is 0 where the whole spectrum is
        computed from the entries.
    """
    chart = problem.chart if settings.chart is None else settings.chart
    operator = _operator(problem, matrix, chart, settings.seed)
    if operator.dim <= settings.whole_spectrum_up_to:
        planned = plan(operator)
        rank_seconds = planned.seconds if planned.rank_seconds is None else planned.rank_seconds
        return planned.seconds + rank_seconds, 0.0
    vector = torch.ones(operator.dim, 1, dtype=operator.dtype, device=operator.device)
    float((operator @ vector)[0, 0])  # does what is done once for all products
    started = time.perf_counter()
    float((operator @ vector)[0, 0])  # waits for an accelerator
    seconds = time.perf_counter() - started
    counts = Counts(min(settings.num_eigenvalues, operator.dim))
    products = num_products(operator, "lanczos", counts) + settings.trace_products
    products += CHECKS + (_PRODUCTS_OF_A_SECOND_START if settings.verify else 0)
    return products * seconds, seconds


def _sharpness(problem: Problem, loss: float, gradient: Tensor, chart: Chart, rate: float, loop: Loop) -> Quantity:
    """Along the gradient in the coordinates of the chart, as gradient descent in them would go, or along an update."""
    direction = gradient
    if loop.update is not None:
        # The optimizer moves the coordinates of the model, whatever chart the rows are in.
        chart = problem.chart.at(problem.layout, problem.weights)
        gradient = chart.pull(problem.gradient()[:, None])[:, 0]
        by_name, learning_rate = loop.update(chart.layout.unflatten(gradient))
        if not learning_rate > 0:
            return Quantity(math.nan, "undefined", "the learning rate of the optimizer is zero")
        direction = chart.layout.flatten(by_name)

    def change(rate: float) -> float:
        with torch.no_grad():
            weights = chart.to_weights(chart.coordinates - rate * direction)
        return problem.value(weights) - loss

    slope = float((direction * gradient).sum())
    if loop.update is not None and not slope > 0:
        return Quantity(math.nan, "undefined", "the update of the optimizer does not point downhill")
    precision = torch.finfo(problem.dtype).eps
    return critical_sharpness(loop.allowance.limited(change, EVALUATION), loss, slope, precision=precision, guess=rate)


def _measured(
    operator: SymmetricOperator, matrix: str, settings: TrackSettings, start: Tensor | None, *, checks: bool
) -> tuple[TrackedMatrix, Tensor]:
    """One matrix, and the vectors of its largest eigenvalues; none of a whole spectrum, which needs no start."""
    if operator.dim <= settings.whole_spectrum_up_to:
        nothing = torch.zeros(operator.dim, 0, dtype=operator.dtype, device=operator.device)
        return _whole(operator, matrix, settings, checks=checks), nothing
    return _ends(operator, matrix, settings, start, checks=checks)


def _whole(operator: SymmetricOperator, matrix: str, settings: TrackSettings, *, checks: bool) -> TrackedMatrix:
    started = time.perf_counter()
    record = spectrum(operator, checks=checks)
    numbers = record.condition_numbers().values
    rounding = record.dim * record.noise_floor
    return TrackedMatrix(
        matrix=matrix,
        largest=tuple(record.eigenvalue(-k) for k in range(1, min(settings.num_eigenvalues, record.dim) + 1)),
        trace=Quantity(record.trace, low=record.trace - rounding, high=record.trace + rounding, method="exact"),
        kappa_50=numbers["kappa_50"],
        kappa_80=numbers["kappa_80"],
        kappa_95=numbers["kappa_95"],
        method=record.method,
        seconds=time.perf_counter() - started,
    )


def _ends(
    operator: SymmetricOperator, matrix: str, settings: TrackSettings, start: Tensor | None, *, checks: bool
) -> tuple[TrackedMatrix, Tensor]:
    started = time.perf_counter()
    count = min(settings.num_eigenvalues, operator.dim)
    usable = start is not None and len(start) == operator.dim and start.shape[1] > 0
    ends = extremal_eigenvalues(
        operator,
        num_largest=count,
        tolerance=settings.tolerance,
        space=KrylovSpace(start=start if usable else None),
        verify=settings.verify,
        checks=checks,
        seed=settings.seed,
    )
    assert ends.vectors is not None
    # A flat spectrum with a few large eigenvalues, and few products: there the other estimators are worse.
    estimate = trace(operator, method="hutchinson", num_products=settings.trace_products, seed=settings.seed)
    part = TrackedMatrix(
        matrix=matrix,
        largest=tuple(ends.eigenvalue(-k) for k in range(1, count + 1)),
        trace=Quantity(
            float(estimate.value),
            low=float(estimate.low),
            high=float(estimate.high),
            method=f"{100 * estimate.level:g} %, {estimate.method}",
        ),
        kappa_50=_WHOLE,
        kappa_80=_WHOLE,
        kappa_95=_WHOLE,
        method="lanczos",
        num_products=ends.num_products + estimate.num_products,
        seconds=time.perf_counter() - started,
    )
    return part, torch.from_numpy(ends.vectors.columns)
