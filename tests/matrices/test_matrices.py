"""The six matrices against references from first principles: PyTorch's own mean losses, one example at a time."""

import itertools
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import eigsh
from torch import nn
from torch.nn import functional

import curvature as cv
from curvature.matrices import MATRICES
from oracles import distance, flat_parameters, outputs_at, pseudo_huber

EXACT = ("hessian", "ggn", "fisher", "empirical_fisher", "gradient_covariance")
ROUNDING = 1e-12  # relative to the Frobenius norm: a few thousand units of rounding in float64


# ------------------------------------------------------------------ references, which share no code with the package


def jacobian_of_example(module, inputs, n):
    """``(outputs of one example, P)``, one backward pass per output."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    output = module(inputs[n : n + 1])[0].reshape(-1)
    rows = [
        torch.autograd.grad(element, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        for element in output
    ]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


@dataclass(frozen=True)
class Objective:
    """PyTorch's mean loss, and the likelihood behind it.

    ``mean(outputs, targets)`` is the mean loss of the *whole* data. ``labels(output, target)`` yields, for one example,
    ``(probability, score)`` of every label the model could have drawn, where the score is the gradient in the outputs.
    """

    loss: object  # what the user passes
    mean: object
    total: object  # the same with reduction="sum"
    labels: object = None


def cross_entropy(*, soft=False, **options):
    weight = options.get("weight")
    smoothing = options.get("label_smoothing", 0.0)
    ignored = options.get("ignore_index", -100)

    def mean(outputs, targets):
        return functional.cross_entropy(outputs, targets, **options)

    def total(outputs, targets):
        return functional.cross_entropy(outputs, targets, reduction="sum", **options)

    def mass(target, classes):
        """The coefficients of ``-log p_c`` in PyTorch's documentation, summed: the weight of this position."""
        weights = torch.ones(classes, dtype=torch.float64) if weight is None else weight.double()
        if not soft and int(target) == ignored:
            return 0.0
        label = target if soft else functional.one_hot(target, classes).double()
        return float((weights * ((1 - smoothing) * label + smoothing / classes)).sum())

    def labels(output, target):
        classes = len(output)
        logits = output.reshape(classes, -1)
        positions = logits.shape[1]
        places = target.reshape(classes, -1).T if soft else target.reshape(-1)
        roots = torch.tensor([mass(place, classes) for place in places], dtype=torch.float64).sqrt()
        for drawn in itertools.product(range(classes), repeat=positions):
            drawn = torch.tensor(drawn)
            variable = logits.detach().requires_grad_()
            each = functional.cross_entropy(variable.T, drawn, reduction="none")
            (score,) = torch.autograd.grad((roots * each).sum(), variable)
            yield float(torch.exp(-each.detach().sum())), score.reshape(-1)

    return Objective(nn.CrossEntropyLoss(**options), mean, total, labels)


def binary_cross_entropy():
    def labels(output, target):
        del target
        flat = output.reshape(-1)
        for drawn in itertools.product((0.0, 1.0), repeat=len(flat)):
            drawn = torch.tensor(drawn, dtype=torch.float64)
            variable = flat.detach().requires_grad_()
            value = functional.binary_cross_entropy_with_logits(variable, drawn, reduction="sum")
            (score,) = torch.autograd.grad(value, variable)
            yield float(torch.exp(-value.detach())), score

    def total(outputs, targets):
        return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="sum")

    return Objective(nn.BCEWithLogitsLoss(), functional.binary_cross_entropy_with_logits, total, labels)


def gaussian(loss, mean, total):
    """Labels at one standard deviation on either side of each output have the second moments of a Gaussian."""

    def labels(output, target):
        del target
        flat = output.reshape(-1)
        # A sum-reduced loss a |f - y|^2 is the likelihood of the variance 1 / (2 a).
        variance = 1 / (2 * float(total(torch.ones(1, 1), torch.zeros(1, 1))))
        for signs in itertools.product((-1.0, 1.0), repeat=len(flat)):
            drawn = flat.detach() + variance**0.5 * torch.tensor(signs, dtype=torch.float64)
            variable = flat.detach().requires_grad_()
            (score,) = torch.autograd.grad(total(variable[None], drawn[None]), variable)
            yield 2.0 ** -len(flat), score

    return Objective(loss, mean, total, labels)


def half_squared_sum(outputs, targets):
    return 0.5 * ((outputs - targets) ** 2).sum()


def half_squared_mean(outputs, targets):
    return half_squared_sum(outputs, targets) / len(outputs)


def squared_sum(outputs, targets):
    return functional.mse_loss(outputs, targets, reduction="sum")


def per_example(function):
    def total(outputs, targets):
        return sum(function(output, target) for output, target in zip(outputs, targets, strict=True))

    return Objective(cv.PerExample(function), lambda outputs, targets: total(outputs, targets) / len(outputs), total)


def welsch(output, target):
    """A robust loss that is not convex in the outputs."""
    return -torch.exp(-0.5 * ((output - target) ** 2).sum())


def references(module, objective, inputs, targets):
    """Every exact matrix from whole-data second derivatives and loops over single examples."""
    with torch.no_grad():
        outputs = module(inputs)
    num = len(inputs)
    # What PyTorch divides by, found from PyTorch: the sum over the mean.
    denominator = float(objective.total(outputs, targets) / objective.mean(outputs, targets))

    def mean_loss(vector):
        return objective.mean(outputs_at(module, vector, inputs), targets)

    point = flat_parameters(module)
    gradient = torch.autograd.functional.jacobian(mean_loss, point)
    found = {"gradient": gradient, "hessian": torch.autograd.functional.hessian(mean_loss, point)}
    zero = torch.zeros(len(point), len(point), dtype=torch.float64)
    ggn, fisher, second_moment, covariance = (zero.clone() for _ in range(4))
    for n in range(num):
        jacobian = jacobian_of_example(module, inputs, n)

        def summed(output, n=n):
            return objective.total(output.reshape(outputs[n : n + 1].shape), targets[n : n + 1])

        middle = torch.autograd.functional.hessian(summed, outputs[n].reshape(-1))
        ggn += jacobian.T @ middle @ jacobian / denominator
        if objective.labels is not None:
            for probability, score in objective.labels(outputs[n], targets[n]):
                pulled = jacobian.T @ score
                fisher += probability * torch.outer(pulled, pulled) / denominator
        alone = objective.mean(outputs[n : n + 1], targets[n : n + 1])
        if torch.isnan(alone):  # PyTorch divides zero by zero: every target is ignored, the example does not count
            continue
        share = float(objective.total(outputs[n : n + 1], targets[n : n + 1]) / alone) / denominator
        own = jacobian.T @ torch.autograd.functional.jacobian(
            lambda f, n=n: objective.mean(f, targets[n : n + 1]), outputs[n : n + 1]
        ).reshape(-1)
        second_moment += share * torch.outer(own, own)
        covariance += share * torch.outer(own - gradient, own - gradient)
    found |= {"ggn": ggn, "empirical_fisher": second_moment, "gradient_covariance": covariance}
    if objective.labels is not None:
        found["fisher"] = fisher
    return found


