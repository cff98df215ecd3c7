"""The noun of the linear-algebra wing: a symmetric operator, with its algebra."""

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

from curvature.errors import ConfigurationError, InputError
from curvature.layout import Layout
from curvature.linalg import algebra
from curvature.linalg.block_matrix import BlockMatrix
from curvature.linalg.dense import symmetric_product, symmetrized
from curvature.linalg.facts import Facts
from curvature.linalg.routes import EntriesRoute, FactorRoute, ProductCost, Routes
from curvature.precision import full_precision
from curvature.records import Where

__all__ = ["SymmetricOperator", "identity", "require_operator"]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SymmetricOperator(BlockMatrix):
    r"""A real symmetric matrix $A \in \mathbb{R}^{D \times D}$, known by its products.

    Attributes
    ----------
    where
        Which matrix this is, and the coordinates it is written in.
    dim
        $D$.
    matmat
        $V \mapsto A V$ for ``V`` of shape ``(D, K)``: the primitive; a single product is one column.
    dtype, device
        Of the entries and of the vectors it multiplies.
    routes
        Cheaper ways to its entries or to a factor, with their counted cost.
    facts
        What its definition guarantees, and second computations that its products must agree with.
    layout
        Names of its coordinates; needed for blocks by layer, neuron or name.
    same_rank
        Another matrix that has the rank of this one, where that is known and this one's own is not.

    Notes
    -----
    ``A + B``, ``A - B``, ``c * A`` and ``-A`` are operators again, and so are :meth:`shifted`, :meth:`congruence` and
    :meth:`block`. They multiply by their parts and keep the routes that all parts have.

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
        matrix: Tensor,
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
            ``(D, D)`` of a floating-point type; copied.
        name
            What to call it.
        where
            The whole header instead of a name.
        layout
            Names of the coordinates.
        facts
            What is known of it; ``positive_semidefinite`` is the commonest, and has a keyword of its own.
        positive_semidefinite
            Whether its definition guarantees that.

        Returns
        -------
        SymmetricOperator
            With its entries as a route.

        Raises
        ------
        InputError
            If it is not a square matrix of real floating-point numbers.
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
        """Present as a SciPy ``LinearOperator`` of the same precision (ARPACK, LOBPCG, ...)."""
        numpy_dtype = torch.empty(0, dtype=self.dtype).numpy().dtype

        def matmat(block: Any) -> Any:
            columns = torch.from_numpy(np.array(block, dtype=numpy_dtype)).to(self.device)
            return (self @ columns).cpu().numpy()

        def matvec(vector: Any) -> Any:
            return matmat(vector.reshape(-1))

        return LinearOperator((self.dim, self.dim), matvec=matvec, rmatvec=matvec, matmat=matmat, dtype=numpy_dtype)

    def block(self, pattern: str) -> SymmetricOperator:
        """Principal block of the parameters whose names match a regular expression.

        Parameters
        ----------
        pattern
            Searched in the names of ``layout``, e.g. ``"0.weight"``.

        Returns
        -------
        SymmetricOperator
            Rows and columns of these coordinates.
        """
        if self.layout is None:
            raise ConfigurationError(f"{self.name} has no named coordinates, so it has no block {pattern!r}.")
        (index,) = self.layout.blocks(pattern).values() if pattern not in ("layer", "neuron") else (None,)
        if index is None:
            raise ConfigurationError(f"{pattern!r} means several blocks: use curvature.blocks(operator, {pattern!r}).")
        return self.principal(index, pattern)

    def principal(self, index: Tensor, name: str, *, entries: Callable[[], Tensor] | None = None) -> SymmetricOperator:
        """Restrict to some coordinates.

        Parameters
        ----------
        index
            Rows and columns, ``(d,)``.
        name
            What the block is called in records.
        entries
            Gives the entries of the whole matrix, where several blocks share them.

        Returns
        -------
        SymmetricOperator
            ``(d, d)``.
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

    def congruence(self, map_: Tensor, name: str = "congruence") -> SymmetricOperator:
        """``M^T A M`` for a dense ``M``; the chart of the result is called ``name``.

        Parameters
        ----------
        map_
            ``M``, ``(D, Q)``.
        name
            Of the new coordinates.

        Returns
        -------
        SymmetricOperator
            ``(Q, Q)``.
        """
        if map_.ndim != 2 or len(map_) != self.dim:
            raise ConfigurationError(f"{self.name} needs a map of shape ({self.dim}, Q), got {tuple(map_.shape)}.")
        map_ = map_.detach().to(self.device, self.dtype)
        return SymmetricOperator(
            where=replace(self.where, chart=name, gauge="-"),
            dim=map_.shape[1],
            matmat=lambda block: map_.T @ self.matmat(map_ @ block),
            dtype=self.dtype,
            device=self.device,
            routes=algebra.congruent_routes(self.routes, map_),
            facts=algebra.congruent_facts(self.facts, map_),
        )

    def shifted(self, shift: float) -> SymmetricOperator:
        """``A + shift * I``, in the same coordinates."""
        return self + shift * identity(self)

    def __add__(self, other: SymmetricOperator) -> SymmetricOperator:
        """Matrix sum; both must be written in the same coordinates."""
        if not isinstance(other, SymmetricOperator):
            return NotImplemented
        if (other.dim, other.dtype, other.device) != (self.dim, self.dtype, self.device):
            raise ConfigurationError(f"{self!r} and {other!r} do not fit together: a sum needs one size and precision.")
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
        """Multiple ``c A`` by a finite number."""
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


def identity(like: SymmetricOperator) -> SymmetricOperator:
    """Identity matrix in the coordinates of another matrix: ``A + 1e-3 * identity(A)``.

    Parameters
    ----------
    like
        Gives size, precision, coordinates and their names.

    Returns
    -------
    SymmetricOperator
        $I$.
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
    """Refuse what is not a matrix, and show the call that makes one.

    Parameters
    ----------
    operator
        The first argument of ``function``.
    function
        Its public name.

    Raises
    ------
    ConfigurationError
        If it is not a :class:`SymmetricOperator`.
    """
    if not isinstance(operator, SymmetricOperator):
        raise ConfigurationError(
            f"{function} needs a matrix such as ggn(problem) or SymmetricOperator.from_dense(tensor), got "
            f"{type(operator).__name__}. Choose the matrix first: cv.{function}(cv.ggn(problem))."
        )
