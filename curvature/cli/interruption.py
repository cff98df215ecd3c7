"""Signals and closed pipes: each ends a command at any time, with its exit code.

Only modules of the interpreter itself are imported here, so that the handlers are in place while the command
is imported.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

__all__ = ["BROKEN_PIPE", "Interrupted", "discard_output", "interruptible", "run_command_line"]

BROKEN_PIPE = 128 + 13  # of a process that SIGPIPE ends
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN = 1.0  # seconds until a signal is raised again whose exception was lost

_working = False  # whether a command is at work, which has files and processes to clean up
_received: int | None = None  # the signal that ends the command at work


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command.

    Parameters
    ----------
    number
        Of the signal.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.exit_code = 128 + number


def run_command_line(start: Callable[[], Any]) -> None:
    """Import and run the command line, with handlers for SIGINT and SIGTERM in place before the first import.

    Parameters
    ----------
    start
        Imports and runs it; ends in ``SystemExit``.

    Raises
    ------
    SystemExit
        With the exit code of the command; 141 if the reader of its output has gone, as for a process that SIGPIPE ends.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # a shell has it ignored in the background, or nohup
            signal.signal(number, _on_signal)
    code: Any = 0
    try:
        start()
    except SystemExit as end:
        code = end.code
    except BrokenPipeError:
        code = BROKEN_PIPE
    if code in (0, 1, None) and not _flushed():
        code = BROKEN_PIPE
    if code == BROKEN_PIPE:
        discard_output()
    if code in {128 + number for number in _SIGNALS}:
        _flushed()
        os._exit(code)  # everything is cleaned up, and to take libraries down can last seconds
    raise SystemExit(code)


def _flushed() -> bool:
    """Flush the output; return whether it reached its reader."""
    if type(sys.stdout).__name__ == "PacifyFlushWrapper":  # how click marks a closed pipe, which it calls an error
        return False
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (BrokenPipeError, ValueError):  # closed at the other end, or on this side
        return False
    return True


def discard_output() -> None:
    """Discard everything that is still to be printed, since the reader has gone."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.__stdout__, sys.__stderr__):
            if stream is not None:
                os.dup2(nowhere, stream.fileno())


@contextmanager
def interruptible() -> Iterator[None]:
    """Let signals raise :class:`Interrupted`, so that files and processes are cleaned up on the way out.

    An exception that a signal raises inside a callback of a library or of the garbage collector is lost. It is raised
    again every second until the command ends. Where a library raises another exception in its place (an import can
    turn it into an ``ImportError`` or a ``SystemError``), that one is replaced, and its notes are kept. Outside of this
    context a signal ends the process at once.

    Yields
    ------
    None
        While a command is at work.
    """
    global _received, _working
    _received = None
    _working = True
    try:
        yield
    except Exception as error:
        if _received is None:
            raise
        interrupted = Interrupted(_received)
        for note in getattr(error, "__notes__", ()):
            interrupted.add_note(note)
        raise interrupted from error
    finally:
        _working = False
        _set_alarm(0.0)


def _on_signal(number: int, _frame: FrameType | None) -> None:
    global _received
    if not _working:
        with suppress(OSError):
            os.write(2, b"error: interrupted; nothing was written.\n")
        os._exit(128 + number)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, lambda *_: _on_signal(number, None))
    _set_alarm(_AGAIN)
    _received = number
    raise Interrupted(number)


def _set_alarm(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
