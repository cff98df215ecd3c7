"""Charts against the standard chart: equal spectra, and log-ratios of condition numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from curvature.records import ConditionNumbers, Measured, Spectrum
from curvature.report.selection import Selection
from curvature.report.spread import grouped
from curvature.report.table import Cell, Entry, Row, Table
from curvature.report.words import EQUAL, HEADLINE, block_words, capital, chart_label, form_of, matrix_name
from curvature.studies.evidence import log_ratio

__all__ = ["equality_rows", "equality_table", "ratio_rows", "ratio_tables"]

_READING = (
    "Each number over its value in the standard chart{seeds}. Below 1 favours the chart, above 1 the standard chart."
)
_SEEDS = ", seed by seed: the median, with the smallest and the largest"
_PLACE = ("matrix", "block", "arm", "checkpoint", "chart", "gauge", "effective")


def equality_rows(selection: Selection) -> list[dict[str, Any]]:
    """How far spectra at the canonical gauge are from the standard ones, in units of the largest eigenvalue.

    Parameters
    ----------
    selection
        What was measured.

    Returns
    -------
    list of dict
        One per matrix and chart. The Hessian has none: it differs by the second-order term of the chart.
    """
    study = selection.study

    def key(m: Measured) -> tuple[str, int, str, str, str]:
        return m.arm, m.seed, m.checkpoint, m.record.matrix, m.record.block

    standard = {key(m): m.record for m in study.of(Spectrum, chart="standard")}
    pairs = [(m.record, standard.get(key(m))) for m in study.of(Spectrum, gauge="canonical")]
    gaps: dict[tuple[str, str], list[float]] = {}
    for canonical, reference in pairs:
        if reference is not None and canonical.positive_semidefinite:
            gaps.setdefault((canonical.matrix, canonical.chart), []).append(_gap(canonical, reference))
    return [
        {"matrix": matrix, "chart": chart, "spectra": len(values), "largest_difference": max(values)}
        for (matrix, chart), values in gaps.items()
    ]


def _gap(ours: Spectrum, theirs: Spectrum) -> float:
    """Largest difference of ordered eigenvalues, the shorter spectrum filled up with zeros."""
    size = max(ours.dim, theirs.dim)
    a, b = (np.sort(np.pad(spectrum.eigenvalues, (size - spectrum.dim, 0)))[::-1] for spectrum in (ours, theirs))
    return float(np.abs(a - b).max() / max(b[0], np.finfo(float).tiny))


def equality_table(document: Row) -> Table:
    """Spectra at the canonical gauge against those of the standard chart.

    Parameters
    ----------
    document
        The summary of a run.

    Returns
    -------
    Table
        One row per matrix.
    """
    rows = [
        (f"{matrix_name(row['matrix'])}, {row['chart']}", row["spectra"], float(f"{row['largest_difference']:.1e}"))
        for row in document["equality"]
    ]
    return Table(
        "Spectra at the canonical gauge (||v|| = |g|) against those of the standard chart",
        ("matrix", "pairs of spectra", "largest difference"),
        tuple(rows),
        ("Difference of two eigenvalues, over the largest eigenvalue; in theory 0.",),
    )


# --- log-ratios


def ratio_rows(selection: Selection) -> list[dict[str, Any]]:
    """Log-ratios of condition numbers to the standard chart, seed by seed: at the same weights, and between arms.

    Parameters
    ----------
    selection
        What was measured.

    Returns
    -------
    list of dict
        One per pair of charts and quantity: median, range and what was left out.
    """
    places = {
        place: {m.seed: m for m in members}
        for place, members in grouped(
            selection.numbers,
            lambda m: tuple(getattr(m if name in ("arm", "checkpoint") else m.record, name) for name in _PLACE),
        ).items()
    }
    rows = []
    for place, seeds in places.items():
        header = dict(zip(_PLACE, place, strict=True))
        header["form"] = form_of(next(iter(seeds.values())).record)
        matrix, block, arm, checkpoint, chart, gauge, _ = place
        same = places.get((matrix, block, arm, checkpoint, "standard", "-", False))
        if chart != "standard" and same:
            rows += _compared("same weights", header, seeds, same)
        base = places.get((matrix, block, "standard", checkpoint, "standard", "-", False))
        # The chart that the arm was trained in, at the gauge that its training has reached.
        own = gauge == "checkpoint" or (chart == arm and gauge == "-")
        if arm != "standard" and base and own:
            rows += _compared("own training", header, seeds, base)
    return rows


def _compared(
    design: str, header: Row, seeds: Mapping[int, Measured], base: Mapping[int, Measured]
) -> list[dict[str, Any]]:
    rows = []
    shared = sorted(seeds.keys() & base.keys())
    for name in HEADLINE:
        pairs = [(seeds[seed].record, base[seed].record) for seed in shared]
        pairs = [(ours, theirs) for ours, theirs in pairs if name in ours.values and name in theirs.values]
        if pairs and any(record.values[name].has_value for pair in pairs for record in pair):
            rows.append({**header, "design": design, "quantity": name} | _log_ratios(pairs, name))
    return rows


def _log_ratios(pairs: Sequence[tuple[ConditionNumbers, ConditionNumbers]], name: str) -> dict[str, Any]:
    results = [log_ratio(ours, theirs, name) for ours, theirs in pairs]
    logs = [value for value, reason in results if not reason]
    excluded = sorted({reason for _, reason in results if reason})
    row: dict[str, Any] = {"pairs": len(pairs), "compared": len(logs)}
    row |= {"excluded": ", ".join(excluded), "reading": _reading(logs)}
    if logs:
        median = float(np.median(logs))
        row |= {"median": median, "low": min(logs), "high": max(logs), "factor": math.exp(median)}
    return row


def _reading(logs: Sequence[float]) -> str:
    if not logs:
        return "not comparable"
    if max(map(abs, logs)) <= EQUAL:
        return "equal"
    every = "" if len(logs) == 1 else " in every seed"
    if min(logs) > 0:
        return "larger" + every
    return "smaller" + every if max(logs) < 0 else "differs between seeds"


def ratio_tables(
    document: Row, show: Callable[[Row], bool] = lambda row: not row["gauge"].startswith("stretch=")
) -> list[Table]:
    """Ratios by checkpoint; the notes name what is equal or not comparable.

    Parameters
    ----------
    document
        The summary of a run.
    show
        Whether a row of it is shown.

    Returns
    -------
    list of Table
        The last checkpoint first; the others are folded.
    """
    last = document["checkpoints"][-1] if document["checkpoints"] else ""
    groups = grouped(filter(show, document["ratios"]), lambda row: row["checkpoint"])
    tables = [_ratio_table(rows, checkpoint, checkpoint != last) for checkpoint, rows in groups.items()]
    return sorted(tables, key=lambda table: table.folded)


def _ratio_table(rows: Sequence[Row], checkpoint: str, folded: bool) -> Table:
    names = [name for name in HEADLINE[:4] if any(row["quantity"].removeprefix("abs_") == name for row in rows)]
    by_design: dict[str, list[tuple[Entry, ...]]] = {}
    left_out: dict[str, list[str]] = {}
    key = ("design", "arm", "matrix", "block", "chart", "gauge", "form")
    for (design, arm, matrix, block, chart, gauge, form), members in grouped(
        rows, lambda row: tuple(row[name] for name in key)
    ).items():
        name = ", ".join(filter(None, (matrix_name(matrix), block_words(block), form)))
        if all(row["reading"] in ("equal", "not comparable") for row in members):
            first = members[0]
            reason = "equal to rounding" if first["compared"] else f"not comparable ({first['excluded']})"
            left_out.setdefault(reason, []).append(f"{name} in {chart_label(chart, gauge)}")
            continue
        cells = {row["quantity"].removeprefix("abs_"): row for row in members}
        name += " (absolute values)" if any(row["quantity"].startswith("abs_") for row in members) else ""
        entries = (_ratio_cell(cells.get(quantity)) for quantity in names)
        by_design.setdefault(_design_words(design, arm), []).append((name, chart_label(chart, gauge), *entries))
    paired = any(row["pairs"] > 1 for row in rows)
    reading = () if folded else (_READING.format(seeds=_SEEDS if paired else ""),)
    notes = [f"{capital(reason)}: {'; '.join(dict.fromkeys(places))}." for reason, places in left_out.items()]
    lines = [line for heading, members in by_design.items() for line in ((heading,), *members)]
    return Table(
        "Condition numbers over those of the standard chart" + (f", {checkpoint}" * (checkpoint != "given")),
        ("matrix", "chart (gauge)", *names),
        tuple(lines) or (("equal or not comparable throughout",),),
        (*reading, *notes),
        folded,
    )


def _ratio_cell(row: Row | None) -> Cell:
    if row is None:
        return Cell(None)
    if not row["compared"]:
        return Cell(None, status="not comparable", details=(row["excluded"],))
    if row["reading"] == "equal":
        return Cell("1", details=("equal to rounding",))
    low, high = (math.exp(row["low"]), math.exp(row["high"])) if row["compared"] > 1 else (None, None)
    missing = row["compared"] < row["pairs"]
    share = f"{row['compared']} of {row['pairs']}" if missing else ""
    reading = row["reading"] + (f" ({share} pairs)" if missing else "")
    return Cell(row["factor"], low, high, share=share, details=(reading,), factor=True)


def _design_words(design: str, arm: str) -> str:
    if design == "own training":
        return f"{capital(arm)} arm in its own chart, against the standard arm in the standard chart"
    weights = "Given weights" if arm == "given" else f"Weights of the {arm} arm"
    return f"{weights}: other charts against the standard chart"
