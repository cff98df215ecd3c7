r"""Parameterizations written weight by weight: a few tensors in the place of each chosen weight.

A subclass of :class:`PerWeight` says which *parts* a weight has and how they make it: ``W = diag(s) V`` has the parts
``s`` and ``V``. Parts may be frozen: they shape the map, but are not coordinates. All derivatives follow by
``torch.func``; a subclass gives closed forms where they are short.
"""

from __future__ import annotations

import copy
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from curvature.arrays import Bool, Float, Num
from curvature.charts.chart import Chart, Parameterization
from curvature.charts.derivatives import derivative_along
from curvature.charts.gauges import gauge_label
from curvature.charts.linear import Standard
from curvature.charts.metrics import DenseMetric, WeightMetric
from curvature.errors import ConfigurationError, InputError
from curvature.layout import Entry, Layout

__all__ = ["LocalMap", "Parts", "PerWeight", "PerWeightChart", "as_matrix"]

Parts = Mapping[str, Tensor]


class PerWeight(Parameterization):
    r"""A parameterization written weight by weight; weights that it does not choose are coordinates themselves.

    Subclasses define :meth:`parts` and :meth:`weight`, and name the parts: ``part_names`` in the order of the
    coordinates, ``constant_names`` of those that never are, ``affine_parts`` of those in which a weight is affine.

    Parameters
    ----------
    layers
        Regular expression: only the weights whose name matches.
    frozen
        Names of the parts that are not coordinates.
    values
        The parts of each weight by name, where they are known (a module that was loaded, a point that training has
        reached); only the weights named here are chosen then.
    """

    part_names: tuple[str, ...]
    constant_names: tuple[str, ...] = ()  # parts that are never trained
    affine_parts: tuple[str, ...] = ()  # parts in which a weight is affine, one at a time

    def __init__(
        self,
        *,
        layers: str | None = None,
        frozen: Iterable[str] = (),
        values: Mapping[str, Parts] | None = None,
    ):
        self.layers, self.values = layers, values
        self.frozen = frozenset(frozen)
        unknown = sorted(self.frozen - set(self.part_names))
        if unknown or self.frozen == set(self.part_names):
            wrong = f"no part {', '.join(map(repr, unknown))}" if unknown else "no part left that is trained"
            raise ConfigurationError(f"{self.name} has {wrong}: its parts are {', '.join(self.part_names)}.")
        self._rule = self.gauge  # without what follows, for another set of frozen parts
        self.gauge = self._gauge(self._rule if values is None else "checkpoint")

    def _gauge(self, rule: str) -> str:
        """The gauge with the frozen parts and the chosen layers, as records print it."""
        frozen = ", ".join(part for part in self.part_names if part in self.frozen)
        return gauge_label(rule, f"{frozen} frozen" if frozen else "", layers=self.layers)

    @abstractmethod
    def parts(self, entry: Entry, weight: Float[Tensor, "..."]) -> dict[str, Tensor]:
        """Choose the parts of this weight, in the gauge of this parameterization."""

    @abstractmethod
    def weight(self, entry: Entry, parts: Parts) -> Float[Tensor, "..."]:
        """Make the weight of its parts; differentiable by ``torch.func``."""

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the parts that are coordinates."""
        return tuple(name for name in self.part_names if name not in self.frozen)

    def affine_in(self, parts: Iterable[str]) -> bool:
        """Whether a weight is affine in these parts while the others stay at their value."""
        moving = set(parts)
        return len(moving) <= 1 and moving <= set(self.affine_parts)

    def check(self, entry: Entry, parts: Parts) -> None:
        """Refuse parts at which the map has no derivative."""

    def metric(self, local: LocalMap) -> WeightMetric:
        r"""Decompose $K = J J^T$ of one weight at a point."""
        return DenseMetric(local.jacobian())

    def second_order_product(self, local: LocalMap, gradient: Tensor, tangents: Tensor) -> Tensor:
        r"""Multiply $\sum_k r_k\, \partial^2 w_k / \partial\theta^2$ of one weight by a block ``(coordinates, K)``."""
        projected = torch.func.grad(lambda coordinates: local.weight(coordinates) @ gradient)
        return derivative_along(projected, local.coordinates, tangents)

    def project(self, entry: Entry, weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Move a weight to the nearest one that can be written so."""
        del entry
        return weight

    def neuron_axis(self, entry: Entry, name: str, part: Num[Tensor, "..."]) -> int | None:
        """Axis of a part whose index is the neuron; None if it belongs to no single one."""
        del name
        if part.shape == entry.shape:
            return entry.neuron_axis
        return 0 if part.shape == (entry.num_rows,) and entry.norm_axis == entry.neuron_axis else None

    def advice(self) -> str:
        """What to do about a weight that cannot be written so."""
        return (
            "Start from the nearest weights: cv.nearest(problem, chart), or --nearest of curvature spectrum and "
            "analyze, moves there and says how far."
        )

    def chooses(self, entry: Entry) -> bool:
        """Whether this weight is written by parts."""
        if self.values is not None:
            return entry.name in self.values
        return entry.normalized and (self.layers is None or re.search(self.layers, entry.name) is not None)

    def at(self, layout: Layout, weights: Float[Tensor, "weights"]) -> PerWeightChart:
        """Build the chart at these weights; weights that cannot be written so are an error that names one."""
        if not any(self.chooses(entry) for entry in layout.entries):
            raise ConfigurationError(
                f"{self.name} applies to no weight here"
                + (f" (layers={self.layers!r})" if self.layers else "")
                + f"; the parameters are {', '.join(layout.slices)}."
            )
        maps = {
            entry.name: LocalMap(self, entry, self._checked(entry, weights[span].view(entry.shape)))
            for entry, span in layout.pairs()
            if self.chooses(entry)
        }
        return PerWeightChart(self, layout, weights, maps)

    def nearest(self, layout: Layout, weights: Float[Tensor, "weights"]) -> Float[Tensor, "weights"]:
        moved = weights.clone()
        for entry, span in layout.pairs():
            if self.chooses(entry):
                moved[span] = self.project(entry, weights[span].view(entry.shape)).reshape(-1)
        return moved

    def restricted(self, layout: Layout) -> Parameterization:
        if not any(self.chooses(entry) for entry in layout.entries):
            return Standard()
        if self.values is None:
            return self
        return self.at_values({name: parts for name, parts in self.values.items() if name in layout.slices})

    def freeze(self, pattern: str) -> Parameterization:
        """Keep a part (or coordinates whose name matches) at its value: it is no longer a coordinate."""
        if pattern not in self.part_names:
            return super().freeze(pattern)
        part = copy.copy(self)
        part.gauge = self._rule
        PerWeight.__init__(part, layers=self.layers, frozen=self.frozen | {pattern}, values=self.values)
        return part

    def at_values(self, values: Mapping[str, Parts]) -> PerWeight:
        """The same parameterization with these parts of each weight."""
        moved = copy.copy(self)
        moved.values = values
        moved.gauge = self._gauge("checkpoint")
        return moved

    def _checked(self, entry: Entry, weight: Tensor) -> dict[str, Tensor]:
        """The parts of a weight; an error if they do not make it."""
        if self.values is None:
            parts = self.parts(entry, weight)
        else:
            parts = {name: part.detach().to(weight) for name, part in self.values[entry.name].items()}
            needed = {*self.part_names, *self.constant_names}
            if set(parts) != needed:
                raise ConfigurationError(
                    f"{self.name} needs {', '.join(sorted(needed))} of {entry.name!r}, got {', '.join(sorted(parts))}."
                )
        rebuilt = self.weight(entry, parts)
        distance = torch.linalg.vector_norm(rebuilt - weight)
        scale = torch.linalg.vector_norm(weight)
        if not distance <= 1e3 * torch.finfo(weight.dtype).eps * scale:
            if self.values is not None:
                raise ConfigurationError(
                    f"the parts given for {entry.name!r} do not reproduce its weights: they differ by "
                    f"{float(distance / scale):.2g} (relative)."
                )
            raise InputError(
                f"{self.name} cannot represent {entry.name!r}: the nearest weight that it makes differs by "
                f"{float(distance / scale):.2g} (relative). {self.advice()}"
            )
        self.check(entry, parts)
        return parts


