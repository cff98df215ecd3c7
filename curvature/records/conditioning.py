"""Condition numbers and related summaries of a spectrum, computed from its record alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from curvature.errors import ConfigurationError, NotDefinedError
from curvature.records.bounds import FAILURE
from curvature.records.conditions import ConditionNumbers
from curvature.records.damping import Damping
from curvature.records.descent import descent_steps
from curvature.records.eigenvalues import MeasuredEigenvalues, sizes_with_intervals
from curvature.records.estimate import Estimate
from curvature.records.extremal import ExtremalEigenvalues
from curvature.records.quantity import Quantity
from curvature.records.sphericity import RELATIVE_DAMPING, effective_ranks, sphericity, with_intervals

__all__ = ["PERCENTS", "QUANTITIES", "condition_numbers", "damped_condition_number"]

PERCENTS = (50, 80, 95)  # of the rank: Huang et al. (2020), arXiv:2002.10801
QUANTITIES = (  # in the order in which every record has them
    *("kappa_rank", "kappa_50", "kappa_80", "kappa_95", "abs_kappa_50", "abs_kappa_80", "abs_kappa_95", "gd_time"),
    *("am_gm", "ai_distance", "bures", "l1_over_mean", "am_gm_damped", "ai_distance_damped", "participation_ratio"),
    *("effective_rank", "stable_rank", "intrinsic_dimension"),
)
GD_ACCURACY = 1e-2  # of the initial gap, for gd_time
_DAMPING_DECADES = range(7)
_SAME = 1.01  # an interval over several ranks whose ends agree this well is one number


def condition_numbers(
    spectrum: MeasuredEigenvalues,
    *,
    accuracy: float = GD_ACCURACY,
    damping: float | None = None,
    relative_damping: float | None = None,
) -> ConditionNumbers:
    r"""Summarize a spectrum by condition numbers, distances from the identity, and effective ranks.

    With eigenvalues $l_1 \ge l_2 \ge \dots$, rank $r$ and dimension $d$:

    =======================  ======================================================================================
    ``kappa_rank``           $l_1 / l_r$; not a headline
    ``kappa_50, 80, 95``     $l_1 / l_{\lceil p r \rceil}$ (headline)
    ``gd_time``              steps $t$ of gradient descent at rate $1/l_1$ until
                             $\sum_i \frac{c_i^2}{l_i} (1 - l_i/l_1)^{2t}$ falls to ``accuracy`` times its value at 0,
                             $c_i$ the gradient along $q_i$ (headline; needs ``spectrum(..., gradient=True)``)
    ``am_gm``                $\log \bar l - \overline{\log l} \ge 0$ on the rank: Stein divergence to the best multiple
                             of the identity
    ``ai_distance``          standard deviation of $\log l$ on the rank: affine-invariant distance to the multiples of
                             the identity
    ``..._damped``           both for $l + \delta$, over all $d$ eigenvalues
    ``bures``                $1 - (\sum \sqrt l)^2 / (d \sum l)$ over all $d$ eigenvalues, in [0, 1)
    ``l1_over_mean``         $d\, l_1 / \operatorname{tr}$
    ``participation_ratio``  $(\sum l)^2 / \sum l^2$
    ``effective_rank``       $\exp$ of the entropy of $l / \sum l$ (Roy & Vetterli 2007)
    ``stable_rank``          $\sum l^2 / l_1^2$
    ``intrinsic_dimension``  $\sum l / l_1$
    =======================  ======================================================================================

    ``damped`` of the record has, for $\delta$ in decades of the mean eigenvalue, the condition number
    $(l_1 + \delta)/(l_d + \delta)$ and the effective dimension $\sum l / (l + \delta)$.

    Parameters
    ----------
    spectrum
        All eigenvalues of one matrix, a :class:`~curvature.records.Spectrum`.
    accuracy
        Share of the initial gap to the minimum at which ``gd_time`` stops, between 0 and 1.
    damping
        $\delta$ of ``am_gm_damped`` and ``ai_distance_damped``, in the unit of the eigenvalues.
    relative_damping
        The same $\delta$ as a multiple of the mean eigenvalue; 1e-6 if neither is given.

    Returns
    -------
    ConditionNumbers
        Each number with its status and, where there is one, its interval.

    Raises
    ------
    ConfigurationError
        If ``accuracy`` is not between 0 and 1, both dampings are given, or the damping is not positive.

    Notes
    -----
    Every number has the interval that follows from those of the eigenvalues (:meth:`Spectrum.intervals`), except
    ``gd_time`` and the sums of an indefinite matrix. A ratio is a *lower bound* where its denominator is not above the
    noise floor.

    Where the rank is not resolved, the interval of a ratio holds for every possible rank. The ratio is *resolved* at
    the rank of a formula that no gap contradicts (the largest possible rank; ``note`` says so), or if the interval is
    at most 1 % wide. Otherwise it is *unresolved*. Without an upper bound, the lower end is a lower bound for every
    rank.

    An indefinite matrix has no condition number: ``kappa_rank`` and the others are *indefinite*, and ratios of absolute
    values have separate names, ``abs_kappa_50`` and so on. ``stable_rank`` and ``participation_ratio`` stay defined.
    """
    if not 0 < accuracy < 1:
        raise ConfigurationError(f"accuracy must lie between 0 and 1, got {accuracy}.")
    chosen = Damping.chosen(damping, relative_damping, default=RELATIVE_DAMPING)
    damped: dict[float, tuple[Quantity, Quantity]] = {}
    sizes = np.abs(spectrum.on_rank)
    if not len(sizes) or sizes[0] == 0:
        nothing = Quantity(math.nan, "undefined", "the matrix is zero")
        values = dict.fromkeys(("kappa_rank", *(f"kappa_{p}" for p in PERCENTS)), nothing)
    elif spectrum.positive_semidefinite or bool((spectrum.eigenvalues >= -spectrum.noise_floor).all()):
        values = _of_semidefinite(spectrum, sizes, accuracy, chosen)
        damped = _damped(spectrum)
    else:
        values = _of_indefinite(spectrum, sizes)
    return ConditionNumbers(
        where=spectrum.where,
        dim=spectrum.dim,
        rank=spectrum.rank,
        rank_rule=spectrum.rank_rule,
        noise_floor=spectrum.noise_floor,
        method=spectrum.method,
        values=values,
        damped=damped,
        rank_bounds=spectrum.rank_bounds,
    )


def damped_condition_number(ends: ExtremalEigenvalues, damping: float = 0.0) -> Estimate:
    r"""Bound the damped condition number $(\lambda_1 + \delta) / (\lambda_D + \delta)$ by extremal eigenvalues.

    Parameters
    ----------
    ends
        Of a positive semidefinite matrix, from :func:`curvature.extremal_eigenvalues`.
    damping
        $\delta$, in the unit of the eigenvalues.

    Returns
    -------
    Estimate
        With ``level`` 1 where the bounds are certified, otherwise 0.999.

    Raises
    ------
    NotDefinedError
        If the matrix may be indefinite.
    ConfigurationError
        If the damping is negative or not finite.

    Notes
    -----
    Lower bound: Ritz values lie inside the spectrum, so their ratio is never too large. Upper bound: the interval of
    the whole spectrum (:meth:`ExtremalEigenvalues.spectral_bounds`). Without damping it is infinite unless the smallest
    eigenvalue is bounded away from zero, because products alone cannot exclude a singular direction.

    Examples
    --------
    >>> import torch
    >>> from curvature import SymmetricOperator, extremal_eigenvalues
    >>> values = torch.tensor([3.0, 2.0, 0.0], dtype=torch.float64)
    >>> A = SymmetricOperator.from_dense(torch.diag(values), positive_semidefinite=True)
    >>> ends = extremal_eigenvalues(A, num_largest=1, num_smallest=1, seed=0)
    >>> round(damped_condition_number(ends, 1.0).value, 6), damped_condition_number(ends).high
    (4.0, inf)
    """
    if not ends.positive_semidefinite:
        raise NotDefinedError(
            f"{ends.matrix} may be indefinite, and an indefinite matrix has no condition number. Use a matrix that is "
            "positive semidefinite by definition, such as the GGN."
        )
    if not (damping >= 0 and math.isfinite(damping)):
        raise ConfigurationError(f"damping must be finite and not negative, got {damping}.")
    smallest, largest = ends.ritz_range
    floor = ends.noise_floor
    bottom, top = ends.spectral_bounds()

    def ratio(over: float, under: float) -> float:
        return (over + damping) / (under + damping) if under + damping > 0 else math.inf

    return Estimate(
        what="condition number" if damping == 0 else f"condition number damped by {damping:g}",
        value=ratio(largest, max(smallest, 0.0)),
        low=max(1.0, ratio(max(largest - floor, 0.0), max(smallest, 0.0) + floor)) if largest > 0 else 1.0,
        high=ratio(top, max(bottom, 0.0)),
        level=1.0 if ends.certified and len(ends.smallest) and len(ends.largest) else 1 - FAILURE,
        method="Krylov ends",
        where=ends.where,
        dim=ends.dim,
        num_products=ends.num_products,
        seconds=ends.seconds,
    )


def _of_semidefinite(
    spectrum: MeasuredEigenvalues, sizes: np.ndarray, accuracy: float, damping: Damping
) -> dict[str, Quantity]:
    """Quantities of a matrix without negative eigenvalues beyond rounding."""
    values = {"kappa_rank": _ratio(100, spectrum)} | {f"kappa_{p}": _ratio(p, spectrum) for p in PERCENTS}
    if spectrum.gradient_weights is not None:
        values["gd_time"] = descent_steps(spectrum, accuracy)
    values |= _on_rank_spread(sizes, spectrum)
    eigenvalues, ends = _clipped(spectrum)
    distances = sphericity(eigenvalues, damping=damping.damping, relative_damping=damping.relative_damping)
    for quantities in (distances, effective_ranks(eigenvalues)):
        values |= with_intervals(quantities, eigenvalues, ends, spectrum.method)
    return values


def _of_indefinite(spectrum: MeasuredEigenvalues, sizes: np.ndarray) -> dict[str, Quantity]:
    """Quantities of a matrix with eigenvalues of both signs: ratios of absolute values under separate names."""
    negative, _, positive = spectrum.inertia
    note = f"{negative} eigenvalues are negative and {positive} positive beyond the noise floor"
    names = ("kappa_rank", *(f"kappa_{p}" for p in PERCENTS))
    values = dict.fromkeys(names, Quantity(math.nan, "indefinite", note))
    values |= {f"abs_kappa_{p}": _ratio(p, spectrum) for p in PERCENTS}
    relative = spectrum.on_rank / sizes[0]
    values["participation_ratio"] = Quantity(
        float(relative.sum() ** 2 / (relative**2).sum()), "resolved", "(sum l)^2 / sum l^2 with signs"
    )
    values["stable_rank"] = Quantity(float((relative**2).sum()))
    return values


def _clipped(spectrum: MeasuredEigenvalues) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Descending eigenvalues and the ends of their intervals; negative rounding is set to zero."""
    low, high = (np.clip(end[::-1], 0, None) for end in spectrum.intervals())
    return np.clip(spectrum.eigenvalues[::-1], 0, None), (low, high)


