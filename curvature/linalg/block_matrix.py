"""A symmetric matrix that is known by its products with blocks of vectors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.errors import ConfigurationError, NonFiniteError
from curvature.layout import Layout
from curvature.linalg.checks import Witness, same_form, self_checks
from curvature.linalg.dense import symmetric_product, symmetrized
from curvature.linalg.facts import Facts
from curvature.linalg.memory import ensure_memory
from curvature.linalg.routes import COLUMNS_AT_ONCE, EntriesRoute, ProductCost, Routes
from curvature.linalg.threads import one_pool
from curvature.precision import full_precision
from curvature.records import Check, Where

__all__ = ["BlockMatrix"]

_TWO_ROUTES = (
    "Either something in the model is random or keeps a state while gradients are taken, or two routes of curvature "
    "disagree, which is a bug; please report it."
)


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockMatrix:
    r"""A real symmetric matrix $A \in \mathbb{R}^{D \times D}$ that is known by its products with blocks of vectors.

    The base class of :class:`~curvature.linalg.operator.SymmetricOperator`, which documents the fields and adds the
    algebra: here are products, entries and self-checks.
    """

    where: Where
    dim: int
    matmat: Callable[[Tensor], Tensor] = field(repr=False)
    dtype: torch.dtype
    device: torch.device
    routes: Routes = field(default_factory=Routes, repr=False)
    facts: Facts = field(default_factory=Facts, repr=False)
    layout: Layout | None = field(default=None, repr=False)
    same_rank: BlockMatrix | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Name of the matrix."""
        return self.where.matrix

    @property
    def shape_text(self) -> str:
        """Name and size for messages: ``"ggn (610 x 610)"``."""
        return f"{self.name} ({self.dim} x {self.dim})"

    @cached_property
    def checks(self) -> tuple[Check, ...]:
        """Self-checks of the products, computed once; a failure is a ``SelfCheckError``. Costs a few products."""
        return self._checked(self.__matmul__, self.facts.witnesses)

    def checks_of(self, multiply: Callable[[Tensor], Tensor]) -> tuple[Check, ...]:
        """Run the self-checks on another implementation of the products, and compare it with this one.

        Parameters
        ----------
        multiply
            ``V -> A V`` for blocks ``(D, K)``.

        Returns
        -------
        tuple of Check
            The checks, all passed.

        Raises
        ------
        SelfCheckError
            If a check fails.
        """
        return self._checked(multiply, (self._product_witness(), *self.facts.witnesses))

    def _product_witness(self) -> Witness:
        return Witness("products with vectors", same_form(self.__matmul__), _TWO_ROUTES)

    @full_precision()
    def _checked(self, multiply: Callable[[Tensor], Tensor], witnesses: tuple[Witness, ...]) -> tuple[Check, ...]:
        cancelled = 0.0  # length of the mean that a covariance subtracts: its rounding stays behind
        if self.facts.centred and self.facts.gradient is not None:
            cancelled = float(torch.linalg.vector_norm(self.facts.gradient()))
        with self.one_pool():
            return self_checks(
                self.name,
                multiply,
                self.dim,
                torch.empty(0, dtype=self.dtype, device=self.device),
                positive_semidefinite=self.facts.positive_semidefinite,
                cancelled=cancelled,
                scale=0.0 if self.facts.scale is None else self.facts.scale(),
                witnesses=witnesses,
            )

    def __repr__(self) -> str:
        precision = str(self.dtype).removeprefix("torch.")
        return f"{type(self).__name__}({self.where}, {self.dim} x {self.dim}, {precision}, {self.device})"

    @full_precision()
    def __matmul__(self, block: Float[Tensor, "dim *columns"]) -> Float[Tensor, "dim *columns"]:
        """Multiply a vector ``(D,)`` or a block of columns ``(D, K)``."""
        if not isinstance(block, Tensor):
            raise ConfigurationError(
                f"{self.name} multiplies torch tensors, got {type(block).__name__}. Convert it with torch.as_tensor."
            )
        if block.ndim not in (1, 2) or block.shape[0] != self.dim:
            raise ConfigurationError(
                f"{self.name} is {self.dim} x {self.dim}: it multiplies shape ({self.dim},) or ({self.dim}, K), "
                f"got {tuple(block.shape)}."
            )
        if block.dtype != self.dtype or block.device != self.device:
            raise ConfigurationError(
                f"{self.name} is {self.dtype} on {self.device}, the vector is {block.dtype} on {block.device}: "
                "convert the vector."
            )
        columns = block[:, None] if block.ndim == 1 else block
        if not columns.shape[1]:
            return torch.zeros_like(columns)
        with self.one_pool():
            parts = [self.matmat(part) for part in columns.split(self.routes.products.columns_at_once, dim=1)]
            product = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            if not torch.isfinite(product).all():
                raise NonFiniteError(f"a product with {self.name} is NaN or infinite; {self.diagnosis(columns)}")
        return product[:, 0] if block.ndim == 1 else product

    def diagnosis(self, block: Float[Tensor, "dim columns"] | None = None) -> str:
        """Explain where NaN or infinity comes from.

        Parameters
        ----------
        block
            Columns whose product is not finite, ``(D, K)``; None: a vector of ones.

        Returns
        -------
        str
            The second half of an error message.
        """
        if self.facts.diagnose is None:
            return "look at the model and the data at this point."
        if block is None:
            block = torch.ones(self.dim, 1, dtype=self.dtype, device=self.device)
        return self.facts.diagnose(block)

    def one_pool(self) -> AbstractContextManager[None]:
        """Keep torch on one thread where products use NumPy's BLAS; wrap a whole loop of products in it."""
        return one_pool(self.routes.numpy_blas)

    def norm_estimate(self) -> float:
        """Estimate the order of magnitude of the largest absolute eigenvalue.

        Returns
        -------
        float
            A lower bound, by five steps of the power method from a fixed vector.
        """
        vector = torch.ones(self.dim, dtype=self.dtype, device=self.device)
        vector[::2] = -0.5
        length = torch.linalg.vector_norm(vector)
        for _ in range(5):
            vector = self @ (vector / length)
            length = torch.linalg.vector_norm(vector)
            if length == 0:
                return 0.0
        return float(length)

    def rounding_scale(self) -> float:
        """Estimate the scale of rounding.

        Returns
        -------
        float
            That of the terms for a sum or a difference, otherwise about the norm.
        """
        return self.norm_estimate() if self.facts.scale is None else self.facts.scale()

    def error(self) -> float:
        """Estimate the norm of the error of the entries beyond rounding.

        Returns
        -------
        float
            Zero, unless the entries are finite differences.
        """
        return 0.0 if self.facts.error is None else self.facts.error()

    @property
    def dense_bytes(self) -> float:
        """Upper bound of the peak memory of :meth:`dense`, in bytes."""
        return self.routes.dense_bytes(self.dim, self.dtype)

    @full_precision()
    def dense(self) -> Float[Tensor, "dim dim"]:
        """Compute all entries, by the cheapest route that is known, otherwise by ``D`` products.

        Returns
        -------
        Tensor
            ``(D, D)``, exactly symmetric.

        Raises
        ------
        ResourceError
            If the matrix does not fit in memory; raised before anything is allocated.
        NonFiniteError
            If an entry is NaN or infinite.
        SelfCheckError
            If the entries are not symmetric up to rounding: a derivative is wrong. This is never averaged away.
        """
        ensure_memory(self.dense_bytes, f"the dense {self.shape_text}", self.device)
        if self.routes.entries is not None:
            with self.one_pool():
                try:
                    return symmetrized(self.routes.entries.compute(), self.name, self.routes.entries.terms)
                except NonFiniteError as error:
                    raise NonFiniteError(f"{self.name} has NaN or infinite entries; {self.diagnosis()}") from error
        columns = []
        for start in range(0, self.dim, COLUMNS_AT_ONCE):
            width = min(COLUMNS_AT_ONCE, self.dim - start)
            identity = torch.zeros(self.dim, width, dtype=self.dtype, device=self.device)
            identity[start : start + width] = torch.eye(width, dtype=self.dtype, device=self.device)
            columns.append(self @ identity)
        return symmetrized(torch.cat(columns, dim=1), self.name)

    @property
    def kept(self) -> Float[Tensor, "dim dim"] | None:
        """The entries, if :meth:`materialized` has computed and stored them; otherwise None."""
        return None if self.routes.entries is None else self.routes.entries.kept

    def entries(self) -> Float[Tensor, "dim dim"]:
        """Return all entries, which must not be changed: those that are stored, otherwise :meth:`dense`.

        Returns
        -------
        Tensor
            ``(D, D)``.
        """
        return self.dense() if self.kept is None else self.kept

    @full_precision()
    def materialized(self) -> Self:
        """Compute the entries now and store them.

        Returns
        -------
        Self
            The same matrix, which multiplies by its entries. Many charts, blocks or products then cost little.
        """
        matrix = self.dense()
        witnesses = self.facts.witnesses
        if self.routes.entries is not None:  # then products are an independent computation
            witnesses = (self._product_witness(), *witnesses)
        return replace(
            self,
            matmat=lambda block: symmetric_product(matrix, block),
            routes=replace(
                self.routes,
                entries=EntriesRoute(lambda: matrix.clone(), 0.0, kept=matrix),
                products=ProductCost(),
                numpy_blas=matrix.device.type == "cpu",
            ),
            facts=replace(self.facts, witnesses=witnesses),
        )

    def entries_pay(self, num_products: int) -> bool:
        """Decide whether to compute the entries first, by counted work.

        Parameters
        ----------
        num_products
            Products with single vectors that are needed.

        Returns
        -------
        bool
            True if the entries and products with them take less work than the products alone.
        """
        return self.routes.entries_pay(self.dim, self.dtype, self.device, num_products)

    def gram(self) -> Float[Tensor, "width width"]:
        r"""Compute the Gram matrix $B^T B$ of the factor $A = B B^T$, which has the non-zero eigenvalues of $A$.

        Returns
        -------
        Tensor
            ``(r, r)``, exactly symmetric.

        Raises
        ------
        ConfigurationError
            If the matrix has no factor.

        Notes
        -----
        Eigenvalues below about $u \|A\|$ are lost to rounding, as in $A$ itself; the factor resolves those down to
        $u^2 \|A\|$. Computed without the factor if there is a closed form, otherwise from its blocks.
        """
        return self.scaled_gram()[0]

    @full_precision()
    def scaled_gram(self) -> tuple[Float[Tensor, "width width"], float]:
        """Compute the Gram matrix and the scale of its rounding.

        Returns
        -------
        tuple of Tensor and float
            The matrix of :meth:`gram`, and the number that its rounding is relative to if that is larger than its norm,
            otherwise 0.

        Raises
        ------
        ConfigurationError
            If the matrix has no factor.
        """
        if self.routes.factor is None:
            raise ConfigurationError(f"{self.name} has no factor, so it has no Gram matrix. Use the dense matrix.")
        with self.one_pool():
            return self.routes.factor.gram_matrix(self.name, self.dim)
