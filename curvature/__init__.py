r"""Curvature of small networks under the standard and the weight-normalized parameterization.

>>> import curvature as cv
>>> problem = cv.zoo.digits_problem(num_examples=50, widths=(8,))
>>> cv.spectrum(cv.ggn(problem), chart=cv.WeightNorm(stretch=3.0)).chart
'weight-norm'

Names load when they are first used, so that ``import curvature`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from curvature._version import __version__

_HOMES = {
    "conditioning": ("condition_numbers", "damped_condition_number", "marchenko_pastur_ratio", "sphericity"),
    "errors": (
        "ConfigurationError",
        "ConvergenceError",
        "CurvatureError",
        "InputError",
        "NonFiniteError",
        "NotDefinedError",
        "ResourceError",
        "SelfCheckError",
    ),
    "estimators": ("diagonal", "log_determinant", "spectral_sum", "trace"),
    "evidence": ("decomposition", "verdicts"),
    "krylov": ("conjugate_gradients", "extremal_eigenvalues", "spectral_density"),
    "losses": ("BinaryCrossEntropy", "CrossEntropy", "HalfSquaredError", "MeanSquaredError", "PerExample"),
    "matrices": (
        "effective",
        "empirical_fisher",
        "fisher",
        "ggn",
        "gradient_covariance",
        "hessian",
        "monte_carlo_fisher",
        "pullback",
    ),
    "noise": ("alignments", "whitening"),
    "operators": ("SymmetricOperator", "blocks"),
    "parameterization": ("LinearChart", "Parameterization", "Placebo", "ScaledStandard", "Standard", "WeightNorm"),
    "planning": ("Plan", "Rates", "pilot", "plan"),
    "preconditioners": ("preconditioner",),
    "problem": ("Problem",),
    "records": (
        "ConditionNumbers",
        "Decomposition",
        "Estimate",
        "ExtremalEigenvalues",
        "SpectralDensity",
        "Spectrum",
        "StepComparison",
        "Study",
        "Verdict",
    ),
    "spectra": ("inertia", "spectrum"),
    "steps": ("chart_step", "compare_charts", "efficiency", "natural_gradient_step"),
    "study": ("compare",),
}
_ROOMS = ("figures", "zoo")
_NAMES = {name: room for room, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_NAMES, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(f"curvature.{_NAMES[name]}"), name)
    if name in _ROOMS:
        return import_module(f"curvature.{name}")
    raise AttributeError(f"module 'curvature' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
