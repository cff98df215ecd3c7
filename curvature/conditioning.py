"""What a spectrum says about conditioning: records to records, no matrices."""

from __future__ import annotations

import math

import numpy as np

from curvature.certificates import FAILURE
from curvature.errors import ConfigurationError, NotDefinedError
from curvature.records import ConditionNumbers, Estimate, ExtremalEigenvalues, Quantity, Spectrum

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
DAMPING = 1e-6  # of the mean eigenvalue, for the damped sphericities
_DAMPING_DECADES = range(7)
_GAP = 1e3  # between the last eigenvalue that counts and the first that does not, where no formula gives the rank


def condition_numbers(
    spectrum: Spectrum, *, accuracy: float = GD_ACCURACY, damping: float = DAMPING
) -> ConditionNumbers:
    r"""Summarize a spectrum; eigenvalues $l_1 \ge l_2 \ge \dots$, $r$ the rank, $d$ the dimension.

    ======================  ======================================================================================
    ``kappa_rank``          $l_1 / l_r$: a lower bound where $l_r$ is below the noise floor, or where $r$ was counted by
                            a threshold and no gap of 1000 marks where the spectrum ends; not a headline
    ``kappa_50, 80, 95``    $l_1 / l_{\lceil p r \rceil}$ (headline)
    ``gd_time``             steps $t$ of gradient descent at rate $1/l_1$ until
                            $\sum_i \frac{c_i^2}{l_i} (1 - l_i/l_1)^{2t}$ falls to ``accuracy`` times its value at 0,
                            $c_i$ the gradient along $q_i$ (headline; needs ``spectrum(..., gradient=True)``)
    ``am_gm``               $\log \bar l - \overline{\log l} \ge 0$ on the rank: Stein divergence to the best multiple
    ``ai_distance``         standard deviation of $\log l$ on the rank: affine-invariant distance to multiples of I
    ``..._damped``          both for $l + \delta$ over all $d$, $\delta$ = ``damping`` times the mean eigenvalue
    ``bures``               $1 - (\sum \sqrt l)^2 / (d \sum l)$ over all $d$, in [0, 1)
    ``l1_over_mean``        $d\, l_1 / \operatorname{tr}$
    ``participation_ratio`` $(\sum l)^2 / \sum l^2$
    ``effective_rank``      $\exp$ of the entropy of $l / \sum l$ (Roy & Vetterli 2007)
    ``stable_rank``         $\sum l^2 / l_1^2$
    ``intrinsic_dimension`` $\sum l / l_1$
    ======================  ======================================================================================

    and, for $\delta$ in decades of the mean eigenvalue, $(l_1 + \delta)/(l_d + \delta)$ and $\sum l / (l + \delta)$.

    An indefinite matrix has no condition number: then ``kappa_rank`` and the rest are *undefined*, and the ratios
    of absolute values appear under their own names, ``abs_kappa_50`` and so on; ``stable_rank`` and
    ``participation_ratio`` stay.
    """
    if not 0 < accuracy < 1:
        raise ConfigurationError(f"accuracy must lie between 0 and 1, got {accuracy}.")
    if not damping > 0:
        raise ConfigurationError(f"damping must be positive, got {damping}.")
    sizes = np.abs(spectrum.on_rank)
    values: dict[str, Quantity] = {}
    damped: dict[float, tuple[Quantity, Quantity]] = {}
    definite = spectrum.positive_semidefinite or bool((spectrum.eigenvalues >= -spectrum.noise_floor).all())
    if not len(sizes) or sizes[0] == 0:
        nothing = Quantity(math.nan, "undefined", "the matrix is zero")
        values = dict.fromkeys(("kappa_rank", *(f"kappa_{p}" for p in PERCENTS)), nothing)
    elif definite:
        values["kappa_rank"] = _whole_ratio(sizes, spectrum)
        values |= {f"kappa_{p}": _ratio(sizes, _percentile(p, len(sizes)), spectrum) for p in PERCENTS}
        if spectrum.gradient_weights is not None:
            values["gd_time"] = _gd_time(spectrum, accuracy)
        values |= _on_rank_spread(sizes, spectrum)
        clipped = np.clip(spectrum.eigenvalues[::-1], 0, None)
        values |= sphericity(clipped, damping)
        values |= _ranks(clipped)
        damped = _damped(clipped)
    else:
        note = "the matrix is indefinite"
        undefined = ("kappa_rank", *(f"kappa_{p}" for p in PERCENTS))
        values = dict.fromkeys(undefined, Quantity(math.nan, "undefined", note))
        values |= {f"abs_kappa_{p}": _ratio(sizes, _percentile(p, len(sizes)), spectrum) for p in PERCENTS}
        relative = spectrum.on_rank / sizes[0]
        values["stable_rank"] = Quantity(float((relative**2).sum()))
        values["participation_ratio"] = Quantity(
            float(relative.sum() ** 2 / (relative**2).sum()), "resolved", "(sum l)^2 / sum l^2 with signs"
        )
    return ConditionNumbers(
        matrix=spectrum.matrix,
        chart=spectrum.chart,
        gauge=spectrum.gauge,
        block=spectrum.block,
        effective=spectrum.effective,
        dim=spectrum.dim,
        rank=spectrum.rank,
        rank_rule=spectrum.rank_rule,
        noise_floor=spectrum.noise_floor,
        num_examples=spectrum.num_examples,
        method=spectrum.method,
        values=values,
        damped=damped,
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
    >>> ends = extremal_eigenvalues(A, num_largest=1, num_smallest=1, generator=torch.Generator().manual_seed(0))
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
        matrix=ends.matrix,
        chart=ends.chart,
        gauge=ends.gauge,
        dim=ends.dim,
        num_products=ends.num_products,
        num_examples=ends.num_examples,
        seconds=ends.seconds,
    )


