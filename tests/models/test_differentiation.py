"""Losses and layers that PyTorch does not vectorize, differentiates only once, or differentiates by its own rules.

The right values are plain double loops of ``torch.autograd.grad`` on the user's module, or central differences of its
gradient.
"""

import warnings

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import curvature as cv
from curvature.matrices import MATRICES
from curvature.models.culprit import wrong_layer
from curvature.models.losses import OneByOne
from oracles import built, distance, drawn

EXACT = ("hessian", "ggn", "fisher", "empirical_fisher", "gradient_covariance")
INPUTS, REALS, LABELS = drawn(6, 4), drawn(6, 3, seed=2), torch.tensor([0, 2, 1, 1, 0, 2])
TOKENS = torch.tensor([[1, 2, 0, 4], [3, 4, 5, 0], [2, 2, 1, 3], [5, 0, 1, 1], [2, 5, 5, 4]])
CLASSES = torch.tensor([0, 2, 1, 1, 0])


# ------------------------------------------------------------------------------------------------------------- oracles


def flat(parts):
    return torch.cat([part.to_dense().reshape(-1) for part in parts])


def loop(values, parameters):
    """One backward pass for every entry, zero where it has no graph."""
    size = sum(parameter.numel() for parameter in parameters)
    rows = [torch.zeros(size, dtype=values.dtype) for _ in values]
    for k, value in enumerate(values):
        if value.requires_grad:
            options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
            rows[k] = flat(torch.autograd.grad(value, parameters, **options))
    return torch.stack(rows).detach()


def double_backward(value, module):
    """The Hessian of a scalar by a plain double loop."""
    parameters = list(module.parameters())
    options = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
    return loop(flat(torch.autograd.grad(value, parameters, **options)), parameters)


def differences(value, module, step=1e-5):
    """The Hessian by central differences of PyTorch's gradient of ``value()``."""
    parameters = list(module.parameters())
    columns = []
    for entry in (entry for parameter in parameters for entry in parameter.data.view(-1)):
        moved = []
        for sign in (1, -2):
            entry += sign * step
            moved.append(flat(torch.autograd.grad(value(), parameters, allow_unused=True, materialize_grads=True)))
        entry += step
        columns.append((moved[0] - moved[1]) / (2 * step))
    matrix = torch.stack(columns, dim=1)
    return (matrix + matrix.T) / 2


def softmax_ggn(module, inputs):
    """The GGN of the mean cross-entropy by the Jacobian of the module as it is."""
    outputs = module(inputs)
    jacobian = loop(outputs.reshape(-1), list(module.parameters())).reshape(*outputs.shape, -1)
    share = torch.softmax(outputs.detach(), dim=1)
    middle = torch.diag_embed(share) - share[:, :, None] * share[:, None]
    return torch.einsum("ncp, ncd, ndq -> pq", jacobian, middle, jacobian) / len(outputs)


def problem_of(module, inputs=INPUTS, targets=LABELS, loss="cross-entropy", **options):
    return cv.Problem.from_module(module, loss=loss, data=(inputs, targets), **options)


def products(operator):
    return operator @ torch.eye(operator.dim, dtype=operator.dtype)


def mlp(*middle, seed=0):
    return built(lambda: nn.Sequential(nn.Linear(4, 4), *(middle or (nn.Tanh(),)), nn.Linear(4, 3)), seed)


# ---------------------------------------------------------------------------------------------- losses, one by one


def branching(output, target):
    distance = (output - target).norm()
    return 0.5 * distance**2 if distance < 1 else distance - 0.5


def reading(output, target):
    return float(target.abs().max()) * (output - target).square().mean()


def writing(output, target):
    total = torch.zeros(3, dtype=output.dtype)
    for k in range(3):
        total[k] = (output[k] - target[k]) ** 4
    return total.sum()


def writing_into_the_output(output, target):
    error = output - target
    output[0] = 3 * output[0]
    return error.square().sum() + output[0] * output[1]


