"""Claim C4: the exact recursion of the length of ``v`` under plain gradient descent."""

from __future__ import annotations

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.errors import ConfigurationError
from curvature.records import Check
from curvature.studies.training.optimizers import SGD, Optimizer
from curvature.studies.training.trainable import Trainable

__all__ = ["NormRecursion"]

_TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-4}


class NormRecursion:
    r"""Watch $\|v_{t+1}\|^2 = \|v_t\|^2 + \eta^2 \|\partial L/\partial v\|^2$ row by row, at every step of a run.

    Exact for plain (stochastic) gradient descent, since $\partial L/\partial v \perp v$; false under momentum, Adam
    or weight decay. An instance is the ``watch`` of :func:`~curvature.studies.training.train`; :meth:`check` gives the
    largest deviation, relative to $\|v_{t+1}\|^2$.

    Raises
    ------
    ConfigurationError
        If the chart has no $v$.
    """

    def __init__(self, trainable: Trainable, optimizer: Optimizer):
        if not hasattr(trainable.chart, "squared_lengths"):
            raise ConfigurationError(f"the chart {trainable.chart.name!r} has no v, so no length can be followed.")
        self._lengths, self._square = trainable.chart.squared_lengths, optimizer.learning_rate**2
        self._tolerance = _TOLERANCES[trainable.coordinates.dtype]
        self.deviation, self.growth, self.steps = 0.0, 0.0, 0

    @staticmethod
    def applies(trainable: Trainable, optimizer: Optimizer) -> bool:
        """Whether the recursion holds in theory."""
        plain = isinstance(optimizer, SGD) and not optimizer.momentum and not optimizer.weight_decay
        return plain and hasattr(trainable.chart, "squared_lengths")

    def __call__(
        self,
        before: Float[Tensor, "coordinates"],
        gradient: Float[Tensor, "coordinates"],
        after: Float[Tensor, "coordinates"],
    ) -> None:
        old, new = self._lengths(before), self._lengths(after)
        growth = self._square * self._lengths(gradient)
        self.deviation = max(self.deviation, float(((new - old - growth).abs() / new).max()))
        self.growth = max(self.growth, float((growth / new).max()))
        self.steps += 1

    def check(self, run: str = "") -> Check:
        """The largest deviation of all steps; NaN (not passed) if there was no step. ``run`` is named in the check."""
        return Check(
            "squared length of v grows by the squared step" + (f" ({run})" if run else ""),
            self.deviation if self.steps else float("nan"),
            self._tolerance,
            f"largest deviation over |v|^2 in {self.steps} steps; the largest growth in one step is {self.growth:.1e}",
            claim="C4",
        )
