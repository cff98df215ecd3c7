"""The numbers of a study in a few plain sentences, and what they cannot say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from curvature.records import ExtremalEigenvalues, SpectralDensity, Spectrum, StepComparison, Study
from curvature.report import figures
from curvature.report.document import EQUAL
from curvature.report.figures import chart_label, grouped, matrix_name, short_number, stretch_of
from curvature.studies.evidence import last_checkpoint


def findings_of(study: Study, document: dict[str, Any]) -> list[dict[str, Any]]:
    """Say in a few plain sentences what the numbers show, and what they cannot show."""
    return [
        *_say_failures(study),
        *_say_equality(document["equality"]),
        *_say_ratios(document["ratios"], last_checkpoint(study)),
        *_say_blocks(document["ratios"], last_checkpoint(study)),
        *_say_efficiencies(study, document),
        *_say_spectra(document),
        *_say_estimates(document),
        *_say_limits(study, document),
    ]


def _finding(kind: str, text: str, items: Iterable[str] = ()) -> dict[str, Any]:
    return {"kind": kind, "text": text, "items": list(items)}


def _say_failures(study: Study) -> Iterable[dict[str, Any]]:
    failed = [check for check in study.checks if not check.passed]
    if failed:
        yield _finding(
            "problem",
            f"{len(failed)} of {len(study.checks)} checks failed, the first: {failed[0].name}. Numbers that depend on "
            "it are wrong; see Checks and warnings before reading on.",
        )


def _say_equality(equality: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    equal = [row for row in equality if row["largest_difference"] <= EQUAL]
    if equal:
        names = _listed(dict.fromkeys(matrix_name(row["matrix"]) for row in equal))
        worst = max(row["largest_difference"] for row in equal)
        deviation = f"by more than {short_number(worst)} times the largest" if worst else "at all"
        yield _finding(
            "result",
            f"At the canonical gauge, where ‖v‖ = |g|, the spectra of the {names} are those of the standard chart: no "
            f"eigenvalue differs {deviation}, over {sum(row['spectra'] for row in equal)} pairs of spectra. What "
            "differs below differs by the gauge, or by the weights that training reached.",
        )
    for row in equality:
        if row not in equal:
            yield _finding(
                "problem",
                f"At the canonical gauge the {matrix_name(row['matrix'])} spectrum differs from the standard one by "
                f"{short_number(row['largest_difference'])} times its largest eigenvalue; in theory not at all.",
            )


def _say_ratios(ratios: list[dict[str, Any]], last: str) -> Iterable[dict[str, Any]]:
    """Quote the 95 % condition number at the last checkpoint, matrix by matrix."""
    chosen = [
        row
        for row in ratios
        if row["quantity"] == "kappa_95" and row["checkpoint"] == last and row["block"] == "all" and row["compared"]
    ]
    chosen = [row for row in chosen if stretch_of(row["gauge"]) is None]  # canonical is said above, the sweep is drawn
    for matrix, rows in grouped(chosen, lambda row: row["matrix"]).items():
        items = []
        for (design, *chart), members in grouped(rows, lambda row: (row["design"], row["chart"], row["gauge"])).items():
            said = [
                f"{signed(row['median'])}"
                + (f" ({signed(row['low'])} to {signed(row['high'])}, {row['reading']})" if row["compared"] > 1 else "")
                + (
                    f" at the weights of the {row['arm']} arm"
                    if design == "same weights" and row["arm"] != "given"
                    else ""
                )
                for row in members
            ]
            if design == "own training":
                items.append(
                    f"each arm in its own chart and at its own weights, {chart_label(*chart)}: {'; '.join(said)}"
                )
            else:
                items.append(f"{chart_label(*chart)}: {'; '.join(said)}")
        point = "" if last == "given" else f", {last}"
        spread_words = ", median over seeds (smallest to largest)" if rows[0]["pairs"] > 1 else ""
        yield _finding(
            "result",
            f"{capital(matrix_name(matrix))}{point}: log-ratio of κ₉₅ to the standard chart{spread_words}; above 0 "
            "is worse conditioned.",
            items,
        )


def _say_blocks(ratios: list[dict[str, Any]], last: str) -> Iterable[dict[str, Any]]:
    """Quote the range of the 95 % condition number over diagonal blocks."""
    chosen = [row for row in ratios if row["quantity"] == "kappa_95" and row["checkpoint"] == last and row["compared"]]
    chosen = [row for row in chosen if row["block"] != "all" and stretch_of(row["gauge"]) is None]
    for matrix, rows in grouped(chosen, lambda row: row["matrix"]).items():
        items = []
        for chart, members in grouped(rows, lambda row: (row["chart"], row["gauge"])).items():
            medians = sorted(row["median"] for row in members)
            larger = sum(median > EQUAL for median in medians)
            items.append(
                f"{chart_label(*chart)}: {signed(medians[0])} to {signed(medians[-1])}, larger in {larger} of "
                f"{len(medians)} blocks"
            )
        yield _finding(
            "result",
            f"{capital(matrix_name(matrix))}, block by block: log-ratio of κ₉₅ to the standard chart; above 0 is worse "
            "conditioned. Blocks say nothing about the coupling between them.",
            items,
        )


def _say_efficiencies(study: Study, document: dict[str, Any]) -> Iterable[dict[str, Any]]:
    steps, last = study.of(StepComparison), last_checkpoint(study)
    if not steps:
        return
    damping = figures.usual_damping(steps)
    names = {"standard": "gradient descent", "neuron-block": "neuron-block natural gradient"}
    items = []
    rows = [row for row in document["efficiencies"] if row["relative_damping"] == damping and row["checkpoint"] == last]
    for arm, members in grouped([row for row in rows if row["block"] == "all"], lambda row: row["arm"]).items():
        quoted = [row for row in members if row["chart"] in ("standard", "weight-norm", "placebo", "neuron-block")]
        quoted = [row for row in quoted if row["gauge"] != "canonical" and row["efficiency"]["count"]]
        said = [
            f"{names.get(row['chart'], chart_label(row['chart'], row['gauge']))} {e['median']:.2f}"
            + (f" ({e['low']:.2f} to {e['high']:.2f})" if e["count"] > 1 else "")
            for row, e in sorted(((row, row["efficiency"]) for row in quoted), key=lambda pair: pair[1]["median"])
        ]
        if said:
            items.append(f"{arm_words(arm)}: {'; '.join(said)}")
    if items:
        yield _finding(
            "result",
            "Share of the natural gradient's progress that one step makes"
            f"{'' if last == 'given' else ', ' + last}, at a damping of {damping:g} of the mean eigenvalue; the "
            "natural gradient is 1, and neuron-block natural gradient what a chart acting neuron by neuron can aim at.",
            items,
        )


def _say_spectra(document: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Quote each spectrum, where there is nothing to compare."""
    if document["ratios"] or document["efficiencies"]:
        return
    for row in document["table"][:6]:
        numbers = row["numbers"]
        name = "abs_kappa_95" if "abs_kappa_95" in numbers else "kappa_95"
        if name not in numbers:
            continue
        where = chart_label(row["chart"], row["gauge"]) + ("" if row["block"] == "all" else f", block {row['block']}")
        negative = (
            f", {row['negative']['median']:.0f} of them negative" if name != "kappa_95" and "negative" in row else ""
        )
        yield _finding(
            "result",
            f"{capital(matrix_name(row['matrix']))}, {where}: {figures.quantity_name(name)} "
            f"{_in_words(numbers[name])}; rank {row['rank']['median']:.0f} of {row['dim']} eigenvalues{negative}.",
        )


