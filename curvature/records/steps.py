"""Records of gradient steps, of the gradient covariance of single neurons, and of gauges."""

from __future__ import annotations

import math
from dataclasses import dataclass

from curvature.records.where import chart_label

__all__ = ["Alignment", "GaugeState", "LeagueEntry", "StepComparison", "Whitening"]


@dataclass(frozen=True)
class StepComparison:
    r"""Comparison of the gradient step of one chart with the damped natural-gradient step.

    Attributes
    ----------
    chart, gauge, block
        Chart with its gauge, and block of the weights.
    relative_damping
        $a$ in $\lambda = a \operatorname{tr}(F) / P$.
    damping
        $\lambda$, unit loss / weight**2, added to the Fisher matrix $F$ *on the weights*.
    efficiency
        $E \in [0, 1]$: the decrease of the quadratic model by the best line search along the chart's step, divided by
        the decrease by the full damped natural-gradient step.
    index
        $R = (E - E_\text{SGD}) / (E_\text{neuron-block} - E_\text{SGD})$: 0 for gradient descent, 1 for the
        neuron-block natural gradient; NaN where these two coincide.
    kappa
        Condition number of $K^{1/2}(F + \lambda I)K^{1/2}$; 1 where $K \propto (F + \lambda I)^{-1}$.
    am_gm, ai_distance
        Distances of the same matrix from a multiple of the identity; 0 for the natural gradient.
    num_examples
        Number of examples in $F$.
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
        return chart_label(self.chart, self.gauge)


@dataclass(frozen=True)
class LeagueEntry:
    r"""Place of one method in the whitening league: how close its step is to the damped natural-gradient step.

    Attributes
    ----------
    method
        A parameterization or an optimizer, as in ``curvature.natural_gradient.METHODS``.
    relative_damping
        $a$ in $\lambda = a \operatorname{tr}(F) / P$.
    damping
        $\lambda$, unit loss / weight**2, added to the Fisher matrix $F$ *on the weights*.
    efficiency
        $E \in [0, 1]$, as in :class:`StepComparison`; NaN where the method has no step at these weights.
    ratio
        $E$ over that of gradient descent at the same weights.
    index
        $R$, as in :class:`StepComparison`.
    kappa
        Condition number of $K^{1/2}(F + \lambda I)K^{1/2}$; NaN where the method has no metric $K$, or $K$ is singular
        up to rounding.
    num_examples
        Number of examples in $F$.
    note
        Why there is no efficiency, or why the condition number of $K$ is not resolved; otherwise empty.
    """

    method: str
    relative_damping: float
    damping: float
    efficiency: float
    ratio: float
    index: float = math.nan
    kappa: float = math.nan
    num_examples: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Alignment:
    r"""Alignment of one direction with the eigenvectors of a neuron's gradient covariance $C$ (claim C2).

    Attributes
    ----------
    neuron
        ``layer[index]``.
    direction
        ``"w"``, ``"random"`` or ``"mean input"``.
    cosine
        $|\cos(x, e_1)|$ of the direction $x$ with the top eigenvector.
    rayleigh
        $(x^T C x / x^T x) / (\operatorname{tr} C / d)$; its expectation for a random direction is 1.
    null_cosine
        Expectation of ``cosine`` for a random direction.
    dim, num_examples
        Dimension $d$ of $C$, and number of examples in it.
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
    """Sphericity of a neuron's gradient covariance, with one direction projected out or none (claim C3).

    Attributes
    ----------
    neuron
        ``layer[index]``.
    projection
        What was projected out: ``"none"``, ``"w"``, ``"random"`` or ``"e1"`` (the top eigenvector).
    bures, am_gm_damped
        Distances from a multiple of the identity, 0 at equality; ``bures`` is below 1.
    l1_over_mean
        Largest over mean eigenvalue, 1 at equality.
    dim, num_examples
        Dimension after the projection, and number of examples in the covariance.
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
    r"""Stretches $\|v\| / |g|$ of all normalized rows at one point of training.

    Attributes
    ----------
    chart, gauge
        Chart with its gauge.
    minimum, median, maximum
        Of the stretches over all rows.
    num_rows
        Number of normalized rows.
    """

    chart: str
    gauge: str
    minimum: float
    median: float
    maximum: float
    num_rows: int
