"""Routes to a matrix besides its products: its entries and its factor, each with its counted cost.

Costs are counted and not measured, so that a plan can be made before anything is computed and is the same on every
machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from curvature.linalg.dense import symmetrized
from curvature.linalg.memory import USABLE, ensure_memory, free_memory

__all__ = ["COLUMNS_AT_ONCE", "SLOWER", "EntriesRoute", "FactorRoute", "ProductCost", "Routes"]

COLUMNS_AT_ONCE = 256  # of the identity, when a dense matrix is built from products
PRODUCT_BYTES = 2**28  # of the columns that are multiplied at once
_ENTRIES_BYTES = 2**29  # that entries may take which nobody asked for
SLOWER = 3.0  # products with a few vectors, by a network or by entries in memory, than large matrix products: measured


@dataclass(frozen=True, eq=False)
class EntriesRoute:
    """A cheaper way to the entries than ``D`` products.

    Attributes
    ----------
    compute
        Gives ``(D, D)``.
    multiplications
        Multiply-adds of ``compute``; None where nobody counted.
    peak_bytes
        Memory that ``compute`` holds at its peak, the result included.
    kept
        The entries, where they have been computed and kept.
    """

    compute: Callable[[], Tensor] = field(repr=False)
    multiplications: float | None = None
    peak_bytes: float = 0.0
    kept: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class FactorRoute:
    r"""A factor $A = B B^T$, column by column.

    Attributes
    ----------
    blocks
        Yields blocks $B_k$ of shape ``(D, r_k)`` with $A = \sum_k B_k B_k^T$.
    num_columns
        $r = \sum_k r_k$.
    block_bytes
        Memory that is held while one block is made, the block included.
    gram
        Gives $B^T B$, ``(r, r)``, without $B$; and what its rounding is relative to where that is larger than its
        norm, else 0.
    """

    blocks: Callable[[], Iterator[Tensor]] = field(repr=False)
    num_columns: int
    block_bytes: float = 0.0
    gram: Callable[[], tuple[Tensor, float]] | None = field(default=None, repr=False)

    def gram_matrix(self, name: str, dim: int) -> tuple[Tensor, float]:
        """Gram matrix ``(r, r)``, and what its rounding is relative to where that is larger than its norm (else 0).

        Parameters
        ----------
        name, dim
            Of the matrix whose factor this is.

        Returns
        -------
        tuple of Tensor and float
            Exactly symmetric.
        """
        subject, size = f"the Gram matrix of {name} ({self.num_columns} x {self.num_columns})", self.num_columns
        if self.gram is not None:
            ensure_memory(2.0 * size**2 * 8, subject)
            matrix, scale = self.gram()
        else:
            ensure_memory((2.0 * size + 2 * dim) * size * 8, subject)
            columns = torch.cat(list(self.blocks()), dim=1)
            matrix, scale = columns.T @ columns, 0.0
        return symmetrized(matrix, f"the Gram matrix of {name}"), scale


@dataclass(frozen=True)
class ProductCost:
    """What products cost.

    Attributes
    ----------
    fixed_bytes, column_bytes
        Memory of a product: once, and for each column on top.
    multiplications
        Multiply-adds of a product with one vector; None where nobody counted.
    """

    fixed_bytes: float = 0.0
    column_bytes: float = 0.0
    multiplications: float | None = None

    @property
    def columns_at_once(self) -> int:
        """Columns that are multiplied at once, so that they take a quarter of a gigabyte at most."""
        return max(1, int(PRODUCT_BYTES // max(1.0, self.column_bytes)))

    def memory(self, num_columns: int) -> float:
        """Bound the memory of a product, the columns and their images not included.

        Parameters
        ----------
        num_columns
            How many vectors are multiplied.

        Returns
        -------
        float
            Bytes.
        """
        return self.fixed_bytes + min(num_columns * self.column_bytes, PRODUCT_BYTES)


@dataclass(frozen=True, eq=False)
class Routes:
    """All routes to one matrix; None where there is no such route.

    Attributes
    ----------
    entries, factor
        See there.
    products
        Cost of the operator's own products.
    numpy_blas
        Whether products and entries are matrix products by NumPy's BLAS: torch then stays on one thread.
    """

    entries: EntriesRoute | None = None
    factor: FactorRoute | None = None
    products: ProductCost = ProductCost()
    numpy_blas: bool = False

    def dense_bytes(self, dim: int, dtype: torch.dtype) -> float:
        """Bound the memory that all entries need at the peak of their computation.

        Parameters
        ----------
        dim, dtype
            Of the matrix.

        Returns
        -------
        float
            Bytes.
        """
        square = 3.0 * dim**2 * dtype.itemsize
        if self.entries is not None:
            return max(square, self.entries.peak_bytes)
        return square + self.products.memory(COLUMNS_AT_ONCE)

    def entries_pay(self, dim: int, dtype: torch.dtype, device: torch.device, num_products: int) -> bool:
        """Decide whether the entries, and products with these, take less time than the operator's own products.

        By counted operations, hence the same on every machine; never where the entries are large, or do not fit.

        Parameters
        ----------
        dim, dtype, device
            Of the matrix.
        num_products
            Products with single vectors that are needed.

        Returns
        -------
        bool
            Whether to compute and keep the entries first.
        """
        each = self.products.multiplications
        if self.entries is None or self.entries.kept is not None:
            return False
        if self.dense_bytes(dim, dtype) > min(_ENTRIES_BYTES, USABLE * free_memory(device)):
            return False
        if self.entries.multiplications is None or each is None:
            return False
        return self.entries.multiplications < SLOWER * num_products * (each - dim**2)