def _say_estimates(document: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Quote what Krylov methods found, with its error."""
    for row in document["extremes"][:6]:
        said = [
            f"the {end} eigenvalue is {short_number(one['value'], 4)}, to {short_number(one['error_bound'], 1)}"
            for end in ("largest", "smallest")
            for one in row["values"]
            if one["end"] == end and one["rank"] == 1
        ]
        ending = "" if row["converged"] else "; not all of the values asked for have converged"
        yield _finding("result", f"{_where(row)}: {' and '.join(said)} (Lanczos){ending}.")
    for row in document["densities"][:6]:
        error = row["trace_standard_error"]
        spread = "" if error is None or not math.isfinite(error) else f" ± {short_number(error, 1)} (standard error)"
        yield _finding(
            "result",
            f"{_where(row)}: trace {short_number(row['trace'], 4)}{spread}; Ritz values from "
            f"{short_number(row['lowest_node'])} to {short_number(row['highest_node'])}. Its density is drawn below.",
        )


def _where(row: Mapping[str, Any]) -> str:
    place = chart_label(row["chart"], row["gauge"])
    return ", ".join(filter(None, (capital(matrix_name(row["matrix"])), place, block_words(row["block"]))))


def _say_limits(study: Study, document: dict[str, Any]) -> Iterable[dict[str, Any]]:
    seeds, ratios, counts = len(document["seeds"]), document["ratios"], document["unresolved"]
    compared = ratios or document["efficiencies"]
    spectra = study.of(Spectrum)
    indefinite = {m.record.matrix for m in spectra if m.record.inertia[0] and not m.record.positive_semidefinite}
    if indefinite:
        yield _finding(
            "limit",
            f"The {_listed(matrix_name(name) for name in sorted(indefinite))} is indefinite at some points: it has no "
            "condition number there. Ratios of absolute values stand under their own name, |κ|, and are not compared "
            "between charts whose ranks differ.",
        )
    open_ends = counts["lower_bound"] + counts["unresolved"]
    if open_ends:
        yield _finding(
            "limit",
            f"{open_ends} of {counts['total']} headline numbers are not resolved: {counts['lower_bound']} are lower "
            f"bounds, {counts['unresolved']} depend on eigenvalues below the noise floor or on a rank that nobody "
            "knows. They enter no ratio.",
        )
    if ratios and not any(row["compared"] for row in ratios):
        yield _finding("limit", "No condition number could be compared: nothing can be concluded about conditioning.")
    estimated = [*study.of(ExtremalEigenvalues), *study.of(SpectralDensity)]
    if estimated:
        names = _listed(dict.fromkeys(matrix_name(m.record.matrix) for m in estimated))
        yield _finding(
            "limit",
            f"For the {names} the spectrum was estimated and not computed: from its ends and its density follow no "
            "rank, no noise floor and no condition number.",
        )
    if not ratios and len({(m.record.chart, m.record.gauge) for m in [*spectra, *estimated]}) < 2:
        yield _finding("limit", "Only one chart was measured: nothing can be concluded about a reparameterization.")
    if compared and {m.arm for m in study.measurements} == {"given"}:
        yield _finding("limit", "Only one set of weights was measured: nothing can be concluded beyond it.")
    elif compared and seeds == 1:
        yield _finding("limit", "Only one seed: nothing can be concluded beyond this one run.")
    elif compared:
        yield _finding(
            "limit",
            f"Ranges are the smallest and the largest of {seeds} seeds: they show spread and are no confidence "
            f"intervals. {'Claims are tested under Verdicts alone.' if study.verdicts else 'No claim is tested here.'}",
        )


def _in_words(item: Mapping[str, Any]) -> str:
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


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def block_words(block: str) -> str:
    """Name of a block in a heading; nothing for the whole matrix."""
    return "" if block == "all" else f"block {block}"


def capital(text: str) -> str:
    """The text with its first letter capital, and the others as they are."""
    return text[:1].upper() + text[1:]


def signed(value: float) -> str:
    """Two decimals, or the first digit of something smaller; with a sign.

    >>> signed(-0.123), signed(0.0012), signed(0.0)
    ('−0.12', '+0.001', '0')
    """
    text = f"{value:+.2f}" if abs(value) >= 0.005 else f"{value:+.1g}"
    return "0" if abs(value) <= EQUAL else text.replace("-", "−")


def arm_words(arm: str) -> str:
    """Name of an arm in a sentence."""
    return "given weights" if arm == "given" else f"{arm} arm"


def point_words(arm: str, checkpoint: str) -> str:
    """Arm and checkpoint as a heading."""
    return capital(arm_words(arm)) + ("" if checkpoint == "given" else f", {checkpoint}")
