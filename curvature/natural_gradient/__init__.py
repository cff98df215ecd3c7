"""Natural-gradient steps, the charts they are compared with, and what whitens the gradient noise."""

from curvature.natural_gradient.comparison import compare_charts, efficiency
from curvature.natural_gradient.controls import Controls, control_charts, top_directions
from curvature.natural_gradient.league import ENDS, METHODS, whitening_league
from curvature.natural_gradient.optimizer_metrics import adam_moments, optimizer_metric
from curvature.natural_gradient.preconditioners import Preconditioners, preconditioner
from curvature.natural_gradient.steps import chart_step, muon_step, natural_gradient_step
from curvature.natural_gradient.stretches import best_stretch, best_stretches
from curvature.natural_gradient.whitening import alignments, mean_cosine, whitening

__all__ = [
    "ENDS",
    "METHODS",
    "Controls",
    "Preconditioners",
    "adam_moments",
    "alignments",
    "best_stretch",
    "best_stretches",
    "chart_step",
    "compare_charts",
    "control_charts",
    "efficiency",
    "mean_cosine",
    "muon_step",
    "natural_gradient_step",
    "optimizer_metric",
    "preconditioner",
    "top_directions",
    "whitening",
    "whitening_league",
]
