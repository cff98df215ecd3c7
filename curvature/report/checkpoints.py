"""From the curvature of checkpoints to the files of a run directory: tables, a page, a figure, and the exact rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curvature.records import CheckpointSummary, Quantity, TrackedMatrix, TrackPoint
from curvature.records.sealed import sealed_text
from curvature.records.storage import from_plain, to_json
from curvature.report.figures.checkpoints import checkpoints_svg
from curvature.report.page import checkpoints_page
from curvature.report.parts import read_sealed, repeat_advice
from curvature.report.plain import json_text, toml_text
from curvature.report.render import table_csv
from curvature.report.table import Entry, Table
from curvature.report.words import factor_words, listed, matrix_name, short_number

__all__ = ["ROWS", "checkpoint_files", "checkpoint_table", "checkpoint_tables", "load_rows", "load_track"]

ROWS = "checkpoints.json"  # every row exactly, with the hash of its checkpoint: what --resume reads


def checkpoint_tables(rows: Sequence[CheckpointSummary]) -> list[Table]:
    """One table for each matrix in each chart, a row for each checkpoint.

    Parameters
    ----------
    rows
        In the order of their steps.

    Returns
    -------
    list of Table
        For the terminal and the page.
    """
    series: dict[str, list[tuple[CheckpointSummary, TrackPoint, TrackedMatrix]]] = {}
    for row in rows:
        for chart, point in zip(row.charts, row.points, strict=True):
            for matrix in point.matrices:
                series.setdefault(f"{matrix.matrix}, {chart}", []).append((row, point, matrix))
    tables = []
    for label, members in series.items():
        count = min(2, *(len(matrix.largest) for _, _, matrix in members))
        header = ("checkpoint", "step", "loss", *(f"l_{k + 1}" for k in range(count)), "trace", "kappa_80", "kappa_95",
                  "critical sharpness")  # fmt: skip
        body = tuple(_shown(row, point, matrix, count) for row, point, matrix in members)
        methods = ", ".join(dict.fromkeys(matrix.method for _, _, matrix in members))
        tables.append(Table(f"{label} ({methods})", header, body))
    return tables


def _answer(rows: Sequence[CheckpointSummary]) -> str:
    """What changes from the first checkpoint to the last, in factors, for the first matrix in the first chart."""
    measured = [(row, row.points[0]) for row in rows if row.points and row.points[0].matrices]
    if not measured:
        return "No checkpoint could be measured."
    (first, start), (last, end) = measured[0], measured[-1]
    before, after = start.matrices[0], end.matrices[0]
    name = matrix_name(before.matrix)
    if first is last:
        return f"One checkpoint, {first.checkpoint}: the largest eigenvalue of the {name} is {before.largest[0]}."
    quantities = {
        f"the largest eigenvalue of the {name}": (before.largest[0], after.largest[0]),
        "its trace": (before.trace, after.trace),
        "its condition number κ₈₀": (before.kappa_80, after.kappa_80),
    }
    changes = [
        f"{words} by {factor_words(new.value / old.value)}"
        for words, (old, new) in quantities.items()
        if old.has_value and new.has_value and old.value > 0 and new.value > 0
    ]
    begins = f"From {first.checkpoint} to {last.checkpoint} the loss goes from {short_number(first.loss)} to"
    changed = f", and training multiplies {listed(changes)}" if changes else ""
    return f"{begins} {short_number(last.loss)}{changed}."


def _shown(row: CheckpointSummary, point: TrackPoint, matrix: TrackedMatrix, count: int) -> tuple[Entry, ...]:
    numbers = [*matrix.largest[:count], matrix.trace, matrix.kappa_80, matrix.kappa_95, point.critical_sharpness]
    return (row.checkpoint, "-" if row.step is None else row.step, row.loss, *map(str, numbers))


def checkpoint_table(rows: Sequence[CheckpointSummary]) -> Table:
    """Every number, one line for each checkpoint in each chart, for a CSV file.

    Parameters
    ----------
    rows
        In the order of their steps.

    Returns
    -------
    Table
        Each quantity with its status in the next column, named as in :class:`~curvature.records.TrackPoint`.
    """
    points = [(row, chart, point) for row in rows for chart, point in zip(row.charts, row.points, strict=True)]
    names = list(dict.fromkeys(name for _, _, point in points for name in point.quantities))
    header = ("checkpoint", "step", "file_sha256", "chart", "loss", "gradient_norm",
              *(part for name in names for part in (name, f"{name}_status")))  # fmt: skip
    missing = Quantity(float("nan"), "undefined")
    body = []
    for row, chart, point in points:
        numbers = [point.quantities.get(name, missing) for name in names]
        cells = [part for number in numbers for part in (number.value if number.has_value else None, number.status)]
        body.append((row.checkpoint, row.step, row.file_sha256, chart, point.loss, point.gradient_norm, *cells))
    return Table("", header, tuple(body))


def checkpoint_files(rows: Sequence[CheckpointSummary], document: Mapping[str, Any]) -> dict[str, str]:
    """Everything that a run directory of checkpoints holds, by relative path.

    Parameters
    ----------
    rows
        In the order of their steps.
    document
        Plain values: model, data, notes, configuration, provenance and the rows.

    Returns
    -------
    dict
        ``track.json``, ``track.csv``, ``checkpoints.json``, ``report.html``, the figure, configuration and provenance.
    """
    svg = checkpoints_svg(rows, f"Curvature along training: {document['model']}")
    return {
        "config.toml": toml_text(document["config"]),
        "provenance.json": json_text(document["provenance"]),
        "track.json": sealed_text(json_text(document)),
        "track.csv": table_csv(checkpoint_table(rows)),
        ROWS: sealed_text(json.dumps({"rows": json.loads(to_json(list(rows)))}, indent=1) + "\n"),
        "figures/track.svg": svg,
        "report.html": checkpoints_page(document, checkpoint_tables(rows), svg, _answer(rows)),
    }


def load_rows(out: Path) -> list[CheckpointSummary]:
    """Read the rows of a finished run.

    Parameters
    ----------
    out
        The run directory.

    Returns
    -------
    list of CheckpointSummary
        In the order in which they were written, exactly as they were.

    Raises
    ------
    ConfigurationError
        If the file is damaged.
    """
    return [from_plain(CheckpointSummary, row) for row in _sealed(out / ROWS)["rows"]]


def load_track(out: Path) -> dict[str, Any]:
    """Read what the report of a finished run says besides its rows.

    Parameters
    ----------
    out
        The run directory.

    Returns
    -------
    dict
        The document of :func:`checkpoint_files`.

    Raises
    ------
    ConfigurationError
        If the file is damaged.
    """
    return _sealed(out / "track.json")


def _sealed(path: Path) -> dict[str, Any]:
    return read_sealed(path, repeat_advice(path.parent, "track", "--config"))
