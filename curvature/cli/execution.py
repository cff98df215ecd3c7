"""Run one command: resolve its configuration, measure, write, print."""

from __future__ import annotations

import contextlib
import gc
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from curvature.cli import tables
from curvature.cli.compare import measure_compare, plan_compare
from curvature.cli.configuration import CompareConfiguration, Configuration, SpectrumConfiguration
from curvature.cli.grid_configuration import GridOptions
from curvature.cli.options import RunOptions, model_and_data
from curvature.cli.preparation import limited_threads
from curvature.cli.resumption import Resumption, check_out
from curvature.cli.rules import exit_on, numbers_of_study, parse_rules
from curvature.cli.sources import names_code, resolve, resolve_grid
from curvature.cli.spectrum import measure_spectrum, plan_spectrum
from curvature.cli.terminal import Terminal, count, one_line, short_warnings
from curvature.errors import ConfigurationError, ExitCode

if TYPE_CHECKING:
    from curvature.records import Study

__all__ = [
    "around_user_code",
    "command_again",
    "configured",
    "execute",
    "exit_if_open",
    "libraries_are_loaded",
    "show_every_character",
]


def execute(
    command: str,
    flags: dict[str, Any],
    run_options: RunOptions,
    *,
    over_grid: Callable[[GridOptions, RunOptions, Terminal, float], None] | None = None,
) -> None:
    """Resolve the configuration, measure, write the run directory, and print the result.

    Parameters
    ----------
    command
        ``spectrum`` or ``compare``.
    flags
        Values of the options that are fields of the configuration.
    run_options
        The other options.
    over_grid
        Carries out ``compare --grid``.

    Raises
    ------
    typer.Exit
        With the exit code of a failed self-check, of a rule of ``--fail-on``, or of an open result under ``--strict``.
    """
    started = time.time()
    terminal = Terminal(run_options.quiet, run_options.verbose)
    rules = parse_rules(run_options.fail_on)
    if over_grid is not None:
        settings = run_options.settings or ()
        grid = resolve_grid(flags, file=run_options.config, settings=settings, warn=terminal.warn)
        if grid is not None:
            over_grid(grid, run_options, terminal, started)
            return
    config = configured(command, flags, run_options, terminal)
    _require_out(config, run_options)
    if run_options.dry_run:
        _print_plan(config, run_options, terminal)
        return
    resumption = Resumption(command, run_options, terminal)
    with around_user_code(config, run_options, terminal), resumption.mentioned():
        study, document, out = _measured(config, terminal, started, resumption)
    _print_result(command, study, document, run_options)
    _print_notes(study, terminal)
    _print_next_steps(command, config, terminal, out)
    _exit_unless_passed(study, terminal)
    exit_on(rules, numbers_of_study(study), terminal, strict=run_options.strict)
    open_ones = _unresolved(study) if run_options.strict else []
    exit_if_open(open_ones, terminal, strict=run_options.strict, what="numbers or verdicts")


def _require_out(config: Configuration, run_options: RunOptions) -> None:
    """Refuse eigenvectors that have no place, before hours are spent on them."""
    asked = isinstance(config, SpectrumConfiguration) and config.save_eigenvectors is not None
    if asked and run_options.out is None and not run_options.dry_run:
        raise ConfigurationError(
            "--save-eigenvectors writes files into the run directory, and there is none: add --out DIR."
        )


def _print_plan(config: Configuration, run_options: RunOptions, terminal: Terminal) -> None:
    if isinstance(config, SpectrumConfiguration):
        with around_user_code(config, run_options, terminal):
            plans = plan_spectrum(config, terminal)
        tables.print_plans(plans, run_options.as_json)
        return
    assert isinstance(config, CompareConfiguration)
    with around_user_code(config, run_options, terminal):
        plan = plan_compare(config, terminal)
    tables.print_study_plan(plan, config.jobs, run_options.as_json)


def configured(command: str, flags: dict[str, Any], run_options: RunOptions, terminal: Terminal) -> Configuration:
    """Resolve the configuration of a command from its options, the environment and a file.

    Parameters
    ----------
    command
        ``spectrum``, ``compare`` or ``analyze``.
    flags, run_options
        Its options.
    terminal
        Receives warnings.

    Returns
    -------
    Configuration
        Of the class that belongs to the command.
    """
    return resolve(
        command,
        flags,
        file=run_options.config,
        settings=run_options.settings or (),
        trust=run_options.trust_config,
        warn=terminal.warn,
    )


