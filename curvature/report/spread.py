"""Median and range: many numbers, one per seed or neuron, as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from curvature.records import Quantity
from curvature.studies.evidence import paired_interval

__all__ = ["Mean", "Spread", "defined", "efficiency_mean", "grouped", "mean_with_interval", "quartiles", "spread"]

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Spread:
    """Median and range over seeds of one number, and the worst status among them.

    Attributes
    ----------
    median, low, high
        NaN where no seed has a number.
    count
        How many numbers entered.
    status
        As in :class:`~curvature.records.Quantity`.
    affected
        How many have that status.
    """

    median: float
    low: float
    high: float
    count: int
    status: str = "resolved"
    affected: int = 0


@dataclass(frozen=True)
class Mean:
    """Mean over seeds of one number, with its 95 % interval.

    Attributes
    ----------
    mean, low, high
        NaN where no seed has a number; the interval is NaN below two numbers.
    count
        How many numbers entered.
    """

    mean: float
    low: float
    high: float
    count: int


def mean_with_interval(values: Iterable[float], *, geometric: bool = False, highest: float = math.inf) -> Mean:
    """Mean of the finite values with Student's 95 % interval.

    Parameters
    ----------
    values
        One per seed.
    geometric
        Of the logarithm: for ratios, which must not be negative. One that is zero makes the mean zero, without an
        interval.
    highest
        Largest possible value: the interval is cut there.

    Returns
    -------
    Mean
        Of the values themselves, also if it is geometric.

    Examples
    --------
    >>> mean_with_interval([1.0, 4.0, math.nan], geometric=True).mean
    2.0
    """
    finite = [value for value in values if math.isfinite(value)]
    if geometric and 0.0 in finite:
        return Mean(0.0, math.nan, math.nan, len(finite))
    numbers = [math.log(value) for value in finite] if geometric else finite
    ends = paired_interval(numbers) if len(numbers) > 1 else (math.nan, math.nan)
    three = [float(np.mean(numbers)) if numbers else math.nan, *ends]
    mean, low, high = (min(value, highest) for value in (map(math.exp, three) if geometric else three))
    return Mean(mean, low, high, len(numbers))


def efficiency_mean(values: Iterable[float]) -> Mean:
    """Mean of the efficiency of a step, at most 1: geometric, with its 95 % interval, which is cut at 1.

    Parameters
    ----------
    values
        One per seed.

    Returns
    -------
    Mean
        Of those that are finite.

    Examples
    --------
    >>> mean = efficiency_mean([0.25, 1.0])
    >>> mean.mean, mean.high
    (0.5, 1.0)
    """
    return mean_with_interval(values, geometric=True, highest=1.0)


def spread(quantities: Iterable[Quantity]) -> Spread:
    """Median and range of the values there are.

    Parameters
    ----------
    quantities
        One per seed.

    Returns
    -------
    Spread
        A median that contains a lower bound is itself a lower bound.

    Examples
    --------
    >>> spread([Quantity(1.0), Quantity(4.0, "lower_bound"), Quantity(2.0)])
    Spread(median=2.0, low=1.0, high=4.0, count=3, status='lower_bound', affected=1)
    """
    quantities = list(quantities)
    known = [q for q in quantities if q.has_value and math.isfinite(q.value)]
    if not known:
        indefinite = quantities and all(q.status == "indefinite" for q in quantities)
        return Spread(math.nan, math.nan, math.nan, 0, "indefinite" if indefinite else "undefined", len(quantities))
    values = [q.value for q in known]
    counts = {status: sum(q.status == status for q in known) for status in ("unresolved", "lower_bound")}
    status, affected = next(((name, number) for name, number in counts.items() if number), ("resolved", 0))
    return Spread(float(np.median(values)), min(values), max(values), len(values), status, affected)


def defined(value: float) -> Quantity:
    """A number as a quantity: undefined where it is not finite.

    Parameters
    ----------
    value
        Any number.

    Returns
    -------
    Quantity
        Resolved or undefined.
    """
    return Quantity(value) if math.isfinite(value) else Quantity(value, "undefined")


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the finite values.

    Parameters
    ----------
    values
        One per neuron.

    Returns
    -------
    dict
        ``median``, ``lower_quartile`` and ``upper_quartile``; NaN where no value is finite.
    """
    finite = [value for value in values if math.isfinite(value)]
    low, median, high = np.quantile(finite, [0.25, 0.5, 0.75]).tolist() if finite else [math.nan] * 3
    return {"median": median, "lower_quartile": low, "upper_quartile": high}


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Lists of items by key.

    Parameters
    ----------
    items
        What to sort into lists.
    key
        Computes the key of one item.

    Returns
    -------
    dict
        Keys and the items of each in order of appearance.
    """
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
