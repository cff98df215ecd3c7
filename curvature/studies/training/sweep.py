"""The learning rate of an arm: the best of a grid, which grows where the best is at its edge."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from curvature.arrays import Float64
from curvature.errors import ConfigurationError
from curvature.models import Problem
from curvature.precision import full_precision
from curvature.records import LearningRateSweep
from curvature.studies.training.loop import train
from curvature.studies.training.optimizers import Optimizer
from curvature.studies.training.schedule import Schedule
from curvature.studies.training.trainable import Trainable

__all__ = ["learning_rate_sweep", "tune_learning_rate"]

TAIL = 3  # epochs whose losses are averaged: the last one alone is a draw of the minibatch noise


@full_precision()
def tune_learning_rate(
    problem: Problem,
    begin: Callable[[], Trainable],
    schedule: Schedule,
    *,
    arm: str,
    seed: int,
    optimizer: Optimizer,
    rates: Sequence[float] | Float64[np.ndarray, "rates"],
    max_extensions: int = 6,
) -> LearningRateSweep:
    """Train from the same start at every rate and keep the one with the lowest loss over all data at the end.

    Parameters
    ----------
    problem
        The starting weights, the loss and all data.
    begin
        Called for each rate; returns a fresh thing to train.
    schedule
        Epochs and batch size of each run.
    arm, seed
        As in :func:`~curvature.studies.training.train`.
    optimizer
        The rule; its own learning rate is not used.
    rates
        At least three, ascending, evenly spaced in the logarithm.
    max_extensions
        While the best rate is the first or the last of the grid, one more is tried beyond it, at the same spacing, at
        most this often in all.

    Returns
    -------
    LearningRateSweep
        Divergence is an infinite loss; where every rate diverged, smaller ones are tried.

    Raises
    ------
    ConfigurationError
        If the rates are not such a grid.

    Notes
    -----
    The loss at the end is the mean over the ends of the last three epochs (fewer where the budget has fewer): at a
    large rate the loss one step later can be twice as high, and a single one would decide by chance.
    """
    rates = [float(rate) for rate in rates]
    ratios = np.diff(np.log(rates)) if len(rates) > 2 and min(rates) > 0 else np.zeros(1)
    if not (ratios > 0).all() or not np.allclose(ratios, ratios[0], rtol=1e-6):
        raise ConfigurationError(
            "rates must be three or more positive learning rates, ascending and evenly spaced in the logarithm, got "
            f"{rates}."
        )
    factor = float(np.exp(ratios.mean()))

    def final(rate: float) -> float:
        """Mean loss at the ends of the last epochs; infinite for a run that diverged."""
        run = train(problem, begin(), schedule, arm=arm, seed=seed, optimizer=optimizer.at_rate(rate))
        return float(run.curve.losses[1:][-TAIL:].mean())

    losses = [final(rate) for rate in rates]
    for _ in range(max_extensions):
        best = int(np.argmin(losses))  # the first, hence the smallest rate, if all diverged
        if best == 0:
            rates.insert(0, rates[0] / factor)
            losses.insert(0, final(rates[0]))
        elif best == len(rates) - 1:
            rates.append(rates[-1] * factor)
            losses.append(final(rates[-1]))
        else:
            break
    return learning_rate_sweep(arm, seed, rates, losses, budget=schedule.num_steps(problem))


def learning_rate_sweep(
    arm: str,
    seed: int,
    rates: Sequence[float] | Float64[np.ndarray, "rates"],
    final_losses: Sequence[float] | Float64[np.ndarray, "rates"],
    *,
    budget: int,
) -> LearningRateSweep:
    """Choose the rate with the lowest final loss.

    Parameters
    ----------
    arm, seed
        Whose runs these are.
    rates
        Ascending, ``(R,)``.
    final_losses
        Of the run at each rate, ``(R,)``; infinite where it diverged.
    budget
        Optimizer steps of each run.

    Returns
    -------
    LearningRateSweep
        The smallest rate of equals is chosen; NaN if every run diverged.
    """
    best = int(np.argmin(final_losses))
    return LearningRateSweep(
        arm,
        seed,
        np.array(rates),
        np.array(final_losses),
        chosen=rates[best] if np.isfinite(final_losses[best]) else float("nan"),
        at_edge=best in (0, len(rates) - 1),
        budget=budget,
    )
