"""The commands, and how each of their failures ends."""

from __future__ import annotations

import contextlib
import errno
import functools
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup

from curvature._version import __version__
from curvature.cli.configuration import (
    RENAMED,
    AnalyzeConfiguration,
    CompareConfiguration,
    Configuration,
    SpectrumConfiguration,
    TrackConfiguration,
    option_name,
)
from curvature.cli.execution import execute
from curvature.cli.interruption import discard_output, interruptible
from curvature.cli.options import RunOptions, signature
from curvature.cli.terminal import Terminal, one_line, printable
from curvature.errors import CurvatureError, ExitCode

__all__ = ["EXIT_WORDS", "app"]

EXIT_WORDS = {
    ExitCode.DONE: "done",
    ExitCode.INTERNAL: "internal error",
    ExitCode.USAGE: "wrong option or configuration",
    ExitCode.UNRESOLVED: "done, but --strict was set and a headline number or a verdict is open",
    ExitCode.RULE_HIT: "done, but a rule of --fail-on holds",
    ExitCode.LOADING: "the model, data, loss or weights cannot be used",
    ExitCode.SELF_CHECK: "a self-check failed: do not trust the numbers",
    ExitCode.RESOURCES: "out of memory, or an iteration did not converge",
    ExitCode.INTERRUPTED: "interrupted",
    ExitCode.BROKEN_PIPE: "the output pipe was closed",
    ExitCode.TERMINATED: "terminated",
}

_EXIT_CODES = f"Exit codes: {'; '.join(f'{code:d} {meaning}' for code, meaning in EXIT_WORDS.items())}."
_EPILOG = (
    f"{_EXIT_CODES}\n\n"
    "Options can also be set by --config FILE and by environment variables (CURVATURE_NUM_EXAMPLES=100). Options on "
    "the command line override --set, which overrides the environment, which overrides the file."
)


_ORDER = ("init", "check", "spectrum", "analyze", "compare", "track", "report", "doctor")


class _Group(TyperGroup):
    """Commands in the order of use; their usage errors show control characters of what was typed as escapes."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _plain_usage_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with _plain_usage_errors():
            return super().invoke(ctx)


@contextlib.contextmanager
def _plain_usage_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(getattr(error, "message", None), str):
            usage = cast(Any, error)
            usage.message = one_line(_renamed_option(usage) or usage.message)
        raise


def _renamed_option(usage: Any) -> str | None:
    """Message for an option of version 0.1 under its old name."""
    renamed = {option_name(before): option_name(after) for before, after in RENAMED.items()}
    old = getattr(usage, "option_name", None)
    if old not in renamed or not any(renamed[old] in parameter.opts for parameter in usage.ctx.command.params):
        return None
    usage.possibilities = None
    return f"{old} is now called {renamed[old]}; its meaning is the same."


app = typer.Typer(
    cls=_Group,
    name="curvature",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    no_args_is_help=True,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"curvature {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Spectra and condition numbers of Hessian, GGN and Fisher matrices, in any parameterization."""


Command = Callable[[dict[str, Any], RunOptions], None]


def _with_options(kind: type[Configuration], *, without: Collection[str] = ()) -> Callable[[Command], Command]:
    """Give a command the options of its configuration; end every failure in one message and its exit code."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(**options: Any) -> None:
            flags = {name: options.pop(name) for name in kind.model_fields if name in options}
            run_options = RunOptions(**options)
            with _one_message(run_options.debug):
                command(flags, run_options)

        cast(Any, run).__signature__ = signature(kind, without=without)
        return cast(Command, _unwrapped(run))

    return decorate


@contextlib.contextmanager
def _one_message(debug: bool) -> Iterator[None]:
    """End every failure in one message and its exit code."""
    try:
        with interruptible():
            yield
    except typer.Exit:
        raise
    except BrokenPipeError:  # nobody reads on, as in `| head`
        discard_output()
        raise typer.Exit(int(ExitCode.BROKEN_PIPE)) from None
    except (KeyboardInterrupt, Exception) as error:
        if debug:
            sys.stderr.write(printable(traceback.format_exc()))
        message, code = _explain(error)
        Terminal().error(message)
        raise typer.Exit(int(code)) from None


def _unwrapped(command: Callable[..., None]) -> Callable[..., None]:
    """Join the lines of each paragraph of the help: the terminal wraps them to its width."""
    command.__doc__ = "\n\n".join(" ".join(part.split()) for part in (command.__doc__ or "").split("\n\n"))
    return command


def _explain(error: BaseException) -> tuple[str, ExitCode]:
    """Message and exit code of a failure; what is kept of the run is in the notes of the exception."""
    kept = " ".join(getattr(error, "__notes__", ()))
    if isinstance(error, KeyboardInterrupt):
        code = ExitCode(getattr(error, "exit_code", ExitCode.INTERRUPTED))
        return f"interrupted; {kept or 'nothing was written.'}", code
    message, code = _explained(error)
    return f"{message} {kept}".rstrip(), code


def _explained(error: BaseException) -> tuple[str, ExitCode]:
    if isinstance(error, CurvatureError):
        return str(error), error.exit_code
    if _is_out_of_memory(error):
        message = "out of memory. Use fewer examples (--num-examples), a smaller model, or --block layer."
        return message, ExitCode.RESOURCES
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "no space is left where the results go. Free some, or write to another disk.", ExitCode.RESOURCES
    if isinstance(error, ImportError) and "failed to map segment" in str(error):
        message = (
            "there is too little memory to load PyTorch. Raise the limit of the process (ulimit -v) or of its job."
        )
        return message, ExitCode.RESOURCES
    first_line = next(iter(str(error).splitlines()), "")
    return f"internal error, {type(error).__name__}: {first_line} (--debug shows where).", ExitCode.INTERNAL


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: in Python, on a device, or in C++, where PyTorch raises errors of other classes."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(phrase in str(error) for phrase in ("can't allocate", "bad_alloc", "error return without exception set"))


@app.command(epilog=_EXIT_CODES)
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder for both files. Default: here.", show_default=False)
    ] = Path(),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files of the same names.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Write a commented configuration and a file with a model and data to edit; both run as they are."""
    from curvature.cli.init import initialize

    with _one_message(debug):
        initialize(folder, Terminal(quiet), overwrite=overwrite)


