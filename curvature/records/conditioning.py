"""What a spectrum says about conditioning: records to records, no matrices."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from curvature.errors import ConfigurationError, NotDefinedError
from curvature.records.bounds import FAILURE
from curvature.records.conditions import ConditionNumbers
from curvature.records.damping import Damping
from curvature.records.krylov import Estimate, ExtremalEigenvalues
from curvature.records.quantity import Quantity

__all__ = [
    "PERCENTS",
    "condition_numbers",
    "damped_condition_number",
    "marchenko_pastur_bures",
    "marchenko_pastur_ratio",
    "sphericity",
]

PERCENTS = (50, 80, 95)  # of the rank: Huang et al. (2020), arXiv:2002.10801
GD_ACCURACY = 1e-2  # of the initial gap, for gd_time
RELATIVE_DAMPING = 1e-6  # for the damped sphericities
_DAMPING_DECADES = range(7)
_SAME = 1.01  # an interval over several ranks whose ends agree this well is one number


def condition_numbers(
    spectrum: Any,
    *,
    accuracy: float = GD_ACCURACY,
    damping: float | None = None,
    relative_damping: float | None = None,
) -> ConditionNumbers:
    r"""Summarize a spectrum; eigenvalues $l_1 \ge l_2 \ge \dots$, $r$ the rank, $d$ the dimension.

    ======================  ======================================================================================
    ``kappa_rank``          $l_1 / l_r$; not a headline
    ``kappa_50, 80, 95``    $l_1 / l_{\lceil p r \rceil}$ (headline)
    ``gd_time``             steps $t$ of gradient descent at rate $1/l_1$ until
                            $\sum_i \frac{c_i^2}{l_i} (1 - l_i/l_1)^{2t}$ falls to ``accuracy`` times its value at 0,
                            $c_i$ the gradient along $q_i$ (headline; needs ``spectrum(..., gradient=True)``)
    ``am_gm``               $\log \bar l - \overline{\log l} \ge 0$ on the rank: Stein divergence to the best multiple
    ``ai_distance``         standard deviation of $\log l$ on the rank: affine-invariant distance to multiples of I
    ``..._damped``          both for $l + \delta$ over all $d$, $\delta$ the damping
    ``bures``               $1 - (\sum \sqrt l)^2 / (d \sum l)$ over all $d$, in [0, 1)
    ``l1_over_mean``        $d\, l_1 / \operatorname{tr}$
    ``participation_ratio`` $(\sum l)^2 / \sum l^2$
    ``effective_rank``      $\exp$ of the entropy of $l / \sum l$ (Roy & Vetterli 2007)
    ``stable_rank``         $\sum l^2 / l_1^2$
    ``intrinsic_dimension`` $\sum l / l_1$
    ======================  ======================================================================================

    and, for $\delta$ in decades of the mean eigenvalue, $(l_1 + \delta)/(l_d + \delta)$ and $\sum l / (l + \delta)$.

    Each number but ``gd_time`` and the sums of an indefinite matrix carries the interval that follows from those of the
    eigenvalues (:meth:`Spectrum.intervals`). A ratio is a *lower bound* where the eigenvalue below the line is not
    above the noise floor. Where the rank is not resolved, the interval of a ratio holds it for every rank that is
    possible. It is resolved at the rank of a formula that no gap contradicts (the largest that is possible; ``note``
    says so), or if the interval is up to 1 % wide; else it is *unresolved*, and where nothing bounds it from above, the
    lower end is a lower bound whatever the rank is.

    An indefinite matrix has no condition number: then ``kappa_rank`` and the rest are *indefinite*, and the ratios
    of absolute values appear under their own names, ``abs_kappa_50`` and so on; ``stable_rank`` and
    ``participation_ratio`` stay.
    """
    if not 0 < accuracy < 1:
        raise ConfigurationError(f"accuracy must lie between 0 and 1, got {accuracy}.")
    chosen = Damping.chosen(damping, relative_damping, default=RELATIVE_DAMPING)
    sizes = np.abs(spectrum.on_rank)
    values: dict[str, Quantity] = {}
    damped: dict[float, tuple[Quantity, Quantity]] = {}
    definite = spectrum.positive_semidefinite or bool((spectrum.eigenvalues >= -spectrum.noise_floor).all())
    if not len(sizes) or sizes[0] == 0:
        nothing = Quantity(math.nan, "undefined", "the matrix is zero")
        values = dict.fromkeys(("kappa_rank", *(f"kappa_{p}" for p in PERCENTS)), nothing)
    elif definite:
        values["kappa_rank"] = _ratio(100, spectrum)
        values |= {f"kappa_{p}": _ratio(p, spectrum) for p in PERCENTS}
        if spectrum.gradient_weights is not None:
            values["gd_time"] = _gd_time(spectrum, accuracy)
        values |= _on_rank_spread(sizes, spectrum)
        clipped = np.clip(spectrum.eigenvalues[::-1], 0, None)
        ends = tuple(np.clip(end[::-1], 0, None) for end in spectrum.intervals())
        values |= _with_intervals(
            sphericity(clipped, damping=chosen.damping, relative_damping=chosen.relative_damping),
            clipped,
            ends,
            spectrum.method,
        )
        values |= _with_intervals(_ranks(clipped), clipped, ends, spectrum.method)
        damped = _damped(clipped, ends, spectrum)
    else:
        negative, _, positive = spectrum.inertia
        note = f"{negative} eigenvalues are negative and {positive} positive beyond the noise floor"
        names = ("kappa_rank", *(f"kappa_{p}" for p in PERCENTS))
        values = dict.fromkeys(names, Quantity(math.nan, "indefinite", note))
        values |= {f"abs_kappa_{p}": _ratio(p, spectrum) for p in PERCENTS}
        relative = spectrum.on_rank / sizes[0]
        values["stable_rank"] = Quantity(float((relative**2).sum()))
        values["participation_ratio"] = Quantity(
            float(relative.sum() ** 2 / (relative**2).sum()), "resolved", "(sum l)^2 / sum l^2 with signs"
        )
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
    r"""$(\lambda_1 + \delta) / (\lambda_D + \delta)$ of a positive semidefinite matrix between two bounds.

    Below: Ritz values lie inside the spectrum, so their ratio is never too large. Above: the interval of the whole
    spectrum (:meth:`ExtremalEigenvalues.spectral_bounds`), for certain or with probability 0.999, which is the record's
    ``level``. Without damping the upper bound is infinite unless the smallest eigenvalue is bounded away from zero:
    products alone do not show that no singular direction was missed, and a finite bound would be a wish.

    >>> import torch
    >>> from curvature import SymmetricOperator, extremal_eigenvalues
    >>> values = torch.tensor([3.0, 2.0, 0.0], dtype=torch.float64)
    >>> A = SymmetricOperator.from_dense(torch.diag(values), positive_semidefinite=True)
    >>> ends = extremal_eigenvalues(A, num_largest=1, num_smallest=1, seed=0)
    >>> round(damped_condition_number(ends, 1.0).value, 6), damped_condition_number(ends).high
    (4.0, inf)
    """
    if not ends.positive_semidefinite:
        raise NotDefinedError(f"{ends.matrix} may be indefinite: an indefinite matrix has no condition number.")
    if not (damping >= 0 and math.isfinite(damping)):
        raise ConfigurationError(f"damping must be a finite number and not negative, got {damping}.")
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


def sphericity(
    eigenvalues: np.ndarray, *, damping: float | None = None, relative_damping: float | None = None
) -> dict[str, Quantity]:
    """Distances of a positive semidefinite spectrum from a multiple of the identity; 0 (or 1) at equality.

    ``eigenvalues`` in any order, zeros included: they count, for a singular matrix is not spherical.
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
    if chosen.damping is None:
        share, note = chosen.relative_damping, f"eigenvalues shifted by {chosen.relative_damping:g} of their mean"
    else:
        share, note = chosen.damping / largest * dim / total, f"eigenvalues shifted by {chosen.damping:g}"
    logs = np.log(relative + share * total / dim)
    return {
        "bures": Quantity(max(0.0, 1 - float(np.sqrt(relative).sum()) ** 2 / (dim * total))),
        "l1_over_mean": Quantity(dim / total),
        "am_gm_damped": Quantity(max(0.0, math.log((1 + share) * total / dim) - float(logs.mean())), note=note),
        "ai_distance_damped": Quantity(float(logs.std()), note=note),
    }


