"""Training: arms that start at one function, one loop, learning rates tuned alike.

:func:`train` runs one arm once; :func:`trajectories` tunes and trains all arms at one seed.
"""

from curvature.studies.training.arms import METHODS, STARTS, Arm, arm_named, start
from curvature.studies.training.design import DEFAULT_ARMS, Trajectory, TrajectorySettings, trajectories
from curvature.studies.training.initialization import Start, paper_start, start_check
from curvature.studies.training.loop import Checkpoint, Run, train
from curvature.studies.training.optimizers import SGD, Adam, Optimizer, SecondMoment
from curvature.studies.training.recursion import NormRecursion
from curvature.studies.training.schedule import Schedule
from curvature.studies.training.sweep import learning_rate_sweep, tune_learning_rate
from curvature.studies.training.trainable import BatchNormalized, Trainable, Whitened

__all__ = [
    "DEFAULT_ARMS",
    "METHODS",
    "SGD",
    "STARTS",
    "Adam",
    "Arm",
    "BatchNormalized",
    "Checkpoint",
    "NormRecursion",
    "Optimizer",
    "Run",
    "Schedule",
    "SecondMoment",
    "Start",
    "Trainable",
    "Trajectory",
    "TrajectorySettings",
    "Whitened",
    "arm_named",
    "learning_rate_sweep",
    "paper_start",
    "start",
    "start_check",
    "train",
    "trajectories",
    "tune_learning_rate",
]
