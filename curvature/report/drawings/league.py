"""The figure of the whitening league: every method at the first and the last checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from curvature.records import LeagueEntry, Measured, Study
from curvature.report import figures
from curvature.report.drawings.layout import Drawing, finished
from curvature.report.drawings.placement import PanelLayout
from curvature.report.selection import checkpoints_of
from curvature.report.spread import grouped
from curvature.report.table import Table
from curvature.report.tables.league import point_of_training
from curvature.report.words import capital

__all__ = ["draw_league"]

_ROW = 0.23  # height of a method, in inches


def draw_league(study: Study) -> Drawing | None:
    """Draw the efficiency of every method of the whitening league, one panel for each checkpoint.

    Parameters
    ----------
    study
        What was measured.

    Returns
    -------
    Drawing or None
        None without a league.
    """
    points = grouped(study.of(LeagueEntry), lambda m: m.checkpoint)
    points = {name: points[name] for name in checkpoints_of(study) if name in points}
    if not points:
        return None
    means = {name: figures.league_means(members) for name, members in points.items()}
    methods = list(next(reversed(means.values())))
    shares = [mean.mean for by_method in means.values() for mean in by_method.values()]
    lowest = min(share for share in shares if share > 0)  # one scale for all panels
    caption = (
        "Share of the progress of the damped natural gradient that one step of each method makes from the same "
        "weights, on the quadratic model and with the best length: geometric mean over seeds with its 95 % interval, "
        "which is cut at 1. The most efficient method at the last checkpoint is on top. Dotted: gradient descent and "
        "the neuron-block natural gradient. * At the nearest weights that weight standardization can represent."
    )
    rows = [
        (point_of_training(name), method, mean.mean, mean.low, mean.high)
        for name, by_method in means.items()
        for method, mean in by_method.items()
    ]
    table = Table("The whitening league", ("weights", "method", "geometric mean E", "low", "high"), tuple(rows))
    wide, narrow = (_figure(points, methods, lowest, narrow=narrow) for narrow in (False, True))
    if wide.axes[0].get_xscale() == "log":
        caption += " Logarithmic axis: an interval that goes on to the left of it ends in an arrow."
    return Drawing("league", caption, wide, table, narrow)


def _figure(points: Mapping[str, Sequence[Measured]], methods: Sequence[str], lowest: float, *, narrow: bool) -> Figure:
    """The panels next to each other, or on a small screen below each other."""
    shape, height = (len(points), 1) if narrow else (1, len(points)), 0.9 + _ROW * len(methods)
    size = (4.0, height * len(points)) if narrow else (10.0, height)
    figure = Figure(figsize=size, layout=PanelLayout())
    axes = figure.subplots(*shape, sharey=True, squeeze=False).ravel()
    for ax, (name, members) in zip(axes, points.items(), strict=True):
        title = capital(point_of_training(name))
        figures.plot_league(members, ax, methods=methods, lowest=lowest, legend=False, title=title)
    return finished(figure, outer_labels=False)
