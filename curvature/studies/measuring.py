"""Measure one point: every matrix in every chart, gauges, gradient noise and steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.charts import LinearChart, Parameterization, Placebo, Standard, WeightNorm
from curvature.errors import SelfCheckError
from curvature.linalg.eigen import spectrum
from curvature.linalg.operator import SymmetricOperator
from curvature.matrices import MATRICES, effective, pullback
from curvature.matrices.gauss_newton import fisher_is_ggn
from curvature.models import Problem
from curvature.natural_gradient import Controls
from curvature.records import Check, ConditionNumbers, GaugeState, Spectrum
from curvature.studies.collector import Collector, Place
from curvature.studies.evidence import LINEAR_PART
from curvature.studies.progress import FIRST_NUMBERS
from curvature.studies.settings import StudySettings
from curvature.studies.shared import Shared, is_canonical
from curvature.studies.steps import gradient_noise, steps_and_league

__all__ = [
    "CANONICAL_TOLERANCE",
    "gauge_state",
    "in_chart",
    "linear_part",
    "matrix_of",
    "measure_point",
    "measured_spectra",
    "stretch_range",
]

CANONICAL_TOLERANCE = 1e-10  # of the largest eigenvalue: rounding leaves about 1e-15
_ENDS = ("init", "late")
_SECOND_MOMENTS = tuple(name for name in MATRICES if name != "hessian")


def measure_point(
    collector: Collector,
    place: Place,
    problem: Problem,
    chart: Parameterization,
    settings: StudySettings,
    shared: Shared | None = None,
) -> None:
    """Measure one checkpoint of one arm.

    Parameters
    ----------
    collector
        Receives the records.
    place
        Of the checkpoint.
    problem
        At the weights of the checkpoint.
    chart
        In which the arm was trained, at the gauge that it reached.
    settings
        What is measured. Arms that are not followed: at the first and the last checkpoint, the GGN in the standard
        chart and in their own.
    shared
        Results of other arms at the same weights.
    """
    shared = shared or Shared()
    followed = place.arm in settings.followed
    if not followed and place.checkpoint not in _ENDS:
        return
    every_chart = settings.in_every_chart(place.arm, place.checkpoint)
    charts: list[Parameterization] = [Standard()]
    charts += [WeightNorm(), WeightNorm("paper")] if every_chart else []
    charts += [] if isinstance(chart, Standard) else [chart]
    matrices = settings.matrices if followed else ("ggn",)
    operators = measured_spectra(collector, place, problem, matrices, charts, shared=shared)
    if (place.arm, place.seed, place.step) == (settings.arms[0].name, settings.seeds[0], 0):
        _say_first_numbers(collector, place)
    for measured_chart in charts:
        gauge_state(collector, place, problem, measured_chart)
        if "hessian" in operators and type(measured_chart) is WeightNorm:
            _second_order(collector, place, problem, operators["hessian"], measured_chart, settings, shared)
    if every_chart and place.checkpoint in settings.swept_at:
        for stretch in settings.stretches:
            ggn = _operator(shared, problem, "ggn", place.seed)
            collector.add(place, _spectrum(shared, ggn, effective, WeightNorm(stretch=stretch)))
    if followed and place.checkpoint in settings.steps_at:
        _noise_and_steps(collector, place, problem, chart, settings, shared)


def _say_first_numbers(collector: Collector, place: Place) -> None:
    """Report the first condition numbers as soon as they exist: nobody should wait a minute for the first one."""
    values = {
        (m.record.chart, m.record.gauge): m.record["kappa_80"]
        for m in collector.measurements
        if isinstance(m.record, ConditionNumbers) and m.record.matrix == "ggn" and "kappa_80" in m.record.values
    }
    standard, paper = values.get(("standard", "-")), values.get(("weight-norm", "paper"))
    if standard is not None and paper is not None and standard.has_value and paper.has_value:
        collector.say(
            f"{FIRST_NUMBERS} kappa_80 of the GGN before training, seed {place.seed}: {standard.value:.3g} in the "
            f"standard parameterization, {paper.value:.3g} in weight norm at the paper's gauge"
        )


def measured_spectra(
    collector: Collector,
    place: Place,
    problem: Problem,
    matrices: Sequence[str],
    charts: Sequence[Parameterization],
    *,
    on_weights: bool = True,
    gradient: bool = True,
    shared: Shared | None = None,
) -> dict[str, SymmetricOperator]:
    """Measure every matrix in every chart, and check what the canonical gauge must not change.

    Parameters
    ----------
    collector
        Receives the spectra, their condition numbers and the checks.
    place
        Of the point.
    problem
        At the weights of the point.
    matrices
        Names from ``curvature.matrices.MATRICES``.
    charts
        The standard chart first, for the check.
    on_weights
        ``K^(1/2) A K^(1/2)`` on the weights instead of the coordinates of the chart.
    gradient
        Also how the gradient is distributed over the eigenvectors, for matrices that are the metric of a step.
    shared
        Results at the same weights.

    Returns
    -------
    dict
        Each matrix on the weights, with its entries.

    Raises
    ------
    SelfCheckError
        If a spectrum at the canonical gauge differs from the standard one by more than rounding.
    """
    operators, shared = {}, shared or Shared()
    for name in matrices:
        operator = operators[name] = _operator(shared, problem, name, place.seed)
        # A step along the gradient means something in the metric of a curvature, not of a covariance.
        with_gradient = gradient and name in ("ggn", "fisher")
        standard = None
        for chart in charts:
            plain = chart.name == Standard.name  # a mean-only batch norm is the same map under its own name
            canonical = type(chart) is WeightNorm and chart.gauge == "canonical"
            # At the canonical gauge K = I, so the effective matrix is the standard one bit by bit and would
            # test nothing: there the chart's own coordinates are measured, with one more zero per neuron.
            move = effective if on_weights and not canonical else pullback
            if standard is not None and name in _SECOND_MOMENTS and is_canonical(problem, chart):
                record = replace(standard, where=move(operator, chart).where)
            else:
                record = _spectrum(shared, operator, None if plain else move, chart, gradient=with_gradient)
            collector.add(place, record)
            standard = record if plain else standard
            if canonical and standard is not None and name in _SECOND_MOMENTS:
                _check_canonical(collector, place, standard, record)
    return operators


def _operator(shared: Shared, problem: Problem, name: str, seed: int) -> SymmetricOperator:
    """A matrix with its entries."""
    return shared.once((name,), lambda: matrix_of(problem, name, seed, 1).materialized())


def _spectrum(
    shared: Shared,
    operator: SymmetricOperator,
    move: Callable[..., SymmetricOperator] | None,
    chart: Parameterization,
    *,
    gradient: bool = False,
) -> Spectrum:
    """The spectrum of a matrix that ``move`` writes in a chart; None leaves it as it is."""
    if move is None:
        return shared.once((operator.name, gradient), lambda: spectrum(operator, gradient=gradient))
    if type(chart) is not WeightNorm or chart.v is not None or isinstance(chart.stretch, Mapping):  # of one arm alone
        return spectrum(move(operator, chart), gradient=gradient)
    key = (operator.name, gradient, move, chart.rule, chart.stretch, chart.log_scale, chart.layers)
    return shared.once(key, lambda: spectrum(move(operator, chart), gradient=gradient))


def _noise_and_steps(
    collector: Collector,
    place: Place,
    problem: Problem,
    chart: Parameterization,
    settings: StudySettings,
    shared: Shared,
) -> None:
    """Measure gradient noise; where charts are compared and the loss has a Fisher, also steps and the league."""
    covariance = _operator(shared, problem, "gradient_covariance", place.seed)
    collector.extend(place, shared.once(("noise",), lambda: gradient_noise(problem, covariance, place.seed)))
    comparable = isinstance(chart, Standard) or type(chart) is WeightNorm
    if not comparable or not settings.in_every_chart(place.arm, place.checkpoint):
        return
    if not problem.loss.likelihood:
        collector.warn(f"no natural-gradient comparison: the loss {problem.loss.name!r} has no Fisher.")
        return
    controls = shared.once(("controls",), lambda: _controls(shared, problem, covariance, settings, place.seed))
    steps_and_league(collector, place, problem, chart, controls, settings, shared)


def _controls(
    shared: Shared, problem: Problem, covariance: SymmetricOperator, settings: StudySettings, seed: int
) -> Controls:
    """What charts are compared with: the Fisher, or the GGN where that is the same matrix and already measured."""
    is_measured = "fisher" in settings.matrices
    fisher = _operator(shared, problem, "ggn" if not is_measured and fisher_is_ggn(problem) else "fisher", seed)
    values = None
    if fisher.name in settings.matrices:
        values = _spectrum(shared, fisher, None, Standard(), gradient=True).eigenvalues
    return Controls(problem, fisher, covariance, values)


def _check_canonical(collector: Collector, place: Place, standard: Spectrum, canonical: Spectrum) -> None:
    """At ``v = w, g = ||w||`` the map is an isometry onto the weights: non-zero spectra are identical."""
    num_extra = canonical.dim - standard.dim
    matrix = standard.matrix.replace("_", " ").replace("ggn", "GGN")
    values = np.sort(np.abs(canonical.eigenvalues))[num_extra:]
    reference = np.sort(np.abs(standard.eigenvalues))
    check = Check(
        f"canonical gauge leaves the {matrix} spectrum unchanged ({place})",
        float(np.abs(values - reference).max() / max(reference[-1], np.finfo(float).tiny)),
        CANONICAL_TOLERANCE if standard.dtype == "float64" else 1e-4,
        "largest difference of eigenvalues over the largest eigenvalue",
    )
    collector.checks.append(check)
    if not check.passed:
        raise SelfCheckError(
            f"the {standard.matrix} spectrum at the canonical gauge differs from the standard one by {check.value:.1e} "
            "of its largest eigenvalue; in theory the two are identical, so one of them is wrong. Please report this."
        )


def _second_order(
    collector: Collector,
    place: Place,
    problem: Problem,
    hessian: SymmetricOperator,
    chart: WeightNorm,
    settings: StudySettings,
    shared: Shared,
) -> None:
    """What the second-order term of weight norm adds to a Hessian: with the metric alone, and in the other form."""
    if chart.gauge == "paper":
        return
    if settings.both_hessians:
        # Only the other form was measured with the other matrices.
        other = effective if chart.gauge == "canonical" else pullback
        collector.add(place, _spectrum(shared, hessian, other, chart))
    if chart.gauge != "canonical":
        moved = effective(hessian, linear_part(problem, chart))
        standard = _spectrum(shared, hessian, None, chart) if is_canonical(problem, chart) else None
        collector.add(place, spectrum(moved) if standard is None else replace(standard, where=moved.where))


def gauge_state(collector: Collector, place: Place, problem: Problem, chart: Parameterization) -> None:
    """Record the stretches of a gauge, if the chart has one.

    Parameters
    ----------
    collector
        Receives the record.
    place
        Of the point.
    problem
        At the weights of the point.
    chart
        Any; charts other than weight norm have no gauge.
    """
    if not isinstance(chart, WeightNorm) or isinstance(chart, Placebo):
        return
    stretches = chart.at(problem.layout, problem.weights).stretches
    collector.extend(place, [GaugeState(chart.name, chart.gauge, *stretch_range(stretches), len(stretches))])


def stretch_range(stretches: Float[Tensor, "rows"]) -> tuple[float, float, float]:
    """Smallest, median and largest stretch of some rows.

    Parameters
    ----------
    stretches
        One for each row.

    Returns
    -------
    tuple of float
        The median of an even number is the mean of the two in the middle.
    """
    values = stretches.cpu().numpy()
    return float(values.min()), float(np.median(values)), float(values.max())


def linear_part(problem: Problem, chart: WeightNorm) -> LinearChart:
    """Linear chart with the metric of weight norm at this point, to show what its second-order term adds.

    Parameters
    ----------
    problem
        At the weights of the point.
    chart
        Weight norm at some gauge.

    Returns
    -------
    LinearChart
        ``K^(1/2)``, neuron by neuron.
    """
    identity = torch.eye(problem.dim, dtype=problem.dtype, device=problem.device)
    root = chart.at(problem.layout, problem.weights).metric_root(identity)
    neurons = [indices.to(problem.device) for indices in problem.layout.blocks("neuron").values()]
    factors = [(indices, root[indices][:, indices]) for indices in neurons]
    return LinearChart(factors, name=LINEAR_PART, gauge=chart.gauge)


def in_chart(operator: SymmetricOperator, chart: Parameterization) -> SymmetricOperator:
    """Write a matrix on the weights in a chart, which leaves it as it is in the standard one.

    Parameters
    ----------
    operator
        A matrix on the weights.
    chart
        The coordinates.

    Returns
    -------
    SymmetricOperator
        The matrix in them.
    """
    return operator if isinstance(chart, Standard) else pullback(operator, chart)


def matrix_of(problem: Problem, name: str, seed: int, num_samples: int) -> SymmetricOperator:
    """Build a matrix by its name.

    Parameters
    ----------
    problem
        The model, its weights, loss and data.
    name
        From ``curvature.matrices.MATRICES``.
    seed, num_samples
        For the labels of the Monte Carlo Fisher.

    Returns
    -------
    SymmetricOperator
        On the weights.
    """
    if name == "monte_carlo_fisher":
        return MATRICES[name](problem, num_samples, torch.Generator().manual_seed(seed))
    return MATRICES[name](problem)
