"""Which models are chains of linear layers and elementwise activations, and their forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

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
    "shares_parameters",
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

    @cached_property
    def fan_out(self) -> int:
        """Number of outputs."""
        return self.weight.shape[0]

    @cached_property
    def fan_in(self) -> int:
        """Number of inputs, the appended 1 not included."""
        return self.weight.shape[1]

    @cached_property
    def columns(self) -> int:
        """Length of an augmented row: inputs, and 1 if there is a bias."""
        return self.fan_in + (self.bias is not None)

    @cached_property
    def places(self) -> list[tuple[slice, slice]]:
        """Where the columns of augmented rows go: ``(columns, slice of the layout)``; frozen parts go nowhere."""
        spans = []
        if self.weight_slice is not None:
            spans.append((slice(0, self.fan_in), self.weight_slice))
        if self.bias is not None and self.bias_slice is not None:
            spans.append((slice(self.fan_in, self.fan_in + 1), self.bias_slice))
        return spans


@dataclass(frozen=True, eq=False)
class Chain:
    """A problem whose model is a chain of linear layers and elementwise activations."""

    problem: Problem
    before: tuple[nn.Module, ...]
    layers: tuple[Layer, ...]


def chain_of(problem: Problem) -> Chain | None:
    """Read the model of a problem as a chain.

    Parameters
    ----------
    problem
        Whose model is read.

    Returns
    -------
    Chain or None
        None if it is anything else.
    """
    modules = leaves_of(problem.model, (nn.Linear, nn.Flatten, *ELEMENTWISE, *NEUTRAL))
    if modules is None or problem.aliases or problem.inputs.ndim < 2 or not problem.inputs.is_floating_point():
        return None
    if shares_parameters(module for _, module in modules):
        return None
    before, groups = _grouped(modules)
    if not groups or not all(isinstance(module, (nn.Flatten, *NEUTRAL)) for module in before):
        return None
    if not all(isinstance(module, ELEMENTWISE + NEUTRAL) for *_, behind in groups for module in behind):
        return None
    signal = problem.inputs[:1]
    for module in before:
        signal = module(signal)
    if signal.ndim != 2 or len(signal) != 1:  # one vector per example; a linear layer on positions shares its weights
        return None
    if any(isinstance(module, ELEMENTWISE) for module in groups[-1][2]):
        return None
    return Chain(problem, tuple(before), tuple(_layer(problem, *group) for group in groups))


_Group = tuple[str, nn.Linear, list[nn.Module]]


def _grouped(modules: list[tuple[str, nn.Module]]) -> tuple[list[nn.Module], list[_Group]]:
    """What comes before the first linear layer, and each linear layer with its path and what comes behind it."""
    before: list[nn.Module] = []
    groups: list[_Group] = []
    for path, module in modules:
        if isinstance(module, nn.Linear):
            groups.append((path, module, []))
        elif groups:
            groups[-1][2].append(module)
        else:
            before.append(module)
    return before, groups


def _layer(problem: Problem, path: str, module: nn.Linear, behind: list[nn.Module]) -> Layer:
    named, slices = problem.unflatten(problem.weights), problem.layout.slices
    weight_name, bias_name = (f"{path}.{leaf}" if path else leaf for leaf in ("weight", "bias"))
    weight, bias = named.get(weight_name, module.weight), named.get(bias_name, module.bias)
    activations = tuple(part for part in behind if isinstance(part, ELEMENTWISE))
    return Layer(path, weight, bias, slices.get(weight_name), slices.get(bias_name), activations)


def shares_parameters(modules: Iterable[nn.Module]) -> bool:
    """Whether a parameter belongs to two modules, or twice to one.

    Parameters
    ----------
    modules
        Leaves of the model, in order.

    Returns
    -------
    bool
        Then no closed form is used.
    """
    identities = [id(parameter) for module in modules for parameter in module.parameters()]
    return len(set(identities)) < len(identities)


def leaves_of(
    model: nn.Module, kinds: tuple[type[nn.Module], ...], path: str = ""
) -> list[tuple[str, nn.Module]] | None:
    """Leaves of nested ``Sequential`` containers in order.

    Parameters
    ----------
    model
        A container, or a leaf.
    kinds
        Types of leaves that are known; a subclass may compute something else, so it is not.
    path
        Of the model in the whole.

    Returns
    -------
    list of (str, Module), or None
        Path and module of each; None where another container, a hook or an unknown leaf is among them.
    """
    hooks = (model._forward_hooks, model._forward_pre_hooks, model._backward_hooks, model._backward_pre_hooks)
    if any(hooks):
        return None
    if type(model) is nn.Sequential:
        leaves: list[tuple[str, nn.Module]] = []
        for name, child in model._modules.items():  # named_children() would leave out a module that is used again
            assert child is not None
            inner = leaves_of(child, kinds, f"{path}.{name}" if path else name)
            if inner is None:
                return None
            leaves += inner
        return leaves
    return [(path, model)] if type(model) in kinds else None


def forward(chain: Chain, examples: slice, order: int) -> tuple[list[Tensor], list[Tensor], list[list[Tensor]]]:
    """Run some examples through a chain.

    Parameters
    ----------
    chain
        Layers with their weights.
    examples
        Which ones.
    order
        Of the derivatives of the activations.

    Returns
    -------
    tuple of list
        For each layer: augmented inputs ``(n, columns)``, outputs ``(n, fan_out)``, and derivatives of the activations
        behind it, ``(n, fan_out)`` each.
    """
    signal = chain.problem.inputs[examples]
    for module in chain.before:
        signal = module(signal)
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    slopes: list[list[Tensor]] = []
    for layer in chain.layers:
        inputs.append(signal if layer.bias is None else torch.cat([signal, torch.ones_like(signal[:, :1])], dim=1))
        z = torch.nn.functional.linear(signal, layer.weight, layer.bias)
        outputs.append(z)
        signal, *derivatives = activate(layer.activations, z, order)
        slopes.append(derivatives)
    return inputs, outputs, slopes


def activate(activations: tuple[nn.Module, ...], z: Tensor, order: int) -> list[Tensor]:
    """Value and derivatives of an elementwise function; ones and zeros where there is none.

    Parameters
    ----------
    activations
        Applied one after the other.
    z
        Where.
    order
        Of the highest derivative.

    Returns
    -------
    list of Tensor
        ``order + 1`` tensors like ``z``.
    """
    if not activations:
        return [z, torch.ones_like(z), torch.zeros_like(z)][: order + 1]
    variable = z.detach().clone().requires_grad_()
    with torch.enable_grad():
        value = variable
        for module in activations:
            value = module(value.clone())  # an in-place activation must not write into what autograd keeps
        derivatives = [value]
        for _ in range(order):
            last = derivatives[-1]
            if last.requires_grad:
                (slope,) = torch.autograd.grad(last.sum(), variable, create_graph=True, materialize_grads=True)
                derivatives.append(slope)
            else:
                derivatives.append(torch.zeros_like(z))
    return [part.detach() for part in derivatives]


def matmul(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply; NumPy's OpenBLAS is the faster GEMM on the CPU, and memory is shared.

    Parameters
    ----------
    left, right
        As for ``torch.matmul``.
    out
        Where the product is written; None: a new tensor.

    Returns
    -------
    Tensor
        The product.
    """
    if left.device.type == "cpu":
        return torch.from_numpy(np.matmul(left.numpy(), right.numpy(), out=None if out is None else out.numpy()))
    return torch.matmul(left, right, out=out)
