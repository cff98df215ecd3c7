"""The record of eigenvectors with their residuals, as flat vectors or by parameter name."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from curvature.arrays import Float
from curvature.errors import ConfigurationError
from curvature.records.validation import require, require_finite

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

    Examples
    --------
    >>> import numpy as np
    >>> import curvature as cv
    >>> shapes = (("0.weight", (1, 2)), ("0.bias", (1,)))
    >>> vectors = cv.Eigenvectors(np.arange(3.0), np.eye(3), np.zeros(3), names=shapes)
    >>> vectors["0.weight"].shape
    (3, 1, 2)
    >>> vectors["0.bias"].ravel()
    array([0., 0., 1.])
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
        column = self.flat(k)
        return {name: column[part].reshape(shape) for name, (part, shape) in self._parts().items()}

    def __getitem__(self, name: str) -> Float[np.ndarray, "values ..."]:
        """Return the components of all eigenvectors on one parameter.

        Parameters
        ----------
        name
            Of the parameter, such as ``"0.weight"``.

        Returns
        -------
        numpy.ndarray
            ``(K, *shape)``, with the shape of the parameter; entry ``k`` belongs to ``eigenvalues[k]``.

        Raises
        ------
        ConfigurationError
            If there is no parameter of this name, or the coordinates of the matrix have no names.
        """
        parts = self._parts()
        if name not in parts:
            raise ConfigurationError(
                f"there is no parameter {name!r}. The parameters of these eigenvectors are {', '.join(parts)}"
                + (f"; for the eigenvector of one eigenvalue use vector({name})." if isinstance(name, int) else ".")
            )
        part, shape = parts[name]
        return self.columns[part].T.reshape(len(self), *shape)

    def validate(self) -> None:
        """Check that the numbers fit together; every reader of a file calls it.

        Raises
        ------
        ValueError
            If the arrays are not finite, do not fit each other, or the shapes of the parameters do not fill a vector.
        """
        require_finite("eigenvalues", self.eigenvalues)
        count = len(self.eigenvalues)
        require(self.columns.ndim == 2, f"the eigenvectors have {self.columns.ndim} axes, not 2")
        require_finite("eigenvectors", self.columns, (self.dim, count))
        require_finite("residuals", self.residuals, (count,))
        require((self.residuals >= 0).all(), "residuals has negative entries")
        sizes = sum(math.prod(shape) for _, shape in self.names)
        require(not self.names or sizes == self.dim, f"the parameters have {sizes} numbers, the vectors {self.dim}")

    def _parts(self) -> dict[str, tuple[slice, tuple[int, ...]]]:
        """Where each parameter lies in a vector, and its shape."""
        if not self.names:
            raise ConfigurationError(
                "the coordinates of this matrix have no names, so its eigenvectors have no parts by name. Use flat(k)."
            )
        parts: dict[str, tuple[slice, tuple[int, ...]]] = {}
        start = 0
        for name, shape in self.names:
            size = math.prod(shape)
            parts[name] = (slice(start, start + size), shape)
            start += size
        return parts

    def __repr__(self) -> str:
        worst = float(self.residuals.max()) if len(self) else 0.0
        return f"Eigenvectors({len(self)} of dimension {self.dim}, largest residual {worst:.1e})"
