"""Places of the panels of a figure, with room for their labels, which are measured once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.layout_engine import LayoutEngine

__all__ = ["PanelLayout"]

_PAD = 0.045  # inches around a panel with its labels
_USUAL = (0.55, 0.1, 0.3, 0.4)  # inches of labels left, right, above and below a panel, until they are measured


class PanelLayout(LayoutEngine):
    """Panels of one size in a grid, with room for the longest labels of each row and column and for a legend below.

    The picture is that of Matplotlib's constrained layout, which takes longer than the drawing itself: it measures
    twice, and also what is inside of the panels. Here labels are measured once, where each panel is nearly in its place
    and has the ticks that it will have. It is done when a figure is first drawn.
    """

    _adjust_compatible = False
    _colorbar_gridspec = False

    def execute(self, fig: Figure) -> None:
        """Place the panels.

        Parameters
        ----------
        fig
            All its Axes are cells of one grid.
        """
        rows, columns = _cell(fig.axes[0]).get_gridspec().get_geometry()
        counts = (columns, columns, rows, rows)
        below = sum(legend.get_window_extent().height / fig.dpi + 2 * _PAD for legend in fig.legends)
        _place(fig, [np.full(count, inches) for count, inches in zip(counts, _USUAL, strict=True)], below)
        margins = [np.zeros(count) for count in counts]
        for ax in fig.axes:
            inner, outer = ax.bbox, ax.get_tightbbox(for_layout_only=True, bbox_extra_artists=[])
            assert outer is not None
            labels = (inner.x0 - outer.x0, outer.x1 - inner.x1, outer.y1 - inner.y1, inner.y0 - outer.y0)
            row, column = _cell(ax).rowspan.start, _cell(ax).colspan.start
            for margin, number, pixels in zip(margins, (column, column, row, row), labels, strict=True):
                margin[number] = max(margin[number], pixels / fig.dpi)
        _place(fig, margins, below)
        fig.set_layout_engine("none")


def _cell(ax: Axes) -> SubplotSpec:
    cell = ax.get_subplotspec()
    assert cell is not None
    return cell


def _place(fig: Figure, margins: Sequence[np.ndarray], below: float) -> None:
    """Give every panel the same size, with margins in inches: left and right of columns, above and below rows."""
    left, right, top, bottom = (margin + _PAD for margin in margins)
    whole = np.array(fig.get_size_inches())
    size = whole - [(left + right).sum(), (top + bottom).sum() + below]
    size /= len(left), len(top)
    for ax in fig.axes:
        row, column = _cell(ax).rowspan.start, _cell(ax).colspan.start
        x = left[: column + 1].sum() + right[:column].sum() + column * size[0]
        y = whole[1] - top[: row + 1].sum() - bottom[:row].sum() - (row + 1) * size[1]
        ax.set_position((x / whole[0], y / whole[1], *(size / whole)))
