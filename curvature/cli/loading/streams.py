"""Data that stay on disk: loaders of the user, and arrays that are mapped into memory and read in parts."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from curvature.cli.loading.arrays import array_header, as_arguments, parts_of
from curvature.cli.loading.code import call, find
from curvature.cli.loading.files import existing, expanded, is_folder
from curvature.cli.wording import Say, first_line
from curvature.errors import ConfigurationError, InputError
from curvature.models.data import Stream, open_stream
from curvature.models.losses import Loss, ModelLoss

__all__ = ["has_targets", "load_stream", "map_folder"]

_FORMS = "package.module:loader, path/file.py:loader, file.npz, or a folder of .npy files"
_LOCAL_HEADER = 30  # bytes before the name of a member of an archive


def load_stream(
    spec: str,
    loss: Loss | None,
    *,
    target: str | None = None,
    num_examples: int | None = None,
    say: Say = lambda _: None,
    forward: Callable[..., Any] | None = None,
) -> Stream:
    """Prepare to read data in parts, again for every product.

    Parameters
    ----------
    spec
        ``package.module:loader``, which returns an ``IterableDataset``, a ``Dataset``, a ``DataLoader`` or arrays; a
        ``.npz`` file of ``np.savez``; or a folder of ``.npy`` files.
    loss
        As for :func:`~curvature.cli.loading.load_data`.
    target
        Name of the targets in the file or the folder.
    num_examples
        Use only the first ones.
    say
        Receives a message about executed code, and about a loader that is read in another order.
    forward
        Of the model, to tell inputs from targets in items of a loader.

    Returns
    -------
    Stream
        Nothing has been read, unless ``num_examples`` asks to count the examples.

    Raises
    ------
    ConfigurationError
        If the data are of another form, or have fewer examples.
    InputError
        If they cannot be read, or not in parts.
    """
    path, with_targets = expanded(spec, "data"), has_targets(loss, target)
    mapped = path.suffix == ".npz" or is_folder(path)
    if target is not None and not mapped:
        raise ConfigurationError(
            f"--target names an entry of a .npz file or of a folder of .npy files, but the data are {spec!r}."
        )
    if mapped:
        arrays = map_folder(path) if is_folder(path) else _in_archive(existing(path, "data"))
        inputs, targets = parts_of(arrays, str(path), target, with_targets=with_targets)
        data = (inputs, targets) if with_targets else as_arguments(inputs) if loss is None else inputs
    elif ":" in spec and spec.partition(":")[0] not in ("builtin", "mnist", "cifar10"):
        data = call(find(spec, "data", _FORMS, say), {}, spec)
    else:
        raise ConfigurationError(_refusal(spec, path))
    stream = open_stream(
        data,
        forward,
        with_targets=with_targets,
        say=lambda sentence: say(f"note: {sentence}"),
        num_examples=num_examples,
    )
    if num_examples is not None and stream.count() < num_examples:
        raise ConfigurationError(f"--num-examples {num_examples}: {spec} has {stream.count()} examples.")
    return stream


def has_targets(loss: Loss | None, target: str | None) -> bool:
    """Whether the data of a loss contain targets.

    Parameters
    ----------
    loss
        None for a function that takes everything.
    target
        Name of the targets, where the user gave one.

    Returns
    -------
    bool
        Otherwise everything is an input.
    """
    return target is not None if loss is None else not isinstance(loss, ModelLoss)


def _refusal(spec: str, path: Path) -> str:
    if path.suffix == ".npy":
        return (
            f"{spec} is one array, and inputs and targets are two. Name the folder with --data: x.npy and y.npy in it "
            "are found, and other names with --target."
        )
    return f"--stream reads data in parts, and {spec} is always read as a whole. Leave out --stream, or use {_FORMS}."


def map_folder(folder: Path) -> dict[str, NDArray[Any]]:
    """Map the arrays of a folder; only their headers are read.

    Parameters
    ----------
    folder
        Has a ``.npy`` file for each array.

    Returns
    -------
    dict
        By the name of the file without its suffix.

    Raises
    ------
    InputError
        If there is none, or one cannot be mapped.
    """
    files = sorted(folder.glob("*.npy"))
    if not files:
        raise InputError(f"{folder} has no .npy files. Save one for each array: np.save('{folder}/x.npy', x).")
    return {file.stem: _mapped_file(file) for file in files}


def _mapped_file(file: Path) -> NDArray[Any]:
    try:
        with existing(file, "data").open("rb") as stream:
            return _mapped(file, stream, 0, file.stat().st_size, str(file))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {first_line(error)}. Save it with np.save.") from error


def _in_archive(file: Path) -> dict[str, NDArray[Any]]:
    """Map the arrays of an archive, which lie in it as they are unless they are compressed."""
    try:
        with zipfile.ZipFile(file) as archive, file.open("rb") as raw:
            return {
                member.filename.removesuffix(".npy"): _mapped_member(file, archive, member, raw)
                for member in archive.infolist()
            }
    except InputError:
        raise
    except Exception as error:  # a damaged archive raises many kinds of errors
        raise InputError(
            f"{file} cannot be read: {first_line(error)}. Save it with np.savez(file, x=x, y=y)."
        ) from error


def _mapped_member(file: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, raw: IO[bytes]) -> NDArray[Any]:
    name = f"{member.filename.removesuffix('.npy')} in {file}"
    if member.compress_type != zipfile.ZIP_STORED:
        raise InputError(
            f"{name} is compressed, so it cannot be read in parts. Save the arrays with np.savez instead of "
            "np.savez_compressed, or as .npy files in a folder."
        )
    raw.seek(member.header_offset)
    header = raw.read(_LOCAL_HEADER)
    # The lengths of the name and of the extra field, which lie before the array.
    start = member.header_offset + _LOCAL_HEADER + sum(int.from_bytes(header[k : k + 2], "little") for k in (26, 28))
    with archive.open(member) as stream:
        return _mapped(file, stream, start, member.file_size, name)


def _mapped(file: Path, stream: IO[bytes], start: int, size: int, name: str) -> NDArray[Any]:
    """Map an array whose ``.npy`` form starts at a position of a file; only its header is read."""
    shape, fortran_order, dtype = array_header(stream, size, name)
    if dtype.kind not in "fiub":
        objects = ", which are not unpickled" if dtype.hasobject else ""
        raise InputError(f"{name} must be an array of real numbers, but it contains {dtype}{objects}.")
    if 0 in shape:
        raise InputError(f"{name} is empty: it has shape {shape}.")
    return np.memmap(file, dtype, "r", start + stream.tell(), shape, "F" if fortran_order else "C")
