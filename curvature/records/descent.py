"""Steps of gradient descent on the quadratic model of a loss, from the eigenvalues and the gradient's components."""

from __future__ import annotations

import math

import numpy as np

from curvature.records.eigenvalues import MeasuredEigenvalues
from curvature.records.quantity import Quantity

__all__ = ["descent_steps"]

_SAME = 1.02  # two numbers of steps that agree this well are one


def descent_steps(spectrum: MeasuredEigenvalues, accuracy: float) -> Quantity:
    r"""Count the steps at rate $1/l_1$ until the gap to the minimum is a given share of its value at the start.

    Parameters
    ----------
    spectrum
        All eigenvalues, with ``gradient_weights``.
    accuracy
        Share of the initial gap, between 0 and 1.

    Returns
    -------
    Quantity
        A real number $t$ with $\sum_i \frac{c_i^2}{l_i} (1 - l_i/l_1)^{2t}$ at ``accuracy`` times its value at 0, over
        the eigenvalues above the noise floor. Unresolved where those below it could change the answer.
    """
    components = spectrum.gradient_weights
    if components is None:
        return Quantity(math.nan, "undefined", "the gradient was not asked for: spectrum(..., gradient=True)")
    above = spectrum.eigenvalues > spectrum.noise_floor
    below = (spectrum.eigenvalues > 0) & ~above
    below[: spectrum.dim - spectrum.possible_ranks[1]] = False  # certainly zero: what is left of them is rounding
    values = spectrum.eigenvalues[above]
    # A gradient in the range of a singular direction has c^2 / l of ordinary size however small l is, but eigenvectors
    # below the floor are mixed by rounding: their share is only an estimate.
    gaps = components[above] / values
    hidden = float((components[below] / spectrum.eigenvalues[below]).sum())
    total = float(gaps.sum())
    if not total > 0:
        return Quantity(math.nan, "undefined", "the gradient vanishes in the resolved range of the matrix")
    with np.errstate(divide="ignore"):  # the top mode is gone after one step
        rates = 2 * np.log1p(-values / values[-1])
    fast = _steps_until(accuracy, gaps, rates)
    slow = _steps_until(accuracy - (1 - accuracy) * hidden / total, gaps, rates)
    note = f"to {accuracy:g} of the initial gap"
    if slow > _SAME * fast:
        share = hidden / (hidden + total)
        return Quantity(fast, "unresolved", f"{note}; {share:.0%} of the gap lies below the noise floor")
    return Quantity(fast, "resolved", note)


def _steps_until(share: float, gaps: np.ndarray, rates: np.ndarray) -> float:
    """Steps until this share of the sum of the gaps is left, by doubling and bisection; infinite where it never is."""
    if share <= 0:
        return math.inf
    total = float(gaps.sum())

    def remaining(steps: float) -> float:
        return float((gaps * np.exp(steps * rates)).sum()) / total

    high = 1.0  # at least one step: that is when the top mode goes
    while remaining(high) > share and high < 1e300:
        high *= 2
    if remaining(high) > share:
        return math.inf
    low = max(1.0, high / 2)
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if remaining(middle) > share else (low, middle)
    return high
