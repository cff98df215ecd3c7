"""Which models are chains of linear layers and elementwise activations, and their forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from curvature.models import Problem

__all__ = [
    "ELEMENTWISE",
    "NEUTRAL",
    "Chain",
    "Layer",
    "activate",
    "chain_of",
    "forward",
    "leaves_of",
    "matmul",
    "places",
]

ELEMENTWISE = (
    nn.Tanh,
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Tanhshrink,
    nn.Hardtanh,
)
# Dropout in eval mode: training mode was refused.
NEUTRAL = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(frozen=True, eq=False)
class Layer:
    """One linear layer and the activations behind it."""

    path: str
    weight: Tensor
    bias: Tensor | None
    weight_slice: slice | None
    bias_slice: slice | None
    activations: tuple[nn.Module, ...]

    @property
    def fan_out(self) -> int:
        return self.weight.shape[0]

    @property
    def columns(self) -> int:
        """Length of an augmented row: inputs, and 1 if there is a bias."""
        return self.weight.shape[1] + (self.bias is not None)


@dataclass(frozen=True, eq=False)
class Chain:
    """A problem whose model is a chain of linear layers and elementwise activations."""

    problem: Problem
    before: tuple[nn.Module, ...]
    layers: tuple[Layer, ...]


def chain_of(problem: Problem) -> Chain | None:
    """Read the model as a chain; None if it is anything else (then the generic path does the work)."""
    modules = leaves_of(problem.model, (nn.Linear, nn.Flatten, *ELEMENTWISE, *NEUTRAL))
    if modules is None or problem.aliases or problem.inputs.ndim < 2 or not problem.inputs.is_floating_point():
        return None
    parameters = [p for _, module in modules for p in module.parameters()]
    if len({id(p) for p in parameters}) < len(parameters):
        return None
    before, groups = [], []
    for path, module in modules:
        if isinstance(module, nn.Linear):
            groups.append((path, module, []))
        elif groups:
            groups[-1][2].append(module)
        else:
            before.append(module)
    plain = all(isinstance(m, ELEMENTWISE + NEUTRAL) for *_, after in groups for m in after)
    flattens = all(isinstance(m, (nn.Flatten, *NEUTRAL)) for m in before)
    if not groups or not plain or not flattens:
        return None
    signal = problem.inputs[:1]
    for module in before:
        signal = module(signal)
    if signal.ndim != 2 or len(signal) != 1:  # one vector per example; a linear layer on positions shares its weights
        return None
    if any(isinstance(m, ELEMENTWISE) for m in groups[-1][2]):
        return None
    named, slices = problem.unflatten(problem.weights), problem.layout.slices
    layers = []
    for path, module, after in groups:
        names = [f"{path}.{leaf}" if path else leaf for leaf in ("weight", "bias")]
        weight = named.get(names[0], module.weight)
        bias = named.get(names[1], module.bias)
        activations = tuple(m for m in after if isinstance(m, ELEMENTWISE))
        layers.append(Layer(path, weight, bias, slices.get(names[0]), slices.get(names[1]), activations))
    return Chain(problem, tuple(before), tuple(layers))


def leaves_of(
    model: nn.Module, kinds: tuple[type[nn.Module], ...], path: str = ""
) -> list[tuple[str, nn.Module]] | None:
    """Leaves of nested ``Sequential`` containers in order; None where something else calls them or is among them."""
    hooks = (model._forward_hooks, model._forward_pre_hooks, model._backward_hooks, model._backward_pre_hooks)
    if any(hooks):
        return None
    if type(model) is nn.Sequential:
        found = []
        for name, child in model._modules.items():  # named_children() would leave out a module that is used again
            inner = leaves_of(child, kinds, f"{path}.{name}" if path else name)
            if inner is None:
                return None
            found += inner
        return found
    return [(path, model)] if type(model) in kinds else None


def forward(chain: Chain, where: slice, order: int) -> tuple[list[Tensor], list[Tensor], list[list[Tensor]]]:
    """Augmented inputs, outputs, and derivatives of the activations (up to ``order``) of each layer."""
    signal = chain.problem.inputs[where]
    for module in chain.before:
        signal = module(signal)
    inputs, outputs, slopes = [], [], []
    for layer in chain.layers:
        inputs.append(signal if layer.bias is None else torch.cat([signal, torch.ones_like(signal[:, :1])], dim=1))
        z = torch.nn.functional.linear(signal, layer.weight, layer.bias)
        outputs.append(z)
        signal, *derivatives = activate(layer.activations, z, order)
        slopes.append(derivatives)
    return inputs, outputs, slopes


def activate(activations: tuple[nn.Module, ...], z: Tensor, order: int) -> list[Tensor]:
    """Value and derivatives of an elementwise function; ones and zeros where there is none."""
    if not activations:
        return [z, torch.ones_like(z), torch.zeros_like(z)][: order + 1]
    variable = z.detach().clone().requires_grad_()
    with torch.enable_grad():
        value = variable
        for module in activations:
            value = module(value.clone())  # an in-place activation must not write into what autograd keeps
        found = [value]
        for _ in range(order):
            last = found[-1]
            if last.requires_grad:
                found.append(torch.autograd.grad(last.sum(), variable, create_graph=True, materialize_grads=True)[0])
            else:
                found.append(torch.zeros_like(z))
    return [part.detach() for part in found]


def places(layer: Layer) -> list[tuple[slice, slice]]:
    """Where the columns of augmented rows go: ``(columns, slice of the layout)``; frozen parts go nowhere."""
    fan_in = layer.weight.shape[1]
    found = []
    if layer.weight_slice is not None:
        found.append((slice(0, fan_in), layer.weight_slice))
    if layer.bias is not None and layer.bias_slice is not None:
        found.append((slice(fan_in, fan_in + 1), layer.bias_slice))
    return found


def matmul(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply; numpy's OpenBLAS is the faster GEMM on the CPU, and memory is shared."""
    if left.device.type == "cpu":
        return torch.from_numpy(np.matmul(left.numpy(), right.numpy(), out=None if out is None else out.numpy()))
    return torch.matmul(left, right, out=out)
