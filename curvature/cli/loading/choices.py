"""Losses and charts by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from curvature.charts import Parameterization, WeightNorm
from curvature.charts.registry import CHARTS, NamedChart
from curvature.cli.loading.code import find
from curvature.cli.wording import Say, choice
from curvature.errors import ConfigurationError
from curvature.models import Problem, losses, nearest
from curvature.models.losses import Loss, resolve_loss

__all__ = ["at_nearest", "build_charts", "chosen_charts", "load_loss"]

GAUGES = ("canonical", "paper", "checkpoint")


def load_loss(spec: str, say: Say = lambda _: None) -> Loss:
    """Load a loss by its name.

    Parameters
    ----------
    spec
        A name of ``curvature.models.losses.LOSSES``, also with ``-sum`` at its end, ``model`` for the loss that the
        model returns, or ``package.module:function``: a function of the output and the target of one example that
        returns a scalar.
    say
        Receives a message about code that is imported or executed.

    Returns
    -------
    Loss
        The loss.

    Raises
    ------
    ConfigurationError
        If the name is unknown, or is that of a class.
    InputError
        If the module cannot be imported or does not contain the function.
    """
    if ":" not in spec:
        known = {name: name for name in (*losses.LOSSES, "model")}
        return resolve_loss(spec if spec.endswith("-sum") else choice(spec, known, "loss"))
    function = find(spec, "loss", f"{', '.join(losses.LOSSES)}, or package.module:function", say)
    if isinstance(function, type):
        raise ConfigurationError(
            f"{spec} is a class. Name a function loss(output, target) for one example, or one of "
            f"{', '.join(losses.LOSSES)}."
        )
    return resolve_loss(function)


def chosen_charts(
    charts: Sequence[str], gauges: Sequence[str], model_chart: Parameterization, *, seed: int = 0
) -> list[Parameterization]:
    """Build the charts that were chosen; the chart of the model if none was.

    Parameters
    ----------
    charts, gauges, seed
        As for :func:`build_charts`; a gauge alone is one of weight normalization.
    model_chart
        Chart of the model.

    Returns
    -------
    list of Parameterization
        At least one.
    """
    if not (charts or gauges):
        return [model_chart]
    return build_charts(charts or ("weight-norm",), gauges, model_chart, seed=seed)


def build_charts(
    charts: Sequence[str], gauges: Sequence[str], model_chart: Parameterization | None = None, *, seed: int = 0
) -> list[Parameterization]:
    """Build charts by name; charts of weight normalization once for each gauge.

    Parameters
    ----------
    charts
        Names of ``curvature.charts.registry.CHARTS``.
    gauges
        ``canonical``, ``paper``, ``checkpoint``, or a stretch as a number.
    model_chart
        Chart of the model, for the gauge ``checkpoint``.
    seed
        Draws the directions of the placebo.

    Returns
    -------
    list of Parameterization
        In the order of the names, then of the gauges.

    Raises
    ------
    ConfigurationError
        If a name is unknown, or a gauge does not exist for these charts and this model.
    """
    for gauge in gauges:
        _stretch(gauge)
    kinds: list[tuple[str, NamedChart]] = [(name, choice(name, CHARTS, "chart")) for name in charts]
    if gauges and not any(kind.default_gauge for _, kind in kinds):
        raise ConfigurationError("--gauge applies to weight normalization only: add --chart weight-norm.")
    if "checkpoint" in gauges:
        _checkpoint_chart(model_chart)
    return [chart for name, kind in kinds for chart in _in_gauges(name, kind, gauges, model_chart, seed)]


def at_nearest(problem: Problem, charts: Sequence[Parameterization]) -> Problem:
    """Move a problem to the nearest weights that each of the charts can represent, one chart after the other.

    Parameters
    ----------
    problem
        Model, loss and data at a point.
    charts
        Those that are to represent the weights.

    Returns
    -------
    Problem
        With the chart that it had, and a note for each move.
    """
    for chart in charts:
        problem = replace(nearest(problem, chart), chart=problem.chart)
    return problem


def _in_gauges(
    name: str, kind: NamedChart, gauges: Sequence[str], model_chart: Parameterization | None, seed: int
) -> list[Parameterization]:
    """Build one parameterization, once for each gauge that it has."""
    options = {"seed": seed} if kind.seeded else {}
    if kind.default_gauge is None:
        return [kind.build(**options)]
    usable = [gauge for gauge in gauges or [kind.default_gauge] if gauge != "checkpoint" or kind.from_module]
    if not usable:
        raise ConfigurationError(
            f"the chart {name!r} has no gauge checkpoint. Use --gauge {kind.default_gauge} or a stretch."
        )
    return [
        _checkpoint_chart(model_chart) if gauge == "checkpoint" else kind.build(**_gauge_option(gauge), **options)
        for gauge in usable
    ]


def _gauge_option(gauge: str) -> dict[str, str | float]:
    stretch = _stretch(gauge)
    return {"gauge": gauge} if stretch is None else {"stretch": stretch}


def _checkpoint_chart(model_chart: Parameterization | None) -> Parameterization:
    whole = None if model_chart is None else model_chart.unfrozen
    if model_chart is not None and isinstance(whole, WeightNorm) and whole.v is not None:
        return model_chart
    raise ConfigurationError(
        "--gauge checkpoint takes g and v from a weight-normalized model, and this model is not weight-normalized. Use "
        "canonical, paper, or a stretch ||v|| / |g|, e.g. --gauge 3."
    )


def _stretch(gauge: str) -> float | None:
    """Stretch that a gauge names; None for the gauges with a name."""
    if gauge in GAUGES:
        return None
    try:
        stretch = float(gauge.removeprefix("stretch="))
    except ValueError:
        stretch = math.nan
    if not (math.isfinite(stretch) and stretch > 0):
        raise ConfigurationError(
            f"gauge {gauge!r} is unknown; choose {', '.join(GAUGES)}, or a stretch ||v|| / |g|: a positive number, "
            "e.g. 3."
        )
    return stretch
