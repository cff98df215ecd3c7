"""Forest plots of a grid: a row for each cell, and a diamond for the effect pooled over them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from curvature.records import PooledEffect, PooledVerdict
from curvature.report.claims import factor_of, factors_of, label_of
from curvature.report.drawings.forest import Effect, draw_forest
from curvature.report.drawings.layout import Drawing
from curvature.text import count

__all__ = ["draw_arms", "draw_claim", "draw_groups", "draw_sources", "is_ratio", "pooled_row"]

_BETWEEN_ARMS = ("C1", "C4", "C8")  # claims whose factor is that of one arm over the other


def is_ratio(effect: PooledEffect) -> bool:
    """Whether an effect is a factor, which an axis of factors can show.

    Parameters
    ----------
    effect
        With its unit.

    Returns
    -------
    bool
        False for cosines and indices.
    """
    return not math.isnan(factor_of(effect.unit, 0.0))


def draw_claim(verdict: PooledVerdict, *, within: float, name: str) -> Drawing:
    """Draw one claim over all cells.

    Parameters
    ----------
    verdict
        With its pooled effect.
    within
        Factor up to which a difference does not count.
    name
        Of the file.

    Returns
    -------
    Drawing
        With the number of each cell.
    """
    effect = verdict.effect
    rows = [
        *_cells(effect, verdict.outcomes),
        *(Effect(cell, number=f"left out: {reason}") for cell, reason in effect.missing.items()),
        pooled_row(effect, f"All {count(len(effect.cells), 'cell')}", verdict.outcome),
    ]
    caption = (
        f"{verdict.sentence}. Each dot is the mean over the seeds of one cell, with its 95 % interval; the diamond is "
        "the mean over cells by a random-effects model, with its 95 % interval, and dotted the interval in which "
        "another cell would lie. Below 1: in favour of the claim."
    )
    sides = ("weight norm", "standard") if verdict.claim in _BETWEEN_ARMS else ("the claim", "its reverse")
    return draw_forest(rows, label_of(verdict), caption, name=name, favours=sides, within=within)


def draw_groups(title: str, groups: Sequence[PooledEffect], *, within: float, name: str) -> Drawing:
    """Draw the effects of one claim pooled within each optimizer, architecture and data set.

    Parameters
    ----------
    title
        The claim.
    groups
        Pooled effects.
    within, name
        As in :func:`draw_claim`.

    Returns
    -------
    Drawing
        A diamond for each group.
    """
    caption = (
        "The same claim pooled over the cells that share an optimizer, an architecture or a data set. Groups of few "
        "cells have wide intervals; whether groups differ is not tested."
    )
    return draw_forest(_counted(groups), title, caption, name=name, within=within)


def draw_arms(arms: Sequence[PooledEffect], *, within: float, name: str = "arms") -> Drawing:
    """Draw every arm against the standard method, pooled over the cells.

    Parameters
    ----------
    arms
        Pooled effects.
    within, name
        As in :func:`draw_claim`.

    Returns
    -------
    Drawing
        A diamond for each arm.
    """
    caption = (
        "Condition number of the GGN after the arm's own training, in its own chart, over that of the standard method "
        "from the same start, pooled over the cells. The placebo is weight norm about random directions."
    )
    return draw_forest(
        _counted(arms),
        "Every arm against the standard method",
        caption,
        name=name,
        favours=("the arm", "standard"),
        within=within,
    )


def draw_sources(sources: Sequence[PooledEffect], *, within: float, name: str = "sources") -> Drawing:
    """Draw where the difference between the arms comes from, pooled over the cells.

    Parameters
    ----------
    sources
        The whole, and its parts.
    within, name
        As in :func:`draw_claim`.

    Returns
    -------
    Drawing
        For each source the cells and their pooled effect.
    """
    rows = []
    for source in sources:
        rows += [Effect(f"{source.name}: {row.label}", row.factor, row.low, row.high) for row in _cells(source, {})]
        rows.append(pooled_row(source, f"{source.name}, all {count(len(source.cells), 'cell')}"))
    caption = (
        "The factor between the condition numbers of the weight-normalized and the standard arm, split into the parts "
        "of the initialization, the trajectory, the gauge and minibatch noise. Within a cell the parts multiply to the "
        "whole; pooled they need not, since cells weigh differently in each."
    )
    return draw_forest(rows, "Where the difference comes from", caption, name=name, within=within)


def _cells(effect: PooledEffect, outcomes: Mapping[str, str]) -> list[Effect]:
    return [
        Effect(cell, *factors_of(effect.unit, mean, low, high), outcomes.get(cell, ""))
        for cell, mean, low, high in zip(effect.cells, effect.effects, effect.lows, effect.highs, strict=True)
    ]


def _counted(effects: Sequence[PooledEffect]) -> list[Effect]:
    """A diamond for each effect that has cells, labelled with their number."""
    counts = [(effect, count(len(effect.cells), "cell")) for effect in effects if effect.cells]
    return [pooled_row(effect, f"{effect.name} ({cells})") for effect, cells in counts]


def pooled_row(effect: PooledEffect, label: str, outcome: str = "") -> Effect:
    """Make the row of an effect that is pooled over cells.

    Parameters
    ----------
    effect
        Of a ratio, positive in favour of the claim.
    label
        Of the row.
    outcome
        Verdict in a word.

    Returns
    -------
    Effect
        A diamond with its interval and that of another cell.
    """
    factor, low, high = factors_of(effect.unit, effect.estimate, effect.low, effect.high)
    _, *another = factors_of(effect.unit, effect.estimate, effect.prediction_low, effect.prediction_high)
    prediction = (another[0], another[1]) if math.isfinite(effect.prediction_low) else None
    return Effect(label, factor, low, high, outcome, prediction=prediction, pooled=True)
