r"""Proven bounds: Gauss-Radau rules, Kato-Temple intervals, random-start Lanczos, bands of a spectral measure.

Functions of numbers alone: linear algebra computes the Ritz values and quadrature rules, and records keep them. Where
a bound holds with some probability only, that probability is an argument.
"""

from __future__ import annotations

import math

import numpy as np

from curvature.arrays import Float

__all__ = ["FAILURE", "cumulative_band", "gauss_radau", "kato_temple", "lanczos_slack", "spectral_bounds"]

FAILURE = 1e-3  # probability that a bound from a random start is wrong
_BISECTIONS = 50


def lanczos_slack(dim: int, num_steps: int, failure: float) -> float:
    r"""Bound how far below $\lambda_1$ the largest Ritz value may lie, relative to the spread of the spectrum.

    Parameters
    ----------
    dim
        Dimension $n$ of the matrix.
    num_steps
        Dimension $k$ of the Krylov space, whose start vector is uniform on the sphere.
    failure
        Probability that the bound is wrong.

    Returns
    -------
    float
        $\varepsilon = (\ln(1.648 \sqrt n / \text{failure}) / (2k - 1))^2$ with $\lambda_1 - \theta_1 \le \varepsilon
        (\lambda_1 - \lambda_n)$; infinite for no steps, 0 for the whole space.

    Notes
    -----
    The theorem of [1]_ is applied to the positive semidefinite $A - \lambda_n I$, which has the same Krylov spaces as
    $A$. For a start vector that is fixed in advance there is no such bound.

    References
    ----------
    .. [1] Kuczynski, Wozniakowski (1992). Estimating the largest eigenvalue by the power and Lanczos algorithms with a
       random start. doi:10.7916/D8B56SVV

    Examples
    --------
    >>> round(lanczos_slack(100_000, 100, 1e-3), 4)
    0.0044
    """
    if num_steps >= dim:
        return 0.0
    if num_steps < 1:
        return math.inf
    return (math.log(1.648 * math.sqrt(dim) / failure) / (2 * num_steps - 1)) ** 2


def spectral_bounds(
    smallest: float, largest: float, dim: int, num_steps: int, *, positive_semidefinite: bool, failure: float
) -> tuple[float, float]:
    r"""Bound all eigenvalues by the extreme Ritz values from a random start.

    Parameters
    ----------
    smallest, largest
        Smallest and largest Ritz value, $\theta_m$ and $\theta_1$.
    dim, num_steps
        Dimensions of the matrix and of the Krylov space, as for :func:`lanczos_slack`.
    positive_semidefinite
        Whether the definition of the matrix guarantees it.
    failure
        Probability that one of the bounds is wrong.

    Returns
    -------
    tuple of float
        Lower and upper bound of all eigenvalues; infinite after too few steps.

    Notes
    -----
    Each extreme Ritz value misses its eigenvalue by at most $\varepsilon S$, $S$ the spread of the spectrum, and $S \le
    (\theta_1 - \theta_m) / (1 - 2 \varepsilon)$.
    """
    slack = lanczos_slack(dim, num_steps, failure / 2)
    miss = slack * (largest - smallest) / (1 - 2 * slack) if slack < 0.5 else math.inf
    low, high = smallest - miss, largest + miss
    if positive_semidefinite:
        low = max(low, 0.0)
        if slack < 1:  # here the spread is at most the largest eigenvalue itself
            high = min(high, largest / (1 - slack))
    return low, high


def kato_temple(
    values: Float[np.ndarray, "values"],
    residuals: Float[np.ndarray, "values"],
    below: Float[np.ndarray, "values"],
    above: Float[np.ndarray, "values"],
) -> tuple[Float[np.ndarray, "values"], Float[np.ndarray, "values"]]:
    r"""Bound the only eigenvalue in $(\alpha, \beta)$ by a Rayleigh quotient and its residual.

    Parameters
    ----------
    values
        Rayleigh quotients $\theta$ of unit vectors $y$, ``(k,)``.
    residuals
        $r = \|A y - \theta y\|$, ``(k,)``.
    below, above
        $\alpha$ and $\beta$, ``(k,)``; the bound holds if exactly one eigenvalue lies between them.

    Returns
    -------
    tuple of ndarray
        $\theta - r^2 / (\beta - \theta)$ and $\theta + r^2 / (\theta - \alpha)$, never wider than $\theta \pm r$.

    Notes
    -----
    Kato (1949) and Temple (1928), from $y^T (A - \alpha)(A - \lambda) y \ge 0$.
    """
    low, high = values - below, above - values
    with np.errstate(divide="ignore", invalid="ignore"):
        up = np.where(low > 0, residuals * (residuals / low), np.inf)
        down = np.where(high > 0, residuals * (residuals / high), np.inf)
    return values - np.minimum(residuals, down), values + np.minimum(residuals, up)


