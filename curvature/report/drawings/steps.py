"""Figures of how close one step comes to the natural gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from curvature.records import Measured, StepComparison, Study
from curvature.report import figures
from curvature.report.drawings.layout import Drawing, chart_of, finished, numbers_table, panels
from curvature.report.figures.style import label_decades
from curvature.report.spread import grouped
from curvature.report.table import Entry
from curvature.report.words import point_words
from curvature.studies.evidence import last_checkpoint

__all__ = ["draw_damping", "draw_efficiency"]


def draw_efficiency(study: Study) -> Drawing | None:
    """Draw the efficiency of one step in each chart, at the last checkpoint.

    Parameters
    ----------
    study
        What was measured.

    Returns
    -------
    Drawing or None
        None without comparisons of steps.
    """
    last, steps = _last_steps(study)
    if not steps:
        return None
    damping = figures.usual_damping(steps)
    steps = [m for m in steps if m.record.relative_damping == damping]
    groups = grouped(steps, lambda m: m.arm)

    def plot(ax: Axes, arm: str, members: Sequence[Measured]) -> None:
        figures.plot_efficiency(members, ax, legend=False, title=point_words(arm, last))

    tallest = max(len({chart_of(m) for m in members}) for members in groups.values())
    figure, axes = panels(groups, plot, width=5.2, height=1.1 + 0.26 * tallest)
    if "log" in {ax.get_xscale() for ax in axes}:  # one scale for all of them
        lowest = min(m.record.efficiency for m in steps if m.record.efficiency > 0)
        for ax in axes:
            if ax.get_xscale() == "linear":
                ax.set_xscale("log")
                label_decades(ax.xaxis)
            ax.set_xlim(lowest / 1.6, 1.4)
    caption = (
        "Share of the progress of the damped natural gradient that one gradient step in each chart makes, on the "
        "quadratic model and with the best length: E = 1 is the natural gradient. A marker per seed, a bar at the "
        f"median, ordered by it. Damping {damping:g} of the mean eigenvalue of the Fisher, on the weights. Dotted: "
        "gradient descent; dashed: neuron-block natural gradient, which inverts the Fisher neuron by neuron. The "
        "placebo has the multipliers of weight norm around random directions."
    )
    title = "From gradient descent to the natural gradient"
    table = numbers_table(title, steps, ("weights", "chart"), lambda members: _efficiencies(members) | _index(members))
    return Drawing("efficiency", caption, finished(figure, outer_labels=False), table)


def draw_damping(study: Study) -> Drawing | None:
    """Draw the efficiency of one step against the damping, at the last checkpoint.

    Parameters
    ----------
    study
        What was measured.

    Returns
    -------
    Drawing or None
        None with fewer than two dampings.
    """
    last, steps = _last_steps(study)
    steps = [m for m in steps if not (m.record.gauge == "canonical" or m.record.chart == "natural-gradient")]
    if len({m.record.relative_damping for m in steps}) < 2:
        return None

    def plot(ax: Axes, arm: str, members: Sequence[Measured]) -> None:
        figures.plot_efficiency_damping(members, ax, legend=False, title=point_words(arm, last))

    figure, _ = panels(grouped(steps, lambda m: m.arm), plot, height=3.7)
    caption = (
        "The same efficiency against the damping, relative to the mean eigenvalue: with much damping the natural "
        "gradient turns into gradient descent. Preconditioners use the damping that they are compared at. What holds "
        "at one damping only is a statement about that damping. Left out: the canonical gauge, which is equal to "
        "standard, and the natural gradient, which is 1."
    )
    table = numbers_table("Efficiency against damping", steps, ("weights", "chart", "damping"), _efficiencies)
    return Drawing("efficiency-damping", caption, finished(figure), table)


def _last_steps(study: Study) -> tuple[str, list[Measured]]:
    last = last_checkpoint(study)
    return last, study.of(StepComparison, block="all", checkpoint=last)


def _efficiencies(members: Sequence[Measured[StepComparison]]) -> dict[str, Entry]:
    values = [m.record.efficiency for m in members]
    return {"median E": float(np.median(values)), "smallest": min(values), "largest": max(values)}


def _index(members: Sequence[Measured[StepComparison]]) -> dict[str, Entry]:
    return {"median index R": float(np.median([m.record.index for m in members]))}
