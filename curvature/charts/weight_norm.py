"""Weight normalization at any gauge; the closed forms are in :mod:`curvature.charts.weight_norm_chart`."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from curvature.arrays import Float, Num
from curvature.charts.chart import Parameterization
from curvature.charts.gauges import gauge_label
from curvature.charts.linear import Standard
from curvature.charts.rows import (
    PAPER_SCALE,
    NormalizedRows,
    refuse_not_positive,
    refuse_zero_rows,
    row_norms,
    row_values,
)
from curvature.charts.weight_norm_chart import WeightNormChart
from curvature.errors import ConfigurationError
from curvature.layout import Entry, Layout

__all__ = ["WeightNorm"]


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

    Notes
    -----
    Coordinates are ordered parameter by parameter as in the module; ``g`` (one per row) then ``v``.

    Examples
    --------
    >>> WeightNorm(), WeightNorm(stretch=3.0), WeightNorm("paper", log_scale=True)
    (WeightNorm('canonical'), WeightNorm('stretch=3'), WeightNorm('paper, g = exp(s)'))
    """

    name = "weight-norm"
    has_offset = False  # whether the weights at the point may differ from g v / ||v||

    def __init__(
        self,
        gauge: str | None = None,
        *,
        stretch: float | Num[Tensor, "..."] | Mapping[str, Num[Tensor, "..."]] | None = None,
        v: Mapping[str, Float[Tensor, "..."]] | None = None,
        g: Mapping[str, Float[Tensor, "..."]] | None = None,
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
        if isinstance(stretch, int | float):
            refuse_not_positive(stretch, "stretch = ||v|| / |g|")
        self.stretch, self.v, self.g = stretch, v, g
        self.log_scale, self.layers = log_scale, layers
        self.rule = gauge or "canonical"
        if v is not None:
            self.gauge = "checkpoint"
        elif isinstance(stretch, Mapping):
            self.gauge = "stretch per row"
        else:
            self.gauge = self.rule if stretch is None else f"stretch={stretch:g}"
        self.gauge = gauge_label(self.gauge, "g = exp(s)" if log_scale else "", layers=layers)

    def normalizes(self, entry: Entry) -> bool:
        """Whether this weight is written as ``g v / ||v||``."""
        chosen = entry.normalized and (self.layers is None or re.search(self.layers, entry.name) is not None)
        return chosen and (self.v is None or entry.name in self.v)

    def at(self, layout: Layout, weights: Float[Tensor, "weights"]) -> WeightNormChart:
        """Build the chart at these weights; a zero row of ``v`` is an error that names it."""
        if not any(self.normalizes(entry) for entry in layout.entries):
            raise ConfigurationError(
                "weight normalization applies to no weight here"
                + (f" (layers={self.layers!r})" if self.layers else "")
                + f"; the parameters are {', '.join(layout.slices)}."
            )
        return WeightNormChart(self, layout, weights, self._groups(layout, weights), has_offset=self.has_offset)

    def at_values(
        self, v: Mapping[str, Float[Tensor, "..."]], g: Mapping[str, Float[Tensor, "..."]]
    ) -> Parameterization:
        """The same parameterization at these explicit values, by name of the weight."""
        return WeightNorm(v=v, g=g, log_scale=self.log_scale, layers=self.layers)

    def restricted(self, layout: Layout) -> Parameterization:
        if not any(self.normalizes(entry) for entry in layout.entries):
            return Standard()
        part = copy.copy(self)
        if self.v is not None and self.g is not None:
            part.v = {name: value for name, value in self.v.items() if name in layout.slices}
            part.g = {name: value for name, value in self.g.items() if name in layout.slices}
        return part

    def _groups(self, layout: Layout, weights: Tensor) -> dict[str, NormalizedRows]:
        return {
            entry.name: self._rows(entry, entry.rows(weights[span]))
            for entry, span in layout.pairs()
            if self.normalizes(entry)
        }

    def _rows(self, entry: Entry, rows: Tensor) -> NormalizedRows:
        if self.v is not None and self.g is not None:
            unit, scale, length = self._explicit(self.v, self.g, entry, rows)
        else:
            unit, scale, length = self._by_rule(entry, rows)
        if self.log_scale and (scale <= 0).any():
            row = int((scale <= 0).nonzero()[0])
            raise ConfigurationError(
                f"g = exp(s) needs positive g; row {row} of {entry.name!r} has g = {scale[row]:.3g}."
            )
        return NormalizedRows(unit, scale, length, self.log_scale)

    def _by_rule(self, entry: Entry, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``u``, ``g = ||w||`` and the ``||v||`` that the gauge or the stretch chooses."""
        scale = row_norms(rows)
        refuse_zero_rows(scale, entry, "the weights of")
        if isinstance(self.stretch, Mapping):
            length = scale * row_values(self.stretch, entry, rows, "stretch")
            refuse_zero_rows(length, entry, "the stretch of")
        elif self.stretch is not None:
            length = scale * self.stretch
        elif self.rule == "paper":
            length = torch.full_like(scale, PAPER_SCALE * math.sqrt(rows.shape[1]))
        else:
            length = scale
        return rows / scale[:, None], scale, length

    def _explicit(
        self, v_by_name: Mapping[str, Tensor], g_by_name: Mapping[str, Tensor], entry: Entry, rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``u``, ``g`` and ``||v||`` of the values that the user gave."""
        v, g = v_by_name[entry.name], g_by_name.get(entry.name)
        if g is None or tuple(v.shape) != entry.shape or g.numel() != len(rows):
            raise ConfigurationError(
                f"{entry.name!r} needs v of shape {entry.shape} and g with {len(rows)} entries, got "
                f"{tuple(v.shape)} and {None if g is None else tuple(g.shape)}."
            )
        directions, scale = entry.rows(v.detach().to(rows).reshape(-1)), g.detach().to(rows).reshape(-1)
        length = row_norms(directions)
        refuse_zero_rows(length, entry, "v of")
        unit = directions / length[:, None]
        error = torch.linalg.vector_norm(scale[:, None] * unit - rows)
        if not self.has_offset and not error <= 1e3 * torch.finfo(rows.dtype).eps * torch.linalg.vector_norm(rows):
            raise ConfigurationError(f"the v and g given for {entry.name!r} do not reproduce its weights.")
        return unit, scale, length