def marchenko_pastur_ratio(dim: int, num_examples: int) -> float:
    r"""Largest over smallest *non-zero* eigenvalue expected of a sample covariance when the truth is the identity.

    $((1 + \sqrt q)/(1 - \sqrt q))^2$ with $q = \min(d/N, N/d)$; infinite at $d = N$ (Marchenko & Pastur 1967).

    >>> round(marchenko_pastur_ratio(100, 10000), 3)
    1.494
    """
    if dim < 1 or num_examples < 1:
        raise ConfigurationError(f"dim and num_examples must be at least 1, got {dim} and {num_examples}.")
    root = math.sqrt(min(dim, num_examples) / max(dim, num_examples))
    return math.inf if root == 1 else ((1 + root) / (1 - root)) ** 2


def marchenko_pastur_bures(dim: int, num_examples: int) -> float:
    r"""Bures distance expected of a sample covariance when the truth is a multiple of the identity.

    $1 - (E\sqrt\lambda)^2 / E\lambda$ under the Marchenko-Pastur law with $q = d/N$, where $E\sqrt\lambda = \frac2\pi
    \int_0^\pi \sin^2\theta\, (1 + q - 2\sqrt q \cos\theta)^{-1/2}\, d\theta$ (zeros included; by $\lambda = 1 + q -
    2 \sqrt q \cos\theta$ in the density). About $q/4$ for small $q$.

    >>> round(marchenko_pastur_bures(10, 1000), 5)
    0.0025
    """
    if dim < 1 or num_examples < 1:
        raise ConfigurationError(f"dim and num_examples must be at least 1, got {dim} and {num_examples}.")
    q = dim / num_examples
    # Midpoints of a smooth periodic integrand: the rule converges exponentially, and misses the pole of q = 1.
    angles = (np.arange(4096) + 0.5) * math.pi / 4096
    root = 2 * float(np.mean(np.sin(angles) ** 2 / np.sqrt(1 + q - 2 * math.sqrt(q) * np.cos(angles))))
    return 1 - root**2


