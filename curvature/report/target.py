"""Where a run may be written: nothing is ever replaced but an earlier run, and only when asked."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from curvature.errors import ConfigurationError, CurvatureError, ResourceError
from curvature.text import one_line

__all__ = ["check_target", "holds_only_a_run", "require_writable", "shown_path", "write_error"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names that Windows keeps for devices
_OTHER_PLACE = {  # errors that another --out avoids, and more space on the disk does not
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENOTEMPTY, errno.ELOOP,
}  # fmt: skip
_FILES = {
    "config.toml", "provenance.json", "result.nc", "summary.json", "summary.csv", "verdicts.csv", "figures",
    "eigenvectors",
    "report.html", "effects.csv", "analysis.json", "analysis.csv", "track.json", "track.csv", "checkpoints.json",
    "log.jsonl", "state", "DONE",
}  # fmt: skip


def check_target(out: str | Path, *, overwrite: bool = False) -> Path:
    """Refuse a run directory that could not be written, before hours are spent; touches nothing.

    Parameters
    ----------
    out
        The run directory.
    overwrite
        Whether it may replace an earlier run.

    Returns
    -------
    Path
        The run directory.

    Raises
    ------
    ConfigurationError
        If the name is not allowed, something is there already (a run may be replaced with ``overwrite``, anything else
        never), or no directory above it can be written to.
    """
    out = Path(out)
    if not _NAME.fullmatch(out.name) or _RESERVED.fullmatch(out.name):
        raise ConfigurationError(
            f"a run directory is named by 1 to 80 of the characters A-Z a-z 0-9 . _ -, not starting with . or -, got "
            f"{one_line(out.name)!r}. Choose another --out."
        )
    try:
        return require_writable(out, overwrite=overwrite)
    except OSError as error:
        raise write_error(out, error) from error


def require_writable(out: Path, *, overwrite: bool) -> Path:
    """Refuse a directory that is in the way, or that no directory above it allows to be written.

    Parameters
    ----------
    out
        The run directory.
    overwrite
        Whether it may replace an earlier run.

    Returns
    -------
    Path
        The run directory.

    Raises
    ------
    ConfigurationError
        If it cannot be written.
    OSError
        If it cannot be looked at.
    """
    if out.is_symlink():
        raise ConfigurationError(f"{shown_path(out)} is a symbolic link. Give the directory itself as --out.")
    if out.exists():
        _check_replaceable(out, overwrite)
    above = out.absolute().parent
    while not above.exists():
        if above.is_symlink():
            raise ConfigurationError(
                f"cannot write {shown_path(out)}: {shown_path(above)} is a broken symbolic link. Choose "
                "another --out, or remove the link."
            )
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"cannot write {shown_path(out)}: {shown_path(above)} is not a directory that you can write to."
        )
    return out


def _check_replaceable(out: Path, overwrite: bool) -> None:
    if not out.is_dir():
        raise ConfigurationError(f"{shown_path(out)} is a file. Choose another --out.")
    if not overwrite:
        raise ConfigurationError(
            f"{shown_path(out)} exists. Choose another --out, or pass --overwrite to replace that run."
        )
    names = {path.name for path in out.iterdir()}
    if names and "DONE" not in names and "summary.json" not in names:
        raise ConfigurationError(
            f"{shown_path(out)} is not a run directory, so it is not replaced. Choose another --out."
        )
    if names - _FILES:
        foreign = ", ".join(one_line(name) for name in sorted(names - _FILES)[:3])
        raise ConfigurationError(
            f"{shown_path(out)} holds files that a run does not write ({foreign}). Move them away, or choose another "
            "--out."
        )


def holds_only_a_run(folder: Path) -> bool:
    """Whether a folder holds no file but those that a run writes.

    Parameters
    ----------
    folder
        Any folder.

    Returns
    -------
    bool
        True also for an empty one.
    """
    return {path.name for path in folder.iterdir()} <= _FILES


def write_error(out: Path, error: OSError) -> CurvatureError:
    """Say why a run could not be written, and what to do.

    Parameters
    ----------
    out
        The run directory.
    error
        Of the operating system.

    Returns
    -------
    ConfigurationError or ResourceError
        To be raised from ``error``.
    """
    reason = error.strerror or str(error)
    message = f"could not write the run directory {shown_path(out)}: {reason}. Nothing was changed there. "
    if error.errno in _OTHER_PLACE:
        return ConfigurationError(message + "Choose another --out.")
    return ResourceError(message + "Free some space, or choose an --out on another disk.")


def shown_path(path: Path) -> str:
    """A path in a message.

    Parameters
    ----------
    path
        Any path.

    Returns
    -------
    str
        One line without control characters.
    """
    return one_line(str(path))
