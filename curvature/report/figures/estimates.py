"""What Krylov methods find of a spectrum: its density, and its ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from scipy.special import stdtrit

from curvature.records import ExtremalEigenvalues, Measured, SpectralDensity
from curvature.report.figures.labels import common_words, given_labels, records_of
from curvature.report.figures.style import GRAY, Style, add_legend, axes_or_new, finish, styles_of

__all__ = ["plot_density", "plot_extremes"]

_FLAT = 30  # a peak this many times higher than the lowest bar would flatten it on a linear axis


def plot_density(
    densities: Sequence[SpectralDensity | Measured],
    ax: Axes | None = None,
    *,
    labels: Sequence[str] | None = None,
    legend: bool = True,
    title: str | None = None,
) -> Axes:
    r"""Draw densities of eigenvalues: the mean over probes in bins, with a 95 % t-interval over probes as a band.

    Bins are as wide as the resolution, ``(max - min) / num_matvecs``: nothing finer can be read. The axis of the
    density is logarithmic where a peak would flatten the rest, down to a third of what one eigenvalue would be. The
    band is pointwise and shows how probes differ; it does not contain the error of too few products.

    Parameters
    ----------
    densities
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
    records = records_of(densities, SpectralDensity)
    ax = axes_or_new(ax)
    peak, least, lowest, references = 0.0, np.inf, np.inf, []
    for record, label, style in zip(records, given_labels(densities, labels), styles_of(densities), strict=True):
        edges, density, error = record.histogram()
        width = edges[1] - edges[0]
        reference = 1 / (record.dim * width)  # the density of one eigenvalue in a bin
        half = stdtrit(record.num_probes - 1, 0.975) * error if record.num_probes > 1 else np.zeros_like(density)
        low, high = np.maximum(density - half, 0), density + half
        if record.num_probes > 1:
            look: dict[str, Any] = {"step": "post", "color": style.color, "alpha": 0.22, "linewidth": 0}
            ax.fill_between(edges, np.append(low, low[-1]), np.append(high, high[-1]), **look)
        # Dashes would tear narrow bars apart: solid steps, told apart by markers on a few of them.
        ax.stairs(density, edges, baseline=None, color=style.color, linewidth=1.5)
        bins = np.flatnonzero(density > reference / 3)
        marked = bins[np.unique(np.linspace(0, len(bins) - 1, 12).round().astype(int))]
        dots: dict[str, Any] = {"marker": style.marker, "color": style.color, "markersize": 4}
        ax.plot((edges[marked] + edges[marked + 1]) / 2, density[marked], linestyle="none", **dots)
        ax.plot([], [], linewidth=1.5, label=label, **dots)
        references.append((reference, edges))
        peak, lowest = max(peak, float(high.max())), min(lowest, reference / 3)
        least = min(least, float(density[density > reference / 3].min(initial=np.inf)))
    logarithmic = peak > _FLAT * least
    if logarithmic:
        ax.set_yscale("log")
        for k, (reference, edges) in enumerate(references):
            label = "one eigenvalue in a bin" if not k else "_"
            ax.plot(edges[[0, -1]], [reference, reference], color=GRAY, linestyle=":", linewidth=1.2, label=label)
    ax.set_ylim(lowest if logarithmic else 0, (2.0 if logarithmic else 1.05) * peak)
    if legend:
        add_legend(ax)
    scale = ", log scale" if logarithmic else ""
    return finish(
        ax,
        title or f"Density of eigenvalues of {common_words(densities)}",
        "eigenvalue  (loss/coordinate²)",
        f"density  (1/eigenvalue{scale})",
    )


def plot_extremes(
    extremes: Sequence[ExtremalEigenvalues | Measured],
    ax: Axes | None = None,
    *,
    labels: Sequence[str] | None = None,
    legend: bool = True,
    title: str | None = None,
) -> Axes:
    r"""Draw $|\lambda|$ of the ends of spectra with their error bounds, counted from each end; negative ones hollow.

    Bars reach as far as some eigenvalue may be; those of values that have converged are shorter than the marker.

    Parameters
    ----------
    extremes
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
    records = records_of(extremes, ExtremalEigenvalues)
    ax = axes_or_new(ax)
    for k, (record, label, style) in enumerate(
        zip(records, given_labels(extremes, labels), styles_of(extremes), strict=True)
    ):
        shift = 0.4 * ((k + 0.5) / len(records) - 0.5)  # apart, so that equal values do not hide each other
        _plot_end(ax, record.largest, record.largest_bounds, style, shift)
        _plot_end(ax, record.smallest, record.smallest_bounds, style, shift)
        ax.plot([], [], linestyle="none", marker=style.marker, color=style.color, markersize=5,
                label=label + ("" if record.converged else ", not converged"))  # fmt: skip
    if any((values < 0).any() for record in records for values in (record.largest, record.smallest)):
        ax.plot(
            [], [], label="negative", linestyle="none", marker="s", color=GRAY, markerfacecolor="none", markersize=5
        )
    ax.set_yscale("log")
    sizes = [abs(value) for record in records for value in (*record.largest, *record.smallest) if value]
    if sizes:
        ax.set_ylim(bottom=max(min(sizes) / 10, ax.get_ylim()[0]))  # a bar that reaches zero goes off the axis
    most = max(max(len(record.largest), len(record.smallest)) for record in records)
    ax.set_xticks(range(1, most + 1, max(1, most // 10)))
    ax.set_xlim(0.4, most + 0.6)
    if legend:
        add_legend(ax)
    return finish(
        ax,
        title or f"Ends of the spectrum of {common_words(extremes)}",
        "rank from the largest, and from the smallest",
        "|eigenvalue|  (loss/coordinate²)",
    )


def _plot_end(ax: Axes, values: np.ndarray, bounds: np.ndarray, style: Style, shift: float) -> None:
    """Draw the values at one end with their bounds, by sign."""
    for sign in (1, -1):
        ranks = np.flatnonzero(sign * values > 0)
        if not len(ranks):
            continue
        sizes = np.abs(values[ranks])
        below = np.minimum(bounds[ranks], sizes * (1 - 1e-3))  # a bar on a logarithmic axis cannot pass zero
        marker = style.marker if sign > 0 else "s"
        face = style.color if sign > 0 else "white"
        ax.errorbar(
            ranks + 1 + shift, sizes, yerr=[below, bounds[ranks]], linestyle="none", marker=marker, color=style.color,
            markerfacecolor=face, markersize=5, elinewidth=1.2,
        )  # fmt: skip
