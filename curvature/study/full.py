"""Every arm, tuned and trained at every seed, and measured: what ``curvature compare --full`` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from curvature.errors import ConfigurationError
from curvature.losses import Loss
from curvature.matrices import MATRICES
from curvature.noise import alignments, whitening
from curvature.problem import Problem
from curvature.records import Study
from curvature.study.measuring import (
    Collector,
    Place,
    Progress,
    efficiencies,
    gauge_state,
    known_matrices,
    measured_spectra,
)
from curvature.training import (
    DEFAULT_ARMS,
    Arm,
    Checkpoint,
    Trajectory,
    TrajectorySettings,
    fingerprint,
    lifts,
    load_trajectories,
    save_trajectories,
    trajectories,
)

__all__ = ["FullSettings", "run_full"]


@dataclass(frozen=True)
class FullSettings:
    """The full study: every seed times every arm, each tuned, trained and measured.

    Attributes
    ----------
    seeds
        Paired seeds, at least 10 for a claim about trajectories.
    arms, training
        What is trained, and how.
    matrices
        Measured at every checkpoint, at every gauge.
    dampings, damping
        As in :class:`CompareSettings`.
    """

    seeds: tuple[int, ...] = tuple(range(10))
    arms: tuple[Arm, ...] = DEFAULT_ARMS
    training: TrajectorySettings = field(default_factory=TrajectorySettings)
    matrices: tuple[str, ...] = ("ggn",)
    dampings: tuple[float, ...] = (1e-3,)
    damping: float = 1e-3

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigurationError(f"seeds must be distinct and at least one, got {self.seeds}.")
        known_matrices(self.matrices)


def run_full(
    build: Callable[[int], nn.Module],
    data: tuple[Tensor, Tensor],
    loss: str | Loss,
    settings: FullSettings | None = None,
    *,
    state: Path,
    model: str = "given model",
    data_name: str = "given data",
    config: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> tuple[Study, tuple[Trajectory, ...]]:
    """Both designs over all seeds and arms: trajectories, and every checkpoint at every gauge.

    Trajectories are stored in the folder ``state``, one file per seed under the hash of all they follow from, and an
    interrupted study goes on after the last whole seed; measurements are made anew. Float64.

    Returns
    -------
    study, trajectories
        The records, whose measurements have the arms' names; and the trajectories, seed by seed, with the sweeps.
    """
    settings = settings or FullSettings()
    found, everything, problem = Collector(progress), [], None
    share = 1 / len(settings.seeds)
    for s, seed in enumerate(settings.seeds):
        start = Problem.from_module(build(seed), loss=loss, data=data)
        problem = problem or start
        done = s * share
        key = fingerprint(start, settings.arms, settings.training, seed)
        path = state / f"{key}-seed-{seed}.npz"
        if not path.exists():
            # The first half of a seed's share of the progress is training, the second measuring.
            say = lambda words, part, done=done: found.say(words, done + 0.5 * share * part)  # noqa: E731
            trained = trajectories(start, settings.arms, settings.training, seed=seed, say=say)
            save_trajectories(path, trained)
        # What was just trained is read back too, so that an interrupted study has the same numbers.
        trained = load_trajectories(path, start, settings.training, seed=seed)
        for t, trajectory in enumerate(trained):
            found.checks += trajectory.checks
            if trajectory.run is None:
                found.warn(f"{trajectory.arm.name}, seed {seed}: every learning rate diverged.")
                continue
            found.curves.append(trajectory.run.curve)
            found.say(f"seed {seed}: measuring {trajectory.arm.name}", done + share * (0.5 + 0.5 * t / len(trained)))
            for point in trajectory.run.checkpoints:
                _measure_point(found, trajectory, point, seed, settings)
            for name, reason in trajectory.run.missing.items():
                found.warn(f"{trajectory.arm.name}, seed {seed}: no checkpoint {name!r}: {reason}")
        everything += trained
    study = found.study("full", problem, dict(config or {}), model=model, data=data_name)
    return study, tuple(everything)


def _measure_point(
    found: Collector, trajectory: Trajectory, point: Checkpoint, seed: int, settings: FullSettings
) -> None:
    place = Place(trajectory.arm.name, seed, point.name, point.step)
    problem = trajectory.start.problem.at(point.weights)
    charts = lifts(point, seed=seed)
    operators = measured_spectra(found, place, problem, settings.matrices, charts, True, True)
    for chart in charts:
        gauge_state(found, place, problem, chart)
    generator = torch.Generator().manual_seed(seed)
    covariance = operators.get("gradient_covariance") or MATRICES["gradient_covariance"](problem).materialized()
    found.extend(place, alignments(problem, generator=generator, covariance=covariance))
    found.extend(place, whitening(problem, generator=generator, covariance=covariance))
    efficiencies(found, place, problem, point.chart, settings, covariance)
