r"""A constant factor for each block of weights: the scalings in which wide networks are studied."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.charts.chart import Chart, Parameterization
from curvature.charts.linear import MultiplierChart
from curvature.charts.rows import refuse_not_positive
from curvature.errors import ConfigurationError
from curvature.layout import Entry, Layout

__all__ = ["BlockScale"]


class BlockScale(Parameterization):
    r"""Weights with a constant factor per block, $W = c\, \theta$, so $K = c^2 I$ on each block.

    Parameters
    ----------
    scale
        ``"ntk"``: $c = 1 / \sqrt{\text{fan-in}}$ for matrices, 1 for vectors (Jacot et al. 2018, arXiv:1806.07572).
        ``"mup"``: maximal update parametrization for gradient descent (Yang & Hu 2021, arXiv:2011.14522; table 9 of
        arXiv:2203.03466): $\sqrt{\text{fan-out}}$ for the first matrix and for vectors, $1 / \sqrt{\text{fan-in}}$ for
        the last matrix, 1 between. Or the factors by a name, a layer, the last part of a name, or a regular expression,
        of which the first that matches counts; 1 where none does.

    Notes
    -----
    First and last are in the order of the parameters. For a model in which they are not the layers of the input and of
    the output, give the factors.

    Examples
    --------
    >>> BlockScale("ntk"), BlockScale({"0.weight": 2.0, "bias": 0.1})
    (BlockScale('ntk'), BlockScale('0.weight=2, bias=0.1'))
    """

    name = "block-scale"

    def __init__(self, scale: str | Mapping[str, float]):
        self.scale = scale
        if isinstance(scale, str):
            if scale not in ("ntk", "mup"):
                raise ConfigurationError(f"scale must be 'ntk', 'mup' or factors by name, got {scale!r}.")
            self.gauge = scale
            return
        for pattern, factor in scale.items():
            refuse_not_positive(factor, f"the factor of {pattern!r}")
        self.gauge = ", ".join(f"{pattern}={factor:g}" for pattern, factor in scale.items())

    def at(self, layout: Layout, weights: Float[Tensor, "weights"]) -> Chart:
        """Build the chart of scaled blocks."""
        factors = self._factors(layout)
        multipliers = [torch.full_like(weights[span], factors.get(entry.name, 1.0)) for entry, span in layout.pairs()]
        return MultiplierChart(self, layout, weights, torch.cat(multipliers))

    def _factors(self, layout: Layout) -> dict[str, float]:
        """Factor of each parameter by name."""
        if isinstance(self.scale, str):
            matrices = [entry.name for entry in layout.entries if len(entry.shape) > 1]
            rule = _ntk if self.scale == "ntk" else _mup
            return {entry.name: rule(entry, matrices) for entry in layout.entries}
        factors: dict[str, float] = {}
        for pattern, factor in self.scale.items():
            for name in layout.named(pattern):
                factors.setdefault(name, factor)
        return factors


def _fans(entry: Entry) -> tuple[int, int]:
    """Fan-in and fan-out of a matrix; of a convolution with its kernel, the number of inputs of one output."""
    fan_out = entry.shape[entry.neuron_axis or 0]
    return entry.numel // fan_out, fan_out


def _ntk(entry: Entry, matrices: list[str]) -> float:
    return _fans(entry)[0] ** -0.5 if entry.name in matrices else 1.0


def _mup(entry: Entry, matrices: list[str]) -> float:
    if entry.name not in matrices:
        return max(1, entry.numel) ** 0.5
    fan_in, fan_out = _fans(entry)
    if entry.name == matrices[-1]:  # also where it is the first: its outputs do not grow with the width
        return fan_in**-0.5
    return fan_out**0.5 if entry.name == matrices[0] else 1.0
