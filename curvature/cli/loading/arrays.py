"""Inputs and targets from ``.npz``, ``.pt`` and ``.csv`` files, and from what a loader of the user returns."""

from __future__ import annotations

import array
import csv
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvature.arrays import Float64
from curvature.cli.loading.files import (
    IN_PARTS,
    MAX_BYTES,
    describe_contents,
    existing,
    gigabytes,
    load_tensors,
    refuse_large,
    unusual_kind,
)
from curvature.cli.wording import Say, choice, first_line, listed
from curvature.errors import ConfigurationError, InputError
from curvature.models.data.items import TARGET_NAMES
from curvature.models.trees import Structure, leaves_by_name, mapped

__all__ = ["array_header", "as_arguments", "as_tensor", "divided", "load_csv", "load_npz", "load_pt", "parts_of"]

_INPUT_NAMES, _TARGET_NAMES = ("x", "X", "inputs"), ("y", "Y", "targets")


def load_npz(path: str, target: str | None = None, *, with_targets: bool = True) -> tuple[Structure, Structure]:
    """Read inputs and targets from an archive of NumPy arrays; nothing is unpickled.

    Parameters
    ----------
    path
        Contains ``x`` and ``y``, ``X`` and ``Y``, or ``inputs`` and ``targets``; or any inputs by name, with a target
        that is called ``y``, ``Y``, ``labels``, ``label``, ``targets`` or ``target``.
    target
        Name of the targets; all other arrays are inputs.
    with_targets
        Whether there are targets; otherwise every array is an input.

    Returns
    -------
    tuple
        Inputs, a tensor or a dictionary of tensors; and targets, None if there are none.

    Raises
    ------
    InputError
        If the file is missing, too large, damaged, or does not contain such arrays of real numbers.
    """
    file = existing(path, "data")
    refuse_large(file, way=IN_PARTS)
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                with archive.open(member) as stream:
                    array_header(stream, member.file_size, f"{file}: {member.filename}")
        with np.load(file, allow_pickle=False) as stored:
            # Only the arrays that are used are unpacked.
            names = _used(stored.files, target, with_targets)
            arrays = {name: stored[name] if name in names else None for name in stored.files}
    except InputError:
        raise
    except Exception as error:  # the readers raise many kinds of errors on files of another format
        why = "it contains Python objects, which are not unpickled" if "pickle" in str(error) else first_line(error)
        raise InputError(
            f"{file} cannot be read: {why}. Save arrays of numbers: np.savez('data.npz', x=x, y=y)."
        ) from error
    return divided(arrays, str(file), target, with_targets=with_targets)


def load_pt(
    path: str, say: Say, target: str | None = None, *, with_targets: bool = True
) -> tuple[Structure, Structure]:
    """Read inputs and targets from a file of ``torch.save``.

    Parameters
    ----------
    path
        Contains a pair of inputs and targets, or a dictionary with the names that :func:`load_npz` looks for. Inputs
        may be a tuple, list or dictionary of tensors.
    say
        Receives a warning if this version of PyTorch has a known flaw.
    target, with_targets
        As for :func:`load_npz`.

    Returns
    -------
    tuple
        As for :func:`load_npz`.

    Raises
    ------
    InputError
        If the file is missing, too large, damaged, or does not contain such tensors.
    """
    file = existing(path, "data")
    value, _ = load_tensors(file, "Save tensors: torch.save((inputs, targets), 'data.pt')", say)
    return divided(value, str(file), target, with_targets=with_targets)


