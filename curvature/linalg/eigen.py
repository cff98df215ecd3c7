"""All eigenvalues of a symmetric matrix, with noise floor and rank, and its eigenvectors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvature.errors import ConfigurationError, ConvergenceError, ResourceError, SelfCheckError
from curvature.linalg import lapack
from curvature.linalg.dense import symmetric_product
from curvature.linalg.floor import measured_rounding, noise_floor
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
    vectors: bool | int = False,
    checks: bool = True,
) -> Spectrum:
    r"""Compute all eigenvalues, exactly up to rounding.

    Parameters
    ----------
    operator
        The matrix, ``D x D``. To measure it in a chart, first call ``curvature.pullback``.
    method
        ``"dense"``: LAPACK on the entries; absolute accuracy of about $u \|A\|$, $u$ the unit of rounding.

        ``"factor"``: singular values of $B$ with $A = B B^T$, which resolves eigenvalues down to about $u^2 \|A\|$. A
        factor with more columns than rows is first reduced by a QR decomposition, block by block.

        ``"gram"``: eigenvalues of the smaller $B^T B$; by far the fastest for a factor with few columns, with the
        accuracy of ``"dense"``.

        ``"auto"``: the factor if it has at most ``D`` columns and fits in memory, otherwise dense.
    gradient
        Also compute the squared components of the loss gradient along the eigenvectors, for ``gd_time``. The
        eigenvectors have to be computed for it.
    vectors
        Also return the eigenvectors, each with its residual: all of them, ``D**2`` numbers, or those of this many
        largest eigenvalues.
    checks
        Also run the self-checks of :mod:`curvature.linalg.checks` (a few products and gradients), and record them. Turn
        them off for a matrix that has passed them before, e.g. in another chart.

    Returns
    -------
    Spectrum
        Eigenvalues ascending, unit loss / coordinate**2, with noise floor and rank (see Notes).

    Raises
    ------
    SelfCheckError
        If a self-check fails, if a matrix that must be positive semidefinite has a negative eigenvalue beyond rounding,
        or if the eigenvalues do not add up to the trace.
    ResourceError
        Before anything is allocated, if it does not fit in memory; the message says how much is needed and free, and
        what to do instead. It is never replaced by a density or the ends of the spectrum.

    Notes
    -----
    The noise floor is the largest of these, and ``floor_rule`` says which:

    * 20 (or D / 12) units of rounding of the norm; by the factor, 20 (or D / 3) units of the largest singular value;
    * the difference between two computations of the same products: with the examples in another order, and in double
      precision for a single-precision matrix (not for the factor);
    * the largest eigenvalue that must be zero by formula;
    * minus the smallest eigenvalue of a positive semidefinite matrix.

    The rank is that of a formula if as many eigenvalues are above the floor; otherwise that of the factor on the
    weights, if its singular values have a gap at their rounding. Otherwise it is unresolved, between ``rank_bounds``. A
    gap in the eigenvalues alone decides nothing: below the floor they may be zero or not. So every method gives the
    same rank, or bounds that contain it.

    Dense: about $\tfrac43 D^3$ operations after the entries, and memory for three matrices. The singular values of the
    factor are never computed by its Gram matrix, which would lose half of their digits.

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
    if vectors < 0:
        raise ConfigurationError(f"vectors must be True, False or a number of eigenvectors, got {vectors}.")
    num_vectors = operator.dim if vectors is True else min(int(vectors), operator.dim)
    started = time.perf_counter()
    method = choose_exact(operator, method, vectors=gradient or bool(vectors))
    slope = operator.facts.gradient() if gradient and operator.facts.gradient is not None else None
    decompose = {"gram": _by_gram, "factor": _by_factor, "dense": _by_entries}[method]
    try:
        result = decompose(operator, slope, num_vectors, checks)
    except torch.OutOfMemoryError as error:
        raise ResourceError(f"the spectrum of {operator.name} ran out of memory: {error}") from error
    return _record(operator, result, method, started)


@dataclass(frozen=True)
class _Decomposition:
    """Result of one method.

    Attributes
    ----------
    values
        Ascending eigenvalues, ``(D,)``.
    checks
        Self-checks that were passed.
    weights
        Squared components of the gradient along the eigenvectors, ``(D,)``.
    columns
        Eigenvectors of the largest eigenvalues, ascending, ``(D, K)``.
    scale
        Scale of the rounding if that is more than the norm, otherwise 0.
    num_nonzero
        Rows of the matrix that are not exactly zero, if its entries were computed: they bound the rank.
    """

    values: np.ndarray
    checks: tuple[Check, ...]
    weights: np.ndarray | None = None
    columns: np.ndarray | None = None
    scale: float = 0.0
    num_nonzero: int | None = None


def _by_entries(operator: SymmetricOperator, slope: Tensor | None, num_vectors: int, checks: bool) -> _Decomposition:
    by_products = operator.routes.entries is None or operator.kept is not None
    passed = operator.checks if checks and by_products else ()  # before D products are computed with a wrong one
    matrix = operator.entries()
    if checks and not by_products:
        passed = operator.checks_of(partial(symmetric_product, matrix))
    trace, row_sums = float(matrix.trace()), torch.linalg.vector_norm(matrix, 1, dim=1)
    weights = columns = None
    if slope is None and not num_vectors:
        values, retried = _converged(_eigenvalues, matrix, operator)
    elif slope is not None and not num_vectors and matrix.device.type == "cpu":
        (values, weights), retried = _converged(partial(_measure_along, slope), matrix, operator)
    else:
        (values, columns), retried = _converged(_eigenpairs, matrix, operator)
        weights = None if slope is None else (columns.T @ slope.cpu().numpy()) ** 2
        columns = _largest(columns, num_vectors)
    if abs(values.sum() - trace) > 100 * len(values) * torch.finfo(operator.dtype).eps * float(row_sums.max()):
        raise SelfCheckError(
            f"the eigenvalues of {operator.name} add up to {values.sum():.6g}, its trace is {trace:.6g}: LAPACK failed."
        )
    nonzero = int(row_sums.count_nonzero()) if operator.facts.error is None else None
    return _Decomposition(values, (*passed, *retried), weights, columns, num_nonzero=nonzero)


