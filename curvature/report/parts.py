"""Finished parts of an unfinished run: one file each, beside the run directory, until the whole is written."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curvature.errors import ConfigurationError
from curvature.provenance import hash_file
from curvature.records import Study
from curvature.records.sealed import CHANGED, sealed_text, unsealed_text
from curvature.records.storage import from_plain
from curvature.records.validation import require
from curvature.report.atomic import DONE, forget_leftovers
from curvature.report.result import read_result, write_result
from curvature.report.target import shown_path, write_error
from curvature.text import one_line, reason_of

__all__ = [
    "Parts",
    "check_parts",
    "differences",
    "forget_parts",
    "load_part",
    "parts_beside",
    "read_sealed",
    "repeat_advice",
    "write_part",
]

_RUN = "run.json"  # what the parts follow from
_WRITTEN = re.compile(r"[\w.-]+-[0-9a-f]{8,16}\.(nc|nc\.sha256|json|writing)|run\.(json|writing)")
_MEASURED_AGAIN = "Delete it: it will be measured again."
_SHOWN = 60  # characters of the name of a part in the name of its file


class Parts:
    """Finished parts of one run, by name; the folder is made with the first of them.

    Parameters
    ----------
    folder
        Where they are kept.
    facts
        Everything that their numbers follow from, in plain values. Parts of a run with other facts are refused.
    kind
        Class of a part: :class:`~curvature.Study`, or a record without arrays.

    Raises
    ------
    ConfigurationError
        If the folder holds parts of another run; the message lists what differs.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], kind: type = Study):
        self.folder, self.kind, self._group = folder, kind, ""
        self._facts = json.loads(json.dumps(facts))  # with lists for tuples, as they are read back
        self._suffix = ".nc" if kind is Study else ".json"
        check_parts(folder)
        if folder.is_dir():
            self._refuse_other_facts()

    def __len__(self) -> int:
        if not self.folder.is_dir():
            return 0
        return sum(path.suffix == self._suffix and path.name != _RUN for path in self.folder.iterdir())

    def values(self) -> list[Any]:
        """Every part that is kept, of a record without arrays, in the order of their files."""
        if not self.folder.is_dir():
            return []
        paths = sorted(path for path in self.folder.glob("*.json") if path.name != _RUN)
        return [_read_record(path, self.kind) for path in paths]

    def within(self, group: str) -> Parts:
        """The parts of one group, whose names may be those of parts in other groups."""
        parts = copy.copy(self)
        parts._group = f"{self._group}{group}: "
        return parts

    def get(self, name: str) -> Any:
        """Read a part; None if it has not been kept. Raises ConfigurationError if its file is damaged."""
        path = self._path(name)
        if not path.is_file():
            return None
        return load_part(path) if self.kind is Study else _read_record(path, self.kind)

    def __setitem__(self, name: str, part: Any) -> None:
        """Keep a part: it is on the disk, completely, when this returns."""
        path = self._path(name)
        if not (self.folder / _RUN).is_file():
            _write_text(self.folder / _RUN, sealed_text(json.dumps(self._facts, indent=1) + "\n"))
        if self.kind is Study:
            write_part(part, path)
        else:
            _write_text(path, sealed_text(json.dumps(part, default=vars, indent=1) + "\n"))

    def _path(self, name: str) -> Path:
        name = self._group + name
        shown = re.sub(r"[^A-Za-z0-9.]+", "-", name)[:_SHOWN].strip("-.")
        return self.folder / f"{shown}-{hashlib.sha256(name.encode()).hexdigest()[:12]}{self._suffix}"

    def _refuse_other_facts(self) -> None:
        path = self.folder / _RUN
        if not path.is_file():
            if not any(self.folder.iterdir()):  # a run was stopped before its first file
                return
            raise ConfigurationError(
                f"{shown_path(self.folder)} does not say which run it belongs to: run.json is missing. Start again "
                "with --overwrite, or choose another --out."
            )
        before = read_sealed(path, "Start again with --overwrite, or choose another --out.")
        if differing := differences(before, self._facts):
            raise ConfigurationError(
                f"{shown_path(self.folder)} belongs to another run, so its parts would not fit. What differs: "
                f"{'; '.join(differing)}. Use the options of that run, choose another --out, or start again with "
                "--overwrite."
            )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say in words what differs between two nests of plain values.

    Parameters
    ----------
    before, now
        Such as the facts of two runs.

    Returns
    -------
    list of str
        One phrase for each value that differs; hashes are not shown.

    Examples
    --------
    >>> differences({"config": {"epochs": 30, "seed": 0}}, {"config": {"epochs": 5, "seed": 0}})
    ['epochs was 30, is 5']
    """
    first, second = _flat(before), _flat(now)
    return [
        _difference(*path, was=first.get(path), now=second.get(path))
        for path in dict.fromkeys([*first, *second])
        if first.get(path) != second.get(path)
    ]


def _flat(values: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """Values by their group and name; those of a nested mapping have its name as their group."""
    return {
        (group if isinstance(value, Mapping) else "", name): item
        for group, value in values.items()
        for name, item in (value.items() if isinstance(value, Mapping) else [(group, value)])
    }


def _difference(group: str, name: str, *, was: Any, now: Any) -> str:
    if group == "files_sha256":
        return f"the file {one_line(name)} " + (
            "was not used" if was is None else "has changed" if now else "is unused"
        )
    if name.endswith("_sha256"):
        return f"the {name.removesuffix('_sha256')} has other values"
    was, now = ("not set" if value is None else one_line(str(value)) for value in (was, now))
    return f"{one_line(name)} was {was}, is {now}"


def parts_beside(out: Path) -> Path:
    """Folder in which the parts of an unfinished run are kept.

    Parameters
    ----------
    out
        The run directory, which does not exist before the end of the run.

    Returns
    -------
    Path
        A folder beside it.
    """
    return out.with_name(out.name + ".parts")


def forget_parts(out: Path) -> None:
    """Delete the kept parts of a run, and what killed processes left beside it.

    Parameters
    ----------
    out
        The run directory.
    """
    if (out / DONE).is_file():
        forget_leftovers(out)
    folder = parts_beside(out)
    if folder.is_symlink() or not folder.is_dir():
        return
    written = [path for path in folder.iterdir() if _WRITTEN.fullmatch(path.name)]
    for path in sorted(written, key=lambda path: path.name == _RUN):  # last: without it no part could be used
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty
        folder.rmdir()


def check_parts(folder: Path) -> None:
    """Refuse a folder of parts that is a link or a file, before hours are spent.

    Parameters
    ----------
    folder
        Where the parts are kept.

    Raises
    ------
    ConfigurationError
        If it is a link or a file.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        kind = "a symbolic link" if folder.is_symlink() else "a file"
        raise ConfigurationError(
            f"{shown_path(folder)}, where the finished parts of this run are kept until it is done, is {kind}. Move it "
            "away."
        )


