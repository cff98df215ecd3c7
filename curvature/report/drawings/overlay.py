"""The two spectra that a comparison is about, overlaid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from curvature.arrays import Float64, Int
from curvature.records import Measured, Spectrum, Study
from curvature.report.drawings.layout import Drawing, finished, panels, same_limits
from curvature.report.figures.spectra import descending
from curvature.report.figures.style import GRAY, KNOWN, MAX_POINTS, finish, thinned
from curvature.report.table import Entry, Table
from curvature.report.words import matrix_name
from curvature.studies.evidence import last_checkpoint

__all__ = ["draw_two_spectra"]

_DRAWN = 0.98  # of the rank
_SHARE = 0.8  # of the rank, where the headline condition number ends
_POINTS = 12  # eigenvalues of each spectrum in the numbers of the figure
_LABELS = {"standard": "standard", "weight-norm": "weight norm"}


def draw_two_spectra(study: Study, matrix: str = "ggn") -> Drawing | None:
    """Draw the spectrum of one matrix with and without weight norm: after own training, and at the same weights.

    Parameters
    ----------
    study
        Two arms, with spectra.
    matrix
        Of which the main claim is.

    Returns
    -------
    Drawing or None
        None without both spectra.
    """
    last = last_checkpoint(study)
    spectra = study.of(Spectrum, matrix=matrix, checkpoint=last, block="all")
    standard = [m for m in spectra if m.arm == "standard" and m.record.chart == "standard"]
    normed = [m for m in spectra if m.arm == "weight-norm" and m.record.effective and m.record.gauge == "checkpoint"]
    shared = [m for m in spectra if m.arm == "weight-norm" and m.record.chart == "standard"]
    if not standard or not normed:
        return None
    groups = {"each after its own training": [*standard, *normed]}
    if shared:
        groups["at the same weights"] = [*shared, *normed]

    def plot(ax: Axes, title: str, members: Sequence[Measured[Spectrum]]) -> None:
        for chart in _LABELS:
            _overlay(ax, chart, [m.record for m in members if m.record.chart == chart])
        ax.set_yscale("log")
        finish(ax, f"{matrix_name(matrix)}: {title}", "rank of the eigenvalue", "eigenvalue / largest")

    figure, axes = panels(groups, plot, width=5.0, height=3.2)
    same_limits(axes, ["all"] * len(axes))
    caption = (
        f"Eigenvalues of the {matrix_name(matrix)} over the largest, in descending order, a line for each seed. The "
        "higher curve is better conditioned: at the dotted line, where 80 % of the rank is reached, its height is "
        "1/κ₈₀. Left: each network after its own training. Right: the network that was trained in weight norm, written "
        "in both parameterizations. The last fiftieth of the rank is left out."
    )
    rows: list[tuple[Entry, ...]] = []
    for title, members in groups.items():
        for m in members:
            values, ranks = _drawn(m.record)
            shown = thinned(np.arange(len(ranks)), _POINTS)
            rows += [(title, _LABELS[m.record.chart], m.seed, ranks[k], values[k]) for k in shown]
    table = Table("The two spectra", ("weights", "chart", "seed", "rank", "eigenvalue / largest"), tuple(rows))
    return Drawing("two-spectra", caption, finished(figure), table)


def _overlay(ax: Axes, chart: str, records: Sequence[Spectrum]) -> None:
    """One line for each seed, the first with markers, and the ranks at which the condition number ends."""
    style = KNOWN["standard", "-"] if chart == "standard" else KNOWN["weight-norm", "paper"]
    for number, spectrum in enumerate(records):
        values, ranks = _drawn(spectrum)
        look: dict[str, Any] = {"linewidth": 0.8} if number else {"linewidth": 1.8, "label": _LABELS[chart]}
        if not number:
            look |= {"marker": style.marker, "markevery": max(1, len(ranks) // 6), "markersize": 4.5}
        ax.plot(ranks, values, color=style.color, linestyle=style.linestyle, **look)
        if spectrum.rank and chart == "standard" and not number:
            ax.axvline(math.ceil(_SHARE * spectrum.rank), color=GRAY, linestyle=":", linewidth=1.2)


def _drawn(spectrum: Spectrum) -> tuple[Float64[np.ndarray, "points"], Int[np.ndarray, "points"]]:
    """Eigenvalues over the largest and their ranks, thinned, without the last of the rank: they would fill the axis."""
    values, ranks = descending(spectrum)
    kept = np.flatnonzero((values > spectrum.noise_floor) & (ranks <= math.ceil(_DRAWN * spectrum.rank)))
    shown = kept[np.unique(np.linspace(0, len(kept) - 1, MAX_POINTS).astype(int))] if len(kept) else kept
    return values[shown] / max(values.max(), np.finfo(float).tiny), ranks[shown]
