"""Analyses of training, outliers and hazards: each at its smallest size, its numbers against what they must be."""

import importlib
import importlib.util
import math
from itertools import pairwise
from pathlib import Path

import pytest
import scipy.linalg
import torch

import curvature as cv

PEERS_PRESENT = all(
    importlib.util.find_spec(name) is not None for name in ("curvlinops", "pyhessian", "hessian_eigenthings")
)


def script(name):
    return importlib.import_module(f"analyses.{name}")


# -------------------------------------------------------------------------------------------------- wide learning rates


@pytest.fixture(scope="module")
def wide():
    return script("wide_learning_rates").measure(fast=True)


def test_squared_length_grows_by_the_squared_steps_at_every_learning_rate(wide):
    followed = [row for row in wide["rows"] if "growth" in row]
    assert {row["arm"] for row in followed} == {"weight-norm", "weight-norm-paper", "weight-norm-log", "placebo-paper"}
    for row in followed:
        assert row["growth"] == pytest.approx(row["predicted_growth"], rel=1e-10)
        assert row["growth"] > 1
        assert row["recursion_deviation"] < 1e-12
    by_rate = {row["learning_rate"]: row["growth"] for row in followed if row["arm"] == "weight-norm"}
    assert by_rate[max(by_rate)] > 10 * by_rate[min(by_rate)]


def test_arms_see_every_rate_and_one_seed_decides_nothing(wide):
    module = script("wide_learning_rates")
    assert len(wide["rows"]) == len(module.ARMS) * len(module.FAST_RATES)
    spacing = math.log10(module.FAST_RATES[1] / module.FAST_RATES[0])
    for row in wide["widths"]:
        assert 0 <= row["decades"] <= math.log10(module.FAST_RATES[-1] / module.FAST_RATES[0])
        runs = [run for run in wide["rows"] if run["arm"] == row["arm"]]
        assert row["decades_below_chance"] == pytest.approx(
            spacing * sum(run["final_loss"] < math.log(10) for run in runs)
        )
    assert {verdict["arm"] for verdict in wide["verdicts"]} == set(module.ARMS) - {"standard"}
    assert {verdict["outcome"] for verdict in wide["verdicts"]} == {"inconclusive"}
    assert all(verdict["num_pairs"] == 1 for verdict in wide["verdicts"])


def test_full_grid_of_rates_is_quarter_decades():
    rates = script("wide_learning_rates").RATES
    assert rates[0] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e2)
    assert all(b / a == pytest.approx(10**0.25) for a, b in pairwise(rates))


# ---------------------------------------------------------------------------------------------------- edge of stability


@pytest.fixture(scope="module")
def edge():
    return script("edge_of_stability").measure(fast=True)


def test_descent_hovers_at_two_over_the_rate_in_its_own_coordinates(edge):
    late = {row["arm"]: row for row in script("edge_of_stability").summary(edge)}
    for arm in late:
        assert late[arm]["own_at_start"] < 2  # it sharpens first
        assert 1.9 < late[arm]["own"] < 2.4
    assert late["weight-norm-paper"]["weights"] < 1  # while the weights are far from the edge


def test_standard_chart_is_the_weights_and_the_canonical_gauge_starts_there(edge):
    for row in edge:
        if row["arm"] == "standard":
            assert row["own"] == row["weights"]
    assert edge[-1]["loss"] < 0.5 * edge[0]["loss"]


def test_sharpness_is_the_largest_eigenvalue_of_the_dense_hessian():
    module = script("edge_of_stability")
    problem = module.problem_at(0, fast=True)
    for chart in (cv.Standard(), cv.WeightNorm(stretch=0.5)):
        dense = cv.pullback(cv.hessian(problem), chart).dense()
        assert module.sharpness(problem, chart) == pytest.approx(
            float(torch.linalg.eigvalsh(dense)[-1]), rel=2 * module.TOLERANCE
        )


# --------------------------------------------------------------------------------------------------------- PRONG figure


@pytest.fixture(scope="module")
def prong():
    return script("prong_figure").measure(fast=True)


def test_whitening_conditions_the_fisher_and_the_canonical_gauge_does_not_change_it(prong):
    start = {row["arm"]: row for row in prong if row["epoch"] == 0}
    standard = start["standard"]
    for key in ("kappa_50", "kappa_80"):
        assert start["prong"][key] < 0.2 * standard[key]
        assert start["weight-norm"][key] == pytest.approx(standard[key], rel=1e-6)
        assert start["weight-norm-paper"][key] != pytest.approx(standard[key], rel=1e-2)


