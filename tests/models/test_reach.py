"""Trainable tensors that reach the loss by another way than the outputs are refused or named."""

import types
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

import curvature as cv
from oracles import built, distance, drawn

INPUTS = drawn(8, 4)
LABELS = torch.arange(8) % 3


def chain():
    return built(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))


def problem_of(module, loss="cross-entropy", **options):
    return cv.Problem.from_module(module, loss=loss, data=(INPUTS, LABELS), **options)


# ------------------------------------------------------------------------------------------------------- hidden ways


def squared_weights(module):
    return lambda output, target: (
        functional.cross_entropy(output, target) + 0.1 * sum(p.square().sum() for p in module.parameters())
    )


def consistency(module):
    return lambda output, target: (
        functional.cross_entropy(output, target) + (module(INPUTS + 0.1) - module(INPUTS)).square().mean()
    )


def one_layer(module):
    return lambda output, target: functional.cross_entropy(output, target) + module[2].bias.square().sum()


@pytest.mark.parametrize("make", [squared_weights, consistency, one_layer])
@pytest.mark.parametrize("declared", [False, True])
def test_loss_that_uses_the_models_parameters_is_refused_with_the_way_out(make, declared):
    module = chain()
    loss = cv.PerExample(make(module)) if declared else make(module)
    with pytest.raises(cv.InputError, match=r"parameters of the model \(.*2\.bias.*penalty=lambda weights.*weight_dec"):
        problem_of(module, loss)


def test_loss_with_trainable_tensors_of_its_own_is_refused():
    temperature = torch.ones((), dtype=torch.float64, requires_grad=True)
    prototypes = built(lambda: nn.Linear(3, 3))
    for loss in (
        lambda output, target: functional.cross_entropy(temperature * output, target),
        lambda output, target: functional.cross_entropy(prototypes(output), target),
    ):
        with pytest.raises(cv.InputError, match="trainable tensors in another way than through the outputs"):
            problem_of(chain(), loss)
    prototypes.requires_grad_(False)
    problem_of(chain(), lambda output, target: functional.cross_entropy(prototypes(output), target))


class Remembers(nn.Module):
    """Keeps its hidden activations for the loss."""

    hidden = None

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, inputs):
        Remembers.hidden = torch.tanh(self.first(inputs))
        return self.last(Remembers.hidden)


def test_loss_of_hidden_activations_is_refused(monkeypatch):
    monkeypatch.setattr(Remembers, "hidden", torch.zeros((), dtype=torch.float64))
    with pytest.raises(cv.InputError, match="return hidden activations among the outputs"):
        problem_of(
            built(Remembers),
            lambda output, target: functional.cross_entropy(output, target) + 0.1 * Remembers.hidden.square().mean(),
        )


def test_constants_in_a_loss_are_no_hidden_way():
    module = chain()
    with torch.no_grad():
        size = sum(p.square().sum() for p in module.parameters())
    weight = module[0].weight.detach()
    problem = problem_of(
        module, lambda output, target: functional.cross_entropy(output, target) * size + weight.square().sum()
    )
    plain = cv.hessian(problem_of(module)).dense()
    assert distance(cv.hessian(problem).dense(), float(size) * plain) < 1e-13


# ------------------------------------------------------------------------------------------------------- unregistered


class Unregistered(nn.Module):
    """Trains layers that PyTorch does not know of."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.rest = [nn.Linear(5, 5)]
        self.heads = {"last": (nn.Linear(5, 3),)}
        self.helper = types.SimpleNamespace(shift=torch.full((3,), 0.5, requires_grad=True))
        self.scale = torch.full((3,), 1.5, requires_grad=True)

    def forward(self, inputs):
        outputs = self.heads["last"][0](torch.tanh(self.rest[0](self.first(inputs))))
        return self.scale * outputs + self.helper.shift


NAMES = ["rest[0].weight", "rest[0].bias", "heads['last'][0].weight", "heads['last'][0].bias", "helper.shift", "scale"]


def test_layers_in_lists_and_dictionaries_are_named_held_fixed_and_computed_in_double():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Unregistered()  # in single precision
    with pytest.warns(UserWarning, match="not registered as its parameters") as caught:
        problem = problem_of(module)
    assert all(name in str(caught[0].message) for name in NAMES)
    assert problem.notes == (str(caught[0].message),)
    assert problem.dim == 25
    assert module.rest[0].weight.dtype == module.scale.dtype == torch.float32
    module.first.double()
    for layer in (module.rest[0], module.heads["last"][0]):
        layer.double()
    module.scale = module.scale.detach().double()
    module.helper.shift = module.helper.shift.detach().double()
    parameters = list(module.first.parameters())
    slopes = torch.autograd.grad(functional.cross_entropy(module(INPUTS), LABELS), parameters, create_graph=True)
    rows = [
        torch.cat([part.reshape(-1) for part in torch.autograd.grad(entry, parameters, retain_graph=True)])
        for slope in slopes
        for entry in slope.reshape(-1)
    ]
    assert distance(cv.hessian(problem).dense(), torch.stack(rows)) < 1e-13


def test_tensor_of_a_closure_is_named_by_its_shape():
    mixing = drawn(3, 3).requires_grad_()

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, inputs):
            return self.layer(inputs) @ mixing

    with pytest.warns(UserWarning, match=r"a tensor of shape \(3, 3\)"):
        problem_of(built(Mixed))


def test_trainable_buffer_is_named():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.register_buffer("shift", torch.zeros(3, dtype=torch.float64, requires_grad=True))

        def forward(self, inputs):
            return self.layer(inputs) + self.shift

    with pytest.warns(UserWarning, match="not registered as its parameters: shift"):
        problem_of(built(Shifted).requires_grad_(True))


def test_registered_frozen_and_constant_tensors_are_not_named():
    module = built(Unregistered)
    for layer in (module.rest[0], module.heads["last"][0]):
        layer.double().requires_grad_(False)
    module.scale = module.scale.detach().double()
    module.helper.shift = module.helper.shift.detach().double()
    module.registered_twice = [module.first]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert problem_of(module).notes == ()


def test_tensor_that_was_computed_from_a_parameter_once_is_refused():
    module = chain()
    weight = module[0].weight
    del module[0].weight
    module[0].raw = weight
    module[0].weight = 2 * weight
    with pytest.raises(cv.InputError, match=r"0\.weight was computed from 0\.raw once.*Compute it in forward"):
        problem_of(module)
    module[0].register_forward_pre_hook(lambda layer, _: setattr(layer, "weight", 2 * layer.raw))
    assert problem_of(module).unused == ()
