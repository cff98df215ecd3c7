"""A forest plot: effects in words, each with its dot and interval, on one logarithmic axis of factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import blended_transform_factory

from curvature.report.drawings.layout import Drawing
from curvature.report.effects import Effect, axis_limits
from curvature.report.figures.labels import safe
from curvature.report.figures.style import BLACK, BLUE, GRAY, VERMILLION
from curvature.report.table import Table

__all__ = ["Effect", "draw_forest", "forest_figure"]

_BAND = "#e9ecef"
_HAIR = "#e2e2e2"
_LOOKS = {  # of a verdict: colour, marker, whether it is filled, the sign before its word
    "supported": (BLUE, "o", True, "✓"),
    "too small": (BLACK, "s", True, "≈"),
    "opposite": (VERMILLION, "v", True, "✗"),
    "undecided": (GRAY, "o", False, "?"),
    "not tested": (GRAY, "", False, "–"),
    "": (BLACK, "o", True, ""),
}
_SIZE = 9.5  # of text, in points
_LINE = 0.17  # height of a line of text, in inches
_TICKS = (1, 1.25, 1.5, 2, 3, 5, 10, 20, 50, 100, 1000)


@dataclass(frozen=True)
class _Columns:
    """Places of the columns, in inches: of the axis, of the number and of the verdict; letters of a label's line."""

    width: float
    axis: tuple[float, float]
    number: float
    verdict: float
    letters: int
    narrow: bool

    def lines(self, label: str) -> list[str]:
        return wrap(safe(label, 200), self.letters) or [""]

    def height(self, effect: Effect) -> float:
        lines = len(self.lines(effect.label)) + 2 * self.narrow
        return lines * _LINE + (0.1 if self.narrow else 0.08)


_WIDE = _Columns(10.0, (4.55, 7.25), 7.45, 8.98, 62, False)
_WIDE_PLAIN = _Columns(10.0, (4.55, 7.9), 8.1, 10.0, 62, False)  # without verdicts
_NARROW = _Columns(4.0, (0.1, 2.35), 2.5, 2.5, 52, True)


def draw_forest(
    effects: Sequence[Effect],
    title: str,
    caption: str,
    *,
    name: str = "claims",
    favours: tuple[str, str] = ("weight norm", "standard"),
    within: float = 1.1,
) -> Drawing:
    """Draw a forest plot with its caption and its numbers.

    Parameters
    ----------
    effects
        Rows, from the top.
    title, caption
        What it shows, and how to read it.
    name
        Of the file.
    favours, within
        As in :func:`forest_figure`.

    Returns
    -------
    Drawing
        In both forms.
    """
    header = ("comparison", "factor", "low", "high", "verdict")
    rows = tuple((e.label, e.factor, e.low, e.high, e.outcome or "–") for e in effects)
    figures = [forest_figure(effects, favours=favours, within=within, narrow=narrow) for narrow in (False, True)]
    return Drawing(name, caption, figures[0], Table(title, header, rows), figures[1])


def forest_figure(
    effects: Sequence[Effect],
    *,
    favours: tuple[str, str] = ("weight norm", "standard"),
    within: float = 1.1,
    narrow: bool = False,
) -> Figure:
    """Draw one row per effect: label, dot and interval, number, verdict.

    Parameters
    ----------
    effects
        Rows, from the top.
    favours
        What a factor below 1 speaks for, and what one above 1 speaks for.
    within
        Factor up to which a difference does not count; the band between its inverse and itself is shaded.
    narrow
        For a small screen: each label stands above its interval.

    Returns
    -------
    Figure
        10 inches wide, or 4.
    """
    columns = _NARROW if narrow else _WIDE if any(e.outcome for e in effects) else _WIDE_PLAIN
    heights = [columns.height(e) for e in effects]
    head, foot, body = 0.3, 0.8 if narrow else 0.62, sum(heights)
    figure = Figure(figsize=(columns.width, head + body + foot))
    left, right = columns.axis
    whole = head + body + foot
    ax = figure.add_axes((left / columns.width, foot / whole, (right - left) / columns.width, body / whole))
    ax.set_ylim(body, 0)
    _axis(ax, effects)
    _sides(ax, favours, narrow)
    top = 0.0
    ax.annotate(
        f"within {100 * (within - 1):.3g} %", (1, 1), xycoords=blended_transform_factory(ax.transData, ax.transAxes),
        xytext=(0, 5), textcoords="offset points", ha="center", fontsize=_SIZE - 1, color=GRAY,
    )  # fmt: skip
    for effect, height in zip(effects, heights, strict=True):
        if not math.isnan(effect.factor):  # elsewhere the place of the axis is free for words
            strip = 2 * _LINE + 0.05 if narrow else height  # below the label
            band = (1 / within, top + height - strip), within - 1 / within, strip
            ax.add_patch(Rectangle(*band, color=_BAND, linewidth=0, zorder=0))
            ax.plot([1, 1], [top + height - strip, top + height], color=GRAY, linewidth=1, zorder=1)
        _row(ax, columns, effect, top, height)
        top += height
    return figure


