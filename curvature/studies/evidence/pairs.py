"""From records to paired numbers: one number per seed, NaN where there is none, bounds where only bounds are known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from curvature.records import ConditionNumbers, Measured, Quantity, StepComparison, Study, TrainingCurve

__all__ = [
    "averages",
    "by_place",
    "by_rate",
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
    "tuned_rate",
]

# Of the whole matrix: zeros count, or weigh nothing. All others are taken on the rank.
WHOLE = ("bures", "l1_over_mean", "participation_ratio", "effective_rank", "stable_rank", "intrinsic_dimension")
RANK_TOLERANCE = 0.01  # condition numbers on the rank are compared where the ranks agree this well
NEAR_BEST = 1.1  # learning rates count while the final loss is within 10 % of the arm's best
USUAL_DAMPING = 1e-3
MATCHED = "loss "  # begins the names of checkpoints at a loss that arms reach at steps of their own


def log_ratio(ours: ConditionNumbers, theirs: ConditionNumbers, quantity: str) -> tuple[float, str]:
    """Log of one number over the other; NaN with a reason where the two are not comparable.

    Numbers on the rank are compared where the ranks agree within 1 %; all where both are resolved.
    """
    if quantity not in ours.values or quantity not in theirs.values:
        return math.nan, "not measured"
    mine, reference = ours.values[quantity], theirs.values[quantity]
    if quantity not in WHOLE and abs(ours.rank - theirs.rank) > RANK_TOLERANCE * max(ours.rank, theirs.rank):
        return math.nan, "different ranks"
    if mine.status != "resolved" or reference.status != "resolved":
        return math.nan, "not resolved"
    found = log_of_ratio(mine.value, reference.value)
    return found, "" if math.isfinite(found) else "not finite"


def log_of_ratio(numerator: float, denominator: float) -> float:
    """Log of a ratio of numbers above zero, either of which may be infinite; else NaN."""
    if not (numerator > 0 and denominator > 0) or numerator == denominator == math.inf:
        return math.nan
    ratio = numerator / denominator
    return math.log(ratio) if 0 < ratio < math.inf else math.log(numerator) - math.log(denominator)


def by_seed(measured: Iterable[Measured]) -> dict[int, ConditionNumbers]:
    """Records of one kind by seed."""
    return {m.seed: m.record for m in measured}


def last_checkpoint(study: Study) -> str:
    """Name of the checkpoint of the last step; of several there, the one that most arms and seeds have."""
    last = max((m.step for m in study.measurements), default=0)
    there = Counter(
        name for name, _, _ in {(m.checkpoint, m.arm, m.seed) for m in study.measurements if m.step == last}
    )
    return max(sorted(there), key=there.__getitem__, default="")


def matched_checkpoint(study: Study, arms: tuple[str, str]) -> str:
    """The matched loss that most seeds of both arms reached, the lowest of several; "" where none was looked for."""
    reached = {arm: {(m.checkpoint, m.seed) for m in study.of(ConditionNumbers, arm=arm)} for arm in arms}
    both = Counter(name for name, _ in reached[arms[0]] & reached[arms[1]] if name.startswith(MATCHED))
    return max(both, key=lambda name: (both[name], -float(name.removeprefix(MATCHED))), default="")


def by_place(measured: Iterable[Measured]) -> dict[tuple[str, int, str], ConditionNumbers]:
    """Records of one kind by arm, seed and checkpoint."""
    return {(m.arm, m.seed, m.checkpoint): m.record for m in measured}


def averages(measured: Iterable[Measured], name: str) -> dict[int, float]:
    """Mean of one field over the records of each seed (its neurons); NaN where one of them is not finite."""
    found: dict[int, list[float]] = {}
    for m in measured:
        found.setdefault(m.seed, []).append(getattr(m.record, name))
    return {seed: float(np.mean(values)) for seed, values in found.items()}


def paired(ours: Mapping, theirs: Mapping, compare: Callable[..., float]) -> dict:
    """Compare what both sides have; what only one side has is NaN, so that it is counted. Empty if one side is."""
    if not ours or not theirs:
        return {}
    keys = dict.fromkeys((*ours, *theirs))
    return {key: compare(ours[key], theirs[key]) if key in ours and key in theirs else math.nan for key in keys}


def steps_at(measured: Iterable[Measured], chart: str, gauge: str | None, damping: float | None) -> list[Measured]:
    """Step comparisons of one chart (any gauge if None) at one damping.

    ``damping=None``: among those at which closeness was measured (if any), the one nearest to 1e-3.
    """
    found = [m for m in measured if isinstance(m.record, StepComparison) and m.record.block == "all"]
    complete = {m.record.relative_damping for m in found if math.isfinite(m.record.kappa)}
    listed = complete or {m.record.relative_damping for m in found}
    if damping is None and listed:
        damping = min(listed, key=lambda one: abs(math.log(one / USUAL_DAMPING)))
    return [
        m
        for m in found
        if m.record.chart == chart and gauge in (None, m.record.gauge) and m.record.relative_damping == damping
    ]


def by_rate(curves: Iterable[TrainingCurve], arm: str) -> dict[float, dict[int, TrainingCurve]]:
    """Runs of one arm by learning rate and seed; runs that were not told theirs are left out."""
    found: dict[float, dict[int, TrainingCurve]] = {}
    for curve in curves:
        if curve.arm == arm and math.isfinite(curve.learning_rate):
            found.setdefault(curve.learning_rate, {})[curve.seed] = curve
    return found


def final_loss(curve: TrainingCurve) -> float:
    """Last loss; infinite for a run that diverged."""
    return float(curve.losses[-1]) if len(curve.losses) and np.isfinite(curve.losses[-1]) else math.inf


def learning_rate_width(rates: Sequence[float], losses: Sequence[float]) -> Quantity:
    """Decades of learning rates around the best that end within 10 % of its loss (C4).

    The stretch without a gap around the best rate. Between two rates the logarithm of the loss is interpolated in the
    logarithm of the rate; a run that diverged (loss not finite) ends the range at the last one that did not. A lower
    bound where the range runs into the end of the grid; undefined where every run diverged, or a loss is not positive.

    >>> width = learning_rate_width([0.01, 0.1, 1.0, 10.0], [2.0, 1.0, 1.0, float("inf")])
    >>> round(width.value, 3), width.status
    (1.138, 'resolved')
    """
    order = np.argsort(rates)
    places = np.log10(np.asarray(rates, dtype=float)[order])
    values = np.asarray(losses, dtype=float)[order]
    values = np.where(np.isfinite(values), values, math.inf)
    if not np.isfinite(values).any():
        return Quantity(math.nan, "undefined", "every learning rate diverged")
    if values.min() <= 0:
        return Quantity(math.nan, "undefined", "a share of the best loss needs losses above zero")
    best, limit = int(values.argmin()), NEAR_BEST * values.min()
    ends, is_open = [], False
    for direction in (-1, 1):
        here = best
        while 0 <= here + direction < len(values) and values[here + direction] <= limit:
            here += direction
        there = here + direction
        end = places[here]
        if not 0 <= there < len(values):
            is_open = True
        elif math.isfinite(values[there]):
            share = math.log(limit / values[here]) / math.log(values[there] / values[here])
            end += share * (places[there] - places[here])
        ends.append(end)
    found = float(ends[1] - ends[0])
    return Quantity(found, "lower_bound", "it runs into the end of the grid") if is_open else Quantity(found)


def steps_to(curve: TrainingCurve, loss: float) -> tuple[float, float]:
    """Steps until the loss is reached, as a lower and an upper bound: equal where it is, (last step, inf) where not.

    The logarithm of the loss is interpolated between two records.
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


def tuned_rate(runs: Mapping[float, Mapping[int, TrainingCurve]], loss: float) -> float:
    """The learning rate with the fewest steps to the loss, median over seeds; the smaller one of equals."""
    medians = {rate: np.median([steps_to(run, loss)[1] for run in found.values()]) for rate, found in runs.items()}
    return min(sorted(medians), key=lambda rate: medians[rate])
