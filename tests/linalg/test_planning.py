"""The planner: counted work and memory, the choice of a method, refusals before any allocation, bounds that hold."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import curvature as cv
from curvature import matrices
from curvature import studies as study
from curvature.errors import ConfigurationError, ResourceError
from curvature.linalg import memory, parts, planning, speed
from curvature.linalg.facts import Facts
from curvature.linalg.memory import USABLE
from curvature.linalg.operator import SymmetricOperator
from curvature.linalg.planning import METHODS, choose_exact, plan, plans, summary
from curvature.linalg.routes import PRODUCT_BYTES, EntriesRoute, FactorRoute, ProductCost, Routes
from curvature.linalg.work import Counts, default_basis, ends, exact_bytes, method_bytes, method_work, num_products
from curvature.matrices.nullspace import known_null_space

ROOT = Path(__file__).parents[2]
GB = 2.0**30
SMALL_CALLS = planning._SECONDS
NUM_EXAMPLES = 50  # of the matrices that are planned for here
CHECKS = 50 * NUM_EXAMPLES  # multiply-adds for each row: fifty products of the self-checks


def no_products(*_):
    raise AssertionError("a plan computes nothing")


def operator(dim=100, columns=None, *, definite=True, counted=0.0, product=1.0, null_directions=0, **costs):
    """A matrix that may only be planned for: whatever touches it fails."""
    block_bytes = costs.pop("block_bytes", 0.0)
    return SymmetricOperator(
        where=cv.Where("ggn", num_examples=NUM_EXAMPLES),
        dim=dim,
        matmat=no_products,
        dtype=torch.float64,
        device=torch.device("cpu"),
        routes=Routes(
            entries=None if counted is None else EntriesRoute(no_products, counted),
            factor=None if columns is None else FactorRoute(no_products, columns, block_bytes),
            products=ProductCost(multiplications=product, **costs),
        ),
        facts=Facts(positive_semidefinite=definite, num_null_directions=null_directions),
    )


@pytest.fixture(autouse=True)
def one_multiplication_a_second(monkeypatch):
    """Seconds are counts, whatever the machine."""
    monkeypatch.setattr(planning, "multiplication_rate", lambda *_: 1.0)
    monkeypatch.setattr(planning, "_SECONDS", 0.0)


def seconds(of, wanted="spectrum", **options):
    return plan(of, wanted, max_memory=math.inf, **options).seconds


@pytest.fixture
def chain(mlp, classification_data):
    """A network 5-4-3 with 39 weights and 20 examples."""
    return cv.Problem.from_module(mlp(5, 4, 3), loss="cross-entropy", data=classification_data(20, 5, 3))


# ------------------------------------------------------------------------------------------------------- counted work


def test_eigenvalues_cost_three_cubed_and_vectors_ten():
    assert seconds(operator(90)) == 3 * 90**3 + CHECKS * 90
    assert seconds(operator(90), counts=Counts(vectors=True)) == 10 * 90**3 + CHECKS * 90


def test_entries_cost_what_the_matrix_counts_or_as_many_products_as_columns():
    assert seconds(operator(90, counted=1e9)) == 1e9 + 3 * 90**3 + CHECKS * 90
    # A product with one vector is three times as slow as the matrix products that the rate is measured with.
    by_products = 3 * 90**3 + CHECKS * 90 + 3 * 90 * 1e5
    assert seconds(operator(90, counted=None, product=1e5)) == by_products
    uncounted = operator(90, product=1e5)
    entries = replace(uncounted.routes.entries, multiplications=None)
    assert seconds(replace(uncounted, routes=replace(uncounted.routes, entries=entries))) == by_products


@pytest.mark.parametrize("matrix", matrices.MATRICES)
def test_matrices_of_a_chain_count_their_multiplications(matrix, chain):
    extra = (2, torch.Generator()) if matrix == "monte_carlo_fisher" else ()
    found = matrices.MATRICES[matrix](chain, *extra)
    factor = found.routes.factor
    contracts = factor is None or factor.num_columns > 2 * 20
    columns = None if factor is None else factor.num_columns
    assert found.routes.entries.multiplications == (20 if contracts else columns / 2) * chain.dim**2
    # What is left to do, or to hold, where the entries are there: the factor is made as before, and null directions.
    kept = found.materialized()
    assert (kept.routes.entries.multiplications, kept.routes.products) == (0.0, ProductCost())
    assert kept.routes.factor is factor
    assert kept.facts.num_null_directions == found.facts.num_null_directions > 0
    moved = cv.pullback(found, cv.WeightNorm())
    assert moved.routes.entries.multiplications == found.routes.entries.multiplications
    assert moved.dense_bytes >= found.dense_bytes


def test_generic_hessian_is_made_of_products(classification_data):
    class Residual(nn.Linear):
        def forward(self, x):
            return super().forward(x) + x

    problem = cv.Problem.from_module(Residual(3, 3), loss="cross-entropy", data=classification_data(20, 3, 3))
    hessian = cv.hessian(problem)
    moved = cv.pullback(hessian, cv.WeightNorm())
    assert hessian.routes.entries is None
    assert moved.routes.entries.multiplications is None
    for matrix in (hessian, moved):
        assert num_products(matrix, "dense", Counts()) == matrix.dim
    assert hessian.routes.products.fixed_bytes > 20 * (3 + 3) * 8  # inputs and outputs at least


def test_singular_values_cost_six_cubed_after_a_qr_and_every_number_of_the_factor_two_hundred():
    def expected(columns, rows, cubed):
        small, large = min(columns, rows), max(columns, rows)
        return 200 * columns * rows + small**2 * large + cubed * small**3 + CHECKS * rows

    for rows, columns in ((90, 90), (90, 900), (900, 9)):
        matrix = operator(rows, columns)
        assert seconds(matrix, method="factor") == expected(columns, rows, 6)
        assert seconds(matrix, method="factor", counts=Counts(vectors=True)) == expected(columns, rows, 20)


def test_a_gram_matrix_costs_its_entries_and_their_eigenvalues():
    assert seconds(operator(900, 9), method="gram") == 9**2 * 900 + 3 * 9**3 + CHECKS * 900


@pytest.mark.parametrize("method", ["dense", "factor", "gram"])
def test_null_directions_cost_what_they_take_to_collect_and_a_few_products(method):
    for count, products in ((10, 10), (100, 32)):
        more = seconds(operator(200, 200, null_directions=count), method=method)
        more -= seconds(operator(200, 200), method=method)
        assert more == 600 * 200 * count + 6 * products * 200 * NUM_EXAMPLES


def test_blocks_and_congruences_look_for_no_null_directions(chain):
    whole = cv.ggn(chain)
    assert whole.facts.num_null_directions > 0
    for part in (whole.block("0.weight"), whole.congruence(torch.eye(whole.dim, 5, dtype=torch.float64))):
        assert part.facts.num_null_directions == 0
        assert part.facts.null_space is None


def test_expected_null_directions_are_those_of_the_shapes(mlp, classification_data):
    problem = cv.Problem.from_module(mlp(7, 5, 3), loss="cross-entropy", data=classification_data(4, 7, 3))
    space = known_null_space(problem, second_order=False)
    expected = 5 * (8 - 4) + 3 * (6 - 4) + 6
    assert cv.ggn(problem).facts.num_null_directions == expected
    assert expected - 6 <= space.dim <= expected  # the shift may lie among the others
    assert cv.hessian(problem).facts.num_null_directions == 5 * (8 - 4) + 6
    wide = cv.Problem.from_module(mlp(4, 900, 3), loss="cross-entropy", data=classification_data(5, 4, 3))
    assert cv.ggn(wide).facts.num_null_directions == 0  # five examples bound the rank: none are looked for


def test_krylov_methods_cost_products_and_orthogonalization():
    matrix = operator(1000, product=1e6)
    counts = Counts(num_eigenvalues=5, num_probes=10, num_matvecs=60)
    density = plan(matrix, "density", method="slq", counts=counts, max_memory=GB)
    assert density.seconds == 3 * 600 * 1e6 + 10 * (6 * 60**2 * 1000 + 10 * 60**3)
    extremes = plan(matrix, "extremal", method="lanczos", counts=counts, max_memory=GB)
    assert extremes.seconds == 3 * 40 * 1e6 + 6 * 40**2 * 1000
    both = plan(replace(matrix, facts=Facts()), "extremal", method="lanczos", counts=counts, max_memory=GB)
    assert both.seconds == 3 * 100 * 1e6 + 6 * 100**2 * 1000  # the smallest take three times as many products


def test_products_that_nobody_counted_are_taken_for_four_passes_over_examples_and_weights_in_a_choice():
    """With seconds by the clock, but the same choice on every machine."""
    counts = Counts(num_probes=1, num_matvecs=10)
    for examples, passes in ((None, 250), (10, 250), (5000, 5000)):
        uncounted = replace(operator(1000, counted=None, product=None), where=cv.Where("ggn", num_examples=examples))
        products = ProductCost(multiplications=4.0 * 1000 * passes)
        counted = replace(uncounted, routes=replace(uncounted.routes, products=products))
        for method in ("slq", "lanczos"):
            works = [planning._whole_work(matrix, method, counts) for matrix in (uncounted, counted)]
            assert works[0] == works[1]


@given(
    dim=st.integers(2, 2000),
    columns=st.integers(1, 4000),
    probes=st.integers(1, 20),
    steps=st.integers(1, 200),
    wanted=st.integers(1, 50),
    vectors=st.booleans(),
)
def test_more_of_anything_is_never_less_work_nor_less_memory(dim, columns, probes, steps, wanted, vectors):
    """Dimension, columns, probes, steps, eigenvalues, entries, products, null directions, eigenvectors."""
    base = {"dim": dim, "columns": columns, "counted": 1e3, "product": 1e3, "null_directions": 1, "column_bytes": 8.0}
    counts = Counts(wanted, probes, steps, vectors)
    larger = [operator(**base | {name: value + 1}) for name, value in base.items()]
    more = [replace(counts, **{name: getattr(counts, name) + 1}) for name in ("num_probes", "num_matvecs")]
    more += [replace(counts, num_eigenvalues=wanted + 1), replace(counts, vectors=True)]
    for method in ("dense", "factor", "gram", "lanczos", "slq"):
        pairs = [*((matrix, counts) for matrix in larger), *((operator(**base), other) for other in more)]
        for measure in (planning._whole_work, method_work):
            least = measure(operator(**base), method, counts)
            assert all(measure(matrix, method, other) >= least for matrix, other in pairs), (method, measure)
        least = method_bytes(operator(**base), method, counts)
        if method != "lanczos":  # its basis fills half a gigabyte, whatever the dimension
            assert all(method_bytes(matrix, method, other) >= least for matrix, other in pairs), method


# Seconds of cv.spectrum on one thread of a cloud machine, whose matrix products made 2.55e10 multiply-adds a second,
# for digits networks 64-h-h-10 of N examples: (matrix, h, N, seconds).
MEASURED_RATE = 2.55e10
MEASURED = [
    ("ggn", 10, 20, 0.051),
    ("ggn", 10, 60, 0.068),
    ("ggn", 10, 600, 0.119),
    ("ggn", 10, 1797, 0.19),
    ("ggn", 20, 20, 0.173),
    ("ggn", 20, 60, 0.106),
    ("ggn", 20, 300, 0.61),
    ("ggn", 20, 1797, 0.71),
    ("ggn", 60, 20, 0.059),
    ("ggn", 60, 60, 0.25),
    ("ggn", 60, 200, 2.62),
    ("ggn", 190, 20, 0.32),
    ("ggn", 190, 60, 1.34),
    ("ggn", 190, 100, 3.39),
    ("empirical_fisher", 20, 1797, 1.69),
    ("empirical_fisher", 60, 20, 0.0147),
    ("empirical_fisher", 60, 200, 0.059),
    ("empirical_fisher", 60, 1797, 2.74),
    ("empirical_fisher", 190, 20, 0.034),
    ("empirical_fisher", 190, 100, 0.173),
    ("empirical_fisher", 190, 600, 1.86),
]


@pytest.mark.parametrize(("matrix", "hidden", "num_examples", "measured"), MEASURED)
def test_estimates_are_within_a_factor_of_three_of_what_was_measured(
    matrix, hidden, num_examples, measured, mlp, monkeypatch
):
    module = mlp(64, hidden, hidden, 10)
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=cv.zoo.digits(num_examples))
    monkeypatch.setattr(planning, "multiplication_rate", lambda *_: MEASURED_RATE)
    monkeypatch.setattr(planning, "_SECONDS", SMALL_CALLS)
    estimated = seconds(matrices.MATRICES[matrix](problem))
    assert measured / 3 < estimated < 3 * measured


# ------------------------------------------------------------------------------------------------------ the choice


@pytest.mark.parametrize(("columns", "method"), [(99, "factor"), (100, "factor"), (101, "dense"), (None, "dense")])
def test_the_factor_is_taken_up_to_as_many_columns_as_rows(columns, method):
    assert plan(operator(100, columns), max_memory=GB).method == method
    assert choose_exact(operator(100, columns), "auto", vectors=False) == method


def test_the_spectrum_takes_the_route_that_was_planned(mlp, classification_data):
    problem = cv.Problem.from_module(mlp(5, 4, 3), loss="cross-entropy", data=classification_data(8, 5, 3))
    for build in (cv.hessian, cv.ggn, cv.empirical_fisher):
        moved = cv.pullback(build(problem), cv.WeightNorm())
        made = plan(moved)
        assert made.method == cv.spectrum(moved).method
        assert (made.chart, made.gauge) == ("weight-norm", "canonical")


def test_where_the_factor_does_not_fit_the_entries_may():
    found = operator(100, 100, block_bytes=1e6)
    needed = exact_bytes(found, "dense")
    assert needed < exact_bytes(found, "factor")
    made = plan(found, max_memory=needed)
    assert made.method == "dense"
    assert made.rejected[0][0] == "factor"


def test_memory_decides_at_its_boundary():
    found = operator(1000)
    needed = exact_bytes(found, "dense")
    assert plan(found, max_memory=needed).num_bytes == needed
    with pytest.raises(ResourceError, match="Alternatives"):
        plan(found, max_memory=needed * (1 - 1e-9))


def test_time_decides_at_its_boundary_and_is_said():
    found = operator(1000)
    needed = seconds(found)
    just = plan(found, max_memory=GB, max_seconds=needed)
    assert (just.method, just.rejected) == ("dense", ())
    with pytest.raises(ResourceError, match=r"would take about .* h by dense; .* h are allowed"):
        plan(found, max_memory=GB, max_seconds=needed * 0.999)
    # The factor keeps more digits, the entries are quicker: a limit of time may decide between them.
    short = operator(1000, 900)
    assert plan(short, max_memory=GB).method == "factor"
    hurried = plan(short, max_memory=GB, max_seconds=needed)
    assert hurried.method == "dense"
    assert dict(hurried.rejected)["factor"].startswith("would take about")


def test_a_density_by_the_entries_is_planned_for():
    matrix = operator(90, counted=1e5, product=3e4)
    assert matrix.entries_pay(20 * 10)
    options = {"method": "slq", "counts": Counts(num_probes=10, num_matvecs=20), "max_memory": math.inf}
    found = plan(matrix, "density", **options)
    unknown = replace(matrix.routes.entries, multiplications=None)
    other = plan(replace(matrix, routes=replace(matrix.routes, entries=unknown)), "density", **options)
    assert found.seconds - other.seconds == pytest.approx(1e5 + 3 * 200 * 90**2 - 3 * 200 * 3e4)
    assert found.num_bytes - other.num_bytes == matrix.dense_bytes


def test_all_eigenvalues_are_taken_for_a_density_where_they_cost_no_more():
    counts = Counts(num_probes=20)  # with the entries these take longer than all eigenvalues of 1000 x 1000
    for wanted, by_krylov in (("density", "slq"), ("extremal", "lanczos")):
        assert plan(operator(1000, product=1e12), wanted, counts=counts, max_memory=GB).method == "dense"
        made = plan(operator(1000, product=1.0), wanted, counts=counts, max_memory=GB)
        assert made.method == by_krylov
        assert "dense" in dict(made.rejected)
        assert plan(operator(30000, product=1e12), wanted, max_memory=2 * GB).method == by_krylov


@given(
    dim=st.integers(1, 3000),
    columns=st.none() | st.integers(1, 6000),
    product=st.floats(1, 1e13),
    wanted=st.sampled_from(["spectrum", "density", "extremal"]),
    rate=st.floats(1e6, 1e14),
)
def test_the_choice_is_the_same_on_every_machine_and_the_least_work(dim, columns, product, wanted, rate):
    found = operator(dim, columns, product=product)
    slow = plan(found, wanted, max_memory=math.inf)
    with pytest.MonkeyPatch.context() as other_machine:
        other_machine.setattr(planning, "multiplication_rate", lambda *_: rate)
        quick = plan(found, wanted, max_memory=math.inf)
    assert (quick.method, quick.reason, quick.num_bytes) == (slow.method, slow.reason, slow.num_bytes)
    assert quick.seconds == pytest.approx(slow.seconds / rate)
    if wanted != "spectrum":
        others = ["dense"] if columns is None or columns > dim else ["dense", "factor"]
        assert slow.seconds <= min(seconds(found, method=method) for method in others)


def test_a_density_never_stands_in_for_a_spectrum():
    found = operator(10**5)
    with pytest.raises(ResourceError):
        plan(found, "spectrum", max_memory=4 * GB)
    with pytest.raises(ConfigurationError, match="does not give all eigenvalues"):
        plan(found, "spectrum", method="slq")


def test_automatic_falls_back_to_ends_and_density_and_says_so():
    both = plans(operator(30000), "auto", max_memory=2 * GB)
    assert [part.method for part in both] == ["lanczos", "slq"]
    assert all("all eigenvalues of the ggn (30000 x 30000) need about 20 GB" in part.reason for part in both)
    assert "ends of the spectrum and density (lanczos, slq)" in summary(both)
    with pytest.raises(ResourceError):
        plans(operator(30000), "exact", max_memory=2 * GB)
    with pytest.raises(ResourceError, match="fewer probes"):
        plans(operator(30000), "auto", max_memory=1e6)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_its_plans(method):
    (made,) = plans(operator(100, 50), method, max_memory=GB)
    assert made.method == ("factor" if method in ("auto", "exact") else method)
    assert made.wanted == {"lanczos": "extremal", "slq": "density"}.get(method, "spectrum")


def test_wrong_requests_are_named():
    with pytest.raises(ConfigurationError, match="has no factor"):
        plan(operator(), method="factor")
    with pytest.raises(ConfigurationError, match="wanted must be one of"):
        plan(operator(), "everything")
    with pytest.raises(ConfigurationError, match="method must be one of"):
        plans(operator(), "lanzcos")
    with pytest.raises(ConfigurationError, match=r"plan needs a matrix such as ggn\(problem\)"):
        plan(torch.eye(3))


@given(
    dim=st.integers(1, 10**6),
    columns=st.none() | st.integers(1, 10**7),
    definite=st.booleans(),
    vectors=st.booleans(),
    method=st.sampled_from(METHODS),
    allowed=st.floats(1e3, 1e13),
    column_bytes=st.floats(0, 1e9),
)
def test_a_plan_fits_the_memory_that_was_given(dim, columns, definite, vectors, method, allowed, column_bytes):
    if method in ("factor", "gram") and (columns is None or (columns > dim and method == "gram")):
        return
    found = operator(dim, columns, definite=definite, column_bytes=column_bytes)
    try:
        made = plans(found, method, counts=Counts(vectors=vectors), max_memory=allowed)
    except ResourceError:
        return
    for part in made:
        assert 0 < part.num_bytes <= allowed
        assert part.seconds > 0
        assert part.method not in dict(part.rejected)
        assert str(part).count("\n") == 0


@given(dim=st.integers(1, 50), wanted=st.integers(1, 100), definite=st.booleans())
def test_both_ends_never_ask_for_more_than_there_is(dim, wanted, definite):
    largest, smallest = ends(operator(dim, definite=definite), wanted)
    assert 1 <= largest <= wanted
    assert largest + smallest <= dim
    assert smallest == (0 if definite or dim == 1 else largest)


def test_a_plan_is_one_readable_line(monkeypatch):
    monkeypatch.setattr(planning, "multiplication_rate", lambda *_: 1e10)
    text = str(plan(operator(3000, 2000), max_memory=GB))
    assert text.startswith("ggn, given, 3000 x 3000: factor, 0.18 GB, about ")
    assert "every eigenvalue to" in text
    assert "dense, 1 MB, about" in str(plan(operator(30), max_memory=GB))


def test_charts_and_blocks_are_planned_in_the_order_of_the_work(mlp, classification_data):
    problem = cv.Problem.from_module(mlp(5, 4, 3), loss="cross-entropy", data=classification_data(8, 5, 3))
    settings = study.SpectrumSettings(("hessian",), (cv.Standard(), cv.WeightNorm()), block="layer", gradient=False)
    made = study.plan_spectrum(problem, settings)["hessian"]
    found = study.run_spectrum(problem, settings).of(cv.Spectrum)
    places = [(m.record.chart, m.record.block, m.record.dim) for m in found]
    assert [(part.chart, part.block, part.dim) for (part,) in made] == places
    entries = 8 * problem.dim**2
    eigenvalues = [3 * part.dim**3 + 50 * 8 * part.dim for (part,) in made]
    # The entries are shared by all charts and blocks: they are paid for once.
    assert [part.seconds for (part,) in made] == pytest.approx([eigenvalues[0] + entries, *eigenvalues[1:]])


def test_entries_are_paid_for_by_the_first_block_that_uses_them(mlp, classification_data):
    problem = cv.Problem.from_module(mlp(5, 4, 3), loss="cross-entropy", data=classification_data(8, 5, 3))
    settings = study.SpectrumSettings(("ggn",), (cv.Standard(),), block="layer", gradient=False)
    (first,), (second,) = study.plan_spectrum(problem, settings)["ggn"]
    assert (first.method, first.dim) == ("factor", 24)  # 8 examples with 3 columns each
    assert (second.method, second.dim) == ("dense", 15)
    assert second.seconds == pytest.approx(3 * 15**3 + 50 * 8 * 15 + 8 * problem.dim**2)


# ------------------------------------------------------------------------------------------------- refusals and memory


def test_a_refusal_comes_before_any_allocation_and_names_the_ways_out(mlp, classification_data, monkeypatch):
    problem = cv.Problem.from_module(mlp(5, 4, 3), loss="cross-entropy", data=classification_data(8, 5, 3))
    ggn = cv.ggn(problem)
    huge = replace(
        ggn,
        dim=200_000,
        matmat=no_products,
        routes=replace(
            ggn.routes,
            entries=replace(ggn.routes.entries, compute=no_products),
            factor=replace(ggn.routes.factor, blocks=no_products, num_columns=150_000),
        ),
        where=replace(ggn.where, num_examples=15_000),
    )
    before = psutil.Process().memory_info().rss
    for method in ("auto", "dense", "factor"):
        with pytest.raises(
            ResourceError, match=r"200000 x 200000\) need about \d+ GB, [\d.]+ GB can be used"
        ) as refused:
            cv.spectrum(huge, method=method)
        for way in ("extremal_eigenvalues", "spectral_density", "blocks", "float32", "examples, by the factor"):
            assert way in str(refused.value)
    assert psutil.Process().memory_info().rss - before < 2e7
    monkeypatch.setattr(memory, "free_memory", lambda _: 0.0)
    with pytest.raises(ResourceError, match=r"the dense ggn .* needs about"):
        cv.ggn(problem).dense()


def test_as_many_examples_as_a_refusal_names_do_fit(monkeypatch):
    free = 3e8
    monkeypatch.setattr(planning, "free_memory", lambda _: free)

    def with_examples(count):
        found = operator(10_000, 10 * count)
        return replace(found, where=replace(found.where, num_examples=count))

    with pytest.raises(ResourceError) as refused:
        cv.spectrum(with_examples(900))
    count = int(str(refused.value).partition("the first ")[2].partition(" examples")[0])
    assert 1 <= count < 900
    assert exact_bytes(with_examples(count), "factor") <= USABLE * free
    assert exact_bytes(with_examples(count + 2), "factor") > USABLE * free


def test_blocks_of_a_matrix_that_does_not_fit_are_computed_alone(mlp, classification_data, monkeypatch):
    problem = cv.Problem.from_module(mlp(5, 4, 3), loss="cross-entropy", data=classification_data(8, 5, 3))
    hessian = cv.hessian(problem)
    whole = hessian.dense()
    monkeypatch.setattr(parts, "free_memory", lambda _: 0.99 * hessian.dense_bytes)
    widths = []
    watched = replace(
        hessian,
        matmat=lambda block: widths.append(block.shape[1]) or hessian.matmat(block),
        routes=replace(hessian.routes, entries=replace(hessian.routes.entries, compute=no_products)),
    )
    for name, block in parts.blocks(watched, "layer").items():
        rows = problem.layout.blocks("layer")[name]
        torch.testing.assert_close(block.dense(), whole[rows][:, rows], rtol=1e-12, atol=1e-14)
        assert widths == [len(rows)]
        assert num_products(block, "dense", Counts()) == len(rows)
        widths.clear()


def test_many_columns_are_multiplied_a_few_at_a_time():
    widths = []

    def matmat(block):
        widths.append(block.shape[1])
        return 2 * block

    found = replace(operator(6, column_bytes=PRODUCT_BYTES / 3), matmat=matmat)
    block = torch.arange(60.0, dtype=torch.float64).reshape(6, 10)
    assert torch.equal(found @ block, 2 * block)
    assert widths == [3, 3, 3, 1]


MEASURE = """
import gc, sys, torch
import curvature as cv
from curvature import matrices
from curvature.linalg.planning import choose_exact
from curvature.linalg.work import exact_bytes
torch.set_num_threads(1)
def status(key):
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1])
def spectrum(name, method, chart, vectors, num_examples, width, generic):
    model = cv.zoo.mlp((64, width, 10))
    if generic:
        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = model
            def forward(self, x):
                return self.inner(x)
        model = Model()
    data = cv.zoo.digits(num_examples)
    problem = cv.Problem.from_module(model, loss="cross-entropy", data=data)
    found = matrices.MATRICES[name](problem)
    if chart:
        found = cv.pullback(found, cv.WeightNorm())
    found.facts.gradient()
    eigenvectors = vectors != "none"
    method = choose_exact(found, method, vectors=eigenvectors)
    needed = exact_bytes(found, method, vectors=eigenvectors)
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the highest mark so far
    before = status("VmRSS")
    cv.spectrum(found, method=method, gradient=vectors == "gradient", vectors=vectors == "vectors")
    return status("VmHWM") - before, needed
