"""Number of gradient-descent steps on the quadratic model of a loss, from eigenvalues and gradient components."""

from __future__ import annotations

import math

import numpy as np

from curvature.records.eigenvalues import MeasuredEigenvalues
from curvature.records.quantity import Quantity

__all__ = ["descent_steps"]

_SAME = 1.02  # two step counts with a smaller ratio count as equal


def descent_steps(spectrum: MeasuredEigenvalues, accuracy: float) -> Quantity:
    r"""Count the steps at rate $1/l_1$ until the gap to the minimum is a given share of the initial gap.

    Parameters
    ----------
    spectrum
        All eigenvalues, computed with ``gradient=True``.
    accuracy
        Share of the initial gap, between 0 and 1.

    Returns
    -------
    Quantity
        The real number $t$ at which $\sum_i \frac{c_i^2}{l_i} (1 - l_i/l_1)^{2t}$, over the eigenvalues above the noise
        floor, is ``accuracy`` times its value at 0. Unresolved where the eigenvalues below the floor could change it.
    """
    components = spectrum.gradient_weights
    if components is None:
        return Quantity(math.nan, "undefined", "needs the gradient: spectrum(..., gradient=True)")
    above = spectrum.eigenvalues > spectrum.noise_floor
    below = (spectrum.eigenvalues > 0) & ~above
    below[: spectrum.dim - spectrum.possible_ranks[1]] = False  # zero by the rank: their values are rounding
    values = spectrum.eigenvalues[above]
    # c^2 / l is of ordinary size however small l is. But rounding mixes the eigenvectors below the floor, so their part
    # of the gap is only an estimate, and it decides nothing but the status.
    gaps = components[above] / values
    hidden = float((components[below] / spectrum.eigenvalues[below]).sum())
    total = float(gaps.sum())
    if not total > 0:
        return Quantity(math.nan, "undefined", "the gradient vanishes in the resolved range of the matrix")
    with np.errstate(divide="ignore"):  # log 0: the largest eigenvalue converges in one step
        rates = 2 * np.log1p(-values / values[-1])
    fast = _steps_until(accuracy, gaps, rates)
    slow = _steps_until(accuracy - (1 - accuracy) * hidden / total, gaps, rates)
    note = f"to {accuracy:g} of the initial gap"
    if slow > _SAME * fast:
        share = hidden / (hidden + total)
        return Quantity(fast, "unresolved", f"{note}; {share:.0%} of the gap lies below the noise floor")
    return Quantity(fast, "resolved", note)


def _steps_until(share: float, gaps: np.ndarray, rates: np.ndarray) -> float:
    """Steps until this share of the sum of the gaps is left, by doubling and bisection; infinite if never."""
    if share <= 0:
        return math.inf
    total = float(gaps.sum())

    def remaining(steps: float) -> float:
        return float((gaps * np.exp(steps * rates)).sum()) / total

    high = 1.0  # at least one step, in which the largest eigenvalue converges
    while remaining(high) > share and high < 1e300:
        high *= 2
    if remaining(high) > share:
        return math.inf
    low = max(1.0, high / 2)
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if remaining(middle) > share else (low, middle)
    return high
