"""Frozen results of measurements: NumPy arrays and a header that names the matrix, without model, data or operator."""

from curvature.records.analysis import Analysis, LayerSummary
from curvature.records.checkpoints import CheckpointSummary
from curvature.records.conditions import ConditionNumbers
from curvature.records.density import SpectralDensity
from curvature.records.estimate import Estimate
from curvature.records.extremal import ExtremalEigenvalues
from curvature.records.landscape import Landscape
from curvature.records.pooled import PooledEffect, PooledVerdict
from curvature.records.quantity import Check, Quantity
from curvature.records.spectrum import Inertia, Spectrum
from curvature.records.steps import Alignment, GaugeState, LeagueEntry, StepComparison, Whitening
from curvature.records.study import Measured, Study
from curvature.records.track import Track, TrackedMatrix, TrackPoint
from curvature.records.training import LearningRateSweep, StepsToLoss, TrainingCurve
from curvature.records.vectors import Eigenvectors
from curvature.records.verdict import Decomposition, Verdict
from curvature.records.where import Located, Where

__all__ = [
    "Alignment",
    "Analysis",
    "Check",
    "CheckpointSummary",
    "ConditionNumbers",
    "Decomposition",
    "Eigenvectors",
    "Estimate",
    "ExtremalEigenvalues",
    "GaugeState",
    "Inertia",
    "Landscape",
    "LayerSummary",
    "LeagueEntry",
    "LearningRateSweep",
    "Located",
    "Measured",
    "PooledEffect",
    "PooledVerdict",
    "Quantity",
    "SpectralDensity",
    "Spectrum",
    "StepComparison",
    "StepsToLoss",
    "Study",
    "Track",
    "TrackPoint",
    "TrackedMatrix",
    "TrainingCurve",
    "Verdict",
    "Where",
    "Whitening",
]
