"""An analysis as one figure: the span of every layer's eigenvalues, and its share of the gradient."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from curvature.records import Analysis, LayerSummary, Quantity
from curvature.report.figures.labels import safe
from curvature.report.figures.pictures import render_svg
from curvature.report.figures.style import BLUE, GRAY, VERMILLION, add_legend, axes_or_new, finish

__all__ = ["analysis_svg", "plot_analysis"]


def plot_analysis(analysis: Analysis, ax: Axes | None = None, *, title: str | None = None) -> Axes:
    r"""Draw the span of eigenvalues of each layer, from the smallest resolved one to the largest.

    Parameters
    ----------
    analysis
        What to draw.
    ax
        Where to draw; None opens a new figure.
    title
        In place of the usual one.

    Returns
    -------
    Axes
        Absolute eigenvalues on a logarithmic axis. The thick part of a bar is the span that ``kappa_80`` measures; a
        dashed bar has a negative end, drawn at its absolute value. The number next to a bar is the share of the
        gradient.
    """
    ax = axes_or_new(ax)
    rows = analysis.rows
    for y, row in enumerate(rows):
        _draw_row(ax, y, row)
    ax.set_xscale("log")
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_yticks(range(len(rows)), [safe(f"{row.layer}  ({row.num_parameters})", 40) for row in rows])
    ax.axhline(len(rows) - 1.5, color=GRAY, linewidth=0.8)
    for y, row in enumerate(rows):
        share = "" if math.isnan(row.gradient_share) else f"{100 * row.gradient_share:.0f} % of gradient"
        ax.annotate(share, (1, y), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                    va="center", fontsize="small", color=GRAY)  # fmt: skip
    add_legend(ax)
    return finish(ax, title or f"Curvature by layer: {analysis.label}", "|eigenvalue|  (loss/coordinate²)",
                  "layer  (coordinates)")  # fmt: skip


def analysis_svg(analysis: Analysis) -> str:
    """Draw an analysis as the text of an SVG image.

    Parameters
    ----------
    analysis
        What to draw.

    Returns
    -------
    str
        The same bytes for the same analysis.
    """
    figure = Figure(figsize=(8, 1.8 + 0.45 * len(analysis.rows)), layout="constrained")
    plot_analysis(analysis, figure.subplots())
    return render_svg(figure, f"Curvature by layer: {analysis.label}", salt=analysis.label)


def _draw_row(ax: Axes, y: int, row: LayerSummary) -> None:
    largest, smallest = _size(row.largest), _size(row.smallest)
    if math.isnan(largest):
        return
    if not math.isnan(smallest):
        negative = row.smallest.value < 0
        ax.plot([smallest, largest], [y, y], color=VERMILLION if negative else BLUE, linewidth=1.2,
                linestyle="--" if negative else "-",
                label=_once(ax, "to the most negative" if negative else "to the smallest resolved"))  # fmt: skip
        ax.plot([smallest], [y], color=VERMILLION if negative else BLUE, marker="s" if negative else "|", markersize=6,
                markerfacecolor="white")  # fmt: skip
    if row.kappa_80.status == "resolved":
        ax.plot([largest / row.kappa_80.value, largest], [y, y], color=BLUE, linewidth=6, alpha=0.45,
                solid_capstyle="butt", label=_once(ax, "span of kappa_80"))  # fmt: skip
    ax.plot([largest], [y], color=BLUE, marker="o", markersize=6, linestyle="none", label=_once(ax, "largest"))


def _size(quantity: Quantity) -> float:
    usable = quantity.has_value and quantity.status != "below_noise_floor" and quantity.value != 0
    return abs(quantity.value) if usable else math.nan


def _once(ax: Axes, label: str) -> str:
    """The label of the first line that has it, for the legend."""
    return "_" if label in ax.get_legend_handles_labels()[1] else label
