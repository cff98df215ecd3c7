"""Verdicts on claims, where differences come from, and checks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from curvature.records import Decomposition
from curvature.report.claims import claim_words
from curvature.report.selection import Selection
from curvature.report.spread import grouped
from curvature.report.table import Cell, Entry, Row, Table
from curvature.report.words import matrix_name, quantity_symbol
from curvature.studies.evidence import part_intervals

__all__ = ["check_rows", "check_table", "decomposition_rows", "decomposition_table", "verdict_rows"]


def verdict_rows(selection: Selection) -> list[dict[str, Any]]:
    """Verdicts on the claims, with their names in words.

    Parameters
    ----------
    selection
        What was measured.

    Returns
    -------
    list of dict
        One per claim and case.
    """
    return [
        {"name": verdict.name, "icon": verdict.icon, "found": verdict.found} | claim_words(verdict) | asdict(verdict)
        for verdict in selection.study.verdicts
    ]


def decomposition_rows(selection: Selection) -> list[dict[str, Any]]:
    """Sources of the differences between two arms: means and intervals, and the parts of every seed.

    Parameters
    ----------
    selection
        What was measured.

    Returns
    -------
    list of dict
        One per matrix.
    """
    return [_decomposition_row(item) for item in selection.study.decompositions]


def _decomposition_row(item: Decomposition) -> dict[str, Any]:
    intervals = part_intervals(item).items()
    return {
        **{name: getattr(item, name) for name in ("matrix", "quantity", "num_orders", "num_missing")},
        **{name: list(getattr(item, name)) for name in ("seeds", "arms", "sources")},
        "held": dict(item.held),
        "means": {name: {"mean": mean, "low": low, "high": high} for name, (mean, low, high) in intervals},
        "parts": item.parts.tolist(),
        "whole": item.whole.tolist(),
    }


def decomposition_table(document: Row) -> Table:
    """Where the difference between two arms comes from.

    Parameters
    ----------
    document
        The summary of a run.

    Returns
    -------
    Table
        One row per matrix; its parts multiply to its whole.
    """
    sources = list(dict.fromkeys(source for row in document["decompositions"] for source in row["sources"]))
    lines: list[tuple[Entry, ...]] = []
    for (standard, other), rows in grouped(document["decompositions"], lambda row: tuple(row["arms"])).items():
        lines.append((f"{other} arm over {standard} arm",))
        for row in rows:
            missing = (f"{row['num_missing']} not comparable",) if row["num_missing"] else ()
            name = f"{matrix_name(row['matrix'])}, {quantity_symbol(row['quantity'])}"
            parts = (_part(row, source) for source in ("whole", *sources))
            lines.append((name, *parts, Cell(len(row["seeds"]), details=missing)))
    return Table(
        "Where the difference between the arms comes from",
        ("number", "whole", *sources, "seeds"),
        tuple(lines),
        (
            "Each number of one arm, in its own chart and gauge, over that of the other: geometric mean over seeds "
            "with its 95 % interval (Student t). The factors of a row multiply to its whole.",
        ),
    )


def _part(row: Row, source: str) -> Cell:
    part = row["means"].get(source)
    if part is None:
        return Cell(None, details=(row["held"].get(source, ""),))
    low, high = (None if part[name] is None else math.exp(part[name]) for name in ("low", "high"))  # None: one seed
    return Cell(math.exp(part["mean"]), low, high, factor=True)


def check_rows(selection: Selection) -> list[dict[str, Any]]:
    """Identities and self-checks with their values.

    Parameters
    ----------
    selection
        What was measured.

    Returns
    -------
    list of dict
        One per check.
    """
    return [
        asdict(check) | {"passed": check.passed}
        for check in (*selection.everything.self_checks, *selection.study.checks)
    ]


def check_table(document: Row) -> Table:
    """Checks of one kind in one row, with the worst of them.

    Parameters
    ----------
    document
        The summary of a run.

    Returns
    -------
    Table
        Failed checks first.
    """
    # Checks of one kind are told apart by the place in parentheses.
    kinds = grouped(document["checks"], lambda check: re.sub(r" \([^()]*\)$", "", check["name"]))
    rows = [_check_entries(name, checks) for name, checks in sorted(kinds.items(), key=lambda kind: -_failed(kind[1]))]
    header = ("check", "times", "worst value", "tolerance", "result", "what was compared")
    return Table("Checks", header, tuple(rows))


def _failed(checks: Sequence[Row]) -> int:
    return sum(not check["passed"] for check in checks)


def _check_entries(name: str, checks: Sequence[Row]) -> tuple[Entry, ...]:
    def badness(check: Row) -> float:
        return math.inf if check["value"] is None else check["value"] / max(check["tolerance"] or 0, 1e-300)

    worst, failed = max(checks, key=badness), _failed(checks)
    result = Cell(f"✗ {failed} failed", status="failed") if failed else "✓ passed"
    return name, len(checks), worst["value"], worst["tolerance"], result, worst["note"]