# ------------------------------------------------------------------------------------------------ cases

CLASS_WEIGHTS = torch.tensor([0.3, 2.0, 1.1], dtype=torch.float64)


def soft_labels(*shape):
    logits = torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return torch.softmax(logits, dim=1)


LABELS = torch.tensor([0, 2, 1, 1, 0, 2, 2])
SOME_IGNORED = torch.tensor([0, -100, 1, 2, -100, 2, 2])
REALS = torch.randn(7, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

CASES = {
    "cross-entropy": (cross_entropy(), LABELS),
    "class-weights": (cross_entropy(weight=CLASS_WEIGHTS), LABELS),
    "ignored": (cross_entropy(), SOME_IGNORED),
    "ignored-class-1": (cross_entropy(ignore_index=1), LABELS),
    "smoothing": (cross_entropy(label_smoothing=0.2), LABELS),
    "weights-ignored-smoothing": (cross_entropy(weight=CLASS_WEIGHTS, label_smoothing=0.2), SOME_IGNORED),
    "soft": (cross_entropy(soft=True), soft_labels(7, 3)),
    "soft-weights-smoothing": (
        cross_entropy(soft=True, weight=CLASS_WEIGHTS, label_smoothing=0.2),
        soft_labels(7, 3),
    ),
    "binary": (binary_cross_entropy(), torch.rand(7, 3, generator=torch.Generator().manual_seed(5)).double()),
    "mse": (gaussian("mse", functional.mse_loss, squared_sum), REALS),
    "half-squared": (gaussian("half-squared-error", half_squared_mean, half_squared_sum), REALS),
    "pseudo-huber": (per_example(pseudo_huber), REALS),
    "welsch": (per_example(welsch), REALS),
}
# Outputs (N, C, T): targets per position.
SEQUENCE_CASES = {
    "sequence": (cross_entropy(), torch.tensor([[0, 1], [2, 0], [1, 1], [2, 0]])),
    "sequence-weights-ignored": (
        cross_entropy(weight=CLASS_WEIGHTS),
        torch.tensor([[0, -100], [2, 0], [-100, -100], [2, 0]]),
    ),
    "sequence-smoothing": (
        cross_entropy(weight=CLASS_WEIGHTS, label_smoothing=0.2),
        torch.tensor([[0, -100], [2, 0], [1, 1], [2, 0]]),
    ),
    "sequence-soft": (cross_entropy(soft=True), soft_labels(4, 3, 2)),
    "sequence-binary": (
        binary_cross_entropy(),
        torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(5)).double(),
    ),
    "sequence-mse": (gaussian("mse", functional.mse_loss, squared_sum), REALS[:4, :, None].expand(4, 3, 2)),
}
MODELS = ("mlp-tanh", "mlp-relu", "mlp-gelu", "cnn-tanh")
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}


@pytest.fixture(scope="session")
def case(mlp, cnn):
    """``case(model, loss)``: module, objective, inputs, targets, and the references, computed once."""

    @cache
    def build(model, loss):
        kind, activation = model.split("-")
        draw = torch.Generator().manual_seed(1)
        if kind == "sequence":
            module = nn.Sequential(nn.Conv1d(2, 2, 2), ACTIVATIONS[activation](), nn.Conv1d(2, 3, 1)).double()
            for parameter in module.parameters():
                parameter.data.copy_(torch.randn(parameter.shape, generator=draw))
            inputs = torch.randn(4, 2, 3, generator=draw, dtype=torch.float64)
            objective, targets = SEQUENCE_CASES[loss]
        else:
            objective, targets = CASES[loss]
            if kind == "cnn":
                module = cnn(ACTIVATIONS[activation])
                inputs = torch.randn(7, 1, 4, 4, generator=draw, dtype=torch.float64)
            else:
                module = mlp(3, 4, 3, activation=ACTIVATIONS[activation])
                inputs = torch.randn(7, 3, generator=draw, dtype=torch.float64)
        return module, objective, inputs, targets, references(module, objective, inputs, targets)

    return build


def problem_of(module, objective, inputs, targets, **options):
    return cv.Problem.from_module(module, loss=objective.loss, data=(inputs, targets), **options)


PAIRS = [
    *itertools.product(MODELS, CASES),
    *itertools.product(["sequence-tanh"], SEQUENCE_CASES),
]


@pytest.mark.parametrize(("model", "loss"), PAIRS)
def test_matrices_equal_loops_over_single_examples(model, loss, case):
    module, objective, inputs, targets, expected = case(model, loss)
    problem = problem_of(module, objective, inputs, targets, chunk_size=3)  # ragged: 3 + 3 + 1
    errors = {
        (name, method): distance(MATRICES[name](problem, method=method).dense(), expected[name])
        for name in EXACT
        if name in expected
        for method in (("structured", "generic") if model.startswith(("mlp", "cnn")) else ("auto",))
    }
    assert max(errors.values()) < ROUNDING, errors


@pytest.mark.parametrize(("model", "loss"), PAIRS)
def test_products_equal_products_with_the_reference(model, loss, case, generator):
    module, objective, inputs, targets, expected = case(model, loss)
    problem = problem_of(module, objective, inputs, targets, chunk_size=2)
    block = torch.randn(problem.dim, 3, generator=generator, dtype=torch.float64)
    errors = {}
    for name in EXACT:
        if name in expected:
            operator = MATRICES[name](problem)
            errors[name] = distance(operator @ block, expected[name] @ block)
            errors[name, "vector"] = distance(operator @ block[:, 1], expected[name] @ block[:, 1])
    assert max(errors.values()) < ROUNDING, errors


