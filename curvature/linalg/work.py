r"""Cost of each method: peak memory and multiply-adds, counted from the routes of a matrix.

The unit of work is a multiply-add of a large matrix product. Slower operations count more, by measured factors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from curvature.linalg.block_matrix import BlockMatrix
from curvature.linalg.rank import FACTOR_DIM, MAX_NULL_DIRECTIONS, SPARE_SUMS
from curvature.linalg.routes import COLUMNS_AT_ONCE, SLOWER

__all__ = [
    "CHECKS",
    "Counts",
    "default_basis",
    "ends",
    "exact_bytes",
    "method_bytes",
    "method_work",
    "num_passes",
    "num_products",
    "rank_work",
]

# Measured on two threads for n from 300 to 2410, in units of n^3 multiply-adds of a matrix product: eigenvalues take
# 1.6 to 4.3, eigenvectors 4 to 39, the triangle of a QR 0.3 to 1.1, singular values of a square matrix 3.6 to 7.
_EIGENVALUES, _EIGENVECTORS, _QR = 3.0, 10.0, 1.0
_BOUNDS = 2.5  # the QR and the inverse that bound singular values at a gap: measured 2.1 and 2.4 for 1210 and 1810 rows
_FORMING = 200.0  # for each number of a factor, which is computed, allocated, copied and read by LAPACK
_COLLECTING = 600.0  # for each number of the known null directions
# Passes of the self-checks and of the rank over data that are not in memory: measured 3 to 5 for a factor, and 7 or 8
# where gradients are taken too, by differences for the Hessian and as the mean of a covariance.
_CHECK_PASSES, _WITH_GRADIENTS = 5, 7
CHECKS, _COMBINATIONS = 50, 32  # products of the self-checks; products that verify null directions


@dataclass(frozen=True)
class Counts:
    """Size of the requested result.

    Attributes
    ----------
    num_eigenvalues
        Eigenvalues at each end of the spectrum; see :func:`ends`.
    num_probes, num_matvecs
        Probes of a density, and products with each.
    vectors
        Whether eigenvectors are needed too.
    """

    num_eigenvalues: int = 10
    num_probes: int = 10
    num_matvecs: int = 60
    vectors: bool = False


def ends(operator: BlockMatrix, num_eigenvalues: int = 10) -> tuple[int, int]:
    """Choose how many of the largest and of the smallest eigenvalues to compute.

    Parameters
    ----------
    operator
        The matrix.
    num_eigenvalues
        Requested number at each end.

    Returns
    -------
    tuple of int
        Numbers of the largest and of the smallest eigenvalues, at most the dimension in all. No smallest ones of a
        semidefinite matrix: they are close to zero, where Krylov methods do not converge.
    """
    if operator.facts.positive_semidefinite or operator.dim == 1:
        return min(num_eigenvalues, operator.dim), 0
    count = min(num_eigenvalues, operator.dim // 2)
    return count, count


def default_basis(operator: BlockMatrix, num_wanted: int) -> int:
    """Choose the default number of basis vectors of thick-restart Lanczos.

    Parameters
    ----------
    operator
        The matrix.
    num_wanted
        Eigenvalues at both ends.

    Returns
    -------
    int
        As many as fit, with their products, in half a gigabyte, but at least ``3 k + 20`` for ``k`` eigenvalues.
    """
    return min(operator.dim, max(3 * num_wanted + 20, 2**28 // (operator.dim * operator.dtype.itemsize)))


def exact_bytes(operator: BlockMatrix, method: str, *, vectors: bool = False) -> float:
    r"""Bound the peak memory of the computation of all eigenvalues.

    Parameters
    ----------
    operator
        The matrix.
    method
        ``"dense"``, ``"factor"`` or ``"gram"``.
    vectors
        Whether eigenvectors are needed too.

    Returns
    -------
    float
        Upper bound in bytes.

    Notes
    -----
    Dense: the peak of the computation of the entries (three matrices or more), or six and a half matrices for
    eigenvectors. Factor with $r$ columns: $4 r D$ numbers, or $3 \cdot 2 D^2$ and three blocks if it is reduced by QR;
    eigenvectors need another $3 \min(r, D) D$.
    """
    dim, item, factor = operator.dim, operator.dtype.itemsize, operator.routes.factor
    columns, block_bytes = (dim, 0.0) if factor is None else (factor.num_columns, factor.block_bytes)
    square = float(item * dim**2)
    # Known null directions are multiplied after the matrix has been freed: a basis of them, and its image.
    directions, checks = min(dim, MAX_NULL_DIRECTIONS), 0.0
    if operator.facts.null_space is not None or operator.same_rank is not None:
        checks = operator.routes.products.memory(directions) + 2.0 * item * dim * directions
    if method == "gram":
        formed = 0.0 if factor is not None and factor.gram is not None else 2.0 * item * columns * dim
        return max(4.0 * item * columns**2 + formed + block_bytes, checks)
    if method == "dense":
        return max(operator.dense_bytes, 6.5 * square if vectors else 0.0, checks)
    rows = float(item * dim * min(columns, 2 * dim))
    stacked = 4 * rows if columns <= dim else 3 * rows + square + (columns > 2 * dim) * 3 * block_bytes
    short = float(item * dim * min(columns, dim))
    return max(stacked + block_bytes + (3 * short if vectors else 0.0), checks)


def method_bytes(operator: BlockMatrix, method: str, counts: Counts) -> float:
    """Bound the peak memory of any method.

    Parameters
    ----------
    operator
        The matrix.
    method
        ``"dense"``, ``"factor"``, ``"gram"``, ``"lanczos"`` or ``"slq"``.
    counts
        Size of the requested result.

    Returns
    -------
    float
        Upper bound in bytes.
    """
    if method in ("dense", "factor", "gram"):
        return exact_bytes(operator, method, vectors=counts.vectors)
    vector, products = float(operator.dim * operator.dtype.itemsize), operator.routes.products
    if method == "lanczos":
        wanted = sum(ends(operator, counts.num_eigenvalues))
        # The basis and its products, and at a restart the Ritz vectors of both.
        return (4 * default_basis(operator, wanted) + 4 * wanted + 8) * vector + products.memory(wanted)
    steps, probes = min(counts.num_matvecs, operator.dim), counts.num_probes
    entries = operator.dense_bytes if operator.entries_pay(steps * probes) else 0.0
    return entries + (steps + 8) * probes * vector + products.memory(probes) + 32.0 * probes * steps**2


def num_products(operator: BlockMatrix, method: str, counts: Counts) -> int:
    """Count the products with single vectors of a method; for Lanczos this is an estimate.

    Parameters
    ----------
    operator
        The matrix.
    method
        See :func:`method_bytes`.
    counts
        Size of the requested result.

    Returns
    -------
    int
        0 if the method uses the entries or the factor instead of products.
    """
    dim, entries = operator.dim, operator.routes.entries
    if method == "lanczos":
        largest, smallest = ends(operator, counts.num_eigenvalues)
        return min(dim, 20 + 4 * largest + 12 * smallest)
    if method == "slq":
        return min(counts.num_matvecs, dim) * counts.num_probes
    return dim if method == "dense" and (entries is None or entries.multiplications is None) else 0


def num_passes(operator: BlockMatrix, method: str, counts: Counts) -> int:
    """Count the passes of a method over data that are not in memory, with those of the self-checks.

    Parameters
    ----------
    operator
        The matrix.
    method
        See :func:`method_bytes`.
    counts
        Size of the requested result.

    Returns
    -------
    int
        0 if the data are in memory. For Lanczos an estimate, as its number of products.
    """
    each = operator.routes.products.passes
    if not each:
        return 0
    together, products = operator.routes.products.columns_at_once, num_products(operator, method, counts)
    if method == "slq":
        blocks = min(counts.num_matvecs, operator.dim) * math.ceil(counts.num_probes / together)
    elif method == "dense" and products:
        width = min(COLUMNS_AT_ONCE, operator.dim)
        blocks = math.ceil(operator.dim / width) * math.ceil(width / together)
    else:
        blocks = products or 1  # the factor is computed in one pass
    gradients = operator.routes.factor is None or operator.facts.centred
    return each * blocks + (_WITH_GRADIENTS if gradients else _CHECK_PASSES) + int(counts.vectors)


def method_work(operator: BlockMatrix, method: str, counts: Counts) -> float:
    r"""Count the multiply-adds of a method, without its products with the operator.

    Parameters
    ----------
    operator
        The matrix.
    method
        See :func:`method_bytes`.
    counts
        Size of the requested result.

    Returns
    -------
    float
        In multiply-adds of a large matrix product.

    Notes
    -----
    Dense: the entries, and $3 D^3$ for eigenvalues or $10 D^3$ with eigenvectors. A factor with $r$ columns, $m$ the
    smaller and $M$ the larger of $r$ and $D$: 200 for each of its $r D$ numbers, $m^2 M$ for the QR, and $6 m^3$ for
    singular values. Krylov methods: $2 m^2 D$ for $m$ orthogonalized vectors, at a third of the speed. Every exact
    method: 50 products for the self-checks, and the collection (600 for each number) and verification of null
    directions.
    """
    dim, factor, entries = operator.dim, operator.routes.factor, operator.routes.entries
    columns = dim if factor is None else factor.num_columns
    per_vector = _EIGENVECTORS if counts.vectors else _EIGENVALUES
    if method == "lanczos":
        return 2 * SLOWER * num_products(operator, method, counts) ** 2 * dim
    if method == "slq":
        steps = min(counts.num_matvecs, dim)
        return counts.num_probes * (2 * SLOWER * steps**2 * dim + _EIGENVECTORS * steps**3)
    checks = _checking(operator)
    if method == "dense":
        forming = entries.multiplications if entries is not None and entries.multiplications is not None else 0.0
        return forming + per_vector * dim**3 + checks
    if method == "gram":
        return columns**2 * dim + _EIGENVALUES * columns**3 + checks
    short, long = min(columns, dim), max(columns, dim)
    return _FORMING * columns * dim + _QR * short**2 * long + 2 * per_vector * short**3 + checks


def rank_work(operator: BlockMatrix) -> float | None:
    """Count the multiply-adds of the rank of the factor, which decides where the eigenvalues leave the rank open.

    Parameters
    ----------
    operator
        The matrix.

    Returns
    -------
    float or None
        Work in multiply-adds of a large matrix product, 0 if there is no factor, and None if its size is not known. For
        ``r`` columns and a rank of at most ``b``: 200 for each number of the factor, and the bounds at a gap of at most
        ``b + 50`` sums of columns. Singular values, which are computed where bounds do not decide, are not counted.
    """
    base = operator.same_rank or operator
    factor, dim = base.routes.factor, base.dim
    if dim > FACTOR_DIM or (factor is None and base.facts.rank_factor is None):
        return 0.0
    if factor is None:
        return None
    columns, bound = factor.num_columns, base.facts.rank_bound
    short, long = sorted((dim, min(columns, (dim if bound is None else bound) + SPARE_SUMS)))
    return _FORMING * columns * dim + _BOUNDS * short**2 * long


def _checking(operator: BlockMatrix) -> float:
    """Multiply-adds of the self-checks, and of the collection and verification of null directions."""
    directions, per_product = (
        operator.facts.num_null_directions,
        operator.dim * max(operator.where.num_examples or 0, 1),
    )
    verified = 2 * SLOWER * min(directions, _COMBINATIONS)  # a product: two passes forward and two backward
    return (CHECKS + verified) * per_product + _COLLECTING * directions * operator.dim
