"""Modules whose layers train something else than their weights: the same function and derivatives in the chart."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import curvature as cv
from oracles import distance, drawn, weighted


class Adapted(nn.Module):
    """A layer with the attributes and the formula of peft's, for LoRA and DoRA on linear and convolutional layers."""

    def __init__(self, base, rank, scale, dora):
        super().__init__()
        self.base_layer, self.scaling, self.active_adapters = base, {"default": scale}, ["default"]
        self.merged = self.disable_adapters = False
        linear = isinstance(base, nn.Linear)
        rows, columns = len(base.weight), base.weight[0].numel()
        shapes = ((rank, columns), (rows, rank)) if linear else ((rank, *base.weight.shape[1:]), (rows, rank, 1, 1))
        kind = (lambda m, n: nn.Linear(n, m, bias=False)) if linear else (lambda m, n: nn.Conv2d(n, m, 1, bias=False))
        self.lora_A, self.lora_B = nn.ModuleDict({"default": kind(1, 1)}), nn.ModuleDict({"default": kind(1, 1)})
        for layer, shape in zip((self.lora_A, self.lora_B), shapes, strict=True):
            layer["default"].weight = nn.Parameter(torch.ones(shape))
        base.requires_grad_(False)
        if dora:
            self.lora_magnitude_vector = nn.ParameterDict({"default": torch.ones(rows)})

    def forward(self, x):
        a, b = self.lora_A["default"].weight.flatten(1), self.lora_B["default"].weight.flatten(1)
        weight = self.base_layer.weight.flatten(1) + self.scaling["default"] * b @ a
        if hasattr(self, "lora_magnitude_vector"):
            norms = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
            weight = self.lora_magnitude_vector["default"][:, None] / norms * weight
        weight = weight.reshape(self.base_layer.weight.shape)
        run = nn.functional.linear if isinstance(self.base_layer, nn.Linear) else nn.functional.conv2d
        return run(x, weight, self.base_layer.bias)


def adapted(dora=False, convolution=False):
    """A network of one adapted and one plain layer, with its data; the weights are drawn."""
    base = nn.Conv2d(1, 2, 2) if convolution else nn.Linear(4, 5)
    middle = [nn.Tanh(), nn.Flatten()] if convolution else [nn.Tanh()]
    module = nn.Sequential(Adapted(base, 2, 1.5, dora), *middle, nn.Linear(8 if convolution else 5, 3))
    data = (drawn(6, 1, 3, 3) if convolution else drawn(6, 4)), torch.arange(6) % 3
    return weighted(module.double(), scale=0.7), data


@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_an_adapted_module_has_the_same_hessian_in_the_chart_of_its_effective_weights(dora, convolution):
    module, data = adapted(dora, convolution)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    plain, chart = cv.effective_weights(module)
    assert [name for name, _ in plain.named_parameters()][:2] == ["0.weight", "0.bias"]
    assert distance(plain(data[0]).detach(), module(data[0]).detach()) < 1e-14
    in_parts, on_weights = (cv.Problem.from_module(m, loss="cross-entropy", data=data) for m in (module, plain))
    at_point = chart.at(on_weights.layout, on_weights.weights)
    assert at_point.name == ("dora" if dora else "lora")
    expected = torch.linalg.eigvalsh(cv.hessian(in_parts).dense())
    found = torch.linalg.eigvalsh(cv.pullback(cv.hessian(on_weights), chart).dense())
    assert distance(found, expected) < 1e-12
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_frozen_factor_of_an_adapter_is_no_coordinate():
    module, data = adapted()
    module[0].lora_A.requires_grad_(False)
    plain, chart = cv.effective_weights(module)
    problem = cv.Problem.from_module(plain, loss="cross-entropy", data=data)
    assert chart.at(problem.layout, problem.weights).dim == 5 * 2 + 15 + 3
    assert chart.gauge == "checkpoint, a frozen"


def test_a_spectral_norm_that_has_converged_is_the_chart_at_its_values():
    """First derivatives in eval mode are those of the module; PyTorch holds the vectors constant in second ones."""
    torch.manual_seed(0)
    layer = parametrizations.spectral_norm(nn.Linear(4, 5).double(), n_power_iterations=300)
    module = nn.Sequential(layer, nn.Tanh(), nn.Linear(5, 3).double())
    module(drawn(2, 4))
    plain, chart = cv.effective_weights(module.eval())
    data = drawn(6, 4), torch.arange(6) % 3
    in_parts, on_weights = (cv.Problem.from_module(m, loss="cross-entropy", data=data) for m in (module, plain))
    assert chart.name == "spectral-norm"
    at_point = chart.at(on_weights.layout, on_weights.weights)
    pulled = at_point.layout.unflatten(at_point.pull(on_weights.gradient()[:, None])[:, 0])
    own = in_parts.unflatten(in_parts.gradient())
    assert distance(pulled["0.weight.v"], own["0.parametrizations.weight.original"]) < 1e-12
    found, expected = cv.pullback(cv.ggn(on_weights), chart).dense(), cv.ggn(in_parts).dense()
    assert distance(torch.linalg.eigvalsh(found), torch.linalg.eigvalsh(expected)) < 1e-12


class Doubled(Adapted):
    def forward(self, x):
        return 2 * super().forward(x)


def spoiled(change):
    module, _ = adapted()
    change(module)
    return module


def not_converged():
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 5).double(), n_power_iterations=1)).eval()


def stacked():
    layer = parametrizations.spectral_norm(nn.Linear(4, 4).double())
    return nn.Sequential(parametrizations.orthogonal(layer)).eval()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: nn.Linear(2, 2), "no LoRA, DoRA or spectrally normalized layer"),
        (lambda: spoiled(lambda m: setattr(m[0], "merged", True)), "layer '0' .*its adapter is merged"),
        (lambda: spoiled(lambda m: setattr(m[0], "disable_adapters", True)), "its adapter is disabled"),
        (lambda: spoiled(lambda m: setattr(m[0], "active_adapters", [])), "it has 0 active adapters"),
        (lambda: spoiled(lambda m: m[0].base_layer.requires_grad_(True)), "the weight of its base is trained too"),
        (lambda: spoiled(lambda m: setattr(m[0], "__class__", Doubled)), "computes something else"),
        (not_converged, "have not converged, or change with each call"),
        (lambda: not_converged().train(), "have not converged, or change with each call"),
        (stacked, "has the parametrizations _SpectralNorm of weight, _Orthogonal of weight"),
    ],
)
def test_layers_that_are_not_what_their_formula_says_are_refused(build, words):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build()
    with pytest.raises(cv.InputError, match=words):
        cv.effective_weights(module)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_modules_of_peft_are_recognised(options):
    peft = pytest.importorskip("peft")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
        config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["0", "2"], **options)
        module = peft.get_peft_model(network, config).double().eval()
    for number, (name, parameter) in enumerate(module.named_parameters()):
        if "lora_B" in name:
            parameter.data = drawn(*parameter.shape, seed=number)
    plain, chart = cv.effective_weights(module)
    data = drawn(9, 5), torch.arange(9) % 3
    in_parts, on_weights = (cv.Problem.from_module(m, loss="cross-entropy", data=data) for m in (module, plain))
    found, expected = cv.pullback(cv.hessian(on_weights), chart).dense(), cv.hessian(in_parts).dense()
    assert distance(torch.linalg.eigvalsh(found), torch.linalg.eigvalsh(expected)) < 1e-12