@pytest.mark.parametrize(("model", "loss"), PAIRS)
def test_value_and_gradient_are_those_of_the_mean_loss_of_pytorch(model, loss, case):
    module, objective, inputs, targets, expected = case(model, loss)
    problem = problem_of(module, objective, inputs, targets, chunk_size=2)
    expected_value = float(objective.mean(module(inputs).detach(), targets))
    assert problem.value() == pytest.approx(expected_value, rel=1e-14)
    assert distance(problem.gradient(), expected["gradient"]) < ROUNDING
    for name in EXACT:
        if name in expected:
            assert distance(MATRICES[name](problem).facts.gradient(), expected["gradient"]) < ROUNDING


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("loss", ["weights-ignored-smoothing", "mse", "binary"])
@pytest.mark.parametrize("model", ["mlp-relu", "cnn-tanh"])
def test_results_do_not_depend_on_the_chunk_size(model, loss, name, case, generator):
    module, objective, inputs, targets, _ = case(model, loss)
    whole = MATRICES[name](problem_of(module, objective, inputs, targets, chunk_size=len(inputs)))
    block = torch.randn(whole.dim, 2, generator=generator, dtype=torch.float64)
    for chunk_size in (1, 2, 3, 5, 100):
        cut = MATRICES[name](problem_of(module, objective, inputs, targets, chunk_size=chunk_size))
        assert distance(cut.dense(), whole.dense()) < ROUNDING
        assert distance(cut @ block, whole @ block) < ROUNDING


@given(
    widths=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    activation=st.sampled_from([nn.Tanh, nn.ReLU, nn.GELU]),
    bias=st.booleans(),
    num_examples=st.integers(1, 6),
    chunk_size=st.integers(1, 6),
    method=st.sampled_from(["structured", "generic"]),
    loss=st.sampled_from(["cross-entropy", "class-weights", "ignored", "binary", "mse", "half-squared", "welsch"]),
    seed=st.integers(0, 2**16),
)
def test_matrices_of_random_networks_equal_the_references(
    mlp, widths, activation, bias, num_examples, chunk_size, method, loss, seed
):
    module = mlp(*widths, activation=activation, bias=bias, seed=seed)
    draw = torch.Generator().manual_seed(seed + 1)
    inputs = torch.randn(num_examples, widths[0], generator=draw, dtype=torch.float64)
    outputs = widths[-1]
    objective = CASES[loss][0]
    if loss == "class-weights":
        objective = cross_entropy(weight=0.1 + torch.rand(outputs, generator=draw, dtype=torch.float64))
    if objective.loss.__class__ is nn.CrossEntropyLoss:
        targets = torch.randint(outputs, (num_examples,), generator=draw)
        if loss == "ignored":
            targets[1::2] = -100
        if outputs == 1:  # the loss is identically zero, so "sum over mean" does not find the denominator
            targets, objective = torch.rand(num_examples, 1, generator=draw).double(), CASES["binary"][0]
    else:
        targets = torch.rand(num_examples, outputs, generator=draw, dtype=torch.float64)
    expected = references(module, objective, inputs, targets)
    problem = problem_of(module, objective, inputs, targets, chunk_size=chunk_size)
    scale = float(torch.linalg.norm(expected["ggn"]))  # others may vanish, e.g. the covariance of one example
    for name in EXACT:
        if name in expected:
            operator = MATRICES[name](problem, method=method)
            identity = torch.eye(problem.dim, dtype=torch.float64)
            assert torch.linalg.norm(operator.dense() - expected[name]) <= ROUNDING * scale
            assert torch.linalg.norm(operator @ identity - expected[name]) <= ROUNDING * scale


# ------------------------------------------------------------------------------------------------ the structured route


def chains():
    """Shapes that a chain of linear layers comes in, each with the shape of one input."""
    frozen = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    frozen[0].bias.requires_grad_(False)
    frozen[2].weight.requires_grad_(False)
    frozen[4].requires_grad_(False)
    return {
        "one-layer": (nn.Linear(3, 3), (3,)),
        "no-bias": (nn.Sequential(nn.Linear(3, 4, bias=False), nn.SiLU(), nn.Linear(4, 3, bias=False)), (3,)),
        "mixed-bias": (nn.Sequential(nn.Linear(3, 4, bias=False), nn.SiLU(), nn.Linear(4, 3)), (3,)),
        "frozen": (frozen, (3,)),
        "nested": (nn.Sequential(nn.Sequential(nn.Linear(3, 2), nn.ELU()), nn.Sequential(nn.Linear(2, 3))), (3,)),
        "neutral": (nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2), nn.Identity(), nn.Linear(2, 3)).eval(), (3,)),
        "two-activations": (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Softplus(), nn.Linear(4, 3)), (3,)),
        "in-place": (nn.Sequential(nn.Linear(3, 4), nn.ELU(inplace=True), nn.Linear(4, 3)), (3,)),
        "linear": (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 3)), (3,)),
        "flatten": (nn.Sequential(nn.Flatten(), nn.Linear(6, 2), nn.Mish(), nn.Linear(2, 3)), (2, 3)),
        "normalized": (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 3)),
            (3,),
        ),
    }


@pytest.mark.parametrize("loss", ["weights-ignored-smoothing", "mse", "welsch"])
@pytest.mark.parametrize("kind", chains())
def test_structured_and_generic_routes_agree(kind, loss):
    objective, targets = CASES[loss]
    module, shape = chains()[kind]
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    inputs = torch.randn(7, *shape, generator=generator, dtype=torch.float64)
    problem = problem_of(module, objective, inputs, targets, chunk_size=3)
    for name in EXACT:
        if objective.labels is None and name == "fisher":
            continue
        fast, slow = (MATRICES[name](problem, method=method) for method in ("structured", "generic"))
        identity = torch.eye(problem.dim, dtype=torch.float64)
        assert distance(fast.dense(), slow @ identity) < ROUNDING
        assert distance(slow.dense(), slow @ identity) < ROUNDING
        if fast.routes.factor is not None:
            assert distance(sum(block @ block.T for block in fast.routes.factor.blocks()), slow @ identity) < ROUNDING


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Sequential(nn.Flatten(1, 2), nn.Linear(2, 2)), (2, 2, 2)),  # one output per position
        (nn.Sequential(nn.Linear(3, 2)), (2, 3)),
        (nn.Sequential(nn.Tanh(), nn.Linear(3, 2)), (3,)),
        (nn.Sequential(nn.Linear(3, 2), nn.Tanh()), (3,)),
        (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)), (3,)),
        (nn.Sequential(nn.Linear(3, 4), nn.Softmax(1), nn.Linear(4, 2)), (3,)),
    ],
)
def test_models_that_are_no_chain_take_the_generic_route(module, shape):
    module = module.double()
    inputs = torch.randn(4, *shape, dtype=torch.float64)
    targets = torch.randn(module(inputs).shape, dtype=torch.float64)
    problem = cv.Problem.from_module(module, loss="mse", data=(inputs, targets))
    identity = torch.eye(problem.dim, dtype=torch.float64)
    for name in EXACT:
        auto, slow = MATRICES[name](problem), MATRICES[name](problem, method="generic")
        assert distance(auto.dense(), slow @ identity) < ROUNDING


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell = kind(3, 2, batch_first=True)

    def forward(self, inputs):
        return self.cell(inputs)[0]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, inputs):
        return self.last(self.attention(inputs, inputs, inputs, need_weights=False)[0])


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, inputs):
        hidden = inputs + torch.tanh(self.inner(inputs))
        return self.last(hidden * inputs)


