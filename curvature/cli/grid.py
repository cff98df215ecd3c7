"""``curvature compare --grid``: the study repeated over networks, data sets and optimizers, and pooled."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from curvature._version import __version__
from curvature.cli.execution import around_user_code, exit_if_open, show_every_character
from curvature.cli.grid_configuration import GridConfiguration, GridOptions
from curvature.cli.options import RunOptions
from curvature.cli.preparation import written_configuration
from curvature.cli.resumption import Resumption
from curvature.cli.tables import print_table
from curvature.cli.terminal import Terminal, count, one_line
from curvature.errors import ConfigurationError, ExitCode

if TYPE_CHECKING:
    from curvature.records import Study
    from curvature.report import Parts
    from curvature.studies.grid import GridSettings, Unit

__all__ = ["COMMAND", "execute_grid"]

COMMAND = "compare --grid"
_OPEN = ("undecided", "not tested")


def execute_grid(config: GridOptions, run_options: RunOptions, terminal: Terminal, started: float) -> None:
    """Measure every cell and seed of a grid, write the run directory, and print the tables.

    Parameters
    ----------
    config
        What is measured, and by whom.
    run_options
        The other options.
    terminal
        Receives notes, warnings and the progress.
    started
        Start of the run, as ``time.time()`` returns it.

    Raises
    ------
    typer.Exit
        If a self-check failed; under ``--strict``, if a verdict is open.
    """
    if run_options.fail_on:
        raise ConfigurationError("--fail-on is about the numbers of one network; a grid has verdicts: use --strict.")
    grid = config.configuration()
    settings = grid.settings()
    if run_options.dry_run:
        _print_plan(settings, as_json=run_options.as_json)
        return
    resumption = Resumption(COMMAND, run_options, terminal)
    with around_user_code(config, run_options, terminal), resumption.mentioned():
        document = _measured(config, grid, settings, terminal, started, resumption)
    out = run_options.out
    _print(document, as_json=run_options.as_json)
    for warning in document["warnings"] if terminal.verbose else ():
        terminal.warn(warning)
    if document["warnings"] and not terminal.verbose:
        terminal.note(f"{count(len(document['warnings']), 'warning')} about single cells (-v lists them)")
    terminal.note(f"time: {document['provenance']['seconds']:.1f} s")
    if out is not None:
        again = shlex.join(["curvature", "compare", "--grid", f"{out / 'config.toml'}", "--out", f"{out}-again"])
        terminal.note(f"report: {out.absolute() / 'report.html'}")
        terminal.note(f"next: {again} repeats this run")
    else:
        terminal.note("next: add --out runs/NAME for a report with forest plots and every number")
    _exit_unless_passed(document, terminal)
    open_ones = [f"{v['name']} is {v['outcome']}" for v in document["verdicts"] if v["outcome"] in _OPEN]
    exit_if_open(open_ones, terminal, strict=run_options.strict, what="verdicts")


def _measured(
    config: GridOptions,
    grid: GridConfiguration,
    settings: GridSettings,
    terminal: Terminal,
    started: float,
    resumption: Resumption,
) -> dict[str, Any]:
    """The summary; that of the run directory where ``--resume`` finds the run finished."""
    from curvature import provenance, report
    from curvature.studies.evidence.pooling import pooling_library
    from curvature.studies.grid import grid_study

    pooling_library()  # an hour later would be late
    hashes = {"data_sha256": _data_hash(grid)}
    if resumption.finds_finished(grid, hashes):
        assert resumption.out is not None
        return report.load_grid(resumption.out)
    workers = f"{config.backend or 'joblib'}, {config.scheduler or count(config.jobs, 'unit') + ' at a time'}"
    terminal.note(f"plan:  {_plan(settings)}; {workers}")
    parts = resumption.open(grid, hashes)
    study = grid_study(settings, _units(config, settings, parts, terminal))
    written = written_configuration(COMMAND, grid)
    document = report.grid_document(study, written, provenance.collect(started=started, dtype="float64", **hashes))
    if resumption.out is not None:
        resumption.write(report.grid_files(document))
    return document


def _data_hash(grid: GridConfiguration) -> str:
    from curvature.provenance import hash_tensors
    from curvature.studies.grid import DATA_SETS

    tensors: dict[str, Any] = {}
    for name in grid.data:
        inputs, targets = DATA_SETS[name].load(None)
        tensors |= {f"{name} inputs": inputs, f"{name} targets": targets}
    return hash_tensors(tensors)


def _units(config: GridOptions, settings: GridSettings, parts: Parts | None, terminal: Terminal) -> dict[Unit, Study]:
    """The measurements of every unit: those that were kept, and the others as soon as they are measured."""
    from curvature.studies.grid import measured_units

    kept = {unit: None if parts is None else parts.get(unit.name) for unit in settings.units}
    done: dict[Unit, Any] = {unit: part for unit, part in kept.items() if part is not None}
    missing = [unit for unit in settings.units if unit not in done]
    before, total = len(done), len(settings.units)
    with terminal.progress() as progress:

        def report_share(message: str, share: float) -> None:
            if progress is not None:
                progress(message, (before + share * len(missing)) / total)

        measured = measured_units(
            settings,
            missing,
            backend=config.backend or "joblib",
            jobs=config.jobs,
            scheduler=config.scheduler,
            progress=report_share,
        )
        for unit, part in measured:
            if parts is not None:
                parts[unit.name] = part
            done[unit] = part
    return done


def _plan(settings: GridSettings) -> str:
    cells, seeds = count(len(settings.cells), "cell"), count(len(settings.seeds), "paired seed")
    return (
        f"{cells} x {seeds} x {count(len(settings.arms), 'arm')}, each tuned over 7 or more learning rates of "
        f"{settings.tuning_epochs} epochs, then trained for {settings.epochs}"
    )


def _print_plan(settings: GridSettings, *, as_json: bool) -> None:
    from curvature.report.table import Table

    rows = []
    for cell in settings.cells:
        problem = settings.problem(cell, settings.seeds[0])
        rows.append((cell.name, problem.dim, problem.num_examples, len(settings.seeds)))
    header = ("cell", "weights", "examples", "seeds")
    if as_json:
        names = [key.replace("weights", "num_weights").replace("examples", "num_examples") for key in header]
        cells = [dict(zip(names, row, strict=True)) for row in rows]
        typer.echo(json.dumps({"version": __version__, "units": len(settings.units), "cells": cells}))
        return
    print_table(Table(f"{count(len(settings.units), 'unit')}: {_plan(settings)}", header, tuple(rows)))


def _print(document: Mapping[str, Any], *, as_json: bool) -> None:
    from curvature import report

    show_every_character()
    if as_json:
        typer.echo(json.dumps(document, allow_nan=False))
    else:
        for table in report.grid_tables(document):
            print_table(table)
    sys.stdout.flush()


def _exit_unless_passed(document: Mapping[str, Any], terminal: Terminal) -> None:
    failed = [(cell["name"], check) for cell in document["cells"] for check in cell["failed_checks"]]
    if failed:
        cell, check = failed[0]
        terminal.error(
            f"a self-check failed, do not trust the numbers: {one_line(cell)}: {check['name']}: {check['value']:.3g}, "
            f"allowed {check['tolerance']:.3g}."
        )
        raise typer.Exit(int(ExitCode.SELF_CHECK))
