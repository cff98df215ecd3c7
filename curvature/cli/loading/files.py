"""Files of a user: measured before they are read, and never unpickled beyond tensors."""

from __future__ import annotations

import contextlib
import difflib
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from curvature.cli.loading.wording import Say, first_line, listed
from curvature.errors import InputError

__all__ = [
    "MAX_BYTES",
    "SAVE_WEIGHTS",
    "contents",
    "existing",
    "expanded",
    "is_file",
    "is_torchscript",
    "load_tensors",
    "oddity",
    "reason",
    "refuse_large",
    "unpickled",
]

MAX_BYTES = 4 * 2**30  # of one file, unpacked; dense curvature does not go with more data than that
SAVE_WEIGHTS = "Save the weights alone: torch.save(model.state_dict(), 'weights.pt')"


def existing(path: str | Path, what: str) -> Path:
    """Give the path of a file that is there, or say what is nearest."""
    path = expanded(path, what)
    if is_file(path):
        if not os.access(path, os.R_OK):
            raise InputError(f"the {what} file {path} cannot be read: you lack the permission.")
        return path
    try:
        others = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        state = "is not a file" if path.exists() else "does not exist"
    except (OSError, ValueError) as error:  # a name too long for the disk, a folder that may not be listed
        raise InputError(f"the {what} file {path} cannot be looked for: {reason(error)}.") from error
    near = difflib.get_close_matches(path.name, others, 1)
    hint = f" Did you mean {path.parent / near[0]}?" if near else ""
    raise InputError(f"the {what} file {path} {state}.{hint}")


def expanded(path: str | Path, what: str) -> Path:
    """Give a path with ``~`` replaced by the home folder it stands for."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"the {what} path {path} begins with ~, and there is no such home folder.") from error


def is_file(path: Path) -> bool:
    """Whether a file is there; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def reason(error: OSError | ValueError) -> str:
    """Say why the system refuses a path, without the path."""
    return getattr(error, "strerror", None) or str(error)


def refuse_large(path: Path | IO[bytes], name: str | None = None) -> None:
    """Look at the size before reading; of an archive, at its unpacked size.

    An archive whose parts cannot be listed is refused: its reader might unpack what could not be measured.
    """
    size = sum(member.file_size for member in _members(path))
    if isinstance(path, Path):
        size = max(size, path.stat().st_size)
    if size > MAX_BYTES:
        raise InputError(
            f"{name or path} takes {_gigabytes(size)}, more than the {_gigabytes(MAX_BYTES)} that are read."
        )


def load_tensors(path: Path, remedy: str, say: Say) -> Any:
    """``torch.load`` of tensors and containers only; there is no other way in, whatever the file asks for."""
    if is_torchscript(path):
        raise InputError(f"{path} is a TorchScript archive, not saved tensors. {remedy}.")
    refuse_large(path)
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < (2, 10):
        say(
            f"warning: torch {torch.__version__} has a known flaw in reading .pt files (CVE-2026-24747); prefer "
            ".safetensors."
        )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler fails in many ways on what is not its own
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise InputError(
                f"{path} holds pickled Python objects ({refused[1]}), and loading those runs code: only tensors are "
                f"read. {remedy}."
            ) from error
        raise InputError(f"{path} cannot be read as saved tensors ({unpickled(error)}). {remedy}.") from error
    size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors_in(found))
    if size > MAX_BYTES:  # a stored element can be repeated into any shape
        raise InputError(
            f"the tensors of {path} take {_gigabytes(size)}, more than the {_gigabytes(MAX_BYTES)} that are read."
        )
    return found


def unpickled(error: Exception) -> str:
    """Say why tensors could not be read; torch's own words advise to run whatever the file holds."""
    refused = isinstance(error, pickle.UnpicklingError)
    return "it is damaged, or holds more than tensors" if refused else first_line(error)


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of ``torch.jit.save``."""
    return any(member.filename.endswith("/constants.pkl") for member in _members(path))


def contents(value: Any) -> str:
    """Say in a few words what a file turned out to hold."""
    if isinstance(value, Mapping):
        return f"the keys {listed(map(str, value))}" if value else "an empty dictionary"
    return "nothing" if value is None else f"a {type(value).__name__}"


def oddity(tensor: Tensor) -> str | None:
    """Name what keeps a tensor from being an array of real numbers in memory; None where nothing does."""
    if tensor.is_nested:
        return "nested"
    if tensor.is_quantized:
        return "quantized"
    if tensor.layout is not torch.strided:
        return "sparse"
    if tensor.device.type == "meta":
        return "without values (on the meta device)"
    return "complex" if tensor.is_complex() else None


def _tensors_in(value: Any) -> Iterable[Tensor]:
    """Every tensor once: a container may hold itself, or the same one many times over."""
    seen, queue = set(), [value]
    while queue:
        part = queue.pop()
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, Mapping | tuple | list) and id(part) not in seen:
            seen.add(id(part))
            queue.extend(part.values() if isinstance(part, Mapping) else part)


def _members(path: Path | IO[bytes]) -> list[zipfile.ZipInfo]:
    """List an archive; nothing for what is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except Exception as error:  # a damaged directory fails in many ways
        with path.open("rb") if isinstance(path, Path) else contextlib.nullcontext(path) as stream:
            stream.seek(0)
            if stream.read(4) == b"PK\x03\x04":
                raise InputError(
                    f"{path} is a damaged archive ({first_line(error)}): save or copy it again."
                ) from error
        return []


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.3g} GB"
