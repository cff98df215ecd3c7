"""The algebra of operators: every operation against dense matrices, by each route, with facts that are true."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import eigsh

import curvature as cv
from curvature.layout import Entry, Layout
from curvature.linalg.facts import NullSpace
from curvature.linalg.routes import EntriesRoute, ProductCost, Routes
from curvature.matrices import MATRICES
from oracles import distance, factor_of, factor_route, normal, operator_of, with_spectrum, without_entries

DIM = 8
LAYOUT = Layout((Entry("0.weight", (2, 3), "0", 0), Entry("0.bias", (2,), "0", 0)))
INDEX = torch.tensor([4, 1, 6])
TALL, WIDE = normal(21, DIM, 5), normal(22, DIM, 11)


def semidefinite(rank, seed, name):
    """A matrix of this rank with every route and fact, and its null space."""
    factor = normal(seed, DIM, rank)
    matrix = factor @ factor.T
    null = torch.linalg.svd(factor.T, full_matrices=True).Vh[rank:].T
    return operator_of(
        matrix,
        where=cv.Where(name, "standard", num_examples=3),
        routes=Routes(
            EntriesRoute(matrix.clone, 100.0 * rank, 8.0 * DIM**2),
            factor_route(*factor.split(2, dim=1), block_bytes=16.0 * DIM),
            ProductCost(1000.0, 8.0 * DIM, 10.0 * rank),
        ),
        layout=LAYOUT,
        positive_semidefinite=True,
        rank_bound=rank,
        null_space=lambda: NullSpace(null, {"by construction": DIM - rank}),
        num_null_directions=DIM - rank,
        gradient=lambda: factor.sum(dim=1),
    )


A, B = semidefinite(3, 1, "first"), semidefinite(4, 2, "second")


@dataclass(frozen=True)
class Case:
    """An operation on ``A`` and ``B``, the same on dense matrices, and what must be known of the result."""

    build: object
    expected: object
    definite: bool = True
    factor: int | None = None  # columns of the factor; None: no factor
    bound: int | None = None  # of the rank
    name: str = ""


def eye(like=A):
    return torch.eye(like.dim, dtype=torch.float64)


CASES = {
    "sum": Case(lambda a, b: a + b, lambda a, b: a + b, factor=7, bound=7, name="first + second"),
    "difference": Case(lambda a, b: a - b, lambda a, b: a - b, definite=False, bound=7, name="first + -1 second"),
    "multiple": Case(lambda a, _: 2.5 * a, lambda a, _: 2.5 * a, factor=3, bound=3, name="2.5 first"),
    "multiple from the right": Case(lambda a, _: a * 3, lambda a, _: 3 * a, factor=3, bound=3, name="3 first"),
    "negative": Case(lambda a, _: -a, lambda a, _: -a, definite=False, bound=3, name="-1 first"),
    "negative multiple": Case(lambda a, _: -0.5 * a, lambda a, _: -0.5 * a, definite=False, bound=3, name="-0.5 first"),
    "twice negative": Case(lambda a, _: -1 * -a, lambda a, _: a, definite=False, bound=3, name="-1 -1 first"),
    "shift": Case(lambda a, _: a.shifted(0.7), lambda a, _: a + 0.7 * eye(), factor=11, name="first + 0.7 identity"),
    "negative shift": Case(
        lambda a, _: a.shifted(-0.7), lambda a, _: a - 0.7 * eye(), definite=False, name="first + -0.7 identity"
    ),
    "identity": Case(lambda a, _: cv.identity(a), lambda *_: eye(), factor=8, name="identity"),
    "tall congruence": Case(
        lambda a, _: a.congruence(TALL), lambda a, _: TALL.T @ a @ TALL, factor=3, bound=3, name="first"
    ),
    "wide congruence": Case(
        lambda _, b: b.congruence(WIDE), lambda _, b: WIDE.T @ b @ WIDE, factor=4, bound=4, name="second"
    ),
    "principal": Case(
        lambda a, _: a.principal(INDEX, "three"), lambda a, _: a[INDEX][:, INDEX], factor=3, bound=3, name="first"
    ),
    "block": Case(lambda a, _: a.block("bias"), lambda a, _: a[6:, 6:], factor=3, bound=2, name="first"),
    "materialized": Case(lambda a, _: a.materialized(), lambda a, _: a, factor=3, bound=3, name="first"),
    "all of it": Case(
        lambda a, b: (2 * a + b.materialized()).congruence(TALL).principal(torch.tensor([3, 0]), "two"),
        lambda a, b: (TALL.T @ (2 * a + b) @ TALL)[[3, 0]][:, [3, 0]],
        factor=7,
        bound=2,
        name="2 first + second",
    ),
}
EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def dense(operator):
    """Entries by products with the identity alone."""
    return operator.matmat(torch.eye(operator.dim, dtype=operator.dtype))


def evaluated(case, first=A, second=B):
    return case.build(first, second), case.expected(dense(first), dense(second))


# ------------------------------------------------------------------------------------------ against dense matrices


@EVERY
def test_products_entries_and_scipy_are_those_of_the_dense_expression(case):
    operator, expected = evaluated(case)
    block = normal(5, operator.dim, 4)
    assert operator.dim == len(expected)
    assert distance(operator @ block, expected @ block) < 1e-14
    assert distance(operator @ block[:, 0], expected @ block[:, 0]) < 1e-14
    assert distance(operator.dense(), expected) < 1e-14
    scipy = operator.to_scipy()
    assert (scipy.shape, scipy.dtype) == (expected.shape, np.float64)
    for product in (scipy @ block.numpy(), scipy.H @ block.numpy(), scipy.matmat(block.numpy())):
        assert np.abs(product - (expected @ block).numpy()).max() < 1e-13 * float((expected @ block).norm())
    assert scipy.matvec(block[:, 0].numpy()) == pytest.approx((expected @ block[:, 0]).numpy(), rel=1e-10, abs=1e-12)


@EVERY
def test_every_route_of_the_result_leads_to_its_products(case):
    operator, expected = evaluated(case)
    assert operator.routes.entries is not None
    assert distance(operator.routes.entries.compute(), expected) < 1e-14
    route = operator.routes.factor
    assert (None if route is None else route.num_columns) == case.factor
    if route is not None:
        columns = factor_of(operator)
        assert columns.shape == (operator.dim, case.factor)
        assert distance(columns @ columns.T, expected) < 1e-14
        assert distance(operator.gram(), columns.T @ columns) < 1e-14
        # Asked twice it gives the same: a generator that is used up would be empty.
        assert torch.equal(columns, factor_of(operator))
    assert distance(without_entries(operator).dense(), expected) < 1e-14


@EVERY
def test_what_is_said_of_the_result_is_true(case):
    operator, expected = evaluated(case)
    values = torch.linalg.eigvalsh(expected)
    rounding = 1e-13 * float(values.abs().max())
    assert operator.facts.positive_semidefinite is case.definite
    assert not case.definite or float(values[0]) > -rounding
    assert operator.facts.rank_bound == case.bound
    assert case.bound is None or int((values.abs() > rounding).sum()) <= case.bound
    if operator.facts.null_space is not None:
        space = operator.facts.null_space()
        assert space.dim == operator.facts.num_null_directions > 0
        assert float((expected @ space.basis).abs().max()) < rounding
    if operator.facts.gradient is not None:
        slope = A.facts.gradient()
        kept = {3: INDEX, 2: torch.tensor([6, 7])}.get(operator.dim, torch.arange(DIM))
        assert torch.equal(operator.facts.gradient(), slope[kept])
    assert operator.where.matrix == case.name
    assert "\n" not in repr(operator)


@EVERY
def test_the_result_has_the_spectrum_of_the_dense_expression_by_every_method(case):
    operator, expected = evaluated(case)
    values = torch.linalg.eigvalsh(expected).numpy()
    methods = ["auto", "dense"] + ([] if case.factor is None else ["factor"])
    methods += ["gram"] if case.factor is not None and case.factor <= operator.dim else []
    for method in methods:
        result = cv.spectrum(operator, method=method)
        assert np.abs(result.eigenvalues - values).max() < 1e-13 * np.abs(values).max()
        assert (result.matrix, result.positive_semidefinite) == (case.name, case.definite)
        low, high = result.possible_ranks
        assert low <= int((np.abs(values) > 1e-12 * np.abs(values).max()).sum()) <= high
    assert all(check.passed for check in operator.checks)
    ends = cv.extremal_eigenvalues(operator, num_largest=2, tolerance=1e-10)
    assert np.abs(ends.largest - values[::-1][:2]).max() < 1e-9 * np.abs(values).max()


def test_arpack_and_a_sum_agree():
    operator = A - 0.5 * B
    result = eigsh(operator.to_scipy(), k=2, which="LA", return_eigenvectors=False)
    np.testing.assert_allclose(
        np.sort(result), torch.linalg.eigvalsh(dense(A) - 0.5 * dense(B))[-2:].numpy(), rtol=1e-10
    )


@st.composite
def expressions(draw, depth=3):
    """A random expression in ``A`` and ``B``, as an operator and as a dense matrix, of dimension 8."""
    if depth == 0 or draw(st.integers(0, 4)) == 0:
        operator = draw(st.sampled_from([A, B, cv.identity(A), A.materialized(), without_entries(B)]))
        return operator, dense(operator)
    kind = draw(st.sampled_from(["sum", "difference", "multiple", "shift", "congruence"]))
    first, matrix = draw(expressions(depth=depth - 1))
    if kind in ("sum", "difference"):
        second, other = draw(expressions(depth=depth - 1))
        return (first + second, matrix + other) if kind == "sum" else (first - second, matrix - other)
    scale = draw(st.sampled_from([-3.0, -1.0, 0.25, 2.0]))
    if kind == "multiple":
        return scale * first, scale * matrix
    if kind == "shift":
        return first.shifted(scale), matrix + scale * eye()
    map_ = torch.linalg.qr(normal(draw(st.integers(0, 99)), DIM, DIM)).Q
    return first.congruence(map_, name="standard"), map_.T @ matrix @ map_


@settings(max_examples=60)
@given(pair=expressions())
def test_any_expression_is_the_dense_one_and_says_nothing_false_of_it(pair):
    operator, expected = pair
    values = torch.linalg.eigvalsh(expected)
    rounding = 1e-11  # entries are of the order of ten, and differences may cancel
    assert float((dense(operator) - expected).abs().max()) < rounding
    if operator.routes.entries is not None:
        assert float((operator.routes.entries.compute() - expected).abs().max()) < rounding
    if operator.routes.factor is not None:
        columns = factor_of(operator)
        assert columns.shape[1] == operator.routes.factor.num_columns
        assert float((columns @ columns.T - expected).abs().max()) < rounding
        assert operator.facts.positive_semidefinite
    assert not operator.facts.positive_semidefinite or float(values[0]) > -rounding
    bound = operator.facts.rank_bound
    assert bound is None or int((values.abs() > rounding).sum()) <= bound


# ------------------------------------------------------------------------------------------------ cancelling terms


def test_a_difference_of_equal_matrices_is_zero_and_not_an_error():
    other = operator_of(dense(A), where=A.where, routes=without_entries(A).routes, positive_semidefinite=True)
    for zero in (A - A, A - other, (A + B) - (B + A)):
        result = cv.spectrum(zero)
        assert np.abs(result.eigenvalues).max() < 1e-14 * float(dense(A).norm())
        assert np.abs(result.eigenvalues).max() <= result.noise_floor


def test_a_congruence_onto_the_null_space_is_zero_and_not_an_error():
    null = A.facts.null_space().basis
    result = cv.spectrum(A.congruence(null))
    assert np.abs(result.eigenvalues).max() < 1e-13 * float(dense(A).norm())


def test_nothing_that_is_shared_is_changed():
    """Entries that an operator keeps are read by its multiples, sums, charts and blocks, and not written."""
    kept = A.materialized()
    before, outside = kept.kept.clone(), dense(A)
    for build in (lambda a: 2 * a, lambda a: a + a, lambda a: a - 0.5 * a, lambda a: a.shifted(1.0), lambda a: -a):
        operator = build(kept)
        for _ in range(2):
            assert distance(operator.dense(), build(A).dense()) < 1e-14
        operator.materialized() @ normal(3, DIM)
        assert torch.equal(kept.kept, before)
        assert torch.equal(kept.dense(), before)
    assert torch.equal(dense(A), outside)
    unit = cv.identity(A)
    vector = normal(4, DIM)
    product = unit @ vector
    product += 1.0
    assert torch.equal(unit @ vector, vector)
    assert torch.equal(vector, normal(4, DIM))


@pytest.mark.parametrize("chart", [cv.Standard(), cv.ScaledStandard(1.0), cv.WeightNorm()])
@pytest.mark.parametrize("move", [cv.pullback, cv.effective])
def test_a_matrix_that_keeps_its_entries_keeps_them_under_charts_and_algebra(chart, move, mlp, classification_data):
    problem = cv.Problem.from_module(mlp(3, 2, 2), loss="cross-entropy", data=classification_data(6, 3, 2))
    kept = cv.ggn(problem).materialized()
    before = kept.kept.clone()
    moved = move(kept, chart)
    expected = moved.dense()
    for _ in range(2):
        assert distance((2 * moved + moved).dense(), 3 * expected) < 1e-13
        assert distance((-moved).dense(), -expected) < 1e-13
    assert torch.equal(kept.kept, before)


# ------------------------------------------------------------------------------------------------------- costs


def test_costs_of_a_result_are_counted_from_its_parts():
    both = A + B
    assert both.routes.entries.multiplications == 300 + 400
    assert both.routes.entries.peak_bytes == 2 * 8 * DIM**2
    assert both.routes.factor.block_bytes == 16 * DIM
    assert both.routes.products == ProductCost(2000.0, 16.0 * DIM, 70.0)
    double = 2 * A
    assert (double.routes.entries.multiplications, double.routes.products) == (300, A.routes.products)
    part = A.principal(INDEX, "three")
    assert part.routes.entries.multiplications == 300
    assert part.routes.entries.peak_bytes >= A.dense_bytes
    assert part.routes.products.multiplications == 30
    assert part.routes.products.column_bytes > A.routes.products.column_bytes
    assert A.congruence(TALL).routes.products.multiplications is None
    assert A.congruence(TALL).routes.entries.multiplications is None


def test_a_sum_with_a_part_that_nobody_counted_is_not_counted():
    unknown = replace(B, routes=replace(B.routes, products=ProductCost()))
    assert (A + unknown).routes.products.multiplications is None
    entries = replace(B.routes.entries, multiplications=None)
    assert (A + replace(B, routes=replace(B.routes, entries=entries))).routes.entries.multiplications is None


@pytest.mark.parametrize("missing", ["entries", "factor"])
def test_a_sum_has_only_the_routes_that_both_parts_have(missing):
    part = replace(B, routes=replace(B.routes, **{missing: None}))
    for both in (A + part, part + A):
        assert getattr(both.routes, missing) is None
        assert distance(both.dense(), dense(A) + dense(B)) < 1e-14


# ------------------------------------------------------------------------------------------------ header and names


def test_the_header_says_what_was_added_and_in_which_coordinates(mlp, classification_data):
    problem = cv.Problem.from_module(mlp(3, 2, 2), loss="cross-entropy", data=classification_data(6, 3, 2))
    chart = cv.WeightNorm(stretch=2.0)
    both = cv.pullback(cv.ggn(problem), chart) + 1e-3 * cv.pullback(cv.hessian(problem), chart)
    assert (both.where.matrix, both.where.chart, both.where.gauge) == (
        "ggn + 0.001 hessian",
        "weight-norm",
        "stretch=2",
    )
    assert both.where.num_examples == 6
    assert [entry.name for entry in both.layout.entries][:2] == ["0.weight.g", "0.weight.v"]
    assert (both.block("0.weight").where.block, both.block("0.weight").dim) == ("0.weight", 2 + 6)
    mine = cv.SymmetricOperator.from_dense(torch.eye(both.dim, dtype=torch.float64), name="mine")
    for mixed in (both + mine, mine + both):
        assert (mixed.where.chart, mixed.where.gauge) == ("weight-norm", "stretch=2")
        assert mixed.layout is both.layout
    moved = cv.ggn(problem).congruence(torch.eye(problem.dim, 4, dtype=torch.float64), "mine")
    assert (moved.where.chart, moved.where.gauge, moved.where.matrix) == ("mine", "-", "ggn")
    assert A.principal(INDEX, "three").where == replace(A.where, block="three")


def test_blocks_of_a_sum_are_sums_of_blocks():
    both, names = A + B, ["0.weight", "0.bias"]
    for name in names:
        span = LAYOUT.slices[name]
        assert distance(both.block(f"^{name}$").dense(), (dense(A) + dense(B))[span, span]) < 1e-14
    blocks = cv.blocks(both, "neuron")
    assert len(blocks) == 2
    for number, block in enumerate(blocks.values()):
        rows = [3 * number, 3 * number + 1, 3 * number + 2, 6 + number]
        assert distance(block.dense(), (dense(A) + dense(B))[rows][:, rows]) < 1e-14


# ---------------------------------------------------------------------------------------------- what must be refused


@pytest.mark.parametrize(
    "difference",
    [{"chart": "weight-norm"}, {"gauge": "paper"}, {"block": "0"}, {"effective": True}],
    ids=lambda part: next(iter(part)),
)
def test_different_coordinates_do_not_add_up(difference):
    other = replace(B, where=replace(B.where, **difference))
    for build in (lambda: A + other, lambda: other - A):
        with pytest.raises(cv.ConfigurationError, match="different coordinates, so their sum means nothing"):
            build()


def test_a_chart_and_the_weights_do_not_add_up(mlp, classification_data):
    problem = cv.Problem.from_module(mlp(3, 2, 2), loss="cross-entropy", data=classification_data(6, 3, 2))
    ggn = cv.ggn(problem)
    with pytest.raises(cv.ConfigurationError, match="different coordinates"):
        ggn + cv.effective(ggn, cv.WeightNorm())
    with pytest.raises(cv.ConfigurationError, match="different coordinates"):
        cv.effective(ggn, cv.WeightNorm(stretch=2.0)) + cv.effective(ggn, cv.WeightNorm())


def test_different_sizes_and_precisions_do_not_add_up():
    small = cv.SymmetricOperator.from_dense(torch.eye(3, dtype=torch.float64))
    single = cv.SymmetricOperator.from_dense(torch.eye(DIM))
    for other in (small, single):
        with pytest.raises(cv.ConfigurationError, match="a sum needs one dimension, one precision"):
            A + other


@pytest.mark.parametrize("scale", [0, 0.0, -0.0, math.nan, math.inf, -math.inf])
def test_factors_without_meaning_are_refused(scale):
    for build in (lambda: scale * A, lambda: A * scale, lambda: A.shifted(scale)):
        with pytest.raises(cv.ConfigurationError, match="needs a finite factor other than zero"):
            build()


@pytest.mark.parametrize("other", [1.0, None, "A", torch.eye(DIM, dtype=torch.float64)], ids=lambda x: type(x).__name__)
def test_only_operators_are_added(other):
    with pytest.raises(TypeError):
        A + other
    with pytest.raises(TypeError):
        A - other


@pytest.mark.parametrize("scale", [True, "2", None, 1j, torch.ones(2)], ids=str)
def test_only_numbers_multiply(scale):
    with pytest.raises(TypeError):
        A * scale


@pytest.mark.parametrize("shape", [(DIM,), (DIM - 1, 2), (DIM, 2, 2)])
def test_maps_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(cv.ConfigurationError, match=r"first needs a map of shape \(8, Q\)"):
        A.congruence(torch.zeros(shape, dtype=torch.float64))


def test_blocks_that_are_not_there_are_refused():
    with pytest.raises(cv.ConfigurationError, match="means several blocks"):
        A.block("layer")
    with pytest.raises(cv.ConfigurationError):
        A.block("nothing of that name")
    with pytest.raises(cv.ConfigurationError, match="no named coordinates"):
        A.principal(INDEX, "three").block("0")


@pytest.mark.parametrize("name", MATRICES)
def test_matrices_of_a_problem_keep_their_witnesses_in_blocks_and_congruences(name, mlp, classification_data):
    """A wrong product is still noticed after the algebra, by a computation that shares nothing with it."""
    problem = cv.Problem.from_module(mlp(3, 2, 2), loss="cross-entropy", data=classification_data(6, 3, 2))
    extra = (2, 0) if name == "monte_carlo_fisher" else ()
    right = MATRICES[name](problem, *extra)
    wrong = replace(right, matmat=lambda block: 1.01 * right.matmat(block))
    map_ = normal(7, problem.dim, 5)
    for build in (lambda a: a.congruence(map_), lambda a: a.block("weight"), lambda a: a.principal(INDEX, "three")):
        assert all(check.passed for check in build(right).checks)
        assert any("finite differences" in check.name for check in build(right).checks)
        with pytest.raises(cv.SelfCheckError):
            _ = build(wrong).checks


def test_indefinite_input_stays_undecided():
    """No sum or multiple of an indefinite matrix is promised to be semidefinite."""
    mixed = operator_of(with_spectrum([-1.0, *np.linspace(0.1, 2, DIM - 1)]), where=A.where)
    for operator in (
        A + mixed,
        mixed + A,
        2.0 * mixed,
        -mixed,
        mixed.congruence(TALL),
        mixed.principal(INDEX, "three"),
    ):
        assert not operator.facts.positive_semidefinite
        assert operator.routes.factor is None


def test_a_difference_keeps_the_rounding_of_its_terms():
    """Softmax regression is linear: its Hessian is its GGN, and what their difference leaves is rounding alone."""
    problem = cv.zoo.softmax_regression(60, 5, 4)
    spectrum = cv.spectrum(cv.hessian(problem, method="structured") - cv.ggn(problem, method="generic"))
    assert np.abs(spectrum.eigenvalues).max() > 0  # there is something to be fooled by
    assert spectrum.num_resolved == 0
    mean = cv.spectrum(cv.ggn(problem)).trace / problem.dim
    assert spectrum.noise_floor > 10 * torch.finfo(torch.float64).eps * mean


@pytest.mark.parametrize("factor", [3.0, -0.5])
def test_multiples_congruences_and_blocks_of_a_difference_keep_it_too(factor):
    large = 1e6 * cv.SymmetricOperator.from_dense(TALL @ TALL.T)
    small = large - large.shifted(-1.0)  # the identity, off by the rounding of a million
    expected = 1e6 * torch.finfo(torch.float64).eps
    map_ = torch.eye(DIM, 5, dtype=torch.float64)
    for operator, scale in ((small, 1.0), (factor * small, abs(factor)), (small.congruence(map_), 1.0)):
        assert cv.spectrum(operator).noise_floor > scale * expected
    assert cv.spectrum(small.principal(torch.arange(4), "first")).noise_floor > expected
