"""Spectra and their condition numbers: each by itself, and over seeds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from curvature.records import Measured, Quantity, Spectrum
from curvature.report.render import page_number
from curvature.report.selection import Selection, checkpoints_of, key_of, place_of
from curvature.report.spread import defined, grouped, spread
from curvature.report.table import Cell, Entry, Row, Table, quantity_cell, spread_cell
from curvature.report.words import (
    HEADLINE,
    block_words,
    chart_label,
    form_of,
    matrix_name,
    point_words,
    subject,
)
from curvature.text import count

__all__ = ["rank_rules", "spectrum_rows", "spectrum_tables", "summary_rows", "summary_tables", "unresolved_counts"]

_KAPPAS = HEADLINE[:4]
_NOT_A_NUMBER = ("indefinite", "undefined")
_OTHER_RANK = (
    "Rows of the Hessian have different ranks, for the second-order term of a chart curves directions that are flat in "
    "the weights. |κ| is taken on the rank of its own row, so rows of different ranks cannot be compared."
)
_STATUS_WORDS = {"lower_bound": "> x: at least x", "unresolved": "(x): not resolved"}


def spectrum_rows(selection: Selection) -> list[dict[str, Any]]:
    """One row per spectrum, with its condition numbers.

    Parameters
    ----------
    selection
        What was measured.

    Returns
    -------
    list of dict
        Flat, but for ``numbers`` and ``damped``.
    """
    spectra = {key_of(m): m.record for m in selection.everything.of(Spectrum)}
    return [_spectrum_row(m, spectra.get(key_of(m))) for m in selection.every_number]


def _spectrum_row(m: Measured, spectrum: Spectrum | None) -> dict[str, Any]:
    record = m.record
    ranks = record.rank_bounds or (record.rank,)
    shared = ("matrix", "chart", "gauge", "effective", "block", "dim", "num_examples", "rank", "rank_rule")
    row = place_of(m) | {name: getattr(record, name) for name in shared}
    row |= {"reduction": record.reduction} if record.reduction != "mean" else {}
    row |= {"lowest_rank": ranks[0], "highest_rank": ranks[-1], "noise_floor": record.noise_floor}
    if spectrum is not None:
        row |= {name: getattr(spectrum, name) for name in ("num_samples", "positive_semidefinite")}
        row |= dict(zip(("negative", "zero", "positive"), spectrum.inertia, strict=True))
        row |= {"smallest": float(spectrum.eigenvalues[0]), "largest": float(spectrum.eigenvalues[-1])}
        row |= {name: getattr(spectrum, name) for name in ("trace", "floor_rule", "dtype", "seconds")}
    row |= {"penalty": record.penalty} if record.penalty else {}
    row["method"] = record.method
    row["numbers"] = {name: asdict(quantity) for name, quantity in record.values.items()}
    row["damped"] = [[delta, kappa.value, dimension.value] for delta, (kappa, dimension) in record.damped.items()]
    return row


def spectrum_tables(rows: Sequence[Row], *, every_number: bool = False) -> dict[str, Table]:
    """Each matrix in its charts: eigenvalues, rank, condition numbers.

    Parameters
    ----------
    rows
        ``spectra`` of the summary.
    every_number
        All quantities with their intervals, in place of the headline alone.

    Returns
    -------
    dict
        Tables by the name of the matrix in a record.
    """
    by_matrix = grouped(rows, lambda row: row["matrix"])
    return {matrix: _matrix_table(members, every_number) for matrix, members in by_matrix.items()}


def _matrix_table(rows: Sequence[Row], every_number: bool) -> Table:
    first = rows[0]
    facts = ["sum over examples"] if first.get("reduction") == "sum" else []
    facts += [
        f"N = {first['num_examples']}",
        first.get("dtype", ""),
        "/".join(dict.fromkeys(r["method"] for r in rows)),
    ]
    facts += [count(first["num_samples"], "sampled label")] if first.get("num_samples") else []
    facts += [first["penalty"]] if first.get("penalty") else []
    facts += ["positive semidefinite"] if first.get("positive_semidefinite") else []
    known = dict.fromkeys(
        name
        for row in rows
        for name, quantity in row["numbers"].items()
        if (every_number or name in HEADLINE) and quantity["status"] not in _NOT_A_NUMBER
    )
    names = list(known) if every_number else [name for name in HEADLINE if name in known]
    lines = [
        (
            _place(row),
            row["dim"],
            row["rank"] if row["lowest_rank"] == row["highest_rank"] else _possible_ranks(row),
            *(_eigenvalue(row.get(end), row["noise_floor"]) for end in ("smallest", "largest")),
            *(row.get(sign) for sign in ("negative", "zero", "positive")),
            *(quantity_cell(row["numbers"].get(name), interval=every_number) for name in names),
        )
        for row in rows
    ]
    return Table(
        f"{matrix_name(first['matrix'])} ({', '.join(filter(None, facts))})",
        ("chart", "dim", "rank", "smallest", "largest", "< 0", "= 0", "> 0", *names),
        tuple(lines),
        (
            *_status_notes(rows, every_number),
            *_rank_notes(rows, every_number),
            *_comparison_notes(rows, names),
            _floor_note(rows),
        ),
    )


def _comparison_notes(rows: Sequence[Row], names: Sequence[str]) -> tuple[str, ...]:
    """Warn of ratios of absolute values in the rows of one block whose ranks differ."""
    shown = [name for name in names if name.startswith("abs_kappa")]
    of_blocks = grouped(rows, lambda row: row["block"]).values()
    differ = any(len({(row["lowest_rank"], row["highest_rank"]) for row in members}) > 1 for members in of_blocks)
    if not (shown and differ):
        return ()
    return (
        "Ratios of absolute values (abs_kappa, |κ|) of rows with different ranks are not comparable: each row leaves "
        "out a different number of eigenvalues.",
    )


def _place(row: Row) -> str:
    return ", ".join(filter(None, (chart_label(row["chart"], row["gauge"]), row["block"].removeprefix("all"))))


def _possible_ranks(row: Row) -> str:
    return f"({row['lowest_rank']} to {row['highest_rank']})"


def _eigenvalue(value: float | None, floor: float) -> Entry:
    if value is None or abs(value) > floor or floor == 0:
        return value
    return Cell(floor, status="below_noise_floor")


def _status_notes(rows: Sequence[Row], every_number: bool) -> Iterable[str]:
    """Say why a number is not resolved, by status."""
    quantities = [
        (name, quantity)
        for row in rows
        for name, quantity in row["numbers"].items()
        if every_number or name in HEADLINE
    ]
    for status in (*_STATUS_WORDS, *_NOT_A_NUMBER):
        affected = [(name, quantity["note"]) for name, quantity in quantities if quantity["status"] == status]
        if affected:
            names, notes = (list(dict.fromkeys(part)) for part in zip(*affected, strict=True))
            meaning = _STATUS_WORDS.get(status) or f"{status}: {', '.join(names)}"
            yield f"{meaning}; {notes[0]}" + (f", and {count(len(notes) - 1, 'other reason')}" if notes[1:] else "")


def _rank_notes(rows: Sequence[Row], every_rule: bool) -> Iterable[str]:
    rules = grouped(rows, lambda row: row["rank_rule"])
    for rule, members in list(rules.items())[: None if every_rule else 4]:
        charts = "; ".join(map(_place, members[:3]))
        yield f"rank: {rule}" if len(rules) == 1 else f"rank, {charts}: {rule}"


def _floor_note(rows: Sequence[Row]) -> str:
    highest = max(rows, key=lambda row: row["noise_floor"])
    cause = f" ({highest['floor_rule']})" if highest.get("floor_rule") else ""
    return f"= 0: not above the noise floor, {highest['noise_floor']:.1e} or less{cause}"


def unresolved_counts(selection: Selection) -> dict[str, int]:
    """How many headline numbers there are, and how many of them cannot be quoted as they are.

    Parameters
    ----------
    selection
        What was measured.

    Returns
    -------
    dict
        ``total``, and a count for each status.
    """
    statuses = [quantity.status for m in selection.every_number for quantity in m.record.headline.values()]
    named = ("lower_bound", "unresolved", "indefinite", "undefined")
    return {"total": len(statuses)} | {name: statuses.count(name) for name in named}


# --- over seeds


def summary_rows(selection: Selection) -> list[dict[str, Any]]:
    """Aggregate spectra over seeds: one row per matrix, block, point, chart and form.

    Parameters
    ----------
    selection
        What was measured.

    Returns
    -------
    list of dict
        Arm by arm, the last checkpoint first.
    """
    spectra = {key_of(m): m.record for m in selection.study.of(Spectrum)}
    groups = grouped(
        selection.numbers,
        lambda m: (
            m.record.matrix,
            m.record.block,
            m.arm,
            m.checkpoint,
            m.record.chart,
            m.record.gauge,
            m.record.effective,
            m.record.penalty,
        ),
    )
    rows = [
        _summary_row(members, [spectra[key_of(m)] for m in members if key_of(m) in spectra])
        for members in groups.values()
    ]
    order = checkpoints_of(selection.study)
    return sorted(rows, key=lambda row: (row["arm"], -order.index(row["checkpoint"]), row["form"] == "all coordinates"))


def _summary_row(members: Sequence[Measured], spectra: Sequence[Spectrum]) -> dict[str, Any]:
    first, records = members[0], [m.record for m in members]
    row: dict[str, Any] = {"matrix": first.record.matrix, "block": first.record.block}
    row |= {"penalty": first.record.penalty} if first.record.penalty else {}
    row |= {"arm": first.arm, "checkpoint": first.checkpoint}
    row |= {name: getattr(first.record, name) for name in ("chart", "gauge", "effective")}
    row |= {
        "form": form_of(first.record),
        "seeds": len(members),
        "steps": sorted({m.step for m in members}),
        "dim": first.record.dim,
        "rank_rules": sorted({_general(record.rank_rule) for record in records}),
        "methods": sorted({record.method for record in records}),
        "rank": asdict(spread(Quantity(record.rank) for record in records)),
        "noise_floor": asdict(spread(Quantity(record.noise_floor) for record in records)),
    }
    if spectra:
        signs = zip(*(spectrum.inertia for spectrum in spectra), strict=True)
        row |= {
            "smallest": _spread_of(spectrum.eigenvalues[0] for spectrum in spectra),
            "largest": _spread_of(spectrum.eigenvalues[-1] for spectrum in spectra),
            "trace": _spread_of(spectrum.trace for spectrum in spectra),
            **{name: _spread_of(counts) for name, counts in zip(("negative", "zero", "positive"), signs, strict=True)},
            "seconds": _spread_of(spectrum.seconds for spectrum in spectra),
        }
    row["numbers"] = {}
    for name in HEADLINE:
        quantities = [record.values[name] for record in records if name in record.values]
        if quantities:
            notes = sorted({quantity.note for quantity in quantities if quantity.note})
            row["numbers"][name] = asdict(spread(quantities)) | {"notes": notes}
    return row


def _spread_of(values: Iterable[float]) -> dict[str, Any]:
    return asdict(spread(defined(float(value)) for value in values))


def _general(rule: str) -> str:
    """Leave out the value of a threshold, a gap or a floor, which differ from seed to seed."""
    rule = re.sub(r"(above) [\d.e+-]+", r"\1 the noise floor and rounding", rule)
    gap = r"a (factor of (at least )?[\d.e+-]+|step from [\d.e+-]+ to zero) after"
    rule = re.sub(gap, "a factor of 1000 or more after", rule)
    return re.sub(r"(noise floor) [\d.e+-]+", r"\1", rule)


def rank_rules(document: Row) -> list[str]:
    """Where the ranks in the summary come from.

    Parameters
    ----------
    document
        The summary of a run.

    Returns
    -------
    list of str
        Each rule once; a table quotes them by their number.
    """
    return list(dict.fromkeys(rule for row in document["table"] for rule in row["rank_rules"]))


def summary_tables(document: Row, show: Callable[[Row], bool] = lambda _: True) -> list[Table]:
    """One table per point, with the matrices below each other; a sweep over gauges by itself.

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
    shown = [row for row in document["table"] if show(row)]
    sweep = len({row["gauge"] for row in document["table"] if row["gauge"].startswith("stretch=")}) > 1
    points = grouped(shown, lambda row: (row["arm"], row["checkpoint"], sweep and row["gauge"].startswith("stretch=")))
    tables = []
    for (arm, checkpoint, swept), rows in points.items():
        step = f" (step {rows[0]['steps'][0]})" if len(rows[0]["steps"]) == 1 and checkpoint != "given" else ""
        title = point_words(arm, checkpoint) + step + (": gauge sweep" if swept else "")
        tables.append(_point_table(title, rows, rank_rules(document), folded=checkpoint != last or swept))
    return sorted(tables, key=lambda table: table.folded)


