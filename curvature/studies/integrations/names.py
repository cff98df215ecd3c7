"""The names under which every logger writes the numbers of a row."""

from __future__ import annotations

from curvature.records import TrackPoint

__all__ = ["PREFIX", "named"]

PREFIX = "curvature/"


def named(point: TrackPoint) -> dict[str, float]:
    """Collect the numbers of a row under the names for loggers.

    Parameters
    ----------
    point
        The row.

    Returns
    -------
    dict
        :meth:`TrackPoint.scalars <curvature.TrackPoint.scalars>` with ``curvature/`` before each name, and
        ``curvature/diverged`` with the value 1 where training diverged.
    """
    diverged = {f"{PREFIX}diverged": 1.0} if point.diverged else {}
    return {f"{PREFIX}{name}": value for name, value in point.scalars().items()} | diverged
