"""A track as one figure: loss, largest eigenvalues with the critical sharpness, and traces over the steps."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from curvature.records import Quantity, Track
from curvature.report.figures.style import BLUE, GRAY, GREEN, PURPLE, VERMILLION, add_legend, axes_or_new, finish

__all__ = ["plot_track"]

_STYLES = ((BLUE, "o", "-"), (VERMILLION, "s", "--"), (GREEN, "^", "-."), (PURPLE, "D", ":"))


def plot_track(
    track: Track, ax: Axes | None = None, *, learning_rate: float | None = None, title: str | None = None
) -> Axes:
    r"""Draw the largest eigenvalue of each matrix along training, with the critical sharpness.

    Parameters
    ----------
    track
        What to draw.
    ax
        Where to draw; None opens a new figure.
    learning_rate
        Also draw $2/\eta$, the largest curvature at which gradient descent is stable.
    title
        In place of the usual one.

    Returns
    -------
    Axes
        Steps across, unit loss / coordinate**2 upwards on a logarithmic axis. The band of a line is the interval of its
        numbers, where it is finite. Crosses at the lower edge are steps at which training diverged.
    """
    ax = axes_or_new(ax)
    for number, matrix in enumerate(track.matrices):
        color, marker, style = _STYLES[number % len(_STYLES)]
        _draw(ax, track, f"{matrix}/largest_1", f"{matrix}: largest eigenvalue", (color, marker, style))
    _draw(ax, track, "critical_sharpness", "critical sharpness", (GRAY, "x", "-"))
    optimizers = ", ".join(dict.fromkeys(point.update for point in track.points if point.update))
    _draw(
        ax,
        track,
        "critical_sharpness_of_update",
        f"critical sharpness along updates of {optimizers}",
        (GRAY, "+", "--"),
    )
    if learning_rate is not None:
        ax.axhline(2 / learning_rate, color=GRAY, linestyle=":", label=f"2 / learning rate ({learning_rate:g})")
    diverged = [point.step for point in track.points if point.diverged]
    if diverged:
        ax.plot(diverged, [0.02] * len(diverged), "x", color=VERMILLION, transform=ax.get_xaxis_transform(),
                label="diverged")  # fmt: skip
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend(ax)
    return finish(ax, title or f"Curvature along training: {track.label}", "optimizer step",
                  "curvature  (loss/coordinate²)")  # fmt: skip


def _draw(ax: Axes, track: Track, name: str, label: str, style: tuple[str, str, str]) -> None:
    rows = [(point.step, point.quantities[name]) for point in track.points if name in point.quantities]
    rows = [(step, quantity) for step, quantity in rows if quantity.has_value and quantity.value > 0]
    if not rows:
        return
    color, marker, line = style
    steps = [step for step, _ in rows]
    ax.plot(steps, [quantity.value for _, quantity in rows], color=color, marker=marker, linestyle=line, markersize=4,
            label=label)  # fmt: skip
    low, high = (np.array([_end(quantity, end) for _, quantity in rows]) for end in ("low", "high"))
    ax.fill_between(steps, low, high, where=np.isfinite(low) & np.isfinite(high), color=color, alpha=0.15, linewidth=0)


def _end(quantity: Quantity, end: str) -> float:
    value = getattr(quantity, end)
    return math.nan if value is None or value <= 0 else float(value)
