"""Records on Axes: each function draws one record, or several of one kind, and returns the Axes.

A chart keeps its colour in every figure (Okabe & Ito's palette), and never the colour alone: line style and marker
change with it. With ``ax=None`` a function opens a new pyplot figure, so that a notebook shows it; otherwise pyplot is
not used.
"""

from curvature.report.figures.conditions import plot_conditions_along_training, plot_gauge_sweep, plot_layers
from curvature.report.figures.estimates import plot_density, plot_extremes
from curvature.report.figures.pictures import decade_counts, inline_svg, render_svg, spectrum_svg, text_picture
from curvature.report.figures.spectra import descending, plot_spectra, plot_spectrum
from curvature.report.figures.steps import nearest_damping, plot_efficiency, plot_efficiency_damping, usual_damping
from curvature.report.figures.style import (
    MAX_POINTS,
    QUANTITY_NAMES,
    Spread,
    chart_label,
    form_of,
    grouped,
    layer_of,
    matrix_name,
    plain_gauge,
    printable,
    quantity_name,
    short_number,
    spread,
    stretch_of,
    thinned,
)
from curvature.report.figures.training import plot_alignment, plot_training, plot_whitening

__all__ = [
    "MAX_POINTS",
    "QUANTITY_NAMES",
    "Spread",
    "chart_label",
    "decade_counts",
    "descending",
    "form_of",
    "grouped",
    "inline_svg",
    "layer_of",
    "matrix_name",
    "nearest_damping",
    "plain_gauge",
    "plot_alignment",
    "plot_conditions_along_training",
    "plot_density",
    "plot_efficiency",
    "plot_efficiency_damping",
    "plot_extremes",
    "plot_gauge_sweep",
    "plot_layers",
    "plot_spectra",
    "plot_spectrum",
    "plot_training",
    "plot_whitening",
    "printable",
    "quantity_name",
    "render_svg",
    "short_number",
    "spectrum_svg",
    "spread",
    "stretch_of",
    "text_picture",
    "thinned",
    "usual_damping",
]