# What people put between linear layers. PyTorch's vmap has no rule, or a wrong one, for some of them.
LAYERS = {
    "prelu": (lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 2)), (3,)),
    "prelu-per-channel": (lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 2)), (3,)),
    "layer-norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)), (3,)),
    "group-norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.Linear(4, 2)), (3,)),
    "batch-norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4).eval(), nn.Linear(4, 2)), (3,)),
    "rms-norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4), nn.Linear(4, 2)), (3,)),
    "softmax": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Softmax(1), nn.Linear(4, 2)), (3,)),
    "glu": (lambda: nn.Sequential(nn.Linear(3, 4), nn.GLU(), nn.Linear(2, 2)), (3,)),
    "max-pool": (lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(6, 2)), (2, 5)),
    "average-pool": (lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.AdaptiveAvgPool1d(1), nn.Flatten()), (2, 5)),
    "grouped": (lambda: nn.Sequential(nn.Conv1d(2, 4, 2, groups=2), nn.SiLU(), nn.Flatten(), nn.Linear(16, 2)), (2, 5)),
    "dilated": (lambda: nn.Sequential(nn.Conv2d(1, 2, 2, dilation=2, padding="same"), nn.Flatten()), (1, 3, 3)),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose1d(2, 3, 2, stride=2), nn.Flatten()), (2, 2)),
    "positions": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (5, 3)),
    "residual": (Residual, (3,)),
    "lstm": (lambda: Recurrent(nn.LSTM), (4, 3)),
    "gru": (lambda: Recurrent(nn.GRU), (4, 3)),
    "attention": (Attention, (3, 4)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", ["hessian", "ggn", "empirical_fisher", "gradient_covariance"])
def test_matrices_are_right_through_common_layers(name, kind):
    build, shape = LAYERS[kind]
    module = build().double()
    inputs = torch.randn(4, *shape, dtype=torch.float64)
    targets = torch.randn(module(inputs).shape, dtype=torch.float64)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the fused one has no second derivative
        objective = Objective("mse", functional.mse_loss, squared_sum)
        expected = references(module, objective, inputs, targets)[name]
        operator = MATRICES[name](problem_of(module, objective, inputs, targets, chunk_size=3))
        assert distance(operator @ torch.eye(operator.dim, dtype=torch.float64), expected) < ROUNDING
        assert distance(operator.dense(), expected) < ROUNDING


def test_the_structured_route_is_refused_where_it_does_not_apply():
    module = Recurrent(nn.GRU).double()
    problem = cv.Problem.from_module(
        module, loss=squared_sum, data=(torch.zeros(2, 4, 3).double(), torch.zeros(2, 4, 2).double())
    )
    with pytest.raises(
        cv.ConfigurationError, match=r"method='structured' needs a torch.nn.Sequential of Linear layers"
    ):
        cv.ggn(problem, method="structured")
    with pytest.raises(cv.ConfigurationError, match="method must be 'auto', 'structured' or 'generic', got 'fast'"):
        cv.hessian(problem, method="fast")


def test_forward_hooks_of_the_user_are_part_of_the_model(mlp, regression_data):
    """A hook can change what a layer returns, so a chain with one is no plain chain."""
    module, (inputs, targets) = mlp(3, 4, 2), regression_data(5, 3, 2)
    plain = cv.hessian(cv.Problem.from_module(module, loss="mse", data=(inputs, targets))).dense()
    module[0].register_forward_hook(lambda _layer, _inputs, output: 2 * output)
    hooked = cv.Problem.from_module(module, loss="mse", data=(inputs, targets))
    expected = cv.hessian(hooked, method="generic").dense()
    assert torch.equal(hooked.outputs(), module(inputs).detach())
    assert distance(cv.hessian(hooked).dense(), expected) < ROUNDING
    assert distance(plain, expected) > 0.1


# ------------------------------------------------------------------------------------------------ identities


@pytest.mark.parametrize("loss", ["class-weights", "weights-ignored-smoothing", "soft-weights-smoothing"])
@pytest.mark.parametrize("name", EXACT)
def test_class_weights_count_only_relatively(name, loss, case):
    """True of integer targets; PyTorch divides the loss of soft targets by the examples, not by their weights."""
    module, objective, inputs, targets, _ = case("mlp-tanh", loss)

    def at_scale(scale):
        options = {"weight": scale * CLASS_WEIGHTS, "label_smoothing": objective.loss.label_smoothing}
        loss_module = nn.CrossEntropyLoss(**options)
        return MATRICES[name](cv.Problem.from_module(module, loss=loss_module, data=(inputs, targets))).dense()

    power = 0 if not targets.is_floating_point() else 1 if name in ("hessian", "ggn", "fisher") else 2
    assert distance(at_scale(7.0), 7.0**power * at_scale(1.0)) < 1e-13


@pytest.mark.parametrize("name", EXACT)
def test_a_class_of_weight_zero_does_not_count(name, mlp, classification_data):
    inputs, labels = classification_data(8, 3, 3)
    module = mlp(3, 4, 3)
    weight = torch.tensor([0.0, 1.0, 1.0])
    kept = labels != 0
    assert 0 < kept.sum() < 8
    found = MATRICES[name](cv.Problem.from_module(module, loss=nn.CrossEntropyLoss(weight), data=(inputs, labels)))
    alone = MATRICES[name](cv.Problem.from_module(module, loss="cross-entropy", data=(inputs[kept], labels[kept])))
    assert distance(found.dense(), alone.dense()) < 1e-13
    assert found.facts.rank_bound == alone.facts.rank_bound


def test_a_class_of_weight_zero_counts_through_label_smoothing_or_is_refused(mlp, classification_data):
    """Its loss is not zero, its share of the denominator is: no weight of the example fits both."""
    inputs, labels = classification_data(8, 3, 3)
    loss = nn.CrossEntropyLoss(torch.tensor([0.0, 1.0, 2.0]), label_smoothing=0.1)
    assert (labels == 0).any()
    try:
        problem = cv.Problem.from_module(mlp(3, 4, 3), loss=loss, data=(inputs, labels))
        covariance, ggn = cv.gradient_covariance(problem), cv.ggn(problem)
    except cv.CurvatureError:
        return
    identity = torch.eye(problem.dim, dtype=torch.float64)
    assert distance(covariance @ identity, covariance.dense()) < ROUNDING
    assert ggn.facts.rank_bound >= torch.linalg.matrix_rank(ggn.dense())


@pytest.mark.parametrize("name", [name for name in EXACT if name != "gradient_covariance"])
@pytest.mark.parametrize("loss", ["cross-entropy", "mse"])
def test_matrices_add_over_the_data(name, loss, case):
    module, objective, inputs, targets, _ = case("mlp-tanh", loss)

    def matrix(examples):
        return MATRICES[name](problem_of(module, objective, inputs[examples], targets[examples])).dense()

    assert distance((3 * matrix(slice(0, 3)) + 4 * matrix(slice(3, 7))) / 7, matrix(slice(0, 7))) < 1e-13


def test_covariance_adds_within_and_between_parts(case):
    """The law of total covariance."""
    module, objective, inputs, targets, _ = case("mlp-tanh", "cross-entropy")

    def part(examples):
        problem = problem_of(module, objective, inputs[examples], targets[examples])
        return cv.gradient_covariance(problem).dense(), problem.gradient()

    total, mean = part(slice(0, 7))
    expected = torch.zeros_like(total)
    for examples, share in ((slice(0, 3), 3 / 7), (slice(3, 7), 4 / 7)):
        within, own = part(examples)
        expected += share * (within + torch.outer(own - mean, own - mean))
    assert distance(total, expected) < 1e-13


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("loss", ["weights-ignored-smoothing", "mse"])
def test_data_twice_over_change_nothing(name, loss, case):
    module, objective, inputs, targets, _ = case("cnn-tanh", loss)
    once = MATRICES[name](problem_of(module, objective, inputs, targets)).dense()
    twice = MATRICES[name](problem_of(module, objective, inputs.repeat(2, 1, 1, 1), torch.cat([targets, targets])))
    assert distance(twice.dense(), once) < 1e-13


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
@pytest.mark.parametrize("name", ["hessian", "ggn", "empirical_fisher", "gradient_covariance"])
def test_matrices_scale_with_the_loss(name, scale, case):
    module, _, inputs, targets, _ = case("mlp-gelu", "pseudo-huber")

    def matrix(factor):
        def loss(output, target):
            return factor * pseudo_huber(output, target)

        return MATRICES[name](cv.Problem.from_module(module, loss=loss, data=(inputs, targets)))

    power = 2 if name in ("empirical_fisher", "gradient_covariance") else 1
    assert distance(matrix(scale).dense() / scale**power, matrix(1.0).dense()) < 1e-13
    identity = torch.eye(matrix(1.0).dim, dtype=torch.float64)
    assert distance((matrix(scale) @ identity) / scale**power, matrix(1.0).dense()) < 1e-13


@pytest.mark.parametrize("loss", [name for name in CASES if CASES[name][0].labels is not None])
def test_fisher_equals_ggn_for_every_named_loss(loss, case):
    module, objective, inputs, targets, _ = case("mlp-gelu", loss)
    problem = problem_of(module, objective, inputs, targets)
    assert distance(cv.fisher(problem).dense(), cv.ggn(problem).dense()) < 1e-13


def test_mse_curvature_is_two_over_c_times_that_of_half_squared_error(case):
    module, _, inputs, targets, _ = case("mlp-tanh", "mse")
    by_torch, half = (
        cv.hessian(cv.Problem.from_module(module, loss=loss, data=(inputs, targets))).dense()
        for loss in ("mse", "half-squared-error")
    )
    assert distance(by_torch, (2 / 3) * half) < 1e-14


def test_covariance_is_the_empirical_fisher_less_the_mean_gradient(case):
    module, objective, inputs, targets, _ = case("mlp-tanh", "class-weights")
    problem = problem_of(module, objective, inputs, targets)
    gradient = problem.gradient()
    expected = cv.empirical_fisher(problem).dense() - torch.outer(gradient, gradient)
    assert distance(cv.gradient_covariance(problem).dense(), expected) < 1e-13


@pytest.mark.parametrize("name", ["ggn", "fisher", "empirical_fisher", "gradient_covariance", "monte_carlo_fisher"])
@pytest.mark.parametrize("loss", ["cross-entropy", "ignored", "mse", "binary", "weights-ignored-smoothing"])
def test_rank_bound_holds_and_is_attained_by_a_wide_network(name, loss, mlp):
    objective, targets = CASES[loss]
    inputs = torch.randn(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    problem = problem_of(mlp(3, 12, 3), objective, inputs, targets)
    assert problem.dim == 87
    extra = (2, torch.Generator().manual_seed(0)) if name == "monte_carlo_fisher" else ()
    operator = MATRICES[name](problem, *extra)
    rank = int(torch.linalg.matrix_rank(operator.dense(), rtol=1e-11, hermitian=True))
    if name == "monte_carlo_fisher":  # two draws may coincide
        assert rank <= operator.facts.rank_bound
    else:
        assert rank == operator.facts.rank_bound


@pytest.mark.parametrize("loss", ["cross-entropy", "binary", "mse", "pseudo-huber"])
def test_factor_blocks_multiply_out_to_the_matrix(loss, case):
    module, objective, inputs, targets, expected = case("cnn-tanh", loss)
    problem = problem_of(module, objective, inputs, targets, chunk_size=3)
    for name in ("ggn", "empirical_fisher", "gradient_covariance"):
        operator = MATRICES[name](problem)
        if operator.routes.factor is None:
            assert loss == "pseudo-huber"
            assert name == "ggn"  # nothing promises that a user's loss is convex
            continue
        blocks = list(operator.routes.factor.blocks())
        assert sum(block.shape[1] for block in blocks) == operator.routes.factor.num_columns
        assert distance(sum(block @ block.T for block in blocks), expected[name]) < ROUNDING


# ------------------------------------------------------------------------------------------------ Monte Carlo Fisher


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        ("mlp-tanh", "class-weights"),
        ("mlp-tanh", "weights-ignored-smoothing"),
        ("mlp-tanh", "binary"),
        ("mlp-tanh", "mse"),
        ("mlp-tanh", "half-squared"),
        ("sequence-tanh", "sequence-weights-ignored"),
        ("sequence-tanh", "sequence-mse"),
    ],
)
def test_monte_carlo_fisher_is_unbiased(model, loss, case, generator):
    module, objective, inputs, targets, expected = case(model, loss)
    problem = problem_of(module, objective, inputs, targets)
    probes = torch.randn(problem.dim, 8, generator=generator, dtype=torch.float64)

    def forms(matrix):
        return torch.einsum("dk, de, ek -> k", probes, matrix, probes)

    drawn = torch.stack(
        [forms(cv.monte_carlo_fisher(problem, 2, torch.Generator().manual_seed(seed)).dense()) for seed in range(200)]
    )
    error = drawn.std(dim=0) / 200**0.5
    truth = forms(expected["fisher"])
    assert ((drawn.mean(dim=0) - truth).abs() < 4 * error).all()
    assert (error < 0.15 * truth).all()  # a wide error bar would prove nothing


