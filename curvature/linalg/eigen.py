"""All eigenvalues of a symmetric matrix, with the floor below which they say nothing, and its eigenvectors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvature.errors import ConfigurationError, ConvergenceError, ResourceError, SelfCheckError
from curvature.linalg import lapack
from curvature.linalg.floor import noise_floor
from curvature.linalg.operator import SymmetricOperator, require_operator
from curvature.linalg.planning import choose_exact
from curvature.linalg.rank import decide_rank, formula_rank
from curvature.linalg.singular import short_factor, singular_values
from curvature.linalg.vectors import eigenvectors
from curvature.precision import full_precision
from curvature.records import Check, Spectrum
from curvature.removed import removed

__all__ = ["spectrum"]


@removed(chart="spectrum(pullback(A, chart))", effective="spectrum(effective(A, chart))")
@full_precision()
def spectrum(
    operator: SymmetricOperator,
    *,
    method: str = "auto",
    gradient: bool = False,
    vectors: bool = False,
    checks: bool = True,
) -> Spectrum:
    r"""Compute every eigenvalue, exactly up to rounding.

    Parameters
    ----------
    operator
        The matrix, ``D x D``; put it into a chart first with ``curvature.pullback``.
    method
        ``"dense"``: LAPACK on the entries, eigenvalues to about $u \|A\|$ absolutely. ``"factor"``: singular values of
        $B$, $A = B B^T$, which resolves eigenvalues down to about $u^2 \|A\|$; a factor with more columns than rows is
        first reduced by a streamed QR. ``"gram"``: eigenvalues of the smaller $B^T B$, by far the fastest where the
        factor has few columns, to about $u \|A\|$ as the dense ones. ``"auto"``: the factor where it has at most
        ``D`` columns and fits in memory, else dense.
    gradient
        Also compute the squared components of the loss gradient along the eigenvectors, which ``gd_time`` needs;
        costs the eigenvectors.
    vectors
        Also give the eigenvectors, each with its residual; ``D**2`` numbers.
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
    >>> result = spectrum(A, vectors=True)
    >>> result.eigenvalues.tolist(), abs(result.vectors.flat(-1)).tolist()
    ([1.0, 2.0, 3.0], [1.0, 0.0, 0.0])
    """
    require_operator(operator, "spectrum")
    if gradient and operator.facts.gradient is None:
        raise ConfigurationError(
            f"{operator.name} has no gradient: gradient=True needs a matrix made from a problem, or a principal block "
            "or a pullback of one."
        )
    if method == "gram" and (gradient or vectors):
        raise ConfigurationError(
            f"{'vectors' if vectors else 'gradient'}=True needs eigenvectors of the matrix itself, and method='gram' "
            "computes those of its Gram matrix: use method='factor' or 'dense'."
        )
    started = time.perf_counter()
    method = choose_exact(operator, method, vectors=gradient or vectors)
    slope = operator.facts.gradient() if gradient and operator.facts.gradient is not None else None
    decompose = {"gram": _by_gram, "factor": _by_factor, "dense": _by_entries}[method]
    try:
        result = decompose(operator, slope, vectors, checks)
    except torch.OutOfMemoryError as error:
        raise ResourceError(f"the spectrum of {operator.name} ran out of memory: {error}") from error
    return _record(operator, result, method, started)


@dataclass(frozen=True)
class _Decomposition:
    """Ascending eigenvalues, and what came with them."""

    values: np.ndarray
    checks: tuple[Check, ...]
    weights: np.ndarray | None = None  # squared components of the gradient
    columns: np.ndarray | None = None  # eigenvectors
    scale: float = 0.0  # what rounding is relative to, where that is more than the norm
    second: Callable[[], np.ndarray] | None = None  # the non-zero eigenvalues by another order of the sums


def _by_entries(operator: SymmetricOperator, slope: Tensor | None, vectors: bool, checks: bool) -> _Decomposition:
    by_products = operator.routes.entries is None or operator.kept is not None
    passed = operator.checks if checks and by_products else ()  # a wrong derivative is named before D products are made
    matrix = operator.entries()
    if checks and not by_products:
        passed = operator.checks_of(lambda block: matrix @ block)
    trace, size = float(matrix.trace()), float(matrix.abs().sum(dim=0).max())
    weights = columns = None
    if slope is None and not vectors:
        values, retried = _converged(_eigenvalues, matrix, operator)
    else:
        (values, columns), retried = _converged(_eigenpairs, matrix, operator)
        weights = None if slope is None else (columns.T @ slope.cpu().numpy()) ** 2
    if abs(values.sum() - trace) > 100 * len(values) * torch.finfo(operator.dtype).eps * size:
        raise SelfCheckError(
            f"the eigenvalues of {operator.name} add up to {values.sum():.6g}, its trace is {trace:.6g}: LAPACK failed."
        )
    return _Decomposition(values, (*passed, *retried), weights, columns if vectors else None)


def _by_factor(operator: SymmetricOperator, slope: Tensor | None, vectors: bool, checks: bool) -> _Decomposition:
    short = short_factor(operator)  # (r, D), A = short^T short
    passed = operator.checks_of(lambda block: short.T @ (short @ block)) if checks else ()
    weights = columns = None
    if slope is None and not vectors:
        singular, retried = _converged(singular_values, short, operator)
    else:
        (_, singular, right), retried = _converged(_singular_triples, short, operator)
        weights = None if slope is None else _weights_on_rows(right, slope)
        columns = _completed(right).flip(1).cpu().numpy() if vectors else None
    sizes = singular.cpu().numpy()
    values = np.zeros(operator.dim, dtype=sizes.dtype)
    values[operator.dim - len(sizes) :] = (sizes**2)[::-1]

    def second() -> np.ndarray:
        return singular_values(short.flip(0, 1)).cpu().numpy() ** 2

    return _Decomposition(values, (*passed, *retried), weights, columns, second=second)


def _weights_on_rows(right: Tensor, slope: Tensor) -> np.ndarray:
    """Squared components along right singular vectors ``(r, D)``, ascending by singular value, ``(D,)``."""
    rank, dim = right.shape
    slope = slope.to(right)
    inside = right @ slope
    weights = np.zeros(dim, dtype=inside.cpu().numpy().dtype)
    weights[dim - rank :] = (inside**2).cpu().numpy()[::-1]
    if rank < dim:
        # Any basis of the null space will do: one whose first vector is what the gradient has there.
        weights[0] = float(((slope - right.T @ inside) ** 2).sum())
    return weights


def _completed(right: Tensor) -> Tensor:
    """Orthonormal columns ``(D, D)``: the given rows first, then any basis of what they leave out."""
    rank, dim = right.shape
    if rank == dim:
        return right.T
    basis = torch.linalg.qr(right.T, mode="complete").Q
    return torch.cat([right.T, basis[:, rank:]], dim=1)


def _by_gram(operator: SymmetricOperator, slope: Tensor | None, vectors: bool, checks: bool) -> _Decomposition:
    del slope, vectors
    passed = operator.checks if checks else ()
    matrix, scale = operator.scaled_gram()
    nonzero, retried = _converged(_eigenvalues, matrix, operator)
    values = np.zeros(operator.dim, dtype=nonzero.dtype)
    values[operator.dim - len(nonzero) :] = nonzero
    return _Decomposition(np.sort(values), (*passed, *retried), scale=scale)


def _converged(
    decompose: Callable[[Tensor], Any], matrix: Tensor, operator: SymmetricOperator
) -> tuple[Any, tuple[Check, ...]]:
    """LAPACK on a matrix; where it fails in float32 once more in float64, which a check records."""
    try:
        return decompose(matrix), ()
    except (np.linalg.LinAlgError, torch.linalg.LinAlgError) as error:
        if matrix.dtype != torch.float32:
            raise ConvergenceError(
                f"LAPACK did not decompose {operator.shape_text}, {operator.where.chart}, in {matrix.dtype}: {error}. "
                "Look at the scales of the model and the data, or take the ends of the spectrum "
                "(curvature.extremal_eigenvalues)."
            ) from error
        result, _ = _converged(decompose, matrix.double(), operator)
        note = f"failed and made in float64 instead: {error}"
        return result, (Check("decomposition in float32", 1.0, math.inf, note),)


def _eigenvalues(matrix: Tensor) -> np.ndarray:
    if matrix.device.type == "cpu":
        return lapack.eigenvalues(matrix.numpy())
    return torch.linalg.eigvalsh(matrix).cpu().numpy()


def _eigenpairs(matrix: Tensor) -> tuple[np.ndarray, np.ndarray]:
    if matrix.device.type == "cpu":
        values, columns = np.linalg.eigh(matrix.numpy())
        return values, columns
    on_device = torch.linalg.eigh(matrix)
    return on_device.eigenvalues.cpu().numpy(), on_device.eigenvectors.cpu().numpy()


def _singular_triples(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left, values, right


def _record(operator: SymmetricOperator, result: _Decomposition, method: str, started: float) -> Spectrum:
    values, definite = result.values, operator.facts.positive_semidefinite
    eps, norm = torch.finfo(operator.dtype).eps, float(np.abs(values).max())
    size = max(norm, result.scale, 0.0 if operator.facts.scale is None else operator.facts.scale())
    formula = formula_rank(operator)
    floor, floor_rule = noise_floor(operator, values, method, size, result.checks, formula)
    allowed = 100 * max(1.0, len(values) ** 0.5) * eps * size
    if definite and -values.min() > allowed:
        raise SelfCheckError(
            f"{operator.name} must be positive semidefinite but has the eigenvalue {values.min():.3g} (largest "
            f"{values.max():.3g}): a derivative or the loss is wrong."
        )
    rounding = len(values) * eps
    threshold = max(floor, (rounding**2 if method == "factor" else rounding) * norm)
    sizes = np.sort(np.abs(values))[::-1]
    rank = decide_rank(operator, sizes, floor, threshold, formula, result.checks, result.second)
    columns = result.columns
    return Spectrum(
        operator.where,
        np.ascontiguousarray(values),
        definite,
        method,
        floor,
        rank.rank,
        rank.rule,
        gradient_weights=result.weights,
        checks=result.checks,
        floor_rule=floor_rule,
        rank_bounds=(rank.low, rank.high),
        vectors=None if columns is None else eigenvectors(operator, values, columns),
        seconds=time.perf_counter() - started,
    )