def of_numbers(output, target):
    weights = torch.tensor([1.0 + abs(value) for value in target.tolist()], dtype=output.dtype)
    return (weights * (output - target) ** 2).sum()


def in_numpy(output, target):
    return (output - target).exp().sum() * float(target.detach().numpy().mean() ** 2)


def with_a_loop(output, target):
    total = output.square().sum()
    while total > 1:
        total = total / 2
    return total + (output * target).cos().sum()


class Cubed(torch.autograd.Function):
    """A custom function with a right double backward, and no rule for vmap."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * gradient * x**2


LOSSES = {
    "if": (branching, REALS),
    "float": (reading, REALS),
    "write in place": (writing, REALS),
    "write into the output": (writing_into_the_output, REALS),
    "tolist": (of_numbers, REALS),
    "numpy": (in_numpy, REALS),
    "while": (with_a_loop, REALS),
    "bytes as labels": (functional.cross_entropy, LABELS.byte()),
    "custom function": (lambda output, target: Cubed.apply(output - target).sum(), REALS),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_without_a_vmap_rule_are_differentiated_example_by_example(kind):
    loss, targets = LOSSES[kind]
    module = mlp()
    problem = problem_of(module, targets=targets, loss=loss)
    assert isinstance(problem.loss, OneByOne)
    assert "one example after another" in problem.notes[0]
    value = sum(loss(output.clone(), target) for output, target in zip(module(INPUTS), targets, strict=True)) / 6
    expected = double_backward(value, module)
    assert distance(cv.hessian(problem).dense(), expected) < 1e-12
    assert distance(products(cv.hessian(problem, method="generic")), expected) < 1e-12
    outputs = module(INPUTS)
    jacobian = loop(outputs.reshape(-1), list(module.parameters())).reshape(6, 3, -1)
    middle = torch.stack([second_of(loss, *pair) for pair in zip(outputs.detach(), targets, strict=True)])
    ggn = torch.einsum("ncp, ncd, ndq -> pq", jacobian, middle, jacobian) / 6
    assert distance(cv.ggn(problem).dense(), ggn) < 1e-12
    assert distance(products(cv.ggn(problem, method="generic")), ggn) < 1e-12


def second_of(loss, output, target):
    """The second derivative in the outputs of one example by a plain double loop."""
    variable = output.clone().requires_grad_()
    slope = torch.autograd.grad(loss(variable.clone(), target), variable, create_graph=True)[0]
    return loop(slope, [variable])


def test_losses_that_vmap_serves_stay_vectorized():
    for loss in (functional.soft_margin_loss, functional.huber_loss, lambda f, y: (f - y).square().sum()):
        problem = problem_of(mlp(), targets=REALS.sign(), loss=loss)
        assert not isinstance(problem.loss, OneByOne)
        assert problem.notes == ()


MARGINS = {
    "multi-margin": (functional.multi_margin_loss, LABELS),
    "squared multi-margin": (lambda f, y: functional.multi_margin_loss(f, y, p=2, margin=0.7), LABELS),
    "weighted multi-margin": (
        lambda f, y: functional.multi_margin_loss(f, y, weight=torch.tensor([1.0, 3.0, 0.5]).double(), reduction="sum"),
        LABELS,
    ),
    "multi-label margin": (functional.multilabel_margin_loss, torch.tensor([[0, 2, -1]] * 3 + [[1, -1, 0]] * 3)),
}


@pytest.mark.parametrize("kind", MARGINS)
def test_losses_that_pytorch_differentiates_once_have_the_differences_of_its_gradient(kind):
    loss, targets = MARGINS[kind]
    module = mlp()

    def value():
        return sum(loss(output, target) for output, target in zip(module(INPUTS), targets, strict=True)) / 6

    problem = problem_of(module, targets=targets, loss=cv.PerExample(loss))
    assert any("is computed by an equivalent function" in note for note in problem.notes)
    assert distance(cv.hessian(problem).dense(), differences(value, module)) < 1e-7
    assert distance(problem.gradient(), flat(torch.autograd.grad(value(), list(module.parameters())))) < 1e-13


# ------------------------------------------------------------------------------- layers that are differentiable once


class Bag(nn.Module):
    def __init__(self, offsets=False, **options):
        super().__init__()
        self.bag, self.last, self.offsets = nn.EmbeddingBag(6, 3, **options), nn.Linear(3, 3), offsets

    def forward(self, tokens):
        starts = (torch.arange(0, tokens.numel(), tokens.shape[1]),) if self.offsets else ()
        return self.last(torch.tanh(self.bag(tokens.reshape(-1) if self.offsets else tokens, *starts)))


class Prototypes(nn.Module):
    """Distances to learned points, one of which an example may coincide with."""

    def __init__(self, p):
        super().__init__()
        self.points, self.first, self.p = nn.Parameter(torch.randn(3, 4)), nn.Linear(4, 4), p

    def forward(self, x):
        return -torch.cdist(torch.tanh(self.first(x)), self.points, p=self.p)


ONCE = {
    "hardsigmoid": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Hardsigmoid(), nn.Linear(4, 3)), INPUTS),
    "distances": (lambda: Prototypes(2.0), INPUTS),
    "distances of order 3": (lambda: Prototypes(3.0), INPUTS),
    "bag mean": (lambda: Bag(mode="mean"), TOKENS),
    "bag sum": (lambda: Bag(mode="sum", padding_idx=2), TOKENS),
    "bag max": (lambda: Bag(mode="max", offsets=True), TOKENS),
}


class WrittenOut(nn.Module):
    """Weight norm by PyTorch's function, called in ``forward``: no parametrization tells of it."""

    def __init__(self, dim):
        super().__init__()
        torch.manual_seed(0)
        self.dim = dim
        self.v = nn.Parameter(torch.randn(3, 4))
        self.g = nn.Parameter(0.5 + torch.rand({0: (3, 1), 1: (1, 4), -1: ()}[dim]))
        self.last = nn.Linear(3, 3)

    def forward(self, x):
        return self.last(functional.linear(x, torch._weight_norm(self.v, self.g, self.dim)).tanh())


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_weight_norm_called_in_forward_is_never_differentiated_twice(dim):
    """The double backward of the fused function is wrong, so entries and products must not use it."""
    module = WrittenOut(dim).double()
    problem = problem_of(module)
    expected = differences(lambda: functional.cross_entropy(module(INPUTS), LABELS), module)
    operator = cv.hessian(problem)
    assert distance(operator.dense(), expected) < 1e-8
    assert distance(products(operator), expected) < 1e-8
    assert any("torch._weight_norm" in note for note in problem.notes) is (dim != -1)
    if dim != -1:  # PyTorch's own Hessian of the same module is not that of its gradient
        wrong = double_backward(functional.cross_entropy(module(INPUTS), LABELS), module)
        assert distance(wrong, expected) > 1e-3


