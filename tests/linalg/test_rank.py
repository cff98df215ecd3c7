"""The rank of one matrix by every route: entries, factor, Gram matrix, charts, and a loss without a factor.

Spectra are prescribed, with gaps around the two noise floors: about 1e-15 for the entries and 1e-29 for the factor.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import curvature as cv
from oracles import factored, in_chart, normal, with_spectrum

DIM = 12
PERCENTS = (50, 80, 95)
FACTOR_FLOOR = 1e-26  # squared singular values above it are there, whatever the rounding of the factor


def orthogonal(rows, columns, seed):
    return torch.linalg.qr(normal(seed, rows, columns)).Q


def factor_with(values, num_columns, seed):
    """A factor ``(D, num_columns)`` of a matrix with these eigenvalues."""
    roots = torch.from_numpy(np.sqrt(values))
    return orthogonal(len(values), len(values), seed) * roots @ orthogonal(num_columns, len(values), seed + 1).T


# A plateau of ordinary eigenvalues, then a gap, then what lies at or below one of the floors, then zeros.
spectra = st.builds(
    lambda ordinary, small, tail, zeros: np.array(
        sorted([1.0, *(10.0**-x for x in ordinary), *(10.0**-x for x in small), *(10.0**-x for x in tail)])[::-1]
        + [0.0] * zeros
    ),
    ordinary=st.lists(st.floats(0, 6), min_size=2, max_size=4),
    small=st.lists(st.floats(8, 15), max_size=2),
    tail=st.lists(
        st.sampled_from([14.0, 15.0, 15.5, 16.0, 17.0, 20.0, 24.0, 27.0, 28.0, 29.0, 30.0, 32.0]), max_size=4
    ),
    zeros=st.integers(0, 3),
)


def compare(records, truth, values):
    """No two records contradict each other, and none excludes a truth that the factor can show."""
    numbers = {name: record.condition_numbers() for name, record in records.items()}
    positive = values[values > 0]
    for name, record in records.items():
        low, high = record.possible_ranks
        assert low <= truth, name
        if positive.min() > FACTOR_FLOOR:
            assert truth <= high, name
    for (one, first), (other, second) in itertools.combinations(records.items(), 2):
        (low, high), (least, most) = first.possible_ranks, second.possible_ranks
        assert max(low, least) <= min(high, most), (one, first.rank_rule, other, second.rank_rule)
        for percent in PERCENTS:
            mine, theirs = (numbers[name][f"kappa_{percent}"] for name in (one, other))
            slack = 1 + 1e-9
            assert max(mine.low, theirs.low) <= slack * min(mine.high, theirs.high), (one, mine, other, theirs)


@settings(max_examples=40, deadline=None)
@given(values=spectra, seed=st.integers(0, 2**16), columns=st.sampled_from([0, 3, 150]))
def test_no_two_routes_to_a_matrix_resolve_different_ranks_or_condition_numbers(values, seed, columns):
    dim = len(values)
    factor = factor_with(values, dim, seed)
    rotated = factor @ orthogonal(dim + columns, dim, seed + 7).T  # the same matrix by other columns
    entries = factor @ factor.T
    records = {
        "given entries": cv.spectrum(cv.SymmetricOperator.from_dense((entries + entries.T) / 2)),
        "dense": cv.spectrum(factored(factor), method="dense"),
        "factor": cv.spectrum(factored(factor), method="factor"),
        "gram": cv.spectrum(factored(factor), method="gram"),
        "dense, other columns": cv.spectrum(factored(rotated), method="dense"),
        "factor, other columns": cv.spectrum(factored(*rotated.split(5, dim=1)), method="factor"),
    }
    compare(records, int((values > 0).sum()), values)


def regression(values, seed, loss="half-squared-error"):
    """Least squares whose GGN is ``X^T X / N`` with these eigenvalues, one row of weights."""
    num_examples = len(values) + 3
    inputs = factor_with(values, num_examples, seed).T * num_examples**0.5
    layer = nn.Linear(len(values), 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(normal(seed + 3, 1, len(values)))
    return cv.Problem.from_module(layer, loss=loss, data=(inputs, normal(seed + 4, num_examples, 1)))


CHARTS = [None, cv.WeightNorm(), cv.WeightNorm(stretch=16.0), cv.ScaledStandard(0.1), cv.Placebo(seed=2)]


@settings(max_examples=15, deadline=None)
@given(values=spectra, seed=st.integers(0, 2**16))
def test_no_two_charts_resolve_different_ranks(values, seed):
    truth, resolved = int((values > 0).sum()), {}
    operator = cv.ggn(regression(values, seed))
    for chart, method, effective in itertools.product(CHARTS, ("dense", "factor"), (True, False)):
        moved = in_chart(operator, chart, effective=effective)
        record = cv.spectrum(moved, method=method)
        low, high = record.possible_ranks
        assert low <= truth
        if values[values > 0].min() > FACTOR_FLOOR:
            assert truth <= high
        if low == high:
            resolved[record.label, method, effective] = low
    assert len(set(resolved.values())) <= 1, resolved


@pytest.mark.parametrize("gap", [1e3, 1e5, 1e12])
def test_a_gap_in_the_eigenvalues_alone_decides_nothing(gap):
    """A step of any width onto zeros, which no factor confirms: five more eigenvalues may lie below the floor."""
    values = np.array([0.0] * 5 + [max(1 / gap, 2e-12)] + [*np.geomspace(1e-3, 1, 10)])
    found = cv.spectrum(cv.SymmetricOperator.from_dense(with_spectrum(values, 2)))
    assert found.possible_ranks == (11, 16)
    assert "nothing shows that the eigenvalues below it are zero" in found.rank_rule
    assert found.condition_numbers()["kappa_95"].status in ("lower_bound", "unresolved")
    factor = torch.from_numpy(np.sqrt(values)) * orthogonal(16, 16, 3)
    for method in ("dense", "factor", "gram"):
        assert cv.spectrum(factored(factor), method=method).possible_ranks == (11, 11)


@pytest.mark.parametrize("hidden", [1e-16, 1e-18, 1e-22])
def test_eigenvalues_below_a_gap_at_the_floor_are_found_by_the_factor_or_left_open(hidden):
    """The fault: 483 and 512 as resolved ranks of one matrix, with 29 eigenvalues below the floor of its entries."""
    values = np.array([*np.geomspace(1, 1e-12, 30), *np.geomspace(10 * hidden, hidden, 4), 0.0, 0.0])
    factor = factor_with(values, 36, 1)
    entries = factor @ factor.T
    given_entries = cv.spectrum(cv.SymmetricOperator.from_dense((entries + entries.T) / 2))
    low, high = given_entries.possible_ranks
    assert low < 34 < high
    for method in ("dense", "factor", "gram"):
        assert cv.spectrum(factored(factor), method=method).possible_ranks == (34, 34)
    exact = values[0] / values[-(-95 * 34 // 100) - 1]
    kappa = cv.spectrum(factored(factor), method="factor").condition_numbers()["kappa_95"]
    assert kappa.status == "resolved"
    assert kappa.low <= exact <= kappa.high
    for record in (given_entries, cv.spectrum(factored(factor), method="dense")):
        bound = record.condition_numbers()["kappa_95"]
        assert bound.status == "lower_bound"
        assert bound.value <= exact


@pytest.mark.parametrize("trailing", [4.0, 1.5, 0.7])
def test_a_factor_whose_last_singular_values_lie_at_its_own_rounding_leaves_the_rank_open(trailing):
    """Two singular values at a fraction of the factor's floor, 20 units of rounding, and no formula for the rank."""
    floor = 20 * torch.finfo(torch.float64).eps
    singular = np.array([*np.geomspace(1, 1e-6, 10), trailing * floor, trailing * floor, 0.0, 0.0])
    factor = factor_with(singular**2, 14, 5)
    for method in ("dense", "factor"):
        low, high = cv.spectrum(factored(factor), method=method).possible_ranks
        assert low <= 12 <= high
        assert (low == high) == (trailing == 4)  # a gap of 16 above the floor, and zeros below it


