"""Expected distances from the identity of a sample covariance whose true covariance is a multiple of the identity."""

from __future__ import annotations

import math

import numpy as np

from curvature.errors import ConfigurationError

__all__ = ["marchenko_pastur_bures", "marchenko_pastur_ratio"]


def marchenko_pastur_ratio(dim: int, num_examples: int) -> float:
    r"""Return the expected condition number, on the rank, of a sample covariance of the identity.

    Parameters
    ----------
    dim
        Dimension $d$.
    num_examples
        Number of examples $N$.

    Returns
    -------
    float
        Largest over smallest *non-zero* eigenvalue, $((1 + \sqrt q)/(1 - \sqrt q))^2$ with $q = \min(d/N, N/d)$;
        infinite at $d = N$.

    Raises
    ------
    ConfigurationError
        If a number is below 1.

    References
    ----------
    .. [1] Marchenko, Pastur (1967). Distribution of eigenvalues for some sets of random matrices. Math. USSR-Sb. 1(4).

    Examples
    --------
    >>> round(marchenko_pastur_ratio(100, 10000), 3)
    1.494
    """
    _require_positive(dim, num_examples)
    root = math.sqrt(min(dim, num_examples) / max(dim, num_examples))
    return math.inf if root == 1 else ((1 + root) / (1 - root)) ** 2


def marchenko_pastur_bures(dim: int, num_examples: int) -> float:
    r"""Return the expected Bures distance from the identity of a sample covariance of the identity.

    Parameters
    ----------
    dim
        Dimension $d$.
    num_examples
        Number of examples $N$.

    Returns
    -------
    float
        $1 - (E\sqrt\lambda)^2 / E\lambda$ under the Marchenko-Pastur law with $q = d/N$, about $q/4$ for small $q$.

    Raises
    ------
    ConfigurationError
        If a number is below 1.

    Notes
    -----
    The substitution $\lambda = 1 + q - 2 \sqrt q \cos\theta$ in the density, zeros included, gives $E\sqrt\lambda =
    \frac2\pi \int_0^\pi \sin^2\theta\, (1 + q - 2\sqrt q \cos\theta)^{-1/2}\, d\theta$.

    Examples
    --------
    >>> round(marchenko_pastur_bures(10, 1000), 5)
    0.0025
    """
    _require_positive(dim, num_examples)
    q = dim / num_examples
    # The midpoint rule converges exponentially for a smooth periodic integrand, and avoids the pole at q = 1.
    angles = (np.arange(4096) + 0.5) * math.pi / 4096
    root = 2 * float(np.mean(np.sin(angles) ** 2 / np.sqrt(1 + q - 2 * math.sqrt(q) * np.cos(angles))))
    return 1 - root**2


def _require_positive(dim: int, num_examples: int) -> None:
    if dim < 1 or num_examples < 1:
        raise ConfigurationError(f"dim and num_examples must be at least 1, got {dim} and {num_examples}.")
