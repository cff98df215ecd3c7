"""Which layer has a wrong derivative: each layer alone is compared with finite differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from curvature.models.behaviour import describe_layer
from curvature.models.function import ModelFunction
from curvature.models.trees import Tensors, leaves_by_name, mapped
from curvature.models.trial.differences import fixed_direction

__all__ = ["wrong_layer"]

_OFF = 1e-5  # relative difference of a derivative from finite differences that shows another function


class _Call(NamedTuple):
    """A call of a layer while the model ran."""

    path: str
    layer: nn.Module
    args: tuple
    kwargs: dict[str, Any]

    @property
    def prefix(self) -> str:
        return f"{self.path}." if self.path else ""


def wrong_layer(function: ModelFunction, weights: Tensor, inputs: Tensors) -> str:
    """Find the first layer, innermost first, whose derivatives differ from finite differences.

    Parameters
    ----------
    function
        The model.
    weights
        The point ``(P,)``.
    inputs
        A few examples ``(N, ...)``.

    Returns
    -------
    str
        The layer and its wrong derivative, for a message; empty if each layer alone is right.

    Notes
    -----
    Every layer is run alone, on the inputs that it gets in the model, and a sum of its outputs is differentiated once
    and twice by its parameters and inputs together, along one direction.
    """
    named = function.named(weights)
    for call in _calls(function, weights, inputs):
        own = {name: part for name, part in named.items() if name.startswith(call.prefix)}
        with suppress(Exception):  # a layer that cannot be run alone is not judged
            value, point = _alone(function, call, own)
            if wrong := _wrong(value, point):
                return f"{describe_layer(call.path, call.layer)} has a wrong {wrong}"
    return ""


def _calls(function: ModelFunction, weights: Tensor, inputs: Tensors) -> list[_Call]:
    """The calls of all layers in the order in which they end, with copies of their arguments."""
    calls: list[_Call] = []

    def recorder(path: str, layer: nn.Module) -> Callable[..., None]:
        def record(_layer: nn.Module, args: tuple, kwargs: dict[str, Any], _output: object) -> None:
            calls.append(_Call(path, layer, _copied(args), _copied(kwargs)))

        return record

    layers = list(function.module.named_modules())
    handles = [layer.register_forward_hook(recorder(path, layer), with_kwargs=True) for path, layer in layers]
    try:
        with torch.no_grad(), suppress(Exception):
            function.predict(weights, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _copied(arguments: Any) -> Any:
    return mapped(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, arguments)


def _alone(function: ModelFunction, call: _Call, own: dict[str, Tensor]) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A scalar of the outputs of one layer as a function of its parameters and inputs in one vector, and the vector."""
    given = (own, call.args, call.kwargs)
    variables = [leaf for leaf in _tensors(given) if leaf.is_floating_point()]

    def value(point: Tensor) -> Tensor:
        parts = iter(point.split([variable.numel() for variable in variables]))

        def moved(leaf: Any) -> Any:
            floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
            return next(parts).view_as(leaf).clone() if floating else leaf

        weights, args, kwargs = mapped(moved, given)
        with function.context(weights):
            relative = {name.removeprefix(call.prefix): part for name, part in weights.items()}
            outputs = torch.func.functional_call(call.layer, relative, args, kwargs)
        terms = [output for output in _tensors(outputs) if output.is_floating_point()]
        return torch.stack([(fixed_direction(term) * term + 0.5 * term**2).sum() for term in terms]).sum()

    return value, torch.cat([variable.reshape(-1) for variable in variables])


def _tensors(structure: Any) -> Iterator[Tensor]:
    return (leaf for _, leaf in leaves_by_name(structure, "") if isinstance(leaf, Tensor))


def _wrong(value: Callable[[Tensor], Tensor], point: Tensor) -> str:
    """Which derivative of a scalar function is wrong along a fixed direction; empty if both are right."""
    direction = fixed_direction(point)

    def gradient(at: Tensor, graph: bool = False) -> tuple[Tensor, Tensor]:
        variable = at.clone().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(value(variable), variable, create_graph=graph, materialize_grads=True)
        return slope, variable

    slope, variable = gradient(point, graph=True)
    if _differs(lambda at: value(at).detach()[None], point, (slope.detach() @ direction)[None]):
        return "backward pass (detach(), .data or torch.no_grad() in forward, or a custom function)"
    if not slope.requires_grad:
        return ""
    (second,) = torch.autograd.grad(slope @ direction, variable, allow_unused=True, materialize_grads=True)
    return "double backward" if _differs(lambda at: gradient(at)[0].detach(), point, second) else ""


def _differs(function: Callable[[Tensor], Tensor], point: Tensor, slope: Tensor) -> bool:
    """Whether a derivative along the direction contradicts central differences of two lengths that agree."""
    direction, quotients = fixed_direction(point), []
    length = torch.finfo(point.dtype).eps ** (1 / 3) * float(torch.linalg.vector_norm(point).clamp(min=1))
    for step in (part * length / float(torch.linalg.vector_norm(direction)) for part in (1.0, 0.3)):
        quotients.append((function(point + step * direction) - function(point - step * direction)) / (2 * step))
    size = max(float(part.abs().max()) for part in (slope, *quotients))
    steady = float((quotients[0] - quotients[1]).abs().max())  # large next to a kink
    return float((quotients[0] - slope).abs().max()) > max(_OFF * size, 10 * steady)
