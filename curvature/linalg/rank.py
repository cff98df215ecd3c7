r"""The rank of a matrix: by formula and verified null directions, by a gap, by the factor, or between two bounds.

A formula counts the null directions that it knows, so it bounds the rank from above; the eigenvalues above the noise
floor bound it from below. Where the two differ, the factor is asked, which sees much smaller eigenvalues.
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

MAX_NULL_DIRECTIONS = 4096  # that are looked for
_COMBINATIONS = 32  # of null directions that are multiplied before each alone
_BY_EXAMPLES = "formula: at most {} by the number of examples and outputs"
_GAP, _CLEAR = 1e3, 10  # across the noise floor, and above it: what decides a rank that no formula knows
_FACTOR_DIM = 4096  # up to here the rank of a factor is looked for,
_SPARE, _SUMS = 50, 8  # in so many more sums of columns than it may have rank, each column in so many of them


@dataclass(frozen=True)
class Rank:
    """A rank, what it can be at least and at most, and where that comes from."""

    rank: int
    low: int
    high: int
    rule: str


# By matrix: a chart that maps onto the weights has the rank of the matrix there (Sylvester), so many charts ask.
_FORMULAS: WeakKeyDictionary[BlockMatrix, tuple[int, str]] = WeakKeyDictionary()
_FACTORS: WeakKeyDictionary[BlockMatrix, Rank] = WeakKeyDictionary()


def formula_rank(operator: BlockMatrix) -> tuple[int, str] | None:
    """Rank by formula, verified by products with the operator.

    Parameters
    ----------
    operator
        The matrix.

    Returns
    -------
    tuple of int and str, or None
        The rank and what was counted; None where no formula is known.
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
    """Bound the rank by the number of examples, where no count of null directions could lower it.

    Parameters
    ----------
    operator
        The matrix.

    Returns
    -------
    tuple of int and str, or None
        The bound and its rule.
    """
    bound = operator.facts.rank_bound
    if bound is None or bound > operator.dim - MAX_NULL_DIRECTIONS:
        return None
    return bound, _BY_EXAMPLES.format(bound)


def verified(space: NullSpace, operator: BlockMatrix) -> tuple[int, str]:
    """Rank by formula: dimension minus the directions that pass ``A n = 0``, and at most ``rank_bound``.

    Parameters
    ----------
    space
        Directions that should be null.
    operator
        The matrix.

    Returns
    -------
    tuple of int and str
        The rank, and one line that says what was counted.

    Notes
    -----
    Many directions are first multiplied in 32 random combinations, and one by one only if any of these is not null: a
    direction that fails the test escapes with a probability below 1e-13.
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
    """Whether random combinations of all directions are null, with normal weights.

    A direction longer than ``allowed`` after the product leaves one combination at half of that or less only if its
    weight falls into an interval of length one: with a probability of at most 0.383, whatever the others do.
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
    r"""Decide the rank of a matrix from its eigenvalues; what no formula and no gap decides is left open.

    Parameters
    ----------
    operator
        The matrix.
    sizes
        Absolute eigenvalues, descending, ``(D,)``.
    floor
        Noise floor.
    threshold
        Eigenvalues above it are counted where nothing better is known.
    formula
        See :func:`formula_rank`.
    checks
        Self-checks; a comparison of two products seconds a gap.
    second
        Gives the non-zero eigenvalues by another order of the factor's columns; None where there is no factor at hand.

    Returns
    -------
    Rank
        With bounds that agree where the rank is resolved.

    Notes
    -----
    A gap decides if it is a thousand wide across the floor, the smallest eigenvalue kept is ten floors large, and a
    second computation shows the same. Where eigenvalues pass through the floor without a gap, nothing speaks against
    the formula: its rank stays the likely one.
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
    elif _has_gap(sizes, above, floor):
        if how := _seconded(sizes, above, checks, second):
            return Rank(above, above, above, f"{rule}{_gap_text(sizes, above)}, {how}")
        reason, likely = f"{_gap_text(sizes, above)}, but no second computation says so", above
    open_rank = f"unresolved: between {counted} and {bound}, {reason}"
    if formula is not None:
        return Rank(likely, counted, bound, f"{rule}{open_rank}")
    rank = max(int((sizes > threshold).sum()), counted if counted > above else 0)
    return Rank(rank, min(counted, rank), bound, f"threshold: absolute value above {threshold:.2e}; {open_rank}")


def _seconded(sizes: np.ndarray, above: int, checks: tuple[Check, ...], second: Callable[[], np.ndarray] | None) -> str:
    """How a second computation shows the same gap; empty where none does."""
    if second is not None:
        again = int((second() > float(sizes[above - 1]) / _CLEAR).sum())
        return "as with the factor in another order" if again == above else ""
    # Other products differ by less than the floor, so both have as many eigenvalues above the gap (Weyl).
    return "as by other products" if any(check.rounding is not None for check in checks) else ""


def _has_gap(sizes: np.ndarray, above: int, floor: float) -> bool:
    return 0 < above < len(sizes) and bool(sizes[above - 1] >= max(_CLEAR * floor, _GAP * sizes[above]))


def _gap_text(sizes: np.ndarray, above: int) -> str:
    kept, dropped = float(sizes[above - 1]), float(sizes[above])
    width = f"factor of {kept / dropped:.0e}" if dropped > 0 else f"step from {kept:.0e} to zero"
    return f"gap: a {width} after eigenvalue {above}"


def _factor_rank(operator: BlockMatrix, bound: int) -> Rank | None:
    r"""Rank of the factor, which no chart changes, computed once for all of them; None where that costs too much.

    Where it has many more columns than it can have rank, they are added up at random, with signs, into a few more than
    ``bound``, each into eight of them (into one, what few examples bring collides: measured, 4 of 1028 lost). No sum of
    columns raises the rank, so what is counted is there.
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
        how = _gap_text(sizes, count) if count < len(sizes) else f"all {count} columns"
        rank = Rank(count, count, count, f"{how}, by the factor")
    else:
        rank = Rank(bound, count, bound, f"the factor too has no gap of {_GAP:g}")
    _FACTORS[operator] = rank
    return rank


def _summed_columns(operator: BlockMatrix, width: int) -> Tensor:
    """Columns of the factor added up at random into ``width`` rows, ``(width, D)``."""
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
