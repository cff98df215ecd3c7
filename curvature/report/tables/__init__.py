"""What is measured, as rows of plain numbers and as tables: one module for each kind of measurement.

A new kind is a row of ``KINDS``: the summary, the page and the terminal then show it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from curvature.report.selection import Selection
from curvature.report.table import Row, Table
from curvature.report.tables import estimates, league, neurons, ratios, spectra, steps, training, vectors, verdicts

__all__ = ["KINDS", "Kind", "tables_of"]


@dataclass(frozen=True)
class Kind:
    """One kind of measurement in a report.

    Attributes
    ----------
    key
        Of its rows in the summary.
    rows
        Aggregates them; they may hold NaN and infinity.
    tables
        Lays plain rows out, given the whole summary; None where a figure says more.
    section
        Of the page.
    """

    key: str
    rows: Callable[[Selection], Any]
    tables: Callable[[Row], Sequence[Table]] | None = None
    section: str = ""


KINDS = (
    Kind("verdicts", verdicts.verdict_rows),
    Kind("decompositions", verdicts.decomposition_rows, lambda rows: [verdicts.decomposition_table(rows)], "verdicts"),
    Kind("arms", training.arm_rows, lambda rows: [training.arm_table(rows)], "arms"),
    Kind("unresolved", spectra.unresolved_counts),
    Kind("equality", ratios.equality_rows),
    Kind("ratios", ratios.ratio_rows, ratios.ratio_tables, "findings"),
    Kind("efficiencies", steps.efficiency_rows, steps.efficiency_tables, "findings"),
    Kind("league", league.league_rows, league.league_tables, "league"),
    Kind("table", spectra.summary_rows, spectra.summary_tables, "table"),
    Kind("gauges", training.gauge_rows, lambda rows: [training.gauge_table(rows)], "gauges"),
    Kind("alignments", neurons.alignment_rows),
    Kind("whitenings", neurons.whitening_rows),
    Kind("training", training.training_rows),
    Kind("checks", verdicts.check_rows, lambda rows: [verdicts.check_table(rows)], "checks"),
    Kind("spectra", spectra.spectrum_rows),
    Kind("extremes", estimates.extreme_rows, lambda rows: [estimates.extreme_table(rows["extremes"])], "estimates"),
    Kind("densities", estimates.density_rows, lambda rows: [estimates.density_table(rows["densities"])], "estimates"),
    Kind(
        "eigenvectors", vectors.vector_rows, lambda rows: [vectors.vector_table(rows["eigenvectors"])], "eigenvectors"
    ),
)


def tables_of(document: Row) -> dict[str, list[Table]]:
    """Tables of each section of the page.

    Parameters
    ----------
    document
        The summary of a run.

    Returns
    -------
    dict
        By the name of the section; tables without rows are left out.
    """
    sections: dict[str, list[Table]] = {kind.section: [] for kind in KINDS}
    for kind in KINDS:
        if kind.tables is not None:
            sections[kind.section] += [table for table in kind.tables(document) if table.rows]
    return sections
