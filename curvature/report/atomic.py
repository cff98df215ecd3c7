"""Directories of files: written completely or not at all, without overwriting others, with the hash of each file."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from curvature.provenance import hash_file
from curvature.report.result import SCHEMA
from curvature.report.target import check_target, holds_only_a_run, require_writable, write_error

__all__ = ["DONE", "forget_leftovers", "manifest", "write_texts"]

DONE = "DONE"  # the last file that is written, with the hashes of the others


def write_texts(
    files: Mapping[str, str],
    out: str | Path,
    *,
    overwrite: bool = False,
    also: Callable[[Path], object] = lambda _: None,
) -> Path:
    """Write a directory of text files, and what else is asked for.

    Parameters
    ----------
    files
        Content by relative path.
    out
        The directory; those above it are created. Written under a temporary name in the same folder, then renamed.
    overwrite
        Replace an earlier run of that name; it stays as it was if anything goes wrong.
    also
        Called with the temporary directory, to write further files there.

    Returns
    -------
    Path
        The directory, with a ``DONE`` that lists the hash of each file.

    Raises
    ------
    ConfigurationError
        As :func:`check_target`; also without permission to write.
    ResourceError
        If the disk is full or fails.
    """
    out = check_target(out, overwrite=overwrite)
    temporary = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(out)
        temporary.mkdir()
        for name, content in files.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(content.encode())
        also(temporary)
        (temporary / DONE).write_text(manifest(temporary))
        for path in sorted(temporary.rglob("*"), reverse=True):
            _sync(path)
        _sync(temporary)
        _replace(temporary, require_writable(out, overwrite=overwrite))
    except OSError as error:
        raise write_error(out, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return out


def _replace(temporary: Path, out: Path) -> None:
    """Rename; an earlier run steps aside first and comes back if that fails."""
    if out.exists():
        aside = _beside(out)
        out.rename(aside)
        try:
            temporary.rename(out)
        except OSError:
            aside.rename(out)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    else:
        temporary.rename(out)
    _sync(out.parent)


def forget_leftovers(out: Path) -> None:
    """Delete what a process that was killed while it wrote a run has left beside it under temporary names.

    Parameters
    ----------
    out
        The run directory, which has been written completely since.
    """
    name = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{8}}")
    for path in out.absolute().parent.iterdir():
        if name.fullmatch(path.name) and not path.is_symlink() and path.is_dir() and holds_only_a_run(path):
            shutil.rmtree(path, ignore_errors=True)


def _beside(out: Path) -> Path:
    return out.with_name(f".{out.name}.{secrets.token_hex(4)}")


def manifest(directory: Path) -> str:
    """List the files of a directory with their hashes.

    Parameters
    ----------
    directory
        The directory.

    Returns
    -------
    str
        The schema, then the SHA-256 of every file in the format of ``sha256sum --check``.
    """
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / DONE)
    return f"{SCHEMA}\n" + "".join(f"{hash_file(path)}  {path.relative_to(directory).as_posix()}\n" for path in paths)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
