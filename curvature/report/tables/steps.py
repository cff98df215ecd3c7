"""Efficiency of one step: how close each chart comes to the natural gradient."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from curvature.records import StepComparison
from curvature.report.figures.steps import USUAL_DAMPING, nearest_damping
from curvature.report.selection import Selection
from curvature.report.spread import defined, grouped, spread
from curvature.report.table import Cell, Row, Table, spread_cell
from curvature.report.words import arm_words, chart_label, plain_gauge

__all__ = ["efficiency_rows", "efficiency_tables"]

_READING = (
    "E: progress of one step over that of the damped natural gradient. R: 0 is gradient descent, 1 neuron-block "
    "natural gradient (medians). The standard chart is gradient descent; the placebo has random directions in place of "
    "w. The damping is relative to the mean eigenvalue."
)


def efficiency_rows(selection: Selection) -> list[dict[str, Any]]:
    """Aggregate comparisons of steps over seeds.

    Parameters
    ----------
    selection
        What was measured.

    Returns
    -------
    list of dict
        One per arm, checkpoint, block, damping and chart.
    """
    keys = ("arm", "checkpoint", "block", "relative_damping", "chart", "gauge")
    groups = grouped(
        selection.study.of(StepComparison),
        lambda m: (
            m.arm,
            m.checkpoint,
            m.record.block,
            m.record.relative_damping,
            m.record.chart,
            plain_gauge(m.record.gauge),
        ),
    )
    return [
        dict(zip(keys, key, strict=True))
        | {
            name: asdict(spread(defined(getattr(m.record, name)) for m in members))
            for name in ("efficiency", "index", "kappa", "am_gm", "ai_distance")
        }
        for key, members in groups.items()
    ]


def efficiency_tables(document: Row, relative_damping: float = USUAL_DAMPING) -> list[Table]:
    """Efficiency of one step in each chart, with the arms side by side.

    Parameters
    ----------
    document
        The summary of a run.
    relative_damping
        The damping nearest to it is shown.

    Returns
    -------
    list of Table
        One per checkpoint, the last one first; the others are folded.
    """
    rows = [row for row in document["efficiencies"] if row["block"] == "all"]
    if not rows:
        return []
    nearest = nearest_damping({row["relative_damping"] for row in rows}, relative_damping)
    points = grouped([row for row in rows if row["relative_damping"] == nearest], lambda row: row["checkpoint"])
    last = document["checkpoints"][-1]
    tables = [_efficiency_table(members, name, nearest, name != last) for name, members in points.items()]
    return sorted(tables, key=lambda table: table.folded)


def _efficiency_table(rows: list[Row], checkpoint: str, damping: float, folded: bool) -> Table:
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    charts = grouped(rows, lambda row: (row["chart"], row["gauge"]))
    lines = [(key, {row["arm"]: row for row in members}) for key, members in charts.items()]
    lines.sort(key=lambda line: max(row["efficiency"]["median"] or 0 for row in line[1].values()))
    return Table(
        f"Efficiency of one step (damping {damping:g})" + (f", {checkpoint}" * (checkpoint != "given")),
        ("chart (gauge)", *(f"{symbol}, {arm_words(arm)}" for arm in arms for symbol in "ER")),
        tuple((chart_label(*key), *(cell for arm in arms for cell in _cells(cells.get(arm)))) for key, cells in lines),
        () if folded else (_READING,),
        folded,
    )


def _cells(row: Row | None) -> tuple[Cell, Cell]:
    if row is None:
        return Cell(None), Cell(None)
    return spread_cell(row["efficiency"]), Cell(row["index"]["median"], signed=True)
