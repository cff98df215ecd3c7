"""Modules as users have them: what is accepted, what is refused by which name, and that nothing of theirs changes."""

import hashlib
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, parametrizations
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

import curvature as cv
from curvature.matrices import MATRICES
from oracles import distance, legacy_weight_norm

EXACT = ("hessian", "ggn", "empirical_fisher", "gradient_covariance")


FORMS = {"parametrization": parametrizations.weight_norm, "legacy": legacy_weight_norm}


def randomize(module, seed=0):
    """Give every parameter Gaussian values, so that ``g`` is negative in places and never equals ``||v||``."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module.double()


# ------------------------------------------------------------------------------------------------ unusual modules


class Tied(nn.Module):
    """One weight used twice, under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.second.weight = self.first.weight

    def forward(self, inputs):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(inputs)))))


class Unused(nn.Module):
    """A layer that never runs, and a parameter in front of the ones that do."""

    def __init__(self):
        super().__init__()
        self.spare, self.used, self.last = nn.Linear(2, 2), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, inputs):
        return self.last(torch.tanh(self.used(inputs)))


class Buffers(nn.Module):
    """Integer and floating-point buffers that enter the output."""

    def __init__(self):
        super().__init__()
        self.register_buffer("order", torch.tensor([2, 0, 1]))
        self.register_buffer("shift", torch.tensor([0.5, -1.0, 2.0]))
        self.norm, self.last = nn.BatchNorm1d(3), nn.Linear(3, 2)

    def forward(self, inputs):
        return self.last(torch.tanh(self.norm(inputs[:, self.order] + self.shift)))


class Scalar(nn.Module):
    """A parameter without axes, owned by the module itself."""

    def __init__(self):
        super().__init__()
        self.scale, self.last = nn.Parameter(torch.tensor(1.5)), nn.Linear(3, 2)

    def forward(self, inputs):
        return self.scale * self.last(torch.tanh(self.scale * inputs))


def frozen():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    module[0].weight.requires_grad_(False)
    module[2].bias.requires_grad_(False)
    return module


UNUSUAL = {
    "tied": Tied,
    "unused": Unused,
    "buffers": lambda: Buffers().eval(),
    "scalar": Scalar,
    "frozen": frozen,
    "in-place": lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)),
    "in-place-on-the-input": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 2)),
    "embedding": lambda: nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(9, 2)),
}


def dense_references(module, inputs, targets):
    """Mean squared error: whole-data second derivatives, and one gradient per example."""
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    shapes = [p.shape for p in parameters.values()]

    def mean_loss(vector, examples=slice(None)):
        parts = vector.split([shape.numel() for shape in shapes])
        named = {n: part.view(shape) for n, part, shape in zip(parameters, parts, shapes, strict=True)}
        return functional.mse_loss(
            torch.func.functional_call(module, named, (inputs[examples].clone(),)), targets[examples]
        )

    def slope(*examples):
        gradient = torch.autograd.functional.jacobian(lambda vector: mean_loss(vector, *examples), point)
        return gradient.detach()

    point = parameters_to_vector(p.detach() for p in parameters.values())
    outputs = torch.func.functional_call(module, {}, (inputs.clone(),)).detach()
    own = torch.stack([slope(slice(n, n + 1)) for n in range(len(inputs))])
    residual = 2 * (outputs - targets) / outputs.shape[1]

    def linearized(vector):  # the Hessian of the outputs against the residual: what the GGN leaves out
        parts = vector.split([shape.numel() for shape in shapes])
        named = {n: part.view(shape) for n, part, shape in zip(parameters, parts, shapes, strict=True)}
        return (torch.func.functional_call(module, named, (inputs.clone(),)) * residual).sum() / len(inputs)

    hessian = torch.autograd.functional.hessian(mean_loss, point)
    return {
        "hessian": hessian,
        "ggn": hessian - torch.autograd.functional.hessian(linearized, point),
        "empirical_fisher": own.T @ own / len(inputs),
        "gradient_covariance": (own - own.mean(0)).T @ (own - own.mean(0)) / len(inputs),
    }


