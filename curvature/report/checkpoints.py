"""From the curvature of checkpoints to the files of a run directory: tables, a page, a figure, and the exact rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curvature.records import CheckpointSummary, MatrixSummary, Quantity
from curvature.records.sealed import sealed_text
from curvature.records.storage import from_plain, to_json
from curvature.report.figures.checkpoints import checkpoints_svg
from curvature.report.page import checkpoints_page
from curvature.report.parts import read_sealed
from curvature.report.plain import json_text, plain_values, toml_text
from curvature.report.render import table_csv
from curvature.report.table import Entry, Table

__all__ = ["ROWS", "checkpoint_files", "checkpoint_table", "checkpoint_tables", "load_rows"]

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
    tables = []
    for label in dict.fromkeys(matrix.label for row in rows for matrix in row.matrices):
        pairs = [(row, matrix) for row in rows for matrix in row.matrices if matrix.label == label]
        count = max(len(matrix.eigenvalues) for _, matrix in pairs)
        header = ("checkpoint", "step", "loss", *(f"l_{k + 1}" for k in range(min(count, 2))), "smallest", "trace",
                  "kappa_80", "effective rank")  # fmt: skip
        body = tuple(_shown(row, matrix, min(count, 2)) for row, matrix in pairs)
        methods = ", ".join(dict.fromkeys(matrix.method for _, matrix in pairs))
        tables.append(Table(f"{label} ({pairs[0][1].dim} coordinates, {methods})", header, body))
    return tables


def _shown(row: CheckpointSummary, matrix: MatrixSummary, count: int) -> tuple[Entry, ...]:
    values = [*matrix.eigenvalues[:count], matrix.smallest, matrix.trace, matrix.kappa_80, matrix.effective_rank]
    return (row.checkpoint, "-" if row.step is None else row.step, row.loss, *map(str, values))


def checkpoint_table(rows: Sequence[CheckpointSummary]) -> Table:
    """Every number, one line for each matrix at each checkpoint, for a CSV file.

    Parameters
    ----------
    rows
        In the order of their steps.

    Returns
    -------
    Table
        Each quantity with its status in the next column.
    """
    count = max((len(matrix.eigenvalues) for row in rows for matrix in row.matrices), default=0)
    names = (*(f"eigenvalue_{k + 1}" for k in range(count)), "smallest", "trace", "kappa_80", "effective_rank")
    header = ("checkpoint", "step", "file_sha256", "loss", "gradient_norm", "matrix", "chart", "gauge", "dim", "method",
              *(part for name in names for part in (name, f"{name}_status")))  # fmt: skip
    missing = Quantity(float("nan"), "undefined")
    body = []
    for row in rows:
        for matrix in row.matrices:
            eigenvalues = [*matrix.eigenvalues, *[missing] * (count - len(matrix.eigenvalues))]
            numbers = [*eigenvalues, matrix.smallest, matrix.trace, matrix.kappa_80, matrix.effective_rank]
            cells = [part for number in numbers for part in (number.value if number.has_value else None, number.status)]
            about = (matrix.matrix, matrix.chart, matrix.gauge, matrix.dim, matrix.method)
            body.append((row.checkpoint, row.step, row.file_sha256, row.loss, row.gradient_norm, *about, *cells))
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
    plain = plain_values(document)
    return {
        "config.toml": toml_text(document["config"]),
        "provenance.json": json_text(plain["provenance"]),
        "track.json": sealed_text(json_text(plain)),
        "track.csv": table_csv(checkpoint_table(rows)),
        ROWS: sealed_text(json.dumps({"rows": json.loads(to_json(list(rows)))}, indent=1) + "\n"),
        "figures/track.svg": svg,
        "report.html": checkpoints_page(plain, checkpoint_tables(rows), svg),
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
    return [from_plain(CheckpointSummary, row) for row in read_sealed(out / ROWS)["rows"]]
