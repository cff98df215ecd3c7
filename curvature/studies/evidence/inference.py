"""Intervals, tests and multiplicity: from paired numbers to *supported*, *too small*, *opposite* or *undecided*.

Small samples decide the methods. A study has one number per paired seed, 3 to 20 of them, so what matters is whether an
interval covers at that size. Measured for the mean at level 0.95 (600 to 20000 samples each; standard error below
0.02):

=====  ==================  ========================  ========================  ========================
``n``  data                Student t                 bootstrap-t               bootstrap BCa
=====  ==================  ========================  ========================  ========================
3      normal              0.95                      0.84                      0.72
3      t(3), exponential   0.96, 0.89                0.83, 0.82                0.69, 0.67
10     normal              0.95                      0.95                      0.90
10     t(3), exponential   0.96, 0.90                0.92, 0.93                0.82, 0.86
20     normal              0.95                      0.95                      0.92
20     t(3), exponential   0.95, 0.92                0.93, 0.93                0.87, 0.93
=====  ==================  ========================  ========================  ========================

So Student's t is used throughout; logarithms of ratios are far less skewed than the exponential. Where a number may be
a bound (a run that never reached the loss, a range of learning rates that leaves the grid), the median and the exact
sign test are used instead: an order statistic does not depend on how far a number is beyond a bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from scipy import special

from curvature.arrays import Float64
from curvature.errors import ConfigurationError
from curvature.records import PooledVerdict, Verdict

__all__ = [
    "LEVEL",
    "MIN_PAIRS",
    "THRESHOLD",
    "adjust",
    "decide",
    "holm",
    "interval_at",
    "median_interval",
    "obstacle_of",
    "paired_interval",
    "scarcity_of",
    "side_of",
]

Numbers = Sequence[float] | np.ndarray
Decided = TypeVar("Decided", Verdict, PooledVerdict)

THRESHOLD = math.log(1.1)  # the smallest effect that counts: 10 % in a condition number
LEVEL = 0.95  # 1 minus the chance of one wrong decision in a family
MIN_PAIRS = 3  # two pairs leave one degree of freedom: the interval is 12.7 standard errors to each side
MOST_MISSING = 0.1  # with a larger share of pairs without a number, the missing ones could change the mean


def paired_interval(differences: Numbers, level: float = LEVEL) -> tuple[float, float]:
    r"""Confidence interval of the mean of paired differences: $\bar d \pm t_{n-1} s/\sqrt n$ (Student's t).

    Parameters
    ----------
    differences
        Finite numbers (log-ratios), one per seed, ``(n,)``.
    level
        Two-sided.

    Returns
    -------
    tuple
        Infinite for fewer than two pairs. Equal differences give an interval of length zero.

    Raises
    ------
    ConfigurationError
        If a difference is not finite, or the level is not between 0 and 1.

    Examples
    --------
    >>> low, high = paired_interval([0.1, 0.2, 0.3])
    >>> round(low, 3), round(high, 3)
    (-0.048, 0.448)
    """
    values = _finite(differences)
    if not 0 < level < 1:
        raise ConfigurationError(f"level must be between 0 and 1, got {level}.")
    if len(values) < 2:
        return -math.inf, math.inf
    mean = float(values.mean())
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    half_width = float(special.stdtrit(len(values) - 1, (1 + level) / 2) * _standard_error(values))
    return mean - half_width, mean + half_width


def median_interval(lows: Numbers, highs: Numbers | None = None, level: float = LEVEL) -> tuple[float, float]:
    r"""Distribution-free interval of the median.

    Parameters
    ----------
    lows
        The numbers, or their lower bounds.
    highs
        Their upper bounds; None where the numbers are exact.
    level
        Two-sided.

    Returns
    -------
    tuple
        Infinite where $n$ is too small (5 at 0.95).

    Notes
    -----
    The order statistics $(x_{(k)}, x_{(n+1-k)})$ with the largest $k$ such that $P(\mathrm{Bin}(n, 1/2) < k) \le (1 -
    \text{level})/2$: of the lower bounds on the left, of the upper ones on the right. Covers at least at ``level``.

    Examples
    --------
    >>> median_interval([1, 2, 3, 4, 5, 6])
    (1.0, 6.0)
    >>> median_interval([1, 2, 3, 4, 5])
    (-inf, inf)
    """
    left, right = np.sort(lows), np.sort(lows if highs is None else highs)
    in_tail = special.bdtr(np.arange(len(left)), len(left), 0.5) <= (1 - level) / 2 + 1e-12
    k = int(in_tail.sum())
    return (float(left[k - 1]), float(right[len(right) - k])) if k else (-math.inf, math.inf)


def holm(p_values: Numbers) -> Float64[np.ndarray, "claims"]:
    r"""Holm's (1979) step-down adjustment: $\max_{j \le k} \min(1, (m - j + 1)\, p_{(j)})$.

    Parameters
    ----------
    p_values
        Of all claims of a family, ``(m,)``.

    Returns
    -------
    numpy.ndarray
        Adjusted p-values in the given order, ``(m,)``.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    factors = np.arange(len(values), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * values[order]))
    return adjusted


