"""The run directory: all of it or nothing, never in place of something else."""

from __future__ import annotations

import json
import math
import re
import tomllib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curvature._version import __version__
from curvature.errors import ConfigurationError
from curvature.provenance import hash_file
from curvature.records import Study
from curvature.records.sealed import sealed_text, unsealed_text
from curvature.records.validation import require
from curvature.records.verdict import present_outcome
from curvature.report.answer import answer_of, question_of
from curvature.report.atomic import DONE, write_texts
from curvature.report.document import rows_of
from curvature.report.drawings import drawings_of
from curvature.report.drawings.layout import svg_files, svgs_of
from curvature.report.eigenvectors import NAME, write_eigenvectors
from curvature.report.findings import findings_of
from curvature.report.page import html_page
from curvature.report.plain import csv_text, json_text, plain_values, toml_text, verdicts_csv
from curvature.report.result import SCHEMA, read_result, write_result
from curvature.report.selection import shown_part
from curvature.report.table import Row
from curvature.report.tables import KINDS
from curvature.report.target import check_target, shown_path
from curvature.text import reason_of

__all__ = [
    "load_study",
    "load_summary",
    "study_document",
    "write_run",
]

_MAX_TEXT = 2**28  # bytes of a text file of a run
_NEEDED = ("config.toml", "provenance.json", "result.nc")
_DERIVED = (
    r"summary\.json|summary\.csv|verdicts\.csv|report\.html|figures/.+\.svg|" + NAME
)  # from the others: may be deleted
_LINE = re.compile(rf"(?P<digest>[0-9a-f]{{64}})  (?P<name>{'|'.join(map(re.escape, _NEEDED))}|{_DERIVED})")  # of DONE
_FIELDS = ("command", "model", "data", "num_weights", "num_examples")  # of a study, in its summary
# Members of a summary but its hash: a summary with another one and no hash has lost its hash.
_MEMBERS = {
    "schema",
    "version",
    *_FIELDS,
    "question",
    "answer",
    "findings",
    "config",
    "provenance",
    "seeds",
    "checkpoints",
    "warnings",
}
_MEMBERS |= {kind.key for kind in KINDS}


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
        ``verdicts.csv`` (where claims were tested), ``report.html``, ``figures/*.svg``,
        ``eigenvectors/*.safetensors`` (where they were kept) and, last, ``DONE``.

    Raises
    ------
    ConfigurationError
        As :func:`check_target`; also without permission to write.
    ResourceError
        If the disk is full or fails.
    """
    out = check_target(out, overwrite=overwrite)  # before the figures are drawn

    def write_arrays(folder: Path) -> None:
        write_result(study, folder / "result.nc")
        write_eigenvectors(study, folder)

    return write_texts(_contents(study), out, overwrite=overwrite, also=write_arrays)


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
    findings = findings_of(shown_part(study), rows)
    return plain_values(
        {
            "schema": SCHEMA,
            "version": __version__,
            **{name: getattr(study, name) for name in _FIELDS},
            "question": question_of(rows["verdicts"], study.model),
            "answer": answer_of(rows["verdicts"]) or _first_finding(findings),
            "findings": findings,
            **rows,
            "config": dict(sorted(study.config.items())),  # TOML writes tables last, so it does not keep an order
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
        If it is not the summary of a run, or one bit of it has changed since it was written.

    Notes
    -----
    A summary of version 0.1, and a document that ``--json`` printed, have no hash. They are read with a warning.
    """
    path = Path(path)
    path = path / "summary.json" if path.is_dir() else path
    try:
        document, has_hash = unsealed_text(_text(path))
    except Exception as error:  # the readers fail in many ways on files that they did not write
        raise ConfigurationError(
            f"{shown_path(path)} is not the summary of a run: {reason_of(error)}. Use another copy, or repeat the run."
        ) from error
    if document.get("schema") != SCHEMA:
        raise ConfigurationError(f"{shown_path(path)} is not a summary of schema {SCHEMA}.")
    if not has_hash:
        if unknown := sorted(document.keys() - _MEMBERS):
            raise ConfigurationError(
                f"{shown_path(path)} is damaged: it has the unknown member {unknown[0]!r} and no SHA-256. Take another "
                "copy, or repeat the run."
            )
        warnings.warn(
            f"{shown_path(path)} has no hash (version 0.1 and --json write none), so damage to it may go unnoticed.",
            stacklevel=2,
        )
    for row in document.get("verdicts", ()):
        ends = (math.nan if row[name] is None else row[name] for name in ("high", "threshold"))
        row["outcome"] = present_outcome(row["outcome"], *ends)
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
        If the run is not finished, or one bit of one of its files has changed. The hashes in ``DONE`` find damage, not
        malice, which could write new ones. The report and its figures may be missing: they follow from the rest.
    """
    directory = Path(directory)
    if not (directory / DONE).is_file():
        raise ConfigurationError(f"{shown_path(directory)} is not a finished run: it has no file DONE.")
    try:
        written = _hashes(_text(directory / DONE))
        for name, digest in written.items():
            if name in _NEEDED or (directory / name).exists():
                _refuse_changed(directory / name, digest)
        for path in (directory / "figures").glob("*.svg"):
            require(f"figures/{path.name}" in written, f"{path.name} is not listed in DONE")
        config = tomllib.loads(_text(directory / "config.toml"))
        provenance = json.loads(_text(directory / "provenance.json"))
        return read_result(directory / "result.nc", config, provenance)
    except Exception as error:  # the readers fail in many ways on files that they did not write
        raise ConfigurationError(
            f"{shown_path(directory)} cannot be read as a run: {reason_of(error)}. Use a complete copy, or repeat the "
            "run."
        ) from error


def _first_finding(findings: Sequence[Row]) -> dict[str, str]:
    """What a study without claims says first, in the form of an answer."""
    results = [finding for finding in findings if finding["kind"] == "result"]
    text = "Nothing was measured." if not results else " ".join([results[0]["text"], *results[0]["items"][:1]])
    return {"outcome": "", "icon": "", "text": text, "plain": text}


def _contents(study: Study) -> dict[str, str]:
    document, drawings = study_document(study), drawings_of(shown_part(study))
    svgs = svgs_of(drawings)
    return {
        "config.toml": toml_text(study.config),
        "provenance.json": json_text(plain_values(study.provenance)),
        "summary.json": sealed_text(json_text(document)),
        "summary.csv": csv_text([*document["spectra"], *document["extremes"], *document["densities"]]),
        **({"verdicts.csv": verdicts_csv(document["verdicts"])} if document["verdicts"] else {}),
        "report.html": html_page(document, drawings, svgs),
        **svg_files(svgs),
    }


def _hashes(manifest: str) -> dict[str, str]:
    """Hash of each file that a manifest lists; one that :func:`manifest` could not have written is an error."""
    schema, *lines, end = manifest.split("\n")
    pairs = [_LINE.fullmatch(line) for line in lines]
    if schema != SCHEMA or end or not all(pairs):
        raise ValueError("DONE has changed since it was written")
    written = {pair["name"]: pair["digest"] for pair in pairs if pair}
    if missing := set(_NEEDED) - written.keys():
        raise ValueError(f"DONE does not list {min(missing)}")
    return written


def _refuse_changed(path: Path, written: str) -> None:
    if not path.is_file():
        raise ValueError(f"{path.name} is missing")
    if hash_file(path) != written:
        raise ValueError(f"{path.name} has changed since it was written")


def _text(path: Path) -> str:
    """Read a text file, if it is one and not larger than those of a run."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path.name} is not a file")
    if path.stat().st_size > _MAX_TEXT:
        raise ValueError(f"{path.name} is larger than {_MAX_TEXT} bytes, the limit for a text file of a run")
    return path.read_bytes().decode()  # every byte as it is: a reader of text would replace line ends
