"""Charts that are measured together have labels that differ where the charts do."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from curvature.charts.chart import Parameterization
from curvature.charts.gauges import gauge_label

__all__ = ["distinct"]


def distinct(charts: Sequence[Parameterization]) -> list[Parameterization]:
    """Number the charts that have the label of another one before them: no table can tell them apart otherwise.

    A label does not hold everything: two gauges that training has reached are both ``checkpoint``, two mappings of
    scales are both ``given``, and a stretch is written with six digits.

    Parameters
    ----------
    charts
        Charts that are measured together; not changed.

    Returns
    -------
    list of Parameterization
        In the same order. A chart that is there twice keeps one label.

    Examples
    --------
    >>> from curvature.charts import Standard, WeightNorm
    >>> [chart.gauge for chart in distinct([WeightNorm(stretch=3.0), WeightNorm(stretch=3.0000001), Standard()])]
    ['stretch=3', 'stretch=3, no. 2', '-']
    """
    kinds: dict[str, list[Parameterization]] = {}  # by label, each different chart once
    numbered: list[Parameterization] = []
    for chart in charts:
        alike = kinds.setdefault(chart.label, [])
        number = next((k for k, other in enumerate(alike) if _same(chart, other)), len(alike))
        if number == len(alike):
            alike.append(chart)
        if number:
            chart = copy.copy(chart)
            chart.gauge = gauge_label(chart.gauge, f"no. {number + 1}")
        numbered.append(chart)
    return numbered


def _same(first: object, second: object) -> bool:
    """Whether two charts, or two of their values, are equal for certain: functions only if they are one."""
    if first is second:
        return True
    if isinstance(first, int | float) and isinstance(second, int | float):
        return first == second
    if type(first) is not type(second):
        return False
    if isinstance(first, Parameterization):
        return _same(vars(first), vars(second))
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return (first.dtype, first.device) == (second.dtype, second.device) and torch.equal(first, second)
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    return isinstance(first, str | frozenset) and first == second