def unusual(kind):
    module = randomize(UNUSUAL[kind]())
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    if kind == "embedding":
        inputs = torch.randint(5, (5, 3), generator=generator)
    return module, inputs, torch.randn(5, 2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("kind", UNUSUAL)
def test_matrices_of_unusual_modules_equal_the_references(kind, name):
    module, inputs, targets = unusual(kind)
    expected = dense_references(module, inputs, targets)[name]
    operator = MATRICES[name](cv.Problem.from_module(module, loss="mse", data=(inputs, targets), chunk_size=2))
    assert distance(operator.dense(), expected) < 1e-12
    assert distance(operator @ torch.eye(operator.dim, dtype=torch.float64), expected) < 1e-12


def test_tied_parameters_count_once():
    module, inputs, targets = unusual("tied")
    problem = cv.Problem.from_module(module, loss="mse", data=(inputs, targets))
    assert list(problem.layout.slices) == ["first.weight", "first.bias", "second.bias", "last.weight", "last.bias"]


def test_frozen_parameters_are_left_out_and_listed():
    module, inputs, targets = unusual("frozen")
    problem = cv.Problem.from_module(module, loss="mse", data=(inputs, targets))
    assert problem.frozen == ("0.weight", "2.bias")
    assert list(problem.layout.slices) == ["0.bias", "2.weight"]
    assert torch.equal(problem.outputs(), module(inputs).detach())


def test_unused_parameters_are_listed_and_have_zero_rows():
    module, inputs, targets = unusual("unused")
    problem = cv.Problem.from_module(module, loss="mse", data=(inputs, targets))
    assert problem.unused == ("spare.weight", "spare.bias")
    for name in EXACT:
        assert not MATRICES[name](problem).dense()[:6].any()


# ------------------------------------------------------------------------------------------------ the point


def test_flatten_inverts_unflatten_in_the_order_of_the_module(mlp, regression_data):
    module = mlp(3, 4, 2)
    problem = cv.Problem.from_module(module, loss="mse", data=regression_data(5, 3, 2))
    assert torch.equal(problem.weights, parameters_to_vector(module.parameters()).detach())
    named = problem.unflatten(problem.weights)
    assert all(torch.equal(named[name], parameter) for name, parameter in module.named_parameters())
    assert torch.equal(problem.flatten(dict(reversed(named.items()))), problem.weights)
    with pytest.raises(cv.ConfigurationError, match=r"missing \['2.bias'\], unknown \['typo'\]"):
        problem.flatten({("typo" if name == "2.bias" else name): part for name, part in named.items()})
    with pytest.raises(cv.ConfigurationError, match=r"'0.bias' has shape \(4,\), got \(1,\)"):
        problem.flatten(named | {"0.bias": torch.zeros(1)})
    with pytest.raises(cv.ConfigurationError, match=r"shape \(26,\), got \(25,\)"):
        problem.unflatten(problem.weights[1:])


def test_another_point_is_the_problem_of_the_moved_module(mlp, regression_data):
    module, other, data = mlp(3, 4, 2), mlp(3, 4, 2, seed=9), regression_data(5, 3, 2)
    expected = cv.Problem.from_module(other, loss="mse", data=data)
    found = cv.Problem.from_module(module, loss="mse", data=data).at(expected.weights)
    assert found.value() == expected.value()
    assert torch.equal(cv.hessian(found).dense(), cv.hessian(expected).dense())
    with pytest.raises(cv.ConfigurationError, match=r"weights must have shape \(26,\), got \(3,\)"):
        found.at(torch.zeros(3))
    with pytest.raises(cv.NonFiniteError, match="NaN or infinity"):
        found.at(torch.full((26,), torch.nan))


def test_predict_is_differentiable_in_the_weights(mlp, regression_data):
    module, (inputs, targets) = mlp(3, 4, 2), regression_data(5, 3, 2)
    problem = cv.Problem.from_module(module, loss="mse", data=(inputs, targets))
    vector = problem.weights.clone().requires_grad_()
    (found,) = torch.autograd.grad(functional.mse_loss(problem.predict(vector, inputs), targets), vector)
    expected = torch.autograd.grad(functional.mse_loss(module(inputs), targets), module.parameters())
    assert torch.equal(found, parameters_to_vector(expected))


# ------------------------------------------------------------------------------------------------ nothing is changed


class WithState(nn.Module):
    """Everything that a careless tool disturbs: tied, normalized in both forms, hooks, buffers, mixed modes."""

    def __init__(self):
        super().__init__()
        self.new = parametrizations.weight_norm(nn.Linear(3, 3))
        self.old = legacy_weight_norm(nn.Linear(3, 3))
        self.norm = nn.BatchNorm1d(3).eval()
        self.drop = nn.Dropout(0.5).eval()
        self.last = nn.Linear(3, 2)
        self.last.bias.requires_grad_(False)

    def forward(self, inputs):
        inputs.mul_(2.0)  # writes into its input
        return self.last(self.drop(self.norm(torch.tanh(self.old(torch.tanh(self.new(inputs)))))))


def fingerprint(module):
    """All that can be seen of a module from outside."""
    parts = []
    for path, layer in module.named_modules():
        parts += [path, layer.training, id(layer), id(type(layer)), sorted(vars(layer))]
        parts += [{n: value for n, value in vars(type(layer)).items() if n in ("weight", "bias")}]
        for hooks in (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks):
            parts.append([id(hook) for hook in hooks.values()])
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        parts += [name, id(tensor), tensor.requires_grad, tensor.dtype, tensor._version, tensor.data_ptr()]
        parts += [hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest()]
        parts += [None if tensor.grad is None else (id(tensor.grad), tensor.grad.tolist())]
    parts += [hashlib.sha256(str(sorted(module.state_dict().items())).encode()).hexdigest()]
    return parts


def global_state():
    return (
        torch.get_rng_state().tolist(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
    )


@pytest.fixture
def with_state():
    module = WithState().double()
    inputs, targets = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    module(inputs.clone()).sum().backward()  # leaves gradients, and the legacy form's computed weight
    module.last.register_forward_hook(lambda *_: None)
    return module, inputs, targets


def test_the_users_module_data_and_globals_are_never_touched(with_state):
    module, inputs, targets = with_state
    before, data_before, global_before = fingerprint(module), (inputs.clone(), targets.clone()), global_state()
    problem = cv.Problem.from_module(module, loss="mse", data=(inputs, targets), chunk_size=2)
    for name in EXACT:
        operator = MATRICES[name](problem)
        operator.dense()
        operator @ problem.weights
        cv.pullback(operator, problem.chart).dense()
    cv.fisher(problem).dense()
    cv.monte_carlo_fisher(problem, 2, torch.Generator().manual_seed(0)).dense()
    cv.spectrum(cv.pullback(cv.ggn(problem), problem.chart), gradient=True)
    problem.value()
    assert fingerprint(module) == before
    assert torch.equal(inputs, data_before[0])
    assert torch.equal(targets, data_before[1])
    assert global_state() == global_before


def test_the_users_module_is_not_touched_when_it_is_refused(with_state):
    module, inputs, targets = with_state
    before, global_before = fingerprint(module), global_state()
    for data in (
        (inputs[:, :2], targets),
        (inputs, targets[:, :1]),
        (inputs, targets[:3]),
        (inputs * torch.nan, targets),
    ):
        with pytest.raises(cv.InputError):
            cv.Problem.from_module(module, loss="mse", data=data)
    with pytest.raises(cv.ConfigurationError):
        cv.Problem.from_module(module, loss="no such loss", data=(inputs, targets))
    assert fingerprint(module) == before
    assert global_state() == global_before


def test_the_weight_normalized_module_still_works_and_trains_afterwards(with_state):
    module, inputs, targets = with_state
    kind = type(module.new)
    expected = module(inputs.clone())
    cv.hessian(cv.Problem.from_module(module, loss="mse", data=(inputs, targets))).dense()
    assert type(module.new) is kind
    assert torch.equal(module(inputs.clone()), expected)
    with torch.no_grad():
        module.new.parametrizations.weight.original0.mul_(2)
        module.old.weight_g.mul_(2)
    assert not torch.equal(module(inputs.clone()), expected)


def test_later_training_of_the_module_does_not_move_the_problem(mlp, regression_data):
    module, (inputs, targets) = mlp(3, 4, 2), regression_data(5, 3, 2)
    problem = cv.Problem.from_module(module, loss="mse", data=(inputs, targets))
    before = problem.value()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        inputs.zero_()
        targets.zero_()
    assert problem.value() == before


def test_the_global_generator_is_not_advanced_by_reading_a_loader(mlp, regression_data):
    before = torch.get_rng_state()
    loader = DataLoader(TensorDataset(*regression_data(5, 3, 2)), batch_size=2)
    cv.Problem.from_module(mlp(3, 4, 2), loss="mse", data=loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_global_generator_is_not_advanced_by_refusing_a_random_model(regression_data):
    module = FunctionalDropout()
    before = torch.get_rng_state()
    with pytest.raises(cv.SelfCheckError, match="not deterministic"):
        cv.Problem.from_module(module, loss="mse", data=regression_data(5, 3, 2))
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------------------ data


class Pairs(Dataset):
    """Items as many datasets give them: an array and a Python number."""

    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index].numpy(), int(self.targets[index])


@pytest.mark.parametrize("name", EXACT)
def test_datasets_and_sequential_loaders_give_the_matrices_of_their_tensors(name, mlp, classification_data):
    inputs, labels = classification_data(7, 3, 3)
    module = mlp(3, 4, 3)

    def matrix(data):
        return MATRICES[name](cv.Problem.from_module(module, loss="cross-entropy", data=data)).dense()

    expected = matrix((inputs, labels))
    tensors = TensorDataset(inputs, labels)
    assert torch.equal(matrix(tensors), expected)
    assert torch.equal(matrix(Pairs(inputs, labels)), expected)
    assert torch.equal(matrix(DataLoader(tensors, batch_size=3)), expected)  # 3 + 3 + 1
    assert torch.equal(matrix(DataLoader(tensors, batch_size=7, drop_last=True)), expected)  # nothing is dropped
    assert torch.equal(matrix(DataLoader(Pairs(inputs, labels), batch_size=2)), expected)
    batches = BatchSampler(SequentialSampler(tensors), 3, drop_last=False)
    assert torch.equal(matrix(DataLoader(tensors, batch_sampler=batches)), expected)
    assert torch.equal(matrix([inputs, labels]), expected)


def test_loaders_without_batches_are_read_item_by_item_or_refused(mlp, classification_data):
    inputs, labels = classification_data(7, 3, 3)
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=None)
    try:
        problem = cv.Problem.from_module(mlp(3, 4, 3), loss="cross-entropy", data=loader)
    except cv.InputError:
        return
    assert torch.equal(problem.inputs, inputs)


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(3), 0


def loaders():
    data = TensorDataset(torch.zeros(7, 3), torch.zeros(7, dtype=torch.int64))
    empty = TensorDataset(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    twice = RandomSampler(data, replacement=True)
    yield DataLoader(data, sampler=twice), r"selects \(RandomSampler, 7 draws with replacement.*shuffle=False"
    yield DataLoader(data, sampler=RandomSampler(data, num_samples=5)), r"selects \(RandomSampler, 5 draws from 7"
    yield DataLoader(data, batch_size=2, drop_last=True), "drops 1 of 7 examples: pass drop_last=False"
    yield (
        DataLoader(data, sampler=torch.utils.data.SubsetRandomSampler([0, 1])),
        r"shuffles or selects \(SubsetRandomSampler\)",
    )

    class Mine(BatchSampler):
        pass

    yield DataLoader(data, batch_sampler=Mine(SequentialSampler(data), 2, False)), "uses Mine, whose order"
    yield DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), 2, True)), "drops 1 of 7 examples"
    yield Stream(), "iterable dataset has no fixed length"
    yield DataLoader(Stream(), batch_size=2), "iterable dataset has no fixed length"
    yield DataLoader(empty, batch_size=2), "data are empty"
    yield empty, "data are empty"
    yield TensorDataset(torch.zeros(2, 3)), r"item 0 of the dataset must be a pair \(input, target\)"
    yield DataLoader(TensorDataset(torch.zeros(2, 3))), "batch of the data loader must be a pair"


