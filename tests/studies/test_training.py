"""Training in a chart against optimizers of PyTorch on the module itself, and against what is known on paper."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

import curvature as cv
from curvature.charts import LinearChart
from curvature.errors import ConfigurationError, NonFiniteError
from curvature.models import zoo
from curvature.models.losses import CrossEntropy
from curvature.records import StepsToLoss
from curvature.studies.training import SGD, Adam, Schedule, Trainable, train, tune_learning_rate
from oracles import drawn

ROUNDING = 1e-12  # relative, after some twenty steps of rounding in another order


def classifier(num_examples=10):
    module = zoo.mlp((3, 4, 3))
    for number, parameter in enumerate(module.parameters()):
        parameter.data = drawn(*parameter.shape, seed=10 + number)
    targets = torch.randint(3, (num_examples,), generator=torch.Generator().manual_seed(5))
    return module, drawn(num_examples, 3), targets


def problem_of(module, inputs, targets, loss="cross-entropy"):
    return cv.Problem.from_module(module, loss=loss, data=(inputs, targets))


def run(problem, parameterization, *, learning_rate=0.3, momentum=0.0, **options):
    settings = {"seed": 7, "arm": "test", "optimizer": SGD(learning_rate, momentum=momentum)}
    names = ("epochs", "batch_size", "checkpoints", "levels", "evaluate_every")
    schedule = {"epochs": 5, "batch_size": 4} | {name: options.pop(name) for name in names if name in options}
    return train(problem, parameterization, Schedule(**schedule), **(settings | options))


def by_pytorch(module, inputs, targets, *, momentum=0.0, epochs=5, batch_size=4, learning_rate=0.3, loss=None, seed=7):
    """``torch.optim.SGD`` on a copy of the module; losses on all data at the end of each epoch."""
    module = copy.deepcopy(module)
    loss = loss or nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(module.parameters(), lr=learning_rate, momentum=momentum)
    losses = [loss(module(inputs), targets).item()]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs), generator=generator).split(batch_size):
            optimizer.zero_grad()
            loss(module(inputs[batch]), targets[batch]).backward()
            optimizer.step()
        losses.append(loss(module(inputs), targets).item())
    return module, np.array(losses)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("batch_size", [4, 10, 100])
def test_standard_arm_is_stochastic_gradient_descent_of_pytorch(momentum, batch_size):
    module, inputs, targets = classifier()
    options = {"momentum": momentum, "batch_size": batch_size}
    found = run(problem_of(module, inputs, targets), cv.Standard(), checkpoints={"end": 5}, **options)
    trained, losses = by_pytorch(module, inputs, targets, **options)
    np.testing.assert_allclose(found.curve.losses, losses, rtol=ROUNDING)
    expected = torch.cat([parameter.detach().reshape(-1) for parameter in trained.parameters()])
    assert torch.allclose(found.checkpoints[0].weights, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_weight_norm_arm_is_stochastic_gradient_descent_of_pytorchs_weight_norm(momentum):
    module, inputs, targets = classifier()
    found = run(problem_of(module, inputs, targets), cv.WeightNorm(), momentum=momentum, checkpoints={"end": 5})
    normed = copy.deepcopy(module)
    for layer in (normed[0], normed[2]):
        weight_norm(layer)
    trained, losses = by_pytorch(normed, inputs, targets, momentum=momentum)
    np.testing.assert_allclose(found.curve.losses, losses, rtol=ROUNDING)
    chart = found.checkpoints[0].chart
    for path, layer in (("0", trained[0]), ("2", trained[2])):
        originals = layer.parametrizations.weight
        assert torch.allclose(chart.g[f"{path}.weight"], originals.original0.detach().reshape(-1), rtol=0, atol=1e-12)
        assert torch.allclose(chart.v[f"{path}.weight"], originals.original1.detach(), rtol=0, atol=1e-12)


def test_a_normalized_module_goes_on_from_its_own_g_and_v():
    module, inputs, targets = classifier()
    for layer in (module[0], module[2]):
        weight_norm(layer)
        with torch.no_grad():
            layer.parametrizations.weight.original1.mul_(1.7)
    problem = problem_of(module, inputs, targets)
    _, losses = by_pytorch(module, inputs, targets)
    np.testing.assert_allclose(run(problem, problem.chart).curve.losses, losses, rtol=ROUNDING)
    assert not np.allclose(run(problem, cv.WeightNorm()).curve.losses[1:], losses[1:], rtol=1e-3)


@pytest.mark.parametrize("stretch", [0.5, 3.0])
def test_a_stretched_gauge_trains_with_its_own_v(stretch):
    module, inputs, targets = classifier()
    normed = copy.deepcopy(module)
    for layer in (normed[0], normed[2]):
        weight_norm(layer)
        with torch.no_grad():
            layer.parametrizations.weight.original1.mul_(stretch)
    _, losses = by_pytorch(normed, inputs, targets)
    found = run(problem_of(module, inputs, targets), cv.WeightNorm(stretch=stretch))
    np.testing.assert_allclose(found.curve.losses, losses, rtol=ROUNDING)


def test_a_linear_chart_trains_with_a_preconditioner():
    """``w <- w - eta M M^T r``: written out on the weights."""
    module, inputs, targets = classifier()
    problem = problem_of(module, inputs, targets)
    factor = 0.3 + drawn(problem.dim, seed=4).abs()
    found = run(problem, LinearChart(factor), batch_size=10, checkpoints={"end": 5})
    weights = problem.weights
    for _ in range(5):
        weights = weights - 0.3 * factor**2 * problem.gradient(weights)
    assert torch.allclose(found.checkpoints[0].weights, weights, rtol=0, atol=1e-12)


def test_both_arms_start_at_the_same_function_and_see_the_same_order():
    problem = problem_of(*classifier())
    standard, normed = (run(problem, chart, checkpoints={"init": 0}) for chart in (cv.Standard(), cv.WeightNorm()))
    first, second = (result.checkpoints[0].weights for result in (standard, normed))
    assert torch.allclose(problem.predict(first, problem.inputs), problem.predict(second, problem.inputs), rtol=1e-13)
    assert standard.curve.losses[0] == pytest.approx(normed.curve.losses[0], rel=1e-14)
    # At the canonical gauge K = I: one small step of either arm moves the weights alike, if it sees the same batch.
    small = [
        run(problem, chart, checkpoints={"end": 1}, epochs=1, learning_rate=1e-7)
        for chart in (cv.Standard(), cv.WeightNorm())
    ]
    moves = [result.checkpoints[0].weights - problem.weights for result in small]
    assert torch.allclose(moves[0], moves[1], rtol=1e-5, atol=1e-13)


def test_the_seed_draws_the_order_of_the_data_alone():
    problem = problem_of(*classifier())
    first, again, other = (run(problem, cv.WeightNorm(), seed=seed).curve.losses for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert first[0] == other[0]
    assert not np.array_equal(first[1:], other[1:])
    whole = [run(problem, cv.WeightNorm(), seed=seed, batch_size=10).curve.losses for seed in (3, 4)]
    np.testing.assert_allclose(whole[0], whole[1], rtol=ROUNDING)


@pytest.mark.parametrize("kind", ["class-weights", "ignore-index", "bce", "mse"])
def test_batch_losses_are_the_means_of_pytorch_on_the_batch(kind):
    module, inputs, labels = classifier(num_examples=10)
    weight = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    ignored = labels.clone()
    ignored[::3] = -100
    reals = drawn(10, 3, seed=6)
    loss, reference, targets = {
        "class-weights": (CrossEntropy(weight), nn.CrossEntropyLoss(weight), labels),
        "ignore-index": ("cross-entropy", nn.CrossEntropyLoss(), ignored),
        "bce": ("bce", nn.BCEWithLogitsLoss(), reals.sigmoid()),
        "mse": ("mse", nn.MSELoss(), reals),
    }[kind]
    _, losses = by_pytorch(module, inputs, targets, loss=reference)
    found = run(problem_of(module, inputs, targets, loss), cv.Standard())
    np.testing.assert_allclose(found.curve.losses, losses, rtol=ROUNDING)


def test_a_batch_of_ignored_targets_takes_no_step():
    module, inputs, targets = classifier(num_examples=4)
    targets[1:] = -100
    problem = problem_of(module, inputs, targets)
    found = run(problem, cv.Standard(), batch_size=1, epochs=1, checkpoints={"end": 1})
    outputs = module(inputs[:1])
    gradients = torch.autograd.grad(functional.cross_entropy(outputs, targets[:1]), list(module.parameters()))
    expected = problem.weights - 0.3 * torch.cat([part.reshape(-1) for part in gradients])
    assert torch.allclose(found.checkpoints[0].weights, expected, rtol=0, atol=1e-14)


# ------------------------------------------------------------------------------------------------------ on paper


def test_squared_length_of_v_grows_by_the_squared_step():
    """Plain gradient descent moves ``v`` orthogonally to itself: ``|v'|^2 = |v|^2 + eta^2 |dL/dv|^2``, row by row."""
    module, inputs, targets = classifier()
    problem = problem_of(module, inputs, targets)
    epochs = {str(epoch): epoch for epoch in range(6)}
    found = run(problem, cv.WeightNorm(stretch=0.7), batch_size=10, checkpoints=epochs).checkpoints
    normed = copy.deepcopy(module)
    for layer in (normed[0], normed[2]):
        weight_norm(layer)
    for before, after in pairwise(found):
        point = problem.unflatten(before.weights)
        with torch.no_grad():
            for path, layer in (("0", normed[0]), ("2", normed[2])):
                layer.bias.copy_(point[f"{path}.bias"])
                layer.parametrizations.weight.original0.copy_(before.chart.g[f"{path}.weight"][:, None])
                layer.parametrizations.weight.original1.copy_(before.chart.v[f"{path}.weight"])
        normed.zero_grad()
        functional.cross_entropy(normed(inputs), targets).backward()
        for path, layer in (("0", normed[0]), ("2", normed[2])):
            slope = layer.parametrizations.weight.original1.grad
            lengths = [(step.chart.v[f"{path}.weight"] ** 2).sum(dim=1) for step in (before, after)]
            growth = 0.3**2 * (slope**2).sum(dim=1)
            assert float(growth.min()) > 1e-6
            assert torch.allclose(lengths[1], lengths[0] + growth, rtol=1e-14)


