"""From the tables of ``curvature analyze`` to the files of its run directory, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curvature.errors import ConfigurationError
from curvature.records import Analysis
from curvature.records.storage import from_plain
from curvature.report.figures import analysis_svg
from curvature.report.plain import json_text, odd_values, toml_text
from curvature.report.target import shown_path
from curvature.text import reason_of

__all__ = ["ANALYSES", "analysis_files", "load_analyses"]

ANALYSES = "analysis.json"


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
        ``analysis.json``, ``analysis.csv``, a figure for each table, configuration and provenance.
    """
    files = {
        ANALYSES: json_text(document),
        "analysis.csv": _csv(analyses),
        "config.toml": toml_text(document["config"]),
        "provenance.json": json_text(document["provenance"]),
    }
    for analysis in analyses:
        parts = (analysis.matrix, analysis.chart, "" if analysis.gauge == "-" else analysis.gauge)
        name = "_".join(part.replace(" ", "").replace("=", "") for part in parts if part)
        files[f"figures/{name}.svg"] = analysis_svg(analysis)
    return files


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
