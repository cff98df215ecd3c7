"""Summaries of all eigenvalues of a positive semidefinite matrix: distances from the identity, effective ranks."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from curvature.arrays import Float
from curvature.records.damping import Damping
from curvature.records.quantity import Quantity

__all__ = ["RELATIVE_DAMPING", "effective_ranks", "sphericity", "with_intervals"]

RELATIVE_DAMPING = 1e-6  # default of the logarithmic distances


def sphericity(
    eigenvalues: Float[np.ndarray, "dim"], *, damping: float | None = None, relative_damping: float | None = None
) -> dict[str, Quantity]:
    r"""Measure how far a positive semidefinite spectrum is from a multiple of the identity.

    Parameters
    ----------
    eigenvalues
        $l_1, \dots, l_d \ge 0$, in any order. Zeros count, because a singular matrix is not spherical.
    damping
        $\delta$ of the logarithmic distances, in the unit of the eigenvalues.
    relative_damping
        $\delta$ as a multiple of the mean eigenvalue; 1e-6 if neither is given.

    Returns
    -------
    dict
        ``bures``: $1 - (\sum \sqrt l)^2 / (d \sum l)$, ``am_gm_damped``: $\log \overline{l + \delta} - \overline{\log
        (l + \delta)}$, ``ai_distance_damped``: the standard deviation of $\log (l + \delta)$, and ``l1_over_mean``:
        $d\, l_1 / \sum l$. At a multiple of the identity the last is 1 and all others are 0.

    Raises
    ------
    ConfigurationError
        If both dampings are given, or the damping is not positive.

    Examples
    --------
    >>> quantities = sphericity(np.array([2.0, 2.0]))
    >>> quantities["bures"].value, quantities["l1_over_mean"].value
    (0.0, 1.0)
    """
    chosen = Damping.chosen(damping, relative_damping, default=RELATIVE_DAMPING)
    dim = len(eigenvalues)
    largest = float(eigenvalues.max())
    if largest <= 0:
        return dict.fromkeys(
            ("bures", "l1_over_mean", "am_gm_damped", "ai_distance_damped"),
            Quantity(math.nan, "undefined", "the matrix is zero"),
        )
    relative = eigenvalues / largest
    total = float(relative.sum())
    note = f"eigenvalues shifted by {chosen.value:g}" + (" of their mean" if chosen.is_relative else "")
    share = chosen.divided(largest).relative(total, dim)
    logs = np.log(relative + share * total / dim)
    return {
        "bures": Quantity(max(0.0, 1 - float(np.sqrt(relative).sum()) ** 2 / (dim * total))),
        "l1_over_mean": Quantity(dim / total),
        "am_gm_damped": Quantity(max(0.0, math.log((1 + share) * total / dim) - float(logs.mean())), note=note),
        "ai_distance_damped": Quantity(float(logs.std()), note=note),
    }


def effective_ranks(eigenvalues: Float[np.ndarray, "dim"]) -> dict[str, Quantity]:
    r"""Compute four effective ranks of a positive semidefinite matrix.

    Parameters
    ----------
    eigenvalues
        $l_1 \ge \dots \ge l_d \ge 0$, not all zero.

    Returns
    -------
    dict
        ``participation_ratio``: $(\sum l)^2 / \sum l^2$, ``effective_rank``: $\exp$ of the entropy of $l / \sum l$ (Roy
        & Vetterli 2007), ``stable_rank``: $\sum l^2 / l_1^2$, ``intrinsic_dimension``: $\sum l / l_1$.
    """
    relative = eigenvalues / eigenvalues[0]  # so that squares neither overflow nor underflow
    total, squares = float(relative.sum()), float((relative**2).sum())
    shares = relative[relative > 0] / total
    return {
        "participation_ratio": Quantity(total**2 / squares),
        "effective_rank": Quantity(math.exp(-float((shares * np.log(shares)).sum()))),
        "stable_rank": Quantity(squares),
        "intrinsic_dimension": Quantity(total),
    }


def with_intervals(
    quantities: dict[str, Quantity],
    eigenvalues: Float[np.ndarray, "dim"],
    ends: tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim"]],
    method: str,
) -> dict[str, Quantity]:
    """Add the intervals that follow from those of the eigenvalues, where there is a simple formula.

    Parameters
    ----------
    quantities
        From :func:`sphericity` or :func:`effective_ranks`.
    eigenvalues
        Descending, ``(d,)``.
    ends
        Lower and upper ends of the intervals of the eigenvalues, ``(d,)`` each.
    method
        How the eigenvalues were computed.

    Returns
    -------
    dict
        The same quantities; those with a formula have ``low`` and ``high``.
    """
    low, high = (end / eigenvalues[0] for end in ends)
    dim, least, most = len(eigenvalues), float(low.sum()), float(high.sum())
    if not low[0] > 0:
        return quantities
    least_squares, most_squares = float((low**2).sum()), float((high**2).sum())
    least_roots, most_roots = float(np.sqrt(low).sum()), float(np.sqrt(high).sum())
    bounds = {
        "bures": (1 - most_roots**2 / (dim * least), 1 - least_roots**2 / (dim * most)),
        "l1_over_mean": (dim * low[0] / most, dim * high[0] / least),
        "participation_ratio": (least**2 / most_squares, most**2 / least_squares),
        "stable_rank": (least_squares / high[0] ** 2, most_squares / low[0] ** 2),
        "intrinsic_dimension": (least / high[0], most / low[0]),
    }
    if "effective_rank" in quantities and dim > 1:
        # Fannes' inequality (1973): the entropies of two distributions at total variation distance t differ by at most
        # t log(d - 1) + h(t), h the binary entropy.
        distance = min(1 - 1 / dim, float((high - low).sum()) / least)
        entropy = distance * math.log(dim - 1) - sum(p * math.log(p) for p in (distance, 1 - distance) if p > 0)
        value = quantities["effective_rank"].value
        bounds["effective_rank"] = (value * math.exp(-entropy), value * math.exp(entropy))
    return {
        name: replace(quantity, low=float(bounds[name][0]), high=float(bounds[name][1]), method=f"{method}, Weyl")
        if name in bounds and quantity.has_value
        else quantity
        for name, quantity in quantities.items()
    }
