"""Files of a user: their size is checked before they are read, and only tensors are unpickled."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curvature.cli.loading.pickles import read_tensors
from curvature.cli.wording import Say, first_line, listed
from curvature.errors import InputError

__all__ = [
    "IN_PARTS",
    "MAX_BYTES",
    "SAVE_WEIGHTS",
    "describe_contents",
    "existing",
    "expanded",
    "gigabytes",
    "is_file",
    "is_folder",
    "is_torchscript",
    "load_json",
    "load_tensors",
    "pickled_objects",
    "reason",
    "refuse_large",
    "unpickling_error",
    "unusual_kind",
]

MAX_BYTES = 4 * 2**30  # of one file, unpacked; a dense curvature matrix of more data would not fit either
IN_PARTS = "With --stream it is read in parts, without a limit."
SAVE_WEIGHTS = "Save only the weights: torch.save(model.state_dict(), 'weights.pt')"


def existing(path: str | Path, kind: str) -> Path:
    """Check that a file exists and can be read.

    Parameters
    ----------
    path
        Its path; ``~`` is expanded.
    kind
        What it holds, for messages: ``data``, ``weights``.

    Returns
    -------
    Path
        The expanded path.

    Raises
    ------
    InputError
        If there is no such file, with the most similar name in the folder, or if it cannot be read.
    """
    path = expanded(path, kind)
    if is_file(path):
        if not os.access(path, os.R_OK):
            raise InputError(f"the {kind} file {path} cannot be read: permission denied.")
        return path
    try:
        others = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        state = "is not a file" if path.exists() else "does not exist"
    except (OSError, ValueError) as error:  # a name too long for the disk, a folder that may not be listed
        raise InputError(f"the {kind} file {path} cannot be opened: {reason(error)}.") from error
    matches = difflib.get_close_matches(path.name, others, 1)
    hint = f" Did you mean {path.parent / matches[0]}?" if matches else ""
    raise InputError(f"the {kind} file {path} {state}.{hint}")


def expanded(path: str | Path, kind: str) -> Path:
    """Replace ``~`` by the home folder.

    Parameters
    ----------
    path
        Any path.
    kind
        What it holds, for the message.

    Returns
    -------
    Path
        The path without ``~``.

    Raises
    ------
    InputError
        If there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"the {kind} path {path} begins with ~, but there is no such home folder.") from error


def is_file(path: Path) -> bool:
    """Whether a file exists.

    Parameters
    ----------
    path
        Any path.

    Returns
    -------
    bool
        False also for a name that no file can have.
    """
    with contextlib.suppress(OSError, ValueError):  # a name that is too long, or has a NUL
        return path.is_file()
    return False


def is_folder(path: Path) -> bool:
    """Whether a folder exists.

    Parameters
    ----------
    path
        Any path.

    Returns
    -------
    bool
        False also for a name that no folder can have.
    """
    with contextlib.suppress(OSError, ValueError):
        return path.is_dir()
    return False


def reason(error: OSError | ValueError) -> str:
    """Reason for which the system refuses a path.

    Parameters
    ----------
    error
        What opening the path raised.

    Returns
    -------
    str
        The reason without the path.
    """
    return getattr(error, "strerror", None) or str(error)


def gigabytes(size: int) -> str:
    """Size in gigabytes of 2**30 bytes.

    Parameters
    ----------
    size
        In bytes.

    Returns
    -------
    str
        E.g. ``4 GB``.
    """
    return f"{size / 2**30:.3g} GB"


