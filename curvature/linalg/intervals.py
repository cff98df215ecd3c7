r"""Intervals of estimates from random probes that cover what they promise.

Two corrections make 95 % mean 95 %. Coverage is measured on flat, exponentially and polynomially decaying spectra and
on a few outliers (``tests/linalg/test_estimators.py``).

*Independent samples* of a matrix with a few large eigenvalues are skewed like a chi-squared variable, and Student's
interval covers 89 to 94 %. It is widened to hold the interval that corrects for the skewness (Hall 1992).

*Leave-one-out samples* share all but one of their vectors, so their spread understates the error, the more the faster
the spectrum decays: 95 % intervals cover 55 to 80 %, and up to 3.4 times the width would be needed. The standard error
is therefore the jackknife of the whole estimate over its vectors, whose mean square is never below the variance
(Efron & Stein 1981). It costs no products, covers 95 to 100 %, and is too long by a factor of two to four where the
estimate is most accurate.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from curvature.arrays import Float64
from curvature.errors import ConfigurationError
from curvature.linalg.operator import SymmetricOperator

__all__ = [
    "CHEAP_DIM",
    "described",
    "known_method",
    "mean_interval",
    "normal_probes",
    "quantile",
    "require_budget",
    "rounding_units",
    "spread",
]

LEVEL = 0.95  # the level at which coverage is measured
CHEAP_DIM = 4096  # a dense form up to here is built rather than estimated


def mean_interval(samples: Float64[np.ndarray, "probes"]) -> tuple[float, float]:
    r"""Return the 95 % interval of the mean of independent samples that may be skewed.

    Parameters
    ----------
    samples
        Shape ``(P,)``, at least two.

    Returns
    -------
    tuple
        Lower and upper end.

    Notes
    -----
    The hull of Student's interval and of Hall's [1]_, whose statistic $t + g t^2 / 3 + g^2 t^3 / 27 + g / 6$ removes
    the skewness $g \sqrt P$. It is lengthened by $1 + 3 / P$ because the skewness itself is estimated. Chi-squared
    samples with one degree of freedom, as a matrix of rank one gives, are covered in 94 % at 8 samples and 96 % from
    12 on.

    References
    ----------
    .. [1] Hall (1992). On the removal of skewness by transformation. J. R. Stat. Soc. B 54:221.
    """
    count, mean, deviation = len(samples), float(samples.mean()), spread(samples)
    if deviation == 0:
        return mean, mean
    unit, reach = deviation / count**0.5, quantile(count)
    low, high = -reach, reach
    # A smaller skewness corrects by less than a thousandth, and the cube root would lose its digits.
    skew = float((((samples - mean) / deviation) ** 3).mean()) / count**0.5
    if abs(skew) > 1e-3:
        corrected = [3 / skew * (float(np.cbrt(1 + skew * (y - skew / 6))) - 1) for y in (-reach, reach)]
        low, high = min(low, *corrected), max(high, *corrected)
    unit *= 1 + 3 / count
    return mean - high * unit, mean - low * unit


def known_method(method: str, methods: tuple[str, ...]) -> None:
    """Refuse a method that does not exist.

    Parameters
    ----------
    method
        What the caller asked for.
    methods
        What there is.

    Raises
    ------
    ConfigurationError
        With the methods there are.
    """
    if method not in methods:
        raise ConfigurationError(f"method must be one of {', '.join(methods)}, got {method!r}.")


def require_budget(method: str, num_products: int, least: int) -> None:
    """Refuse a budget that is too small for an interval.

    Parameters
    ----------
    method
        Named in the message.
    num_products
        The budget.
    least
        What the method needs.

    Raises
    ------
    ConfigurationError
        If the budget is smaller.
    """
    if num_products < least:
        raise ConfigurationError(f"method={method!r} needs a budget of at least {least} products, got {num_products}.")


def normal_probes(dim: int, count: int, generator: torch.Generator) -> Float64[Tensor, "dim probes"]:
    """Draw normal probes on the CPU in float64.

    Parameters
    ----------
    dim, count
        Length and number of the probes.
    generator
        Source of the numbers.

    Returns
    -------
    Tensor
        Shape ``(dim, count)``.
    """
    return torch.randn(dim, count, generator=generator, dtype=torch.float64)


def rounding_units(operator: SymmetricOperator) -> float:
    """Return the rounding of a sum over coordinates, relative to its terms.

    Parameters
    ----------
    operator
        Gives dimension and precision.

    Returns
    -------
    float
        ``max(10, sqrt(D))`` units of rounding; the relative error of the entries, times ``sqrt(D)``, if that is more.
    """
    units = max(10.0, operator.dim**0.5) * torch.finfo(operator.dtype).eps
    if operator.facts.error is None:
        return units
    norm = operator.norm_estimate()
    return max(units, operator.dim**0.5 * operator.error() / norm if norm else 1.0)


def quantile(count: int) -> float:
    """Return the two-sided 95 % quantile of Student's distribution for the mean of ``count`` samples.

    Parameters
    ----------
    count
        At least two.

    Returns
    -------
    float
        Above 1.96.
    """
    return float(stdtrit(count - 1, (1 + LEVEL) / 2))


def spread(samples: Float64[np.ndarray, "probes"]) -> float:
    """Return the sample standard deviation at any scale: squares neither overflow nor vanish.

    Parameters
    ----------
    samples
        Shape ``(P,)``, at least two.

    Returns
    -------
    float
        In the unit of the samples.
    """
    deviations = samples - samples.mean()
    scale = float(np.abs(deviations).max())
    return 0.0 if scale == 0 else scale * float((((deviations / scale) ** 2).sum() / (len(samples) - 1)) ** 0.5)


def described(operator: SymmetricOperator, method: str, started: float) -> dict[str, Any]:
    """Fields of an :class:`~curvature.records.Estimate` that say of what, how and how long.

    Parameters
    ----------
    operator
        The matrix.
    method
        ``"exact"`` has level 1.
    started
        ``time.perf_counter()`` at the beginning.

    Returns
    -------
    dict
        By field name.
    """
    return {
        "level": 1.0 if method == "exact" else LEVEL,
        "method": method,
        "where": operator.where,
        "dim": operator.dim,
        "seconds": time.perf_counter() - started,
    }
