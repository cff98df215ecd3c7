"""The symmetric operator: a matrix known by its products, with its algebra."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from curvature.arrays import Float, Int
from curvature.errors import ConfigurationError, InputError
from curvature.layout import Layout
from curvature.linalg import algebra
from curvature.linalg.block_matrix import BlockMatrix
from curvature.linalg.dense import symmetric_product, symmetrized
from curvature.linalg.facts import Facts
from curvature.linalg.routes import EntriesRoute, FactorRoute, ProductCost, Routes
from curvature.precision import full_precision
from curvature.records import Where
from curvature.removed import removed

__all__ = ["SymmetricOperator", "identity", "require_operator"]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SymmetricOperator(BlockMatrix):
    r"""A real symmetric matrix $A \in \mathbb{R}^{D \times D}$ that is known by its products.

    Attributes
    ----------
    where
        Header: the matrix, and the coordinates it is written in.
    dim
        Dimension $D$.
    matmat
        $V \mapsto A V$ for ``V`` of shape ``(D, K)``; use ``A @ V``, which checks shapes and results.
    dtype, device
        Precision and device of the entries, and of the vectors that it multiplies.
    routes
        Cheaper ways to its entries or to a factor, with their counted cost.
    facts
        Properties that its definition guarantees, and independent computations that its products must agree with.
    layout
        Names of its coordinates, for blocks by layer, neuron or name; None if they have no names.
    same_rank
        Another matrix with the same rank, if the rank of that one is known by formula.

    Notes
    -----
    ``A + B``, ``A - B``, ``c * A`` and ``-A`` are operators, and so are the results of :meth:`shifted`,
    :meth:`congruence` and :meth:`block`. They multiply by their parts, and have the routes that all parts have.

    Examples
    --------
    >>> import torch
    >>> A = SymmetricOperator.from_dense(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    >>> (A @ torch.tensor([1.0, -1.0])).tolist()
    [1.0, -1.0]
    >>> A
    SymmetricOperator(matrix, given, 2 x 2, float32, cpu)
    """

    @classmethod
    @full_precision()
    def from_dense(
        cls,
        matrix: Float[Tensor, "dim dim"],
        *,
        name: str = "matrix",
        where: Where | None = None,
        layout: Layout | None = None,
        facts: Facts | None = None,
        positive_semidefinite: bool = False,
    ) -> SymmetricOperator:
        """Wrap a dense symmetric matrix.

        Parameters
        ----------
        matrix
            ``(D, D)``, of a floating-point type; copied.
        name
            Name of the matrix.
        where
            The whole header, in place of ``name``.
        layout
            Names of the coordinates.
        facts
            Known properties of the matrix, in place of ``positive_semidefinite``.
        positive_semidefinite
            Whether the definition of the matrix guarantees it.

        Returns
        -------
        SymmetricOperator
            An operator with a route to its entries.

        Raises
        ------
        InputError
            If ``matrix`` is not a square matrix of real floating-point numbers.
        NonFiniteError
            If an entry is NaN or infinite.
        SelfCheckError
            If it is not symmetric up to rounding.
        """
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.shape[0]:
            raise InputError(f"{name} must be a square matrix, got shape {tuple(matrix.shape)}.")
        if not matrix.dtype.is_floating_point:
            raise InputError(f"{name} must hold real floating-point numbers, got {matrix.dtype}.")
        matrix = symmetrized(matrix.detach().clone(), name)
        precision = str(matrix.dtype).removeprefix("torch.")
        return SymmetricOperator(
            where=where or Where(name, dtype=precision),
            dim=len(matrix),
            matmat=lambda block: symmetric_product(matrix, block),
            dtype=matrix.dtype,
            device=matrix.device,
            routes=Routes(EntriesRoute(lambda: matrix.clone(), 0.0), numpy_blas=matrix.device.type == "cpu"),
            facts=facts or Facts(positive_semidefinite=positive_semidefinite),
            layout=layout,
        )

    def to_scipy(self) -> LinearOperator:
        """Convert to a SciPy ``LinearOperator``, e.g. for ARPACK or LOBPCG.

        Returns
        -------
        scipy.sparse.linalg.LinearOperator
            Of the same precision; vectors are moved to the device of the matrix and back.
        """
        numpy_dtype = torch.empty(0, dtype=self.dtype).numpy().dtype

        def matmat(block: Any) -> Any:
            columns = torch.from_numpy(np.array(block, dtype=numpy_dtype)).to(self.device)
            return (self @ columns).cpu().numpy()

        def matvec(vector: Any) -> Any:
            return matmat(vector.reshape(-1))

        return LinearOperator((self.dim, self.dim), matvec=matvec, rmatvec=matvec, matmat=matmat, dtype=numpy_dtype)

    def block(self, pattern: str) -> SymmetricOperator:
        """Take the principal block of the parameters whose names match a regular expression.

        Parameters
        ----------
        pattern
            Regular expression, searched in the names of ``layout``, e.g. ``"0.weight"``.

        Returns
        -------
        SymmetricOperator
            Rows and columns of the matching coordinates.

        Raises
        ------
        ConfigurationError
            If the coordinates have no names, no name matches, or the pattern is ``"layer"`` or ``"neuron"``, which
            mean several blocks.
        """
        if self.layout is None:
            raise ConfigurationError(f"{self.name} has no named coordinates, so it has no block {pattern!r}.")
        (index,) = self.layout.blocks(pattern).values() if pattern not in ("layer", "neuron") else (None,)
        if index is None:
            raise ConfigurationError(f"{pattern!r} means several blocks. Use curvature.blocks(operator, {pattern!r}).")
        return self.principal(index, pattern)

    def principal(
        self, index: Int[Tensor, "block"], name: str, *, entries: Callable[[], Tensor] | None = None
    ) -> SymmetricOperator:
        """Take the principal block of some coordinates.

        Parameters
        ----------
        index
            Rows and columns of the block, ``(d,)``.
        name
            Name of the block in records.
        entries
            Returns the entries of the whole matrix, if several blocks share them.

        Returns
        -------
        SymmetricOperator
            The block, ``(d, d)``.
        """
        index = index.to(self.device)

        def pad(block: Tensor) -> Tensor:
            padded = torch.zeros(self.dim, block.shape[1], dtype=self.dtype, device=self.device)
            padded[index] = block
            return padded

        return SymmetricOperator(
            where=replace(self.where, block=name),
            dim=len(index),
            matmat=lambda block: self.matmat(pad(block))[index],
            dtype=self.dtype,
            device=self.device,
            routes=algebra.restricted_routes(self.routes, index, self.dim, self.dtype, entries),
            facts=algebra.restricted_facts(self.facts, index, pad),
        )

    def congruence(self, map_: Float[Tensor, "dim coordinates"], name: str = "congruence") -> SymmetricOperator:
        """Change the coordinates linearly: ``M^T A M`` for a dense ``M``.

        Parameters
        ----------
        map_
            ``M``, ``(D, Q)``.
        name
            Name of the new coordinates, which records show as the chart.

        Returns
        -------
        SymmetricOperator
            ``(Q, Q)``.

        Raises
        ------
        ConfigurationError
            If ``M`` is not a matrix with ``D`` rows.
        """
        if map_.ndim != 2 or len(map_) != self.dim:
            raise ConfigurationError(f"{self.name} needs a map of shape ({self.dim}, Q), got {tuple(map_.shape)}.")
        map_ = map_.detach().to(self.device, self.dtype)
        scale = cache(lambda: float(torch.linalg.matrix_norm(map_, 2)) ** 2 * self.rounding_scale())
        return SymmetricOperator(
            where=replace(self.where, chart=name, gauge="-"),
            dim=map_.shape[1],
            matmat=lambda block: map_.T @ self.matmat(map_ @ block),
            dtype=self.dtype,
            device=self.device,
            routes=algebra.congruent_routes(self.routes, map_),
            facts=algebra.congruent_facts(self.facts, map_, scale),
        )

    def shifted(self, shift: float) -> SymmetricOperator:
        """Add a multiple of the identity.

        Parameters
        ----------
        shift
            A finite number other than zero, in the unit of the eigenvalues.

        Returns
        -------
        SymmetricOperator
            ``A + shift * I``.
        """
        return self + shift * identity(self)

    def __add__(self, other: SymmetricOperator) -> SymmetricOperator:
        """Matrix sum; both must be written in the same coordinates."""
        if not isinstance(other, SymmetricOperator):
            return NotImplemented
        if (other.dim, other.dtype, other.device) != (self.dim, self.dtype, self.device):
            raise ConfigurationError(
                f"{self!r} and {other!r} cannot be added: a sum needs one dimension, one precision and one device."
            )
        scale = cache(lambda: self.rounding_scale() + other.rounding_scale())
        return SymmetricOperator(
            where=algebra.sum_where(self.where, other.where),
            dim=self.dim,
            matmat=lambda block: self.matmat(block) + other.matmat(block),
            dtype=self.dtype,
            device=self.device,
            routes=algebra.sum_routes(self.routes, other.routes),
            facts=algebra.sum_facts(self.facts, other.facts, scale),
            layout=self.layout or other.layout,
        )

    def __mul__(self, scale: float) -> SymmetricOperator:
        """Multiple ``c A``, ``c`` a finite number other than zero."""
        if isinstance(scale, bool) or not isinstance(scale, int | float):
            return NotImplemented
        if not (math.isfinite(scale) and scale):
            raise ConfigurationError(f"a multiple of {self.name} needs a finite factor other than zero, got {scale}.")
        return SymmetricOperator(
            where=replace(self.where, matrix=f"{scale:g} {self.name}"),
            dim=self.dim,
            matmat=lambda block: scale * self.matmat(block),
            dtype=self.dtype,
            device=self.device,
            routes=algebra.scaled_routes(self.routes, scale),
            facts=algebra.scaled_facts(self.facts, scale),
            layout=self.layout,
        )

    __rmul__ = __mul__

    def __neg__(self) -> SymmetricOperator:
        return self * -1.0

    def __sub__(self, other: SymmetricOperator) -> SymmetricOperator:
        return self + (-other)


SymmetricOperator.__init__ = removed(  # type: ignore[method-assign]
    name="where=cv.Where('name')", positive_semidefinite="facts=cv.Facts(positive_semidefinite=True)"
)(SymmetricOperator.__init__)


def identity(like: SymmetricOperator) -> SymmetricOperator:
    """Make the identity matrix in the coordinates of another matrix, e.g. for ``A + 1e-3 * identity(A)``.

    Parameters
    ----------
    like
        The other matrix: dimension, precision, device, coordinates and their names are taken from it.

    Returns
    -------
    SymmetricOperator
        The identity, of the same dimension.
    """

    def entries() -> Tensor:
        return torch.eye(like.dim, dtype=like.dtype, device=like.device)

    def blocks() -> Iterator[Tensor]:
        yield entries()

    square = float(like.dtype.itemsize * like.dim**2)
    return SymmetricOperator(
        where=replace(like.where, matrix="identity"),
        dim=like.dim,
        matmat=torch.clone,
        dtype=like.dtype,
        device=like.device,
        routes=Routes(EntriesRoute(entries, 0.0, square), FactorRoute(blocks, like.dim, square), ProductCost(0, 0, 0)),
        facts=Facts(positive_semidefinite=True),
        layout=like.layout,
    )


def require_operator(operator: object, function: str) -> None:
    """Raise an error for an argument that is not a matrix, and show the call that makes one.

    Parameters
    ----------
    operator
        The first argument of ``function``.
    function
        Public name of the function, for the message.

    Raises
    ------
    ConfigurationError
        If ``operator`` is not a :class:`SymmetricOperator`.
    """
    if not isinstance(operator, SymmetricOperator):
        raise ConfigurationError(
            f"{function} needs a matrix such as ggn(problem) or SymmetricOperator.from_dense(tensor), got "
            f"{type(operator).__name__}. Choose the matrix first: cv.{function}(cv.ggn(problem))."
        )
