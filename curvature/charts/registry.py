"""The parameterizations that can be chosen by name; add one by adding a row to the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from curvature.charts.chart import Parameterization
from curvature.charts.linear import ScaledStandard, Standard
from curvature.charts.low_rank import DeepLinear, DoRA, LoRA
from curvature.charts.placebo import Placebo
from curvature.charts.row_charts import RandomWeightFactorization, Sphere, WeightStandardization
from curvature.charts.spectral_norm import SpectralNorm
from curvature.charts.weight_norm import WeightNorm

__all__ = ["CHARTS", "NamedChart"]


@dataclass(frozen=True)
class NamedChart:
    """How a name becomes a parameterization.

    Attributes
    ----------
    build
        Makes the parameterization from keyword arguments: ``gauge`` or ``stretch`` if it has gauges, ``rank`` if it is
        of low rank, ``seed`` if it is random.
    default_gauge
        The gauge where none is named; None for a parameterization with one gauge only.
    ranked
        Whether it has a rank.
    seeded
        Whether it draws random numbers.
    from_module
        Whether it can be read from a weight-normalized module, gauge ``"checkpoint"``.
    """

    build: Callable[..., Parameterization]
    default_gauge: str | None = None
    ranked: bool = False
    seeded: bool = False
    from_module: bool = False


CHARTS: dict[str, NamedChart] = {
    "standard": NamedChart(Standard),
    "weight-norm": NamedChart(WeightNorm, default_gauge="canonical", from_module=True),
    "scaled-standard": NamedChart(ScaledStandard),
    "placebo": NamedChart(Placebo, default_gauge="paper", seeded=True),
    "sphere": NamedChart(Sphere),
    "random-weight-factorization": NamedChart(RandomWeightFactorization, seeded=True),
    "weight-standardization": NamedChart(WeightStandardization),
    "spectral-norm": NamedChart(SpectralNorm),
    "lora": NamedChart(LoRA, ranked=True, seeded=True),
    "dora": NamedChart(DoRA, ranked=True, seeded=True),
    "deep-linear": NamedChart(DeepLinear),
}
