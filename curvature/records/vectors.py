"""Eigenvectors with their residuals, flat and by the names of the parameters."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from curvature.errors import ConfigurationError

__all__ = ["Eigenvectors"]


@dataclass(frozen=True, eq=False)
class Eigenvectors:
    r"""Orthonormal eigenvectors, one for each eigenvalue of the record that holds them, in its order.

    Attributes
    ----------
    eigenvalues
        ``(K,)``, unit loss / coordinate**2.
    columns
        ``(D, K)``: ``columns[:, k]`` belongs to ``eigenvalues[k]``. The sign of each is arbitrary, and so is the basis
        within a multiple eigenvalue.
    residuals
        $\|A q_k - \lambda_k q_k\|$ from products with the matrix, ``(K,)``: an eigenvalue of the matrix lies within it
        of $\lambda_k$. The angle to the true eigenvector is at most about the residual over the gap to the next
        eigenvalue (Davis & Kahan 1970).
    names
        Name and shape of every tensor of coordinates, in order; empty where the coordinates have no names.
    """

    eigenvalues: np.ndarray = field(repr=False)
    columns: np.ndarray = field(repr=False)
    residuals: np.ndarray = field(repr=False)
    names: tuple[tuple[str, tuple[int, ...]], ...] = field(default=(), repr=False)

    @property
    def dim(self) -> int:
        """Length of each vector."""
        return self.columns.shape[0]

    def __len__(self) -> int:
        return self.columns.shape[1]

    def flat(self, k: int) -> np.ndarray:
        """Give the eigenvector of ``eigenvalues[k]`` as one vector.

        Parameters
        ----------
        k
            Its place, in the order of the record; negative counts from the end.

        Returns
        -------
        numpy.ndarray
            ``(D,)``, of length one.
        """
        if not -len(self) <= k < len(self):
            raise ConfigurationError(f"there are {len(self)} eigenvectors: k must lie in [0, {len(self)}), got {k}.")
        return self.columns[:, k]

    def vector(self, k: int) -> dict[str, np.ndarray]:
        """Give the eigenvector of ``eigenvalues[k]`` by the names of the parameters.

        Parameters
        ----------
        k
            Its place, in the order of the record; negative counts from the end.

        Returns
        -------
        dict
            Name to tensor, in the shape of the parameter.

        Raises
        ------
        ConfigurationError
            If the coordinates of the matrix have no names, as those of a matrix from ``from_dense``.
        """
        if not self.names:
            raise ConfigurationError("the coordinates of this matrix have no names: use flat(k).")
        column, parts, start = self.flat(k), {}, 0
        for name, shape in self.names:
            size = int(np.prod(shape))
            parts[name] = column[start : start + size].reshape(shape)
            start += size
        return parts

    def __repr__(self) -> str:
        worst = float(self.residuals.max()) if len(self) else 0.0
        return f"Eigenvectors({len(self)} of dimension {self.dim}, largest residual {worst:.1e})"
