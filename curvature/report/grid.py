"""The report of a grid: verdicts over all cells, forest plots, tables, and every number as JSON and CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from curvature._version import __version__
from curvature.records import PooledEffect, PooledVerdict
from curvature.records.sealed import sealed_text
from curvature.records.verdict import OUTCOMES
from curvature.report.claims import factors_of, label_of
from curvature.report.drawings.forest import draw_forest
from curvature.report.drawings.grid import draw_arms, draw_claim, draw_groups, draw_sources, is_ratio, pooled_row
from curvature.report.drawings.layout import Drawing, svg_files, svgs_of
from curvature.report.effects import Effect
from curvature.report.grid_record import GRID_SCHEMA, WORDS, GridRecord, grid_record, read_grid_summary
from curvature.report.page import grid_page
from curvature.report.plain import json_text, plain_values, toml_text
from curvature.report.render import table_csv
from curvature.report.table import Cell, Entry, Table
from curvature.report.words import capital, factor_words, short_number
from curvature.studies.grid import GridStudy
from curvature.text import count

__all__ = ["grid_document", "grid_files", "grid_tables", "load_grid"]

_OUTCOMES = ("supported", "too small", "opposite", "undecided")
_OF_GGN = "Factor between the condition numbers of the weight-normalized and the standard arm, pooled over cells."
_OF_HESSIAN = (
    "Factor between the stable ranks (sum of squared eigenvalues over the largest square) of the Hessians of the "
    "weight-normalized and the standard arm, pooled over cells. The second-order term of weight norm changes the rank "
    "of a Hessian, so ratios of eigenvalues on the rank are not compared. No claim is tested."
)
_GROUPED = "C1, own training"  # the claim whose effect is shown by optimizer, architecture and data


def grid_document(grid: GridStudy, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the report says, as plain values: what ``summary.json`` holds and ``--json`` prints.

    Parameters
    ----------
    grid
        What was measured and decided.
    config, provenance
        For the record.

    Returns
    -------
    dict
        NaN and infinity are None, with a reason.
    """
    numbers = plain_values(
        {
            "schema": GRID_SCHEMA,
            "version": __version__,
            "command": "compare --grid",
            "question": "",
            "answer": {},
            "verdicts": [asdict(verdict) for verdict in grid.verdicts],
            "sources": [asdict(effect) for effect in grid.sources],
            "hessian_sources": [asdict(effect) for effect in grid.hessian_sources],
            "arms": [asdict(effect) for effect in grid.arms],
            "groups": {name: [asdict(effect) for effect in effects] for name, effects in grid.groups.items()},
            "cells": [_cell_row(grid, cell) for cell in grid.settings.cells],
            "warnings": list(dict.fromkeys(w for study in grid.cells.values() for w in study.warnings)),
            "config": dict(config),
            "provenance": dict(provenance),
        }
    )
    return _with_words(numbers)


def load_grid(directory: str | Path) -> dict[str, Any]:
    """Read the summary of a grid back, to make its report again; nothing is trained.

    Parameters
    ----------
    directory
        The run directory. ``summary.json`` suffices: it has every number, and its own hash.

    Returns
    -------
    dict
        What :func:`grid_document` returned, with the sentences of this version.

    Raises
    ------
    ConfigurationError
        If the summary is missing, damaged, or not that of a grid.
    """
    return _with_words(read_grid_summary(Path(directory)))


def _with_words(document: Mapping[str, Any]) -> dict[str, Any]:
    """Add the sentences, which follow from the numbers."""
    grid = grid_record(document)
    pairs = zip(document["verdicts"], grid.verdicts, strict=True)
    verdicts = [_words(verdict) | {name: x for name, x in row.items() if name not in WORDS} for row, verdict in pairs]
    question = f"Does weight norm improve the conditioning of {count(len(grid.cells), 'network')}?"
    return {**document, "question": question, "answer": _answer(grid), "verdicts": verdicts}


def _words(verdict: PooledVerdict) -> dict[str, str]:
    """What a report says about a verdict, by the names in ``WORDS``."""
    texts = (verdict.name, label_of(verdict), OUTCOMES[verdict.outcome], _found(verdict))
    return dict(zip(WORDS, texts, strict=True))


