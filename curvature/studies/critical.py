"""Critical sharpness: the curvature that gradient descent meets, from values of the objective alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from curvature.records import Quantity

__all__ = ["critical_sharpness"]

_TOLERANCE = 1e-3  # relative width of the interval
_FACTOR = 2.0  # between the learning rates of the search for a first bracket
_MOST = 60  # doublings or halvings
_ROUNDINGS = 16.0  # units of rounding of two values of the objective
_BLURRED = 0.05  # a larger relative error by rounding leaves nothing to report


class _Bracket(NamedTuple):
    """Two learning rates between which the loss first increases, with the mean slope to each of them."""

    low: float
    high: float
    slope_low: float
    slope_high: float


def critical_sharpness(
    change: Callable[[float], float], loss: float, slope: float, *, precision: float, guess: float = 1.0
) -> Quantity:
    r"""Measure $2/\eta_c$, with $\eta_c$ the smallest learning rate at which a step increases the objective.

    Parameters
    ----------
    change
        $\eta \mapsto L(\theta - \eta d) - L(\theta)$ for the direction $d$ of the step; may be NaN or infinite, which
        counts as an increase.
    loss
        $L(\theta)$, for its rounding.
    slope
        $d^T \nabla L$: the decrease of the objective per learning rate.
    precision
        Rounding unit of the objective, e.g. ``2.2e-16``.
    guess
        A learning rate to begin with, such as $\eta_c$ of the last step.

    Returns
    -------
    Quantity
        With its interval, 0.1 % wide. *At most* where the objective never increases; undefined where the slope is not
        positive; unresolved where the change is of the size of rounding.

    Notes
    -----
    On a quadratic objective this is $d^T H d / d^T \nabla L$, and along the gradient the Rayleigh quotient $g^T H g /
    g^T g$ of the Hessian: it is at most the largest eigenvalue. The learning rate is doubled or halved until it is on
    the other side, then the mean slope $(L(\theta - \eta d) - L(\theta))/\eta$, which is linear for a quadratic
    objective, is interpolated. An earlier increase between two learning rates that were tried can be missed.

    References
    ----------
    .. [1] Kalra, Gagnon-Audet, Gromov, Mediratta, Niu, Miller, Shvartsman (2026). A scalable measure of loss landscape
       curvature for analyzing the training dynamics of LLMs. arXiv:2601.16979.

    Examples
    --------
    >>> result = critical_sharpness(lambda rate: -4.0 * rate + 6.0 * rate**2, 1.0, 4.0, precision=2e-16)
    >>> round(result.value, 3), result.low <= 3.0 <= result.high
    (3.0, True)
    """
    if not (math.isfinite(slope) and slope > 0):
        return Quantity(math.nan, "undefined", "the gradient is zero: no step along it changes the objective")

    def mean_slope(rate: float) -> float:
        value = change(rate) / rate
        return value if math.isfinite(value) else math.inf

    bracket = _bracketed(mean_slope, slope, guess if math.isfinite(guess) and guess > 0 else 1.0)
    if math.isinf(bracket.high):
        bound = 2 / bracket.low
        note = f"the objective increases at no learning rate up to {bracket.low:.2g}"
        return Quantity(bound, "upper_bound_only", note, low=-math.inf, high=bound, method="line search")
    low, high = _narrowed(mean_slope, bracket)
    middle = (low + high) / 2
    rounding = _ROUNDINGS * precision * abs(loss) / (slope * middle)  # the slope at the end is about that at the start
    if low == 0 or rounding > _BLURRED:
        return Quantity(2 / middle, "unresolved", "the change of the objective is of the size of rounding")
    ends = 2 / (high * (1 + rounding)), 2 / (low * (1 - rounding))
    return Quantity(2 / middle, low=ends[0], high=ends[1], method="line search")


def _bracketed(mean_slope: Callable[[float], float], slope: float, rate: float) -> _Bracket:
    """Double or halve the learning rate until it is on the other side; ``high`` infinite if it never is."""
    value = mean_slope(rate)
    if value > 0:
        for _ in range(_MOST):
            lower = rate / _FACTOR
            below = mean_slope(lower)
            if below <= 0:
                return _Bracket(lower, rate, below, value)
            rate, value = lower, below
        return _Bracket(0.0, rate, -slope, value)
    for _ in range(_MOST):
        higher = rate * _FACTOR
        above = mean_slope(higher)
        if above > 0:
            return _Bracket(rate, higher, value, above)
        rate, value = higher, above
    return _Bracket(rate, math.inf, value, math.nan)


def _narrowed(mean_slope: Callable[[float], float], bracket: _Bracket) -> tuple[float, float]:
    """Interpolate the mean slope, and try just beyond that point on either side, until the bracket is narrow."""
    low, high, below, above = bracket
    for _ in range(_MOST):
        if high - low <= _TOLERANCE * high:
            break
        share = -below / (above - below) if math.isfinite(above) else 0.5
        # The target lies at a third of the tolerance beyond the interpolated point, on the side of the wider part: then
        # two evaluations enclose the crossing of a nearly quadratic objective.
        shift = (1 if share < 0.5 else -1) * 0.3 * _TOLERANCE * high
        rate = low + share * (high - low) + shift
        if not low + 0.02 * (high - low) < rate < high - 0.02 * (high - low):
            rate = min(max(rate, low + 0.02 * (high - low)), high - 0.02 * (high - low))
        width = high - low
        for attempt in (rate, None):
            point = (low + high) / 2 if attempt is None else attempt
            value = mean_slope(point)
            low, high, below, above = (low, point, below, value) if value > 0 else (point, high, value, above)
            if attempt is not None and high - low <= 0.5 * width:
                break  # interpolation halves the bracket; otherwise the middle does
    return low, high
