"""Eigenvalues by rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from curvature.arrays import Float64, Int
from curvature.records import Measured, Spectrum
from curvature.report.figures.labels import common_words, given_labels, records_of
from curvature.report.figures.style import (
    EIGENVALUE,
    GRAY,
    KNOWN,
    MAX_POINTS,
    add_legend,
    axes_or_new,
    finish,
    no_eigenvalue,
    styles_of,
    thinned,
)

__all__ = ["descending", "plot_spectra", "plot_spectrum"]

_FAR = 1e-9
_FLOOR_ROOM = 1e6  # the floor is drawn if it is at most this far below the smallest eigenvalue drawn


def plot_spectrum(
    spectrum: Spectrum,
    ax: Axes | None = None,
    *,
    legend: bool = True,
    title: str | None = None,
    max_points: int = MAX_POINTS,
) -> Axes:
    r"""Draw $|\lambda|$ against its rank, both logarithmic; negative eigenvalues hollow, the noise floor hatched.

    Parameters
    ----------
    spectrum
        What to draw.
    ax
        Where to draw; None opens a new figure.
    legend
        Whether to explain the markers, with their counts.
    title
        In place of the usual one.
    max_points
        Of one sign; more are thinned evenly on the logarithmic axis, both ends kept.

    Returns
    -------
    Axes
        With title, units and legend.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from curvature.records import Where
    >>> values = np.array([1e-20, 1e-3, 1.0])
    >>> record = Spectrum(Where("ggn", "standard"), values, True, "dense", 1e-15, 2, "threshold")
    >>> plot_spectrum(record, Figure().subplots()).get_ylabel()
    '|eigenvalue|  (loss/coordinate²)'
    """
    ax = axes_or_new(ax)
    values, ranks = descending(spectrum)
    color = styles_of([spectrum])[0].color
    above, positive = np.abs(values) > spectrum.noise_floor, values > 0
    for kept, label, look in (
        (above & positive, "positive", {"marker": "o", "markerfacecolor": color}),
        (above & ~positive, "negative", {"marker": "s", "markerfacecolor": "none"}),
        (~above & (values != 0), None, {"marker": "x", "color": GRAY}),
    ):
        drawn = thinned(np.flatnonzero(kept), max_points)
        if len(drawn):
            shown: dict[str, Any] = {"color": color, "markersize": 4, "linestyle": "none", **look}
            ax.plot(ranks[drawn], np.abs(values[drawn]), label=f"{label}: {kept.sum()}" if label else "_", **shown)
    lowest, highest = spectrum.possible_ranks
    if lowest < highest:
        ax.axvspan(
            lowest + 0.5, highest + 0.5, color=GRAY, alpha=0.15, linewidth=0, label=f"rank {spectrum.rank_words}"
        )
    elif spectrum.rank:
        ax.axvline(spectrum.rank, color=GRAY, linestyle=":", linewidth=1.2, label=f"rank {spectrum.rank}")
    ax.set(xscale="log", yscale="log")
    _draw_floor(ax, np.abs(values[above]), spectrum.noise_floor, int((~above).sum()))
    ax.set_xlim(0.8, 1.25 * max(2, spectrum.dim))
    if legend:
        add_legend(ax)
    return finish(ax, title or f"Eigenvalues of {common_words([spectrum])}", "rank by |eigenvalue|", EIGENVALUE)


def plot_spectra(
    spectra: Sequence[Spectrum | Measured],
    ax: Axes | None = None,
    *,
    labels: Sequence[str] | None = None,
    legend: bool = True,
    title: str | None = None,
) -> Axes:
    r"""Overlay the eigenvalue decay of several charts, arms or points; negative eigenvalues have hollow markers.

    Only eigenvalues above each noise floor are drawn.

    Parameters
    ----------
    spectra
        Records, or measurements of them.
    ax
        Where to draw; None opens a new figure.
    labels
        One for each record; None: what differs between them.
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
        If there is no record, one of another kind, or not one label for each.
    """
    records = records_of(spectra, Spectrum)
    ax = axes_or_new(ax)
    lowest, floors = [], []
    for spectrum, label, style in zip(records, given_labels(spectra, labels), styles_of(spectra), strict=True):
        values, ranks = descending(spectrum)
        above = np.flatnonzero(np.abs(values) > spectrum.noise_floor)
        if not len(above):
            continue
        drawn = thinned(above, 4 * MAX_POINTS)
        wide = 2.4 if style == KNOWN["standard", "-"] else 1.4
        ax.plot(ranks[drawn], np.abs(values[drawn]), color=style.color, linestyle=style.linestyle, linewidth=wide)
        for sign, face in ((1, style.color), (-1, "white")):
            marked = thinned(above[sign * values[above] > 0], 9)
            ax.plot(
                ranks[marked], np.abs(values[marked]), linestyle="none", color=style.color, marker=style.marker,
                markersize=4.5, markerfacecolor=face,
            )  # fmt: skip
        ax.plot([], [], **style.line, markersize=4.5, linewidth=wide, label=label)
        lowest.append(np.abs(values[above[-1]]))
        floors.append(spectrum.noise_floor)
    ax.set(xscale="log", yscale="log")
    if floors:
        _draw_floor(ax, np.array(lowest), max(floors), None)
    ax.set_xlim(0.8, 1.25 * max(2, *(spectrum.dim for spectrum in records)))
    if legend:
        add_legend(ax)
    return finish(ax, title or f"Eigenvalues of {common_words(spectra)}", "rank by |eigenvalue|", EIGENVALUE)


def descending(spectrum: Spectrum) -> tuple[Float64[np.ndarray, "dim"], Int[np.ndarray, "dim"]]:
    """Eigenvalues by descending absolute value.

    Parameters
    ----------
    spectrum
        Where they are.

    Returns
    -------
    tuple of ndarray
        Eigenvalues and their ranks from 1, both ``(dim,)``.
    """
    order = np.argsort(-np.abs(spectrum.eigenvalues), kind="stable")
    return spectrum.eigenvalues[order], np.arange(1, spectrum.dim + 1)


def _draw_floor(ax: Axes, sizes: np.ndarray, floor: float, hidden: int | None) -> None:
    """Hatch what lies below the floor; a floor far below the data would stretch the axis, so it is only named."""
    count = "" if hidden is None else f"{hidden} "
    if not len(sizes):
        no_eigenvalue(ax, floor)
        return
    low, high = float(sizes.min()), float(max(sizes.max(), ax.dataLim.y1))
    drawn = floor > 0 and floor * _FLOOR_ROOM >= low
    bottom = floor / 30 if drawn else low / 3
    ax.set_ylim(bottom, high * 3)
    if drawn:
        ax.axhspan(  # down to the end of the axis, also where it is made longer than here
            bottom * _FAR, floor, label=f"{count}below the noise floor", hatch="////", facecolor="#f3f3f3",
            edgecolor="#bdbdbd", linewidth=0, zorder=0,
        )  # fmt: skip
        ax.axhline(floor, color=GRAY, linewidth=0.8)
    elif hidden or hidden is None:
        ax.plot([], [], linestyle="none", label=f"{count}below the noise floor {floor:.0e}" if hidden else "_")
