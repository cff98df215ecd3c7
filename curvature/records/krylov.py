"""What products with vectors give: the ends of a spectrum, its density, single numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from curvature.errors import ConfigurationError
from curvature.records.bounds import FAILURE, cumulative_band, kato_temple, spectral_bounds
from curvature.records.notebook import html_rows
from curvature.records.quantity import Check, Quantity
from curvature.records.vectors import Eigenvectors
from curvature.records.where import Located, Where

__all__ = ["Estimate", "ExtremalEigenvalues", "SpectralDensity"]


@dataclass(frozen=True)
class ExtremalEigenvalues(Located):
    r"""Ritz values at the ends of a spectrum, with what is known of their errors.

    Attributes
    ----------
    largest, smallest
        Descending and ascending.
    residuals, error_bounds
        For ascending values (smallest first): some eigenvalue lies within the bound.
    converged
        All values asked for meet the tolerance given the gaps that the Ritz values show, and no check found one
        missing. Alone it does not say that no eigenvalue was missed: that is ``complete``.
    complete
        ``"certified by inertia"``: the eigenvalues beyond the last one were counted. ``"the whole space"``: the basis
        spans it. ``"checked by a second start"``: an independent Lanczos run orthogonal to these vectors found nothing
        beyond; ``unseen`` says what it could not have seen. ``"not checked"``: nobody looked. ``"incomplete"``: at
        least ``num_missed`` eigenvalues belong into this set and are not in it.
    unseen
        All other eigenvalues lie between these two: for certain by inertia, with probability 0.999 by a second start.
    num_steps
        Dimension of the Krylov space from the random start, before any restart: what :meth:`spectral_bounds` rests on.
    ritz_range
        Smallest and largest Ritz value met.
    noise_floor
        Rounding of one eigenvalue.
    checks
        Self-checks that the matrix passed; see :mod:`curvature.linalg.checks`.
    vectors
        Ritz vectors of the values, smallest first (ascending), with their residuals.
    """

    where: Where
    dim: int
    largest: np.ndarray
    smallest: np.ndarray
    residuals: np.ndarray = field(repr=False)
    error_bounds: np.ndarray = field(repr=False)
    converged: bool
    num_products: int
    seconds: float = math.nan
    positive_semidefinite: bool = False
    complete: str = "not checked"
    num_missed: int = 0
    unseen: tuple[float, float] = (-math.inf, math.inf)
    num_steps: int = 0
    ritz_range: tuple[float, float] = (-math.inf, math.inf)
    noise_floor: float = 0.0
    checks: tuple[Check, ...] = field(default=(), repr=False)
    vectors: Eigenvectors | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        ends = (f"{len(self.smallest)} smallest from {self.smallest[0]:.4g}" if len(self.smallest) else "",)
        ends += (f"{len(self.largest)} largest from {self.largest[0]:.4g}" if len(self.largest) else "",)
        settled = "" if self.converged else ", not converged"
        return f"ExtremalEigenvalues({self.label}: {', '.join(filter(None, ends))}; {self.complete}{settled})"

    def _repr_html_(self) -> str:
        count = len(self.smallest) + len(self.largest)
        quantities = [self.eigenvalue(k) for k in range(count)]
        rows = [("eigenvalue", "interval", "status"), *((str(q), q.interval, q.note or q.status) for q in quantities)]
        return html_rows(f"Ends of the {self.label}; {self.complete}, {self.num_products} products", rows)

    @property
    def largest_bounds(self) -> np.ndarray:
        """Error bounds of ``largest``, in its order."""
        return self.error_bounds[len(self.smallest) :][::-1]

    @property
    def smallest_bounds(self) -> np.ndarray:
        """Error bounds of ``smallest``, in its order."""
        return self.error_bounds[: len(self.smallest)]

    @property
    def certified(self) -> bool:
        """Whether the set is complete for certain, not only with high probability."""
        return self.complete in ("certified by inertia", "the whole space")

    def intervals(self) -> tuple[np.ndarray, np.ndarray]:
        r"""Lower and upper ends for ascending values (smallest first), rounding included.

        Where the set is complete, of the i-th eigenvalue itself, by Kato & Temple: quadratic in the residual where the
        neighbours leave a gap. A second start makes them hold with probability 0.999 rather than for certain. Where it
        is not known to be complete, only $\theta \pm r$, in which *some* eigenvalue lies.
        """
        values = np.concatenate([self.smallest, self.largest[::-1]])
        if not (self.certified or self.complete == "checked by a second start"):
            return values - self.error_bounds, values + self.error_bounds
        # Orthonormal Ritz vectors: each value has its own eigenvalue within the norm of all residuals (Kahan 1967).
        radius = math.hypot(*self.residuals) + self.noise_floor
        bottom = len(self.smallest)
        below = np.concatenate([[-math.inf], values[:-1] + radius])
        above = np.concatenate([values[1:] - radius, [math.inf]])
        below[bottom:] = np.maximum(below[bottom:], self.unseen[1])
        above[:bottom] = np.minimum(above[:bottom], self.unseen[0])
        low, high = kato_temple(values, self.residuals, below, above)
        alone = (below < values - radius) & (above > values + radius)
        low, high = np.where(alone, low, values - radius), np.where(alone, high, values + radius)
        # Beside a value that is not beyond everything unseen, one more eigenvalue may count before it.
        low[:bottom] = np.where(alone, low, np.minimum(low, self.unseen[0]))[:bottom]
        high[bottom:] = np.where(alone, high, np.maximum(high, self.unseen[1]))[bottom:]
        return low - self.noise_floor, high + self.noise_floor

    def eigenvalue(self, k: int) -> Quantity:
        r"""Give the k-th value found (ascending, smallest first) as what it is known to be.

        Where the set is complete, the eigenvalue of that place with its interval. Where nobody counted, Ritz values
        lie inside the spectrum (Cauchy): the j-th largest is a lower bound of the j-th largest eigenvalue, the j-th
        smallest an upper bound; the interval is closed by :meth:`spectral_bounds`.
        """
        values = np.concatenate([self.smallest, self.largest[::-1]])
        value, floor, (low, high) = float(values[k]), self.noise_floor, (float(ends[k]) for ends in self.intervals())
        if self.positive_semidefinite:
            low, high = max(low, 0.0), max(high, 0.0)
        if self.certified or self.complete == "checked by a second start":
            method = f"Kato-Temple, {self.complete}"
            if abs(value) <= floor and high <= 2 * floor and low >= -2 * floor:
                return Quantity(value, "below_noise_floor", f"computed as {value:.1e}", low, high, method)
            if self.converged:
                return Quantity(value, low=low, high=high, method=method)
            return Quantity(value, "unresolved", "not converged", low, high, method)
        bottom, top = self.spectral_bounds()
        method = f"Ritz value, {self.complete}; random start, probability {1 - FAILURE:g}"
        if k % len(values) < len(self.smallest):
            return Quantity(value, "upper_bound_only", "smaller ones may be missing", bottom, value + floor, method)
        return Quantity(value, "lower_bound", "larger ones may be missing", value - floor, top, method)

    def spectral_bounds(self) -> tuple[float, float]:
        """Interval of all eigenvalues: certain where the set is certified, else with probability 0.999.

        From the random start (Kuczynski & Wozniakowski 1992). A positive semidefinite matrix has no eigenvalue below
        zero; how far above zero its smallest one is, products can not say once the condition number is large.
        """
        low, high = spectral_bounds(
            *self.ritz_range,
            self.dim,
            self.num_steps,
            positive_semidefinite=self.positive_semidefinite,
            failure=FAILURE,
        )
        low, high = low - self.noise_floor, high + self.noise_floor
        if self.certified:
            ends = self.intervals()
            low = float(ends[0][0]) if len(self.smallest) else low
            high = float(ends[1][-1]) if len(self.largest) else high
        return (max(low, 0.0) if self.positive_semidefinite else low), high


@dataclass(frozen=True)
class SpectralDensity(Located):
    """A density of eigenvalues, held as the quadrature that produced it; smoothing is a choice of the picture.

    ``nodes`` (Ritz values, unit loss / coordinate**2) and ``weights`` (each row sums to one) have shape
    ``(num_probes, num_matvecs)``; ``checks``: the self-checks that the matrix passed.
    """

    where: Where
    dim: int
    nodes: np.ndarray = field(repr=False)
    weights: np.ndarray = field(repr=False)
    num_products: int = 0
    seconds: float = math.nan
    checks: tuple[Check, ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        low, high = float(self.nodes.min()), float(self.nodes.max())
        return (
            f"SpectralDensity({self.label}, dimension {self.dim}: {self.num_probes} probes of {self.num_matvecs} "
            f"products in [{low:.4g}, {high:.4g}])"
        )

    @property
    def num_probes(self) -> int:
        """Independent probes: the statistics."""
        return len(self.nodes)

    @property
    def num_matvecs(self) -> int:
        """Products with each probe: the resolution."""
        return self.nodes.shape[1]

    @property
    def resolution(self) -> float:
        """``(max - min) / num_matvecs``: nothing finer should be read from the density."""
        return float(self.nodes.max() - self.nodes.min()) / self.num_matvecs

    def histogram(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean density over probes in bins as wide as the resolution, and its standard error (NaN for one probe).

        Returns edges ``(B + 1,)``, density ``(B,)`` that integrates to one, and standard errors ``(B,)``. Zero is the
        middle of a bin, so that null eigenvalues do not fall on an edge.
        """
        width = self.resolution or max(abs(float(self.nodes.max())), np.finfo(float).tiny)
        first, last = (int(np.floor(end / width + 0.5)) for end in (self.nodes.min(), self.nodes.max()))
        edges = (np.arange(first, last + 2) - 0.5) * width
        place = np.clip(np.floor(self.nodes / width + 0.5).astype(int) - first, 0, last - first)
        shares = (
            np.stack([np.bincount(row, w, last - first + 1) for row, w in zip(place, self.weights, strict=True)])
            / width
        )
        spread = shares.std(axis=0, ddof=1) if len(shares) > 1 else np.full(shares.shape[1], math.nan)
        return edges, shares.mean(axis=0), spread / len(shares) ** 0.5

    def moment(self, power: int) -> tuple[float, float]:
        """Estimate of ``mean(eigenvalue**power)`` and its standard error over probes (NaN for one probe)."""
        per_probe = (self.weights * self.nodes**power).sum(axis=1)
        spread = per_probe.std(ddof=1) if len(per_probe) > 1 else math.nan
        return float(per_probe.mean()), float(spread / len(per_probe) ** 0.5)

    def cumulative(self, grid: np.ndarray, *, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Share of the eigenvalues that are at most each number of ``grid``: low, middle, high, each like ``grid``.

        The band holds the true share at each point with probability ``level`` or more: what the quadrature of every
        probe leaves open (for certain) and what a finite number of probes does (exactly, not by a normal law; one
        probe has a band too). See :func:`curvature.records.bounds.cumulative_band`. It is a band point by point, not
        for the whole curve at once, and says nothing about single eigenvalues.
        """
        points = np.asarray(grid, dtype=float)
        if not 0 < level < 1 or np.isnan(points).any():
            raise ConfigurationError(f"level must lie between 0 and 1 (got {level}), and the grid must hold numbers.")
        low, middle, high = cumulative_band(self.nodes, self.weights, self.dim, points.ravel(), level)
        return low.reshape(points.shape), middle.reshape(points.shape), high.reshape(points.shape)


@dataclass(frozen=True)
class Estimate(Located):
    r"""One number of a matrix (or one per coordinate) with the interval that it lies in.

    Attributes
    ----------
    what
        ``"trace"``, ``"diagonal"``, ``"log-determinant"``, ...
    value, low, high
        The number and its interval; arrays ``(D,)`` for a diagonal, whose interval holds entry by entry.
    level
        Probability that the interval holds the truth, over the random probes: 1 for exact and certified values.
    standard_error
        Of ``value`` over probes; 0 where nothing is random.
    quadrature_error
        Half of the part of the interval that more Lanczos steps, not more probes, would remove.
    method
        ``"exact"`` (up to rounding, which is the interval), or the estimator.
    num_products, num_probes
        Products with the matrix that were spent, and independent probes among them.
    converged
        Whether the precision that was asked for was reached; True where none was.
    note
        What else a reader must know.
    """

    what: str
    value: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray
    level: float
    method: str
    where: Where
    dim: int
    standard_error: float | np.ndarray = 0.0
    quadrature_error: float = 0.0
    num_products: int = 0
    num_probes: int = 0
    converged: bool = True
    note: str = ""
    seconds: float = math.nan

    def __repr__(self) -> str:
        return f"Estimate({self})"

    @property
    def exact(self) -> bool:
        """Whether only rounding is left."""
        return self.method == "exact"

    def __str__(self) -> str:
        if np.ndim(self.value):
            return f"{self.what} of {self.matrix}: {self.dim} entries, {self.method}"
        how = self.method if self.exact else f"{100 * self.level:g} %, {self.method}"
        return f"{self.what} of {self.matrix}: {self.value:.6g} in [{self.low:.6g}, {self.high:.6g}] ({how})"
