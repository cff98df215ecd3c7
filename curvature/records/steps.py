"""Steps, neurons and gauges: what is measured beside a spectrum."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Alignment", "GaugeState", "StepComparison", "Whitening"]


@dataclass(frozen=True)
class StepComparison:
    r"""How close one chart's gradient step is to the damped natural-gradient step, at one damping.

    Attributes
    ----------
    chart, gauge, block
        Which steps, in which scope.
    relative_damping
        $a$ in $\lambda = a \operatorname{tr}(F) / P$.
    damping
        $\lambda$, unit loss / weight**2, added to $F$ *on the weights*.
    efficiency
        $E \in [0, 1]$: the best line-search decrease of the quadratic model along the chart's step, over that of the
        full damped natural-gradient step.
    index
        $R = (E - E_\text{SGD}) / (E_\text{neuron-block} - E_\text{SGD})$: 0 is gradient descent, 1 neuron-block natural
        gradient; NaN where the two ends coincide.
    kappa
        Condition number of $K^{1/2}(F + \lambda I)K^{1/2}$: 1 where $K \propto (F + \lambda I)^{-1}$.
    am_gm, ai_distance
        Distance of the same matrix from a multiple of the identity; 0 at the natural gradient.
    """

    chart: str
    gauge: str
    relative_damping: float
    damping: float
    efficiency: float
    block: str = "all"
    index: float = math.nan
    kappa: float = math.nan
    am_gm: float = math.nan
    ai_distance: float = math.nan
    num_examples: int | None = None

    @property
    def label(self) -> str:
        """Chart and gauge in a few words."""
        return self.chart if self.gauge == "-" else f"{self.chart} ({self.gauge})"


@dataclass(frozen=True)
class Alignment:
    r"""Where one neuron's weights lie in the eigenbasis of its gradient covariance $C$ (claim C2).

    ``cosine`` is $|\cos(x, e_1)|$ with the top eigenvector; ``rayleigh`` is $(x^T C x / x^T x) / (\operatorname{tr} C
    / d)$, 1 for a random direction in expectation. ``null_cosine`` is the mean of $|\cos|$ for a random direction.
    """

    neuron: str
    direction: str
    cosine: float
    rayleigh: float
    null_cosine: float
    dim: int
    num_examples: int


@dataclass(frozen=True)
class Whitening:
    r"""Sphericity of one neuron's gradient covariance before and after removing one direction (claim C3).

    ``bures`` in [0, 1) and ``am_gm_damped`` are 0 for a multiple of the identity; ``projection`` says which direction
    was projected out: ``"none"``, ``"w"``, ``"random"`` or ``"e1"``.
    """

    neuron: str
    projection: str
    bures: float
    am_gm_damped: float
    l1_over_mean: float
    dim: int
    num_examples: int


@dataclass(frozen=True)
class GaugeState:
    r"""The stretches $\|v\| / |g|$ of all normalized rows at one point: what gauge "checkpoint" means in numbers."""

    chart: str
    gauge: str
    minimum: float
    median: float
    maximum: float
    num_rows: int