def test_with_momentum_the_length_of_v_does_not_follow_that_recursion():
    problem = problem_of(*classifier())
    options = {"batch_size": 10, "checkpoints": {"0": 0, "1": 1, "2": 2}, "momentum": 0.9}
    found = run(problem, cv.WeightNorm(), **options).checkpoints
    steps = [after.chart.v["0.weight"] - before.chart.v["0.weight"] for before, after in pairwise(found)]
    across = [
        abs(float((step * point.chart.v["0.weight"]).sum(dim=1).max()))
        for step, point in zip(steps, found, strict=False)
    ]
    assert across[0] < 1e-13
    assert across[1] > 1e-6


def test_gradient_descent_on_least_squares_contracts_each_eigenvector():
    """``w - w* -> (1 - eta l_i) (w - w*)`` along every eigenvector of the Hessian."""
    optimum = zoo.linear_regression(40, 4)
    values, vectors = torch.linalg.eigh(optimum.inputs.T @ optimum.inputs / 40)
    start = drawn(4, seed=3)
    problem = optimum.at(optimum.weights + vectors @ start)
    found = run(problem, cv.Standard(), batch_size=40, epochs=7, learning_rate=0.4, checkpoints={"end": 7})
    expected = (1 - 0.4 * values) ** 7 * start
    assert torch.allclose(vectors.T @ (found.checkpoints[0].weights - optimum.weights), expected, rtol=0, atol=1e-13)


