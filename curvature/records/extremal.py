"""The record of extremal eigenvalues by Lanczos: Ritz values, their errors, and whether the set is complete."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from curvature.arrays import Float
from curvature.records.bounds import FAILURE, kato_temple, spectral_bounds
from curvature.records.notebook import html_rows
from curvature.records.quantity import Check, Quantity
from curvature.records.validation import require, require_finite
from curvature.records.vectors import Eigenvectors
from curvature.records.where import Located, Where

__all__ = ["ExtremalEigenvalues"]

_MISSING = "ones may be missing; verify=True of cv.extremal_eigenvalues or cv.Tracker looks for them"


@dataclass(frozen=True)
class ExtremalEigenvalues(Located):
    r"""Extremal eigenvalues of a matrix by Ritz values, with residuals and error bounds.

    Attributes
    ----------
    where
        Header: matrix, chart, gauge, block.
    dim
        Dimension of the matrix.
    largest, smallest
        Ritz values at the two ends, descending and ascending.
    residuals, error_bounds
        In ascending order, smallest values first: an eigenvalue of the matrix lies within the bound of each value.
    converged
        Whether all values meet the tolerance, given the gaps that the Ritz values show, and no check found a missing
        eigenvalue. It does not prove that the set is complete: see ``complete``.
    num_products
        Products with single vectors.
    seconds
        Time of the computation.
    positive_semidefinite
        Whether the definition of the matrix guarantees it.
    complete
        Whether an eigenvalue is missing between the values and the ends of the spectrum.

        * ``"certified by inertia"``: no; the eigenvalues beyond the last value were counted.
        * ``"the whole space"``: no; the basis spans the whole space.
        * ``"checked by a second start"``: probably not; an independent Lanczos run, orthogonal to these vectors, found
          none. ``unseen`` bounds what that run could have missed.
        * ``"not checked"``: unknown.
        * ``"incomplete"``: yes, at least ``num_missed``.
    num_missed
        Eigenvalues that belong to the set and are proven to be missing.
    unseen
        Interval of all other eigenvalues: proven by inertia, with probability 0.999 by a second start.
    num_steps
        Dimension of the Krylov space from the random start, before any restart; :meth:`spectral_bounds` uses it.
    ritz_range
        Smallest and largest Ritz value of the whole run.
    noise_floor
        Rounding error of one eigenvalue.
    checks
        Self-checks that the matrix passed; see :mod:`curvature.linalg.checks`.
    vectors
        Ritz vectors of the values in ascending order, smallest values first, with their residuals.
    """

    where: Where
    dim: int
    largest: Float[np.ndarray, "largest"]
    smallest: Float[np.ndarray, "smallest"]
    residuals: Float[np.ndarray, "smallest+largest"] = field(repr=False)
    error_bounds: Float[np.ndarray, "smallest+largest"] = field(repr=False)
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

    def validate(self) -> None:
        """Check that the numbers fit together; every reader of a file calls it.

        Raises
        ------
        ValueError
            If the values are not sorted finite real numbers, or the residuals, bounds and counts do not fit them.
        """
        require_finite("largest", self.largest)
        require_finite("smallest", self.smallest)
        require((np.diff(self.largest) <= 0).all(), "largest is not descending")
        require((np.diff(self.smallest) >= 0).all(), "smallest is not ascending")
        count = len(self.largest) + len(self.smallest)
        require(1 <= count <= self.dim, f"it has {count} eigenvalues, but the dimension is {self.dim}")
        for name in ("residuals", "error_bounds"):
            require_finite(name, getattr(self, name), (count,))
            require((getattr(self, name) >= 0).all(), f"{name} has negative entries")
        require(math.isfinite(self.noise_floor) and self.noise_floor >= 0, f"the noise floor is {self.noise_floor}")
        for name in ("unseen", "ritz_range"):
            ends = getattr(self, name)
            require(len(ends) == 2 and not any(map(math.isnan, ends)), f"{name} is {ends}, not an interval")
        if self.vectors is not None:
            own = np.concatenate([self.smallest, self.largest[::-1]])[count - len(self.vectors) :]
            same = np.array_equal(self.vectors.eigenvalues, own)
            require(same and self.vectors.dim == self.dim, "the eigenvectors belong to other eigenvalues")

    def __repr__(self) -> str:
        ends = []
        if len(self.smallest):
            ends.append(f"{len(self.smallest)} smallest from {self.smallest[0]:.4g}")
        if len(self.largest):
            ends.append(f"{len(self.largest)} largest from {self.largest[0]:.4g}")
        warning = "" if self.converged else ", not converged"
        return f"ExtremalEigenvalues({self.label}: {', '.join(ends)}; {self.complete}{warning})"

    def _repr_html_(self) -> str:
        count = len(self.smallest) + len(self.largest)
        quantities = [self.eigenvalue(k) for k in range(count)]
        rows = [("eigenvalue", "interval", "status"), *((str(q), q.interval, q.note or q.status) for q in quantities)]
        return html_rows(f"Ends of the {self.label}; {self.complete}, {self.num_products} products", rows)

    @property
    def largest_bounds(self) -> Float[np.ndarray, "largest"]:
        """Error bounds of ``largest``, in its order."""
        return self.error_bounds[len(self.smallest) :][::-1]

    @property
    def smallest_bounds(self) -> Float[np.ndarray, "smallest"]:
        """Error bounds of ``smallest``, in its order."""
        return self.error_bounds[: len(self.smallest)]

    @property
    def certified(self) -> bool:
        """Whether the set is proven to be complete, not only with high probability."""
        return self.complete in ("certified by inertia", "the whole space")

    def intervals(self) -> tuple[Float[np.ndarray, "values"], Float[np.ndarray, "values"]]:
        r"""Bound the eigenvalues, rounding included.

        Returns
        -------
        tuple of ndarray
            Lower and upper ends in ascending order, smallest values first.

        Notes
        -----
        Where the set is complete, the i-th interval contains the i-th eigenvalue. Its width is quadratic in the
        residual where the neighbours leave a gap (Kato & Temple). The intervals are proven where the set is certified,
        and hold with probability 0.999 where it was checked by a second start. Otherwise they are $\theta \pm r$, which
        contains *some* eigenvalue.
        """
        values = np.concatenate([self.smallest, self.largest[::-1]])
        if not (self.certified or self.complete == "checked by a second start"):
            return values - self.error_bounds, values + self.error_bounds
        # Ritz vectors are orthonormal: the values can be paired with as many eigenvalues, copies counted, each within
        # the norm of all residuals (Kahan 1967).
        radius = math.hypot(*self.residuals) + self.noise_floor
        bottom = len(self.smallest)
        below = np.concatenate([[-math.inf], values[:-1] + radius])
        above = np.concatenate([values[1:] - radius, [math.inf]])
        below[bottom:] = np.maximum(below[bottom:], self.unseen[1])
        above[:bottom] = np.minimum(above[:bottom], self.unseen[0])
        low, high = kato_temple(values, self.residuals, below, above)
        alone = (below < values - radius) & (above > values + radius)
        low, high = np.where(alone, low, values - radius), np.where(alone, high, values + radius)
        # A value inside the unseen interval may not be the i-th eigenvalue: an unseen one may come before it.
        low[:bottom] = np.where(alone, low, np.minimum(low, self.unseen[0]))[:bottom]
        high[bottom:] = np.where(alone, high, np.maximum(high, self.unseen[1]))[bottom:]
        return low - self.noise_floor, high + self.noise_floor

    def eigenvalue(self, k: int) -> Quantity:
        r"""Return one eigenvalue with its status and interval.

        Parameters
        ----------
        k
            Index in ascending order, smallest values first; negative ones count from the end.

        Returns
        -------
        Quantity
            Where the set is complete, the eigenvalue with its interval. Otherwise a bound.

        Notes
        -----
        Ritz values lie inside the spectrum (Cauchy): the j-th largest is a lower bound of the j-th largest eigenvalue,
        and the j-th smallest an upper bound of the j-th smallest. The other end of the interval is that of
        :meth:`spectral_bounds`.
        """
        values = np.concatenate([self.smallest, self.largest[::-1]])
        value, floor, (low, high) = float(values[k]), self.noise_floor, (float(ends[k]) for ends in self.intervals())
        if self.positive_semidefinite:
            low, high = max(low, 0.0), max(high, 0.0)
        if self.certified or self.complete == "checked by a second start":
            method = f"Kato-Temple, {self.complete}"
            if 0 < floor >= abs(value) and high <= 2 * floor and low >= -2 * floor:
                return Quantity(value, "below_noise_floor", f"computed as {value:.1e}", low, high, method)
            if self.converged:
                return Quantity(value, low=low, high=high, method=method)
            return Quantity(value, "unresolved", "not converged", low, high, method)
        bottom, top = self.spectral_bounds()
        method = f"Ritz value, {self.complete}; random start, probability {1 - FAILURE:g}"
        if k % len(values) < len(self.smallest):
            return Quantity(value, "upper_bound_only", f"smaller {_MISSING}", bottom, value + floor, method)
        return Quantity(value, "lower_bound", f"larger {_MISSING}", value - floor, top, method)

    def spectral_bounds(self) -> tuple[float, float]:
        """Bound all eigenvalues of the matrix.

        Returns
        -------
        tuple of float
            Lower and upper bound: proven where the set is certified, otherwise with probability 0.999.

        Notes
        -----
        From the random start (Kuczynski & Wozniakowski 1992). The lower bound of a positive semidefinite matrix is at
        least zero. Products cannot bound its smallest eigenvalue away from zero once the condition number is large.
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
