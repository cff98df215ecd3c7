"""A landscape as a figure: the loss along a line or on a plane, with its quadratic model."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from curvature.arrays import Float
from curvature.errors import ConfigurationError
from curvature.records import Landscape
from curvature.report.figures.labels import safe
from curvature.report.figures.style import BLUE, VERMILLION, add_legend, axes_or_new, finish
from curvature.report.words import matrix_name

__all__ = ["plot_landscape"]

_LEVELS = 12
_FINE = 121  # points of the model, which costs nothing
_GAP = "#dddddd"
_ROOM = 0.08  # of the range of the loss, above and below it


def plot_landscape(landscape: Landscape, ax: Axes | None = None, *, title: str | None = None) -> Axes:
    """Draw the loss along a line, or on a plane, together with its quadratic model.

    Parameters
    ----------
    landscape
        What to draw.
    ax
        Where to draw; None opens a new figure.
    title
        In place of the usual one.

    Returns
    -------
    Axes
        A line: the loss, and the quadratic model dashed, cut off where it leaves the range of the loss. A plane: the
        loss as filled contours, and the quadratic model as dashed contours at the same levels, which are closer
        together near the minimum. Points where the loss is not finite are gaps, which the legend counts.

    Raises
    ------
    ConfigurationError
        If the loss is finite nowhere.
    """
    if landscape.num_gaps == landscape.values.size:
        raise ConfigurationError("the loss is not finite at any point of this landscape: there is nothing to draw.")
    ax = axes_or_new(ax)
    labels = [f"distance along {safe(name, 40)}" for name in landscape.directions]
    if landscape.num_gaps:
        ax.plot([], [], linestyle="none", marker="s", color=_GAP,
                label=f"loss not finite ({landscape.num_gaps} of {landscape.values.size} points)")  # fmt: skip
    if len(labels) == 1:
        _draw_line(ax, landscape)
        add_legend(ax)
        labels.append("loss")
    else:
        _draw_plane(ax, landscape)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False, fontsize="small")
    chart = landscape.where.chart_label
    labels[0] += "  (in the weights)" if chart == "standard" else f"  (in {safe(chart)})"
    model = ", ".join(filter(None, (matrix_name(landscape.matrix), landscape.penalty)))
    return finish(ax, title or f"Loss, and its quadratic model by the {model}", *labels)


def _draw_line(ax: Axes, landscape: Landscape) -> None:
    values, fine = landscape.values, _fine(landscape.distances[0])
    ax.plot(landscape.distances[0], values, color=BLUE, linewidth=1.8, label="loss")
    curvature, slope = landscape.curvatures[0, 0], landscape.slopes[0]
    ax.plot(fine, _model(landscape, fine[:, None]), color=VERMILLION, linestyle="--", linewidth=1.4,
            label=f"quadratic model: slope {slope:.3g}, curvature {curvature:.3g}")  # fmt: skip
    ax.plot([0], [landscape.origin], color=BLUE, marker="o", linestyle="none")
    low, high = np.nanmin(values), np.nanmax(values)
    room = _ROOM * (high - low) or _ROOM * max(abs(high), 1.0)
    ax.set_ylim(low - room, high + 3 * room)  # with room for the legend


def _draw_plane(ax: Axes, landscape: Landscape) -> None:
    levels = _levels(landscape.values)
    ax.set_facecolor(_GAP)
    filled = ax.contourf(*landscape.distances, np.ma.masked_invalid(landscape.values).T, levels=levels, cmap="cividis")
    fine = [_fine(distances) for distances in landscape.distances]
    model = _model(landscape, np.stack(np.meshgrid(*fine, indexing="ij"), axis=-1))
    ax.contour(*fine, model.T, levels=levels, colors=VERMILLION, linestyles="--", linewidths=1.0)
    ax.plot([], [], color=VERMILLION, linestyle="--", label="quadratic model, same levels")
    ax.plot([0], [0], color="white", markeredgecolor="black", marker="o", linestyle="none", label="the point")
    bar = ax.figure.colorbar(filled, ax=ax, format="%.3g")
    bar.set_label("loss")


def _fine(distances: Float[np.ndarray, "points"]) -> Float[np.ndarray, "_"]:
    return np.linspace(distances[0], distances[-1], _FINE)


def _model(landscape: Landscape, moves: Float[np.ndarray, "*grid directions"]) -> Float[np.ndarray, "*grid"]:
    """The quadratic model between the points of the grid."""
    bent = np.einsum("...k,kl,...l->...", moves, landscape.curvatures, moves)
    return landscape.origin + moves @ landscape.slopes + bent / 2


def _levels(values: Float[np.ndarray, "*grid"]) -> Float[np.ndarray, "points"]:
    """Levels at even distances for a quadratic bowl: the squares of even steps, from the smallest value on."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    high = high if high > low else low + max(abs(low), 1.0) * 1e-6
    return low + (high - low) * np.linspace(0, 1, _LEVELS) ** 2
