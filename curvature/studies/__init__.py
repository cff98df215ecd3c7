"""Studies: from problems to a :class:`~curvature.records.Study`, by matrices, charts, points of training and seeds."""

from curvature.studies.analysis import analyze
from curvature.studies.compare import combined, run_study, study
from curvature.studies.landscape import landscape
from curvature.studies.pointwise import measure
from curvature.studies.pricing import StudyPlan, plan_study
from curvature.studies.seeds import measure_seed, measured_seeds
from curvature.studies.settings import StudySettings, full_settings, quick_settings
from curvature.studies.spectrum import SpectrumSettings, check_spectrum, plan_spectrum, run_spectrum
from curvature.studies.tracker import Tracker
from curvature.studies.tracking import TrackSettings, measure_track_point

__all__ = [
    "SpectrumSettings",
    "StudyPlan",
    "StudySettings",
    "TrackSettings",
    "Tracker",
    "analyze",
    "check_spectrum",
    "combined",
    "full_settings",
    "landscape",
    "measure",
    "measure_seed",
    "measure_track_point",
    "measured_seeds",
    "plan_spectrum",
    "plan_study",
    "quick_settings",
    "run_spectrum",
    "run_study",
    "study",
]