for name, method, chart, vectors, num_examples, width, generic in CASES:
    spectrum(name, method, chart, vectors, 20, 2, generic)
    peak, needed = spectrum(name, method, chart, vectors, num_examples, width, generic)
    print(name, method, chart, vectors, generic, peak, needed)
"""
CASES = [
    ("hessian", "auto", False, "none", 200, 8, False),
    ("hessian", "auto", True, "gradient", 200, 8, False),
    ("hessian", "auto", False, "vectors", 200, 8, False),
    ("ggn", "auto", False, "none", 30, 8, False),
    ("ggn", "auto", True, "none", 50, 8, True),
    ("ggn", "auto", False, "vectors", 30, 8, False),
    ("ggn", "factor", False, "none", 200, 8, False),
    ("empirical_fisher", "gram", False, "none", 40, 8, False),
]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the highest mark of memory is read from /proc")
def test_planned_memory_is_an_upper_bound_of_what_is_held():
    code = f"CASES = {CASES!r}\n{MEASURE}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == len(CASES)
    for *case, peak, needed in lines:
        assert float(peak) <= float(needed), case
        assert float(needed) < 0.5 * GB, case  # and no excuse to refuse: 610 x 610 is 3 MB


def test_krylov_plans_hold_the_basis_they_count():
    found = operator(10**5)
    made = plan(found, "density", method="slq", counts=Counts(num_probes=7, num_matvecs=30), max_memory=10 * GB)
    assert 7 * 30 * 8e5 <= made.num_bytes <= 1.5 * 7 * 30 * 8e5
    made = plan(found, "extremal", method="lanczos", max_memory=10 * GB)
    assert made.num_bytes >= 2 * default_basis(found, 10) * 8e5


# ------------------------------------------------------------------------------------------- seconds from counted work


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when work says how long it took: ``clock.now += 2.0``."""
    fake = SimpleNamespace(now=0.0)
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: fake.now))
    return fake


