"""The ``curvature`` command: options to one library call, its result to the terminal and to a run directory.

Results go to stdout, everything else to stderr. torch is imported inside the commands, so that ``--help`` is quick.
"""

from __future__ import annotations

import atexit
import gc
import os
from typing import TYPE_CHECKING, Any

from curvature.cli.interruption import run_command_line

if TYPE_CHECKING:
    from curvature.cli.commands import app

__all__ = ["app", "main"]


# PyTorch and NumPy have threads of their own. Those of one that wait, by spinning, take the processor from those of the
# other that compute: by default for milliseconds. Measured on two cores: `curvature compare` takes 23 s instead of 38.
_SHORT_WAITS = {"GOMP_SPINCOUNT": "10000", "OPENBLAS_THREAD_TIMEOUT": "16"}


def main() -> None:
    """Run the command line."""
    for name, value in _SHORT_WAITS.items():
        os.environ.setdefault(name, value)  # read when the libraries are loaded
    gc.disable()  # imports leave no garbage, and to look for it takes half a second; libraries_are_loaded enables it
    atexit.register(gc.freeze)  # the interpreter looks for it once more before it ends
    run_command_line(_start)


def _start() -> None:
    from rich.console import Console

    from curvature.cli.commands import app
    from curvature.cli.completion import whole_words

    # A console of rich, which also prints the help, calls a closed pipe an error of its own.
    setattr(Console, "on_broken_pipe", _raise_broken_pipe)  # noqa: B010
    with whole_words():
        app()


def _raise_broken_pipe(_console: object) -> None:
    raise BrokenPipeError


def __getattr__(name: str) -> Any:
    if name == "app":
        from curvature.cli.commands import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
