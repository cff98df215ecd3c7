"""From the tables of ``curvature analyze`` to the files of its run directory, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curvature.errors import ConfigurationError
from curvature.records import Analysis
from curvature.records.analysis import HEADER
from curvature.records.storage import from_plain
from curvature.report.figures import analysis_svg
from curvature.report.page import analyses_page
from curvature.report.plain import json_text, odd_values, toml_text
from curvature.report.table import Entry, Table
from curvature.report.target import shown_path
from curvature.report.words import chart_label, subject
from curvature.text import reason_of

__all__ = ["ANALYSES", "analysis_files", "load_analyses"]

ANALYSES = "analysis.json"
_MOST = 2  # matrices in the answer of a page; each has a table


def analysis_files(analyses: Sequence[Analysis], document: Mapping[str, Any]) -> dict[str, str]:
    """Everything that a run directory of an overview holds, by relative path.

    Parameters
    ----------
    analyses
        The tables.
    document
        Plain values: model, data, notes, configuration, provenance and the tables.

    Returns
    -------
    dict
        ``analysis.json``, ``analysis.csv``, ``report.html``, a figure for each table, configuration and provenance.
    """
    files = {
        ANALYSES: json_text(document),
        "analysis.csv": _csv(analyses),
        "config.toml": toml_text(document["config"]),
        "provenance.json": json_text(document["provenance"]),
    }
    pictures = []
    for analysis in analyses:
        parts = (analysis.matrix, analysis.chart, "" if analysis.gauge == "-" else analysis.gauge)
        name = "_".join(part.replace(" ", "").replace("=", "") for part in parts if part)
        files[f"figures/{name}.svg"] = svg = analysis_svg(analysis)
        pictures.append((_table(analysis), svg))
    warnings = [*document["notes"], *(warning for analysis in analyses for warning in analysis.warnings)]
    answer = " ".join(map(_answer, analyses[:_MOST]))
    return files | {"report.html": analyses_page(document, pictures, answer, warnings)}


def _table(analysis: Analysis) -> Table:
    rows: list[tuple[Entry, ...]] = [(row.layer, row.num_parameters, *row.texts) for row in analysis.rows]
    return Table(_subject(analysis), HEADER, tuple(rows))


def _answer(analysis: Analysis) -> str:
    whole = analysis.whole
    steepest = max(analysis.layers, key=lambda row: row.largest.value if row.largest.has_value else -math.inf)
    return (
        f"{_subject(analysis)}: the largest eigenvalue is {whole.largest}, and the steepest layer is {steepest.layer} "
        f"({steepest.largest}); the condition number κ₈₀ is {whole.kappa_80}, and the trace {whole.trace}."
    )


def _subject(analysis: Analysis) -> str:
    return subject(analysis.matrix, chart_label(analysis.chart, analysis.gauge))


def load_analyses(out: Path) -> tuple[list[Analysis], dict[str, Any]]:
    """Read the tables of a finished run.

    Parameters
    ----------
    out
        The run directory.

    Returns
    -------
    analyses, document
        Exactly as they were.

    Raises
    ------
    ConfigurationError
        If the file is damaged.
    """
    try:
        document = json.loads((out / ANALYSES).read_text(encoding="utf-8"))
        tables = odd_values(document["analyses"])
        return [from_plain(Analysis, table.pop("where") | table) for table in tables], document
    except Exception as error:  # a file that somebody else has written fails in many ways
        raise ConfigurationError(
            f"{shown_path(out / ANALYSES)} cannot be read: {reason_of(error)}. Use another copy, or repeat the run."
        ) from error


def _csv(analyses: Sequence[Analysis]) -> str:
    import pandas as pd

    frames = [
        analysis.to_dataframe().reset_index().assign(matrix=analysis.matrix, chart=analysis.chart, gauge=analysis.gauge)
        for analysis in analyses
    ]
    return str(pd.concat(frames).set_index(["matrix", "chart", "gauge", "layer"]).to_csv())