@app.command(epilog=_EPILOG)
@_with_options(SpectrumConfiguration, without={"out", "overwrite", "resume", "strict", "fail_on", "dry_run"})
def check(flags: dict[str, Any], run_options: RunOptions) -> None:
    """Load a model, its data and its loss, run the self-checks, and say what the spectra would cost.

    Computes no spectrum. Takes the options of curvature spectrum.
    """
    from curvature.cli.check import execute_check

    execute_check(flags, run_options)


@app.command(epilog=_EPILOG)
@_with_options(SpectrumConfiguration)
def spectrum(flags: dict[str, Any], run_options: RunOptions) -> None:
    """Compute eigenvalues and condition numbers of a model's curvature matrices.

    Computes every eigenvalue to rounding error if the matrix fits in memory; otherwise the extremal eigenvalues and
    the density.

    Without options: a small untrained network on handwritten digits.
    """
    execute("spectrum", flags, run_options)


@app.command(epilog=_EPILOG)
@_with_options(CompareConfiguration)
def compare(flags: dict[str, Any], run_options: RunOptions) -> None:
    """Train with and without weight normalization from the same weights, and compare the curvature along the way.

    Trains two arms with plain SGD, at paired seeds.

    Without options: a small network on handwritten digits, in half a minute.

    With --full: thirteen arms with their controls, each at its own tuned learning rate, from PyTorch's and from the
    paper's initialization, at ten seeds, with a verdict on every claim.

    With --grid: the same study over data sets, architectures and optimizers, each arm tuned in each, and verdicts on
    the effects pooled over all of them.

    With --out, the seeds that are finished are kept; --resume continues an interrupted comparison from them.
    """
    from curvature.cli.grid import execute_grid

    execute("compare", flags, run_options, over_grid=execute_grid)


@app.command(epilog=_EPILOG)
@_with_options(AnalyzeConfiguration, without={"dry_run"})
def analyze(flags: dict[str, Any], run_options: RunOptions) -> None:
    """Summarize the curvature of a model: one row for each layer, one for the whole, and warnings.

    A row has the trace, both ends of the spectrum, a condition number, the effective rank and the share of the
    gradient, in the coordinates in which the model was trained unless --chart names others.

    Without options: a small untrained network on handwritten digits.
    """
    from curvature.cli.analyze import execute_analysis

    execute_analysis(flags, run_options)


@app.command(epilog=_EPILOG)
@_with_options(TrackConfiguration)
def track(flags: dict[str, Any], run_options: RunOptions) -> None:
    """Follow the curvature of a model over the checkpoints in a folder: a row for each, in the order of their steps.

    A row has the loss, the largest eigenvalues, the trace and condition numbers of each matrix, and the critical
    sharpness: the numbers of cv.Tracker. It depends on its checkpoint alone.

    With --out, every finished checkpoint is kept; --resume continues, and measures checkpoints that were added.
    """
    from curvature.cli.track import execute_track

    execute_track(flags, run_options)


@app.command(epilog=_EXIT_CODES)
@_unwrapped
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Directories that --out of a command has written.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Directory of the report; optional for one run."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only tables, warnings and errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Make the report of a run again from its result, or lay several runs side by side.

    For one run: tables, figures and report.html, in its own directory unless --out names another.

    For several runs of spectrum or compare: what differs between them, their numbers and eigenvalues next to each
    other, and ratios to the first run, paired by seed. No model is loaded and nothing is computed again.
    """
    from curvature.cli.report import make_report

    with _one_message(debug):
        make_report(runs, Terminal(quiet), out=out, overwrite=overwrite)


@app.command(epilog=_EXIT_CODES)
def doctor(
    derivatives: Annotated[
        bool, typer.Option("--derivatives", help="Audit the second derivative of every module of torch.nn.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only tables, warnings and errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Check this installation: versions, machine, known faults of PyTorch, and published numbers it must reproduce."""
    from curvature.cli.doctor import doctor as examine
    from curvature.cli.preparation import limited_threads

    # One thread: the matrices are tiny, and threads that wait for each other took ten times as long on a busy machine.
    with _one_message(debug), warnings.catch_warnings(), limited_threads(1):
        warnings.simplefilter("ignore")
        examine(Terminal(quiet), derivatives=derivatives, as_json=as_json)
