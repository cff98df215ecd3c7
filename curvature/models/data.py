"""Data as users have them, read once and in order into two new tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler

from curvature.errors import InputError
from curvature.models.behaviour import generator_states

__all__ = ["DataLike", "as_type", "materialize", "refuse_non_finite"]

DataLike = tuple[Tensor, Tensor] | list[Tensor] | Dataset | DataLoader

_CPU = torch.device("cpu")


def as_type(inputs: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Move inputs to a device, and floating-point inputs also to a precision.

    Parameters
    ----------
    inputs
        Any tensor; integers (token indices, for example) keep their type.
    dtype, device
        Where to.

    Returns
    -------
    Tensor
        The same values.
    """
    return inputs.to(device, dtype) if inputs.is_floating_point() else inputs.to(device)


def refuse_non_finite(inputs: Tensor, targets: Tensor) -> None:
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
    for name, tensor in (("inputs", inputs), ("targets", targets)):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = ~torch.isfinite(tensor.reshape(len(tensor), -1)).all(dim=1)
            raise InputError(
                f"the {name} contain NaN or infinity in {int(bad.sum())} of {len(bad)} examples, first in example "
                f"{int(bad.nonzero()[0])}."
            )


def materialize(data: DataLike) -> tuple[Tensor, Tensor]:
    """Read data once, in order, into two new tensors.

    Parameters
    ----------
    data
        A pair ``(inputs, targets)``, a ``Dataset``, or a ``DataLoader`` that does not shuffle.

    Returns
    -------
    inputs, targets
        ``(N, ...)`` each, detached from the user's data.

    Raises
    ------
    InputError
        If the data are empty, do not match, or would differ when they are read again.
    """
    if isinstance(data, DataLoader):
        inputs, targets = _from_loader(data)
    elif isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        inputs, targets = (part.detach().clone() for part in data)
    elif isinstance(data, Dataset):
        inputs, targets = _from_dataset(data)
    else:
        raise InputError(
            f"data must be a pair of tensors (inputs, targets), a Dataset or a DataLoader, got {type(data).__name__}."
        )
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) == 0 or len(targets) == 0:
        raise InputError("the data are empty.")
    if len(inputs) != len(targets):
        raise InputError(f"there are {len(inputs)} inputs but {len(targets)} targets.")
    for name, tensor in (("inputs", inputs), ("targets", targets)):
        if tensor.is_meta:
            raise InputError(f"the {name} are on the meta device, where tensors hold no numbers.")
    return inputs, targets


def _pair(item: object, name: str) -> tuple[Any, Any]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise InputError(f"{name} must be a pair (input, target), got {type(item).__name__}.")
    return item[0], item[1]


def _from_dataset(data: Any) -> tuple[Tensor, Tensor]:
    if not hasattr(data, "__len__"):
        raise InputError("an iterable dataset has no fixed length and order; collect it into two tensors first.")
    if len(data) == 0:
        raise InputError("the data are empty.")
    items = _without_draws((data[index] for index in range(len(data))), "the dataset")
    pairs = [_pair(item, f"item {index} of the dataset") for index, item in enumerate(items)]
    _refuse_changing(data)
    inputs, targets = (torch.stack([torch.as_tensor(pair[part]) for pair in pairs]) for part in (0, 1))
    return inputs, targets


def _from_loader(loader: DataLoader) -> tuple[Tensor, Tensor]:
    dataset: Any = loader.dataset
    batches_in_order = _sequential(loader)
    size, batch_size = len(dataset), batches_in_order.batch_size
    if batches_in_order.drop_last and size % batch_size:
        raise InputError(f"the data loader drops {size % batch_size} of {size} examples: pass drop_last=False.")
    num_batches = -(-size // batch_size)
    # A user's subclass of DataLoader may never end: one batch more than there can be is enough to know.
    read = islice(_without_draws(loader, "the data loader"), num_batches + 1)
    batches = [_pair(batch, "a batch of the data loader") for batch in read]
    if not batches:
        raise InputError("the data are empty.")
    if not all(isinstance(part, Tensor) for batch in batches for part in batch):
        raise InputError("each batch of the data loader must be two tensors (inputs, targets).")
    inputs, targets = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
    if len(inputs) != size:
        count = "more" if len(inputs) > size else len(inputs)
        raise InputError(
            f"the data loader ({type(loader).__name__}) gives {count} examples, its dataset has {size}: which examples "
            "it repeats or leaves out is unknown. Pass the dataset itself."
        )
    _refuse_changing(dataset)
    return inputs, targets


def _sequential(loader: DataLoader) -> BatchSampler:
    """The batches of a loader that reads its dataset in order; refuses any other loader."""
    batches = loader.batch_sampler
    if batches is None:
        raise InputError("the data loader does not batch (batch_size=None): pass its dataset instead.")
    if type(batches) is not BatchSampler:
        raise InputError(
            f"the data loader uses {type(batches).__name__}, whose order and coverage are unknown. "
            "Pass the dataset itself."
        )
    if isinstance(loader.dataset, IterableDataset):
        raise InputError("an iterable dataset has no fixed length and order; collect it into two tensors first.")
    if not isinstance(batches.sampler, SequentialSampler):
        raise InputError(
            f"the data loader shuffles or selects ({type(batches.sampler).__name__}): the matrix would depend on the "
            "draw. Pass shuffle=False."
        )
    return batches


def _without_draws(items: Iterable[Any], name: str) -> Iterator[Any]:
    """Pass items on; refuse them if reading them moved a global random generator, as random augmentation does."""
    items = iter(items)  # a loader draws one seed here, in any case
    before = generator_states(_CPU)
    yield from items
    moved = [generator for generator, state in generator_states(_CPU).items() if state != before[generator]]
    if moved:
        raise InputError(
            f"{name} draws random numbers ({', '.join(moved)}) while it is read: the matrix would depend on the draw. "
            "Switch random transforms off, or collect one draw into two tensors first."
        )


def _refuse_changing(data: Any) -> None:
    """Refuse a dataset whose first, middle or last item changes when it is read again."""
    for index in sorted({0, len(data) // 2, len(data) - 1}):
        first, second = ([torch.as_tensor(part) for part in _pair(data[index], "an item")] for _ in range(2))
        if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, second, strict=True)):
            raise InputError(
                f"item {index} of the dataset changes between reads (random augmentation?): the matrix would depend on "
                "when it is read. Switch random transforms off, or collect the data into two tensors first."
            )
