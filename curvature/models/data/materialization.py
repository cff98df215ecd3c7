"""Data as users have them, read once and in order into new tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from curvature.errors import CurvatureError, InputError
from curvature.models.behaviour import generator_states
from curvature.models.data.items import is_list_of_batches, joined, split, tensors_of
from curvature.models.data.reading import (
    UNSIZED,
    describe,
    in_order,
    refuse_dropped,
    refuse_mixing,
    untouched_generator,
)
from curvature.models.data.stream import Stream
from curvature.models.trees import Structure, Tensors, leaves_by_name, mapped, tree_of

__all__ = [
    "DataLike",
    "Divide",
    "Packed",
    "divider",
    "join_pairs",
    "materialize",
    "readable",
    "refuse_mixed",
    "refuse_non_finite",
    "refuse_unequal",
]

Divide = Callable[[Any, str], tuple[Structure, Structure]]

_CPU = torch.device("cpu")


def refuse_non_finite(inputs: Tensors, targets: Tensors) -> None:
    """Raise an error that counts the examples with NaN or infinity and names the first.

    Parameters
    ----------
    inputs, targets
        The data, ``(N, ...)``.

    Raises
    ------
    InputError
        If a number is NaN or infinite.
    """
    for name, tensor in _leaves(inputs, targets):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = ~torch.isfinite(tensor.reshape(len(tensor), -1)).all(dim=1)
            raise InputError(
                f"{_the(name)} contain NaN or infinity in {int(bad.sum())} of {len(bad)} examples, first in example "
                f"{int(bad.nonzero()[0])}."
            )


def _leaves(inputs: Structure, targets: Structure) -> list[tuple[str, Tensor]]:
    return [*leaves_by_name(inputs, "inputs"), *leaves_by_name(targets, "targets")]


def _the(name: str) -> str:
    """``the inputs``, or ``inputs['mask']``."""
    return name if "[" in name else f"the {name}"


@dataclass(frozen=True, eq=False)
class Packed:
    """Data that are one example together: a graph, or several graphs packed into one.

    The tensors need no common first axis, and the model gets them as they are. Its outputs, ``(nodes, C)`` for example,
    are the outputs of this one example; the named losses average over their positions.

    Attributes
    ----------
    inputs
        A tensor, or a tuple, list or dictionary of tensors.
    targets
        For all outputs of the model; none if the model computes its loss itself.
    """

    inputs: Structure
    targets: Structure = ()


DataLike = tuple | list | Mapping | Tensor | Packed | Dataset | DataLoader | Stream


def materialize(
    data: DataLike,
    forward: Callable[..., Any] | None = None,
    *,
    with_targets: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Tensors, Tensors]:
    """Read data once, in order, into new tensors.

    Parameters
    ----------
    data
        A pair ``(inputs, targets)``, where both may be tuples, lists or dictionaries of tensors; ``(x1, x2, ..., y)``;
        a dictionary with the targets among its entries; :class:`Packed`; a ``Dataset`` of such items; or a
        ``DataLoader`` or a list of such batches. See :func:`~curvature.models.data.items.split`. NumPy arrays may
        replace tensors. A loader that shuffles a map-style dataset is read in the order of the dataset.
    forward
        Of the model, to tell whether ``(x1, x2, ..., y)`` has as many inputs as it needs.
    with_targets
        Whether the data contain targets; otherwise everything is an input.
    say
        Receives a sentence about a loader that was read in another order than its own.

    Returns
    -------
    inputs, targets
        ``(N, ...)`` each, detached from the user's data. Targets are zeros if there are none.

    Raises
    ------
    InputError
        If the data are empty, do not match, or would differ when they are read again.
    """
    divided = divider(forward, with_targets)
    if isinstance(data, Packed):
        inputs, targets = (
            mapped(lambda leaf: leaf[None].clone(), tensors_of(part, name))
            for part, name in ((data.inputs, "inputs"), (data.targets, "targets"))
        )
    elif isinstance(data, DataLoader):
        inputs, targets = _from_loader(data, divided, say)
    elif isinstance(data, list) and is_list_of_batches(data):
        inputs, targets = _from_batches([divided(batch, f"batch {k} of the list") for k, batch in enumerate(data)])
    elif isinstance(data, tuple | list | Mapping) or (isinstance(data, Tensor) and not with_targets):
        inputs, targets = (mapped(Tensor.clone, part) for part in divided(data, "data"))
    elif isinstance(data, Dataset):
        inputs, targets = _from_dataset(data, divided)
    else:
        raise InputError(
            "data must be a pair of tensors (inputs, targets), where both may be tuples or dictionaries of tensors, a "
            f"list of such batches, a Dataset or a DataLoader; got {describe(data)}."
        )
    refuse_unequal(inputs, targets)
    inputs = tree_of(inputs)
    return inputs, tree_of(targets) if with_targets else torch.zeros(len(inputs))


def divider(forward: Callable[..., Any] | None, with_targets: bool) -> Divide:
    """Make the function that divides items and batches into inputs and targets.

    Parameters
    ----------
    forward, with_targets
        As for :func:`materialize`.

    Returns
    -------
    Callable
        ``(item, its name) -> inputs, targets``, as structures of tensors.
    """

    def divided(item: Any, name: str) -> tuple[Any, Any]:
        inputs, targets = split(item, name, forward) if with_targets else (item, ())
        return tensors_of(inputs, "inputs"), tensors_of(targets, "targets")

    return divided


def refuse_unequal(inputs: Structure, targets: Structure) -> None:
    """Refuse tensors that are empty, or without one row for each example.

    Parameters
    ----------
    inputs, targets
        Structures of tensors.

    Raises
    ------
    InputError
        If there is no example, or the tensors have different numbers of rows.
    """
    leaves = _leaves(inputs, targets)
    if not any(True for _ in leaves_by_name(inputs, "")) or any(
        tensor.ndim == 0 or len(tensor) == 0 for _, tensor in leaves
    ):
        raise InputError("the data are empty.")
    first, examples = leaves[0][0], len(leaves[0][1])
    for name, tensor in leaves:
        if len(tensor) != examples and "[" in first + name:
            raise InputError(
                f"{first} has {examples} rows but {name} has {len(tensor)}. Every tensor needs one row for each "
                "example; make a tensor that all examples share a buffer of the model. If the data are one packed "
                "graph, pass cv.Packed(inputs, targets)."
            )
        if len(tensor) != examples:
            raise InputError(f"there are {examples} {first} but {len(tensor)} {name}.")
        if tensor.is_meta:
            raise InputError(f"{_the(name)} are on the meta device, where tensors hold no numbers.")


def _from_dataset(data: Any, divided: Divide) -> tuple[Structure, Structure]:
    if not hasattr(data, "__len__"):
        raise InputError(UNSIZED)
    if len(data) == 0:
        raise InputError("the data are empty.")
    items = _without_draws((data[index] for index in range(len(data))), "the dataset", "item")
    pairs = [divided(item, f"item {index} of the dataset") for index, item in enumerate(items)]
    _refuse_changing(data, divided)
    return join_pairs(pairs, torch.stack)


def join_pairs(
    pairs: list[tuple[Structure, Structure]], join: Callable[[list[Tensor]], Tensor]
) -> tuple[Structure, Structure]:
    """Join pairs of inputs and targets, leaf by leaf.

    Parameters
    ----------
    pairs
        One for each item or batch.
    join
        ``torch.stack`` for items, ``torch.cat`` for batches.

    Returns
    -------
    inputs, targets
        With the examples on the first axis.
    """
    inputs, targets = zip(*pairs, strict=True)
    return joined(inputs, join, "inputs"), joined(targets, join, "targets")


def _from_batches(batches: list[tuple[Structure, Structure]]) -> tuple[Structure, Structure]:
    for number, batch in enumerate(batches):
        for name, leaf in _leaves(*batch):
            if leaf.ndim == 0:
                raise InputError(
                    f"batch {number} of the list has one number as its {name}, so it is not a batch. A list of data is "
                    "a list of batches; stack single examples into two tensors (inputs, targets)."
                )
        try:
            refuse_unequal(*batch)
        except InputError as error:
            raise InputError(f"batch {number} of the list: {error}") from error
    return join_pairs(batches, torch.cat)


def _from_loader(given: DataLoader, divided: Divide, say: Callable[[str], None]) -> tuple[Structure, Structure]:
    loader, batches_in_order = in_order(given, say)
    dataset: Any = loader.dataset
    size, batch_size = len(dataset), batches_in_order.batch_size
    refuse_dropped(loader, batches_in_order)
    num_batches = -(-size // batch_size)
    # A user's subclass of DataLoader may never end: one batch more than there can be is enough to know.
    with untouched_generator(loader):
        read = islice(_without_draws(loader, "the data loader", "batch"), num_batches + 1)
        batches = [divided(batch, "a batch of the data loader") for batch in read]
    if not batches:
        raise InputError("the data are empty.")
    inputs, targets = join_pairs(batches, torch.cat)
    refuse_unequal(inputs, targets)
    read_examples = len(tree_of(inputs))
    if read_examples != size:
        count = "more" if read_examples > size else read_examples
        raise InputError(
            f"the data loader ({type(loader).__name__}) gives {count} examples, its dataset has {size}: which examples "
            "it repeats or leaves out is unknown. Pass the dataset itself."
        )
    _refuse_changing(dataset, divided)
    if loader is not given:
        refuse_mixed(loader, divided)
    return inputs, targets


def refuse_mixed(loader: DataLoader, divided: Divide) -> None:
    """Refuse a loader that takes the place of one that shuffles, if its collate function mixes examples.

    Parameters
    ----------
    loader
        The loader in order.
    divided
        Divides a batch into inputs and targets.
    """
    refuse_mixing(loader, lambda batch: [leaf for _, leaf in _leaves(*divided(batch, "a batch"))])


def readable(items: Iterator[Any], name: str, part: str) -> Iterator[Any]:
    """Pass items on; an error of the user's dataset names the item that could not be read.

    Parameters
    ----------
    items
        Items or batches.
    name
        What they belong to.
    part
        ``"item"`` or ``"batch"``.

    Yields
    ------
    Any
        The same items.

    Raises
    ------
    InputError
        If one cannot be read.
    """
    number = 0
    try:
        for item in items:
            yield item
            number += 1
    except (CurvatureError, MemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"{part} {number} of {name} cannot be read ({type(error).__name__}: {error}). Every example belongs to the "
            "matrix, so all of them must be readable."
        ) from error


def _without_draws(items: Iterable[Any], name: str, part: str) -> Iterator[Any]:
    """Pass items on; refuse them if reading them moved a global random generator, as random augmentation does."""
    items = iter(items)  # a loader draws one seed here, in any case
    before = generator_states(_CPU)
    yield from readable(items, name, part)
    moved = [generator for generator, state in generator_states(_CPU).items() if state != before[generator]]
    if moved:
        raise InputError(
            f"{name} draws random numbers ({', '.join(moved)}) while it is read: the matrix would depend on the draw. "
            "Switch random transforms off, or collect one draw into two tensors first."
        )


def _refuse_changing(data: Any, divided: Divide) -> None:
    """Refuse a dataset whose first, middle or last item changes when it is read again."""
    for index in sorted({0, len(data) // 2, len(data) - 1}):
        first, second = (_leaves(*divided(data[index], "an item")) for _ in range(2))
        if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for (_, a), (_, b) in zip(first, second, strict=True)):
            raise InputError(
                f"item {index} of the dataset changes between reads (random augmentation?): the matrix would depend on "
                "when it is read. Switch random transforms off, or collect the data into two tensors first."
            )