def _axis(ax: Axes, effects: Sequence[Effect]) -> None:
    """The common axis: limits that hold every estimate, and ticks."""
    low, high = axis_limits(effects)
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ax.spines[["top", "left", "right"]].set_visible(False)
    ticks = sorted({t for tick in _TICKS for t in (1 / tick, tick) if low <= t <= high})
    ax.xaxis.set_major_locator(FixedLocator(_apart(ticks, low, high, 7 if ax.figure.bbox.width > 600 else 5)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:.2g}" if tick != 1.25 else "1.25"))
    ax.yaxis.set_major_locator(NullLocator())
    ax.tick_params(labelsize=_SIZE - 1, length=3)


def _sides(ax: Axes, favours: tuple[str, str], narrow: bool) -> None:
    """What either side speaks for, below the axis; on two lines where both would touch."""
    second = -46 if narrow else -32
    left, right = f"◂ favours {favours[0]}", f"favours {favours[1]} ▸"
    for text, x, side, below in ((left, 0, "left", -32), (right, 1, "right", second)):
        ax.annotate(
            safe(text), (x, 0), xycoords="axes fraction", xytext=(0, below), textcoords="offset points", ha=side,
            fontsize=_SIZE - 1,
        )  # fmt: skip


def _apart(ticks: Sequence[float], low: float, high: float, most: int) -> list[float]:
    """Ticks whose labels do not touch: 1, and others from the ends inwards, so that the span is named."""
    gap = math.log(high / low) / (most + 2)
    kept = [1.0]
    for tick in sorted(ticks, key=lambda tick: -abs(math.log(tick))):
        if all(abs(math.log(tick / other)) >= gap for other in kept):
            kept.append(tick)
    return kept


def _row(ax: Axes, columns: _Columns, effect: Effect, top: float, height: float) -> None:
    """One effect; ``top`` is where its row begins, in inches below the axis' upper end."""
    color, marker, filled, sign = _LOOKS.get(effect.outcome, _LOOKS[""])
    label = columns.lines(effect.label)
    middle = top + (height / 2 if not columns.narrow else height - _LINE - 0.05)
    place = blended_transform_factory(ax.figure.dpi_scale_trans, ax.transData)
    text: dict[str, Any] = {"transform": place, "fontsize": _SIZE, "va": "center", "clip_on": False}
    weight = "bold" if effect.pooled else "normal"
    ax.plot([0, columns.width], [top, top], color=_HAIR, linewidth=0.8 if not effect.pooled else 1.6, transform=place,
            clip_on=False, zorder=0)  # fmt: skip
    start = top + 0.05 + _LINE / 2 if columns.narrow else middle - (len(label) - 1) * _LINE / 2
    for number, line in enumerate(label):
        ax.text(0.1 if columns.narrow else 0.02, start + number * _LINE, line, weight=weight, **text)
    verdict = f"{sign} {effect.outcome}" if effect.outcome else ""
    drop = _LINE / 2 if columns.narrow else 0.0  # the verdict stands below the number
    ax.text(columns.verdict, middle + drop, verdict, **text)
    if math.isnan(effect.factor) and effect.number:
        ax.text(columns.axis[0], middle - drop, effect.words, **text)
    else:
        ax.text(columns.number, middle - drop, effect.words, weight=weight, **text)
    if math.isfinite(effect.factor) and effect.factor > 0:
        _interval(ax, effect, middle, color)
        _point(ax, effect, middle, (color, marker, filled))


def _interval(ax: Axes, effect: Effect, y: float, color: str) -> None:
    """The interval, with an arrow where it leaves the axis, and the prediction interval dotted."""
    low, high = ax.get_xlim()
    for interval, width, style in ((effect.prediction, 1.2, (0, (1, 1.5))), ((effect.low, effect.high), 1.8, "-")):
        if interval is None or any(map(math.isnan, interval)):
            continue
        ends = max(interval[0], low), min(interval[1], high)
        ax.plot(ends, [y, y], color=color, linewidth=width, linestyle=style, solid_capstyle="butt", zorder=3)
        for end, cut, arrow in ((ends[0], interval[0] < low, "<"), (ends[1], interval[1] > high, ">")):
            ax.plot(
                [end], [y], color=color, linestyle="none", marker=arrow if cut else "|", markersize=5, clip_on=False,
                zorder=3,
            )  # fmt: skip


def _point(ax: Axes, effect: Effect, y: float, look: tuple[str, str, bool]) -> None:
    """The estimate: the marker of its verdict, or the diamond of a pooled effect, as wide as its interval."""
    color, marker, filled = look
    ends = [effect.low, effect.high]
    if effect.pooled and all(math.isfinite(end) and end > 0 for end in ends):
        xs = [ends[0], effect.factor, ends[1], effect.factor]
        ax.fill(xs, [y, y - 0.075, y, y + 0.075], facecolor=color if filled else "white", edgecolor=color, zorder=4)
        return
    ax.plot(
        [effect.factor], [y], marker="D" if effect.pooled else marker or "o", color=color, linestyle="none",
        markersize=7, markerfacecolor=color if filled else "white", markeredgewidth=1.5, zorder=4,
    )  # fmt: skip
