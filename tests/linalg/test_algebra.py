"""Sums, multiples, congruences and blocks of operators: dense algebra by every route, and the facts that survive."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

import curvature as cv
from oracles import distance, factored, normal, operator_of, with_spectrum

DIM = 12
IDENTITY = torch.eye(DIM, dtype=torch.float64)
FIRST, SECOND = normal(1, DIM, 7), normal(2, DIM, 3)
PSD, OTHER = FIRST @ FIRST.T, SECOND @ SECOND.T
MAP = normal(3, DIM, 5)
KINDS = {
    "entries": cv.SymmetricOperator.from_dense,
    "products": operator_of,
    "factor": lambda matrix: factored(*(FIRST if matrix is PSD else SECOND).split(2, dim=1)),
}
OPERATIONS = {
    "sum": (lambda a, b: a + b, PSD + OTHER),
    "difference": (lambda a, b: a - b, PSD - OTHER),
    "multiple": (lambda a, _: 3 * a, 3 * PSD),
    "negative": (lambda a, _: -a, -PSD),
    "multiple from the right": (lambda a, _: a * 0.5, PSD / 2),
    "shift": (lambda a, _: a.shifted(0.25), PSD + 0.25 * IDENTITY),
    "shift by the identity": (lambda a, _: a + 1e-3 * cv.identity(a), PSD + 1e-3 * IDENTITY),
    "congruence": (lambda a, _: a.congruence(MAP), MAP.T @ PSD @ MAP),
    "block": (lambda a, _: a.principal(torch.tensor([2, 0, 9]), "three"), PSD[[2, 0, 9]][:, [2, 0, 9]]),
    "all together": (
        lambda a, b: (2 * a - b).shifted(0.5).congruence(MAP),
        MAP.T @ (2 * PSD - OTHER + 0.5 * IDENTITY) @ MAP,
    ),
}


@pytest.mark.parametrize("kinds", [("entries", "entries"), ("products", "entries"), ("factor", "factor")])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_algebra_of_operators_is_that_of_their_matrices_by_every_route(operation, kinds):
    first, second = (KINDS[kind](matrix) for kind, matrix in zip(kinds, (PSD, OTHER), strict=True))
    combine, expected = OPERATIONS[operation]
    result = combine(first, second)
    block = normal(4, len(expected), 3)
    assert result.dim == len(expected)
    assert distance(result @ block, expected @ block) < 1e-14
    assert distance(result @ block[:, 0], expected @ block[:, 0]) < 1e-14
    assert distance(result.dense(), expected) < 1e-14
    assert torch.equal(result.dense(), result.dense().T)
    if result.routes.factor is not None:
        columns = torch.cat(list(result.routes.factor.blocks()), dim=1)
        assert columns.shape[1] == result.routes.factor.num_columns
        assert distance(columns @ columns.T, expected) < 1e-14
    exact = np.linalg.eigvalsh(expected.numpy())
    assert np.abs(cv.spectrum(result).eigenvalues - exact).max() < 1e-12 * np.abs(exact).max()
    assert distance(first.dense(), PSD) < 1e-14  # neither term has changed
    assert distance(second.dense(), OTHER) < 1e-14


@pytest.mark.parametrize("name", ["hessian", "ggn", "empirical_fisher", "gradient_covariance"])
def test_algebra_of_the_matrices_of_a_network_leaves_them_as_they_are(name, mlp, classification_data):
    problem = cv.Problem.from_module(mlp(3, 4, 2), loss="cross-entropy", data=classification_data(9, 3, 2))
    matrix, ggn = getattr(cv, name)(problem), cv.ggn(problem)
    before, other = matrix.dense(), ggn.dense()
    assert distance((matrix - ggn + matrix).dense(), 2 * before - other) < 1e-13
    assert torch.equal(matrix.dense(), before)
    assert torch.equal(ggn.dense(), other)
    for pattern, index in problem.layout.blocks("layer").items():
        expected = before[index][:, index]
        assert distance(matrix.block(rf"^{pattern}\.").dense(), expected, before) < 1e-13
        assert distance((2 * matrix).block(rf"^{pattern}\.").dense(), 2 * expected, before) < 1e-13


def test_rank_and_definiteness_survive_where_they_must(mlp, classification_data):
    problem = cv.Problem.from_module(mlp(3, 4, 2), loss="cross-entropy", data=classification_data(9, 3, 2))
    ggn = cv.ggn(problem)
    rank = cv.spectrum(ggn).rank
    assert cv.spectrum(3 * ggn).rank == rank
    assert cv.spectrum(-ggn).rank == rank
    assert cv.spectrum(ggn.shifted(1.0)).rank == problem.dim
    assert cv.spectrum(ggn + ggn).rank == rank
    assert (ggn + 2 * ggn).facts.positive_semidefinite
    assert not (ggn - ggn).facts.positive_semidefinite
    assert not (-ggn).facts.positive_semidefinite
    assert not (ggn + cv.hessian(problem)).facts.positive_semidefinite


def test_names_say_what_was_combined_and_coordinates_must_agree(mlp, classification_data):
    problem = cv.Problem.from_module(mlp(3, 4, 2), loss="cross-entropy", data=classification_data(9, 3, 2))
    ggn, hessian = cv.ggn(problem), cv.hessian(problem)
    assert (ggn + hessian).name == "ggn + hessian"
    assert (3 * ggn).name == "3 ggn"
    assert (ggn + ggn.shifted(1.0)).where.chart == ggn.where.chart
    moved = cv.effective(ggn, cv.WeightNorm())
    with pytest.raises(cv.ConfigurationError, match="different coordinates"):
        ggn + moved
    other = cv.effective(hessian, cv.WeightNorm())
    assert distance((moved + other).dense(), moved.dense() + other.dense()) < 1e-14
    with pytest.raises(cv.ConfigurationError, match="cannot be added"):
        ggn + cv.SymmetricOperator.from_dense(torch.eye(3, dtype=torch.float64))
    with pytest.raises(cv.ConfigurationError, match="cannot be added"):
        ggn + cv.SymmetricOperator.from_dense(torch.eye(ggn.dim))
    for factor in (0, 0.0, float("nan"), float("inf")):
        with pytest.raises(cv.ConfigurationError, match="finite factor other than zero"):
            factor * ggn
    for what in (1.0, "ggn", torch.eye(ggn.dim, dtype=torch.float64)):
        with pytest.raises(TypeError):
            ggn + what
    with pytest.raises(TypeError):
        ggn * ggn
    with pytest.raises(cv.ConfigurationError, match=rf"map of shape \({ggn.dim}, Q\)"):
        ggn.congruence(MAP)
    with pytest.raises(cv.ConfigurationError, match="several blocks"):
        ggn.block("layer")


def test_scipy_finds_the_eigenvalues_of_a_sum():
    operator = cv.SymmetricOperator.from_dense(with_spectrum(np.arange(1.0, DIM + 1))) + operator_of(IDENTITY)
    values = scipy.sparse.linalg.eigsh(operator.to_scipy(), k=3, which="LA", return_eigenvectors=False)
    assert np.allclose(np.sort(values), [DIM - 1, DIM, DIM + 1])


def test_a_difference_keeps_the_rounding_of_its_terms():
    """Softmax regression is linear: its Hessian is its GGN, and what their difference leaves is rounding alone."""
    problem = cv.zoo.softmax_regression(60, 5, 4)
    difference = cv.hessian(problem, method="structured") - cv.ggn(problem, method="generic")
    spectrum = cv.spectrum(difference)
    assert np.abs(spectrum.eigenvalues).max() > 0  # there is something to be fooled by
    assert spectrum.num_resolved == 0
    assert spectrum.noise_floor > 10 * torch.finfo(torch.float64).eps * float(
        cv.spectrum(cv.ggn(problem)).trace / problem.dim
    )


@pytest.mark.parametrize("factor", [3.0, -0.5])
def test_multiples_congruences_and_blocks_of_a_difference_keep_it_too(factor):
    whole = cv.SymmetricOperator.from_dense(PSD) * 1e6
    small = whole - whole.shifted(-1.0)  # the identity, off by the rounding of a million
    expected = 1e6 * torch.finfo(torch.float64).eps
    map_ = IDENTITY[:, :5]
    for operator, scale in ((small, 1.0), (factor * small, abs(factor)), (small.congruence(map_), 1.0)):
        assert cv.spectrum(operator).noise_floor > scale * expected
    block = small.principal(torch.arange(4), "first")
    assert cv.spectrum(block).noise_floor > expected
