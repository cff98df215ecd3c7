"""Measure one point: every matrix in every chart, gauges, noise and steps, collected with their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from curvature.charts import LinearChart, Parameterization, Placebo, Standard, WeightNorm
from curvature.errors import ConfigurationError, SelfCheckError
from curvature.linalg.eigen import spectrum
from curvature.linalg.operator import SymmetricOperator
from curvature.matrices import MATRICES, effective, fisher, pullback
from curvature.models import Problem
from curvature.natural_gradient import Controls, compare_charts, control_charts
from curvature.records import Check, GaugeState, Measured, Spectrum, Study
from curvature.records.conditioning import condition_numbers
from curvature.studies.evidence import LINEAR_PART

__all__ = [
    "CANONICAL_TOLERANCE",
    "Collector",
    "Place",
    "Progress",
    "efficiencies",
    "gauge_state",
    "known_matrices",
    "linear_part",
    "matrix_of",
    "measured_spectra",
]

Progress = Callable[[str, float], None]

CANONICAL_TOLERANCE = 1e-10  # of the largest eigenvalue: rounding leaves about 1e-15
_SECOND_MOMENTS = ("ggn", "fisher", "monte_carlo_fisher", "empirical_fisher", "gradient_covariance")


def measured_spectra(
    found: Collector,
    place: Place,
    problem: Problem,
    matrices: Sequence[str],
    charts: Sequence[Parameterization],
    on_weights: bool,
    gradient: bool,
) -> dict[str, SymmetricOperator]:
    """Every matrix once on the weights, then in every chart; check what the canonical gauge must leave alone."""
    operators = {}
    for name in matrices:
        operator = operators[name] = matrix_of(problem, name, place.seed, 1).materialized()
        # A step along the gradient means something in the metric of a curvature, not of a covariance.
        with_gradient = gradient and name in ("ggn", "fisher")
        standard = None
        for chart in charts:
            plain = chart.name == Standard.name  # a mean-only batch norm is the same map under its own name
            canonical = type(chart) is WeightNorm and chart.gauge == "canonical"
            # At the canonical gauge K = I, so the effective matrix is the standard one bit by bit and would
            # test nothing: there the chart's own coordinates are measured, with one more zero per neuron.
            move = effective if on_weights and not canonical else pullback
            record = spectrum(operator if plain else move(operator, chart), gradient=with_gradient)
            found.add(place, record)
            standard = record if plain else standard
            if canonical and standard is not None and name in _SECOND_MOMENTS:
                _check_canonical(found, place, standard, record)
    return operators


def _check_canonical(found: Collector, place: Place, standard: Spectrum, canonical: Spectrum) -> None:
    """At ``v = w, g = ||w||`` the map is an isometry onto the weights: non-zero spectra are identical."""
    extra = canonical.dim - standard.dim
    words = standard.matrix.replace("_", " ").replace("ggn", "GGN")
    values = np.sort(np.abs(canonical.eigenvalues))[extra:]
    reference = np.sort(np.abs(standard.eigenvalues))
    deviation = float(np.abs(values - reference).max() / max(reference[-1], np.finfo(float).tiny))
    tolerance = CANONICAL_TOLERANCE if standard.dtype == "float64" else 1e-4
    found.checks.append(
        Check(
            f"canonical gauge leaves the {words} spectrum unchanged ({place.words})",
            deviation,
            tolerance,
            "largest difference of eigenvalues over the largest eigenvalue",
        )
    )
    if not found.checks[-1].passed:
        raise SelfCheckError(
            f"the {standard.matrix} spectrum at the canonical gauge differs from the standard one by {deviation:.1e} "
            "of its largest eigenvalue; the two are identical by theory, so one of them is wrong."
        )


def efficiencies(
    found: Collector,
    place: Place,
    problem: Problem,
    own: Parameterization,
    settings: CompareSettings | FullSettings,
    covariance: SymmetricOperator,
) -> None:
    """Compare the step of every control chart, and of the chart that training used, with the natural gradient."""
    if not problem.loss.likelihood:
        found.warn(f"no natural-gradient comparison: the loss {problem.loss.name!r} has no Fisher.")
        return
    controls = Controls(problem, fisher(problem), covariance)
    for relative_damping in settings.relative_dampings:
        charts = control_charts(problem, relative_damping=relative_damping, seed=place.seed, controls=controls)
        if (own.name, own.gauge) not in {(chart.name, chart.gauge) for chart in charts}:
            charts.insert(3, own)
        found.extend(
            place,
            compare_charts(
                problem,
                charts,
                relative_dampings=(relative_damping,),
                controls=controls,
                closeness=relative_damping == settings.relative_damping and place.checkpoint != "early",
            ),
        )


def gauge_state(found: Collector, place: Place, problem: Problem, chart: Parameterization) -> None:
    """Say what a gauge is in numbers, where there is one."""
    if not isinstance(chart, WeightNorm) or isinstance(chart, Placebo):
        return
    stretches = chart.at(problem.layout, problem.weights).stretches.cpu().numpy()
    found.extend(
        place,
        [
            GaugeState(
                chart.name,
                chart.gauge,
                float(stretches.min()),
                float(np.median(stretches)),
                float(stretches.max()),
                len(stretches),
            )
        ],
    )


def linear_part(problem: Problem, chart: WeightNorm) -> LinearChart:
    """Linear chart with the metric of weight norm at this point, to show what its second-order term adds."""
    identity = torch.eye(problem.dim, dtype=problem.dtype, device=problem.device)
    root = chart.at(problem.layout, problem.weights).metric_root(identity)
    neurons = [indices.to(problem.device) for indices in problem.layout.blocks("neuron").values()]
    return LinearChart([(where, root[where][:, where]) for where in neurons], name=LINEAR_PART, gauge=chart.gauge)


def matrix_of(problem: Problem, name: str, seed: int, num_samples: int) -> SymmetricOperator:
    """Build a matrix by its name; the seed and the number of samples are for the Monte Carlo Fisher."""
    if name == "monte_carlo_fisher":
        return MATRICES[name](problem, num_samples, torch.Generator().manual_seed(seed))
    return MATRICES[name](problem)


def known_matrices(names: Sequence[str]) -> tuple[str, ...]:
    """Refuse names of matrices that do not exist."""
    unknown = [name for name in names if name not in MATRICES]
    if unknown or not names:
        raise ConfigurationError(f"matrices must be among {', '.join(MATRICES)}, got {', '.join(unknown) or 'none'}.")
    return tuple(names)


@dataclass(frozen=True)
class Place:
    """Where a number was taken: whose weights, which seed, which point of training."""

    arm: str
    seed: int
    checkpoint: str
    step: int

    @property
    def words(self) -> str:
        return f"{self.arm} arm, seed {self.seed}, {self.checkpoint}"


@dataclass
class Collector:
    """What has been measured so far."""

    progress: Progress | None = None
    measurements: list[Measured] = field(default_factory=list)
    curves: list = field(default_factory=list)
    sweeps: list = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    warnings: dict[str, None] = field(default_factory=dict)

    def say(self, message: str, fraction: float) -> None:
        if self.progress is not None:
            self.progress(message, fraction)

    def warn(self, message: str) -> None:
        self.warnings[message] = None

    def extend(self, place: Place, records: Sequence[Any]) -> None:
        self.measurements += [
            Measured(place.arm, place.seed, place.checkpoint, place.step, record) for record in records
        ]

    def add(self, place: Place, record: Spectrum) -> None:
        self.extend(place, [record, condition_numbers(record)])

    def study(self, command: str, problem: Problem, config: dict[str, Any], *, model: str, data: str) -> Study:
        if problem.unused:
            self.warn(
                f"the loss does not depend on {', '.join(problem.unused)}: zero rows, counted as null directions."
            )
        if problem.frozen:
            self.warn(f"left out, because frozen: {', '.join(problem.frozen)}.")
        if problem.dtype != torch.float64:
            self.warn("computed in float32: condition numbers above about 1e6 cannot be resolved.")
        near, total = problem.kinks()
        if total and any(getattr(m.record, "matrix", "") == "hessian" for m in self.measurements):
            self.warn(
                "the Hessian of a piecewise linear network is its almost-everywhere second derivative: it leaves out "
                f"what the gradient jumps by at a kink. {near} of {total} pre-activations lie at one (within 1e-8 of "
                "the largest) at the first point measured. The GGN is not affected."
            )
        self.say("done", 1.0)
        return Study(
            command=command,
            config=config,
            model=model,
            data=data,
            num_weights=problem.dim,
            num_examples=problem.num_examples,
            measurements=tuple(self.measurements),
            curves=tuple(self.curves),
            sweeps=tuple(self.sweeps),
            checks=tuple(self.checks),
            warnings=tuple(self.warnings),
        )
