"""Items of a dataset and batches of a loader: which part is the target, and how their tensors are joined."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvature.errors import InputError
from curvature.models.data.reading import array_as_tensor
from curvature.models.trees import leaves_by_name, mapped

__all__ = ["TARGET_NAMES", "is_list_of_batches", "joined", "split", "tensors_of"]

TARGET_NAMES = ("labels", "label", "targets", "target", "y")


def split(item: Any, name: str, forward: Callable[..., Any] | None = None) -> tuple[Any, Any]:
    """Split an item or a batch into inputs and target.

    Parameters
    ----------
    item
        A pair ``(inputs, target)``; several inputs and the target ``(x1, x2, ..., y)``; or a dictionary with one of
        the entries ``labels``, ``label``, ``targets``, ``target`` and ``y``, which is the target.
    name
        What the item is, for messages.
    forward
        Of the model, which decides the number of inputs; None accepts any number.

    Returns
    -------
    inputs, target
        As they were given.

    Raises
    ------
    InputError
        If it is anything else, or it is not clear which part is the target.
    """
    if isinstance(item, Mapping):
        return _split_dictionary(item, name)
    if not isinstance(item, tuple | list) or len(item) < 2:
        kind = type(item).__name__ + (f" of length {len(item)}" if isinstance(item, tuple | list) else "")
        raise InputError(
            f"{name} must be a pair (input, target), several inputs and the target (x1, x2, ..., y), or a dictionary "
            f"with one entry named {' or '.join(TARGET_NAMES)}; got {kind}."
        )
    if len(item) == 2:
        return item[0], item[1]
    _refuse_doubtful(len(item) - 1, name, forward)
    return tuple(item[:-1]), item[-1]


def _split_dictionary(item: Mapping, name: str) -> tuple[Any, Any]:
    present = [key for key in TARGET_NAMES if key in item]
    inputs = {key: part for key, part in item.items() if key not in present}
    if len(present) != 1 or not inputs:
        problem = f"has the entries {' and '.join(map(repr, present))}" if present else "has none of them"
        problem = problem if len(present) != 1 else "has no other entry"
        raise InputError(
            f"{name} is a dictionary. It needs inputs and one target, named {' or '.join(TARGET_NAMES)}, but it "
            f"{problem}. Pass pairs (inputs, target), with a dictionary of inputs. It contains "
            f"{', '.join(map(repr, item))}."
        )
    return inputs, item[present[0]]


def _refuse_doubtful(count: int, name: str, forward: Callable[..., Any] | None) -> None:
    """Refuse more than two elements unless the model needs exactly as many inputs as there are before the last one."""
    if forward is None:
        return
    signature = inspect.signature(forward)
    positional = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    open_ended = any(p.kind == p.VAR_POSITIONAL for p in signature.parameters.values())
    needed = [parameter.name for parameter in positional if parameter.default is parameter.empty]
    if len(needed) == count or (open_ended and len(needed) <= count):
        return
    raise InputError(
        f"{name} has {count + 1} elements. They would be read as {count} inputs and the target, but the model's "
        f"forward needs {len(needed)} ({', '.join(needed)}), so it is not clear which element is the target. Return a "
        "pair (inputs, target), where inputs is a tuple of what forward takes."
    )


def tensors_of(structure: Any, name: str) -> Any:
    """Convert every leaf of a structure to a tensor without a graph.

    Parameters
    ----------
    structure
        Tensors, arrays, numbers and lists of numbers, in tuples, lists and dictionaries.
    name
        What it is, for messages.

    Returns
    -------
    structure
        The same structure of tensors; a list of numbers is a vector.

    Raises
    ------
    InputError
        If a leaf is something else; with its name.
    """
    if _is_numbers(structure):
        return _tensor(structure, name)
    if isinstance(structure, Mapping):
        return {key: tensors_of(part, f"{name}[{key!r}]") for key, part in structure.items()}
    if isinstance(structure, tuple | list):
        parts = [tensors_of(part, f"{name}[{position}]") for position, part in enumerate(structure)]
        return type(structure)(*parts) if hasattr(structure, "_fields") else type(structure)(parts)
    return _tensor(structure, name)


def _is_numbers(value: Any) -> bool:
    """Whether something is a number, or a list of numbers (of any depth)."""
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return bool(value) and all(map(_is_numbers, value))
    return isinstance(value, Number | np.generic) or (isinstance(value, Tensor) and value.ndim == 0)


def _tensor(leaf: Any, name: str) -> Tensor:
    leaf = array_as_tensor(leaf, name)
    try:
        tensor = torch.as_tensor(leaf).detach()
    except Exception as error:
        raise InputError(
            f"{name} is a {type(leaf).__name__}, not a tensor or numbers ({type(error).__name__}). Leave it out, or "
            "bind it to the model: what differs between examples must be a tensor with one row for each of them."
        ) from error
    if tensor.is_nested or tensor.layout != torch.strided:
        kind, way = ("nested", "to_padded_tensor(0.0)") if tensor.is_nested else ("sparse", "to_dense()")
        raise InputError(
            f"{name} is a {kind} tensor, which has no rows that examples can be taken from. Pass {name}.{way}."
        )
    return tensor


def is_list_of_batches(data: Any) -> bool:
    """Whether data are a list of batches, and not a list ``[inputs, targets]``.

    Parameters
    ----------
    data
        Any object.

    Returns
    -------
    bool
        True for a list, not a tuple, in which every entry is a tuple, list or dictionary of more than numbers.
    """
    return (
        isinstance(data, list)
        and bool(data)
        and all(isinstance(batch, tuple | list | Mapping) and not _is_numbers(batch) for batch in data)
    )


def joined(parts: Sequence[Any], join: Callable[[list[Tensor]], Tensor], name: str) -> Any:
    """Join the tensors of items or batches, leaf by leaf.

    Parameters
    ----------
    parts
        Structures of tensors, one for each item or batch.
    join
        ``torch.stack`` for items, ``torch.cat`` for batches.
    name
        What they are (``"inputs"``), for messages.

    Returns
    -------
    structure
        The structure of the parts, with examples on the first axis.

    Raises
    ------
    InputError
        If the parts have different structures or shapes; names the first that differs.
    """
    lists = [dict(leaves_by_name(part, name)) for part in parts]
    for position, leaves in enumerate(lists):
        if leaves.keys() != lists[0].keys():
            raise InputError(
                f"the {name} of item {position} are {', '.join(leaves)}, but those of item 0 are "
                f"{', '.join(lists[0])}. Every item needs the same entries."
            )
    names = iter(lists[0])
    return mapped(lambda _: _joined(next(names), lists, join), parts[0])


def _joined(leaf: str, lists: list[dict[str, Tensor]], join: Callable[[list[Tensor]], Tensor]) -> Tensor:
    tensors = [leaves[leaf] for leaves in lists]
    try:
        return join(tensors)
    except RuntimeError as error:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        other = next((k for k, shape in enumerate(shapes) if shape != shapes[0]), 0)
        raise InputError(
            f"{leaf} has shape {shapes[other]} in item {other}, but {shapes[0]} in item 0, so the items cannot be "
            "stacked. Pad them to one length."
        ) from error