@dataclass(frozen=True, eq=False)
class LocalMap:
    """The map of one weight at a point: from its trained parts, as one vector, to the weight, as another.

    Attributes
    ----------
    parameterization
        Whose map this is.
    entry
        The weight.
    parts
        Its parts at the point.
    """

    parameterization: PerWeight
    entry: Entry
    parts: Parts

    @property
    def coordinates(self) -> Float[Tensor, "coordinates"]:
        """The trained parts in one vector."""
        return torch.cat([self.parts[name].reshape(-1) for name in self.parameterization.trained])

    def parts_at(self, coordinates: Float[Tensor, "coordinates"]) -> dict[str, Tensor]:
        """The parts where the coordinates of this weight are these; frozen ones as they are."""
        parts = dict(self.parts)
        pieces = coordinates.split([parts[name].numel() for name in self.parameterization.trained])
        for name, piece in zip(self.parameterization.trained, pieces, strict=True):
            parts[name] = piece.view(parts[name].shape)
        return parts

    def weight(self, coordinates: Float[Tensor, "coordinates"]) -> Float[Tensor, "numel"]:
        """The weight at these coordinates; differentiable."""
        return self.parameterization.weight(self.entry, self.parts_at(coordinates)).reshape(-1)

    def push(self, tangents: Float[Tensor, "coordinates columns"]) -> Float[Tensor, "numel columns"]:
        """Push tangents forward, $J V$."""
        return derivative_along(self.weight, self.coordinates, tangents)

    def pull(self, cotangents: Float[Tensor, "numel columns"]) -> Float[Tensor, "coordinates columns"]:
        """Pull cotangents back, $J^T R$."""
        transposed = torch.func.vjp(self.weight, self.coordinates)[1]
        return torch.func.vmap(lambda cotangent: transposed(cotangent)[0], in_dims=1, out_dims=1)(cotangents)

    def second_order_product(
        self, gradient: Float[Tensor, "numel"], tangents: Float[Tensor, "coordinates columns"]
    ) -> Float[Tensor, "coordinates columns"]:
        r"""Multiply $\sum_k r_k\, \partial^2 w_k / \partial\theta^2$ by a block."""
        return self.parameterization.second_order_product(self, gradient, tangents)

    def jacobian(self) -> Float[Tensor, "numel coordinates"]:
        """Entries of $J$."""
        return torch.func.jacrev(self.weight)(self.coordinates)

    @cached_property
    def metric(self) -> WeightMetric:
        """The decomposition of $K$."""
        return self.parameterization.metric(self)


