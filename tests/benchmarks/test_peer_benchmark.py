"""The stopwatch of the benchmark: what counts as a result, as a peer and as a repetition. Times are never asserted."""

import importlib
import json
import math

import numpy as np
import pytest
import torch

bench = importlib.import_module("benchmarks.peer_benchmark")
FLOORS = {"matrix_product_float64": 1e9, "matrix_product_float32": 2e9, "lapack_seconds": 1.0, "lapack_order": 100}


def contender(name, result=1.0, **about):
    return bench.Contender(name, lambda: lambda: result, **about)


def fails(message):
    def prepare():
        raise RuntimeError(message)

    return prepare


def case(*contenders, check=lambda result: abs(result - 1.0), **about):
    return bench.Case("toy", "P=1", torch.float64, contenders, check, **about)


def rows(one, repetitions=3):
    return {row["method"]: row for row in bench.rows_of(one, bench.race(one, repetitions), FLOORS)}


@pytest.fixture(scope="module")
def net():
    return bench.network(bench.FAST, "small", torch.float64)


def test_row_has_the_promised_keys_and_is_json():
    row = rows(case(contender("ours", is_ours=True), contender("peer"), flops=1e6))["ours"]
    assert set(row) > {"work", "size", "dtype", "method", "is_ours", "seconds", "repetitions", "relative_error"}
    assert "ratio_to_fastest_peer" in row
    assert json.loads(json.dumps(row)) == row
    assert row["repetitions"] == 3
    assert row["ratio_to_floor"] == pytest.approx(row["seconds"] / 1e-3)


def test_the_peak_of_the_memory_is_seen_after_it_was_freed():
    before = bench._resident_bytes(forget_peak=True)
    np.ones(8 * 2**20).sum()
    assert 60 * 2**20 < bench._resident_bytes(peak=True) - before < 200 * 2**20
    assert bench._resident_bytes() - before < 60 * 2**20


def test_a_failing_peer_is_a_row_and_a_failing_package_of_ours_is_an_error():
    broken = bench.Contender("peer", fails("no forward mode\nand a long trace"))
    found = rows(case(contender("ours", is_ours=True), broken))
    assert found["peer"]["error"] == "RuntimeError: no forward mode"
    assert found["peer"]["seconds"] is None
    assert found["ours"]["ratio_to_fastest_peer"] is None
    with pytest.raises(RuntimeError, match="ours"):
        rows(case(bench.Contender("mine", fails("ours"), is_ours=True)))


def test_a_wrong_peer_is_shown_and_not_compared_with():
    found = rows(case(contender("ours", is_ours=True), contender("wrong", 1.4), contender("right")))
    assert found["wrong"]["relative_error"] == pytest.approx(0.4)
    assert found["right"]["ratio_to_fastest_peer"] == 1
    only_wrong = rows(case(contender("ours", is_ours=True), contender("wrong", 1.4)))
    assert only_wrong["ours"]["ratio_to_fastest_peer"] is None


def test_a_missing_package_is_left_out():
    assert set(rows(case(contender("ours", is_ours=True), contender("peer", needs="no_such_package")))) == {"ours"}


def test_a_method_too_large_for_the_memory_is_not_started():
    row = rows(case(contender("ours", is_ours=True), contender("peer", num_bytes=1e18)))["peer"]
    assert row["error"].startswith("MemoryError: needs about")


@pytest.mark.parametrize(
    ("seconds", "is_ours", "expected"), [(0.0, False, 7), (12.0, False, 2), (40.0, False, 1), (12.0, True, 5)]
)
def test_slow_methods_run_less_often_and_say_so(seconds, is_ours, expected, monkeypatch):
    monkeypatch.setattr(bench, "_clock", lambda run, _calls: (seconds or 1e-3, run()))
    assert rows(case(contender("one", is_ours=is_ours)), repetitions=7)["one"]["repetitions"] == expected


def test_methods_are_interleaved(monkeypatch):
    order = []
    monkeypatch.setattr(bench, "_clock", lambda run, _calls: (1.0, run()))
    bench.race(case(*(bench.Contender(name, lambda n=name: lambda: order.append(n) or 1.0) for name in "abc")), 2)
    assert "".join(order).endswith("abcabc")


@pytest.mark.parametrize("which", ["hessian_products", "ggn_products"])
def test_the_oracle_is_the_dense_matrix(net, which):
    """The judge itself, by a third route: ``torch.autograd.functional``, or Jacobians written out."""
    vectors = bench.probes(net)
    if which == "hessian_products":
        matrix = torch.autograd.functional.hessian(net.loss, net.point)
    else:
        jacobian = torch.autograd.functional.jacobian(net.outputs, net.point)
        share = torch.softmax(net.outputs(net.point), dim=1).detach()
        middle = torch.diag_embed(share) - share[:, :, None] * share[:, None, :]
        matrix = torch.einsum("ncp, ncd, ndq -> pq", jacobian, middle, jacobian) / len(share)
    products = getattr(bench, which)
    assert bench.distance(matrix @ vectors, products(net, vectors)) < 1e-13
    check = bench.matrix_check(net, products)
    assert check(matrix) < 1e-13
    wrong = matrix.clone()
    wrong[3, 5] += 1e-6 * matrix.abs().max()
    assert check(wrong) > 1e-8