def test_batch_normalization_is_weight_normalization_for_one_layer_with_whitened_inputs():
    """Whitened inputs give ``v.x`` mean 0 and variance ``|v|^2``: both are one function of ``(v, gamma, beta)``."""
    raw = drawn(30, 3)
    centred = raw - raw.mean(dim=0)
    inputs = torch.linalg.qr(centred).Q * 30**0.5
    targets = torch.arange(30) % 2
    v, gamma, beta = drawn(2, 3, seed=2), drawn(2, seed=3), drawn(2, seed=4)

    normed = nn.Sequential(weight_norm(nn.Linear(3, 2).double()))
    with torch.no_grad():
        normed[0].parametrizations.weight.original0.copy_(gamma[:, None])
        normed[0].parametrizations.weight.original1.copy_(v)
        normed[0].bias.copy_(beta)
    problem = problem_of(normed, inputs, targets)
    batch = nn.Sequential(nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2, eps=1e-30)).double().train()
    with torch.no_grad():
        batch[0].weight.copy_(v)
        batch[1].weight.copy_(gamma)
        batch[1].bias.copy_(beta)
    assert torch.allclose(batch(inputs), problem.outputs(), rtol=0, atol=1e-13)

    found = run(problem, problem.chart, batch_size=30, epochs=10, checkpoints={"end": 10})
    trained, losses = by_pytorch(batch, inputs, targets, batch_size=30, epochs=10)
    np.testing.assert_allclose(found.curve.losses, losses, rtol=ROUNDING)
    assert torch.allclose(found.checkpoints[0].chart.v["0.weight"], trained[0].weight.detach(), rtol=0, atol=1e-11)
    assert losses[-1] < 0.98 * losses[0]


