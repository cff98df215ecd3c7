"""Results as text on standard output."""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from curvature.cli.terminal import count, one_line, printable

if TYPE_CHECKING:
    from curvature.linalg.planning import Plan
    from curvature.records import (
        ConditionNumbers,
        ExtremalEigenvalues,
        Quantity,
        SpectralDensity,
        Spectrum,
        Study,
        Verdict,
    )

__all__ = ["plan_lines", "print_compare", "print_plans", "print_spectrum"]

MOST_PICTURES = 12


def print_spectrum(study: Study, _document: Mapping[str, Any], verbose: bool) -> None:
    """Print each matrix in its charts, and the stretches behind the gauges."""
    from curvature.records import ConditionNumbers, ExtremalEigenvalues, GaugeState, SpectralDensity, Spectrum

    spectra = [measured.record for measured in study.of(Spectrum)]
    summaries = {_identity(measured.record): measured.record for measured in study.of(ConditionNumbers)}
    for matrix in dict.fromkeys(record.matrix for record in spectra):
        records = [record for record in spectra if record.matrix == matrix]
        _print_matrix(records, [summaries[_identity(record)] for record in records], verbose)
    for kind, show in ((ExtremalEigenvalues, _print_extremes), (SpectralDensity, _print_densities)):
        found = [measured.record for measured in study.of(kind)]
        for matrix in dict.fromkeys(record.matrix for record in found):
            show([record for record in found if record.matrix == matrix])
    for measured in study.of(GaugeState):
        state = measured.record
        _echo(
            f"{_chart(state.chart, state.gauge)}: stretch ||v|| / |g| {state.minimum:.4g} to {state.maximum:.4g}, "
            f"median {state.median:.4g}, in {state.num_rows} rows"
        )


def print_compare(study: Study, document: Mapping[str, Any], verbose: bool) -> None:
    """Print what the report says too, from the same document: verdicts, then medians and ranges over seeds."""
    _print_verdicts(study.verdicts, verbose)
    for item in document["decompositions"]:
        _print_decomposition(item)
    _echo(f"Median over {count(len(document['seeds']), 'seed')} [lowest, highest]\n")
    rows = []
    for arm in dict.fromkeys(run["arm"] for run in document["training"]):
        runs = [run for run in document["training"] if run["arm"] == arm]
        numbers = ([run[name] for run in runs] for name in ("first_loss", "last_loss", "last_accuracy"))
        rows.append((f"{arm} arm", *map(_median_and_range, numbers), str(runs[0]["steps"])))
    _print_table(("Training", "loss before", "loss after", "accuracy", "steps"), rows)
    _echo()
    equal = {row["matrix"] for row in document["equality"]}
    for matrix in dict.fromkeys(row["matrix"] for row in document["table"]):
        _print_conditions(matrix, document, "sweep" if verbose else "canonical" if matrix not in equal else "brief")
    for row in document["equality"]:
        _echo(
            f"{_matrix_name(row['matrix'])}: at the canonical gauge (||v|| = |g|) the spectrum of the standard chart, "
            f"as theory says;\n  largest difference {row['largest_difference']:.1e} of the largest eigenvalue, in "
            f"{count(row['spectra'], 'pair')} of spectra"
        )
    _echo()
    _print_efficiencies(document, study.config.get("relative_damping", 1e-3))
    for finding in document["findings"]:
        if finding["kind"] == "limit" or verbose:
            _echo(finding["text"] + "\n")


def _echo(text: str = "") -> None:
    """Print to stdout; names in the text are the user's, and none of them may steer the terminal."""
    typer.echo(printable(text))


def _print_verdicts(verdicts: Sequence[Verdict], verbose: bool) -> None:
    """Print a block per claim: icon and word, the number with its interval, the rule; then what was not tested."""
    if not verdicts:
        return
    colors = {"supported": "green", "refuted": "red", "inconclusive": "yellow"}
    _echo("Verdicts (each number is positive where the claim holds)\n")
    for verdict in verdicts:
        if verdict.outcome == "not tested":
            continue
        icon = verdict.icon if _can_print(verdict.icon) else {"✓": "+", "✗": "x"}.get(verdict.icon, verdict.icon)
        typer.secho(f"{icon} {verdict.outcome}", fg=colors[verdict.outcome], bold=True, nl=False)
        _echo(f"  {verdict.name}: {verdict.sentence}")
        _echo(f"    {verdict.found}")
        _echo(f"    {verdict.rule}")
        if verdict.control:
            value = "" if math.isnan(verdict.control_estimate) else f" {verdict.control_estimate:+.2g}"
            passed = {True: ", as it must", False: ", NOT as it must"}.get(verdict.control_passed, "")
            _echo(f"    control, {verdict.control}:{value}{passed}")
        if verbose and verdict.note:
            _echo(f"    {verdict.note}")
    open_ones = [verdict for verdict in verdicts if verdict.outcome == "not tested"]
    if open_ones and not verbose:
        _echo(f"- not tested: {', '.join(verdict.name for verdict in open_ones)} (-v says what each needs)")
    for verdict in open_ones if verbose else ():
        _echo(f"- not tested  {verdict.name}: {verdict.note}")
    _echo()


