"""Claims about training: the range of learning rates that works (C4), and the steps to a loss (C8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from curvature.records import Check, LearningRateSweep, Quantity, TrainingCurve, Verdict
from curvature.studies.evidence.claims.drafts import decided, worst_check
from curvature.studies.evidence.inference import THRESHOLD
from curvature.studies.evidence.pairs import (
    NEAR_BEST,
    final_loss,
    learning_rate_width,
    log_of_ratio,
    paired,
    steps_to,
)

__all__ = ["self_stabilizing", "training_speed"]

MIN_TRAINED_PAIRS = 10  # of claims about training runs


def self_stabilizing(
    sweeps: Sequence[LearningRateSweep],
    checks: Sequence[Check] = (),
    *,
    threshold: float = THRESHOLD,
    arms: tuple[str, str] = ("standard", "weight-norm"),
) -> Verdict:
    r"""C4: decades of learning rates that end within 10 % of the best final loss, weight norm minus standard.

    Parameters
    ----------
    sweeps
        One per arm and seed, each over the learning rates that its arm needed.
    checks
        The control: the identity $\|v_{t+1}\|^2 = \|v_t\|^2 + \eta^2 \|\partial L/\partial v\|^2$ of plain gradient
        descent.
    threshold
        The smallest log-ratio that counts; taken in decades.
    arms
        Names of the standard and the weight-normalized arm.

    Returns
    -------
    Verdict
        Decided on its own. A range that leaves the grid is a bound, so the test is the sign test.
    """
    plain, normed = (
        {sweep.seed: learning_rate_width(sweep.rates, sweep.final_losses) for sweep in sweeps if sweep.arm == arm}
        for arm in arms
    )
    draft = Verdict(
        claim="C4",
        sentence="With weight norm a wider range of learning rates ends within 10 % of the best loss",
        outcome="not tested",
        unit="decades of learning rates, weight norm minus standard",
        method="sign",
        threshold=threshold / math.log(10),
        min_pairs=MIN_TRAINED_PAIRS,
        note=f"needs a sweep of learning rates in both arms, for at least {MIN_TRAINED_PAIRS} seeds",
    )
    if checks:
        worst = worst_check(checks)
        draft = replace(
            draft,
            control=worst.name,
            control_estimate=worst.value,
            control_low=worst.value,
            control_high=worst.value,
            control_passed=all(check.passed for check in checks),
        )
    lows = paired(normed, plain, lambda mine, base: _gap(mine, base)[0])
    return decided(draft, lows, paired(normed, plain, lambda mine, base: _gap(mine, base)[1]))


def training_speed(
    curves: Sequence[TrainingCurve],
    sweeps: Sequence[LearningRateSweep],
    *,
    threshold: float = THRESHOLD,
    loss: float | None = None,
    arms: tuple[str, str] = ("standard", "weight-norm"),
) -> Verdict:
    r"""C8: log-ratio of the steps to a fixed loss, standard over weight norm, each arm at its best learning rate.

    Parameters
    ----------
    curves
        One run per arm and seed, at the rate that its sweep chose.
    sweeps
        One per arm and seed.
    threshold
        The smallest log-ratio that counts.
    loss
        The loss to reach. None: 1.1 times the largest final loss of either arm, so that every run that did not diverge
        reaches it.
    arms
        Names of the standard and the weight-normalized arm.

    Returns
    -------
    Verdict
        Decided on its own.

    Notes
    -----
    A run that never reaches the loss needs more steps than it had, which is a bound and not a number: hence the median
    and the exact sign test. Where the best rate of an arm is at an edge of its grid nothing is decided; extend the
    grid.
    """
    draft = Verdict(
        claim="C8",
        sentence="With weight norm training reaches a fixed loss in fewer steps, each arm at its best learning rate",
        outcome="not tested",
        unit="log(steps of the standard arm / of the weight-normalized arm)",
        method="sign",
        threshold=threshold,
        min_pairs=MIN_TRAINED_PAIRS,
        note="needs a sweep of learning rates in both arms and a run at the best rate of each, for at least "
        f"{MIN_TRAINED_PAIRS} seeds",
    )
    swept = [[sweep for sweep in sweeps if sweep.arm == arm] for arm in arms]
    runs = [{curve.seed: curve for curve in curves if curve.arm == arm} for arm in arms]
    if not all(swept) or not all(runs):
        return draft
    if loss is None:
        ends = [final_loss(curve) for by_seed in runs for curve in by_seed.values()]
        loss = NEAR_BEST * max((end for end in ends if math.isfinite(end)), default=math.inf)
    base, ours = ({seed: steps_to(curve, loss) for seed, curve in by_seed.items()} for by_seed in runs)
    lows = paired(base, ours, lambda theirs, mine: log_of_ratio(theirs[0], mine[1]))
    highs = paired(base, ours, lambda theirs, mine: log_of_ratio(theirs[1], mine[0]))
    rates = [float(np.median([sweep.chosen for sweep in of_arm])) for of_arm in swept]
    note = f"steps to a loss of {loss:.4g}; learning rates {rates[0]:.3g} ({arms[0]}) and {rates[1]:.3g} ({arms[1]})"
    num_missed = sum(math.isinf(most) for steps in (base, ours) for _, most in steps.values())
    if num_missed:
        note += f"; {num_missed} runs never reached it and give bounds"
    inside = not any(sweep.at_edge for of_arm in swept for sweep in of_arm)
    draft = replace(draft, control="best learning rates inside the grid", control_passed=inside)
    return decided(draft, lows, highs, note=note)


def _gap(mine: Quantity, base: Quantity) -> tuple[float, float]:
    """Lower and upper end of the difference of two widths, either of which may be a lower bound."""
    difference = mine.value - base.value
    known = not math.isnan(difference)
    low = -math.inf if known and base.status == "lower_bound" else difference
    return low, math.inf if known and mine.status == "lower_bound" else difference
