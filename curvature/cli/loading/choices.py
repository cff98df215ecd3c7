"""Losses and charts by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from curvature.charts import Parameterization, WeightNorm
from curvature.charts.distinct import distinct
from curvature.charts.per_weight import as_matrix
from curvature.charts.registry import CHARTS, NamedChart
from curvature.cli.loading.code import find
from curvature.cli.wording import Say, choice
from curvature.errors import ConfigurationError
from curvature.layout import Layout
from curvature.models import Problem, losses, nearest
from curvature.models.losses import Loss, resolve_loss

__all__ = ["at_nearest", "build_charts", "chosen_charts", "gives_rank", "load_loss"]

GAUGES = ("canonical", "paper", "checkpoint")
_RANK = "rank="
_NORMALIZED = "weight normalization only: add --chart weight-norm"


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
    charts: Sequence[str], gauges: Sequence[str], model_chart: Parameterization, layout: Layout, *, seed: int = 0
) -> list[Parameterization]:
    """Build the charts that were chosen; the chart of the model if none was.

    Parameters
    ----------
    charts, gauges, layout, seed
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
    return build_charts(charts or ("weight-norm",), gauges, model_chart, layout, seed=seed)


def build_charts(
    charts: Sequence[str],
    gauges: Sequence[str],
    model_chart: Parameterization | None = None,
    layout: Layout | None = None,
    *,
    seed: int = 0,
) -> list[Parameterization]:
    """Build charts by name; charts of weight normalization and of low rank once for each of their gauges.

    Parameters
    ----------
    charts
        Names of ``curvature.charts.registry.CHARTS``.
    gauges
        ``canonical``, ``paper``, ``checkpoint``, a stretch as a number, or ``rank=4`` for charts of low rank.
    model_chart
        Chart of the model, for the gauge ``checkpoint``.
    layout
        The weights of the model, which limit the rank.
    seed
        Of the charts that are random. It is that of the whole run, so their gauges do not name it.

    Returns
    -------
    list of Parameterization
        In the order of the names, then of the gauges; different ones of one label are numbered.

    Raises
    ------
    ConfigurationError
        If a name is unknown, or a gauge does not exist for these charts and this model.
    """
    for gauge in gauges:
        _gauge_option(gauge)
        if layout is not None and gives_rank(gauge):
            _refuse_large_rank(_rank(gauge), layout)
    kinds: list[tuple[str, NamedChart]] = [(name, choice(name, CHARTS, "chart")) for name in charts]
    for gauge in gauges:
        if not any(_has_gauge(kind, gauge) for _, kind in kinds):
            advice = "low-rank adapters only: add --chart lora" if gives_rank(gauge) else _NORMALIZED
            raise ConfigurationError(f"--gauge {gauge} applies to {advice}.")
    if "checkpoint" in gauges:
        _checkpoint_chart(model_chart)
    return distinct([chart for name, kind in kinds for chart in _in_gauges(name, kind, gauges, model_chart, seed)])


def gives_rank(gauge: str) -> bool:
    """Whether a gauge is the rank of low-rank adapters, and not one of weight normalization.

    Parameters
    ----------
    gauge
        As it was typed.

    Returns
    -------
    bool
        True for ``rank=4``.
    """
    return gauge.startswith(_RANK)


def _has_gauge(kind: NamedChart, gauge: str) -> bool:
    return kind.ranked if gives_rank(gauge) else kind.default_gauge is not None


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
    default = [] if kind.default_gauge is None else [kind.default_gauge]
    own = [gauge for gauge in gauges if _has_gauge(kind, gauge)] or default
    if not own:
        return [_built(kind, seed)]
    usable = [gauge for gauge in own if gauge != "checkpoint" or kind.from_module]
    if not usable:
        raise ConfigurationError(
            f"the chart {name!r} has no gauge checkpoint. Use --gauge {kind.default_gauge} or a stretch."
        )
    return [
        _checkpoint_chart(model_chart) if gauge == "checkpoint" else _built(kind, seed, **_gauge_option(gauge))
        for gauge in usable
    ]


def _built(kind: NamedChart, seed: int, **options: Any) -> Parameterization:
    """Build a chart at the seed of the run, without naming it: runs of several seeds are compared by their gauges."""
    if not kind.seeded:
        return kind.build(**options)
    chart = kind.build(**options, seed=seed)
    chart.gauge = kind.build(**options).gauge
    return chart


def _gauge_option(gauge: str) -> dict[str, str | float | int]:
    """The argument of a parameterization that a gauge names."""
    if gives_rank(gauge):
        return {"rank": _rank(gauge)}
    stretch = _stretch(gauge)
    return {"gauge": gauge} if stretch is None else {"stretch": stretch}


def _rank(gauge: str) -> int:
    try:
        rank = int(gauge.removeprefix(_RANK))
    except ValueError:
        rank = 0
    if rank < 1:
        raise ConfigurationError(f"gauge {gauge!r}: the rank must be a positive whole number, e.g. rank=4.")
    return rank


def _refuse_large_rank(rank: int, layout: Layout) -> None:
    """Refuse a rank that no weight can have: a product of a lower rank is any matrix already, and coordinates cost."""
    matrices = [as_matrix(entry) for entry in layout.entries if entry.normalized]
    side = max((min(matrix.num_rows, matrix.numel // matrix.num_rows) for matrix in matrices), default=rank)
    if rank > side:
        raise ConfigurationError(
            f"--gauge rank={rank}: rank {rank} exceeds the smaller side of every layer ({side}): use at most {side}."
        )


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
            f"gauge {gauge!r} is unknown; choose {', '.join(GAUGES)}, a stretch ||v|| / |g|: a positive number, e.g. "
            "3, or for lora and dora a rank, e.g. rank=4."
        )
    return stretch
