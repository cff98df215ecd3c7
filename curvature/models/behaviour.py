"""What a module does while it runs (draws random numbers, drops digits), and which of its layers does it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from curvature.models.module.named import NamedTensors

__all__ = [
    "cuda_devices",
    "describe_layer",
    "first_layer",
    "generator_states",
    "graph_nodes",
    "is_of_torch",
    "leaf_variables",
    "narrower",
    "pre_activations_near_a_kink",
    "untouched_generators",
]

_KINKED = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.RReLU)  # at zero
_NEAR_KINK = 1e-8  # of the largest pre-activation of the layer: what a step of finite differences would cross


def describe_layer(path: str, layer: nn.Module) -> str:
    """Name a layer of a module in a message.

    Parameters
    ----------
    path
        Its path; empty for the module itself.
    layer
        The layer.

    Returns
    -------
    str
        Path and type.
    """
    if isinstance(layer, NamedTensors):
        return f"the function {layer.name!r}"
    return f"layer {path!r} ({type(layer).__name__})" if path else f"the module ({type(layer).__name__})"


def first_layer(model: nn.Module, run: Callable[[], object], guilty: Callable[[object], bool]) -> str:
    """Name the first layer whose output meets a condition, innermost first, or in which the run fails.

    Parameters
    ----------
    model
        Whose layers are watched, by hooks that are removed afterwards.
    run
        Runs the model. What it raises is not passed on.
    guilty
        Whether an output is the one that is searched for.

    Returns
    -------
    str
        The layer, or an empty string where there is none.
    """
    entered: list[str] = []
    matches: list[str] = []
    deciding: list[bool] = []  # activation checkpoints run layers again while an output is differentiated

    def watch(label: str, layer: nn.Module) -> Iterator[RemovableHandle]:
        def enter(_layer: nn.Module, _inputs: object) -> None:
            if not deciding:
                entered.append(label)

        def leave(_layer: nn.Module, _inputs: object, output: object) -> None:
            if deciding:
                return
            entered.pop()
            deciding.append(True)
            if not matches and guilty(output):
                matches.append(label)
            deciding.clear()

        yield layer.register_forward_pre_hook(enter)
        yield layer.register_forward_hook(leave)

    handles = [handle for path, layer in model.named_modules() for handle in watch(describe_layer(path, layer), layer)]
    try:
        run()
    except Exception:  # a user's module may raise anything; the layer that raised it is the answer
        matches += entered[-1:]
    finally:
        for handle in handles:
            handle.remove()
    return matches[0] if matches else ""


def pre_activations_near_a_kink(model: nn.Module, run: Callable[[], object]) -> tuple[int, int]:
    """Count the inputs of piecewise linear activations that are at their kink at zero, or next to it.

    Parameters
    ----------
    model
        Whose activations are watched, by hooks that are removed afterwards.
    run
        Runs the model.

    Returns
    -------
    near, total
        How many inputs are within 1e-8 of zero, relative to the largest of their layer, and how many there are.
    """
    near = total = 0

    def count(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal near, total
        sizes = inputs[0].detach().abs()
        near += int((sizes <= _NEAR_KINK * sizes.max()).sum())
        total += sizes.numel()

    handles = [layer.register_forward_pre_hook(count) for layer in model.modules() if isinstance(layer, _KINKED)]
    try:
        if handles:
            run()
    finally:
        for handle in handles:
            handle.remove()
    return near, total


def generator_states(device: torch.device) -> dict[str, object]:
    """Read the states of the global random generators, for comparison.

    Parameters
    ----------
    device
        A CUDA device adds its generator.

    Returns
    -------
    dict
        The state of each generator, by the name of its package.
    """
    numpy_state: Any = np.random.get_state()  # noqa: NPY002  # the legacy generator is the one that others draw from
    kind, keys, *rest = numpy_state
    states: dict[str, object] = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (kind, keys.tobytes(), *rest),
        "random": random.getstate(),
    }
    if device.type == "cuda":
        states["torch.cuda"] = torch.cuda.get_rng_state(device).numpy().tobytes()
    return states


def cuda_devices(module: object) -> list[int]:
    """Find the CUDA devices that a module is on.

    Parameters
    ----------
    module
        Any module; anything else is on none.

    Returns
    -------
    list
        Indices, ascending.
    """
    if not isinstance(module, nn.Module):
        return []
    return sorted({parameter.device.index or 0 for parameter in module.parameters() if parameter.is_cuda})


@contextmanager
def untouched_generators(devices: list[int]) -> Iterator[None]:
    """Restore the global generators of torch, NumPy and Python afterwards.

    Parameters
    ----------
    devices
        Indices of the CUDA devices whose generators are restored too.

    Yields
    ------
    None
        While anything may draw.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def is_of_torch(function: Callable) -> bool:
    """Whether PyTorch defines a function, or the class of a callable object or of the object of a bound method.

    Parameters
    ----------
    function
        Any callable.

    Returns
    -------
    bool
        Where it was defined decides, not the name that ``functools.wraps`` gives it.
    """
    owner = getattr(function, "__self__", function)
    name = str(owner.__globals__.get("__name__")) if isinstance(owner, FunctionType) else type(owner).__module__
    return name.partition(".")[0] == "torch"


def graph_nodes(tensor: Tensor) -> Iterator[Any]:
    """Walk the autograd graph behind a tensor.

    Parameters
    ----------
    tensor
        Any tensor; one without a graph has no nodes.

    Yields
    ------
    torch.autograd.graph.Node
        Each node once.
    """
    seen: set[Any] = set()
    waiting: list[Any] = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [parent for parent, _ in node.next_functions]


def leaf_variables(tensor: Tensor) -> list[Tensor]:
    """List the tensors that require gradients at the beginning of the autograd graph of a tensor.

    Parameters
    ----------
    tensor
        Any tensor; one without a graph has none, but a leaf that requires gradients is its own.

    Returns
    -------
    list of Tensor
        Each once.
    """
    if tensor.is_leaf:
        return [tensor] if tensor.requires_grad else []
    return [node.variable for node in graph_nodes(tensor) if hasattr(node, "variable")]


def narrower(tensor: object, dtype: torch.dtype) -> set[torch.dtype]:
    """Find the floating-point types with fewer digits that something in the graph of a tensor was computed in.

    Parameters
    ----------
    tensor
        The end of the graph; anything but a tensor has none.
    dtype
        The precision that is expected.

    Returns
    -------
    set
        The types with fewer digits than ``dtype``.
    """
    if not isinstance(tensor, Tensor):
        return set()
    dtypes = {metadata.dtype for node in graph_nodes(tensor) for metadata in getattr(node, "_input_metadata", ())}
    eps = torch.finfo(dtype).eps
    return {kind for kind in dtypes if kind.is_floating_point and torch.finfo(kind).eps > eps}
