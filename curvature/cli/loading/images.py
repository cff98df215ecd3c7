"""MNIST and CIFAR-10 from files that the user has: nothing is downloaded, nothing is unpickled.

MNIST: the IDX files ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``, plain or ``.gz``; big-endian: two zero
bytes, 8 for unsigned bytes, the number of axes, their sizes, the entries row by row. CIFAR-10: the *binary* version,
``data_batch_1.bin`` to ``data_batch_5.bin``; records of a label and 3 x 32 x 32 pixels, red, green, blue, row by row.
The "Python version" is pickled, and loading pickles runs code.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from curvature.cli.loading.files import MAX_BYTES, expanded, is_file, reason
from curvature.cli.loading.wording import first_line
from curvature.errors import InputError

__all__ = ["FOLDERS", "cifar10", "mnist"]

_RECORD = 1 + 3 * 32 * 32


def mnist(folder: str, num_examples: int | None = None, *, image: bool = False) -> tuple[Tensor, Tensor]:
    """Training digits (or whatever comes in the same files, as Fashion-MNIST does), pixels in [0, 1], float64.

    ``(N, 784)``, or ``(N, 1, 28, 28)`` with ``image``, and labels ``(N,)``. Reads the first ``num_examples`` only.
    """
    places = [expanded(folder, "MNIST") / part for part in ("", "raw", "MNIST/raw")]
    parts = []
    for stem, axes in (("train-images", 3), ("train-labels", 1)):
        names = [f"{stem}{dot}idx{axes}-ubyte{end}" for dot in "-." for end in ("", ".gz")]
        path = _first([place / name for place in places for name in names], folder, "MNIST", names)
        parts.append(_idx(path, axes, num_examples))
    pixels, labels = parts
    if len(pixels) != len(labels):
        raise InputError(f"the MNIST files in {folder} hold {len(pixels)} images but {len(labels)} labels.")
    return _tensors(pixels[:, None], labels, image)


def cifar10(folder: str, num_examples: int | None = None, *, image: bool = False) -> tuple[Tensor, Tensor]:
    """Training images in the order of the files, pixels in [0, 1], float64.

    ``(N, 3072)``, or ``(N, 3, 32, 32)`` with ``image``, and labels ``(N,)``. Reads the first ``num_examples`` only.
    """
    places = [expanded(folder, "CIFAR-10") / part for part in ("", "cifar-10-batches-bin")]
    wanted, found = num_examples, []
    for number in range(1, 6):
        name = f"data_batch_{number}.bin"
        if wanted is not None and wanted <= 0:
            break
        path = _first([place / name for place in places], folder, "CIFAR-10 (binary version)", [name])
        size = path.stat().st_size
        if size == 0 or size % _RECORD:
            raise InputError(f"{path} has {size} bytes, no multiple of the {_RECORD} of a CIFAR-10 record: damaged.")
        count = size // _RECORD if wanted is None else min(wanted, size // _RECORD)
        _refuse_large(path, count * _RECORD)
        try:
            with path.open("rb") as stream:
                records = np.frombuffer(stream.read(count * _RECORD), dtype=np.uint8).reshape(count, _RECORD)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {reason(error)}.") from error
        if int(records[:, 0].max()) > 9:
            raise InputError(f"{path} holds the label {records[:, 0].max()}; CIFAR-10 has 0 to 9: damaged.")
        found.append(records)
        wanted = None if wanted is None else wanted - count
    records = np.concatenate(found)
    return _tensors(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0], image)


FOLDERS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"mnist": mnist, "cifar10": cifar10}


def _first(paths: list[Path], folder: str, what: str, names: list[str]) -> Path:
    for path in paths:
        if is_file(path):
            return path
    root = expanded(folder, what)
    try:
        there = root.is_dir()
    except (OSError, ValueError) as error:
        raise InputError(f"the folder {folder!r} of the {what} files cannot be opened: {reason(error)}.") from error
    if not there:
        raise InputError(f"the folder {folder!r} of the {what} files does not exist.")
    hint = ""
    if any((place / name).exists() for place in (root, root / "cifar-10-batches-py") for name in ("data_batch_1",)):
        hint = " It holds the Python version, which is pickled and is not read: take the binary version."
    raise InputError(f"{folder} holds no {what} file {' or '.join(names)}.{hint}")


def _idx(path: Path, axes: int, num_examples: int | None) -> np.ndarray:
    """Entries of an IDX file of unsigned bytes; no more is unpacked than is asked for."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            header = stream.read(4 + 4 * axes)
            if len(header) < 4 + 4 * axes or header[:4] != bytes([0, 0, 8, axes]):
                raise InputError(f"{path} is not an IDX file of unsigned bytes with {axes} axes.")
            shape = struct.unpack(f">{axes}I", header[4:])
            count = shape[0] if num_examples is None else min(max(num_examples, 0), shape[0])
            size = count * int(np.prod(shape[1:], dtype=object))
            _refuse_large(path, size)
            content = stream.read(size)
            if len(content) < size or (count == shape[0] and stream.read(1)):
                raise InputError(f"{path} claims the shape {shape} but holds another number of bytes: damaged.")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}.") from error
    return np.frombuffer(content, dtype=np.uint8).reshape(count, *shape[1:])


def _refuse_large(path: Path, num_bytes: int) -> None:
    if 8 * num_bytes > MAX_BYTES:  # one float64 for each
        raise InputError(
            f"{path}: its numbers would take {8 * num_bytes / 2**30:.3g} GB, more than the {MAX_BYTES / 2**30:.3g} GB "
            "that are read: use --num-examples."
        )


def _tensors(pixels: np.ndarray, labels: np.ndarray, image: bool) -> tuple[Tensor, Tensor]:
    inputs = torch.from_numpy(pixels.astype(np.float64)) / 255
    return inputs if image else inputs.flatten(1), torch.from_numpy(labels.astype(np.int64))
