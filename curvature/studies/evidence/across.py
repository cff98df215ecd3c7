"""The claims over all cells of a grid: the numbers of every cell pooled, and all claims decided as one family."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from curvature.records import Decomposition, PooledEffect, PooledVerdict, Verdict
from curvature.studies.evidence.inference import LEVEL, MIN_PAIRS, adjust, obstacle_of, scarcity_of, side_of
from curvature.studies.evidence.pooling import distance_p, pool, pooled_interval

__all__ = ["MIN_CELLS", "pooled_sources", "pooled_verdicts"]

MIN_CELLS = 3  # two cells leave one degree of freedom: the interval is 12.7 standard errors to each side
_IMPROVES = "log-ratio of the condition numbers, positive where weight norm improves them"


def pooled_verdicts(cells: Mapping[str, Sequence[Verdict]], *, level: float = LEVEL) -> tuple[PooledVerdict, ...]:
    """Pool the verdicts of every cell claim by claim, and decide all claims as one family (Holm).

    Parameters
    ----------
    cells
        From the name of a cell to its verdicts, as a study returns them.
    level
        1 minus the chance of one wrong decision in the family.

    Returns
    -------
    tuple
        One for each claim and case of any cell, in the order in which they first appear.

    Notes
    -----
    The words are those of :func:`decide`, for the interval of the pooled effect; fewer than three cells, or fewer than
    half of the cells, decide nothing. A cell has no effect where its own test decides nothing for a reason other than
    its interval: too few seeds, a control that failed, numbers that are only bounds. An identity is supported where it
    is in every cell, and *opposite* where it is in any.
    """
    named: dict[str, dict[str, Verdict]] = {}
    for cell, verdicts in cells.items():
        for verdict in verdicts:
            # Each data set has a loss of its own at which its arms are compared.
            general = replace(verdict, case=re.sub(r"(at the same loss) of \S+$", r"\1", verdict.case))
            named.setdefault(general.name, {})[cell] = general
    drafts = []
    for tested in named.values():
        absent = replace(next(iter(tested.values())), outcome="not tested", note="not measured in this cell")
        of_claim = {cell: tested.get(cell, absent) for cell in cells}
        is_identity = any(verdict.method == "identity" for verdict in of_claim.values())
        drafts.append(_identity(of_claim) if is_identity else _decided(_draft(of_claim)))
    return adjust(drafts, level, rule=_decided)


def pooled_sources(cells: Mapping[str, Decomposition | None], *, unit: str = _IMPROVES) -> tuple[PooledEffect, ...]:
    """Pool where the difference between two arms comes from, source by source.

    Parameters
    ----------
    cells
        From the name of a cell to its decomposition; None where it has too few numbers of it.
    unit
        Of minus the log-ratio that was decomposed.

    Returns
    -------
    tuple
        The whole and every source that at least one cell has varied on its own. The sign is that of the claim:
        positive where weight norm makes the number smaller, which improves a condition number.
    """
    sources = dict.fromkeys(source for item in cells.values() if item for source in item.sources)
    effects = [_pooled_source(source, cells, unit) for source in ("whole", *sources)]
    return tuple(effect for effect in effects if effect.cells)


def _pooled_source(source: str, cells: Mapping[str, Decomposition | None], unit: str) -> PooledEffect:
    numbers, missing = {}, {}
    for cell, item in cells.items():
        if item is None:
            missing[cell] = "too few seeds have a number in both arms"
            continue
        column = item.whole if source == "whole" else item.parts[:, item.sources.index(source)]
        if source in item.held:
            missing[cell] = item.held[source]
        elif scarcity := scarcity_of(len(column), item.num_missing):
            missing[cell] = scarcity
        else:
            numbers[cell] = -column
    return pool(numbers, name=source, unit=unit, missing=missing)


def _draft(verdicts: Mapping[str, Verdict]) -> PooledVerdict:
    """One claim pooled over the cells, before it is decided."""
    reasons = {cell: _without_effect(verdict) for cell, verdict in verdicts.items()}
    first = next(iter(verdicts.values()))
    effect = pool(
        {cell: verdict.effects for cell, verdict in verdicts.items() if not reasons[cell]},
        name=first.name,
        unit=first.unit,
        missing={cell: reason for cell, reason in reasons.items() if reason},
    )
    return PooledVerdict(
        first.claim,
        first.case,
        first.sentence,
        "not tested" if all(verdict.outcome == "not tested" for verdict in verdicts.values()) else "undecided",
        "",
        first.threshold,
        effect,
        {cell: verdict.outcome for cell, verdict in verdicts.items()},
    )


def _without_effect(verdict: Verdict) -> str:
    """Why a cell has no effect to pool; empty if it has one."""
    if verdict.outcome == "not tested":
        return verdict.note
    if verdict.ceilings:
        return "some of its numbers are only bounds"
    if not np.isfinite(verdict.effects).all():
        return "some of its numbers are infinite"
    return obstacle_of(replace(verdict, min_pairs=MIN_PAIRS))  # means are pooled: three seeds have a standard error


def _decided(
    draft: PooledVerdict,
    *,
    level: float = LEVEL,
    adjusted: float = math.nan,
    family: str = "",
    reverse_level: float | None = None,
) -> PooledVerdict:
    """Decide one claim from its pooled effect, at the level that Holm's procedure gives it."""
    if draft.outcome == "not tested":
        return draft
    num_cells = len(draft.effect.cells)
    num_all = num_cells + len(draft.effect.missing)
    low, high = pooled_interval(draft.effect, level)
    p_value = distance_p(draft.effect, draft.threshold)
    reverse_high = pooled_interval(draft.effect, reverse_level or level)[1]
    outcome, reason = side_of(low, high, draft.threshold, reverse_high)
    if num_cells < max(MIN_CELLS, num_all / 2):
        p_value, outcome = math.nan, "undecided"
        reason = f"only {num_cells} of {num_all} cells have an effect; {MIN_CELLS} and half of them are needed"
    return replace(
        draft,
        outcome=outcome,
        decided_low=low,
        decided_high=high,
        level=level,
        p_value=p_value,
        adjusted_p_value=p_value if math.isnan(adjusted) else adjusted,
        rule="; ".join(filter(None, (reason, "random-effects model, Hartung-Knapp interval", family))),
    )


def _identity(verdicts: Mapping[str, Verdict]) -> PooledVerdict:
    """An identity holds in every cell or it does not."""
    outcomes = {cell: verdict.outcome for cell, verdict in verdicts.items()}
    tested = [outcome for outcome in outcomes.values() if outcome != "not tested"]
    outcome = next((word for word in ("opposite", "undecided", "supported") if word in tested), "not tested")
    first = next(iter(verdicts.values()))
    effect = pool({}, name=first.name, unit=first.unit, missing=dict.fromkeys(verdicts, "an identity is not pooled"))
    rule = "supported where every deviation in every cell is within its tolerance, opposite where one is not"
    return PooledVerdict(first.claim, first.case, first.sentence, outcome, rule, math.nan, effect, outcomes)
