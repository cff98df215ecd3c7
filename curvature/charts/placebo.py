"""The placebo: weight normalization about directions that have nothing to do with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from curvature.arrays import Float, Num
from curvature.charts.chart import Parameterization
from curvature.charts.gauges import gauge_label
from curvature.charts.rows import NormalizedRows, refuse_zero_rows, row_norms
from curvature.charts.weight_norm import WeightNorm
from curvature.errors import ConfigurationError
from curvature.layout import Entry, Layout

__all__ = ["Placebo"]


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
    has_offset = True

    def __init__(
        self,
        gauge: str | None = None,
        *,
        seed: int = 0,
        directions: Mapping[str, Float[Tensor, "..."]] | None = None,
        name: str = "placebo",
        stretch: float | Num[Tensor, "..."] | Mapping[str, Num[Tensor, "..."]] | None = None,
        v: Mapping[str, Float[Tensor, "..."]] | None = None,
        g: Mapping[str, Float[Tensor, "..."]] | None = None,
        log_scale: bool = False,
        layers: str | None = None,
    ):
        super().__init__(gauge, stretch=stretch, v=v, g=g, log_scale=log_scale, layers=layers)
        if v is not None and directions is not None:
            raise ConfigurationError("choose one of directions and explicit v and g: v is the direction.")
        self.seed, self.directions, self.name = seed, directions, name
        if v is None and directions is None:
            self.gauge = gauge_label(self.gauge, seed=seed)

    def __repr__(self) -> str:
        return f"Placebo({self.gauge!r})" if self.name == "placebo" else f"Placebo({self.gauge!r}, name={self.name!r})"

    def at_values(
        self, v: Mapping[str, Float[Tensor, "..."]], g: Mapping[str, Float[Tensor, "..."]]
    ) -> Parameterization:
        return Placebo(v=v, g=g, log_scale=self.log_scale, layers=self.layers, name=self.name)

    def _groups(self, layout: Layout, weights: Tensor) -> dict[str, NormalizedRows]:
        """Rows with other directions, which depend on the seed and the layout only."""
        groups = super()._groups(layout, weights)
        if self.v is not None:
            return groups
        generator = torch.Generator().manual_seed(self.seed)
        for entry in layout.entries:
            if entry.name not in groups:
                continue
            rows = groups[entry.name]
            directions = self._directions(entry, rows, generator).to(weights)
            lengths = row_norms(directions)
            refuse_zero_rows(lengths, entry, "the direction of")
            groups[entry.name] = replace(rows, unit=directions / lengths[:, None])
        return groups

    def _directions(self, entry: Entry, rows: NormalizedRows, generator: torch.Generator) -> Tensor:
        if self.directions is None:
            return torch.randn(rows.unit.shape, generator=generator, dtype=torch.float64)
        chosen = self.directions.get(entry.name)
        if chosen is None or tuple(chosen.shape) != entry.shape:
            raise ConfigurationError(
                f"directions must hold a tensor of shape {entry.shape} for {entry.name!r}, got "
                f"{None if chosen is None else tuple(chosen.shape)}."
            )
        return entry.rows(chosen.detach().reshape(-1))
