"""Analyses of blocks, architectures, Fishers and adapters: each at its smallest size, against what it must be."""

import importlib

import numpy as np
import pytest
import torch
from torch import nn

import curvature as cv
from curvature.natural_gradient import METHODS
from curvature.natural_gradient.comparison import step_efficiencies
from oracles import normal


def script(name):
    return importlib.import_module(f"analyses.{name}")


# ------------------------------------------------------------------------------------------- approximations by blocks


@pytest.fixture(scope="module")
def blocks():
    return script("block_approximations").measure(fast=True)


def test_the_kronecker_factored_fisher_is_exact_for_one_linear_layer_with_squared_error(generator):
    data = normal(generator, 30, 4), normal(generator, 30, 3)
    problem = cv.Problem.from_module(nn.Linear(4, 3).double(), loss="mse", data=data)
    fisher = cv.fisher(problem).dense()
    module = script("block_approximations")
    exact = module.approximations(problem, fisher)["K-FAC"]
    assert torch.allclose(exact, fisher, rtol=0, atol=1e-14)
    assert torch.allclose(module.preconditioned(fisher, exact), torch.ones(15, dtype=torch.float64), atol=1e-11)


def test_finer_blocks_have_the_larger_error_and_the_kept_blocks_are_those_of_the_matrix(mlp, classification_data):
    problem = cv.Problem.from_module(mlp(3, 4, 3), loss="cross-entropy", data=classification_data(20, 3, 3))
    fisher = cv.fisher(problem).dense()
    made = script("block_approximations").approximations(problem, fisher)
    errors = [float(torch.linalg.norm(made[name] - fisher)) for name in ("layer blocks", "neuron blocks", "diagonal")]
    assert errors == sorted(errors)
    assert errors[0] > 0.01
    for rows in problem.layout.blocks("layer").values():
        assert torch.equal(made["layer blocks"][rows][:, rows], fisher[rows][:, rows])
    assert torch.equal(made["diagonal"].diagonal(), fisher.diagonal())


def test_equal_spectra_have_distance_0_and_disjoint_ones_1():
    distance = script("block_approximations").distance_of_spectra
    first = np.logspace(-6, -4, 40)
    assert distance(first, first) == 0
    assert distance(first, 1e5 * first) == pytest.approx(1)
    assert 0.1 < distance(first, 10 * first) < 0.9


def test_errors_of_the_approximations_are_of_order_one(blocks):
    for row in blocks["rows"]:
        assert 0.1 < row["error"] < 1
    assert len(blocks["spectra"]["blocks"]) == 2


# ------------------------------------------------------------------------------------------------- Fisher and Hessian


def test_fisher_and_ggn_are_one_matrix_for_cross_entropy_and_the_empirical_fisher_is_another():
    rows = script("fisher_drift").measure(fast=True)
    by_matrix = {(row["epoch"], row["matrix"]): row for row in rows}
    for epoch in {row["epoch"] for row in rows}:
        ggn, fisher, empirical = (by_matrix[epoch, name] for name in ("ggn", "fisher", "empirical_fisher"))
        assert ggn["distance"] == pytest.approx(fisher["distance"], rel=1e-9)
        assert abs(empirical["distance"] - fisher["distance"]) > 1e-3
        assert 0 < ggn["negative_share"] < 0.5


def test_closeness_ignores_a_multiple_where_it_says_so():
    hessian = normal(1, 12, 12)
    hessian = hessian + hessian.T
    numbers = script("fisher_drift").closeness(3 * hessian, hessian)
    assert numbers["distance"] == pytest.approx(2)
    assert numbers["shape_distance"] == pytest.approx(0, abs=1e-7)
    assert numbers["trace_ratio"] == pytest.approx(3)
    assert numbers["overlap"] == pytest.approx(1)


# -------------------------------------------------------------------------------------------- width, depth and kind


def test_networks_of_one_hidden_layer_are_the_same_whatever_their_kind():
    module = script("conditioning_by_architecture")
    rows = module.measure(fast=True)
    shallow = [row for row in rows if row["depth"] == 1 and row["chart"] == "weights"]
    assert len(shallow) == len(module.NETWORKS)
    assert len({row["kappa_80"] for row in shallow}) == 1
    deep = {row["network"]: row["kappa_80"] for row in rows if row["depth"] == 2 and row["chart"] == "weights"}
    assert len(set(deep.values())) == len(deep)


def test_the_kinds_are_what_they_are_called():
    module, inputs = script("conditioning_by_architecture"), normal(2, 5, 64)
    skip = module.network("skip", 4, 2, 0)
    plain = module.network("plain", 4, 2, 0)
    hidden = torch.tanh(skip[0](inputs))
    assert torch.allclose(skip[2](hidden), hidden + plain[2](hidden))
    normed = module.network("layer norm", 4, 2, 0)[2]
    assert torch.allclose(normed(hidden), torch.tanh(normed.linear(normed.norm(hidden))))


# ----------------------------------------------------------------------------------------------- low-rank adaptation


def test_adapters_start_at_the_function_of_the_base_and_see_fewer_directions():
    rows = script("low_rank_adaptation").measure(fast=True)["rows"]
    begun = {row["method"]: row for row in rows if row["stage"] == "init"}
    assert len({round(row["loss"], 12) for row in begun.values()}) == 1
    full, lora, dora = begun.values()
    # At B = 0 only B (and for DoRA the norms) and the biases move the function.
    biases, rows_of_weights = 14, 4 + 10
    assert lora["rank"] <= 2 * rows_of_weights + biases
    assert lora["rank"] < dora["rank"] <= 3 * rows_of_weights + biases
    assert full["rank"] > dora["rank"]


# ------------------------------------------------------------------------------------------------ the whitening league


@pytest.fixture(scope="module")
def league():
    return script("whitening_league").measure(fast=True)


def test_the_ends_of_the_league_are_where_they_must_be(league):
    for epoch in (0, 1):
        rows = {row["method"]: row for row in league if row["epoch"] == epoch}
        assert set(rows) == set(METHODS)
        assert rows["natural gradient"]["efficiency"] == pytest.approx(1, abs=1e-9)
        assert rows["natural gradient"]["kappa"] == pytest.approx(1, abs=1e-6)
        assert rows["gradient descent"]["index"] == 0
        assert rows["neuron-block natural gradient"]["index"] == 1
        canonical, descent = rows["weight norm, canonical"], rows["gradient descent"]
        assert canonical["efficiency"] == pytest.approx(descent["efficiency"], rel=1e-9)
        assert rows["weight norm, best gauge"]["efficiency"] >= canonical["efficiency"]
        for name in ("sphere", "DoRA, rank 2", "weight standardization *"):
            assert rows[name]["kappa"] is None  # not onto
        assert all(0 < row["efficiency"] < 1 + 1e-9 for row in rows.values())


def test_the_efficiency_of_a_step_is_that_of_the_chart_that_takes_it(mlp, classification_data):
    problem = cv.Problem.from_module(mlp(3, 4, 3), loss="cross-entropy", data=classification_data(20, 3, 3))
    chart = cv.WeightNorm("paper")
    expected = cv.efficiency(problem, chart, damping=0.01)
    gradient = problem.gradient()
    step = chart.at(problem.layout, problem.weights).metric(gradient[:, None])[:, 0]
    damped = cv.fisher(problem).dense() + 0.01 * torch.eye(problem.dim, dtype=torch.float64)
    (found,) = step_efficiencies(gradient, [step], damped, torch.linalg.cholesky(damped))
    assert found == pytest.approx(expected.efficiency, rel=1e-12)
