"""Batch normalization at frozen statistics: an affine rescaling of each row, hence a chart like any other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.charts.chart import Chart, Parameterization
from curvature.errors import ConfigurationError
from curvature.layout import Entry, Layout

__all__ = ["FrozenBatchNorm", "Statistics", "fold", "scale_name", "with_scales"]


@dataclass(frozen=True, eq=False)
class Statistics:
    r"""Mean and deviation $\sqrt{\text{variance} + \epsilon}$ of one layer's $Wa$ per output row, ``(rows,)`` each.

    Taken before any bias is added; ``weight`` and ``bias`` are the layer's entries.
    """

    weight: str
    bias: str
    mean: Float[Tensor, "rows"]
    deviation: Float[Tensor, "rows"]


def scale_name(weight: str) -> str:
    r"""Name the coordinates $\gamma$ that batch normalization adds to a weight.

    Parameters
    ----------
    weight
        Name of the weight.

    Returns
    -------
    str
        The same name, followed by ``".gamma"``.
    """
    return f"{weight}.gamma"


class FrozenBatchNorm(Parameterization):
    r"""Batch normalization with the statistics frozen, as in eval mode.

    $w = \frac\gamma\sigma \hat w$ and $b = \beta - \frac\gamma\sigma \mu$. Per neuron the coordinates are $\hat w$
    (under the weight's own name), $\gamma$ (under ``"<weight>.gamma"``) and $\beta$ (under the bias's name), so
    $K = \frac{\gamma^2}{\sigma^2} I_w + I_b + \frac{1}{\sigma^2} (\hat w, -\mu)(\hat w, -\mu)^T$, with one null
    direction. This is *not* what training with batch statistics follows: there $\mu$ and $\sigma$ move with the
    weights.

    Parameters
    ----------
    coordinates
        The point, in the order of :attr:`layout`: the weights' own, then every $\gamma$.
    statistics
        One for each normalized weight.
    """

    name = "batch-norm"
    gauge = "population statistics, frozen"

    def __init__(self, coordinates: Float[Tensor, "dim"], statistics: Mapping[str, Statistics]):
        self.coordinates, self.statistics = coordinates, dict(statistics)

    def at(self, layout: Layout, weights: Float[Tensor, "weights"]) -> Chart:
        """Build the chart at weights that its coordinates reproduce."""
        chart = _FrozenBatchNormChart(self, layout)
        error = torch.linalg.vector_norm(chart.to_weights(chart.coordinates) - weights)
        if not error <= 1e3 * torch.finfo(weights.dtype).eps * torch.linalg.vector_norm(weights):
            raise ConfigurationError(
                "the coordinates and statistics of batch-norm do not reproduce the weights. Use the weights that they "
                "were computed at."
            )
        return chart


def with_scales(layout: Layout, weights: list[str]) -> Layout:
    r"""Append one $\gamma$ per row of some weights to a layout.

    Parameters
    ----------
    layout
        The layout of the weights.
    weights
        Names of the normalized weights.

    Returns
    -------
    Layout
        The entries of the weights, then those of the $\gamma$.
    """
    entries = {entry.name: entry for entry in layout.entries}
    scales = [Entry(scale_name(name), (entries[name].num_rows,), entries[name].layer, 0) for name in weights]
    return Layout((*layout.entries, *scales))


def fold(
    named: Mapping[str, Float[Tensor, "..."]], statistics: Mapping[str, Statistics]
) -> dict[str, Float[Tensor, "..."]]:
    r"""Compute the weights that batch normalization at fixed statistics amounts to; differentiable.

    Parameters
    ----------
    named
        The coordinates by name; a weight without its $\gamma$ is normalized by the mean only.
    statistics
        Mean and deviation of each normalized weight.

    Returns
    -------
    dict
        The weights by name, without the $\gamma$.
    """
    folded = {name: part for name, part in named.items() if not name.endswith(scale_name(""))}
    for layer in statistics.values():
        weight, scale = named[layer.weight], named.get(scale_name(layer.weight))
        if scale is None:
            folded[layer.bias] = named[layer.bias] - layer.mean
            continue
        factor = scale / layer.deviation
        folded[layer.weight] = factor.view(-1, *[1] * (weight.ndim - 1)) * weight
        folded[layer.bias] = named[layer.bias] - factor * layer.mean
    return folded


class _FrozenBatchNormChart(Chart):
    """Bilinear in ``(w, gamma)``; derivatives by ``torch.func``."""

    def __init__(self, parameterization: FrozenBatchNorm, layout: Layout):
        self.parameterization = parameterization
        self.weight_layout = layout
        self.name, self.gauge = parameterization.name, parameterization.gauge
        self.layout = with_scales(layout, list(parameterization.statistics))
        self.coordinates = parameterization.coordinates

    def affine_in(self, names: Iterable[str]) -> bool:
        moving = set(names)
        return not any({weight, scale_name(weight)} <= moving for weight in self.parameterization.statistics)

    def moved(self, coordinates: Tensor) -> Parameterization:
        return FrozenBatchNorm(coordinates.detach().clone(), self.parameterization.statistics)

    def to_weights(self, coordinates: Tensor) -> Tensor:
        named = fold(self.layout.unflatten(coordinates), self.parameterization.statistics)
        return torch.cat([named[entry.name].reshape(-1) for entry in self.weight_layout.entries])