@pytest.mark.parametrize(("data", "message"), [*loaders()])
def test_unsteady_or_empty_data_are_refused_with_the_cause(data, message, mlp):
    with pytest.raises(cv.InputError, match=message):
        cv.Problem.from_module(mlp(3, 4, 3), loss="cross-entropy", data=data)


INPUTS, REALS, LABELS = torch.zeros(4, 3), torch.zeros(4, 2), torch.tensor([0, 1, 1, 0])


@pytest.mark.parametrize(
    ("loss", "data", "message"),
    [
        ("mse", (INPUTS[:0], REALS[:0]), "data are empty"),
        ("mse", (INPUTS, REALS[:3]), "4 inputs but 3 targets"),
        ("mse", (INPUTS,), r"data must be a pair \(input, target\).* got tuple of length 1"),
        ("mse", INPUTS, r"must be a pair of tensors .* got Tensor"),
        ("mse", (INPUTS.index_fill(0, torch.tensor([2]), torch.nan), REALS), "inputs contain NaN.*1 of 4.*example 2"),
        (
            "mse",
            (INPUTS, REALS.index_fill(0, torch.tensor([1, 3]), torch.inf)),
            "targets contain NaN.*2 of 4.*example 1",
        ),
        ("mse", (INPUTS[:, :2], REALS), r"model failed on inputs of shape \(4, 2\): RuntimeError"),
        ("mse", (INPUTS, REALS[:, :1]), r"targets of the outputs' shape \(4, 2\), got \(4, 1\)"),
        (
            "mse",
            (INPUTS, REALS.T.reshape(4, 1, 2)),
            r"got \(4, 1, 2\).* Reshape the targets with y.reshape\(\(4, 2\)\)",
        ),
        ("mse", (INPUTS, LABELS), r"targets of the outputs' shape \(4, 2\), got \(4,\)"),
        ("mse", (INPUTS, REALS + 0j), "real targets, got torch.complex64"),
        ("bce", (INPUTS, REALS + 1.5), r"must be in \[0, 1\], got 1.5 to 1.5"),
        ("bce", (INPUTS, REALS - 0.5), r"must be in \[0, 1\], got -0.5 to -0.5"),
        ("cross-entropy", (INPUTS, LABELS + 1), r"classes 0 to 1 \(the model has 2 outputs\), got 1 to 2"),
        ("cross-entropy", (INPUTS, LABELS - 1), r"classes 0 to 1 \(the model has 2 outputs\), got -1 to 0"),
        ("cross-entropy", (INPUTS, LABELS[:, None]), r"integers of shape \(4,\), got torch.int64 of shape \(4, 1\)"),
        ("cross-entropy", (INPUTS, LABELS.bool()), r"integers of shape \(4,\), got torch.bool"),
        ("cross-entropy", (INPUTS, LABELS.float()), r"class probabilities \(shape \(4, 2\)\), got torch.float32"),
        ("cross-entropy", (INPUTS, REALS), "probabilities must be >= 0 and sum to 1"),
        ("cross-entropy", (INPUTS, LABELS * 0 - 100), "every target equals ignore_index = -100"),
        (nn.CrossEntropyLoss(torch.ones(3)), (INPUTS, LABELS), "3 class weights were given, the model has 2 outputs"),
        (nn.CrossEntropyLoss(torch.tensor([0.0, 1.0])), (INPUTS, 0 * LABELS), "denominator of the mean loss is zero"),
        (
            lambda f, y: (f - y) ** 2,
            (INPUTS, REALS),
            r"'<lambda>' must return one scalar per example, got shape \(2,\)",
        ),
        (lambda f, y: f @ y.T @ f, (INPUTS, LABELS), r"'<lambda>' failed on one example \(output of shape \(2,\)"),
    ],
)
def test_data_that_do_not_fit_are_refused_with_the_numbers(loss, data, message, mlp):
    with pytest.raises(cv.InputError, match=message):
        cv.Problem.from_module(mlp(3, 2), loss=loss, data=data)


