"""The record of eigenvectors with their residuals, as flat vectors or by parameter name."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from curvature.arrays import Float
from curvature.errors import ConfigurationError

__all__ = ["Eigenvectors"]


@dataclass(frozen=True, eq=False)
class Eigenvectors:
    r"""Orthonormal eigenvectors of the eigenvalues of a record, in the same order.

    Attributes
    ----------
    eigenvalues
        ``(K,)``, unit loss / coordinate**2.
    columns
        ``(D, K)``: ``columns[:, k]`` belongs to ``eigenvalues[k]``. Its sign is arbitrary, and so is the basis of the
        eigenspace of a multiple eigenvalue.
    residuals
        $\|A q_k - \lambda_k q_k\|$ from products with the matrix, ``(K,)``. An eigenvalue of the matrix lies within
        this distance of $\lambda_k$. The angle to the true eigenvector is at most about the residual divided by the gap
        to the next eigenvalue (Davis & Kahan 1970).
    names
        Name and shape of every tensor of coordinates, in order; empty if the coordinates have no names.
    """

    eigenvalues: Float[np.ndarray, "values"] = field(repr=False)
    columns: Float[np.ndarray, "dim values"] = field(repr=False)
    residuals: Float[np.ndarray, "values"] = field(repr=False)
    names: tuple[tuple[str, tuple[int, ...]], ...] = field(default=(), repr=False)

    @property
    def dim(self) -> int:
        """Length of each vector."""
        return self.columns.shape[0]

    def __len__(self) -> int:
        return self.columns.shape[1]

    def flat(self, k: int) -> Float[np.ndarray, "dim"]:
        """Return the eigenvector of ``eigenvalues[k]`` as one flat vector.

        Parameters
        ----------
        k
            Index into ``eigenvalues``; negative ones count from the end.

        Returns
        -------
        numpy.ndarray
            ``(D,)``, of unit length.

        Raises
        ------
        ConfigurationError
            If ``k`` is out of range.
        """
        if not -len(self) <= k < len(self):
            raise ConfigurationError(
                f"k must be in [0, {len(self)}), since this record has {len(self)} eigenvectors; got {k}."
            )
        return self.columns[:, k]

    def vector(self, k: int) -> dict[str, Float[np.ndarray, "..."]]:
        """Return the eigenvector of ``eigenvalues[k]`` as one array per parameter.

        Parameters
        ----------
        k
            Index into ``eigenvalues``; negative ones count from the end.

        Returns
        -------
        dict
            Array by parameter name, in the shape of the parameter.

        Raises
        ------
        ConfigurationError
            If ``k`` is out of range, or the coordinates of the matrix have no names (as with ``from_dense``).
        """
        if not self.names:
            raise ConfigurationError(
                "the coordinates of this matrix have no names, so its eigenvectors have no parts by name. Use flat(k)."
            )
        parts: dict[str, np.ndarray] = {}
        column, start = self.flat(k), 0
        for name, shape in self.names:
            size = int(np.prod(shape))
            parts[name] = column[start : start + size].reshape(shape)
            start += size
        return parts

    def __repr__(self) -> str:
        worst = float(self.residuals.max()) if len(self) else 0.0
        return f"Eigenvectors({len(self)} of dimension {self.dim}, largest residual {worst:.1e})"
