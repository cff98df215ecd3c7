"""``python -m curvature`` is the ``curvature`` command."""

import os
import sys


def _leave_current_folder() -> None:
    """Remove the current folder from ``sys.path``, where ``python -m`` puts it first.

    A file in it could have the name of a library and would be imported in its place. The folder is kept if it contains
    this package. ``os.path`` is used because ``pathlib`` is not imported yet and could be replaced in the same way.
    """
    package = os.path.realpath(os.path.join(__file__, "..", ".."))  # noqa: PTH118
    if not sys.flags.safe_path and os.path.realpath(sys.path[0]) != package:
        del sys.path[0]


if __name__ == "__main__":
    _leave_current_folder()
    from curvature.cli import main

    main()