def test_a_users_loss_and_the_built_in_one_do_not_contradict_each_other():
    """The same GGN: the built-in cross-entropy knows its factor, a function for one example does not."""
    for examples, widths in itertools.product((8, 20), ((2,), (4, 3))):
        problem = cv.zoo.digits_problem(examples, widths=widths, seed=0)
        own = cv.Problem.from_module(
            problem.model.requires_grad_(),
            loss=lambda f, y: functional.cross_entropy(f, y),
            data=(problem.inputs, problem.targets),
        )
        records = {
            "built-in, dense": cv.spectrum(cv.ggn(problem), method="dense"),
            "built-in, factor": cv.spectrum(cv.ggn(problem), method="factor"),
            "own, dense": cv.spectrum(cv.ggn(own)),
        }
        largest = max(float(record.eigenvalues[-1]) for record in records.values())
        apart = np.abs(records["built-in, dense"].eigenvalues - records["own, dense"].eigenvalues).max()
        assert apart < 1e-13 * largest
        singular = records["built-in, factor"].eigenvalues
        compare(records, int((singular > 1e-24 * largest).sum()), np.ones(1))
        # Only the visible part of the user's loss has a factor: it gives the likely rank.
        low, high = records["own, dense"].possible_ranks
        assert records["own, dense"].rank == records["built-in, factor"].rank
        assert low < high
        assert "without its parts at the level of rounding" in records["own, dense"].rank_rule


