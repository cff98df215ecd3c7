"""What data may look like before they are tensors: NumPy arrays, lists of batches, and loaders that shuffle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from curvature.errors import InputError

__all__ = [
    "UNSIZED",
    "array_as_tensor",
    "describe",
    "in_order",
    "refuse_dropped",
    "refuse_mixing",
    "untouched_generator",
]

UNSIZED = (
    "an iterable dataset has no fixed length and order. Pass stream=True to Problem.from_module, or --stream "
    "on the command line, to read it chunk by chunk in every pass, or collect it into two tensors first."
)


def array_as_tensor(value: Any, name: str) -> Any:
    """Copy a NumPy array of numbers to a tensor; anything else is returned as it is.

    Parameters
    ----------
    value
        Any object.
    name
        What it is, for the message.

    Returns
    -------
    object
        A new tensor in native byte order, or ``value``. Long double becomes float64, which PyTorch has.

    Raises
    ------
    InputError
        If it is an array of something other than numbers.
    """
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind not in "fiubc":
        raise InputError(f"{name} is a NumPy array of {value.dtype}, not of numbers.")
    if value.dtype.kind == "f" and value.dtype.itemsize > 8:
        value = value.astype(np.float64)
    return torch.tensor(np.ascontiguousarray(value.astype(value.dtype.newbyteorder("="))))


def describe(data: object) -> str:
    """Name what was given as data: its type, and the types of the parts of a tuple or a list.

    Parameters
    ----------
    data
        Any object.

    Returns
    -------
    str
        E.g. ``tuple of 3 (Tensor, Tensor, Tensor)``.
    """
    kind = type(data).__name__
    if not isinstance(data, tuple | list):
        return kind
    kinds = [type(part).__name__ for part in data]
    shown = kinds if len(kinds) <= 4 else [*kinds[:3], "..."]
    return f"{kind} of {len(kinds)} ({', '.join(shown)})" if kinds else f"empty {kind}"


def in_order(loader: DataLoader, say: Callable[[str], None]) -> tuple[DataLoader, BatchSampler]:
    """Find a loader that reads each example of a dataset once, in the order of the dataset.

    Parameters
    ----------
    loader
        The user's loader. If it shuffles a map-style dataset, another loader with its other settings takes its place.
    say
        Receives a sentence about a loader that was replaced.

    Returns
    -------
    loader, batches
        The loader to read, and its batches.

    Raises
    ------
    InputError
        If the loader has no batches, or selects, repeats or leaves out examples.
    """
    batches = loader.batch_sampler
    if batches is None:
        raise InputError("the data loader does not batch (batch_size=None): pass its dataset instead.")
    if type(batches) is not BatchSampler:
        raise InputError(
            f"the data loader uses {type(batches).__name__}, whose order and coverage are unknown. "
            "Pass the dataset itself."
        )
    if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__"):
        raise InputError(UNSIZED)
    if isinstance(batches.sampler, SequentialSampler):
        return loader, batches
    _refuse_selection(loader, batches.sampler)
    dataset: Any = loader.dataset
    size = len(dataset)
    sentence = (
        f"the data loader shuffles (RandomSampler): its {size} examples were read once, in the order of the dataset; "
        "their mean does not depend on the order."
    )
    dropped = size % batches.batch_size if batches.drop_last else 0
    if dropped:
        sentence += f" None was left out, though drop_last=True leaves out {dropped} of them in each epoch."
    say(sentence)
    ordered: DataLoader = DataLoader(
        dataset,
        batch_size=batches.batch_size,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        timeout=loader.timeout,
    )
    return ordered, BatchSampler(SequentialSampler(dataset), batches.batch_size, drop_last=False)


def refuse_dropped(loader: DataLoader, batches: BatchSampler) -> None:
    """Refuse a loader that leaves out an incomplete last batch.

    Parameters
    ----------
    loader, batches
        As :func:`in_order` returns them.

    Raises
    ------
    InputError
        With the number of examples.
    """
    size = len(loader.dataset)  # type: ignore[arg-type]
    if batches.drop_last and size % batches.batch_size:
        dropped = size % batches.batch_size
        raise InputError(f"the data loader drops {dropped} of {size} examples: pass drop_last=False.")


def _refuse_selection(loader: DataLoader, sampler: Any) -> None:
    """Refuse every sampler but one that permutes the whole dataset."""
    dataset: Any = loader.dataset
    kind = type(sampler).__name__
    if type(sampler) is not RandomSampler:
        raise InputError(
            f"the data loader shuffles or selects ({kind}): the matrix would depend on the draw. Pass shuffle=False, "
            "or the examples that you want, e.g. torch.utils.data.Subset(dataset, indices)."
        )
    if sampler.replacement or sampler.num_samples != len(dataset) or len(sampler.data_source) != len(dataset):
        raise InputError(
            f"the data loader shuffles or selects ({kind}, {sampler.num_samples} draws"
            f"{' with replacement' if sampler.replacement else ''} from {len(dataset)} examples): the matrix would "
            "depend on the draw. Pass shuffle=False, or the dataset itself."
        )
    if type(loader) is not DataLoader:
        raise InputError(
            f"the data loader shuffles or selects ({kind}) and is a subclass of DataLoader ({type(loader).__name__}), "
            "which may read in another way. Pass shuffle=False, or the dataset itself."
        )


def refuse_mixing(loader: DataLoader, leaves: Callable[[Any], list[Tensor]]) -> None:
    """Refuse a loader that shuffles if what it makes of an example depends on the others in its batch.

    Parameters
    ----------
    loader
        The loader in order, with the user's collate function.
    leaves
        Tensors of a batch. Where the shape of an example changes too, as by padding, nothing is decided.

    Raises
    ------
    InputError
        If the first or the last example of the first batch changes when it is collated alone.
    """
    if loader.collate_fn is default_collate:
        return
    items = [loader.dataset[index] for index in range(min(loader.batch_size or 1, len(loader.dataset)))]  # type: ignore[arg-type]
    together = leaves(loader.collate_fn(items))
    for position in (0, len(items) - 1):
        try:
            alone = leaves(loader.collate_fn([items[position]]))
        except Exception:  # a collate function may need more than one example
            continue
        for whole, single in zip(together, alone, strict=False):
            row = whole[position : position + 1]
            if row.shape == single.shape and not torch.allclose(row, single, equal_nan=True):
                raise InputError(
                    f"the data loader shuffles, and its collate_fn mixes the examples of a batch: example {position} "
                    "changes when it is collated alone. The matrix would depend on the order. Use a collate_fn "
                    "that treats each example by itself, or pass shuffle=False to fix the batches."
                )


@contextmanager
def untouched_generator(loader: DataLoader) -> Iterator[None]:
    """Restore the user's generator of a loader, from which each pass draws the seed of its workers.

    Parameters
    ----------
    loader
        Any loader; without a generator it uses the global one.

    Yields
    ------
    None
        While the loader is read.
    """
    generator = loader.generator
    state = generator.get_state() if isinstance(generator, torch.Generator) else None
    try:
        yield
    finally:
        if isinstance(generator, torch.Generator) and isinstance(state, Tensor):
            generator.set_state(state)
