"""Krylov methods on block products: extremal eigenvalues, spectral densities, linear solves.

Every basis is kept orthogonal by full reorthogonalization, twice in each step; nothing is differentiated, nothing is
specific to a network.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvature.errors import ConfigurationError, ConvergenceError, NonFiniteError
from curvature.linalg.lapack import inertia
from curvature.linalg.norms import vector_norms
from curvature.linalg.operator import SymmetricOperator, ensure_memory
from curvature.precision import full_precision
from curvature.records import ExtremalEigenvalues, SpectralDensity
from curvature.records.bounds import FAILURE, spectral_bounds
from curvature.removed import removed

__all__ = ["conjugate_gradients", "default_basis", "extremal_eigenvalues", "lanczos", "spectral_density"]

_INERTIA_DIM = 4096  # largest dense matrix that is factored to count eigenvalues: seconds, and half a gigabyte
_SECOND_START = 50  # least steps of the second run


def _in_one_pool(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a loop of products inside :meth:`SymmetricOperator.one_pool`, what lies between the products included."""

    @functools.wraps(function)
    def run(operator: SymmetricOperator, *arguments: Any, **options: Any) -> Any:
        with operator.one_pool():
            return function(operator, *arguments, **options)

    return run


@_in_one_pool
def lanczos(operator: SymmetricOperator, starts: Tensor, num_matvecs: int) -> tuple[Tensor, Tensor]:
    """Tridiagonalize a matrix on the Krylov space of each column of ``starts``.

    The columns, shape ``(D, P)``, advance together: one block product per step. Returns the diagonals, ``(P,
    num_matvecs)``, and off-diagonals, ``(P, num_matvecs - 1)``. A column whose Krylov space is exhausted goes on with
    zeros, which decouple. Memory: ``num_matvecs * P`` vectors of length ``D``.
    """
    dim, num_probes = starts.shape
    ensure_memory(num_matvecs * num_probes * dim * operator.dtype.itemsize, "the Lanczos basis")
    basis = torch.empty(num_probes, num_matvecs, dim, dtype=operator.dtype, device=operator.device)
    diagonal = starts.new_zeros(num_probes, num_matvecs)
    off_diagonal = starts.new_zeros(num_probes, num_matvecs)
    vectors = (starts / torch.linalg.vector_norm(starts, dim=0)).T.contiguous()
    scale = starts.new_zeros(num_probes)
    for step in range(num_matvecs):
        basis[:, step] = vectors
        residual = (operator @ vectors.T).T
        diagonal[:, step] = (vectors * residual).sum(dim=1)
        scale = torch.maximum(scale, vector_norms(residual, 1))
        if step + 1 == num_matvecs:
            break
        span = basis[:, : step + 1]
        # The three-term recurrence leaves little along the older vectors. Twice is enough (Giraud, Langou & Rozloznik
        # 2005), and once is where the vector has not become much shorter (Daniel, Gragg, Kaufman & Stewart 1976).
        residual = residual - diagonal[:, step, None] * vectors
        if step:
            residual -= off_diagonal[:, step - 1, None] * basis[:, step - 1]
        for _ in range(3):
            before = vector_norms(residual, 1)
            residual = residual - _projected(span, residual)
            if (vector_norms(residual, 1) > 0.7 * before).all():
                break
        length = vector_norms(residual, 1)
        alive = length > dim * torch.finfo(operator.dtype).eps * scale
        off_diagonal[:, step] = torch.where(alive, length, 0)
        vectors = torch.where(alive[:, None], residual / torch.where(alive, length, 1)[:, None], 0)
    return diagonal, off_diagonal[:, : num_matvecs - 1]


def _projected(span: Tensor, vectors: Tensor) -> Tensor:
    """Project each of ``(P, D)`` onto its own orthonormal rows ``(P, k, D)``; measured five times faster by NumPy."""
    if span.device.type != "cpu":
        return torch.matmul(span.mT, torch.matmul(span, vectors[:, :, None]))[:, :, 0]
    rows = span.numpy()
    inner = np.matmul(rows, vectors.numpy()[:, :, None])
    return torch.from_numpy(np.matmul(inner.transpose(0, 2, 1), rows)[:, 0])


