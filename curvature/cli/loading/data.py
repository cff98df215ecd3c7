"""Data by name, as tensors in fixed order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvature.cli.loading.arrays import as_arguments, as_tensor, divided, load_csv, load_npz, load_pt
from curvature.cli.loading.code import call, find
from curvature.cli.loading.files import IN_PARTS, MAX_BYTES, expanded, gigabytes, is_folder
from curvature.cli.loading.images import FOLDERS
from curvature.cli.loading.streams import has_targets, map_folder
from curvature.cli.wording import Say, choice, dtype_name
from curvature.errors import ConfigurationError, InputError
from curvature.models import losses, materialize, zoo
from curvature.models.losses import Loss
from curvature.models.trees import Structure, leaves_by_name, mapped, structure_of

__all__ = ["load_data"]

_DATA_FORMS = (
    "builtin:NAME, file.npz, file.pt, file.csv (with --target COLUMN), a folder of .npy files, mnist:FOLDER, "
    "cifar10:FOLDER or package.module:loader"
)


def load_data(
    spec: str,
    loss: Loss | None,
    *,
    target: str | None = None,
    num_examples: int | None = None,
    image: bool = False,
    say: Say = lambda _: None,
    forward: Callable[..., Any] | None = None,
) -> Any:
    """Load inputs and targets: real numbers in fixed order. :class:`Problem` checks them against the model.

    Parameters
    ----------
    spec
        ``builtin:digits`` (or another of ``zoo.DATA``); a ``.npz``, ``.pt`` or ``.csv`` file; a folder of ``.npy``
        files; ``mnist:FOLDER`` or ``cifar10:FOLDER``; or ``package.module:loader``, which is called.
    loss
        Tells classes from numbers, which CSV files and floating-point labels do not distinguish; None for a function
        that takes everything, in which files need no targets.
    target
        Column of a ``.csv`` file to predict, or name of the targets in a ``.npz`` or ``.pt`` file, or in a folder.
    num_examples
        Use only the first ones.
    image
        Shape digits, MNIST and CIFAR-10 as images ``(N, channels, height, width)`` instead of rows.
    say
        Receives a message about executed code, and about inputs that are integers.
    forward
        Of the model, to tell inputs from targets in items of a loader.

    Returns
    -------
    tuple
        Inputs and targets, on the CPU; inputs alone if nothing is a target. Inputs are a tensor, or a tuple,
        list or dictionary of tensors.

    Raises
    ------
    ConfigurationError
        If the name, the target or the number of examples does not fit.
    InputError
        If a file cannot be read or does not contain data.
    """
    source = _Source(spec, loss, target, num_examples, image, say, forward)
    kind = _kind(spec)
    if target is not None and kind not in (".csv", ".npz", ".pt", ".pth", "folder"):
        raise ConfigurationError(
            "--target names a column of a .csv file, an entry of a .npz or .pt file, or a file in a folder, but the "
            f"data are {spec!r}."
        )
    inputs, targets = _first_examples(*_READERS[kind](source), num_examples, spec)
    if targets is None:
        return as_arguments(inputs) if loss is None else inputs
    if isinstance(inputs, Tensor) and not inputs.is_floating_point():
        say(
            f"note: the inputs are {dtype_name(inputs)} and are not converted. If the model expects floating-point "
            "numbers, save them as such."
        )
    if isinstance(loss, losses.CrossEntropy) and targets.is_floating_point() and targets.ndim == 1:
        targets = _as_classes(targets)
    return inputs, targets


@dataclass(frozen=True)
class _Source:
    """The arguments of :func:`load_data`."""

    spec: str
    loss: Loss | None
    target: str | None
    num_examples: int | None
    image: bool
    say: Say
    forward: Callable[..., Any] | None

    @property
    def with_targets(self) -> bool:
        return has_targets(self.loss, self.target)

    @property
    def name(self) -> str:
        return self.spec.partition(":")[2]


def _kind(spec: str) -> str:
    """Key of ``_READERS`` for a name."""
    if is_folder(expanded(spec, "data")):
        return "folder"
    prefix, separator, name = spec.partition(":")
    if separator and (prefix == "builtin" or (prefix in FOLDERS and name)):
        return prefix
    suffix = Path(spec).suffix
    if suffix in _READERS:
        return suffix
    if separator:
        return "code"
    raise ConfigurationError(f"Unrecognised data specification {spec!r}. Use {_DATA_FORMS}.")


def _read_builtin(source: _Source) -> tuple[Tensor, Tensor]:
    loader = choice(source.name, zoo.DATA, "built-in data set", "builtin:")
    if not source.image:
        return loader(source.num_examples)
    if loader is not zoo.digits:
        raise ConfigurationError(
            f"{source.spec} is a table of numbers, but the model expects images. Use --model builtin:mlp."
        )
    return zoo.digits(source.num_examples, image=True)


def _read_folder(source: _Source) -> tuple[Tensor, Tensor]:
    return FOLDERS[source.spec.partition(":")[0]](source.name, source.num_examples, image=source.image)


def _read_arrays(source: _Source) -> tuple[Structure, Structure]:
    arrays = map_folder(expanded(source.spec, "data"))
    size = sum(array.nbytes for array in arrays.values())
    if size > MAX_BYTES:
        raise InputError(f"{source.spec} is {gigabytes(size)}; the limit is {gigabytes(MAX_BYTES)}. {IN_PARTS}")
    copies = {name: np.array(array) for name, array in arrays.items()}
    return divided(copies, source.spec, source.target, with_targets=source.with_targets)


def _read_csv(source: _Source) -> tuple[Tensor, Tensor]:
    inputs, targets = load_csv(source.spec, source.target)
    one_output = isinstance(source.loss, losses.PointwiseLoss | losses.GaussianLikelihood)
    return inputs, targets[:, None] if one_output else targets


def _call_loader(source: _Source) -> tuple[Structure, Structure]:
    spec = source.spec
    value = call(find(spec, "data", _DATA_FORMS, source.say), {}, spec)
    if isinstance(value, tuple | list) and all(isinstance(part, np.ndarray) for part in value):
        value = tuple(as_tensor(part, f"{spec} part {k}") for k, part in enumerate(value))
    inputs, targets = materialize(
        value,
        source.forward,
        with_targets=source.with_targets,
        say=lambda sentence: source.say(f"note: {sentence}"),
    )
    return structure_of(inputs), structure_of(targets) if source.with_targets else None


_READERS: dict[str, Callable[[_Source], tuple[Structure, Structure]]] = {
    "builtin": _read_builtin,
    **dict.fromkeys(FOLDERS, _read_folder),
    ".npz": lambda source: load_npz(source.spec, source.target, with_targets=source.with_targets),
    ".pt": lambda source: load_pt(source.spec, source.say, source.target, with_targets=source.with_targets),
    ".pth": lambda source: load_pt(source.spec, source.say, source.target, with_targets=source.with_targets),
    ".csv": _read_csv,
    "folder": _read_arrays,
    "code": _call_loader,
}


def _first_examples(
    inputs: Structure, targets: Structure, num_examples: int | None, spec: str
) -> tuple[Structure, Structure]:
    parts = [("inputs", inputs), *([] if targets is None else [("targets", targets)])]
    leaves = [leaf for name, part in parts for leaf in leaves_by_name(part, name)]
    for name, tensor in leaves:
        if tensor.ndim == 0 or tensor.numel() == 0:
            raise InputError(f"{spec} is empty: its {name} have shape {tuple(tensor.shape)}.")
    first, examples = leaves[0][0], len(leaves[0][1])
    for name, tensor in leaves:
        if len(tensor) != examples:
            raise InputError(f"{spec} has {examples} {first} but {len(tensor)} {name}.")
    if num_examples is not None and not 1 <= num_examples <= examples:
        raise ConfigurationError(f"--num-examples {num_examples}: {spec} has {examples} examples.")
    inputs = mapped(lambda leaf: leaf[:num_examples], inputs)
    return inputs, None if targets is None else mapped(lambda leaf: leaf[:num_examples], targets)


def _as_classes(targets: Tensor) -> Tensor:
    wrong = ~torch.isfinite(targets)
    if wrong.any():
        raise InputError(f"the targets contain NaN or infinity, first in example {int(wrong.nonzero()[0])}.")
    fractional = targets != targets.round()
    if fractional.any():
        example = int(fractional.nonzero()[0])
        raise InputError(
            f"cross-entropy needs classes 0, 1, 2, ...; the target of example {example} is {float(targets[example]):g}."
            " For numbers use --loss mse."
        )
    return targets.long()
