"""Forward hooks of a private copy: those that only record are removed, those that change the outputs stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from curvature.models.behaviour import is_of_torch
from curvature.models.function import ModelFunction
from curvature.models.trees import Tensors

__all__ = ["remove_recording_hooks"]

_MOVED = 1.0 + 2.0**-7  # times every weight, for the comparison with and without hooks


def remove_recording_hooks(function: ModelFunction, weights: Tensor, inputs: Tensors) -> None:
    """Remove the user's hooks that have no influence on the outputs, before they record thousands of passes.

    Parameters
    ----------
    function
        A private copy of a module; changed in place.
    weights
        The point ``(P,)``.
    inputs
        All examples ``(N, ...)``.

    Notes
    -----
    A hook is a candidate if it returns None and writes into none of its arguments, in a pass over all examples. It
    could still record what ``forward`` reads later. So all candidates are removed only if the outputs at other weights,
    for other examples, are the same to the last bit without them.
    """
    watched = [_Watched(hooks, key, hook) for hooks, key, hook in _users_hooks(function.module)]
    if not watched:
        return
    for hook in watched:
        hook.watch()
    _outputs(function, weights, inputs)
    idle = [hook for hook in watched if not hook.acted]
    for hook in watched:
        hook.remove() if hook in idle else hook.restore()
    others = inputs[1:] if len(inputs) > 1 else inputs
    moved = _MOVED * weights
    # Without the hooks first: what they have recorded still belongs to the pass before, and would be seen here.
    without = _outputs(function, moved, others)
    for hook in idle:
        hook.restore()
    recorded = _outputs(function, moved, others)
    if without is not None and recorded is not None and torch.equal(without, recorded):
        for hook in idle:
            hook.remove()


def _outputs(function: ModelFunction, weights: Tensor, inputs: Tensors) -> Tensor | None:
    try:
        with torch.no_grad():
            outputs = function.predict(weights, inputs)
    except Exception:  # without its hooks, a user's module may raise anything
        return None
    return outputs if isinstance(outputs, Tensor) else None


def _users_hooks(module: nn.Module) -> Iterator[tuple[MutableMapping, int, Callable]]:
    """Every forward hook that is not PyTorch's own, such as that of pruning or spectral norm."""
    for layer in module.modules():
        for hooks in (layer._forward_pre_hooks, layer._forward_hooks):
            for key, hook in list(hooks.items()):
                if not is_of_torch(hook):
                    yield hooks, key, hook


class _Watched:
    """A hook that can be watched, removed and restored in its place."""

    def __init__(self, hooks: MutableMapping, key: int, hook: Callable):
        self.hooks, self.key, self.hook = hooks, key, hook
        self.order = list(hooks)
        self.acted = False

    def watch(self) -> None:
        self.hooks[self.key] = self._run

    def remove(self) -> None:
        self.hooks.pop(self.key, None)

    def restore(self) -> None:
        self.hooks[self.key] = self.hook
        present = dict(self.hooks)
        self.hooks.clear()
        self.hooks.update({key: present[key] for key in self.order if key in present})

    def _run(self, *arguments: Any) -> Any:
        before = _versions(arguments)
        result = self.hook(*arguments)
        self.acted |= result is not None or _versions(arguments) != before
        return result


def _versions(value: Any) -> list[int]:
    """How often each tensor in containers has been written to."""
    if isinstance(value, Tensor):
        return [value._version]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [version for part in value for version in _versions(part)]
    return []