@full_precision()
def spectral_density(
    operator: SymmetricOperator, *, num_matvecs: int, num_probes: int, generator: torch.Generator, checks: bool = True
) -> SpectralDensity:
    r"""Estimate the eigenvalue density by stochastic Lanczos quadrature (SLQ).

    $$p(\lambda) = \frac{1}{D} \sum_{i=1}^{D} \delta(\lambda - \lambda_i).$$

    A random unit vector weighs the eigenvalues by its squared components in the eigenbasis; in expectation that is $p$.
    Lanczos from it gives the Gauss quadrature of the weighted density (Golub & Meurant 2010).

    Parameters
    ----------
    num_matvecs
        Lanczos steps $m$ per probe, ``1 <= m <= D``: the resolution; exact for polynomials up to degree $2m - 1$.
    num_probes
        Independent probes: the statistics.
    generator
        Source of the probes, drawn on the CPU; the caller owns the seed.
    checks
        Also make the self-checks of :mod:`curvature.linalg.checks`, once for each operator; of its entries where these
        are what is multiplied, with the products as one more witness.

    Notes
    -----
    Costs ``num_matvecs`` block products with ``num_probes`` columns; of a small matrix with its entries, where they are
    computed in less time than they save. The middle of the spectrum is resolved to about
    ``(max - min) / num_matvecs`` and nothing finer should be read from it; never take a smallest eigenvalue, hence a
    condition number, from a density.

    Examples
    --------
    >>> A = SymmetricOperator.from_dense(torch.diag(torch.tensor([1.0, 1.0, 1.0, 5.0], dtype=torch.float64)))
    >>> density = spectral_density(A, num_matvecs=2, num_probes=100, generator=torch.Generator().manual_seed(0))
    >>> density.nodes[0].round(6).tolist()
    [1.0, 5.0]
    >>> mean, standard_error = density.moment(1)
    >>> abs(mean - 2.0) < 4 * standard_error
    True
    """
    if not 1 <= num_matvecs <= operator.dim:
        raise ConfigurationError(
            f"num_matvecs must be between 1 and the dimension {operator.dim} of {operator.name}, got {num_matvecs}."
        )
    if num_probes < 1:
        raise ConfigurationError(f"num_probes must be at least 1, got {num_probes}.")
    started = time.perf_counter()
    multiplied = operator.materialized() if operator.entries_pay(num_matvecs * num_probes) else operator
    passed = multiplied.checks if checks else ()
    probes = torch.randn(operator.dim, num_probes, generator=generator, dtype=torch.float64)
    diagonal, off_diagonal = lanczos(multiplied, probes.to(operator.device, operator.dtype), num_matvecs)
    tridiagonal = torch.diag_embed(diagonal) + torch.diag_embed(off_diagonal, 1) + torch.diag_embed(off_diagonal, -1)
    nodes, vectors = torch.linalg.eigh(tridiagonal)
    return SpectralDensity(
        matrix=operator.name,
        chart=operator.chart,
        gauge=operator.gauge,
        dim=operator.dim,
        nodes=nodes.cpu().numpy(),
        weights=(vectors[:, 0] ** 2).cpu().numpy(),
        num_products=num_matvecs * num_probes,
        checks=passed,
        seconds=time.perf_counter() - started,
        **operator.about,
    )


