"""How long an arm trains, and where its run is looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from curvature.errors import ConfigurationError
from curvature.models import Problem

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """How long to train, and where to look.

    Attributes
    ----------
    epochs, batch_size
        Passes over the data, and examples in a minibatch.
    checkpoints
        Name to epoch (0 is the start), each at most ``epochs``.
    levels
        Name to loss: a checkpoint at the first evaluation whose loss over all data is not above it. One that is never
        reached is listed in ``Run.missing``.
    evaluate_every
        Steps between evaluations of the loss over all data; None: once per epoch. The start, the end and the
        checkpoints are always evaluated.

    Raises
    ------
    ConfigurationError
        If a number is below 1, a checkpoint is outside of training, or a name is used twice.
    """

    epochs: int
    batch_size: int
    checkpoints: Mapping[str, int] = field(default_factory=dict)
    levels: Mapping[str, float] = field(default_factory=dict)
    evaluate_every: int | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or (self.evaluate_every is not None and self.evaluate_every < 1):
            raise ConfigurationError(
                "training needs epochs >= 1, batch_size >= 1 and evaluate_every >= 1, got "
                f"{self.epochs}, {self.batch_size}, {self.evaluate_every}."
            )
        outside = {name: epoch for name, epoch in self.checkpoints.items() if not 0 <= epoch <= self.epochs}
        if outside:
            raise ConfigurationError(f"checkpoints must be in epochs 0 to {self.epochs}, got {outside}.")
        twice = sorted(self.checkpoints.keys() & self.levels.keys())
        if twice:
            raise ConfigurationError(
                f"each checkpoint needs its own name; {twice} name both an epoch and a loss. Rename one of the two."
            )

    def steps_per_epoch(self, problem: Problem) -> int:
        """Batches in one pass over the data; the last one may be smaller."""
        return math.ceil(problem.num_examples / self.batch_size)

    def num_steps(self, problem: Problem) -> int:
        """Optimizer steps in all epochs."""
        return self.epochs * self.steps_per_epoch(problem)
