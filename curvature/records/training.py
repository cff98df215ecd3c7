"""Records of training: curves, steps to a loss, sweeps of the learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from curvature.arrays import Float64, Int
from curvature.records.validation import require

__all__ = ["LearningRateSweep", "StepsToLoss", "TrainingCurve"]


@dataclass(frozen=True)
class StepsToLoss:
    """Optimizer steps until the loss over all data first reached a level (claim C8).

    Attributes
    ----------
    arm, seed
        Training run.
    level
        The loss to reach.
    steps
        First evaluated step with a loss of at most ``level``; the last step of the run if none reached it.
    reached
        False for a censored observation: the true number is larger than ``steps``.
    diverged
        Whether the run ended in a loss that is not finite, so that a longer run would not have reached the level.
    """

    arm: str
    seed: int
    level: float
    steps: int
    reached: bool
    diverged: bool = False


@dataclass(frozen=True)
class TrainingCurve:
    """Loss and accuracy over all data during one training run.

    Attributes
    ----------
    arm, seed
        Training run.
    steps
        Optimizer steps at which the run was evaluated, ``(T,)``.
    losses
        Mean loss over all data, ``(T,)``; a run that diverged ends in a loss that is not finite.
    accuracies
        Accuracy over all data, ``(T,)``.
    learning_rate
        NaN where it is unknown.
    """

    arm: str
    seed: int
    steps: Int[np.ndarray, "steps"] = field(repr=False)
    losses: Float64[np.ndarray, "steps"] = field(repr=False)
    accuracies: Float64[np.ndarray, "steps"] = field(repr=False)
    learning_rate: float = math.nan

    def validate(self) -> None:
        """Check that the arrays are equally long; every reader of a file calls it.

        Raises
        ------
        ValueError
            If they are not.
        """
        shapes = [self.steps.shape, self.losses.shape, self.accuracies.shape]
        require(len({*shapes}) == 1 and len(shapes[0]) == 1, f"steps, losses and accuracies have the shapes {shapes}")

    def steps_to(self, level: float) -> StepsToLoss:
        """Find the first evaluated step whose loss is not above a level.

        Parameters
        ----------
        level
            The loss to reach.

        Returns
        -------
        StepsToLoss
            Censored at the last step if no loss is that low.

        Examples
        --------
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
    """Final losses of one arm over a grid of learning rates, with the same number of steps at each.

    Attributes
    ----------
    arm, seed
        Which arm was trained, and its seed.
    rates
        Learning rates, ascending and evenly spaced in the logarithm, ``(R,)``.
    final_losses
        Mean of the losses over all data at the ends of the last epochs, ``(R,)`` (see
        :func:`~curvature.studies.training.tune_learning_rate`); infinite where training diverged.
    chosen
        Rate with the lowest final loss; NaN if every rate diverged.
    at_edge
        Whether ``chosen`` is the first or last rate, or NaN, although the grid was extended as far as allowed: a better
        rate may lie outside.
    budget
        Optimizer steps at each rate.
    """

    arm: str
    seed: int
    rates: Float64[np.ndarray, "rates"]
    final_losses: Float64[np.ndarray, "rates"]
    chosen: float
    at_edge: bool
    budget: int

    def validate(self) -> None:
        """Check that the arrays are equally long; every reader of a file calls it.

        Raises
        ------
        ValueError
            If they are not.
        """
        shapes = [self.rates.shape, self.final_losses.shape]
        require(len({*shapes}) == 1 and len(shapes[0]) == 1, f"rates and final_losses have the shapes {shapes}")
