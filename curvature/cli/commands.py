"""The commands, and how each of their failures ends."""

from __future__ import annotations

import contextlib
import functools
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from curvature._version import __version__
from curvature.cli import options as o
from curvature.cli.execution import execute
from curvature.cli.terminal import Terminal, one_line, printable
from curvature.errors import CurvatureError, ExitCode

__all__ = ["EXIT_WORDS", "app", "main"]

EXIT_WORDS = {
    ExitCode.DONE: "done",
    ExitCode.INTERNAL: "internal error",
    ExitCode.USAGE: "usage or configuration",
    ExitCode.UNRESOLVED: "done, but --strict and a headline number or a verdict is open",
    ExitCode.LOADING: "model, data, loss or weights cannot be used",
    ExitCode.SELF_CHECK: "a self-check failed: do not trust the numbers",
    ExitCode.RESOURCES: "out of memory",
    ExitCode.INTERRUPTED: "interrupted",
}

_EPILOG = (
    f"Exit codes: {'; '.join(f'{code:d} {words}' for code, words in EXIT_WORDS.items())}.\n\n"
    "Options may also come from --config FILE and from the environment (CURVATURE_NUM_EXAMPLES=100). The command line "
    "wins over --set, that over the environment, that over the file."
)


class _Group(TyperGroup):
    """Usage errors quote what was typed, perhaps a file's name that a shell filled in: as escapes, like all names."""

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
            error.message = one_line(error.message)
        raise


app = typer.Typer(
    cls=_Group,
    name="curvature",
    add_completion=False,
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


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """End every failure in one message and the documented exit code."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        try:
            command(**options)
        except (typer.Exit, BrokenPipeError):  # typer knows what to do with a reader that has gone
            raise
        except (KeyboardInterrupt, Exception) as error:
            if options["debug"]:
                sys.stderr.write(printable(traceback.format_exc()))
            message, code = _explain(error)
            Terminal().error(message)
            raise typer.Exit(int(code)) from None

    return run


def _explain(error: BaseException) -> tuple[str, ExitCode]:
    if isinstance(error, CurvatureError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; nothing was written.", ExitCode.INTERRUPTED
    # torch raises a RuntimeError where the CPU has no memory left, and a class of its own for other devices.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate" in str(error):
        what = "out of memory: use fewer examples (--num-examples), a smaller model, or --block layer."
        return what, ExitCode.RESOURCES
    first = next(iter(str(error).splitlines()), "")
    return f"internal error, {type(error).__name__}: {first} (--debug shows where).", ExitCode.INTERNAL


@app.command(epilog=_EPILOG)
@_guarded
def spectrum(
    model: o.Model = None,
    weights: o.Weights = None,
    key: o.Key = None,
    arg: o.Arg = None,
    data: o.Data = None,
    target: o.Target = None,
    loss: o.Loss = None,
    num_examples: o.NumExamples = None,
    matrix: o.Matrix = None,
    chart: o.Charts = None,
    gauge: o.Gauge = None,
    block: o.Block = None,
    method: o.Method = None,
    num_eigenvalues: o.NumEigenvalues = None,
    num_probes: o.NumProbes = None,
    num_matvecs: o.NumMatvecs = None,
    num_samples: o.NumSamples = None,
    seed: o.Seed = None,
    dtype: o.Dtype = None,
    device: o.Device = None,
    threads: o.Threads = None,
    out: o.Out = None,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
    config: o.Config = None,
    settings: o.Set = None,
    trust_config: o.TrustConfig = False,
    strict: o.Strict = False,
    dry_run: o.DryRun = False,
) -> None:
    """Eigenvalues and condition numbers of one model's curvature matrices.

    Every eigenvalue, exactly up to rounding, in the chosen charts; the ends and the density where that does not fit.
    Without options: a small network on handwritten digits, untrained.
    """
    execute("spectrum", locals())


@app.command(epilog=_EPILOG)
@_guarded
def compare(
    model: o.Model = None,
    weights: o.Weights = None,
    key: o.Key = None,
    arg: o.Arg = None,
    data: o.Data = None,
    target: o.Target = None,
    loss: o.Loss = None,
    num_examples: o.NumExamples = None,
    matrix: o.Matrix = None,
    full: o.Full = None,
    seeds: o.Seeds = None,
    jobs: o.Jobs = None,
    epochs: o.Epochs = None,
    learning_rate: o.LearningRate = None,
    batch_size: o.BatchSize = None,
    damping: o.Damping = None,
    dtype: o.Dtype = None,
    device: o.Device = None,
    threads: o.Threads = None,
    out: o.Out = None,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
    config: o.Config = None,
    settings: o.Set = None,
    trust_config: o.TrustConfig = False,
    strict: o.Strict = False,
) -> None:
    """Train with and without weight normalization from the same weights, and compare the curvature along the way.

    Two arms, paired seeds, plain SGD.
    Without options: a small network on handwritten digits, in about two minutes.
    With --full the whole study: thirteen arms with their controls, each at its own tuned learning rate, from PyTorch's
    and from the paper's initialization; ten seeds, every claim decided. Interrupted, the same command goes on.
    """
    execute("compare", locals())


def main() -> None:
    """Run the command line."""
    app()
