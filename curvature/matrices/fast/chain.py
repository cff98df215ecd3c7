"""Chains of linear layers and elementwise activations: recognition of the structure, and the forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from curvature.arrays import Float
from curvature.models import Problem
from curvature.models.module.replaced import runs_its_type

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
# Dropout is in eval mode: a problem refuses training mode.
NEUTRAL = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer and the activations after it.

    Attributes
    ----------
    path
        Name of the module.
    weight, bias
        Parameters at the point of the problem; no bias: None.
    weight_slice, bias_slice
        Their slices of the flat weights; None if they are frozen.
    activations
        Elementwise modules after the layer, in order.
    """

    path: str
    weight: Float[Tensor, "rows length"]
    bias: Float[Tensor, "rows"] | None
    weight_slice: slice | None
    bias_slice: slice | None
    activations: tuple[nn.Module, ...]

    @cached_property
    def fan_out(self) -> int:
        """Number of outputs."""
        return self.weight.shape[0]

    @cached_property
    def fan_in(self) -> int:
        """Number of inputs, without the appended 1."""
        return self.weight.shape[1]

    @cached_property
    def columns(self) -> int:
        """Length of an augmented row: the inputs, and a 1 if there is a bias."""
        return self.fan_in + (self.bias is not None)

    @cached_property
    def places(self) -> list[tuple[slice, slice]]:
        """Trained columns of augmented rows with their slices of the flat weights."""
        spans = []
        if self.weight_slice is not None:
            spans.append((slice(0, self.fan_in), self.weight_slice))
        if self.bias is not None and self.bias_slice is not None:
            spans.append((slice(self.fan_in, self.fan_in + 1), self.bias_slice))
        return spans


@dataclass(frozen=True, eq=False)
class Chain:
    """A problem whose model is a chain of linear layers and elementwise activations.

    Attributes
    ----------
    problem
        Model, loss and data, at a point.
    before
        Modules without weights before the first layer, e.g. ``Flatten``.
    layers
        The linear layers, in order.
    """

    problem: Problem
    before: tuple[nn.Module, ...]
    layers: tuple[Layer, ...]


def chain_of(problem: Problem) -> Chain | None:
    """Read the model of a problem as a chain.

    Parameters
    ----------
    problem
        The problem, whose model is inspected.

    Returns
    -------
    Chain or None
        None if the model has another structure.
    """
    modules = leaves_of(problem.model, (nn.Linear, nn.Flatten, *ELEMENTWISE, *NEUTRAL))
    if modules is None or problem.aliases or problem.inputs.ndim < 2 or not problem.inputs.is_floating_point():
        return None
    if shares_parameters(module for _, module in modules):
        return None
    before, groups = _grouped(modules)
    if not groups or not all(isinstance(module, (nn.Flatten, *NEUTRAL)) for module in before):
        return None
    if not all(isinstance(module, ELEMENTWISE + NEUTRAL) for *_, after in groups for module in after):
        return None
    signal = problem.inputs[:1]
    for module in before:
        signal = module(signal)
    if (
        signal.ndim != 2 or len(signal) != 1
    ):  # not one vector per example: the layers would be applied at many positions
        return None
    if any(isinstance(module, ELEMENTWISE) for module in groups[-1][2]):
        return None
    return Chain(problem, tuple(before), tuple(_layer(problem, *group) for group in groups))


_Group = tuple[str, nn.Linear, list[nn.Module]]


def _grouped(modules: list[tuple[str, nn.Module]]) -> tuple[list[nn.Module], list[_Group]]:
    """Modules before the first linear layer; and each linear layer with its path and the modules after it."""
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


def _layer(problem: Problem, path: str, module: nn.Linear, after: list[nn.Module]) -> Layer:
    named, slices = problem.unflatten(problem.weights), problem.layout.slices
    weight_name, bias_name = (f"{path}.{leaf}" if path else leaf for leaf in ("weight", "bias"))
    weight, bias = named.get(weight_name, module.weight), named.get(bias_name, module.bias)
    activations = tuple(part for part in after if isinstance(part, ELEMENTWISE))
    return Layer(path, weight, bias, slices.get(weight_name), slices.get(bias_name), activations)