def warming(clock, cold, warm, calls):
    """A product that takes ``cold`` seconds the first time and ``warm`` seconds from then on."""

    def matmat(block):
        clock.now += warm if calls else cold
        calls.append(block.shape[1])
        return block

    return matmat


def test_seconds_are_the_work_over_the_rate(monkeypatch):
    found = operator(1000, 900)
    work = {method: method_work(found, method, Counts()) for method in ("dense", "factor", "gram")}
    for rate in (1.0, 3e9, 5e11):
        monkeypatch.setattr(planning, "multiplication_rate", lambda *_, rate=rate: rate)
        for method, counted in work.items():
            assert seconds(found, method=method) == pytest.approx(counted / rate)


def test_the_rank_by_the_factor_has_a_price_of_its_own():
    """The 500 columns, and the bounds at a gap of 90 + 50 sums of them."""
    made = plan(operator(90, 500), method="dense", max_memory=math.inf)
    assert made.rank_seconds == 200 * 500 * 90 + 2.5 * 90**2 * 140
    assert made.seconds == 3 * 90**3 + CHECKS * 90
    assert "if the factor has to decide the rank" in str(made)
    assert "if the factor" in summary([made])
    assert plan(operator(90, 80), method="factor").rank_seconds == plan(operator(90)).rank_seconds == 0
    open_rank = operator(90)
    open_rank = replace(open_rank, facts=replace(open_rank.facts, rank_factor=no_products))
    assert plan(open_rank).rank_seconds is None
    assert "at least" in str(plan(open_rank))
    chart = replace(operator(95), same_rank=operator(90, 500))
    assert plan(chart, method="dense", max_memory=math.inf).rank_seconds == made.rank_seconds


