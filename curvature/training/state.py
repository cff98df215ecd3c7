"""Trajectories of one seed in one file, so that an interrupted study goes on where it was."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from curvature._version import __version__
from curvature.errors import ConfigurationError
from curvature.problem import Problem
from curvature.records import Check, LearningRateSweep, TrainingCurve
from curvature.training.arms import Arm, start
from curvature.training.design import Trajectory, TrajectorySettings
from curvature.training.loop import Checkpoint, Run

__all__ = ["fingerprint", "load_trajectories", "save_trajectories"]

_CURVE, _SWEEP = ("steps", "losses", "accuracies"), ("rates", "final_losses")


def fingerprint(problem: Problem, arms: Sequence[Arm], settings: TrajectorySettings, seed: int) -> str:
    """Hash of everything the trajectories of a seed follow from: package, settings, arms, model, loss and data."""
    about = {
        "version": __version__,
        "settings": asdict(settings) | {"rule": type(settings.optimizer).__name__},
        "arms": [asdict(arm) for arm in arms],
        "seed": seed,
        "model": str(problem.model),
        "loss": repr(problem.loss),
        "parameters": [(entry.name, entry.shape) for entry in problem.layout.entries],
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for tensor in (problem.weights, problem.inputs, problem.targets):
        digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_trajectories(path: Path, trajectories: Sequence[Trajectory]) -> None:
    """Write one ``.npz`` file, whole or not at all; no pickle. Charts are stored as coordinates."""
    about, arrays = [], {}
    for number, found in enumerate(trajectories):
        sweep, run = found.sweep, found.run
        arrays |= {f"{number}/{name}": getattr(sweep, name) for name in _SWEEP}
        entry = {
            "arm": asdict(found.arm),
            "sweep": {key: value for key, value in asdict(sweep).items() if key not in _SWEEP},
            "checks": [asdict(check) for check in found.checks],
        }
        if run is not None:
            arrays |= {f"{number}/{name}": getattr(run.curve, name) for name in _CURVE}
            for index, point in enumerate(run.checkpoints):
                arrays[f"{number}/{index}/weights"] = point.weights.cpu().numpy()
                arrays[f"{number}/{index}/coordinates"] = point.coordinates.cpu().numpy()
            entry["run"] = {
                "checkpoints": [(point.name, point.step) for point in run.checkpoints],
                "missing": dict(run.missing),
                "diverged": run.diverged,
            }
        about.append(entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished.npz")
    np.savez(unfinished, about=np.array(json.dumps(about)), **arrays)
    unfinished.replace(path)


def load_trajectories(
    path: Path, problem: Problem, settings: TrajectorySettings, *, seed: int
) -> tuple[Trajectory, ...]:
    """Read what :func:`save_trajectories` wrote, for the same problem, settings and seed; charts are built anew.

    Raises
    ------
    ConfigurationError
        If the file is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            arrays = {name: stored[name] for name in stored.files if name != "about"}
        return tuple(_trajectory(entry, number, arrays, problem, settings, seed) for number, entry in enumerate(about))
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ConfigurationError(f"{path} is damaged ({error}): delete it, and its seed is trained again.") from error


def _trajectory(
    entry: dict, number: int, arrays: dict, problem: Problem, settings: TrajectorySettings, seed: int
) -> Trajectory:
    arm = Arm(**entry["arm"])
    begun = start(problem, arm.start, seed=seed, batch_size=settings.batch_size)
    sweep = LearningRateSweep(**entry["sweep"], **{name: arrays[f"{number}/{name}"] for name in _SWEEP})
    run = None
    if "run" in entry:
        trainable, points = arm.begin(begun), []
        for index, (name, step) in enumerate(entry["run"].pop("checkpoints")):
            weights, coordinates = (
                torch.as_tensor(arrays[f"{number}/{index}/{what}"]).to(problem.device)
                for what in ("weights", "coordinates")
            )
            points.append(Checkpoint(name, step, weights, coordinates, trainable.restored(weights, coordinates)))
        curve = TrainingCurve(arm.name, seed, *(arrays[f"{number}/{name}"] for name in _CURVE), sweep.chosen)
        run = Run(curve, tuple(points), **entry["run"])
    return Trajectory(arm, begun, sweep, run, tuple(Check(**check) for check in entry["checks"]))
