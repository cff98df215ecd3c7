"""How close the step of each chart comes to the natural gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes

from curvature.errors import ConfigurationError
from curvature.records import Measured, Quantity, StepComparison
from curvature.report.figures.labels import chart_of, labels_of, measurements_of, records_of
from curvature.report.figures.style import (
    BLACK,
    GRAY,
    add_legend,
    axes_or_new,
    fanned,
    finish,
    plot_spreads,
    styles_of,
)
from curvature.report.spread import grouped, spread

__all__ = ["USUAL_DAMPING", "nearest_damping", "plot_efficiency", "plot_efficiency_damping", "usual_damping"]

USUAL_DAMPING = 1e-3  # relative; the comparisons nearest to it are shown where only one damping can be


def plot_efficiency(
    steps: Sequence[StepComparison | Measured],
    ax: Axes | None = None,
    *,
    relative_damping: float | None = None,
    legend: bool = True,
    title: str | None = None,
) -> Axes:
    r"""Draw each chart's efficiency $E$ on the scale that ends at the natural gradient, one dot per seed.

    Parameters
    ----------
    steps
        From :func:`curvature.compare_charts`, or measurements of them. Charts are ordered by their median; gradient
        descent in the standard chart and neuron-block natural gradient (any chart with ``neuron`` in its name) are
        drawn as lines.
    ax
        Where to draw; None opens a new figure.
    relative_damping
        Which comparisons to show; those at the one nearest to ``USUAL_DAMPING`` if None.
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
        If there is no comparison at that damping.
    """
    measured = measurements_of(steps, StepComparison)
    ax = axes_or_new(ax)
    damping = usual_damping(measured) if relative_damping is None else relative_damping
    measured = [m for m in measured if m.record.relative_damping == damping]
    if not measured:
        raise ConfigurationError(f"no step comparison at damping {damping:g}.")
    groups = grouped(measured, lambda m: (*chart_of(m), m.record.block))
    groups = dict(sorted(groups.items(), key=lambda item: np.median([m.record.efficiency for m in item[1]])))
    firsts = [group[0] for group in groups.values()]
    labels = labels_of(firsts, without=("arm", "checkpoint", "seed"), chart=True)
    for row, (group, style) in enumerate(zip(groups.values(), styles_of(firsts), strict=True)):
        values = [m.record.efficiency for m in group]
        ax.plot(
            values, row + fanned(len(values), 0.36), linestyle="none", marker=style.marker, color=style.color,
            markersize=5.5, alpha=0.85,
        )  # fmt: skip
        if len(values) > 1:
            ax.plot([np.median(values)] * 2, [row - 0.36, row + 0.36], color=style.color, linewidth=2)
    for name, members, dashes in (
        ("gradient descent (median)", [m for m in measured if m.record.chart == "standard"], ":"),
        ("neuron-block natural gradient (median)", [m for m in measured if "neuron" in m.record.chart], "--"),
    ):
        if members:
            level = float(np.median([m.record.efficiency for m in members]))
            ax.axvline(level, color=GRAY, linestyle=dashes, linewidth=1.4, label=name, zorder=1)
    ax.axvline(1, color=BLACK, linewidth=1.4, label="full natural gradient, E = 1", zorder=1)
    ax.set_yticks(range(len(groups)), labels=labels)
    ax.set_ylim(-0.6, len(groups) - 0.4)
    smallest = min((m.record.efficiency for m in measured if m.record.efficiency > 0), default=1.0)
    if smallest < 0.05:
        ax.set_xscale("log")
        ax.set_xlim(smallest / 1.6, 1.4)
    else:
        ax.set_xlim(0, 1.03)
    if legend:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1, frameon=False, fontsize="small")
    finish(
        ax,
        title or f"Closeness of each step to the natural gradient, damping {damping:g}",
        "efficiency E  (no unit)",
        "",
    )
    ax.tick_params(axis="y", length=0)
    return ax


def plot_efficiency_damping(
    steps: Sequence[StepComparison | Measured], ax: Axes | None = None, *, legend: bool = True, title: str | None = None
) -> Axes:
    """Draw the efficiency against the relative damping, one line per chart: median over seeds with their range.

    Parameters
    ----------
    steps
        From :func:`curvature.compare_charts`, or measurements of them.
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
    steps = measurements_of(steps, StepComparison)
    ax = axes_or_new(ax)
    groups = grouped(steps, lambda m: (*chart_of(m), m.record.block, m.arm, m.checkpoint))
    firsts = [group[0] for group in groups.values()]
    for group, label, style in zip(
        groups.values(), labels_of(firsts, without=("seed",), chart=True), styles_of(firsts), strict=True
    ):
        spreads = {
            damping: spread(Quantity(m.record.efficiency) for m in members)
            for damping, members in sorted(grouped(group, lambda m: m.record.relative_damping).items())
        }
        plot_spreads(ax, spreads, style, label)
    ax.axhline(1, color=BLACK, linewidth=1, linestyle=(0, (1, 3)))
    ax.set_xscale("log")
    smallest = min((m.record.efficiency for m in steps if m.record.efficiency > 0), default=1.0)
    if smallest < 0.05:
        ax.set_yscale("log")
        ax.set_ylim(top=1.4)
    else:
        ax.set_ylim(0, 1.05)
    if legend:
        add_legend(ax)
    return finish(
        ax,
        title or "Efficiency against damping; 1 is the natural gradient",
        "relative damping a, λ = a tr(F) / P  (no unit)",
        "efficiency E  (no unit)",
    )


def usual_damping(steps: Sequence[StepComparison | Measured]) -> float:
    """Relative damping that is shown where only one can be.

    Parameters
    ----------
    steps
        From :func:`curvature.compare_charts`, or measurements of them.

    Returns
    -------
    float
        The one nearest to ``USUAL_DAMPING``.
    """
    return nearest_damping({record.relative_damping for record in records_of(steps, StepComparison)})


def nearest_damping(dampings: Iterable[float], wanted: float = USUAL_DAMPING) -> float:
    """Relative damping nearest to the wanted one, in decades.

    Parameters
    ----------
    dampings
        Those that were measured.
    wanted
        What to look for.

    Returns
    -------
    float
        The smaller one of two that are as near.
    """
    return min(dampings, key=lambda damping: (abs(math.log10(max(damping, 1e-300) / wanted)), damping))
