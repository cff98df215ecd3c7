"""Losses and charts by name."""

from __future__ import annotations

import math
from collections.abc import Sequence

from curvature.charts import Parameterization, WeightNorm
from curvature.charts.registry import CHARTS, NamedChart
from curvature.cli.loading.code import find
from curvature.cli.loading.wording import Say, choice
from curvature.errors import ConfigurationError
from curvature.models import losses
from curvature.models.losses import Loss, resolve_loss

__all__ = ["build_charts", "load_loss"]

GAUGES = ("canonical", "paper", "checkpoint")


def load_loss(spec: str, say: Say = lambda _: None) -> Loss:
    """Find a loss.

    Parameters
    ----------
    spec
        A name in :data:`curvature.models.losses.LOSSES`, or ``package.module:function`` for a callable
        ``loss(output, target)`` of one example.
    say
        Prints which file is executed.

    Returns
    -------
    Loss
        The loss.

    Raises
    ------
    ConfigurationError
        If the name is unknown, or is that of a class.
    """
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
    """Make parameterizations by name, once for each gauge that they have.

    Parameters
    ----------
    charts
        Names in :data:`curvature.charts.registry.CHARTS`.
    gauges
        ``"canonical"``, ``"paper"``, ``"checkpoint"`` or a stretch; empty for the default of each chart.
    own
        The chart of the module, for ``"checkpoint"``.
    seed
        Seed of the random directions of the placebo.

    Returns
    -------
    list
        In the order of the names.

    Raises
    ------
    ConfigurationError
        If a name or a gauge is unknown, or does not fit the model.
    """
    has_own = isinstance(own, WeightNorm) and own.v is not None
    for gauge in gauges:
        _stretch(gauge)
    kinds: list[tuple[str, NamedChart]] = [(name, choice(name, CHARTS, "chart")) for name in charts]
    if gauges and not any(kind.default_gauge for _, kind in kinds):
        raise ConfigurationError("--gauge is a choice within weight normalization: add --chart weight-norm.")
    if "checkpoint" in gauges and not has_own:
        raise ConfigurationError(
            "--gauge checkpoint is the gauge of a weight-normalized model, and this one is not; use canonical, paper "
            "or a stretch ||v|| / |g|, e.g. --gauge 3."
        )
    return [chart for name, kind in kinds for chart in _in_gauges(name, kind, gauges, own, seed)]


def _in_gauges(
    name: str, kind: NamedChart, gauges: Sequence[str], own: Parameterization | None, seed: int
) -> list[Parameterization]:
    """One parameterization, once for each gauge that it has."""
    options = {"seed": seed} if kind.seeded else {}
    if kind.default_gauge is None:
        return [kind.build(**options)]
    usable = [gauge for gauge in gauges or [kind.default_gauge] if gauge != "checkpoint" or kind.from_module]
    if not usable:
        raise ConfigurationError(
            f"the chart {name!r} has no checkpoint gauge; use --gauge {kind.default_gauge} or a stretch."
        )
    return [
        own if gauge == "checkpoint" and own is not None else kind.build(**_gauge_option(gauge), **options)
        for gauge in usable
    ]


def _gauge_option(gauge: str) -> dict[str, str | float]:
    stretch = _stretch(gauge)
    return {"gauge": gauge} if stretch is None else {"stretch": stretch}


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
