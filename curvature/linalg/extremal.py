"""Largest and smallest eigenvalues by thick-restart block Lanczos, with eigenvectors and error bounds."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from curvature.errors import ConfigurationError
from curvature.linalg.completeness import new_start, verified
from curvature.linalg.memory import ensure_memory
from curvature.linalg.norms import vector_norms
from curvature.linalg.operator import SymmetricOperator, require_operator
from curvature.linalg.random import generator_of
from curvature.linalg.work import default_basis
from curvature.precision import full_precision
from curvature.records import Eigenvectors, ExtremalEigenvalues
from curvature.removed import removed

__all__ = ["KrylovSpace", "extremal_eigenvalues"]


@dataclass(frozen=True)
class KrylovSpace:
    """How a Krylov space grows, and where it ends.

    Attributes
    ----------
    block_size
        Vectors multiplied at once. One finds each multiple eigenvalue once; a block of ``b`` finds up to ``b`` copies.
        One vector needs the fewest products.
    max_basis
        Basis vectors kept before a restart keeps only the best Ritz vectors. None: as many as fit, with their
        products, in half a gigabyte, at least ``3 k + 20``.
    max_products
        Budget; beyond it the values are returned with ``converged`` False where they are not. None: ``20 D``.
    """

    block_size: int = 1
    max_basis: int | None = None
    max_products: int | None = None


_REPLACED = "space=KrylovSpace({}=...)"


@removed(
    generator="seed=generator",
    block_size=_REPLACED.format("block_size"),
    max_basis=_REPLACED.format("max_basis"),
    max_products=_REPLACED.format("max_products"),
)
@full_precision()
def extremal_eigenvalues(
    operator: SymmetricOperator,
    *,
    num_largest: int = 10,
    num_smallest: int = 0,
    tolerance: float = 1e-6,
    space: KrylovSpace | None = None,
    verify: bool = False,
    checks: bool = True,
    seed: int | torch.Generator = 0,
) -> ExtremalEigenvalues:
    r"""Largest and smallest (most negative) eigenvalues by thick-restart block Lanczos.

    Parameters
    ----------
    operator
        The matrix, ``D x D``.
    num_largest, num_smallest
        How many at each end, algebraically; both ends come from the same basis.
    tolerance
        Wanted error of each eigenvalue relative to the largest absolute Ritz value.
    space
        Block size, length of the basis and budget; None: one vector at a time, up to ``20 D`` products.
    verify
        Look for missed eigenvalues. Where the operator knows its dense form and ``D`` is at most 4096, those beyond
        the last value are counted (two factorizations at each end, a proof). Else Lanczos runs once more, from a
        second random start orthogonal to what was found, with half as many products as were spent (at least 50).
    checks
        Also make the self-checks of :mod:`curvature.linalg.checks`, once for each operator.
    seed
        Of the start vectors, which are drawn on the CPU.

    Returns
    -------
    ExtremalEigenvalues
        For each Ritz pair the residual $r = \|A y - \theta y\|$, from products: some eigenvalue lies within $r$
        (and rounding) of $\theta$. The iteration stops on the sharper $\min(r, r^2 / \delta)$, which holds *if* the
        gap $\delta$ to the rest of the spectrum is what the other Ritz values say (Kato-Temple). Neither proves that
        no eigenvalue was missed: one vector sees a double eigenvalue once, and a start vector orthogonal to an
        eigenvector never sees it. ``verify`` does, and the record's ``complete`` says what came out; a set that
        fails is not marked complete nor converged. ``vectors`` holds the Ritz vectors, smallest first.

    Raises
    ------
    ConfigurationError
        If a number is out of range.
    ResourceError
        If the basis does not fit in memory.

    References
    ----------
    .. [1] Wu, Simon (2000). Thick-restart Lanczos method for large symmetric eigenvalue problems. SIAM J. Matrix Anal.
       Appl. 22(2). doi:10.1137/S0895479898334605

    Examples
    --------
    >>> A = SymmetricOperator.from_dense(torch.diag(torch.arange(1.0, 101.0, dtype=torch.float64)))
    >>> top = extremal_eigenvalues(A, num_largest=2)
    >>> top.largest.round(6).tolist(), abs(top.vectors.flat(-1)[-1]).round(6).item()
    ([100.0, 99.0], 1.0)
    """
    require_operator(operator, "extremal_eigenvalues")
    wanted, space = num_largest + num_smallest, space or KrylovSpace()
    if num_largest < 0 or num_smallest < 0 or not 1 <= wanted <= operator.dim:
        raise ConfigurationError(
            f"num_largest + num_smallest must be between 1 and the dimension {operator.dim}, got {num_largest} + "
            f"{num_smallest}."
        )
    if not tolerance > 0 or space.block_size < 1:
        raise ConfigurationError(f"tolerance and block_size must be positive, got {tolerance} and {space.block_size}.")
    generator = generator_of(seed)
    started = time.perf_counter()
    passed = operator.checks if checks else ()
    with operator.one_pool():
        search = _Search(operator, (num_largest, num_smallest), tolerance, space, generator)
        record, ritz, values = search.run()
        if verify and not search.exhausted:
            record = verified(operator, record, ritz, values, generator)
    return replace(record, checks=passed, seconds=time.perf_counter() - started)


class _Search:
    """One run of thick-restart Lanczos: the basis, its images, and the matrix projected on it."""

    def __init__(
        self,
        operator: SymmetricOperator,
        wanted: tuple[int, int],
        tolerance: float,
        space: KrylovSpace,
        generator: torch.Generator,
    ):
        self.operator, self.tolerance, self.generator = operator, tolerance, generator
        self.ends, self.wanted, self.block_size = wanted, sum(wanted), space.block_size
        dim = operator.dim
        longest = default_basis(operator, self.wanted) if space.max_basis is None else space.max_basis
        self.max_basis = min(dim, max(longest, self.wanted + 2 * self.block_size))
        self.max_products = 20 * dim if space.max_products is None else space.max_products
        ensure_memory(3 * self.max_basis * dim * operator.dtype.itemsize, "the Lanczos basis and its images")
        self.basis = torch.empty(self.max_basis + self.block_size, dim, dtype=operator.dtype, device=operator.device)
        self.images = torch.empty_like(self.basis)  # residuals of Ritz pairs then need no more products
        # Grows with the basis: most of max_basis is rarely used.
        self.projected = torch.zeros(0, 0, dtype=operator.dtype)
        self.size, self.products, self.scale = 0, 0, 0.0
        self.steps, self.restarted, self.exhausted = 0, False, False
        self.extremes = (np.inf, -np.inf)

    def run(self) -> tuple[ExtremalEigenvalues, Tensor, np.ndarray]:
        """Iterate until the wanted values have settled; the record, the Ritz vectors as rows, and all Ritz values."""
        dim, wanted = self.operator.dim, self.wanted
        start = torch.randn(dim, self.block_size, generator=self.generator, dtype=torch.float64).to(self.basis)
        block = torch.linalg.qr(start).Q.T
        check = min(dim, max(20, 2 * wanted + self.block_size))  # Ritz values of a handful of steps show no gaps
        settled: np.ndarray | None = None
        while True:
            width = len(block)
            block, coupling = self._expanded(block)
            invariant = not len(block)
            if invariant and self.size < dim:
                # An invariant subspace: whatever else there is, copies of its eigenvalues included, needs a new start.
                block = new_start(self.basis[: self.size], min(self.block_size, dim - self.size), self.generator)
            self.exhausted = self.size >= dim
            block = block[: dim - self.size]
            full = self.size + len(block) > self.max_basis or self.products >= self.max_products
            if not (self.exhausted or full or self.size >= check):
                continue
            values, vectors, residuals = self._ritz(width, None if self.exhausted or invariant else coupling)
            chosen = _end_indices(self.size, *self.ends)
            current, converged = values[chosen].numpy(), self._converged(values, residuals, chosen)
            # A start vector with little of one eigenvector finds it late: what has converged must still be
            # the answer a tenth of the work later.
            allowed = 2 * self.tolerance * float(values.abs().max())
            done = converged and settled is not None and bool(np.allclose(current, settled, rtol=0, atol=allowed))
            settled = current if converged else None
            if done or self.exhausted or self.products >= self.max_products:
                return self._result(values, vectors, residuals, chosen)
            check = self.size + (max(8, self.products // 10) if converged else max(self.block_size, wanted // 4))
            if full:
                self._restart(values, vectors)
                check = self.size + max(self.block_size, wanted // 4)

    def _expanded(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Add orthonormal rows to the basis; the rows that continue it, and how they couple to the last ones."""
        size, width = self.size, len(block)
        self.basis[size : size + width] = block
        image = (self.operator @ block.T).T
        self.images[size : size + width] = image
        self.products += width
        self.scale = max(self.scale, float(vector_norms(image, 1).max()))
        span = self.basis[: size + width]
        inner = image @ span.T
        image = image - inner @ span
        again = image @ span.T
        image = image - again @ span
        coefficients = (inner + again).cpu()
        if size + width > len(self.projected):
            grown = self.projected.new_zeros(*2 * [2 * (size + width) + 32])
            grown[:size, :size] = self.projected[:size, :size]
            self.projected = grown
        self.projected[size : size + width, : size + width] = coefficients
        self.projected[: size + width, size : size + width] = coefficients.T
        self.size += width
        self.steps += not self.restarted
        rounding = self.operator.dim * torch.finfo(self.operator.dtype).eps
        return _next_block(image, span, rounding * max(self.scale, 1e-300))

    def _ritz(self, width: int, coupling: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values, ascending, their coefficients, and the residuals that the recursion gives (0: invariant)."""
        small = self.projected[: self.size, : self.size]
        values, vectors = torch.linalg.eigh((small + small.T) / 2)
        self.extremes = min(self.extremes[0], float(values[0])), max(self.extremes[1], float(values[-1]))
        if coupling is None:
            return values, vectors, values.new_zeros(self.size)
        return values, vectors, vector_norms(coupling.cpu() @ vectors[self.size - width :], 0)

    def _converged(self, values: Tensor, residuals: Tensor, chosen: np.ndarray) -> bool:
        bounds = _error_bounds(values.numpy(), residuals.numpy())
        largest = float(values.abs().max())
        return self.size >= self.wanted and bool((bounds[chosen] <= 0.5 * self.tolerance * largest).all())

    def _restart(self, values: Tensor, vectors: Tensor) -> None:
        """Keep the best Ritz vectors only."""
        size, room = self.size, self.max_basis - 2 * self.block_size
        keep = _end_indices(size, *_kept(*self.ends, room))
        ritz = vectors[:, keep].to(self.basis)
        count = len(keep)
        self.basis[:count], self.images[:count] = ritz.T @ self.basis[:size], ritz.T @ self.images[:size]
        self.projected.zero_()
        self.projected[:count, :count] = torch.diag(values[keep])
        self.size, self.restarted = count, True

    def _result(
        self, values: Tensor, vectors: Tensor, estimates: Tensor, chosen: np.ndarray
    ) -> tuple[ExtremalEigenvalues, Tensor, np.ndarray]:
        """Residuals are computed from the products themselves: those of the recursion can drift."""
        operator, num_largest = self.operator, self.ends[0]
        basis, images = self.basis[: self.size], self.images[: self.size]
        coefficients, theta = vectors[:, chosen].to(basis).T, values[chosen].to(basis)
        ritz = coefficients @ basis
        residuals = vector_norms(coefficients @ images - theta[:, None] * ritz, 1).cpu().numpy()
        largest = float(values.abs().max())
        tighter = estimates.numpy().copy()  # the gap also depends on values that were not asked for
        tighter[chosen] = residuals
        floor = 10 * torch.finfo(operator.dtype).eps * largest
        reached = np.minimum(residuals, _error_bounds(values.numpy(), tighter)[chosen])
        split = len(chosen) - min(num_largest, len(chosen))
        ends = theta.cpu().numpy()
        entries = () if operator.layout is None else operator.layout.entries
        record = ExtremalEigenvalues(
            operator.where,
            operator.dim,
            ends[split:][::-1].copy(),
            ends[:split].copy(),
            residuals,
            np.maximum(residuals, floor),
            len(chosen) == self.wanted and bool((reached <= max(self.tolerance * largest, floor)).all()),
            self.products,
            positive_semidefinite=operator.facts.positive_semidefinite,
            noise_floor=floor,
            num_steps=self.steps,
            ritz_range=self.extremes,
            vectors=Eigenvectors(
                ends, ritz.T.cpu().numpy(), residuals, tuple((entry.name, tuple(entry.shape)) for entry in entries)
            ),
        )
        if self.exhausted:
            # Nothing is unseen but the Ritz values that were not asked for.
            rest = np.delete(values.numpy(), chosen)
            radius = math.hypot(*estimates.numpy()) + floor
            unseen = (float(rest[0]) - radius, float(rest[-1]) + radius) if len(rest) else (math.inf, -math.inf)
            record = replace(record, complete="the whole space", unseen=unseen)
        return record, ritz, values.numpy()


def _next_block(image: Tensor, span: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Orthonormal rows that continue the basis, and ``R`` with ``image = R^T block``; empty if nothing is left."""
    if len(image) == 1:
        length = vector_norms(image, 1)[0]
        if length <= threshold:
            return image[:0], image.new_zeros(0, 1)
        return image / length, length.reshape(1, 1)
    # Singular vectors, not columns of Q: where columns depend on each other, a small pivot hides a later direction.
    q, r = torch.linalg.qr(image.T)
    left, values, _ = torch.linalg.svd(r)
    block = (q @ left[:, values > threshold]).T
    if not len(block):
        return block, image.new_zeros(0, len(image))
    block = block - (block @ span.T) @ span
    block = torch.linalg.qr(block.T).Q.T
    return block, block @ image.T


def _end_indices(size: int, num_largest: int, num_smallest: int) -> np.ndarray:
    """Indices of the smallest and the largest of ascending values."""
    low = min(num_smallest, size)
    high = min(num_largest, size - low)
    return np.concatenate([np.arange(low), np.arange(size - high, size)])


def _kept(num_largest: int, num_smallest: int, room: int) -> tuple[int, int]:
    """How many Ritz vectors survive a restart at each end: the wanted ones and half of what is left."""
    wanted = num_largest + num_smallest
    extra = max(0, room // 2 - wanted)
    share = num_largest / wanted
    return num_largest + (round(extra * share) if num_largest else 0), num_smallest + (
        round(extra * (1 - share)) if num_smallest else 0
    )


def _error_bounds(values: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """``min(r, r^2 / gap)`` per ascending Ritz value; the gap reaches to the nearest other Ritz interval."""
    low, high = values - residuals, values + residuals
    gap = np.full(len(values), np.inf)
    gap[1:] = np.minimum(gap[1:], values[1:] - np.maximum.accumulate(high)[:-1])
    gap[:-1] = np.minimum(gap[:-1], np.minimum.accumulate(low[::-1])[::-1][1:] - values[:-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        quadratic = np.where(gap > 0, residuals * (residuals / gap), np.inf)  # a square might overflow
    return np.minimum(residuals, quadratic)