def adjust(
    verdicts: Sequence[Decided], level: float = LEVEL, *, rule: Callable[..., Decided] | None = None
) -> tuple[Decided, ...]:
    r"""Decide a family of claims together: Holm over all that have a p-value.

    Parameters
    ----------
    verdicts
        Each decided on its own.
    level
        1 minus the chance of one wrong decision in the family.
    rule
        Decides one of them at the level that it is compared at; None: :func:`decide`.

    Returns
    -------
    tuple
        The verdicts in the same order, decided again.

    Notes
    -----
    With $m$ claims the $k$-th smallest p-value is compared with $(1 - \text{level}) / (m - k + 1)$, up to the first
    that fails; all later ones are compared with the share of that one. The interval of each claim is taken at exactly
    the level it was compared at, so it is on one side of the threshold if and only if the claim is decided. The chance
    of any wrong decision in the family, in either direction, is at most ``1 - level``, as long as each p-value is valid
    (that errors of direction are no more frequent is proved for independent claims, Shaffer 1980).

    *Opposite* says more than that the threshold is not reached, so it is read from another interval: the one at
    Bonferroni's level, $1 - (1 - \text{level})/m$, in which all claims hold together. A wrong *opposite* in place of
    *too small* then has a chance of at most half of ``1 - level``.
    """
    tested = [index for index, verdict in enumerate(verdicts) if not math.isnan(verdict.p_value)]
    p_values = [verdicts[index].p_value for index in tested]
    adjusted = holm(p_values)
    num_decided = int((adjusted <= 1 - level).sum())
    family = f"Holm over {len(tested)} claims at {100 * level:g} %" if len(tested) > 1 else ""
    results = list(verdicts)
    decide_one: Callable[..., Any] = rule or decide
    for rank, position in enumerate(np.argsort(p_values, kind="stable")):
        index = tested[position]
        share = (1 - level) / (len(tested) - min(rank, num_decided))
        results[index] = decide_one(
            verdicts[index],
            level=1 - share,
            adjusted=float(adjusted[position]),
            family=family,
            reverse_level=1 - (1 - level) / len(tested),
        )
    return tuple(results)


def decide(
    verdict: Verdict,
    *,
    level: float = LEVEL,
    adjusted: float = math.nan,
    family: str = "",
    reverse_level: float | None = None,
) -> Verdict:
    """Fill in estimate, interval, p-value, outcome and rule from the paired numbers of a verdict.

    *Supported*: the whole interval is above the threshold. *Too small*: the whole interval is below it, so that an
    effect of the claimed size is excluded. *Opposite*: it is even below minus the threshold, so that the reverse of the
    claim is shown. Otherwise *undecided*, as with fewer than ``min_pairs`` pairs, with more than one pair in ten
    missing, or with a control that failed.

    Parameters
    ----------
    verdict
        With its effects, threshold, method and control.
    level
        Of the interval.
    adjusted
        The p-value after an adjustment over a family; NaN: that of this claim alone.
    family
        Which adjustment, in words.
    reverse_level
        Of the interval that must be below minus the threshold; None: ``level``.

    Returns
    -------
    Verdict
        The same claim, decided.
    """
    lows, highs = np.asarray(verdict.effects), np.asarray(verdict.ceilings or verdict.effects)
    if verdict.method == "student":
        test = "Student t on paired seeds"
        estimate = float(lows.mean()) if len(lows) else math.nan
        p_value = _student_p(lows, verdict.threshold)
    else:
        test = "median and exact sign test on paired seeds"
        estimate = _bounded_median(lows, highs)
        p_value = _sign_p(lows, highs, verdict.threshold)
    if len(lows) < verdict.min_pairs:
        p_value = math.nan
    low, high = interval_at(verdict, level)
    obstacle = obstacle_of(verdict)
    reverse_high = interval_at(verdict, reverse_level or level)[1]
    outcome, reason = ("undecided", obstacle) if obstacle else side_of(low, high, verdict.threshold, reverse_high)
    return replace(
        verdict,
        outcome=outcome,
        estimate=estimate,
        low=low,
        high=high,
        level=level,
        p_value=p_value,
        adjusted_p_value=p_value if math.isnan(adjusted) else adjusted,
        num_pairs=len(lows),
        rule="; ".join(filter(None, (reason, test, family))),
    )


