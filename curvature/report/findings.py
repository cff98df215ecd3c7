"""The numbers of a study in a few plain sentences, and what they cannot say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from curvature.records import ExtremalEigenvalues, Measured, SpectralDensity, Spectrum, StepComparison, Study
from curvature.report.figures import usual_damping
from curvature.report.spread import grouped
from curvature.report.table import Row
from curvature.report.tables.league import league_answer
from curvature.report.words import (
    EQUAL,
    arm_words,
    block_words,
    capital,
    chart_label,
    factor_words,
    listed,
    matrix_name,
    quantity_name,
    short_number,
    stretch_of,
    subject,
)
from curvature.studies.evidence import last_checkpoint

__all__ = ["findings_of"]

_MOST = 6  # sentences on single spectra and estimates


def findings_of(study: Study, document: Row) -> list[dict[str, Any]]:
    """Say in a few plain sentences what the numbers show, and what they cannot show.

    Parameters
    ----------
    study
        What was measured.
    document
        Its rows.

    Returns
    -------
    list of dict
        ``kind`` (``"problem"``, ``"result"`` or ``"limit"``), ``text`` and ``items``; problems first.
    """
    return [
        *_say_failures(study),
        *_say_equality(document["equality"]),
        *_say_ratios(document["ratios"], last_checkpoint(study)),
        *_say_blocks(document["ratios"], last_checkpoint(study)),
        *_say_efficiencies(study, document),
        *_say_league(document),
        *_say_spectra(document),
        *_say_estimates(document),
        *_say_limits(study, document),
        *_say_own_chart(study),
    ]


def _finding(kind: str, text: str, items: Iterable[str] = ()) -> dict[str, Any]:
    return {"kind": kind, "text": text, "items": list(items)}


def _say_failures(study: Study) -> Iterable[dict[str, Any]]:
    failed = [check for check in study.checks if not check.passed]
    if failed:
        yield _finding(
            "problem",
            f"{len(failed)} of {len(study.checks)} checks failed, the first: {failed[0].name}. Numbers that depend on "
            "it are wrong. See Checks and warnings before reading on.",
        )


def _say_equality(equality: Sequence[Row]) -> Iterable[dict[str, Any]]:
    equal = [row for row in equality if row["largest_difference"] <= EQUAL]
    if equal:
        names = listed(dict.fromkeys(matrix_name(row["matrix"]) for row in equal))
        worst = max(row["largest_difference"] for row in equal)
        deviation = f"by more than {short_number(worst)} times the largest" if worst else "at all"
        yield _finding(
            "result",
            f"At the canonical gauge, where ‖v‖ = |g|, the spectra of the {names} are those of the standard chart: no "
            f"eigenvalue differs {deviation}, over {sum(row['spectra'] for row in equal)} pairs of spectra. Every "
            "difference below comes from the gauge, or from the weights that training reached.",
        )
    for row in equality:
        if row not in equal:
            yield _finding(
                "problem",
                f"At the canonical gauge the {matrix_name(row['matrix'])} spectrum differs from the standard one by "
                f"{short_number(row['largest_difference'])} times its largest eigenvalue. In theory they are equal.",
            )


def _say_ratios(ratios: Sequence[Row], last: str) -> Iterable[dict[str, Any]]:
    """Quote the 95 % condition number at the last checkpoint, matrix by matrix."""
    chosen = [
        row
        for row in ratios
        if row["quantity"] == "kappa_95" and row["checkpoint"] == last and row["block"] == "all" and row["compared"]
    ]
    # The canonical gauge has a sentence above, the sweep a figure.
    chosen = [row for row in chosen if stretch_of(row["gauge"]) is None]
    for matrix, rows in grouped(chosen, lambda row: row["matrix"]).items():
        items = []
        for (design, chart, gauge), members in grouped(
            rows, lambda row: (row["design"], row["chart"], row["gauge"])
        ).items():
            own = "each arm in its own chart and at its own weights, " if design == "own training" else ""
            items.append(f"{own}{chart_label(chart, gauge)}: {'; '.join(map(_ratio_words, members))}")
        point = "" if last == "given" else f", {last}"
        spread_words = ", median over seeds (smallest to largest)" if rows[0]["pairs"] > 1 else ""
        yield _finding(
            "result",
            f"{capital(matrix_name(matrix))}{point}: κ₉₅ over that of the standard chart{spread_words}; above 1 is "
            "worse conditioned.",
            items,
        )


def _ratio_words(row: Row) -> str:
    ends = factor_words(math.exp(row["low"])), factor_words(math.exp(row["high"]))
    spread = f" ({ends[0]} to {ends[1]}, {row['reading']})" if row["compared"] > 1 else ""
    shared = row["design"] == "same weights" and row["arm"] != "given"
    return factor_words(row["factor"]) + spread + (f" at the weights of the {row['arm']} arm" if shared else "")


def _say_blocks(ratios: Sequence[Row], last: str) -> Iterable[dict[str, Any]]:
    """Quote the range of the 95 % condition number over diagonal blocks."""
    chosen = [row for row in ratios if row["quantity"] == "kappa_95" and row["checkpoint"] == last and row["compared"]]
    chosen = [row for row in chosen if row["block"] != "all" and stretch_of(row["gauge"]) is None]
    for matrix, rows in grouped(chosen, lambda row: row["matrix"]).items():
        items = []
        for chart, members in grouped(rows, lambda row: (row["chart"], row["gauge"])).items():
            medians = sorted(row["median"] for row in members)
            larger = sum(median > EQUAL for median in medians)
            items.append(
                f"{chart_label(*chart)}: {' to '.join(factor_words(math.exp(medians[k])) for k in (0, -1))}, larger "
                f"in {larger} of {len(medians)} blocks"
            )
        yield _finding(
            "result",
            f"{capital(matrix_name(matrix))}, block by block: κ₉₅ over that of the standard chart; above 1 is worse "
            "conditioned. Blocks say nothing about the coupling between them.",
            items,
        )


def _say_efficiencies(study: Study, document: Row) -> Iterable[dict[str, Any]]:
    steps, last = study.of(StepComparison), last_checkpoint(study)
    if not steps:
        return
    damping = usual_damping(steps)
    names = {"standard": "gradient descent", "neuron-block": "neuron-block natural gradient"}
    items = []
    rows = [row for row in document["efficiencies"] if row["relative_damping"] == damping and row["checkpoint"] == last]
    for arm, members in grouped([row for row in rows if row["block"] == "all"], lambda row: row["arm"]).items():
        quoted = [row for row in members if row["chart"] in ("standard", "weight-norm", "placebo", "neuron-block")]
        quoted = [row for row in quoted if row["gauge"] != "canonical" and row["efficiency"]["count"]]
        quotes = [
            f"{names.get(row['chart'], chart_label(row['chart'], row['gauge']))} {e['median']:.2f}"
            + (f" ({e['low']:.2f} to {e['high']:.2f})" if e["count"] > 1 else "")
            for row, e in sorted(((row, row["efficiency"]) for row in quoted), key=lambda pair: pair[1]["median"])
        ]
        if quotes:
            items.append(f"{arm_words(arm)}: {'; '.join(quotes)}")
    if items:
        yield _finding(
            "result",
            "Share of the natural gradient's progress that one step makes"
            f"{'' if last == 'given' else ', ' + last}, at a damping of {damping:g} of the mean eigenvalue; the "
            "natural gradient is 1; neuron-block natural gradient is the goal of a chart that acts neuron by neuron.",
            items,
        )


def _say_league(document: Row) -> Iterable[dict[str, Any]]:
    if answer := league_answer(document):
        yield _finding("result", answer)


def _say_spectra(document: Row) -> Iterable[dict[str, Any]]:
    """Quote each spectrum, where there is nothing to compare."""
    if document["ratios"] or document["efficiencies"]:
        return
    for row in document["table"][:_MOST]:
        numbers = row["numbers"]
        name = "abs_kappa_95" if "abs_kappa_95" in numbers else "kappa_95"
        if name not in numbers:
            continue
        negative = (
            f", {row['negative']['median']:.0f} of them negative" if name != "kappa_95" and "negative" in row else ""
        )
        yield _finding(
            "result",
            f"{_subject(row)}: {quantity_name(name)} "
            f"{_in_words(numbers[name])}; rank {row['rank']['median']:.0f} of {row['dim']} eigenvalues{negative}.",
        )


def _say_estimates(document: Row) -> Iterable[dict[str, Any]]:
    """Quote the estimates of Krylov methods with their errors."""
    for row in document["extremes"][:_MOST]:
        ends = [
            f"the {end} eigenvalue is {short_number(item['value'], 4)}, to {short_number(item['error_bound'], 1)}"
            for end in ("largest", "smallest")
            for item in row["values"]
            if item["end"] == end and item["rank"] == 1
        ]
        ending = "" if row["converged"] else "; not all of the values asked for have converged"
        yield _finding("result", f"{_subject(row)}: {' and '.join(ends)} (Lanczos){ending}.")
    for row in document["densities"][:_MOST]:
        error = row["trace_standard_error"]
        spread = "" if error is None or not math.isfinite(error) else f" ± {short_number(error, 1)} (standard error)"
        yield _finding(
            "result",
            f"{_subject(row)}: trace {short_number(row['trace'], 4)}{spread}; Ritz values from "
            f"{short_number(row['lowest_node'])} to {short_number(row['highest_node'])}. Its density is drawn below.",
        )


def _subject(row: Row) -> str:
    return subject(row["matrix"], chart_label(row["chart"], row["gauge"]), block_words(row["block"]))


def _say_limits(study: Study, document: Row) -> Iterable[dict[str, Any]]:
    seeds, ratios, counts = len(document["seeds"]), document["ratios"], document["unresolved"]
    compared = ratios or document["efficiencies"]
    spectra = study.of(Spectrum)
    indefinite = {m.record.matrix for m in spectra if m.record.inertia[0] and not m.record.positive_semidefinite}
    if indefinite:
        yield _finding(
            "limit",
            f"The {listed(matrix_name(name) for name in sorted(indefinite))} is indefinite at some points: it has no "
            "condition number there. Ratios of absolute values have their own name, |κ|, and are not compared between "
            "charts whose ranks differ.",
        )
    open_ends = counts["lower_bound"] + counts["unresolved"]
    if open_ends:
        yield _finding(
            "limit",
            f"{open_ends} of {counts['total']} headline numbers are not resolved: {counts['lower_bound']} are lower "
            f"bounds, {counts['unresolved']} depend on eigenvalues below the noise floor or on an unknown rank. They "
            "enter no ratio.",
        )
    if ratios and not any(row["compared"] for row in ratios):
        yield _finding("limit", "No condition number could be compared: nothing can be concluded about conditioning.")
    estimated: list[Measured[Any]] = [*study.of(ExtremalEigenvalues), *study.of(SpectralDensity)]
    if estimated:
        names = listed(dict.fromkeys(matrix_name(m.record.matrix) for m in estimated))
        yield _finding(
            "limit",
            f"For the {names} the spectrum was estimated and not computed: its ends and its density give no rank, no "
            "noise floor and no condition number.",
        )
    if not ratios and len({(m.record.chart, m.record.gauge) for m in (*spectra, *estimated)}) < 2:
        yield _finding("limit", "Only one chart was measured: nothing can be concluded about a reparameterization.")
    if compared and {m.arm for m in study.measurements} == {"given"}:
        yield _finding("limit", "Only one set of weights was measured: nothing can be concluded beyond it.")
    elif compared and seeds == 1:
        yield _finding("limit", "Only one seed: nothing can be concluded beyond this one run.")
    elif compared:
        owner = "claims and to the whitening league" if document["league"] else "claims alone"
        yield _finding(
            "limit",
            f"Ranges are the smallest and the largest of {seeds} seeds: they show spread and are not confidence "
            f"intervals. {f'Intervals belong to the {owner}.' if study.verdicts else 'No claim is tested here.'}",
        )


def _say_own_chart(study: Study) -> Iterable[dict[str, Any]]:
    last = study.of(Spectrum, checkpoint=last_checkpoint(study))
    charts = {arm: {m.record.chart for m in members} for arm, members in grouped(last, lambda m: m.arm).items()}
    if charts.get("standard") == {"standard"} and "weight-norm" in charts.get("weight-norm", ()):
        yield _finding(
            "limit",
            "At the weights that the standard arm reached only the standard chart was measured. The full study also "
            "measures weight norm there.",
        )


def _in_words(item: Row) -> str:
    """Spell a spread with its status.

    >>> _in_words({"median": 3.0, "status": "lower_bound", "count": 1, "affected": 1})
    'at least 3 (lower bound)'
    """
    status, several = item["status"], f" in {item['affected']} of {item['count']} seeds" if item["count"] > 1 else ""
    if item["median"] is None or not math.isfinite(item["median"]):
        return "indefinite" if status == "indefinite" else "undefined"
    if status == "lower_bound":
        return f"at least {short_number(item['median'])} (lower bound{several})"
    return short_number(item["median"]) + (f" (unresolved{several})" if status == "unresolved" else "")