def _print_decomposition(item: Mapping[str, Any]) -> None:
    """Print the parts of one log-ratio on one line, with intervals."""

    def words(name: str) -> str:
        part = item["means"][name]
        known = part["low"] is not None and part["high"] is not None
        return f"{name} {part['mean']:+.2f}" + (f" [{part['low']:+.2f}, {part['high']:+.2f}]" if known else "")

    parts = [words(source) for source in item["sources"] if source in item["means"]]
    whole, (standard, other) = words("whole").removeprefix("whole "), item["arms"]
    _echo(
        f"{_matrix_name(item['matrix'])}, log of {item['quantity']}, {other} arm over {standard} arm: {whole}\n"
        f"  = {' + '.join(parts)}; mean [95 % interval] of {count(len(item['seeds']), 'seed')}\n"
    )


def _print_matrix(records: list[Spectrum], summaries: list[ConditionNumbers], verbose: bool) -> None:
    """Print one matrix in its charts: eigenvalues, condition numbers, pictures."""
    from curvature.report.figures import text_picture

    first = records[0]
    about = [f"N = {first.num_examples}", first.dtype, "/".join(dict.fromkeys(record.method for record in records))]
    about += [count(first.num_samples, "sampled label")] if first.num_samples else []
    about += ["positive semidefinite"] if first.positive_semidefinite else []
    _echo(f"{_matrix_name(first.matrix)} ({', '.join(about)})\n")
    labels = [_place(record) for record in records]
    columns = ("chart", "dim", "rank", "smallest", "largest", "< 0", "= 0", "> 0")
    rows = [
        (label, str(r.dim), _rank(r), *(str(r.eigenvalue(k)) for k in (0, -1)), *map(str, r.inertia))
        for label, r in zip(labels, records, strict=True)
    ]
    _print_table(columns, rows)
    _echo()
    chosen = [summary.values if verbose else summary.headline for summary in summaries]
    defined = [name for values in chosen for name, quantity in values.items() if quantity.has_value]
    names = list(dict.fromkeys(defined))
    for start in range(0, len(names), 4):
        part = names[start : start + 4]
        rows = [
            (label, *(_number(values.get(name), verbose) for name in part))
            for label, values in zip(labels, chosen, strict=True)
        ]
        _print_table(("chart", *part), rows)
        _echo()
    _print_notes([item for values in chosen for item in values.items()])
    rules: dict[str, list[str]] = {}
    for label, record in zip(labels, records, strict=True):
        rules.setdefault(record.rank_rule, []).append(label)
    for rule, where in list(rules.items())[: None if verbose else 4]:
        _echo(f"rank: {rule}" if len(rules) == 1 else f"rank, {'; '.join(where[:3])}: {rule}")
    highest = max(records, key=lambda record: record.noise_floor)
    cause = f" ({highest.floor_rule})" if highest.floor_rule else ""
    _echo(f"= 0: not above the noise floor, {highest.noise_floor:.1e} or less{cause}\n")
    pictured = records if verbose else records[:MOST_PICTURES]
    for record in pictured:
        _echo(text_picture(record, bar="█" if _can_print("█") else "#") + "\n")
    if len(pictured) < len(records):
        _echo(f"({len(records) - len(pictured)} more pictures: -v)\n")


def _print_extremes(records: list[ExtremalEigenvalues]) -> None:
    """Print the ends of one matrix, each value with its error bound."""
    first = records[0]
    _echo(f"{_matrix_name(first.matrix)}, ends (N = {first.num_examples}, {first.dtype}, lanczos)\n")
    rows = [
        (_place(record), end, str(rank + 1), _above(value, record.noise_floor), f"{bound:.1e}")
        for record in records
        for end, values, bounds in (
            ("largest", record.largest, record.largest_bounds),
            ("smallest", record.smallest, record.smallest_bounds),
        )
        for rank, (value, bound) in enumerate(zip(values, bounds, strict=True))
    ]
    _print_table(("chart", "end", "rank", "eigenvalue", "error bound"), rows)
    _echo("\nsome eigenvalue lies within the error bound of each value; a multiple one is found once")
    for record in records:
        state = "converged" if record.converged else "NOT converged"
        _echo(f"{_place(record)}, {record.dim} x {record.dim}: {state} in {record.num_products} products")
    _echo()


