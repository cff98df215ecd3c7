"""What a number is known to be: floors that are floors, intervals that hold the truth, ranks that are there."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

import curvature as cv
import oracles
from curvature.linalg.facts import Facts, NullSpace
from curvature.linalg.rank import formula_rank
from curvature.matrices import MATRICES
from curvature.models import zoo
from curvature.records import Measured, Quantity, Spectrum, Study, Where
from curvature.report import figures
from curvature.report.result import _number_table, _numbers, read_result, write_result
from oracles import factored, in_chart, without_entries

EPS = np.finfo(np.float64).eps
FAMILIES = {  # LAPACK's xLATMS: largest eigenvalue 1, condition number kappa
    "one large": lambda dim, kappa, _: [1.0, *[1 / kappa] * (dim - 1)],
    "one small": lambda dim, kappa, _: [*[1.0] * (dim - 1), 1 / kappa],
    "geometric": lambda dim, kappa, _: kappa ** -np.linspace(0, 1, dim),
    "arithmetic": lambda dim, kappa, _: np.linspace(1, 1 / kappa, dim),
    "log-uniform": lambda dim, kappa, rng: [1.0, 1 / kappa, *kappa ** -rng.random(dim - 2)],
}
KAPPAS = [1.0, 1e4, 1e8, 1e12, 1e14]


def reflected(rows, rng, count=4):
    """Multiply by a few random reflections from the left, in long double: exactly orthogonal to sixteen digits."""
    for _ in range(count):
        normal = rng.standard_normal(len(rows)).astype(np.longdouble)
        normal /= np.sqrt((normal**2).sum())
        rows = rows - 2 * np.outer(normal, normal @ rows)
    return rows


def symmetric(values, seed):
    """``Q diag Q^T`` with the same reflections on both sides, rounded once."""
    once = reflected(np.diag(np.asarray(values, dtype=np.longdouble)), np.random.default_rng(seed))
    matrix = reflected(once.T, np.random.default_rng(seed)).astype(np.float64)
    return torch.from_numpy((matrix + matrix.T) / 2)


def factor_of(values, columns, seed):
    """``B`` with ``B B^T`` of these eigenvalues, ``(len(values), columns)``."""
    values = np.sqrt(np.asarray(values, dtype=np.longdouble))
    middle = np.zeros((len(values), columns), dtype=np.longdouble)
    middle[np.arange(len(values)), np.arange(len(values))] = values
    left = reflected(middle, np.random.default_rng(seed))
    return torch.from_numpy(reflected(left.T, np.random.default_rng(seed + 1)).T.astype(np.float64))


def given_matrix(values, seed=0, **about):
    return cv.SymmetricOperator.from_dense(symmetric(values, seed), **about)


def prescribed(seed, dim=24):
    """A spectrum from a seed: one of the five, some copies, some cluster, some zeros; ascending."""
    rng = np.random.default_rng(seed)
    kappa = 10.0 ** rng.uniform(0, 14)
    values = np.array(FAMILIES[rng.choice(list(FAMILIES))](dim, kappa, rng), dtype=float)
    values[rng.integers(dim, size=3)] = values[rng.integers(dim)]
    where = rng.integers(1, dim)
    values[where] = values[where - 1] * (1 + 10.0 ** -rng.uniform(3, 14))
    values[rng.permutation(dim)[: rng.integers(0, dim // 2)]] = 0
    values[0] = 1.0
    return np.sort(values)


# ------------------------------------------------------------------------------------------------- the noise floor


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dim", [20, 80])
def test_no_eigenvalue_is_off_by_more_than_the_floor_nor_by_a_hundredth_only(dim, family):
    rng = np.random.default_rng(dim)
    shares = {"dense": [], "factor": []}
    for seed, kappa in enumerate(KAPPAS):
        values = np.sort(np.asarray(FAMILIES[family](dim, kappa, rng), dtype=float))
        dense = cv.spectrum(given_matrix(values, seed))
        shares["dense"].append(np.abs(dense.eigenvalues - values).max() / dense.noise_floor)
        factor = cv.spectrum(factored(factor_of(values, dim + 5, seed)), method="factor")
        off = np.abs(np.sqrt(factor.eigenvalues) - np.sqrt(values)).max()
        shares["factor"].append(off / factor.noise_floor**0.5)
    for found in shares.values():
        assert 0.01 < max(found) < 1


@pytest.mark.parametrize("dim", [100, 300, 600])
def test_rounding_of_one_sign_stays_below_the_floor(dim):
    """All entries positive: errors of sums add up, a fifth of the dimension in units of rounding."""
    factor = torch.ones(dim, 1, dtype=torch.float64) * torch.rand(
        1, dim - 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    for method in ("dense", "factor"):
        found = cv.spectrum(factored(factor), method=method)
        assert found.num_resolved == found.rank == 1


def test_the_floor_covers_what_two_ways_to_the_same_products_differ_by():
    dim, size = 40, 3e-13
    matrix = symmetric(np.linspace(1, 2, dim), 0)
    noise = torch.randn(dim, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = size * (noise + noise.T) / torch.linalg.matrix_norm(noise + noise.T, 2)
    rough = replace(cv.SymmetricOperator.from_dense(matrix), matmat=lambda block: matrix @ block + noise @ block)
    assert cv.spectrum(cv.SymmetricOperator.from_dense(matrix)).noise_floor < 0.1 * size
    found = cv.spectrum(rough)
    assert size < found.noise_floor < 30 * size
    assert found.floor_rule == "difference between two ways to the same products"


@pytest.mark.parametrize("name", ["hessian", "ggn", "monte_carlo_fisher"])
def test_in_single_precision_the_other_products_are_in_double(name):
    """Their difference is the error of the single precision products: measured against the double matrix."""
    exact, rough = (
        cv.Problem.from_module(zoo.mlp((6, 5, 3), seed=2), loss="cross-entropy", data=data(30, 6, 3), dtype=dtype)
        for dtype in (torch.float64, torch.float32)
    )
    exact = exact.at(rough.weights.double())
    exact = replace(exact, inputs=rough.inputs.double())
    if name == "monte_carlo_fisher":
        operator = cv.monte_carlo_fisher(rough, 2, torch.Generator().manual_seed(0))
        assert cv.spectrum(operator).dtype == "float32"
        return
    operator, reference = (MATRICES[name](problem) for problem in (rough, exact))
    apart = torch.linalg.matrix_norm(operator.entries().double() - reference.entries(), 2)
    found = cv.spectrum(operator)
    errors = np.abs(found.eigenvalues.astype(float) - cv.spectrum(reference).eigenvalues)
    assert float(errors.max()) < found.noise_floor
    assert float(apart) < found.noise_floor < 1000 * float(apart)
    (noise,) = (check.rounding for check in operator.checks if check.rounding is not None)
    vectors = torch.randn(operator.dim, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    vectors /= torch.linalg.vector_norm(vectors, dim=0)
    vectors = torch.cat([vectors, vectors[:, :1] - 2 * vectors[:, 1:2]], dim=1)  # as wide: width changes rounding
    ours, theirs = (operator @ vectors).double()[:, :2], (reference @ vectors.double())[:, :2]
    lengths = (torch.linalg.vector_norm(part, dim=0).max() for part in (ours - theirs, ours))
    assert noise == pytest.approx(float(next(lengths) / next(lengths)), rel=1e-3)


def data(num_examples, fan_in, num_classes):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(num_examples, fan_in, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(num_classes, (num_examples,), generator=generator)


@pytest.mark.parametrize("kappa", [1e7, 1e9])
def test_single_precision_says_where_it_ends(kappa):
    matrix = symmetric(np.geomspace(1, 1 / kappa, 12), 3)
    found = cv.spectrum(cv.SymmetricOperator.from_dense(matrix.float(), positive_semidefinite=False))
    assert found.eigenvalue(0).status == "below_noise_floor"
    assert found.eigenvalue(-1).status == "resolved"
    assert cv.spectrum(cv.SymmetricOperator.from_dense(matrix)).eigenvalue(0).status == "resolved"


# ---------------------------------------------------------------------------------------------------------- intervals


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6))
def test_intervals_of_all_eigenvalues_hold_the_truth(seed):
    values = prescribed(seed)
    for operator, truth, method in (
        (given_matrix(values, seed), values, "dense"),
        (given_matrix(values - 0.3, seed), values - 0.3, "dense"),
        (factored(factor_of(values, 30, seed)), values, "factor"),
    ):
        found = cv.spectrum(operator, method=method)
        low, high = found.intervals()
        assert (low <= truth).all()
        assert (truth <= high).all()
        for k, exact in enumerate(truth):
            one = found.eigenvalue(k)
            assert one.low <= exact <= one.high
            assert one.status == ("resolved" if abs(found.eigenvalues[k]) > found.noise_floor else "below_noise_floor")


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6))
def test_intervals_of_condition_numbers_hold_the_truth(seed):
    """Of the rank that is there, whatever rank was found."""
    values = prescribed(seed)[::-1]
    rank = int((values > 0).sum())
    for operator, method in (
        (given_matrix(values, seed, positive_semidefinite=True), "dense"),
        (factored(factor_of(values, 30, seed)), "dense"),
        (factored(factor_of(values, 30, seed)), "factor"),
    ):
        spectrum = cv.spectrum(operator, method=method)
        few, many = spectrum.possible_ranks
        numbers = spectrum.condition_numbers()
        if few <= rank <= many:
            for percent in (50, 80, 95):
                truth = values[0] / values[-(-percent * rank // 100) - 1]
                found = numbers[f"kappa_{percent}"]
                assert found.low * (1 - 1e-12) <= truth <= found.high * (1 + 1e-12)
                assert found.status != "lower_bound" or found.value <= truth * (1 + 1e-12)
                assert found.status != "resolved" or math.isfinite(found.high)
        else:  # too small to be seen at all, and a gap above: only the matrix itself can say so, not its factor
            assert method == "dense"
            assert operator.routes.factor is None or (values[values > 0].min() < 1e-24)
        for delta, (kappa, dimension) in numbers.damped.items():
            assert kappa.low <= (values[0] + delta) / (values[-1] + delta) <= kappa.high
            truth = (values / (values + delta)).sum()
            assert dimension.low * (1 - 1e-12) <= truth <= dimension.high * (1 + 1e-12)
        relative = values / values.sum()
        truths = {
            "bures": 1 - np.sqrt(values).sum() ** 2 / (len(values) * values.sum()),
            "l1_over_mean": len(values) * relative[0],
            "participation_ratio": values.sum() ** 2 / (values**2).sum(),
            "stable_rank": (values**2).sum() / values[0] ** 2,
            "intrinsic_dimension": values.sum() / values[0],
            "effective_rank": math.exp(-sum(p * math.log(p) for p in relative if p > 0)),
        }
        for name, truth in truths.items():
            assert numbers[name].low * (1 - 1e-12) <= truth <= numbers[name].high * (1 + 1e-12), name


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), by_products=st.booleans())
def test_a_wrong_set_is_never_marked_complete_and_krylov_intervals_hold_the_truth(seed, by_products):
    values = prescribed(seed, 60)
    operator = given_matrix(values, seed, positive_semidefinite=True)
    operator = without_entries(operator) if by_products else operator
    ends = cv.extremal_eigenvalues(
        operator, num_largest=4, num_smallest=2, verify=True, seed=torch.Generator().manual_seed(seed)
    )
    truth = np.concatenate([values[:2], values[-4:]])
    for k, exact in enumerate(truth):
        one = ends.eigenvalue(k)
        assert one.low <= exact <= one.high, one
        if one.status == "lower_bound":
            assert one.value - ends.noise_floor <= exact
        if one.status == "upper_bound_only":
            assert exact <= one.value + ends.noise_floor
    if ends.complete != "incomplete":
        found = np.concatenate([ends.smallest, ends.largest[::-1]])
        low, high = ends.intervals()
        assert ((low <= truth) & (truth <= high)).all()
        if ends.converged:
            assert np.abs(found - truth).max() < 1e-5
    damped = cv.damped_condition_number(ends, 1e-3)
    assert damped.low * (1 - 1e-9) <= (values[-1] + 1e-3) / (values[0] + 1e-3) <= damped.high * (1 + 1e-9)


def test_values_that_nobody_counted_are_bounds():
    ends = cv.extremal_eigenvalues(
        given_matrix(np.linspace(0.1, 2, 80), positive_semidefinite=True),
        num_largest=1,
        num_smallest=1,
        seed=torch.Generator().manual_seed(0),
    )
    small, large = ends.eigenvalue(0), ends.eigenvalue(1)
    assert (small.status, large.status) == ("upper_bound_only", "lower_bound")
    assert small.low >= 0 <= small.value <= small.high
    assert large.low <= large.value <= large.high
    assert str(small).startswith("< ")
    with pytest.raises(cv.UnresolvedError, match=r"only a lower bound is known.*verify=True of cv\.extremal.*\.value"):
        float(large)


def test_a_null_space_ends_below_the_floor_not_in_a_small_number():
    """A known null space beside a condition number of 1e12: no number below zero, none below the floor."""
    values = np.concatenate([np.zeros(10), np.geomspace(1e-12, 1, 30)])
    found = cv.spectrum(given_matrix(values, positive_semidefinite=True))
    assert {found.eigenvalue(k).status for k in range(10)} == {"below_noise_floor"}
    assert all(found.eigenvalue(k).low == 0 for k in range(10))
    ends = cv.extremal_eigenvalues(
        given_matrix(values, positive_semidefinite=True),
        num_largest=0,
        num_smallest=3,
        verify=True,
        seed=torch.Generator().manual_seed(1),
    )
    assert {ends.eigenvalue(k).status for k in range(3)} <= {"below_noise_floor", "upper_bound_only"}
    assert cv.damped_condition_number(ends).high == math.inf


def test_damping_gives_a_singular_matrix_a_finite_interval_and_an_unproven_one_none():
    values = [0.0, 0.0, 1e-3, 1.0]
    proven = cv.spectrum(given_matrix(values, positive_semidefinite=True)).condition_numbers().damped
    assert all(math.isfinite(kappa.high) and kappa.status == "resolved" for kappa, _ in proven.values())
    seen = Spectrum(Where("matrix"), np.array([1e-3, 1.0]), False, "dense", 1e-2, 1, "by hand")
    last = seen.condition_numbers().damped
    assert {kappa.status for kappa, _ in last.values()} == {"resolved", "lower_bound"}


# --------------------------------------------------------------------------------------------------------------- ranks


@pytest.mark.parametrize(
    ("smallest", "next_one", "resolved"),
    [(1e-6, 0.0, True), (1e-10, 0.0, True), (5e-14, 1e-15, True), (1e-27, 3e-30, False), (2e-29, 3e-30, False)],
    ids=["wide", "a thousand", "of the factor alone", "at its floor", "none"],
)
def test_a_gap_decides_the_rank_only_where_it_is_wide_and_clear(smallest, next_one, resolved):
    """Of the factor, and above its own floor of 2e-29; a gap of the entries decides nothing."""
    values = np.array([*[next_one] * 5, smallest, *np.geomspace(1e-3, 1, 10)])
    for method in ("dense", "factor", "gram"):
        found = cv.spectrum(factored(factor_of(values, 16, 2)), method=method)
        few, many = found.possible_ranks
        assert (few == many) == resolved
        assert few <= int((values > 0).sum()) <= many
        assert ("unresolved" in found.rank_rule) != resolved
        if not resolved:
            assert "the factor too has no gap of 1000" in found.rank_rule
    entries = cv.spectrum(given_matrix(values, 2))
    assert entries.possible_ranks == (int((entries.eigenvalues > entries.noise_floor).sum()), 16)
    assert "unresolved" in entries.rank_rule


def test_zero_rows_of_a_given_matrix_are_a_proof_and_a_step_to_zeros_of_another_one_is_none():
    values = torch.tensor([0.0, 0.0, 2e-14, 1e-3, 1.0], dtype=torch.float64)
    found = cv.spectrum(cv.SymmetricOperator.from_dense(torch.diag(values)))
    assert found.possible_ranks == (3, 3)
    assert found.rank_rule == "formula: 2 rows of the matrix are zero"
    for small in (2e-14, 1e-12):
        values[2] = small
        assert cv.spectrum(given_matrix(values.numpy(), 1)).possible_ranks == (3, 5)


def test_another_computation_of_the_same_products_does_not_make_a_gap_decide():
    """It bounds the rounding, and with it the floor; an eigenvalue below the floor may be there all the same."""
    operator = given_matrix([0.0, 0.0, 1e-3, 1.0], positive_semidefinite=True)
    for checks in (False, True):
        found = cv.spectrum(operator, checks=checks)
        assert found.possible_ranks == (2, 4)
        assert "nothing shows that the eigenvalues below it are zero" in found.rank_rule


def test_what_the_formula_does_not_know_is_not_counted_into_the_rank():
    """Twenty images: directions that only few of them reach. By the singular values of the factor 61, not 67."""
    problem = zoo.digits_problem(20, widths=(2,), seed=0)
    operator = cv.ggn(problem)
    singular = torch.linalg.svdvals(oracles.factor_of(operator))
    truth = int((singular > 1e-11 * singular[0]).sum())
    assert singular[truth] < 1e-3 * singular[truth - 1]
    formula, _ = formula_rank(operator)
    assert truth < formula
    found = cv.spectrum(operator, method="dense")
    assert found.possible_ranks == (truth, truth)
    assert found.rank_rule.startswith("formula: ")
    assert "by the factor" in found.rank_rule
    exact = (singular[0] / singular[-(-95 * truth // 100) - 1]) ** 2
    kappa = found.condition_numbers()["kappa_95"]
    assert kappa.status == "resolved"
    assert kappa.low <= float(exact) <= kappa.high
    for chart in (cv.WeightNorm(), cv.WeightNorm(stretch=16.0)):
        for effective in (True, False):
            assert cv.spectrum(in_chart(operator, chart, effective=effective)).possible_ranks == (truth, truth)


@pytest.mark.parametrize("chunks", [1, 7])
@pytest.mark.parametrize("columns", [40, 400])
def test_the_factor_finds_the_rank_below_the_floor_of_the_matrix(columns, chunks):
    """Decay through the floor and no gap: 30 eigenvalues down to 1e-22, then 10 zeros."""
    values = np.concatenate([np.geomspace(1, 1e-22, 30), np.zeros(10)])
    operator = factored(*factor_of(values, columns, 5).split(-(-columns // chunks), dim=1))
    found = cv.spectrum(operator, method="dense")
    assert found.num_resolved < 26
    assert found.possible_ranks == (30, 30)
    kappa = found.condition_numbers()["kappa_95"]
    assert kappa.status == "lower_bound"
    assert kappa.value <= values[0] / values[28]


def test_columns_that_one_example_brings_are_not_lost_in_sums():
    """Every coordinate has one column of its own among thousands of copies of others."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(60, 20, generator=generator, dtype=torch.float64)
    factor = torch.cat([common.repeat(1, 100), 1e-9 * torch.eye(60, dtype=torch.float64)[:, :30]], dim=1)
    truth = int(torch.linalg.matrix_rank(factor, rtol=1e-13))
    assert truth == 50
    assert cv.spectrum(factored(factor), method="dense").possible_ranks == (50, 50)