def sphericity(eigenvalues: np.ndarray, damping: float = DAMPING) -> dict[str, Quantity]:
    """Distances of a positive semidefinite spectrum from a multiple of the identity; 0 (or 1) at equality.

    ``eigenvalues`` in any order, zeros included: they count, for a singular matrix is not spherical.
    """
    dim = len(eigenvalues)
    largest = float(eigenvalues.max())
    if largest <= 0:
        return dict.fromkeys(
            ("bures", "l1_over_mean", "am_gm_damped", "ai_distance_damped"),
            Quantity(math.nan, "undefined", "the matrix is zero"),
        )
    relative = eigenvalues / largest
    total = float(relative.sum())
    logs = np.log(relative + damping * total / dim)
    note = f"eigenvalues shifted by {damping:g} of their mean"
    return {
        "bures": Quantity(max(0.0, 1 - float(np.sqrt(relative).sum()) ** 2 / (dim * total))),
        "l1_over_mean": Quantity(dim / total),
        "am_gm_damped": Quantity(max(0.0, math.log((1 + damping) * total / dim) - float(logs.mean())), note=note),
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


def _ratio(sizes: np.ndarray, position: int, spectrum: Spectrum) -> Quantity:
    """``l_1 / l_position`` of descending sizes, or the lower bound that the noise floor leaves."""
    small = sizes[position - 1]
    if small > spectrum.noise_floor:
        return Quantity(float(sizes[0] / small))
    return Quantity(
        float(sizes[0] / spectrum.noise_floor),
        "lower_bound",
        f"eigenvalue {position} of {spectrum.rank} is below the noise floor {spectrum.noise_floor:.1e}: a bound if the "
        "rank is right, nothing if the eigenvalue is zero for a reason that the rank formula does not know",
    )


def _whole_ratio(sizes: np.ndarray, spectrum: Spectrum) -> Quantity:
    """``l_1 / l_r``; where rounding cut the spectrum off, there may be more of it below."""
    found, doubt = _ratio(sizes, len(sizes), spectrum), _open_end(sizes, spectrum)
    return Quantity(found.value, "lower_bound", doubt) if doubt and found.status == "resolved" else found


def _open_end(sizes: np.ndarray, spectrum: Spectrum) -> str:
    """Say why a rank that a threshold counted may be too small; nothing where a formula or a gap fixes it."""
    if not spectrum.rank_rule.startswith("threshold") or len(sizes) == spectrum.dim:
        return ""
    beyond = float(np.sort(np.abs(spectrum.eigenvalues))[-len(sizes) - 1])
    if sizes[-1] >= max(_GAP * beyond, 10 * spectrum.noise_floor):
        return ""
    return (
        f"no gap below eigenvalue {len(sizes)} ({sizes[-1]:.1e}, the next {beyond:.1e}): the rank was counted by a "
        "threshold, and smaller eigenvalues may be lost in rounding"
    )


def _gd_time(spectrum: Spectrum, accuracy: float) -> Quantity:
    """Steps for the modes above the noise floor; unresolved where the modes below it could change the answer."""
    above = spectrum.eigenvalues > spectrum.noise_floor
    below = (spectrum.eigenvalues > 0) & ~above
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


def _on_rank_spread(sizes: np.ndarray, spectrum: Spectrum) -> dict[str, Quantity]:
    resolved, doubt = bool(sizes[-1] > spectrum.noise_floor), _open_end(sizes, spectrum)
    if resolved and doubt:
        note, kept, status = doubt, sizes, "unresolved"
    elif not resolved:
        note = f"{int((sizes <= spectrum.noise_floor).sum())} of {len(sizes)} eigenvalues are below the noise floor"
        kept = sizes[sizes > 0]
        status = "unresolved"
    else:
        note, kept, status = "", sizes, "resolved"
    logs = np.log(kept)
    return {
        "am_gm": Quantity(max(0.0, float(np.log(kept.mean()) - logs.mean())), status, note),
        "ai_distance": Quantity(float(logs.std()), status, note),
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


def _damped(values: np.ndarray) -> dict[float, tuple[Quantity, Quantity]]:
    mean = float(values.mean())
    found = {}
    for decade in _DAMPING_DECADES:
        delta = mean * 10.0**-decade
        found[delta] = (
            Quantity(float((values[0] + delta) / (values[-1] + delta))),
            Quantity(float((values / (values + delta)).sum())),
        )
    return found
