"""Condition numbers: against the gauge, along training, block by block."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from curvature.errors import ConfigurationError
from curvature.records import ConditionNumbers, GaugeState, Measured
from curvature.report.figures.labels import chart_of, common_words, labels_of, measurements_of, safe
from curvature.report.figures.style import (
    BLACK,
    GRAY,
    KNOWN,
    OTHERS,
    add_legend,
    axes_or_new,
    finish,
    keep_a_decade,
    plot_spreads,
    styles_of,
)
from curvature.report.spread import grouped, spread
from curvature.report.words import (
    chart_label,
    form_of,
    quantity_name,
    quantity_symbol,
    short_number,
    stretch_of,
)

__all__ = ["plot_conditions_along_training", "plot_gauge_sweep", "plot_layers"]

_ON_DARK, _ON_LIGHT = "#fdfdfd", "#020202"  # no colours of a page, which change places where the page is dark
_SWEEP_STYLES = [KNOWN["weight-norm", "checkpoint"], KNOWN["placebo", "paper"], *OTHERS]


def plot_gauge_sweep(
    numbers: Sequence[ConditionNumbers | Measured],
    ax: Axes | None = None,
    *,
    quantity: str = "kappa_95",
    states: Sequence[Measured] = (),
    legend: bool = True,
    title: str | None = None,
) -> Axes:
    r"""Draw a condition number against the stretch $\|v\|/|g|$, with the standard chart as a line.

    Parameters
    ----------
    numbers
        Condition numbers of one matrix, or measurements of them: gauges with one stretch (``"canonical"`` is 1), and
        the standard chart at the same weights. Others are left out. Several seeds give the median and their range.
    ax
        Where to draw; None opens a new figure.
    quantity
        Which number; a lower bound is drawn as an upward arrow.
    states
        Measurements of :class:`GaugeState`: gauges without one stretch (the paper's, a checkpoint's) are then marked at
        the median stretch of their rows, with the range of the rows as a bar.
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
        If no gauge with one stretch has that number.
    """
    numbers = measurements_of(numbers, ConditionNumbers)
    ax = axes_or_new(ax)
    known = [m for m in numbers if quantity in m.record.values]
    stretches = {m.record.gauge: stretch for m in known if (stretch := stretch_of(m.record.gauge)) is not None}
    swept = [m for m in known if m.record.gauge in stretches]
    standard = [m for m in known if m.record.chart == "standard"]
    if not swept:
        raise ConfigurationError(f"no gauge with one stretch and {quantity} among the {len(numbers)} measurements.")
    groups = grouped(swept, lambda m: (m.record.matrix, m.record.block, m.record.chart, m.arm, m.checkpoint))
    firsts = [group[0] for group in groups.values()]
    styles = [_SWEEP_STYLES[index % len(_SWEEP_STYLES)] for index in range(len(firsts))]
    for group, label, style in zip(groups.values(), labels_of(firsts, without=("gauge",)), styles, strict=True):
        plot_spreads(
            ax,
            {
                stretch: spread(m.record.values[quantity] for m in members)
                for stretch, members in sorted(grouped(group, lambda m: stretches[m.record.gauge]).items())
            },
            style,
            label,
        )
    _plot_states(ax, numbers, states, quantity)
    _plot_standard(ax, standard, quantity)
    ax.axvline(1, color=GRAY, linestyle=":", linewidth=1.2, label="canonical gauge")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    keep_a_decade(ax)
    ticks = sorted(set(stretches.values()))
    ax.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    if legend:
        add_legend(ax)
    return finish(
        ax,
        title or f"Conditioning of {common_words(swept, ('matrix', 'block'))} against the gauge",
        "stretch ‖v‖ / |g|  (no unit)",
        f"{quantity_name(quantity)}  (no unit)",
    )


def plot_conditions_along_training(
    numbers: Sequence[Measured],
    ax: Axes | None = None,
    *,
    quantity: str = "kappa_95",
    legend: bool = True,
    title: str | None = None,
) -> Axes:
    """Draw a condition number at each checkpoint: median over seeds with their range, one line per arm and chart.

    Parameters
    ----------
    numbers
        Measurements of :class:`ConditionNumbers`.
    ax
        Where to draw; None opens a new figure.
    quantity
        Which number; a lower bound is drawn as an upward arrow.
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
        If no measurement has that number.
    """
    ax = axes_or_new(ax)
    numbers = [m for m in numbers if quantity in m.record.values]
    if not numbers:
        raise ConfigurationError(f"no measurement has {quantity}.")
    checkpoints = list(dict.fromkeys(m.checkpoint for m in sorted(numbers, key=lambda m: m.step)))
    groups = grouped(numbers, lambda m: (m.record.matrix, m.record.block, m.arm, *chart_of(m), form_of(m.record)))
    firsts = [group[0] for group in groups.values()]
    labels, styles = labels_of(firsts, without=("checkpoint", "seed")), styles_of(firsts)
    for index, (group, label, style) in enumerate(zip(groups.values(), labels, styles, strict=True)):
        shift = 0.28 * ((index + 0.5) / len(groups) - 0.5)  # apart, so that equal values do not hide each other
        members = grouped(group, lambda m: m.checkpoint)
        spreads = {
            checkpoints.index(name) + shift: spread(m.record.values[quantity] for m in members[name])
            for name in checkpoints
            if name in members
        }
        plot_spreads(ax, spreads, style, label)
    ax.set_yscale("log")
    keep_a_decade(ax)
    steps = {name: sorted({m.step for m in numbers if m.checkpoint == name}) for name in checkpoints}
    ax.set_xticks(
        range(len(checkpoints)),
        labels=[
            safe(name) + (f"\nstep {steps[name][0]}" if len(steps[name]) == 1 else "\nstep varies")
            for name in checkpoints
        ],
    )
    ax.set_xlim(-0.4, len(checkpoints) - 0.6)
    if legend:
        add_legend(ax)
    return finish(
        ax,
        title or f"Conditioning of {common_words(numbers, ('matrix', 'block'))} along training",
        "checkpoint",
        f"{quantity_name(quantity)}  (no unit)",
    )


def plot_layers(
    numbers: Sequence[Measured],
    ax: Axes | None = None,
    *,
    quantity: str = "kappa_95",
    title: str | None = None,
) -> Axes:
    """Draw a heat map of a condition number: blocks (layers) down, charts across; medians over seeds.

    Parameters
    ----------
    numbers
        Measurements of :class:`ConditionNumbers` of blocks.
    ax
        Where to draw; None opens a new figure.
    quantity
        Which number.
    title
        In place of the usual one.

    Returns
    -------
    Axes
        With title, units and legend.

    Raises
    ------
    ConfigurationError
        If no block has that number.
    """
    ax = axes_or_new(ax)
    numbers = [m for m in numbers if m.record.block != "all" and quantity in m.record.values]
    if not numbers:
        raise ConfigurationError(f"no block has {quantity}: compute spectra of blocks first.")
    rows = list(dict.fromkeys(m.record.block for m in numbers))
    columns = list(
        grouped(numbers, lambda m: (m.record.matrix, m.arm, m.checkpoint, *chart_of(m), form_of(m.record))).values()
    )
    labels = labels_of([members[0] for members in columns], without=("block", "seed"))
    cells = {
        (row, column): spread(m.record.values[quantity] for m in members if m.record.block == block)
        for row, block in enumerate(rows)
        for column, members in enumerate(columns)
    }
    shades = np.full((len(rows), len(columns)), math.nan)
    for place, cell in cells.items():
        shades[place] = math.log10(cell.median) if cell.median > 0 else math.nan
    drawn = shades[np.isfinite(shades)]
    image = ax.imshow(np.ma.masked_invalid(shades), cmap="cividis", aspect="auto")
    for (row, column), cell in cells.items():
        forms = {"lower_bound": "> {}", "unresolved": "({})", "undefined": "–", "indefinite": "–"}
        dark = shades[row, column] < (drawn.min() + drawn.max()) / 2 if len(drawn) else False
        ax.text(
            column, row, forms.get(cell.status, "{}").format(short_number(cell.median, 2)), ha="center", va="center",
            color=_ON_DARK if dark else _ON_LIGHT, fontsize="small",
        )  # fmt: skip
    ax.set_xticks(range(len(labels)), labels=[label.replace(" (", "\n(") for label in labels])
    ax.set_yticks(range(len(rows)), labels=[safe(row) for row in rows])
    ax.figure.colorbar(image, ax=ax, label=f"log₁₀ {quantity_symbol(quantity)}  (no unit)")
    finish(ax, title or f"Conditioning of {common_words(numbers, ('matrix',))} by block", "chart", "block")
    ax.grid(visible=False)
    return ax


def _plot_standard(ax: Axes, standard: Sequence[Measured], quantity: str) -> None:
    """Draw the standard chart as a horizontal line, with a band over seeds."""
    lines = grouped(standard, lambda m: (m.record.matrix, m.record.block, m.arm, m.checkpoint))
    for index, members in enumerate(lines.values()):
        level = spread(m.record.values[quantity] for m in members)
        if not math.isfinite(level.median):
            continue
        bound = "lower bound of " if level.status == "lower_bound" else ""
        place = f" ({members[0].arm}, {members[0].checkpoint})" if len(lines) > 1 else ""
        dashes, label = ("-", "--", ":", "-.")[index % 4], safe(f"{bound}standard{place}")
        ax.axhline(level.median, color=BLACK, linestyle=dashes, linewidth=1.4, label=label)
        if level.high > level.low:
            ax.axhspan(level.low, level.high, color=BLACK, alpha=0.1, linewidth=0)


def _plot_states(ax: Axes, numbers: Sequence[Measured], states: Sequence[Measured], quantity: str) -> None:
    """Mark gauges whose rows have different stretches, each seed by itself."""
    for (chart, gauge), members in grouped(states, chart_of).items():
        if stretch_of(gauge) is not None or not all(isinstance(m.record, GaugeState) for m in members):
            continue
        style, label = styles_of(members[:1])[0], safe(chart_label(chart, gauge))
        for state in members:
            place = (state.arm, state.seed, state.checkpoint, chart, gauge)
            for m in numbers:
                if (m.arm, m.seed, m.checkpoint, *chart_of(m)) != place or quantity not in m.record.values:
                    continue
                value, rows = m.record.values[quantity].value, state.record
                reach = [[rows.median - rows.minimum], [rows.maximum - rows.median]]
                ax.errorbar(
                    [rows.median], [value], xerr=reach, linestyle="none", marker=style.marker, color=style.color,
                    markersize=6, elinewidth=1, capsize=2.5, alpha=0.8, label=label,
                )  # fmt: skip
                label = "_"
