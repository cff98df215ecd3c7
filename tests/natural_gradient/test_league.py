"""The whitening league: against dense metrics and a Fisher by plain autograd, and its words where it has no number."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torch.nn import functional

import curvature as cv
from curvature.natural_gradient import METHODS, best_stretches, muon_step
from oracles import drawn, weighted

DAMPING = 0.02


@pytest.fixture(scope="module")
def case():
    """A 5-4-3 softmax network as a problem, its flat gradient, per-example gradients and Fisher by autograd."""
    module = weighted(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    inputs, labels = drawn(12, 5), torch.arange(12) % 3
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(inputs, labels))
    parameters = tuple(module.parameters())

    def flat(value):
        return torch.cat([part.reshape(-1) for part in torch.autograd.grad(value, parameters)]).numpy()

    fisher, singles = np.zeros((problem.dim, problem.dim)), []
    for x, y in zip(inputs, labels, strict=True):
        jacobian = np.stack([flat(module(x)[k]) for k in range(3)])
        p = functional.softmax(module(x), dim=0).detach().numpy()
        fisher += jacobian.T @ (np.diag(p) - np.outer(p, p)) @ jacobian / 12
        singles.append(flat(functional.cross_entropy(module(x)[None], y[None])))
    return problem, np.mean(singles, axis=0), np.stack(singles), fisher


@pytest.fixture(scope="module")
def league(case):
    return {entry.method: entry for entry in cv.whitening_league(case[0], cv.WeightNorm(stretch=3.0), damping=DAMPING)}


def metric_of_rows(problem, rho, along=1.0):
    """A metric that is ``along`` each row of the weights, ``rho`` by name and row across it, and 1 for biases."""
    metric = np.eye(problem.dim)
    for entry, span in problem.layout.pairs():
        if len(entry.shape) < 2:
            continue
        rows = problem.weights[span].view(entry.shape).numpy()
        for number, row in enumerate(rows):
            start = span.start + number * len(row)
            unit, across = row / np.linalg.norm(row), rho(entry.name, number)
            block = along * np.outer(unit, unit) + across * (np.eye(len(row)) - np.outer(unit, unit))
            metric[start : start + len(row), start : start + len(row)] = block
    return metric


def inverse_by(problem, damped, kind):
    inverse = np.zeros_like(damped)
    for rows in problem.layout.blocks(kind).values():
        inverse[np.ix_(rows, rows)] = np.linalg.inv(damped[np.ix_(rows, rows)])
    return inverse


def dense_metrics(case):
    problem, _, singles, fisher = case
    damped = fisher + DAMPING * np.eye(len(fisher))
    best = {name: values.numpy() for name, values in best_stretches(problem, damping=DAMPING).items()}
    paper = cv.WeightNorm("paper").at(problem.layout, problem.weights).stretches.numpy()
    names = [name for name, rows in best.items() for _ in rows]
    first = {name: names.index(name) for name in names}
    return {
        "gradient descent": np.eye(len(fisher)),
        "weight norm, canonical": metric_of_rows(problem, lambda *_: 1.0),
        "weight norm, gauge reached": metric_of_rows(problem, lambda *_: 1 / 9),
        "weight norm, paper's gauge": metric_of_rows(problem, lambda name, row: paper[first[name] + row] ** -2),
        "weight norm, best gauge": metric_of_rows(problem, lambda name, row: best[name][row] ** -2),
        "Adam": np.diag(1 / (np.sqrt((singles**2).mean(axis=0)) + 1e-8)),
        "Jacobi": np.diag(1 / np.diag(damped)),
        "neuron-block natural gradient": inverse_by(problem, damped, "neuron"),
        "layer-block natural gradient": inverse_by(problem, damped, "layer"),
        "natural gradient": np.linalg.inv(damped),
    }


def share(gradient, step, damped):
    return (gradient @ step) ** 2 / ((step @ damped @ step) * (gradient @ np.linalg.solve(damped, gradient)))


def test_every_number_of_the_league_is_that_of_dense_metrics(case, league):
    _, gradient, _, fisher = case
    damped = fisher + DAMPING * np.eye(len(fisher))
    metrics = dense_metrics(case)
    shares = {method: share(gradient, metric @ gradient, damped) for method, metric in metrics.items()}
    low, high = shares["gradient descent"], shares["neuron-block natural gradient"]
    for method, metric in metrics.items():
        entry = league[method]
        values = np.linalg.eigvals(metric @ damped).real
        assert entry.efficiency == pytest.approx(shares[method], rel=1e-8), method
        assert entry.ratio == pytest.approx(shares[method] / low, rel=1e-8), method
        assert entry.index == pytest.approx((shares[method] - low) / (high - low), abs=1e-8), method
        assert entry.kappa == pytest.approx(values.max() / values.min(), rel=1e-9 + 1e-15 * entry.kappa), method
        assert (entry.damping, entry.num_examples) == (DAMPING, 12)
        assert entry.relative_damping == pytest.approx(DAMPING * len(fisher) / np.trace(fisher))


def test_methods_that_are_not_onto_have_an_efficiency_and_no_condition_number(case, league):
    problem, gradient, _, fisher = case
    damped = fisher + DAMPING * np.eye(len(fisher))
    sphere = metric_of_rows(problem, lambda *_: 1.0, along=0.0)
    assert league["sphere"].efficiency == pytest.approx(share(gradient, sphere @ gradient, damped), rel=1e-8)
    unresolved = ("sphere", "DoRA, rank 2", "weight standardization *")
    for method in (*unresolved, "Muon (step on matrices)"):
        assert math.isnan(league[method].kappa)
        assert 0 < league[method].efficiency < 1
        assert (league[method].note == "condition number above 1e14: not resolved.") == (method in unresolved)


def test_the_limit_of_condition_numbers_follows_the_precision():
    module = weighted(nn.Linear(4, 3).double())
    problem = cv.Problem.from_module(
        module, loss="cross-entropy", data=(drawn(9, 4), torch.arange(9) % 3), dtype=torch.float32
    )
    league = {entry.method: entry for entry in cv.whitening_league(problem, relative_damping=1e-2)}
    assert league["sphere"].note == "condition number above 1.9e5: not resolved."
    assert league["natural gradient"].kappa == pytest.approx(1, rel=1e-3)
    assert not league["natural gradient"].note


def test_the_step_of_muon_is_the_polar_factor_of_every_matrix(case, league):
    problem, gradient, _, fisher = case
    step, parts = muon_step(problem), []
    for entry, span in problem.layout.pairs():
        slope = torch.as_tensor(gradient[span]).view(entry.shape).numpy()
        # The gradients of the outputs of a softmax sum to zero: the last matrix has a null direction.
        left, values, right = np.linalg.svd(np.atleast_2d(slope), full_matrices=False)
        kept = values > 1e-12
        parts.append((left[:, kept] @ right[kept]).ravel() * (len(entry.shape) > 1))
    expected = -np.concatenate(parts)
    assert np.abs(step.numpy() - expected).max() < 1e-10
    first = step[:20].view(4, 5).numpy()
    polar, _ = scipy.linalg.polar(gradient[:20].reshape(4, 5), side="left")
    assert np.abs(first + polar).max() < 1e-10
    damped = fisher + DAMPING * np.eye(len(fisher))
    assert league["Muon (step on matrices)"].efficiency == pytest.approx(share(gradient, expected, damped), rel=1e-8)


def test_weight_standardization_is_compared_at_the_nearest_weights_that_it_represents(case, league):
    moved = cv.nearest(case[0], cv.WeightStandardization())
    standard, own = (cv.efficiency(moved, c, damping=DAMPING) for c in (cv.Standard(), cv.WeightStandardization()))
    entry = league["weight standardization *"]
    assert entry.efficiency == pytest.approx(own.efficiency, rel=1e-12)
    assert entry.ratio == pytest.approx(own.efficiency / standard.efficiency, rel=1e-12)


def test_the_league_has_every_method_once_and_the_gauge_reached_only_where_there_is_one(case, league):
    assert sorted(league) == sorted(METHODS)
    assert {entry.method for entry in league.values() if entry.note} == {
        entry.method for entry in league.values() if math.isnan(entry.kappa) and not entry.method.startswith("Muon")
    }
    plain = [entry.method for entry in cv.whitening_league(case[0], damping=DAMPING)]
    assert sorted([*plain, "weight norm, gauge reached"]) == sorted(METHODS)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(5, 3).double())
    problem = cv.Problem.from_module(normed, loss="cross-entropy", data=(drawn(9, 5), torch.arange(9) % 3))
    assert "weight norm, gauge reached" in [entry.method for entry in cv.whitening_league(problem)]


@pytest.mark.parametrize("chart", [cv.Sphere(), cv.Placebo("paper"), "paper"], ids=["sphere", "placebo", "text"])
def test_only_weight_norm_has_the_place_of_the_gauge_that_training_has_reached(case, chart):
    with pytest.raises(cv.ConfigurationError) as refused:
        cv.whitening_league(case[0], chart, damping=DAMPING)
    assert str(refused.value) == (
        f"chart must be a WeightNorm, got {chart!r}: the league compares its gauge. Leave it out to use that of the "
        "model."
    )


def test_a_module_in_another_chart_has_no_gauge_of_weight_norm_and_the_log_scale_has_one(case):
    problem = dataclasses.replace(case[0], chart=cv.Sphere())
    assert "weight norm, gauge reached" not in [entry.method for entry in cv.whitening_league(problem, damping=DAMPING)]
    own = cv.WeightNorm(stretch=3.0, log_scale=True)
    entries = {entry.method: entry for entry in cv.whitening_league(case[0], own, damping=DAMPING)}
    expected = cv.efficiency(case[0], own, damping=DAMPING).efficiency
    assert entries["weight norm, gauge reached"].efficiency == pytest.approx(expected, rel=1e-12)


def test_a_method_that_these_weights_do_not_have_says_why_and_the_others_are_measured():
    data = drawn(8, 3, seed=2), drawn(8, 1)
    problem = cv.Problem.from_function(
        "half-squared-error", {"x": torch.ones(3)}, data, outputs=lambda p, inputs: inputs @ p["x"][:, None]
    )
    league = {entry.method: entry for entry in cv.whitening_league(problem)}
    assert league["natural gradient"].efficiency == pytest.approx(1)
    for method in ("weight norm, canonical", "weight norm, best gauge", "sphere", "Muon (step on matrices)"):
        assert math.isnan(league[method].efficiency)
        assert math.isnan(league[method].ratio)
        assert league[method].note.endswith(".")


def test_a_point_without_a_gradient_has_no_league_and_dampings_are_refused(case):
    still = nn.Linear(2, 1).double()
    nn.init.zeros_(still.weight)
    nn.init.zeros_(still.bias)
    data = drawn(4, 2), torch.zeros(4, 1, dtype=torch.float64)
    problem = cv.Problem.from_module(still, loss="half-squared-error", data=data)
    with pytest.raises(cv.NotDefinedError, match="the gradient is zero"):
        cv.whitening_league(problem)
    with pytest.raises(cv.ConfigurationError, match="both set the damping"):
        cv.whitening_league(case[0], damping=1.0, relative_damping=1.0)
    with pytest.raises(cv.ConfigurationError, match="relative_damping must be positive"):
        cv.whitening_league(case[0], relative_damping=0.0)