def test_without_whitening_batch_and_weight_normalization_differ():
    inputs, layer = drawn(30, 3), nn.Linear(3, 2).double()
    batch = nn.Sequential(nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2, eps=1e-30)).double().train()
    batch[0].weight.data = layer.weight.data.clone()
    batch[1].weight.data = torch.linalg.vector_norm(layer.weight.data, dim=1)
    batch[1].bias.data = layer.bias.data.clone()
    assert not torch.allclose(batch(inputs), layer(inputs), rtol=0, atol=1e-2)


# ------------------------------------------------------------------------------------------- records and refusals


def test_the_curve_holds_losses_and_accuracies_of_all_data_at_every_epoch():
    module, inputs, targets = classifier()
    curve = run(problem_of(module, inputs, targets), cv.WeightNorm(), arm="weight-norm", seed=5).curve
    assert (curve.arm, curve.seed) == ("weight-norm", 5)
    assert curve.steps.tolist() == [0, 3, 6, 9, 12, 15]
    outputs = module(inputs)
    assert curve.losses[0] == pytest.approx(functional.cross_entropy(outputs, targets).item(), rel=1e-13)
    assert curve.accuracies[0] == float((outputs.argmax(dim=1) == targets).double().mean())
    assert len(curve.losses) == len(curve.accuracies) == 6


def test_regression_has_no_accuracy():
    problem = zoo.linear_regression(10, 2)
    assert np.isnan(run(problem.at(problem.weights + 1), cv.Standard()).curve.accuracies).all()


def test_checkpoints_are_taken_where_asked():
    problem = problem_of(*classifier())
    found = run(problem, cv.WeightNorm(), checkpoints={"init": 0, "early": 2, "again": 2, "late": 5}).checkpoints
    assert [(point.name, point.step) for point in found] == [("init", 0), ("early", 6), ("again", 6), ("late", 15)]
    assert torch.allclose(found[0].weights, problem.weights, rtol=0, atol=1e-14)
    assert torch.equal(found[1].weights, found[2].weights)
    shorter = run(problem, cv.WeightNorm(), epochs=2, checkpoints={"end": 2}).checkpoints[0]
    assert torch.equal(found[1].weights, shorter.weights)
    for point in found:  # the chart of a checkpoint passes through its weights, at the gauge that training has reached
        chart = point.chart.at(problem.layout, point.weights)
        assert torch.allclose(chart.to_weights(chart.coordinates), point.weights, rtol=0, atol=1e-14)
    assert float((found[-1].chart.at(problem.layout, found[-1].weights).stretches - 1).abs().max()) > 1e-3
    assert found[-1].chart.gauge == "checkpoint"