@pytest.mark.parametrize("kind", ONCE)
def test_layers_that_pytorch_differentiates_once_are_replaced_by_equal_ones(kind):
    build, inputs = ONCE[kind]
    module = built(build, seed=3)
    labels = CLASSES if inputs is TOKENS else LABELS
    problem = problem_of(module, inputs, labels)
    assert any("has no second derivative in PyTorch" in note for note in problem.notes) or "padding" in str(
        problem.notes
    )
    expected = differences(lambda: functional.cross_entropy(module(inputs), labels), module)
    assert distance(cv.hessian(problem).dense(), expected) < 1e-7
    ggn = softmax_ggn(module, inputs)
    for matrix in (cv.ggn, cv.fisher):
        assert distance(matrix(problem).dense(), ggn) < 1e-13
        assert distance(products(matrix(problem, method="generic")), ggn) < 1e-13
    for name in EXACT:
        cv.spectrum(MATRICES[name](problem))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (1 - torch.tanh(x) ** 2)


class Detached(Once):
    """Its backward pass leaves the graph without a word, as one in NumPy does."""

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(gradient.detach().numpy() * (1 - torch.tanh(x.detach()) ** 2).numpy())


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            Once,
            cv.NotDefinedError,
            r"layer '1' \(Applied\) has no second derivative .*once_differentiable.*finite-diff",
        ),
        (Detached, cv.SelfCheckError, r"layer '1' \(Applied\) has a wrong double backward: by Detached.*finite-diff"),
    ],
)
def test_custom_functions_without_a_second_derivative_have_every_matrix_but_the_hessian(function, error, message):
    problem, twin = problem_of(mlp(Applied(function))), problem_of(mlp())
    with pytest.raises(error, match=message):
        cv.hessian(problem)
    for name in EXACT[1:]:
        expected, matrix = MATRICES[name](twin).dense(), MATRICES[name](problem)
        assert distance(matrix.dense(), expected) < 1e-13
        assert distance(products(matrix), expected) < 1e-13
        spectrum = cv.spectrum(cv.pullback(matrix, cv.WeightNorm(stretch=3.0)))
        assert spectrum.rank == cv.spectrum(cv.pullback(MATRICES[name](twin), cv.WeightNorm(stretch=3.0))).rank