def shares_parameters(modules: Iterable[nn.Module]) -> bool:
    """Decide whether a parameter is used by two modules, or twice by one.

    Parameters
    ----------
    modules
        Leaves of the model, in order.

    Returns
    -------
    bool
        True for shared parameters, which no closed form covers.
    """
    identities = [id(parameter) for module in modules for parameter in module.parameters()]
    return len(set(identities)) < len(identities)


def leaves_of(
    model: nn.Module, kinds: tuple[type[nn.Module], ...], path: str = ""
) -> list[tuple[str, nn.Module]] | None:
    """List the leaves of nested ``Sequential`` containers in order.

    Parameters
    ----------
    model
        A container or a leaf.
    kinds
        Known types of leaves. Subclasses are not accepted, because they may compute something else.
    path
        Name of ``model`` in the whole model.

    Returns
    -------
    list of (str, Module), or None
        Name and module of each leaf; None if there is another container, an unknown leaf, a hook, or code that was
        replaced on an instance.
    """
    if not runs_its_type(model):
        return None
    if type(model) is nn.Sequential:
        leaves: list[tuple[str, nn.Module]] = []
        for name, child in model._modules.items():  # named_children() omits a module that is used again
            assert child is not None
            inner = leaves_of(child, kinds, f"{path}.{name}" if path else name)
            if inner is None:
                return None
            leaves += inner
        return leaves
    return [(path, model)] if type(model) in kinds else None


def forward(
    chain: Chain, examples: slice, order: int
) -> tuple[
    list[Float[Tensor, "examples _"]], list[Float[Tensor, "examples _"]], list[list[Float[Tensor, "examples _"]]]
]:
    """Run a chain on some examples.

    Parameters
    ----------
    chain
        Layers with their weights.
    examples
        Slice of the examples.
    order
        Highest derivative of the activations.

    Returns
    -------
    tuple of list
        For each layer: augmented inputs $a_l$, ``(n, columns)``; outputs $z_l$, ``(n, fan_out)``; and derivatives of
        the activations after it, ``order`` tensors ``(n, fan_out)``.
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


def activate(
    activations: tuple[nn.Module, ...], z: Float[Tensor, "*points"], order: int
) -> list[Float[Tensor, "*points"]]:
    """Compute value and derivatives of elementwise functions, by autograd.

    Parameters
    ----------
    activations
        Elementwise modules, applied one after the other; none: the identity.
    z
        Their input.
    order
        Highest derivative, at most 2.

    Returns
    -------
    list of Tensor
        Value and derivatives, ``order + 1`` tensors like ``z``.
    """
    if not activations:
        return [z, torch.ones_like(z), torch.zeros_like(z)][: order + 1]
    variable = z.detach().clone().requires_grad_()
    with torch.enable_grad():
        value = variable
        for module in activations:
            value = module(value.clone())  # an in-place activation must not overwrite a tensor that autograd saved
        derivatives = [value]
        for _ in range(order):
            # Elementwise: the gradient of the sum is the derivative of each element.
            last = derivatives[-1]
            if last.requires_grad:
                (slope,) = torch.autograd.grad(last.sum(), variable, create_graph=True, materialize_grads=True)
                derivatives.append(slope)
            else:
                derivatives.append(torch.zeros_like(z))
    return [part.detach() for part in derivatives]


def matmul(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply matrices, on the CPU by NumPy.

    Parameters
    ----------
    left, right
        As for ``torch.matmul``.
    out
        Tensor for the result; None: a new one.

    Returns
    -------
    Tensor
        The product.

    Notes
    -----
    NumPy's OpenBLAS was measured 1.4 to 2.1 times as fast as torch's MKL for sizes from 512 to 2048 in float64. The
    memory is shared, so nothing is copied.
    """
    if left.device.type == "cpu":
        return torch.from_numpy(np.matmul(left.numpy(), right.numpy(), out=None if out is None else out.numpy()))
    return torch.matmul(left, right, out=out)