def _percentile(percent: int, rank: int) -> int:
    """``ceil(p r)`` in integers: 0.95 * 20 is 19, not 20."""
    return -(-percent * rank // 100)


def _ratio(percent: int, spectrum: Any) -> Quantity:
    """``l_1 / l_k`` with ``k`` at ``percent`` of the rank, and its interval over every rank that is possible."""
    sizes, lows, highs = _sizes(spectrum)
    few, many = spectrum.possible_ranks
    position = _percentile(percent, spectrum.rank)
    below = float(highs[_percentile(percent, max(1, few)) - 1])
    above = float(lows[_percentile(percent, many) - 1])
    # l_1 is at least l_k, and at most any larger eigenvalue's upper end.
    low = max(1.0, float(lows[0]) / below)
    high = float(highs[0]) / above if above > 0 else math.inf
    found = Quantity(float(sizes[0] / max(sizes[position - 1], spectrum.noise_floor)), low=low, high=high)
    known = few == many
    method = f"{spectrum.method}, Weyl" + ("" if known else ", every possible rank")
    why = f"the rank is not resolved: {few} to {many}"
    if math.isinf(high):
        smallest = f"eigenvalue {position} of {spectrum.rank} is below the noise floor {spectrum.noise_floor:.1e}"
        return replace(found, value=low, status="lower_bound", note=smallest if known else why, method=method)
    if known or high <= _SAME * low:
        return replace(found, method=method)
    if spectrum.rank == many:
        return replace(found, note=f"at rank {many}, of which {few} are certain", method=method)
    return replace(found, status="unresolved", note=why, method=method)


def _sizes(spectrum: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Absolute eigenvalues, descending, with their lower and upper ends."""
    order = np.argsort(-np.abs(spectrum.eigenvalues), kind="stable")
    sizes = np.abs(spectrum.eigenvalues)[order]
    low, high = (end[order] for end in spectrum.intervals())
    across = (low < 0) & (high > 0)
    return sizes, np.where(across, 0, np.minimum(np.abs(low), np.abs(high))), np.maximum(np.abs(low), np.abs(high))


def _gd_time(spectrum: Any, accuracy: float) -> Quantity:
    """Steps for the modes above the noise floor; unresolved where the modes below it could change the answer."""
    above = spectrum.eigenvalues > spectrum.noise_floor
    below = (spectrum.eigenvalues > 0) & ~above
    below[: spectrum.dim - spectrum.possible_ranks[1]] = False  # zero for certain: what is left of them is rounding
    values = spectrum.eigenvalues[above]
    # A gradient in the range of a singular direction has c^2 / l of ordinary size however small l is, but eigenvectors
    # below the floor are mixed by rounding: their share is only an estimate.
    gaps = spectrum.gradient_weights[above] / values
    hidden = float((spectrum.gradient_weights[below] / spectrum.eigenvalues[below]).sum())
    total = float(gaps.sum())
    if not total > 0:
        return Quantity(math.nan, "undefined", "the gradient vanishes in the resolved range of the matrix")
    with np.errstate(divide="ignore"):  # the top mode is gone after one step
        rates = 2 * np.log1p(-values / values[-1])

    def steps_until(share: float) -> float:
        if share <= 0:
            return math.inf
        high = 1.0  # at least one step: that is when the top mode goes
        while (remaining := float((gaps * np.exp(high * rates)).sum()) / total) > share and high < 1e300:
            high *= 2
        if remaining > share:
            return math.inf
        low = max(1.0, high / 2)
        while high - low > 1e-9 * high:
            middle = (low + high) / 2
            late = float((gaps * np.exp(middle * rates)).sum()) / total > share
            low, high = (middle, high) if late else (low, middle)
        return high

    fast = steps_until(accuracy)
    slow = steps_until(accuracy - (1 - accuracy) * hidden / total)
    note = f"to {accuracy:g} of the initial gap"
    if slow > 1.02 * fast:
        return Quantity(
            fast, "unresolved", f"{note}; {hidden / (hidden + total):.0%} of the gap lies below the noise floor"
        )
    return Quantity(fast, "resolved", note)


def _on_rank_spread(sizes: np.ndarray, spectrum: Any) -> dict[str, Quantity]:
    few, many = spectrum.possible_ranks
    hidden = int((sizes <= spectrum.noise_floor).sum())
    note = f"{hidden} of {len(sizes)} eigenvalues are below the noise floor" if hidden else ""
    note = note or (f"the rank is not resolved: {few} to {many}" if few < many else "")
    kept = sizes[sizes > 0]
    logs = np.log(kept)
    am_gm, distance = max(0.0, float(np.log(kept.mean()) - logs.mean())), float(logs.std())
    if note:
        return {"am_gm": Quantity(am_gm, "unresolved", note), "ai_distance": Quantity(distance, "unresolved", note)}
    _, lows, highs = (part[: len(sizes)] for part in _sizes(spectrum))
    # The standard deviation of logarithms moves by no more than the root mean square of what they move by.
    moved = float(np.sqrt(np.mean(np.log(highs / lows) ** 2)))
    method = f"{spectrum.method}, Weyl"
    least = max(0.0, float(np.log(lows.mean()) - np.log(highs).mean()))
    most = float(np.log(highs.mean()) - np.log(lows).mean())
    return {
        "am_gm": Quantity(am_gm, low=least, high=most, method=method),
        "ai_distance": Quantity(distance, low=max(0.0, distance - moved), high=distance + moved, method=method),
    }


def _with_intervals(
    found: dict[str, Quantity], values: np.ndarray, ends: tuple[np.ndarray, np.ndarray], method: str
) -> dict[str, Quantity]:
    """Add what eigenvalues between two ends, all descending, allow: for the numbers with a simple formula."""
    low, high = (end / values[0] for end in ends)
    dim, least, most = len(values), float(low.sum()), float(high.sum())
    if not low[0] > 0:
        return found
    squares = float((low**2).sum()), float((high**2).sum())
    roots = float(np.sqrt(low).sum()), float(np.sqrt(high).sum())
    bounds = {
        "bures": (1 - roots[1] ** 2 / (dim * least), 1 - roots[0] ** 2 / (dim * most)),
        "l1_over_mean": (dim * low[0] / most, dim * high[0] / least),
        "participation_ratio": (least**2 / squares[1], most**2 / squares[0]),
        "stable_rank": (squares[0] / high[0] ** 2, squares[1] / low[0] ** 2),
        "intrinsic_dimension": (least / high[0], most / low[0]),
    }
    if "effective_rank" in found and dim > 1:
        # Entropies of laws at a total variation distance t differ by at most t log(d - 1) + h(t) (Fannes 1973).
        shift = min(1 - 1 / dim, float((high - low).sum()) / least)
        entropy = shift * math.log(dim - 1) - sum(p * math.log(p) for p in (shift, 1 - shift) if p > 0)
        value = found["effective_rank"].value
        bounds["effective_rank"] = (value * math.exp(-entropy), value * math.exp(entropy))
    return {
        name: replace(quantity, low=float(bounds[name][0]), high=float(bounds[name][1]), method=f"{method}, Weyl")
        if name in bounds and quantity.has_value
        else quantity
        for name, quantity in found.items()
    }


def _ranks(values: np.ndarray) -> dict[str, Quantity]:
    relative = values / values[0]  # squares neither overflow nor vanish
    total, squares = float(relative.sum()), float((relative**2).sum())
    shares = relative[relative > 0] / total
    return {
        "participation_ratio": Quantity(total**2 / squares),
        "effective_rank": Quantity(math.exp(-float((shares * np.log(shares)).sum()))),
        "stable_rank": Quantity(squares),
        "intrinsic_dimension": Quantity(total),
    }


def _damped(
    values: np.ndarray, ends: tuple[np.ndarray, np.ndarray], spectrum: Any
) -> dict[float, tuple[Quantity, Quantity]]:
    mean = float(values.mean())
    low, high = ends
    if not spectrum.positive_semidefinite and low[-1] <= 0:
        # Seen to be semidefinite up to the floor, not known to be.
        low = np.where(low > 0, low, -spectrum.noise_floor)
    method = f"{spectrum.method}, Weyl"
    found = {}
    for decade in _DAMPING_DECADES:
        delta = mean * 10.0**-decade
        least = float(low[-1]) + delta
        kappa = Quantity(
            float((values[0] + delta) / (values[-1] + delta)),
            low=max(1.0, float((low[0] + delta) / (high[-1] + delta))),
            high=float((high[0] + delta) / least) if least > 0 else math.inf,
            method=method,
        )
        if math.isinf(kappa.high):
            kappa = replace(kappa, value=kappa.low, status="lower_bound", note="the damping is below the noise floor")
        dimension, fewest, most = (float((part / (part + delta)).sum()) for part in (values, *ends))
        found[delta] = kappa, Quantity(dimension, low=fewest, high=most, method=method)
    return found