def show_every_character() -> None:
    """Print a replacement for what the terminal does not have: the numbers are shown all the same."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")


@contextlib.contextmanager
def around_user_code(
    config: Configuration | GridOptions, run_options: RunOptions, terminal: Terminal
) -> Iterator[None]:
    """Send output of user code to stderr, shorten warnings of libraries, and limit the threads.

    Parameters
    ----------
    config, run_options
        Of the command.
    terminal
        Receives warnings.

    Yields
    ------
    None
        Inside the context the target of ``--out`` has been checked.
    """
    with contextlib.redirect_stdout(sys.stderr), short_warnings(terminal, run_options.debug):
        check_out(run_options)
        libraries_are_loaded()
        with limited_threads(config.threads):
            yield


def libraries_are_loaded() -> None:
    """Collect garbage from now on, and only among objects that are made from now on.

    The objects of PyTorch, SciPy and Matplotlib are half a million, and a full collection looks at each.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _measured(
    config: Configuration, terminal: Terminal, started: float, resumption: Resumption
) -> tuple[Study, dict[str, Any], Path | None]:
    """The study, its JSON document, and the absolute path of its run directory, where it has one."""
    from curvature import report

    if isinstance(config, SpectrumConfiguration):
        study = measure_spectrum(config, terminal, started, resumption)
    else:
        assert isinstance(config, CompareConfiguration)
        study = measure_compare(config, terminal, started, resumption)
    out = resumption.out
    if study is None:
        assert out is not None
        study = report.load_study(out)
        return study, report.study_document(study), out
    document = report.study_document(study)
    if out is not None:
        out = report.write_run(study, out, overwrite=resumption.overwrite)
        report.forget_parts(out)
    return study, document, out


def _print_result(command: str, study: Study, document: dict[str, Any], run_options: RunOptions) -> None:
    show_every_character()
    if run_options.as_json:
        typer.echo(json.dumps(document, allow_nan=False))
    elif command == "spectrum":
        tables.print_spectrum(study, document, run_options.verbose)
    else:
        tables.print_compare(study, document, run_options.verbose)
    sys.stdout.flush()


def _print_notes(study: Study, terminal: Terminal) -> None:
    for warning in study.warnings:
        terminal.warn(warning)
    checks = (*study.self_checks, *study.checks)
    if terminal.verbose:
        for check in checks:
            outcome = "passed" if check.passed else "FAILED"
            terminal.note(f"check {outcome}: {check.name}: {check.value:.2g} (allowed {check.tolerance:.2g})")
    elif checks:
        passed = sum(check.passed for check in checks)
        terminal.note(f"checks: {passed} of {len(checks)} passed (-v lists them)")
    terminal.note(f"time: {study.provenance['seconds']:.1f} s")


def _print_next_steps(command: str, config: Configuration, terminal: Terminal, out: Path | None) -> None:
    if out is not None:
        terminal.note(f"report: {out / 'report.html'}")
        if files := list((out / "eigenvectors").glob("*.safetensors")):
            terminal.note(f"eigenvectors: {count(len(files), 'file')} in {out / 'eigenvectors'}")
        terminal.note(f"next: {command_again(command, config, out, '--out', f'{out}-again')} repeats this run")
    elif command == "spectrum" and not any(getattr(config, name) for name in CompareConfiguration.refused):
        compare = shlex.join(["curvature", "compare", *model_and_data(config)])
        terminal.note(f"next: add --out runs/NAME for a report with figures, or train: {compare}")
    else:
        terminal.note("next: add --out runs/NAME for a report with figures and every number")


def _exit_unless_passed(study: Study, terminal: Terminal) -> None:
    failed = [check for check in study.checks if not check.passed]
    if failed:
        terminal.error(
            f"a self-check failed, do not trust the numbers: {failed[0].name}: {failed[0].value:.3g}, allowed "
            f"{failed[0].tolerance:.3g}."
        )
        raise typer.Exit(int(ExitCode.SELF_CHECK))


def command_again(command: str, config: Configuration, out: Path, *words: str) -> str:
    """Write the command that reads the configuration of a run directory again.

    Parameters
    ----------
    command, config
        Name and configuration of the command that was run.
    out
        Its run directory.
    *words
        Further options.

    Returns
    -------
    str
        As it is typed in a shell.
    """
    trust = ("--trust-config",) if names_code(config) else ()
    return shlex.join(["curvature", command, "--config", f"{out / 'config.toml'}", *words, *trust])


def exit_if_open(found: Sequence[str], terminal: Terminal, *, strict: bool, what: str = "numbers") -> None:
    """End the command under ``--strict`` if anything is open.

    Parameters
    ----------
    found
        A description of each thing that is open.
    terminal
        Receives the message.
    strict
        Whether ``--strict`` is set.
    what
        What is open, in the plural.

    Raises
    ------
    typer.Exit
        With the code of an open result.
    """
    if strict and found:
        terminal.error(f"--strict: {len(found)} {what} are open, the first: {one_line(found[0])}.")
        raise typer.Exit(int(ExitCode.UNRESOLVED))


def _unresolved(study: Study) -> list[str]:
    """Describe each verdict, each iteration and each headline number that is open."""
    from curvature.records import ConditionNumbers, ExtremalEigenvalues

    verdicts = [
        f"{verdict.name} is {verdict.outcome}"
        for verdict in study.verdicts
        if verdict.outcome in ("undecided", "not tested")
    ]
    unconverged = [
        f"the extremal eigenvalues of {measured.record.matrix} in {measured.record.chart} (not converged)"
        for measured in study.of(ExtremalEigenvalues, converged=False)
    ]
    numbers = [
        f"{name} of {measured.record.matrix} in {measured.record.chart} ({quantity.status.replace('_', ' ')})"
        for measured in study.of(ConditionNumbers)
        for name, quantity in measured.record.headline.items()
        if quantity.status in {"lower_bound", "unresolved"}
    ]
    return verdicts + unconverged + numbers