def interval_at(verdict: Verdict, level: float = LEVEL) -> tuple[float, float]:
    """Interval of a verdict at another level than that which decided it, from its paired numbers.

    Parameters
    ----------
    verdict
        Of a claim that is no identity.
    level
        Two-sided.

    Returns
    -------
    tuple
        By the method of the verdict; infinite without pairs.
    """
    if verdict.method == "student":
        return paired_interval(verdict.effects, level)
    return median_interval(verdict.effects, verdict.ceilings or verdict.effects, level)


def obstacle_of(verdict: Verdict) -> str:
    """Say why the numbers of a verdict decide nothing on either side of the threshold.

    Parameters
    ----------
    verdict
        With its effects and its control.

    Returns
    -------
    str
        Too few pairs, too many without a number, or a control that failed; empty if none of these.
    """
    if scarcity := scarcity_of(len(verdict.effects), verdict.num_missing, verdict.min_pairs):
        return scarcity
    return f"the control failed ({verdict.control})" if verdict.control_passed is False else ""


def scarcity_of(num_pairs: int, num_missing: int, min_pairs: int = MIN_PAIRS) -> str:
    """Say why there are too few pairs for a mean.

    Parameters
    ----------
    num_pairs, num_missing
        Pairs with and without a number.
    min_pairs
        Pairs needed.

    Returns
    -------
    str
        Empty if there are enough.
    """
    if num_pairs < min_pairs:
        return f"only {num_pairs} of the {min_pairs} pairs needed"
    if num_missing > MOST_MISSING * (num_pairs + num_missing):
        return f"{num_missing} of {num_pairs + num_missing} pairs have no number"
    return ""


def side_of(low: float, high: float, threshold: float, reverse_high: float | None = None) -> tuple[str, str]:
    """Outcome of an interval against the smallest effect that counts.

    Parameters
    ----------
    low, high
        The interval.
    threshold
        The smallest effect that counts.
    reverse_high
        Upper end of the interval that must be below minus the threshold, where the reverse is to be shown; None:
        ``high``.

    Returns
    -------
    tuple
        The outcome, and the reason in words.
    """
    if low > threshold:
        return "supported", f"the whole interval is above the threshold {threshold:.3g}"
    if high < threshold and (high if reverse_high is None else reverse_high) < -threshold:
        return "opposite", f"the whole interval is below minus the threshold, {-threshold:.3g}"
    if high < threshold:
        return "too small", f"the whole interval is below the threshold {threshold:.3g}"
    return "undecided", f"the interval contains the threshold {threshold:.3g}"


def _student_p(values: np.ndarray, threshold: float) -> float:
    """Two-sided p-value of the mean against the threshold: twice the smaller of two one-sided tests."""
    if len(values) < 2:
        return math.nan
    gap = abs(float(values.mean()) - threshold)
    error = _standard_error(values)
    if error == 0 or np.ptp(values) == 0:  # equal numbers, or differences whose square underflows
        return 0.0 if gap else 1.0
    return float(2 * special.stdtr(len(values) - 1, -gap / error))


def _sign_p(lows: np.ndarray, highs: np.ndarray, threshold: float) -> float:
    """Two-sided sign test of the median; a pair whose bounds enclose the threshold counts for neither side."""
    on_one_side = max(int((lows > threshold).sum()), int((highs < threshold).sum()))
    return min(1.0, float(2 * special.bdtrc(on_one_side - 1, len(lows), 0.5)))


def _bounded_median(lows: np.ndarray, highs: np.ndarray) -> float:
    """Median, where the bounds leave only one value for it."""
    if not len(lows):
        return math.nan
    with np.errstate(invalid="ignore"):
        low, high = float(np.median(lows)), float(np.median(highs))
    return low if low == high else math.nan


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) / len(values) ** 0.5


def _finite(values: Numbers) -> np.ndarray:
    vector = np.asarray(values, dtype=float)
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise ConfigurationError(
            "paired differences must be a vector of finite numbers: count a pair without a number as missing instead."
        )
    return vector
