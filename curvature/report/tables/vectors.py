"""Saved eigenvectors: eigenvalue, residual, and the parameter on which most of each lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from curvature.records import Eigenvectors
from curvature.report.eigenvectors import eigenvector_files
from curvature.report.selection import Selection, place_of
from curvature.report.table import Row, Table
from curvature.report.words import chart_label, matrix_name

__all__ = ["vector_rows", "vector_table"]


def vector_rows(selection: Selection) -> list[dict[str, Any]]:
    """Saved eigenvectors, one row for each, the largest eigenvalue of a matrix first.

    Parameters
    ----------
    selection
        What was measured.

    Returns
    -------
    list of dict
        With the file of each, its place in the file, and its share on the parameter that has the largest.
    """
    rows = []
    for name, m, vectors in eigenvector_files(selection.study):
        record = m.record
        place = place_of(m) | {key: getattr(record, key) for key in ("matrix", "chart", "gauge", "block")}
        for index in reversed(range(len(vectors))):
            values = {"eigenvalue": float(vectors.eigenvalues[index]), "residual": float(vectors.residuals[index])}
            rank = len(vectors) - index
            rows.append(place | {"file": name, "rank": rank, "index": index} | values | _largest_share(vectors, index))
    return rows


def _largest_share(vectors: Eigenvectors, index: int) -> dict[str, Any]:
    """The parameter with the largest share of the squared length, and the share."""
    if not vectors.names:
        return {"parameter": "", "share": 1.0}
    shares = {name: float(np.square(part).sum()) for name, part in vectors.vector(index).items()}
    name = max(shares, key=shares.__getitem__)
    return {"parameter": name, "share": shares[name]}


def vector_table(rows: Sequence[Row]) -> Table:
    """Saved eigenvectors with their files.

    Parameters
    ----------
    rows
        ``eigenvectors`` of the summary.

    Returns
    -------
    Table
        One row for each eigenvector.
    """
    lines = []
    for row in rows:
        matrix = ", ".join(filter(None, (matrix_name(row["matrix"]), row["block"].removeprefix("all"))))
        most = f"{row['parameter']}, {row['share']:.0%}" if row["parameter"] else ""
        chart = chart_label(row["chart"], row["gauge"])
        lines.append((matrix, chart, row["rank"], row["eigenvalue"], row["residual"], most, row["file"]))
    return Table(
        "Saved eigenvectors",
        ("matrix", "chart (gauge)", "rank", "eigenvalue", "residual", "most of it in", "file"),
        tuple(lines),
        (
            "Residual: the length of A q - l q for the unit vector q; an eigenvalue lies within it of l. Most of it "
            "in: the parameter with the largest share of the squared length. In a file, the last vector belongs to "
            "the largest eigenvalue.",
        ),
    )
