"""Intervals, tests and multiplicity: from paired numbers to *supported*, *refuted* or *inconclusive*.

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
sign test take its place: an order statistic does not ask how far beyond a bound a number lies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from curvature.errors import ConfigurationError
from curvature.records import Verdict

__all__ = ["LEVEL", "MIN_PAIRS", "THRESHOLD", "adjust", "holm", "median_interval", "paired_interval"]

THRESHOLD = math.log(1.1)  # the smallest effect that counts: 10 % in a condition number
LEVEL = 0.95  # 1 minus the chance of one wrong decision in a family
MIN_PAIRS = 3  # two pairs leave one degree of freedom: the interval is 12.7 standard errors to each side
MOST_MISSING = 0.1  # a larger share of pairs without a number could have turned the mean
RESAMPLES = 9999


def paired_interval(differences: Sequence[float], level: float = LEVEL, method: str = "student") -> tuple[float, float]:
    r"""Confidence interval of the mean of paired differences (log-ratios), one per seed.

    Parameters
    ----------
    differences
        Finite numbers, ``(n,)``.
    level
        Two-sided.
    method
        ``"student"``: $\bar d \pm t_{n-1} s/\sqrt n$. ``"bca"``: ``scipy.stats.bootstrap`` (Efron 1987), seeded; for
        comparison, since it covers too rarely below about 20 pairs (table in the module's docstring).

    Returns
    -------
    tuple
        Infinite for fewer than two pairs. Equal differences give an interval of length zero.

    Examples
    --------
    >>> low, high = paired_interval([0.1, 0.2, 0.3])
    >>> round(low, 3), round(high, 3)
    (-0.048, 0.448)
    """
    values = _finite(differences)
    if not 0 < level < 1:
        raise ConfigurationError(f"level must lie between 0 and 1, got {level}.")
    if method not in ("student", "bca"):
        raise ConfigurationError(f"method must be 'student' or 'bca', got {method!r}.")
    if len(values) < 2:
        return -math.inf, math.inf
    mean = float(values.mean())
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    if method == "bca":
        found = stats.bootstrap(
            (values,), np.mean, confidence_level=level, n_resamples=RESAMPLES, rng=np.random.default_rng(0)
        ).confidence_interval
        return float(found.low), float(found.high)
    reach = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * _standard_error(values))
    return mean - reach, mean + reach


def median_interval(
    lows: Sequence[float], highs: Sequence[float] | None = None, level: float = LEVEL
) -> tuple[float, float]:
    r"""Distribution-free interval of the median, of numbers known between ``lows`` and ``highs`` (None: exactly).

    The order statistics $(x_{(k)}, x_{(n+1-k)})$ with the largest $k$ such that $P(\mathrm{Bin}(n, 1/2) < k) \le (1 -
    \text{level})/2$; of the lower bounds on the left, of the upper ones on the right. Covers at least at ``level``;
    infinite where $n$ is too small (5 at 0.95).

    >>> median_interval([1, 2, 3, 4, 5, 6])
    (1.0, 6.0)
    >>> median_interval([1, 2, 3, 4, 5])
    (-inf, inf)
    """
    left, right = np.sort(lows), np.sort(lows if highs is None else highs)
    below = stats.binom.cdf(np.arange(len(left)), len(left), 0.5) <= (1 - level) / 2 + 1e-12
    k = int(below.sum())
    return (float(left[k - 1]), float(right[len(right) - k])) if k else (-math.inf, math.inf)


def holm(p_values: Sequence[float]) -> np.ndarray:
    r"""Holm's (1979) step-down adjustment: $\max_{j \le k} \min(1, (m - j + 1)\, p_{(j)})$, in the given order.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    factors = np.arange(len(values), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * values[order]))
    return adjusted


def adjust(verdicts: Sequence[Verdict], level: float = LEVEL) -> tuple[Verdict, ...]:
    r"""Decide a family of claims together: Holm over all that have a p-value.

    With $m$ claims the $k$-th smallest p-value is compared with $(1 - \text{level}) / (m - k + 1)$, up to the first
    that fails and with that one's share from there on; the interval of each claim is taken at exactly the level it was
    compared at. So an interval lies on one side of the threshold if and only if the claim is decided. The chance of
    any wrong decision in the family, in either direction, is at most ``1 - level``, as far as each p-value holds what
    it says (that directions err no more often is proved for independent claims, Shaffer 1980).
    """
    tested = [index for index, verdict in enumerate(verdicts) if not math.isnan(verdict.p_value)]
    adjusted = holm([verdicts[index].p_value for index in tested])
    decided = int((adjusted <= 1 - level).sum())
    by_p = sorted(range(len(tested)), key=lambda place: (verdicts[tested[place]].p_value, place))
    found = list(verdicts)
    for rank, place in enumerate(by_p):
        share = (1 - level) / (len(tested) - min(rank, decided))
        family = f"Holm over {len(tested)} claims at {100 * level:g} %" if len(tested) > 1 else ""
        found[tested[place]] = decide(
            verdicts[tested[place]], level=1 - share, adjusted=float(adjusted[place]), family=family
        )
    return tuple(found)


def decide(verdict: Verdict, *, level: float = LEVEL, adjusted: float = math.nan, family: str = "") -> Verdict:
    """Fill in estimate, interval, p-value, outcome and rule from the paired numbers of a verdict.

    *Supported*: the whole interval lies above the threshold. *Refuted*: the whole interval lies below it, so that an
    effect of the claimed size is excluded. Else *inconclusive*, as with fewer than ``min_pairs`` pairs, with more than
    one pair in ten missing, or with a control that did not come out as it must.
    """
    lows, highs = np.asarray(verdict.effects), np.asarray(verdict.ceilings or verdict.effects)
    threshold, count = verdict.threshold, len(lows)
    test = {"student": "Student t on paired seeds", "sign": "median and exact sign test on paired seeds"}[
        verdict.method
    ]
    if verdict.method == "student":
        low, high = paired_interval(lows, level) if count else (-math.inf, math.inf)
        estimate = float(lows.mean()) if count else math.nan
        p_value = _student_p(lows, threshold)
    else:
        low, high = median_interval(lows, highs, level)
        estimate = _bounded_median(lows, highs)
        p_value = _sign_p(lows, highs, threshold)
    if count < verdict.min_pairs:
        p_value = math.nan
    outcome, reason = "inconclusive", f"the interval holds the threshold {threshold:.3g}"
    if count < verdict.min_pairs:
        reason = f"{count} of the {verdict.min_pairs} pairs that are needed"
    elif verdict.num_missing > MOST_MISSING * (count + verdict.num_missing):
        reason = f"{verdict.num_missing} of {count + verdict.num_missing} pairs have no number"
    elif verdict.control_passed is False:
        reason = f"the control did not come out as it must ({verdict.control})"
    elif low > threshold:
        outcome, reason = "supported", f"the whole interval lies above the threshold {threshold:.3g}"
    elif high < threshold:
        outcome, reason = "refuted", f"the whole interval lies below the threshold {threshold:.3g}"
    return replace(
        verdict,
        outcome=outcome,
        estimate=estimate,
        low=low,
        high=high,
        level=level,
        p_value=p_value,
        adjusted_p_value=p_value if math.isnan(adjusted) else adjusted,
        num_pairs=count,
        rule="; ".join(filter(None, (reason, test, family))),
    )


def _student_p(values: np.ndarray, threshold: float) -> float:
    """Two-sided p-value of the mean against the threshold: twice the smaller of two one-sided tests."""
    if len(values) < 2:
        return math.nan
    gap = abs(float(values.mean()) - threshold)
    error = _standard_error(values)
    if error == 0 or np.ptp(values) == 0:  # equal numbers, up to what a square can hold
        return 0.0 if gap else 1.0
    return float(2 * stats.t.sf(gap / error, len(values) - 1))


def _sign_p(lows: np.ndarray, highs: np.ndarray, threshold: float) -> float:
    """Two-sided sign test of the median; a pair whose bounds hold the threshold counts for neither side."""
    most = max(int((lows > threshold).sum()), int((highs < threshold).sum()))
    return min(1.0, float(2 * stats.binom.sf(most - 1, len(lows), 0.5)))


def _bounded_median(lows: np.ndarray, highs: np.ndarray) -> float:
    """Median, where the bounds leave only one value for it."""
    if not len(lows):
        return math.nan
    with np.errstate(invalid="ignore"):
        low, high = float(np.median(lows)), float(np.median(highs))
    return low if low == high else math.nan


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) / len(values) ** 0.5


def _finite(values: Sequence[float]) -> np.ndarray:
    found = np.asarray(values, dtype=float)
    if found.ndim != 1 or not np.isfinite(found).all():
        raise ConfigurationError(
            "paired differences must be a vector of finite numbers: count a pair without a number as missing instead."
        )
    return found
