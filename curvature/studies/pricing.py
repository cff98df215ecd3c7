"""What a study will do, counted before anything is trained."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from curvature.charts import WeightNorm
from curvature.linalg.memory import USABLE, free_memory
from curvature.linalg.planning import plan
from curvature.linalg.work import Counts
from curvature.matrices import pullback
from curvature.models import Problem
from curvature.precision import full_precision
from curvature.studies.measuring import matrix_of
from curvature.studies.seeds import refuse_unsuited
from curvature.studies.settings import HEADLINE, PUBLISHED, StudySettings
from curvature.studies.training import Arm

__all__ = ["StudyPlan", "plan_study"]

_ENDS = 2  # checkpoints at which every arm is measured: the first and the last
_IN_WEIGHTS = (
    "standard",
    "mean-only-batch-norm",
)  # methods whose own chart is the standard one, so that it is measured once


@dataclass(frozen=True)
class StudyPlan:
    """Counts of the work of a study.

    Attributes
    ----------
    num_seeds, num_arms
        Paired seeds, and arms that share each.
    num_runs
        Training runs of all seeds that are kept, without those that tune a learning rate.
    num_tuning_runs
        Training runs that tune a learning rate; a sweep that ends at an edge of its grid takes more.
    steps_per_run, steps_per_tuning_run
        Optimizer steps of each.
    num_spectra
        Spectra of all seeds, by the matrix; fewer if an arm diverges or never reaches a loss level.
    num_step_comparisons
        Points of training at which the steps of the charts are compared with the natural gradient.
    num_leagues
        Those of them at which the whitening league is measured.
    dim
        Coordinates of the largest matrix: the weights, and with weight norm one more for each neuron.
    num_bytes
        Upper bound of the memory of one seed for its matrices.
    """

    num_seeds: int
    num_arms: int
    num_runs: int
    num_tuning_runs: int
    steps_per_run: int
    steps_per_tuning_run: int
    num_spectra: dict[str, int]
    num_step_comparisons: int
    num_leagues: int
    dim: int
    num_bytes: float


@full_precision()
def plan_study(problem: Problem, settings: StudySettings) -> StudyPlan:
    """Count what a study will train and decompose, and the memory for it; trains and decomposes nothing.

    Parameters
    ----------
    problem
        That of the first seed.
    settings
        Of the study.

    Returns
    -------
    StudyPlan
        The counts. They name no time: how long a step and a product take depends on the model, and the parts of a study
        differ too much for a promise within a factor of three.

    Raises
    ------
    ConfigurationError
        If the model has no layer that weight norm could normalize, or cannot be trained by the study.
    ResourceError
        If the matrices do not fit in memory.
    """
    refuse_unsuited(problem, settings)
    seeds, arms, training = len(settings.seeds), settings.arms, settings.training
    spectra: Counter[str] = Counter()
    for arm in arms:
        spectra.update(_spectra_of_arm(settings, arm))
        if settings.whole_batches and arm.name in PUBLISHED:
            spectra["ggn"] += 1 if arm.method in _IN_WEIGHTS else 2
    whole_batches = sum(arm.name in PUBLISHED for arm in arms) if settings.whole_batches else 0
    compared = sum(settings.in_every_chart(arm.name, point) for arm in arms for point in settings.steps_at)
    leagues = len({*settings.league_at} & {*settings.steps_at}) if HEADLINE[1] in {arm.name for arm in arms} else 0
    dim, num_bytes = _memory(problem, settings)
    per_epoch = math.ceil(problem.num_examples / training.batch_size)
    return StudyPlan(
        num_seeds=seeds,
        num_arms=len(arms),
        num_runs=seeds * (len(arms) + whole_batches),
        num_tuning_runs=seeds * len(arms) * len(training.rates),
        steps_per_run=training.epochs * per_epoch,
        steps_per_tuning_run=training.tuning_epochs * per_epoch if training.rates else 0,
        num_spectra={name: seeds * number for name, number in spectra.items()},
        num_step_comparisons=seeds * compared if problem.loss.likelihood else 0,
        num_leagues=seeds * leagues if problem.loss.likelihood else 0,
        dim=dim,
        num_bytes=num_bytes,
    )


def _spectra_of_arm(settings: StudySettings, arm: Arm) -> Counter[str]:
    """Spectra of one arm at one seed."""
    own = 0 if arm.method in _IN_WEIGHTS else 1
    if arm.name not in settings.followed:
        return Counter(ggn=_ENDS * (1 + own))
    points = [*settings.training.stages, *settings.training.levels]
    num_points, num_full = len(points), sum(settings.in_every_chart(arm.name, str(point)) for point in points)
    # The standard chart and the arm's own; in every chart also weight norm at the canonical and the paper's gauge.
    spectra = Counter(dict.fromkeys(settings.matrices, num_points * (1 + own) + 2 * num_full))
    num_swept = sum(settings.in_every_chart(arm.name, point) for point in settings.swept_at)
    spectra["ggn"] += num_swept * len(settings.stretches)
    if "hessian" in settings.matrices:
        normalized = own if arm.method.startswith("weight-norm") else 0
        # At the gauge of training the linear part too.
        spectra["hessian"] += num_points * normalized
        spectra["hessian"] += num_full + num_points * normalized if settings.both_hessians else 0
    return +spectra


def _memory(problem: Problem, settings: StudySettings) -> tuple[int, float]:
    """Size of the largest matrix, and a bound of the memory: all matrices are kept while charts are measured."""
    kept = len(settings.matrices) * problem.dtype.itemsize * problem.dim**2
    allowed = max(USABLE * free_memory(problem.device) - kept, 0.0)
    plans = [
        plan(
            pullback(matrix_of(problem, name, settings.seeds[0], 1), WeightNorm()),
            counts=Counts(vectors=name in ("ggn", "fisher")),
            max_memory=allowed,
        )
        for name in settings.matrices
    ]
    return max(item.dim for item in plans), kept + max(item.num_bytes for item in plans)
