"""MNIST and CIFAR-10 from files that the user has downloaded: nothing is downloaded here, nothing is unpickled.

MNIST: the IDX files ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``, plain or ``.gz``; big-endian: two zero
bytes, 8 for unsigned bytes, the number of axes, their sizes, the entries row by row. CIFAR-10: the *binary* version,
``data_batch_1.bin`` to ``data_batch_5.bin``; records of a label and 3 x 32 x 32 pixels, red, green, blue, row by row.

The readers of torchvision are not used: that of CIFAR-10 unpickles its files, which runs code, and that of MNIST reads
the whole file, from one fixed folder.
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

from curvature.arrays import Float64, Int
from curvature.cli.loading.files import MAX_BYTES, expanded, gigabytes, is_file, reason
from curvature.cli.wording import first_line
from curvature.errors import InputError

__all__ = ["FOLDERS", "cifar10", "mnist"]

_RECORD = 1 + 3 * 32 * 32


def mnist(
    folder: str, num_examples: int | None = None, *, image: bool = False
) -> tuple[Float64[Tensor, "examples ..."], Int[Tensor, "examples"]]:
    """Read the training images of MNIST, or of a data set in the same format such as Fashion-MNIST.

    Parameters
    ----------
    folder
        Contains the files, directly or in ``raw`` or ``MNIST/raw``.
    num_examples
        Read only the first ones.
    image
        Keep the shape of the images.

    Returns
    -------
    tuple of Tensor
        Pixels in [0, 1], float64, ``(N, 784)`` or with ``image`` ``(N, 1, 28, 28)``; labels ``(N,)``.

    Raises
    ------
    InputError
        If a file is missing, damaged or too large.
    """
    folders = [expanded(folder, "MNIST") / part for part in ("", "raw", "MNIST/raw")]
    arrays = []
    for stem, axes in (("train-images", 3), ("train-labels", 1)):
        names = [f"{stem}{dot}idx{axes}-ubyte{end}" for dot in "-." for end in ("", ".gz")]
        path = _first([directory / name for directory in folders for name in names], folder, "MNIST", names)
        arrays.append(_idx(path, axes, num_examples))
    pixels, labels = arrays
    if len(pixels) != len(labels):
        raise InputError(f"the MNIST files in {folder} contain {len(pixels)} images but {len(labels)} labels.")
    return _tensors(pixels[:, None], labels, image)


def cifar10(
    folder: str, num_examples: int | None = None, *, image: bool = False
) -> tuple[Float64[Tensor, "examples ..."], Int[Tensor, "examples"]]:
    """Read the training images of CIFAR-10, binary version, in the order of the files.

    Parameters
    ----------
    folder
        Contains the files, directly or in ``cifar-10-batches-bin``.
    num_examples
        Read only the first ones.
    image
        Keep the shape of the images.

    Returns
    -------
    tuple of Tensor
        Pixels in [0, 1], float64, ``(N, 3072)`` or with ``image`` ``(N, 3, 32, 32)``; labels ``(N,)``.

    Raises
    ------
    InputError
        If a file is missing, damaged or too large.
    """
    folders = [expanded(folder, "CIFAR-10") / part for part in ("", "cifar-10-batches-bin")]
    remaining, batches = num_examples, []
    for number in range(1, 6):
        if remaining is not None and remaining <= 0:
            break
        name = f"data_batch_{number}.bin"
        path = _first([directory / name for directory in folders], folder, "CIFAR-10 (binary version)", [name])
        batches.append(_cifar10_records(path, remaining))
        remaining = None if remaining is None else remaining - len(batches[-1])
    records = np.concatenate(batches)
    return _tensors(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0], image)


FOLDERS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"mnist": mnist, "cifar10": cifar10}


def _cifar10_records(path: Path, limit: int | None) -> np.ndarray:
    size = path.stat().st_size
    if size == 0 or size % _RECORD:
        raise InputError(
            f"{path} is damaged: it has {size} bytes, which is not a multiple of the {_RECORD} bytes of a CIFAR-10 "
            "record."
        )
    count = size // _RECORD if limit is None else min(limit, size // _RECORD)
    _refuse_large(path, count * _RECORD)
    try:
        with path.open("rb") as stream:
            records = np.frombuffer(stream.read(count * _RECORD), dtype=np.uint8).reshape(count, _RECORD)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}.") from error
    if int(records[:, 0].max()) > 9:
        raise InputError(f"{path} is damaged: it contains the label {records[:, 0].max()}; CIFAR-10 has 0 to 9.")
    return records


def _first(paths: list[Path], folder: str, data_set: str, names: list[str]) -> Path:
    for path in paths:
        if is_file(path):
            return path
    root = expanded(folder, data_set)
    try:
        exists = root.is_dir()
    except (OSError, ValueError) as error:
        raise InputError(f"the folder {folder!r} of the {data_set} files cannot be opened: {reason(error)}.") from error
    if not exists:
        raise InputError(f"the folder {folder!r} of the {data_set} files does not exist.")
    hint = ""
    if any((directory / "data_batch_1").exists() for directory in (root, root / "cifar-10-batches-py")):
        hint = " It contains the Python version, which is pickled and is not read: download the binary version."
    raise InputError(f"{folder} contains no {data_set} file {' or '.join(names)}.{hint}")


def _idx(path: Path, axes: int, num_examples: int | None) -> np.ndarray:
    """Read the entries of an IDX file of unsigned bytes; only the requested ones are unpacked."""
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
                raise InputError(f"{path} is damaged: its header says {shape}, which is another number of bytes.")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}.") from error
    return np.frombuffer(content, dtype=np.uint8).reshape(count, *shape[1:])


def _refuse_large(path: Path, num_entries: int) -> None:
    num_bytes = 8 * num_entries  # one float64 for each
    if num_bytes > MAX_BYTES:
        raise InputError(
            f"{path} needs {gigabytes(num_bytes)} in memory; the limit is {gigabytes(MAX_BYTES)}. Read fewer examples: "
            "--num-examples."
        )


def _tensors(pixels: np.ndarray, labels: np.ndarray, image: bool) -> tuple[Tensor, Tensor]:
    inputs = torch.from_numpy(pixels.astype(np.float64)) / 255
    return inputs if image else inputs.flatten(1), torch.from_numpy(labels.astype(np.int64))