def test_a_backward_pass_that_is_not_the_derivative_is_refused_by_layer():
    class Through(Once):  # a straight-through estimator
        @staticmethod
        def forward(_ctx, x):
            return x.sign()

        @staticmethod
        def backward(_ctx, gradient):
            return gradient

    with pytest.raises(cv.SelfCheckError, match=r"backward pass of Through in layer '1' \(Applied\) is not the deriv"):
        problem_of(mlp(Applied(Through)))


def test_a_loss_that_is_differentiable_once_has_no_ggn_and_says_so():
    problem = problem_of(mlp(), targets=REALS, loss=lambda f, y: Once.apply(f - y).square().sum())
    for matrix in (cv.hessian, cv.ggn):
        with pytest.raises(cv.NotDefinedError, match=r"the loss has no second derivative in PyTorch"):
            matrix(problem)
    twin = problem_of(mlp(), targets=REALS, loss=lambda f, y: torch.tanh(f - y).square().sum())
    for matrix in (cv.empirical_fisher, cv.gradient_covariance):
        assert distance(matrix(problem).dense(), matrix(twin).dense()) < 1e-13


# ---------------------------------------------------------------------------------------------- finite differences


@pytest.mark.parametrize("activation", [nn.Tanh, nn.SiLU, nn.Softplus])
def test_differences_of_the_gradient_are_within_their_error(activation):
    problem = problem_of(mlp(activation()))
    exact, matrix = cv.hessian(problem), cv.hessian(problem, method="finite-differences")
    assert matrix.name == "hessian (finite differences)"
    error = matrix.error()
    assert 0 < torch.linalg.matrix_norm(matrix.dense() - exact.dense(), 2) < error < 1e-9
    pairs = [(matrix, exact), (matrix.block("0"), exact.block("0")), (2 * matrix, 2 * exact)]
    pairs += [(move(matrix, cv.WeightNorm()), move(exact, cv.WeightNorm())) for move in (cv.pullback, cv.effective)]
    for found, expected in pairs:
        spectrum = cv.spectrum(found)
        assert spectrum.floor_rule == "the error of the finite differences"
        assert abs(spectrum.eigenvalues - cv.spectrum(expected).eigenvalues).max() <= spectrum.noise_floor
        assert "gap" not in spectrum.rank_rule.split("unresolved")[0]
    trace, ends = cv.trace(matrix), cv.extremal_eigenvalues(matrix, num_largest=2, num_smallest=0)
    assert trace.low <= float(exact.dense().trace()) <= trace.high
    assert ends.noise_floor >= error
    assert cv.inertia(matrix, 0.01).tolerance >= error


