"""Results as text on standard output."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import typer

from curvature.text import count, listed, one_line, printable

if TYPE_CHECKING:
    from curvature.linalg.planning import Plan
    from curvature.records import Spectrum, Study
    from curvature.report.effects import Effect
    from curvature.report.table import Row, Table
    from curvature.studies import StudyPlan

__all__ = ["plan_lines", "print_compare", "print_plans", "print_spectrum", "print_study_plan", "print_table"]

MOST_PICTURES = 12
_APART = {"decompositions", "table", "ratios", "efficiencies", "gauges", "checks"}  # printed with options, or not
_WIDE = ("size", "smallest", "largest", "rank", "inertia (noise floor)", "trace", "method")  # for the page alone
_WIDTH = 160  # characters of a line where no terminal has a width of its own


def print_spectrum(study: Study, document: Mapping[str, Any], verbose: bool) -> None:
    """Print each matrix in its charts, and the stretches of their gauges.

    Parameters
    ----------
    study
        What was measured.
    document
        Its summary.
    verbose
        Whether to print every quantity, with its interval, and every picture.
    """
    from curvature.records import ExtremalEigenvalues, SpectralDensity, Spectrum
    from curvature.report.spread import grouped
    from curvature.report.tables import estimates, spectra, training

    for matrix, table in spectra.spectrum_tables(document["spectra"], every_number=verbose).items():
        print_table(table)
        _print_pictures([m.record for m in study.of(Spectrum, matrix=matrix)], verbose)
    for ends in grouped(study.of(ExtremalEigenvalues), lambda m: m.record.matrix).values():
        table = estimates.ends_table(_estimate_title(ends[0].record, "ends", "lanczos"), ends)
        unsaid = {"weights", "matrix"} | (set() if ends[0].record.block != "all" else {"block"})
        print_table(table.without(unsaid), digits_of={"eigenvalue": 8, "error bound": 2})
    for matrix, rows in grouped(document["densities"], lambda row: row["matrix"]).items():
        (first, *_) = study.of(SpectralDensity, matrix=matrix)
        size = f"slq, {first.record.num_probes} probes x {first.record.num_matvecs} products"
        table = replace(estimates.density_table(rows), title=_estimate_title(first.record, "density", size))
        unsaid = {"probes × products"} | (set() if rows[0]["block"] != "all" else {"matrix"})
        print_table(table.without(unsaid))
    gauges = training.gauge_table(document)
    if gauges.rows:
        print_table(gauges.without(("weights", "checkpoint")))


def _estimate_title(record: Any, kind: str, method: str) -> str:
    from curvature.report.words import matrix_name

    kind += ", sum over examples" if record.reduction == "sum" else ""
    return f"{matrix_name(record.matrix)}, {kind} (N = {record.num_examples}, {record.dtype}, {method})"


def _print_pictures(spectra: Sequence[Spectrum], verbose: bool) -> None:
    from curvature.report.figures import text_picture

    pictured = spectra if verbose else spectra[:MOST_PICTURES]
    for spectrum in pictured:
        _echo(text_picture(spectrum, bar="█" if _can_print("█") else "#") + "\n")
    if len(pictured) < len(spectra):
        _echo(f"({len(spectra) - len(pictured)} more pictures: -v)\n")


def print_compare(study: Study, document: Mapping[str, Any], verbose: bool) -> None:
    """Print the answer and the picture of every claim; with options, from the tables of the report, all the rest.

    Parameters
    ----------
    study
        What was measured.
    document
        Its summary.
    verbose
        Whether to print how each claim was decided, the tables, and all findings.
    """
    from curvature.report.claims import claim_effects
    from curvature.report.tables.league import league_answer

    _echo(f"{document['question']}\n\n{_printable_words(document['answer']['plain'])}\n")
    _print_picture([effect for effect in claim_effects(study) if effect.outcome != "not tested"])
    league = league_answer(document)
    if league:
        _echo(_printable_words(f"whitening league: {league}"))
    untested = [row for row in document["verdicts"] if row["outcome"] == "not tested"]
    if untested:
        _echo(_printable_words(f"not tested: {'; '.join(row['label'] for row in untested)}"))
    failed = [row for row in document["verdicts"] if row["control_passed"] is False]
    for row in failed:
        _echo(_printable_words(f"{row['label']}: {row['control_words']}"))
    for finding in document["findings"]:
        if finding["kind"] == "problem":
            _echo(finding["text"])
    if verbose:
        _echo()
        _print_rest(study, document)
    else:
        _echo("-v prints how each claim was decided, and every table")


def _print_picture(effects: Sequence[Effect]) -> None:
    from curvature.report.effects import text_forest

    colors = {"supported": "green", "opposite": "red"}
    width = shutil.get_terminal_size((_WIDTH, 24)).columns
    for line in text_forest(effects, width=width, ascii_only=not _can_print("κ₈₀─●│░◂▸✓≈✗")):
        outcome = next((effect.outcome for effect in effects if line[2:].startswith(f"{effect.outcome} ")), "")
        typer.secho(printable(line), fg=colors.get(outcome, "yellow" if outcome == "undecided" else None))
    _echo("factors with 95 % intervals; below 1 favours weight norm; shaded: within 10 %\n")


def _printable_words(text: str) -> str:
    from curvature.report.effects import ascii_words

    return text if _can_print("κ₈₀−≈") else ascii_words(text)


def _print_rest(study: Study, document: Mapping[str, Any]) -> None:
    """Print how each claim was decided, then medians and ranges over seeds."""
    from curvature.report.tables import KINDS, ratios, spectra, steps, training, verdicts

    for row in document["verdicts"]:
        _print_verdict(row)
    _echo()
    _print_tables([verdicts.decomposition_table(document)])
    _echo(f"Median over {count(len(document['seeds']), 'seed')} [lowest, highest]\n")
    print_table(training.training_table(document))
    shown = _shown_rows(document)
    _print_tables(table.without(_WIDE) for table in spectra.summary_tables(document, shown))
    _print_tables(ratios.ratio_tables(document, shown))
    _print_tables([ratios.equality_table(document)])
    _print_tables(table for kind in KINDS if kind.key not in _APART and kind.tables for table in kind.tables(document))
    _print_tables(steps.efficiency_tables(document, study.config.get("relative_damping", 1e-3)))
    for finding in document["findings"]:
        _echo(finding["text"] + "\n")


def _shown_rows(document: Mapping[str, Any]) -> Callable[[Row], bool]:
    """Decide which rows are printed: whole matrices, without those that equal the standard chart."""
    equal = {row["matrix"] for row in document["equality"]}

    def shown(row: Row) -> bool:
        repeated = row["gauge"].startswith("stretch=") or (row["gauge"] == "canonical" and row["matrix"] in equal)
        whole = row["block"] == "all" and (row["effective"] or row["chart"] == "standard")
        return whole and not repeated

    return shown


def _print_verdict(row: Row) -> None:
    """Print a block for one claim: what was compared, why the outcome is what it is, control and adjusted interval."""
    lines = (
        f"{row['icon']} {row['outcome']}  {row['label']}: {row['number']}",
        f"    {row['name']}: {row['sentence']}",
        f"    {row['reason']}",
        f"    {row['control_words']}" if row["control_words"] else "",
        f"    decided by the {row['adjusted']}" if row["adjusted"] else "",
        f"    {row['note']}" if row["note"] and row["outcome"] != "not tested" else "",
    )
    for line in filter(None, lines):
        _echo(_printable_words(line))


def plan_lines(plans: Mapping[str, Sequence[tuple[Plan, ...]]]) -> list[str]:
    """Say in one line per matrix how it is computed, with how much memory, in how much time.

    Parameters
    ----------
    plans
        By the name of the matrix, the plans of every chart and block.

    Returns
    -------
    list of str
        One line per matrix.
    """
    from curvature.linalg.planning import summary
    from curvature.report.words import matrix_name

    return [
        f"{matrix_name(matrix)}: {summary([plan for group in charts for plan in group])}"
        for matrix, charts in plans.items()
    ]


def print_plans(
    plans: Mapping[str, Sequence[tuple[Plan, ...]]], as_json: bool, *, checkpoints: Sequence[str] | None = None
) -> None:
    """Print every plan: what a dry run is for.

    Parameters
    ----------
    plans
        By the name of the matrix, the plans of every chart and block.
    as_json
        Whether to print one JSON document.
    checkpoints
        Names of those to each of which the plans apply.
    """
    every = [plan for charts in plans.values() for group in charts for plan in group]
    if as_json:
        from curvature.records.storage import to_plain

        document = {"schema": "curvature/plan/1", "plans": list(map(to_plain, every))}
        document |= {} if checkpoints is None else {"checkpoints": list(checkpoints)}
        _echo(json.dumps(document, allow_nan=False))
        return
    if checkpoints is not None:
        _echo(one_line(f"plan: {count(len(checkpoints), 'checkpoint')}, {listed(checkpoints)}; for each of them:"))
    for line in plan_lines(plans):
        _echo(one_line(f"plan: {line}"))
    _echo()
    for plan in every:
        _echo(one_line(str(plan)))
        for name, reason in plan.rejected:
            _echo(f"  not {name}: {reason}")


def print_study_plan(plan: StudyPlan, jobs: int, as_json: bool) -> None:
    """Print what a study will do.

    Parameters
    ----------
    plan
        Its counts.
    jobs
        Seeds at a time, each with its own memory.
    as_json
        Whether to print one JSON document.
    """
    from curvature.linalg.memory import memory_text
    from curvature.report.words import matrix_name

    if as_json:
        _echo(json.dumps({"schema": "curvature/plan/1", "study": asdict(plan)}, allow_nan=False))
        return
    seeds = f"{count(plan.num_seeds, 'paired seed')} x {count(plan.num_arms, 'arm')}"
    if plan.num_tuning_runs:
        runs = count(plan.num_tuning_runs, "run")
        _echo(f"tuning:   at least {runs} of {count(plan.steps_per_tuning_run, 'optimizer step')}")
    _echo(f"training: {seeds}: {count(plan.num_runs, 'run')} of {count(plan.steps_per_run, 'optimizer step')}")
    spectra = ", ".join(f"{number} of the {matrix_name(name)}" for name, number in plan.num_spectra.items())
    total = count(sum(plan.num_spectra.values()), "spectrum", "spectra")
    _echo(f"spectra:  up to {total} of size {plan.dim} or less: {spectra}")
    if plan.num_step_comparisons:
        league = f", in a league of all methods at {plan.num_leagues} of them" if plan.num_leagues else ""
        points = count(plan.num_step_comparisons, "point")
        _echo(f"steps:    compared with the natural gradient at {points} of training{league}")
    memory = memory_text(min(jobs, plan.num_seeds) * plan.num_bytes)
    _echo(f"memory:   at most {memory} for matrices, {count(min(jobs, plan.num_seeds), 'seed')} at a time")
    _echo("time:     not estimated; a run shows the remaining time once it can be told, and --resume continues it")


def _print_tables(tables: Iterable[Table]) -> None:
    for table in tables:
        if table.rows:
            print_table(table, digits=3)


def print_table(table: Table, **options: Any) -> None:
    """Print a table as wide as the terminal, and an empty line.

    Parameters
    ----------
    table
        What to print.
    **options
        As for :func:`curvature.report.render.table_text`.
    """
    from curvature.report.render import table_text

    width = shutil.get_terminal_size((_WIDTH, 24)).columns
    _echo(table_text(table, width=width, **options) + "\n")


def _echo(text: str = "") -> None:
    """Print to stdout; names in the text are the user's, and none of them may steer the terminal."""
    typer.echo(printable(text))


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