def test_one_column_of_targets_is_never_broadcast_against_a_vector():
    """``(N,)`` against ``(N, 1)`` makes an ``N x N`` table in PyTorch's MSE, with only a warning."""

    class Squeezed(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs).squeeze(-1)

    with pytest.raises(cv.InputError, match=r"shape \(4,\), got \(4, 1\).*y.reshape\(\(4,\)\)"):
        cv.Problem.from_module(Squeezed(3, 1), loss="mse", data=(INPUTS, REALS[:, :1]))
    with pytest.raises(cv.InputError, match=r"shape \(4, 1\), got \(4,\).*y.reshape\(\(4, 1\)\)"):
        cv.Problem.from_module(nn.Linear(3, 1), loss="mse", data=(INPUTS, REALS[:, 0]))
    with pytest.raises(cv.InputError, match=r"outputs of shape \(N, C\).*loss='binary-cross-entropy'"):
        cv.Problem.from_module(Squeezed(3, 1), loss="cross-entropy", data=(INPUTS, LABELS))


# ------------------------------------------------------------------------------------------------ losses


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("focal", "loss 'focal' is unknown; choose one of cross-entropy, binary-cross-entropy"),
        ("focal-sum", "loss 'focal-sum' is unknown; .*-sum at the end of a name"),
        (nn.MSELoss(reduction="none"), "reduction='none'"),
        (
            nn.CrossEntropyLoss(weight=nn.Parameter(torch.ones(3))),
            "weight of the loss CrossEntropyLoss requires",
        ),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(3, requires_grad=True)), r"constant, pass pos_weight\.detach\(\)"),
        (nn.BCEWithLogitsLoss(pos_weight=-torch.ones(2)), "pos_weight must hold finite numbers >= 0, not all zero"),
        (nn.CosineEmbeddingLoss(), "loss module CosineEmbeddingLoss is not supported by its type; pass a callable"),
        (3, "loss must be a name, a Loss, a torch.nn loss or a callable, got int"),
    ],
)
def test_losses_that_are_not_known_are_refused(loss, message, mlp):
    with pytest.raises(cv.ConfigurationError, match=message):
        cv.Problem.from_module(mlp(3, 2), loss=loss, data=(INPUTS, REALS))


@pytest.mark.parametrize("weight", [torch.tensor([1.0, -1.0]), torch.zeros(2), torch.tensor([1.0, torch.nan])])
def test_class_weights_that_are_no_weights_are_refused(weight):
    with pytest.raises(cv.ConfigurationError, match="class weights must be a vector of finite numbers >= 0"):
        cv.CrossEntropy(weight)


@pytest.mark.parametrize("smoothing", [-0.1, 1.1])
def test_smoothing_outside_the_unit_interval_is_refused(smoothing):
    with pytest.raises(cv.ConfigurationError, match=r"label_smoothing must be in \[0, 1\]"):
        cv.CrossEntropy(label_smoothing=smoothing)


@pytest.mark.parametrize(
    "losses",
    [
        ("cross-entropy", nn.CrossEntropyLoss(), cv.CrossEntropy()),
        ("mse", "mean-squared-error", nn.MSELoss(), cv.MeanSquaredError()),
        ("bce", "binary-cross-entropy", nn.BCEWithLogitsLoss(), cv.BinaryCrossEntropy()),
    ],
)
def test_names_modules_and_classes_of_one_loss_are_the_same(losses, mlp, classification_data):
    inputs, labels = classification_data(5, 3, 2)
    data = inputs, labels if losses[0] == "cross-entropy" else functional.one_hot(labels).double()
    first, *others = (cv.hessian(cv.Problem.from_module(mlp(3, 2), loss=loss, data=data)).dense() for loss in losses)
    assert all(torch.equal(other, first) for other in others)


# ------------------------------------------------------------------------------------------------ models


class FunctionalDropout(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)

    def forward(self, inputs):
        return functional.dropout(super().forward(inputs), training=True)


class Centred(nn.Linear):
    """Batch normalization in disguise: no module says so."""

    def forward(self, inputs):
        return super().forward(inputs - inputs.mean(dim=0))


class PairedUp(nn.Linear):
    """Each example sees its neighbour, so that half the data look self-contained."""

    def forward(self, inputs):
        if len(inputs) % 2:
            return super().forward(inputs)
        pairs = inputs.reshape(-1, 2, inputs.shape[1])
        return super().forward((pairs + pairs.flip(1)).reshape(inputs.shape))


class Undifferentiable(nn.Linear):
    """Overwrites what the backward pass of tanh needs: PyTorch itself refuses."""

    def forward(self, inputs):
        return torch.tanh(super().forward(inputs)).mul_(2.0)


class Summed(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs).sum(dim=0)


class Two(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs), inputs


class Constant(nn.Linear):
    def forward(self, inputs):
        return inputs[:, :2]


class Logarithm(nn.Linear):
    def forward(self, inputs):
        return torch.log(super().forward(inputs) * 0 + inputs[:, :2] + 1)


def complex_parameter():
    module = nn.Linear(3, 2)
    module.phase = nn.Parameter(torch.zeros(1, dtype=torch.complex64))
    return module


def poisoned(value):
    module = nn.Sequential(nn.Linear(3, 2))
    module[0].bias.data[1] = value
    return module


