"""Penalties on the weights: against plain double backward of the whole objective, in every matrix, chart and route."""

import math
import types
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import curvature as cv
from curvature.studies import training
from oracles import built, distance, drawn, factor_of

INPUTS = drawn(8, 4)
LABELS = torch.arange(8) % 3
IMAGES = drawn(8, 1, 5, 5)


class Tied(nn.Module):
    """One weight used twice, and a layer norm."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm, self.last = (
            nn.Linear(4, 4),
            nn.Linear(4, 4),
            nn.LayerNorm(4),
            nn.Linear(4, 3),
        )
        self.second.weight = self.first.weight

    def forward(self, inputs):
        return self.last(self.norm(self.second(torch.tanh(self.first(inputs)))))


def chain():
    return built(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))


def images():
    return built(lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3)))


def half_frozen():
    module = chain()
    module[2].weight.requires_grad_(False)
    return module


MODULES = {"chain": chain, "images": images, "tied": lambda: built(Tied), "frozen": half_frozen}


def smooth_absolute(weights):
    """Neither quadratic nor separate from one weight to the next."""
    first, *_, last = weights.values()
    return sum((part.square() + 0.1).sqrt().sum() for part in weights.values()) + first.sum().sin() * last.sum()


def quartic(weights):
    return 0.1 * sum((part**4).sum() for part in weights.values())


def bump(weights):
    """Not convex."""
    return -torch.exp(-sum(part.square().sum() for part in weights.values()) / 10)


def decay_of(named, coefficients):
    return sum(0.5 * value * named[name].square().sum() for name, value in coefficients.items())


# Each with the same term on a dictionary of named parameters, written without the code under test.
PENALTIES = {
    "decay": ({"weight_decay": 0.05}, lambda named: decay_of(named, dict.fromkeys(named, 0.05))),
    "by pattern": (
        {"weight_decay": {"bias": 0.3, "^(0|first)[.]weight": 0.1}},
        lambda named: decay_of(
            named, {name: 0.3 for name in named if "bias" in name} | {next(n for n in named if "weight" in n): 0.1}
        ),
    ),
    "smooth absolute values": ({"penalty": smooth_absolute}, smooth_absolute),
    "not convex": ({"penalty": bump}, bump),
    "both": (
        {"penalty": quartic, "weight_decay": 1},
        lambda named: quartic(named) + decay_of(named, dict.fromkeys(named, 1.0)),
    ),
}


def trained(module):
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def derivatives(value, parameters):
    """Gradient and Hessian of a scalar, one backward pass for each entry of the gradient."""

    def flat(parts):
        return torch.cat([part.reshape(-1) for part in parts])

    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    slope = flat(torch.autograd.grad(value, parameters, create_graph=True, **options))
    rows = [
        flat(torch.autograd.grad(entry, parameters, **options)) if entry.requires_grad else torch.zeros_like(slope)
        for entry in slope
    ]
    return slope.detach(), torch.stack(rows).detach()


def case(module_name, penalty_name):
    """A problem with a penalty, with value, gradient and Hessian of the loss and of the penalty by double backward."""
    module, (options, term) = MODULES[module_name](), PENALTIES[penalty_name]
    inputs = IMAGES if module_name == "images" else INPUTS
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(inputs, LABELS), **options)
    named = trained(module)
    loss, added = functional.cross_entropy(module(inputs), LABELS), term(named)
    parts = [derivatives(value, list(named.values())) for value in (loss, added)]
    expected = types.SimpleNamespace(
        value=float(loss.detach() + added.detach()),
        gradient=parts[0][0] + parts[1][0],
        data_gradient=parts[0][0],
        hessian=parts[0][1] + parts[1][1],
        penalty=parts[1][1],
    )
    return problem, expected


CASES = [(module, penalty) for module in MODULES for penalty in PENALTIES if penalty in ("decay", "both")]
CASES += [("chain", penalty) for penalty in PENALTIES if penalty not in ("decay", "both")]


@pytest.mark.parametrize(("module", "penalty"), CASES)
def test_value_gradient_and_every_route_of_the_hessian_contain_the_penalty(module, penalty):
    problem, expected = case(module, penalty)
    assert math.isclose(problem.value(), expected.value, rel_tol=1e-14)
    assert distance(problem.gradient(), expected.gradient) < 1e-13
    assert distance(problem.data_gradient(), expected.data_gradient) < 1e-13
    hessian = expected.hessian
    for method in ("auto", "generic"):
        operator = cv.hessian(problem, method=method)
        assert distance(operator.dense(), hessian) < 1e-13
        block = drawn(problem.dim, 3)
        assert distance(operator @ block, hessian @ block) < 1e-13
        assert abs(cv.trace(operator, method="exact").value - float(hessian.trace())) < 1e-12
        assert distance(torch.as_tensor(cv.diagonal(operator, method="exact").value), hessian.diagonal()) < 1e-13
        counts, values = cv.inertia(operator, 0.0123), torch.linalg.eigvalsh(hessian)
        assert (counts.below, counts.above) == (int((values < 0.0123).sum()), int((values > 0.0123).sum()))
    spectrum = cv.spectrum(cv.hessian(problem))  # with its self-checks
    assert distance(torch.as_tensor(spectrum.eigenvalues), torch.linalg.eigvalsh(hessian)) < 1e-13
    assert spectrum.penalty == problem.penalty.label
    assert problem.penalty.label in spectrum.label


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("chart", [cv.WeightNorm(stretch=2.0), cv.WeightNorm(log_scale=True), cv.ScaledStandard()])
def test_hessian_in_a_chart_is_that_of_the_penalized_objective_of_its_coordinates(penalty, chart):
    problem, _ = case("chain", penalty)
    term, at_point = PENALTIES[penalty][1], chart.at(problem.layout, problem.weights)

    def objective(coordinates):
        named = problem.unflatten(at_point.to_weights(coordinates))
        return functional.cross_entropy(torch.func.functional_call(chain(), named, (INPUTS,)), LABELS) + term(named)

    expected = torch.autograd.functional.hessian(objective, at_point.coordinates)
    operator = cv.pullback(cv.hessian(problem), chart)
    assert distance(operator.dense(), expected) < 1e-12
    block = drawn(operator.dim, 2)
    assert distance(operator @ block, expected @ block) < 1e-12
    cv.spectrum(operator)  # with its self-checks


@pytest.mark.parametrize("method", ["structured", "generic"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_ggn_contains_the_penalty_by_choice_and_says_so(penalty, method):
    problem, expected = case("chain", penalty)
    plain = cv.Problem.from_module(chain(), loss="cross-entropy", data=(INPUTS, LABELS))
    of_data, whole = cv.ggn(problem, method=method), cv.ggn(problem, method=method, penalty=True)
    assert torch.equal(of_data.dense(), cv.ggn(plain, method=method).dense())
    sums = of_data.dense() + expected.penalty
    assert distance(whole.dense(), sums) < 1e-13
    assert distance(whole @ drawn(problem.dim, 2), sums @ drawn(problem.dim, 2)) < 1e-13
    assert of_data.where.penalty == f"without {problem.penalty.label}"
    assert whole.where.penalty == problem.penalty.label
    assert of_data.where.label != whole.where.label
    spectrum = cv.spectrum(whole)  # with its self-checks
    assert distance(torch.as_tensor(spectrum.eigenvalues), torch.linalg.eigvalsh(sums)) < 1e-13
    convex = problem.penalty.function is None
    assert whole.facts.positive_semidefinite == convex
    if convex:
        factor = factor_of(whole)
        assert distance(factor @ factor.T, sums) < 1e-13
        value = cv.log_determinant(whole, 0.1).value
        assert abs(value - float(torch.logdet(sums + 0.1 * torch.eye(len(sums), dtype=sums.dtype)))) < 1e-11


def test_decay_makes_the_ggn_definite_and_full_decay_leaves_no_null_direction_to_count():
    problem, _ = case("chain", "decay")
    spectrum = cv.spectrum(cv.ggn(problem, penalty=True))
    assert spectrum.rank == spectrum.dim
    assert abs(float(spectrum.eigenvalues[0]) - 0.05) < 1e-14  # the softmax shift, which is null in the data
    partly = cv.Problem.from_module(
        chain(), loss="cross-entropy", data=(INPUTS, LABELS), weight_decay={"0.weight": 0.1}
    )
    assert cv.spectrum(cv.ggn(partly, penalty=True)).rank == 8 * 2 + 20  # of the examples, and of the decayed weights


@pytest.mark.parametrize("penalty", ["decay", "both"])
def test_fisher_and_moments_of_gradients_are_those_of_the_data(penalty):
    problem, expected = case("chain", penalty)
    plain = cv.Problem.from_module(chain(), loss="cross-entropy", data=(INPUTS, LABELS))
    for matrix in (cv.fisher, cv.empirical_fisher, cv.gradient_covariance):
        operator = matrix(problem)
        assert torch.equal(operator.dense(), matrix(plain).dense())
        assert operator.where.penalty == f"without {problem.penalty.label}"
        cv.spectrum(operator)  # with its self-checks
    mean = expected.data_gradient
    moment, covariance = cv.empirical_fisher(problem).dense(), cv.gradient_covariance(problem).dense()
    assert distance(covariance + mean[:, None] * mean, moment) < 1e-13


def test_block_and_subset_are_parts_of_the_whole_and_the_value_stays():
    for penalty in PENALTIES:
        problem, expected = case("chain", penalty)
        rows = torch.cat([torch.arange(problem.dim)[problem.layout.slices[name]] for name in ("2.weight", "2.bias")])
        part = problem.subset("2")
        assert distance(cv.hessian(part).dense(), expected.hessian[rows][:, rows]) < 1e-13
        assert distance(cv.hessian(problem).block("^2").dense(), expected.hessian[rows][:, rows]) < 1e-13
        assert distance(part.gradient(), expected.gradient[rows]) < 1e-13
        assert math.isclose(part.value(), expected.value, rel_tol=1e-14)


def test_penalty_of_frozen_weights_alone_is_a_constant_of_a_subset():
    problem = cv.Problem.from_module(
        chain(), loss="cross-entropy", data=(INPUTS, LABELS), penalty=lambda weights: weights["0.weight"].norm()
    )
    part = problem.subset("2.bias")
    without = cv.Problem.from_module(chain(), loss="cross-entropy", data=(INPUTS, LABELS)).subset("2.bias")
    assert distance(cv.hessian(part).dense(), cv.hessian(without).dense()) < 1e-14
    assert part.value() > without.value()


def test_penalty_moves_with_the_point():
    problem, _ = case("chain", "both")
    moved = problem.at(problem.weights + 0.3)
    module = chain()
    for parameter in module.parameters():
        parameter.data += 0.3
    named = trained(module)
    value = functional.cross_entropy(module(INPUTS), LABELS) + PENALTIES["both"][1](named)
    gradient, hessian = derivatives(value, list(named.values()))
    assert distance(moved.gradient(), gradient) < 1e-13
    assert distance(cv.hessian(moved).dense(), hessian) < 1e-13


def test_single_precision_is_checked_against_double_with_the_penalty():
    module = chain().float()
    for options, _ in PENALTIES.values():
        problem = cv.Problem.from_module(
            module, loss="cross-entropy", data=(INPUTS, LABELS), dtype=torch.float32, **options
        )
        for operator in (cv.hessian(problem), cv.ggn(problem, penalty=True), cv.hessian(problem.subset("0"))):
            assert operator.checks


def test_difference_of_hessian_and_ggn_names_both_ways_of_the_penalty():
    problem, _ = case("chain", "decay")
    difference = cv.hessian(problem) - cv.ggn(problem)
    assert difference.where.penalty == "weight_decay=0.05; without weight_decay=0.05"
    assert (cv.hessian(problem) + cv.hessian(problem)).where.penalty == "weight_decay=0.05"


# -------------------------------------------------------------------------------------------------------- training


def test_study_trains_the_objective_that_it_measures_as_sgd_with_weight_decay_does():
    problem, _ = case("chain", "decay")
    schedule = training.Schedule(epochs=5, batch_size=len(INPUTS), checkpoints={"end": 5})
    run = training.train(problem, cv.Standard(), schedule, arm="a", seed=0, optimizer=training.SGD(0.3, momentum=0.5))
    module = chain()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3, momentum=0.5, weight_decay=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        functional.cross_entropy(module(INPUTS), LABELS).backward()
        optimizer.step()
    weights = torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])
    assert distance(run.checkpoints[0].weights, weights) < 1e-13
    assert math.isclose(run.curve.losses[-1], problem.at(weights).value(), rel_tol=1e-13)


def test_ignored_batch_still_decays():
    labels = torch.full_like(LABELS, -100)
    labels[0] = 1
    problem = cv.Problem.from_module(chain(), loss="cross-entropy", data=(INPUTS, labels), weight_decay=0.5)
    schedule = training.Schedule(epochs=1, batch_size=1, checkpoints={"end": 1})
    run = training.train(problem, cv.Standard(), schedule, arm="a", seed=0, optimizer=training.SGD(0.1))
    only_decay = problem.weights * 0.95 ** (len(labels) - 1)
    moved = (run.checkpoints[0].weights - only_decay).abs().max()
    assert moved < 0.2  # one step by the one example that counts; without decay in the others it is above 1
    assert float(run.checkpoints[0].weights.norm()) < 0.75 * float(problem.weights.norm())


def test_batch_normalization_with_a_penalty_is_refused_before_anything_is_trained():
    problem, _ = case("chain", "decay")
    with pytest.raises(cv.ConfigurationError, match=r"batch normalization cannot train with weight_decay=0\.05"):
        cv.study(problem, full=True, num_seeds=1)
    with pytest.raises(cv.ConfigurationError, match=r"batch normalization cannot train with weight_decay=0\.05"):
        training.BatchNormalized(problem)


def test_study_of_a_penalized_problem_says_what_contains_the_penalty():
    problem, _ = case("chain", "decay")
    study = cv.study(
        problem, num_seeds=1, epochs=2, matrices=("ggn", "hessian"), stretches=(), relative_dampings=(1e-3,)
    )
    assert any("weight_decay=0.05: it is part of losses, gradients and Hessians" in text for text in study.warnings)
    penalties = {m.record.matrix: m.record.penalty for m in study.of(cv.Spectrum)}
    assert penalties == {"ggn": "without weight_decay=0.05", "hessian": "weight_decay=0.05"}


# -------------------------------------------------------------------------------------------------------- refusals


def made(module=None, **options):
    return cv.Problem.from_module(module or chain(), loss="cross-entropy", data=(INPUTS, LABELS), **options)


OUTER = chain()
REFUSALS = {
    "negative": ({"weight_decay": -1.0}, cv.ConfigurationError, "weight_decay must be a finite number, at least 0"),
    "not finite": ({"weight_decay": {"0": math.inf}}, cv.ConfigurationError, r"weight_decay\['0'\] must be a finite"),
    "two values": ({"weight_decay": {"0": 0.1, "bias": 0.2}}, cv.ConfigurationError, "gives '0.bias' two values"),
    "no match": ({"weight_decay": {"3": 0.1}}, cv.InputError, "matches no trainable parameter"),
    "unknown name": ({"penalty": lambda w: w["3.weight"].sum()}, cv.InputError, "the penalty failed .KeyError"),
    "two numbers": ({"penalty": lambda w: w["0.bias"]}, cv.InputError, r"one scalar tensor, got shape \(5,\)"),
    "a float": ({"penalty": lambda w: float(w["0.bias"].detach().sum())}, cv.InputError, "scalar tensor, got float"),
    "a constant": ({"penalty": lambda _: torch.ones(())}, cv.InputError, "does not depend on any weight"),
    "of the module": (
        {"penalty": lambda _: OUTER[0].weight.square().sum()},
        cv.InputError,
        r"trainable tensors that it is not given \(of shape \(5, 4\)\)",
    ),
    "random": ({"penalty": lambda w: w["0.bias"].norm() * torch.rand(())}, cv.InputError, "two results"),
    "infinite": ({"penalty": lambda w: 1 / (0 * w["0.bias"]).sum()}, cv.NonFiniteError, "NaN or infinite"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_penalty_that_means_nothing_is_refused(name):
    options, error, words = REFUSALS[name]
    with pytest.raises(error, match=words):
        made(**options)


def test_penalty_without_a_derivative_here_is_named_and_not_an_example():
    module = chain()
    nn.init.zeros_(module[0].bias)
    with pytest.raises(cv.NonFiniteError, match=r"gradient of the penalty is NaN or infinite in 0\.bias"):
        made(module, penalty=lambda w: w["0.bias"].norm() + w["0.bias"].abs().sqrt().sum()).gradient()
    steep = made(module, penalty=lambda w: (w["0.bias"].abs() ** 1.5).sum())
    with pytest.raises(cv.NonFiniteError, match=r"second derivative of the penalty is NaN or infinite in 0\.bias"):
        cv.hessian(steep).dense()


def test_penalty_without_a_second_derivative_has_a_gradient_and_no_hessian():
    problem = made(penalty=lambda w: torch.cdist(w["0.weight"], w["0.weight"] + 1).sum())
    assert torch.isfinite(problem.gradient()).all()
    with pytest.raises(cv.NotDefinedError, match="no second derivative of the penalty"):
        cv.hessian(problem).dense()
    assert cv.spectrum(cv.ggn(problem)).penalty == "without penalty"


def test_penalty_that_writes_into_what_it_gets_does_not_reach_the_problem():
    def writing(weights):
        with torch.no_grad():
            weights["0.bias"].zero_()
            weights["2.weight"].mul_(2)
        return weights["0.weight"].square().sum() + weights["2.weight"].square().sum()

    problem = made(penalty=writing)
    before = problem.weights.clone()
    first = problem.value(), problem.subset("0").value()
    assert (problem.value(), problem.subset("0").value()) == first
    assert torch.equal(problem.weights, before)


def test_ggn_with_a_penalty_needs_one_and_zero_decay_is_none():
    for options in ({}, {"weight_decay": 0}, {"weight_decay": {"0": 0.0}}):
        problem = made(**options)
        assert problem.penalty is None
        with pytest.raises(cv.ConfigurationError, match="needs a problem with a penalty"):
            cv.ggn(problem, penalty=True)


def test_decay_of_a_weight_normalized_module_is_that_of_g_and_the_rest_is_named():
    module = chain()
    parametrizations.weight_norm(module[0])
    with pytest.warns(UserWarning, match="torch.optim would also decay v"):
        problem = made(module, weight_decay=0.1)
    g = module[0].parametrizations.weight.original0
    others = [module[0].bias, module[2].weight, module[2].bias]
    expected = 0.05 * sum(float(part.detach().square().sum()) for part in (g, *others))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isclose(problem.value() - made(module).value(), expected, rel_tol=1e-12)
    assert any("decay v" in note for note in problem.notes)