def test_monte_carlo_fisher_of_many_samples_approaches_the_fisher(case, generator):
    module, objective, inputs, targets, expected = case("mlp-tanh", "cross-entropy")
    problem = problem_of(module, objective, inputs, targets)
    few, many = (distance(cv.monte_carlo_fisher(problem, n, generator).dense(), expected["fisher"]) for n in (4, 4000))
    assert many < 0.05 < few


def test_labels_of_one_operator_are_drawn_once(case):
    module, objective, inputs, targets, _ = case("mlp-tanh", "cross-entropy")
    problem = problem_of(module, objective, inputs, targets, chunk_size=2)
    operator = cv.monte_carlo_fisher(problem, 3, torch.Generator().manual_seed(0))
    same, other = (cv.monte_carlo_fisher(problem, 3, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert torch.equal(operator @ problem.weights, operator @ problem.weights)
    assert torch.equal(operator.dense(), operator.dense())
    assert distance(operator @ torch.eye(problem.dim, dtype=torch.float64), operator.dense()) < ROUNDING
    assert torch.equal(operator.dense(), same.dense())
    assert distance(other.dense(), operator.dense()) > 1e-3


def test_labels_do_not_depend_on_the_chunk_size(case):
    module, objective, inputs, targets, _ = case("mlp-tanh", "cross-entropy")
    cut, whole = (
        cv.monte_carlo_fisher(
            problem_of(module, objective, inputs, targets, chunk_size=chunk_size), 3, torch.Generator().manual_seed(0)
        )
        for chunk_size in (2, 7)
    )
    assert distance(cut.dense(), whole.dense()) < ROUNDING


def test_number_of_samples_is_kept_in_every_chart(case):
    module, objective, inputs, targets, _ = case("mlp-tanh", "cross-entropy")
    operator = cv.monte_carlo_fisher(
        problem_of(module, objective, inputs, targets), 3, torch.Generator().manual_seed(0)
    )
    assert cv.spectrum(operator).num_samples == 3
    assert cv.spectrum(cv.pullback(operator, cv.WeightNorm())).num_samples == 3


def test_no_samples_are_refused(case):
    module, objective, inputs, targets, _ = case("mlp-tanh", "cross-entropy")
    problem = problem_of(module, objective, inputs, targets)
    with pytest.raises(cv.ConfigurationError, match="num_samples must be an integer of at least 1, got 0"):
        cv.monte_carlo_fisher(problem, 0, torch.Generator())


# ------------------------------------------------------------------------------------------------ a user's loss


@pytest.mark.parametrize("loss", ["pseudo-huber", "welsch"])
def test_a_loss_without_likelihood_has_no_fisher(loss, case):
    module, objective, inputs, targets, _ = case("mlp-tanh", loss)
    problem = problem_of(module, objective, inputs, targets)
    with pytest.raises(cv.NotDefinedError, match="Fisher needs a likelihood"):
        cv.fisher(problem)
    with pytest.raises(cv.NotDefinedError, match="Fisher needs a likelihood"):
        cv.monte_carlo_fisher(problem, 3, torch.Generator())


def test_ggn_of_a_loss_that_is_not_convex_is_indefinite_and_says_so(case):
    module, objective, inputs, targets, _ = case("mlp-tanh", "welsch")
    operator = cv.ggn(problem_of(module, objective, inputs, targets))
    assert not operator.facts.positive_semidefinite
    assert torch.linalg.eigvalsh(operator.dense())[0] < -1e-3


def inner_product(output, target):
    return (output * target).sum()


@pytest.mark.parametrize("name", ["hessian", "ggn"])
@pytest.mark.parametrize("method", ["structured", "generic"])
def test_a_linear_loss_of_a_linear_model_has_no_curvature(name, method, regression_data):
    problem = cv.Problem.from_module(nn.Linear(3, 2), loss=inner_product, data=regression_data(5, 3, 2))
    with pytest.warns(UserWarning, match="exactly zero") if name == "ggn" else nullcontext():
        operator, zero = MATRICES[name](problem, method=method), torch.zeros(8, 8, dtype=torch.float64)
    assert torch.equal(operator.dense(), zero)
    assert torch.equal(operator @ torch.eye(8, dtype=torch.float64), zero)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        *itertools.product(EXACT, ["mse", "half-squared", "binary"]),
        *itertools.product(["hessian", "ggn", "empirical_fisher", "gradient_covariance"], ["pseudo-huber"]),
    ],
)
def test_outputs_without_a_trailing_axis_are_one_output(name, loss, mlp):
    """Regression models often end in ``squeeze(-1)``: outputs and targets of shape ``(N,)``."""

    class Squeezed(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, inputs):
            return self.network(inputs).squeeze(-1)

    objective, network = CASES[loss][0], mlp(3, 4, 1)
    inputs, targets = torch.randn(6, 3, dtype=torch.float64), torch.rand(6, 1, dtype=torch.float64)
    expected = MATRICES[name](problem_of(network, objective, inputs, targets)).dense()
    found = MATRICES[name](problem_of(Squeezed(network), objective, inputs, targets[:, 0]))
    assert distance(found.dense(), expected) < 1e-14
    assert distance(found @ expected, expected @ expected) < 1e-13