def all_frozen():
    return nn.Linear(3, 2).requires_grad_(False)


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1)), "InputError", r"layer '1' \(Dropout\) is random"),
        (lambda: nn.Sequential(nn.Dropout2d(0.1)), "InputError", r"layer '0' \(Dropout2d\) is random"),
        (lambda: nn.Sequential(nn.Linear(3, 2), nn.RReLU()), "InputError", r"layer '1' \(RReLU\) is random"),
        (
            lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)),
            "InputError",
            r"'0' \(BatchNorm1d\) is in training",
        ),
        (
            lambda: nn.Sequential(nn.InstanceNorm1d(3, track_running_stats=True)),
            "InputError",
            r"'0' \(InstanceNorm1d\) would update its running statistics",
        ),
        (lambda: nn.LSTM(3, 2, 2, dropout=0.1), "InputError", r"the module \(LSTM\) is random in training mode"),
        (
            lambda: nn.Sequential(nn.Linear(3, 2), nn.LazyLinear(2)),
            "InputError",
            r"layer '1' \(LazyLinear\) is not init",
        ),
        (lambda: FunctionalDropout(), "SelfCheckError", r"the module \(FunctionalDropout\) draws random"),
        (
            lambda: Centred(3, 2),
            "SelfCheckError",
            r"depends on the other .* the whole graph is one example: pass cv\.Packed",
        ),
        (lambda: PairedUp(3, 2), "SelfCheckError", "depends on the other examples in its batch"),
        (lambda: Undifferentiable(3, 2), "InputError", "modified by an inplace operation"),
        (lambda: Summed(3, 2), "InputError", r"one output per example \(4 examples\), got shape \(2,\)"),
        (lambda: Two(3, 2), "InputError", r"a tuple of \(4, 2\), \(4, 3\), not one tensor"),
        (lambda: Constant(3, 2), "InputError", "does not depend on any trainable parameter"),
        (lambda: Logarithm(3, 2), "NonFiniteError", "output is NaN or infinite, first for example 1"),
        (lambda: poisoned(torch.nan), "InputError", "parameter '0.bias' contains NaN or infinity"),
        (lambda: poisoned(torch.inf), "InputError", "parameter '0.bias' contains NaN or infinity"),
        (complex_parameter, "InputError", "parameter 'phase' is complex"),
        (all_frozen, "InputError", "no parameter with requires_grad=True"),
        (lambda: nn.Flatten(), "InputError", "module has no parameters"),
        (lambda: 3, "InputError", "must be a torch.nn.Module, got int"),
        (lambda: functional.relu, "InputError", "must be a torch.nn.Module, got function"),
    ],
)
def test_models_that_mean_nothing_are_refused_by_name(module, error, message):
    inputs = torch.tensor([[0.5, 0.2, 1.0], [-2.0, 1.0, 0.3], [0.1, 0.7, -0.4], [1.0, 0.0, 0.2]])
    with pytest.raises(getattr(cv, error), match=message):
        cv.Problem.from_module(module(), loss="mse", data=(inputs, REALS))


def test_layers_that_are_random_only_in_training_are_accepted_in_eval_mode(regression_data):
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.Dropout(0.5), nn.RReLU(), nn.Linear(4, 2)).eval()
    inputs, targets = regression_data(5, 3, 2)
    problem = cv.Problem.from_module(module, loss="mse", data=(inputs, targets))
    assert torch.allclose(problem.outputs(), module.double()(inputs).detach(), rtol=1e-14)
    assert nn.Dropout(0).training  # a dropout of probability zero is no dropout
    cv.Problem.from_module(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.0)), loss="mse", data=(inputs, targets))


def test_torchscript_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(nn.Linear(3, 2), INPUTS)
    with pytest.raises(cv.InputError, match="TorchScript modules cannot be differentiated twice here"):
        cv.Problem.from_module(scripted, loss="mse", data=(INPUTS, REALS))


def test_modules_that_cannot_be_copied_are_refused(mlp):
    module = mlp(3, 2)
    module.lock = threading.Lock()
    with pytest.raises(cv.InputError, match=r"module cannot be copied \(TypeError: cannot pickle '_thread.lock'"):
        cv.Problem.from_module(module, loss="mse", data=(INPUTS, REALS))


class Root(nn.Linear):
    """Finite at zero, with an infinite slope."""

    def forward(self, inputs):
        return super().forward(inputs).sqrt()


def test_gradients_that_are_not_finite_are_refused_by_parameter():
    module = Root(3, 2).double()
    with torch.no_grad():
        module.weight.zero_()
        module.bias.copy_(torch.tensor([0.0, 1.0]))
    problem = cv.Problem.from_module(module, loss="mse", data=(INPUTS + 1, REALS + 1))
    with pytest.raises(cv.NonFiniteError, match="gradient is NaN or infinite in weight, bias"):
        problem.gradient()
    with pytest.raises(cv.NonFiniteError):
        cv.hessian(problem).dense()
    with pytest.raises(cv.NonFiniteError):
        cv.ggn(problem).dense()


def test_precision_and_chunks_are_checked(mlp):
    module = mlp(3, 2)
    with pytest.raises(cv.ConfigurationError, match=r"float64 or torch.float32, got torch.float16"):
        cv.Problem.from_module(module, loss="mse", data=(INPUTS, REALS), dtype=torch.float16)
    with pytest.raises(cv.ConfigurationError, match="chunk_size must be at least 1, got 0"):
        cv.Problem.from_module(module, loss="mse", data=(INPUTS, REALS), chunk_size=0)
    mixed = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2).double())
    with pytest.raises(cv.InputError, match="several dtypes"):
        cv.Problem.from_module(mixed, loss="mse", data=(INPUTS, REALS), dtype=None)


def test_a_single_precision_module_is_measured_in_double_precision(mlp, regression_data):
    module, data = mlp(3, 4, 2).float(), regression_data(5, 3, 2)
    problem = cv.Problem.from_module(module, loss="mse", data=data)
    assert problem.dtype == torch.float64
    assert torch.equal(problem.weights, parameters_to_vector(module.parameters()).detach().double())
    assert next(module.parameters()).dtype == torch.float32
    assert cv.Problem.from_module(module, loss="mse", data=data, dtype=None).dtype == torch.float32


# ------------------------------------------------------------------------------------------------ weight normalization


class Normalized(nn.Module):
    """Two normalized layers with a plain one between; ``kind`` says which layers."""

    def __init__(self, kind, normalize, dim):
        super().__init__()
        layers = {
            "linear": lambda: (nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 2)),
            "conv1d": lambda: (nn.Conv1d(2, 3, 2), nn.Conv1d(3, 2, 1), nn.Conv1d(2, 2, 2)),
            "conv2d": lambda: (nn.Conv2d(1, 2, 2), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, (1, 2))),
        }[kind]()
        self.first, self.plain, self.last = layers
        self.first, self.last = normalize(self.first, dim=dim), normalize(self.last, dim=dim)

    def forward(self, inputs):
        outputs = self.last(torch.tanh(self.plain(torch.tanh(self.first(inputs)))))
        return outputs.flatten(1)


