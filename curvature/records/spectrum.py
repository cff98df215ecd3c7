"""Records of all eigenvalues of a matrix, and of its inertia."""

from __future__ import annotations

import html
import math
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curvature.arrays import Float
from curvature.records.conditioning import condition_numbers
from curvature.records.conditions import ConditionNumbers
from curvature.records.files import load_record, save_record
from curvature.records.notebook import html_table
from curvature.records.picture import spectrum_picture
from curvature.records.quantity import Check, Quantity
from curvature.records.storage import storable, to_plain
from curvature.records.validation import require, require_finite, require_rank
from curvature.records.vectors import Eigenvectors
from curvature.records.where import Located, Where
from curvature.text import one_line

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["Inertia", "Spectrum"]

_SCHEMA = "curvature/spectrum/2"
_WITHOUT_HASH = "curvature/spectrum/1"  # of version 0.1


@dataclass(frozen=True)
class Spectrum(Located):
    """All eigenvalues of a matrix in one chart, with their noise floor and rank.

    Attributes
    ----------
    where
        Header: matrix, chart, gauge, block. Eigenvalues without their gauge mean nothing.
    eigenvalues
        Ascending, ``(dim,)``, unit loss / coordinate**2.
    positive_semidefinite
        Whether the definition of the matrix guarantees it.
    method
        ``"dense"`` (LAPACK on the entries), ``"factor"`` (singular values of ``B``, ``A = B B^T``) or ``"gram"``
        (LAPACK on the entries of ``B^T B``).
    noise_floor, floor_rule
        Eigenvalues below the floor in absolute value cannot be told from zero; and which estimate of rounding set it.
    rank, rank_rule
        Rank, and where it comes from: a formula with verified null vectors, the factor, or a threshold.
    rank_bounds
        Smallest and largest possible rank; both equal the rank where it is resolved. None in a record made by hand,
        whose rank is taken as given.
    gradient_weights
        Squared components of the loss gradient along the eigenvectors, ``(dim,)``; None unless ``gradient=True``.
    seconds
        Time of the computation.
    checks
        Self-checks that the matrix passed; see :mod:`curvature.linalg.checks`.
    vectors
        Eigenvectors in the order of the eigenvalues, of all or of the largest ones; None unless they were asked for.
    """

    where: Where
    eigenvalues: Float[np.ndarray, "dim"] = field(repr=False)
    positive_semidefinite: bool
    method: str
    noise_floor: float
    rank: int
    rank_rule: str
    gradient_weights: Float[np.ndarray, "dim"] | None = field(default=None, repr=False)
    seconds: float = math.nan
    checks: tuple[Check, ...] = field(default=(), repr=False)
    floor_rule: str = ""
    rank_bounds: tuple[int, int] | None = None
    vectors: Eigenvectors | None = field(default=None, repr=False)

    @property
    def dim(self) -> int:
        """Number of eigenvalues."""
        return len(self.eigenvalues)

    @property
    def possible_ranks(self) -> tuple[int, int]:
        """Smallest and largest possible rank; equal where the rank is resolved."""
        return (self.rank, self.rank) if self.rank_bounds is None else self.rank_bounds

    @property
    def rank_words(self) -> str:
        """The rank as text: a number, or the range of possible ranks."""
        low, high = self.possible_ranks
        return str(self.rank) if low == high else f"{low} to {high}"

    def intervals(self) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim"]]:
        r"""Bound each eigenvalue by rounding.

        Returns
        -------
        tuple of ndarray
            Lower and upper ends in the order of ``eigenvalues``, ``(dim,)`` each; the i-th interval contains the i-th
            eigenvalue.

        Notes
        -----
        Dense and Gram matrix: $\lambda \pm \varphi$ with the noise floor $\varphi$ (Weyl's theorem). Factor: the same
        for singular values, $(\sigma \pm \sqrt\varphi)^2$. A positive semidefinite matrix has no eigenvalue below zero.
        """
        if self.method == "factor":
            singular, floor = np.sqrt(self.eigenvalues), self.noise_floor**0.5
            return np.maximum(singular - floor, 0) ** 2, (singular + floor) ** 2
        low, high = self.eigenvalues - self.noise_floor, self.eigenvalues + self.noise_floor
        return (np.maximum(low, 0), np.maximum(high, 0)) if self.positive_semidefinite else (low, high)

    def eigenvalue(self, k: int) -> Quantity:
        """Return one eigenvalue with its status and interval.

        Parameters
        ----------
        k
            Index into the ascending ``eigenvalues``; negative ones count from the end.

        Returns
        -------
        Quantity
            ``resolved``, or ``below_noise_floor``.

        Examples
        --------
        >>> record = Spectrum(Where("ggn", "standard"), np.array([1e-20, 2.0]), True, "dense", 1e-15, 1, "by hand")
        >>> print(record.eigenvalue(0), record.eigenvalue(-1), record.eigenvalue(-1).method)
        < 1e-15 2 dense, Weyl
        """
        value, floor = float(self.eigenvalues[k]), self.noise_floor
        low, high = (float(ends[k]) for ends in self.intervals())
        if abs(value) > floor or floor == 0:  # a floor of zero: the matrix is zero, exactly
            return Quantity(value, low=low, high=high, method=f"{self.method}, Weyl")
        status, note = "below_noise_floor", f"computed as {value:.1e}"
        return Quantity(value, status, note, 0.0 if self.positive_semidefinite else -floor, floor, self.method)

    @property
    def inertia(self) -> tuple[int, int, int]:
        """Numbers of negative, zero and positive eigenvalues; zero means not above the noise floor."""
        negative = int((self.eigenvalues < -self.noise_floor).sum())
        positive = int((self.eigenvalues > self.noise_floor).sum())
        return negative, self.dim - negative - positive, positive

    @property
    def num_resolved(self) -> int:
        """Number of eigenvalues above the noise floor in absolute value."""
        negative, _, positive = self.inertia
        return negative + positive

    @property
    def trace(self) -> float:
        """Sum of the eigenvalues."""
        return float(self.eigenvalues.sum())

    @property
    def on_rank(self) -> Float[np.ndarray, "values"]:
        """The ``rank`` largest eigenvalues in absolute value, by descending absolute value, signs kept."""
        return self.eigenvalues[np.argsort(-np.abs(self.eigenvalues), kind="stable")][: self.rank]

    def condition_numbers(self, **options: Any) -> ConditionNumbers:
        """Summarize the spectrum by its condition numbers.

        Parameters
        ----------
        **options
            As for :func:`curvature.records.conditioning.condition_numbers`: ``accuracy``, ``damping``,
            ``relative_damping``.

        Returns
        -------
        ConditionNumbers
            Every quantity that is defined for this spectrum.
        """
        return condition_numbers(self, **options)

    def save(self, path: str | Path, *, vectors: bool = True) -> Path:
        """Write the record to one ``.npz`` file.

        Parameters
        ----------
        path
            Must end in ``.npz``.
        vectors
            Also write the eigenvectors, if it has them: ``8 D`` bytes each, for ``D`` eigenvalues.

        Returns
        -------
        Path
            The path of the file.

        Raises
        ------
        ConfigurationError
            If the path has another suffix, or the record and its eigenvectors take more than 1 GB.

        Notes
        -----
        Arrays as arrays and all other fields as JSON, without pickle. The file ends with its SHA-256.
        """
        record = self if vectors else replace(self, vectors=None)
        return save_record(record, path, schema=_SCHEMA, noun="spectrum")

    @classmethod
    def load(cls, path: str | Path) -> Spectrum:
        """Read a record that :meth:`save` wrote.

        Parameters
        ----------
        path
            The ``.npz`` file.

        Returns
        -------
        Spectrum
            Equal to the saved record.

        Raises
        ------
        ConfigurationError
            If the file is missing, larger than 1 GB, or not a saved spectrum; if one bit of it has changed since it was
            saved; or if its numbers contradict each other.

        Notes
        -----
        A file of version 0.1 has no hash. It is read with a warning.
        """
        spectrum, sealed = load_record(cls, path, schema=_SCHEMA, noun="spectrum", without_hash=_WITHOUT_HASH)
        if not sealed:
            warnings.warn(
                f"{one_line(str(path))} was saved by curvature 0.1, without a hash, so damage to it may go unnoticed. "
                "Save the spectrum again to add one.",
                stacklevel=2,
            )
        return spectrum

    def validate(self) -> None:
        """Check that the numbers fit together; every reader of a file calls it.

        Raises
        ------
        ValueError
            If the eigenvalues are not ascending finite real numbers, the rank is impossible, the noise floor is
            negative or not finite, or the gradient weights or the eigenvectors do not fit the eigenvalues.
        """
        require_finite("eigenvalues", self.eigenvalues)
        require(self.dim > 0, "eigenvalues is empty")
        require((np.diff(self.eigenvalues) >= 0).all(), "eigenvalues is not ascending")
        require_rank(self.rank, self.rank_bounds, self.dim, self.noise_floor)
        if self.gradient_weights is not None:
            require_finite("gradient_weights", self.gradient_weights, (self.dim,))
            require((self.gradient_weights >= 0).all(), "gradient_weights has negative entries")
        if self.vectors is not None:
            own = self.eigenvalues[self.dim - len(self.vectors) :]
            same = np.array_equal(self.vectors.eigenvalues, own)
            require(same and self.vectors.dim == self.dim, "the eigenvectors belong to other eigenvalues")

    def to_dataframe(self) -> pd.DataFrame:
        """Convert to a table.

        Returns
        -------
        pandas.DataFrame
            One row per eigenvalue, ascending: index, eigenvalue, interval, whether it is above the noise floor, and the
            header.
        """
        import pandas as pd

        low, high = self.intervals()
        columns = {
            "index": np.arange(self.dim),
            "eigenvalue": self.eigenvalues,
            "low": low,
            "high": high,
            "resolved": np.abs(self.eigenvalues) > self.noise_floor,
        }
        return pd.DataFrame(columns).assign(matrix=self.matrix, chart=self.chart, gauge=self.gauge, block=self.block)

    def to_xarray(self) -> xr.DataArray:
        """Convert to a labelled array.

        Returns
        -------
        xarray.DataArray
            The eigenvalues by index, with all other fields but arrays as attributes.
        """
        import xarray as xr

        plain = {name: storable(v) for name, v in to_plain(self).items() if not isinstance(v, np.ndarray)}
        return xr.DataArray(
            self.eigenvalues, dims="index", coords={"index": np.arange(self.dim)}, name="eigenvalue", attrs=plain
        )

    def __repr__(self) -> str:
        low, high = self.eigenvalue(0), self.eigenvalue(-1)
        return (
            f"Spectrum({self.label}: {self.dim} eigenvalues in [{low}, {high}], rank {self.rank_words}, "
            f"noise floor {self.noise_floor:.1e}, {self.method})"
        )

    def _repr_html_(self) -> str:
        summary = self.condition_numbers()
        negative, zero, positive = self.inertia
        rows = {
            "eigenvalues": f"{self.dim} ({negative} negative, {zero} below the noise floor, {positive} positive)",
            "extremes": f"{self.eigenvalue(0)} to {self.eigenvalue(-1)}",
            "rank": f"{self.rank_words} ({self.rank_rule})",
            "trace": f"{self.trace:.4g}",
            "noise floor": f"{self.noise_floor:.1e}" + (f" ({self.floor_rule})" if self.floor_rule else ""),
            **{name: str(quantity) for name, quantity in summary.headline.items()},
            "method": f"{self.method}, {self.dtype}, N = {self.num_examples}",
            "self-checks": f"{len(self.checks)} passed" if self.checks else "none",
        }
        title = html.escape(one_line(f"Eigenvalues of {self.label}"))
        return html_table(self.label, rows, spectrum_picture(self.eigenvalues, self.noise_floor, title))


@dataclass(frozen=True)
class Inertia(Located):
    """Numbers of eigenvalues below and above a shift, by Sylvester's law of inertia.

    Attributes
    ----------
    where
        Header: matrix, chart, gauge, block.
    dim
        Number of eigenvalues.
    shift
        The number that eigenvalues are compared with, unit loss / coordinate**2.
    below, above
        Eigenvalues on each side. Eigenvalues of the rounded matrix that equal ``shift`` count on neither side.
    tolerance
        Norm of the rounding error: eigenvalues farther than this from ``shift`` are proven to be on the side where they
        are counted.
    """

    where: Where
    dim: int
    shift: float
    below: int
    above: int
    tolerance: float

    def validate(self) -> None:
        """Check that the counts fit the dimension; every reader of a file calls it.

        Raises
        ------
        ValueError
            If they do not.
        """
        counts = min(self.below, self.above) >= 0 and self.below + self.above <= self.dim
        require(counts, f"{self.below} eigenvalues below and {self.above} above contradict dimension {self.dim}")

    def __repr__(self) -> str:
        return f"Inertia({self.label}: {self.below} below {self.shift:g}, {self.above} above, of {self.dim})"
