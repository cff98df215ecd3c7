"""Figures of spectra and of their condition numbers: by rank, along training, against the gauge, by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from curvature.records import ConditionNumbers, GaugeState, Measured, Spectrum, Study
from curvature.report import figures
from curvature.report.drawings.layout import (
    MAX_PANELS,
    Drawing,
    chart_of,
    finished,
    numbers_table,
    panels,
    same_limits,
    usable,
)
from curvature.report.selection import in_one_form, numbers_of, without_sweep
from curvature.report.spread import grouped, spread
from curvature.report.table import Entry, Table
from curvature.report.words import arm_words, block_words, point_words, stretch_of, subject
from curvature.studies.evidence import last_checkpoint

__all__ = ["draw_along_training", "draw_eigenvalues", "draw_histogram", "draw_layers", "draw_sweep"]

_QUANTITY = "kappa_95"
_POINTS = 30  # eigenvalues of each spectrum in the numbers of a figure


def draw_eigenvalues(study: Study) -> Drawing | None:
    """Draw eigenvalues by rank, at the last checkpoint of the first seed.

    Parameters
    ----------
    study
        What was measured.

    Returns
    -------
    Drawing or None
        None without spectra, or with too many panels.
    """
    last, seed, spectra, groups = _panels_of(study)
    if not groups or len(groups) > MAX_PANELS:
        return None
    matrices = len({matrix for _, _, matrix in groups})
    overlaid = any(len(members) > 1 for members in groups.values())

    def plot(ax: Axes, key: tuple[str, str, str], members: Sequence[Measured]) -> None:
        arm, block, matrix = key
        weights = arm_words(arm) if arm != "given" else "" if overlaid else chart_of(members[0])
        title = subject(matrix, block_words(block), weights)
        if overlaid:
            figures.plot_spectra(members, ax, legend=False, title=title)
        else:
            figures.plot_spectrum(members[0].record, ax, title=title)

    columns = matrices if 1 < matrices < len(groups) else 3
    figure, axes = panels(groups, plot, columns=columns, width=3.6, height=3.1)
    if overlaid:
        same_limits(axes, (matrix for _, _, matrix in groups))
        finished(figure)
    canonical = any(m.record.gauge == "canonical" for m in spectra)
    caption = (
        ("" if len(groups) == 1 else "One panel per matrix, block and set of weights. ")
        + "Eigenvalues by descending absolute value, both axes logarithmic: a straight line is a power law, and the "
        "steep end is what condition numbers measure. Hollow markers are negative eigenvalues. What lies below the "
        "noise floor (hatched, where it is near) cannot be told from zero."
        + (" At the canonical gauge every matrix but the Hessian has the standard spectrum." if canonical else "")
        + (f" Seed {seed}, {last}." if last != "given" else "")
    )
    rows: list[tuple[Entry, ...]] = []
    for (arm, block, matrix), members in groups.items():
        for m in members:
            values, ranks = figures.descending(m.record)
            drawn = figures.thinned(np.arange(len(values)), _POINTS)
            rows += [(arm, block, matrix, chart_of(m), ranks[index], values[index]) for index in drawn]
    header = ("weights", "block", "matrix", "chart", "rank", "eigenvalue")
    return Drawing("eigenvalues", caption, figure, Table("Eigenvalues by rank", header, tuple(rows)))


def draw_histogram(study: Study) -> Drawing | None:
    """Draw histograms of eigenvalues next to their ranks, where no chart is drawn over another.

    Parameters
    ----------
    study
        What was measured.

    Returns
    -------
    Drawing or None
        None without spectra, with too many panels, or with several charts in one.
    """
    _, _, spectra, groups = _panels_of(study)
    if not 0 < len(groups) == len(spectra) <= MAX_PANELS:
        return None

    def plot(ax: Axes, key: tuple[str, str, str], members: Sequence[Measured]) -> None:
        weights = arm_words(key[0]) if key[0] != "given" else chart_of(members[0])
        figures.plot_histogram(members[0].record, ax, title=subject(key[2], block_words(key[1]), weights))

    figure, _ = panels(groups, plot, columns=3, width=3.6, height=3.1)
    caption = (
        "Number of eigenvalues by their absolute value, in bins of equal width on the logarithmic axis. Positive "
        "eigenvalues are drawn up, negative ones down and hatched. The dotted bar at the left holds the eigenvalues "
        "below the noise floor, which cannot be told from zero."
    )
    rows: list[tuple[Entry, ...]] = []
    for (arm, block, matrix), (m,) in groups.items():
        counts, hidden = figures.decade_counts(m.record)
        place = (arm, block, matrix, chart_of(m))
        rows += [(*place, "below the noise floor", 0, hidden, 0)] if hidden else []
        rows += [(*place, f"1e{k:+03d}", negative, 0, positive) for k, (negative, positive) in sorted(counts.items())]
    header = ("weights", "block", "matrix", "chart", "from", "negative", "null", "positive")
    return Drawing("histogram", caption, figure, Table("Eigenvalues by decade", header, tuple(rows)))


def _panels_of(
    study: Study,
) -> tuple[str, int, list[Measured], Mapping[tuple[str, str, str], Sequence[Measured]]]:
    """Last checkpoint, first seed, their spectra, and these by the panel that shows them."""
    last, spectra = last_checkpoint(study), without_sweep(in_one_form(study.of(Spectrum)))
    seed = min((m.seed for m in spectra), default=0)
    spectra = [m for m in spectra if m.checkpoint == last and m.seed == seed]
    return last, seed, spectra, grouped(spectra, lambda m: (m.arm, m.record.block, m.record.matrix))


def draw_along_training(study: Study) -> Drawing | None:
    """Draw condition numbers at each checkpoint.

    Parameters
    ----------
    study
        What was measured.

    Returns
    -------
    Drawing or None
        None with fewer than two checkpoints.
    """
    numbers = without_sweep(in_one_form(numbers_of(study)))
    numbers = [m for m in numbers if m.record.block == "all" and usable(m, _QUANTITY)]
    if len({m.checkpoint for m in numbers}) < 2:
        return None
    groups = grouped(numbers, lambda m: (m.arm, m.record.matrix))

    def plot(ax: Axes, key: tuple[str, str], members: Sequence[Measured]) -> None:
        title = subject(key[1], arm_words(key[0]))
        figures.plot_conditions_along_training(members, ax, legend=False, title=title)

    figure, axes = panels(groups, plot, columns=len({matrix for _, matrix in groups}), width=4.0, height=2.9)
    same_limits(axes, (matrix for _, matrix in groups))
    caption = (
        "Condition number κ₉₅, the largest eigenvalue over that at 95 % of the rank, at each checkpoint: medians over "
        "seeds, bars from the smallest to the largest. Charts in one panel share weights and function and differ in "
        "coordinates alone. An arrow marks a lower bound. Where a matrix is indefinite it has no condition number and "
        "no point here."
    )
    places = ("weights", "matrix", "chart", "checkpoint")
    table = numbers_table("Condition number along training", numbers, places, _condition_numbers)
    return Drawing("training-conditions", caption, finished(figure), table)


def draw_sweep(study: Study) -> Drawing | None:
    """Draw condition numbers against the gauge, at the last checkpoint.

    Parameters
    ----------
    study
        What was measured.

    Returns
    -------
    Drawing or None
        None with fewer than two gauges that have one stretch.
    """
    last = last_checkpoint(study)
    numbers = [m for m in numbers_of(study) if m.checkpoint == last and m.record.block == "all"]
    numbers = [m for m in numbers if usable(m, _QUANTITY)]
    swept = {(m.arm, m.record.matrix) for m in numbers if m.record.gauge.startswith("stretch=")}
    numbers = [m for m in numbers if (m.arm, m.record.matrix) in swept]
    if len({stretch_of(m.record.gauge) for m in numbers} - {None}) < 2:
        return None
    groups = grouped(numbers, lambda m: (m.arm, m.record.matrix))

    def plot(ax: Axes, key: tuple[str, str], members: Sequence[Measured]) -> None:
        arm, matrix = key
        title = subject(matrix, point_words(arm, last).lower())
        states = study.of(GaugeState, arm=arm, checkpoint=last)
        figures.plot_gauge_sweep(members, ax, states=states, legend=False, title=title)

    figure, axes = panels(groups, plot)
    same_limits(axes, (matrix for _, matrix in groups))
    caption = (
        "The same weights and the same function in weight norm, at different lengths of v. Left of 1 a step turns the "
        "weight vectors more than in the standard chart, right of 1 less; at 1, the canonical gauge, the curve meets "
        "the standard chart (line, with a band over seeds). Medians over seeds, bars from the smallest to the largest. "
        "Gauges in which every row has another stretch are drawn at the median of their rows, one point per seed, with "
        "a bar over all rows."
    )
    listed = [m for m in numbers if stretch_of(m.record.gauge) is not None or m.record.chart == "standard"]
    places = ("weights", "matrix", "chart")
    table = numbers_table("Condition number against the gauge", listed, places, _condition_numbers)
    return Drawing("gauge-sweep", caption, finished(figure), table)


def draw_layers(study: Study) -> Drawing | None:
    """Draw condition numbers of diagonal blocks as a heat map.

    Parameters
    ----------
    study
        What was measured.

    Returns
    -------
    Drawing or None
        None without blocks, or with too many.
    """
    blocks = [m for m in numbers_of(study) if m.record.block != "all" and usable(m, _QUANTITY)]
    blocks = [m for m in blocks if m.checkpoint == blocks[-1].checkpoint]
    count = len({m.record.block for m in blocks})
    if not 2 <= count <= 40:
        return None

    figure = Figure(figsize=(8.0, 1.6 + 0.3 * count), layout="constrained")
    figures.plot_layers(blocks, figure.subplots(), title="κ₉₅ of each diagonal block")
    caption = (
        "Condition number κ₉₅ of every diagonal block, darker is better conditioned; the number in a cell is the "
        "median over seeds. A matrix can be worse conditioned than each of its blocks."
    )
    places = ("matrix", "block", "weights", "chart")
    table = numbers_table("Condition number by block", blocks, places, _condition_numbers)
    return Drawing("layers", caption, figure, table)


def _condition_numbers(members: Sequence[Measured[ConditionNumbers]]) -> dict[str, Entry]:
    values = spread(m.record.values[_QUANTITY] for m in members)
    ends = {"median": values.median, "smallest": values.low, "largest": values.high}
    return ends | {"status": values.status.replace("_", " ")}
