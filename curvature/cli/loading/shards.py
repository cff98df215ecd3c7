"""Weights in several files with an index, and in folders, as the packages of Hugging Face write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from curvature.cli.loading.files import MAX_BYTES, existing, gigabytes, load_json
from curvature.cli.wording import listed
from curvature.errors import InputError

__all__ = ["INDEX", "file_in", "load_shards", "shards_of"]

INDEX = ".index.json"  # ends the name of an index

_FILES = "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin"


def file_in(folder: Path) -> Path:
    """Find the file or the index of the weights in a folder.

    Parameters
    ----------
    folder
        Written by ``save_pretrained`` or ``save_model``.

    Returns
    -------
    Path
        The index if the weights are in shards, otherwise the file.

    Raises
    ------
    InputError
        If the folder has no file of such a name.
    """
    present = [folder / name for name in _FILES if (folder / name).is_file()]
    if present:
        return present[0]
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder} contains a peft adapter, not the weights of a model. Use --adapter {folder}.")
    raise InputError(f"the folder {folder} has no file of weights named {', '.join(_FILES)}. Name the file itself.")


def load_shards(index: Path, load: Callable[[Path], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Read weights that are in several files.

    Parameters
    ----------
    index
        JSON file whose ``weight_map`` has the name of a file for each weight.
    load
        Reads one file.

    Returns
    -------
    dict
        Tensors by name.

    Raises
    ------
    InputError
        If the index is damaged, or a file is missing, contradicts the index, or is not in the folder of the index.
    """
    places = _weight_map(index)
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        shard = load(existing(index.parent / file, "weights"))
        absent = [name for name, place in places.items() if place == file and name not in shard]
        more = [name for name in shard if places.get(name) != file]
        if absent or more:
            raise InputError(
                f"{index.parent / file} does not contain the weights that {index.name} says: "
                f"{listed(absent or more)} {'missing' if absent else 'not in the index'}. Were the files mixed up?"
            )
        tensors |= shard
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if size > MAX_BYTES:
            raise InputError(f"the weights of {index} exceed the limit of {gigabytes(MAX_BYTES)}.")
    return tensors


def shards_of(index: Path) -> list[Path]:
    """Files that an index names, without reading them.

    Parameters
    ----------
    index
        JSON file whose ``weight_map`` has the name of a file for each weight.

    Returns
    -------
    list of Path
        Each once, in the order of their names.

    Raises
    ------
    InputError
        If the index is damaged, or names files that are not in its folder.
    """
    return [index.parent / file for file in sorted(set(_weight_map(index).values()))]


def _weight_map(index: Path) -> dict[str, str]:
    places = load_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise InputError(f"{index} is not an index of weights: it needs a weight_map from names to files.")
    outside = sorted({name for name in places.values() if Path(name).name != name})
    if outside:
        raise InputError(f"{index} names files that are not in its own folder: {listed(outside)}. They are not read.")
    return places