class PerWeightChart(Chart):
    """A parameterization written weight by weight, at a point.

    Coordinates are ordered parameter by parameter; the parts of a weight in the order of ``part_names``.

    Parameters
    ----------
    parameterization
        Whose chart this is.
    weight_layout, weights
        The point, in the weights.
    maps
        The map of each chosen weight, by name.
    """

    def __init__(
        self,
        parameterization: PerWeight,
        weight_layout: Layout,
        weights: Float[Tensor, "weights"],
        maps: Mapping[str, LocalMap],
    ):
        self.parameterization = parameterization
        self.name, self.gauge = parameterization.name, parameterization.gauge
        self.weight_layout, self.maps = weight_layout, maps
        entries: list[Entry] = []
        point: list[Tensor] = []
        for entry, span in weight_layout.pairs():
            local = maps.get(entry.name)
            if local is None:
                entries.append(entry)
                point.append(weights[span])
                continue
            for name in parameterization.trained:
                part = local.parts[name]
                axis = parameterization.neuron_axis(entry, name, part)
                entries.append(Entry(f"{entry.name}.{name}", tuple(part.shape), entry.layer, axis))
            point.append(local.coordinates)
        self.layout = Layout(tuple(entries))
        self.coordinates = torch.cat(point)
        self.flat = self.affine_in(self.layout.slices)

    def affine_in(self, names: Iterable[str]) -> bool:
        moving, trained = set(names), self.parameterization.trained
        return all(
            self.parameterization.affine_in(part for part in trained if f"{weight}.{part}" in moving)
            for weight in self.maps
        )

    @cached_property
    def _places(self) -> list[tuple[slice, slice, LocalMap | None]]:
        """Positions of each weight, those of its coordinates, and its map; None where the two are the same."""
        places, start = [], 0
        for entry, span in self.weight_layout.pairs():
            local = self.maps.get(entry.name)
            stop = start + (entry.numel if local is None else len(local.coordinates))
            places.append((span, slice(start, stop), local))
            start = stop
        return places

    @property
    def null_dim(self) -> int:
        """Coordinates less the rank of each weight."""
        return sum(len(local.coordinates) - local.metric.rank for local in self.maps.values())

    @property
    def kept_weights(self) -> Bool[Tensor, "weights"]:
        """Mask ``(P,)`` of the weights that are not written by parts."""
        pairs = self.weight_layout.pairs()
        return torch.cat([torch.full((entry.numel,), entry.name not in self.maps) for entry, _ in pairs])

    def moved(self, coordinates: Float[Tensor, "dim"]) -> Parameterization:
        point = coordinates.detach().clone()
        values = {
            local.entry.name: local.parts_at(point[place]) for _, place, local in self._places if local is not None
        }
        return self.parameterization.at_values(values)

    def to_weights(self, coordinates: Float[Tensor, "dim"]) -> Float[Tensor, "weights"]:
        return torch.cat(
            [
                coordinates[place] if local is None else local.weight(coordinates[place])
                for _, place, local in self._places
            ]
        )

    def push(self, tangents: Float[Tensor, "dim columns"]) -> Float[Tensor, "weights columns"]:
        return torch.cat(
            [tangents[place] if local is None else local.push(tangents[place]) for _, place, local in self._places]
        )

    def pull(self, cotangents: Float[Tensor, "weights columns"]) -> Float[Tensor, "dim columns"]:
        return torch.cat(
            [cotangents[span] if local is None else local.pull(cotangents[span]) for span, _, local in self._places]
        )

    def second_order_product(
        self, gradient: Float[Tensor, "weights"], tangents: Float[Tensor, "dim columns"]
    ) -> Float[Tensor, "dim columns"]:
        product = torch.zeros_like(tangents)
        for span, place, local in self._places:
            if local is not None:
                product[place] = local.second_order_product(gradient[span], tangents[place])
        return product

    def metric_root(self, block: Float[Tensor, "weights columns"]) -> Float[Tensor, "weights columns"]:
        return torch.cat(
            [block[span] if local is None else local.metric.root(block[span]) for span, _, local in self._places]
        )

    def horizontal(self, block: Float[Tensor, "weights columns"]) -> Float[Tensor, "dim columns"]:
        return self.pull(self._inverse_root(block))  # O^T = J^T K^(-1/2), since J = K^(1/2) O

    def horizontal_transpose(self, block: Float[Tensor, "dim columns"]) -> Float[Tensor, "weights columns"]:
        return self._inverse_root(self.push(block))

    def _inverse_root(self, block: Tensor) -> Tensor:
        pieces = [
            block[span] if local is None else local.metric.inverse_root(block[span]) for span, _, local in self._places
        ]
        return torch.cat(pieces)


def as_matrix(entry: Entry) -> Entry:
    """Take a weight as the matrix of its neurons: output channels by everything else.

    Parameters
    ----------
    entry
        The weight, whose rows for weight normalization may be others.

    Returns
    -------
    Entry
        The same tensor, whose rows are its neurons.
    """
    return replace(entry, norm_axis=entry.neuron_axis or 0)
