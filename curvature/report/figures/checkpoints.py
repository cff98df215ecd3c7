"""Checkpoints as one figure: eigenvalues, traces, condition numbers and the loss along the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from curvature.records import CheckpointSummary, Quantity, TrackedMatrix
from curvature.report.figures.labels import safe
from curvature.report.figures.pictures import render_svg
from curvature.report.figures.style import BLACK, BLUE, GRAY, GREEN, ORANGE, PURPLE, SKY, VERMILLION, Style, finish

__all__ = ["checkpoints_svg"]

_PANEL = (7.6, 2.4)  # inches
# One for each matrix and chart; lines that coincide (a chart that is an isometry) show through each other's gaps.
_STYLES = [
    Style(color, line, marker)
    for color, line, marker in (
        (BLUE, "-", "o"), (VERMILLION, "--", "s"), (GREEN, "-.", "^"), (ORANGE, ":", "D"), (PURPLE, "--", "v"),
        (SKY, "-.", "P"), (BLACK, ":", "X"),
    )
]  # fmt: skip


def checkpoints_svg(rows: Sequence[CheckpointSummary], title: str) -> str:
    """Draw the numbers of checkpoints along the steps, one panel for each kind of number.

    Parameters
    ----------
    rows
        In the order of their steps.
    title
        Of the image, for screen readers.

    Returns
    -------
    str
        The same bytes for the same rows. Numbers that are not resolved are left out of the lines.
    """
    series: dict[str, list[tuple[float, TrackedMatrix]]] = {}
    has_steps = all(row.step is not None for row in rows)
    positions = [float(row.step) if has_steps and row.step is not None else float(k) for k, row in enumerate(rows)]
    along = "training step" if has_steps else "checkpoint, in the order of their names"
    for position, row in zip(positions, rows, strict=True):
        for chart, point in zip(row.charts, row.points, strict=True):
            for matrix in point.matrices:
                series.setdefault(f"{matrix.matrix}, {chart}", []).append((position, matrix))
    panels = [
        ("Largest eigenvalues", "eigenvalue  (loss/coordinate²)", lambda matrix: list(matrix.largest)),
        ("Trace", "trace  (loss/coordinate²)", lambda matrix: [matrix.trace]),
        ("Condition number without the smallest fifth of the spectrum", "kappa_80", lambda matrix: [matrix.kappa_80]),
    ]
    figure = Figure(figsize=(_PANEL[0], _PANEL[1] * (len(panels) + 1)), layout="constrained")
    *upper, lowest = figure.subplots(len(panels) + 1, 1, sharex=True)
    for ax, (name, ylabel, choose) in zip(upper, panels, strict=True):
        for k, (label, members) in enumerate(series.items()):
            points = [(position, [*map(_number, choose(matrix))]) for position, matrix in members]
            _draw(ax, points, _STYLES[k % len(_STYLES)], label)
        _scale(ax)
        finish(ax, name, "", ylabel)
    lowest.plot(positions, [row.loss for row in rows], color=GRAY, marker="o", markersize=3, linewidth=1.4)
    _scale(lowest)
    finish(lowest, "Loss", along, "loss")
    handles, names = upper[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=2, frameon=False, fontsize="small")
    return render_svg(figure, title, salt=title)


def _draw(ax: Axes, points: Sequence[tuple[float, list[float]]], style: Style, label: str) -> None:
    """The first number of each checkpoint as a line with markers, the others thin."""
    positions = [position for position, _ in points]
    for k in range(max((len(numbers) for _, numbers in points), default=0)):
        values = [numbers[k] if k < len(numbers) else math.nan for _, numbers in points]
        if k == 0:
            ax.plot(positions, values, **style.line, linewidth=1.8, markersize=4, label=safe(label))
        else:
            ax.plot(positions, values, color=style.color, linewidth=0.7, alpha=0.6)


def _number(quantity: Quantity) -> float:
    return quantity.value if quantity.status == "resolved" else math.nan


def _scale(ax: Axes) -> None:
    """Logarithmic where every number is positive, and linear otherwise."""
    drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in ax.get_lines()])
    values = drawn[np.isfinite(drawn)]
    if len(values) and values.min() > 0:
        ax.set_yscale("log")
    if not len(values):
        ax.annotate("no resolved number", (0.5, 0.5), xycoords="axes fraction", ha="center", color=GRAY)