def test_a_users_squared_error_has_a_whole_factor_and_resolves_what_the_built_in_one_does():
    inputs, targets = normal(1, 12, 6), normal(2, 12, 2)
    inputs[:, 5] = inputs[:, 4] * (
        1 + 1e-9 * normal(3, 12)
    )  # singular values down to 1e-9, far below the entries' floor
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    ranks = {}
    for loss in ("half-squared-error", lambda f, y: 0.5 * ((f - y) ** 2).sum()):
        operator = cv.ggn(cv.Problem.from_module(module, loss=loss, data=(inputs, targets)))
        spectrum = cv.spectrum(operator, method="dense")
        ranks[str(loss)] = spectrum.possible_ranks
        kappa = spectrum.condition_numbers()["kappa_80"]
        singular = torch.linalg.svdvals(jacobian(module, inputs))
        rank = int((singular > 1e-13 * singular[0]).sum())
        exact = float((singular[0] / singular[-(-80 * rank // 100) - 1]) ** 2)
        assert spectrum.possible_ranks == (rank, rank)
        assert kappa.low <= exact <= kappa.high
    assert len(set(ranks.values())) == 1


def jacobian(module, inputs):
    """Derivatives of all outputs by all parameters, row by row by plain backward passes."""
    parameters = list(module.parameters())
    rows = [torch.autograd.grad(output, parameters, retain_graph=True) for output in module(inputs).reshape(-1)]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


def test_the_hessian_in_a_bent_chart_keeps_the_null_directions_of_weights_that_the_chart_keeps():
    """The shift of all biases of the last layer leaves the loss as it is; the shifts of normalized rows bend."""
    problem = cv.zoo.digits_problem(30, widths=(3,), seed=0)
    hessian = cv.hessian(problem)
    for chart, effective in itertools.product((cv.WeightNorm(stretch=2.0), cv.Placebo(seed=1)), (False, True)):
        moved = in_chart(hessian, chart, effective=effective)
        space = moved.facts.null_space()
        assert space.dim >= 1
        matrix = moved.dense()
        assert float((matrix @ space.basis).abs().max()) < 1e-13 * float(matrix.abs().max())
        shift = torch.zeros(moved.dim, dtype=torch.float64)
        (span,) = (span for entry, span in moved.layout.pairs() if entry.name == "2.bias")
        shift[span] = 1 / math.sqrt(10)
        assert float((space.basis.T @ shift).norm()) == pytest.approx(1, abs=1e-12)
    unknown = in_chart(hessian, _Cubed())
    assert unknown.facts.null_space().dim == 0  # a user's map: nothing is known of it


class _Cubed(cv.Parameterization):
    name = "cubed"

    def to_weights(self, coordinates):
        return coordinates**3

    def from_weights(self, weights):
        return weights.sign() * weights.abs() ** (1 / 3)
