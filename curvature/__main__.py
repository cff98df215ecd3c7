"""``python -m curvature`` is the ``curvature`` command."""

import os
import sys


def _leave_current_folder() -> None:
    """Take the current folder off the path, where ``python -m`` puts it first: a file there could pose as a library.

    It stays where the package itself lies in it. By ``os.path``: ``pathlib`` is not loaded yet and could pose too.
    """
    package = os.path.realpath(os.path.join(__file__, "..", ".."))  # noqa: PTH118
    if not sys.flags.safe_path and os.path.realpath(sys.path[0]) != package:
        del sys.path[0]


if __name__ == "__main__":
    _leave_current_folder()
    from curvature.cli import main

    main()
