r"""The rank of a matrix: by formula, by the factor, by a gap, or between two bounds.

A formula counts null directions that are known and verified, so it bounds the rank from above. The eigenvalues above
the noise floor bound it from below. Where the two bounds differ, the factor is used, which resolves much smaller
eigenvalues.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from curvature.linalg.block_matrix import BlockMatrix
from curvature.linalg.facts import NullSpace
from curvature.linalg.floor import singular_units
from curvature.linalg.memory import USABLE, free_memory
from curvature.linalg.singular import singular_values
from curvature.records import Check

__all__ = ["MAX_NULL_DIRECTIONS", "Rank", "decide_rank", "formula_rank", "rank_of_few", "verified"]

MAX_NULL_DIRECTIONS = 4096  # more are not collected: their basis would be as large as the matrix
_COMBINATIONS = 32  # random combinations of null directions that are multiplied in place of each direction
_BY_EXAMPLES = "formula: at most {} by the number of examples and outputs"
_GAP, _CLEAR = 1e3, 10  # width of a gap that decides a rank; distance of the smallest kept eigenvalue from the floor
_FACTOR_DIM = 4096  # largest dimension at which the rank of the factor is computed
_SPARE, _SUMS = 50, 8  # sums of columns beyond the bound of the rank; sums that each column is added to


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
    sizes: np.ndarray,
    floor: float,
    threshold: float,
    formula: tuple[int, str] | None,
    checks: tuple[Check, ...],
    second: Callable[[], np.ndarray] | None,
) -> Rank:
    r"""Decide the rank of a matrix from its eigenvalues, or bound it where they do not decide.

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
    checks
        Self-checks; a comparison of two computations of the products confirms a gap.
    second
        Returns the non-zero eigenvalues with the columns of the factor in another order; None without a factor.

    Returns
    -------
    Rank
        With equal bounds if the rank is resolved.

    Notes
    -----
    A gap decides if it spans a factor of a thousand across the floor, the smallest eigenvalue above it is at least ten
    times the floor, and a second computation confirms it. If eigenvalues pass through the floor without a gap, they do
    not contradict the formula, whose rank stays the likely one.
    """
    if sizes[0] == 0:
        return Rank(0, 0, 0, "the matrix is zero")
    bound = operator.facts.rank_bound
    bound = operator.dim if bound is None else min(operator.dim, bound)
    bound, rule = (bound, "") if formula is None else formula
    above = int((sizes > floor).sum())
    if above == bound:
        return Rank(above, above, above, rule or f"all {bound} that can be above the noise floor are")
    rule = f"{rule}; " if rule else ""
    counted, reason, likely = above, f"no gap of {_GAP:g} across the noise floor {floor:.1e}", bound
    by_factor = None if second is not None else _factor_rank(operator.same_rank or operator, bound)
    if by_factor is not None:
        counted = max(above, by_factor.low)
        if by_factor.low == by_factor.high >= above:
            return Rank(by_factor.rank, by_factor.rank, by_factor.rank, f"{rule}{by_factor.rule}")
        reason, likely = by_factor.rule, bound if by_factor.rank == bound else counted
    elif operator.facts.error is None and _has_gap(sizes, above, floor):  # an error is not shown to be rounding
        if confirmation := _seconded(sizes, above, checks, second):
            return Rank(above, above, above, f"{rule}{_gap_text(sizes, above)}, {confirmation}")
        reason, likely = f"{_gap_text(sizes, above)}, but no second computation says so", above
    open_rank = f"unresolved: between {counted} and {bound}, {reason}"
    if formula is not None:
        return Rank(likely, counted, bound, f"{rule}{open_rank}")
    rank = max(int((sizes > threshold).sum()), counted if counted > above else 0)
    return Rank(rank, min(counted, rank), bound, f"threshold: absolute value above {threshold:.2e}; {open_rank}")


def _seconded(sizes: np.ndarray, above: int, checks: tuple[Check, ...], second: Callable[[], np.ndarray] | None) -> str:
    """Which second computation confirms the gap; empty if none does."""
    if second is not None:
        again = int((second() > float(sizes[above - 1]) / _CLEAR).sum())
        return "as with the factor in another order" if again == above else ""
    # The two products differ by less than the floor, so both matrices have as many eigenvalues above the gap (Weyl).
    return "as by other products" if any(check.rounding is not None for check in checks) else ""


def _has_gap(sizes: np.ndarray, above: int, floor: float) -> bool:
    return 0 < above < len(sizes) and bool(sizes[above - 1] >= max(_CLEAR * floor, _GAP * sizes[above]))


def _gap_text(sizes: np.ndarray, above: int) -> str:
    kept, dropped = float(sizes[above - 1]), float(sizes[above])
    width = f"factor of {kept / dropped:.0e}" if dropped > 0 else f"step from {kept:.0e} to zero"
    return f"gap: a {width} after eigenvalue {above}"


def _factor_rank(operator: BlockMatrix, bound: int) -> Rank | None:
    r"""Rank of the factor, cached for all charts, which do not change it; None if it would cost too much.

    If there are many more columns than the rank can have, they are added at random, with signs, into ``bound + 50``
    sums, each column into eight of them. (With one sum for each column, columns of few examples collide: measured, 4 of
    1028 dimensions lost.) Sums of columns never raise the rank, so the counted rank is a lower bound.
    """
    factor = operator.routes.factor
    if factor is None or operator.dim > _FACTOR_DIM:
        return None
    if operator in _FACTORS:
        return _FACTORS[operator]
    width = min(factor.num_columns, bound + _SPARE)
    needed = operator.dtype.itemsize * operator.dim * 5.0 * width + factor.block_bytes
    if needed > USABLE * free_memory(operator.device):
        return None
    if width == factor.num_columns:
        rows = torch.cat([block.T for block in factor.blocks()])
    else:
        rows = _summed_columns(operator, width)
    sizes = singular_values(rows).cpu().numpy() ** 2
    floor = singular_units(max(rows.shape), operator.dtype) ** 2 * float(sizes[0])
    count = int((sizes > floor).sum())
    if count == bound:
        rank = Rank(bound, bound, bound, f"the factor has rank {bound}")
    elif _has_gap(sizes, count, floor) or count == len(sizes):
        reason = _gap_text(sizes, count) if count < len(sizes) else f"all {count} columns"
        rank = Rank(count, count, count, f"{reason}, by the factor")
    else:
        rank = Rank(bound, count, bound, f"the factor too has no gap of {_GAP:g}")
    _FACTORS[operator] = rank
    return rank


def _summed_columns(operator: BlockMatrix, width: int) -> Tensor:
    """Add the columns of the factor at random, with signs, into ``width`` rows, ``(width, D)``."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.zeros(width, operator.dim, dtype=operator.dtype, device=operator.device)
    assert operator.routes.factor is not None
    for block in operator.routes.factor.blocks():
        count = block.shape[1]
        places = torch.randint(width, (_SUMS * count,), generator=generator)
        signs = 2.0 * torch.randint(2, (_SUMS * count,), generator=generator) - 1
        index = torch.stack([places, torch.arange(count).repeat(_SUMS)])
        sums = torch.sparse_coo_tensor(index, signs.to(block.dtype), (width, count), check_invariants=False)
        rows += torch.sparse.mm(sums.to(operator.device), block.T)
    return rows
