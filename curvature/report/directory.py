"""The run directory: all of it or nothing, never in place of something else."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tomllib
from pathlib import Path
from typing import Any

from curvature._version import __version__
from curvature.errors import ConfigurationError
from curvature.records import Study
from curvature.report.document import rows_of
from curvature.report.drawings import drawings_of
from curvature.report.figures import render_svg
from curvature.report.findings import findings_of
from curvature.report.page import html_page
from curvature.report.plain import csv_text, json_text, plain_values, toml_text, verdicts_csv
from curvature.report.result import SCHEMA, read_result, write_result
from curvature.report.selection import shown_part
from curvature.report.target import check_target, require_writable, shown_path, write_error
from curvature.text import one_line

__all__ = [
    "check_parts",
    "load_part",
    "load_study",
    "load_summary",
    "study_document",
    "write_part",
    "write_run",
]

_MAX_TEXT = 2**28  # bytes of a text file of a run


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
        _replace(temporary, require_writable(out, overwrite=overwrite))
    except OSError as error:
        raise write_error(out, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return out


def study_document(study: Study) -> dict[str, Any]:
    """Everything that the report says, as plain values: what ``summary.json`` holds and ``--json`` prints.

    Parameters
    ----------
    study
        What was measured.

    Returns
    -------
    dict
        NaN and infinity are None, with a reason: in ``note`` of a quantity, in ``<name>_reason`` elsewhere.
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
    """Read the summary of a run.

    Parameters
    ----------
    path
        The run directory, or its ``summary.json``.

    Returns
    -------
    dict
        What :func:`study_document` returned.

    Raises
    ------
    ConfigurationError
        If it is not the summary of a run.
    """
    path = Path(path)
    path = path / "summary.json" if path.is_dir() else path
    try:
        document = json.loads(_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{shown_path(path)} is not the summary of a run: {error}") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ConfigurationError(f"{shown_path(path)} is not a summary of schema {SCHEMA}.")
    return document


def load_study(directory: str | Path) -> Study:
    """Read back what :func:`write_run` wrote, to draw it again or to compare it with another run.

    No model is loaded and no code is run.

    Parameters
    ----------
    directory
        The run directory.

    Returns
    -------
    Study
        With its configuration and provenance.

    Raises
    ------
    ConfigurationError
        If the run is not finished, or a file was changed. The hashes in ``DONE`` find damage, not malice, which could
        write new ones.
    """
    directory = Path(directory)
    if not (directory / "DONE").is_file():
        raise ConfigurationError(f"{shown_path(directory)} is not a finished run: it has no file DONE.")
    try:
        written = _hashes(_text(directory / "DONE"))
        for name in ("config.toml", "provenance.json", "result.nc"):
            _refuse_changed(directory / name, written.get(name))
        config = tomllib.loads(_text(directory / "config.toml"))
        provenance = json.loads(_text(directory / "provenance.json"))
        return read_result(directory / "result.nc", config, provenance)
    except Exception as error:  # the readers fail in many ways on files that they did not write
        raise ConfigurationError(
            f"{shown_path(directory)} cannot be read as a run: {_reason(error)}. Take a whole copy, or repeat the run."
        ) from error


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
        digest.write_text(f"{_hash(unfinished)}\n")
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
        _refuse_changed(path, _text(path.with_name(f"{path.name}.sha256")).strip())
        return read_result(path, {}, {})
    except Exception as error:  # the readers fail in many ways on files that they did not write
        raise ConfigurationError(
            f"{shown_path(path)} is damaged ({_reason(error)}). Delete it: it will be measured again."
        ) from error


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
            f"{shown_path(folder)}, where the seeds of this run are kept until it is done, is {kind}. Move it away."
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
        "report.html": html_page(document, drawings, svgs),
        **{f"figures/{name}.svg": text for name, text in svgs.items()},
    }


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
    """The schema, then the SHA-256 of every file in the format of ``sha256sum --check``."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return f"{SCHEMA}\n" + "".join(f"{_hash(path)}  {path.relative_to(directory).as_posix()}\n" for path in paths)


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _hashes(manifest: str) -> dict[str, str]:
    """Hash of each file that a manifest lists."""
    pairs = (line.split("  ", 1) for line in manifest.splitlines() if "  " in line)
    return {name: digest for digest, name in pairs}


def _refuse_changed(path: Path, written: str | None) -> None:
    if not path.is_file() or _hash(path) != written:
        raise ValueError(f"{path.name} is not what was written")


def _text(path: Path) -> str:
    """Read a text file, if it is one and not larger than those of a run."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path.name} is not a file")
    if path.stat().st_size > _MAX_TEXT:
        raise ValueError(f"{path.name} is larger than {_MAX_TEXT} bytes, the limit for a text file of a run")
    return path.read_text(encoding="utf-8")


def _reason(error: BaseException) -> str:
    return one_line(next(iter(str(error).splitlines()), "") or type(error).__name__).rstrip(".")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
