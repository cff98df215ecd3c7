"""The whitening league: the efficiency of every method from the same weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from curvature.natural_gradient import ENDS, METHODS
from curvature.records import LeagueEntry, Measured
from curvature.report.figures.labels import measurements_of, safe
from curvature.report.figures.style import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PURPLE,
    VERMILLION,
    axes_or_new,
    finish,
)
from curvature.report.spread import Mean, efficiency_mean, grouped

__all__ = ["FAMILIES", "league_means", "plot_league"]

FAMILIES: Mapping[str, tuple[str, str]] = {  # colour and marker
    "gradient descent": (BLACK, "o"),
    "weight norm": (VERMILLION, "^"),
    "random directions": (PURPLE, "X"),
    "another parameterization": (BLUE, "P"),
    "optimizer": (ORANGE, "D"),
    "inverts the Fisher or parts of it": (GREEN, "s"),
}
_SMALL = 0.05  # an efficiency below it is drawn on a logarithmic axis
_TICKS = [digit * 10.0**exponent for exponent in range(-9, 0) for digit in (1, 3)] + [1.0]  # of that axis


def league_means(entries: Sequence[LeagueEntry | Measured]) -> dict[str, Mean]:
    """Geometric mean of the efficiency of every method with its 95 % interval over seeds, which is cut at 1.

    Parameters
    ----------
    entries
        From :func:`curvature.whitening_league`, or measurements of them, at one point of training.

    Returns
    -------
    dict
        By method, the largest first; without the methods that have no number.
    """
    groups = grouped(measurements_of(entries, LeagueEntry), lambda m: m.record.method)
    means = {method: efficiency_mean(m.record.efficiency for m in group) for method, group in groups.items()}
    known = [(method, mean) for method, mean in means.items() if mean.count]
    return dict(sorted(known, key=lambda pair: -pair[1].mean))


def plot_league(
    entries: Sequence[LeagueEntry | Measured],
    ax: Axes | None = None,
    *,
    methods: Sequence[str] | None = None,
    lowest: float | None = None,
    legend: bool = True,
    title: str | None = None,
) -> Axes:
    r"""Draw the efficiency $E$ of every method of the whitening league: geometric mean over seeds, 95 % interval.

    Parameters
    ----------
    entries
        From :func:`curvature.whitening_league`, or measurements of them, at one point of training.
    ax
        Where to draw; None opens a new figure.
    methods
        Rows from the top; by default the most efficient method first.
    lowest
        Smallest efficiency that the axis holds; by default the smallest of the means. The axis is logarithmic where it
        is below 0.05, and an interval that goes on to the left of it ends in an arrow.
    legend
        Whether the families of methods are explained.
    title
        In place of the usual one.

    Returns
    -------
    Axes
        With title, units and legend. Dotted lines are gradient descent and neuron-block natural gradient.
    """
    means = league_means(entries)
    methods = list(means) if methods is None else methods
    ax = axes_or_new(ax, height=1.8 + 0.22 * len(methods))
    for end in ENDS:
        if end in means:
            ax.axvline(means[end].mean, color=GRAY, linestyle=":", linewidth=1.2, zorder=1)
    left = _left(means, lowest)
    shown: set[str] = set()
    for row, method in enumerate(methods):
        if method not in means:
            continue
        mean, family = means[method], METHODS.get(method, "")
        color, marker = FAMILIES.get(family, (GRAY, "o"))
        bars = np.maximum(np.nan_to_num([[mean.mean - mean.low], [mean.high - mean.mean]]), 0)  # equal up to rounding
        label = None if family in shown else family
        ax.errorbar(
            mean.mean, row, xerr=bars if bars.any() else None, color=color, marker=marker, markersize=6, capsize=2.5,
            linestyle="none", label=label,
        )  # fmt: skip
        if mean.low < left:
            ax.plot(left, row, marker="<", markersize=5, color=color, clip_on=False)
        shown.add(family)
    ax.set_yticks(range(len(methods)), [safe(method) for method in methods])
    ax.set_ylim(len(methods) - 0.5, -0.5)
    if left > 0:
        ax.set_xscale("log")
        ax.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
        ax.minorticks_off()
        ax.set_xlim(left, 1.3)
    else:
        ax.set_xlim(0, 1.04)
    if legend:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False, fontsize="small")
    finish(ax, title or "The whitening league", "efficiency E  (no unit)", "")
    ax.tick_params(axis="y", length=0)
    return ax


def _left(means: Mapping[str, Mean], lowest: float | None) -> float:
    """Left end of the axis: 0 of a linear one."""
    if lowest is None:
        lowest = min((mean.mean for mean in means.values() if mean.mean > 0), default=1.0)
    return lowest / 1.6 if lowest < _SMALL else 0.0