SHAPES = {"linear": (5, 3), "conv1d": (5, 2, 4), "conv2d": (5, 1, 3, 4)}


def normalized_data(kind, module):
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(SHAPES[kind], generator=generator, dtype=torch.float64)
    with torch.no_grad():
        return inputs, torch.randn(module(inputs).shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d"])
def test_weight_normalized_layers_become_weights_and_a_chart_at_their_g_and_v(kind, dim, form):
    module = randomize(Normalized(kind, FORMS[form], dim))
    inputs, targets = normalized_data(kind, module)
    problem = cv.Problem.from_module(module, loss="mse", data=(inputs, targets))
    chart = problem.chart.at(problem.layout, problem.weights)
    own = parameters_to_vector(module.parameters()).detach()
    assert isinstance(problem.chart, cv.WeightNorm)
    assert torch.allclose(problem.outputs(), module(inputs).detach(), rtol=1e-14, atol=1e-15)
    assert torch.allclose(chart.coordinates, own, rtol=1e-14, atol=0)
    assert torch.allclose(chart.to_weights(own), problem.weights, rtol=1e-14, atol=1e-15)
    assert (own[chart.layout.slices["first.weight.g"]] < 0).any() or dim is None  # negative g is among the cases


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d"])
def test_gradient_in_the_chart_is_the_gradient_of_the_normalized_module(kind, dim, form):
    """First derivatives of PyTorch's weight norm are right; only the second are not."""
    module = randomize(Normalized(kind, FORMS[form], dim))
    inputs, targets = normalized_data(kind, module)
    problem = cv.Problem.from_module(module, loss="mse", data=(inputs, targets))
    parts = torch.autograd.grad(functional.mse_loss(module(inputs), targets), module.parameters())
    found = cv.pullback(cv.ggn(problem), problem.chart).facts.gradient()
    assert distance(found, parameters_to_vector(parts)) < 1e-13


@pytest.mark.parametrize("form", FORMS)
def test_modules_that_were_run_before_are_unwrapped_too(form):
    """The legacy form keeps a computed tensor in every layer it was run on, which PyTorch cannot copy."""
    module = randomize(Normalized("linear", FORMS[form], 0))
    inputs, targets = normalized_data("linear", module)
    functional.mse_loss(module(inputs), targets).backward()
    problem = cv.Problem.from_module(module, loss="mse", data=(inputs, targets))
    assert torch.allclose(problem.outputs(), module(inputs).detach(), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("form", FORMS)
def test_frozen_normalized_layers_are_left_out_with_their_g_and_v(form):
    module = randomize(Normalized("linear", FORMS[form], 0))
    for parameter in module.first.parameters():
        parameter.requires_grad_(False)
    inputs, targets = normalized_data("linear", module)
    problem = cv.Problem.from_module(module, loss="mse", data=(inputs, targets))
    chart = problem.chart.at(problem.layout, problem.weights)
    trainable = parameters_to_vector(p for p in module.parameters() if p.requires_grad).detach()
    assert set(problem.frozen) == {"first.weight", "first.bias"}
    assert torch.allclose(problem.outputs(), module(inputs).detach(), rtol=1e-14, atol=1e-15)
    assert torch.allclose(chart.coordinates, trainable, rtol=1e-14, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_a_module_whose_normalized_layers_are_all_frozen_has_no_chart(form):
    module = randomize(Normalized("linear", FORMS[form], 0))
    for layer in (module.first, module.last):
        layer.requires_grad_(False)
    inputs, targets = normalized_data("linear", module)
    problem = cv.Problem.from_module(module, loss="mse", data=(inputs, targets))
    assert isinstance(problem.chart, cv.Standard)
    assert list(problem.layout.slices) == ["plain.weight", "plain.bias"]
    assert torch.allclose(problem.outputs(), module(inputs).detach(), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("frozen", ["g", "v", "g of the first layer"])
@pytest.mark.parametrize("form", FORMS)
def test_with_one_of_g_and_v_frozen_the_other_is_a_coordinate(form, frozen):
    """Against differences of the module's own gradient: the second derivative of torch._weight_norm is wrong."""
    module = randomize(Normalized("linear", FORMS[form], 0))
    ends = ("original1", "weight_v") if frozen == "v" else ("original0", "weight_g")
    parameters = [p for n, p in module.named_parameters() if n.endswith(ends)]
    for parameter in parameters[:1] if "first" in frozen else parameters:
        parameter.requires_grad_(False)
    inputs, targets = normalized_data("linear", module)
    problem = cv.Problem.from_module(module, loss="mse", data=(inputs, targets))
    trainable = [p for p in module.parameters() if p.requires_grad]
    chart = problem.chart.at(problem.layout, problem.weights)
    assert problem.chart.gauge.endswith({"g": "g frozen", "v": "v frozen"}.get(frozen, "first.weight.g frozen"))
    assert torch.allclose(chart.coordinates, parameters_to_vector(trainable).detach(), rtol=1e-14, atol=0)

    def slope(step):
        for parameter, start in zip(trainable, values, strict=True):
            parameter.data = start + step
        return parameters_to_vector(torch.autograd.grad(functional.mse_loss(module(inputs), targets), trainable))

    values, step = [parameter.detach().clone() for parameter in trainable], 1e-5
    expected = (slope(step) - slope(-step)) / (2 * step)
    product = cv.pullback(cv.hessian(problem), problem.chart) @ torch.ones(chart.dim, 1, dtype=torch.float64)
    assert torch.allclose(product[:, 0], expected, rtol=1e-6, atol=1e-8)
    part = problem.subset("plain")
    assert part.chart.at(part.layout, part.weights).dim == part.dim


@pytest.mark.parametrize("part", ["g", "v"])
def test_a_frozen_g_or_v_freezes_no_layer_of_that_name(part):
    module = nn.Module()
    module.first = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    setattr(module, part, nn.Linear(4, 2))
    module.forward = lambda inputs: getattr(module, part)(torch.tanh(module.first(inputs)))
    getattr(module.first.parametrizations.weight, {"g": "original0", "v": "original1"}[part]).requires_grad_(False)
    problem = cv.Problem.from_module(module, loss="mse", data=(torch.randn(5, 3), torch.randn(5, 2)))
    chart = problem.chart.at(problem.layout, problem.weights)
    assert chart.dim == sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("form", FORMS)
def test_only_layers_that_were_normalized_are_normalized_in_other_gauges(form):
    module = randomize(Normalized("linear", FORMS[form], 0))
    problem = cv.Problem.from_module(module, loss="mse", data=normalized_data("linear", module))
    names = list(cv.WeightNorm(stretch=2.0).at(problem.layout, problem.weights).layout.slices)
    assert [name for name in names if name.endswith((".g", ".v"))] == [
        "first.weight.g",
        "first.weight.v",
        "last.weight.g",
        "last.weight.v",
    ]
    assert "plain.weight" in names


class TwoNames(nn.Module):
    """One normalized module under two names, or two modules that share ``g`` and ``v``."""

    def __init__(self, normalize, shared):
        super().__init__()
        self.first = normalize(nn.Linear(3, 3))
        self.second = normalize(nn.Linear(3, 3)) if shared else self.first
        self.last = nn.Linear(3, 2)
        if shared and normalize is legacy_weight_norm:
            self.second.weight_g, self.second.weight_v = self.first.weight_g, self.first.weight_v
        elif shared:
            mine, other = self.second.parametrizations.weight, self.first.parametrizations.weight
            mine.original0, mine.original1 = other.original0, other.original1

    def forward(self, inputs):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(inputs)))))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shared", [False, True])
