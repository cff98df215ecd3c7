"""How figures look: colours, line styles, axes, legends, and medians over seeds as curves."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, LogFormatterSciNotation, LogLocator

from curvature.arrays import Float64, Int
from curvature.report.figures.labels import chart_of, safe
from curvature.report.spread import Spread

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GRAY = "#6b6b6b"
EIGENVALUE = "|eigenvalue|  (loss/coordinate²)"  # label of an axis
MAX_POINTS = 150  # markers on one line; more are one smear on paper and kilobytes in the file
_SUPERSCRIPTS = str.maketrans("-−0123456789", "⁻⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Style:
    """How one line looks, in three ways at once."""

    color: str
    linestyle: Any
    marker: str

    @property
    def line(self) -> dict[str, Any]:
        """Options of a line."""
        return {"color": self.color, "linestyle": self.linestyle, "marker": self.marker}


_DOT_DASH_DOT = (0, (5, 1.5, 1, 1.5, 1, 1.5))
KNOWN = {  # the standard chart is a wide solid line: the canonical gauge, which coincides with it, shows on top of it
    ("standard", "-"): Style(BLACK, "-", "o"),
    ("weight-norm", "canonical"): Style(SKY, "--", "s"),
    ("weight-norm", "paper"): Style(VERMILLION, "-.", "^"),
    ("weight-norm", "checkpoint"): Style(BLUE, "-", "D"),
    ("weight-norm", "best stretch"): Style(BLUE, ":", "P"),
    ("scaled-standard", "paper"): Style(ORANGE, ":", "v"),
    ("placebo", "paper"): Style(PURPLE, _DOT_DASH_DOT, "X"),
    ("e1-direction", "paper"): Style(PURPLE, "--", ">"),
    ("jacobi", "-"): Style(ORANGE, "-.", "p"),
    ("neuron-block", "-"): Style(GREEN, "-", "h"),
    ("layer-block", "-"): Style(GREEN, "--", "d"),
    ("kfac", "-"): Style(ORANGE, "--", "<"),
    ("prong", "-"): Style(SKY, ":", "*"),
    ("natural-gradient", "-"): Style(GRAY, "-", "H"),
}
OTHERS = [
    Style(color, line, marker)
    for line, marker in (("--", "8"), (":", "p"), ("-.", "v"), (_DOT_DASH_DOT, "*"), ("-", "<"))
    for color in (GREEN, ORANGE, PURPLE, SKY, VERMILLION, BLUE)
]


def styles_of(items: Sequence[Any]) -> list[Style]:
    """One style per item.

    Parameters
    ----------
    items
        Measurements or records with a chart.

    Returns
    -------
    list of Style
        The chart's own; where a chart appears again, its colour with other lines and markers.
    """
    own = {key: KNOWN[key] for key in {chart_of(item) for item in items} if key in KNOWN}
    for key in sorted({chart_of(item) for item in items} - own.keys()):
        start = zlib.crc32(" ".join(key).encode(errors="replace"))
        turns = (OTHERS[(start + step) % len(OTHERS)] for step in range(len(OTHERS)))
        own[key] = next((style for style in turns if style not in own.values()), OTHERS[0])
    seen: dict[tuple[str, str], int] = {}
    styles = []
    for item in items:
        key = chart_of(item)
        repeat = seen[key] = seen.get(key, -1) + 1
        style = own[key]
        if repeat:
            style = Style(style.color, ("--", ":", "-.", "-")[(repeat - 1) % 4], "svDP^X"[(repeat - 1) % 6])
        styles.append(style)
    return styles


def arm_styles(arms: Sequence[str]) -> list[Style]:
    """One style per arm, no two the same.

    Parameters
    ----------
    arms
        Names of the arms.

    Returns
    -------
    list of Style
        That of the chart in which the arm was trained, where there is one.
    """
    styles: list[Style] = []
    for arm in arms:
        known = (KNOWN.get((arm, gauge)) for gauge in ("-", "checkpoint", "paper"))
        start = zlib.crc32(arm.encode(errors="replace"))
        turns = (OTHERS[(start + step) % len(OTHERS)] for step in range(len(OTHERS)))
        free = (style for style in (*known, *turns) if style is not None and style not in styles)
        styles.append(next(free, OTHERS[0]))
    return styles


class _PlainLog(LogFormatterSciNotation):
    """Label decades as ``10⁻³`` in plain text: no mathematics layout, so SVG text stays whole."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        text = super().__call__(x, pos).replace(r"\times", "×")
        low, high = sorted(self.axis.get_view_interval()) if self.axis else (0.0, math.inf)
        if text and low >= 1e-3 and high <= 1e4:
            return f"{x:g}"
        text = re.sub(r"\^\{?([-−]?\d+)\}?", lambda match: match[1].translate(_SUPERSCRIPTS), text)
        return re.sub(r"\$|\\mathdefault|[{}]", "", text)


