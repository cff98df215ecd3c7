"""Checkpoints in a folder: which files they are, in which order, and at which step of training they were saved."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from curvature.cli.loading.files import SAVE_WEIGHTS, existing, load_tensors
from curvature.cli.loading.shards import INDEX, shards_of
from curvature.errors import ConfigurationError
from curvature.provenance import hash_file

__all__ = ["find_checkpoints", "hash_checkpoint", "natural_key", "training_step"]

_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".safetensors"}
# What Hugging Face's Trainer and others save beside the weights.
_NO_WEIGHTS = re.compile(r"(optimizer|scheduler|scaler|rng_state.*|random_states.*|training_args|trainer_state)\.\w+")
_MAX_JSON = 2**26  # bytes; a trainer state has a log of all steps


def find_checkpoints(folder: str | Path, pattern: str) -> dict[str, Path]:
    """Checkpoints of a folder by their relative paths, in natural order (2 before 10), those without a number last.

    Parameters
    ----------
    folder
        Where to look.
    pattern
        Glob, relative to the folder.

    Returns
    -------
    dict
        At least one.

    Raises
    ------
    ConfigurationError
        If there is no such folder, the pattern is none, or nothing fits.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ConfigurationError(f"{str(folder)!r} is not a folder. Name the folder that holds the checkpoints.")
    try:
        paths = [path for path in folder.glob(pattern) if path.is_file()]
    except (ValueError, NotImplementedError, IndexError) as error:
        raise ConfigurationError(
            f"--pattern {pattern!r} is not a glob relative to FOLDER ({error}). Write for example 'step-*.pt'."
        ) from error
    files = {path for path in paths if path.suffix in _SUFFIXES and not _NO_WEIGHTS.fullmatch(path.name)}
    # Weights in several files are one checkpoint, under the name of their index.
    for index in {index for path in paths for index in path.parent.glob(f"*{INDEX}")}:
        files = files - set(shards_of(index)) | {index}
    checkpoints = {path.relative_to(folder).as_posix(): path for path in files}
    if not checkpoints:
        raise ConfigurationError(
            f"no file in {str(folder)!r} fits --pattern {pattern!r} and ends in {', '.join(sorted(_SUFFIXES))} or "
            f"{INDEX}. Check the folder and the pattern."
        )
    # A last.ckpt is often a copy of another one, which is then the one that is measured.
    ordered = sorted(checkpoints, key=lambda name: (_step_of_name(name) is None, natural_key(name)))
    return {name: checkpoints[name] for name in ordered}


def hash_checkpoint(path: Path) -> str:
    """SHA-256 of a checkpoint.

    Parameters
    ----------
    path
        A file, or the index of several.

    Returns
    -------
    str
        In hexadecimal; of an index that of the hashes of its files, since the index itself has no weights.
    """
    if not path.name.endswith(INDEX):
        return hash_file(path)
    hashes = [hash_file(existing(file, "weights")) for file in shards_of(path)]
    return hashlib.sha256("\n".join([hash_file(path), *hashes]).encode()).hexdigest()


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorting key that compares digits as numbers.

    Parameters
    ----------
    name
        Of a checkpoint.

    Returns
    -------
    list of tuple
        One for each run of digits or of other characters.

    Examples
    --------
    >>> sorted(["step10", "step9", "last"], key=natural_key)
    ['last', 'step9', 'step10']
    """
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def training_step(path: Path, name: str) -> int | None:
    """Step of training at which a checkpoint was saved.

    Parameters
    ----------
    path
        The file.
    name
        Its path in the folder of checkpoints.

    Returns
    -------
    int or None
        ``global_step`` inside the file (Lightning) or in ``trainer_state.json`` next to it (Hugging Face), if there;
        otherwise the number after ``step`` in its name, or the last number in it.
    """
    inside = _step_of_trainer(path.parent / "trainer_state.json")
    if inside is None and path.suffix != ".safetensors" and not path.name.endswith(INDEX):
        value, _ = load_tensors(path, SAVE_WEIGHTS, lambda _: None, skip_objects=True)
        inside = _step_of(value)
    return _step_of_name(name) if inside is None else inside


def _step_of_trainer(path: Path) -> int | None:
    try:
        if path.stat().st_size > _MAX_JSON:
            return None
        return _step_of(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None


def _step_of(values: object) -> int | None:
    step = values.get("global_step") if isinstance(values, Mapping) else None
    return step if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None


def _step_of_name(name: str) -> int | None:
    stem = name.removesuffix(INDEX).rpartition(".")[0]
    steps = re.findall(r"steps?[=_-]?(\d+)", stem, re.IGNORECASE) or re.findall(r"\d+", stem)
    return int(steps[-1]) if steps else None