# ------------------------------------------------------------------------------------------------ blocks


def neurons(module):
    """Flat indices of each output row of a weight with its bias, from names and shapes alone."""
    places, start = {}, 0
    for name, parameter in module.named_parameters():
        path, _, _ = name.rpartition(".")
        indices = torch.arange(start, start + parameter.numel()).view(parameter.shape)
        start += parameter.numel()
        for neuron in range(parameter.shape[0]):
            places.setdefault(f"{path}[{neuron}]", []).append(indices[neuron].reshape(-1))
    return {name: torch.cat(parts) for name, parts in places.items()}


@pytest.mark.parametrize("model", ["mlp-tanh", "cnn-tanh"])
def test_neuron_blocks_are_principal_submatrices_of_rows_with_biases(model, case, generator):
    module, objective, inputs, targets, expected = case(model, "cross-entropy")
    operator = cv.hessian(problem_of(module, objective, inputs, targets))
    blocks = cv.blocks(operator, "neuron")
    places = neurons(module)
    assert blocks.keys() == places.keys()
    for name, indices in places.items():
        expected_block = expected["hessian"][indices][:, indices]
        vector = torch.randn(len(indices), 2, generator=generator, dtype=torch.float64)
        scale = torch.linalg.norm(expected["hessian"])
        assert torch.linalg.norm(blocks[name].dense() - expected_block) < ROUNDING * scale
        assert torch.linalg.norm(blocks[name] @ vector - expected_block @ vector) < 10 * ROUNDING * scale
        assert torch.allclose(blocks[name].facts.gradient(), expected["gradient"][indices], rtol=1e-10, atol=1e-14)