def test_single_precision_is_judged_in_double_at_its_own_weights():
    net = bench.network(bench.FAST, "small", torch.float32)
    assert net.double.dtype == torch.float64
    assert torch.equal(net.double.point, net.point.double())
    check = bench.matrix_check(net, bench.hessian_products)
    assert check(torch.autograd.functional.hessian(net.double.loss, net.double.point).float()) < 1e-6


def test_both_weight_norms_are_the_same_function_in_the_same_coordinates():
    fused, composite = (bench.normalized(bench.FAST, torch.float64, fused=fused) for fused in (True, False))
    assert torch.equal(fused.point, composite.point)
    assert list(fused.shapes) == list(composite.shapes)
    assert torch.allclose(fused.loss(fused.point), composite.loss(composite.point), rtol=1e-14)
    problem = fused.problem
    chart = problem.chart.at(problem.layout, problem.weights)
    assert torch.allclose(chart.coordinates, composite.point, rtol=1e-14)
    assert chart.stretches.mean() == pytest.approx(bench.STRETCH)


def test_a_density_is_as_far_from_the_spectrum_as_its_nodes(net):
    values = bench.exact_values(net)
    check = bench.density_check(net)
    assert check((values, np.ones_like(values))) < 1e-14
    shifted = values + 0.01 * np.ptp(values)
    assert check((shifted, np.ones_like(values))) == pytest.approx(0.01)


def test_exponents_are_slopes_in_logarithms():
    points = [
        {"along": "NP", "num_examples": 100, "dim": 50, "seconds": 1.0, "peak_bytes": 1e6},
        {"along": "N", "num_examples": 800, "dim": 50, "seconds": 8.0, "peak_bytes": 1e6},
        {"along": "P", "num_examples": 100, "dim": 800, "seconds": 256.0, "peak_bytes": 1.6e7},
    ]
    fitted = {name: slopes["fitted"] for name, slopes in bench.exponents(points).items()}
    assert fitted["seconds against N"] == pytest.approx(1)
    assert fitted["seconds against P"] == pytest.approx(2)
    assert fitted["peak_bytes against N"] == pytest.approx(0)
    assert fitted["peak_bytes against P"] == pytest.approx(1)


def test_markdown_marks_what_is_wrong_and_what_fails():
    one = case(
        contender("ours", is_ours=True),
        contender("off", 1.4),
        bench.Contender("broken", fails("a|b")),
        contender("good"),
    )
    document = {
        "processor": "some processor",
        "threads": 2,
        "versions": {"torch": "2"},
        "missing": ["pyhessian"],
        "growth": {},
        "floors": FLOORS,
        "rows": bench.rows_of(one, bench.race(one, 1), FLOORS),
    }
    lines = {line.split(" | ")[3]: line for line in bench.markdown(document).splitlines() if line.startswith("| toy")}
    assert "**wrong**" in lines["off"]
    assert "fails" in lines["broken"]
    assert "a/b" in lines["broken"]
    assert "**ours**" in lines
    assert {line.count("|") for line in lines.values()} == {11}
    assert "Not installed: pyhessian" in bench.markdown(document)


@pytest.mark.parametrize("name", ["weight-norm", "top", "gradients", "ggn-few", "cnn"])
def test_our_results_at_toy_size_are_right(name):
    for one in bench.WORKS[name](bench.FAST):
        for entrant in (c for c in one.contenders if c.is_ours):
            error = (entrant.check or one.check)(entrant.prepare()())
            assert error < (1e-5 if one.dtype == torch.float32 else 1e-6 if name == "top" else 1e-11)


def test_stock_weight_norm_is_wrong_by_double_backward():
    """The row that the benchmark shows: PyTorch's own second derivative, not a peer's mistake."""
    fused, composite = (bench.normalized(bench.FAST, torch.float64, fused=fused) for fused in (True, False))
    vectors = bench.probes(fused)
    error = bench.distance(bench.hessian_products(fused, vectors), bench.hessian_products(composite, vectors))
    assert error > 1e-2
    assert not math.isnan(error)


def test_growth_is_drawn_with_its_fitted_and_its_theoretical_power():
    def row(along, dim, num_examples):
        about = {"along": along, "dim": dim, "num_examples": num_examples, "size": f"P={dim}, N={num_examples}"}
        return about | {"seconds": 1e-9 * num_examples * dim**2, "peak_bytes": 16.0 * dim**2}

    rows = [row("N", 100, 10), row("NP", 100, 40), row("P", 400, 40)]
    document = {"rows": rows, "growth": bench.exponents(rows)}
    assert {name: fit["fitted"] for name, fit in document["growth"].items()} == pytest.approx(
        {"seconds against N": 1, "peak_bytes against N": 0, "seconds against P": 2, "peak_bytes against P": 2}, abs=1e-9
    )
    axes = bench.draw_growth(document).axes
    assert [ax.get_title("left") for ax in axes] == ["dense Hessian, P = 100", "dense Hessian, N = 40"] * 2
    for ax in axes:
        measured, theory, *_ = ax.get_lines()
        np.testing.assert_allclose(measured.get_ydata(), theory.get_ydata())
        assert any(text.get_text().startswith("fitted power") for text in ax.get_legend().get_texts())
    limit = axes[3].get_lines()[-1].get_ydata()
    np.testing.assert_allclose(limit, [(3 * 8 * dim**2 + 2**28) / 2**20 for dim in (100, 400)])
