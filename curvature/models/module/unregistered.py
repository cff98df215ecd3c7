"""Trainable tensors of a module that are not registered with PyTorch: in attributes, lists and dictionaries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType

from torch import Tensor, nn

__all__ = ["unregistered"]

_OWN = frozenset(vars(nn.Module()))  # attributes that torch keeps in every module


def unregistered(module: nn.Module) -> list[tuple[str, Tensor]]:
    """List leaf tensors that require gradients in buffers, attributes, lists, dictionaries and objects of the layers.

    Parameters
    ----------
    module
        Any module.

    Returns
    -------
    list of (str, Tensor)
        Path and tensor, each once; registered parameters are left out.
    """
    seen = {id(parameter) for parameter in module.parameters()}
    tensors = [(name, buffer) for name, buffer in module.named_buffers() if buffer.requires_grad]
    for path, layer in module.named_modules():
        for name, value in vars(layer).items():
            cached = isinstance(layer, nn.RNNBase) and name == "_flat_weights"  # its own weights, in another order
            if name not in _OWN and not cached:
                tensors += _trainable(value, f"{path}.{name}" if path else name, seen)
    return tensors


def _trainable(value: object, path: str, seen: set[int], *, objects: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Trainable leaves in a value of an attribute; each object is visited once."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if value.is_leaf and value.requires_grad:
            yield path, value
        return
    for part, inner in _parts(value):
        yield from _trainable(inner, f"{path}{part}", seen, objects=objects)
    if objects and _is_users_object(value):
        for name, inner in vars(value).items():
            yield from _trainable(inner, f"{path}.{name}", seen, objects=False)


def _parts(value: object) -> Iterable[tuple[str, object]]:
    """What a container holds, with the end of its path."""
    if isinstance(value, nn.Module):
        return [(f".{name}", parameter) for name, parameter in value.named_parameters()]
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", inner) for key, inner in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [(f"[{index}]", inner) for index, inner in enumerate(value)]
    return []


def _is_users_object(value: object) -> bool:
    """Whether an object may hold layers in its attributes: an instance of a class defined outside PyTorch."""
    if isinstance(value, nn.Module | type | FunctionType | MethodType | ModuleType) or not hasattr(value, "__dict__"):
        return False
    return type(value).__module__.partition(".")[0] not in ("torch", "builtins")
