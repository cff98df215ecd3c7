"""Pictures of the answer: every claim on one axis of factors, and the sources of a difference on the same axis."""

from __future__ import annotations

import math
from collections.abc import Iterator

from curvature.records import Decomposition, Study
from curvature.report.answer import SOURCES
from curvature.report.claims import claim_effects
from curvature.report.drawings.forest import draw_forest
from curvature.report.drawings.layout import Drawing
from curvature.report.effects import Effect
from curvature.report.words import capital, matrix_name, quantity_symbol
from curvature.studies.evidence import THRESHOLD, part_intervals

__all__ = ["draw_claims", "draw_sources"]


def draw_claims(study: Study) -> Drawing | None:
    """Draw every claim of a study.

    Parameters
    ----------
    study
        With its verdicts.

    Returns
    -------
    Drawing or None
        None where no claim was tested.
    """
    effects = claim_effects(study)
    if not effects:
        return None
    pairs = sorted({verdict.num_pairs for verdict in study.verdicts if verdict.num_pairs and verdict.level > 0})
    seeds = f" over {' or '.join(map(str, pairs))} paired seeds" if pairs else ""
    caption = (
        "One row for each claim: the estimate as a factor, and its 95 % interval" + seeds + ". Left of the shaded band "
        "weight norm is better by more than 10 %, right of it worse by more than 10 %; claims that are not ratios have "
        "their number in words. A filled circle is supported, a square too small to count, a triangle the opposite of "
        "the claim, an open circle undecided."
    )
    thresholds = {verdict.threshold for verdict in study.verdicts if verdict.unit.startswith("log(")}
    within = math.exp(min(thresholds, default=THRESHOLD))
    caption = caption.replace("10 %", f"{100 * (within - 1):.3g} %")
    return draw_forest(effects, "Every claim on one axis", caption, name="claims", within=within)


def draw_sources(study: Study) -> Drawing | None:
    """Draw where the difference between two networks comes from, as factors that multiply to the whole.

    Parameters
    ----------
    study
        With its decompositions.

    Returns
    -------
    Drawing or None
        None without a decomposition of a condition number.
    """
    first = study.decompositions[0].arms if study.decompositions else ()
    items = [item for item in study.decompositions if "kappa" in item.quantity and item.arms == first]
    effects = [effect for item in items for effect in _sources(item)]
    if not effects:
        return None
    caption = (
        "The condition number of the weight-normalized network over that of the standard one, each after its own "
        "training (diamond), as a product of its sources: means over seeds with 95 % intervals. A source far from 1 is "
        "where the difference comes from. Sources that this run did not vary are left out; the table names them."
    )
    return draw_forest(effects, "Where the difference comes from", caption, name="sources")


def _sources(item: Decomposition) -> Iterator[Effect]:
    """The factor of each source that was varied, then their product."""
    subject = f"{capital(matrix_name(item.matrix))}, {quantity_symbol(item.quantity)}"
    intervals = part_intervals(item)
    for source in (*item.sources, "whole"):
        if source in intervals:
            mean, low, high = map(math.exp, intervals[source])
            words = SOURCES.get(source, "the whole difference" if source == "whole" else source)
            yield Effect(f"{subject}: {words}", mean, low, high, pooled=source == "whole")