def test_normalized_weights_used_twice_count_once(shared, form, regression_data):
    module = randomize(TwoNames(FORMS[form], shared))
    inputs, targets = regression_data(5, 3, 2)
    problem = cv.Problem.from_module(module, loss="mse", data=(inputs, targets))
    chart = problem.chart.at(problem.layout, problem.weights)
    own = parameters_to_vector(module.parameters()).detach()
    parts = torch.autograd.grad(functional.mse_loss(module(inputs), targets), module.parameters())
    assert torch.allclose(problem.outputs(), module(inputs).detach(), rtol=1e-13)
    assert torch.allclose(chart.coordinates, own, rtol=1e-14, atol=0)
    pulled = chart.pull(problem.gradient()[:, None])[:, 0]
    assert distance(pulled, parameters_to_vector(parts)) < 1e-13


@pytest.mark.parametrize("form", FORMS)
def test_sharing_only_one_of_g_and_v_is_refused(form, regression_data):
    for which in (0, 1):
        module = randomize(TwoNames(FORMS[form], shared=True))
        fresh = nn.Parameter(torch.ones_like(list(module.second.parameters())[1 + which]))
        if form == "legacy":
            setattr(module.second, ("weight_g", "weight_v")[which], fresh)
        else:
            setattr(module.second.parametrizations.weight, ("original0", "original1")[which], fresh)
        with pytest.raises(cv.InputError, match=r"share (v but not g|g but not v): tie both or neither"):
            cv.Problem.from_module(module, loss="mse", data=regression_data(5, 3, 2))


@pytest.mark.parametrize("form", FORMS)
def test_a_zero_row_of_v_is_an_error_that_names_layer_and_row(form):
    module = randomize(Normalized("linear", FORMS[form], 0))
    data = normalized_data("linear", module)
    v = next(p for n, p in module.last.named_parameters() if n.endswith(("original1", "weight_v")))
    v.data[1] = 0
    with pytest.raises(cv.InputError, match=r"layer 'last': row 1 of v \(weight\) is zero"):
        cv.Problem.from_module(module, loss="mse", data=data)


def test_zero_g_is_accepted():
    """The weights are zero there, but weight normalization is defined: ``v`` has a direction."""
    module = randomize(Normalized("linear", FORMS["parametrization"], 0))
    data = normalized_data("linear", module)
    module.first.parametrizations.weight.original0.data[2] = 0
    problem = cv.Problem.from_module(module, loss="mse", data=data)
    chart = problem.chart.at(problem.layout, problem.weights)
    own = parameters_to_vector(module.parameters()).detach()
    assert torch.allclose(chart.coordinates, own, rtol=1e-14, atol=0)
    parts = torch.autograd.grad(functional.mse_loss(module(data[0]), data[1]), module.parameters())
    assert distance(chart.pull(problem.gradient()[:, None])[:, 0], parameters_to_vector(parts)) < 1e-13


def test_weight_norm_stacked_on_another_parametrization_is_refused(regression_data):
    layer = parametrizations.weight_norm(parametrizations.orthogonal(nn.Linear(3, 3)))
    with pytest.raises(cv.InputError, match="layer '0': weight_norm of 'weight' is combined with other param"):
        cv.Problem.from_module(nn.Sequential(layer), loss="mse", data=regression_data(5, 3, 3))


def test_other_parametrizations_are_kept_as_they_are(regression_data):
    inputs, targets = regression_data(5, 3, 3)
    module = nn.Sequential(parametrizations.orthogonal(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 3)).double()
    problem = cv.Problem.from_module(module, loss="mse", data=(inputs, targets))
    parts = torch.autograd.grad(functional.mse_loss(module(inputs), targets), module.parameters())
    assert torch.allclose(problem.outputs(), module(inputs).detach(), rtol=1e-13)
    assert distance(problem.gradient(), parameters_to_vector(parts)) < 1e-13


# ------------------------------------------------------------------------------------------------ some parameters


def positions(layout, names):
    """Where the entries of these names are in a flat vector."""
    return torch.cat([torch.arange(layout.dim)[layout.slices[name]] for name in names])


