"""From problems to a :class:`~curvature.records.Study`: which matrices, charts, points and seeds."""

from curvature.studies.full import FullSettings, run_full
from curvature.studies.quick import CompareSettings, compare, run_compare
from curvature.studies.spectrum import SpectrumSettings, plan_spectrum, run_spectrum

__all__ = [
    "CompareSettings",
    "FullSettings",
    "SpectrumSettings",
    "compare",
    "plan_spectrum",
    "run_compare",
    "run_full",
    "run_spectrum",
]
