"""Training curves and learning rates."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

__all__ = ["LearningRateSweep", "StepsToLoss", "TrainingCurve"]


@dataclass(frozen=True)
class StepsToLoss:
    """Optimizer steps until the loss over all data was first seen at a level or below it (claim C8).

    ``reached`` False: right-censored, the number is larger than ``steps``, the last step that was taken;
    ``diverged`` says that no longer run would have got there.
    """

    arm: str
    seed: int
    level: float
    steps: int
    reached: bool
    diverged: bool = False


@dataclass(frozen=True)
class TrainingCurve:
    """One run of one arm: mean loss over all data, ``(T,)``, at the optimizer steps ``steps``.

    A run that diverged ends in a loss that is not finite. ``learning_rate`` is NaN where it was not told.
    """

    arm: str
    seed: int
    steps: np.ndarray = field(repr=False)
    losses: np.ndarray = field(repr=False)
    accuracies: np.ndarray = field(repr=False)
    learning_rate: float = math.nan

    def steps_to(self, level: float) -> StepsToLoss:
        """First step whose loss is not above ``level``, as finely as the curve was evaluated.

        >>> curve = TrainingCurve("standard", 0, np.array([0, 5, 10]), np.array([2.0, 1.0, 0.5]), np.ones(3))
        >>> curve.steps_to(1.0).steps, curve.steps_to(0.1)
        (5, StepsToLoss(arm='standard', seed=0, level=0.1, steps=10, reached=False, diverged=False))
        """
        below = np.flatnonzero(self.losses <= level)
        if len(below):
            return StepsToLoss(self.arm, self.seed, level, int(self.steps[below[0]]), True)
        diverged = not bool(np.isfinite(self.losses[-1]))
        return StepsToLoss(self.arm, self.seed, level, int(self.steps[-1]), False, diverged)


@dataclass(frozen=True)
class LearningRateSweep:
    """One arm trained at each learning rate of a grid, for the same number of steps.

    Attributes
    ----------
    rates, final_losses
        Ascending rates, evenly spaced in the logarithm, ``(R,)``; mean of the losses over all data at the ends of the
        last epochs (see :func:`~curvature.studies.training.tune_learning_rate`), infinite where training diverged.
    chosen
        The rate with the lowest of these; NaN if every rate diverged.
    at_edge
        Whether ``chosen`` is the first or last rate, or there is none, although the grid was extended as far as
        allowed: a better rate may lie beyond.
    budget
        Optimizer steps.
    """

    arm: str
    seed: int
    rates: np.ndarray
    final_losses: np.ndarray
    chosen: float
    at_edge: bool
    budget: int
