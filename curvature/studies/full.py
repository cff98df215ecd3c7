"""Every arm, tuned and trained at every seed, and measured: what ``curvature compare --full`` does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from curvature._version import __version__
from curvature.charts import Parameterization, Standard, WeightNorm
from curvature.errors import ConfigurationError
from curvature.linalg.eigen import spectrum
from curvature.matrices import MATRICES, effective
from curvature.models import Problem
from curvature.models.losses import Loss
from curvature.natural_gradient.whitening import alignments, whitening
from curvature.precision import full_precision
from curvature.records import Decomposition, Study
from curvature.studies.evidence import THRESHOLD, decomposition, verdicts
from curvature.studies.identities import one_layer_identity
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
    DEFAULT_ARMS,
    Arm,
    Checkpoint,
    Schedule,
    Trajectory,
    TrajectorySettings,
    start_check,
    train,
    trajectories,
)

__all__ = ["FullSettings", "combined", "fingerprint", "measure_seed", "run_full"]

HEADLINE = ("standard", "weight-norm")  # the arms of the verdicts
# The standard arm, the weight-normalized arm of the paper, and the standard method from the latter's initial weights.
PUBLISHED = ("standard", "weight-norm-paper, paper start", "standard, paper start")
WHOLE = "{}, whole batches"
_TRIO = (Arm("standard"), Arm("weight-norm-paper", start="paper"), Arm("standard", start="paper"))
_ENDS = ("init", "late")


@dataclass(frozen=True)
class FullSettings:
    """The full study: every seed times every arm, each tuned, trained and measured.

    Attributes
    ----------
    seeds
        Paired seeds, at least 10 for a claim about trajectories.
    arms, training
        What is trained, and how.
    followed
        Names of the arms that are measured at every checkpoint and in every matrix; the others at the first and the
        last one, by the GGN in the standard chart and in their own.
    matrices
        Measured along the followed arms.
    relative_dampings, relative_damping, threshold
        As in :class:`CompareSettings`.
    whole_batches
        Train the arms that the decomposition needs once more without minibatch noise, for as many steps.
    """

    seeds: tuple[int, ...] = tuple(range(10))
    arms: tuple[Arm, ...] = DEFAULT_ARMS
    training: TrajectorySettings = field(default_factory=TrajectorySettings)
    followed: tuple[str, ...] = (*HEADLINE, *PUBLISHED[1:])
    matrices: tuple[str, ...] = ("hessian", "ggn", "gradient_covariance")
    relative_dampings: tuple[float, ...] = (1e-3,)
    relative_damping: float = 1e-3
    threshold: float = THRESHOLD
    whole_batches: bool = True

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigurationError(f"seeds must be distinct and at least one, got {self.seeds}.")
        known_matrices(self.matrices)


@full_precision()
def run_full(
    build: Callable[[int], nn.Module],
    data: tuple[Tensor, Tensor],
    loss: str | Loss,
    settings: FullSettings | None = None,
    *,
    model: str = "given model",
    data_name: str = "given data",
    config: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Study:
    """Both designs over all seeds and arms: every arm trains itself, and its checkpoints are measured at every gauge.

    Float64. Seeds do not know of each other: :func:`measure_seed` gives one of them, :func:`combined` the study.
    """
    settings = settings or FullSettings()
    parts = []
    for number, seed in enumerate(settings.seeds):
        say = None
        if progress is not None:
            say = lambda words, share, at=number: progress(words, (at + share) / len(settings.seeds))  # noqa: E731
        parts.append(measure_seed(build(seed), data, loss, settings, seed=seed, progress=say))
    return combined(parts, settings, model=model, data_name=data_name, config=config)


def fingerprint(problem: Problem, settings: FullSettings, seed: int) -> str:
    """Hash of everything the numbers of a seed follow from: package, settings, model, loss and data."""
    training = asdict(settings.training) | {"rule": type(settings.training.optimizer).__name__}
    about = {
        "version": __version__,
        "settings": {name: value for name, value in asdict(settings).items() if name != "seeds"} | training,
        "seed": seed,
        "model": str(problem.model),
        "loss": repr(problem.loss),
        "parameters": [(entry.name, entry.shape) for entry in problem.layout.entries],
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for tensor in (problem.weights, problem.inputs, problem.targets):
        digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def measure_seed(
    module: nn.Module,
    data: tuple[Tensor, Tensor],
    loss: str | Loss,
    settings: FullSettings,
    *,
    seed: int,
    progress: Progress | None = None,
) -> Study:
    """Train and measure every arm at one seed; ``module`` as that seed initialized it."""
    found = Collector(progress)
    start = Problem.from_module(module, loss=loss, data=data)
    found.checks.append(one_layer_identity(start, seed))
    # A third of the time goes into training.
    trained = trajectories(
        start, settings.arms, settings.training, seed=seed, say=lambda words, share: found.say(words, share / 3)
    )
    for t, trajectory in enumerate(trained):
        found.checks += trajectory.checks
        found.sweeps.append(trajectory.sweep)
        if trajectory.run is None:
            found.warn(f"{trajectory.arm.name}, seed {seed}: every learning rate diverged.")
            continue
        found.curves.append(trajectory.run.curve)
        for point in trajectory.run.checkpoints:
            found.say(f"seed {seed}: {trajectory.arm.name}, {point.name}", (1 + 2 * t / len(trained)) / 3)
            _measure_point(found, trajectory, point, seed, settings)
        if trajectory.arm.name in settings.followed:
            for name in trajectory.run.missing:  # without the seed: said once for all of them
                found.warn(f"{trajectory.arm.name}: in some seeds the loss never got to the checkpoint {name!r}.")
    begun = {trajectory.start.name: trajectory.start for trajectory in trained}
    if "paper" in begun:
        found.checks.append(start_check(begun["paper"], settings.training.batch_size))
    if settings.whole_batches:
        for trajectory in trained:
            if trajectory.arm in _TRIO and trajectory.run is not None:
                found.say(f"seed {seed}: {trajectory.arm.name}, whole batches", 0.99)
                _without_noise(found, trajectory, seed, settings)
    return found.study("compare", start, {}, model="", data="")


def combined(
    parts: Sequence[Study],
    settings: FullSettings,
    *,
    model: str = "given model",
    data_name: str = "given data",
    config: Mapping[str, Any] | None = None,
) -> Study:
    """Join the seeds of a study, decide its claims, and cut the differences between its arms into their sources."""
    first = parts[0]
    joined = {
        name: tuple(record for part in parts for record in getattr(part, name))
        for name in ("measurements", "curves", "sweeps", "checks")
    }
    warnings = tuple(dict.fromkeys(warning for part in parts for warning in part.warnings))
    study = replace(first, model=model, data=data_name, config=dict(config or {}), warnings=warnings, **joined)
    names = {arm.name for arm in settings.arms}
    published = PUBLISHED if names.issuperset(PUBLISHED) else None
    decided = verdicts(study, threshold=settings.threshold, arms=HEADLINE, published=published)
    return replace(study, verdicts=decided, decompositions=_decompositions(study, published, settings))


def _decompositions(
    study: Study, published: tuple[str, ...] | None, settings: FullSettings
) -> tuple[Decomposition, ...]:
    found = []
    for matrix in settings.matrices:
        pairs: list[tuple[tuple[str, ...], tuple[str, ...] | None]] = [(HEADLINE, None)]
        if published:
            noise_free = tuple(WHOLE.format(name) for name in published)
            pairs.append((published, noise_free if settings.whole_batches and matrix == "ggn" else None))
        for arms, noise_free in pairs:
            one = decomposition(study, matrix=matrix, arms=arms, noise_free=noise_free)
            found += [replace(one, arms=arms[:2])] if one is not None and len(one.seeds) else []
    return tuple(found)


def _measure_point(
    found: Collector, trajectory: Trajectory, point: Checkpoint, seed: int, settings: FullSettings
) -> None:
    name = trajectory.arm.name
    followed = name in settings.followed
    if not followed and point.name not in _ENDS:
        return
    place = Place(name, seed, point.name, point.step)
    problem = trajectory.start.problem.at(point.weights)
    plain = isinstance(point.chart, Standard)
    charts: list[Parameterization] = [Standard()]
    if followed:
        charts += [WeightNorm(), WeightNorm("paper")]
    charts += [] if plain else [point.chart]
    matrices = settings.matrices if followed else ("ggn",)
    operators = measured_spectra(found, place, problem, matrices, charts, True, True)
    for chart in charts:
        gauge_state(found, place, problem, chart)
    own = type(point.chart) is WeightNorm
    if own and "hessian" in operators:
        found.add(place, spectrum(effective(operators["hessian"], linear_part(problem, point.chart))))
    if not followed or point.name not in _ENDS:
        return
    generator = torch.Generator().manual_seed(seed)
    covariance = operators.get("gradient_covariance") or MATRICES["gradient_covariance"](problem).materialized()
    found.extend(place, alignments(problem, seed=generator, covariance=covariance))
    found.extend(place, whitening(problem, seed=generator, covariance=covariance))
    if own or plain:
        efficiencies(found, place, problem, point.chart, settings, covariance)


def _without_noise(found: Collector, trajectory: Trajectory, seed: int, settings: FullSettings) -> None:
    """The same arm by whole batches: the same rate, as many steps; its last checkpoint is measured by the GGN."""
    begun, count = trajectory.start, trajectory.start.problem.num_examples
    steps = int(trajectory.run.curve.steps[-1])
    name = WHOLE.format(trajectory.arm.name)
    run = train(
        begun.problem,
        trajectory.arm.begin(begun),
        Schedule(steps, count, {"late": steps}, evaluate_every=steps),
        arm=name,
        seed=seed,
        optimizer=settings.training.optimizer.at_rate(trajectory.sweep.chosen),
    )
    if run.diverged:
        found.warn(f"{name}, seed {seed}: {run.diverged}")
        return
    (point,) = run.checkpoints
    place = Place(name, seed, point.name, point.step)
    charts = [Standard()] + ([] if isinstance(point.chart, Standard) else [point.chart])
    measured_spectra(found, place, begun.problem.at(point.weights), ("ggn",), charts, True, False)