def test_a_factor_by_autograd_costs_what_its_first_examples_do(clock):
    def forming():
        clock.now += 1e9
        return 42.0

    found = operator(90, 80, product=None)
    factor = replace(found.routes.factor, seconds=forming)
    entries = replace(found.routes.entries, seconds=forming)
    found = replace(found, routes=replace(found.routes, factor=factor, entries=entries), matmat=lambda block: block)
    for method in ("dense", "factor"):
        assert seconds(found, method=method) == pytest.approx(method_work(found, method, Counts()) + 42.0, abs=1e-6)


def test_a_cold_first_product_is_thrown_away(clock):
    """It loads libraries and fills caches: 26 x 26 was once planned for a minute."""
    calls = []
    found = replace(operator(26, counted=None, product=None), matmat=warming(clock, 60.0, 0.25, calls))
    assert speed.product_seconds(found) == 0.25
    assert calls == [1] * 4  # thrown away, and the fastest of three
    clock.now, cold = 0.0, []
    planned = seconds(replace(found, matmat=warming(clock, 60.0, 0.25, cold)))
    assert planned == (26 + 50) * 0.25 + 3 * 26**3 + CHECKS * 26  # the self-checks multiply too
    assert cold == [1] * 4


def test_a_cold_first_matrix_product_is_thrown_away(clock, monkeypatch):
    calls = []

    class Slow:
        float64, empty = torch.float64, torch.empty

        @staticmethod
        def matmul(first, second):
            clock.now += 0.5 if calls else 60.0
            calls.append((first.shape, second.shape))

    monkeypatch.setattr(speed, "np", Slow)
    speed._rate.cache_clear()
    try:
        assert speed.multiplication_rate(torch.float64, torch.device("cpu")) == 512**3 / 0.5
    finally:
        speed._rate.cache_clear()
    assert calls == [((512, 512), (512, 512))] * 4