def load_csv(path: str, target: str | None) -> tuple[Float64[Tensor, "examples columns"], Float64[Tensor, "examples"]]:
    """Read a table of numbers with a row of names, in UTF-8.

    Parameters
    ----------
    path
        The file.
    target
        Name of the column to predict.

    Returns
    -------
    tuple of Tensor
        The other columns ``(N, columns - 1)`` and the target ``(N,)``, float64.

    Raises
    ------
    ConfigurationError
        If no column, or an unknown one, is named as the target.
    InputError
        If the file is missing or too large, or a cell is missing or not a number, with its line.

    Notes
    -----
    pandas is not used: its reader fills short rows, drops cells of long rows and does not name the line of a wrong
    cell, so these checks would need a second pass.
    """
    file = existing(path, "data")
    refuse_large(file)
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.reader(stream)
            header = [name.strip() for name in next(rows, [])]
            column = _target_column(file, header, target)
            numbers = array.array("d")  # eight bytes a number; a list of floats needs four times as many
            for row in rows:
                numbers.extend(_numbers(row, header, f"{file}, line {rows.line_num}") if row else ())
                if numbers.itemsize * len(numbers) > MAX_BYTES:
                    raise InputError(f"the numbers of {file} exceed the limit of {gigabytes(MAX_BYTES)}.")
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{file} is not a CSV file in UTF-8: {error}.") from error
    table = torch.from_numpy(np.array(numbers)).reshape(-1, len(header))
    others = [k for k in range(len(header)) if k != column]
    return table[:, others], table[:, column]


def as_tensor(value: Any, name: str) -> Tensor:
    """Convert an array to a tensor, and check that it is a dense array of real numbers.

    Parameters
    ----------
    value
        A NumPy array or a tensor.
    name
        What it is, for the message.

    Returns
    -------
    Tensor
        Detached, in native byte order; long double becomes float64, because PyTorch has no longer type.

    Raises
    ------
    InputError
        If it is anything else.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub":
            raise InputError(f"{name} must be real numbers, got an array of {value.dtype}.")
        if value.dtype.kind == "f" and value.dtype.itemsize > 8:
            value = value.astype(np.float64)
        return torch.as_tensor(np.ascontiguousarray(value.astype(value.dtype.newbyteorder("="), copy=False)))
    if not isinstance(value, Tensor):
        raise InputError(f"{name} must be a dense tensor of real numbers, got a {type(value).__name__}.")
    kind = unusual_kind(value)
    if kind is not None:
        raise InputError(f"{name} must be a dense tensor of real numbers, but it is {kind}.")
    return value.detach()


def array_header(stream: Any, size: int, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of an array, and refuse one that promises more than the file contains.

    Parameters
    ----------
    stream
        At the start of a ``.npy`` file; afterwards at its first number.
    size
        Of the file, in bytes.
    name
        What it is, for the message.

    Returns
    -------
    shape, fortran_order, dtype
        As NumPy writes them.

    Raises
    ------
    InputError
        If the numbers do not fit into the file.
    """
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(stream)
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize > size:
        raise InputError(f"{name} is damaged: its header says the shape {shape}, but it has only {size} bytes.")
    return shape, fortran_order, dtype


def _target_column(file: Path, header: Sequence[str], target: str | None) -> int:
    if len(header) < 2 or len(set(header)) < len(header) or all(map(_is_number, header)):
        raise InputError(
            f"{file} must begin with a row of at least two distinct names, one for each column. It begins with "
            f"{listed(header) or 'nothing'}."
        )
    if target is None:
        raise ConfigurationError(f"the target column of {file} is not named. Add --target, one of {listed(header)}.")
    return choice(target, {name: position for position, name in enumerate(header)}, f"column of {file}")


def _numbers(row: Sequence[str], header: Sequence[str], line: str) -> list[float]:
    if len(row) != len(header):
        raise InputError(f"{line} has {len(row)} values, but the header has {len(header)} names.")
    try:
        return [float(cell) for cell in row]
    except ValueError as error:
        cell, name = next(pair for pair in zip(row, header, strict=True) if not _is_number(pair[0]))
        raise InputError(f"{line}: {cell!r} in column {name!r} is not a number.") from error


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _used(names: Sequence[str], target: str | None, with_targets: bool) -> set[str]:
    """Names of the arrays that are used: one pair of known names, if no other is asked for."""
    known = {*_INPUT_NAMES, *_TARGET_NAMES}
    if target is not None or not with_targets or not known.intersection(names):
        return set(names)
    return known if set(_INPUT_NAMES).intersection(names) else set(names)


