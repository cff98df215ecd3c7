"""``curvature analyze``: an overview of a model, a row for each layer."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from curvature._version import __version__
from curvature.cli.configuration import MATRICES, AnalyzeConfiguration
from curvature.cli.execution import (
    around_user_code,
    command_again,
    configured,
    exit_if_open,
    show_every_character,
)
from curvature.cli.options import RunOptions
from curvature.cli.preparation import collected_provenance, note_versions, prepare, written_configuration
from curvature.cli.prepared import describe_data, describe_model, with_defined_matrices
from curvature.cli.resumption import Resumption
from curvature.cli.rules import NAMES_OF_LAYERS, exit_on, numbers_of_analyses, parse_rules
from curvature.cli.tables import print_table
from curvature.cli.terminal import Terminal, count

if TYPE_CHECKING:
    from curvature.records import Analysis

__all__ = ["execute_analysis"]

_SCHEMA = "curvature/analysis/1"


def execute_analysis(flags: dict[str, Any], run_options: RunOptions) -> None:
    """Resolve the configuration, analyze, write the run directory, and print the tables.

    Parameters
    ----------
    flags
        Values of the options that are fields of the configuration.
    run_options
        The other options.

    Raises
    ------
    typer.Exit
        If a rule of ``--fail-on`` holds; under ``--strict``, if a headline number of the whole model is open.
    """
    from curvature import report

    started = time.time()
    terminal = Terminal(run_options.quiet, run_options.verbose)
    rules = parse_rules(run_options.fail_on, NAMES_OF_LAYERS)
    config = configured("analyze", flags, run_options, terminal)
    assert isinstance(config, AnalyzeConfiguration)
    resumption = Resumption("analyze", run_options, terminal)
    with around_user_code(config, run_options, terminal), resumption.mentioned():
        analyses, document, finished = _analyzed(config, terminal, started, resumption)
        out = run_options.out
        if out is not None and not finished:
            out = resumption.write(report.analysis_files(analyses, document))
    if run_options.as_json:
        typer.echo(json.dumps(document, allow_nan=False))
    else:
        _print(analyses)
    for analysis in analyses:
        for warning in analysis.warnings:
            terminal.warn(f"{analysis.label}: {warning}" if len(analyses) > 1 else warning)
    if out is not None:
        terminal.note(f"written: {out}, with report.html, analysis.csv, analysis.json and a figure for each table")
        terminal.note(f"next: {command_again('analyze', config, out, '--out', f'{out}-again')} repeats this run")
    exit_on(rules, numbers_of_analyses(analyses), terminal, strict=run_options.strict)
    exit_if_open(_open_numbers(analyses), terminal, strict=run_options.strict)


def _analyzed(
    config: AnalyzeConfiguration, terminal: Terminal, started: float, resumption: Resumption
) -> tuple[list[Analysis], dict[str, Any], bool]:
    """The analyses, the document that has everything in plain values, and whether the run was finished before."""
    import torch

    from curvature import report
    from curvature.cli import loading
    from curvature.records import LayerSummary
    from curvature.report.plain import plain_values
    from curvature.studies import analyze
    from curvature.studies.progress import part_of

    note_versions(config, terminal)
    prepared = prepare(config, terminal, seed=config.seed)
    problem = prepared.problem(prepared.model, getattr(torch, config.dtype))
    config = with_defined_matrices(config, problem, terminal)
    model = describe_model(config, None if config.weights or config.parameters else f"seed {config.seed}")
    data = describe_data(config, prepared)
    terminal.note(f"model: {model}: {problem.dim} weights in {count(len(problem.layout.entries), 'tensor')}")
    terminal.note(f"data:  {data}")
    charts = loading.chosen_charts(config.chart, config.gauge, problem.chart, problem.layout, seed=config.seed)
    problem = loading.at_nearest(problem, charts) if config.nearest else problem
    for note in problem.notes:
        terminal.note(f"note: {note}")
    if resumption.finds_finished(config, prepared):
        assert resumption.out is not None
        return (*report.load_analyses(resumption.out), True)
    rows = resumption.open(config, prepared, LayerSummary)
    tables = [(name, chart) for name in config.matrix for chart in charts]
    analyses = []
    with terminal.progress() as progress:
        for number, (name, chart) in enumerate(tables):
            analysis = analyze(
                problem,
                matrix=MATRICES[name],
                chart=chart,
                seed=config.seed,
                finished=None if rows is None else rows.within(f"{name}, {chart.name}, {chart.gauge}"),
                progress=part_of(progress, number, len(tables)) or False,
            )
            analyses.append(analysis)
    document = {
        "schema": _SCHEMA,
        "version": __version__,
        "model": model,
        "data": data,
        "notes": list(problem.notes),
        "analyses": [asdict(analysis) for analysis in analyses],
        "config": written_configuration("analyze", config),
        "provenance": collected_provenance(config, prepared, started=started),
    }
    return analyses, plain_values(document), False


def _print(analyses: Sequence[Analysis]) -> None:
    from curvature.records.analysis import HEADER
    from curvature.report.table import Table

    show_every_character()
    for analysis in analyses:
        rows: tuple[tuple[Any, ...], ...] = tuple((row.layer, row.num_parameters, *row.texts) for row in analysis.rows)
        print_table(Table(analysis.summary, HEADER, rows))
    sys.stdout.flush()


def _open_numbers(analyses: Sequence[Analysis]) -> list[str]:
    """Describe each headline number of the whole model that is open."""
    names = ("largest", "kappa_80", "effective_rank")
    open_numbers = []
    for analysis in analyses:
        estimated = ("undefined",) if analysis.whole.method == "lanczos" else ()  # otherwise there is no such number
        for name in names:
            status = getattr(analysis.whole, name).status
            if status in ("lower_bound", "upper_bound_only", "unresolved", *estimated):
                open_numbers.append(f"{name} of {analysis.label} ({status.replace('_', ' ')})")
    return open_numbers
