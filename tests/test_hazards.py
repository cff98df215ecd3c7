"""Inputs that spoil a curvature: each is computed right, or refused by name. In the order of the hazards' table.

Rows that other files cover fully: dropout, batch norm, shuffling and drop_last by module or sampler, frozen, unused,
tied parameters, integer buffers and in-place activations against dense references, and weight norm in both forms
(test_problem); ReLU kinks, random second derivatives, products that are not finite (test_checks); denominators of every
named loss, Monte Carlo against exact Fisher, factors 2 and 1/2 of squared errors, order of the coordinates
(test_matrices); eigenvalues at 1e-300 and 1e+300 (test_spectrum).
"""

import contextlib
import copy
import gc
import hashlib
import importlib
import random
import warnings
import weakref
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import psutil
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize
from torch.utils.data import DataLoader, Dataset, TensorDataset

import curvature as cv
from curvature import report
from curvature.cli.loading.weights import apply_weights
from curvature.linalg import lapack
from curvature.linalg.rank import formula_rank
from curvature.matrices import MATRICES
from curvature.studies import training

EXACT = ("hessian", "ggn", "fisher", "empirical_fisher", "gradient_covariance")
GENERATOR = torch.Generator().manual_seed(1)
INPUTS = torch.randn(8, 3, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.tensor([0, 1, 1, 0, 1, 1, 0, 1])
REALS = torch.randn(8, 2, generator=GENERATOR, dtype=torch.float64)


def seed():
    return torch.Generator().manual_seed(0)


def seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().double()


def around(*middle):
    """Two linear layers, and something between."""
    return seeded(lambda: nn.Sequential(nn.Linear(3, 4), *middle, nn.Linear(4, 2)))


def problem_of(module, inputs=INPUTS, targets=LABELS, loss="cross-entropy", **options):
    return cv.Problem.from_module(module, loss=loss, data=(inputs, targets), **options)


def distance(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def of_function(scalar, point):
    """Gradient's Jacobian by plain autograd: no part of the package."""
    return torch.autograd.functional.hessian(scalar, point)


def off_differences(problem, step=3e-6):
    """How far the Hessian is from central differences of the gradient, in three random directions."""
    block = torch.randn(problem.dim, 3, generator=seed(), dtype=problem.dtype)
    moved = [[problem.gradient(problem.weights + sign * step * v) for sign in (1, -1)] for v in block.T]
    expected = torch.stack([(ahead - behind) / (2 * step) for ahead, behind in moved], dim=1)
    return distance(cv.hessian(problem).dense() @ block, expected)


class Calls(nn.Module):
    """A layer that is a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


# --------------------------------------------------------------------------------------------------------- dropout


class Dropping(nn.Module):
    """Dropout as a function, so rare that most passes drop nothing."""

    def forward(self, x):
        return functional.dropout(x, 1e-6, training=self.training)


RANDOM = {
    "torch": Dropping,
    "numpy": lambda: Calls(lambda x: x + 1e-20 * np.random.rand()),  # noqa: NPY002
    "random": lambda: Calls(lambda x: x + 1e-20 * random.random()),
}


@pytest.mark.parametrize("source", RANDOM)
def test_noise_is_found_by_what_it_draws_and_named_by_layer_and_generator(source):
    module = around(nn.Tanh(), RANDOM[source]())
    before = everything(module)
    with pytest.raises(cv.SelfCheckError, match=rf"layer '2' \(\w+\) draws random numbers \({source}\)"):
        problem_of(module)
    assert everything(module) == before
    assert module.training


def test_a_copy_in_evaluation_mode_is_what_the_error_offers():
    module = around(nn.Tanh(), Dropping())
    quiet = copy.deepcopy(module).eval()
    assert distance(cv.hessian(problem_of(quiet)).dense(), cv.hessian(problem_of(around(nn.Tanh()))).dense()) < 1e-14
    assert module.training


class OwnGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = np.random.default_rng(0)

    def forward(self, x):
        return x * (1 + 0.1 * self.generator.random())


def test_noise_of_a_hidden_generator_is_found_by_asking_twice_and_named():
    with pytest.raises(cv.SelfCheckError, match=r"passes over the same data differ by .*first after layer '1' \(Own"):
        problem_of(around(OwnGenerator(), nn.Tanh()))


# ------------------------------------------------------------------------------------------------------ batch norm


class FunctionalNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("variance", torch.ones(4))

    def forward(self, x):
        return functional.batch_norm(x, self.mean, self.variance, training=self.training)


@pytest.mark.parametrize("tracks", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_is_refused_wherever_it_uses_the_batch(tracks, train):
    module = around(nn.BatchNorm1d(4, track_running_stats=tracks), nn.Tanh()).train(train)
    before = everything(module)
    if tracks and not train:
        problem = problem_of(module, chunk_size=3)
        assert off_differences(problem) < 1e-7
    else:
        words = "is in training mode" if tracks else "has no running statistics"
        with pytest.raises(cv.InputError, match=rf"layer '1' \(BatchNorm1d\) {words}"):
            problem_of(module)
    assert everything(module) == before


def test_batch_norm_as_a_function_is_named_and_its_statistics_stay():
    module = around(FunctionalNorm(), nn.Tanh())
    before = everything(module)
    with pytest.raises(cv.SelfCheckError, match=r"fails on 1 of them, in layer '1' \(FunctionalNorm\).*needs the oth"):
        problem_of(module)
    centred = around(Calls(lambda x: x - x.mean(0)), nn.Tanh())
    with pytest.raises(cv.SelfCheckError, match=r"depends on the other examples.*first after layer '1' \(Calls\)"):
        problem_of(centred)
    assert everything(module) == before
    assert problem_of(module.eval()).written == ()


# ------------------------------------------------------------------- order of the data, shuffling, augmentation, drops


class Items(Dataset):
    """Examples after a transformation."""

    def __init__(self, transform=lambda x, _index: x):
        self.transform = transform

    def __len__(self):
        return len(INPUTS)

    def __getitem__(self, index):
        return self.transform(INPUTS[index], index), LABELS[index]


own = np.random.default_rng(0)
CHANGING = {
    "torch": (lambda x, _: x + torch.randn(3), r"draws random numbers \(torch\)"),
    "numpy": (lambda x, _: x + np.random.rand(), r"draws random numbers \(numpy\)"),  # noqa: NPY002
    "random": (lambda x, _: -x if random.random() < 0.5 else x, r"draws random numbers \(random\)"),
    "own generator": (lambda x, _: x + own.random(), "item 0 of the dataset changes between reads"),
    "the last item": (lambda x, i: x + own.random() * (i == 7), "item 7 of the dataset changes between reads"),
}


@pytest.mark.parametrize("kind", CHANGING)
@pytest.mark.parametrize("as_loader", [False, True])
def test_data_that_change_from_one_reading_to_the_next_are_refused(kind, as_loader):
    transform, message = CHANGING[kind]
    data = DataLoader(Items(transform), batch_size=3) if as_loader else Items(transform)
    before = everything()
    with pytest.raises(cv.InputError, match=message):
        cv.Problem.from_module(around(), loss="cross-entropy", data=data)
    assert everything() == before


class Own(DataLoader):
    """A loader whose class decides what it gives."""

    order = staticmethod(lambda batches: batches)

    def __iter__(self):
        return iter(self.order(list(super().__iter__())))


def endless(batches):
    while True:
        yield from batches


@pytest.mark.parametrize(
    ("order", "given"), [(endless, "more"), (lambda b: [*b, b[0]], "more"), (lambda b: b[:-1], "6"), (list, None)]
)
def test_loaders_that_never_end_repeat_or_leave_out_are_refused(order, given):
    loader = Own(Items(), batch_size=3)
    loader.order = order
    if given is None:
        assert torch.equal(cv.Problem.from_module(around(), loss="cross-entropy", data=loader).inputs, INPUTS)
        return
    with pytest.raises(cv.InputError, match=rf"loader \(Own\) gives {given} examples, its dataset has 8"):
        cv.Problem.from_module(around(), loss="cross-entropy", data=loader)


# ----------------------------------------------------------- uneven batches, class weights, ignored targets, reductions


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
def test_cutting_the_data_changes_nothing_whatever_the_denominator(smoothing, weighted, ignored):
    weight = torch.tensor([5.0, 0.25], dtype=torch.float64) if weighted else None
    criterion = nn.CrossEntropyLoss(weight, label_smoothing=smoothing)
    targets = LABELS.clone()
    if ignored:
        targets[:3] = -100  # the whole first batch of three
    module = around(nn.Tanh())
    names = dict(module.named_parameters())

    def loss(vector):
        parts = dict(zip(names, vector.split([p.numel() for p in names.values()]), strict=True))
        named = {name: part.view(names[name].shape) for name, part in parts.items()}
        return criterion(torch.func.functional_call(module, named, (INPUTS,)), targets)

    expected = of_function(loss, torch.cat([p.detach().reshape(-1) for p in names.values()]))
    whole = {name: MATRICES[name](problem_of(module, targets=targets, loss=criterion)).dense() for name in EXACT}
    assert distance(whole["hessian"], expected) < 1e-13
    for size in (3, 5):
        loader = DataLoader(TensorDataset(INPUTS, targets), batch_size=size)
        problem = cv.Problem.from_module(module, loss=criterion, data=loader, chunk_size=size)
        for name in EXACT:
            assert distance(MATRICES[name](problem).dense(), whole[name]) < 1e-13


WEIGHT = torch.tensor([5.0, 0.25], dtype=torch.float64)
NOT_ADDITIVE = {
    "class weights": lambda f, y: functional.cross_entropy(f, y, weight=WEIGHT),
    "root of the mean": lambda f, y: ((f - functional.one_hot(y, 2)) ** 2).mean().sqrt(),
    "half of the sum and a constant": lambda f, y: functional.cross_entropy(f, y, reduction="sum") / 2 + 1,
}
ADDITIVE = {
    "mean": functional.cross_entropy,
    "sum": lambda f, y: functional.cross_entropy(f, y, reduction="sum"),
    "one example only": lambda f, y: functional.cross_entropy(f.unsqueeze(0), y.reshape(1)),
}


@pytest.mark.parametrize("kind", [*NOT_ADDITIVE, *ADDITIVE])
def test_losses_whose_reduction_is_not_what_it_seems_are_refused_unless_declared(kind):
    function = (NOT_ADDITIVE | ADDITIVE)[kind]
    if kind in ADDITIVE:
        found = cv.hessian(problem_of(around(nn.Tanh()), loss=function)).dense()
        assert distance(found, cv.hessian(problem_of(around(nn.Tanh()))).dense()) < 1e-13
        return
    with pytest.raises(
        cv.InputError, match=r"of all 8 examples at once is .*PerExample\(function\) accepts it as it is"
    ):
        problem_of(around(nn.Tanh()), loss=function)
    declared = problem_of(around(nn.Tanh()), loss=cv.PerExample(function))
    each = [float(function(f, y)) for f, y in zip(declared.outputs(), LABELS, strict=True)]
    assert declared.value() == pytest.approx(np.mean(each), rel=1e-13)


# --------------------------------------------------------------------------------------------- scale of the loss


class Scaled(cv.HalfSquaredError):
    """A loss in other units."""

    scale = 1.0

    def terms(self, outputs, targets):
        return self.scale * super().terms(outputs, targets)

    def second_derivative(self, outputs):
        return self.scale * super().second_derivative(outputs)


def scaled(scale):
    loss = Scaled()
    object.__setattr__(loss, "scale", scale)
    return problem_of(around(nn.Tanh()), targets=REALS, loss=loss)


@pytest.mark.parametrize("scale", [1e-12, 1e12, 2.0**-40])
@pytest.mark.parametrize("name", ["hessian", "ggn", "gradient_covariance"])
def test_eigenvalues_follow_the_scale_of_the_loss_and_condition_numbers_do_not(name, scale):
    one, other = (cv.spectrum(MATRICES[name](scaled(s))) for s in (1.0, scale))
    factor = scale**2 if name == "gradient_covariance" else scale
    tolerance = 0 if np.log2(scale) % 1 == 0 else 1e-12
    largest = np.abs(other.eigenvalues).max()
    assert np.abs(other.eigenvalues - factor * one.eigenvalues).max() <= tolerance * largest
    assert (other.rank, len(other.checks)) == (one.rank, len(one.checks))
    if name != "hessian":
        numbers, expected = other.condition_numbers(), one.condition_numbers()
        for key in ("kappa_80", "kappa_95"):
            assert numbers[key].value == pytest.approx(expected[key].value, rel=1e-10)
    ends, wanted = (
        cv.extremal_eigenvalues(MATRICES[name](scaled(s)), num_largest=3, seed=seed()) for s in (scale, 1.0)
    )
    assert np.allclose(ends.largest, factor * wanted.largest, rtol=1e-11, atol=0)


# --------------------------------------------------------------------------------------------------- device mismatch


def elsewhere(name):
    module = around(nn.BatchNorm1d(4)).eval()
    layer, _, leaf = name.rpartition(".")
    tensor = getattr(module.get_submodule(layer), leaf)
    moved = tensor.detach().to("meta")
    setattr(module.get_submodule(layer), leaf, nn.Parameter(moved) if isinstance(tensor, nn.Parameter) else moved)
    return module


@pytest.mark.parametrize("name", ["2.weight", "1.running_mean"])
def test_what_lies_on_another_device_is_named(name):
    with pytest.raises(cv.InputError, match=rf"several devices: most of it on cpu, {name} on meta"):
        problem_of(elsewhere(name))


def test_tensors_without_numbers_are_refused():
    with pytest.raises(cv.InputError, match=r"module is on the meta device.*load its weights"):
        problem_of(around().to("meta"))
    with pytest.raises(cv.InputError, match="the inputs are on the meta device"):
        problem_of(around(), inputs=INPUTS.to("meta"))
    with pytest.raises(cv.InputError, match="the targets are on the meta device"):
        problem_of(around(), targets=LABELS.to("meta"))


# ------------------------------------------------------------------------------------------------------- mixed dtypes


def test_mixed_and_narrow_types_are_measured_in_double_precision():
    plain = around(nn.Tanh())
    for first, last in ((torch.float32, torch.float64), (torch.bfloat16, torch.bfloat16), (torch.float16,) * 2):
        module = copy.deepcopy(plain)
        module[0].to(first), module[2].to(last)
        rounded = copy.deepcopy(module).double()
        found = cv.hessian(problem_of(module, inputs=INPUTS.float())).dense()
        assert torch.equal(found, cv.hessian(problem_of(rounded, inputs=INPUTS.float().double())).dense())
        assert next(module.parameters()).dtype == first
    with pytest.raises(cv.ConfigurationError, match=r"float64 or torch\.float32, got torch\.float16"):
        problem_of(module, dtype=None)


class Narrow(nn.Module):
    """Computes in single precision, and says nothing."""

    def forward(self, x):
        return torch.tanh(x.float()).to(x.dtype)


def test_a_cast_inside_forward_is_named_by_layer_and_type():
    module = around(nn.Identity(), Narrow())
    with pytest.raises(cv.InputError, match=r"forward casts to torch.float32 in layer '2' \(Narrow\).*dtype=torch.fl"):
        problem_of(module)
    single = problem_of(module, dtype=torch.float32)
    assert cv.spectrum(cv.hessian(single)).dtype == "float32"


def test_complex_buffers_stay_complex():
    """``Module.to(float64)`` would drop the imaginary part."""

    class Rotated(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("phase", torch.tensor([1j, 1 + 1j], dtype=torch.complex64))

        def forward(self, x):
            return torch.view_as_real(torch.view_as_complex(x.reshape(-1, 2, 2)) * self.phase).reshape(x.shape)

    class Matrix(nn.Module):
        def forward(self, x):
            a, b, c, d = x.unbind(1)
            return torch.stack([-b, a, c - d, c + d], dim=1)

    found, expected = (cv.hessian(problem_of(around(part, nn.Tanh()))).dense() for part in (Rotated(), Matrix()))
    assert distance(found, expected) < 1e-14


# --------------------------------------------------------------------------------------------------------- in place


class Overwritten(nn.Module):
    def forward(self, x):
        return torch.tanh(x).mul_(2.0)


class Clipped(nn.Linear):
    """Keeps its weights in a box by writing into them."""

    def forward(self, x):
        self.weight.data.clamp_(-0.1, 0.1)
        return super().forward(x)


class Shifted(nn.Linear):
    def forward(self, x):
        with torch.no_grad():
            self.bias.add_(1.0)
        return super().forward(x)


def test_what_is_overwritten_in_place_is_named():
    with pytest.raises(cv.InputError, match=r"cannot be differentiated in layer '1' \(Overwritten\): .*inplace oper"):
        problem_of(around(Overwritten()))
    for kind, name in ((Clipped, "0.weight"), (Shifted, "0.bias")):
        module = seeded(lambda kind=kind: nn.Sequential(kind(3, 4), nn.Linear(4, 2)))
        before = everything(module)
        with pytest.raises(cv.InputError, match=rf"forward writes into the parameter '{name}'"):
            problem_of(module)
        assert everything(module) == before


# ----------------------------------------------------------------------------------------------------- NaN, infinity


def zero_norm():
    """``||x||`` at zero for the third example: the loss is finite, its derivatives are not."""
    module = around(Calls(lambda x: x / (1 + torch.linalg.vector_norm(x, dim=1, keepdim=True))))
    with torch.no_grad():
        module[0].bias.zero_()
    inputs = INPUTS.clone()
    inputs[2] = 0
    return problem_of(module, inputs=inputs)


def square_root():
    """A gradient that is infinite for the fourth example."""
    module = around(Calls(lambda x: x.abs().sqrt()))
    with torch.no_grad():
        module[0].bias.zero_()
    inputs = INPUTS.clone()
    inputs[3] = 0
    return problem_of(module, inputs=inputs)


def test_a_gradient_that_is_not_finite_names_parameters_and_example():
    with pytest.raises(cv.NonFiniteError, match=r"in 0\.weight, 0\.bias, first for example 3;"):
        square_root().gradient()


@pytest.mark.parametrize(("name", "chunk_size"), [*((name, 8) for name in EXACT), ("hessian", 3), ("ggn", 3)])
def test_matrices_that_are_not_finite_name_parameters_and_example_on_every_route(name, chunk_size):
    problem = square_root()
    operator = MATRICES[name](replace(problem, chunk_size=chunk_size))
    routes = [
        operator.dense,
        lambda: operator @ torch.ones(problem.dim, dtype=torch.float64),
        lambda: cv.spectrum(operator, method="dense", checks=False),
        lambda: cv.spectrum(cv.pullback(operator, cv.WeightNorm()), checks=False),
        lambda: cv.spectrum(operator),
        lambda: cv.extremal_eigenvalues(operator, num_largest=1, seed=seed()),
    ]
    if name != "hessian":
        routes.append(lambda: cv.spectrum(operator, method="factor", checks=False))
    for route in routes:
        with pytest.raises(cv.NonFiniteError, match=r"0\.weight.* first for example 3|example 3, in 0\.weight"):
            route()


def test_a_second_derivative_that_alone_is_not_finite_names_its_example():
    module = around(Calls(lambda x: x.abs() ** 1.5))
    with torch.no_grad():
        module[0].bias.zero_()
    inputs = INPUTS.clone()
    inputs[5] = 0
    problem = problem_of(module, inputs=inputs)
    assert torch.isfinite(problem.gradient()).all()
    with pytest.raises(cv.NonFiniteError, match=r"first for example 5, in 0\."):
        cv.hessian(problem).dense()


# ------------------------------------------------------------------------------------------- kinks, and what is none


def test_a_jump_is_no_kink():
    """One-sided differences disagree at both; a jump has no derivative, not even almost everywhere."""

    class Rounded(nn.Linear):
        def forward(self, x):
            return x @ (self.weight - self.weight.round().detach()).T + self.bias

    module = seeded(lambda: nn.Sequential(Rounded(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    with torch.no_grad():
        module[0].weight[0] = 0.5  # halfway, where it is rounded up and down
    for name in ("hessian", "ggn"):
        with pytest.raises(cv.SelfCheckError, match="the model is discontinuous at this point"):
            cv.spectrum(MATRICES[name](problem_of(module)))
        with torch.no_grad():
            module[0].weight[0] = 0.3
        assert cv.spectrum(MATRICES[name](problem_of(module))).checks
        with torch.no_grad():
            module[0].weight[0] = 0.5


# ----------------------------------------------------------------------------------------------------- tied weights


def test_files_that_untie_tied_weights_are_refused():
    def tied():
        module = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 2)).double()
        module[2].weight = module[0].weight
        return module

    module, tensors = tied(), tied().state_dict()
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    broken = tensors | {"2.weight": tensors["2.weight"] + 1}
    with pytest.raises(cv.InputError, match=r"0\.weight and 2\.weight are one tensor in the model \(tied\), but two"):
        apply_weights(module, broken)
    assert all(torch.equal(value, kept[name]) for name, value in module.state_dict().items())
    assert torch.equal(apply_weights(module, tensors)[2].weight, tensors["0.weight"])
    assert problem_of(module).dim == 3 * 3 + 3 + 3 + 3 * 2 + 2


# ---------------------------------------------------------------------------------------------- other parametrizations


class Positive(nn.Module):
    """A user's own: weights are exponentials."""

    def forward(self, weight):
        return torch.exp(weight)


class Doubtful(torch.autograd.Function):
    """``x^2`` whose second derivative is lost."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0].detach()


def legacy_spectral_norm(layer):
    return torch.nn.utils.spectral_norm(layer)


def parametrized(wrap, square=False, parametrization=None):
    module = seeded(
        lambda: nn.Sequential(nn.Linear(3, 3 if square else 4), nn.Tanh(), nn.Linear(3 if square else 4, 2))
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if parametrization is not None:
            parametrize.register_parametrization(module[0], "weight", parametrization)
        else:
            module[0] = wrap(module[0])
    return module


PARAMETRIZED = {
    "spectral_norm": lambda: parametrized(parametrizations.spectral_norm).eval(),
    "legacy spectral_norm": lambda: parametrized(legacy_spectral_norm).eval(),
    "orthogonal": lambda: parametrized(parametrizations.orthogonal, square=True),
    "cayley": lambda: parametrized(lambda m: parametrizations.orthogonal(m, orthogonal_map="cayley"), square=True),
    "rectangular": lambda: parametrized(lambda m: parametrizations.orthogonal(m, orthogonal_map="matrix_exp")),
    "a user's own": lambda: parametrized(None, parametrization=Positive()),
    "stacked": lambda: parametrized(
        lambda m: parametrizations.spectral_norm(parametrize.register_parametrization(m, "weight", Positive()) and m)
    ).eval(),
}


@pytest.mark.parametrize("kind", PARAMETRIZED)
def test_other_parametrizations_are_differentiated_right(kind):
    problem = problem_of(PARAMETRIZED[kind]())
    assert isinstance(problem.chart, cv.Standard)
    assert off_differences(problem) < 1e-7
    for name in ("ggn", "gradient_covariance"):
        (check,) = (c for c in cv.spectrum(MATRICES[name](problem)).checks if "finite differences" in c.name)
        assert check.value < check.tolerance < 1e-4


def test_parametrizations_that_move_jump_or_are_wrong_are_refused_by_name():
    for wrap in (parametrizations.spectral_norm, legacy_spectral_norm):
        module = parametrized(wrap).train()
        before = everything(module)
        with pytest.raises(cv.InputError, match=r"spectral_norm of layer '0' is in training mode.*eval"):
            problem_of(module)
        assert everything(module) == before
    with pytest.raises(cv.InputError, match=r"orthogonal of layer '0' uses Householder reflections.*matrix_exp"):
        problem_of(parametrized(parametrizations.orthogonal))
    wrong = problem_of(parametrized(None, parametrization=Calls(Doubtful.apply)))
    with pytest.raises(cv.SelfCheckError, match="wrong double backward"):
        cv.spectrum(cv.hessian(wrong))


# ------------------------------------------------------------------------------------- buffers that forward changes


class Counting(nn.Module):
    """Counts its calls, and normalizes by a running mean of what it saw before."""

    def __init__(self, assigns):
        super().__init__()
        self.assigns = assigns
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.full((4,), 0.25))

    def forward(self, x):
        out = torch.tanh(x - self.mean)
        moved = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        if self.assigns:
            self.calls, self.mean = self.calls + 1, moved
        else:
            self.calls += 1
            self.mean.copy_(moved)
        return out


@pytest.mark.parametrize("assigns", [False, True])
def test_buffers_that_forward_writes_into_start_every_pass_as_they_came(assigns):
    module = around(Counting(assigns))
    before = everything(module)
    problem = problem_of(module, chunk_size=3)
    assert problem.written == ("1.calls", "1.mean")
    fixed = problem_of(around(Calls(lambda x: torch.tanh(x - 0.25))))
    for name in EXACT:
        assert distance(MATRICES[name](problem).dense(), MATRICES[name](fixed).dense()) < 1e-13
        assert cv.spectrum(MATRICES[name](problem)).checks
    assert everything(module) == before


# ------------------------------------------------------------------------------------------------- fused attention


class Attention(nn.Module):
    """One head over the three inputs as a sequence."""

    def __init__(self, attend):
        super().__init__()
        self.attend = attend
        self.embed, self.mix, self.out = nn.Linear(1, 4), nn.Linear(4, 12), nn.Linear(4, 2)

    def forward(self, x):
        q, k, v = self.mix(self.embed(x[..., None])).unsqueeze(1).chunk(3, dim=-1)
        return self.out(self.attend(q, k, v).squeeze(1).mean(1))


class SelfAttention(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.embed, self.out = nn.Linear(1, 4), nn.Linear(4, 2)
        self.layer = (
            nn.MultiheadAttention(4, 2, batch_first=True)
            if kind == "multihead"
            else nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True, activation="gelu")
        )

    def forward(self, x):
        x = self.embed(x[..., None])
        x = self.layer(x, x, x, need_weights=False)[0] if self.kind == "multihead" else self.layer(x)
        return self.out(x.mean(1))


def composite(q, k, v):
    return torch.softmax(q @ k.mT / k.shape[-1] ** 0.5, dim=-1) @ v


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.filterwarnings("error")
def test_a_small_attention_model_works_as_it_is(name):
    fused = seeded(lambda: Attention(functional.scaled_dot_product_attention))
    written_out = seeded(lambda: Attention(composite))
    before = everything(fused)
    found = cv.spectrum(MATRICES[name](problem_of(fused)))
    assert problem_of(fused).function.attends
    expected = MATRICES[name](problem_of(written_out)).dense()
    assert distance(MATRICES[name](problem_of(fused, chunk_size=3)).dense(), expected) < 1e-12
    assert np.abs(found.eigenvalues - np.linalg.eigvalsh(expected.numpy())).max() < 1e-12 * found.eigenvalues[-1]
    assert everything(fused) == before


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("kind", ["multihead", "encoder"])
def test_attention_layers_of_torch_work_in_both_modes(kind, train):
    problem = problem_of(seeded(lambda: SelfAttention(kind)).train(train))
    for name in ("hessian", "ggn", "empirical_fisher"):
        (check,) = (c for c in cv.spectrum(MATRICES[name](problem)).checks if "finite differences" in c.name)
        assert check.value < check.tolerance < 1e-4


# -------------------------------------------------------------------------------- layer norm, recurrent layers


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.out = kind(1, 2, batch_first=True), nn.Linear(2, 2)

    def forward(self, x):
        return self.out(self.layer(x[..., None])[0][:, -1])


class WrittenOut(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))

    def forward(self, x):
        centred = x - x.mean(1, keepdim=True)
        return centred / ((centred**2).mean(1, keepdim=True) + 1e-5).sqrt() * self.weight + self.bias


@pytest.mark.parametrize("name", EXACT)
def test_layer_norm_is_what_it_is_written_out(name):
    found, expected = (
        MATRICES[name](problem_of(around(norm, nn.Tanh()), chunk_size=3)).dense()
        for norm in (nn.LayerNorm(4), WrittenOut())
    )
    assert distance(found, expected) < 1e-12


LAYERS = {
    "layer norm": lambda: around(nn.LayerNorm(4), nn.Tanh()),
    "group norm": lambda: around(nn.GroupNorm(2, 4), nn.Tanh()),
    "root mean square norm": lambda: around(nn.RMSNorm(4), nn.Tanh()),
    "GRU": lambda: seeded(lambda: Recurrent(nn.GRU)),
    "LSTM": lambda: seeded(lambda: Recurrent(nn.LSTM)),
    "RNN": lambda: seeded(lambda: Recurrent(nn.RNN)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_second_derivatives_of_norms_and_recurrent_layers_agree_with_differences(kind):
    problem = problem_of(LAYERS[kind](), chunk_size=5)
    assert off_differences(problem) < 1e-7
    for name in ("ggn", "gradient_covariance"):
        (check,) = (c for c in cv.spectrum(MATRICES[name](problem)).checks if "finite differences" in c.name)
        assert check.value < check.tolerance < 1e-4


# ------------------------------------------------------------------------------------------------------ LAPACK fails


def failing(original, types, error):
    def decompose(matrix, *arguments, **options):
        kind = matrix.dtype if isinstance(matrix, torch.Tensor) else torch.from_numpy(matrix[:0].copy()).dtype
        if kind in types:
            raise error("did not converge")
        return original(matrix, *arguments, **options)

    return decompose


ROUTES = {  # what fails, and how to get there
    "dense": ((lapack, "eigenvalues", np.linalg.LinAlgError), {"method": "dense"}),
    "dense, gradient": (
        (lapack, "spectral_measure", np.linalg.LinAlgError),
        {"method": "dense", "gradient": True},
    ),
    "dense, vectors": ((np.linalg, "eigh", np.linalg.LinAlgError), {"method": "dense", "vectors": 2}),
    "gram": ((lapack, "eigenvalues", np.linalg.LinAlgError), {"method": "gram"}),
    "factor": ((np.linalg, "svd", np.linalg.LinAlgError), {"method": "factor"}),
    "factor, vectors": ((torch.linalg, "svd", torch.linalg.LinAlgError), {"method": "factor", "gradient": True}),
}


@pytest.mark.parametrize("route", ROUTES)
def test_a_decomposition_that_fails_in_single_precision_is_made_in_double_and_recorded(route, monkeypatch):
    (place, name, error), options = ROUTES[route]
    wide = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    operator = cv.empirical_fisher(problem_of(wide, dtype=torch.float32))
    formula_rank(operator)  # what else is decomposed is not the question
    expected = cv.spectrum(operator, **options)
    assert "decomposition in float32" not in {check.name for check in expected.checks}
    original = getattr(place, name)
    monkeypatch.setattr(place, name, failing(original, {torch.float32}, error))
    found = cv.spectrum(operator, **options)
    (check,) = (c for c in found.checks if c.name == "decomposition in float32")
    assert check.passed
    assert "did not converge" in check.note
    assert np.allclose(found.eigenvalues, expected.eigenvalues, atol=1e-5 * expected.eigenvalues[-1])
    monkeypatch.setattr(place, name, failing(original, {torch.float32, torch.float64}, error))
    with pytest.raises(
        cv.ConvergenceError, match=r"LAPACK did not decompose empirical_fisher \(26 x 26\), standard, in"
    ):
        cv.spectrum(operator, **options)


def test_other_failures_of_lapack_are_raised_by_our_name(monkeypatch):
    problem = problem_of(around(nn.Tanh()))
    for name in ("eigh", "eigvalsh"):
        routine = getattr(torch.linalg, name)
        monkeypatch.setattr(torch.linalg, name, failing(routine, {torch.float64}, torch.linalg.LinAlgError))
    for work in (
        lambda: cv.extremal_eigenvalues(cv.ggn(problem), num_largest=1, seed=seed()),
        lambda: cv.natural_gradient_step(problem, relative_damping=1e-3),
        lambda: cv.whitening(problem, seed=seed()),
    ):
        with pytest.raises(cv.ConvergenceError, match="LAPACK failed: did not converge"):
            work()


# -------------------------------------------------------------------------------------------- precision switches


@contextlib.contextmanager
def switched(read, write, value):
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


@contextlib.contextmanager
def attribute(place, name, value):
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


def default_dtype(dtype):
    return lambda: switched(torch.get_default_dtype, torch.set_default_dtype, dtype)


ON_CPU, ON_GPU = torch.backends.mkldnn, torch.backends.cuda
SWITCHES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "default dtype float64": default_dtype(torch.float64),
    "default dtype float16": default_dtype(torch.float16),
    "default device": lambda: torch.device("meta"),
    "set_default_device": lambda: switched(lambda: None, torch.set_default_device, "meta"),
    "deterministic": lambda: switched(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "medium": lambda: switched(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"),
    "high": lambda: switched(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "high"),
    "tf32": lambda: attribute(ON_GPU.matmul, "allow_tf32", True),
    **(
        {"bfloat16 products": lambda: attribute(ON_CPU.matmul, "fp32_precision", "bf16")}
        if hasattr(ON_CPU, "matmul")
        else {}
    ),
    "math attention off": lambda: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION),
}


@pytest.fixture(scope="module")
def measured():
    """Everything that is measured, in float32, where a reduced precision would show."""
    wide = seeded(lambda: nn.Sequential(nn.Linear(3, 24), nn.Tanh(), nn.Linear(24, 2)))
    images = seeded(lambda: nn.Sequential(nn.Conv1d(1, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2)))
    attention = seeded(lambda: Attention(functional.scaled_dot_product_attention))

    def measure():
        found = []
        for module, inputs in ((wide, INPUTS), (images, INPUTS[:, None]), (attention, INPUTS)):
            problem = problem_of(module, inputs=inputs, dtype=torch.float32)
            hessian, ggn = cv.hessian(problem), cv.ggn(problem)
            found += [problem.outputs(), problem.gradient(), hessian.dense(), problem.value()]
            found += [cv.hessian(problem, method="generic") @ problem.weights.clone()]
            found += [cv.spectrum(cv.pullback(ggn, cv.WeightNorm("paper"))).eigenvalues]
            if module is wide:
                found += [cv.spectrum(hessian, gradient=True).gradient_weights]
                found += [cv.extremal_eigenvalues(ggn, num_largest=2, seed=seed()).largest]
                found += [cv.spectral_density(ggn, num_matvecs=5, num_probes=2, seed=seed()).nodes]
                found += [cv.monte_carlo_fisher(problem, 1, seed()).dense(), cv.trace(hessian, seed=seed()).value]
                found += [cv.natural_gradient_step(problem, relative_damping=1e-2), trained(problem).curve.losses]
        return [np.asarray(part) for part in found]

    return measure, measure()


def trained(problem):
    schedule = training.Schedule(epochs=2, batch_size=4)
    return training.train(problem, cv.WeightNorm(), schedule, arm="a", seed=0, optimizer=training.SGD(0.1))


@pytest.mark.parametrize("name", SWITCHES)
def test_numbers_do_not_depend_on_what_the_caller_has_switched_on(name, measured):
    measure, expected = measured
    with SWITCHES[name]():
        before = everything()
        found = measure()
        assert everything() == before
    assert len(found) == len(expected)
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_what_was_made_under_inference_mode_is_used_too():
    with torch.inference_mode():
        module, inputs = around(nn.Tanh()), INPUTS.clone()
    assert next(module.parameters()).is_inference()
    found = cv.hessian(problem_of(module, inputs=inputs)).dense()
    assert torch.equal(found, cv.hessian(problem_of(around(nn.Tanh()))).dense())


# ------------------------------------------------------------------------------------------------- state and leaks


def everything(*modules):
    """A hash of all that can be seen from outside: modules, and the state of the process."""
    parts = [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # noqa: NPY002
    parts += [torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(), torch.is_grad_enabled()]
    parts += [torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()]
    parts += [torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled(), np.geterr()]
    parts += [getattr(ON_GPU, f"{kind}_sdp_enabled")() for kind in ("flash", "math", "mem_efficient", "cudnn")]
    parts += [torch.backends.cudnn.allow_tf32, torch.backends.mha.get_fastpath_enabled()]
    with contextlib.suppress(RuntimeError):  # torch does not answer where its old and new switches disagree
        parts += [torch.get_float32_matmul_precision(), ON_GPU.matmul.allow_tf32]
    if hasattr(ON_CPU, "matmul"):
        places = (ON_CPU.matmul, ON_CPU.conv, ON_CPU.rnn, ON_GPU.matmul, torch.backends.cudnn.conv)
        parts += [place.fp32_precision for place in places]
    parts += [list(warnings.filters), dict(mpl.rcParams), mpl.get_backend(auto_select=False)]
    for module in modules:
        for path, layer in module.named_modules():
            parts += [path, layer.training, id(layer), id(type(layer)), sorted(vars(layer))]
            for kind in ("forward", "forward_pre", "backward", "backward_pre", "state_dict"):
                parts += [kind, [id(hook) for hook in getattr(layer, f"_{kind}_hooks").values()]]
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            parts += [name, id(tensor), tensor.requires_grad, tensor.dtype, tensor._version, tensor.data_ptr()]
            parts += [tensor.detach().reshape(-1).tolist(), None if tensor.grad is None else tensor.grad.tolist()]
            parts += [None if tensor.grad is None else id(tensor.grad), len(tensor._backward_hooks or ())]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class Bomb(nn.Module):
    """Fails after some passes, in forward or backward; copies share the fuse."""

    fuse = None

    def forward(self, x):
        if Bomb.fuse is not None:
            Bomb.fuse -= 1
            if Bomb.fuse < 0:
                raise KeyboardInterrupt
        return torch.tanh(x)


def in_use():
    """A module as users have it: gradients, hooks, modes, buffers, weight norm."""
    module = around(Bomb(), nn.Dropout(0.5).eval(), nn.BatchNorm1d(4).eval())
    module[0] = parametrizations.weight_norm(module[0])
    functional.cross_entropy(module(INPUTS), LABELS).backward()
    module[0].register_forward_hook(lambda *_: None)
    module[4].register_full_backward_hook(lambda *_: None)
    module[4].weight.register_hook(lambda gradient: gradient)
    module[4].bias.requires_grad_(False)
    return module


def wrote(problem, folder):
    return report.write_run(cv.measure(problem, matrices=("ggn",)), folder / "run")


ENTRIES = {
    "spectrum": lambda p, _: cv.spectrum(cv.pullback(cv.hessian(p), p.chart), gradient=True),
    "factor": lambda p, _: cv.spectrum(cv.ggn(p), method="factor"),
    "vectors": lambda p, _: cv.spectrum(cv.effective(cv.hessian(p), p.chart), vectors=True),
    "algebra": lambda p, _: (cv.ggn(p) - 0.5 * cv.hessian(p)).shifted(1e-3).dense(),
    "extremal_eigenvalues": lambda p, _: cv.extremal_eigenvalues(cv.hessian(p), num_largest=2, seed=seed()),
    "spectral_density": lambda p, _: cv.spectral_density(cv.ggn(p), num_matvecs=4, num_probes=2, seed=seed()),
    "inertia": lambda p, _: cv.inertia(cv.hessian(p)),
    "conjugate_gradients": lambda p, _: cv.conjugate_gradients(cv.ggn(p), p.gradient(), damping=1.0),
    "trace": lambda p, _: cv.trace(cv.hessian(p), seed=seed()),
    "diagonal": lambda p, _: cv.diagonal(cv.hessian(p), seed=seed()),
    "log_determinant": lambda p, _: cv.log_determinant(cv.ggn(p), 1.0, seed=seed()),
    "monte_carlo_fisher": lambda p, _: cv.monte_carlo_fisher(p, 2, seed()).dense(),
    "blocks": lambda p, _: {n: cv.spectrum(b) for n, b in cv.blocks(cv.empirical_fisher(p), "layer").items()},
    "measure": lambda p, _: cv.measure(p, matrices=("hessian",)),
    "efficiency": lambda p, _: cv.efficiency(p, cv.WeightNorm()),
    "natural_gradient_step": lambda p, _: cv.natural_gradient_step(p, relative_damping=1e-3),
    "preconditioner": lambda p, _: cv.preconditioner(p, "kfac"),
    "noise": lambda p, _: (cv.alignments(p, seed=seed()), cv.whitening(p, seed=seed())),
    "plan": lambda p, _: cv.plan(cv.hessian(p)),
    "train": lambda p, _: trained(p),
    "report": wrote,
}


@pytest.fixture(scope="module")
def _imported():
    """PyTorch imports SymPy when it first pulls cotangents back, and SymPy adds a filter to those of warnings."""
    importlib.import_module("torch.fx.experimental.symbolic_shapes")


@pytest.mark.usefixtures("_imported")
@pytest.mark.parametrize("name", ["from_module", *ENTRIES])
def test_nothing_of_the_users_changes_with_or_without_an_exception(name, tmp_path, monkeypatch):
    module, inputs, targets = in_use(), INPUTS.clone(), LABELS.clone()
    problem = problem_of(module, inputs, targets)
    call = ENTRIES.get(name, lambda *_: problem_of(module, inputs, targets))
    before = everything(module), problem.weights.tolist()
    call(problem, tmp_path / "once")
    assert (everything(module), problem.weights.tolist()) == before
    monkeypatch.setattr(Bomb, "fuse", None)
    for fuse in (0, 5):
        Bomb.fuse = fuse
        with contextlib.suppress(KeyboardInterrupt):
            call(problem, tmp_path / f"broken-{fuse}")
        exploded, Bomb.fuse = Bomb.fuse < 0, None
        assert exploded or fuse
        assert (everything(module), problem.weights.tolist()) == before
    assert torch.equal(inputs, INPUTS)
    assert torch.equal(targets, LABELS)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_kept_alive(fails, tmp_path, monkeypatch):
    monkeypatch.setattr(Bomb, "fuse", None)

    def use(name):
        module, inputs, targets = in_use(), INPUTS.clone(), LABELS.clone()
        problem = problem_of(module, inputs, targets)
        operator = cv.hessian(problem)
        operator @ problem.weights
        Bomb.fuse = 3 if fails else None
        with contextlib.suppress(KeyboardInterrupt):
            ENTRIES[name](problem, tmp_path)
        Bomb.fuse = None
        kept = (module, problem.model, inputs, problem.inputs, problem, operator)
        return {(name, type(one).__name__, k): weakref.ref(one) for k, one in enumerate(kept)}

    watched = {what: one for name in ENTRIES for what, one in use(name).items()}
    gc.collect()
    assert not [what for what, one in watched.items() if one() is not None]


def test_memory_does_not_grow_over_fifty_calls():
    # Data and matrices of which one that stays is seen: half a megabyte.
    inputs = torch.randn(200, 60, generator=seed(), dtype=torch.float64)
    module = seeded(lambda: nn.Sequential(nn.Linear(60, 4), nn.Tanh(), nn.Linear(4, 2)))

    def call():
        problem = problem_of(module, inputs, LABELS.repeat(25))
        for method in ("structured", "generic"):
            hessian = cv.hessian(problem, method=method)
            cv.pullback(hessian, cv.WeightNorm()) @ torch.ones(260, dtype=torch.float64)
            cv.conjugate_gradients(hessian, problem.gradient(), damping=10.0, tolerance=0.1)
        cv.ggn(problem).dense()

    process = psutil.Process()
    for _ in range(10):
        call()
    gc.collect()
    before = process.memory_info().rss
    for _ in range(50):
        call()
    gc.collect()
    assert process.memory_info().rss - before < 5 * 2**20