def _above(value: float, floor: float) -> str:
    return f"{value:.8g}" if abs(value) > floor else f"< {floor:.2g}"


def _print_densities(records: list[SpectralDensity]) -> None:
    """Print what a density says in numbers: moments with their standard errors, and shares on both sides of zero."""
    first = records[0]
    about = f"N = {first.num_examples}, {first.dtype}, slq, {first.num_probes} probes x {first.num_matvecs} products"
    _echo(f"{_matrix_name(first.matrix)}, density ({about})\n")
    rows = []
    for record in records:
        mean, error = record.moment(1)
        near = abs(record.nodes) <= record.resolution / 2
        shares = [
            float((record.weights * kept).sum(axis=1).mean())
            for kept in (~near & (record.nodes < 0), near, ~near & (record.nodes > 0))
        ]
        trace = f"{record.dim * mean:.4g} ± {record.dim * error:.1g}"
        ends = (f"{record.nodes.min():.4g}", f"{record.nodes.max():.4g}")
        cells = (_place(record), str(record.dim), *ends, f"{record.resolution:.2g}", trace)
        rows.append((*cells, *(f"{share:.1%}" for share in shares)))
    header = ("chart", "dim", "lowest node", "highest node", "resolution", "trace", "below 0", "near 0", "above 0")
    _print_table(header, rows)
    _echo(
        "\nresolution: (highest - lowest) / products, nothing finer is there to be read; near 0: within half of it; "
        "±: one standard error over the probes; nodes are no eigenvalues\n"
    )


def _rank(record: Spectrum) -> str:
    few, many = record.possible_ranks
    return record.rank_words if few == many else f"({record.rank_words})"


def _number(quantity: Quantity | None, verbose: bool) -> str:
    if quantity is None:
        return "-"
    return f"{quantity} {quantity.interval}" if verbose and quantity.interval else str(quantity)


def _place(record: Any) -> str:
    return _chart(record.chart, record.gauge) + ("" if record.block == "all" else f", {one_line(record.block)}")


def plan_lines(plans: Mapping[str, Sequence[tuple[Plan, ...]]]) -> list[str]:
    """One line per matrix: how, how much memory, how long."""
    from curvature.linalg.planning import summary

    return [
        f"{_matrix_name(matrix)}: {summary([one for several in made for one in several])}"
        for matrix, made in plans.items()
    ]


def print_plans(plans: Mapping[str, Sequence[tuple[Plan, ...]]], as_json: bool) -> None:
    """Print every plan: what a dry run is for."""
    every = [one for made in plans.values() for several in made for one in several]
    if as_json:
        from curvature.records.storage import to_plain

        _echo(json.dumps({"schema": "curvature/plan/1", "plans": [to_plain(one) for one in every]}, allow_nan=False))
        return
    for line in plan_lines(plans):
        _echo(one_line(f"plan: {line}"))
    _echo()
    for one in every:
        _echo(one_line(str(one)))
        for name, why in one.rejected:
            _echo(f"  not {name}: {why}")


def _print_notes(quantities: list[tuple[str, Quantity]]) -> None:
    """Say what stands behind a number that is not resolved."""
    signs = {"lower_bound": "> x: at least x", "unresolved": "(x): not resolved"}
    for status in (*signs, "indefinite", "undefined"):
        found = [(name, q.note) for name, q in quantities if q.status == status]
        if found:
            names, notes = (list(dict.fromkeys(part)) for part in zip(*found, strict=True))
            more = f", and {count(len(notes) - 1, 'other reason')}" if len(notes) > 1 else ""
            _echo(f"{signs.get(status) or f'{status}: ' + ', '.join(names)}; {notes[0]}{more}")


