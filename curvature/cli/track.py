"""``curvature track``: the curvature at every checkpoint of a folder, each measured once."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from curvature._version import __version__
from curvature.cli.configuration import MATRICES, TrackConfiguration
from curvature.cli.execution import (
    around_user_code,
    command_again,
    configured,
    exit_if_open,
    show_every_character,
)
from curvature.cli.options import RunOptions
from curvature.cli.preparation import collected_provenance, note_versions, prepare, written_configuration
from curvature.cli.prepared import Prepared, describe_data, describe_model
from curvature.cli.resumption import Resumption
from curvature.cli.rules import NAMES_OF_CHECKPOINTS, exit_on, numbers_of_checkpoints, parse_rules
from curvature.cli.tables import print_plans, print_table
from curvature.cli.terminal import Terminal, count, one_line
from curvature.errors import ConfigurationError, CurvatureError, InputError, NonFiniteError

if TYPE_CHECKING:
    from curvature.linalg.planning import Plan
    from curvature.records import CheckpointSummary, TrackPoint
    from curvature.report import Parts

__all__ = ["execute_track"]

_SCHEMA = "curvature/track/1"
_TOLERANCE = 1e-6  # of an eigenvalue by Lanczos, relative to the largest
_TRACE_PRODUCTS = 100  # no training waits for them
# Dimension up to which every eigenvalue is computed. At 2000 that takes seconds on one core, for each checkpoint.
_WHOLE_UP_TO = {"auto": 2000, "exact": sys.maxsize, "lanczos": 0}
_BROKEN = (InputError, ConfigurationError, NonFiniteError)


@dataclass
class _Tracked:
    """Rows by the name of their checkpoint, in the order of the steps, and what was left out."""

    rows: dict[str, CheckpointSummary] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    num_new: int = 0

    def in_order(self) -> list[CheckpointSummary]:
        from curvature.cli.loading import natural_key

        rows = list(self.rows.values())
        if all(row.step is not None for row in rows):
            return sorted(rows, key=lambda row: (row.step, natural_key(row.checkpoint)))
        return sorted(rows, key=lambda row: natural_key(row.checkpoint))


def execute_track(flags: dict[str, Any], run_options: RunOptions) -> None:
    """Resolve the configuration, measure every checkpoint, write the run directory, and print the tables.

    Parameters
    ----------
    flags
        Values of the options that are fields of the configuration.
    run_options
        The other options.

    Raises
    ------
    typer.Exit
        If a rule of ``--fail-on`` holds; under ``--strict``, if a number is open or a checkpoint was left out.
    """
    from curvature import report

    started = time.time()
    terminal = Terminal(run_options.quiet, run_options.verbose)
    rules = parse_rules(run_options.fail_on, NAMES_OF_CHECKPOINTS)
    config = configured("track", flags, run_options, terminal)
    assert isinstance(config, TrackConfiguration)
    if run_options.dry_run:
        _print_plan(config, run_options, terminal)
        return
    resumption = Resumption("track", run_options, terminal)
    with around_user_code(config, run_options, terminal), resumption.mentioned():
        tracked, document, finished = _tracked(config, terminal, started, resumption)
        rows = tracked.in_order()
        out = run_options.out
        if out is not None and not finished:
            out = resumption.write(report.checkpoint_files(rows, document))
    _print(rows, document, as_json=run_options.as_json)
    for name, reason in tracked.skipped.items():
        terminal.warn(f"left out: {name}: {reason}")
    for warning in document["warnings"]:
        terminal.warn(warning)
    if out is not None:
        again = command_again("track", config, out, "--out", str(out), "--resume")
        terminal.note(f"report: {out / 'report.html'}")
        terminal.note(f"next: {again} adds checkpoints that are saved later")
    exit_on(rules, numbers_of_checkpoints(rows), terminal, strict=run_options.strict)
    exit_if_open(_open_numbers(rows, tracked.skipped), terminal, strict=run_options.strict)


def _print_plan(config: TrackConfiguration, run_options: RunOptions, terminal: Terminal) -> None:
    """Print the checkpoints, and how each matrix of one of them is computed."""
    import torch

    from curvature.cli import loading
    from curvature.linalg.planning import plans
    from curvature.linalg.work import Counts
    from curvature.studies.measuring import in_chart, matrix_of

    assert config.folder is not None
    planned: dict[str, list[tuple[Plan, ...]]] = {}
    with around_user_code(config, run_options, terminal):
        checkpoints = loading.find_checkpoints(config.folder, config.pattern)
        prepared = prepare(config.model_copy(update={"key": None, "strip_prefix": None}), terminal, seed=config.seed)
        problem = prepared.problem(prepared.build(config.seed), getattr(torch, config.dtype))
        for chart in loading.chosen_charts(config.chart, config.gauge, problem.chart, problem.layout, seed=config.seed):
            for name in config.matrix:
                operator = in_chart(matrix_of(problem, MATRICES[name], config.seed, 1), chart)
                method = "exact" if operator.dim <= _WHOLE_UP_TO[config.method] else "lanczos"
                planned.setdefault(MATRICES[name], []).append(plans(operator, method, counts=Counts(config.top)))
    print_plans(planned, run_options.as_json, checkpoints=list(checkpoints))


def _tracked(
    config: TrackConfiguration, terminal: Terminal, started: float, resumption: Resumption
) -> tuple[_Tracked, dict[str, Any], bool]:
    """The rows, the document with everything in plain values, and whether nothing had to be measured."""
    from curvature import report
    from curvature.cli import loading
    from curvature.records import CheckpointSummary
    from curvature.report.plain import plain_values

    assert config.folder is not None
    note_versions(config, terminal)
    checkpoints = loading.find_checkpoints(config.folder, config.pattern)
    prepared = prepare(config.model_copy(update={"key": None, "strip_prefix": None}), terminal, seed=config.seed)
    model, data = describe_model(config), describe_data(config, prepared)
    terminal.note(f"model: {model}")
    terminal.note(f"data:  {data}")
    before: list[CheckpointSummary] = []
    holds_same = resumption.holds_same(config, prepared)
    if holds_same:
        assert resumption.out is not None
        before = report.load_rows(resumption.out)
        terminal.note(f"resume: {count(len(before), 'finished checkpoint')} found in {one_line(str(resumption.out))}")
    parts = resumption.open(config, prepared, CheckpointSummary, expected=not holds_same)
    before += [] if parts is None else parts.values()
    tracked = _measured(config, prepared, checkpoints, before, parts, terminal)
    if not tracked.rows:
        name, reason = next(iter(tracked.skipped.items()))
        raise InputError(f"no checkpoint in {config.folder} could be used. The first is {name}: {reason}")
    finished = holds_same and not tracked.num_new and (parts is None or not len(parts))
    if finished:
        terminal.note("resume: no checkpoint was added; nothing is left to do")
    rows = tracked.in_order()
    document = {
        "schema": _SCHEMA,
        "version": __version__,
        "command": "track",
        "model": model,
        "data": data,
        "rows": [asdict(row) for row in rows],
        "skipped": tracked.skipped,
        "warnings": list(tracked.notes),
        "config": written_configuration("track", config),
        "provenance": collected_provenance(config, prepared, started=started),
    }
    return tracked, plain_values(document), finished


def _measured(
    config: TrackConfiguration,
    prepared: Prepared,
    checkpoints: Mapping[str, Path],
    before: Sequence[CheckpointSummary],
    parts: Parts | None,
    terminal: Terminal,
) -> _Tracked:
    """Measure the checkpoints that were not measured before; a file that has changed since is an error."""
    from curvature.cli.loading import hash_checkpoint

    tracked = _Tracked(rows={row.checkpoint: row for row in before})
    hashes = {name: hash_checkpoint(path) for name, path in checkpoints.items()}
    for name, row in tracked.rows.items():
        if name in hashes and hashes[name] != row.file_sha256:
            raise ConfigurationError(
                f"the checkpoint {one_line(name)} has changed since it was measured, so its row would be about weights "
                "that are gone. Put the old file back, choose another --out, or start again with --overwrite."
            )
    by_hash = {row.file_sha256: row.checkpoint for row in before}
    gone = [name for name in tracked.rows if name not in hashes]
    if gone:
        terminal.note(f"resume: {count(len(gone), 'measured checkpoint')} no longer in the folder; the rows are kept")
    with terminal.progress() as progress:
        for number, (name, path) in enumerate(checkpoints.items()):
            if name in tracked.rows:
                continue
            if progress is not None:
                progress(one_line(name), number / len(checkpoints))
            if by_hash.setdefault(hashes[name], name) != name:
                terminal.note(f"note: {one_line(name)} is a copy of {one_line(by_hash[hashes[name]])}; measured once")
                continue
            try:
                row = _measured_checkpoint(config, prepared, path, name, hashes[name], terminal, tracked.notes)
            except _BROKEN as error:
                tracked.skipped[name] = _reason(name, error, skip=config.skip_broken)
                continue
            tracked.rows[name] = row
            tracked.num_new += 1
            if parts is not None:
                parts[name] = row
    return tracked


def _reason(name: str, error: CurvatureError, *, skip: bool) -> str:
    """Why a checkpoint is left out; an error unless that was asked for."""
    if skip:
        return str(error)
    raise type(error)(
        f"the checkpoint {one_line(name)} cannot be used: {error} Repair or remove it, or leave such files out with "
        "--skip-broken."
    ) from error


def _measured_checkpoint(
    config: TrackConfiguration,
    prepared: Prepared,
    path: Path,
    name: str,
    sha256: str,
    terminal: Terminal,
    notes: dict[str, None],
) -> CheckpointSummary:
    import torch

    from curvature.cli import loading
    from curvature.records import CheckpointSummary
    from curvature.studies.tracking import TrackSettings, measure_track_point

    tensors = loading.load_weights(path, config.key, terminal.say)
    model = loading.apply_weights(prepared.build(config.seed), tensors, terminal.say, strip_prefix=config.strip_prefix)
    _refuse_not_finite(tensors)
    problem = prepared.problem(model, getattr(torch, config.dtype))
    notes.update(dict.fromkeys(problem.notes))
    step = loading.training_step(path, name)
    charts = loading.chosen_charts(config.chart, config.gauge, problem.chart, problem.layout, seed=config.seed)
    points = []
    for chart in charts:
        settings = TrackSettings(
            matrices=tuple(MATRICES[matrix] for matrix in config.matrix),
            chart=chart,
            num_eigenvalues=config.top,
            tolerance=_TOLERANCE,
            verify=True,
            trace_products=_TRACE_PRODUCTS,
            whole_spectrum_up_to=_WHOLE_UP_TO[config.method],
            seed=config.seed,
        )
        # No warm start: the row must not depend on which checkpoints this process has measured.
        point, _ = measure_track_point(problem, settings, step=step or 0, name=name)
        if point.diverged or point.note:
            raise NonFiniteError(f"{point.note}.")
        points.append(_without_times(point))
    labels = tuple(chart.at(problem.layout, problem.weights).label for chart in charts)
    return CheckpointSummary(name, step, sha256, labels, tuple(points))


def _without_times(point: TrackPoint) -> TrackPoint:
    matrices = tuple(replace(matrix, seconds=math.nan) for matrix in point.matrices)
    return replace(point, matrices=matrices, seconds=math.nan)


def _refuse_not_finite(tensors: Mapping[str, Any]) -> None:
    import torch

    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NonFiniteError(f"{name} contains NaN or infinity: training has diverged before this checkpoint.")


def _print(rows: Sequence[CheckpointSummary], document: Mapping[str, Any], *, as_json: bool) -> None:
    from curvature import report

    show_every_character()
    if as_json:
        typer.echo(json.dumps(document, allow_nan=False))
    else:
        for table in report.checkpoint_tables(rows):
            print_table(table)
    sys.stdout.flush()


def _open_numbers(rows: Sequence[CheckpointSummary], skipped: Mapping[str, str]) -> list[str]:
    """Describe each number that is open, and each checkpoint that was left out."""
    open_numbers = [f"{name} (left out)" for name in skipped]
    for row in rows:
        for chart, point in zip(row.charts, row.points, strict=True):
            open_numbers += [
                f"{name} in {chart} at {row.checkpoint} ({quantity.status.replace('_', ' ')})"
                for name, quantity in point.quantities.items()
                if quantity.status in ("lower_bound", "upper_bound_only", "unresolved")
            ]
    return open_numbers
