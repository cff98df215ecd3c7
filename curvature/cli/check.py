"""``curvature check``: whether a model, its data and its loss can be used, and what their spectra would cost."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from curvature._version import __version__
from curvature.cli.configuration import SpectrumConfiguration
from curvature.cli.execution import around_user_code, configured, show_every_character
from curvature.cli.options import RunOptions, option_words
from curvature.cli.spectrum import Work, load_work
from curvature.cli.tables import plan_lines
from curvature.cli.terminal import Terminal, count, printable
from curvature.cli.wording import listed

if TYPE_CHECKING:
    from curvature.linalg.planning import Plan
    from curvature.records import Check

__all__ = ["execute_check"]

_SCHEMA = "curvature/check/1"


def execute_check(flags: dict[str, Any], run_options: RunOptions) -> None:
    """Load everything, run the self-checks, plan, and print what was found; compute no spectrum.

    Parameters
    ----------
    flags
        Values of the options that are fields of the configuration.
    run_options
        The other options.

    Raises
    ------
    SelfCheckError
        If a matrix fails a self-check.
    """
    from curvature import studies

    terminal = Terminal(run_options.quiet, run_options.verbose)
    config = configured("spectrum", flags, run_options, terminal)
    assert isinstance(config, SpectrumConfiguration)
    with around_user_code(config, run_options, terminal):
        work = load_work(config, terminal)
        checks = studies.check_spectrum(work.problem, work.settings)
        plans = studies.plan_spectrum(work.problem, work.settings)
    show_every_character()
    if run_options.as_json:
        typer.echo(json.dumps(_document(work, checks, plans), allow_nan=False))
    else:
        for line in _lines(work, checks, plans, verbose=run_options.verbose):
            typer.echo(printable(line))
    sys.stdout.flush()
    terminal.note(f"next: {shlex.join(_next_command(flags, run_options))}")


def _next_command(flags: Mapping[str, Any], run_options: RunOptions) -> list[str]:
    """``curvature spectrum`` with the options of this command."""
    command = ["curvature", "spectrum"]
    for name, value in flags.items():
        values = value if isinstance(value, list) else [] if value is None else [value]
        command += option_words(name, values)
    command += [word for setting in run_options.settings or () for word in ("--set", setting)]
    if run_options.config is not None:
        command += ["--config", str(run_options.config)]
    return [*command, "--trust-config"] if run_options.trust_config else command


def _lines(
    work: Work,
    checks: Mapping[str, Sequence[Check]],
    plans: Mapping[str, Sequence[tuple[Plan, ...]]],
    *,
    verbose: bool,
) -> Iterator[str]:
    from curvature.report.words import matrix_name

    problem = work.problem
    yield f"model:   {work.model}: {problem.dim} weights in {count(len(problem.layout.entries), 'tensor')}"
    yield f"data:    {work.data}"
    yield f"chart:   the model is in {problem.chart.name}; measured in {', '.join(_charts(work))}"
    if problem.frozen:
        yield f"frozen:  {listed(problem.frozen)}"
    if problem.unused:
        yield f"unused:  {listed(problem.unused)}: the loss does not depend on them, so their curvature is zero"
    for note in problem.notes:
        yield f"note:    {note}"
    for matrix, of_matrix in checks.items():
        yield f"checks:  {matrix_name(matrix)}: {len(of_matrix)} of {len(of_matrix)} passed"
        for check in of_matrix if verbose else ():
            yield f"         {check.name}: {check.value:.2g} (allowed {check.tolerance:.2g})"
    for line in plan_lines(plans):
        yield f"plan:    {line}"


def _charts(work: Work) -> list[str]:
    from curvature.records.where import chart_label

    return [chart_label(chart.name, chart.gauge) for chart in work.settings.charts]


def _document(
    work: Work, checks: Mapping[str, Sequence[Check]], plans: Mapping[str, Sequence[tuple[Plan, ...]]]
) -> dict[str, Any]:
    from curvature.records.storage import to_plain
    from curvature.report.plain import plain_values

    problem = work.problem
    every_plan = [plan for charts in plans.values() for several in charts for plan in several]
    return plain_values(
        {
            "schema": _SCHEMA,
            "version": __version__,
            "model": work.model,
            "data": work.data,
            "loss": work.config.loss or problem.loss.name,
            "num_weights": problem.dim,
            "num_examples": problem.num_examples,
            "chart": problem.chart.name,
            "charts": _charts(work),
            "frozen": list(problem.frozen),
            "unused": list(problem.unused),
            "notes": list(problem.notes),
            "checks": {matrix: list(map(to_plain, of_matrix)) for matrix, of_matrix in checks.items()},
            "plans": list(map(to_plain, every_plan)),
        }
    )
