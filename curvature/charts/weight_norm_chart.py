"""Weight normalization at a point: closed forms for every product, a few passes over the block each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from curvature.arrays import Bool, Float
from curvature.charts.chart import Chart, Parameterization
from curvature.charts.rows import NormalizedRows
from curvature.charts.sweep import RowAction, RowMap, swept
from curvature.layout import Entry, Layout
from curvature.linalg.dense import mirrored

__all__ = ["WeightNormChart"]


class _Explicit(Protocol):
    """A parameterization that can be written at other explicit ``(v, g)``."""

    name: str
    gauge: str
    log_scale: bool

    def at_values(self, v: Mapping[str, Tensor], g: Mapping[str, Tensor]) -> Parameterization:
        """The same parameterization at these values, by name of the weight."""


class WeightNormChart(Chart):
    r"""Weight normalization of some weights of a layout at a point; the algebra of a row is :class:`NormalizedRows`.

    Coordinates are ordered parameter by parameter; ``g`` (one per row) then ``v``.

    Parameters
    ----------
    parameterization
        Whose chart this is.
    weight_layout, weights
        The point, in the weights.
    groups
        Rows of each normalized weight, by name.
    has_offset
        Whether the weights at the point may differ from ``g v / ||v||``; the difference is then added everywhere.
    """

    def __init__(
        self,
        parameterization: _Explicit,
        weight_layout: Layout,
        weights: Float[Tensor, "weights"],
        groups: Mapping[str, NormalizedRows],
        *,
        has_offset: bool = False,
    ):
        self.parameterization = parameterization
        self.name, self.gauge = parameterization.name, parameterization.gauge
        self.log_scale = parameterization.log_scale
        self.groups = groups
        self.weight_layout = weight_layout
        entries: list[Entry] = []
        point: list[Tensor] = []
        origin = torch.zeros_like(weights)
        for entry, span in weight_layout.pairs():
            if entry.name not in groups:
                entries.append(entry)
                point.append(weights[span])
                continue
            rows = groups[entry.name]
            neuron_axis = 0 if entry.norm_axis is not None and entry.norm_axis == entry.neuron_axis else None
            entries.append(Entry(f"{entry.name}.g", (entry.num_rows,), entry.layer, neuron_axis))
            entries.append(replace(entry, name=f"{entry.name}.v", normalized=False))
            point.append(rows.scale.log() if self.log_scale else rows.scale)
            point.append(entry.from_rows(rows.directions()))
            origin[span] = weights[span] - entry.from_rows(rows.weights())
        # Rounding apart, weight normalization passes through zero; only the placebo has an origin.
        self.origin = origin if has_offset else None
        self.layout = Layout(tuple(entries))
        self.coordinates = torch.cat(point)

    @property
    def null_dim(self) -> int:
        """One gauge direction per row; where ``g = 0`` the whole of ``v`` is null."""
        return sum(rows.null_dim for rows in self.groups.values())

    @property
    def kept_weights(self) -> Bool[Tensor, "weights"]:
        """Mask ``(P,)`` of the weights that are not normalized."""
        pairs = self.weight_layout.pairs()
        return torch.cat([torch.full((entry.numel,), entry.name not in self.groups) for entry, _ in pairs])

    def affine_in(self, names: Iterable[str]) -> bool:
        moving = set(names)  # w = g u is linear in g alone
        return not any(f"{name}.v" in moving or (self.log_scale and f"{name}.g" in moving) for name in self.groups)

    def moved(self, coordinates: Float[Tensor, "dim"]) -> Parameterization:
        directions, scales = {}, {}
        for entry, _ in self._normalized():
            g, v = self._split(coordinates.detach(), entry)
            scales[entry.name] = (g.exp() if self.log_scale else g).clone()
            directions[entry.name] = entry.from_rows(v).view(entry.shape).clone()
        return self.parameterization.at_values(directions, scales)

    @property
    def stretches(self) -> Float[Tensor, "rows"]:
        r"""$\|v\| / |g|$ of every normalized row."""
        return torch.cat([rows.length / rows.scale.abs() for rows in self.groups.values()])

    def squared_lengths(self, block: Float[Tensor, "dim"]) -> Float[Tensor, "rows"]:
        r"""$\|v\|^2$ of every normalized row, for coordinates ``(Q,)`` or for a gradient in them."""
        return torch.cat([self._split(block, entry)[1].square().sum(dim=1) for entry, _ in self._normalized()])

    def to_weights(self, coordinates: Float[Tensor, "dim"]) -> Float[Tensor, "weights"]:
        parts = []
        for entry in self.weight_layout.entries:
            if entry.name not in self.groups:
                parts.append(coordinates[self.layout.slices[entry.name]])
                continue
            g, v = self._split(coordinates, entry)
            scale = g.exp() if self.log_scale else g
            length = torch.linalg.vector_norm(v, dim=1)
            parts.append(entry.from_rows((scale / length)[:, None] * v))
        weights = torch.cat(parts)
        return weights if self.origin is None else weights + self.origin

    def linearize(
        self, coordinates: Float[Tensor, "dim"]
    ) -> tuple[Float[Tensor, "weights"], Callable[[Tensor], Tensor]]:
        parts = iter(coordinates.split(self._sizes[0]))
        pieces: list[Tensor] = []
        saved: list[tuple[Tensor, ...] | None] = []
        for entry in self.weight_layout.entries:
            if entry.name not in self.groups:
                pieces.append(next(parts))
                saved.append(None)
                continue
            g, v = next(parts), entry.rows(next(parts))
            scale = g.exp() if self.log_scale else g
            length = torch.linalg.vector_norm(v, dim=1)
            factor = scale / length
            pieces.append(entry.from_rows(factor[:, None] * v))
            saved.append((v, scale, length, factor))
        weights = torch.cat(pieces)
        return weights if self.origin is None else weights.add_(self.origin), lambda r: self._pull_at(saved, r)

    def _pull_at(self, saved: Sequence[tuple[Tensor, ...] | None], cotangent: Tensor) -> Tensor:
        """Per row ``r -> (u.r, (g / |v|) (r - u (u.r)))``, written with ``v`` to spare a pass for ``u``."""
        pieces = []
        for entry, rows, block in zip(self.weight_layout.entries, saved, cotangent.split(self._sizes[1]), strict=True):
            if rows is None:
                pieces.append(block)
                continue
            (v, scale, length, factor), part = rows, entry.rows(block)
            radial = torch.linalg.vecdot(part, v) / length
            across = factor[:, None] * torch.addcmul(part, v, (radial / length)[:, None], value=-1)
            pieces += [radial * scale if self.log_scale else radial, entry.from_rows(across)]
        return torch.cat(pieces)

    @cached_property
    def _sizes(self) -> tuple[list[int], list[int]]:
        """Lengths of the entries of the coordinates and of the weights."""
        coordinates, weights = ([entry.numel for entry in part.entries] for part in (self.layout, self.weight_layout))
        return coordinates, weights

    def _normalized(self) -> list[tuple[Entry, slice]]:
        return [(entry, span) for entry, span in self.weight_layout.pairs() if entry.name in self.groups]

    def _spans(self, entry: Entry) -> tuple[slice, slice]:
        """Positions of ``g`` and ``v`` of a normalized weight among the coordinates."""
        return self.layout.slices[f"{entry.name}.g"], self.layout.slices[f"{entry.name}.v"]

    def _split(self, block: Tensor, entry: Entry) -> tuple[Tensor, Tensor]:
        span_g, span_v = self._spans(entry)
        return block[span_g], entry.rows(block[span_v])

    def push(self, tangents: Float[Tensor, "dim columns"]) -> Float[Tensor, "weights columns"]:
        return self._to_weight_space(tangents, polar=False)

    def pull(self, cotangents: Float[Tensor, "weights columns"]) -> Float[Tensor, "dim columns"]:
        return self._to_coordinate_space(cotangents, polar=False)

    def horizontal(self, block: Float[Tensor, "weights columns"]) -> Float[Tensor, "dim columns"]:
        return self._to_coordinate_space(block, polar=True)

    def horizontal_transpose(self, block: Float[Tensor, "dim columns"]) -> Float[Tensor, "weights columns"]:
        return self._to_weight_space(block, polar=True)

    def _to_weight_space(self, block: Tensor, *, polar: bool) -> Tensor:
        """Multiply by ``J``, or by its polar factor."""
        mapped = _empty(self.weight_layout.dim, block)
        for entry, span in self.weight_layout.pairs():
            if entry.name not in self.groups:
                mapped[span] = block[self.layout.slices[entry.name]]
                continue
            g, v = self._split(block, entry)
            mapped[span] = entry.from_rows(self.groups[entry.name].push(g, v, polar=polar))
        return mapped

    def _to_coordinate_space(self, block: Tensor, *, polar: bool) -> Tensor:
        """Multiply by the transpose of ``J``, or of its polar factor."""
        mapped = _empty(self.dim, block)
        for entry, span in self.weight_layout.pairs():
            if entry.name not in self.groups:
                mapped[self.layout.slices[entry.name]] = block[span]
                continue
            span_g, span_v = self._spans(entry)
            mapped[span_g], v = self.groups[entry.name].pull(entry.rows(block[span]), polar=polar)
            mapped[span_v] = entry.from_rows(v)
        return mapped

    def metric_root(self, block: Float[Tensor, "weights columns"]) -> Float[Tensor, "weights columns"]:
        mapped = block.clone()
        for entry, span in self._normalized():
            mapped[span] = entry.from_rows(self.groups[entry.name].metric_root(entry.rows(block[span])))
        return mapped

    def second_order_product(
        self, gradient: Float[Tensor, "weights"], tangents: Float[Tensor, "dim columns"]
    ) -> Float[Tensor, "dim columns"]:
        product = torch.zeros_like(tangents)
        for entry, span in self._normalized():
            rows = self.groups[entry.name]
            span_g, span_v = self._spans(entry)
            g, v = rows.second_order_product(entry.rows(gradient[span]), *self._split(tangents, entry))
            product[span_g], product[span_v] = g, entry.from_rows(v)
        return product

    def pulled_back(
        self, matrix: Float[Tensor, "weights weights"], gradient: Float[Tensor, "weights"] | None = None
    ) -> Float[Tensor, "dim dim"]:
        maps = self._row_maps(effective=False)
        if maps is None:
            return super().pulled_back(matrix, gradient)
        result = swept(matrix, maps, self.dim)
        if gradient is not None:
            for entry, span in self._normalized():
                rows = self.groups[entry.name]
                radial, mixed, tangential = rows.second_order(entry.rows(gradient[span]))
                g, v = self._spans(entry)
                result[g, g].diagonal().add_(radial)
                result[g, v].unflatten(1, mixed.shape).diagonal(dim1=0, dim2=1).add_(mixed.T)
                _row_blocks(result[v, v], rows).add_(tangential.permute(1, 2, 0))
        return mirrored(result)

    def effective(
        self, matrix: Float[Tensor, "weights weights"], gradient: Float[Tensor, "weights"] | None = None
    ) -> Float[Tensor, "weights weights"]:
        maps = self._row_maps(effective=True)
        if maps is None:
            return super().effective(matrix, gradient)
        result = swept(matrix, maps, len(matrix))
        if gradient is not None:
            for entry, span in self._normalized():
                rows = self.groups[entry.name]
                bent = rows.horizontal_second_order(entry.rows(gradient[span]))
                _row_blocks(result[span, span], rows).add_(bent.permute(1, 2, 0))
        return mirrored(result)

    def _row_maps(self, *, effective: bool) -> list[RowMap] | None:
        """The map of :func:`swept`; None where the rows of a weight are not contiguous."""
        maps = []
        for entry, span in self.weight_layout.pairs():
            rows = self.groups.get(entry.name)
            if rows is None:
                maps.append(RowMap(span, span if effective else self.layout.slices[entry.name]))
                continue
            if entry.norm_axis not in (0, None):
                return None
            along, across = rows.multipliers(polar=False)
            if effective:
                along, across = along.abs(), across.abs()
                maps.append(RowMap(span, span, RowAction(rows.unit, across, along - across)))
            else:
                g, v = self._spans(entry)
                maps.append(RowMap(span, v, RowAction(rows.unit, across, -across, (g, along))))
        return maps


def _empty(dim: int, block: Tensor) -> Tensor:
    return torch.empty(dim, block.shape[1], dtype=block.dtype, device=block.device)


def _row_blocks(block: Tensor, rows: NormalizedRows) -> Tensor:
    """View of the diagonal blocks of each row with itself, ``(d, d, rows)``."""
    return block.unflatten(1, rows.unit.shape).unflatten(0, rows.unit.shape).diagonal(dim1=0, dim2=2)
