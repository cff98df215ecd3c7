"""Data by name, as two tensors in fixed order."""

from __future__ import annotations

import array
import csv
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvature.cli.loading.code import call, find
from curvature.cli.loading.files import MAX_BYTES, contents, existing, load_tensors, oddity, refuse_large
from curvature.cli.loading.images import FOLDERS
from curvature.cli.loading.wording import Say, choice, dtype_name, first_line, listed
from curvature.errors import ConfigurationError, InputError
from curvature.models import losses, materialize, zoo
from curvature.models.losses import Loss

__all__ = ["load_data"]

_DATA_FORMS = (
    "builtin:NAME, file.npz, file.pt, file.csv (with --target COLUMN), mnist:FOLDER, cifar10:FOLDER or "
    "package.module:loader"
)
_INPUT_NAMES, _TARGET_NAMES = ("x", "X", "inputs"), ("y", "Y", "targets")


def load_data(
    spec: str,
    loss: Loss,
    *,
    target: str | None = None,
    num_examples: int | None = None,
    image: bool = False,
    say: Say = lambda _: None,
) -> tuple[Tensor, Tensor]:
    """Read ``(inputs, targets)``: real numbers in fixed order; what they must look like is :class:`Problem`'s affair.

    Parameters
    ----------
    spec
        ``builtin:digits`` (or another of ``zoo.DATA``), a ``.npz``, ``.pt`` or ``.csv`` file, ``mnist:FOLDER`` or
        ``cifar10:FOLDER`` with files of the user's own, or ``package.module:loader``, which is called.
    loss
        Tells classes from numbers, which a CSV file and floating-point labels cannot.
    target
        The column of a ``.csv`` that is to be predicted.
    num_examples
        Take the first ones.
    image
        Digits, MNIST and CIFAR-10 as images ``(N, channels, height, width)`` instead of rows.
    """
    kind, _, name = spec.partition(":")
    suffix = "" if kind in {"builtin", *FOLDERS} else Path(spec).suffix
    if target is not None and suffix != ".csv":
        raise ConfigurationError(f"--target names a column of a .csv file; the data are {spec!r}.")
    if kind == "builtin":
        loader = choice(name, zoo.DATA, "built-in data set", "builtin:")
        if image and loader is not zoo.digits:
            raise ConfigurationError(f"{spec} are tables of numbers and the model takes images: use builtin:mlp.")
        return loader(num_examples, image=True) if image else loader(num_examples)
    if kind in FOLDERS and name:
        return _examples(*FOLDERS[kind](name, num_examples, image=image), num_examples, spec)
    if suffix == ".npz":
        inputs, targets = _load_npz(existing(spec, "data"))
    elif suffix == ".csv":
        inputs, targets = _load_csv(existing(spec, "data"), target)
        if isinstance(loss, losses.BinaryCrossEntropy | losses.HalfSquaredError):
            targets = targets[:, None]
    elif suffix in {".pt", ".pth"}:
        path = existing(spec, "data")
        found = load_tensors(path, "Save tensors: torch.save((inputs, targets), 'data.pt')", say)
        inputs, targets = _named_pair(found, f"{path}")
    elif ":" in spec:
        found = call(find(spec, "data", _DATA_FORMS, say), {}, spec)
        if isinstance(found, tuple | list) and all(isinstance(part, np.ndarray) for part in found):
            found = tuple(_as_tensor(part, f"{spec} part {k}") for k, part in enumerate(found))
        inputs, targets = materialize(found)
    else:
        raise ConfigurationError(f"data {spec!r} are of no known form; use {_DATA_FORMS}.")
    inputs, targets = _examples(inputs, targets, num_examples, spec)
    if not inputs.is_floating_point():
        say(f"note: the inputs are {dtype_name(inputs)} and stay so; save them as floats if the model expects numbers.")
    if isinstance(loss, losses.CrossEntropy) and targets.is_floating_point() and targets.ndim == 1:
        targets = _as_classes(targets)
    return inputs, targets


def _load_npz(path: Path) -> tuple[Tensor, Tensor]:
    refuse_large(path)
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as stream:
                    _refuse_overclaiming(stream, member.file_size, f"{path}: {member.filename}")
        with np.load(path, allow_pickle=False) as stored:
            # Only what is used is unpacked.
            found = {name: stored[name] for name in stored.files if name in {*_INPUT_NAMES, *_TARGET_NAMES}}
            names = stored.files
    except InputError:
        raise
    except Exception as error:  # the readers fail in many ways on what is not their own
        why = "it holds Python objects, which are not unpickled" if "pickle" in str(error) else first_line(error)
        raise InputError(
            f"{path} cannot be read: {why}. Save arrays of numbers: np.savez('data.npz', x=x, y=y)."
        ) from error
    return _named_pair(found or dict.fromkeys(names), f"{path}")