def write_part(study: Study, path: Path) -> None:
    """Keep a part of a study in one file until the rest is measured, with its hash in another; all of it or none.

    Parameters
    ----------
    study
        The part.
    path
        Of the file.

    Raises
    ------
    ConfigurationError
        If the folder cannot be written to.
    ResourceError
        If the disk is full or fails.
    """
    unfinished, digest = path.with_suffix(".writing"), path.with_name(f"{path.name}.sha256")
    try:
        check_parts(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in (unfinished, digest):
            left.unlink(missing_ok=True)  # of an interrupted writing; nothing is written through a link
        write_result(study, unfinished)
        digest.write_text(f"{hash_file(unfinished)}\n")
        unfinished.replace(path)
    except OSError as error:
        raise write_error(path, error) from error


def load_part(path: Path) -> Study:
    """Read what :func:`write_part` wrote.

    Parameters
    ----------
    path
        Of the file.

    Returns
    -------
    Study
        The part.

    Raises
    ------
    ConfigurationError
        If the file is damaged.
    """
    try:
        digest = path.with_name(f"{path.name}.sha256").read_bytes()
        require(digest == f"{hash_file(path)}\n".encode(), CHANGED)
        return read_result(path, {}, {})
    except Exception as error:  # the readers fail in many ways on files that they did not write
        raise _damaged(path, error) from error


def _read_record(path: Path, kind: type) -> Any:
    try:
        return from_plain(kind, read_sealed(path))
    except (TypeError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception, advice: str = _MEASURED_AGAIN) -> ConfigurationError:
    return ConfigurationError(f"{shown_path(path)} is damaged: {reason_of(error)}. {advice}")


def repeat_advice(run: Path, *command: str) -> str:
    """What to do about a damaged file of a finished run, which nothing measures again.

    Parameters
    ----------
    run
        The run directory.
    *command
        The words after ``curvature`` that read a configuration; they are shown where the run has kept its own.

    Returns
    -------
    str
        Two sentences.
    """
    config = run / "config.toml"
    again = one_line(shlex.join(["curvature", *command, f"{config}", "--out", "NEW"]))
    how = f": `{again}`" if config.is_file() else ""
    return f"No report can be made from it. Restore the file, or repeat the run{how}."


def read_sealed(path: Path, advice: str = _MEASURED_AGAIN) -> dict[str, Any]:
    """Read a JSON object that ends with its hash.

    Parameters
    ----------
    path
        Of the file.
    advice
        What to do if it is damaged; the usual one is for the parts of an unfinished run.

    Returns
    -------
    dict
        The object without its hash.

    Raises
    ------
    ConfigurationError
        If the file is damaged.
    """
    try:
        values, has_hash = unsealed_text(path.read_bytes().decode())
        require(has_hash, "it has no hash")
    except (OSError, ValueError) as error:
        raise _damaged(path, error, advice) from error
    return values


def _write_text(path: Path, text: str) -> None:
    """Write a text file, all of it or none."""
    unfinished = path.with_suffix(".writing")
    try:
        check_parts(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)
        unfinished.write_bytes(text.encode())
        unfinished.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
