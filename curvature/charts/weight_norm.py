"""Weight normalization in closed form, at any gauge, and its placebo."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from curvature.charts.chart import Chart, Parameterization
from curvature.charts.rows import PAPER_SCALE, refuse_zero_rows, row_norms, row_values
from curvature.charts.sweep import RowMap, swept
from curvature.errors import ConfigurationError
from curvature.layout import Entry, Layout
from curvature.linalg.operator import mirrored

__all__ = ["Placebo", "WeightNorm"]


class WeightNorm(Parameterization):
    r"""Weight normalization, $w = g\, v / \|v\|$ per output row (Salimans & Kingma 2016, arXiv:1602.07868).

    With $u = v/\|v\|$, $M = I - u u^T$ and $\rho = (g/\|v\|)^2$ each row has
    $K = u u^T + \rho M$; the length $\|v\|$ is the *gauge*: it changes the curvature, not the function.

    Parameters
    ----------
    gauge
        ``"canonical"`` (what PyTorch's wrapper produces: $v = w$, $g = \|w\|$, so $K = I$; the default) or
        ``"paper"`` ($\|v\| = 0.05\sqrt{\text{fan-in}}$, the initialization of the paper).
    stretch
        $\|v\| / |g|$, dimensionless, 1 is canonical; one number or one tensor of row values per weight.
    v, g
        Explicit values by weight name; they must reproduce the weights they are used at.
    log_scale
        Optimize $s$ with $g = e^s$ instead of $g$; needs $g > 0$.
    layers
        Regular expression: normalize only the weights whose name matches.

    Coordinates are ordered parameter by parameter as in the module; ``g`` (one per row) then ``v``.

    Examples
    --------
    >>> WeightNorm(), WeightNorm(stretch=3.0), WeightNorm("paper", log_scale=True)
    (WeightNorm('canonical'), WeightNorm('stretch=3'), WeightNorm('paper, g = exp(s)'))
    """

    name = "weight-norm"
    _has_offset = False  # whether the chart need not pass through zero weights

    def __init__(
        self,
        gauge: str | None = None,
        *,
        stretch: float | Mapping[str, Tensor] | None = None,
        v: Mapping[str, Tensor] | None = None,
        g: Mapping[str, Tensor] | None = None,
        log_scale: bool = False,
        layers: str | None = None,
    ):
        if (v is None) != (g is None):
            raise ConfigurationError("an explicit gauge needs both v and g; got only one of them.")
        if sum(choice is not None for choice in (gauge, stretch, v)) > 1:
            raise ConfigurationError("choose one of gauge, stretch, or explicit v and g.")
        if gauge not in (None, "canonical", "paper"):
            raise ConfigurationError(
                f"gauge must be 'canonical' or 'paper' (or pass stretch=, or v= and g=), got {gauge!r}."
            )
        if isinstance(stretch, Tensor):
            if stretch.numel() != 1:
                raise ConfigurationError("stretch per row must be a mapping from weight names to row values.")
            stretch = float(stretch)
        if isinstance(stretch, int | float) and not (math.isfinite(stretch) and stretch > 0):
            raise ConfigurationError(f"stretch = ||v|| / |g| must be a positive number, got {stretch}.")
        self.stretch, self.v, self.g = stretch, v, g
        self.log_scale, self.layers = log_scale, layers
        self.rule = gauge or "canonical"
        if v is not None:
            self.gauge = "checkpoint"
        elif isinstance(stretch, Mapping):
            self.gauge = "stretch per row"
        else:
            self.gauge = self.rule if stretch is None else f"stretch={stretch:g}"
        if log_scale:
            self.gauge += ", g = exp(s)"

    def normalizes(self, entry: Entry) -> bool:
        """Whether this weight is written as ``g v / ||v||``."""
        chosen = entry.normalized and (self.layers is None or re.search(self.layers, entry.name) is not None)
        return chosen and (self.v is None or entry.name in self.v)

    def at(self, layout: Layout, weights: Tensor) -> Chart:
        """Build the chart at these weights; a zero row of ``v`` is an error that names it."""
        if not any(self.normalizes(entry) for entry in layout.entries):
            raise ConfigurationError(
                "weight normalization applies to no weight here"
                + (f" (layers={self.layers!r})" if self.layers else "")
                + f"; the parameters are {', '.join(layout.slices)}."
            )
        groups = {}
        for entry, where in layout.pairs():
            if self.normalizes(entry):
                groups[entry.name] = self._row_scales(entry, entry.rows(weights[where]))
        return _WeightNormChart(self, layout, weights, groups)

    def _row_scales(self, entry: Entry, rows: Tensor) -> _Rows:
        if self.v is not None:
            v, scale = self._explicit(entry, rows)
            length = row_norms(v)
            refuse_zero_rows(length, entry, "v of")
            unit = v / length[:, None]
            error = torch.linalg.vector_norm(scale[:, None] * unit - rows)
            if not self._has_offset and not error <= 1e3 * torch.finfo(rows.dtype).eps * torch.linalg.vector_norm(rows):
                raise ConfigurationError(f"the v and g given for {entry.name!r} do not reproduce its weights.")
        else:
            scale = row_norms(rows)
            refuse_zero_rows(scale, entry, "the weights of")
            unit = rows / scale[:, None]
            if isinstance(self.stretch, Mapping):
                length = scale * row_values(self.stretch, entry, rows, "stretch")
                refuse_zero_rows(length, entry, "the stretch of")
            elif self.stretch is not None:
                length = scale * self.stretch
            elif self.rule == "paper":
                length = torch.full_like(scale, PAPER_SCALE * math.sqrt(rows.shape[1]))
            else:
                length = scale
        if self.log_scale and (scale <= 0).any():
            row = int((scale <= 0).nonzero()[0])
            raise ConfigurationError(
                f"g = exp(s) needs positive g; row {row} of {entry.name!r} has g = {scale[row]:.3g}."
            )
        return _Rows(unit, scale, length)

    def _explicit(self, entry: Entry, rows: Tensor) -> tuple[Tensor, Tensor]:
        v, g = self.v[entry.name], self.g.get(entry.name)
        if g is None or tuple(v.shape) != entry.shape or g.numel() != len(rows):
            raise ConfigurationError(
                f"{entry.name!r} needs v of shape {entry.shape} and g with {len(rows)} entries, got "
                f"{tuple(v.shape)} and {None if g is None else tuple(g.shape)}."
            )
        return entry.rows(v.detach().to(rows).reshape(-1)), g.detach().to(rows).reshape(-1)


class Placebo(WeightNorm):
    r"""Weight normalization about *other* directions: the control for "``w`` is a special direction".

    Per row $w(g, v) = (w_0 - g_0 q) + g\, v/\|v\|$ with $v$ starting along a unit vector $q$ that has
    nothing to do with $w_0$: the same $g_0 = \|w_0\|$, $\|v\|$, hence the same $\rho$, and the same
    second derivatives, in random directions.

    Parameters
    ----------
    seed
        Seed of the random directions.
    directions
        Use these instead (one tensor of the weight's shape per name), e.g. top eigenvectors.
    v, g
        Explicit values by weight name (a placebo that was trained); the rest of the weights is the offset
        $w_0 - g_0 q$.
    name
        For records, where directions are given.
    **gauge
        As for :class:`WeightNorm`: ``gauge``, ``stretch``, ``log_scale``, ``layers``.
    """

    name = "placebo"
    _has_offset = True

    def __init__(
        self,
        gauge: str | None = None,
        *,
        seed: int = 0,
        directions: Mapping[str, Tensor] | None = None,
        name: str = "placebo",
        stretch: float | Mapping[str, Tensor] | None = None,
        v: Mapping[str, Tensor] | None = None,
        g: Mapping[str, Tensor] | None = None,
        log_scale: bool = False,
        layers: str | None = None,
    ):
        super().__init__(gauge, stretch=stretch, v=v, g=g, log_scale=log_scale, layers=layers)
        if v is not None and directions is not None:
            raise ConfigurationError("choose one of directions and explicit v and g: v is the direction.")
        self.seed, self.directions, self.name = seed, directions, name

    def at(self, layout: Layout, weights: Tensor) -> Chart:
        """Build the chart; the directions depend on the seed and the layout only."""
        chart = super().at(layout, weights)
        if self.v is not None:
            return chart
        generator = torch.Generator().manual_seed(self.seed)
        groups = {}
        for entry in layout.entries:
            if entry.name not in chart.groups:
                continue
            rows = chart.groups[entry.name]
            if self.directions is None:
                drawn = torch.randn(rows.unit.shape, generator=generator, dtype=torch.float64)
            else:
                given = self.directions.get(entry.name)
                if given is None or tuple(given.shape) != entry.shape:
                    raise ConfigurationError(
                        f"directions must hold a tensor of shape {entry.shape} for {entry.name!r}, got "
                        f"{None if given is None else tuple(given.shape)}."
                    )
                drawn = entry.rows(given.detach().reshape(-1))
            drawn = drawn.to(weights)
            lengths = row_norms(drawn)
            refuse_zero_rows(lengths, entry, "the direction of")
            groups[entry.name] = replace(rows, unit=drawn / lengths[:, None])
        return _WeightNormChart(self, layout, weights, groups)


@dataclass(frozen=True)
class _Rows:
    """The rows of one normalized weight: direction ``(rows, length)``, ``g`` and ``||v||`` ``(rows,)``."""

    unit: Tensor
    scale: Tensor
    length: Tensor


class _WeightNormChart(Chart):
    """Closed forms of weight normalization at a point; every product costs a few passes over the block.

    Per row, with ``r`` the weight gradient, ``u = v/||v||``, ``M = I - u u^T``, ``s = ||v||``:
    ``J (a, b) = a u + (g/s) M b``; second derivatives ``gg: 0``, ``gv: M r / s``,
    ``vv: -(g/s^2) [u (M r)^T + (M r) u^T + (u.r) M]``. With ``g = e^s'`` the first coordinate is rescaled by
    ``dg/ds' = g`` and gains the second derivative ``g (u.r)``.
    """

    def __init__(self, parameterization: WeightNorm, weight_layout: Layout, weights: Tensor, groups: dict[str, _Rows]):
        self.name, self.gauge = parameterization.name, parameterization.gauge
        self.log_scale = parameterization.log_scale
        self.groups = groups
        self.weight_layout = weight_layout
        entries, point = [], []
        origin = torch.zeros_like(weights)
        for entry, where in weight_layout.pairs():
            if entry.name not in groups:
                entries.append(entry)
                point.append(weights[where])
                continue
            rows = groups[entry.name]
            neuron_axis = 0 if entry.norm_axis is not None and entry.norm_axis == entry.neuron_axis else None
            entries.append(Entry(f"{entry.name}.g", (entry.num_rows,), entry.layer, neuron_axis))
            entries.append(replace(entry, name=f"{entry.name}.v", normalized=False))
            point.append(rows.scale.log() if self.log_scale else rows.scale)
            point.append(entry.from_rows(rows.length[:, None] * rows.unit))
            origin[where] = weights[where] - entry.from_rows(rows.scale[:, None] * rows.unit)
        # Rounding apart, weight normalization passes through zero; only the placebo has an origin.
        self.origin = origin if parameterization._has_offset else None
        self.layout = Layout(tuple(entries))
        self.coordinates = torch.cat(point)

    @property
    def null_dim(self) -> int:
        """One gauge direction per row; where ``g = 0`` the whole of ``v`` is null."""
        return sum(int(torch.where(rows.scale == 0, rows.unit.shape[1], 1).sum()) for rows in self.groups.values())

    def moved(self, coordinates: Tensor) -> Parameterization:
        directions, scales = {}, {}
        for entry in self.weight_layout.entries:
            if entry.name in self.groups:
                g, v = self._split(coordinates.detach(), entry)
                scales[entry.name] = (g.exp() if self.log_scale else g).clone()
                directions[entry.name] = entry.from_rows(v).view(entry.shape).clone()
        if self.origin is None:
            return WeightNorm(v=directions, g=scales, log_scale=self.log_scale)
        return Placebo(v=directions, g=scales, log_scale=self.log_scale, name=self.name)

    @property
    def stretches(self) -> Tensor:
        r"""$\|v\| / |g|$ of every normalized row."""
        return torch.cat([rows.length / rows.scale.abs() for rows in self.groups.values()])

    def squared_lengths(self, block: Tensor) -> Tensor:
        r"""$\|v\|^2$ of every normalized row, for coordinates ``(Q,)`` or for a gradient in them."""
        parts = [self._split(block, entry)[1] for entry in self.weight_layout.entries if entry.name in self.groups]
        return torch.cat([part.square().sum(dim=1) for part in parts])

    def to_weights(self, coordinates: Tensor) -> Tensor:
        parts = []
        for entry, _ in self.weight_layout.pairs():
            if entry.name not in self.groups:
                parts.append(coordinates[self.layout.slices[entry.name]])
                continue
            g, v = self._split(coordinates, entry)
            scale = g.exp() if self.log_scale else g
            length = torch.linalg.vector_norm(v, dim=1)
            parts.append(entry.from_rows((scale / length)[:, None] * v))
        weights = torch.cat(parts)
        return weights if self.origin is None else weights + self.origin

    def linearize(self, coordinates: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        parts = iter(coordinates.split(self._sizes[0]))
        pieces, rows = [], []
        for entry in self.weight_layout.entries:
            if entry.name not in self.groups:
                pieces.append(next(parts))
                rows.append(None)
                continue
            g, v = next(parts), entry.rows(next(parts))
            scale = g.exp() if self.log_scale else g
            length = torch.linalg.vector_norm(v, dim=1)
            factor = scale / length
            pieces.append(entry.from_rows(factor[:, None] * v))
            rows.append((v, scale, length, factor))
        weights = torch.cat(pieces)
        return weights if self.origin is None else weights.add_(self.origin), lambda r: self._pull_at(rows, r)

    def _pull_at(self, rows: Sequence[tuple[Tensor, ...] | None], cotangent: Tensor) -> Tensor:
        """Per row ``r -> (u.r, (g / |v|) (r - u (u.r)))``, written with ``v`` to spare a pass for ``u``."""
        pieces = []
        for entry, saved, block in zip(self.weight_layout.entries, rows, cotangent.split(self._sizes[1]), strict=True):
            if saved is None:
                pieces.append(block)
                continue
            (v, scale, length, factor), part = saved, entry.rows(block)
            radial = torch.linalg.vecdot(part, v) / length
            across = factor[:, None] * torch.addcmul(part, v, (radial / length)[:, None], value=-1)
            pieces += [radial * scale if self.log_scale else radial, entry.from_rows(across)]
        return torch.cat(pieces)

    @cached_property
    def _sizes(self) -> tuple[list[int], list[int]]:
        """Lengths of the entries of the coordinates and of the weights."""
        return tuple([entry.numel for entry in layout.entries] for layout in (self.layout, self.weight_layout))

    def _split(self, block: Tensor, entry: Entry) -> tuple[Tensor, Tensor]:
        g = block[self.layout.slices[f"{entry.name}.g"]]
        return g, entry.rows(block[self.layout.slices[f"{entry.name}.v"]])

    def _rate(self, rows: _Rows) -> Tensor:
        return rows.scale if self.log_scale else torch.ones_like(rows.scale)

    def _new(self, dim: int, block: Tensor) -> Tensor:
        return torch.empty(dim, block.shape[1], dtype=block.dtype, device=block.device)

    def _from_coordinates(self, block: Tensor, *, polar: bool) -> Tensor:
        """Per row ``(a, b) -> along * a u + across * M b``."""
        mapped = self._new(self.weight_layout.dim, block)
        for entry, where in self.weight_layout.pairs():
            if entry.name not in self.groups:
                mapped[where] = block[self.layout.slices[entry.name]]
                continue
            rows = self.groups[entry.name]
            along, across = self._multipliers(rows, polar)
            g, v = self._split(block, entry)
            inner = torch.einsum("ri, rik -> rk", rows.unit, v)
            coefficient = along[:, None] * g - across[:, None] * inner
            out = across[:, None, None] * v + rows.unit[:, :, None] * coefficient[:, None]
            mapped[where] = entry.from_rows(out)
        return mapped

    def _to_coordinates(self, block: Tensor, *, polar: bool) -> Tensor:
        """Per row ``r -> (along * u.r, across * M r)``: the transpose of the map above."""
        mapped = self._new(self.dim, block)
        for entry, where in self.weight_layout.pairs():
            if entry.name not in self.groups:
                mapped[self.layout.slices[entry.name]] = block[where]
                continue
            rows = self.groups[entry.name]
            along, across = self._multipliers(rows, polar)
            part = entry.rows(block[where])
            inner = torch.einsum("ri, rik -> rk", rows.unit, part)
            out = across[:, None, None] * (part - rows.unit[:, :, None] * inner[:, None])
            mapped[self.layout.slices[f"{entry.name}.g"]] = along[:, None] * inner
            mapped[self.layout.slices[f"{entry.name}.v"]] = entry.from_rows(out)
        return mapped

    def _multipliers(self, rows: _Rows, polar: bool) -> tuple[Tensor, Tensor]:
        """Radial and tangential multipliers of ``J``; only their signs for its polar factor."""
        along, across = self._rate(rows), rows.scale / rows.length
        return (along.sign(), across.sign()) if polar else (along, across)

    def push(self, tangents: Tensor) -> Tensor:
        return self._from_coordinates(tangents, polar=False)

    def pull(self, cotangents: Tensor) -> Tensor:
        return self._to_coordinates(cotangents, polar=False)

    def horizontal(self, block: Tensor) -> Tensor:
        return self._to_coordinates(block, polar=True)

    def horizontal_transpose(self, block: Tensor) -> Tensor:
        return self._from_coordinates(block, polar=True)

    def metric_root(self, block: Tensor) -> Tensor:
        mapped = block.clone()
        for entry, where in self.weight_layout.pairs():
            if entry.name in self.groups:
                rows = self.groups[entry.name]
                along, across = (factor.abs() for factor in self._multipliers(rows, polar=False))
                part = entry.rows(block[where])
                inner = torch.einsum("ri, rik -> rk", rows.unit, part)
                coefficient = (along - across)[:, None] * inner
                out = across[:, None, None] * part + rows.unit[:, :, None] * coefficient[:, None]
                mapped[where] = entry.from_rows(out)
        return mapped

    def second_order_product(self, gradient: Tensor, tangents: Tensor) -> Tensor:
        product = torch.zeros_like(tangents)
        for entry, where in self.weight_layout.pairs():
            if entry.name not in self.groups:
                continue
            rows = self.groups[entry.name]
            slope = entry.rows(gradient[where])
            radial = (rows.unit * slope).sum(dim=1)
            across = slope - radial[:, None] * rows.unit
            rate = self._rate(rows)
            mixed = (rate / rows.length)[:, None] * across
            bend = rows.scale / rows.length**2
            a, b = self._split(tangents, entry)
            unit_b = torch.einsum("ri, rik -> rk", rows.unit, b)
            across_b = torch.einsum("ri, rik -> rk", across, b)
            mixed_b = torch.einsum("ri, rik -> rk", mixed, b)
            out_g = mixed_b + (rows.scale * radial)[:, None] * a if self.log_scale else mixed_b
            out_v = mixed[:, :, None] * a[:, None] - bend[:, None, None] * (
                rows.unit[:, :, None] * (across_b - radial[:, None] * unit_b)[:, None]
                + across[:, :, None] * unit_b[:, None]
                + radial[:, None, None] * b
            )
            product[self.layout.slices[f"{entry.name}.g"]] = out_g
            product[self.layout.slices[f"{entry.name}.v"]] = entry.from_rows(out_v)
        return product

    def pulled_back(self, matrix: Tensor, gradient: Tensor | None = None) -> Tensor:
        maps = self._row_maps(effective=False)
        if maps is None:
            return super().pulled_back(matrix, gradient)
        result = swept(matrix, maps, self.dim)
        if gradient is not None:
            for entry, where in self._normalized():
                rows = self.groups[entry.name]
                radial, mixed, tangential = self._bends(rows, entry.rows(gradient[where]))
                g, v = self.layout.slices[f"{entry.name}.g"], self.layout.slices[f"{entry.name}.v"]
                result[g, g].diagonal().add_(radial)
                result[g, v].unflatten(1, mixed.shape).diagonal(dim1=0, dim2=1).add_(mixed.T)
                _row_blocks(result[v, v], rows).add_(tangential.permute(1, 2, 0))
        return mirrored(result)

    def effective(self, matrix: Tensor, gradient: Tensor | None = None) -> Tensor:
        maps = self._row_maps(effective=True)
        if maps is None:
            return super().effective(matrix, gradient)
        result = swept(matrix, maps, len(matrix))
        if gradient is not None:
            for entry, where in self._normalized():
                rows = self.groups[entry.name]
                # The polar factor of J is (a, b) -> sign(a) u.x, sign(b) M x: M keeps the mixed part, and of the
                # tangential one what lies in M on both sides.
                along, across = self._multipliers(rows, polar=True)
                radial, mixed, tangential = self._bends(rows, entry.rows(gradient[where]))
                outer = rows.unit[:, :, None] * ((along * across)[:, None] * mixed)[:, None]
                flat = across[:, None, None] ** 2 * _without(rows.unit, _without(rows.unit, tangential).mT)
                bent = flat + outer + outer.mT + radial[:, None, None] * rows.unit[:, :, None] * rows.unit[:, None]
                _row_blocks(result[where, where], rows).add_(bent.permute(1, 2, 0))
        return mirrored(result)

    def _normalized(self) -> list[tuple[Entry, slice]]:
        return [(entry, where) for entry, where in self.weight_layout.pairs() if entry.name in self.groups]

    def _row_maps(self, *, effective: bool) -> list[RowMap] | None:
        """The map of :func:`swept`; None where the rows of a weight do not lie one after the other."""
        maps = []
        for entry, where in self.weight_layout.pairs():
            rows = self.groups.get(entry.name)
            if rows is None:
                maps.append(RowMap(where, where if effective else self.layout.slices[entry.name]))
                continue
            if entry.norm_axis not in (0, None):
                return None
            along, across = self._multipliers(rows, polar=False)
            if effective:
                along, across = along.abs(), across.abs()
                maps.append(RowMap(where, where, rows.unit, across, along - across))
            else:
                g, v = self.layout.slices[f"{entry.name}.g"], self.layout.slices[f"{entry.name}.v"]
                maps.append(RowMap(where, v, rows.unit, across, -across, g, along))
        return maps

    def _bends(self, rows: _Rows, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Second-order term per row: ``gg`` ``(rows,)``, ``gv`` ``(rows, d)`` and ``vv`` ``(rows, d, d)``."""
        unit = rows.unit
        radial = (unit * slope).sum(dim=1)
        across = slope - radial[:, None] * unit
        outer = unit[:, :, None] * across[:, None]
        projector = torch.eye(unit.shape[1], dtype=unit.dtype, device=unit.device) - unit[:, :, None] * unit[:, None]
        tangential = -(rows.scale / rows.length**2)[:, None, None] * (
            outer + outer.mT + radial[:, None, None] * projector
        )
        mixed = (self._rate(rows) / rows.length)[:, None] * across
        return (rows.scale * radial if self.log_scale else torch.zeros_like(radial)), mixed, tangential


def _row_blocks(block: Tensor, rows: _Rows) -> Tensor:
    """View of the diagonal blocks of each row with itself, ``(d, d, rows)``."""
    return block.unflatten(1, rows.unit.shape).unflatten(0, rows.unit.shape).diagonal(dim1=0, dim2=2)


def _without(unit: Tensor, blocks: Tensor) -> Tensor:
    """``M B`` per row."""
    return blocks - unit[:, :, None] * torch.einsum("ri, rik -> rk", unit, blocks)[:, None]