def _refuse_overclaiming(stream: Any, size: int, what: str) -> None:
    """Refuse an array header that promises more than the archive holds, before NumPy allocates it."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize > size:
        raise InputError(f"{what} claims the shape {shape} but holds {size} bytes: the file is damaged.")


def _load_csv(path: Path, target: str | None) -> tuple[Tensor, Tensor]:
    refuse_large(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.reader(stream)
            header = [name.strip() for name in next(rows, [])]
            if len(header) < 2 or len(set(header)) < len(header) or all(map(_is_number, header)):
                raise InputError(
                    f"{path} must begin with a row of at least two distinct names, one per column; it begins with "
                    f"{listed(header) or 'nothing'}."
                )
            if target is None:
                raise ConfigurationError(
                    f"which column of {path} is the target? Add --target, one of {listed(header)}."
                )
            column = header.index(choice(target, {name: name for name in header}, f"column of {path}"))
            table = array.array("d")  # eight bytes for a number, where a list of floats takes four times as many
            for row in rows:
                table.extend(_numbers(row, header, f"{path}, line {rows.line_num}") if row else ())
                if table.itemsize * len(table) > MAX_BYTES:
                    raise InputError(
                        f"the numbers of {path} take more than the {MAX_BYTES / 2**30:.3g} GB that are read."
                    )
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{path} is not a CSV file in UTF-8: {error}.") from error
    numbers = torch.from_numpy(np.array(table)).reshape(-1, len(header))
    others = [k for k in range(len(header)) if k != column]
    return numbers[:, others], numbers[:, column]


def _numbers(row: Sequence[str], header: Sequence[str], where: str) -> list[float]:
    if len(row) != len(header):
        raise InputError(f"{where} has {len(row)} values, the header has {len(header)} names.")
    wrong = [(cell, name) for cell, name in zip(row, header, strict=True) if not _is_number(cell)]
    if wrong:
        raise InputError(f"{where}: {wrong[0][0]!r} in column {wrong[0][1]!r} is not a number.")
    return [float(cell) for cell in row]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _named_pair(found: Any, what: str) -> tuple[Tensor, Tensor]:
    if isinstance(found, tuple | list) and len(found) == 2:
        inputs, targets = found
    elif isinstance(found, Mapping):
        pair = [
            next((found[n] for n in names if found.get(n) is not None), None) for names in (_INPUT_NAMES, _TARGET_NAMES)
        ]
        if pair[0] is None or pair[1] is None:
            raise InputError(
                f"{what} must hold inputs as {' or '.join(_INPUT_NAMES)} and targets as {' or '.join(_TARGET_NAMES)}; "
                f"it holds {listed(map(str, found)) or 'nothing'}."
            )
        inputs, targets = pair
    else:
        raise InputError(
            f"{what} must hold a pair (inputs, targets) or a dictionary of tensors, it holds {contents(found)}."
        )
    return _as_tensor(inputs, f"the inputs of {what}"), _as_tensor(targets, f"the targets of {what}")


def _as_tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub":
            raise InputError(f"{what} must be real numbers, got an array of {value.dtype}.")
        if value.dtype.kind == "f" and value.dtype.itemsize > 8:
            value = value.astype(np.float64)  # long double: torch has none
        return torch.as_tensor(np.ascontiguousarray(value.astype(value.dtype.newbyteorder("="), copy=False)))
    odd = oddity(value) if isinstance(value, Tensor) else f"a {type(value).__name__}"
    if odd is not None:
        raise InputError(f"{what} must be a dense tensor of real numbers, got {odd}.")
    return value.detach()


def _examples(inputs: Tensor, targets: Tensor, num_examples: int | None, spec: str) -> tuple[Tensor, Tensor]:
    for what, tensor in (("inputs", inputs), ("targets", targets)):
        if tensor.ndim == 0 or tensor.numel() == 0:
            raise InputError(f"{spec} is empty: its {what} have shape {tuple(tensor.shape)}.")
    if len(inputs) != len(targets):
        raise InputError(f"{spec} has {len(inputs)} inputs but {len(targets)} targets.")
    if num_examples is not None and not 1 <= num_examples <= len(inputs):
        raise ConfigurationError(f"--num-examples {num_examples}: {spec} has {len(inputs)} examples.")
    return inputs[:num_examples], targets[:num_examples]


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
