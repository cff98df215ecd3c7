"""Data as users have them, read once, in order, into two tensors of our own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler

from curvature.errors import InputError
from curvature.models.behaviour import generator_states

__all__ = ["as_type", "materialize", "refuse_non_finite"]

_CPU = torch.device("cpu")


def as_type(inputs: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Move to a device; floating-point inputs also to the dtype."""
    return inputs.to(device, dtype) if inputs.is_floating_point() else inputs.to(device)


def refuse_non_finite(inputs: Tensor, targets: Tensor) -> None:
    """Raise an error that counts the examples with NaN or infinity and names the first."""
    for what, tensor in (("inputs", inputs), ("targets", targets)):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = ~torch.isfinite(tensor.reshape(len(tensor), -1)).all(dim=1)
            raise InputError(
                f"the {what} contain NaN or infinity in {int(bad.sum())} of {len(bad)} examples, first in example "
                f"{int(bad.nonzero()[0])}."
            )


def materialize(data: tuple[Tensor, Tensor] | Dataset | DataLoader) -> tuple[Tensor, Tensor]:
    """Read the data once, in order, into two tensors of our own; refuse data that would be others the next time."""
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
    for what, tensor in (("inputs", inputs), ("targets", targets)):
        if tensor.is_meta:
            raise InputError(f"the {what} lie on the meta device, where tensors hold no numbers.")
    return inputs, targets


def _pair(item: object, what: str) -> tuple[Tensor, Tensor]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise InputError(f"{what} must be a pair (input, target), got {type(item).__name__}.")
    return item[0], item[1]


def _from_dataset(data: Dataset) -> tuple[Tensor, Tensor]:
    if not hasattr(data, "__len__"):
        raise InputError("an iterable dataset has no fixed length and order; collect it into two tensors first.")
    if len(data) == 0:
        raise InputError("the data are empty.")
    items = _undrawn((data[index] for index in range(len(data))), "the dataset")
    pairs = [_pair(item, f"item {index} of the dataset") for index, item in enumerate(items)]
    _refuse_changing(data)
    return tuple(torch.stack([torch.as_tensor(pair[part]) for pair in pairs]) for part in (0, 1))


def _from_loader(loader: DataLoader) -> tuple[Tensor, Tensor]:
    sampler = loader.sampler
    if loader.batch_size is None and loader.batch_sampler is None:
        raise InputError("the data loader does not batch (batch_size=None): pass its dataset instead.")
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not torch.utils.data.BatchSampler:
        raise InputError(
            f"the data loader uses {type(loader.batch_sampler).__name__}, whose order and coverage are unknown. "
            "Pass the dataset itself."
        )
    if isinstance(loader.dataset, IterableDataset):
        raise InputError("an iterable dataset has no fixed length and order; collect it into two tensors first.")
    if not isinstance(sampler, SequentialSampler):
        raise InputError(
            f"the data loader shuffles or selects ({type(sampler).__name__}): the matrix would depend on the draw. "
            "Pass shuffle=False."
        )
    size = len(loader.dataset)
    if loader.drop_last and loader.batch_size and size % loader.batch_size:
        raise InputError(f"the data loader drops {size % loader.batch_size} of {size} examples: pass drop_last=False.")
    whole = -(-size // loader.batch_size)
    # A loader of a class of its own may go on for ever: one batch more than there can be is enough to know.
    drawn = islice(_undrawn(loader, "the data loader"), whole + 1)
    batches = [_pair(batch, "a batch of the data loader") for batch in drawn]
    if not batches:
        raise InputError("the data are empty.")
    if not all(isinstance(part, Tensor) for batch in batches for part in batch):
        raise InputError("each batch of the data loader must be two tensors (inputs, targets).")
    inputs, targets = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
    if len(inputs) != size:
        given = "more" if len(inputs) > size else len(inputs)
        raise InputError(
            f"the data loader ({type(loader).__name__}) gives {given} examples, its dataset has {size}: what it "
            "repeats or leaves out is unknown. Pass the dataset itself."
        )
    _refuse_changing(loader.dataset)
    return inputs, targets


def _undrawn(items: Iterable[Any], what: str) -> Iterator[Any]:
    """Give the items; refuse them if reading them moved a global random generator: augmentation, say."""
    items = iter(items)  # a loader draws one seed here, whatever it does afterwards
    before = generator_states(_CPU)
    yield from items
    moved = [name for name, state in generator_states(_CPU).items() if state != before[name]]
    if moved:
        raise InputError(
            f"{what} draws random numbers ({', '.join(moved)}) while it is read: the matrix would depend on the draw. "
            "Switch random transforms off, or collect one draw into two tensors first."
        )


def _refuse_changing(data: Dataset) -> None:
    """Refuse a dataset whose first, middle or last item is another one when it is asked again."""
    for index in sorted({0, len(data) // 2, len(data) - 1}):
        first, second = ([torch.as_tensor(part) for part in _pair(data[index], "an item")] for _ in range(2))
        if not all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(first, second, strict=True)):
            raise InputError(
                f"item {index} of the dataset is another one each time it is read: the matrix would depend on when. "
                "Switch random transforms off, or collect the data into two tensors first."
            )
