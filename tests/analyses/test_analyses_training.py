"""Analyses of training and outliers: each at its smallest size, its numbers against what they must be."""

import importlib
import math
from itertools import pairwise

import pytest
import torch

import curvature as cv
from curvature.studies.training import Adam
from oracles import normal


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
    assert {verdict["outcome"] for verdict in wide["verdicts"]} == {"undecided"}
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


def test_training_hovers_at_the_edge_of_its_own_geometry(edge):
    module = script("edge_of_stability")
    second_half = {row["case"]: row for row in module.summary(edge)}
    assert set(second_half) == set(module.FAST)
    for case, row in second_half.items():
        assert row["own_largest"] > 0.95, case  # it gets there
        assert 0.75 < row["own"] < 1.2, case
    assert second_half["weight norm, paper's gauge"]["weights"] < 0.5  # while the weights are far from the edge
    assert second_half["Adam"]["own_at_start"] < 0.5  # it sharpens first
    assert second_half["Adam"]["weights"] is None


def test_standard_chart_is_the_weights_and_every_loss_falls(edge):
    module = script("edge_of_stability")
    for case in module.FAST:
        run = [row for row in edge if row["case"] == case]
        assert run[-1]["loss"] < 0.9 * run[0]["loss"]
        if case == "gradient descent":
            assert all(row["own"] == row["weights"] for row in run)


def test_divisors_of_adam_are_those_of_pytorch():
    module, optimizer = script("edge_of_stability"), Adam(0.1, betas=(0.8, 0.9), epsilon=1e-3)
    point = normal(3, 5).requires_grad_()
    theirs = torch.optim.Adam([point], lr=0.1, betas=(0.8, 0.9), eps=1e-3)
    watched = module.Divisors(optimizer, {4})
    for step in range(4):
        point.grad = torch.cos(step + point.detach())
        watched(point, point.grad, point)
        theirs.step()
    expected = (theirs.state[point]["exp_avg_sq"] / (1 - 0.9**4)).sqrt() + 1e-3
    assert torch.allclose(watched.kept[4], expected, rtol=1e-14)


def test_critical_sharpness_is_the_rayleigh_quotient_of_the_step_where_the_loss_is_quadratic():
    module, generator = script("edge_of_stability"), torch.Generator().manual_seed(1)
    data = normal(generator, 20, 4), normal(generator, 20, 2)
    problem = cv.Problem.from_module(torch.nn.Linear(4, 2).double(), loss="mse", data=data)
    gradient, hessian = problem.gradient(), cv.hessian(problem).dense()
    quotient = float(gradient @ hessian @ gradient / (gradient @ gradient))
    assert module.along_the_gradient(problem, cv.Standard()) == pytest.approx(quotient, rel=2e-3)
    divisors = normal(generator, problem.dim).abs() + 0.1
    step = gradient / divisors
    quotient = float(step @ hessian @ step / (step @ gradient))
    assert module.along_the_gradient(problem, cv.Standard(), divisors) == pytest.approx(quotient, rel=2e-3)
    scaled = hessian * divisors.rsqrt()[:, None] * divisors.rsqrt()
    top = float(torch.linalg.eigvalsh(scaled)[-1])
    assert module.sharpness(problem, cv.Standard(), divisors) == pytest.approx(top, rel=2 * module.TOLERANCE)
    assert quotient <= top


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
    for spectrum in outliers["spectra"].values():
        values = torch.tensor(spectrum["eigenvalues"])
        nodes, weights = torch.tensor(spectrum["nodes"]), torch.tensor(spectrum["weights"])
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
