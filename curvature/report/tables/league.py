"""The whitening league: how close the step of every method comes to the natural gradient, from the same weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from curvature.natural_gradient import METHODS
from curvature.records import LeagueEntry
from curvature.report.selection import FIRST, LAST, Selection
from curvature.report.spread import Mean, efficiency_mean, grouped, mean_with_interval
from curvature.report.table import Cell, Entry, Row, Table
from curvature.report.words import capital, factor_words, listed

__all__ = ["league_answer", "league_rows", "league_tables", "point_of_training"]

_NUMBERS = {"efficiency": True, "ratio": True, "index": False, "kappa": True}  # whether its mean is geometric
_POINTS = {FIRST: "at the start of training", LAST: "at the end of training", "given": "at these weights"}
_SUBJECTS = {  # of the answer, the first one that was measured, in words
    "weight norm, gauge reached": "weight norm, at the gauge that training has reached,",
    "weight norm, canonical": "weight norm at the canonical gauge",
}
_COMPARED = {
    "weight norm, best gauge": "weight norm at its best gauge",
    "Adam": "Adam",
    "K-FAC": "K-FAC",
    "neuron-block natural gradient": "the neuron-block natural gradient",
    "natural gradient": "the natural gradient",
}
_READING = (
    "Every method from the same weights, with one damping on the weights, {damping:g} times the mean eigenvalue of the "
    "Fisher: geometric mean over seeds with its 95 % interval (Student t), arithmetic for R. E: progress of one step "
    "over that of the damped natural gradient, the best length for both; at most 1, where its interval is cut. Gain: E "
    "over that of gradient descent. R: 0 is gradient descent, 1 the neuron-block natural gradient. κ: condition number "
    "of the damped Fisher in the metric of the method, 1 for a multiple of its inverse; no number where the metric is "
    "singular, or its condition number above 1e14 (in double precision), at any seed, and for Muon, whose step has no "
    "metric."
)
_MARKED = (
    "Adam, Shampoo and SOAP have the expectation of their moments at these weights. * Weight standardization cannot "
    "represent these weights: it is measured at the nearest ones, and compared with gradient descent there."
)


def league_rows(selection: Selection) -> list[dict[str, Any]]:
    """Aggregate the league over seeds.

    Parameters
    ----------
    selection
        What was measured.

    Returns
    -------
    list of dict
        One per arm, checkpoint and method, with mean and interval of each number; the most efficient method first.
    """
    rows = []
    groups = grouped(selection.study.of(LeagueEntry), lambda m: (m.arm, m.checkpoint, m.record.method))
    for (arm, checkpoint, method), members in groups.items():
        records = [m.record for m in members]
        means = {name: asdict(_mean(records, name)) for name in _NUMBERS}
        notes = dict.fromkeys(record.note for record in records if record.note)
        rows.append(
            {
                "arm": arm,
                "checkpoint": checkpoint,
                "method": method,
                "family": METHODS.get(method, ""),
                "relative_damping": records[0].relative_damping,
                **means,
                "note": " ".join(notes),
            }
        )
    points = grouped(rows, lambda row: (row["arm"], row["checkpoint"])).values()
    return [row for members in points for row in sorted(members, key=_place)]


def _mean(records: Sequence[LeagueEntry], name: str) -> Mean:
    values = [getattr(record, name) for record in records]
    if name == "efficiency":
        return efficiency_mean(values)
    mean = mean_with_interval(values, geometric=_NUMBERS[name])
    if name == "kappa" and mean.count < sum(math.isfinite(record.efficiency) for record in records):
        return replace(mean, mean=math.nan, low=math.nan, high=math.nan)  # the seeds without a number have the largest
    return mean


def _place(row: Row) -> tuple[bool, float]:
    return not row["efficiency"]["count"], -row["efficiency"]["mean"]


def league_tables(document: Row) -> list[Table]:
    """The league at every checkpoint at which it was measured.

    Parameters
    ----------
    document
        The summary of a run; one of an older version has no league.

    Returns
    -------
    list of Table
        The last checkpoint first; the others are folded.
    """
    points = grouped(document.get("league", ()), lambda row: (row["arm"], row["checkpoint"]))
    last = _last(document)
    tables = [_table(rows, checkpoint, checkpoint != last) for (_, checkpoint), rows in points.items()]
    return sorted(tables, key=lambda table: table.folded)


def _table(rows: list[Row], checkpoint: str, folded: bool) -> Table:
    damping = rows[0]["relative_damping"]
    title = f"The whitening league {point_of_training(checkpoint)} (relative damping {damping:g})"
    lines = [(_name(row), *(_cell(row, name) for name in _NUMBERS)) for row in rows]
    header = ("method", "efficiency E", "gain", "index R", "κ")
    return Table(title, header, tuple(lines), () if folded else (_READING.format(damping=damping), _MARKED), folded)


def _name(row: Row) -> Entry:
    return Cell(row["method"], details=(row["note"],)) if row["note"] else row["method"]


def _cell(row: Row, name: str) -> Cell:
    mean = row[name]
    if mean["mean"] is None:
        return Cell(f"{mean['count']} of {row['efficiency']['count']} seeds" if mean["count"] else None)
    return Cell(mean["mean"], mean["low"], mean["high"], factor=name == "ratio", signed=name == "index")


def league_answer(document: Row) -> str:
    """Say how much progress one step of weight norm makes, next to others, at the last checkpoint.

    Parameters
    ----------
    document
        The summary of a run.

    Returns
    -------
    str
        One sentence; empty without a league.
    """
    last = _last(document)
    rows = {row["method"]: row for row in document.get("league", ()) if row["checkpoint"] == last}
    rows = {method: row for method, row in rows.items() if row["ratio"]["count"]}
    method = next((method for method in _SUBJECTS if method in rows), None)
    if method is None:
        return ""
    others = [f"{words} {_factor(rows[name])}" for name, words in _COMPARED.items() if name in rows]
    end = f"; {listed(others)}" if others else ""
    return (
        f"{capital(point_of_training(last))} one step of {_SUBJECTS[method]} makes {_factor(rows[method])} times the "
        f"progress of gradient descent{end}."
    )


def point_of_training(checkpoint: str) -> str:
    """Where in training a checkpoint is.

    Parameters
    ----------
    checkpoint
        Its name.

    Returns
    -------
    str
        For instance ``"at the end of training"``.
    """
    return _POINTS.get(checkpoint, f"at the checkpoint {checkpoint}")


def _factor(row: Row) -> str:
    low, high = (float("nan") if row["ratio"][name] is None else row["ratio"][name] for name in ("low", "high"))
    return factor_words(row["ratio"]["mean"], low, high)


def _last(document: Mapping[str, Any]) -> str:
    """The last checkpoint of the league in the order of training."""
    measured = {row["checkpoint"] for row in document.get("league", ())}
    return next((name for name in reversed(document["checkpoints"]) if name in measured), "")
