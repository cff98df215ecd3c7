"""Extremal eigenvalues by thick-restart block Lanczos, with eigenvectors and error bounds."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from curvature.arrays import Float
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

_MIXED = 0.1  # length of the random vector in a first vector that is known approximately
_DRIFT = 10.0  # units of rounding by which a restart may move a Ritz value beyond the ends of the spectrum


@dataclass(frozen=True)
class KrylovSpace:
    """Size and budget of a Krylov space.

    Attributes
    ----------
    block_size
        Vectors multiplied at once. A block of ``b`` finds up to ``b`` copies of a multiple eigenvalue; a single vector
        finds one copy, with the fewest products.
    max_basis
        Basis vectors at which a restart keeps only the best Ritz vectors. None: as many as fit, with their products, in
        half a gigabyte, but at least ``3 k + 20`` for ``k`` eigenvalues.
    max_products
        Budget of products with single vectors. At its end the values are returned, with ``converged`` False if they
        are not. None: ``20 D``.
    start
        Vectors ``(D, k)`` close to the wanted eigenvectors, such as those of a similar matrix. The first vector is then
        their sum with a tenth as long random one, so that no eigenvector is left out. Saves products; but the bounds
        that follow from a random start, :meth:`~curvature.ExtremalEigenvalues.spectral_bounds`, are infinite.
        None: random.
    """

    block_size: int = 1
    max_basis: int | None = None
    max_products: int | None = None
    start: Float[Tensor, "dim columns"] | None = field(default=None, compare=False, repr=False)


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
    r"""Compute the largest and smallest (most negative) eigenvalues by thick-restart block Lanczos.

    Parameters
    ----------
    operator
        The matrix, ``D x D``.
    num_largest, num_smallest
        Number of eigenvalues at each end, ordered with their signs; both ends come from the same basis.
    tolerance
        Requested error of each eigenvalue relative to the largest absolute Ritz value.
    space
        Block size, length of the basis and budget; None: one vector at a time, up to ``20 D`` products.
    verify
        Whether to look for missed eigenvalues. If a route to the entries is known and ``D`` is at most 4096, those
        beyond the last value are counted by inertia, which is a proof (two factorizations at each end). Otherwise
        Lanczos runs once more, from a second random start orthogonal to the Ritz vectors, with half as many products
        (at least 50).
    checks
        Also run the self-checks of :mod:`curvature.linalg.checks`, once for each operator.
    seed
        Seed or generator of the start vectors, which are drawn on the CPU.

    Returns
    -------
    ExtremalEigenvalues
        Ritz values with residuals and error bounds, and their vectors in ``vectors``, smallest first.

    Raises
    ------
    ConfigurationError
        If a number is out of range.
    ResourceError
        If the basis does not fit in memory.

    Notes
    -----
    The residual of a Ritz pair is $r = \|A y - \theta y\|$, from products: an eigenvalue lies within $r$ (and
    rounding) of $\theta$. The iteration stops by the sharper $\min(r, r^2 / \delta)$, which holds *if* the gap $\delta$
    to the rest of the spectrum is as the other Ritz values show it (Kato & Temple).

    Neither bound proves that no eigenvalue was missed: a single vector finds one copy of a double eigenvalue, and a
    start vector orthogonal to an eigenvector never finds it. ``verify=True`` looks for missing ones; the result is
    ``complete`` of the record. A set with a missing eigenvalue is marked neither complete nor converged.

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
    if space.start is not None and (space.start.ndim != 2 or len(space.start) != operator.dim):
        raise ConfigurationError(f"start must have shape ({operator.dim}, k), got {tuple(space.start.shape)}.")
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
        self.guess = space.start
        ensure_memory(3 * self.max_basis * dim * operator.dtype.itemsize, "the Lanczos basis and its images")
        self.basis = torch.empty(self.max_basis + self.block_size, dim, dtype=operator.dtype, device=operator.device)
        self.images = torch.empty_like(self.basis)  # residuals of Ritz pairs then need no more products
        # Grows with the basis: most of max_basis is rarely used.
        self.projected = torch.zeros(0, 0, dtype=operator.dtype)
        self.size, self.products, self.scale = 0, 0, 0.0
        self.steps, self.restarts, self.exhausted = 0, 0, False
        self.extremes = (np.inf, -np.inf)

    def run(self) -> tuple[ExtremalEigenvalues, Tensor, np.ndarray]:
        """Iterate until the wanted values no longer change.

        Returns
        -------
        tuple
            The record, its Ritz vectors as rows, and all Ritz values.
        """
        dim, wanted = self.operator.dim, self.wanted
        start = torch.randn(dim, self.block_size, generator=self.generator, dtype=torch.float64).to(self.basis)
        if self.guess is not None:
            guess = self.guess.to(self.basis).sum(dim=1)
            start[:, 0] = guess / torch.linalg.vector_norm(guess) + _MIXED * start[:, 0] / dim**0.5
        block = torch.linalg.qr(start).Q.T
        # Ritz values of fewer steps show no gaps; from a start that is known approximately they soon do.
        check = min(dim, max(20 if self.guess is None else 0, 2 * wanted + self.block_size))
        settled: np.ndarray | None = None
        while True:
            width = len(block)
            block, coupling = self._expanded(block)
            invariant = not len(block)
            if invariant and self.size < dim:
                # An invariant subspace: all other eigenvectors, copies of its eigenvalues included, need a new start.
                block = new_start(self.basis[: self.size], min(self.block_size, dim - self.size), self.generator)
            self.exhausted = self.size >= dim
            block = block[: dim - self.size]
            full = self.size + len(block) > self.max_basis
            refreshed = self.wanted if full or self.restarts else 0  # products that a run with restarts ends with
            spent = self.products + refreshed >= self.max_products
            full = full or spent
            if not (self.exhausted or full or self.size >= check):
                continue
            values, vectors, residuals = self._ritz(width, None if self.exhausted or invariant else coupling)
            chosen = _end_indices(self.size, *self.ends)
            current, converged = values[chosen].numpy(), self._converged(values, residuals, chosen)
            # A start vector with a small component along an eigenvector finds it late: the converged values must be
            # the same after a tenth more work.
            allowed = 2 * self.tolerance * float(values.abs().max())
            done = converged and settled is not None and bool(np.allclose(current, settled, rtol=0, atol=allowed))
            settled = current if converged else None
            if done or self.exhausted or spent:
                return self._result(values, vectors, residuals, chosen)
            check = self.size + (max(8, self.products // 10) if converged else max(self.block_size, wanted // 4))
            if full:
                self._restart(values, vectors)
                check = self.size + max(self.block_size, wanted // 4)

    def _expanded(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Add orthonormal rows to the basis; return the next rows, and their coupling to the last ones."""
        size, width = self.size, len(block)
        self.basis[size : size + width] = block
        image = (self.operator @ block.T).T
        self.images[size : size + width] = image
        self.products += width
        self.scale = max(self.scale, float(vector_norms(image, 1).max()))
        span = self.basis[: size + width]
        # Two passes of Gram-Schmidt keep the basis orthogonal to rounding (Giraud, Langou & Rozloznik 2005).
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
        self.steps += not self.restarts
        rounding = self.operator.dim * torch.finfo(self.operator.dtype).eps
        return _next_block(image, span, rounding * max(self.scale, 1e-300))

    def _ritz(self, width: int, coupling: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Ascending Ritz values, their coefficients in the basis, and residuals by the recursion (0 if invariant)."""
        small = self.projected[: self.size, : self.size]
        values, vectors = torch.linalg.eigh((small + small.T) / 2)
        drift = _DRIFT * self.restarts * torch.finfo(self.operator.dtype).eps * float(values.abs().max())
        ends = float(values[0]) + drift, float(values[-1]) - drift
        self.extremes = min(self.extremes[0], ends[0]), max(self.extremes[1], ends[1])
        if coupling is None:
            return values, vectors, values.new_zeros(self.size)
        return values, vectors, vector_norms(coupling.cpu() @ vectors[self.size - width :], 0)

    def _converged(self, values: Tensor, residuals: Tensor, chosen: np.ndarray) -> bool:
        bounds = _error_bounds(values.numpy(), residuals.numpy())
        largest = float(values.abs().max())
        return self.size >= self.wanted and bool((bounds[chosen] <= 0.5 * self.tolerance * largest).all())

    def _restart(self, values: Tensor, vectors: Tensor) -> None:
        """Replace the basis by its best Ritz vectors, whose images need no new products."""
        size, capacity = self.size, self.max_basis - 2 * self.block_size
        keep = _end_indices(size, *_kept(*self.ends, capacity))
        ritz = vectors[:, keep].to(self.basis)
        count = len(keep)
        self.basis[:count], self.images[:count] = ritz.T @ self.basis[:size], ritz.T @ self.images[:size]
        self.projected.zero_()
        self.projected[:count, :count] = torch.diag(values[keep])
        self.size, self.restarts = count, self.restarts + 1

    def _result(
        self, values: Tensor, vectors: Tensor, estimates: Tensor, chosen: np.ndarray
    ) -> tuple[ExtremalEigenvalues, Tensor, np.ndarray]:
        """Make the record; residuals are computed from the products, since those of the recursion can drift."""
        operator, num_largest = self.operator, self.ends[0]
        theta, ritz, residuals = self._pairs(values, vectors, chosen)
        largest = float(values.abs().max())
        tighter = estimates.numpy().copy()  # the gaps also depend on the other Ritz values
        tighter[chosen] = residuals
        floor = max(10 * torch.finfo(operator.dtype).eps * largest, operator.error())
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
            num_steps=self.steps if self.guess is None else 0,  # the bounds hold for a random start
            ritz_range=self.extremes,
            vectors=Eigenvectors(
                ends, ritz.T.cpu().numpy(), residuals, tuple((entry.name, tuple(entry.shape)) for entry in entries)
            ),
        )
        if self.exhausted:
            # The basis spans the whole space: the other Ritz values are all other eigenvalues.
            rest = np.delete(values.numpy(), chosen)
            radius = math.hypot(*estimates.numpy()) + floor
            unseen = (float(rest[0]) - radius, float(rest[-1]) + radius) if len(rest) else (math.inf, -math.inf)
            record = replace(record, complete="the whole space", unseen=unseen)
        every = values.numpy().copy()
        every[chosen] = ends
        return record, ritz, every

    def _pairs(self, values: Tensor, vectors: Tensor, chosen: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
        """Ritz values, vectors as rows, and residuals.

        Every restart combines old images of the basis instead of new products, so rounding accumulates in them, and the
        basis loses its orthogonality. After restarts the pairs are therefore recomputed from products with their
        span.
        """
        basis, images = self.basis[: self.size], self.images[: self.size]
        coefficients, theta = vectors[:, chosen].to(basis).T, values[chosen].to(basis)
        ritz, image = coefficients @ basis, coefficients @ images
        if self.restarts:
            ritz = torch.linalg.qr(ritz.T).Q.T
            image = (self.operator @ ritz.T).T
            self.products += len(ritz)
            small = ritz @ image.T
            theta, rotation = torch.linalg.eigh((small + small.T) / 2)
            ritz, image = rotation.T @ ritz, rotation.T @ image
        return theta, ritz, vector_norms(image - theta[:, None] * ritz, 1).cpu().numpy()


def _next_block(image: Tensor, span: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Orthonormal rows that continue the basis, and ``R`` with ``image = R^T rows``; empty if nothing is left."""
    if len(image) == 1:
        length = vector_norms(image, 1)[0]
        if length <= threshold:
            return image[:0], image.new_zeros(0, 1)
        return image / length, length.reshape(1, 1)
    # Singular vectors and not columns of Q: of dependent columns, a small pivot may hide a direction of a later one.
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


def _kept(num_largest: int, num_smallest: int, capacity: int) -> tuple[int, int]:
    """Number of Ritz vectors that a restart keeps at each end: the wanted ones and half of the remaining capacity."""
    wanted = num_largest + num_smallest
    extra = max(0, capacity // 2 - wanted)
    share = num_largest / wanted
    return num_largest + (round(extra * share) if num_largest else 0), num_smallest + (
        round(extra * (1 - share)) if num_smallest else 0
    )


def _error_bounds(values: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """``min(r, r^2 / gap)`` of each ascending Ritz value, the gap that to the nearest interval of another one."""
    low, high = values - residuals, values + residuals
    gap = np.full(len(values), np.inf)
    gap[1:] = np.minimum(gap[1:], values[1:] - np.maximum.accumulate(high)[:-1])
    gap[:-1] = np.minimum(gap[:-1], np.minimum.accumulate(low[::-1])[::-1][1:] - values[:-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        quadratic = np.where(gap > 0, residuals * (residuals / gap), np.inf)  # a square might overflow
    return np.minimum(residuals, quadratic)
