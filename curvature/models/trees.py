"""Tensors in a structure, with one row for each example: what a model of several inputs takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

__all__ = [
    "StreamedTensors",
    "Structure",
    "TensorTree",
    "Tensors",
    "as_type",
    "leaves_by_name",
    "mapped",
    "shapes",
    "structure_of",
    "tree_of",
]

# A tensor, or tuples, lists and dictionaries of structures.
Structure = Any


def mapped(function: Callable[[Any], Any], structure: Structure) -> Structure:
    """Apply a function to every leaf of a structure.

    Parameters
    ----------
    function
        Takes and returns one leaf.
    structure
        A leaf, or nested tuples, lists and dictionaries of leaves.

    Returns
    -------
    structure
        The same structure; any mapping becomes a dictionary.
    """
    if isinstance(structure, Mapping):
        return {name: mapped(function, part) for name, part in structure.items()}
    if isinstance(structure, tuple | list):
        parts = [mapped(function, part) for part in structure]
        named = hasattr(structure, "_fields")  # a named tuple takes its entries one by one
        return type(structure)(*parts) if named else type(structure)(parts)
    return function(structure)


def leaves_by_name(structure: Structure | TensorTree, name: str) -> Iterator[tuple[str, Any]]:
    """Walk through the leaves of a structure.

    Parameters
    ----------
    structure
        A leaf, or nested tuples, lists and dictionaries of leaves.
    name
        What the user calls the structure.

    Yields
    ------
    tuple
        How to write the leaf in Python, e.g. ``inputs['mask']``, and the leaf.
    """
    structure = structure_of(structure)
    if isinstance(structure, Mapping):
        for key, part in structure.items():
            yield from leaves_by_name(part, f"{name}[{key!r}]")
    elif isinstance(structure, tuple | list):
        for position, part in enumerate(structure):
            yield from leaves_by_name(part, f"{name}[{position}]")
    else:
        yield name, structure


@dataclass(frozen=True, eq=False, repr=False)
class TensorTree:
    """Nested tuples, lists and dictionaries of tensors with a common first axis, the examples.

    It is indexed, copied and measured as a single tensor is: ``tree[:3]`` holds the first three examples of every
    tensor.

    Attributes
    ----------
    structure
        The tensors as the user arranged them.
    """

    structure: Structure

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors, in their order."""
        return [leaf for _, leaf in leaves_by_name(self.structure, "")]

    def map(self, function: Callable[[Tensor], Tensor]) -> TensorTree:
        """Apply a function to every tensor."""
        return TensorTree(mapped(function, self.structure))

    def clone(self) -> TensorTree:
        """Copy every tensor."""
        return self.map(lambda leaf: leaf.clone())

    def to(self, device: torch.device) -> TensorTree:
        """Move every tensor to a device."""
        return self.map(lambda leaf: leaf.to(device))

    def flip(self, axis: int) -> TensorTree:
        """Reverse every tensor along an axis."""
        return self.map(lambda leaf: leaf.flip(axis))

    def split(self, size: int) -> tuple[TensorTree, ...]:
        """Split into groups of examples; the last one may be smaller."""
        return tuple(self[start : start + size] for start in range(0, len(self), size))

    def __getitem__(self, index: Any) -> TensorTree:
        return self.map(lambda leaf: leaf[index])

    def __len__(self) -> int:
        return len(self.leaves[0])

    def __repr__(self) -> str:
        shapes = (f"{name}: {' x '.join(map(str, leaf.shape))}" for name, leaf in leaves_by_name(self.structure, ""))
        return f"TensorTree({', '.join(shapes)})"


@dataclass(frozen=True, eq=False, repr=False)
class StreamedTensors:
    """Tensors that are not in memory: a slice of them is read when it is asked for.

    Attributes
    ----------
    read
        Returns the examples of a slice, as a tensor or a tree.
    num_examples
        How many there are.
    """

    read: Callable[[slice], Any]
    num_examples: int

    def map(self, function: Callable[[Tensor], Tensor]) -> StreamedTensors:
        """Apply a function to every tensor, each time that it is read."""

        def read(rows: slice) -> Any:
            tensors = self.read(rows)
            return tensors.map(function) if isinstance(tensors, TensorTree) else function(tensors)

        return StreamedTensors(read, self.num_examples)

    def __getitem__(self, rows: slice) -> Any:
        start, stop, _ = rows.indices(self.num_examples)
        return self.read(slice(start, stop))

    def __len__(self) -> int:
        return self.num_examples

    def __repr__(self) -> str:
        return f"StreamedTensors({self.num_examples} examples)"


# One tensor with the examples on its first axis, or several. What serves single tensors only (closed forms, losses by
# name) is never called with a tree, which a type checker cannot see.
if TYPE_CHECKING:
    Tensors: TypeAlias = Any
else:
    Tensors = Tensor | TensorTree | StreamedTensors


def tree_of(structure: Structure) -> Tensors:
    """Wrap a structure of tensors; a single tensor stays as it is.

    Parameters
    ----------
    structure
        A tensor, or nested tuples, lists and dictionaries of tensors.

    Returns
    -------
    Tensor or TensorTree
        What can be indexed by examples.
    """
    return structure if isinstance(structure, Tensor | TensorTree | StreamedTensors) else TensorTree(structure)


def structure_of(tensors: Tensors | Structure) -> Structure:
    """Unwrap tensors into the structure that the user arranged them in.

    Parameters
    ----------
    tensors
        A tensor, a tree, or a structure already.

    Returns
    -------
    structure
        A tensor, or nested tuples, lists and dictionaries.
    """
    return tensors.structure if isinstance(tensors, TensorTree) else tensors


def as_type(tensors: Tensors, dtype: torch.dtype, device: torch.device) -> Tensors:
    """Move tensors to a device, and floating-point tensors also to a precision.

    Parameters
    ----------
    tensors
        Any; integers (token indices, for example) keep their type.
    dtype, device
        Where to.

    Returns
    -------
    Tensor or TensorTree
        The same values.
    """

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)

    return moved(tensors) if isinstance(tensors, Tensor) else tensors.map(moved)


def shapes(tensors: Tensors, name: str) -> str:
    """Describe shapes, for messages.

    Parameters
    ----------
    tensors
        A tensor or a tree.
    name
        What they are.

    Returns
    -------
    str
        E.g. ``shape (6, 3)``, or ``shapes inputs['x'] (6, 3), inputs['kind'] (6,)``.
    """
    if isinstance(tensors, Tensor):
        return f"shape {tuple(tensors.shape)}"
    return "shapes " + ", ".join(f"{leaf} {tuple(part.shape)}" for leaf, part in leaves_by_name(tensors, name))
