"""Analyses of functions of named tensors: their numbers against statsmodels, paper and hand-made derivatives."""

import math

import numpy as np
import pytest
import torch

import curvature as cv
from analyses import logistic_regression, matrix_factorization, physics_informed
from oracles import distance


@pytest.fixture(scope="module")
def regression():
    return logistic_regression.measure(fast=True)


def test_the_standard_errors_are_those_of_statsmodels_and_of_numpy(regression):
    inputs, targets = (part.numpy() for part in logistic_regression.students())
    estimates = np.array([row["estimate"] for row in regression["rows"]])
    p = 1 / (1 + np.exp(-inputs @ estimates))
    gradients = (p - targets)[:, None] * inputs
    inverse = np.linalg.inv(inputs.T @ ((p * (1 - p))[:, None] * inputs))
    covariances = {
        "hessian": inverse,
        "gradients": np.linalg.inv(gradients.T @ gradients),
        "sandwich": inverse @ gradients.T @ gradients @ inverse,
    }
    for k, row in enumerate(regression["rows"]):
        assert (round(row["estimate"], 4), round(row["hessian"], 4)) == tuple(row["published"])
        for name, covariance in covariances.items():
            assert row[name] == pytest.approx(math.sqrt(covariance[k, k]), rel=1e-8)
    assert regression["gradient_norm"] < 1e-10


def test_standardized_regressors_remove_most_of_the_condition_number(regression):
    raw, standardized = regression["charts"]
    assert raw["kappa"] == pytest.approx(regression["kappa_published"], rel=1e-6)
    inputs, targets = (part.numpy() for part in logistic_regression.students())
    columns = inputs[:, :3]
    inputs[:, :3] = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    beta = np.zeros(4)
    for _ in range(20):
        p = 1 / (1 + np.exp(-inputs @ beta))
        hessian = inputs.T @ ((p * (1 - p))[:, None] * inputs)
        beta += np.linalg.solve(hessian, inputs.T @ (targets - p))
    assert np.allclose(standardized["eigenvalues"], np.linalg.eigvalsh(hessian), rtol=1e-9)


def test_a_matrix_factorization_has_the_eigenvalues_and_the_zeros_on_paper():
    document = matrix_factorization.measure(fast=True)
    for row in document["rows"]:
        assert row["error"] < 1e-13
        assert row["zeros"] == document["expected_zeros"] == 16
        assert row["loss"] < 1e-25
        assert row["kappa_weight_norm"] == pytest.approx(row["kappa"], rel=1e-10)
    assert document["rows"][0]["kappa"] == pytest.approx(8, rel=1e-12)  # (4 + 4) / 1


def test_the_residuals_of_convection_have_the_jacobian_of_derivatives_by_the_chain_rule():
    """``u_x`` and ``u_t`` of the tanh network propagated by hand, without a derivative of a derivative."""
    beta, size = 7.0, (4, 3, 5)
    problem = physics_informed.problem_at(1, beta, size, ("residual",))
    x, t = physics_informed.grid(*size[:2])

    def residual(weights):
        named = problem.unflatten(weights)
        signal = torch.stack([x / math.pi - 1, 2 * t - 1], dim=-1)
        speeds = torch.tensor([beta / math.pi, 2.0], dtype=torch.float64).expand_as(signal)
        for layer in range(3):
            signal = signal @ named[f"{layer}.weight"].T + named[f"{layer}.bias"]
            speeds = speeds @ named[f"{layer}.weight"].T
            if layer < 2:
                signal = torch.tanh(signal)
                speeds = (1 - signal**2) * speeds
        return speeds[:, 0] / math.sqrt(12)

    jacobian = torch.autograd.functional.jacobian(residual, problem.weights)
    assert distance(cv.ggn(problem).dense(), 2 * jacobian.T @ jacobian) < 1e-12


def test_the_shares_of_the_terms_add_up_and_the_network_zero_has_an_error_of_one():
    document = physics_informed.measure(fast=True)
    slow, fast = document["rows"]
    assert document["parabola_error"] < 1e-12
    for row in (slow, fast):
        assert sum(row[name] for name in physics_informed.TERMS) == pytest.approx(1, rel=1e-10)
    assert fast["residual"] > slow["residual"]
    problem = physics_informed.problem_at(0, 30.0, physics_informed.FAST)
    assert physics_informed.relative_error(problem, torch.zeros_like(problem.weights), 30.0) == pytest.approx(1)