class _SeenTicks(LogLocator):
    """Ticks of a logarithmic axis without those beyond its ends: each that is made costs three lines and two texts."""

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        low, high = sorted((vmin, vmax))
        return [value for value in super().tick_values(vmin, vmax) if low <= value <= high]


class _SeenMinorTicks(_SeenTicks):
    """Ticks between decades: all eight, or 2 and 5 where the axis has more than two decades."""

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        low, high = sorted((vmin, vmax))
        self.set_params(subs=(2, 5) if high > 100 * low else range(2, 10))
        return super().tick_values(vmin, vmax)


def power_of_ten(exponent: int) -> str:
    """Write a power of ten in plain text, as the labels of logarithmic axes do.

    Parameters
    ----------
    exponent
        An integer.

    Returns
    -------
    str
        For instance ``"10⁻³"``.
    """
    return f"10{str(exponent).translate(_SUPERSCRIPTS)}"


def axes_or_new(ax: Axes | None, height: float = 4.2) -> Axes:
    """Axes to draw on.

    Parameters
    ----------
    ax
        The Axes; None for those of a new pyplot figure.
    height
        Of the new figure, in inches.

    Returns
    -------
    Axes
        Where to draw.
    """
    if ax is not None:
        return ax
    from matplotlib import pyplot as plt  # global state, and a canvas that a notebook shows: only when asked for

    return plt.subplots(figsize=(6.4, height), layout="constrained")[1]


def finish(ax: Axes, title: str, xlabel: str, ylabel: str) -> Axes:
    """Set title and axis labels, with as little ink as possible around the data.

    Parameters
    ----------
    ax
        Where everything is drawn already.
    title
        One line.
    xlabel, ylabel
        With their units.

    Returns
    -------
    Axes
        The same.
    """
    ax.set_title(safe(title, 100), fontsize="medium")  # at the usual place, where the user's ax.set_title replaces it
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, which="major", color="#e2e2e2", linewidth=0.6)
    ax.set_axisbelow(True)
    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() == "log" and not isinstance(axis.get_major_locator(), FixedLocator):
            label_decades(axis)
    return ax


def label_decades(axis: Axis) -> None:
    """Give a logarithmic axis its ticks, and labels that are plain text.

    Parameters
    ----------
    axis
        Horizontal or vertical. A later ``set_xscale`` or ``set_yscale`` takes them away again.
    """
    axis.set_major_locator(_SeenTicks())
    axis.set_minor_locator(_SeenMinorTicks())
    axis.set_major_formatter(_PlainLog(labelOnlyBase=True))
    axis.set_minor_formatter(_PlainLog(minor_thresholds=(1, 0.5)))


def no_eigenvalue(ax: Axes, floor: float) -> None:
    """Say that there is nothing to draw on a logarithmic axis.

    Parameters
    ----------
    ax
        Where it is said.
    floor
        The noise floor.
    """
    ax.text(0.5, 0.5, f"no eigenvalue above the noise floor {floor:.1e}", transform=ax.transAxes, ha="center")