def test_differences_give_the_hessian_that_automatic_differentiation_lacks():
    problem, twin = problem_of(mlp(Applied(Once))), problem_of(mlp())
    spectrum = cv.spectrum(cv.hessian(problem, method="finite-differences"))
    assert abs(spectrum.eigenvalues - cv.spectrum(cv.hessian(twin)).eigenvalues).max() <= spectrum.noise_floor < 1e-9
    assert any(check.name == "agreement with finite differences of the gradient" for check in spectrum.checks)


def test_the_error_of_differences_across_a_kink_is_as_large_as_the_jump():
    module = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    for parameter, value in zip(module.parameters(), (1.0, -1.0 + 1e-4, 1.0, 0.0), strict=True):
        parameter.data.fill_(value)
    data = {"inputs": torch.ones(1, 1).double(), "targets": torch.ones(1, 1).double(), "loss": "half-squared-error"}
    problem = problem_of(module, **data)
    matrix = cv.hessian(problem, method="finite-differences")
    assert matrix.error() > torch.linalg.matrix_norm(matrix.dense() - cv.hessian(problem).dense(), 2) > 0.1


def test_differences_are_offered_for_the_hessian_in_float64_only():
    with pytest.raises(cv.ConfigurationError, match="Only hessian has method='finite-differences'"):
        cv.ggn(problem_of(mlp()), method="finite-differences")
    matrix = cv.hessian(problem_of(mlp(), dtype=torch.float32), method="finite-differences")
    with pytest.raises(cv.ConfigurationError, match=r"needs float64, the problem is in torch\.float32"):
        matrix.dense()


# ------------------------------------------------------------------------------------------- options of embeddings


class Text(nn.Module):
    """A classifier of sequences, or with tied weights one of tokens."""

    def __init__(self, tied=False, **options):
        super().__init__()
        self.words, self.last = nn.Embedding(6, 3, **options), nn.Linear(3, 6, bias=False)
        nn.init.normal_(self.words.weight)
        if tied:
            self.last.weight = self.words.weight

    def forward(self, tokens):
        return self.last(torch.tanh(self.words(tokens)).mean(1))


class Functional(Text):
    def forward(self, tokens):
        return self.last(torch.tanh(functional.embedding(tokens, self.words.weight, -6)).mean(1))


@pytest.mark.parametrize("build", [lambda: Text(padding_idx=0), Functional])
def test_the_masked_row_of_an_embedding_is_a_constant(build):
    module = built(build)
    problem = problem_of(module, TOKENS, CLASSES)
    assert "row 0 of the embedding 'words.weight' (padding_idx) counts as a constant" in problem.notes[0]
    expected = double_backward(functional.cross_entropy(module(TOKENS), CLASSES), module)
    for method in ("auto", "generic"):
        matrix = cv.hessian(problem, method=method)
        assert distance(matrix.dense(), expected) < 1e-13
        assert not matrix.dense()[:3].any()
    assert distance(cv.ggn(problem).dense(), softmax_ggn(module, TOKENS)) < 1e-13
    assert "3 of masked rows of embeddings" in cv.spectrum(cv.hessian(problem)).rank_rule
    for name in EXACT:
        cv.spectrum(MATRICES[name](problem))
    moved = problem.at(problem.weights + 0.3)
    torch.nn.utils.vector_to_parameters(moved.weights, module.parameters())
    assert abs(moved.value() - functional.cross_entropy(module(TOKENS), CLASSES).item()) < 1e-14
    block = problem.subset("words")
    assert distance(cv.hessian(block).dense(), expected[:18, :18]) < 1e-13


