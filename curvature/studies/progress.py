"""Progress of long work, with the time that is left: a bar in a notebook or a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import html
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from curvature.linalg.speed import seconds_text
from curvature.text import printable

__all__ = ["FIRST_NUMBERS", "Progress", "Remaining", "part_of", "shown"]

Progress = Callable[[str, float], None]
"""``progress(message, share)``: what is being done, and which share of the work is done."""

FIRST_NUMBERS = "first numbers:"  # begins a message that a terminal keeps
_SILENT = 2.0  # seconds: shorter work shows nothing
_WARM = 5.0  # seconds, and
_ENOUGH = 0.05  # share of the work, before the time that is left can be told


class Remaining:
    """The time that is left, from the pace so far; nothing until enough is done to tell.

    Parameters
    ----------
    clock
        Returns seconds; None: :func:`time.monotonic`.
    """

    def __init__(self, clock: Callable[[], float] | None = None):
        self._clock = clock or time.monotonic
        self._first: tuple[float, float] | None = None

    def text(self, share: float) -> str:
        """Say how long the rest takes.

        Parameters
        ----------
        share
            Of the work that is done. The first one may be above zero: a resumed run has done some of it earlier.

        Returns
        -------
        str
            For instance ``"about 3 min left"``; empty if it cannot be told.
        """
        now = self._clock()
        if self._first is None:
            self._first = now, share
        began, before = self._first
        elapsed, done = now - began, share - before
        if elapsed < _WARM or done < _ENOUGH * (1 - before) or share >= 1:
            return ""
        return f"about {seconds_text(elapsed * (1 - share) / done)} left"


def part_of(progress: Progress | None, number: int, total: int) -> Progress | None:
    """Progress of one part of several.

    Parameters
    ----------
    progress
        Of the whole; None reports nothing.
    number, total
        Which part, from zero, and of how many.

    Returns
    -------
    Callable or None
        Called with a message and the share of the part that is done.
    """
    if progress is None:
        return None
    return lambda message, share: progress(message, (number + share) / total)


@contextlib.contextmanager
def shown(progress: Progress | bool | None) -> Iterator[Progress | None]:
    """Choose where the progress of a call is shown.

    Parameters
    ----------
    progress
        A function of a message and a share; True, always; False, never; None, in a notebook and on a terminal.

    Yields
    ------
    Callable or None
        What to call; None if nobody listens. A bar appears after two seconds, and vanishes at the end.
    """
    if callable(progress):
        yield progress
    elif progress is False:
        yield None
    elif _in_notebook():
        bar = _NotebookBar()
        try:
            yield bar.update
        finally:
            bar.clear()
    elif progress or sys.stderr.isatty():
        line = _Line()
        try:
            yield line.update
        finally:
            line.clear()
    else:
        yield None


def _in_notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and hasattr(shell, "kernel")


def _words(message: str, share: float, left: str) -> str:
    return f"[{share:4.0%}] {printable(message)}" + (f" ({left})" if left else "")


class _Line:
    """One line of stderr that is written over; without a terminal, a line for each message."""

    def __init__(self) -> None:
        self._remaining, self._began = Remaining(), time.monotonic()
        self._last, self._terminal = "", sys.stderr.isatty()

    def update(self, message: str, share: float) -> None:
        left = self._remaining.text(share)
        if not self._terminal:
            if message != self._last:
                sys.stderr.write(_words(message, share, left) + "\n")
            self._last = message
        elif time.monotonic() - self._began >= _SILENT:
            sys.stderr.write(f"\r\x1b[K{_words(message, share, left)}")
            sys.stderr.flush()

    def clear(self) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


class _NotebookBar:
    """One output of the cell that is updated; works without widgets."""

    def __init__(self) -> None:
        self._remaining, self._began, self._output = Remaining(), time.monotonic(), None

    def update(self, message: str, share: float) -> None:
        text = _words(message, share, self._remaining.text(share))
        if time.monotonic() - self._began >= _SILENT:
            page = f'<progress value="{share:.3f}" max="1"></progress> {html.escape(text)}'
            self._show({"text/plain": text, "text/html": page})

    def clear(self) -> None:
        if self._output is not None:
            self._show({"text/plain": "", "text/html": ""})

    def _show(self, data: dict[str, str]) -> None:
        if self._output is None:
            self._output = sys.modules["IPython.display"].display(data, raw=True, display_id=True)
        else:
            output: Any = self._output
            output.update(data, raw=True)
