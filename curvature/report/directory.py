"""The run directory: all of it or nothing, never in place of something else."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tomllib
from pathlib import Path
from typing import Any

from curvature._version import __version__
from curvature.errors import ConfigurationError, CurvatureError, ResourceError
from curvature.records import Study
from curvature.report.document import rows_of
from curvature.report.drawings import drawings_of
from curvature.report.figures import render_svg
from curvature.report.findings import findings_of
from curvature.report.page import html_page
from curvature.report.plain import csv_text, json_text, plain_values, toml_text, verdicts_csv
from curvature.report.result import SCHEMA, read_result, write_result
from curvature.report.selection import shown_part
from curvature.text import one_line

_MAX_TEXT = 2**28  # bytes of a text file of ours
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names that Windows keeps for devices
_FILES = {
    "config.toml", "provenance.json", "result.nc", "summary.json", "summary.csv", "verdicts.csv", "figures",
    "report.html", "log.jsonl", "state", "DONE",
}  # fmt: skip


def check_target(out: str | Path, *, overwrite: bool = False) -> Path:
    """Refuse a run directory that could not be written, before hours are spent; touches nothing.

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
            f"{one_line(out.name)!r}; choose another --out."
        )
    try:
        return _checked(out, overwrite)
    except OSError as error:
        raise _write_error(out, error) from error


def _checked(out: Path, overwrite: bool) -> Path:
    if out.is_symlink():
        raise ConfigurationError(f"{_shown(out)} is a symbolic link: give the directory itself as --out.")
    if out.exists():
        _check_replaceable(out, overwrite)
    above = out.absolute().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"cannot write {_shown(out)}: {_shown(above)} is not a directory that you can write to."
        )
    return out


