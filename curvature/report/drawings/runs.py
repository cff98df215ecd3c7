"""The picture of several runs side by side: condition numbers of each over those of the first, and its answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib import rc_context

from curvature.report.drawings.forest import draw_forest
from curvature.report.drawings.layout import Drawing
from curvature.report.effects import Effect
from curvature.report.table import Cell, Table
from curvature.report.words import quantity_name, quantity_symbol

__all__ = ["draw_runs", "runs_answer"]

_MOST = 12  # rows; every ratio is in the table
_QUANTITIES = ("kappa_80", "abs_kappa_80")  # the first that has a ratio somewhere
_COUNTS = 1.1  # a smaller factor does not


def draw_runs(ratios: Table, first: str) -> Drawing | None:
    """Draw a condition number of each run over that of the first.

    Parameters
    ----------
    ratios
        One row for each place and run.
    first
        Name of the run in the denominator.

    Returns
    -------
    Drawing or None
        None without a ratio.
    """
    quantity, effects = _effects(ratios)
    if not effects:
        return None
    shown = effects[:_MOST]
    left_out = f" {len(effects) - len(shown)} more are in the table." if len(shown) < len(effects) else ""
    caption = (
        f"{quantity_symbol(quantity)} of each run over that of {first}, paired by seed: geometric mean, and its 95 % "
        "interval for three pairs or more. Left of the shaded band a run is better conditioned by more than 10 %, "
        f"right of it worse by more than 10 %.{left_out}"
    )
    title = f"The {quantity_name(quantity)} over that of {first}"
    with rc_context({"font.size": 9}):
        return draw_forest(shown, title, caption, name="runs", favours=("the run", first), within=_COUNTS)


def runs_answer(ratios: Table, names: Sequence[str]) -> str:
    """How the runs differ, in a sentence.

    Parameters
    ----------
    ratios
        One row for each place and run.
    names
        Of the runs, the first in the denominator.

    Returns
    -------
    str
        Counts of ratios on either side of the band.
    """
    quantity, effects = _effects(ratios)
    if not effects:
        return f"No condition number of these runs can be compared with that of {names[0]}; the table says why."
    if len(effects) == 1:
        return f"{effects[0].label}: the {quantity_name(quantity)} is {effects[0].words} times that of {names[0]}."
    lower = sum(e.factor < 1 / _COUNTS for e in effects)
    higher = sum(e.factor > _COUNTS for e in effects)
    lowest, highest = (end(effects, key=lambda e: e.factor) for end in (min, max))
    return (
        f"Of {len(effects)} {quantity_name(quantity)} ratios to {names[0]}, {lower} are smaller by more than 10 %, "
        f"{higher} are larger by more than 10 %, and {len(effects) - lower - higher} lie between. The smallest is "
        f"{lowest.words} ({lowest.label}), the largest {highest.words} ({highest.label})."
    )


def _effects(ratios: Table) -> tuple[str, list[Effect]]:
    """The ratios of one quantity as effects."""
    for quantity in _QUANTITIES:
        column = ratios.header.index(quantity) if quantity in ratios.header else None
        cells = [] if column is None else [(row, row[column]) for row in ratios.rows if len(row) > 1]
        effects = [
            Effect(f"{row[1]}: {row[0]}", cell.value, _end(cell.low), _end(cell.high))
            for row, cell in cells
            if isinstance(cell, Cell) and isinstance(cell.value, float)
        ]
        if effects:
            return quantity, effects
    return _QUANTITIES[0], []


def _end(value: float | None) -> float:
    return math.nan if value is None else value
