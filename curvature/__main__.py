"""``python -m curvature`` is the ``curvature`` command."""

from curvature.cli import main

if __name__ == "__main__":
    main()
