"""Training: each run, each arm at its own learning rate, and the gauges that training reached."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from curvature.records import ConditionNumbers, GaugeState, Quantity, Study
from curvature.report.selection import LAST, Selection
from curvature.report.spread import grouped, spread
from curvature.report.table import Cell, Row, Table, spread_cell
from curvature.report.words import arm_words, chart_label
from curvature.studies.evidence import learning_rate_width

__all__ = ["arm_rows", "arm_table", "gauge_rows", "gauge_table", "training_rows", "training_table"]

_QUANTITY = "kappa_80"  # that arms are compared by


def training_rows(selection: Selection) -> list[dict[str, Any]]:
    """Ends of every training run.

    Parameters
    ----------
    selection
        What was measured.

    Returns
    -------
    list of dict
        One per arm and seed.
    """
    return [
        {
            "arm": curve.arm,
            "seed": curve.seed,
            "steps": int(curve.steps[-1]),
            "first_loss": float(curve.losses[0]),
            "last_loss": float(curve.losses[-1]),
            "last_accuracy": float(curve.accuracies[-1]),
        }
        for curve in selection.study.curves
        if len(curve.steps)
    ]


def training_table(document: Row) -> Table:
    """Loss before and after training, by arm.

    Parameters
    ----------
    document
        The summary of a run.

    Returns
    -------
    Table
        One row per arm: medians and ranges over seeds.
    """
    names = ("first_loss", "last_loss", "last_accuracy")
    rows = [
        (arm_words(arm), *(_seeds(run[name] for run in runs) for name in names), runs[0]["steps"])
        for arm, runs in grouped(document["training"], lambda run: run["arm"]).items()
    ]
    return Table("Training", ("arm", "loss before", "loss after", "accuracy", "steps"), tuple(rows))


def _seeds(values: Iterable[float | None]) -> Cell:
    known = spread(Quantity(value) for value in values if value is not None)
    return spread_cell(asdict(known) if known.count else None)


def gauge_rows(selection: Selection) -> list[dict[str, Any]]:
    """Stretches of the normalized rows, over rows and seeds.

    Parameters
    ----------
    selection
        What was measured.

    Returns
    -------
    list of dict
        One per arm, checkpoint, chart and gauge.
    """
    groups = grouped(selection.study.of(GaugeState), lambda m: (m.arm, m.checkpoint, m.record.chart, m.record.gauge))
    return [
        {
            **dict(zip(("arm", "checkpoint", "chart", "gauge"), key, strict=True)),
            "seeds": len(members),
            "rows": members[0].record.num_rows,
            "minimum": min(m.record.minimum for m in members),
            "median": float(np.median([m.record.median for m in members])),
            "maximum": max(m.record.maximum for m in members),
        }
        for key, members in groups.items()
    ]


def gauge_table(document: Row) -> Table:
    """Stretches of the normalized rows; the canonical gauge, where each is 1, is left out.

    Parameters
    ----------
    document
        The summary of a run.

    Returns
    -------
    Table
        One row per point and gauge.
    """
    rows = [
        (
            arm_words(row["arm"]),
            row["checkpoint"],
            chart_label(row["chart"], row["gauge"]),
            *(row[name] for name in ("rows", "minimum", "median", "maximum")),
        )
        for row in document["gauges"]
        if row["gauge"] != "canonical"
    ]
    return Table(
        "Gauges",
        ("weights", "checkpoint", "chart (gauge)", "rows", "smallest", "median", "largest"),
        tuple(rows),
        (
            "Stretch ‖v‖ / |g| of the normalized rows: smallest, median and largest over rows and seeds; 1 is "
            "canonical.",
        ),
    )


def arm_rows(selection: Selection) -> list[dict[str, Any]]:
    """Arms whose learning rate was tuned, as medians over seeds.

    Parameters
    ----------
    selection
        What was measured.

    Returns
    -------
    list of dict
        One per arm.
    """
    study = selection.everything
    return [_arm_row(study, arm) for arm in dict.fromkeys(sweep.arm for sweep in study.sweeps)]


def _arm_row(study: Study, arm: str) -> dict[str, Any]:
    sweeps = [sweep for sweep in study.sweeps if sweep.arm == arm]
    widths = [learning_rate_width(sweep.rates.tolist(), sweep.final_losses.tolist()) for sweep in sweeps]
    ends = [float(curve.losses[-1]) for curve in study.curves if curve.arm == arm]
    late = [m.record for m in study.of(ConditionNumbers, arm=arm, checkpoint=LAST, matrix="ggn", block="all")]
    standard = [record for record in late if record.chart == "standard"]
    own = [record for record in late if record.effective and record.gauge not in ("canonical", "paper")]
    return {
        "arm": arm,
        "seeds": len(sweeps),
        "rate": asdict(spread(Quantity(sweep.chosen) for sweep in sweeps)),
        "at_edge": sum(sweep.at_edge for sweep in sweeps),
        "width": asdict(spread(widths)),
        "open_widths": sum(width.status == "lower_bound" for width in widths),
        "final_loss": asdict(spread(Quantity(end) for end in ends)),
        "diverged": sum(not math.isfinite(end) for end in ends) + len(sweeps) - len(ends),
        "kappa_standard": asdict(spread(record.values[_QUANTITY] for record in standard)),
        # The standard chart is the own chart of the arm that was trained in it.
        "kappa_own": asdict(spread(record.values[_QUANTITY] for record in own or standard)),
    }


def arm_table(document: Row) -> Table:
    """Arms at their own learning rates.

    Parameters
    ----------
    document
        The summary of a run.

    Returns
    -------
    Table
        One row per arm whose learning rate was tuned.
    """

    def small(number: int, words: str) -> tuple[str, ...]:
        return (f"{number} {words}",) if number else ()

    rows = [
        (
            row["arm"],
            Cell(row["seeds"], details=small(row["diverged"], "diverged")),
            spread_cell(row["rate"], details=small(row["at_edge"], "at the edge of the grid")),
            spread_cell(row["width"], details=small(row["open_widths"], "leave the grid")),
            *(spread_cell(row[name]) for name in ("final_loss", "kappa_standard", "kappa_own")),
        )
        for row in document["arms"]
    ]
    return Table(
        "Arms",
        ("arm", "seeds", "learning rate", "width", "last loss", "κ₈₀, standard chart", "κ₈₀, own chart"),
        tuple(rows),
        (
            "Each arm at its own learning rate, the best of its grid at a short budget: median over seeds, with the "
            "smallest and the largest.",
            "Width: decades of learning rates that end within 10 % of the best loss; both by the mean loss of the last "
            "three epochs there. Last loss: of the training that followed.",
            "κ₈₀ of the GGN at the last checkpoint of the arm's own training, in the standard chart and in the "
            "arm's own chart and gauge.",
        ),
    )