def _point_table(title: str, rows: Sequence[Row], rules: Sequence[str], *, folded: bool) -> Table:
    names = [name for name in _KAPPAS if any(_kappa(row, name)[0] for row in rows)]
    lines: list[tuple[Entry, ...]] = []
    notes = set()
    for heading, members in grouped(rows, lambda row: _heading(row, rows)).items():
        reference = next((row for row in members if row["chart"] == "standard"), members[0])["rank"]["median"]
        others = [_kappa(row, "kappa_95")[1] and row["rank"]["median"] != reference for row in members]
        notes |= {_OTHER_RANK} if any(others) else set()
        entries = (_summary_entries(row, names, rules, other) for row, other in zip(members, others, strict=True))
        lines += [(heading,), *entries]
    extent = ("size", "smallest", "largest", "rank", "inertia (noise floor)", "trace")
    return Table(title, ("chart (gauge)", *extent, *names, "method"), tuple(lines), tuple(notes), folded)


def _heading(row: Row, rows: Sequence[Row]) -> str:
    """Matrix, block and penalty; the form too where the matrix was taken in several."""
    several = len({other["form"] for other in rows if other["matrix"] == row["matrix"]} - {""}) > 1
    forms = {"": "on the weights", "all coordinates": "in all coordinates of the chart"}
    form = str(forms.get(row["form"], row["form"])) if several else ""
    return subject(row["matrix"], block_words(row["block"]), form, row.get("penalty", ""))


