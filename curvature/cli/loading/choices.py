"""Losses and charts by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from curvature.charts import Parameterization, Placebo, ScaledStandard, Standard, WeightNorm
from curvature.cli.loading.code import find
from curvature.cli.loading.wording import Say, choice
from curvature.errors import ConfigurationError
from curvature.models import losses
from curvature.models.losses import Loss, resolve_loss

__all__ = ["build_charts", "load_loss"]

CHARTS = ("standard", "weight-norm", "scaled-standard", "placebo")
GAUGES = ("canonical", "paper", "checkpoint")


def load_loss(spec: str, say: Say = lambda _: None) -> Loss:
    """Find a loss by name, or by ``package.module:function`` a callable ``loss(output, target)`` for one example."""
    if ":" not in spec:
        return resolve_loss(choice(spec, {name: name for name in losses.LOSSES}, "loss"))
    function = find(spec, "loss", f"{', '.join(losses.LOSSES)}, or package.module:function", say)
    if isinstance(function, type):
        raise ConfigurationError(
            f"{spec} is a class; name a function loss(output, target) for one example, or one of "
            f"{', '.join(losses.LOSSES)}."
        )
    return resolve_loss(function)


def build_charts(
    charts: Sequence[str], gauges: Sequence[str], own: Parameterization | None = None, *, seed: int = 0
) -> list[Parameterization]:
    """Charts by name, those of weight normalization once for each gauge.

    ``own`` is the module's chart, for ``checkpoint``; ``seed`` draws the directions of the placebo.
    """
    has_own = isinstance(own, WeightNorm) and own.v is not None
    for gauge in gauges:
        _stretch(gauge)
    if gauges and not {"weight-norm", "placebo"} & set(charts):
        raise ConfigurationError("--gauge is a choice within weight normalization: add --chart weight-norm.")
    if "checkpoint" in gauges and not has_own:
        raise ConfigurationError(
            "--gauge checkpoint is the gauge of a weight-normalized model, and this one is not; use canonical, paper "
            "or a stretch ||v|| / |g|, e.g. --gauge 3."
        )
    found: list[Parameterization] = []
    for chart in charts:
        choice(chart, dict.fromkeys(CHARTS), "chart")
        if chart == "standard":
            found.append(Standard())
        elif chart == "scaled-standard":
            found.append(ScaledStandard())
        elif chart == "weight-norm":
            found += [own if gauge == "checkpoint" else _gauged(WeightNorm, gauge) for gauge in gauges or ["canonical"]]
        else:
            usable = [gauge for gauge in gauges or ["paper"] if gauge != "checkpoint"]
            if not usable:
                raise ConfigurationError("the placebo has no checkpoint gauge; use --gauge paper or a stretch.")
            found += [_gauged(Placebo, gauge, seed=seed) for gauge in usable]
    return found


def _gauged(kind: type[WeightNorm], gauge: str, **options: Any) -> WeightNorm:
    stretch = _stretch(gauge)
    return kind(gauge, **options) if stretch is None else kind(stretch=stretch, **options)


def _stretch(gauge: str) -> float | None:
    if gauge in GAUGES:
        return None
    try:
        stretch = float(gauge.removeprefix("stretch="))
    except ValueError:
        stretch = math.nan
    if not (math.isfinite(stretch) and stretch > 0):
        raise ConfigurationError(
            f"gauge {gauge!r} is unknown; choose {', '.join(GAUGES)}, or a stretch ||v|| / |g|, a positive number such "
            "as 3."
        )
    return stretch
