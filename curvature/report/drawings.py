"""The figures of a report, each with a caption that says how to read it and with its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from curvature.records import (
    Alignment,
    ExtremalEigenvalues,
    GaugeState,
    Measured,
    SpectralDensity,
    Spectrum,
    StepComparison,
    Study,
    Whitening,
)
from curvature.report import figures
from curvature.report.document import numbers_of, quartiles
from curvature.report.figures import chart_label, grouped, matrix_name, spread, stretch_of
from curvature.report.findings import arm_words, block_words, capital, point_words
from curvature.studies.evidence import last_checkpoint

MAX_PANELS = 12  # of eigenvalues; blocks of a large model are better read from the heat map
_SPREAD_HEADER = ("median", "smallest", "largest", "status")


@dataclass(frozen=True)
class Drawing:
    """One figure of the report, with what a reader needs to read it and the numbers in it."""

    name: str
    title: str
    caption: str
    figure: Figure
    header: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def drawings_of(study: Study) -> list[Drawing]:
    """Every figure for which the study has data."""
    numbers = numbers_of(study)
    with rc_context({"font.size": 9, "axes.titlesize": 9.5}):
        found = [
            _draw_eigenvalues(study),
            _draw_extremes(study),
            _draw_density(study),
            _draw_along_training(numbers),
            _draw_sweep(study, numbers),
            _draw_efficiency(study),
            _draw_damping(study),
            _draw_layers(numbers),
            _draw_alignment(study),
            _draw_whitening(study),
            _draw_training(study),
        ]
    return [drawing for drawing in found if drawing is not None]


def _draw_eigenvalues(study: Study) -> Drawing | None:
    last, spectra = last_checkpoint(study), _without_sweep(_main_form(study.of(Spectrum)))
    first = min((m.seed for m in spectra), default=0)
    spectra = [m for m in spectra if m.checkpoint == last and m.seed == first]
    panels = grouped(spectra, lambda m: (m.arm, m.record.block, m.record.matrix))
    if not panels or len(panels) > MAX_PANELS:
        return None
    matrices = len({matrix for _, _, matrix in panels})
    columns = matrices if 1 < matrices < len(panels) else min(len(panels), 3)
    overlaid = any(len(members) > 1 for members in panels.values())
    figure, axes = _grid(len(panels), columns, height=3.1)
    rows = []
    for ax, ((arm, block, matrix), members) in zip(axes, panels.items(), strict=True):
        where = arm_words(arm) if arm != "given" else "" if overlaid else _chart(members[0])
        title = ", ".join(filter(None, (capital(matrix_name(matrix)), block_words(block), where)))
        if overlaid:
            figures.plot_spectra(members, ax, legend=False, title=title)
        else:
            figures.plot_spectrum(members[0].record, ax, title=title)
        for m in members:
            values, ranks = figures.descending(m.record)
            kept = figures.thinned(np.arange(len(values)), 30)
            rows += [(arm, block, matrix, _chart(m), ranks[index], values[index]) for index in kept]
    if overlaid:
        _same_limits(axes, [matrix for _, _, matrix in panels])
        _outer_labels(figure)
        _complete(figure)
    canonical = any(m.record.gauge == "canonical" for m in spectra)
    caption = (
        ("" if len(panels) == 1 else "One panel per matrix, block and set of weights. ")
        + "Eigenvalues by descending absolute value, both axes logarithmic: a straight line is a power law, and the "
        "steep end is what condition numbers measure. Hollow markers are negative eigenvalues. What lies below the "
        "noise floor (hatched, where it is near) cannot be told from zero."
        + (" At the canonical gauge every matrix but the Hessian has the standard spectrum." if canonical else "")
        + (f" Seed {first}, {last}." if last != "given" else "")
    )
    header = ("weights", "block", "matrix", "chart", "rank", "eigenvalue")
    return Drawing("eigenvalues", "Eigenvalues by rank", caption, figure, header, rows)


def _draw_extremes(study: Study) -> Drawing | None:
    caption = (
        "Eigenvalues at the ends, counted from the largest and from the smallest, by Lanczos. Bars reach as far as "
        "some eigenvalue may be; where none is seen it is shorter than the marker. Hollow markers are negative. A "
        "bound does not say that no eigenvalue was missed, and a multiple eigenvalue is found once."
    )
    drawn = _draw_estimates(study, ExtremalEigenvalues, figures.plot_extremes)
    if drawn is None:
        return None
    figure, items = drawn
    rows = [
        (m.arm, m.record.block, m.record.matrix, _chart(m), end, rank + 1, value, bound)
        for m in items
        for end, values, bounds in (
            ("largest", m.record.largest, m.record.largest_bounds),
            ("smallest", m.record.smallest, m.record.smallest_bounds),
        )
        for rank, (value, bound) in enumerate(zip(values, bounds, strict=True))
    ]
    header = ("weights", "block", "matrix", "chart", "end", "rank", "eigenvalue", "error bound")
    return Drawing("extremes", "Ends of the spectrum", caption, figure, header, rows)


def _draw_density(study: Study) -> Drawing | None:
    drawn = _draw_estimates(study, SpectralDensity, figures.plot_density)
    if drawn is None:
        return None
    figure, items = drawn
    steps = sorted({m.record.num_matvecs for m in items})
    probes = sorted({m.record.num_probes for m in items})
    caption = (
        "Density of eigenvalues by stochastic Lanczos quadrature, in bins of (max − min) / "
        f"{' or '.join(map(str, steps))} products: nothing finer should be read from it, and no smallest eigenvalue. "
        f"The band is a pointwise 95 % t-interval over {' or '.join(map(str, probes))} random probes; it shows how the "
        "probes differ and not the error of too few products. Where the axis is logarithmic, a peak would flatten "
        "outliers otherwise, and the dotted line is what one eigenvalue in a bin would be."
    )
    rows = []
    for m in items:
        edges, density, error = m.record.histogram()
        place = (m.arm, m.record.block, m.record.matrix, _chart(m))
        rows += [(*place, *values) for values in zip(edges[:-1], edges[1:], density, error, strict=True)]
    header = ("weights", "block", "matrix", "chart", "from", "to", "density", "standard error")
    return Drawing("density", "Density of eigenvalues", caption, figure, header, rows)


def _draw_estimates(study: Study, kind: type, plot: Callable[..., Axes]) -> tuple[Figure, list[Measured]] | None:
    """One panel per matrix and block, charts overlaid."""
    items = study.of(kind, checkpoint=last_checkpoint(study))
    panels = grouped(items, lambda m: (m.arm, m.record.block, m.record.matrix))
    if not panels or len(panels) > MAX_PANELS:
        return None
    figure, axes = _grid(len(panels), min(len(panels), 2), width=4.6, height=3.3)
    for ax, ((arm, block, matrix), members) in zip(axes, panels.items(), strict=True):
        where = arm_words(arm) if arm != "given" else "" if len(members) > 1 else _chart(members[0])
        title = ", ".join(filter(None, (capital(matrix_name(matrix)), block_words(block), where)))
        plot(members, ax, legend=False, title=title)
    _complete(figure)
    return figure, items


def _draw_along_training(numbers: list[Measured]) -> Drawing | None:
    chosen = [m for m in _without_sweep(_main_form(numbers)) if m.record.block == "all" and _usable(m, "kappa_95")]
    if len({m.checkpoint for m in chosen}) < 2:
        return None
    panels = grouped(chosen, lambda m: (m.arm, m.record.matrix))
    figure, axes = _grid(len(panels), len({matrix for _, matrix in panels}), width=4.0)
    for ax, ((arm, matrix), members) in zip(axes, panels.items(), strict=True):
        title = f"{capital(matrix_name(matrix))}, {arm_words(arm)}"
        figures.plot_conditions_along_training(members, ax, legend=False, title=title)
    _same_limits(axes, [matrix for _, matrix in panels])
    _outer_labels(figure)
    _complete(figure)
    caption = (
        "Condition number κ₉₅, the largest eigenvalue over that at 95 % of the rank, at each checkpoint: medians over "
        "seeds, bars from the smallest to the largest. Charts in one panel share weights and function and differ in "
        "coordinates alone. An arrow marks a lower bound. Where a matrix is indefinite it has no condition number and "
        "no point here."
    )
    rows = _spread_rows(chosen, "kappa_95", lambda m: (m.arm, matrix_name(m.record.matrix), _chart(m), m.checkpoint))
    header = ("weights", "matrix", "chart", "checkpoint", *_SPREAD_HEADER)
    return Drawing("training-conditions", "Condition number along training", caption, figure, header, rows)


def _draw_sweep(study: Study, numbers: list[Measured]) -> Drawing | None:
    last = last_checkpoint(study)
    chosen = [m for m in numbers if m.checkpoint == last and m.record.block == "all" and _usable(m, "kappa_95")]
    matrices = {m.record.matrix for m in chosen if m.record.gauge.startswith("stretch=")}
    chosen = [m for m in chosen if m.record.matrix in matrices]
    if len({stretch_of(m.record.gauge) for m in chosen} - {None}) < 2:
        return None
    panels = grouped(chosen, lambda m: (m.arm, m.record.matrix))
    figure, axes = _grid(len(panels), min(len(panels), 2), width=4.6, height=3.3)
    states = [m for m in study.of(GaugeState) if m.checkpoint == last]
    for ax, ((arm, matrix), members) in zip(axes, panels.items(), strict=True):
        title = f"{capital(matrix_name(matrix))}, {point_words(arm, last).lower()}"
        here = [m for m in states if m.arm == arm]
        figures.plot_gauge_sweep(members, ax, states=here, legend=False, title=title)
    _same_limits(axes, [matrix for _, matrix in panels])
    _outer_labels(figure)
    _complete(figure)
    caption = (
        "The same weights and the same function in weight norm, at different lengths of v. Left of 1 a step turns the "
        "weight vectors more than in the standard chart, right of 1 less; at 1, the canonical gauge, the curve meets "
        "the standard chart (line, with a band over seeds). Medians over seeds, bars from the smallest to the largest. "
        "Gauges in which every row has its own stretch stand at the median of their rows, one point per seed, with a "
        "bar over all rows."
    )
    listed = [m for m in chosen if stretch_of(m.record.gauge) is not None or m.record.chart == "standard"]
    rows = _spread_rows(listed, "kappa_95", lambda m: (m.arm, matrix_name(m.record.matrix), _chart(m)))
    header = ("weights", "matrix", "chart", *_SPREAD_HEADER)
    return Drawing("gauge-sweep", "Condition number against the gauge", caption, figure, header, rows)


def _draw_efficiency(study: Study) -> Drawing | None:
    last = last_checkpoint(study)
    steps = [m for m in study.of(StepComparison, block="all") if m.checkpoint == last]
    if not steps:
        return None
    damping = figures.usual_damping(steps)
    steps = [m for m in steps if m.record.relative_damping == damping]
    panels = grouped(steps, lambda m: m.arm)
    tall = max(len({_chart(m) for m in members}) for members in panels.values())
    figure, axes = _grid(len(panels), min(len(panels), 2), width=5.2, height=1.1 + 0.26 * tall)
    for ax, (arm, members) in zip(axes, panels.items(), strict=True):
        figures.plot_efficiency(members, ax, legend=False, title=point_words(arm, last))
    if "log" in {ax.get_xscale() for ax in axes}:  # one scale for all of them
        lowest = min(m.record.efficiency for m in steps if m.record.efficiency > 0)
        for ax in axes:
            ax.set_xscale("log")
            ax.set_xlim(lowest / 1.6, 1.4)
    _complete(figure)
    caption = (
        "Share of the progress of the damped natural gradient that one gradient step in each chart makes, on the "
        "quadratic model and with the best length: E = 1 is the natural gradient. A marker per seed, a bar at the "
        f"median, ordered by it. Damping {damping:g} of the mean eigenvalue of the Fisher, on the weights. Dotted: "
        "gradient descent; dashed: neuron-block natural gradient, which inverts the Fisher neuron by neuron. The "
        "placebo has the multipliers of weight norm around random directions."
    )
    rows = [
        (
            arm,
            label,
            *_three([m.record.efficiency for m in members]),
            float(np.median([m.record.index for m in members])),
        )
        for (arm, label), members in grouped(steps, lambda m: (m.arm, _chart(m))).items()
    ]
    header = ("weights", "chart", "median E", "smallest", "largest", "median index R")
    return Drawing("efficiency", "From gradient descent to the natural gradient", caption, figure, header, rows)


def _draw_damping(study: Study) -> Drawing | None:
    last = last_checkpoint(study)
    steps = [m for m in study.of(StepComparison, block="all") if m.checkpoint == last]
    steps = [m for m in steps if not (m.record.gauge == "canonical" or m.record.chart == "natural-gradient")]
    if len({m.record.relative_damping for m in steps}) < 2:
        return None
    panels = grouped(steps, lambda m: m.arm)
    figure, axes = _grid(len(panels), min(len(panels), 2), width=4.6, height=3.7)
    for ax, (arm, members) in zip(axes, panels.items(), strict=True):
        figures.plot_efficiency_damping(members, ax, legend=False, title=point_words(arm, last))
    _outer_labels(figure)
    _complete(figure)
    caption = (
        "The same efficiency against the damping, relative to the mean eigenvalue: with much damping the natural "
        "gradient turns into gradient descent. Preconditioners use the damping that they are compared at. What holds "
        "at one damping only is a statement about that damping. Left out: the canonical gauge, which is equal to "
        "standard, and the natural gradient, which is 1."
    )
    rows = [
        (arm, label, damping, *_three([m.record.efficiency for m in members]))
        for (arm, label, damping), members in grouped(
            steps, lambda m: (m.arm, _chart(m), m.record.relative_damping)
        ).items()
    ]
    header = ("weights", "chart", "damping", "median E", "smallest", "largest")
    return Drawing("efficiency-damping", "Efficiency against damping", caption, figure, header, rows)


def _draw_layers(numbers: list[Measured]) -> Drawing | None:
    blocks = [m for m in numbers if m.record.block != "all" and _usable(m, "kappa_95")]
    blocks = [m for m in blocks if m.checkpoint == blocks[-1].checkpoint]
    count = len({m.record.block for m in blocks})
    if not 2 <= count <= 40:
        return None
    figure, axes = _grid(1, 1, width=8.0, height=1.6 + 0.3 * count)
    figures.plot_layers(blocks, axes[0], title="κ₉₅ of each diagonal block")
    caption = (
        "Condition number κ₉₅ of every diagonal block, darker is better conditioned; the number in a cell is the "
        "median over seeds. A matrix can be worse conditioned than each of its blocks."
    )
    rows = _spread_rows(blocks, "kappa_95", lambda m: (matrix_name(m.record.matrix), m.record.block, m.arm, _chart(m)))
    header = ("matrix", "block", "weights", "chart", *_SPREAD_HEADER)
    return Drawing("layers", "Condition number by block", caption, figure, header, rows)


def _draw_alignment(study: Study) -> Drawing | None:
    items = study.of(Alignment, checkpoint=last_checkpoint(study))
    caption = (
        "One dot per neuron and seed, a bar at the median: how close each direction is to the top eigenvector of the "
        "neuron's gradient covariance. The dotted lines are the mean for a random direction in as many dimensions. If "
        "w were the dominant direction of the gradient noise, its dots would stand near 1 and above the mean input."
    )
    title = "Where the weights lie in the gradient noise"
    return _draw_strips(items, figures.plot_alignment, "alignment", title, caption, "direction", "cosine")


def _draw_whitening(study: Study) -> Drawing | None:
    items = study.of(Whitening, checkpoint=last_checkpoint(study))
    caption = (
        "One dot per neuron and seed, a bar at the median: distance of the neuron's gradient covariance from a "
        "multiple of the identity, before and after one direction is projected out; lower is whiter. Projecting out "
        "any direction helps a little, so w has to be compared with a random direction (dotted), not with nothing."
    )
    title = "Whiteness of the gradient noise"
    return _draw_strips(items, figures.plot_whitening, "whitening", title, caption, "projection", "bures")


def _draw_strips(
    items: list[Measured], plot: Callable[..., Axes], name: str, title: str, caption: str, group: str, shown: str
) -> Drawing | None:
    if not items:
        return None
    panels = grouped(items, lambda m: m.arm)
    figure, axes = _grid(len(panels), min(len(panels), 2), width=4.6, height=3.2)
    for ax, (arm, members) in zip(axes, panels.items(), strict=True):
        plot(members, ax, legend=False, title=point_words(arm, members[0].checkpoint))
    _outer_labels(figure)
    _complete(figure)
    rows = [
        (*place, len(members), *quartiles([getattr(m.record, shown) for m in members]).values())
        for place, members in grouped(
            items, lambda m: (m.arm, figures.layer_of(m.record.neuron), getattr(m.record, group))
        ).items()
    ]
    header = ("weights", "layer", group, "neurons", "median", "lower quartile", "upper quartile")
    return Drawing(name, title, caption, figure, header, rows)


def _draw_training(study: Study) -> Drawing | None:
    curves = [curve for curve in study.curves if len(curve.steps)]
    if not curves:
        return None
    with_accuracy = all(np.isfinite(curve.accuracies).all() for curve in curves)
    figure, axes = _grid(1 + with_accuracy, 1 + with_accuracy, width=4.4, height=3.0)
    figures.plot_training(curves, axes[0], legend=False, title="Mean loss over all data")
    if with_accuracy:
        figures.plot_training(curves, axes[1], quantity="accuracies", legend=False, title="Accuracy over all data")
    _complete(figure)
    caption = "Thin lines are seeds, thick ones their medians. " + (
        "Arms share data and order, and arms of one start the function there. Each trains at its own learning rate, "
        "the best of its grid at a short budget by the mean loss of the last three epochs."
        if study.sweeps
        else "Arms share initial weights, data and order, and the learning rate: the rate was not tuned for either, so "
        "this figure does not say which arm trains faster."
    )
    rows = []
    for curve in curves:
        for index in np.unique(np.linspace(0, len(curve.steps) - 1, 15).astype(int)):
            rows.append((curve.arm, curve.seed, curve.steps[index], curve.losses[index], curve.accuracies[index]))
    header = ("arm", "seed", "step", "loss", "accuracy")
    return Drawing("training", "Training", caption, figure, header, rows)


def _grid(count: int, columns: int, *, width: float = 3.6, height: float = 2.9) -> tuple[Figure, list[Axes]]:
    columns = max(1, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(6.0, columns * width), rows * height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def _complete(figure: Figure) -> None:
    """Break titles that are longer than their panel, and draw one legend under all panels, where it covers nothing.

    A legend of many lines makes the figure higher: the panels keep their height.
    """
    for ax in figure.axes:
        width = figure.get_figwidth() / ax.get_subplotspec().get_gridspec().ncols
        ax.set_title(fill(ax.get_title("left"), int(11 * width)), loc="left", fontsize="medium")
    found: dict[str, Any] = {}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        longest = max(map(len, found)) * 0.075 + 0.6  # inches that one entry takes, about
        columns = max(1, min(len(found), int(figure.get_figwidth() / longest)))
        where = {"loc": "outside lower center", "ncols": columns, "frameon": False, "handlelength": 3}
        legend = figure.legend(found.values(), found.keys(), **where)
        line = legend.get_window_extent().height / figure.dpi / -(-len(found) // columns)
        figure.set_figheight(figure.get_figheight() + line * (-(-len(found) // columns) - 1))


def _outer_labels(figure: Figure) -> None:
    """Name the axes once per row and column of panels; ticks stay, for scales may differ."""
    for ax in figure.axes:
        place = ax.get_subplotspec()
        if not place.is_first_col():
            ax.set_ylabel("")
        if not place.is_last_row():
            ax.set_xlabel("")


def _same_limits(axes: Sequence[Axes], names: Sequence[str]) -> None:
    """Give panels of one matrix one scale, so that arms can be compared by eye."""
    for members in grouped(zip(axes, names, strict=True), lambda pair: pair[1]).values():
        limits = [ax.get_ylim() for ax, _ in members]
        for ax, _ in members:
            ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _main_form(items: list[Measured]) -> list[Measured]:
    """Keep each chart once: on the weights where it was taken there too."""
    effective = {(m.record.matrix, m.record.chart, m.record.gauge) for m in items if m.record.effective}
    return [
        m for m in items if m.record.effective or (m.record.matrix, m.record.chart, m.record.gauge) not in effective
    ]


def _without_sweep(items: list[Measured]) -> list[Measured]:
    swept = [m for m in items if m.record.gauge.startswith("stretch=")]
    return items if len({m.record.gauge for m in swept}) < 2 else [m for m in items if m not in swept]


def _usable(m: Measured, name: str) -> bool:
    return name in m.record.values and m.record.values[name].has_value


def _chart(m: Measured) -> str:
    return chart_label(m.record.chart, m.record.gauge)


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    return float(np.median(values)), min(values), max(values)


def _spread_rows(items: list[Measured], name: str, key: Callable[[Measured], tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    rows = []
    for place, members in grouped(items, key).items():
        found = spread(m.record.values[name] for m in members)
        rows.append((*place, found.median, found.low, found.high, found.status.replace("_", " ")))
    return rows
