"""The ``curvature`` command: options to one library call, its result to the terminal and to a run directory.

Results go to stdout, everything else to stderr. torch is imported inside the commands, so that ``--help`` is quick.
"""

from curvature.cli.commands import app, main

__all__ = ["app", "main"]
