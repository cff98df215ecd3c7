"""Symmetric matrices known by their block products, their factor or their entries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import psutil
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from curvature.errors import ConfigurationError, InputError, NonFiniteError, ResourceError, SelfCheckError
from curvature.layout import Layout
from curvature.linalg.checks import Witness, same_form, self_checks
from curvature.precision import full_precision
from curvature.records import Check

__all__ = [
    "SymmetricOperator",
    "Work",
    "blocks",
    "empty_square",
    "ensure_memory",
    "free_memory",
    "memory_words",
    "mirrored",
    "symmetrized",
]

_COLUMNS_AT_ONCE = 256  # of the identity, when a dense matrix is built from products
USABLE = 0.9  # of the memory that is free
_PRODUCT_BYTES = 2**28  # of the columns that are multiplied at once
_ENTRIES_BYTES = 2**29  # that entries may take which nobody asked for
SLOWER = 3.0  # products with a few vectors, by a network or by entries in memory, than large matrix products: measured
_TWO_ROUTES = (
    "Either something in the model is random or keeps a state while gradients are taken, or two routes of this package "
    "disagree, which is a defect: please report it."
)
_TILE = 512  # rows and columns of a tile that fits into cache


@dataclass(frozen=True)
class Work:
    """What a matrix costs, counted and not measured, so that a plan can be made before anything is computed.

    Attributes
    ----------
    multiplications
        Multiply-adds of ``dense_form``; None where nobody counted, or where the entries are ``D`` products.
    entries_bytes
        Memory that ``dense_form`` holds at its peak, the result included.
    chunk_bytes
        Memory that is held while one block of the factor is made, the block included.
    product_bytes, column_bytes
        Memory of a product: once, and for each column on top.
    product_multiplications
        Multiply-adds of a product with one vector; None where nobody counted.
    null_directions
        How many null directions will probably be collected and verified.
    """

    multiplications: float | None = None
    entries_bytes: float = 0.0
    chunk_bytes: float = 0.0
    product_bytes: float = 0.0
    column_bytes: float = 0.0
    product_multiplications: float | None = None
    null_directions: int = 0


@dataclass(frozen=True, eq=False)
class SymmetricOperator:
    r"""A real symmetric matrix $A \in \mathbb{R}^{D \times D}$, known by its products.

    Attributes
    ----------
    name
        What matrix this is: ``"hessian"``, ``"ggn"``, ...
    dim
        $D$.
    matmat
        $V \mapsto A V$ for ``V`` of shape ``(D, K)``: the primitive; a single product is one column.
    dtype, device
        Of the entries and of the vectors it multiplies.
    positive_semidefinite
        True where the definition guarantees it.
    chart, gauge
        The coordinates it is written in. A condition number without them is meaningless.
    layout
        Names of its coordinates; needed for blocks by layer, neuron or name.
    num_examples
        Number of examples behind the mean.
    rank_bound
        An upper bound of the rank that holds by construction, e.g. ``N (C - 1)``.
    gradient
        Gradient of the loss in the same coordinates, ``(D,)``, computed when asked.
    dense_form
        A cheaper route to the entries than ``D`` products.
    factor_blocks
        Yields blocks $B_k$ of shape ``(D, r_k)`` with $A = \sum_k B_k B_k^T$.
    factor_columns
        $\sum_k r_k$.
    gram_form
        Gives $B^T B$, whose non-zero eigenvalues are those of $A$, without $B$; and what its rounding is relative to
        where that is larger than its norm, else 0.
    structural_rank
        ``operator -> (rank, what was counted)``: rank by formula, verified by products with the operator.
    same_rank
        The matrix on the weights, where this one is that matrix in a chart that maps onto the weights.
    to_chart
        ``(operator, chart, effective) -> operator``: how this matrix moves to other coordinates. Matrices
        of a problem have it; a matrix from anywhere else does not.
    details
        What else a record should say (number of sampled labels, damping, ...).
    kept
        The entries, where :meth:`materialized` has computed them.
    numpy_blas
        Whether products and entries are matrix products by NumPy's BLAS; see :meth:`one_pool`.
    work
        Counted operations and memory of the routes above.
    centred
        Whether the columns of the factor had the gradient, their mean, taken out: its cancellation amplifies rounding.
    witnesses
        Other ways to ``V^T A V`` that the products must agree with; see :mod:`curvature.linalg.checks`.
    blame
        ``block -> words``: where a product that is NaN or infinite comes from.

    Examples
    --------
    >>> import torch
    >>> A = SymmetricOperator.from_dense(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    >>> (A @ torch.tensor([1.0, -1.0])).tolist()
    [1.0, -1.0]
    >>> A
    SymmetricOperator(matrix, 2 x 2, chart='given', gauge='-')
    """

    name: str
    dim: int
    matmat: Callable[[Tensor], Tensor] = field(repr=False)
    dtype: torch.dtype
    device: torch.device
    positive_semidefinite: bool = False
    chart: str = "given"
    gauge: str = "-"
    layout: Layout | None = field(default=None, repr=False)
    num_examples: int | None = None
    rank_bound: int | None = None
    gradient: Callable[[], Tensor] | None = field(default=None, repr=False)
    dense_form: Callable[[], Tensor] | None = field(default=None, repr=False)
    factor_blocks: Callable[[], Iterator[Tensor]] | None = field(default=None, repr=False)
    factor_columns: int | None = None
    gram_form: Callable[[], tuple[Tensor, float]] | None = field(default=None, repr=False)
    structural_rank: Callable[[SymmetricOperator], tuple[int, str]] | None = field(default=None, repr=False)
    same_rank: SymmetricOperator | None = field(default=None, repr=False)
    to_chart: Callable[..., SymmetricOperator] | None = field(default=None, repr=False)
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)
    kept: Tensor | None = field(default=None, repr=False)
    numpy_blas: bool = field(default=False, repr=False)
    work: Work = field(default=Work(), repr=False)
    centred: bool = field(default=False, repr=False)
    witnesses: tuple[Witness, ...] = field(default=(), repr=False)
    blame: Callable[[Tensor], str] | None = field(default=None, repr=False)

    @cached_property
    def checks(self) -> tuple[Check, ...]:
        """Self-checks that the products pass, made once; the first that fails is an error. A few products."""
        return self._checked(self.__matmul__, self.witnesses)

    def checks_of(self, multiply: Callable[[Tensor], Tensor]) -> tuple[Check, ...]:
        """Self-checks of what claims to be this matrix, ``V -> A V`` for blocks; the products are one more witness."""
        return self._checked(multiply, (self._by_products(), *self.witnesses))

    def _by_products(self) -> Witness:
        return Witness("products with vectors", same_form(self.__matmul__), _TWO_ROUTES)

    @full_precision()
    def _checked(self, multiply: Callable[[Tensor], Tensor], witnesses: tuple[Witness, ...]) -> tuple[Check, ...]:
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        with self.one_pool():
            return self_checks(
                self.name,
                multiply,
                self.dim,
                like,
                positive_semidefinite=self.positive_semidefinite,
                cancelled=float(torch.linalg.vector_norm(self.gradient())) if self.centred else 0.0,
                witnesses=witnesses,
            )

    @property
    def about(self) -> dict[str, Any]:
        """What every record says of the matrix besides its name, coordinates and dimension."""
        return {
            "dtype": str(self.dtype).removeprefix("torch."),
            "block": str(self.details.get("block", "all")),
            "effective": bool(self.details.get("effective", False)),
            "num_examples": self.num_examples,
            "num_samples": self.details.get("num_samples"),
        }

    def __repr__(self) -> str:
        return f"SymmetricOperator({self.name}, {self.dim} x {self.dim}, chart={self.chart!r}, gauge={self.gauge!r})"

    @classmethod
    @full_precision()
    def from_dense(cls, matrix: Tensor, *, name: str = "matrix", **about: Any) -> SymmetricOperator:
        """Wrap a symmetric ``(D, D)`` tensor; asymmetry beyond rounding is an error.

        Further keywords are the attributes above (``chart``, ``layout``, ``positive_semidefinite``, ...).
        """
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.shape[0]:
            raise InputError(f"{name} must be a square matrix, got shape {tuple(matrix.shape)}.")
        if not matrix.dtype.is_floating_point:
            raise InputError(f"{name} must hold real floating-point numbers, got {matrix.dtype}.")
        matrix = symmetrized(matrix.detach().clone(), name)
        return cls(
            name=name,
            dim=len(matrix),
            matmat=lambda block: _by_entries(matrix, block),
            dtype=matrix.dtype,
            device=matrix.device,
            dense_form=lambda: matrix.clone(),
            numpy_blas=matrix.device.type == "cpu",
            work=Work(multiplications=0.0),
            **about,
        )

    @full_precision()
    def __matmul__(self, block: Tensor) -> Tensor:
        """Multiply a vector ``(D,)`` or a block of columns ``(D, K)``."""
        if not isinstance(block, Tensor):
            raise ConfigurationError(f"{self.name} multiplies torch tensors, got {type(block).__name__}.")
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
        at_once = max(1, int(_PRODUCT_BYTES // max(1.0, self.work.column_bytes)))
        with self.one_pool():
            parts = [self.matmat(part) for part in columns.split(at_once, dim=1)]
            product = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            if not torch.isfinite(product).all():
                raise NonFiniteError(f"a product with {self.name} is NaN or infinite; {self.culprit(columns)}")
        return product[:, 0] if block.ndim == 1 else product

    def culprit(self, block: Tensor | None = None) -> str:
        """Say where NaN or infinity comes from that a product with ``block`` has, or else one with ones."""
        if self.blame is None:
            return "look at the model and the data at this point."
        return self.blame(torch.ones(self.dim, 1, dtype=self.dtype, device=self.device) if block is None else block)

    @contextmanager
    def one_pool(self) -> Iterator[None]:
        """Keep torch on one thread while NumPy's BLAS uses all, where products go through it; a loop belongs inside.

        After a parallel region torch's threads spin for milliseconds on the cores that the BLAS waits for: measured on
        two cores, 26 ms for a product that takes 0.9 ms so. The number of threads is restored, also after an exception.
        """
        threads = torch.get_num_threads()
        if not self.numpy_blas or threads == 1:
            yield
            return
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    @property
    def dense_bytes(self) -> float:
        """Upper bound of the memory that :meth:`dense` holds at its peak."""
        square = 3.0 * self.dim**2 * self.dtype.itemsize
        if self.dense_form is not None:
            return max(square, self.work.entries_bytes)
        return square + self.product_memory(_COLUMNS_AT_ONCE)

    def product_memory(self, num_columns: int) -> float:
        """Memory of a product with ``num_columns`` columns, the columns and their images not included."""
        return self.work.product_bytes + min(num_columns * self.work.column_bytes, _PRODUCT_BYTES)

    @full_precision()
    def dense(self) -> Tensor:
        """All entries, ``(D, D)``, exactly symmetric.

        Built by the cheapest route the operator knows, else by ``D`` products. Asymmetry beyond
        rounding means wrong derivatives, and is an error rather than averaged away.
        """
        ensure_memory(self.dense_bytes, f"the dense {self.name} ({self.dim} x {self.dim})", self.device)
        if self.dense_form is not None:
            with self.one_pool():
                try:
                    return symmetrized(self.dense_form(), self.name)
                except NonFiniteError as error:
                    raise NonFiniteError(f"{self.name} has NaN or infinite entries; {self.culprit()}") from error
        columns = []
        for start in range(0, self.dim, _COLUMNS_AT_ONCE):
            width = min(_COLUMNS_AT_ONCE, self.dim - start)
            identity = torch.zeros(self.dim, width, dtype=self.dtype, device=self.device)
            identity[start : start + width] = torch.eye(width, dtype=self.dtype, device=self.device)
            columns.append(self @ identity)
        return symmetrized(torch.cat(columns, dim=1), self.name)

    @full_precision()
    def materialized(self) -> SymmetricOperator:
        """The same matrix with its entries computed now and kept: many charts, blocks or products follow cheaply."""
        matrix = self.dense()
        work = Work(0.0, chunk_bytes=self.work.chunk_bytes, null_directions=self.work.null_directions)
        return replace(
            self,
            matmat=lambda block: _by_entries(matrix, block),
            dense_form=lambda: matrix.clone(),
            kept=matrix,
            numpy_blas=matrix.device.type == "cpu",
            work=work,
            witnesses=self.witnesses if self.dense_form is None else (self._by_products(), *self.witnesses),
        )

    def entries_pay(self, num_products: int) -> bool:
        """Whether so many products with blocks of vectors take longer than the entries and products with these.

        By counted operations, hence the same on every machine; never where the entries are large, or do not fit.
        """
        work = self.work
        if self.kept is not None or self.dense_form is None:
            return False
        if self.dense_bytes > min(_ENTRIES_BYTES, USABLE * free_memory(self.device)):
            return False
        if work.multiplications is None or work.product_multiplications is None:
            return False
        saved = work.product_multiplications - self.dim**2
        return work.multiplications < SLOWER * num_products * saved

    def entries(self) -> Tensor:
        """All entries, for reading only: what :meth:`materialized` kept, else :meth:`dense`."""
        return self.dense() if self.kept is None else self.kept

    def gram(self) -> Tensor:
        r"""Gram matrix $B^T B$ of the factor $A = B B^T$, ``(r, r)``: the eigenvalues of $A$ but for zeros.

        Eigenvalues below about $u \|A\|$ are rounding, as in $A$ itself; the factor resolves those down to $u^2 \|A\|$.
        Without the factor where the matrix knows how (``gram_form``), else from its blocks.
        """
        return self._gram()[0]

    @full_precision()
    def _gram(self) -> tuple[Tensor, float]:
        """Gram matrix, and what its rounding is relative to where that is larger than its norm."""
        if self.factor_blocks is None:
            raise ConfigurationError(f"{self.name} has no factor, so it has no Gram matrix; use the dense matrix.")
        size = self.factor_columns
        what = f"the Gram matrix of {self.name} ({size} x {size})"
        if self.gram_form is not None:
            ensure_memory(2 * size**2 * self.dtype.itemsize, what)
            with self.one_pool():
                matrix, scale = self.gram_form()
        else:
            ensure_memory((2 * size + 2 * self.dim) * size * self.dtype.itemsize, what)
            columns = torch.cat(list(self.factor_blocks()), dim=1)
            matrix, scale = columns.T @ columns, 0.0
        return symmetrized(matrix, f"the Gram matrix of {self.name}"), scale

    def to_scipy(self) -> LinearOperator:
        """Present as a SciPy ``LinearOperator`` of the same precision (ARPACK, LOBPCG, ...)."""
        numpy_dtype = torch.empty(0, dtype=self.dtype).numpy().dtype

        def matmat(block: Any) -> Any:
            columns = torch.from_numpy(np.array(block, dtype=numpy_dtype)).to(self.device)
            return (self @ columns).cpu().numpy()

        def matvec(vector: Any) -> Any:
            return matmat(vector.reshape(-1))

        return LinearOperator((self.dim, self.dim), matvec=matvec, rmatvec=matvec, matmat=matmat, dtype=numpy_dtype)

    def principal(self, indices: Tensor, name: str) -> SymmetricOperator:
        """Restrict to some coordinates: rows and columns ``indices``, called ``name`` in records."""
        return self._principal(indices, name, self.dense_form)

    def _principal(self, indices: Tensor, name: str, dense_form: Callable[[], Tensor] | None) -> SymmetricOperator:
        where = indices.to(self.device)

        def pad(block: Tensor) -> Tensor:
            padded = torch.zeros(self.dim, block.shape[1], dtype=self.dtype, device=self.device)
            padded[where] = block
            return padded

        def matmat(block: Tensor) -> Tensor:
            return self.matmat(pad(block))[where]

        work = replace(self.work, column_bytes=self.work.column_bytes + 2 * self.dim * self.dtype.itemsize)
        if dense_form is None:
            work = replace(work, multiplications=None)
        else:
            work = replace(work, entries_bytes=self.dense_bytes)
        return replace(
            self,
            dim=len(where),
            matmat=matmat,
            layout=None,
            rank_bound=None if self.rank_bound is None else min(self.rank_bound, len(where)),
            gradient=None if self.gradient is None else lambda: self.gradient()[where],
            dense_form=None if dense_form is None else lambda: dense_form()[where][:, where],
            factor_blocks=None
            if self.factor_blocks is None
            else lambda: (block[where] for block in self.factor_blocks()),
            gram_form=None,
            structural_rank=None,
            same_rank=None,
            to_chart=None,
            details={**self.details, "block": name},
            witnesses=tuple(witness.through(pad) for witness in self.witnesses),
            blame=None if self.blame is None else lambda block: self.blame(pad(block)),
            kept=None,
            work=work,
        )


def blocks(operator: SymmetricOperator, by: str) -> dict[str, SymmetricOperator]:
    """Principal blocks of a matrix: ``by="all"``, ``"layer"``, ``"neuron"`` or a regular expression.

    The entries of the whole matrix are computed once, when the first block needs them, and shared; where they do not
    fit in memory, each block is computed from its own products. A neuron is one output row of a weight tensor together
    with its bias.
    """
    if operator.layout is None:
        raise ConfigurationError(f"{operator.name} has no named coordinates, so it has no blocks by {by!r}.")
    if by == "all":
        return {"all": operator}
    fits = operator.dense_bytes <= USABLE * free_memory(operator.device)
    shared = cache(operator.entries) if fits else None
    return {name: operator._principal(index, name, shared) for name, index in operator.layout.blocks(by).items()}


def symmetrized(matrix: Tensor, name: str) -> Tensor:
    """Make a nearly symmetric matrix exactly symmetric, in place; refuse asymmetry beyond rounding, and NaN.

    The tolerance is relative to the largest entry and grows with the square root of the dimension, as rounding in
    sums of random signs does. One pass in tiles: the transposed tile is read while it is in cache.
    """
    scale = matrix.new_zeros(())
    asymmetry = matrix.new_zeros(())
    for rows in _tiles(len(matrix)):
        for cols in _tiles(len(matrix), rows.start):
            upper, lower = matrix[rows, cols], matrix[cols, rows].T
            scale = torch.maximum(scale, torch.stack(upper.aminmax()).abs().max())  # NaN propagates
            if not torch.equal(upper, lower):
                scale = torch.maximum(scale, lower.abs().max())
                asymmetry = torch.maximum(asymmetry, (upper - lower).abs_().max())
                mean = (upper + lower).mul_(0.5)
                matrix[rows, cols], matrix[cols, rows] = mean, mean.T
    if not torch.isfinite(scale):
        raise NonFiniteError(f"{name} has NaN or infinite entries; look at the model and the data at this point.")
    allowed = 100 * torch.finfo(matrix.dtype).eps * len(matrix) ** 0.5 * scale
    if asymmetry > allowed:
        raise SelfCheckError(
            f"{name} is not symmetric: entries differ by {asymmetry / scale:.1e} of the largest, rounding allows "
            f"{allowed / scale:.1e}. A layer has a wrong or a random second derivative; freeze or replace it."
        )
    return matrix


def _by_entries(matrix: Tensor, block: Tensor) -> Tensor:
    """Multiply a symmetric matrix; on the CPU as rows times matrix by NumPy's BLAS, measured a third faster."""
    if matrix.device.type != "cpu" or matrix.dtype.itemsize < 4 or block.requires_grad:  # not for its BLAS
        return matrix @ block
    return torch.from_numpy(block.T.contiguous().numpy() @ matrix.numpy()).T


def empty_square(dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialized ``(dim, dim)``; on the CPU in NumPy's huge pages, first touched in a tenth of the time."""
    if device.type != "cpu":
        return torch.empty(dim, dim, dtype=dtype, device=device)
    return torch.from_numpy(np.empty((dim, dim), dtype=torch.empty(0, dtype=dtype).numpy().dtype))


def mirrored(matrix: Tensor) -> Tensor:
    """Copy the upper triangle into the lower one, in place."""
    for rows in _tiles(len(matrix)):
        matrix[rows.stop :, rows] = matrix[rows, rows.stop :].T
        tile = matrix[rows, rows]
        tile.copy_(tile.triu() + tile.triu(1).T)
    return matrix


def _tiles(size: int, start: int = 0) -> Iterator[slice]:
    return (slice(k, min(k + _TILE, size)) for k in range(start, size, _TILE))


def free_memory(device: torch.device) -> float:
    """Bytes that are free now on the device."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(psutil.virtual_memory().available)


def memory_words(num_bytes: float) -> str:
    """Write an amount of memory with two digits.

    >>> memory_words(3e6), memory_words(5e8), memory_words(9.5e11)
    ('3 MB', '0.47 GB', '885 GB')
    """
    amount = num_bytes / 2**30
    if amount < 0.1:
        return f"{max(1, 1024 * amount):.0f} MB"
    return f"{amount:.2g} GB" if amount < 10 else f"{amount:.0f} GB"


def ensure_memory(num_bytes: float, what: str, device: torch.device | None = None) -> None:
    """Refuse, before allocating, what does not fit into the memory that is free now."""
    available = free_memory(device or torch.device("cpu"))
    if num_bytes > USABLE * available:
        raise ResourceError(
            f"{what} needs about {memory_words(num_bytes)}, {memory_words(available)} are free. "
            "Use a smaller model, a block (block='layer'), or products instead of the dense matrix."
        )