def add_legend(ax: Axes) -> None:
    """Add a legend if anything has a label.

    Parameters
    ----------
    ax
        Where everything is drawn already. A long legend is drawn beside it, where it covers no data.
    """
    count = len(ax.get_legend_handles_labels()[1])
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if count > 5 else {}
    if count:
        ax.legend(fontsize="small", frameon=True, framealpha=0.85, edgecolor="none", handlelength=2.6, **place)


def plot_spreads(ax: Axes, spreads: dict[float, Spread], style: Style, label: str) -> None:
    """Draw medians joined by a line, with ranges as bars and lower bounds as arrows up.

    Parameters
    ----------
    ax
        Where to draw.
    spreads
        Median and range at each place on the horizontal axis; undefined ones are left out.
    style
        Of the line.
    label
        In the legend.
    """
    spreads = {x: item for x, item in spreads.items() if math.isfinite(item.median)}
    if not spreads:
        return
    xs, items = list(spreads), list(spreads.values())
    medians = np.array([item.median for item in items])
    ranges = np.array([medians - [item.low for item in items], [item.high for item in items] - medians])
    ax.errorbar(
        xs, medians, yerr=ranges if ranges.any() else None, **style.line, markersize=5, linewidth=1.5, elinewidth=1,
        capsize=2.5, label=label,
    )  # fmt: skip
    hollow = {x: item.median for x, item in spreads.items() if item.status == "unresolved"}
    bounds = [(x, item.median) for x, item in spreads.items() if item.status == "lower_bound"]
    if hollow:
        ax.plot(
            list(hollow), list(hollow.values()), linestyle="none", marker=style.marker, color=style.color,
            markerfacecolor="white", markersize=5, zorder=3,
        )  # fmt: skip
    for x, y in bounds:
        ax.annotate(
            "", (x, y), xytext=(0, 18), textcoords="offset points", annotation_clip=False,
            arrowprops={"arrowstyle": "<-", "color": style.color, "linewidth": 1.5},
        )  # fmt: skip
    if bounds and "lower bound" not in ax.get_legend_handles_labels()[1]:
        ax.plot([], [], linestyle="none", marker=r"$\uparrow$", color=GRAY, markersize=9, label="lower bound")


def keep_a_decade(ax: Axes) -> None:
    """Show at least a factor of ten: an axis that zooms into rounding makes equal numbers look different.

    Parameters
    ----------
    ax
        With a logarithmic vertical axis.
    """
    low, high = ax.get_ylim()
    if "lower bound" in ax.get_legend_handles_labels()[1]:
        ax.set_ylim(top=(high := 2.5 * high))  # room for the arrows
    if low > 0 and high / low < 10:
        middle = math.sqrt(low * high)
        ax.set_ylim(middle / math.sqrt(10), middle * math.sqrt(10))


def fanned(count: int, half: float) -> Float64[np.ndarray, "points"]:
    """Offsets that keep neighbours apart, without a random number: multiples of the golden ratio.

    Parameters
    ----------
    count
        How many.
    half
        Largest offset to either side.

    Returns
    -------
    ndarray
        In ``[-half, half]``, shape ``(count,)``.
    """
    return half * (2 * ((np.arange(count) * 0.6180339887498949 + 0.5) % 1) - 1)


def thinned(indices: Int[np.ndarray, "dim"], limit: int = MAX_POINTS) -> Int[np.ndarray, "points"]:
    """Thin indices evenly on a logarithmic axis.

    Parameters
    ----------
    indices
        Ascending, shape ``(n,)``.
    limit
        How many to keep.

    Returns
    -------
    ndarray
        At most ``limit`` of them, both ends included.
    """
    if len(indices) <= limit:
        return indices
    return indices[np.unique(np.geomspace(1, len(indices), limit).round().astype(int)) - 1]