def _cell_row(grid: GridStudy, cell: Any) -> dict[str, Any]:
    study = grid.cells[cell.name]
    checks = study.checks
    return {
        "name": cell.name,
        **asdict(cell),
        "num_weights": study.num_weights,
        "num_examples": study.num_examples,
        "num_seeds": len(grid.settings.seeds),
        "num_checks": len(checks),
        "failed_checks": [asdict(check) for check in checks if not check.passed],
        "learning_rates": _chosen(study),
        "verdicts": [{"name": verdict.name} | asdict(verdict) for verdict in study.verdicts],
    }


def _chosen(study: Any) -> dict[str, dict[str, Any]]:
    """Learning rates that the sweeps chose, by arm, and how many of them are at an end of their grid."""
    rows: dict[str, dict[str, Any]] = {}
    for sweep in study.sweeps:
        row = rows.setdefault(sweep.arm, {"chosen": [], "at_edge": 0})
        row["chosen"].append(sweep.chosen)
        row["at_edge"] += bool(sweep.at_edge)
    return rows


def grid_tables(document: Mapping[str, Any]) -> list[Table]:
    """Verdicts over all cells, the sources of the difference, and the cells.

    Parameters
    ----------
    document
        As :func:`grid_document` returns it.

    Returns
    -------
    list of Table
        For the terminal and the page.
    """
    return _tables(grid_record(document))


def _tables(grid: GridRecord) -> list[Table]:
    tables = [
        _verdict_table(grid),
        _source_table("Where the difference comes from", grid.sources, _OF_GGN),
        _source_table("Where the difference of the Hessian comes from", grid.hessian_sources, _OF_HESSIAN),
        _arm_table(grid),
        _cell_table(grid),
    ]
    return [table for table in tables if table.rows]


def _verdict_table(grid: GridRecord) -> Table:
    rows: list[tuple[Entry, ...]] = []
    for verdict in grid.verdicts:
        counts = [sum(word == outcome for word in verdict.outcomes.values()) for outcome in _OUTCOMES]
        share = f"{100 * verdict.effect.i2:.0f} %" if math.isfinite(verdict.effect.i2) else "-"
        rows.append((verdict.name, verdict.outcome, _effect_words(verdict.effect), share, *counts))
    header = ("claim", "over all cells", "effect [95 % interval]", "I²", *(f"cells {word}" for word in _OUTCOMES))
    notes = (
        "A factor is that of a condition number, a distance or a number of steps, weight norm over standard: below 1 "
        "favours weight norm; that of a range of learning rates is standard over weight norm. Cosines and indices are "
        "positive where the claim holds; summary.json has their units. I² is the share of the spread between cells "
        "that seeds alone do not explain.",
    )
    return Table("Claims over all cells", header, tuple(rows), notes)


def _source_table(title: str, sources: Sequence[PooledEffect], note: str) -> Table:
    rows = tuple(
        (effect.name, _effect_words(effect), _prediction_words(effect), len(effect.cells)) for effect in sources
    )
    return Table(title, ("source", "factor [95 % interval]", "another cell would lie in", "cells"), rows, (note,))


def _arm_table(grid: GridRecord) -> Table:
    rows = tuple(
        (effect.name, _effect_words(effect), _prediction_words(effect), len(effect.cells)) for effect in grid.arms
    )
    header = ("arm", "factor [95 % interval]", "another cell would lie in", "cells")
    notes = (
        "Condition number kappa_80 of the GGN after each arm's own training, in its own chart, over that of the "
        "standard method from the same start: below 1 is better conditioned. Controls and descendants; no claim is "
        "tested.",
    )
    return Table("Arms", header, rows, notes)


def _cell_table(grid: GridRecord) -> Table:
    rows = []
    for cell in grid.cells:
        failed, total = len(cell.failed_checks), cell.num_checks
        result = Cell(f"{failed} of {total} failed", status="failed") if failed else f"{total} passed"
        rows.append((cell.name, cell.num_weights, cell.num_examples, cell.num_seeds, result))
    return Table("Cells", ("cell", "weights", "examples", "seeds", "checks"), tuple(rows))