def test_the_rate_is_measured_once_for_each_precision_and_number_of_threads(monkeypatch):
    timed = []
    monkeypatch.setattr(speed, "timed", lambda _: timed.append(1) or 0.01)
    speed._rate.cache_clear()
    try:
        for _ in range(3):
            assert speed.multiplication_rate(torch.float64, torch.device("cpu")) == 512**3 / 0.01
        assert len(timed) == 1
        speed.multiplication_rate(torch.float32, torch.device("cpu"))
        assert len(timed) == 2
        monkeypatch.setattr(speed.torch, "get_num_threads", lambda: 1234)
        speed.multiplication_rate(torch.float32, torch.device("cpu"))
        assert len(timed) == 3
    finally:
        speed._rate.cache_clear()


def test_the_rate_of_this_machine_is_that_of_a_computer():
    for dtype in (torch.float32, torch.float64):
        assert 1e7 < speed.multiplication_rate(dtype, torch.device("cpu")) < 1e14


@pytest.mark.usefixtures("clock")
def test_no_time_is_zero():
    assert speed.timed(lambda: None) > 0


def test_small_calls_take_their_time_whatever_the_size(monkeypatch):
    monkeypatch.setattr(planning, "multiplication_rate", lambda *_: 1e15)
    monkeypatch.setattr(planning, "_SECONDS", SMALL_CALLS)
    for method in ("dense", "factor", "gram"):
        assert seconds(operator(5, 5), method=method) == pytest.approx(0.02)


def test_products_are_timed_only_where_they_are_made_and_nobody_counted_them():
    widths = []

    def matmat(block):
        widths.append(block.shape[1])
        return block

    uncounted = replace(operator(30, product=None), matmat=matmat)
    plan(uncounted)
    assert not widths  # the entries cost no products
    made = plan(uncounted, "density", counts=Counts(num_probes=4))
    assert widths == [1] * 4
    assert made.seconds > 0
    widths.clear()
    plan(replace(operator(30, product=1e3), matmat=matmat), "density", counts=Counts(num_probes=4))
    assert not widths


@pytest.mark.parametrize(
    ("spent", "text"),
    [(0.034, "0.03 s"), (0.96, "1 s"), (23.4, "23 s"), (119.9, "120 s"), (400.0, "7 min"), (7200.0, "2.0 h")],
)
def test_times_are_written_as_coarsely_as_they_are_known(spent, text):
    assert speed.seconds_text(spent) == text