def moved(problem, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return problem.at(problem.weights + torch.randn(problem.dim, generator=generator, dtype=torch.float64))


SUBSETS = {
    "a layer": ("frozen", "2", ["2.weight"]),
    "biases": ("in-place", "bias$", ["0.bias", "2.bias"]),
    "one parameter": ("in-place", "0.weight", ["0.weight"]),
    "everything": ("buffers", "", ["norm.weight", "norm.bias", "last.weight", "last.bias"]),
    "a tied weight": ("tied", r"first\.weight|second\.bias", ["first.weight", "second.bias"]),
    "all but a tied weight": ("tied", r"bias|last", ["first.bias", "second.bias", "last.weight", "last.bias"]),
    "a scalar": ("scalar", "scale", ["scale"]),
    "with unused parameters": ("unused", "spare|last", ["spare.weight", "spare.bias", "last.weight", "last.bias"]),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("kind", SUBSETS)
def test_a_matrix_of_a_subset_is_the_principal_block_of_the_whole_one(kind, name):
    module, pattern, names = SUBSETS[kind]
    module, inputs, targets = unusual(module)
    problem = moved(cv.Problem.from_module(module, loss="mse", data=(inputs, targets), chunk_size=2))
    part = problem.subset(pattern)
    rows = positions(problem.layout, names)
    assert list(part.layout.slices) == names
    assert torch.equal(part.weights, problem.weights[rows])
    assert part.value() == problem.value()
    for method in ("generic", "auto"):
        block = MATRICES[name](problem, method=method).dense()[rows][:, rows]
        assert distance(MATRICES[name](part, method=method).dense(), block) < 1e-13
    assert distance(part.gradient(), problem.gradient()[rows]) < 1e-13


def test_a_subset_is_frozen_at_the_present_values_and_leaves_the_whole_problem_alone(mlp, regression_data):
    problem = moved(cv.Problem.from_module(mlp(3, 4, 2), loss="mse", data=regression_data(5, 3, 2)))
    outputs, before = problem.outputs(), {name: part.clone() for name, part in problem.model.state_dict().items()}
    part = problem.subset("^0").subset("bias")
    assert part.frozen == ("2.weight", "2.bias", "0.weight")
    assert list(part.layout.slices) == ["0.bias"]
    assert torch.equal(part.outputs(), outputs)
    weights = problem.weights.clone()
    weights[problem.layout.slices["0.bias"]] = 2.0
    assert torch.equal(part.at(torch.full((4,), 2.0)).outputs(), problem.at(weights).outputs())
    assert all(torch.equal(tensor, before[name]) for name, tensor in problem.model.state_dict().items())


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("pattern", ["0", r"^2|5\.bias"])
def test_a_subset_of_a_convolutional_network_takes_the_structured_route(pattern, name, cnn, generator):
    data = torch.randn(5, 1, 4, 4, generator=generator, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    problem = moved(cv.Problem.from_module(cnn(), loss="cross-entropy", data=data))
    part = problem.subset(pattern)
    rows = positions(problem.layout, part.layout.slices)
    block = MATRICES[name](problem, method="generic").dense()[rows][:, rows]
    assert distance(MATRICES[name](part, method="structured").dense(), block) < 1e-13


def test_a_layer_is_chosen_by_its_exact_name_before_patterns_are_tried():
    module = randomize(nn.Sequential(*[nn.Linear(2, 2) for _ in range(12)]))
    problem = cv.Problem.from_module(module, loss="mse", data=(torch.ones(3, 2), torch.ones(3, 2)))
    assert list(problem.subset("1").layout.slices) == ["1.weight", "1.bias"]
    assert list(problem.subset("1.bias").layout.slices) == ["1.bias"]
    assert list(problem.subset("^1").layout.slices)[::2] == ["1.weight", "10.weight", "11.weight"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["hessian", "ggn"])
@pytest.mark.parametrize("pattern", ["0", "weight", r"2\.weight|0\.bias"])
def test_a_subset_of_a_weight_normalized_module_keeps_its_gauge(pattern, name, form, regression_data):
    module = randomize(nn.Sequential(FORMS[form](nn.Linear(3, 4)), nn.Tanh(), FORMS[form](nn.Linear(4, 2), dim=1)))
    problem = cv.Problem.from_module(module, loss="mse", data=regression_data(5, 3, 2))
    part = problem.subset(pattern)
    chart = problem.chart.at(problem.layout, problem.weights)
    assert part.chart.label == "weight-norm (checkpoint)"
    assert set(part.chart.v) == set(part.layout.slices) & {"0.weight", "2.weight"}
    names = list(part.chart.at(part.layout, part.weights).layout.slices)
    rows = positions(chart.layout, names)
    block = cv.pullback(MATRICES[name](problem), problem.chart).dense()[rows][:, rows]
    assert distance(cv.pullback(MATRICES[name](part), part.chart).dense(), block) < 1e-13


def test_a_subset_without_normalized_weights_has_the_standard_chart(regression_data):
    module = randomize(nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)))
    problem = cv.Problem.from_module(module, loss="mse", data=regression_data(5, 3, 2))
    assert isinstance(problem.subset("2").chart, cv.Standard)
    assert isinstance(problem.subset("bias").chart, cv.Standard)


@pytest.mark.parametrize("kept", [r"first\.weight", "last"])
def test_a_subset_of_a_module_with_a_tied_weight_norm_is_a_block(kept, regression_data):
    module = randomize(TwoNames(FORMS["parametrization"], shared=True))
    problem = moved(cv.Problem.from_module(module, loss="mse", data=regression_data(5, 3, 2)))
    part = problem.subset(kept)
    rows = positions(problem.layout, part.layout.slices)
    assert torch.equal(part.outputs(), problem.outputs())
    assert distance(cv.hessian(part).dense(), cv.hessian(problem).dense()[rows][:, rows]) < 1e-13
    assert list(part.aliases.values()) == (["first.weight"] if kept != "last" else [])


def test_a_subset_that_matches_nothing_names_the_parameters():
    module, inputs, targets = unusual("unused")
    problem = cv.Problem.from_module(module, loss="mse", data=(inputs, targets))
    with pytest.raises(cv.InputError, match=r"'conv' matches no trainable parameter; the names are spare.weight, "):
        problem.subset("conv")
    with pytest.raises(cv.InputError, match=r"'\(' is not a regular expression"):
        problem.subset("(")
    with pytest.raises(cv.InputError, match=r"does not depend on spare.weight, spare.bias: there is nothing to diff"):
        problem.subset("spare")


# ------------------------------------------------------------------------------------------------ what is printed


def test_a_problem_prints_in_one_line_and_as_a_table(regression_data):
    module = randomize(nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)))
    module[2].bias.requires_grad_(False)
    problem = cv.Problem.from_module(module, loss="mse", data=regression_data(5, 3, 2))
    assert repr(problem) == (
        "Problem(Sequential, 24 weights, 5 examples, mean-squared-error, chart WeightNorm('checkpoint'), float64, cpu)"
    )
    table = problem._repr_html_()
    for row in (("model", "Sequential"), ("weights", "24"), ("frozen", "2.bias"), ("loss", "mean-squared-error")):
        assert f"<tr><th>{row[0]}</th><td>{row[1]}</td></tr>" in table
    assert "<th>chart</th><td>weight-norm (checkpoint)</td>" in table
    assert "unused" not in table


def test_a_table_escapes_what_a_user_has_named(regression_data):
    def loss(output, target):
        return ((output - target) ** 2).sum()

    loss.__name__ = "<script>"
    problem = cv.Problem.from_module(nn.Linear(3, 2), loss=loss, data=regression_data(5, 3, 2))
    assert "<script>" not in problem._repr_html_()
    assert "&lt;script&gt;" in problem._repr_html_()
