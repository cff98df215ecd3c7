"""Eigenvalues as a histogram."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from curvature.records import Spectrum
from curvature.report.figures.labels import common_words
from curvature.report.figures.pictures import decade_counts
from curvature.report.figures.style import (
    EIGENVALUE,
    GRAY,
    VERMILLION,
    add_legend,
    axes_or_new,
    finish,
    no_eigenvalue,
    power_of_ten,
    styles_of,
)

__all__ = ["plot_histogram"]

_FLAT = 20  # a bar this many times higher than the highest other kind would flatten it on a linear axis
_NULL_GAP = 1.5  # bins between the bar of null eigenvalues and the others


def plot_histogram(
    spectrum: Spectrum, ax: Axes | None = None, *, legend: bool = True, title: str | None = None
) -> Axes:
    r"""Count eigenvalues in bins of $\log_{10} |\lambda|$: positive ones up, negative ones down, null ones apart.

    Eigenvalues below the noise floor cannot be told from zero and have no place on a logarithmic axis: they share one
    bar at the left. The axis of the counts is logarithmic where one kind would flatten the others.

    Parameters
    ----------
    spectrum
        What to draw.
    ax
        Where to draw; None opens a new figure.
    legend
        Whether to explain the bars, with their counts.
    title
        In place of the usual one.

    Returns
    -------
    Axes
        With title, units and legend.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from curvature.records import Where
    >>> values = np.array([-0.5, 1e-20, 1e-3, 1.0])
    >>> record = Spectrum(Where("hessian", "standard"), values, False, "dense", 1e-15, 3, "threshold")
    >>> plot_histogram(record, Figure().subplots()).get_legend_handles_labels()[1]
    ['positive: 2', 'negative: 1', 'below the noise floor: 1']
    """
    ax = axes_or_new(ax)
    per_decade = _bins_per_decade(spectrum)
    counts, hidden = decade_counts(spectrum, per_decade)
    heading = title or f"Eigenvalues of {common_words([spectrum])}"
    if not counts:
        no_eigenvalue(ax, spectrum.noise_floor)
        return finish(ax, heading, EIGENVALUE, "number of eigenvalues")
    bins = sorted(counts)
    negative, positive = np.array([counts[k] for k in bins]).T
    color = styles_of([spectrum])[0].color
    for numbers, sign, label, look in (
        (positive, 1, "positive", {"color": color, "alpha": 0.75}),
        (negative, -1, "negative", {"facecolor": "white", "edgecolor": VERMILLION, "hatch": "////"}),
    ):
        drawn = np.flatnonzero(numbers)
        if len(drawn):
            _bars(ax, np.array(bins)[drawn], sign * numbers[drawn], per_decade, f"{label}: {numbers.sum()}", look)
    first: float = bins[0]
    if hidden:
        first -= 1 + _NULL_GAP
        look = {"facecolor": "#f3f3f3", "edgecolor": GRAY, "hatch": "...."}
        _bars(ax, np.array([first]), np.array([hidden]), per_decade, f"below the noise floor: {hidden}", look)
    ax.set_xscale("log")
    ax.set_xlim(10 ** ((first - 0.5) / per_decade), 10 ** ((bins[-1] + 1.5) / per_decade))
    _tick_decades(ax, bins, per_decade, spectrum.noise_floor, first if hidden else None)
    scale = _scale_counts(ax, [positive.max(), negative.max(), hidden])
    if legend:
        add_legend(ax)
    return finish(ax, heading, EIGENVALUE, f"number of eigenvalues per bin{scale}")


def _bins_per_decade(spectrum: Spectrum) -> int:
    """As fine as the figure can show: bins of less than about a fortieth of it are hairs."""
    sizes = np.abs(spectrum.eigenvalues)
    sizes = sizes[sizes > spectrum.noise_floor]
    decades = np.log10(sizes.max() / sizes.min()) if len(sizes) else 0
    return 4 if decades <= 10 else 2 if decades <= 20 else 1


def _bars(ax: Axes, bins: np.ndarray, heights: np.ndarray, per_decade: int, label: str, look: dict[str, Any]) -> None:
    left, right = 10 ** (bins / per_decade), 10 ** ((bins + 1) / per_decade)
    ax.bar(left, heights, right - left, align="edge", label=label, linewidth=0.8, **look)


def _tick_decades(ax: Axes, bins: list[int], per_decade: int, floor: float, null: float | None) -> None:
    """Label decades, about eight of them, and the bar of null eigenvalues by the noise floor."""
    lowest, highest = bins[0] // per_decade, -(-(bins[-1] + 1) // per_decade)
    step = max(1, -(-(highest - lowest) // 8))
    decades = [k for k in range(lowest, highest + 1, step) if bins[0] <= k * per_decade]
    places, labels = [10.0**k for k in decades], list(map(power_of_ten, decades))
    if null is not None:
        room = null + 0.5 + (bins[-1] - null) / 10  # of the words below the bar
        kept = [index for index, k in enumerate(decades) if k * per_decade >= room]
        places, labels = [places[index] for index in kept], [labels[index] for index in kept]
        places, labels = [10 ** ((null + 0.5) / per_decade), *places], [f"below\n{floor:.0e}", *labels]
    ax.set_xticks(places, labels)
    ax.set_xticks([], minor=True)


def _scale_counts(ax: Axes, most: list[int]) -> str:
    """Choose the axis of the counts, which are positive below zero too; return how it is named."""
    logarithmic = max(most) > _FLAT * min(count for count in most if count)
    if logarithmic:
        ax.set_yscale("symlog", linthresh=1)
    else:
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.axhline(0, color="black", linewidth=0.8)
    ax.yaxis.set_major_formatter(lambda count, _: f"{abs(count):g}")
    return "  (log scale)" if logarithmic else ""
