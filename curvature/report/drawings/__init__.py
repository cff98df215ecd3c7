"""The figures of a report, each with a caption that says how to read it and with its numbers."""

from __future__ import annotations

from matplotlib import rc_context

from curvature.records import Study
from curvature.report.drawings.claims import draw_claims, draw_sources
from curvature.report.drawings.estimates import draw_density, draw_extremes
from curvature.report.drawings.layout import Drawing
from curvature.report.drawings.league import draw_league
from curvature.report.drawings.overlay import draw_two_spectra
from curvature.report.drawings.spectra import (
    draw_along_training,
    draw_eigenvalues,
    draw_histogram,
    draw_layers,
    draw_sweep,
)
from curvature.report.drawings.steps import draw_damping, draw_efficiency
from curvature.report.drawings.training import draw_alignment, draw_training, draw_whitening

__all__ = ["Drawing", "drawings_of"]

_FIGURES = (
    draw_claims,
    draw_two_spectra,
    draw_sources,
    draw_league,
    draw_eigenvalues,
    draw_histogram,
    draw_extremes,
    draw_density,
    draw_along_training,
    draw_sweep,
    draw_efficiency,
    draw_damping,
    draw_layers,
    draw_alignment,
    draw_whitening,
    draw_training,
)


def drawings_of(study: Study) -> list[Drawing]:
    """Every figure for which the study has data.

    Parameters
    ----------
    study
        What was measured.

    Returns
    -------
    list of Drawing
        In the order of the report.
    """
    with rc_context({"font.size": 9, "axes.titlesize": 9.5, "axes.titlelocation": "left"}):
        drawings = [draw(study) for draw in _FIGURES]
    return [drawing for drawing in drawings if drawing is not None]