def write_run(study: Study, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write everything about a study into one directory, all of it or nothing.

    Parameters
    ----------
    study
        What to write.
    out
        The run directory; those above it are created. Written beside it under a temporary name, then renamed.
    overwrite
        Replace an earlier run of that name; it stays as it was if anything goes wrong.

    Returns
    -------
    Path
        The directory, with ``config.toml``, ``provenance.json``, ``result.nc``, ``summary.json``, ``summary.csv``,
        ``verdicts.csv`` (where claims were tested), ``report.html``, ``figures/*.svg`` and, last, ``DONE``.

    Raises
    ------
    ConfigurationError
        As :func:`check_target`; also without permission to write.
    ResourceError
        If the disk is full or fails.
    """
    out = check_target(out, overwrite=overwrite)
    files = _contents(study)
    temporary = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(out)
        temporary.mkdir()
        for name, content in files.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(content.encode())
        write_result(study, temporary / "result.nc")
        (temporary / "DONE").write_text(_manifest(temporary))
        for path in sorted(temporary.rglob("*"), reverse=True):
            _sync(path)
        _sync(temporary)
        _replace(temporary, _checked(out, overwrite))
    except OSError as error:
        raise _write_error(out, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return out


def study_document(study: Study) -> dict[str, Any]:
    """Everything that the report says, as plain values: what ``summary.json`` holds and ``--json`` prints.

    NaN and infinity are null, with the reason beside them: in ``note`` of a quantity, in ``<name>_reason`` elsewhere.
    """
    rows = rows_of(study)
    return plain_values(
        {
            "schema": SCHEMA,
            "version": __version__,
            **{name: getattr(study, name) for name in ("command", "model", "data", "num_weights", "num_examples")},
            "findings": findings_of(shown_part(study), rows),
            **rows,
            "config": dict(study.config),
            "provenance": dict(study.provenance),
        }
    )


def load_summary(path: str | Path) -> dict[str, Any]:
    """Read ``summary.json`` of a run directory (or the file itself)."""
    path = Path(path)
    path = path / "summary.json" if path.is_dir() else path
    try:
        document = json.loads(_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{_shown(path)} is not the summary of a run: {error}") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ConfigurationError(f"{_shown(path)} is not a summary of schema {SCHEMA}.")
    return document


def load_study(directory: str | Path) -> Study:
    """Read back what :func:`write_run` wrote, to draw it again or lay it beside another run.

    No model is loaded and no code is run. A file that is not what was written is refused: the hashes in ``DONE`` find
    damage, not malice, which could write new ones.
    """
    directory = Path(directory)
    if not (directory / "DONE").is_file():
        raise ConfigurationError(f"{_shown(directory)} is not a finished run: it has no file DONE.")
    try:
        written = dict(reversed(line.split("  ", 1)) for line in _text(directory / "DONE").splitlines() if "  " in line)
        for name in ("config.toml", "provenance.json", "result.nc"):
            _refuse_changed(directory / name, written.get(name))
        config = tomllib.loads(_text(directory / "config.toml"))
        provenance = json.loads(_text(directory / "provenance.json"))
        return read_result(directory / "result.nc", config, provenance)
    except Exception as error:  # the readers fail in many ways on what is not their own
        raise ConfigurationError(
            f"{_shown(directory)} cannot be read as a run: {_said(error)}. Take a whole copy, or repeat the run."
        ) from error


def write_part(study: Study, path: Path) -> None:
    """Keep a part of a study in one file until the rest is measured, its hash beside it; all of it or none."""
    unfinished, digest = path.with_suffix(".writing"), path.with_name(f"{path.name}.sha256")
    try:
        check_parts(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in (unfinished, digest):
            left.unlink(missing_ok=True)  # of an interrupted writing; nothing is written through a link
        write_result(study, unfinished)
        digest.write_text(f"{_hash(unfinished)}\n")
        unfinished.replace(path)
    except OSError as error:
        raise _write_error(path, error) from error


def load_part(path: Path) -> Study:
    """Read what :func:`write_part` wrote."""
    try:
        _refuse_changed(path, _text(path.with_name(f"{path.name}.sha256")).strip())
        return read_result(path, {}, {})
    except Exception as error:  # the readers fail in many ways on what is not their own
        raise ConfigurationError(
            f"{_shown(path)} is damaged ({_said(error)}): delete it, it will be measured again."
        ) from error


def check_parts(folder: Path) -> None:
    """Refuse a folder of parts that is a link, or a file, before hours are spent."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        kind = "a symbolic link" if folder.is_symlink() else "a file"
        raise ConfigurationError(
            f"{_shown(folder)}, where the seeds of this run are kept until it is done, is {kind}: move it away."
        )


def _contents(study: Study) -> dict[str, str]:
    document, drawings = study_document(study), drawings_of(shown_part(study))
    svgs = {drawing.name: render_svg(drawing.figure, drawing.title, salt=drawing.name) for drawing in drawings}
    return {
        "config.toml": toml_text(study.config),
        "provenance.json": json_text(plain_values(study.provenance)),
        "summary.json": json_text(document),
        "summary.csv": csv_text([*document["spectra"], *document["extremes"], *document["densities"]]),
        **({"verdicts.csv": verdicts_csv(document["verdicts"])} if document["verdicts"] else {}),
        "report.html": html_page(shown_part(study), document, drawings, svgs),
        **{f"figures/{name}.svg": text for name, text in svgs.items()},
    }


def _check_replaceable(out: Path, overwrite: bool) -> None:
    if not out.is_dir():
        raise ConfigurationError(f"{_shown(out)} is a file: choose another --out.")
    if not overwrite:
        raise ConfigurationError(
            f"{_shown(out)} exists: choose another --out, or pass --overwrite to replace that run."
        )
    held = {path.name for path in out.iterdir()}
    if held and "DONE" not in held and "summary.json" not in held:
        raise ConfigurationError(f"{_shown(out)} is not a run directory, so it is not replaced: choose another --out.")
    if held - _FILES:
        foreign = ", ".join(one_line(name) for name in sorted(held - _FILES)[:3])
        raise ConfigurationError(
            f"{_shown(out)} holds what a run does not write ({foreign}): move that away, or choose another --out."
        )


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


def _beside(out: Path) -> Path:
    return out.with_name(f".{out.name}.{secrets.token_hex(4)}")


def _manifest(directory: Path) -> str:
    """The schema, then the SHA-256 of every file, as ``sha256sum`` writes them and ``sha256sum --check`` takes them."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return f"{SCHEMA}\n" + "".join(f"{_hash(path)}  {path.relative_to(directory).as_posix()}\n" for path in paths)


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _refuse_changed(path: Path, written: str | None) -> None:
    if not path.is_file() or _hash(path) != written:
        raise ValueError(f"{path.name} is not what was written")


def _text(path: Path) -> str:
    """The whole of a text file: of a file, and not of more than would be one of ours."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path.name} is not a file")
    if path.stat().st_size > _MAX_TEXT:
        raise ValueError(f"{path.name} has more than the {_MAX_TEXT} bytes that are read")
    return path.read_text(encoding="utf-8")


def _said(error: BaseException) -> str:
    return one_line(next(iter(str(error).splitlines()), "") or type(error).__name__).rstrip(".")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_error(out: Path, error: OSError) -> CurvatureError:
    reason = error.strerror or str(error)
    message = f"could not write the run directory {_shown(out)}: {reason}. Nothing was changed there; "
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENOTEMPTY):
        return ConfigurationError(message + "choose another --out.")
    return ResourceError(message + "make room, or choose an --out on another disk.")


def _shown(path: Path) -> str:
    return one_line(str(path))
