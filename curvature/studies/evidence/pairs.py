"""From records to paired numbers: one number per seed, NaN where there is none, bounds where only bounds are known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from curvature.arrays import Float64
from curvature.records import ConditionNumbers, Measured, Quantity, StepComparison, Study, TrainingCurve

__all__ = [
    "averages",
    "by_place",
    "by_seed",
    "final_loss",
    "last_checkpoint",
    "learning_rate_width",
    "log_of_ratio",
    "log_ratio",
    "matched_checkpoint",
    "paired",
    "steps_at",
    "steps_to",
]

# Of the whole matrix: zeros count, or have no weight. All others are taken on the rank.
WHOLE = ("bures", "l1_over_mean", "participation_ratio", "effective_rank", "stable_rank", "intrinsic_dimension")
RANK_TOLERANCE = 0.01  # condition numbers on the rank are compared where the ranks agree this well
NEAR_BEST = 1.1  # learning rates count while the final loss is within 10 % of the arm's best
USUAL_DAMPING = 1e-3
MATCHED = "loss "  # begins the names of checkpoints at a loss that arms reach at different steps

Key = TypeVar("Key")
Value = TypeVar("Value")


def log_ratio(ours: ConditionNumbers, theirs: ConditionNumbers, quantity: str) -> tuple[float, str]:
    """Log of one condition number over the other.

    Parameters
    ----------
    ours, theirs
        Numerator and denominator.
    quantity
        Name of the condition number.

    Returns
    -------
    tuple
        The logarithm and "", or NaN and the reason why the two are not comparable. Numbers on the rank are compared
        where the ranks agree within 1 %; all numbers where both are resolved.
    """
    if quantity not in ours.values or quantity not in theirs.values:
        return math.nan, "not measured"
    mine, reference = ours.values[quantity], theirs.values[quantity]
    if quantity not in WHOLE and abs(ours.rank - theirs.rank) > RANK_TOLERANCE * max(ours.rank, theirs.rank):
        return math.nan, "different ranks"
    if mine.status != "resolved" or reference.status != "resolved":
        return math.nan, "not resolved"
    ratio = log_of_ratio(mine.value, reference.value)
    return ratio, "" if math.isfinite(ratio) else "not finite"


def log_of_ratio(numerator: float, denominator: float) -> float:
    """Log of a ratio of positive numbers, either of which may be infinite.

    Parameters
    ----------
    numerator, denominator
        Any numbers.

    Returns
    -------
    float
        NaN where one is not positive, or both are infinite.
    """
    if not (numerator > 0 and denominator > 0) or numerator == denominator == math.inf:
        return math.nan
    ratio = numerator / denominator
    return math.log(ratio) if 0 < ratio < math.inf else math.log(numerator) - math.log(denominator)


def by_seed(measured: Iterable[Measured[ConditionNumbers]]) -> dict[int, ConditionNumbers]:
    """Condition numbers by seed.

    Parameters
    ----------
    measured
        One per seed.

    Returns
    -------
    dict
        Seed to record.
    """
    return {m.seed: m.record for m in measured}


def by_place(measured: Iterable[Measured[ConditionNumbers]]) -> dict[tuple[str, int, str], ConditionNumbers]:
    """Condition numbers by arm, seed and checkpoint.

    Parameters
    ----------
    measured
        One per arm, seed and checkpoint.

    Returns
    -------
    dict
        ``(arm, seed, checkpoint)`` to record.
    """
    return {(m.arm, m.seed, m.checkpoint): m.record for m in measured}


def last_checkpoint(study: Study) -> str:
    """Name of the checkpoint of the last step.

    Parameters
    ----------
    study
        With measurements.

    Returns
    -------
    str
        Where the last step has several checkpoints, the one that most arms and seeds have; "" without measurements.
    """
    last = max((m.step for m in study.measurements), default=0)
    places = {(m.checkpoint, m.arm, m.seed) for m in study.measurements if m.step == last}
    counts = Counter(checkpoint for checkpoint, _, _ in places)
    return max(sorted(counts), key=counts.__getitem__, default="")


def matched_checkpoint(study: Study, arms: tuple[str, str]) -> str:
    """Name of the checkpoint at an equal loss in both arms.

    Parameters
    ----------
    study
        With condition numbers.
    arms
        Names of two arms.

    Returns
    -------
    str
        The matched loss that most seeds of both arms reached, the lowest of several; "" if there is none.
    """
    reached = [{(m.checkpoint, m.seed) for m in study.of(ConditionNumbers, arm=arm)} for arm in arms]
    counts = Counter(checkpoint for checkpoint, _ in reached[0] & reached[1] if checkpoint.startswith(MATCHED))
    return max(counts, key=lambda name: (counts[name], -float(name.removeprefix(MATCHED))), default="")


def averages(measured: Iterable[Measured[Any]], name: str) -> dict[int, float]:
    """Mean of one field over the records of each seed, which are those of its neurons.

    Parameters
    ----------
    measured
        Records that have the field.
    name
        Of the field.

    Returns
    -------
    dict
        Seed to mean; NaN where one of the values is not finite.
    """
    values: dict[int, list[float]] = {}
    for m in measured:
        values.setdefault(m.seed, []).append(getattr(m.record, name))
    return {seed: float(np.mean(numbers)) for seed, numbers in values.items()}


def paired(
    ours: Mapping[Key, Value], theirs: Mapping[Key, Value], compare: Callable[[Value, Value], float]
) -> dict[Key, float]:
    """Compare what both sides have.

    Parameters
    ----------
    ours, theirs
        Values by seed, or by any other key.
    compare
        The number of a pair.

    Returns
    -------
    dict
        Empty if a side is. What only one side has is NaN, so that it is counted.
    """
    if not ours or not theirs:
        return {}
    keys = dict.fromkeys((*ours, *theirs))
    return {key: compare(ours[key], theirs[key]) if key in ours and key in theirs else math.nan for key in keys}


def steps_at(
    measured: Iterable[Measured[StepComparison]], chart: str, gauge: str | None, relative_damping: float | None
) -> list[Measured[StepComparison]]:
    """Step comparisons of one chart at one damping.

    Parameters
    ----------
    measured
        Of whole steps and of the steps of blocks.
    chart
        Name of the chart.
    gauge
        None: any.
    relative_damping
        None: among those at which closeness was measured (if any), the one nearest to 1e-3.

    Returns
    -------
    list
        Comparisons of whole steps, not of the steps of a block.
    """
    whole_steps = [m for m in measured if m.record.block == "all"]
    with_closeness = {m.record.relative_damping for m in whole_steps if math.isfinite(m.record.kappa)}
    dampings = with_closeness or {m.record.relative_damping for m in whole_steps}
    if relative_damping is None and dampings:
        relative_damping = min(dampings, key=lambda value: abs(math.log(value / USUAL_DAMPING)))
    return [
        m
        for m in whole_steps
        if m.record.chart == chart and gauge in (None, m.record.gauge) and m.record.relative_damping == relative_damping
    ]


def final_loss(curve: TrainingCurve) -> float:
    """Last loss of a run.

    Parameters
    ----------
    curve
        Of one run.

    Returns
    -------
    float
        Infinite for a run that diverged.
    """
    return float(curve.losses[-1]) if len(curve.losses) and np.isfinite(curve.losses[-1]) else math.inf


def learning_rate_width(
    rates: Sequence[float] | Float64[np.ndarray, "rates"], losses: Sequence[float] | Float64[np.ndarray, "rates"]
) -> Quantity:
    """Decades of learning rates around the best that end within 10 % of its loss (C4).

    Parameters
    ----------
    rates
        In any order.
    losses
        Final loss at each; a run that diverged has one that is not finite.

    Returns
    -------
    Quantity
        Length of the interval without a gap around the best rate. A lower bound where it reaches the end of the grid;
        undefined where every run diverged, or a loss is not positive.

    Notes
    -----
    Between two rates the logarithm of the loss is interpolated in the logarithm of the rate; a run that diverged ends
    the interval at the last one that did not.

    Examples
    --------
    >>> width = learning_rate_width([0.01, 0.1, 1.0, 10.0], [2.0, 1.0, 1.0, float("inf")])
    >>> round(width.value, 3), width.status
    (1.138, 'resolved')
    """
    order = np.argsort(rates)
    decades = np.log10(np.asarray(rates, dtype=float)[order])
    values = np.asarray(losses, dtype=float)[order]
    values = np.where(np.isfinite(values), values, math.inf)
    if not np.isfinite(values).any():
        return Quantity(math.nan, "undefined", "every learning rate diverged")
    if values.min() <= 0:
        return Quantity(math.nan, "undefined", "a fraction of the best loss needs positive losses")
    best, limit = int(values.argmin()), NEAR_BEST * values.min()
    ends, is_open = [], False
    for direction in (-1, 1):
        inner = best
        while 0 <= inner + direction < len(values) and values[inner + direction] <= limit:
            inner += direction
        outer = inner + direction
        end = decades[inner]
        if not 0 <= outer < len(values):
            is_open = True
        elif math.isfinite(values[outer]):
            share = math.log(limit / values[inner]) / math.log(values[outer] / values[inner])
            end += share * (decades[outer] - decades[inner])
        ends.append(end)
    width = float(ends[1] - ends[0])
    return Quantity(width, "lower_bound", "it runs into the end of the grid") if is_open else Quantity(width)


def steps_to(curve: TrainingCurve, loss: float) -> tuple[float, float]:
    """Steps until a loss is reached; the logarithm of the loss is interpolated between two records.

    Parameters
    ----------
    curve
        Of one run.
    loss
        To be reached.

    Returns
    -------
    tuple
        A lower and an upper bound: equal where the loss is reached, ``(last step, inf)`` where it is not.
    """
    reached = np.flatnonzero(curve.losses <= loss)
    if not len(reached):
        return float(curve.steps[-1]), math.inf
    k = int(reached[0])
    step = float(curve.steps[k])
    if k and np.isfinite(curve.losses[k - 1]) and min(loss, curve.losses[k]) > 0:
        share = math.log(curve.losses[k - 1] / loss) / math.log(curve.losses[k - 1] / curve.losses[k])
        step = float(curve.steps[k - 1] + share * (curve.steps[k] - curve.steps[k - 1]))
    return step, step
