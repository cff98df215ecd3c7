"""The record of a spectral density: the quadrature rules that estimate it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from curvature.arrays import Float, Num
from curvature.errors import ConfigurationError
from curvature.records.bounds import cumulative_band
from curvature.records.quantity import Check
from curvature.records.validation import require, require_finite
from curvature.records.where import Located, Where

__all__ = ["SpectralDensity"]


@dataclass(frozen=True)
class SpectralDensity(Located):
    """Density of the eigenvalues of a matrix, stored as the quadrature rules that estimate it.

    Attributes
    ----------
    where
        Header: matrix, chart, gauge, block.
    dim
        Dimension of the matrix.
    nodes
        Ritz values, ``(num_probes, num_matvecs)``, unit loss / coordinate**2. Where the Krylov space of a probe is
        exhausted before the last product, its largest Ritz value is repeated with weight zero.
    weights
        Of the nodes, in the same shape; each row adds up to one.
    num_products
        Products with single vectors.
    seconds
        Time of the computation.
    checks
        Self-checks that the matrix passed; see :mod:`curvature.linalg.checks`.

    Notes
    -----
    No smoothing is applied: its width is a choice of the figure.
    """

    where: Where
    dim: int
    nodes: Float[np.ndarray, "probes steps"] = field(repr=False)
    weights: Float[np.ndarray, "probes steps"] = field(repr=False)
    num_products: int = 0
    seconds: float = math.nan
    checks: tuple[Check, ...] = field(default=(), repr=False)

    def validate(self) -> None:
        """Check that the numbers fit together; every reader of a file calls it.

        Raises
        ------
        ValueError
            If nodes and weights are not finite tables of the same shape, or a row of weights does not sum to one.
        """
        shape = np.shape(self.nodes)
        require(len(shape) == 2 and min(shape) > 0, f"nodes has shape {shape} instead of (probes, products)")
        require_finite("nodes", self.nodes, shape)
        require_finite("weights", self.weights, shape)
        sums = self.weights.sum(axis=1)
        require((self.weights >= 0).all() and np.allclose(sums, 1, atol=1e-3), "weights do not sum to one")

    def __repr__(self) -> str:
        low, high = float(self.nodes.min()), float(self.nodes.max())
        return (
            f"SpectralDensity({self.label}, dimension {self.dim}: {self.num_probes} probes of {self.num_matvecs} "
            f"products in [{low:.4g}, {high:.4g}])"
        )

    @property
    def num_probes(self) -> int:
        """Number of independent probes, which sets the statistical error."""
        return len(self.nodes)

    @property
    def num_matvecs(self) -> int:
        """Products with each probe, which set the resolution."""
        return self.nodes.shape[1]

    @property
    def resolution(self) -> float:
        """``(max - min) / num_matvecs``: the density has no information on a finer scale."""
        return float(self.nodes.max() - self.nodes.min()) / self.num_matvecs

    def histogram(
        self,
    ) -> tuple[Float[np.ndarray, "edges"], Float[np.ndarray, "edges-1"], Float[np.ndarray, "edges-1"]]:
        """Compute the mean density in bins as wide as the resolution.

        Returns
        -------
        tuple of ndarray
            Edges, ``(B + 1,)``; density, ``(B,)``, which integrates to one; its standard error over probes, ``(B,)``,
            NaN for a single probe.

        Notes
        -----
        Zero is the centre of a bin, so that null eigenvalues do not fall on an edge.
        """
        width = self.resolution or max(abs(float(self.nodes.max())), np.finfo(float).tiny)
        first, last = (int(np.floor(end / width + 0.5)) for end in (self.nodes.min(), self.nodes.max()))
        edges = (np.arange(first, last + 2) - 0.5) * width
        bins = np.clip(np.floor(self.nodes / width + 0.5).astype(int) - first, 0, last - first)
        shares = (
            np.stack([np.bincount(row, w, last - first + 1) for row, w in zip(bins, self.weights, strict=True)]) / width
        )
        spread = shares.std(axis=0, ddof=1) if len(shares) > 1 else np.full(shares.shape[1], math.nan)
        return edges, shares.mean(axis=0), spread / len(shares) ** 0.5

    def moment(self, power: int) -> tuple[float, float]:
        """Estimate a moment of the spectrum.

        Parameters
        ----------
        power
            Exponent.

        Returns
        -------
        tuple of float
            Estimate of ``mean(eigenvalue**power)`` and its standard error over probes, NaN for a single probe.
        """
        per_probe = (self.weights * self.nodes**power).sum(axis=1)
        spread = per_probe.std(ddof=1) if len(per_probe) > 1 else math.nan
        return float(per_probe.mean()), float(spread / len(per_probe) ** 0.5)

    def cumulative(
        self, grid: Sequence[float] | Num[np.ndarray, "*points"], *, level: float = 0.95
    ) -> tuple[Float[np.ndarray, "*points"], Float[np.ndarray, "*points"], Float[np.ndarray, "*points"]]:
        """Estimate the share of the eigenvalues that are at most a given number.

        Parameters
        ----------
        grid
            The numbers, an array of any shape.
        level
            Probability with which the band contains the true share, at each point separately.

        Returns
        -------
        tuple of ndarray
            Lower end, middle and upper end of the band, each in the shape of ``grid``.

        Raises
        ------
        ConfigurationError
            If ``level`` is not between 0 and 1, or ``grid`` contains NaN.

        Notes
        -----
        The band covers the error of the quadrature, which is bounded, and that of a finite number of probes, without
        assuming normality; a single probe has a band too. See :func:`curvature.records.bounds.cumulative_band`. It
        holds at each point and not for the whole curve at once, and says nothing about single eigenvalues.
        """
        points = np.asarray(grid, dtype=float)
        if not 0 < level < 1 or np.isnan(points).any():
            raise ConfigurationError(f"level must be between 0 and 1, got {level}, and grid must not contain NaN.")
        low, middle, high = cumulative_band(self.nodes, self.weights, self.dim, points.ravel(), level)
        return low.reshape(points.shape), middle.reshape(points.shape), high.reshape(points.shape)
