"""Sources of a stream: loaders, datasets, and arrays that are memory-mapped."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from curvature.errors import InputError
from curvature.models.data.items import is_list_of_batches, split
from curvature.models.data.materialization import (
    Divide,
    Packed,
    divider,
    join_pairs,
    readable,
    refuse_mixed,
    refuse_unequal,
)
from curvature.models.data.reading import describe, in_order, refuse_dropped, untouched_generator
from curvature.models.data.stream import Source, Stream
from curvature.models.trees import Structure, leaves_by_name, mapped

__all__ = ["open_stream"]

_Pair = tuple[Structure, Structure]

_AT_ONCE = 64  # examples that are stacked or cut out at once


def open_stream(
    data: Any,
    forward: Callable[..., Any] | None = None,
    *,
    with_targets: bool = True,
    say: Callable[[str], None] = lambda _: None,
    num_examples: int | None = None,
) -> Stream:
    """Prepare to read data chunk by chunk, again for every pass.

    Parameters
    ----------
    data
        An ``IterableDataset`` or a ``Dataset`` of items, a ``DataLoader`` of batches, or arrays as for
        :func:`~curvature.models.data.materialize`, of which a part is copied at a time; or a stream, which is
        returned.
    forward, with_targets, say
        As for :func:`~curvature.models.data.materialize`.
    num_examples
        Where every pass ends; None: where the data end.

    Returns
    -------
    Stream
        Nothing has been read.

    Raises
    ------
    InputError
        If the data are none of these, or cannot be read twice.
    """
    if isinstance(data, Stream):
        return data
    source = _source(data, forward, with_targets, say)
    return Stream(source if num_examples is None else _first(source, num_examples))


def _source(data: Any, forward: Callable[..., Any] | None, with_targets: bool, say: Callable[[str], None]) -> Source:
    divided = divider(forward, with_targets)
    if isinstance(data, DataLoader):
        return _of_loader(data, divided, say)
    if isinstance(data, IterableDataset):
        name = f"the dataset ({type(data).__name__})"
        return Source(name, lambda _: _stacked(data, name, divided))
    if isinstance(data, Dataset):
        name = f"the dataset ({type(data).__name__})"
        return Source(name, lambda _: _stacked((data[n] for n in range(len(data))), name, divided))  # type: ignore[arg-type]
    if isinstance(data, list) and is_list_of_batches(data):
        return Source("the list of batches", lambda _: _batches(data, "the list", divided))
    if isinstance(data, tuple | list | Mapping | Tensor) and _is_arrays(data):
        return _of_arrays(data, divided, forward, with_targets=with_targets)
    raise InputError(_refusal(data))


def _first(source: Source, num_examples: int) -> Source:
    """The first examples of a source."""

    def read(number: int) -> Iterator[_Pair]:
        left = num_examples
        for pair in source.batches(number):
            inputs, targets = mapped(itemgetter(slice(left)), pair)
            yield inputs, targets
            left -= len(next(leaf for _, leaf in leaves_by_name(inputs, "")))
            if left <= 0:
                return

    return replace(source, batches=read)


def _refusal(data: Any) -> str:
    if isinstance(data, Packed):
        return "packed data are one example, so they cannot be streamed. Leave out stream=True (--stream)."
    if isinstance(data, Iterator):
        return (
            f"{describe(data)} can be read only once, and every product needs a pass over the data. Pass an "
            "IterableDataset whose __iter__ starts anew each time it is called, or a DataLoader of it."
        )
    return (
        "data that are streamed must be a DataLoader of batches, an IterableDataset or a Dataset of items "
        f"(input, target), or a pair of (memory-mapped) arrays; got {describe(data)}."
    )


def _of_loader(given: DataLoader, divided: Divide, say: Callable[[str], None]) -> Source:
    name = f"the data loader ({type(given).__name__})"
    iterable = isinstance(given.dataset, IterableDataset) or not hasattr(given.dataset, "__len__")
    loader = given
    if iterable and given.drop_last:
        raise InputError(
            "the data loader leaves out an incomplete last batch, and how many examples that are is unknown: pass "
            "drop_last=False."
        )
    if not iterable:
        loader, batches = in_order(given, say)
        refuse_dropped(loader, batches)
        if loader is not given:
            refuse_mixed(loader, divided)

    def read(number: int) -> Iterator[_Pair]:
        with untouched_generator(loader):
            if number > 1 and isinstance(loader.generator, torch.Generator):
                loader.generator.manual_seed(number)  # otherwise random transforms in workers look like fixed data
            started = iter(loader)
        return _batches(started, name, divided)

    return Source(name, read, loader.num_workers, divides=iterable)


def _batches(batches: Iterable[Any], name: str, divided: Divide) -> Iterator[_Pair]:
    for number, batch in enumerate(readable(iter(batches), name, "batch")):
        pair = divided(batch, f"batch {number} of {name}")
        for leaf_name, leaf in [
            row for part, side in zip(pair, ("inputs", "targets"), strict=True) for row in leaves_by_name(part, side)
        ]:
            if leaf.ndim == 0:
                raise InputError(
                    f"batch {number} of {name} has one number as its {leaf_name}, so it is a single example. Let the "
                    "loader make batches (batch_size=64, for example), or pass its dataset."
                )
        refuse_unequal(*pair)
        yield pair


def _stacked(items: Iterable[Any], name: str, divided: Divide) -> Iterator[_Pair]:
    read = readable(iter(items), name, "item")
    number = 0
    while part := list(islice(read, _AT_ONCE)):
        pairs = [divided(item, f"item {number + k} of {name}") for k, item in enumerate(part)]
        number += len(part)
        yield join_pairs(pairs, torch.stack)


def _is_arrays(data: Any) -> bool:
    return all(isinstance(leaf, Tensor | np.ndarray) for _, leaf in leaves_by_name(data, ""))


def _of_arrays(data: Any, divided: Divide, forward: Callable[..., Any] | None, *, with_targets: bool) -> Source:
    parts = split(data, "data", forward) if with_targets else (data, ())
    leaves = [
        leaf for part, name in zip(parts, ("inputs", "targets"), strict=True) for leaf in leaves_by_name(part, name)
    ]
    sizes = {name: leaf.shape[0] if leaf.ndim else 0 for name, leaf in leaves}
    if len(set(sizes.values())) != 1:
        listed = ", ".join(f"{count} {name}" for name, count in sizes.items())
        raise InputError(f"every array needs one row for each example, but there are {listed}.")
    count = next(iter(sizes.values()))

    def read(_: int) -> Iterator[_Pair]:
        for start in range(0, count, _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            inputs, targets = (mapped(itemgetter(rows), part) for part in parts)
            yield divided((inputs, targets) if with_targets else inputs, f"examples from {start} on")
            for row in leaves:  # the stream has copied them
                _unload(row[1])

    return Source("the data", read)


def _unload(array: Any) -> None:
    """Take the pages of a mapped file out of the memory of the process, which would grow to the size of the file.

    They stay in the cache of the system. A private copy (mode "c") would lose what was written into it.
    """
    advice = getattr(mmap, "MADV_DONTNEED", None)  # not on every system
    if advice is not None and isinstance(array, np.memmap) and array.mode in ("r", "r+"):
        array._mmap.madvise(advice)  # type: ignore[attr-defined]
