"""One record in one file: an npz archive of its arrays and fields, which ends with its hash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from curvature.errors import ConfigurationError
from curvature.records.sealed import packed, unpacked
from curvature.records.storage import from_plain, to_json, to_plain
from curvature.records.validation import require
from curvature.records.vectors import Eigenvectors
from curvature.text import one_line, reason_of

__all__ = ["Saved", "load_record", "save_record"]

Record = TypeVar("Record")

_PART_OF_VECTORS = "vectors."  # begins the names of the arrays of eigenvectors
_MAX_BYTES = 2**30  # of a saved record: 1e8 eigenvalues are not realistic, a zip bomb is


def save_record(record: Any, path: str | Path, *, schema: str, noun: str) -> Path:
    """Write a record to one ``.npz`` file.

    Parameters
    ----------
    record
        Its arrays are stored as arrays, all other fields as JSON, without pickle. Its eigenvectors, where it has some,
        are stored with it.
    path
        Must end in ``.npz``.
    schema
        Which form the file has.
    noun
        What the record is called in messages.

    Returns
    -------
    Path
        The path of the file.

    Raises
    ------
    ConfigurationError
        If the path has another suffix, or the record and its eigenvectors take more than 1 GB, which
        :func:`load_record` would refuse.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ConfigurationError(f"a {noun} is saved as an .npz file, got {path.name!r}. Change the suffix to .npz.")
    plain = to_plain(record)
    arrays = _arrays_of(plain)
    vectors: Eigenvectors | None = getattr(record, "vectors", None)
    if vectors is not None:
        plain["vectors"] = to_plain(vectors)
        arrays |= {_PART_OF_VECTORS + name: array for name, array in _arrays_of(plain["vectors"]).items()}
        size = sum(array.nbytes for array in arrays.values())
        if size > _MAX_BYTES:
            raise ConfigurationError(
                f"the {noun} and its eigenvectors take {size / 2**30:.2g} GB, which exceeds the "
                f"{_MAX_BYTES / 2**30:.0f} GB limit for a saved {noun}. Leave them out: save(path, vectors=False)."
            )
    path.write_bytes(packed(to_json({"schema": schema} | plain), arrays))
    return path


def _arrays_of(plain: dict[str, Any]) -> dict[str, np.ndarray]:
    """Take the arrays out of plain values."""
    return {name: plain.pop(name) for name in list(plain) if isinstance(plain[name], np.ndarray)}


def load_record(
    kind: type[Record], path: str | Path, *, schema: str, noun: str, without_hash: str = ""
) -> tuple[Record, bool]:
    """Read what :func:`save_record` wrote.

    Parameters
    ----------
    kind
        Class of the record.
    path
        The file.
    schema, noun
        As for :func:`save_record`.
    without_hash
        Schema of older files, which have no hash.

    Returns
    -------
    record, sealed
        The record, and whether its hash was verified.

    Raises
    ------
    ConfigurationError
        If the file is missing, larger than 1 GB, or not such a file; if one bit of it has changed since it was saved;
        or if its numbers contradict each other.
    """
    path = Path(path)
    try:
        small = path.stat().st_size <= _MAX_BYTES
        require(small, f"it exceeds the {_MAX_BYTES / 2**30:.0f} GB limit for a saved {noun}")
        about, arrays, has_hash = unpacked(path.read_bytes(), max_bytes=_MAX_BYTES)
        plain = json.loads(about)
        stored = plain.pop("schema")
        older = bool(without_hash) and stored == without_hash
        require(stored == schema or older, f"its schema is {stored}, and this version reads {schema}")
        require(has_hash or older, "its SHA-256 is missing")
        parts = [name for name in arrays if name.startswith(_PART_OF_VECTORS)]
        if plain.get("vectors"):
            plain["vectors"] |= {name.removeprefix(_PART_OF_VECTORS): arrays.pop(name) for name in parts}
        return from_plain(kind, plain | arrays), not older
    # A damaged file can fail at every layer: archive, array, JSON, fields.
    except Exception as error:
        raise ConfigurationError(
            f"{one_line(str(path))} cannot be read as a saved {noun}: {reason_of(error)}. Use another copy of "
            f"the file, or compute the {noun} again."
        ) from error


class Saved:
    """A record that is saved in one file: a base class, whose class variables say what the file is called."""

    schema: ClassVar[str]
    noun: ClassVar[str]

    def save(self, path: str | Path) -> Path:
        """Write the record to one ``.npz`` file.

        Parameters
        ----------
        path
            Must end in ``.npz``.

        Returns
        -------
        Path
            The path of the file.

        Raises
        ------
        ConfigurationError
            If the path has another suffix.
        """
        return save_record(self, path, schema=self.schema, noun=self.noun)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a record that :meth:`save` wrote.

        Parameters
        ----------
        path
            The ``.npz`` file.

        Returns
        -------
        Self
            Equal to the saved record.

        Raises
        ------
        ConfigurationError
            If the file is missing or damaged, or holds something else.
        """
        return load_record(cls, path, schema=cls.schema, noun=cls.noun)[0]
