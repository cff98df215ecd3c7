"""What several arms of a study share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from curvature.charts import Parameterization, WeightNorm
from curvature.models import Problem

__all__ = ["Shared", "is_canonical"]

ResultT = TypeVar("ResultT")


def is_canonical(problem: Problem, chart: Parameterization) -> bool:
    """Whether the gauge that training reached is still the canonical one, up to rounding.

    Then $K = I$: whatever depends on $K$ alone is that of the weights, and is not computed again.

    Parameters
    ----------
    problem
        At the weights of the point.
    chart
        In which an arm is trained, at its values there.

    Returns
    -------
    bool
        As at the start of an arm with weight norm.
    """
    if type(chart) is not WeightNorm or chart.v is None:
        return False
    stretches = chart.at(problem.layout, problem.weights).stretches
    return bool(((stretches - 1).abs() <= 8 * torch.finfo(stretches.dtype).eps).all())


class Shared:
    """What the arms that are at one point share: each matrix, spectrum and step there is computed once."""

    def __init__(self) -> None:
        self._results: dict[tuple[Any, ...], Any] = {}

    def once(self, key: tuple[Any, ...], compute: Callable[[], ResultT]) -> ResultT:
        """Return what an earlier call with this key computed, else compute it.

        Parameters
        ----------
        key
            Says which result.
        compute
            Without arguments.

        Returns
        -------
        object
            The result.
        """
        if key not in self._results:
            self._results[key] = compute()
        return self._results[key]
