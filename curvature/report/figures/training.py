"""Training curves, and the gradient noise neuron by neuron."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes

from curvature.errors import ConfigurationError
from curvature.records import Alignment, Measured, TrainingCurve, Whitening
from curvature.report.figures.labels import measurements_of, safe
from curvature.report.figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    add_legend,
    arm_styles,
    axes_or_new,
    fanned,
    finish,
)
from curvature.report.spread import grouped
from curvature.report.words import layer_of

__all__ = ["plot_alignment", "plot_training", "plot_whitening"]


def plot_training(
    curves: Sequence[TrainingCurve],
    ax: Axes | None = None,
    *,
    quantity: str = "losses",
    legend: bool = True,
    title: str | None = None,
) -> Axes:
    """Draw training curves: one thin line per seed, the median of each arm thick.

    Parameters
    ----------
    curves
        One per arm and seed.
    ax
        Where to draw; None opens a new figure.
    quantity
        ``"losses"`` or ``"accuracies"``.
    legend
        Whether to explain the lines.
    title
        In place of the usual one.

    Returns
    -------
    Axes
        With title, units and legend.

    Raises
    ------
    ConfigurationError
        Without curves, or if the quantity has another name.
    """
    if not curves:
        raise ConfigurationError("no training curve to draw.")
    if quantity not in ("losses", "accuracies"):
        raise ConfigurationError(f"quantity must be 'losses' or 'accuracies', got {quantity!r}.")
    ax = axes_or_new(ax)
    arms = grouped(curves, lambda curve: curve.arm)
    for (arm, runs), style in zip(arms.items(), arm_styles(list(arms)), strict=True):
        for run in runs:
            ax.plot(run.steps, getattr(run, quantity), color=style.color, linewidth=0.7, alpha=0.45)
        if all(np.array_equal(run.steps, runs[0].steps) for run in runs):
            median = np.median([getattr(run, quantity) for run in runs], axis=0)
            marked = np.unique(np.linspace(0, len(median) - 1, 8).astype(int)).tolist()
            label = f"{arm} (median of {len(runs)} seeds)" if len(runs) > 1 else arm
            ax.plot(
                runs[0].steps, median, **style.line, linewidth=1.8, markersize=4.5, markevery=marked, label=safe(label)
            )
        else:
            ax.plot([], [], **style.line, label=safe(arm))
    if quantity == "losses" and min(float(np.min(curve.losses)) for curve in curves) > 0:
        ax.set_yscale("log")
    if legend:
        add_legend(ax)
    name = {"losses": "loss  (mean over examples)", "accuracies": "accuracy  (fraction)"}[quantity]
    return finish(ax, title or "Training, arm by arm", "optimizer step", name)


def plot_whitening(
    whitenings: Sequence[Whitening | Measured], ax: Axes | None = None, *, legend: bool = True, title: str | None = None
) -> Axes:
    r"""Draw how far each neuron's gradient covariance is from $cI$, by which direction was projected out.

    One marker per neuron and seed, layer by layer, a bar at the median; the dotted line continues the null, the median
    with a random direction projected out.

    Parameters
    ----------
    whitenings
        From :func:`curvature.whitening`, or measurements of them.
    ax
        Where to draw; None opens a new figure.
    legend
        Whether to explain the lines.
    title
        In place of the usual one.

    Returns
    -------
    Axes
        With title, units and legend.
    """
    whitenings = measurements_of(whitenings, Whitening)
    ax = axes_or_new(ax)
    columns = _in_order({m.record.projection for m in whitenings}, ("none", "random", "w", "e1"))
    names = {"none": "nothing", "random": "random\n(null)", "w": "w", "e1": "top\neigenvector"}
    for layer, left, width, color in _strips(ax, whitenings, columns, "projection", "bures", names):
        null = [m.record.bures for m in layer if m.record.projection == "random"]
        if null:
            ends = [left, left + len(columns) - 1 + width]
            ax.plot(ends, [float(np.median(null))] * 2, color=color, linestyle=":", linewidth=1.4, zorder=1)
    ax.set_ylim(0, 1)
    if legend:
        add_legend(ax)
    return finish(
        ax,
        title or "Sphericity of the gradient covariance, neuron by neuron",
        "direction projected out",
        "Bures distance from c I  (0 is white)",
    )


def plot_alignment(
    alignments: Sequence[Alignment | Measured], ax: Axes | None = None, *, legend: bool = True, title: str | None = None
) -> Axes:
    r"""Draw $|\cos|$ of each direction with the top eigenvector of the neuron's gradient covariance.

    One marker per neuron and seed, layer by layer, a bar at the median; the dotted line is the null, the mean for a
    random direction.

    Parameters
    ----------
    alignments
        From :func:`curvature.alignments`, or measurements of them.
    ax
        Where to draw; None opens a new figure.
    legend
        Whether to explain the lines.
    title
        In place of the usual one.

    Returns
    -------
    Axes
        With title, units and legend.
    """
    alignments = measurements_of(alignments, Alignment)
    ax = axes_or_new(ax)
    columns = _in_order({m.record.direction for m in alignments}, ("w", "random", "mean input"))
    for layer, left, width, color in _strips(ax, alignments, columns, "direction", "cosine", {}):
        null = float(np.mean([m.record.null_cosine for m in layer]))
        ax.plot(
            [left, left + len(columns) - 1 + width], [null] * 2, color=color, linestyle=":", linewidth=1.4, zorder=1
        )
    ax.set_ylim(0, 1.03)
    if legend:
        add_legend(ax)
    return finish(
        ax, title or "Alignment with the top eigenvector of the gradient covariance", "direction", "|cos|  (no unit)"
    )


def _strips(
    ax: Axes, items: Sequence[Measured], columns: Sequence[str], by: str, quantity: str, names: dict[str, str]
) -> Iterator[tuple[list[Measured], float, float, str]]:
    """Draw one strip per column and layer, side by side; yield each layer with its left edge, width and colour."""
    layers = grouped(items, lambda m: layer_of(m.record.neuron))
    width = 0.76 / len(layers)
    looks = [(BLUE, "o"), (VERMILLION, "s"), (GREEN, "D"), (PURPLE, "^"), (ORANGE, "v"), (SKY, "P")]
    for index, (layer, members) in enumerate(layers.items()):
        color, marker = looks[index % len(looks)]
        for column, name in enumerate(columns):
            values = [getattr(m.record, quantity) for m in members if getattr(m.record, by) == name]
            values = [value for value in values if math.isfinite(value)]
            middle = column - 0.38 + (index + 0.5) * width
            ax.plot(
                middle + fanned(len(values), 0.36 * width), values, linestyle="none", marker=marker, color=color,
                markersize=3.4, markeredgewidth=0, alpha=0.5,
            )  # fmt: skip
            if values:
                ends = [middle - 0.46 * width, middle + 0.46 * width]
                ax.plot(ends, [np.median(values)] * 2, color=color, linewidth=2.4, zorder=4)
        ax.plot([], [], linestyle="none", marker=marker, color=color, markersize=5, label=safe(f"layer {layer}"))
        yield members, -0.38 + index * width, width, color
    ax.set_xticks(range(len(columns)), labels=[names.get(name) or safe(name) for name in columns])
    ax.set_xlim(-0.6, len(columns) - 0.4)
    ax.grid(visible=False, axis="x")


def _in_order(names: set[str], first: Sequence[str]) -> list[str]:
    return [*(name for name in first if name in names), *sorted(names - set(first))]