def _identity(record: Any) -> tuple[Any, ...]:
    return record.matrix, record.chart, record.gauge, record.block, record.effective


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _print_conditions(matrix: str, document: Mapping[str, Any], extent: str) -> None:
    """Print one table per matrix: condition numbers by checkpoint, then their log-ratios to the standard chart.

    ``extent``: ``"brief"`` leaves out the canonical gauge, which equals the standard chart, and the gauge sweep.
    """
    checkpoints = document["checkpoints"]

    def shown(row: Mapping[str, Any]) -> bool:
        sweep, canonical = row["gauge"].startswith("stretch="), row["gauge"] == "canonical"
        return (
            row["matrix"] == matrix
            and row["block"] == "all"
            and (row["effective"] or row["chart"] == "standard")
            and (extent == "sweep" or not sweep)
            and (extent != "brief" or not canonical)
        )

    numbers: dict[tuple[str, ...], dict[str, str]] = {}
    for row in filter(shown, document["table"]):
        for name, spread in row["numbers"].items():
            if spread["count"]:
                place = name, row["arm"], _chart(row["chart"], row["gauge"])
                numbers.setdefault(place, {})[row["checkpoint"]] = _spread(spread)
    ratios: dict[tuple[str, ...], dict[str, str]] = {}
    compared = [row for row in document["ratios"] if shown(row)]
    for row in compared if any(row["compared"] for row in compared) else ():
        against = "standard arm" if row["design"] == "own training" else "same weights"
        place = row["quantity"], row["arm"], f"{_chart(row['chart'], row['gauge'])}, {against}"
        cell = _log_ratio(row) if row["compared"] else row["excluded"]
        ratios.setdefault(place, {})[row["checkpoint"]] = cell

    names = dict.fromkeys(place[0] for place in numbers)
    for title, cells in (("", numbers), ("log of the ratio to the standard chart", ratios)):
        lines = []
        for name in names:
            of_name = [(place, found) for place, found in cells.items() if place[0] == name]
            lines += [[name, *[""] * len(checkpoints)]] if of_name else []
            for (_, arm, place), found in of_name:
                lines.append((f"  {arm} arm, {place}", *(found.get(checkpoint, "-") for checkpoint in checkpoints)))
        if lines:
            _print_table((": ".join(filter(None, (_matrix_name(matrix), title))), *checkpoints), lines)
            _echo()
    if compared and not ratios:
        reasons = ", ".join(sorted({row["excluded"] for row in compared}))
        _echo(f"{_matrix_name(matrix)}: no log-ratios to the standard chart ({reasons})\n")


def _print_efficiencies(document: Mapping[str, Any], damping: float) -> None:
    steps = [row for row in document["efficiencies"] if row["block"] == "all"]
    if not steps:
        return
    nearest = min((row["relative_damping"] for row in steps), key=lambda one: abs(math.log(one / damping)))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in steps:
        if row["relative_damping"] == nearest:
            place = row["arm"], _chart(row["chart"], row["gauge"])
            cells.setdefault(place, {})[row["checkpoint"]] = _spread(row["efficiency"])
    checkpoints = document["checkpoints"]
    rows = [
        (f"{arm} arm, {chart}", *(found.get(checkpoint, "-") for checkpoint in checkpoints))
        for (arm, chart), found in cells.items()
    ]
    _print_table((f"Efficiency of one step (damping {nearest:g})", *checkpoints), rows)
    _echo(
        "1: as far as the damped natural gradient; standard is gradient descent; placebo has random directions for w\n"
    )


def _print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """First column left, the others right; as wide as it needs to be, since a pipe has no width."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for k, name in enumerate(header):
        table.add_column(one_line(name), justify="right" if k else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(one_line, row))
    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
    console.width = 10_000
    console.width = max(20, Measurement.get(console, console.options, table).maximum)
    console.print(table)


def _spread(spread: Mapping[str, Any]) -> str:
    if not spread["count"]:
        return "indefinite" if spread["status"] == "indefinite" else "undefined"
    median = _short(spread["median"])
    median = {"lower_bound": f"> {median}", "unresolved": f"({median})"}.get(spread["status"], median)
    return median if spread["count"] == 1 else f"{median} [{_short(spread['low'])}, {_short(spread['high'])}]"


def _short(number: float) -> str:
    """Three digits, and an exponent without its padding: three of these and a range stand in one row."""
    return re.sub(r"e([+-])0*(\d)", lambda found: f"e{found[1].replace('+', '')}{found[2]}", f"{number:.3g}")


def _log_ratio(row: Mapping[str, Any]) -> str:
    if row["reading"] == "equal":
        return "equal"
    median = f"{row['median']:+.2f}"
    text = median if row["compared"] == 1 else f"{median} [{row['low']:+.2f}, {row['high']:+.2f}]"
    return text + ("" if row["compared"] == row["pairs"] else f" ({row['compared']} of {row['pairs']})")


def _median_and_range(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return f"{known[0]:.4g}" if known else "-"
    return f"{statistics.median(known):.4g} [{min(known):.4g}, {max(known):.4g}]"


def _chart(chart: str, gauge: str) -> str:
    return chart if gauge == "-" else f"{chart} ({gauge})"


def _matrix_name(matrix: str) -> str:
    from curvature.report.figures import matrix_name

    return matrix_name(matrix)
