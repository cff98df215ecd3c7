"""Gradient noise and steps at one point of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from curvature.charts import Parameterization, Standard
from curvature.linalg.operator import SymmetricOperator
from curvature.models import Problem
from curvature.natural_gradient import (
    Controls,
    alignments,
    compare_charts,
    control_charts,
    whitening,
    whitening_league,
)
from curvature.records import Alignment, StepComparison, Whitening
from curvature.studies.collector import Collector, Place
from curvature.studies.settings import HEADLINE, StudySettings
from curvature.studies.shared import Shared, is_canonical

__all__ = ["gradient_noise", "steps_and_league"]

_VANISHING = 1e-200  # of a squared gradient in the metric of the Fisher: products with it underflow
ENDS = ("init", "late")  # checkpoints at which closeness is measured: it costs the eigenvalues of every chart


def steps_and_league(
    collector: Collector,
    place: Place,
    problem: Problem,
    chart: Parameterization,
    controls: Controls,
    settings: StudySettings,
    shared: Shared,
) -> None:
    """Measure the step of weight norm against the natural gradient, and the league.

    Parameters
    ----------
    collector
        Receives the records.
    place
        Of the checkpoint.
    problem
        At its weights.
    chart
        In which the arm was trained, at the gauge that it reached.
    controls
        At these weights.
    settings
        What is measured.
    shared
        Results at the same weights.
    """
    size = float(controls.preconditioners.matrix.trace()) * float(problem.gradient().abs().max()) ** 2
    if not size > _VANISHING:  # every output is saturated
        collector.warn(f"{place}: no natural-gradient comparison, because the gradient or the Fisher vanishes.")
        return
    for relative_damping in settings.relative_dampings:
        ends = ENDS if settings.closeness_of_controls else ENDS[-1:]
        closeness = relative_damping == settings.relative_damping and place.checkpoint in ends
        compare = partial(
            _compared,
            controls=controls,
            relative_damping=relative_damping,
            closeness=closeness,
            of_controls=settings.closeness_of_controls,
        )
        charts = control_charts(problem, relative_damping=relative_damping, seed=place.seed, controls=controls)
        steps = shared.once(("steps", relative_damping), partial(compare, charts))
        if (chart.name, chart.gauge) not in {(step.chart, step.gauge) for step in steps}:
            canonical = is_canonical(problem, chart)  # the second of the control charts has the same metric then
            own = (replace(steps[1], chart=chart.name, gauge=chart.gauge),) if canonical else compare([chart])
            steps = (*steps[:3], *own, *steps[3:])
        collector.extend(place, steps)
    if place.arm == HEADLINE[1] and place.checkpoint in settings.league_at:
        collector.say(f"seed {place.seed}: whitening league, {place.checkpoint}")
        damping, seed = settings.relative_damping, place.seed
        league = whitening_league(problem, chart, relative_damping=damping, seed=seed, controls=controls)
        collector.extend(place, league)


def gradient_noise(problem: Problem, covariance: SymmetricOperator, seed: int) -> tuple[Alignment | Whitening, ...]:
    """Measure the gradient noise of every neuron.

    Parameters
    ----------
    problem
        At the weights of the checkpoint.
    covariance
        The gradient covariance, with its entries.
    seed
        Of the random directions.

    Returns
    -------
    tuple
        The records.
    """
    generator = torch.Generator().manual_seed(seed)
    return (
        *alignments(problem, seed=generator, covariance=covariance),
        *whitening(problem, seed=generator, covariance=covariance),
    )


def _compared(
    charts: Sequence[Parameterization],
    *,
    controls: Controls,
    relative_damping: float,
    closeness: bool,
    of_controls: bool,
) -> tuple[StepComparison, ...]:
    """Compare the steps of charts at one damping, in their order; closeness of all, or of what the claim compares."""
    claimed = [isinstance(chart, Standard) or chart.gauge in ("canonical", "checkpoint") for chart in charts]
    near = [closeness and (of_controls or claim) for claim in claimed]
    results = {
        wanted: iter(
            compare_charts(
                controls.problem,
                [chart for chart, is_near in zip(charts, near, strict=True) if is_near == wanted],
                relative_dampings=(relative_damping,),
                controls=controls,
                closeness=wanted,
            )
        )
        for wanted in set(near)
    }
    return tuple(next(results[is_near]) for is_near in near)
