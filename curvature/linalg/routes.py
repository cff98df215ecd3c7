"""Routes to a matrix besides its products: its entries and its factor, each with its cost.

Costs are counted and not measured, so a plan can be made before anything is computed, and is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.linalg.dense import symmetrized
from curvature.linalg.memory import USABLE, ensure_memory, free_memory

__all__ = ["COLUMNS_AT_ONCE", "SLOWER", "EntriesRoute", "FactorRoute", "ProductCost", "Routes"]

COLUMNS_AT_ONCE = 256  # of the identity, when entries are computed by products
PRODUCT_BYTES = 2**28  # limit for the columns that are multiplied at once
_ENTRIES_BYTES = 2**29  # limit for entries that are computed only to save time
SLOWER = (
    3.0  # measured: a multiply-add in a product with few vectors takes 3 times as long as in a large matrix product
)


@dataclass(frozen=True, eq=False)
class EntriesRoute:
    """A computation of the entries that is cheaper than ``D`` products.

    Attributes
    ----------
    compute
        Returns the entries, ``(D, D)``.
    multiplications
        Multiply-adds of ``compute``; None if they are not counted.
    peak_bytes
        Peak memory of ``compute``, with the result.
    kept
        The entries, if they have been computed and stored.
    seconds
        Estimates the time of what ``multiplications`` does not count; None if it counts everything.
    terms
        Returns the size of the terms of the sums that ``compute`` adds up, where they may cancel: the entries are
        symmetric up to rounding of it. None where that is the largest entry.
    """

    compute: Callable[[], Tensor] = field(repr=False)
    multiplications: float | None = None
    peak_bytes: float = 0.0
    kept: Float[Tensor, "dim dim"] | None = field(default=None, repr=False)
    seconds: Callable[[], float] | None = field(default=None, repr=False)
    terms: Callable[[], float] | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class FactorRoute:
    r"""A factor $B$ with $A = B B^T$, in blocks of columns.

    Attributes
    ----------
    blocks
        Yields blocks $B_k$ of shape ``(D, r_k)`` with $A = \sum_k B_k B_k^T$.
    num_columns
        Number of columns of $B$, $r = \sum_k r_k$.
    block_bytes
        Peak memory while one block is computed, with the block.
    gram
        Returns $B^T B$, ``(r, r)``, without computing $B$, and the scale of its rounding if that is larger than its
        norm, otherwise 0. None if there is no such computation.
    seconds
        Estimates the time to compute all blocks where their work is not counted, as by autograd; otherwise None.
    """

    blocks: Callable[[], Iterator[Tensor]] = field(repr=False)
    num_columns: int
    block_bytes: float = 0.0
    gram: Callable[[], tuple[Tensor, float]] | None = field(default=None, repr=False)
    seconds: Callable[[], float] | None = field(default=None, repr=False)

    def gram_matrix(self, name: str, dim: int) -> tuple[Float[Tensor, "width width"], float]:
        """Compute the Gram matrix of the factor, and the scale of its rounding.

        Parameters
        ----------
        name, dim
            Name, for messages, and dimension of the matrix.

        Returns
        -------
        tuple of Tensor and float
            The Gram matrix, ``(r, r)``, exactly symmetric; and the scale of its rounding if that is larger than its
            norm, otherwise 0.

        Raises
        ------
        ResourceError
            If it does not fit in memory.
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
    """Memory and work of a product.

    Attributes
    ----------
    fixed_bytes, column_bytes
        Memory of a product: a constant, and an amount for each column.
    multiplications
        Multiply-adds of a product with one vector; None if they are not counted.
    passes
        How often a product with any number of vectors reads data that are not in memory; 0 if it reads none.
    """

    fixed_bytes: float = 0.0
    column_bytes: float = 0.0
    multiplications: float | None = None
    passes: int = 0

    @property
    def columns_at_once(self) -> int:
        """Number of columns that are multiplied at once: they take at most a quarter of a gigabyte."""
        return max(1, int(PRODUCT_BYTES // max(1.0, self.column_bytes)))

    def memory(self, num_columns: int) -> float:
        """Bound the memory of a product, without the columns and their images.

        Parameters
        ----------
        num_columns
            Number of vectors that are multiplied.

        Returns
        -------
        float
            Upper bound in bytes.
        """
        return self.fixed_bytes + min(num_columns * self.column_bytes, PRODUCT_BYTES)


@dataclass(frozen=True, eq=False)
class Routes:
    """All routes to a matrix; a route that it does not have is None.

    Attributes
    ----------
    entries, factor
        See :class:`EntriesRoute` and :class:`FactorRoute`.
    products
        Cost of products with vectors.
    numpy_blas
        Whether products and entries use NumPy's BLAS; torch is then kept on one thread.
    """

    entries: EntriesRoute | None = None
    factor: FactorRoute | None = None
    products: ProductCost = ProductCost()
    numpy_blas: bool = False

    def dense_bytes(self, dim: int, dtype: torch.dtype) -> float:
        """Bound the peak memory of the computation of all entries.

        Parameters
        ----------
        dim, dtype
            Dimension and precision of the matrix.

        Returns
        -------
        float
            Upper bound in bytes.
        """
        square = 3.0 * dim**2 * dtype.itemsize
        if self.entries is not None:
            return max(square, self.entries.peak_bytes)
        return square + self.products.memory(COLUMNS_AT_ONCE)

    def entries_pay(self, dim: int, dtype: torch.dtype, device: torch.device, num_products: int) -> bool:
        """Decide whether to compute the entries first and multiply with them.

        Parameters
        ----------
        dim, dtype, device
            Dimension, precision and device of the matrix.
        num_products
            Products with single vectors that are needed.

        Returns
        -------
        bool
            True if the entries and the products with them take less work than the other products. The work is
            counted, so the answer is the same on every machine. Never true for entries of more than half a gigabyte,
            or more than fit in memory.
        """
        each = self.products.multiplications
        if self.entries is None or self.entries.kept is not None:
            return False
        if self.dense_bytes(dim, dtype) > min(_ENTRIES_BYTES, USABLE * free_memory(device)):
            return False
        if self.entries.multiplications is None or each is None:
            return False
        return self.entries.multiplications < SLOWER * num_products * (each - dim**2)
