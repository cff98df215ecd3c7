"""Two arms from one start, measured along the way: what ``curvature compare`` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from curvature.charts import Parameterization, Standard, WeightNorm
from curvature.errors import ConfigurationError
from curvature.linalg.eigen import spectrum
from curvature.matrices import MATRICES, pullback
from curvature.matrices import effective as to_weights
from curvature.models import Problem
from curvature.models.losses import Loss
from curvature.natural_gradient.whitening import alignments, whitening
from curvature.precision import full_precision
from curvature.records import Check, Study
from curvature.studies.evidence import THRESHOLD, decomposition, verdicts
from curvature.studies.identities import claimed_identities
from curvature.studies.measuring import (
    Collector,
    Place,
    Progress,
    efficiencies,
    gauge_state,
    known_matrices,
    linear_part,
    measured_spectra,
)
from curvature.studies.training import (
    SGD,
    Run,
    Schedule,
    train,
)

__all__ = ["CompareSettings", "compare", "run_compare"]

_STRETCHES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class CompareSettings:
    """What ``curvature compare`` does; every field is an option.

    Attributes
    ----------
    seeds
        Paired seeds: each draws one initialization and one order of the data, shared by the arms.
    epochs, batch_size, learning_rate, momentum
        Minibatch gradient descent, the same in both arms.
    matrices
        Measured at every checkpoint.
    stretches
        The gauge sweep of the GGN.
    relative_dampings
        Dampings of the natural-gradient comparison, in units of the mean eigenvalue of the Fisher.
    relative_damping
        The one damping at which closeness to the natural gradient is also measured (at init and late: it costs the
        eigenvalues of every chart).
    threshold
        The smallest effect that counts in a verdict, as a log-ratio; 10 %.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 0.2
    momentum: float = 0.0
    matrices: tuple[str, ...] = ("hessian", "ggn", "gradient_covariance")
    stretches: tuple[float, ...] = _STRETCHES
    relative_dampings: tuple[float, ...] = (1e-5, 1e-3, 1e-1)
    relative_damping: float = 1e-3
    threshold: float = THRESHOLD

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigurationError(f"seeds must be distinct and at least one, got {self.seeds}.")
        known_matrices(self.matrices)
        if self.epochs < 2:
            raise ConfigurationError(
                f"epochs must be at least 2 (init, early and late checkpoints), got {self.epochs}."
            )

    @property
    def checkpoints(self) -> dict[str, int]:
        """Epochs of the checkpoints: before training, after a tenth, at the end."""
        return {"init": 0, "early": max(1, self.epochs // 10), "late": self.epochs}


@full_precision()
def compare(
    problem: Problem,
    charts: Sequence[Parameterization] | None = None,
    *,
    matrices: Sequence[str] = ("hessian", "ggn", "gradient_covariance"),
    effective: bool = True,
    gradient: bool = True,
    progress: Progress | None = None,
) -> Study:
    """Measure one problem in several charts: the same weights, function and data, other coordinates.

    Parameters
    ----------
    charts
        None: standard, weight norm at the canonical and the paper's gauge, and the module's own chart.
    matrices
        Names from ``curvature.matrices.MATRICES``.
    effective
        ``K^(1/2) A K^(1/2)`` instead of the chart's own coordinates: no gauge zeros, the Hessian on the horizontal
        space.
    gradient
        Also ``gd_time``; costs eigenvectors.

    Returns
    -------
    Study
        Spectra, condition numbers, and the check that the canonical gauge changes nothing it must not change.
    """
    if charts is None:
        charts = [Standard(), WeightNorm(), WeightNorm("paper")]
        charts += [problem.chart] if isinstance(problem.chart, WeightNorm) else []
    place = Place("given", 0, "given", 0)
    found = Collector(progress)
    measured_spectra(found, place, problem, known_matrices(matrices), charts, effective, gradient)
    return found.study("compare", problem, {}, model="given model", data="given data")


@full_precision()
def run_compare(
    build: Callable[[int], nn.Module],
    data: tuple[Tensor, Tensor],
    loss: str | Loss,
    settings: CompareSettings | None = None,
    *,
    model: str = "given model",
    data_name: str = "given data",
    config: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float64,
    progress: Progress | None = None,
) -> Study:
    r"""Train the standard and the weight-normalized arm from the same weights, and measure both along the way.

    Per seed: one initialization, one order of the data, two arms (weight norm starts at the canonical gauge, which is
    what PyTorch's wrapper does), the same learning rate. At each checkpoint of each arm:

    * every matrix in the standard chart and in weight norm at the canonical, the paper's and (in the weight-normalized
      arm) the gauge that training has reached, as effective matrices; the Hessian also in the chart's full coordinates;
    * the check that the canonical gauge leaves GGN, Fisher, empirical Fisher and gradient covariance unchanged;
    * the gauge sweep of the GGN;
    * alignment and whitening of each neuron's gradient covariance;
    * efficiency of every chart's step against the natural gradient, with controls, over the dampings;

    and, at each initialization, the two claims that are identities (C5, C6).

    Then the claims that these measurements can test are decided (:mod:`curvature.studies.evidence`), and the difference
    between the arms is cut into its sources.
    """
    settings = settings or CompareSettings()
    found = Collector(progress)
    problem = None
    for s, seed in enumerate(settings.seeds):
        start = Problem.from_module(build(seed), loss=loss, data=data, dtype=dtype)
        if not any(entry.normalized for entry in start.layout.entries):
            raise ConfigurationError("the model has no linear or convolutional layer that weight norm could normalize.")
        if problem is None:
            problem = start
        identities, missing = claimed_identities(start, seed=seed, batch_size=settings.batch_size)
        found.checks += identities
        for words in missing:
            found.warn(words)
        for a, (arm, parameterization) in enumerate((("standard", Standard()), ("weight-norm", WeightNorm()))):
            done = (2 * s + a) / (2 * len(settings.seeds))
            found.say(f"seed {seed}: training the {arm} arm", done)
            run = train(
                start,
                parameterization,
                Schedule(settings.epochs, settings.batch_size, settings.checkpoints),
                arm=arm,
                seed=seed,
                optimizer=SGD(settings.learning_rate, momentum=settings.momentum),
            ).require_finite()
            found.curves.append(run.curve)
            _measure_run(found, start, run, seed, settings, done, 1 / (2 * len(settings.seeds)))
    _check_matched_start(found, dtype)
    study = found.study("compare", problem, dict(config or {}), model=model, data=data_name)
    parts = (decomposition(study, matrix=matrix) for matrix in settings.matrices)
    return replace(
        study,
        verdicts=verdicts(study, threshold=settings.threshold),
        decompositions=tuple(sources for sources in parts if sources is not None and len(sources.seeds)),
    )


def _measure_run(
    found: Collector, start: Problem, run: Run, seed: int, settings: CompareSettings, done: float, share: float
) -> None:
    arm = run.curve.arm
    for c, checkpoint in enumerate(run.checkpoints):
        found.say(f"seed {seed}: {arm} arm, {checkpoint.name}", done + share * c / len(run.checkpoints))
        place = Place(arm, seed, checkpoint.name, checkpoint.step)
        problem = start.at(checkpoint.weights)
        charts = [Standard(), WeightNorm(), WeightNorm("paper")]
        if isinstance(checkpoint.chart, WeightNorm):
            charts.append(checkpoint.chart)
        operators = measured_spectra(found, place, problem, settings.matrices, charts, True, True)
        for chart in charts[1:]:
            gauge_state(found, place, problem, chart)
            if "hessian" in operators and chart.gauge != "paper":
                if chart.gauge == "canonical":  # measured in its own coordinates above
                    found.add(place, spectrum(to_weights(operators["hessian"], chart)))
                else:
                    found.add(place, spectrum(pullback(operators["hessian"], chart)))
                    found.add(place, spectrum(to_weights(operators["hessian"], linear_part(problem, chart))))
        curvature = operators.get("ggn") or MATRICES["ggn"](problem).materialized()
        for stretch in settings.stretches:
            found.add(place, spectrum(to_weights(curvature, WeightNorm(stretch=stretch))))
        generator = torch.Generator().manual_seed(seed)
        covariance = operators.get("gradient_covariance") or MATRICES["gradient_covariance"](problem).materialized()
        found.extend(place, alignments(problem, seed=generator, covariance=covariance))
        found.extend(place, whitening(problem, seed=generator, covariance=covariance))
        efficiencies(found, place, problem, checkpoint.chart, settings, covariance)


def _check_matched_start(found: Collector, dtype: torch.dtype) -> None:
    first = {(curve.arm, curve.seed): curve.losses[0] for curve in found.curves}
    gaps = [
        abs(first["standard", seed] - first["weight-norm", seed]) / abs(first["standard", seed])
        for seed in {curve.seed for curve in found.curves}
    ]
    found.checks.append(
        Check(
            "both arms start at the same function",
            float(max(gaps)),
            5e3 * torch.finfo(dtype).eps,
            "largest relative difference of the initial loss",
        )
    )