def refuse_large(file: Path | BytesIO, name: str | None = None, *, way: str = "") -> None:
    """Refuse a file by its size, or by its unpacked size if it is an archive, without reading it.

    Parameters
    ----------
    file
        A path, or a file in memory.
    name
        Its name, for the message.
    way
        What to do if it is too large, for the message.

    Raises
    ------
    InputError
        If it exceeds ``MAX_BYTES``, or is an archive whose members cannot be listed: another reader might unpack
        members that were not counted.
    """
    size = sum(member.file_size for member in _members(file))
    if isinstance(file, Path):
        size = max(size, file.stat().st_size)
    if size > MAX_BYTES:
        raise InputError(f"{name or file} is {gigabytes(size)}; the limit is {gigabytes(MAX_BYTES)}. {way}".rstrip())


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains an object.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    dict
        Its entries.

    Raises
    ------
    InputError
        If the file is too large, is not JSON in UTF-8, or contains anything else.
    """
    refuse_large(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path} is not a JSON file: {first_line(error)}.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must contain an object with names, but it contains {describe_contents(value)}.")
    return value


def load_tensors(path: Path, remedy: str, say: Say, *, skip_objects: bool = False) -> tuple[Any, list[str]]:
    """Read a file of ``torch.save`` that contains only tensors and containers of tensors.

    Parameters
    ----------
    path
        The file.
    remedy
        How to save a file that can be read, for messages.
    say
        Receives a warning if this version of PyTorch has a known flaw.
    skip_objects
        Whether pickled objects are replaced by inert ones; see :func:`~curvature.cli.loading.pickles.read_tensors`.

    Returns
    -------
    value, names
        The tensor or container, and the names of the classes whose objects were replaced.

    Raises
    ------
    InputError
        If the file is too large, damaged, or contains anything else.
    """
    if is_torchscript(path):
        raise InputError(f"{path} is a TorchScript archive, not a file of tensors. {remedy}.")
    refuse_large(path)
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < (2, 10):
        say(
            f"warning: torch {torch.__version__} has a known security flaw in reading .pt files (CVE-2026-24747). "
            "Prefer .safetensors."
        )
    try:
        value, objects = read_tensors(path, skip_objects=skip_objects)
    except Exception as error:  # the unpickler raises many kinds of errors on files of another format
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise pickled_objects(path, [refused[1]], remedy) from error
        raise InputError(f"{path} cannot be read as tensors ({unpickling_error(error)}). {remedy}.") from error
    size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors_in(value))
    if size > MAX_BYTES:  # one stored element can be expanded to any shape
        raise InputError(f"the tensors of {path} need {gigabytes(size)}; the limit is {gigabytes(MAX_BYTES)}.")
    return value, objects


def pickled_objects(path: Path, names: list[str], remedy: str) -> InputError:
    """Error for a file in which objects are where tensors should be.

    Parameters
    ----------
    path
        The file.
    names
        Classes or functions of the objects.
    remedy
        How to save a file that can be read.

    Returns
    -------
    InputError
        To be raised.
    """
    return InputError(
        f"{path} contains pickled Python objects ({listed(names)}), and reading those runs code. Only tensors are "
        f"read. {remedy}."
    )


def unpickling_error(error: Exception) -> str:
    """Reason for which tensors could not be read; PyTorch's own message recommends to unpickle everything.

    Parameters
    ----------
    error
        What ``torch.load`` or ``torch.export.load`` raised.

    Returns
    -------
    str
        The reason, without a final period.
    """
    refused = isinstance(error, pickle.UnpicklingError)
    return "it is damaged, or contains more than tensors" if refused else first_line(error)


def is_torchscript(path: Path) -> bool:
    """Whether a file was written by ``torch.jit.save``.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    bool
        False also for a file that is not an archive.
    """
    return any(member.filename.endswith("/constants.pkl") for member in _members(path))


def describe_contents(value: Any) -> str:
    """Describe in a few words what a file contains.

    Parameters
    ----------
    value
        What was read.

    Returns
    -------
    str
        E.g. ``the keys epoch, model``.
    """
    if isinstance(value, Mapping):
        return f"the keys {listed(map(str, value))}" if value else "an empty dictionary"
    return "nothing" if value is None else f"a {type(value).__name__}"


def unusual_kind(tensor: Tensor) -> str | None:
    """Name the property that distinguishes a tensor from a dense array of real numbers in memory.

    Parameters
    ----------
    tensor
        Any tensor.

    Returns
    -------
    str or None
        ``sparse``, ``complex``, ...; None for a dense array of real numbers.
    """
    if tensor.is_nested:
        return "nested"
    if tensor.is_quantized:
        return "quantized"
    if tensor.layout is not torch.strided:
        return "sparse"
    if tensor.device.type == "meta":
        return "without values (on the meta device)"
    return "complex" if tensor.is_complex() else None


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield every tensor; a container that contains itself, or is contained many times, is searched once."""
    seen, queue = set(), [value]
    while queue:
        part = queue.pop()
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, Mapping | tuple | list) and id(part) not in seen:
            seen.add(id(part))
            queue.extend(part.values() if isinstance(part, Mapping) else part)


def _members(file: Path | BytesIO) -> list[zipfile.ZipInfo]:
    """List the members of an archive; an empty list for other files."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except Exception as error:  # a damaged directory raises many kinds of errors
        with file.open("rb") if isinstance(file, Path) else contextlib.nullcontext(file) as stream:
            stream.seek(0)
            if stream.read(4) == b"PK\x03\x04":
                raise InputError(
                    f"{file} is a damaged archive ({first_line(error)}). Save or copy it again."
                ) from error
        return []
