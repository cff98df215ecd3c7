"""Data as users have them, read once, in order, into two tensors of our own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from curvature.errors import InputError

__all__ = ["as_type", "materialize", "refuse_non_finite"]


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
    """Read the data once, in order, into two tensors of our own."""
    if isinstance(data, DataLoader):
        inputs, targets = _from_loader(data)
    elif isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        inputs, targets = (part.detach().clone() for part in data)
    elif isinstance(data, Dataset):
        if not hasattr(data, "__len__"):
            raise InputError("an iterable dataset has no fixed length and order; collect it into two tensors first.")
        if len(data) == 0:
            raise InputError("the data are empty.")
        pairs = [_pair(data[index], f"item {index} of the dataset") for index in range(len(data))]
        inputs = torch.stack([torch.as_tensor(pair[0]) for pair in pairs])
        targets = torch.stack([torch.as_tensor(pair[1]) for pair in pairs])
    else:
        raise InputError(
            f"data must be a pair of tensors (inputs, targets), a Dataset or a DataLoader, got {type(data).__name__}."
        )
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) == 0 or len(targets) == 0:
        raise InputError("the data are empty.")
    if len(inputs) != len(targets):
        raise InputError(f"there are {len(inputs)} inputs but {len(targets)} targets.")
    return inputs, targets


def _pair(item: object, what: str) -> tuple[Tensor, Tensor]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise InputError(f"{what} must be a pair (input, target), got {type(item).__name__}.")
    return item[0], item[1]


def _from_loader(loader: DataLoader) -> tuple[Tensor, Tensor]:
    sampler = loader.sampler
    if loader.batch_size is None and loader.batch_sampler is None:
        raise InputError("the data loader does not batch (batch_size=None): pass its dataset instead.")
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not torch.utils.data.BatchSampler:
        raise InputError(
            f"the data loader uses {type(loader.batch_sampler).__name__}, whose order and coverage are unknown. "
            "Pass the dataset itself."
        )
    if isinstance(loader.dataset, torch.utils.data.IterableDataset):
        raise InputError("an iterable dataset has no fixed length and order; collect it into two tensors first.")
    if not isinstance(sampler, SequentialSampler):
        raise InputError(
            f"the data loader shuffles or selects ({type(sampler).__name__}): the matrix would depend on the draw. "
            "Pass shuffle=False."
        )
    if loader.drop_last and loader.batch_size and len(loader.dataset) % loader.batch_size:
        dropped = len(loader.dataset) % loader.batch_size
        raise InputError(f"the data loader drops {dropped} of {len(loader.dataset)} examples: pass drop_last=False.")
    batches = [_pair(batch, "a batch of the data loader") for batch in loader]
    if not batches:
        raise InputError("the data are empty.")
    if not all(isinstance(part, Tensor) for batch in batches for part in batch):
        raise InputError("each batch of the data loader must be two tensors (inputs, targets).")
    return torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])
