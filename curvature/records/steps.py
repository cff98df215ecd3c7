"""Records of steps, of the gradient noise per neuron, and of gauges."""

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
        The chart, and the block of the weights.
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
        """Chart with its gauge: ``"weight-norm (paper)"``."""
        return self.chart if self.gauge == "-" else f"{self.chart} ({self.gauge})"


@dataclass(frozen=True)
class Alignment:
    r"""Where one direction lies in the eigenbasis of one neuron's gradient covariance $C$ (claim C2).

    Attributes
    ----------
    neuron
        ``layer[index]``.
    direction
        ``"w"``, ``"random"`` or ``"mean input"``.
    cosine
        $|\cos(x, e_1)|$ with the top eigenvector.
    rayleigh
        $(x^T C x / x^T x) / (\operatorname{tr} C / d)$; 1 is expected for a random direction.
    null_cosine
        Expected ``cosine`` of a random direction.
    dim, num_examples
        $d$, and the examples behind $C$.
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
    """Sphericity of one neuron's gradient covariance with one direction projected out, or none (claim C3).

    Attributes
    ----------
    neuron
        ``layer[index]``.
    projection
        What was projected out: ``"none"``, ``"w"``, ``"random"`` or ``"e1"`` (the top eigenvector).
    bures, am_gm_damped
        Distances from a multiple of the identity, 0 at equality; ``bures`` is below 1.
    l1_over_mean
        Largest over mean eigenvalue.
    dim, num_examples
        Dimension after the projection, and the examples behind the covariance.
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
    r"""The stretches $\|v\| / |g|$ of all normalized rows at one point: what gauge "checkpoint" means in numbers.

    Attributes
    ----------
    chart, gauge
        The chart.
    minimum, median, maximum
        Over the rows.
    num_rows
        How many there are.
    """

    chart: str
    gauge: str
    minimum: float
    median: float
    maximum: float
    num_rows: int