@settings(max_examples=40)
@given(few=st.integers(1, 20), hidden=st.integers(1, 20), seed=st.integers(0, 1000))
def test_an_open_rank_is_bounded_by_every_rank_that_is_possible(few, hidden, seed):
    rng = np.random.default_rng(seed)
    many = few + hidden
    values = np.sort(np.concatenate([10 ** rng.uniform(-12, 0, few), 10 ** rng.uniform(-18, -16, hidden)]))
    where = Where("ggn", "standard")
    record = Spectrum(where, values, True, "dense", 1e-15, many, "formula; unresolved", rank_bounds=(few, many))
    numbers = record.condition_numbers()
    for percent in (50, 80, 95):
        found = numbers[f"kappa_{percent}"]
        for rank in range(few, many + 1):
            truth = values[-1] / values[::-1][-(-percent * rank // 100) - 1]
            assert found.low * (1 - 1e-12) <= truth <= found.high * (1 + 1e-12)
        assert (found.status == "lower_bound") == math.isinf(found.high)
        assert found.status == "lower_bound" or found.high <= 1.01 * found.low or f"of which {few} are" in found.note
        if 1.01 * found.low < found.high < math.inf:
            assert replace(record, rank=few).condition_numbers()[f"kappa_{percent}"].status == "unresolved"
        if found.status == "lower_bound":
            assert found.value == found.low
    assert numbers["am_gm"].status == numbers["ai_distance"].status == "unresolved"


def test_a_formula_that_the_spectrum_contradicts_is_an_error():
    nothing = NullSpace(torch.zeros(3, 0, dtype=torch.float64), {})
    wrong = given_matrix([1e-3, 0.5, 1.0], facts=Facts(rank_bound=2, null_space=lambda: nothing))
    with pytest.raises(cv.SelfCheckError, match=r"rank of matrix in given is at most 2 .*eigenvalue 3 is 0\.001"):
        cv.spectrum(wrong)


def test_gradient_descent_does_not_wait_for_what_is_zero():
    """Rounding of the gradient over rounding of a zero eigenvalue looks like a gap that never closes."""
    problem = zoo.digits_problem(20, widths=(2,), seed=0)
    found = cv.spectrum(cv.ggn(problem), method="factor", gradient=True).condition_numbers()["gd_time"]
    assert found.status == "resolved"


# ------------------------------------------------------------------------------------- known null spaces: the gauge


def test_the_gauge_is_among_the_origins_of_the_rank_and_verified(monkeypatch):
    operator = cv.ggn(zoo.digits_problem(20, widths=(2,), seed=0))
    found = cv.spectrum(cv.pullback(operator, cv.WeightNorm(stretch=2.0)))
    assert "besides, 12 verified directions of the weight-norm gauge" in found.rank_rule
    assert "gauge" not in cv.spectrum(cv.effective(operator, cv.WeightNorm(stretch=2.0))).rank_rule
    assert "verified directions of the weight-norm gauge" in found._repr_html_()
    kind = type(cv.WeightNorm().at(*(getattr(zoo.digits_problem(20, widths=(2,)), n) for n in ("layout", "weights"))))
    right = kind.push
    monkeypatch.setattr(kind, "push", lambda self, block: right(self, block + 1e-6 * block.roll(1, 0)))
    with pytest.raises(cv.SelfCheckError, match=r"gauge of weight-norm .* moves the weights"):
        cv.spectrum(cv.pullback(operator, cv.WeightNorm(stretch=2.0)))


# --------------------------------------------------------------------------------------------------------- small cases


@pytest.mark.parametrize("scale", [1e-140, 1.0, 1e140])
@pytest.mark.parametrize(
    ("values", "rank", "kappa"),
    [([0.0, 0.0], 0, None), ([2.0], 1, 1.0), ([1.0, 1.0, 1.0], 3, 1.0), ([0.0, 3.0], 1, 1.0), ([1.0, 2.0], 2, 2.0)],
)
def test_small_matrices_at_any_scale(values, rank, kappa, scale):
    matrix = torch.diag(scale * torch.tensor(values, dtype=torch.float64))
    found = cv.spectrum(cv.SymmetricOperator.from_dense(matrix, positive_semidefinite=True))
    assert found.possible_ranks == (rank, rank)
    ratio = found.condition_numbers()["kappa_rank"]
    assert (ratio.status, ratio.has_value) == (("resolved", True) if kappa else ("undefined", False))
    assert kappa is None or ratio.low <= kappa <= ratio.high


def test_an_indefinite_matrix_says_so():
    numbers = cv.spectrum(given_matrix([-2.0, -1.0, 1.0, 3.0])).condition_numbers()
    kappa = numbers["kappa_80"]
    assert (kappa.status, str(kappa), kappa.has_value) == ("indefinite", "indefinite", False)
    assert kappa.note == "2 eigenvalues are negative and 2 positive beyond the noise floor"
    assert numbers["abs_kappa_95"].low <= 3 <= numbers["abs_kappa_95"].high


# ----------------------------------------------------------------------------------------------- records and pictures


def open_spectrum():
    """Ten eigenvalues, of which four are above the floor and up to eight are not zero."""
    values = np.array([0.0, 1e-20, 1e-18, 1e-17, 1e-17, 1e-16, 1e-3, 1e-2, 0.1, 1.0])
    return Spectrum(
        Where("ggn", "standard", num_examples=5),
        values,
        True,
        "dense",
        1e-15,
        8,
        "formula: 10 - 2; unresolved",
        rank_bounds=(4, 8),
        floor_rule="10 units of rounding of the norm",
    )


def test_a_saved_spectrum_keeps_its_bounds_and_an_older_one_has_none(tmp_path):
    record = open_spectrum()
    loaded = Spectrum.load(record.save(tmp_path / "one.npz"))
    assert (loaded.rank_bounds, loaded.floor_rule) == ((4, 8), record.floor_rule)
    loaded = Spectrum.load(replace(record, rank_bounds=None).save(tmp_path / "two.npz"))
    assert (loaded.rank_bounds, loaded.possible_ranks) == (None, (8, 8))


def test_a_run_keeps_intervals_and_a_run_of_an_older_version_is_read(tmp_path):
    record = open_spectrum()
    numbers = record.condition_numbers()
    places = tuple(Measured("given", 0, "given", 0, one) for one in (record, numbers))
    write_result(Study("spectrum", {}, "m", "d", 3, 5, places), tmp_path / "result.nc")
    back = read_result(tmp_path / "result.nc", {}, {}).measurements
    assert (back[0].record.rank_bounds, back[0].record.floor_rule) == ((4, 8), record.floor_rule)
    assert back[1].record == numbers
    assert back[1].record["kappa_95"].high == math.inf
    older = {name: array for name, (_, array) in _number_table([(0, places[1])]).items()}
    for name in ("low", "high", "interval_method", "rank_bounds"):
        del older[name]
    ((_, measured),) = _numbers(older)
    assert measured.record["kappa_80"] == replace(numbers["kappa_80"], low=None, high=None, method="")


def test_what_is_below_the_floor_and_an_open_rank_are_shown_as_such():
    record = open_spectrum()
    assert repr(record).startswith("Spectrum(ggn, standard: 10 eigenvalues in [< 1e-15, 1], rank 4 to 8, ")
    page = record._repr_html_()
    assert "&lt; 1e-15 to 1" in page
    assert "4 to 8 (formula: 10 - 2; unresolved)" in page
    assert "10 units of rounding of the norm" in page
    assert "[10, " in record.condition_numbers()._repr_html_()
    assert "rank 4 to 8" in figures.text_picture(record)
    table = record.to_dataframe()
    assert list(table.loc[9, ["low", "high"]]) == [1 - 1e-15, 1 + 1e-15]


def test_the_picture_hatches_the_floor_and_shades_the_ranks_that_are_possible():
    record = replace(open_spectrum(), noise_floor=1e-8)
    ax = figures.plot_spectrum(record, Figure().subplots())
    labels = ax.get_legend_handles_labels()[1]
    assert "6 below the noise floor" in labels
    assert "rank 4 to 8" in labels
    hatched = [patch for patch in ax.patches if patch.get_hatch()]
    assert len(hatched) == 1
    assert hatched[0].get_y() + hatched[0].get_height() == pytest.approx(1e-8)


def test_a_number_without_an_interval_shows_none():
    assert Quantity(2.0).interval == ""
    assert Quantity(2.0, low=1.0, high=math.inf).interval == "[1, inf]"