def _kappa(row: Row, name: str) -> tuple[Row | None, bool]:
    """The spread of a condition number, or of the ratio of absolute values in its place."""
    absolute = f"abs_{name}" in row["numbers"]
    return row["numbers"].get(f"abs_{name}" if absolute else name), absolute


def _summary_entries(row: Row, names: Sequence[str], rules: Sequence[str], other_rank: bool) -> tuple[Entry, ...]:
    remarks: tuple[str, ...] = ("indefinite: κ undefined",) if _kappa(row, "kappa_95")[1] else ()
    remarks += ("other rank: not comparable with the standard chart",) if other_rank else ()
    numbers = ", ".join(str(rules.index(rule) + 1) for rule in row["rank_rules"])
    signs = [row[name]["median"] for name in ("negative", "zero", "positive") if name in row]
    seconds = row.get("seconds")
    return (
        Cell(chart_label(row["chart"], row["gauge"]), details=remarks),
        row["dim"],
        *(_extreme(row.get(end), row["noise_floor"]) for end in ("smallest", "largest")),
        spread_cell(row["rank"], details=(f"rule\N{NO-BREAK SPACE}{numbers}",)),
        Cell(" / ".join(map(page_number, signs)) or None, details=(page_number(row["noise_floor"]["median"]),)),
        spread_cell(row.get("trace")),
        *(spread_cell(item, prefix="|κ| " if absolute else "") for item, absolute in (_kappa(row, n) for n in names)),
        Cell(
            ", ".join(row["methods"]),
            details=(f"{page_number(seconds['median'])}\N{NO-BREAK SPACE}s",) if seconds and seconds["count"] else (),
        ),
    )


def _extreme(item: Row | None, floor: Row) -> Cell:
    if item and None not in (item["median"], floor["median"]) and 0 < floor["median"] >= abs(item["median"]):
        return Cell(floor["median"], status="below_noise_floor")
    return spread_cell(item)