@full_precision()
@_in_one_pool
def extremal_eigenvalues(
    operator: SymmetricOperator,
    *,
    num_largest: int = 10,
    num_smallest: int = 0,
    tolerance: float = 1e-6,
    block_size: int = 1,
    max_basis: int | None = None,
    max_products: int | None = None,
    verify: bool = False,
    checks: bool = True,
    generator: torch.Generator,
) -> ExtremalEigenvalues:
    r"""Largest and smallest (most negative) eigenvalues by thick-restart block Lanczos.

    Parameters
    ----------
    num_largest, num_smallest
        How many at each end, algebraically; both ends come from the same basis.
    tolerance
        Wanted error of each eigenvalue relative to the largest absolute Ritz value.
    block_size
        Vectors multiplied at once. One finds each multiple eigenvalue once; a block of ``b`` finds up to ``b`` copies.
        One vector needs the fewest products.
    max_basis
        Basis vectors kept before a restart keeps only the best Ritz vectors. None: as many as fit, with their
        products, in half a gigabyte, at least ``3 k + 20``.
    max_products
        Budget; beyond it the values are returned with ``converged`` False where they are not. None: ``20 D``.
    verify
        Look for missed eigenvalues. Where the operator knows its dense form and ``D`` is at most 4096, those beyond
        the last value are counted (two factorizations at each end, a proof). Else Lanczos runs once more, from a
        second random start orthogonal to what was found, with half as many products as were spent (at least 50).
    checks
        Also make the self-checks of :mod:`curvature.linalg.checks`, once for each operator.

    Returns
    -------
    ExtremalEigenvalues
        For each Ritz pair the residual $r = \|A y - \theta y\|$, from products: some eigenvalue lies within $r$
        (and rounding) of $\theta$. The iteration stops on the sharper $\min(r, r^2 / \delta)$, which holds *if* the
        gap $\delta$ to the rest of the spectrum is what the other Ritz values say (Kato-Temple). Neither proves that
        no eigenvalue was missed: one vector sees a double eigenvalue once, and a start vector orthogonal to an
        eigenvector never sees it. ``verify`` does, and the record's ``complete`` says what came out; a set that
        fails is not marked complete nor converged.
    """
    wanted = num_largest + num_smallest
    if num_largest < 0 or num_smallest < 0 or not 1 <= wanted <= operator.dim:
        raise ConfigurationError(
            f"num_largest + num_smallest must be between 1 and the dimension {operator.dim}, got {num_largest} + "
            f"{num_smallest}."
        )
    if not tolerance > 0 or block_size < 1:
        raise ConfigurationError(f"tolerance and block_size must be positive, got {tolerance} and {block_size}.")
    started = time.perf_counter()
    passed = operator.checks if checks else ()
    dim, itemsize = operator.dim, operator.dtype.itemsize
    if max_basis is None:
        max_basis = default_basis(operator, wanted)
    max_basis = min(dim, max(max_basis, wanted + 2 * block_size))
    ensure_memory(3 * max_basis * dim * itemsize, "the Lanczos basis and its images")
    max_products = 20 * dim if max_products is None else max_products

    basis = torch.empty(max_basis + block_size, dim, dtype=operator.dtype, device=operator.device)
    images = torch.empty_like(basis)  # A times the basis: residuals of Ritz pairs then need no more products
    projected = torch.zeros(0, 0, dtype=operator.dtype)  # grows with the basis: most of max_basis is rarely used
    start = torch.randn(dim, block_size, generator=generator, dtype=torch.float64).to(basis)
    block = torch.linalg.qr(start).Q.T
    size, products, scale = 0, 0, 0.0
    check = min(dim, max(20, 2 * wanted + block_size))  # Ritz values of a handful of steps show no gaps
    agreed: np.ndarray | None = None
    steps, restarted, extremes = 0, False, (np.inf, -np.inf)
    while True:
        width = len(block)
        basis[size : size + width] = block
        image = (operator @ block.T).T
        images[size : size + width] = image
        products += width
        scale = max(scale, float(vector_norms(image, 1).max()))
        span = basis[: size + width]
        inner = image @ span.T
        image = image - inner @ span
        again = image @ span.T
        image = image - again @ span
        coefficients = (inner + again).cpu()
        if size + width > len(projected):
            grown = projected.new_zeros(*2 * [2 * (size + width) + 32])
            grown[:size, :size] = projected[:size, :size]
            projected = grown
        projected[size : size + width, : size + width] = coefficients
        projected[: size + width, size : size + width] = coefficients.T
        size += width
        steps += not restarted
        block, coupling = _next_block(image, span, dim * torch.finfo(operator.dtype).eps * max(scale, 1e-300))
        invariant = not len(block)
        if invariant and size < dim:
            # An invariant subspace: whatever else there is, copies of its eigenvalues included, needs a new start.
            block = _new_start(basis[:size], min(block_size, dim - size), generator)
        exhausted = size >= dim
        block = block[: dim - size]
        full = size + len(block) > max_basis or products >= max_products
        if not (exhausted or full or size >= check):
            continue
        small = projected[:size, :size]
        values, vectors = torch.linalg.eigh((small + small.T) / 2)
        chosen = _ends(size, num_largest, num_smallest)
        residuals = (
            values.new_zeros(size)
            if exhausted or invariant
            else vector_norms(coupling.cpu() @ vectors[size - width :], 0)
        )
        bounds = _bounds(values.numpy(), residuals.numpy())
        largest = float(values.abs().max())
        extremes = min(extremes[0], float(values[0])), max(extremes[1], float(values[-1]))
        met = size >= wanted and bool((bounds[chosen] <= 0.5 * tolerance * largest).all())
        found = values[chosen].numpy()
        # A start vector with little of one eigenvector finds it late: what has converged must still be
        # the answer a tenth of the work later.
        done = met and agreed is not None and bool(np.allclose(found, agreed, rtol=0, atol=2 * tolerance * largest))
        agreed = found if met else None
        if done or exhausted or products >= max_products:
            break
        check = size + (max(8, products // 10) if met else max(block_size, wanted // 4))
        if full:
            keep = _ends(size, *_kept(num_largest, num_smallest, max_basis - 2 * block_size))
            ritz = vectors[:, keep].to(basis)
            basis[: len(keep)], images[: len(keep)] = ritz.T @ basis[:size], ritz.T @ images[:size]
            projected.zero_()
            projected[: len(keep), : len(keep)] = torch.diag(values[keep])
            size = len(keep)
            check = size + max(block_size, wanted // 4)
            restarted = True
    record = _ritz_record(
        operator,
        basis[:size],
        images[:size],
        values,
        vectors,
        residuals.numpy(),
        chosen,
        wanted,
        num_largest,
        tolerance,
        products,
    )
    record = replace(record, num_steps=steps, ritz_range=extremes)
    if exhausted:
        # Nothing is unseen but the Ritz values that were not asked for.
        rest = np.delete(values.numpy(), chosen)
        radius = math.hypot(*residuals.numpy()) + record.noise_floor
        unseen = (float(rest[0]) - radius, float(rest[-1]) + radius) if len(rest) else (math.inf, -math.inf)
        record = replace(record, complete="the whole space", unseen=unseen)
    if verify and not exhausted:
        record = _verified(operator, record, vectors[:, chosen].T.to(basis) @ basis[:size], values.numpy(), generator)
    return replace(record, checks=passed, seconds=time.perf_counter() - started)


def default_basis(operator: SymmetricOperator, wanted: int) -> int:
    """Basis vectors that :func:`extremal_eigenvalues` keeps if nothing is said."""
    return min(operator.dim, max(3 * wanted + 20, 2**28 // (operator.dim * operator.dtype.itemsize)))


def _new_start(span: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Random orthonormal rows, orthogonal to ``span``."""
    rows = torch.randn(width, span.shape[1], generator=generator, dtype=torch.float64).to(span)
    for _ in range(2):
        rows = rows - (rows @ span.T) @ span
        rows = torch.linalg.qr(rows.T).Q.T
    return rows


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


def _ends(size: int, num_largest: int, num_smallest: int) -> np.ndarray:
    """Indices of the smallest and the largest of ascending values."""
    low = min(num_smallest, size)
    high = min(num_largest, size - low)
    return np.concatenate([np.arange(low), np.arange(size - high, size)])


def _kept(num_largest: int, num_smallest: int, room: int) -> tuple[int, int]:
    """How many Ritz vectors survive a restart at each end: the wanted ones and half of the room beside them."""
    wanted = num_largest + num_smallest
    extra = max(0, room // 2 - wanted)
    share = num_largest / wanted
    return num_largest + (round(extra * share) if num_largest else 0), num_smallest + (
        round(extra * (1 - share)) if num_smallest else 0
    )


def _bounds(values: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """``min(r, r^2 / gap)`` per ascending Ritz value; the gap reaches to the nearest other Ritz interval."""
    low, high = values - residuals, values + residuals
    gap = np.full(len(values), np.inf)
    gap[1:] = np.minimum(gap[1:], values[1:] - np.maximum.accumulate(high)[:-1])
    gap[:-1] = np.minimum(gap[:-1], np.minimum.accumulate(low[::-1])[::-1][1:] - values[:-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        quadratic = np.where(gap > 0, residuals * (residuals / gap), np.inf)  # a square might overflow
    return np.minimum(residuals, quadratic)


def _ritz_record(
    operator: SymmetricOperator,
    basis: Tensor,
    images: Tensor,
    values: Tensor,
    vectors: Tensor,
    estimates: np.ndarray,
    chosen: np.ndarray,
    wanted: int,
    num_largest: int,
    tolerance: float,
    products: int,
) -> ExtremalEigenvalues:
    """Residuals are computed from the products themselves: what the recursion says can drift."""
    weights, theta = vectors[:, chosen].to(basis).T, values[chosen].to(basis)
    residuals = vector_norms(weights @ images - theta[:, None] * (weights @ basis), 1).cpu().numpy()
    every = np.abs(values.numpy())
    tighter = estimates.copy()  # the gap also depends on values that were not asked for
    tighter[chosen] = residuals
    floor = 10 * torch.finfo(operator.dtype).eps * float(every.max())
    reached = np.minimum(residuals, _bounds(values.numpy(), tighter)[chosen])
    return ExtremalEigenvalues(
        matrix=operator.name,
        chart=operator.chart,
        gauge=operator.gauge,
        dim=operator.dim,
        largest=theta.cpu().numpy()[len(chosen) - min(num_largest, len(chosen)) :][::-1].copy(),
        smallest=theta.cpu().numpy()[: len(chosen) - min(num_largest, len(chosen))].copy(),
        residuals=residuals,
        error_bounds=np.maximum(residuals, floor),
        converged=len(chosen) == wanted and bool((reached <= max(tolerance * float(every.max()), floor)).all()),
        num_products=products,
        positive_semidefinite=operator.positive_semidefinite,
        noise_floor=floor,
        **operator.about,
    )


def _verified(
    operator: SymmetricOperator, found: ExtremalEigenvalues, ritz: Tensor, every: np.ndarray, generator: torch.Generator
) -> ExtremalEigenvalues:
    """Count what lies beyond the values found, or look for it from a second start; ``ritz`` are rows, ``(k, D)``."""
    # As many eigenvalues as Ritz vectors, copies counted, lie within this of the Ritz values (Kahan 1967).
    radius = math.hypot(*found.residuals) + found.noise_floor
    known = operator.kept is not None or operator.dense_form is not None
    if known and operator.dim <= _INERTIA_DIM:
        matrix = operator.entries().double().cpu().numpy()
        top, over = _counted(matrix, found.largest, every, radius) if len(found.largest) else (np.inf, 0)
        bottom, under = _counted(-matrix, -found.smallest, -every, radius) if len(found.smallest) else (np.inf, 0)
        missed, unseen, how, products = over + under, (float(-bottom), float(top)), "certified by inertia", 0
    else:
        rest, reached, products = _second_start(operator, ritz, found.num_products, generator)
        over = int((rest > found.largest[-1] + radius).sum()) if len(found.largest) else 0
        under = int((rest < found.smallest[-1] - radius).sum()) if len(found.smallest) else 0
        low, high = spectral_bounds(
            float(rest[0]),
            float(rest[-1]),
            operator.dim - len(ritz),
            reached,
            positive_semidefinite=False,
            failure=FAILURE,
        )
        missed, unseen, how = over + under, (low - radius, high + radius), "checked by a second start"
    return replace(
        found,
        complete="incomplete" if missed else how,
        num_missed=missed,
        unseen=(-np.inf, np.inf) if missed else unseen,
        converged=found.converged and not missed,
        num_products=found.num_products + products,
    )


def _counted(matrix: np.ndarray, descending: np.ndarray, every: np.ndarray, radius: float) -> tuple[float, int]:
    """A number that no other eigenvalue exceeds, and how many are missing among the largest."""
    last = float(descending[-1])
    beyond = np.sort(every[every < last - 4 * radius])
    if len(beyond):
        # A gap below the last value: one count there settles the set, and bounds the rest away from it.
        gap = (last - radius + float(beyond[-1])) / 2
        _, above, error = inertia(matrix, gap)
        if above == len(descending) and error < last - radius - gap:
            return gap + error, 0
    # The last value may be one of several copies: then as many may lie beyond a number just above it as were found.
    radius += len(matrix) * np.finfo(np.float64).eps * float(np.abs(every).max())
    edge = last + radius
    for value in descending[::-1]:
        if value <= edge + radius:
            edge = max(edge, float(value) + radius)
    _, above, error = inertia(matrix, edge)
    return edge + error, max(0, above - int((descending > edge).sum()))


def _second_start(
    operator: SymmetricOperator, ritz: Tensor, spent: int, generator: torch.Generator
) -> tuple[np.ndarray, int, int]:
    """Ritz values orthogonal to the rows ``ritz``, the dimension of the Krylov space behind them, and its products."""
    room = operator.dim - len(ritz)
    start = _new_start(ritz, 1, generator)
    # Rounding lets the removed vectors back in, and they would grow if their eigenvalue were extreme; so they get one
    # from the middle instead.
    middle = float((start @ (operator @ start.T)).squeeze())

    def matmat(block: Tensor) -> Tensor:
        removed = ritz.T @ (ritz @ block)
        image = operator @ (block - removed)
        return image - ritz.T @ (ritz @ image) + middle * removed

    remainder = replace(operator, name=f"the rest of {operator.name}", matmat=matmat)
    steps = min(room, max(_SECOND_START, spent // 2))
    diagonal, off_diagonal = (part[0].double().cpu() for part in lanczos(remainder, start.T, steps))
    used = next((k + 1 for k, coupling in enumerate(off_diagonal.tolist()) if coupling == 0), steps)
    small = torch.diag(diagonal[:used]) + torch.diag(off_diagonal[: used - 1], 1)
    small = small + torch.diag(off_diagonal[: used - 1], -1)
    # An exhausted Krylov space holds every eigenvalue of the rest, if not every copy: nothing is left to miss.
    return torch.linalg.eigvalsh(small).numpy(), room if used < steps else used, steps + 1


@removed(shift="damping=shift")
@full_precision()
@_in_one_pool
def conjugate_gradients(
    operator: SymmetricOperator,
    right_hand_sides: Tensor,
    *,
    damping: float = 0.0,
    tolerance: float = 1e-10,
    max_products: int | None = None,
) -> Tensor:
    r"""Solve $(A + \lambda I) X = B$ for a positive definite left side, all columns of ``(D, K)`` together.

    Stops when every true residual is below ``tolerance`` times its right-hand side; the residual is recomputed before
    that is believed.

    Raises
    ------
    ConvergenceError
        If the budget (``10 D`` block products by default) is not enough, or a direction of negative curvature shows
        that the matrix is not positive definite.
    """
    sides = right_hand_sides[:, None] if right_hand_sides.ndim == 1 else right_hand_sides
    budget = 10 * operator.dim if max_products is None else max_products

    def apply(block: Tensor) -> Tensor:
        return operator @ block + damping * block

    solution = torch.zeros_like(sides)
    residual = sides.clone()
    direction = residual.clone()
    squares = (residual**2).sum(dim=0)
    goal = (tolerance * torch.linalg.vector_norm(sides, dim=0)) ** 2
    used = 0
    while True:
        if (squares <= goal).all():
            residual = sides - apply(solution)
            squares = (residual**2).sum(dim=0)
            if (squares <= 4 * goal).all():
                return solution[:, 0] if right_hand_sides.ndim == 1 else solution
            direction = residual.clone()
        if used >= budget:
            worst = float((squares / (goal / tolerance**2).clamp(min=1e-300)).max().sqrt())
            raise ConvergenceError(
                f"conjugate gradients on {operator.name} stopped after {used} products with a relative residual of "
                f"{worst:.1e}; raise max_products, the damping, or the tolerance."
            )
        image = apply(direction)
        used += 1
        curvature = (direction * image).sum(dim=0)
        active = squares > goal
        if (curvature[active] <= 0).any():
            raise ConvergenceError(
                f"{operator.name} + {damping:g} I is not positive definite: a direction has negative curvature. "
                "Raise the damping."
            )
        step = torch.where(active, squares / torch.where(active, curvature, 1), 0)
        solution = solution + step * direction
        residual = residual - step * image
        new = (residual**2).sum(dim=0)
        if not torch.isfinite(new).all():
            raise NonFiniteError(f"conjugate gradients on {operator.name} met NaN or infinity.")
        direction = residual + torch.where(active, new / torch.where(squares > 0, squares, 1), 0) * direction
        squares = new
