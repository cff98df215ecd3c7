"""What a module does while it runs: draws random numbers, writes into itself, drops digits; and which layer does it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "describe_layer",
    "first_layer",
    "generator_states",
    "graph_nodes",
    "narrower",
    "pre_activations_near_a_kink",
    "untouched_generators",
]

_KINKED = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.RReLU)  # at zero
_NEAR_KINK = 1e-8  # of the largest pre-activation of the layer: what a step of finite differences would cross


def describe_layer(path: str, layer: nn.Module) -> str:
    """Name a layer of a module in a message."""
    return f"layer {path!r} ({type(layer).__name__})" if path else f"the module ({type(layer).__name__})"


def first_layer(model: nn.Module, run: Callable[[], Any], guilty: Callable[[Any], bool]) -> str:
    """Name the first layer after which ``guilty(output)`` holds, innermost first, or else in which ``run`` fails.

    An empty string where there is none. What the layers raise is swallowed.
    """
    paths = {layer: path for path, layer in model.named_modules()}
    entered: list[nn.Module] = []
    found: list[nn.Module] = []

    def enter(layer: nn.Module, _inputs: Any) -> None:
        entered.append(layer)

    def leave(layer: nn.Module, _inputs: Any, output: Any) -> None:
        entered.pop()
        if not found and guilty(output):
            found.append(layer)

    handles = [layer.register_forward_pre_hook(enter) for layer in paths]
    handles += [layer.register_forward_hook(leave) for layer in paths]
    try:
        run()
    except Exception:  # anything may come out of a user's module; where it came out is the answer
        found += entered[-1:]
    finally:
        for handle in handles:
            handle.remove()
    return describe_layer(paths[found[0]], found[0]) if found else ""


def pre_activations_near_a_kink(model: nn.Module, run: Callable[[], Any]) -> tuple[int, int]:
    """How many inputs of piecewise linear activations lie at their kink at zero, or next to it, and of how many."""
    near = total = 0

    def look(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal near, total
        sizes = inputs[0].detach().abs()
        near += int((sizes <= _NEAR_KINK * sizes.max()).sum())
        total += sizes.numel()

    handles = [layer.register_forward_pre_hook(look) for layer in model.modules() if isinstance(layer, _KINKED)]
    try:
        if handles:
            run()
    finally:
        for handle in handles:
            handle.remove()
    return near, total


def generator_states(device: torch.device) -> dict[str, Any]:
    """States of the global random generators, for comparison."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002  # the legacy generator is the one that others draw from
    states = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (kind, keys.tobytes(), *rest),
        "random": random.getstate(),
    }
    if device.type == "cuda":
        states["torch.cuda"] = torch.cuda.get_rng_state(device).numpy().tobytes()
    return states


@contextmanager
def untouched_generators(devices: list[int]) -> Iterator[None]:
    """Put the global generators of torch (on the CPU and on these CUDA devices), NumPy and Python back afterwards."""
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            np.random.set_state(of_numpy)  # noqa: NPY002
            random.setstate(of_python)


def graph_nodes(tensor: Tensor) -> Iterator[Any]:
    """Nodes of the autograd graph behind a tensor."""
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [parent for parent, _ in node.next_functions]


def narrower(tensor: Any, dtype: torch.dtype) -> set[torch.dtype]:
    """Floating-point types with fewer digits than ``dtype`` that something on the way to a tensor was computed in."""
    if not isinstance(tensor, Tensor):
        return set()
    kinds = {about.dtype for node in graph_nodes(tensor) for about in getattr(node, "_input_metadata", ())}
    digits = torch.finfo(dtype).eps
    return {kind for kind in kinds if kind.is_floating_point and torch.finfo(kind).eps > digits}
