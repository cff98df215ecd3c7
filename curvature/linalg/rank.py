r"""The rank of a matrix: by formula, by the factor, or between two bounds.

A formula counts null directions that are known and verified, so it bounds the rank from above. The eigenvalues above
the noise floor bound it from below. Where the two bounds differ, the factor is used, which resolves much smaller
eigenvalues: those down to about $u^2 \|A\|$, where the entries end at $u \|A\|$.

A gap in the eigenvalues themselves decides nothing. What lies below it may be anything up to the noise floor, and
another route to the same matrix may see it. Only the factor can show that it is zero, up to the rounding of the factor.

So a rank is that of the matrix up to the rounding of its factor: a direction that changes the factor by less than $u$,
relative to its norm, counts as null.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.linalg.block_matrix import BlockMatrix
from curvature.linalg.facts import NullSpace
from curvature.linalg.floor import singular_units
from curvature.linalg.gap import gap_of
from curvature.linalg.memory import USABLE, free_memory
from curvature.linalg.singular import short_factor, singular_values

__all__ = [
    "FACTOR_DIM",
    "MAX_NULL_DIRECTIONS",
    "SPARE_SUMS",
    "Rank",
    "decide_rank",
    "formula_rank",
    "rank_of_few",
    "verified",
]

MAX_NULL_DIRECTIONS = 4096  # more are not collected: their basis would be as large as the matrix
_COMBINATIONS = 32  # random combinations of null directions that are multiplied in place of each direction
_BY_EXAMPLES = "formula: at most {} by the number of examples and outputs"
# Width of a gap of the factor that decides a rank; distances of the eigenvalues next to it from the floor, above and
# below.
_GAP, _CLEAR, _HIDDEN = 1e3, 10, 4
FACTOR_DIM = 4096  # largest dimension at which the rank of the factor is computed
_FACTOR_WORK = 1e11  # multiply-adds of the QR of all columns, some seconds; beyond it only sums of columns are used
_HIDDEN_IN_SUMS = 2000  # distance from the floor of the largest eigenvalue below a gap of sums of columns
SPARE_SUMS, _SUMS = 50, 8  # sums of columns beyond the bound of the rank; sums that each column is added to


@dataclass(frozen=True)
class Rank:
    """A rank with its bounds.

    Attributes
    ----------
    rank
        The likely rank.
    low, high
        Smallest and largest possible rank; equal where it is resolved.
    rule
        Where the rank comes from, as text.
    """

    rank: int
    low: int
    high: int
    rule: str

    @property
    def resolved(self) -> bool:
        """Whether only one rank is possible."""
        return self.low == self.high


# Cached by matrix: a chart that maps onto the weights keeps the rank of the weight-space matrix (Sylvester), so many
# charts need the same rank.
_FORMULAS: WeakKeyDictionary[BlockMatrix, tuple[int, str]] = WeakKeyDictionary()
_FACTORS: WeakKeyDictionary[BlockMatrix, Rank] = WeakKeyDictionary()


def formula_rank(operator: BlockMatrix) -> tuple[int, str] | None:
    """Compute the rank by formula, verified by products with the operator.

    Parameters
    ----------
    operator
        The matrix.

    Returns
    -------
    tuple of int and str, or None
        The rank and its rule; None if no formula is known.
    """
    if operator.same_rank is not None:
        formula = formula_rank(operator.same_rank)
        note = operator.facts.rank_note
        return formula if formula is None or not note else (formula[0], f"{formula[1]}; {note}")
    if operator.facts.null_space is None:
        return None
    if operator not in _FORMULAS:
        _FORMULAS[operator] = rank_of_few(operator) or verified(operator.facts.null_space(), operator)
    return _FORMULAS[operator]


def rank_of_few(operator: BlockMatrix) -> tuple[int, str] | None:
    """Bound the rank by the number of examples, if counting null directions could not lower the bound.

    Parameters
    ----------
    operator
        The matrix.

    Returns
    -------
    tuple of int and str, or None
        The bound and its rule; None if null directions have to be counted.
    """
    bound = operator.facts.rank_bound
    if bound is None or bound > operator.dim - MAX_NULL_DIRECTIONS:
        return None
    return bound, _BY_EXAMPLES.format(bound)


def verified(space: NullSpace, operator: BlockMatrix) -> tuple[int, str]:
    """Compute the rank as the dimension minus the directions that satisfy ``A n = 0``, at most ``rank_bound``.

    Parameters
    ----------
    space
        Directions that should be null.
    operator
        The matrix.

    Returns
    -------
    tuple of int and str
        The rank and its rule, which says what was counted.

    Notes
    -----
    Many directions are first multiplied in 32 random combinations, and one by one only if a combination is not null.
    The probability that a direction that is not null passes is below 1e-13.
    """
    count, reasons = 0, ""
    if space.dim:
        allowed = 1e3 * torch.finfo(operator.dtype).eps * operator.norm_estimate()
        count = space.dim
        if count <= 2 * _COMBINATIONS or not _all_null(space.basis, operator, allowed):
            count = int((torch.linalg.vector_norm(operator @ space.basis, dim=0) <= allowed).sum())
        reasons = ", ".join(f"{number} {reason}" for reason, number in space.reasons.items())
        if count < space.dim:
            reasons += f"; {space.dim - count} of them not null here, not counted"
    rank, bound = operator.dim - count, operator.facts.rank_bound
    rule = "formula: " + (f"{operator.dim} - {count} verified null directions ({reasons})" if count else "full")
    if bound is not None and bound < rank:
        return bound, _BY_EXAMPLES.format(bound)
    return rank, rule


def _all_null(basis: Tensor, operator: BlockMatrix, allowed: float) -> bool:
    """Whether random combinations of all directions, with normal weights, are null.

    If the image of one direction is longer than ``allowed``, a combination has an image of at most half that length
    only if the weight of this direction falls into an interval of length one. Its probability is at most 0.383 for any
    weights of the other directions, hence 0.383**32 for all combinations.
    """
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(basis.shape[1], _COMBINATIONS, generator=generator, dtype=torch.float64)
    images = operator @ (basis @ weights.to(basis))
    return bool((torch.linalg.vector_norm(images, dim=0) <= allowed / 2).all())


def decide_rank(
    operator: BlockMatrix,
    sizes: Float[np.ndarray, "dim"],
    floor: float,
    threshold: float,
    formula: tuple[int, str] | None,
    method: str,
) -> Rank:
    r"""Decide the rank of a matrix from its eigenvalues and its factor, or bound it where they do not decide.

    Parameters
    ----------
    operator
        The matrix.
    sizes
        Absolute eigenvalues, descending, ``(D,)``.
    floor
        Noise floor.
    threshold
        Eigenvalues above it are counted if nothing better is known.
    formula
        Result of :func:`formula_rank`.
    method
        How they were computed: ``"dense"``, ``"factor"`` or ``"gram"``.

    Returns
    -------
    Rank
        With equal bounds if the rank is resolved.

    Notes
    -----
    The rank is resolved where as many eigenvalues are above the floor as can be, or where the factor resolves it; see
    :func:`_counted`. The factor is that of the matrix on the weights for all its charts, which do not change the rank,
    so every route to a matrix and every chart has the same one.
    """
    if sizes[0] == 0:
        return Rank(0, 0, 0, "the matrix is zero")
    bound = operator.facts.rank_bound
    bound = operator.dim if bound is None else min(operator.dim, bound)
    bound, rule = (bound, "") if formula is None else formula
    above = _num_above(sizes, floor, bound)
    by_formula = rule or f"all {bound} that can be above the noise floor are"
    if above == bound and method != "factor":
        return Rank(above, above, above, by_formula)
    base = operator.same_rank or operator
    if method == "factor" and base is operator:
        _FACTORS[base] = _counted(sizes, floor, bound)
    factor = _factor_rank(base, bound)
    if above == bound and (factor is None or not factor.resolved or factor.rank == bound):
        return Rank(above, above, above, by_formula)
    rule = f"{rule}; " if rule else ""
    if factor is not None and factor.resolved and factor.rank >= above:
        return replace(factor, rule=f"{rule}{factor.rule}")
    gap = operator.facts.error is None and _has_gap(sizes, above, floor)
    rank, counted, reason = _open(above, bound, factor, _gap_text(sizes, above) if gap else "")
    reason = reason or f"no gap of {_GAP:g} across the noise floor {floor:.1e}"
    open_rank = f"unresolved: between {counted} and {bound}, {reason}"
    if formula is not None:
        return Rank(rank, counted, bound, f"{rule}{open_rank}")
    rank = max(int((sizes > threshold).sum()), counted if counted > above else 0)
    return Rank(rank, min(counted, rank), bound, f"threshold: absolute value above {threshold:.2e}; {open_rank}")


def _open(above: int, bound: int, factor: Rank | None, gap: str) -> tuple[int, int, str]:
    """Likely rank, number of eigenvalues that are certain, and reason, where the rank is not resolved.

    If eigenvalues pass through the floor without a gap, they do not contradict a formula, whose rank stays the likely
    one; the reason is then empty.
    """
    if factor is not None and factor.resolved:
        reason = f"{above} eigenvalues are above the noise floor here, but on the weights: {factor.rule}"
        return factor.rank, factor.rank, reason
    if factor is not None:
        return max(above, factor.rank), max(above, factor.low), factor.rule
    if gap:
        return above, above, f"{gap}, but nothing shows that the eigenvalues below it are zero"
    return bound, above, ""


def _counted(sizes: np.ndarray, floor: float, bound: int, hidden: float = _HIDDEN) -> Rank:
    r"""Rank by the squared singular values of a factor.

    A gap decides if it spans a factor of a thousand, the smallest eigenvalue above it is at least ten times the floor,
    and the largest one below it at most a quarter of the floor (or the share ``1 / hidden``): then a change of the
    factor by its rounding makes all eigenvalues below the gap zero.
    """
    count = _num_above(sizes, floor, bound)
    if count == bound:
        return Rank(bound, bound, bound, f"the factor has rank {bound}")
    if _has_gap(sizes, count, floor) and sizes[count] <= floor / hidden:
        return Rank(count, count, count, f"{_gap_text(sizes, count)}, by the factor")
    return Rank(bound, count, bound, f"the factor too has no gap of {_GAP:g}")


def _num_above(sizes: np.ndarray, floor: float, bound: int) -> int:
    """Number of eigenvalues above the floor, and above those that are zero because the rank is at most ``bound``."""
    known = float(sizes[bound]) if bound < len(sizes) else 0.0
    return int((sizes > max(floor, known)).sum())


def _has_gap(sizes: np.ndarray, above: int, floor: float) -> bool:
    return 0 < above < len(sizes) and bool(sizes[above - 1] >= max(_CLEAR * floor, _GAP * sizes[above]))


def _gap_text(sizes: np.ndarray, above: int) -> str:
    kept, dropped = float(sizes[above - 1]), float(sizes[above])
    width = f"factor of at least {kept / dropped:.0e}" if dropped > 0 else f"step from {kept:.0e} to zero"
    return f"gap: a {width} after eigenvalue {above}"


def _factor_rank(operator: BlockMatrix, bound: int) -> Rank | None:
    r"""Rank of the factor, cached for all charts, which do not change it; None if it would cost too much.

    If there are many more columns than the rank can have, they are first added at random, with signs, into ``bound +
    50`` sums, each column into eight of them. (With one sum for each column, columns of few examples collide: measured,
    4 of 1028 dimensions lost.) Sums of columns never raise the rank, so if ``bound`` of them are independent, that is
    the rank; so it is if all others are far below the floor. Otherwise the singular values of all columns decide, so
    that every method gives the same answer.
    """
    if operator in _FACTORS:
        return _FACTORS[operator]
    shown = _with_factor(operator)
    if shown is None:
        return None
    factor, complete = shown.routes.factor, shown is operator or shown.facts.rank_factor is None
    assert factor is not None
    width = min(factor.num_columns, bound + SPARE_SUMS)
    needed = operator.dtype.itemsize * operator.dim * 5.0 * max(width, operator.dim) + factor.block_bytes
    if needed > USABLE * free_memory(operator.device):
        return None
    rank = _summed_rank(shown, width, bound) if width < factor.num_columns else None
    rank = rank or _whole_rank(shown, bound)
    if not complete:
        rank = Rank(rank.low, 0, bound, f"{rank.rule} without its parts at the level of rounding")
    _FACTORS[operator] = rank
    return rank


def _with_factor(operator: BlockMatrix) -> BlockMatrix | None:
    """The operator with a factor that shows its rank; it keeps ``rank_factor`` only if that factor is not complete."""
    if operator.dim > FACTOR_DIM:
        return None
    if operator.routes.factor is not None:
        return operator
    found = None if operator.facts.rank_factor is None else operator.facts.rank_factor()
    if found is None:
        return None
    factor, complete = found
    facts = replace(operator.facts, rank_factor=None) if complete else operator.facts
    return replace(operator, routes=replace(operator.routes, factor=factor), facts=facts)


def _summed_rank(operator: BlockMatrix, width: int, bound: int) -> Rank | None:
    """Rank by sums of columns: resolved if ``bound`` of them are independent, else a lower bound or None."""
    assert operator.routes.factor is not None
    num_columns = operator.routes.factor.num_columns
    # On the space of dimension r that the rows span, the map to w > r sums stretches by at most 1 + sqrt(r / w) < 2
    # times as much as a typical vector, up to chance: above this floor, a singular value of the sums proves one of the
    # factor. Of a singular value that others hide, the w - r > 50 spare sums keep at least a tenth: below a gap so far
    # under the floor, the factor has none above it either.
    units = 2.2 * singular_units(operator.dim, num_columns, operator.dtype)
    rank = _rank_of_rows(_summed_columns(operator, width), units, bound, sums=True)
    if rank.resolved:
        return rank
    if num_columns * operator.dim**2 > _FACTOR_WORK:
        return Rank(bound, rank.low, bound, "sums of the columns of the factor do not decide (method='factor' may)")
    return None


def _whole_rank(operator: BlockMatrix, bound: int) -> Rank:
    """Rank by the singular values of the whole factor, with the floor of ``method="factor"``."""
    assert operator.routes.factor is not None
    units = singular_units(operator.dim, operator.routes.factor.num_columns, operator.dtype)
    return _rank_of_rows(short_factor(operator), units, bound)


@np.errstate(over="ignore")  # squares that are infinite resolve nothing
def _rank_of_rows(rows: Tensor, units: float, bound: int, *, sums: bool = False) -> Rank:
    """Rank by the singular values of rows ``(w, D)``: by bounds next to a gap if they resolve it, else by all of them.

    Every condition of :func:`_counted` asks for large values above the gap or small ones below it. The former
    must hold with the upper bound of the floor, the latter with the lower one: so what bounds resolve the values
    resolve too.
    """
    sizes, hidden = np.zeros(rows.shape[1]), _HIDDEN_IN_SUMS if sums else _HIDDEN
    gap = gap_of(rows, sums=sums) if rows.device.type == "cpu" else None
    if gap is not None:
        above, below, low, high = np.square([gap.above, gap.below, *(units * size for size in gap.largest)])
        sizes[: gap.count], sizes[gap.count : min(rows.shape)] = above, below
        rank = _counted(sizes, float(high), bound, hidden)
        certain = np.isfinite(above) and (gap.count == bound or below <= low / hidden)
        if certain and rank.resolved and rank.rank == gap.count:
            return rank
    sizes[: min(rows.shape)] = singular_values(rows).cpu().numpy() ** 2
    return _counted(sizes, units**2 * float(sizes[0]), bound, hidden)


def _summed_columns(operator: BlockMatrix, width: int) -> Tensor:
    """Add the columns of the factor at random, with signs, into ``width`` rows, ``(width, D)``."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.zeros(width, operator.dim, dtype=operator.dtype, device=operator.device)
    assert operator.routes.factor is not None
    for block in operator.routes.factor.blocks():
        count = block.shape[1]
        places = torch.randint(width, (_SUMS, count), generator=generator)
        signs = 2.0 * torch.randint(2, (_SUMS, count), generator=generator) - 1
        # The sums of one column follow each other, so that it is read from memory once: measured half of the time.
        index = torch.stack([places.T.flatten(), torch.arange(count).repeat_interleave(_SUMS)])
        sums = torch.sparse_coo_tensor(index, signs.T.flatten().to(block.dtype), (width, count), check_invariants=False)
        rows += torch.sparse.mm(sums.to(operator.device), block.T)
    return rows
