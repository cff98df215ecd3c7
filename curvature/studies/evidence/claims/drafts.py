"""A claim before and after it is decided: its paired numbers and its control are filled into a draft of the verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from curvature.records import Check, Verdict
from curvature.studies.evidence.inference import MIN_PAIRS, decide, paired_interval

__all__ = ["decided", "with_control", "with_zero_control", "worst_check"]

Key = TypeVar("Key")

CONTROL_SHARE = 0.01  # of the threshold: how far a control that must be zero may deviate by rounding


def decided(
    draft: Verdict, lows: Mapping[int, float], highs: Mapping[int, float] | None = None, note: str = ""
) -> Verdict:
    """Decide one claim on its own.

    Parameters
    ----------
    draft
        The verdict without its numbers.
    lows
        One paired number per seed, or its lower bound; NaN where a seed has none, which is counted. Empty: the claim
        is not tested, and the draft is the verdict.
    highs
        Upper bounds of the same seeds; None where every number is exact.
    note
        What a reader must know; replaces the note of the draft.

    Returns
    -------
    Verdict
        With estimate, interval, p-value and outcome.
    """
    if not lows:
        return draft
    pairs = [(lows[seed], (highs or lows)[seed]) for seed in sorted(lows)]
    may_be_bounds = draft.method == "sign"
    usable = [
        (low, high)
        for low, high in pairs
        if not (math.isnan(low) or math.isnan(high)) and (may_be_bounds or math.isfinite(low))
    ]
    exact = all(low == high for low, high in usable)
    return decide(
        replace(
            draft,
            effects=tuple(low for low, _ in usable),
            ceilings=() if exact else tuple(high for _, high in usable),
            num_missing=len(pairs) - len(usable),
            min_pairs=max(MIN_PAIRS, draft.min_pairs),
            note=note,
        )
    )


def with_control(draft: Verdict, name: str, values: Mapping[Key, float], passes: Callable[[float], bool]) -> Verdict:
    """Add a control to a draft: its mean over seeds, its interval, and whether it passed.

    Parameters
    ----------
    name
        What was measured, in words.
    values
        One number per seed; those that are not finite are left out, and without any the draft stays as it is.
    passes
        Whether a mean is what the control must give.

    Returns
    -------
    Verdict
        The draft with its control.
    """
    finite = [value for value in values.values() if math.isfinite(value)]
    if not finite:
        return draft
    low, high = paired_interval(finite)
    mean = float(np.mean(finite))
    return replace(
        draft, control=name, control_estimate=mean, control_low=low, control_high=high, control_passed=passes(mean)
    )


def with_zero_control(draft: Verdict, name: str, values: Mapping[Key, float]) -> Verdict:
    """Add a control that must be zero up to rounding in every pair.

    Parameters
    ----------
    name
        What was measured, in words.
    values
        One log-ratio per pair; pairs that cannot be compared are left out.

    Returns
    -------
    Verdict
        The draft with its control.
    """
    largest = max((abs(value) for value in values.values() if math.isfinite(value)), default=math.nan)
    return with_control(draft, name, values, lambda _: largest <= CONTROL_SHARE * draft.threshold)


def worst_check(checks: Sequence[Check]) -> Check:
    """The check with the largest deviation in units of its tolerance; one that is not a number comes first.

    Parameters
    ----------
    checks
        At least one.

    Returns
    -------
    Check
        The one to quote.
    """
    return max(
        checks, key=lambda check: math.inf if math.isnan(check.value) else check.value / max(check.tolerance, 1e-300)
    )