def divided(
    value: Any, file: str, target: str | None = None, *, with_targets: bool = True
) -> tuple[Structure, Structure]:
    """Find inputs and targets in what a file contains, and convert them to tensors.

    Parameters
    ----------
    value, file, target, with_targets
        As for :func:`parts_of`.

    Returns
    -------
    inputs, targets
        Structures of tensors; the targets are None if there are none.
    """
    inputs, targets = parts_of(value, file, target, with_targets=with_targets)
    inputs = _tensors(inputs, f"the inputs of {file}")
    return inputs, _tensors(targets, f"the targets of {file}") if with_targets else None


def parts_of(value: Any, file: str, target: str | None, *, with_targets: bool) -> tuple[Any, Any]:
    """Find inputs and targets in what a file contains.

    Parameters
    ----------
    value
        A pair, or a dictionary of arrays.
    file
        Its name, for messages.
    target, with_targets
        As for :func:`load_npz`.

    Returns
    -------
    inputs, targets
        As they are in the file; the targets are None if there are none.

    Raises
    ------
    InputError
        If it is not clear which part is the target.
    ConfigurationError
        If ``target`` does not name an entry.
    """
    if not isinstance(value, tuple | list | Mapping):
        raise InputError(
            f"{file} must contain a pair (inputs, targets) or a dictionary of tensors; it contains "
            f"{describe_contents(value)}."
        )
    if not with_targets:
        return value, None
    if isinstance(value, Mapping):
        return _by_name(value, file, target)
    if target is not None:
        raise ConfigurationError(f"--target {target} names an entry of a dictionary, but {file} contains a sequence.")
    if len(value) == 2:
        return value[0], value[1]
    raise InputError(
        f"{file} must contain a pair (inputs, targets) or a dictionary of tensors; it contains "
        f"{describe_contents(value)}. Several inputs are a tuple: ((x1, x2), y)."
    )


def as_arguments(inputs: Any) -> Any:
    """Arguments of a function after its parameters: a pair like x and y by position, all else as it is, by name.

    Parameters
    ----------
    inputs
        What a file or a loader contains.

    Returns
    -------
    object
        A tuple, if the entries are the two of a known pair; otherwise ``inputs``.
    """
    if isinstance(inputs, Mapping) and len(inputs) == 2:
        pair = [_first_of(names, inputs) for names in (_INPUT_NAMES, _TARGET_NAMES)]
        if all(part is not None for part in pair):
            return tuple(pair)
    return inputs


def _by_name(value: Mapping, file: str, target: str | None) -> tuple[Any, Any]:
    """Inputs and targets of a dictionary."""
    if target is None:
        inputs, targets = (_first_of(names, value) for names in (_INPUT_NAMES, _TARGET_NAMES))
        if inputs is not None and targets is not None:
            return inputs, targets
        named = [name for name in (*TARGET_NAMES, "Y") if value.get(name) is not None]
        if inputs is not None or len(named) != 1 or len(value) < 2:
            raise InputError(
                f"{file} must contain inputs named {' or '.join(_INPUT_NAMES)} and targets named "
                f"{' or '.join(_TARGET_NAMES)}; it contains {listed(map(str, value)) or 'nothing'}. With other names, "
                "name the targets with --target; everything else is an input."
            )
        target = named[0]
    targets = choice(target, value, f"entry of {file}")
    others = {name: part for name, part in value.items() if name != target}
    if not others:
        raise InputError(f"{file} contains only {target!r}, the targets that --target names, and no inputs.")
    return next(iter(others.values())) if len(others) == 1 else others, targets


def _tensors(structure: Any, name: str) -> Structure:
    """Convert the arrays of a structure."""
    leaves = [as_tensor(leaf, leaf_name) for leaf_name, leaf in leaves_by_name(structure, name)]
    remaining = iter(leaves)
    return mapped(lambda _: next(remaining), structure)


def _first_of(names: Iterable[str], values: Mapping[str, Any]) -> Any:
    return next((values[name] for name in names if values.get(name) is not None), None)
