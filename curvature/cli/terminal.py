"""Standard error: notes, warnings, progress; and text that cannot rewrite the screen."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

from rich.console import Console

from curvature.text import count, one_line, printable

__all__ = ["Terminal", "count", "one_line", "printable", "short_warnings"]

_LONGEST = 4000  # characters of a message; a name or a wrong value in it may be as long as a file


class Terminal:
    """Standard error: notes, warnings, progress.

    Parameters
    ----------
    quiet
        Whether to leave out notes and progress.
    verbose
        Whether commands print more.
    """

    def __init__(self, quiet: bool = False, verbose: bool = False):
        self.quiet, self.verbose = quiet, verbose
        self.console = Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True)
        self._printed: set[str] = set()

    def note(self, text: str) -> None:
        """Print a line, unless only warnings and errors are wanted."""
        if not self.quiet:
            self._print(text)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self._label("warning", "yellow", text)

    def error(self, text: str) -> None:
        """Print an error."""
        self._label("error", "bold red", text)

    def say(self, text: str) -> None:
        """Print once what loading did; that code is executed is printed even when quiet."""
        if text in self._printed:
            return
        self._printed.add(text)
        if text.startswith("warning: "):
            self.warn(text.removeprefix("warning: "))
        elif text.startswith(("executing", "loading")):
            self._print(text)
        else:
            self.note(text)

    def _label(self, label: str, style: str, text: str) -> None:
        self.console.print(f"{label}: ", style=style, end="")
        self._print(text)

    def _print(self, text: str) -> None:
        """Indent what follows a line break, so that a name cannot begin a message; cut what is too long."""
        shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters in all)"
        self.console.print(printable(shown).replace("\n", "\n  "))

    @contextlib.contextmanager
    def progress(self) -> Iterator[Callable[[str, float], None] | None]:
        """Give a function of a message and the fraction done: a bar on a terminal, plain lines elsewhere."""
        from curvature.studies.progress import FIRST_NUMBERS, Remaining

        remaining = Remaining()
        if self.quiet:
            yield None
        elif self.console.is_terminal:
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}", markup=False),
            )
            with Progress(*columns, console=self.console, transient=True) as bar:
                task = bar.add_task("", total=1.0, left="")

                def update(message: str, done: float) -> None:
                    if message.startswith(FIRST_NUMBERS):
                        self.note(message)  # above the bar, where it stays
                    else:
                        bar.update(task, description=printable(message), completed=done, left=remaining.text(done))

                yield update
        else:
            last = ""

            def line(message: str, done: float) -> None:
                nonlocal last
                left = remaining.text(done)
                if message != last:
                    self.note(f"[{done:4.0%}] {message}" + (f" ({left})" if left else ""))
                last = message

            yield line


@contextlib.contextmanager
def short_warnings(terminal: Terminal, debug: bool) -> Iterator[None]:
    """Make a warning of a library one line, and leave out what only its authors can act on.

    Parameters
    ----------
    terminal
        Where warnings are printed.
    debug
        Whether to show every warning.

    Yields
    ------
    None
        While warnings are redirected.
    """
    with warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("default")
            for kind in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):
                warnings.simplefilter("ignore", kind)  # a user cannot act on what torch will change
            warnings.filterwarnings("ignore", module=r"torch\.fx")
            # joblib starts a worker anew whose memory has grown; its seed is not lost.
            warnings.filterwarnings("ignore", "A worker stopped while some jobs were given to the executor")
            warnings.showwarning = lambda message, *_, **__: terminal.warn(" ".join(str(message).split()))
        yield