def test_checkpoints_do_not_alias_each_other():
    problem = problem_of(*classifier())
    found = run(problem, cv.Standard(), checkpoints={"init": 0, "late": 5}).checkpoints
    assert not torch.allclose(found[0].weights, found[1].weights)
    assert torch.equal(problem.weights, problem_of(*classifier()).weights)


@pytest.mark.parametrize("parameterization", [cv.Standard(), cv.WeightNorm()])
def test_divergence_is_an_outcome_that_names_the_step_and_what_is_missing(parameterization):
    problem = zoo.linear_regression(20, 3)
    found = run(
        problem.at(problem.weights + 1),
        parameterization,
        learning_rate=1e200,
        batch_size=20,
        checkpoints={"init": 0, "late": 5},
        levels={"low": 1e-9},
    )
    assert found.curve.losses[-1] == np.inf
    assert [point.name for point in found.checkpoints] == ["init"]
    assert found.missing == {"late": found.diverged, "low": found.diverged}
    with pytest.raises(
        NonFiniteError, match=r"arm 'test' diverged at step \d+: use a smaller learning rate than 1e\+200"
    ):
        found.require_finite()


def test_a_loss_that_overflows_is_divergence_even_while_the_weights_are_finite():
    problem = zoo.linear_regression(20, 3)
    with pytest.raises(NonFiniteError, match=r"diverged at step [234]\b"):
        run(
            problem.at(problem.weights + 1), cv.Standard(), learning_rate=1e40, batch_size=20, epochs=5
        ).require_finite()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": -0.1}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"momentum": 1.0}, "momentum must be in"),
        ({"momentum": -0.1}, "momentum must be in"),
        ({"epochs": 0}, "training needs epochs >= 1"),
        ({"batch_size": 0}, "training needs epochs >= 1, batch_size >= 1"),
        ({"evaluate_every": 0}, r"training needs .* evaluate_every >= 1"),
        ({"checkpoints": {"a": 0}, "levels": {"a": 0.1}}, "each checkpoint needs its own name"),
    ],
)
def test_impossible_settings_are_refused(bad, message):
    with pytest.raises(ConfigurationError, match=message):
        run(problem_of(*classifier()), cv.Standard(), **bad)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SGD(0.1, weight_decay=-1.0),
        lambda: Adam(0.1, betas=(0.9, 1.0)),
        lambda: Adam(0.1, epsilon=0.0),
        lambda: Adam(float("inf")),
    ],
)
def test_impossible_optimizers_are_refused(make):
    with pytest.raises(ConfigurationError, match=r"must be|needs"):
        make()


@pytest.mark.parametrize("epoch", [-1, 6])
def test_checkpoints_outside_of_training_are_refused(epoch):
    with pytest.raises(ConfigurationError, match=r"checkpoints must be in epochs 0 to 5, got \{'late': "):
        run(problem_of(*classifier()), cv.Standard(), checkpoints={"late": epoch})


# ------------------------------------------------------------------------------------------------------ optimizers