def _answer(grid: GridRecord) -> dict[str, str]:
    """The answer in one sentence: the main claim over all cells, and how much the cells differ; empty without it."""
    main = next((verdict for verdict in grid.verdicts if verdict.name == _GROUPED), None)
    if main is None or not main.effect.cells:
        return {}
    outcomes = [
        f"{list(main.outcomes.values()).count(word)} {word}" for word in _OUTCOMES if word in main.outcomes.values()
    ]
    text = (
        f"after its own training, weight norm multiplies the condition number κ₈₀ of the GGN by "
        f"{_effect_words(main.effect)} in the mean over {count(len(main.effect.cells), 'network')}, where below 1 is "
        f"better; network by network: {', '.join(outcomes)}."
    )
    return {"outcome": main.outcome, "icon": OUTCOMES[main.outcome], "text": capital(text)}


def _overview(grid: GridRecord) -> Drawing:
    """Every claim, pooled over the cells, on one axis."""
    rows = []
    for verdict in sorted(grid.verdicts, key=lambda verdict: verdict.outcome == "not tested"):
        effect, label = verdict.effect, label_of(verdict)
        if verdict.outcome == "not tested":
            rows.append(Effect(label, outcome=verdict.outcome, number="no measurement in this run"))
        elif effect.cells and is_ratio(effect):
            rows.append(replace(pooled_row(effect, label, verdict.outcome), pooled=False))  # no row sums up the others
        elif effect.cells:
            number = f"{_effect_words(effect)}; needed: above {short_number(verdict.threshold, 2)}"
            rows.append(Effect(label, outcome=verdict.outcome, number=number))
        else:
            short = verdict.outcome == "undecided"
            number = "too few networks have a number" if short else _identity_words(verdict)
            rows.append(Effect(label, outcome=verdict.outcome, number=number))
    caption = (
        "One row for each claim: the mean over the networks as a factor, with its 95 % interval, and dotted the "
        "interval in which another network would lie. Left of the shaded band weight norm is better by more than the "
        "smallest effect that counts, right of it worse; claims that are not ratios have their number in words. As "
        "all claims are decided together (Holm), a verdict can ask for more than the interval shown."
    )
    return draw_forest(rows, "Every claim over all networks", caption, name="claims", within=math.exp(grid.threshold))


def _identity_words(verdict: PooledVerdict) -> str:
    """In how many networks an identity holds."""
    held = sum(word == "supported" for word in verdict.outcomes.values())
    total = count(len(verdict.outcomes), "network")
    share = f"every one of {total}" if held == len(verdict.outcomes) else f"{held} of {total}"
    return f"in {share}, to its tolerance"


def _found(verdict: PooledVerdict) -> str:
    """The result in words: the effect, what to expect of another cell, and how much the cells differ."""
    effect = verdict.effect
    if not effect.cells and verdict.outcome in ("supported", "opposite"):
        return _identity_words(verdict)
    if not effect.cells:
        return verdict.rule or next(iter(effect.missing.values()), "")
    words = f"{_effect_words(effect)} over {count(len(effect.cells), 'cell')}"
    if not is_ratio(effect):
        words += f" ({effect.unit}; threshold {short_number(verdict.threshold)})"
    if math.isfinite(effect.prediction_low):
        words += f"; another cell would lie in {_prediction_words(effect)}"
    if math.isfinite(effect.i2):
        alike = "the cells differ" if effect.heterogeneity_p < 0.05 else "no difference between the cells is seen"
        words += f"; {alike} (I² {100 * effect.i2:.0f} %, p = {short_number(effect.heterogeneity_p, 2)})"
    return words


def _effect_words(effect: PooledEffect) -> str:
    return _interval_words(effect, effect.estimate, effect.low, effect.high)


def _prediction_words(effect: PooledEffect) -> str:
    words = _interval_words(effect, effect.estimate, effect.prediction_low, effect.prediction_high)
    return words[words.index("[") :] if math.isfinite(effect.prediction_low) else "-"


def _interval_words(effect: PooledEffect, estimate: float, low: float, high: float) -> str:
    if math.isnan(estimate):
        return "-"
    if not is_ratio(effect):
        mean, *ends = (f"{number:.3f}".replace("-", "−") for number in (estimate, low, high))
        return f"{mean} [{', '.join(ends)}]"
    return factor_words(*factors_of(effect.unit, estimate, low, high))