def test_arms_start_at_one_function_and_are_measured_on_the_weights_too(prong):
    arms = set(script("prong_figure").LOOKS)
    start = [row for row in prong if row["epoch"] == 0]
    assert {row["arm"] for row in start} == arms
    for key in ("loss", "rank"):
        assert all(row[key] == pytest.approx(start[0][key], rel=1e-9) for row in start)
    assert all(row["kappa_80_weights"] == pytest.approx(start[0]["kappa_80_weights"], rel=1e-6) for row in start)
    for row in prong:
        assert 1 <= row["kappa_50"] <= row["kappa_80"] <= row["kappa_95"]
        if row["arm"] == "standard":
            assert row["kappa_80"] == row["kappa_80_weights"]


def test_two_charts_of_batch_norm_are_measured_on_one_run(prong):
    runs = {arm: [row for row in prong if row["arm"] == arm] for arm in ("batch-norm", "batch-norm, full batch")}
    for frozen, full in zip(*runs.values(), strict=True):
        assert frozen["loss"] == full["loss"]
        assert frozen["kappa_80"] != full["kappa_80"]


# ------------------------------------------------------------------------------------------------------------- outliers


@pytest.fixture(scope="module")
def outliers():
    return script("hessian_outliers").measure(fast=True)


def test_outliers_are_read_off_the_exact_spectrum(outliers):
    last = {row["arm"]: row for row in outliers["rows"] if row["epoch"] > 0}
    assert set(last) == set(outliers["spectra"])
    for arm, row in last.items():
        values = sorted(outliers["spectra"][arm]["eigenvalues"], reverse=True)
        assert row["largest"] == values[0]
        assert row["smallest"] == values[-1]
        assert row["outlier_size"] == pytest.approx(values[0] / values[10])
        ratios = [a / b for a, b in pairwise(values[:21])]
        assert row["gap"] == pytest.approx(max(ratios))
        assert ratios.index(max(ratios)) + 1 == row["count"]
        assert 0 <= row["gradient_share"] <= 1


def test_density_has_the_moments_of_the_exact_spectrum(outliers):
    for kept in outliers["spectra"].values():
        values = torch.tensor(kept["eigenvalues"])
        nodes, weights = torch.tensor(kept["nodes"]), torch.tensor(kept["weights"])
        assert torch.allclose(weights.sum(dim=1), torch.ones(len(weights), dtype=weights.dtype))
        assert float(nodes.max()) == pytest.approx(float(values[-1]), rel=1e-3)  # extremes converge first
        each = (weights * nodes).sum(dim=1)
        assert abs(float(each.mean() - values.mean())) < 5 * float(each.std()) / len(each) ** 0.5


def test_batch_norm_has_outliers_only_where_its_statistics_are_frozen(outliers):
    last = {row["arm"]: row for row in outliers["rows"] if row["epoch"] > 0}
    assert last["batch-norm, full batch"]["outlier_size"] < last["batch-norm, frozen"]["outlier_size"]
    assert last["weight-norm-paper"]["outlier_size"] < 0.5 * last["standard"]["outlier_size"]


# --------------------------------------------------------------------------------------------------- initial scale of v


@pytest.fixture(scope="module")
def scales():
    return script("init_scale").measure(fast=True)


def test_kernel_is_the_radial_part_plus_rho_times_the_tangential_one(scales):
    for row in scales["rows"]:
        assert row["identity_error"] < 1e-11
        assert row["largest"] <= (row["trace_radial"] + row["trace_tangential"]) * (1 + 1e-12)
        if row["stretch"] is not None:
            assert row["rho"] == pytest.approx(row["stretch"] ** -2)
            assert row["growth"] >= 1
    assert next(row for row in scales["rows"] if row["stretch"] is None)["growth"] is None


def test_conditioning_goes_to_the_tangential_limit_and_the_canonical_gauge_is_standard(scales):
    kappa = {row["stretch"]: row["kappa_80"] for row in scales["rows"]}
    limit = {row["part"]: row["kappa_80"] for row in scales["limits"]}
    assert kappa[1.0] == pytest.approx(kappa[None], rel=1e-9)
    assert kappa[0.1] == pytest.approx(limit["tangential"], rel=1e-2)
    assert kappa[100.0] == pytest.approx(limit["radial"], rel=0.2)


def test_worse_conditioned_scales_train_more_slowly_at_their_own_rate(scales):
    steps = {row["stretch"]: row["steps"] for row in scales["rows"]}
    assert abs(steps[1.0] - steps[None]) <= 2
    assert steps[10.0] is None or steps[10.0] > 1.3 * steps[1.0]
    assert steps[100.0] is None  # lengths alone
    for row in scales["rows"]:
        assert row["rate"] == pytest.approx(1 / row["largest"])


# -------------------------------------------------------------------------------------------------------------- hazards


@pytest.fixture(scope="module")
def hazards():
    return {(row["hazard"], row["tool"]): row for row in script("peer_hazards").measure(fast=True)}