OPTIMIZERS = {
    "plain": (SGD(0.05), torch.optim.SGD, {"lr": 0.05}),
    "momentum": (SGD(0.05, momentum=0.9), torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    # Without momentum the coupled decay of PyTorch's SGD is the decoupled one.
    "decay": (SGD(0.05, weight_decay=0.3), torch.optim.SGD, {"lr": 0.05, "weight_decay": 0.3}),
    "adam": (Adam(0.05), torch.optim.Adam, {"lr": 0.05}),
    "adam-betas": (
        Adam(0.05, betas=(0.5, 0.7), epsilon=1e-3),
        torch.optim.Adam,
        {"lr": 0.05, "betas": (0.5, 0.7), "eps": 1e-3},
    ),
    "adamw": (Adam(0.05, weight_decay=0.3), torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.3}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_those_of_pytorch_on_the_same_coordinates(name):
    ours, theirs, options = OPTIMIZERS[name]
    curvature = drawn(6, 6).square()
    coordinates, twin = drawn(6, seed=2), drawn(6, seed=2).requires_grad_()
    update, optimizer = ours.begin(coordinates), theirs([twin], **options)
    for step in range(40):
        update(coordinates, torch.cos(step + curvature @ coordinates))
        twin.grad = torch.cos(step + curvature @ twin.detach())
        optimizer.step()
    assert torch.allclose(coordinates, twin.detach(), rtol=0, atol=1e-12)
    assert (coordinates - drawn(6, seed=2)).abs().max() > 0.1


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_weight_norm_arm_trains_by_adam_on_g_and_v(name):
    ours, theirs, options = OPTIMIZERS[name]
    module, inputs, targets = classifier()
    found = run(problem_of(module, inputs, targets), cv.WeightNorm(), optimizer=ours, batch_size=10)
    for layer in (module[0], module[2]):
        weight_norm(layer)
    optimizer = theirs(module.parameters(), **options)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(inputs), targets)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    np.testing.assert_allclose(found.curve.losses, losses, rtol=1e-10)


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(0.1),
        SGD(0.1, momentum=0.5),
        Adam(0.1, epsilon=1.0),
        Adam(0.1, betas=(0.5, 0.9), epsilon=1.0),
        SGD(0.1, weight_decay=2.0),
        SGD(0.1, weight_decay=2.0, momentum=0.5),
        Adam(0.1, weight_decay=2.0, epsilon=1.0),
    ],
    ids=["plain", "momentum", "adam", "adam-betas", "decay", "momentum-decay", "adam-decay"],
)
def test_the_edge_of_stability_parts_convergence_from_divergence_on_a_quadratic(optimizer):
    """At small gradients the epsilon of Adam is its divisor, and the eigenvalue that counts is the one over epsilon."""
    divisor = optimizer.epsilon if isinstance(optimizer, Adam) else 1.0
    growth, begun = {}, 1e-60
    for share in (0.98, 1.02):
        coordinates = torch.full((1,), begun, dtype=torch.float64)
        eigenvalue = share * optimizer.edge * divisor
        update = optimizer.begin(coordinates)
        for _ in range(1000):
            update(coordinates, eigenvalue * coordinates)
        growth[share] = float(coordinates.abs()) / begun
    assert growth[0.98] < 1e-3
    assert not growth[1.02] < 1e3  # NaN where it overflowed


def test_an_optimizer_keeps_its_settings_at_another_rate():
    assert SGD(0.1, momentum=0.9).at_rate(0.2) == SGD(0.2, momentum=0.9)
    assert Adam(0.1, betas=(0.5, 0.6), weight_decay=0.1).at_rate(0.3).betas == (0.5, 0.6)


# ------------------------------------------------------------------------------------- modules as users have them


class Tied(nn.Module):
    def __init__(self, normalized):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
        if normalized:
            weight_norm(self.first)
            self.second = copy.deepcopy(self.first)
            for name in ("original0", "original1"):
                parameter = getattr(self.first.parametrizations.weight, name)
                setattr(self.second.parametrizations.weight, name, parameter)
        else:
            self.second.weight = self.first.weight
        self.unused = nn.Parameter(torch.ones(2).double())
        self.fixed = nn.Parameter(torch.full((3,), 0.7).double(), requires_grad=False)

    def forward(self, inputs):
        return self.second(torch.tanh(self.first(inputs.mul_(0.5)))) * self.fixed


