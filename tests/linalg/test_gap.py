"""Bounds of singular values beside a gap against the singular values themselves."""

import numpy as np
import pytest
import torch

from curvature.linalg.gap import gap_of
from curvature.linalg.rank import _rank_of_rows
from oracles import normal


def with_values(values, shape, seed, dtype=torch.float64):
    """A matrix with these singular values, the remaining ones zero up to rounding."""
    left, right = (torch.linalg.qr(normal(seed + k, size, len(values))).Q for k, size in enumerate(shape))
    return (left * torch.as_tensor(values) @ right.T).to(dtype)


@pytest.mark.parametrize("shape", [(90, 60), (60, 90), (60, 60)])
@pytest.mark.parametrize("rank", [1, 40, 59, 60])
def test_the_bounds_enclose_the_gap_of_a_graded_matrix(shape, rank):
    matrix = with_values(np.geomspace(1, 1e-8, rank), shape, rank)
    exact, gap = np.linalg.svd(matrix.numpy(), compute_uv=False), gap_of(matrix)
    rounding = 20 * np.finfo(float).eps
    assert gap.count == rank
    assert exact[rank - 1] / 30 < gap.above < exact[rank - 1] + rounding
    assert gap.below <= rounding
    assert (gap.below == 0) == (rank == min(shape))
    smallest, largest = gap.largest
    assert smallest == pytest.approx(exact[0], rel=0.05)
    assert smallest <= exact[0] * (1 + rounding) <= largest * (1 + 2 * rounding)


@pytest.mark.parametrize("small", [1e-11, 1e-13])
def test_what_is_below_the_gap_is_bounded_from_above(small):
    """Twenty values of one size below a step: the bound is the largest of them, and not a share of the rounding."""
    matrix = with_values(np.append(np.geomspace(1, 1e-3, 30), np.full(20, small)), (80, 50), 1)
    gap = gap_of(matrix)
    assert gap.count == 30
    assert gap.below == pytest.approx(small, rel=1e-14 / small)
    assert 1e-3 / 30 < gap.above <= 1e-3 * (1 + 1e-6)


@pytest.mark.parametrize("scale", [1e-150, 1e100])
def test_bounds_scale_with_the_matrix(scale):
    matrix = with_values(np.geomspace(1, 1e-5, 20), (40, 30), 2)
    plain, scaled = gap_of(matrix), gap_of(scale * matrix)
    assert scaled.count == plain.count
    assert scaled.above == pytest.approx(scale * plain.above, rel=1e-6)
    assert scaled.largest == pytest.approx([scale * size for size in plain.largest], rel=1e-6)


def test_in_single_precision_the_gap_ends_at_its_own_rounding():
    gap = gap_of(with_values(np.geomspace(1, 1e-3, 20), (40, 30), 3, torch.float32))
    assert gap.count == 20
    assert 0 < gap.below < 1e-5


@pytest.mark.parametrize("matrix", [torch.zeros(5, 3), torch.full((4, 4), torch.nan), torch.full((2, 3), torch.inf)])
def test_zeros_and_entries_that_are_not_finite_have_no_gap(matrix):
    assert gap_of(matrix) is None


@pytest.mark.parametrize("shape", [(40, 90), (90, 40)])
def test_rows_that_are_random_sums_have_the_same_bounds(shape):
    matrix = with_values(np.geomspace(1, 1e-4, 30), shape, 5)
    mixed, plain = gap_of(matrix), gap_of(matrix, sums=True)
    assert plain.count == mixed.count == 30
    assert plain.above == pytest.approx(mixed.above, rel=1e-6)


def test_null_columns_anywhere_are_found():
    """Zero columns between the others: only a mixture of columns brings them to the end."""
    matrix = normal(4, 60, 40)
    matrix[:, ::3] = 0
    gap = gap_of(matrix)
    assert gap is not None
    assert gap.count == 40 - len(range(0, 40, 3))
    assert gap.above <= float(torch.linalg.svdvals(matrix)[gap.count - 1])


def test_a_block_of_null_columns_is_found():
    """Signs do not change which columns are zero, so one transform of signed columns leaves a gap after 196."""
    matrix = normal(4, 200, 200)
    matrix[:, 100:] = 0
    gap = gap_of(matrix)
    exact = torch.linalg.svdvals(matrix)
    assert gap.count == 100
    assert float(exact[99]) / 100 < gap.above <= float(exact[99])
    assert gap.below < 1e-12 * float(exact[0])


def test_the_largest_value_is_enclosed_where_others_cluster_below_it():
    """One value above 99 of 80 % of its size: a few steps of the power method end between them."""
    matrix = with_values([1.0, *[0.8] * 99], (120, 110), 6)
    smallest, largest = gap_of(matrix).largest
    assert 0.8 < smallest < 0.98
    assert 1 <= largest < 10


@pytest.mark.parametrize(("scale", "resolved"), [(1e100, True), (1e160, False)])
def test_squares_that_overflow_leave_the_rank_open(scale, resolved):
    rank = _rank_of_rows(scale * with_values(np.geomspace(1, 1e-3, 20), (40, 30), 7), 1e-14, 30)
    assert rank.resolved == resolved
    assert rank.rank == (20 if resolved else 30)
