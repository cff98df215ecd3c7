"""A module made of named tensors and a function of them, so that a bare objective is treated as a model is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from curvature.errors import InputError
from curvature.models.trees import leaves_by_name, mapped

__all__ = ["NamedTensors"]


class NamedTensors(nn.Module):
    """Named tensors as parameters; ``forward`` calls a function of them.

    Parameters
    ----------
    function
        Called with the tensors, then with the inputs.
    tensors
        Copied. A dot in a name separates a layer from its parameter, as in a module. An ``nn.Parameter`` with
        ``requires_grad=False`` is held fixed.
    name
        Of the function, for messages.
    only
        Whether there is one tensor, which the function takes instead of a dictionary.
    takes_inputs
        Whether the function is called with data. Otherwise its value is a single example.
    one_by_one
        Whether the function is called for one example after another, since it returns one number for all of them.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        tensors: Mapping[str, Tensor],
        name: str,
        *,
        only: bool = False,
        takes_inputs: bool = False,
        one_by_one: bool = False,
    ):
        super().__init__()
        self.function = partial(function)  # a module as an attribute would be a layer
        self.names = tuple(tensors)
        self.name, self.only, self.takes_inputs, self.one_by_one = name, only, takes_inputs, one_by_one
        for path, tensor in tensors.items():
            fixed = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
            layer, leaf = _made(self, path)
            # Not register_parameter: it refuses names of methods, such as "type", which nothing here looks up.
            layer._parameters[leaf] = nn.Parameter(tensor.detach().clone(), requires_grad=not fixed)

    def forward(self, *inputs: Any, **named_inputs: Any) -> Any:
        """Call the function with the tensors as they are now."""
        given = self.argument(self.tensors())
        if not self.takes_inputs:
            value = self.function(given)
            return value.reshape(1, *value.shape)
        if not self.one_by_one:
            return self.function(given, *inputs, **named_inputs)
        rows = range(len(_first_leaf((inputs, named_inputs))))
        return torch.stack([self.function(given, *_row(inputs, n), **_row(named_inputs, n)).reshape(()) for n in rows])

    def argument(self, tensors: dict[str, Tensor]) -> Any:
        """What the function takes: the tensors by name, or the only one."""
        return tensors[self.names[0]] if self.only else tensors

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, in the order in which they were given."""
        tensors: dict[str, Tensor] = {}
        for name in self.names:
            path, _, leaf = name.rpartition(".")
            tensor = self.get_submodule(path)._parameters[leaf]
            assert tensor is not None
            tensors[name] = tensor
        return tensors


def _first_leaf(structure: Any) -> Tensor:
    return next(leaf for _, leaf in leaves_by_name(structure, ""))


def _row(structure: Any, n: int) -> Any:
    return mapped(lambda leaf: leaf[n : n + 1], structure)


def _made(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The layer of a name, made where it is missing, and what remains of the name."""
    *path, leaf = name.split(".")
    if not all((*path, leaf)):
        raise InputError(f"the parameter name {name!r} has an empty part. Use names such as 'rate' or 'layer.weight'.")
    for part in path:
        if part in module._parameters or (part not in module._modules and hasattr(module, part)):
            raise InputError(
                f"the parameter name {name!r} needs a layer {part!r}, but that is the name of another parameter or of "
                "a method of torch.nn.Module. Rename one of them."
            )
        if part not in module._modules:
            module._modules[part] = nn.Module()
        child = module._modules[part]
        assert child is not None
        module = child
    if leaf in module._modules:
        raise InputError(f"the parameter {name!r} has the name of a layer of other parameters. Rename one of them.")
    return module, leaf
