"""Which part of a flat vector is which named tensor, and which coordinates form a layer or a neuron."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from curvature.arrays import Int, Num
from curvature.errors import ConfigurationError, InputError

__all__ = ["Entry", "Layout"]


@dataclass(frozen=True)
class Entry:
    """One named tensor of a layout.

    Attributes
    ----------
    name
        The parameter's name in the user's module, e.g. ``"0.weight"``.
    shape
        Its shape.
    layer
        Path of the module that owns it, e.g. ``"0"``.
    neuron_axis
        Axis whose index is the neuron (0 for weights and biases); None if it belongs to no single one.
    normalized
        Whether weight normalization applies to it.
    norm_axis
        Axis that survives the norm (PyTorch's ``dim``); None: one norm for the whole tensor.
    """

    name: str
    shape: tuple[int, ...]
    layer: str
    neuron_axis: int | None = None
    normalized: bool = False
    norm_axis: int | None = 0

    @cached_property
    def numel(self) -> int:
        """Number of scalars."""
        return int(torch.Size(self.shape).numel())

    @property
    def num_rows(self) -> int:
        """Number of vectors that weight normalization normalizes in this tensor."""
        return 1 if self.norm_axis is None else self.shape[self.norm_axis]

    def rows(self, block: Num[Tensor, "numel *columns"]) -> Num[Tensor, "rows length *columns"]:
        """View ``(numel, ...)`` as ``(rows, row length, ...)``: one row per normalized vector."""
        if self.norm_axis is None:
            return block.reshape(1, self.numel, *block.shape[1:])
        if self.norm_axis == 0:  # the common case costs one view
            return block.reshape(self.shape[0], -1, *block.shape[1:])
        tensor = block.reshape(*self.shape, *block.shape[1:]).movedim(self.norm_axis, 0)
        return tensor.reshape(self.num_rows, self.numel // self.num_rows, *block.shape[1:])

    def from_rows(self, rows: Num[Tensor, "rows length *columns"]) -> Num[Tensor, "numel *columns"]:
        """Invert :meth:`rows`."""
        if self.norm_axis in (None, 0):
            return rows.reshape(-1, *rows.shape[2:])
        rest = [size for axis, size in enumerate(self.shape) if axis != self.norm_axis]
        tensor = rows.reshape(self.num_rows, *rest, *rows.shape[2:]).movedim(0, self.norm_axis)
        return tensor.reshape(self.numel, *rows.shape[2:])


@dataclass(frozen=True)
class Layout:
    """The order of named tensors in a flat vector of length ``dim``."""

    entries: tuple[Entry, ...]

    @cached_property
    def dim(self) -> int:
        """Length of the flat vector."""
        return sum(entry.numel for entry in self.entries)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Slice of each entry, by name."""
        slices, start = {}, 0
        for entry in self.entries:
            slices[entry.name] = slice(start, start + entry.numel)
            start += entry.numel
        return slices

    def pairs(self) -> list[tuple[Entry, slice]]:
        """Entries with their slices, in order."""
        return [(entry, self.slices[entry.name]) for entry in self.entries]

    def unflatten(self, vector: Num[Tensor, "dim"]) -> dict[str, Num[Tensor, "..."]]:
        """Split a flat vector into named tensors.

        Parameters
        ----------
        vector
            ``(dim,)``.

        Returns
        -------
        dict
            A view for each entry, in order.

        Raises
        ------
        ConfigurationError
            If the vector has another shape.
        """
        if vector.shape != (self.dim,):
            raise ConfigurationError(f"a flat vector here has shape ({self.dim},), got {tuple(vector.shape)}.")
        return {entry.name: vector[span].view(entry.shape) for entry, span in self.pairs()}

    def flatten(self, tensors: Mapping[str, Num[Tensor, "..."]]) -> Num[Tensor, "dim"]:
        """Join named tensors into a flat vector.

        Parameters
        ----------
        tensors
            One tensor for each entry, by name, in any order.

        Returns
        -------
        Tensor
            ``(dim,)``.

        Raises
        ------
        ConfigurationError
            If a name or a shape is not the layout's.
        """
        expected, names = set(self.slices), set(tensors)
        if expected != names:
            raise ConfigurationError(
                f"the names do not match: missing {sorted(expected - names)}, unknown {sorted(names - expected)}."
            )
        for entry in self.entries:
            if tuple(tensors[entry.name].shape) != entry.shape:
                raise ConfigurationError(
                    f"{entry.name!r} has shape {entry.shape}, got {tuple(tensors[entry.name].shape)}."
                )
        return torch.cat([tensors[entry.name].reshape(-1) for entry in self.entries])

    def blocks(self, by: str) -> dict[str, Int[Tensor, "block"]]:
        """Positions of the principal blocks of a matrix in these coordinates.

        Parameters
        ----------
        by
            ``"all"``, ``"layer"``, ``"neuron"`` (an output row with its bias), or a regular expression searched in the
            names of the entries, whose matches form one block.

        Returns
        -------
        dict
            Indices of each block, by its name.

        Raises
        ------
        ConfigurationError
            If a pattern is not a regular expression, or matches nothing.
        """
        everything = torch.arange(self.dim)
        if by == "all":
            return {"all": everything}
        if by == "layer":
            parts = [(entry.layer, everything[span]) for entry, span in self.pairs()]
        elif by == "neuron":
            parts = [part for entry, span in self.pairs() for part in self._neurons(entry, everything[span])]
        else:
            parts = [(by, everything[span]) for span in self._matching(by)]
        blocks: dict[str, list[Tensor]] = {}
        for name, indices in parts:
            blocks.setdefault(name, []).append(indices)
        return {name: torch.cat(pieces) for name, pieces in blocks.items()}

    def _neurons(self, entry: Entry, indices: Tensor) -> list[tuple[str, Tensor]]:
        """The name of each neuron of an entry with its indices; the whole entry if it has no neurons."""
        if entry.neuron_axis is None or not entry.shape:
            return [(entry.name, indices)]
        rows = indices.view(entry.shape).movedim(entry.neuron_axis, 0).reshape(entry.shape[entry.neuron_axis], -1)
        owner = entry.layer if self._has_one_weight(entry.layer) else entry.name
        return [(f"{owner}[{neuron}]", row) for neuron, row in enumerate(rows)]

    def _matching(self, pattern: str) -> list[slice]:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ConfigurationError(
                f"block {pattern!r} is not a regular expression: {error}.{_meant(pattern)}"
            ) from None
        spans = [span for entry, span in self.pairs() if expression.search(entry.name)]
        if not spans:
            raise ConfigurationError(
                f"block {pattern!r} matches no parameter; the names are {', '.join(self.slices)}. "
                "Use 'all', 'layer', 'neuron' or a pattern that matches."
            )
        return spans

    def select(self, pattern: str) -> Layout:
        """Keep one layer, one parameter, or every parameter whose name matches.

        Parameters
        ----------
        pattern
            The exact name of a layer or of a parameter; otherwise a regular expression searched in the names.

        Returns
        -------
        Layout
            The entries that match, in the same order.

        Raises
        ------
        InputError
            If nothing matches, or the pattern is not a regular expression.
        """
        entries = tuple(entry for entry in self.entries if pattern in (entry.layer, entry.name))
        if not entries:
            try:
                expression = re.compile(pattern)
            except re.error as error:
                raise InputError(f"{pattern!r} is not a regular expression: {error}.{_meant(pattern)}") from None
            entries = tuple(entry for entry in self.entries if expression.search(entry.name))
        if not entries:
            raise InputError(
                f"{pattern!r} matches no trainable parameter; the names are {', '.join(self.slices)}. Use the name of "
                "a layer or of a parameter, or a regular expression that matches."
            )
        return Layout(entries)

    def named(self, pattern: str, *, required: bool = True) -> set[str]:
        """Names that a pattern means; which ones does not depend on the other entries.

        Parameters
        ----------
        pattern
            The last part of a name, a name, or a layer; with other characters than theirs, a regular expression
            searched in the names.
        required
            Whether no name is an error.

        Returns
        -------
        set of str
            Names of entries.

        Raises
        ------
        InputError
            If nothing matches, but must, or the pattern is not a regular expression.
        """
        exact = re.fullmatch(r"[\w.]+", pattern)
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise InputError(f"{pattern!r} is not a regular expression: {error}.{_meant(pattern)}") from None
        names = {
            e.name
            for e in self.entries
            if (pattern in (e.name, e.layer, e.name.rpartition(".")[2]) if exact else expression.search(e.name))
        }
        if required and not names:
            raise InputError(
                f"{pattern!r} matches no coordinate; they are {', '.join(self.slices)}. Use the last part of a name, a "
                "name, a layer, or a regular expression such as '^0.*g$'."
            )
        return names

    def _has_one_weight(self, layer: str) -> bool:
        """Whether the rows and the bias of a module are one set of neurons; with two weights they are not."""
        return sum(entry.layer == layer and len(entry.shape) > 1 for entry in self.entries) == 1


def _meant(pattern: str) -> str:
    """What to write in place of a pattern of file names, as in a shell."""
    return f" In a regular expression '.*' stands for any text: write {'.' + pattern!r}." if pattern[0] == "*" else ""