@pytest.mark.parametrize("normalized", [False, True])
def test_tied_frozen_and_unused_parameters_train_as_in_pytorch(normalized):
    module, inputs, targets = Tied(normalized), drawn(10, 3), torch.arange(10) % 3
    problem = problem_of(module, inputs, targets)
    found = run(problem, problem.chart, checkpoints={"end": 5})

    class Careful(nn.Module):  # the module scales its input in place, and means no harm
        def __init__(self):
            super().__init__()
            self.inner = copy.deepcopy(module)

        def forward(self, given):
            return self.inner(given.clone())

    _, losses = by_pytorch(Careful(), inputs, targets)
    np.testing.assert_allclose(found.curve.losses, losses, rtol=ROUNDING)
    assert torch.equal(problem.inputs, drawn(10, 3))
    assert torch.equal(problem.unflatten(found.checkpoints[0].weights)["unused"], torch.ones(2).double())


def test_training_leaves_the_problem_and_its_model_alone():
    problem = problem_of(*classifier())
    before = {name: part.clone() for name, part in problem.model.state_dict().items()}
    run(problem, cv.WeightNorm())
    assert all(torch.equal(part, before[name]) for name, part in problem.model.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in problem.model.parameters())


# ---------------------------------------------------------------------------------------- levels and evaluations


def test_a_level_is_a_checkpoint_at_the_first_evaluation_that_is_not_above_it():
    problem = problem_of(*classifier())
    options = {"evaluate_every": 2, "levels": {"high": 9.0, "some": 0.9, "never": 0.01}, "epochs": 20}
    found = run(problem, cv.WeightNorm(), checkpoints={"late": 20}, **options)
    steps, losses = found.curve.steps, found.curve.losses
    assert steps.tolist() == list(range(0, 61, 2))
    points = {point.name: point for point in found.checkpoints}
    first = int(np.flatnonzero(losses <= 0.9)[0])
    assert 0 < first < 30
    assert (points["high"].step, points["some"].step) == (0, steps[first])
    assert problem.value(points["some"].weights) == pytest.approx(losses[first], rel=1e-13)
    assert found.missing == {"never": f"the loss did not fall to 0.01 in 60 steps; the lowest was {losses.min():g}."}
    assert found.diverged is None
    assert found.curve.steps_to(0.9) == StepsToLoss("test", 7, 0.9, int(steps[first]), reached=True)
    assert found.curve.steps_to(0.01) == StepsToLoss("test", 7, 0.01, 60, reached=False)


def test_evaluations_do_not_change_the_run():
    problem = problem_of(*classifier())
    rare, often = (
        run(problem, cv.WeightNorm(), evaluate_every=every, checkpoints={"mid": 2, "end": 5}) for every in (1000, 1)
    )
    assert rare.curve.steps.tolist() == [0, 6, 15]
    assert often.curve.steps.tolist() == list(range(16))
    assert np.array_equal(rare.curve.losses, often.curve.losses[rare.curve.steps])
    assert torch.equal(rare.checkpoints[1].weights, often.checkpoints[1].weights)


def test_a_diverged_run_never_reaches_a_loss():
    problem = zoo.linear_regression(20, 3)
    curve = run(problem.at(problem.weights + 1), cv.Standard(), learning_rate=1e40, batch_size=20).curve
    assert curve.steps_to(1e-9) == StepsToLoss("test", 7, 1e-9, int(curve.steps[-1]), reached=False, diverged=True)


def test_a_loss_that_is_not_finite_where_training_starts_is_an_error():
    problem = zoo.linear_regression(20, 3)
    with pytest.raises(NonFiniteError, match="not finite where training starts"):
        run(problem.at(problem.weights + 1e200), cv.Standard())


# ------------------------------------------------------------------------------------------------- learning rates


def sweep(problem, rates, **options):
    settings = {"arm": "test", "seed": 0, "optimizer": SGD(1.0)}
    schedule = Schedule(options.pop("epochs", 6), options.pop("batch_size", problem.num_examples))
    begin = lambda: Trainable(problem, cv.Standard())  # noqa: E731
    return tune_learning_rate(problem, begin, schedule, rates=rates, **(settings | options))


