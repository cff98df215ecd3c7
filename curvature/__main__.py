"""``python -m curvature`` is the ``curvature`` command."""

import sys
from pathlib import Path

from curvature.cli import main

if __name__ == "__main__":
    # Python puts the current folder first on the path of `python -m`: a file there could stand in for a library.
    if not sys.flags.safe_path and Path(sys.path[0]).resolve() != Path(__file__).resolve().parents[1]:
        del sys.path[0]
    main()