def test_a_masked_row_that_is_used_elsewhere_is_variable_there():
    module = built(lambda: Text(tied=True, padding_idx=-1))
    problem = problem_of(module, TOKENS, CLASSES)
    weight, row = module.words.weight, module.words.weight.detach()[5].clone()

    def value(weights):
        rows = torch.where((TOKENS == 5)[..., None], row, weights[TOKENS])
        return functional.cross_entropy(torch.tanh(rows).mean(1) @ weights.T, CLASSES)

    expected = torch.autograd.functional.hessian(value, weight.detach()).reshape(18, 18)
    assert distance(cv.hessian(problem).dense(), expected) < 1e-13
    cv.spectrum(cv.hessian(problem))


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"sparse": True}, ""),
        ({"scale_grad_by_freq": True}, "scale_grad_by_freq of the embedding 'words.weight' is left out"),
        ({"max_norm": 9.0}, "max_norm=9 of the embedding 'words.weight' is left out"),
    ],
)
def test_options_of_embeddings_leave_the_derivatives_of_the_function(options, note):
    problem, plain = (problem_of(built(lambda o=o: Text(**o)), TOKENS, CLASSES) for o in (options, {}))
    assert note in " ".join(problem.notes)
    for name in EXACT:
        assert distance(MATRICES[name](problem).dense(), MATRICES[name](plain).dense()) < 1e-14
        cv.spectrum(MATRICES[name](problem))


def test_a_bound_on_norms_that_the_weights_exceed_is_refused_by_layer_and_accepted_after_a_pass():
    module = built(lambda: Text(max_norm=0.5))
    with pytest.raises(
        cv.InputError, match=r"layer 'words' \(Embedding\) writes into the parameter 'words.weight' .*once"
    ):
        problem_of(module, TOKENS, CLASSES)
    with torch.no_grad():
        module(TOKENS)
    cv.spectrum(cv.hessian(problem_of(module, TOKENS, CLASSES)))


# ------------------------------------------------------------------------------------------ forwards that differentiate


class Forces(nn.Module):
    """Energy, and minus its derivative by the positions, as interatomic potentials have it."""

    def __init__(self, enables):
        super().__init__()
        self.net, self.enables = nn.Sequential(nn.Linear(4, 3), nn.SiLU(), nn.Linear(3, 1)), enables

    def forward(self, x):
        with torch.set_grad_enabled(self.enables or torch.is_grad_enabled()):
            x = x.detach().requires_grad_()
            energy = self.net(x)
            (slope,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
            return torch.cat([energy, -slope], dim=1)


class Informed(nn.Module):
    """A solution and the residual of its differential equation, of second order."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, t):
        t = t[:, :1].requires_grad_()
        value = self.net(t)
        (speed,) = torch.autograd.grad(value.sum(), t, create_graph=True)
        (force,) = torch.autograd.grad(speed.sum(), t, create_graph=True)
        return torch.cat([value, force + value], dim=1)


class Mapped(nn.Module):
    """The derivative by ``torch.func``."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))

    def forward(self, x):
        return torch.func.vmap(torch.func.grad(lambda point: self.net(point).sum()))(x)


DIFFERENTIATING = {"forces": lambda: Forces(False), "enabled": lambda: Forces(True), "PINN": Informed, "func": Mapped}


@pytest.mark.parametrize("kind", DIFFERENTIATING)
def test_forwards_that_differentiate_have_the_matrices_of_a_double_loop(kind):
    module = built(DIFFERENTIATING[kind])
    targets = drawn(*module(INPUTS).shape, seed=5)
    problem = problem_of(module, targets=targets, loss="mse")
    expected = double_backward(functional.mse_loss(module(INPUTS), targets), module)
    jacobian = loop(module(INPUTS).reshape(-1), list(module.parameters()))
    ggn = 2 * jacobian.T @ jacobian / targets.numel()
    for matrix, wanted in ((cv.hessian(problem), expected), (cv.ggn(problem), ggn)):
        assert distance(matrix.dense(), wanted) < 1e-12
        assert distance(products(matrix), wanted) < 1e-12
        cv.spectrum(cv.pullback(matrix, cv.WeightNorm()))
    assert not problem.outputs().requires_grad


def test_weights_that_reach_the_outputs_without_a_derivative_are_refused_by_name():
    class NoGraph(Forces):
        def forward(self, x):
            x = x.detach().requires_grad_()
            return self.last(torch.autograd.grad(self.net(x).sum(), x, create_graph=self.training)[0])

    module = built(lambda: NoGraph(False))
    module.last = nn.Linear(4, 3).double()
    with pytest.raises(
        cv.InputError, match=r"depend on 'net.0.weight', but PyTorch finds no derivative: .*create_graph"
    ):
        problem_of(module.eval())
    cv.spectrum(cv.hessian(problem_of(module.train())))


class Saving(nn.Module):
    """Activation checkpoints around the first layers, or in a chain."""

    def __init__(self, kind):
        super().__init__()
        self.net, self.last, self.kind = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 3), kind

    def forward(self, x):
        if self.kind == "sequential":
            return checkpoint_sequential([*self.net, self.last], 2, x, use_reentrant=False)
        if self.kind == "twice":
            x = checkpoint(self.net, x, use_reentrant=False)
        return self.last(checkpoint(lambda part: self.net(part), x, use_reentrant=self.kind == "reentrant"))