@pytest.fixture
def quadratic():
    r"""Least squares along two eigenvectors: the best fixed rate is near $2 / (l_1 + l_d)$; losses in closed form."""
    optimum = zoo.linear_regression(40, 4)
    values, vectors = torch.linalg.eigh(optimum.inputs.T @ optimum.inputs / 40)
    problem = optimum.at(optimum.weights + 50 * (vectors[:, 0] + vectors[:, -1]))

    def final(rate, steps=6):
        # The mean over the last three steps of whole batches, each an epoch.
        return optimum.value() + sum(
            0.5 * 2500 * value * (1 - rate * value) ** (2 * step) / 3
            for value in values[[0, -1]].tolist()
            for step in (steps - 2, steps - 1, steps)
        )

    return problem, final, 2 / float(values[0] + values[-1])


@pytest.mark.parametrize("low", [-4.0, -2.0, 0.5])
def test_a_sweep_grows_at_its_edge_until_the_best_rate_of_a_quadratic_is_inside(quadratic, low):
    problem, final, best = quadratic
    found = sweep(problem, np.logspace(low, low + 1.5, 7), max_extensions=20)
    np.testing.assert_allclose(found.final_losses, [final(rate) for rate in found.rates], rtol=1e-10)
    np.testing.assert_allclose(np.diff(np.log10(found.rates)), 0.25, rtol=1e-9)
    fine = np.logspace(-3, 1, 4001)
    exact = fine[np.argmin([final(rate) for rate in fine])]
    assert exact == pytest.approx(best, rel=0.1)
    assert abs(np.log10(found.chosen / exact)) <= 0.25
    assert found.chosen in found.rates[1:-1]
    assert not found.at_edge
    assert found.budget == 6
    assert set(np.round(np.logspace(low, low + 1.5, 7), 12)) <= set(np.round(found.rates, 12))


def test_a_sweep_that_may_not_grow_further_says_that_its_best_is_at_the_edge(quadratic):
    problem, _, _ = quadratic
    found = sweep(problem, np.logspace(-4, -2.5, 7), max_extensions=2)
    assert len(found.rates) == 9
    assert found.chosen == found.rates[-1]
    assert found.at_edge


def test_divergence_is_an_infinite_loss_of_a_sweep(quadratic):
    problem, _, _ = quadratic
    found = sweep(problem, np.logspace(-1, 200, 7), max_extensions=0)
    assert np.isinf(found.final_losses[-1])
    assert np.isfinite(found.final_losses[0])
    hopeless = sweep(problem, np.logspace(200, 206, 7), max_extensions=1)
    assert np.isinf(hopeless.final_losses).all()
    assert hopeless.rates[0] < 1e200
    assert np.isnan(hopeless.chosen)
    assert hopeless.at_edge


def test_every_rate_of_a_sweep_starts_afresh_and_sees_one_order():
    problem = problem_of(*classifier())
    options = {"epochs": 2, "batch_size": 4, "optimizer": SGD(1.0, momentum=0.9), "max_extensions": 0}
    found = sweep(problem, [0.1, 0.2, 0.4], **options)
    for rate, loss in zip(found.rates, found.final_losses, strict=True):
        alone = run(problem, cv.Standard(), learning_rate=rate, momentum=0.9, epochs=2, seed=0)
        assert alone.curve.losses[1:].mean() == loss  # two epochs are all there are


@pytest.mark.parametrize("rates", [[0.1], [0.1, 0.2], [0.2, 0.1, 0.05], [0.1, 0.2, 0.3], [0.0, 0.1, 0.2], [-1, 1, 2]])
def test_grids_that_are_no_logarithmic_grid_are_refused(quadratic, rates):
    with pytest.raises(ConfigurationError, match="three or more positive learning rates, ascending and evenly spaced"):
        sweep(quadratic[0], rates)
