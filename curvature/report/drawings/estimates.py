"""Figures of what Krylov methods find: the ends of a spectrum, and its density."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from curvature.records import ExtremalEigenvalues, Measured, SpectralDensity, Study
from curvature.report import figures
from curvature.report.drawings.layout import MAX_PANELS, Drawing, chart_of, finished, panels
from curvature.report.spread import grouped
from curvature.report.tables.estimates import ends_table, histogram_table
from curvature.report.words import arm_words, block_words, subject
from curvature.studies.evidence import last_checkpoint

__all__ = ["draw_density", "draw_extremes"]


def draw_extremes(study: Study) -> Drawing | None:
    """Draw eigenvalues at the ends of spectra, with their error bounds.

    Parameters
    ----------
    study
        What was measured.

    Returns
    -------
    Drawing or None
        None without ends.
    """
    items = study.of(ExtremalEigenvalues, checkpoint=last_checkpoint(study))
    figure = _figure(items, figures.plot_extremes)
    if figure is None:
        return None
    caption = (
        "Eigenvalues at the ends, counted from the largest and from the smallest, by Lanczos. Bars reach as far as "
        "some eigenvalue may be; a bar that cannot be seen is shorter than the marker. Hollow markers are negative. A "
        "bound does not say that no eigenvalue was missed, and a multiple eigenvalue is found once."
    )
    return Drawing("extremes", caption, figure, ends_table("Ends of the spectrum", items))


def draw_density(study: Study) -> Drawing | None:
    """Draw densities of eigenvalues.

    Parameters
    ----------
    study
        What was measured.

    Returns
    -------
    Drawing or None
        None without densities.
    """
    items = study.of(SpectralDensity, checkpoint=last_checkpoint(study))
    figure = _figure(items, figures.plot_density)
    if figure is None:
        return None
    steps = " or ".join(map(str, sorted({m.record.num_matvecs for m in items})))
    probes = " or ".join(map(str, sorted({m.record.num_probes for m in items})))
    caption = (
        f"Density of eigenvalues by stochastic Lanczos quadrature, in bins of (max − min) / {steps} products: nothing "
        "finer should be read from it, and no smallest eigenvalue. The band is a pointwise 95 % t-interval over "
        f"{probes} random probes; it shows how the probes differ, not the error of too few products. The axis is "
        "logarithmic where a peak would flatten outliers; the dotted line is the height of one eigenvalue in a bin."
    )
    return Drawing("density", caption, figure, histogram_table("Density of eigenvalues", items))


def _figure(items: Sequence[Measured], draw: Callable[..., Axes]) -> Figure | None:
    """One panel per matrix and block, with the charts overlaid."""
    groups = grouped(items, lambda m: (m.arm, m.record.block, m.record.matrix))
    if not groups or len(groups) > MAX_PANELS:
        return None

    def plot(ax: Axes, key: tuple[str, str, str], members: Sequence[Measured]) -> None:
        arm, block, matrix = key
        weights = arm_words(arm) if arm != "given" else "" if len(members) > 1 else chart_of(members[0])
        draw(members, ax, legend=False, title=subject(matrix, block_words(block), weights))

    return finished(panels(groups, plot)[0], outer_labels=False)