@pytest.mark.parametrize("kind", ["single", "twice", "sequential"])
def test_activation_checkpoints_change_no_number(kind):
    module = built(lambda: Saving(kind))
    problem = problem_of(module)
    for point in (problem, problem.at(1.25 * problem.weights)):
        torch.nn.utils.vector_to_parameters(point.weights, module.parameters())
        expected = double_backward(functional.cross_entropy(module(INPUTS), LABELS), module)
        assert distance(cv.hessian(point).dense(), expected) < 1e-13
        assert distance(products(cv.ggn(point)), softmax_ggn(module, INPUTS)) < 1e-13
        cv.spectrum(cv.hessian(point))


def test_reentrant_activation_checkpoints_are_refused_in_one_sentence():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of gradients that it drops
        with pytest.raises(
            cv.InputError, match=r"use_reentrant=True in layer '.*' \(.*\) works only with .backward\(\)"
        ):
            problem_of(built(lambda: Saving("reentrant")))
        with pytest.raises(cv.InputError, match=r"use_reentrant=True .* Pass use_reentrant=False"):
            problem_of(built(lambda: nn.Sequential(nn.Linear(4, 4), Saving("reentrant"))))


# ------------------------------------------------------------------------------------------ the layer that is wrong


class Halted(nn.Linear):
    """A part of its output is a constant for the gradient, as moving averages are."""

    def forward(self, x):
        return super().forward(x) * super().forward(x).detach()


class Rounded(nn.Module):
    def forward(self, x):
        return x + (x - x.detach()) ** 2 * 0.5 + (x.detach() ** 2).tanh()


@pytest.mark.parametrize(
    ("build", "layer"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Tanh(), Halted(4, 4)), nn.Linear(4, 3)), "1.1"),
        (lambda: nn.Sequential(nn.Linear(4, 4), Rounded(), nn.Linear(4, 3)), "1"),
        (lambda: nn.Sequential(nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), Halted(4, 3)), "3"),
    ],
)
@pytest.mark.filterwarnings("ignore:PyTorch's gradient is not the derivative")
def test_self_checks_name_the_layer_whose_derivative_is_wrong(build, layer):
    problem = problem_of(built(build))
    for matrix in (cv.hessian, cv.ggn):
        with pytest.raises(cv.SelfCheckError, match=rf"layer '{layer}' \(.*\) has a wrong backward pass .*detach"):
            cv.spectrum(matrix(problem))


def test_right_layers_are_not_blamed():
    layers = (nn.LayerNorm(4), nn.ReLU(), nn.GELU(), Applied(Cubed), nn.Softmax(1))
    for layer in layers:
        function = problem_of(mlp(layer)).function
        assert wrong_layer(function, function.layout.flatten(dict(function.module.named_parameters())), INPUTS) == ""
    text = problem_of(built(lambda: Text(padding_idx=0)), TOKENS, CLASSES)
    assert wrong_layer(text.function, text.weights, TOKENS) == ""