def _by_factor(operator: SymmetricOperator, slope: Tensor | None, num_vectors: int, checks: bool) -> _Decomposition:
    short = short_factor(operator)  # (r, D), A = short^T short
    passed = operator.checks_of(lambda block: short.T @ (short @ block)) if checks else ()
    weights = columns = None
    if slope is None and not num_vectors:
        singular, retried = _converged(singular_values, short, operator)
    else:
        (_, singular, right), retried = _converged(_singular_triples, short, operator)
        weights = None if slope is None else _weights_on_rows(right, slope)
        columns = _completed(right, num_vectors).flip(1).cpu().numpy() if num_vectors else None
    sizes = singular.cpu().numpy()
    values = np.zeros(operator.dim, dtype=sizes.dtype)
    values[operator.dim - len(sizes) :] = (sizes**2)[::-1]
    return _Decomposition(values, (*passed, *retried), weights, columns)


def _weights_on_rows(right: Tensor, slope: Tensor) -> np.ndarray:
    """Squared components along right singular vectors ``(r, D)``, ascending by singular value, ``(D,)``."""
    rank, dim = right.shape
    slope = slope.to(right)
    inside = right @ slope
    weights = np.zeros(dim, dtype=inside.cpu().numpy().dtype)
    weights[dim - rank :] = (inside**2).cpu().numpy()[::-1]
    if rank < dim:
        # Eigenvectors of the null space are arbitrary: take the first along the gradient's projection on it.
        weights[0] = float(((slope - right.T @ inside) ** 2).sum())
    return weights


def _completed(right: Tensor, count: int) -> Tensor:
    """Complete orthonormal rows ``(r, D)`` to ``count`` orthonormal columns ``(D, count)``, the rows first."""
    rank = len(right)
    if count <= rank:
        return right[:count].T
    basis = torch.linalg.qr(right.T, mode="complete").Q
    return torch.cat([right.T, basis[:, rank:count]], dim=1)


def _largest(columns: np.ndarray, count: int) -> np.ndarray | None:
    """The last columns; a copy of some, since a view keeps all of them in memory."""
    if count == columns.shape[1]:
        return columns
    return columns[:, columns.shape[1] - count :].copy() if count else None


def _by_gram(operator: SymmetricOperator, slope: Tensor | None, num_vectors: int, checks: bool) -> _Decomposition:
    del slope, num_vectors  # refused before: the Gram matrix has other eigenvectors
    passed = operator.checks if checks else ()
    matrix, scale = operator.scaled_gram()
    nonzero, retried = _converged(_eigenvalues, matrix, operator)
    values = np.zeros(operator.dim, dtype=nonzero.dtype)
    values[operator.dim - len(nonzero) :] = nonzero
    return _Decomposition(np.sort(values), (*passed, *retried), scale=scale)


def _converged(
    decompose: Callable[[Tensor], Any], matrix: Tensor, operator: SymmetricOperator
) -> tuple[Any, tuple[Check, ...]]:
    """Run a LAPACK routine; repeat it in float64 if it fails in float32, and record that as a check."""
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
        note = f"failed, repeated in float64: {error}"
        return result, (Check("decomposition in float32", 1.0, math.inf, note),)


def _eigenvalues(matrix: Tensor) -> np.ndarray:
    if matrix.device.type == "cpu":
        return lapack.eigenvalues(matrix.numpy())
    return torch.linalg.eigvalsh(matrix).cpu().numpy()


def _measure_along(slope: Tensor, matrix: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return lapack.spectral_measure(matrix.numpy(), slope.to(matrix).numpy())


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
    """Add noise floor and rank to the eigenvalues; a wrong sign beyond rounding is an error."""
    values, definite = result.values, operator.facts.positive_semidefinite
    eps, norm = torch.finfo(operator.dtype).eps, float(np.abs(values).max())
    size = max(norm, result.scale, 0.0 if operator.facts.scale is None else operator.facts.scale())
    formula = formula_rank(operator)
    if formula is None and result.num_nonzero is not None and 0 < result.num_nonzero < len(values):
        formula = result.num_nonzero, f"formula: {len(values) - result.num_nonzero} rows of the matrix are zero"
    floor, floor_rule = noise_floor(operator, values, method, size, result.checks, formula)
    allowed = 100 * max(1.0, len(values) ** 0.5) * eps * size
    # A chart that stretches some directions far more than others rounds at the scale of its Jacobian.
    if definite and -values.min() > allowed and -values.min() > measured_rounding(values, result.checks):
        raise SelfCheckError(
            f"{operator.name} must be positive semidefinite but has the eigenvalue {values.min():.3g} (largest "
            f"{values.max():.3g}): a derivative or the loss is wrong."
        )
    rounding = len(values) * eps
    threshold = max(floor, (rounding**2 if method == "factor" else rounding) * norm)
    sizes = np.sort(np.abs(values))[::-1]
    rank = decide_rank(operator, sizes, floor, threshold, formula, method)
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
        vectors=None if columns is None else eigenvectors(operator, values[-columns.shape[1] :], columns),
        seconds=time.perf_counter() - started,
    )