def test_neurons_of_a_transposed_convolution_are_its_output_channels():
    """Its weight is ``(in, out, ...)``: output channel ``j`` is ``weight[:, j]`` with ``bias[j]``."""
    layer = nn.ConvTranspose1d(2, 3, 2).double()
    inputs, targets = torch.randn(2, 2, 3, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    problem = cv.Problem.from_module(layer, loss="mse", data=(inputs, targets))
    weight, bias = torch.arange(12).view(2, 3, 2), torch.arange(12, 15)
    expected = [sorted([*weight[:, j].reshape(-1).tolist(), int(bias[j])]) for j in range(3)]
    found = [sorted(indices.tolist()) for indices in problem.layout.blocks("neuron").values()]
    assert found == expected


class TwoWeights(nn.Module):
    """A whole network in one module, as people write it by hand."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Parameter(torch.randn(4, 3))
        self.outer = nn.Parameter(torch.randn(2, 4))

    def forward(self, inputs):
        return torch.tanh(inputs @ self.inner.T) @ self.outer.T


def test_rows_of_two_weights_in_one_module_are_different_neurons(regression_data):
    problem = cv.Problem.from_module(TwoWeights(), loss="mse", data=regression_data(5, 3, 2))
    found = sorted(sorted(indices.tolist()) for indices in problem.layout.blocks("neuron").values())
    inner, outer = torch.arange(12).view(4, 3), torch.arange(12, 20).view(2, 4)
    assert found == sorted([*inner.tolist(), *outer.tolist()])


@pytest.mark.parametrize("name", ["ggn", "gradient_covariance"])
def test_layer_blocks_are_principal_submatrices(name, case):
    module, objective, inputs, targets, expected = case("mlp-tanh", "cross-entropy")
    blocks = cv.blocks(MATRICES[name](problem_of(module, objective, inputs, targets)), "layer")
    first = slice(0, 4 * 3 + 4)
    assert list(blocks) == ["0", "2"]
    assert distance(blocks["0"].dense(), expected[name][first, first]) < ROUNDING
    assert distance(blocks["2"].dense(), expected[name][16:, 16:]) < ROUNDING
    factors = list(blocks["2"].routes.factor.blocks())
    assert distance(sum(factor @ factor.T for factor in factors), expected[name][16:, 16:]) < ROUNDING


def test_a_pattern_makes_one_block_of_all_that_match(case):
    module, objective, inputs, targets, expected = case("mlp-tanh", "cross-entropy")
    operator = cv.ggn(problem_of(module, objective, inputs, targets))
    indices = torch.cat([torch.arange(12), torch.arange(16, 28)])
    blocks = cv.blocks(operator, "weight$")
    assert list(blocks) == ["weight$"]
    assert distance(blocks["weight$"].dense(), expected["ggn"][indices][:, indices]) < ROUNDING
    assert distance(cv.blocks(operator, "all")["all"].dense(), expected["ggn"]) < ROUNDING


@pytest.mark.parametrize("by", ["neuron", "layer"])
def test_blocks_partition_the_coordinates(by, case):
    module, objective, inputs, targets, _ = case("cnn-tanh", "cross-entropy")
    problem = problem_of(module, objective, inputs, targets)
    indices = torch.cat(list(problem.layout.blocks(by).values()))
    assert indices.sort().values.tolist() == list(range(problem.dim))


def test_blocks_of_a_weight_normalized_chart_hold_g_and_v(case):
    module, objective, inputs, targets, _ = case("mlp-tanh", "cross-entropy")
    moved = cv.pullback(cv.ggn(problem_of(module, objective, inputs, targets)), cv.WeightNorm(stretch=2.0))
    found = cv.blocks(moved, "neuron")
    assert {name: block.dim for name, block in found.items()} == dict.fromkeys(
        [f"0[{i}]" for i in range(4)], 1 + 3 + 1
    ) | dict.fromkeys([f"2[{i}]" for i in range(3)], 1 + 4 + 1)
    for indices, block in zip(moved.layout.blocks("neuron").values(), found.values(), strict=True):
        assert distance(block.dense(), moved.dense()[indices][:, indices]) < 1e-14


def test_unknown_blocks_are_refused_with_the_names_there_are(case):
    module, objective, inputs, targets, _ = case("mlp-tanh", "cross-entropy")
    operator = cv.ggn(problem_of(module, objective, inputs, targets))
    with pytest.raises(cv.ConfigurationError, match=r"'conv' matches no parameter; the names are 0\.weight, 0\.bias"):
        cv.blocks(operator, "conv")
    with pytest.raises(cv.ConfigurationError, match=r"'\(' is not a regular expression"):
        cv.blocks(operator, "(")
    with pytest.raises(cv.ConfigurationError, match="matrix has no named coordinates"):
        cv.blocks(cv.SymmetricOperator.from_dense(torch.eye(2)), "layer")


def test_a_block_cannot_be_moved_to_a_chart(case):
    module, objective, inputs, targets, _ = case("mlp-tanh", "cross-entropy")
    block = cv.blocks(cv.ggn(problem_of(module, objective, inputs, targets)), "layer")["0"]
    with pytest.raises(cv.ConfigurationError, match="Move first, then take blocks"):
        cv.pullback(block, cv.WeightNorm())


# ------------------------------------------------------------------------------------------------ operators


def symmetric(dim, generator):
    matrix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return matrix + matrix.T


def test_from_dense_gives_the_matrix_back_and_owns_a_copy(generator):
    matrix = symmetric(5, generator)
    kept = matrix.clone()
    operator = cv.SymmetricOperator.from_dense(matrix, name="mine", positive_semidefinite=False)
    operator.dense().zero_()
    matrix.zero_()
    assert torch.equal(operator.dense(), kept)
    assert torch.equal(operator @ torch.eye(5, dtype=torch.float64), kept)
    assert operator.name == "mine"


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (torch.ones(2, 3), cv.InputError, r"must be a square matrix, got shape \(2, 3\)"),
        (torch.ones(3), cv.InputError, r"must be a square matrix, got shape \(3,\)"),
        (torch.ones(0, 0), cv.InputError, r"must be a square matrix, got shape \(0, 0\)"),
        (torch.ones(2, 2, dtype=torch.int64), cv.InputError, "real floating-point numbers, got torch.int64"),
        (torch.ones(2, 2, dtype=torch.complex128), cv.InputError, "real floating-point numbers, got torch.complex128"),
        (torch.tensor([[1.0, 2.0], [2.1, 1.0]]), cv.SelfCheckError, "is not symmetric"),
        (torch.tensor([[1.0, torch.nan], [torch.nan, 1.0]]), cv.NonFiniteError, "NaN or infinite entries"),
        (torch.tensor([[torch.inf]]), cv.NonFiniteError, "NaN or infinite entries"),
    ],
)
def test_from_dense_refuses_what_is_not_a_real_symmetric_matrix(matrix, error, message):
    with pytest.raises(error, match=message):
        cv.SymmetricOperator.from_dense(matrix)


def test_asymmetry_is_judged_against_rounding(generator):
    matrix = symmetric(6, generator)
    slightly, clearly = matrix.clone(), matrix.clone()
    slightly[0, 1] += 1e-15 * matrix.abs().max()
    clearly[0, 1] += 1e-11 * matrix.abs().max()
    found = cv.SymmetricOperator.from_dense(slightly).dense()
    assert torch.equal(found, found.T)
    with pytest.raises(cv.SelfCheckError, match="is not symmetric"):
        cv.SymmetricOperator.from_dense(clearly)


@pytest.mark.parametrize("name", EXACT)
def test_a_materialized_matrix_is_the_same_matrix(name, case):
    module, objective, inputs, targets, expected = case("mlp-tanh", "cross-entropy")
    kept = MATRICES[name](problem_of(module, objective, inputs, targets)).materialized()
    kept.dense().zero_()  # a copy
    assert distance(kept.dense(), expected[name]) < ROUNDING
    assert distance(kept @ expected[name], expected[name] @ expected[name]) < ROUNDING
    moved = cv.pullback(kept, cv.ScaledStandard(2.0)).dense()
    again = cv.pullback(MATRICES[name](problem_of(module, objective, inputs, targets)), cv.ScaledStandard(2.0)).dense()
    assert distance(moved, again) < ROUNDING


def test_arpack_finds_the_extreme_eigenvalues_of_a_problem(case):
    module, objective, inputs, targets, expected = case("mlp-tanh", "cross-entropy")
    operator = cv.hessian(problem_of(module, objective, inputs, targets)).to_scipy()
    start = np.linspace(1, 2, operator.shape[0])
    found = eigsh(operator, k=3, which="BE", v0=start, return_eigenvectors=False)
    exact = torch.linalg.eigvalsh(expected["hessian"]).numpy()
    assert np.sort(found) == pytest.approx(exact[[0, -2, -1]], rel=1e-10)


def test_scipy_operator_multiplies_vectors_columns_and_blocks(case):
    module, objective, inputs, targets, expected = case("mlp-tanh", "cross-entropy")
    operator = cv.ggn(problem_of(module, objective, inputs, targets)).to_scipy()
    matrix = expected["ggn"].numpy()
    block = np.asfortranarray(np.random.default_rng(0).standard_normal((operator.shape[0], 3)))
    assert operator.dtype == np.float64
    for right in (block, block[:, 0], block[:, :1], block[::-1]):
        assert operator @ right == pytest.approx(matrix @ right, rel=1e-10, abs=1e-13)
    assert operator.T @ block[:, 0] == pytest.approx(matrix @ block[:, 0], rel=1e-10, abs=1e-13)


def test_products_refuse_wrong_shapes_types_and_precision(case):
    module, objective, inputs, targets, _ = case("mlp-tanh", "cross-entropy")
    operator = cv.hessian(problem_of(module, objective, inputs, targets))
    for wrong in (torch.zeros(32), torch.zeros(31, 2, 2), torch.zeros(2, 31), torch.zeros(())):
        with pytest.raises(
            cv.ConfigurationError, match=r"hessian is 31 x 31: it multiplies shape \(31,\) or \(31, K\)"
        ):
            operator @ wrong.double()
    with pytest.raises(cv.ConfigurationError, match=r"torch.float64 on cpu, the vector is torch.float32"):
        operator @ torch.zeros(31)
    with pytest.raises(cv.ConfigurationError, match="multiplies torch tensors, got ndarray"):
        operator @ np.zeros(31)


@pytest.mark.parametrize("name", EXACT)
def test_float32_models_give_float32_matrices_close_to_the_exact_ones(name, case):
    module, objective, inputs, targets, expected = case("mlp-tanh", "cross-entropy")
    problem = problem_of(single_precision(module), objective, inputs.float(), targets, dtype=None)
    matrix = MATRICES[name](problem).dense()
    assert matrix.dtype == torch.float32
    assert distance(matrix.double(), expected[name]) < 1e-5


def single_precision(module):
    copy = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    copy.load_state_dict({name: tensor.float() for name, tensor in module.state_dict().items()})
    return copy


def test_records_say_what_the_matrix_is(case):
    module, objective, inputs, targets, _ = case("mlp-tanh", "cross-entropy")
    problem = problem_of(module, objective, inputs, targets)
    for name in EXACT:
        operator = MATRICES[name](problem)
        assert (operator.name, operator.where.chart, operator.where.gauge) == (name, "standard", "-")
        assert operator.where.num_examples == 7
        assert operator.facts.positive_semidefinite is (name != "hessian")
        assert "\n" not in repr(operator)


@pytest.mark.parametrize("damping", [1e-3, 1e-4])
@pytest.mark.parametrize("move", [cv.pullback, cv.effective])
def test_an_inverse_root_with_little_damping_multiplies_rounding_and_the_floor_says_how_much(move, damping):
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = cv.Problem.from_module(cv.zoo.mlp((4, 3, 3)), loss="cross-entropy", data=(inputs, torch.arange(6) % 3))
    matrix = cv.ggn(problem)
    values, vectors = torch.linalg.eigh(matrix.dense())
    root = (vectors * (values.clamp(min=0) + damping * float(values.mean())).rsqrt()) @ vectors.T
    root = (root + root.T) / 2
    found = cv.spectrum(move(matrix, cv.LinearChart(root)), method="dense")
    with mpmath.workdps(40):
        exact_root, exact = mpmath.matrix(root.tolist()), mpmath.matrix(matrix.dense().tolist())
        expected = sorted(map(float, mpmath.eigsy(exact_root * exact * exact_root, eigvals_only=True)))
    assert np.abs(found.eigenvalues - expected).max() < found.noise_floor < 1e-9
    assert found.rank == 12  # examples times classes less one
