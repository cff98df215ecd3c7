"""Files of a user: measured before they are read, and never unpickled beyond tensors."""

from __future__ import annotations

import difflib
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curvature.errors import InputError
from curvature.loading.wording import Say, first_line, listed

__all__ = ["MAX_BYTES", "SAVE_WEIGHTS", "contents", "existing", "is_torchscript", "load_tensors", "refuse_large"]

MAX_BYTES = 4 * 2**30  # of one file, unpacked; dense curvature does not go with more data than that
SAVE_WEIGHTS = "Save the weights alone: torch.save(model.state_dict(), 'weights.pt')"


def existing(path: str | Path, what: str) -> Path:
    """Give the path of a file that is there, or say what is nearest."""
    path = Path(path).expanduser()
    if path.is_file():
        return path
    near = []
    if path.parent.is_dir():
        near = difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()], 1)
    hint = f" Did you mean {path.parent / near[0]}?" if near else ""
    raise InputError(f"the {what} file {path} {'is not a file' if path.exists() else 'does not exist'}.{hint}")


def refuse_large(path: Path) -> None:
    """Look at the size before reading; of an archive, at its unpacked size."""
    size = max(path.stat().st_size, sum(member.file_size for member in _members(path)))
    if size > MAX_BYTES:
        raise InputError(f"{path} takes {_gigabytes(size)}, more than the {_gigabytes(MAX_BYTES)} that are read.")


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
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise InputError(
                f"{path} holds pickled Python objects ({refused[1]}), and loading those runs code: only tensors are "
                f"read. {remedy}."
            ) from error
        raise InputError(f"{path} cannot be read as saved tensors ({first_line(error)}). {remedy}.") from error
    size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors_in(found))
    if size > MAX_BYTES:  # a stored element can be repeated into any shape
        raise InputError(
            f"the tensors of {path} take {_gigabytes(size)}, more than the {_gigabytes(MAX_BYTES)} that are read."
        )
    return found


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of ``torch.jit.save``."""
    return any(member.filename.endswith("/constants.pkl") for member in _members(path))


def contents(value: Any) -> str:
    """Say in a few words what a file turned out to hold."""
    return f"the keys {listed(map(str, value))}" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def _tensors_in(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors_in(part)


def _members(path: Path) -> list[zipfile.ZipInfo]:
    """List an archive; nothing for what is none, or is damaged, which its reader will say."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except zipfile.BadZipFile:
        return []


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.3g} GB"