def test_every_hazard_is_right_or_refused_here_but_for_the_kink(hazards):
    module = script("peer_hazards")
    refused = {"dropping_loader", "dropout", "noise", "training_batch_norm", "nan_input"}
    for key in module.HAZARDS:
        expected = "raises" if key in refused else "wrong" if key == "relu_kink" else "right"
        assert hazards[key, "curvature"]["outcome"] == expected, hazards[key, "curvature"]
    for key in refused:
        assert hazards[key, "curvature"]["words"].startswith(("InputError: ", "SelfCheckError: "))


@pytest.mark.skipif(not PEERS_PRESENT, reason="needs the peers")
def test_peers_answer_as_the_table_says(hazards):
    wrong = {
        ("fused_weight_norm", "PyHessian"),
        ("fused_weight_norm", "hessian-eigenthings"),
        ("ragged_batches", "hessian-eigenthings"),
        ("class_weights", "curvlinops"),
        ("ignored_targets", "curvlinops"),
        ("lanczos_ghosts", "hessian-eigenthings"),
        ("multiplicity", "hessian-eigenthings"),
        ("single_precision", "curvlinops"),
        ("side_effects", "PyHessian"),
    }
    assert {pair for pair in wrong if hazards[pair]["outcome"] == "wrong"} == wrong
    assert hazards["ragged_batches", "curvlinops"]["outcome"] == "right"  # the question is fair
    assert hazards["fused_weight_norm", "curvlinops"]["outcome"] == "raises"
    assert all(hazards["tied_weights", tool]["outcome"] == "right" for tool in script("peer_hazards").TOOLS)


def test_truth_of_a_hazard_is_the_hessian_of_torch_func():
    module = script("peer_hazards")
    network, (inputs, targets) = module.network(), module.data()
    names = [name for name, _ in network.named_parameters()]
    point = torch.nn.utils.parameters_to_vector(network.parameters()).detach()

    def loss(vector):
        parts = vector.split([p.numel() for p in network.parameters()])
        named = {n: part.view(p.shape) for n, part, p in zip(names, parts, network.parameters(), strict=True)}
        return torch.nn.functional.cross_entropy(torch.func.functional_call(network, named, (inputs,)), targets)

    expected = torch.linalg.eigvalsh(torch.func.hessian(loss)(point))
    found = module.exact(network, torch.nn.CrossEntropyLoss(), inputs, targets)
    assert torch.allclose(found, expected, rtol=0, atol=1e-13)


def test_quadratic_of_given_spectrum_has_it():
    module = script("peer_hazards")
    values = torch.tensor([5.0, 2.0, 1.0], dtype=torch.float64)
    network, criterion, batches = module.quadratic(values)
    found = module.exact(network, criterion, *batches.dataset.tensors)
    assert torch.allclose(found.flip(0), values, rtol=1e-12)


def test_peer_that_is_not_installed_is_shown_as_such(monkeypatch):
    module = script("peer_hazards")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyhessian" else object())
    row = module.answered(module.Question(lambda _tool: 0.0), "PyHessian")
    assert row == {"outcome": "missing", "error": None, "words": "not installed"}
    assert module.cell(row) == "not installed"


def test_crash_of_a_tool_is_its_answer_and_fits_a_cell():
    module = script("peer_hazards")

    def ask(_tool):
        raise ValueError("a | b\n<script> `x` " + "long " * 100)

    row = module.answered(module.Question(ask), "curvature")
    assert row["outcome"] == "raises"
    text = module.cell(row)
    assert text.startswith("raises `ValueError`: a / b (script)")
    assert "|" not in text
    assert len(text) < 140


def test_page_of_hazards_has_a_row_for_every_question_of_the_script_and_its_outcome_here(hazards):
    module = script("peer_hazards")
    path = Path(__file__).parents[2] / "docs" / "hazards.md"
    lines = [line for line in path.read_text().splitlines() if line.startswith("| ")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert [(row[0], row[1]) for row in cells] == [(one.title, one.truth) for one in module.HAZARDS.values()]
    words = {"right": "right, ", "raises": "raises `", "wrong": "**wrong**: "}
    for row, key in zip(cells, module.HAZARDS, strict=True):
        assert row[2].startswith(words[hazards[key, "curvature"]["outcome"]])


# ------------------------------------------------------------------------------------------- what they found in passing


def test_polar_factors_survive_a_failure_of_divide_and_conquer(monkeypatch):
    class Square(cv.Parameterization):
        name = "square"

        def to_weights(self, coordinates):
            return coordinates**2

        def from_weights(self, weights):
            return weights.sqrt()

    problem = cv.zoo.linear_regression(num_examples=20, dim=4)
    problem = problem.at(problem.weights.abs() + 0.1)

    def fails(*_, **__):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "svd", fails)
    chart = Square().at(problem.layout, problem.weights)
    block = torch.eye(4, dtype=torch.float64)
    jacobian = chart.push(block).numpy()
    root = scipy.linalg.sqrtm(jacobian @ jacobian.T)
    assert torch.allclose(chart.metric_root(block), torch.from_numpy(root), rtol=1e-12)
    assert chart.null_dim == 0