def grid_files(document: Mapping[str, Any]) -> dict[str, str]:
    """Everything that the run directory of a grid holds, by relative path.

    Parameters
    ----------
    document
        As :func:`grid_document` or :func:`load_grid` returns it.

    Returns
    -------
    dict
        ``summary.json``, ``summary.csv`` (a line for each claim in each cell), ``effects.csv`` (the number of each
        seed), ``report.html``, a forest plot for each claim, configuration and provenance.
    """
    grid = grid_record(document)
    drawings = _drawings(grid)
    svgs = svgs_of(drawings)
    return {
        "config.toml": toml_text(document["config"]),
        "provenance.json": json_text(document["provenance"]),
        "summary.json": sealed_text(json_text(document)),
        "summary.csv": table_csv(_summary(grid)),
        "effects.csv": table_csv(_effects(grid)),
        "report.html": grid_page(document, _tables(grid), drawings, svgs),
        **svg_files(svgs),
    }


def _drawings(grid: GridRecord) -> list[Drawing]:
    within = math.exp(grid.threshold)
    shown = [verdict for verdict in grid.verdicts if verdict.effect.cells and is_ratio(verdict.effect)]
    drawings = [_overview(grid)]
    drawings += [draw_claim(verdict, within=within, name=_file_name(verdict.name)) for verdict in shown]
    if _GROUPED in grid.groups:
        label = next(label_of(verdict) for verdict in grid.verdicts if verdict.name == _GROUPED)
        title = f"{label}, by optimizer, architecture and data"
        drawings.append(draw_groups(title, grid.groups[_GROUPED], within=within, name="groups"))
    if grid.sources:
        drawings.append(draw_sources(grid.sources, within=within))
    if any(effect.cells for effect in grid.arms):
        drawings.append(draw_arms(grid.arms, within=within))
    return drawings


def _file_name(claim: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", claim).strip("-.")


def _summary(grid: GridRecord) -> Table:
    """One line for each claim in each cell, and one for each claim over all cells."""
    header = ("claim", "case", "cell", "data", "architecture", "optimizer", "batch_size", "outcome", "effect",
              "standard_error", "low", "high", "weight", "threshold", "num_seeds", "unit", "left_out", "tau", "i2",
              "prediction_low", "prediction_high", "adjusted_p_value")  # fmt: skip
    rows: list[tuple[Entry, ...]] = []
    for verdict in grid.verdicts:
        effect = verdict.effect
        numbers = zip(effect.effects, effect.standard_errors, effect.lows, effect.highs, effect.weights, strict=True)
        by_cell = dict(zip(effect.cells, numbers, strict=True))
        for cell in grid.cells:
            place = (cell.name, cell.data, cell.architecture, cell.optimizer, cell.batch_size)
            outcome = verdict.outcomes.get(cell.name, "not tested")
            found = map(_finite, by_cell.get(cell.name, (None,) * 5))
            more = (verdict.threshold, cell.num_seeds, effect.unit, effect.missing.get(cell.name, ""))
            rows.append((verdict.claim, verdict.case, *place, outcome, *found, *more, *[None] * 5))
        pooled = map(_finite, (effect.estimate, effect.standard_error, effect.low, effect.high))
        last = (effect.tau, effect.i2, effect.prediction_low, effect.prediction_high, verdict.adjusted_p_value)
        rows.append(
            (verdict.claim, verdict.case, "all", *[""] * 4, verdict.outcome, *pooled, None, _finite(verdict.threshold),
             grid.cells[0].num_seeds, effect.unit, "", *map(_finite, last))
        )  # fmt: skip
    return Table("", header, tuple(rows))


def _effects(grid: GridRecord) -> Table:
    """The number of every seed in every cell, for each claim; bounds where only bounds are known."""
    rows: list[tuple[Entry, ...]] = []
    for cell in grid.cells:
        for verdict in cell.verdicts:
            highs = verdict.ceilings or verdict.effects
            for number, (low, high) in enumerate(zip(verdict.effects, highs, strict=True)):
                rows.append((verdict.claim, verdict.case, cell.name, number, _finite(low), _finite(high)))
    return Table("", ("claim", "case", "cell", "pair", "low", "high"), tuple(rows))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