def _percentile(percent: int, rank: int) -> int:
    """``ceil(p r)`` in integers: a product of floats may lie just above the integer that it should be."""
    return -(-percent * rank // 100)


def _ratio(percent: int, spectrum: MeasuredEigenvalues) -> Quantity:
    """``l_1 / l_k`` with ``k`` at ``percent`` of the rank, and its interval over all possible ranks."""
    sizes, lows, highs = sizes_with_intervals(spectrum)
    least_rank, most_rank = spectrum.possible_ranks
    position = _percentile(percent, spectrum.rank)
    below = float(highs[_percentile(percent, max(1, least_rank)) - 1])
    above = float(lows[_percentile(percent, most_rank) - 1])
    # The smallest denominator belongs to the largest possible rank. The ratio is never below 1, since l_1 >= l_k.
    low = max(1.0, float(lows[0]) / below)
    high = float(highs[0]) / above if above > 0 else math.inf
    ratio = Quantity(float(sizes[0] / max(sizes[position - 1], spectrum.noise_floor)), low=low, high=high)
    resolved = least_rank == most_rank
    method = f"{spectrum.method}, Weyl" + ("" if resolved else ", every possible rank")
    unresolved = f"the rank is not resolved: {least_rank} to {most_rank}"
    if math.isinf(high):
        smallest = f"eigenvalue {position} of {spectrum.rank} is below the noise floor {spectrum.noise_floor:.1e}"
        note = smallest if resolved else unresolved
        return replace(ratio, value=low, status="lower_bound", note=note, method=method)
    if resolved or high <= _SAME * low:
        return replace(ratio, method=method)
    if spectrum.rank == most_rank:
        return replace(ratio, note=f"at rank {most_rank}, of which {least_rank} are certain", method=method)
    return replace(ratio, status="unresolved", note=unresolved, method=method)


def _on_rank_spread(sizes: np.ndarray, spectrum: MeasuredEigenvalues) -> dict[str, Quantity]:
    """Stein and affine-invariant distance from the identity, on the rank."""
    least_rank, most_rank = spectrum.possible_ranks
    hidden = int((sizes <= spectrum.noise_floor).sum())
    note = f"{hidden} of {len(sizes)} eigenvalues are below the noise floor" if hidden else ""
    if not note and least_rank < most_rank:
        note = f"the rank is not resolved: {least_rank} to {most_rank}"
    kept = sizes[sizes > 0]
    logs = np.log(kept)
    am_gm, distance = max(0.0, float(np.log(kept.mean()) - logs.mean())), float(logs.std())
    if note:
        return {"am_gm": Quantity(am_gm, "unresolved", note), "ai_distance": Quantity(distance, "unresolved", note)}
    _, lows, highs = (part[: len(sizes)] for part in sizes_with_intervals(spectrum))
    # A standard deviation changes by at most the root mean square of the changes of its numbers.
    reach = float(np.sqrt(np.mean(np.log(highs / lows) ** 2)))
    method = f"{spectrum.method}, Weyl"
    least = max(0.0, float(np.log(lows.mean()) - np.log(highs).mean()))
    most = float(np.log(highs.mean()) - np.log(lows).mean())
    return {
        "am_gm": Quantity(am_gm, low=least, high=most, method=method),
        "ai_distance": Quantity(distance, low=max(0.0, distance - reach), high=distance + reach, method=method),
    }


def _damped(spectrum: MeasuredEigenvalues) -> dict[float, tuple[Quantity, Quantity]]:
    """Condition number and effective dimension at dampings in decades of the mean eigenvalue."""
    eigenvalues, (low, high) = _clipped(spectrum)
    lowest = low
    if not spectrum.positive_semidefinite and low[-1] <= 0:
        # Semidefinite up to the noise floor but not by definition: an eigenvalue may be as low as minus the floor.
        lowest = np.where(low > 0, low, -spectrum.noise_floor)
    method = f"{spectrum.method}, Weyl"
    mean = float(eigenvalues.mean())
    damped = {}
    for decade in _DAMPING_DECADES:
        delta = mean * 10.0**-decade
        least = float(lowest[-1]) + delta
        ratio = float((eigenvalues[0] + delta) / (eigenvalues[-1] + delta))
        bottom = max(1.0, float((lowest[0] + delta) / (high[-1] + delta)))
        if least > 0:
            kappa = Quantity(ratio, low=bottom, high=float((high[0] + delta) / least), method=method)
        else:
            note = "the damping is below the noise floor"
            kappa = Quantity(bottom, "lower_bound", note, low=bottom, high=math.inf, method=method)
        dimension, fewest, most = (float((part / (part + delta)).sum()) for part in (eigenvalues, low, high))
        damped[delta] = kappa, Quantity(dimension, low=fewest, high=most, method=method)
    return damped
