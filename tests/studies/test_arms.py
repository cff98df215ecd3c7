"""The arms: all start at one function, and train as modules written by hand and moved by ``torch.optim`` do."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import curvature as cv
from curvature.errors import ConfigurationError, InputError, SelfCheckError
from curvature.models import zoo
from curvature.natural_gradient.preconditioners import preconditioner
from curvature.studies.training import (
    METHODS,
    SGD,
    STARTS,
    Adam,
    Arm,
    BatchNormalized,
    NormRecursion,
    Schedule,
    Trainable,
    TrajectorySettings,
    Whitened,
    arm_named,
    paper_start,
    start,
    train,
    trajectories,
    tune_learning_rate,
)
from oracles import drawn

EPSILON = 1e-5


@pytest.fixture(scope="module")
def nets(mlp, cnn, classification_data):
    """A module with its problem: fully connected, and convolutional."""

    def build(kind):
        module = mlp(3, 4, 2) if kind == "mlp" else cnn()
        data = classification_data(12, 3, 2) if kind == "mlp" else classification_data(12, (1, 4, 4), 3)
        return module, cv.Problem.from_module(module, loss="cross-entropy", data=data)

    return {kind: build(kind) for kind in ("mlp", "cnn")}


def run(problem, trained, *, optimizer=None, **options):
    settings = {"arm": "test", "seed": 7, "optimizer": optimizer or SGD(0.2)}
    names = ("epochs", "batch_size", "checkpoints", "levels", "evaluate_every")
    schedule = {"epochs": 4, "batch_size": 5} | {name: options.pop(name) for name in names if name in options}
    return train(problem, trained, Schedule(**schedule), **(settings | options))


def layers(module):
    return [layer for layer in module if isinstance(layer, nn.Linear | nn.Conv2d)]


def axes(output):
    return (0,) if output.ndim == 2 else (0, 2, 3)


def spread(row_values, output):
    return row_values.view(1, -1, *[1] * (output.ndim - 2))


class Normalized(nn.Module):
    """One layer, batch-normalized as its authors write it; ``g`` given: weight norm below it."""

    def __init__(self, layer, kind, batch):
        super().__init__()
        self.layer, self.kind = copy.deepcopy(layer), kind
        weight = self.layer.weight.detach().clone()
        del self.layer.weight, self.layer.bias
        self.layer.bias = None
        self.v = nn.Parameter(weight)
        if kind == "weight-norm+mean-only-batch-norm":
            self.g = nn.Parameter(torch.linalg.vector_norm(weight.flatten(1), dim=1))
        with torch.no_grad():
            plain = self.linear(batch)
            mean = plain.mean(axes(plain))
            self.beta = nn.Parameter(layer.bias.detach() + mean)
            if kind == "batch-norm":
                self.gamma = nn.Parameter((plain.var(axes(plain), correction=0) + EPSILON).sqrt())

    def linear(self, inputs):
        weight = self.v
        if hasattr(self, "g"):
            scale = self.g / torch.linalg.vector_norm(self.v.flatten(1), dim=1)
            weight = scale.view(-1, *[1] * (self.v.ndim - 1)) * self.v
        return torch.func.functional_call(self.layer, {"weight": weight}, (inputs,))

    def forward(self, inputs):
        plain = self.linear(inputs)
        if self.kind == "batch-norm":
            return functional.batch_norm(plain, None, None, self.gamma, self.beta, training=True, eps=EPSILON)
        return plain - plain.mean(axes(plain), keepdim=True) + spread(self.beta, plain)


def normalized(module, kind, inputs):
    """The same function as ``module`` on all inputs, with every layer normalized."""
    built = []
    for part in module:
        built.append(Normalized(part, kind, inputs) if part in layers(module) else copy.deepcopy(part))
        with torch.no_grad():
            inputs = part(inputs)
    return nn.Sequential(*built)


# --------------------------------------------------------------------------------------------------- where arms start


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize(
    ("method", "begin"),
    [
        (method, begin)
        for begin in STARTS
        for method in METHODS
        if begin == "centred" or "standardization" not in method
    ],
)
def test_every_arm_starts_at_the_function_of_its_start(nets, kind, begin, method):
    _, problem = nets[kind]
    begun = start(problem, begin, seed=3, batch_size=9)
    trainable = Arm(method, begin).begin(begun)
    found, expected = problem.outputs(trainable.weights(trainable.coordinates)), begun.problem.outputs()
    assert torch.allclose(found, expected, rtol=0, atol=1e-13 * float(expected.abs().max()))
    chart = trainable.parameterization(trainable.coordinates).at(
        problem.layout, trainable.weights(trainable.coordinates)
    )
    assert chart.dim >= problem.dim or method == "dora"


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("batch_size", [9, None])
def test_data_dependent_initialization_gives_pre_activations_of_mean_0_and_variance_1(nets, kind, batch_size):
    module, problem = nets[kind]
    begun = paper_start(problem, seed=3, batch_size=batch_size)
    module = copy.deepcopy(module)
    nn.utils.vector_to_parameters(begun.problem.weights, module.parameters())
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    hidden = problem.inputs[order[:batch_size]]
    for part in module:
        hidden = part(hidden)
        if part in layers(module):
            assert hidden.mean(axes(hidden)).abs().max() < 1e-12
            assert (hidden.var(axes(hidden), correction=0) - 1).abs().max() < 1e-12


def test_data_dependent_initialization_draws_v_and_scales_it_to_the_weights():
    problem = zoo.digits_problem(60, widths=(32,))
    begun, again, other = (paper_start(problem, seed=seed, batch_size=20) for seed in (1, 1, 2))
    for name, v in begun.v.items():
        unit = v / torch.linalg.vector_norm(v, dim=1, keepdim=True)
        weights = begun.problem.unflatten(begun.problem.weights)[name]
        assert torch.allclose(begun.g[name][:, None] * unit, weights, rtol=1e-12, atol=0)
        assert torch.equal(again.v[name], v)
        assert not torch.equal(other.v[name], v)
    assert float(begun.v["0.weight"].std()) == pytest.approx(0.05, rel=0.06)  # 2048 draws: 1.6 % each
    assert abs(float(begun.v["0.weight"].mean())) < 4 * 0.05 / 2048**0.5


def test_the_published_baseline_trains_the_v_that_was_drawn(nets):
    begun = paper_start(nets["mlp"][1], seed=3)
    trainable = Arm("scaled-standard", "paper").begin(begun)
    named = begun.problem.unflatten(trainable.coordinates)
    multipliers = begun.problem.unflatten(trainable.chart.metric(torch.eye(begun.problem.dim).double()).diagonal())
    for name, v in begun.v.items():
        assert torch.allclose(named[name], v, rtol=1e-12, atol=0)
        gamma = begun.g[name] / torch.linalg.vector_norm(v, dim=1)
        assert torch.allclose(multipliers[name], (gamma**2)[:, None].expand_as(v), rtol=1e-12, atol=0)


def test_at_the_papers_start_weight_norm_and_the_published_baseline_share_the_tangential_multiplier(nets):
    begun = paper_start(nets["mlp"][1], seed=3)
    charts = [Arm(method, "paper").begin(begun).chart for method in ("scaled-standard", "weight-norm-paper")]
    scaled, normed = (chart.metric(torch.eye(begun.problem.dim).double())[:3, :3] for chart in charts)  # first neuron
    u = begun.v["0.weight"][0] / torch.linalg.vector_norm(begun.v["0.weight"][0])
    across = torch.eye(3).double() - torch.outer(u, u)
    assert torch.allclose(across @ scaled @ across, across @ normed @ across, rtol=1e-11, atol=1e-12)
    assert float(u @ normed @ u) == pytest.approx(1.0)
    assert float(u @ scaled @ u) > 2.0


class ByParts(nn.Module):
    """A layer whose weight is made of trained parts by a formula written by hand."""

    def __init__(self, layer, parts, make):
        super().__init__()
        self.layer, self.make, self.shape = copy.deepcopy(layer), make, layer.weight.shape
        del self.layer.weight
        self.parts = nn.ParameterDict({name: nn.Parameter(part.clone()) for name, part in parts.items()})

    def forward(self, inputs):
        weight = self.make(**{name: self.parts[name] for name in self.parts}).view(self.shape)
        return torch.func.functional_call(self.layer, {"weight": weight}, (inputs,))


def lengths_of(rows):
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True)


def by_parts(method, layer, scale):
    """The descendants of weight normalization as their authors write them."""
    rows = layer.weight.detach().flatten(1)
    if method == "sphere":
        return ByParts(layer, {"v": rows}, lambda v: lengths_of(rows) * v / lengths_of(v))
    if method == "dora":
        rows_of = {"g": lengths_of(rows)[:, 0], **scale}

        def adapted(g, a, b):
            v = rows + b @ a
            return g[:, None] * v / lengths_of(v)

        return ByParts(layer, rows_of, adapted)
    if method == "random-weight-factorization":
        return ByParts(layer, {"s": scale, "v": rows / scale[:, None]}, lambda s, v: s[:, None] * v)

    def centred(g, v):
        v = v - v.mean(1, keepdim=True)
        return g[:, None] * v / lengths_of(v)

    return ByParts(layer, {"g": lengths_of(rows)[:, 0], "v": rows}, centred)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("method", ["sphere", "random-weight-factorization", "weight-standardization", "dora"])
@pytest.mark.parametrize("optimizer", [SGD(0.2, momentum=0.5), Adam(0.01)], ids=["momentum", "adam"])
def test_descendants_train_as_a_module_written_by_hand(nets, kind, method, optimizer):
    module, problem = nets[kind]
    begun = start(problem, "centred", seed=3)
    assert isinstance(begun.problem.chart, cv.Standard)  # the others are measured in their own charts only
    trainable = Arm(method, "centred").begin(begun)
    named, parts = (
        begun.problem.unflatten(begun.problem.weights),
        trainable.chart.layout.unflatten(trainable.coordinates),
    )
    twin = copy.deepcopy(module)
    for path, layer in module.named_children():
        if layer in layers(module):
            plain = copy.deepcopy(layer)
            plain.weight.data = named[f"{path}.weight"].clone()
            drawn_parts = {name: parts[f"{path}.weight.{name}"] for name in "ab"} if method == "dora" else None
            setattr(twin, path, by_parts(method, plain, drawn_parts or parts.get(f"{path}.weight.s")))
    found = run(begun.problem, trainable, optimizer=optimizer)
    build = torch.optim.Adam if isinstance(optimizer, Adam) else torch.optim.SGD
    options = {} if isinstance(optimizer, Adam) else {"momentum": 0.5}
    moving = build(twin.parameters(), lr=optimizer.learning_rate, **options)
    losses = [functional.cross_entropy(twin(problem.inputs), problem.targets).item()]
    generator = torch.Generator().manual_seed(7)
    for _ in range(4):
        for batch in torch.randperm(12, generator=generator).split(5):
            moving.zero_grad()
            functional.cross_entropy(twin(problem.inputs[batch]), problem.targets[batch]).backward()
            moving.step()
        losses.append(functional.cross_entropy(twin(problem.inputs), problem.targets).item())
    np.testing.assert_allclose(found.curve.losses, losses, rtol=1e-10)
    assert abs(losses[-1] - losses[0]) > 0.005


def test_weight_standardization_starts_at_centred_weights_only():
    with pytest.raises(ConfigurationError, match="rows of mean zero only"):
        Arm("weight-standardization")


# -------------------------------------------------------------------------------------------- batch normalization


NORMS = ("mean-only-batch-norm", "weight-norm+mean-only-batch-norm", "batch-norm")


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("method", NORMS)
def test_normalized_arms_train_as_a_module_written_by_hand(nets, kind, method):
    module, problem = nets[kind]
    trainable = Arm(method).begin(start(problem, "module", seed=0))
    found = run(problem, trainable, checkpoints={"late": 4}, optimizer=SGD(0.2, momentum=0.5))
    twin = normalized(module, method, problem.inputs)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.2, momentum=0.5)
    losses = [functional.cross_entropy(twin(problem.inputs), problem.targets).item()]
    generator = torch.Generator().manual_seed(7)
    for _ in range(4):
        for batch in torch.randperm(12, generator=generator).split(5):
            optimizer.zero_grad()
            functional.cross_entropy(twin(problem.inputs[batch]), problem.targets[batch]).backward()
            optimizer.step()
        # With all data in one batch the statistics of the batch are those of the population.
        losses.append(functional.cross_entropy(twin(problem.inputs), problem.targets).item())
    np.testing.assert_allclose(found.curve.losses, losses, rtol=1e-11)
    ordinary = problem.at(found.checkpoints[0].weights)
    assert torch.allclose(ordinary.outputs(), twin(problem.inputs), rtol=0, atol=1e-11)
    assert abs(losses[-1] - losses[0]) > 0.01


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("method", NORMS)
def test_the_chart_of_a_normalized_checkpoint_is_that_of_pytorchs_eval_mode(nets, kind, method):
    """Frozen statistics: gradients in the coordinates are those of a network with running statistics as constants."""
    module, problem = nets[kind]
    trainable = Arm(method).begin(start(problem, "module", seed=0))
    point = run(problem, trainable, checkpoints={"late": 4}).checkpoints[0]
    chart = point.chart.at(problem.layout, point.weights)
    assert "population statistics, frozen" in chart.gauge
    assert "batch-norm" in chart.name
    slope = chart.layout.unflatten(chart.pull(problem.at(point.weights).gradient()[:, None])[:, 0])
    named = {name: part.clone().requires_grad_() for name, part in chart.layout.unflatten(chart.coordinates).items()}
    hidden = problem.inputs
    for path, part in module.named_children():
        if part not in layers(module):
            hidden = part(hidden)
            continue
        weight = named.get(f"{path}.weight")
        if weight is None:
            v, g = named[f"{path}.weight.v"], named[f"{path}.weight.g"]
            lengths = torch.linalg.vector_norm(v.flatten(1), dim=1)
            weight = (g / lengths).view(-1, *[1] * (v.ndim - 1)) * v
        copied = copy.deepcopy(part)
        copied.bias = None
        plain = torch.func.functional_call(copied, {"weight": weight}, (hidden,))
        shift = named[f"{path}.bias"]
        if method == "batch-norm":
            running = plain.detach().mean(axes(plain)), plain.detach().var(axes(plain), correction=0)
            hidden = functional.batch_norm(plain, *running, named[f"{path}.weight.gamma"], shift, eps=EPSILON)
        else:  # the effective bias: beta less the frozen mean
            hidden = plain + spread(shift, plain)
    loss = functional.cross_entropy(hidden, problem.targets)
    assert loss.item() == pytest.approx(problem.value(point.weights), rel=1e-12)
    for name, expected in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
        assert torch.allclose(slope[name], expected, rtol=0, atol=1e-12), name


def test_curvature_of_a_normalized_checkpoint_is_that_of_an_ordinary_network(nets):
    _, problem = nets["mlp"]
    point = run(problem, BatchNormalized(problem), checkpoints={"late": 4}).checkpoints[0]
    chart = point.chart.at(problem.layout, point.weights)
    found = cv.pullback(cv.ggn(problem.at(point.weights)), point.chart).dense()

    def outputs(theta):
        return problem.predict(chart.to_weights(theta), problem.inputs)

    jacobian = torch.autograd.functional.jacobian(outputs, chart.coordinates)  # (N, C, Q)
    probabilities = torch.softmax(outputs(chart.coordinates), dim=1)
    inner = torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None]
    expected = torch.einsum("ncq, ncd, ndp -> qp", jacobian, inner, jacobian) / 12
    assert torch.allclose(found, expected, rtol=0, atol=1e-13)
    assert chart.null_dim == 6  # one per neuron


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("method", NORMS)
def test_the_full_batch_chart_has_the_derivatives_of_the_loss_in_training_mode(nets, kind, method):
    """Gradient and Hessian through the statistics, against reverse over reverse on a module written by hand."""
    module, problem = nets[kind]
    trainable = Arm(method).begin(start(problem, "module", seed=0))
    point = run(problem, trainable, checkpoints={"late": 4}).checkpoints[0]
    chart = trainable.full_batch_parameterization(point.coordinates)
    twin = normalized(module, method, problem.inputs)
    names = trainable.chart.layout.unflatten(point.coordinates)
    ours = {".v": ".weight.v" if "weight-norm" in method else ".weight", ".g": ".weight.g"}
    ours |= {".beta": ".bias", ".gamma": ".weight.gamma"}

    def loss(theta):
        parts = trainable.chart.layout.unflatten(theta)
        given = {name: parts[name[: name.rindex(".")] + ours[name[name.rindex(".") :]]] for name in twin.state_dict()}
        return functional.cross_entropy(torch.func.functional_call(twin, given, (problem.inputs,)), problem.targets)

    assert len(names) == len(twin.state_dict())
    at = problem.at(point.weights)
    assert loss(point.coordinates).item() == pytest.approx(at.value(), rel=1e-12)
    built = chart.at(problem.layout, point.weights)
    gradient = torch.autograd.functional.jacobian(loss, point.coordinates)
    assert torch.allclose(built.pull(at.gradient()[:, None])[:, 0], gradient, rtol=0, atol=1e-12)
    hessian = torch.autograd.functional.hessian(loss, point.coordinates)
    assert torch.allclose(cv.pullback(cv.hessian(at), chart).dense(), hessian, rtol=0, atol=1e-11)
    frozen = point.chart.at(problem.layout, point.weights).pull(at.gradient()[:, None])[:, 0]
    assert not torch.allclose(frozen, gradient, rtol=0, atol=1e-4)


def test_batch_normalization_is_weight_normalization_for_one_layer_with_whitened_inputs():
    """Claim C5, from the arms: same coordinates, same gradients, whatever the number of steps."""
    raw = drawn(30, 3)
    inputs = torch.linalg.qr(raw - raw.mean(dim=0)).Q * 30**0.5
    module = nn.Linear(3, 2).double()
    data = (inputs, torch.arange(30) % 2)
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=data)
    batch = run(problem, BatchNormalized(problem, epsilon=1e-30), batch_size=30, checkpoints={"late": 4})
    weight = run(problem, cv.WeightNorm(), batch_size=30, checkpoints={"late": 4})
    np.testing.assert_allclose(batch.curve.losses, weight.curve.losses, rtol=1e-12)
    assert torch.allclose(batch.checkpoints[0].weights, weight.checkpoints[0].weights, rtol=0, atol=1e-12)
    unwhitened = cv.Problem.from_module(module, loss="cross-entropy", data=(raw, data[1]))
    batch = run(unwhitened, BatchNormalized(unwhitened, epsilon=1e-30), batch_size=30)
    weight = run(unwhitened, cv.WeightNorm(), batch_size=30)
    assert not np.allclose(batch.curve.losses, weight.curve.losses, rtol=1e-6)


# --------------------------------------------------------------------------------------------- whitening and placebo


def test_whitened_arm_is_gradient_descent_preconditioned_by_a_metric_refreshed_every_few_steps(nets):
    _, problem = nets["mlp"]
    trainable = Whitened(problem, refresh_every=3, relative_damping=0.01)
    found = run(problem, trainable, epochs=7, batch_size=12, checkpoints={"late": 7})
    weights = problem.weights
    for step in range(7):
        if step % 3 == 0:
            chart = preconditioner(problem.at(weights), "prong", relative_damping=0.01).at(problem.layout, weights)
        weights = weights - 0.2 * chart.metric(problem.gradient(weights)[:, None])[:, 0]
    assert torch.allclose(found.checkpoints[0].weights, weights, rtol=0, atol=1e-11)


def test_a_refresh_forgets_the_momentum(nets):
    _, problem = nets["mlp"]
    kept, forgotten = (
        [run(problem, Whitened(problem, refresh_every=k), optimizer=SGD(0.05, momentum=m)).curve for m in (0.0, 0.9)]
        for k in (100, 1)
    )
    assert np.array_equal(forgotten[0].losses, forgotten[1].losses)
    assert not np.allclose(kept[0].losses, kept[1].losses, rtol=1e-3)


def test_every_rate_of_a_sweep_begins_with_a_fresh_whitening(nets):
    _, problem = nets["mlp"]
    options = {"arm": "prong", "seed": 7, "optimizer": SGD(1.0)}
    begin = lambda: Whitened(problem, refresh_every=2)  # noqa: E731
    found = tune_learning_rate(problem, begin, Schedule(4, 5), rates=[0.01, 0.03, 0.09], max_extensions=0, **options)
    for rate, loss in zip(found.rates, found.final_losses, strict=True):
        curve = run(problem, begin(), optimizer=SGD(rate)).curve
        assert curve.losses[-3:].mean() == loss


def test_the_chart_of_a_whitened_checkpoint_is_whitened_there(nets):
    _, problem = nets["cnn"]
    point = run(problem, Whitened(problem, refresh_every=5), checkpoints={"late": 4}).checkpoints[0]
    fresh = preconditioner(problem.at(point.weights), "prong").at(problem.layout, point.weights)
    identity = torch.eye(problem.dim, dtype=torch.float64)
    assert torch.allclose(point.chart.at(problem.layout, point.weights).metric(identity), fresh.metric(identity))


@pytest.mark.parametrize("method", ["placebo", "placebo-paper"])
def test_a_trained_placebo_keeps_its_directions_and_its_offset(nets, method):
    _, problem = nets["mlp"]
    trainable = Arm(method).begin(start(problem, "module", seed=4))
    point = run(problem, trainable, checkpoints={"late": 4}).checkpoints[0]
    chart = point.chart.at(problem.layout, point.weights)
    assert isinstance(point.chart, cv.Placebo)
    assert torch.allclose(chart.to_weights(chart.coordinates), point.weights, rtol=0, atol=1e-14)
    assert torch.allclose(chart.origin, trainable.chart.origin, rtol=0, atol=1e-13)
    assert chart.origin.abs().max() > 0.1


# ----------------------------------------------------------------------------------------------- the recursion (C4)

NORMED = ("weight-norm", "weight-norm-paper", "weight-norm-log", "weight-norm+mean-only-batch-norm", "placebo-paper")


def recursion(problem, method, optimizer):
    trainable = Arm(method).begin(start(problem, "module", seed=0))
    watch = NormRecursion(trainable, optimizer)
    run(problem, trainable, optimizer=optimizer, watch=watch)
    assert NormRecursion.applies(trainable, optimizer) is (optimizer == SGD(0.2))
    assert watch.steps == 12
    assert watch.growth > 1e-4
    return watch.check("here")


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("method", NORMED)
def test_squared_length_of_v_grows_by_the_squared_step_in_every_arm_that_has_a_v(nets, kind, method):
    check = recursion(nets[kind][1], method, SGD(0.2))
    assert check.passed
    assert check.value < 1e-14


@pytest.mark.parametrize("optimizer", [SGD(0.2, momentum=0.5), SGD(0.2, weight_decay=0.1), Adam(0.2)])
def test_the_recursion_is_false_under_momentum_decay_and_adam(nets, optimizer):
    check = recursion(nets["mlp"][1], "weight-norm", optimizer)
    assert not check.passed
    assert check.value > 1e-4


def test_the_recursion_needs_a_v_and_a_step(nets):
    _, problem = nets["mlp"]
    with pytest.raises(ConfigurationError, match="has no v, so no length"):
        NormRecursion(Trainable(problem, cv.Standard()), SGD(0.1))
    assert not NormRecursion(Trainable(problem, cv.WeightNorm()), SGD(0.1)).check().passed


# ------------------------------------------------------------------------------------------------------- the designs

SMALL = TrajectorySettings(
    rates=tuple(np.logspace(-2, 1, 7)),
    tuning_epochs=2,
    max_extensions=1,
    epochs=4,
    batch_size=20,
    levels=(2.0, 1e-6),
    evaluate_every=1,
)
FEW = (Arm("standard"), Arm("weight-norm"), Arm("batch-norm"), Arm("prong"), Arm("placebo-paper", start="paper"))


@pytest.fixture(scope="module")
def design():
    return trajectories(zoo.digits_problem(60, widths=(4,)), FEW, SMALL, seed=5)


def test_every_arm_is_tuned_trained_and_checked_at_its_own_rate(design):
    assert [found.arm for found in design] == list(FEW)
    for found in design:
        assert np.isfinite(found.sweep.chosen)
        assert len(found.sweep.rates) >= 7
        assert found.sweep.budget == 6
        assert found.run.curve.arm == found.arm.name
        assert (found.run.checkpoints[0].name, found.run.checkpoints[0].step) == ("init", 0)
        assert {point.name for point in found.run.checkpoints} | found.run.missing.keys() == {
            *("init", "early", "middle", "late", "loss 2", "loss 1e-06")
        }
        assert "the loss did not fall to 1e-06 in 12 steps" in found.run.missing["loss 1e-06"]
        assert len(found.checks) == 1 + (found.arm.method in ("weight-norm", "placebo-paper"))
        assert all(check.passed for check in found.checks)
        # The run that is kept is one more at the chosen rate: its first epochs are those of the sweep.
        tuned = found.sweep.final_losses[found.sweep.rates == found.sweep.chosen][0]
        assert found.run.curve.losses[[3, 6]].mean() == tuned  # the ends of two epochs


def test_arms_of_one_start_begin_at_one_loss(design):
    losses = {(found.arm.start, round(float(found.run.curve.losses[0]), 12)) for found in design}
    assert len(losses) == 2


def test_a_design_is_reproduced_bit_for_bit(design):
    again = trajectories(zoo.digits_problem(60, widths=(4,)), FEW, SMALL, seed=5)
    for first, second in zip(design, again, strict=True):
        assert np.array_equal(first.sweep.final_losses, second.sweep.final_losses)
        assert np.array_equal(first.run.curve.losses, second.run.curve.losses)
        for left, right in zip(first.run.checkpoints, second.run.checkpoints, strict=True):
            assert torch.equal(left.weights, right.weights)


def test_every_checkpoint_is_lifted_to_every_gauge_without_moving_the_function(design):
    for found in design:
        for point in found.run.checkpoints:
            problem = found.start.problem.at(point.weights)
            lifts = [cv.Standard(), cv.WeightNorm(), cv.WeightNorm("paper"), cv.Placebo("paper", seed=5), point.chart]
            assert (point.chart.name == "standard") == (found.arm.method == "standard")
            for chart in (lift.at(problem.layout, point.weights) for lift in lifts):
                assert torch.allclose(chart.to_weights(chart.coordinates), point.weights, rtol=0, atol=1e-13)


def test_an_arm_that_starts_elsewhere_stops_the_design(monkeypatch):
    monkeypatch.setitem(
        METHODS,
        "standard",
        lambda begun: Trainable(begun.problem.at(1.001 * begun.problem.weights), cv.Standard()),
    )
    with pytest.raises(SelfCheckError, match=r"the arm starts at the function of its start \(standard, seed 5\) fails"):
        trajectories(zoo.digits_problem(60, widths=(4,)), [Arm("standard")], SMALL, seed=5)


def test_an_arm_that_always_diverges_has_a_sweep_and_no_run():
    settings = TrajectorySettings(rates=tuple(np.logspace(300, 306, 7)), tuning_epochs=1, max_extensions=0)
    (found,) = trajectories(zoo.linear_regression(20, 3).at(torch.ones(3)), [Arm("standard")], settings, seed=0)
    assert np.isnan(found.sweep.chosen)
    assert found.run is None


# --------------------------------------------------------------------------------------------------------- refusals


def problem_of(module, inputs):
    return cv.Problem.from_module(module, loss="half-squared-error", data=(inputs, torch.zeros(len(inputs), 2)))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, inputs):
        return self.layer(torch.tanh(self.layer(inputs)))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(3, 2, bias=False), "must be a linear or convolutional layer with a trainable bias"),
        (nn.Sequential(nn.ConvTranspose1d(3, 2, 1), nn.Flatten()), "ConvTranspose1d.* cannot be batch-normalized"),
        (Twice(), "runs more than once"),
        (nn.PReLU(), "no linear or convolutional layer"),
    ],
)
@pytest.mark.parametrize("make", [BatchNormalized, lambda problem: paper_start(problem, seed=0)])
def test_layers_that_cannot_be_batch_normalized_are_named(module, message, make):
    inputs = drawn(4, 3, 1) if isinstance(module, nn.Sequential) else drawn(4, 3 if "Lin" in repr(module)[:3] else 2)
    with pytest.raises(ConfigurationError, match=message):
        make(problem_of(module.double(), inputs))


def test_a_batch_of_one_example_cannot_be_normalized():
    problem = problem_of(nn.Linear(3, 2).double(), drawn(5, 3))
    with pytest.raises(InputError, match="one value per neuron in a batch"):
        run(problem, BatchNormalized(problem), batch_size=4)


def test_a_constant_pre_activation_has_no_data_dependent_scale():
    problem = problem_of(nn.Linear(3, 2).double(), torch.ones(5, 3, dtype=torch.float64))
    with pytest.raises(InputError, match="pre-activation 0 of layer '' is constant on the batch"):
        paper_start(problem, seed=0)


def test_impossible_arms_are_refused(nets):
    _, problem = nets["mlp"]
    with pytest.raises(ConfigurationError, match=r"the method of an arm must be one of standard, .* got 'adam'"):
        Arm("adam")
    with pytest.raises(ConfigurationError, match=r"got 'weigth-norm' \(did you mean weight-norm\?\)\."):
        arm_named("weigth-norm")
    with pytest.raises(ConfigurationError, match=r"got 'papre' \(did you mean paper\?\)\."):
        arm_named("standard, papre start")
    with pytest.raises(
        ConfigurationError, match="the start of an arm must be one of module, paper, centred, got 'zero'"
    ):
        Arm("standard", start="zero")
    with pytest.raises(ConfigurationError, match="starts at 'paper' weights, got 'module'"):
        Arm("standard", start="paper").begin(start(problem, "module", seed=0))
    with pytest.raises(ConfigurationError, match="Use mean_only=True"):
        BatchNormalized(problem, cv.WeightNorm())
    with pytest.raises(ConfigurationError, match="refresh_every must be at least 1"):
        Whitened(problem, refresh_every=0)
    with pytest.raises(ConfigurationError, match="arms must be distinct"):
        trajectories(problem, [Arm("standard"), Arm("standard")], seed=0)
    with pytest.raises(ConfigurationError, match="at least 7 learning rates, got 1"):
        TrajectorySettings(rates=(0.1,))
    with pytest.raises(ConfigurationError, match="epochs must be at least 4"):
        TrajectorySettings(epochs=3)