def gauss_radau(
    diagonal: Float[np.ndarray, "probes steps"], off_diagonal: Float[np.ndarray, "probes steps-1"], node: float
) -> Float[np.ndarray, "probes steps"]:
    r"""Change the last diagonal entry of tridiagonal matrices so that a given node is an eigenvalue.

    Parameters
    ----------
    diagonal, off_diagonal
        ``P`` tridiagonal matrices of order $m$, ``(P, m)`` and ``(P, m - 1)``.
    node
        A number below (or above) all their eigenvalues.

    Returns
    -------
    ndarray
        The changed diagonals, ``(P, m)``; their quadrature rules are exact up to degree $2m - 2$.

    References
    ----------
    .. [1] Golub (1973). Some modified matrix eigenvalue problems. SIAM Rev. 15(2).
    .. [2] Golub, Meurant (2010). Matrices, Moments and Quadrature with Applications, section 6.2.2.
    """
    changed = diagonal.copy()
    pivot = diagonal[:, 0] - node
    tiny = np.finfo(float).tiny
    for step in range(1, diagonal.shape[1]):
        pivot = np.where(np.abs(pivot) < tiny, tiny, pivot)
        coupling = off_diagonal[:, step - 1] * (off_diagonal[:, step - 1] / pivot)  # the square might overflow
        changed[:, step] = node + coupling
        pivot = diagonal[:, step] - node - coupling
    changed[:, :-1] = diagonal[:, :-1]
    if diagonal.shape[1] == 1:
        changed[:, 0] = node
    return changed


def cumulative_band(
    nodes: Float[np.ndarray, "probes steps"],
    weights: Float[np.ndarray, "probes steps"],
    dim: int,
    grid: Float[np.ndarray, "points"],
    level: float,
) -> tuple[Float[np.ndarray, "points"], Float[np.ndarray, "points"], Float[np.ndarray, "points"]]:
    r"""Bound the share of eigenvalues up to each point of a grid.

    Parameters
    ----------
    nodes, weights
        Gauss rules of the probes, ``(P, m)``; each row of weights adds up to one.
    dim
        Dimension $n$ of the matrix.
    grid
        Points, ``(k,)``.
    level
        Probability that the band contains the true share, at each point separately.

    Returns
    -------
    tuple of ndarray
        Lower end, middle and upper end, ``(k,)`` each.

    Notes
    -----
    Quadrature: the Gauss rule of a probe bounds its spectral measure $F_q$. With cumulated weights $C_i$ and $\theta_i
    \le x < \theta_{i+1}$, $C_{i-1} \le F_q(x) \le C_{i+1}$ (Chebyshev, Markov & Stieltjes; Szego 1939, section 3.41).

    Sampling: $F_q(x)$ of a uniform unit vector is Beta$(nF/2, n(1 - F)/2)$. The mean of $P$ probes is close to, and a
    little narrower than, Beta$(PnF/2, Pn(1 - F)/2)$. The interval contains the values $F$ that this law does not
    reject. One probe is enough, and normality is not assumed.
    """
    from scipy.special import betainc

    order = np.argsort(nodes, axis=1)
    nodes = np.take_along_axis(nodes, order, axis=1)
    sums = np.cumsum(np.take_along_axis(weights, order, axis=1), axis=1)
    sums = np.concatenate([np.zeros((len(sums), 2)), sums, np.ones((len(sums), 1))], axis=1)  # C_{-1}, C_0, ..., 1
    rounding = 10 * np.finfo(float).eps * float(np.abs(nodes).max())
    floor, ceiling = np.zeros(len(grid)), np.zeros(len(grid))
    for row, total in zip(nodes, sums, strict=True):
        floor += total[np.searchsorted(row, grid - rounding, side="right")]
        ceiling += total[np.searchsorted(row, grid + rounding, side="right") + 2]
    floor, ceiling = np.clip(floor / len(nodes), 0, 1), np.clip(ceiling / len(nodes), 0, 1)

    # Both ends are clipped to where the Beta law of the sampling is not rejected, half of 1 - level on each side.
    half, tail = len(nodes) * dim / 2, (1 - level) / 2

    def share(mean: np.ndarray, probability: float) -> np.ndarray:
        """Solve, by bisection, for the F at which a mean of at most ``mean`` has this probability; it falls with F."""
        low, high = np.zeros(len(mean)), np.ones(len(mean))
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            likely = betainc(half * middle, half * (1 - middle), mean) > probability
            low, high = np.where(likely, middle, low), np.where(likely, high, middle)
        return (low + high) / 2

    low = np.where(floor > 0, share(floor, 1 - tail), 0.0)
    high = np.where(ceiling < 1, share(ceiling, tail), 1.0)
    return low, (floor + ceiling) / 2, high
