"""Records on Axes: each function draws one record, or several of one kind, and returns the Axes.

A chart keeps its colour in every figure (Okabe & Ito's palette), and never the colour alone: line style and marker
change with it. With ``ax=None`` a function opens a new pyplot figure, so that a notebook shows it; otherwise pyplot is
not used.
"""

from curvature.report.figures.analysis import analysis_svg, plot_analysis
from curvature.report.figures.conditions import plot_conditions_along_training, plot_gauge_sweep, plot_layers
from curvature.report.figures.estimates import plot_density, plot_extremes
from curvature.report.figures.histogram import plot_histogram
from curvature.report.figures.landscape import plot_landscape
from curvature.report.figures.league import league_means, plot_league
from curvature.report.figures.pictures import decade_counts, inline_svg, render_svg, text_picture
from curvature.report.figures.spectra import descending, plot_spectra, plot_spectrum
from curvature.report.figures.steps import plot_efficiency, plot_efficiency_damping, usual_damping
from curvature.report.figures.style import MAX_POINTS, thinned
from curvature.report.figures.track import plot_track
from curvature.report.figures.training import plot_alignment, plot_training, plot_whitening

__all__ = [
    "MAX_POINTS",
    "analysis_svg",
    "decade_counts",
    "descending",
    "inline_svg",
    "league_means",
    "plot_alignment",
    "plot_analysis",
    "plot_conditions_along_training",
    "plot_density",
    "plot_efficiency",
    "plot_efficiency_damping",
    "plot_extremes",
    "plot_gauge_sweep",
    "plot_histogram",
    "plot_landscape",
    "plot_layers",
    "plot_league",
    "plot_spectra",
    "plot_spectrum",
    "plot_track",
    "plot_training",
    "plot_whitening",
    "render_svg",
    "text_picture",
    "thinned",
    "usual_damping",
]
