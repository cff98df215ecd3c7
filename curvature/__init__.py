r"""Curvature of small networks under the standard and the weight-normalized parameterization.

>>> import curvature as cv
>>> problem = cv.zoo.digits_problem(num_examples=50, widths=(8,))
>>> cv.spectrum(cv.pullback(cv.ggn(problem), cv.WeightNorm(stretch=3.0))).chart
'weight-norm'

Names load when they are first used, so that ``import curvature`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from curvature._version import __version__

_HOMES = {
    "records.conditioning": ("condition_numbers", "damped_condition_number"),
    "records.marchenko_pastur": ("marchenko_pastur_ratio",),
    "records.sphericity": ("sphericity",),
    "errors": (
        "ConfigurationError",
        "ConvergenceError",
        "CurvatureError",
        "InputError",
        "NonFiniteError",
        "NotDefinedError",
        "RemovedArgumentError",
        "ResourceError",
        "SelfCheckError",
        "UnresolvedError",
    ),
    "linalg.sums": ("log_determinant", "spectral_sum"),
    "linalg.traces": ("diagonal", "trace"),
    "studies.evidence": ("decomposition", "verdicts"),
    "linalg.density": ("spectral_density",),
    "linalg.extremal": ("KrylovSpace", "extremal_eigenvalues"),
    "linalg.solve": ("conjugate_gradients",),
    "models.losses": ("BinaryCrossEntropy", "CrossEntropy", "HalfSquaredError", "MeanSquaredError", "PerExample"),
    "matrices": (
        "WeightSpaceMatrix",
        "effective",
        "empirical_fisher",
        "fisher",
        "fold_norms",
        "ggn",
        "gradient_covariance",
        "hessian",
        "monte_carlo_fisher",
        "pullback",
    ),
    "linalg.operator": ("SymmetricOperator", "identity"),
    "linalg.parts": ("blocks",),
    "charts": (
        "BlockScale",
        "DeepLinear",
        "DoRA",
        "LinearChart",
        "LoRA",
        "Parameterization",
        "PerWeight",
        "Placebo",
        "RandomWeightFactorization",
        "ScaledStandard",
        "SpectralNorm",
        "Sphere",
        "Standard",
        "WeightNorm",
        "WeightStandardization",
    ),
    "linalg.planning": ("Plan", "plan"),
    "linalg.facts": ("Facts", "NullSpace"),
    "linalg.routes": ("EntriesRoute", "FactorRoute", "ProductCost", "Routes"),
    "linalg.work": ("Counts",),
    "layout": ("Entry", "Layout"),
    "models": ("Packed", "Problem", "effective_weights", "nearest"),
    "records": (
        "Alignment",
        "Analysis",
        "Check",
        "ConditionNumbers",
        "Decomposition",
        "Eigenvectors",
        "Estimate",
        "ExtremalEigenvalues",
        "Inertia",
        "Landscape",
        "LayerSummary",
        "LeagueEntry",
        "Measured",
        "Quantity",
        "SpectralDensity",
        "Spectrum",
        "StepComparison",
        "Study",
        "Track",
        "TrackPoint",
        "TrackedMatrix",
        "Verdict",
        "Where",
        "Whitening",
    ),
    "linalg.eigen": ("spectrum",),
    "linalg.inertia": ("inertia",),
    "natural_gradient": (
        "adam_moments",
        "alignments",
        "chart_step",
        "compare_charts",
        "efficiency",
        "natural_gradient_step",
        "optimizer_metric",
        "preconditioner",
        "whitening",
        "whitening_league",
    ),
    "studies": ("Tracker", "analyze", "landscape", "measure", "study"),
}
_MODULES = {"figures": "report.figures", "integrations": "studies.integrations", "zoo": "models.zoo"}
_NAMES = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(f"curvature.{_NAMES[name]}"), name)
    if name in _MODULES:
        return import_module(f"curvature.{_MODULES[name]}")
    if name == "compare":
        raise AttributeError(
            "curvature.compare has two names now. Write cv.measure(problem) to measure one problem in several charts, "
            "and cv.study(build) to train with and without weight normalization, as 'curvature compare' does."
        )
    raise AttributeError(f"module 'curvature' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
