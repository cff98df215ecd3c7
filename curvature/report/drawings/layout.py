"""A figure of the report: panels, one legend below them, a caption and the numbers that are drawn."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any, TypeVar

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from curvature.records import ConditionNumbers, Measured
from curvature.report.drawings.placement import PanelLayout
from curvature.report.figures import render_svg
from curvature.report.spread import grouped
from curvature.report.table import Entry, Table
from curvature.report.words import chart_label, layer_of, matrix_name

__all__ = [
    "MAX_PANELS",
    "Drawing",
    "chart_of",
    "finished",
    "numbers_table",
    "panels",
    "same_limits",
    "svg_files",
    "svgs_of",
    "usable",
]

MAX_PANELS = 12  # of eigenvalues; blocks of a large model are better read from the heat map
_LEGEND_LINE = 1.62 / 72  # inches of one line of a legend for each point of its font
_NARROW = "-narrow"  # ends the name of a figure in its form for a small screen
_PLACES: Mapping[str, Callable[[Measured[Any]], str | float]] = {
    "weights": lambda m: m.arm,
    "checkpoint": lambda m: m.checkpoint,
    "matrix": lambda m: matrix_name(m.record.matrix),
    "block": lambda m: m.record.block,
    "chart": lambda m: chart_of(m),
    "damping": lambda m: m.record.relative_damping,
    "layer": lambda m: layer_of(m.record.neuron),
    "direction": lambda m: m.record.direction,
    "projection": lambda m: m.record.projection,
}
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Drawing:
    """One figure of the report.

    Attributes
    ----------
    name
        Of its file.
    caption
        How to read it.
    figure
        What is drawn.
    table
        The numbers in it, under its title.
    narrow
        The same for a small screen; None where the figure shrinks, or scrolls.
    """

    name: str
    caption: str
    figure: Figure
    table: Table
    narrow: Figure | None = None

    @property
    def title(self) -> str:
        """Title of the figure and of its numbers."""
        return self.table.title


def svgs_of(drawings: Iterable[Drawing]) -> dict[str, str]:
    """Render figures for a page.

    Parameters
    ----------
    drawings
        The figures.

    Returns
    -------
    dict of str to str
        Each figure as SVG by its name, and its form for a small screen by that name with ``-narrow`` behind it.
    """
    svgs = {}
    for drawing in drawings:
        for name, figure in ((drawing.name, drawing.figure), (drawing.name + _NARROW, drawing.narrow)):
            if figure is not None:
                svgs[name] = render_svg(figure, drawing.title, salt=name)
    return svgs


def svg_files(svgs: Mapping[str, str]) -> dict[str, str]:
    """Files of figures in a run directory.

    Parameters
    ----------
    svgs
        As :func:`svgs_of` returns them.

    Returns
    -------
    dict of str to str
        By relative path. Forms for a small screen are in the page alone.
    """
    return {f"figures/{name}.svg": svg for name, svg in svgs.items() if not name.endswith(_NARROW)}


def panels(
    groups: Mapping[Key, Sequence[Any]],
    plot: Callable[[Axes, Key, Sequence[Any]], object],
    *,
    columns: int = 2,
    width: float = 4.6,
    height: float = 3.3,
) -> tuple[Figure, list[Axes]]:
    """Draw one panel per group.

    Parameters
    ----------
    groups
        What each panel shows, by its key.
    plot
        Draws one panel, given its Axes, its key and its group.
    columns
        Panels side by side, if there are as many.
    width, height
        Of a panel, in inches.

    Returns
    -------
    tuple of Figure and list of Axes
        The Axes in the order of the groups.
    """
    count = len(groups)
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    figure = Figure(figsize=(max(6.0, columns * width), rows * height), layout=PanelLayout())
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in axes[count:]:
        spare.remove()
    for ax, (key, members) in zip(axes, groups.items(), strict=False):
        plot(ax, key, members)
    return figure, axes[:count]


def finished(figure: Figure, *, outer_labels: bool = True) -> Figure:
    """Break titles that are longer than their panel, and draw one legend under all panels, where it covers nothing.

    Parameters
    ----------
    figure
        Its panels have no legend yet. A legend of many lines makes it higher: the panels keep their height.
    outer_labels
        Whether axes are named once per row and column of panels; ticks stay, for scales may differ.

    Returns
    -------
    Figure
        The same one.
    """
    for ax in figure.axes:
        place = ax.get_subplotspec()
        if place is None:  # a colour bar
            continue
        width = figure.get_figwidth() / place.get_gridspec().ncols
        title = ax.get_title(rcParams["axes.titlelocation"])
        above = None if ax.get_yscale() == "linear" else 1.0  # only over a linear axis can there be a factor to avoid
        ax.set_title(fill(title, int(11 * width)), fontsize="medium", y=above)
        if outer_labels and not place.is_first_col():
            ax.set_ylabel("")
        if outer_labels and not place.is_last_row():
            ax.set_xlabel("")
    handles: dict[str, Any] = {}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        longest = max(map(len, handles)) * 0.075 + 0.6  # estimated inches of one entry
        columns = max(1, min(len(handles), int(figure.get_figwidth() / longest)))
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False, handlelength=3
        )
        lines = -(-len(handles) // columns)
        figure.set_figheight(figure.get_figheight() + _LEGEND_LINE * rcParams["font.size"] * (lines - 1))
    return figure


def same_limits(axes: Sequence[Axes], names: Iterable[Hashable]) -> None:
    """Give panels of one name one scale, so that they can be compared by eye.

    Parameters
    ----------
    axes
        The panels.
    names
        As many, for instance the matrix that each panel shows.
    """
    for members in grouped(zip(axes, names, strict=True), lambda pair: pair[1]).values():
        limits = [ax.get_ylim() for ax, _ in members]
        for ax, _ in members:
            ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def chart_of(m: Measured) -> str:
    """Chart of a measurement with its gauge.

    Parameters
    ----------
    m
        One measurement.

    Returns
    -------
    str
        A few words.
    """
    return chart_label(m.record.chart, m.record.gauge)


def numbers_table(
    title: str,
    items: Sequence[Measured[Any]],
    places: Sequence[str],
    numbers: Callable[[Sequence[Measured[Any]]], Mapping[str, Entry]],
) -> Table:
    """The numbers in a figure, one row for each group of measurements.

    Parameters
    ----------
    title
        Of the figure.
    items
        What is drawn; at least one.
    places
        First columns, by which the measurements are grouped.
    numbers
        Computes the other columns of a group, by their names.

    Returns
    -------
    Table
        In order of appearance.
    """
    groups = grouped(items, lambda m: tuple(_PLACES[place](m) for place in places))
    rows = [(key, numbers(members)) for key, members in groups.items()]
    return Table(title, (*places, *rows[0][1]), tuple((*key, *columns.values()) for key, columns in rows))


def usable(m: Measured[ConditionNumbers], quantity: str) -> bool:
    """Whether condition numbers hold a quantity with a value.

    Parameters
    ----------
    m
        Measurement of condition numbers.
    quantity
        Its name.

    Returns
    -------
    bool
        False where it is undefined.
    """
    return quantity in m.record.values and m.record.values[quantity].has_value
