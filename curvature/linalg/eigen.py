"""All eigenvalues of a symmetric matrix, with the floor below which they say nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from curvature.errors import ConfigurationError, ConvergenceError, NonFiniteError, ResourceError, SelfCheckError
from curvature.linalg import lapack
from curvature.linalg.operator import USABLE, SymmetricOperator, ensure_memory, free_memory, memory_words
from curvature.precision import full_precision
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
MAX_NULL_DIRECTIONS = 4096  # that curvature.matrices.nullspace looks for
_GAP, _CLEAR = 1e3, 10  # across the noise floor, and above it: what decides a rank that no formula knows
_FACTOR_DIM = 4096  # up to here the rank of a factor is looked for,
_SPARE, _SUMS = 50, 8  # in so many more sums of columns than it may have rank, each column in so many of them
# Units of rounding of the norm, a share of D if that is more: what LAPACK and the sums before it leave. Measured: 14
# where all eigenvalues but one are equal. Rounding of one sign adds up: a matrix of ones has its zeros off by D / 20
# (up to 1000), its factor's by D / 4.
_FLOOR, _SHARE, _SINGULAR_SHARE = 20, 1 / 12, 1 / 3


@full_precision()
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
        Also make the self-checks of :mod:`curvature.linalg.checks` (a few products and gradients), which the record
        then carries. Turn them off for a matrix whose twin has just passed them.

    Returns
    -------
    Spectrum
        Eigenvalues ascending, unit loss / coordinate**2. The noise floor is the largest of

        * 20 (or D / 12) units of rounding of the norm; by the factor, 20 (or D / 3) of singular values;
        * the difference between two ways to the same products, with the examples in another order and those of single
          precision in double (not for the factor);
        * what the known null space shows, and (semidefinite) the most negative eigenvalue,

        and ``floor_rule`` says of which. The rank is that of a formula where as many eigenvalues are above the floor,
        else that of the factor, else what a gap across the floor shows and a second computation confirms, else
        unresolved, between ``rank_bounds``.

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
    weights, scale, again = None, 0.0, None
    try:
        if method == "gram":
            passed = operator.checks if checks else ()
            values, scale, retried = _by_gram(operator)
            passed = (*passed, *retried)
        elif method == "factor":
            values, weights, passed, again = _by_factor(operator, slope, checks)
        else:
            values, weights, passed = _dense(operator, slope, checks)
    except torch.OutOfMemoryError as error:
        raise ResourceError(f"the spectrum of {operator.name} ran out of memory: {error}") from error
    return _record(operator, values, weights, method, scale, passed, time.perf_counter() - started, again)


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
    return max(_FLOOR, _SHARE * dim) * torch.finfo(dtype).eps


def _singular_units(dim: int, dtype: torch.dtype) -> float:
    """Rounding of singular values, relative to the largest."""
    return max(_FLOOR, _SINGULAR_SHARE * dim) * torch.finfo(dtype).eps


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


@full_precision()
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


_Checks = tuple[Check, ...]
_Found = tuple[np.ndarray, np.ndarray | None, _Checks]


def _dense(operator: SymmetricOperator, slope: Tensor | None, checks: bool) -> _Found:
    by_products = operator.dense_form is None or operator.kept is not None
    passed = operator.checks if checks and by_products else ()  # a wrong derivative is named before D products are made
    matrix = operator.entries()
    if checks and not by_products:
        passed = operator.checks_of(lambda block: matrix @ block)
    trace, size = float(matrix.trace()), float(matrix.abs().sum(dim=0).max())
    if slope is None:
        (values, retried), weights = _converged(eigenvalues_of, matrix, operator), None
    else:
        (values, vectors), retried = _converged(_eigenvectors, matrix, operator)
        weights = (vectors.T @ slope.cpu().numpy()) ** 2
    eps = torch.finfo(operator.dtype).eps
    if abs(values.sum() - trace) > 100 * len(values) * eps * size:
        raise SelfCheckError(
            f"the eigenvalues of {operator.name} add up to {values.sum():.6g}, its trace is {trace:.6g}: LAPACK failed."
        )
    return values, weights, (*passed, *retried)


def _converged(decompose: Callable[[Tensor], Any], matrix: Tensor, operator: SymmetricOperator) -> tuple[Any, _Checks]:
    """LAPACK on a matrix; where it fails in float32 once more in float64, which a check records."""
    try:
        return decompose(matrix), ()
    except (np.linalg.LinAlgError, torch.linalg.LinAlgError) as error:
        if matrix.dtype != torch.float32:
            raise ConvergenceError(
                f"LAPACK did not decompose {operator.name} ({operator.dim} x {operator.dim}, {operator.chart}) in "
                f"{matrix.dtype}: {error}. Look at the scales of the model and the data, or take the ends of the "
                "spectrum (curvature.extremal_eigenvalues)."
            ) from error
        again, _ = _converged(decompose, matrix.double(), operator)
        return again, (
            Check("decomposition in float32", 1.0, math.inf, f"failed and made in float64 instead: {error}"),
        )


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


def _by_factor(
    operator: SymmetricOperator, slope: Tensor | None, checks: bool
) -> tuple[*_Found, Callable[[], np.ndarray]]:
    short = _short_factor(operator)  # (r, D), A = short^T short
    passed = operator.checks_of(lambda block: short.T @ (short @ block)) if checks else ()
    if slope is None:
        (singular, retried), weights = _converged(_singular_values, short, operator), None
    else:
        (_, singular, right), retried = _converged(_singular_vectors, short, operator)
        slope = slope.to(right)
        inside = right @ slope
        weights = np.zeros(operator.dim, dtype=inside.cpu().numpy().dtype)
        weights[operator.dim - len(inside) :] = (inside**2).cpu().numpy()[::-1]
        if len(inside) < operator.dim:
            # Any basis of the null space will do: one whose first vector is what the gradient has there.
            weights[0] = float(((slope - right.T @ inside) ** 2).sum())
    values = np.zeros(operator.dim, dtype=singular.cpu().numpy().dtype)
    values[operator.dim - len(singular) :] = (singular.cpu().numpy() ** 2)[::-1]
    return values, weights, (*passed, *retried), lambda: _singular_values(short.flip(0, 1)).cpu().numpy() ** 2


def _singular_values(matrix: Tensor) -> Tensor:
    """Singular values, descending, from the triangle of a QR: measured six times quicker than gesdd on all of it."""
    triangle = torch.linalg.qr(matrix.T if matrix.shape[0] < matrix.shape[1] else matrix, mode="r").R
    if triangle.device.type != "cpu":
        return torch.linalg.svdvals(triangle)
    return torch.from_numpy(np.linalg.svd(triangle.numpy(), compute_uv=False))


def _singular_vectors(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.linalg.svd(matrix, full_matrices=False)


def _by_gram(operator: SymmetricOperator) -> tuple[np.ndarray, float, _Checks]:
    matrix, scale = operator._gram()
    found, retried = _converged(eigenvalues_of, matrix, operator)
    values = np.zeros(operator.dim, dtype=found.dtype)
    values[operator.dim - len(found) :] = found
    return np.sort(values), scale, retried


def _short_factor(operator: SymmetricOperator) -> Tensor:
    """Stack ``B^T``, reduced by QR to at most ``dim`` rows whenever it grows past twice that."""
    held: list[Tensor] = []
    for block in operator.factor_blocks():
        held.append(block.T)
        if sum(len(part) for part in held) > 2 * operator.dim:
            held = [torch.linalg.qr(torch.cat(held), mode="r").R]
    stacked = torch.cat(held)
    if not torch.isfinite(stacked).all():
        raise NonFiniteError(f"the factor of {operator.name} has NaN or infinite entries; {operator.culprit()}")
    return torch.linalg.qr(stacked, mode="r").R if len(stacked) > operator.dim else stacked


def _record(
    operator: SymmetricOperator,
    values: np.ndarray,
    weights: np.ndarray | None,
    method: str,
    scale: float,
    checks: tuple[Check, ...],
    seconds: float,
    again: Callable[[], np.ndarray] | None,
) -> Spectrum:
    eps = torch.finfo(operator.dtype).eps
    norm = float(np.abs(values).max())
    size = max(norm, scale)
    sizes = np.sort(np.abs(values))
    formula = None if operator.structural_rank is None else operator.structural_rank(operator)
    floor, floor_rule = _noise_floor(operator, values, sizes, method, size, checks, formula)
    if operator.positive_semidefinite:
        allowed = 100 * max(1.0, len(values) ** 0.5) * eps * size
        if -values.min() > allowed:
            raise SelfCheckError(
                f"{operator.name} must be positive semidefinite but has the eigenvalue {values.min():.3g} (largest "
                f"{values.max():.3g}): a derivative or the loss is wrong."
            )
    rounding = len(values) * eps
    threshold = max(floor, (rounding**2 if method == "factor" else rounding) * norm)
    decided = _rank(operator, sizes[::-1], floor, threshold, formula, checks, again)
    return Spectrum(
        matrix=operator.name,
        chart=operator.chart,
        gauge=operator.gauge,
        eigenvalues=np.ascontiguousarray(values),
        positive_semidefinite=operator.positive_semidefinite,
        method=method,
        noise_floor=floor,
        floor_rule=floor_rule,
        rank=decided.rank,
        rank_rule=decided.rule,
        rank_bounds=(decided.low, decided.high),
        gradient_weights=weights,
        checks=checks,
        seconds=seconds,
        **operator.about,
    )


def _noise_floor(
    operator: SymmetricOperator,
    values: np.ndarray,
    sizes: np.ndarray,
    method: str,
    size: float,
    checks: tuple[Check, ...],
    formula: tuple[int, str] | None,
) -> tuple[float, str]:
    """Take the largest of everything that shows how large rounding is, and say which it was; ``sizes`` ascending."""
    eps = torch.finfo(operator.dtype).eps
    if method == "factor":
        units = _singular_units(len(values), operator.dtype)
        parts = {f"{units / eps:.0f} units of rounding of the largest singular value": units**2 * size}
    else:
        units = rounding_units(len(values), operator.dtype)
        # The same products by other sums: |E v| / |A v| of random vectors is the ratio of Frobenius norms.
        apart = max((check.rounding or 0.0 for check in checks), default=0.0)
        frobenius = size * float(np.linalg.norm(values / (size or 1.0)))
        parts = {
            f"{units / eps:.0f} units of rounding of the norm": units * size,
            "difference between two ways to the same products": 2 * apart * frobenius,
        }
    known = len(values) if formula is None else formula[0]
    if known < len(values):
        # What is known to be zero shows what zero looks like after rounding.
        largest = float(sizes[len(values) - known - 1])
        if largest > (eps if method == "factor" else eps**0.5) * size:
            raise SelfCheckError(
                f"the rank of {operator.name} in {operator.chart} is at most {known} ({formula[1]}), but its "
                f"eigenvalue {known + 1} is {largest:.3g} (largest {size:.3g}): the formula or a derivative is wrong."
            )
        parts["the known null space"] = largest
    if operator.positive_semidefinite:
        parts["the most negative eigenvalue"] = -float(values.min())
    rule = max(parts, key=parts.__getitem__)
    return parts[rule], rule


@dataclass(frozen=True)
class _Rank:
    """A rank, what it can be at least and at most, and where that comes from."""

    rank: int
    low: int
    high: int
    rule: str


# Ranks of factors, by matrix: a chart that maps onto the weights has the rank of the matrix there (Sylvester).
_RANKS: WeakKeyDictionary[SymmetricOperator, _Rank] = WeakKeyDictionary()


def _rank(
    operator: SymmetricOperator,
    sizes: np.ndarray,
    floor: float,
    threshold: float,
    formula: tuple[int, str] | None,
    checks: tuple[Check, ...],
    again: Callable[[], np.ndarray] | None,
) -> _Rank:
    r"""Decide the rank from descending ``sizes``; what no formula and no gap decides is left open.

    A formula counts the null directions that it knows, so it bounds the rank from above; the eigenvalues above the
    noise floor bound it from below. Where the two differ, the factor is asked, which sees much smaller eigenvalues.
    Else a gap decides: of a thousand across the floor, the smallest eigenvalue kept ten floors large, and the same in a
    second computation. Where eigenvalues pass through the floor without a gap, nothing speaks against the formula: its
    rank stays the likely one.
    """
    if sizes[0] == 0:
        return _Rank(0, 0, 0, "the matrix is zero")
    bound = operator.dim if operator.rank_bound is None else min(operator.dim, operator.rank_bound)
    bound, rule = (bound, "") if formula is None else formula
    above = int((sizes > floor).sum())
    if above == bound:
        return _Rank(above, above, above, rule or f"all {bound} that can be above the noise floor are")
    rule = f"{rule}; " if rule else ""
    counted, says, likely = above, f"no gap of {_GAP:g} across the noise floor {floor:.1e}", bound
    found = None if again is not None else _rank_of_factor(operator.same_rank or operator, bound)
    if found is not None:
        counted = max(above, found.low)
        if found.low == found.high >= above:
            return _Rank(found.rank, found.rank, found.rank, f"{rule}{found.rule}")
        says, likely = found.rule, bound if found.rank == bound else counted
    elif _has_gap(sizes, above, floor):
        again_above = above if again is None else int((again() > float(sizes[above - 1]) / _CLEAR).sum())
        # Other products differ by less than the floor, so both have as many eigenvalues above the gap (Weyl).
        how = "as with the factor in another order" if again else "as by other products"
        seconded = again is not None or any(check.rounding is not None for check in checks)
        if seconded and again_above == above:
            return _Rank(above, above, above, f"{rule}{_gap_words(sizes, above)}, {how}")
        says, likely = f"{_gap_words(sizes, above)}, but no second computation says so", above
    open_rank = f"unresolved: between {counted} and {bound}, {says}"
    if formula is not None:
        return _Rank(likely, counted, bound, f"{rule}{open_rank}")
    rank = max(int((sizes > threshold).sum()), counted if counted > above else 0)
    return _Rank(rank, min(counted, rank), bound, f"threshold: absolute value above {threshold:.2e}; {open_rank}")


def _has_gap(sizes: np.ndarray, above: int, floor: float) -> bool:
    return 0 < above < len(sizes) and sizes[above - 1] >= max(_CLEAR * floor, _GAP * sizes[above])


def _gap_words(sizes: np.ndarray, above: int) -> str:
    kept, dropped = float(sizes[above - 1]), float(sizes[above])
    width = f"factor of {kept / dropped:.0e}" if dropped > 0 else f"step from {kept:.0e} to zero"
    return f"gap: a {width} after eigenvalue {above}"


def _rank_of_factor(operator: SymmetricOperator, bound: int) -> _Rank | None:
    r"""Rank of the factor, which no chart changes, found once for all of them; None where that costs too much.

    Where it has many more columns than it can have rank, they are added up at random, with signs, into a few more than
    ``bound``, each into eight of them (into one, what few examples bring collides: measured, 4 of 1028 lost). No sum of
    columns raises the rank, so what is counted is there.
    """
    if operator.factor_blocks is None or operator.dim > _FACTOR_DIM:
        return None
    if operator in _RANKS:
        return _RANKS[operator]
    width = min(operator.factor_columns, bound + _SPARE)
    needed = operator.dtype.itemsize * operator.dim * 5.0 * width + operator.work.chunk_bytes
    if needed > USABLE * free_memory(operator.device):
        return None
    if width == operator.factor_columns:
        rows = torch.cat([block.T for block in operator.factor_blocks()])
    else:
        generator = torch.Generator().manual_seed(0)
        rows = torch.zeros(width, operator.dim, dtype=operator.dtype, device=operator.device)
        for block in operator.factor_blocks():
            count = block.shape[1]
            places = torch.randint(width, (_SUMS * count,), generator=generator)
            signs = 2.0 * torch.randint(2, (_SUMS * count,), generator=generator) - 1
            where = torch.stack([places, torch.arange(count).repeat(_SUMS)])
            sums = torch.sparse_coo_tensor(where, signs.to(block.dtype), (width, count), check_invariants=False)
            rows += torch.sparse.mm(sums.to(operator.device), block.T)
    sizes = _singular_values(rows).cpu().numpy() ** 2
    floor = _singular_units(max(rows.shape), operator.dtype) ** 2 * float(sizes[0])
    count = int((sizes > floor).sum())
    if count == bound:
        found = _Rank(bound, bound, bound, f"the factor has rank {bound}")
    elif _has_gap(sizes, count, floor) or count == len(sizes):
        how = _gap_words(sizes, count) if count < len(sizes) else f"all {count} columns"
        found = _Rank(count, count, count, f"{how}, by the factor")
    else:
        found = _Rank(bound, count, bound, f"the factor too has no gap of {_GAP:g}")
    _RANKS[operator] = found
    return found
