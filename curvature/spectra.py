"""All eigenvalues of a symmetric matrix, with the floor below which they say nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvature import lapack
from curvature.errors import ConfigurationError, NonFiniteError, ResourceError, SelfCheckError
from curvature.operators import USABLE, SymmetricOperator, ensure_memory, free_memory, memory_words
from curvature.records import Check, Inertia, Spectrum

__all__ = [
    "METHODS",
    "eigenvalues_of",
    "inertia",
    "refusal",
    "require_factor",
    "rounding_units",
    "spectrum",
    "spectrum_bytes",
]

METHODS = ("auto", "dense", "factor", "gram")
MAX_NULL_DIRECTIONS = 4096  # that curvature.nullspace looks for
_FLOOR = 10  # units of rounding of the norm, sqrt(D) if that is more: what LAPACK and the sums before it leave


def spectrum(
    operator: SymmetricOperator,
    *,
    chart: Any = None,
    effective: bool = False,
    method: str = "auto",
    gradient: bool = False,
    checks: bool = True,
) -> Spectrum:
    r"""Compute every eigenvalue, exactly up to rounding.

    Parameters
    ----------
    operator
        The matrix, ``D x D``.
    chart
        Write the matrix in this chart first (``curvature.pullback``); None leaves it as it is.
    effective
        With a chart: take ``K^(1/2) A K^(1/2)`` instead (``curvature.effective``), which has no gauge zeros.
    method
        ``"dense"``: LAPACK on the entries, eigenvalues to about $u \|A\|$ absolutely. ``"factor"``: singular values of
        $B$, $A = B B^T$, which resolves eigenvalues down to about $u^2 \|A\|$; a factor with more columns than rows is
        first reduced by a streamed QR. ``"gram"``: eigenvalues of the smaller $B^T B$, by far the fastest where the
        factor has few columns, to about $u \|A\|$ as the dense ones. ``"auto"``: the factor where it has at most
        ``D`` columns and fits in memory, else dense.
    gradient
        Also compute the squared components of the loss gradient along the eigenvectors, which ``gd_time`` needs;
        costs the eigenvectors.
    checks
        Also make the self-checks of :mod:`curvature.checks` (a few products and gradients), which the record then
        carries. Turn them off for a matrix whose twin has just passed them.

    Returns
    -------
    Spectrum
        Eigenvalues ascending, unit loss / coordinate**2. The noise floor is the largest of ten (or sqrt(D))
        units of rounding of the norm, what the known null space shows, and (dense, semidefinite) the most
        negative eigenvalue.

    Raises
    ------
    SelfCheckError
        If a self-check fails, if a matrix that must be positive semidefinite has a negative eigenvalue beyond rounding,
        or if the eigenvalues do not add up to the trace.
    ResourceError
        Before allocating, if it does not fit in memory: what it needs, what is free, and the ways out. A density or
        the ends of the spectrum never stand in for it.

    Notes
    -----
    Dense: about $\tfrac43 D^3$ operations after the matrix, and memory for three of them. SVD is never replaced by the
    Gram matrix of the factor, which would halve the digits.

    Examples
    --------
    >>> import torch
    >>> A = SymmetricOperator.from_dense(torch.diag(torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)))
    >>> spectrum(A).eigenvalues.tolist()
    [1.0, 2.0, 3.0]
    """
    if method not in METHODS:
        raise ConfigurationError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    if chart is not None or effective:
        if operator.to_chart is None or chart is None:
            raise ConfigurationError(
                f"{operator.name} in chart {operator.chart!r} cannot be moved: a chart needs a whole matrix on "
                "the weights, made from a problem, and effective=True needs a chart."
            )
        operator = operator.to_chart(operator, chart, effective)
    if gradient and operator.gradient is None:
        raise ConfigurationError(f"{operator.name} was not made from a problem: it has no gradient.")
    require_factor(operator, method)
    if method == "gram" and gradient:
        raise ConfigurationError(
            "gradient=True needs eigenvectors of the matrix itself: use method='factor' or 'dense'."
        )

    started = time.perf_counter()
    method = _route(operator, method, gradient)
    slope = operator.gradient() if gradient else None
    weights, scale = None, 0.0
    try:
        if method == "gram":
            passed = operator.checks if checks else ()
            values, scale = _by_gram(operator)
        else:
            values, weights, passed = (_by_factor if method == "factor" else _dense)(operator, slope, checks)
    except torch.OutOfMemoryError as error:
        raise ResourceError(f"the spectrum of {operator.name} ran out of memory: {error}") from error
    return _record(operator, values, weights, method, scale, passed, time.perf_counter() - started)


def spectrum_bytes(operator: SymmetricOperator, method: str, *, gradient: bool = False) -> float:
    r"""Upper bound of the memory that all eigenvalues need at once, ``method`` ``"dense"`` or ``"factor"``.

    Dense: the entries as they are built (three matrices or more), or five and workspace where LAPACK computes
    eigenvectors. Factor with $r$ columns: $4 r D$, or $3 \cdot 2 D^2$ and three chunks where it is reduced by QR;
    eigenvectors need another $3 \min(r, D) D$.
    """
    dim, columns = operator.dim, operator.factor_columns or operator.dim
    square = float(operator.dtype.itemsize * dim**2)
    # Known null directions are multiplied when the matrix is gone: a basis of them, and its image.
    vectors = min(dim, MAX_NULL_DIRECTIONS)
    checks = operator.product_memory(vectors) + 2.0 * operator.dtype.itemsize * dim * vectors
    checks = 0.0 if operator.structural_rank is None else checks
    if method == "gram":
        small = float(operator.dtype.itemsize * columns**2)
        factor = 0.0 if operator.gram_form is not None else 2.0 * operator.dtype.itemsize * columns * dim
        return max(4 * small + factor + operator.work.chunk_bytes, checks)
    if method == "dense":
        return max(operator.dense_bytes, 6.5 * square if gradient else 0.0, checks)
    rows = float(operator.dtype.itemsize * dim * min(columns, 2 * dim))
    stacked = 4 * rows if columns <= dim else 3 * rows + square + (columns > 2 * dim) * 3 * operator.work.chunk_bytes
    short = float(operator.dtype.itemsize * dim * min(columns, dim))
    return max(stacked + operator.work.chunk_bytes + (3 * short if gradient else 0.0), checks)


def require_factor(operator: SymmetricOperator, method: str) -> None:
    """Refuse the routes by the factor where there is none, and by its Gram matrix where that is the larger side."""
    if method in ("factor", "gram") and operator.factor_blocks is None:
        raise ConfigurationError(f"{operator.name} has no factor; use method='dense'.")
    if method == "gram" and operator.factor_columns > operator.dim:
        raise ConfigurationError(
            f"the Gram matrix of {operator.name} has {operator.factor_columns} rows, the matrix itself {operator.dim}: "
            "use method='dense', or fewer examples."
        )


def rounding_units(dim: int, dtype: torch.dtype) -> float:
    """Rounding of eigenvalues, relative to the norm: what LAPACK and the sums before it leave."""
    return max(_FLOOR, dim**0.5) * torch.finfo(dtype).eps


def _route(operator: SymmetricOperator, method: str, gradient: bool) -> str:
    """Choose between the two exact methods, and refuse what does not fit before anything is allocated."""
    free = free_memory(operator.device)
    short = operator.factor_columns is not None and operator.factor_columns <= operator.dim
    routes = (["factor"] if short else []) + ["dense"] if method == "auto" else [method]
    needed = {route: spectrum_bytes(operator, route, gradient=gradient) for route in routes}
    for route in routes:
        if needed[route] <= USABLE * free:
            return route
    raise ResourceError(refusal(operator, min(needed.values()), USABLE * free))


def refusal(operator: SymmetricOperator, needed: float, allowed: float) -> str:
    """Say that all eigenvalues do not fit in memory, and what can be had instead."""
    ways = ["the ends of the spectrum (curvature.extremal_eigenvalues)", "its density (curvature.spectral_density)"]
    if operator.layout is not None:
        ways.append("one block at a time (curvature.blocks, --block layer)")
    if operator.factor_columns is not None and operator.num_examples:
        # 4 r D fits for r columns, of which each example brings the same number.
        columns = allowed / (4 * operator.dtype.itemsize * operator.dim)
        count = int(min(columns, operator.dim) * operator.num_examples / operator.factor_columns)
        ways += [f"the first {count} examples, by the factor"] if 1 <= count < operator.num_examples else []
    if operator.dtype == torch.float64:
        ways.append("half the memory in float32, which resolves condition numbers up to about 1e6")
    return (
        f"all eigenvalues of the {operator.name} ({operator.dim} x {operator.dim}) need about {memory_words(needed)}, "
        f"{memory_words(allowed)} can be used of what is free. Ways out: {'; '.join(ways)}."
    )


def inertia(operator: SymmetricOperator, shift: float = 0.0) -> Inertia:
    r"""Count the eigenvalues on each side of ``shift`` without computing any: Sylvester's law on the entries.

    A proof where a Krylov method gives evidence: no start vector, no convergence, copies counted. It says nothing
    about eigenvalues within ``tolerance`` of ``shift``, so a count at 0 of a singular matrix is not its rank.

    Costs the dense matrix (``D`` products unless the operator knows a cheaper route), about $D^3$ operations and memory
    for five of them.

    >>> import torch
    >>> A = SymmetricOperator.from_dense(torch.diag(torch.tensor([3.0, 1.0, -2.0], dtype=torch.float64)))
    >>> found = inertia(A, 0.5)
    >>> found.below, found.above
    (1, 2)
    """
    if not np.isfinite(shift):
        raise ConfigurationError(f"shift must be a finite number, got {shift}.")
    ensure_memory(6 * operator.dim**2 * 8, f"the factorization of {operator.name} ({operator.dim} x {operator.dim})")
    below, above, tolerance = lapack.inertia(operator.entries().cpu().numpy(), shift)
    return Inertia(
        matrix=operator.name,
        chart=operator.chart,
        gauge=operator.gauge,
        dim=operator.dim,
        shift=float(shift),
        below=below,
        above=above,
        tolerance=tolerance,
        num_examples=operator.num_examples,
    )


_Found = tuple[np.ndarray, np.ndarray | None, tuple[Check, ...]]


def _dense(operator: SymmetricOperator, slope: Tensor | None, checks: bool) -> _Found:
    by_products = operator.dense_form is None or operator.kept is not None
    passed = operator.checks if checks and by_products else ()  # a wrong derivative is named before D products are made
    matrix = operator.entries()
    if checks and not by_products:
        passed = operator.checks_of(lambda block: matrix @ block)
    trace, size = float(matrix.trace()), float(matrix.abs().sum(dim=0).max())
    if slope is None:
        values, weights = eigenvalues_of(matrix), None
    else:
        values, vectors = _eigenvectors(matrix)
        weights = (vectors.T @ slope.cpu().numpy()) ** 2
    eps = torch.finfo(operator.dtype).eps
    if abs(values.sum() - trace) > 100 * len(values) * eps * size:
        raise SelfCheckError(
            f"the eigenvalues of {operator.name} add up to {values.sum():.6g}, its trace is {trace:.6g}: LAPACK failed."
        )
    return values, weights, passed


def eigenvalues_of(matrix: Tensor) -> np.ndarray:
    """Eigenvalues of a dense symmetric matrix, ascending."""
    if matrix.device.type == "cpu":
        return lapack.eigenvalues(matrix.numpy())
    return torch.linalg.eigvalsh(matrix).cpu().numpy()


def _eigenvectors(matrix: Tensor) -> tuple[np.ndarray, np.ndarray]:
    if matrix.device.type == "cpu":
        return np.linalg.eigh(matrix.numpy())
    values, vectors = torch.linalg.eigh(matrix)
    return values.cpu().numpy(), vectors.cpu().numpy()


def _by_factor(operator: SymmetricOperator, slope: Tensor | None, checks: bool) -> _Found:
    short = _short_factor(operator.factor_blocks(), operator.dim)  # (r, D), A = short^T short
    passed = operator.checks_of(lambda block: short.T @ (short @ block)) if checks else ()
    if slope is None:
        singular, weights = _singular_values(torch.linalg.qr(short.T, mode="r").R), None
    else:
        q, r = torch.linalg.qr(short.T)
        left, found, _ = torch.linalg.svd(r)  # the rotated columns of q are the eigenvectors
        singular = found.cpu().numpy()
        inside = left.T @ (q.T @ slope)
        weights = np.zeros(operator.dim, dtype=singular.dtype)
        weights[operator.dim - len(inside) :] = (inside**2).cpu().numpy()[::-1]
        if len(inside) < operator.dim:
            # Any basis of the null space will do: one whose first vector is what the gradient has there.
            weights[0] = float(((slope - q @ (left @ inside)) ** 2).sum())
    values = np.zeros(operator.dim, dtype=singular.dtype)
    values[operator.dim - len(singular) :] = (singular**2)[::-1]
    return values, weights, passed


def _singular_values(matrix: Tensor) -> np.ndarray:
    """Singular values of a square matrix, descending."""
    if matrix.device.type == "cpu":
        return np.linalg.svd(matrix.numpy(), compute_uv=False)
    return torch.linalg.svdvals(matrix).cpu().numpy()


def _by_gram(operator: SymmetricOperator) -> tuple[np.ndarray, float]:
    matrix, scale = operator._gram()
    found = eigenvalues_of(matrix)
    values = np.zeros(operator.dim, dtype=found.dtype)
    values[operator.dim - len(found) :] = found
    return np.sort(values), scale


def _short_factor(blocks: Iterator[Tensor], dim: int) -> Tensor:
    """Stack ``B^T``, reduced by QR to at most ``dim`` rows whenever it grows past twice that."""
    held: list[Tensor] = []
    for block in blocks:
        held.append(block.T)
        if sum(len(part) for part in held) > 2 * dim:
            held = [torch.linalg.qr(torch.cat(held), mode="r").R]
    stacked = held[0] if len(held) == 1 else torch.cat(held)
    reduced = torch.linalg.qr(stacked, mode="r").R if len(stacked) > dim else stacked
    # A sum is finite only if all are, and needs no memory; one that overflows is looked at again.
    if not torch.isfinite(reduced.sum()) and not torch.isfinite(reduced).all():
        raise NonFiniteError("the factor has NaN or infinite entries; look at the model and the data at this point.")
    return reduced


def _record(
    operator: SymmetricOperator,
    values: np.ndarray,
    weights: np.ndarray | None,
    method: str,
    scale: float,
    checks: tuple[Check, ...],
    seconds: float,
) -> Spectrum:
    eps = torch.finfo(operator.dtype).eps
    norm = float(np.abs(values).max())
    rounding = rounding_units(len(values), operator.dtype)
    floor = rounding**2 * norm if method == "factor" else rounding * max(norm, scale)
    sizes = np.sort(np.abs(values))
    rank, rule = None, ""
    if operator.structural_rank is not None:
        rank, rule = operator.structural_rank(operator)
        if rank < operator.dim:
            # What is known to be zero shows what zero looks like after rounding.
            floor = max(floor, float(sizes[operator.dim - rank - 1]))
    if operator.positive_semidefinite:
        allowed = 100 * max(1.0, len(values) ** 0.5) * eps * max(norm, scale)
        if -values.min() > allowed:
            raise SelfCheckError(
                f"{operator.name} must be positive semidefinite but has the eigenvalue {values.min():.3g} (largest "
                f"{values.max():.3g}): a derivative or the loss is wrong."
            )
        floor = max(floor, -float(values.min()))
    if rank is None:
        worst = len(values) * eps
        threshold = max(floor, (worst**2 if method == "factor" else worst) * norm)
        rank = int((sizes > threshold).sum())
        rule = f"threshold: absolute value above {threshold:.2e}"
    return Spectrum(
        matrix=operator.name,
        chart=operator.chart,
        gauge=operator.gauge,
        eigenvalues=np.ascontiguousarray(values),
        positive_semidefinite=operator.positive_semidefinite,
        method=method,
        noise_floor=floor,
        rank=rank,
        rank_rule=rule,
        gradient_weights=weights,
        checks=checks,
        seconds=seconds,
        **operator.about,
    )
