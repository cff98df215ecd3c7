r"""Descendants of weight normalization that act on the rows of a weight: sphere, factorization, standardization."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from curvature.arrays import Float, Num
from curvature.charts.gauges import gauge_label
from curvature.charts.metrics import RowMetric
from curvature.charts.per_weight import LocalMap, Parts, PerWeight
from curvature.charts.rows import refuse_not_positive, refuse_zero_rows, row_norms, row_values
from curvature.errors import ConfigurationError, InputError
from curvature.layout import Entry

__all__ = ["RandomWeightFactorization", "Sphere", "WeightStandardization"]


class Sphere(PerWeight):
    r"""Weights of a fixed norm, $w = c\, v / \|v\|$ with $c$ frozen (nGPT, arXiv:2410.01131).

    Per row, with $u = v / \|v\|$, $K = (c / \|v\|)^2 (I - u u^T)$: the length of a row is out of reach, so the chart is
    not onto, and the length of ``v`` is a gauge, as in weight normalization.

    Parameters
    ----------
    radius
        $c$. None keeps the norm that each row has; a number is the norm that all rows must have.
    stretch
        The gauge $\|v\| / c$; 1 is canonical.
    per
        ``"row"``, or ``"matrix"`` for one norm for the whole tensor.
    layers
        Regular expression: only the weights whose name matches.
    values
        ``v`` and ``c`` of each weight by name, where they are known.

    Examples
    --------
    >>> Sphere(), Sphere(radius=1.0, per="matrix"), Sphere(stretch=2.0)
    (Sphere('canonical'), Sphere('radius=1, per matrix'), Sphere('stretch=2'))
    """

    name = "sphere"
    part_names = ("v",)
    constant_names = ("c",)

    def __init__(
        self,
        *,
        radius: float | None = None,
        stretch: float = 1.0,
        per: str = "row",
        layers: str | None = None,
        values: Mapping[str, Parts] | None = None,
    ):
        if per not in ("row", "matrix"):
            raise ConfigurationError(f"per must be 'row' or 'matrix', got {per!r}.")
        refuse_not_positive(stretch, "stretch = ||v|| / c")
        if radius is not None:
            refuse_not_positive(radius, "radius")
        self.radius, self.stretch, self.per = radius, stretch, per
        labels = [
            "" if radius is None else f"radius={radius:g}",
            "" if stretch == 1 else f"stretch={stretch:g}",
            "" if per == "row" else "per matrix",
        ]
        self.gauge = gauge_label(*labels) if any(labels) else "canonical"
        super().__init__(layers=layers, values=values)

    def parts(self, entry: Entry, weight: Float[Tensor, "..."]) -> dict[str, Tensor]:
        norms = row_norms(self._normed(entry).rows(weight.reshape(-1)))
        refuse_zero_rows(norms, entry, "the weights of")
        radius = norms if self.radius is None else torch.full_like(norms, self.radius)
        return {"v": weight * self.stretch, "c": radius}

    def weight(self, entry: Entry, parts: Parts) -> Float[Tensor, "..."]:
        entry = self._normed(entry)
        rows = entry.rows(parts["v"].reshape(-1))
        return entry.from_rows((parts["c"] / row_norms(rows))[:, None] * rows).reshape(entry.shape)

    def metric(self, local: LocalMap) -> RowMetric:
        entry = self._normed(local.entry)
        rows = entry.rows(local.parts["v"].reshape(-1))
        lengths = row_norms(rows)
        across = local.parts["c"].abs() / lengths
        return RowMetric(entry, rows / lengths[:, None], torch.zeros_like(lengths), across)

    def project(self, entry: Entry, weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.weight(entry, self.parts(entry, weight))

    def _normed(self, entry: Entry) -> Entry:
        """The weight with the rows that this sphere normalizes."""
        return replace(entry, norm_axis=None) if self.per == "matrix" else entry


class RandomWeightFactorization(PerWeight):
    r"""Weights with a factor per row, $W = \mathrm{diag}(s)\, V$ (Wang et al. 2022, arXiv:2210.01274).

    Per row $K = s^2 I + v v^T$: onto, with one null direction. The factor ``s`` is the gauge. The published one is
    drawn at random, $s = e^{\mu + \sigma z}$ with $z \sim N(0, 1)$, and ``s`` itself is then trained.

    Parameters
    ----------
    scale
        ``s``: one number, or a tensor of row values per weight by name. None draws it.
    mean, deviation
        $\mu$ and $\sigma$ of the draw; 1 and 0.1 are published.
    seed
        Seed of the draw, which depends on it and on the name of the weight only.
    log_scale
        Train $t$ with $s = e^t$ instead of ``s``; then $K = s^2 (I + v v^T)$.
    layers
        Regular expression: only the weights whose name matches.
    frozen, values
        As in :class:`~curvature.charts.per_weight.PerWeight`.

    Examples
    --------
    >>> RandomWeightFactorization(), RandomWeightFactorization(scale=2.0, log_scale=True)
    (RandomWeightFactorization('paper'), RandomWeightFactorization('scale=2, s = exp(t)'))
    """

    name = "random-weight-factorization"

    def __init__(
        self,
        *,
        scale: float | Mapping[str, Num[Tensor, "..."]] | None = None,
        mean: float = 1.0,
        deviation: float = 0.1,
        seed: int = 0,
        log_scale: bool = False,
        layers: str | None = None,
        frozen: Iterable[str] = (),
        values: Mapping[str, Parts] | None = None,
    ):
        if isinstance(scale, int | float):
            refuse_not_positive(scale, "scale")
        if not (math.isfinite(mean) and math.isfinite(deviation) and deviation >= 0):
            raise ConfigurationError(
                f"mean and deviation must be finite, and deviation not negative; got {mean} and {deviation}."
            )
        self.scale, self.mean, self.deviation, self.seed, self.log_scale = scale, mean, deviation, seed, log_scale
        self.part_names = ("t" if log_scale else "s", "v")
        self.affine_parts = ("v",) if log_scale else ("s", "v")
        if scale is None:
            rule = "paper" if (mean, deviation) == (1, 0.1) else f"mean={mean:g}, deviation={deviation:g}"
        else:
            rule = "given" if isinstance(scale, Mapping) else f"scale={scale:g}"
        self.gauge = gauge_label(rule, "s = exp(t)" if log_scale else "", seed=seed if scale is None else 0)
        super().__init__(layers=layers, frozen=frozen, values=values)

    def parts(self, entry: Entry, weight: Float[Tensor, "..."]) -> dict[str, Tensor]:
        rows = entry.rows(weight.reshape(-1))
        if self.scale is None:
            stream = np.random.default_rng([self.seed, zlib.crc32(entry.name.encode())])
            normal = torch.from_numpy(stream.standard_normal(len(rows))).to(weight)
            scale = torch.exp(self.mean + self.deviation * normal)
        elif isinstance(self.scale, Mapping):
            scale = row_values(self.scale, entry, weight, "scale")
        else:
            scale = weight.new_full((len(rows),), float(self.scale))
        v = entry.from_rows(rows / scale[:, None]).reshape(entry.shape)
        return {"t": scale.log(), "v": v} if self.log_scale else {"s": scale, "v": v}

    def weight(self, entry: Entry, parts: Parts) -> Float[Tensor, "..."]:
        rows = self._scale(parts)[:, None] * entry.rows(parts["v"].reshape(-1))
        return entry.from_rows(rows).reshape(entry.shape)

    def metric(self, local: LocalMap) -> RowMetric:
        scale = self._scale(local.parts)
        rows = local.entry.rows(local.parts["v"].reshape(-1))
        lengths = row_norms(rows)
        unit = torch.where(lengths > 0, 1 / lengths, 0)[:, None] * rows
        slope = lengths * scale.abs() if self.log_scale else lengths  # of the weight in its factor
        if self.part_names[0] in self.frozen:
            slope = torch.zeros_like(slope)
        across = torch.zeros_like(scale) if "v" in self.frozen else scale.abs()
        return RowMetric(local.entry, unit, torch.hypot(across, slope), across)

    def _scale(self, parts: Parts) -> Tensor:
        return parts["t"].exp() if self.log_scale else parts["s"]


class WeightStandardization(PerWeight):
    r"""Centred weight normalization, $w = g\, (v - \bar v) / \|v - \bar v\|$ per row.

    With $C$ the projector onto rows of mean zero, $u$ the unit vector along $C v$ and $\rho = (g / \|C v\|)^2$,
    $K = u u^T + \rho\, (C - u u^T)$ per row: rank $n - 1$ of $n + 1$ coordinates. Only rows of mean zero can be written
    so; :func:`~curvature.models.nearest` moves there. Weight standardization (arXiv:1903.10520) freezes ``g``:
    ``WeightStandardization(frozen=("g",))``.

    Parameters
    ----------
    stretch
        The gauge $\|v - \bar v\| / |g|$; 1 is canonical.
    layers
        Regular expression: only the weights whose name matches.
    frozen, values
        As in :class:`~curvature.charts.per_weight.PerWeight`.

    Examples
    --------
    >>> WeightStandardization(), WeightStandardization(stretch=3.0, frozen=("g",))
    (WeightStandardization('canonical'), WeightStandardization('stretch=3, g frozen'))
    """

    name = "weight-standardization"
    part_names = ("g", "v")
    affine_parts = ("g",)

    def __init__(
        self,
        *,
        stretch: float = 1.0,
        layers: str | None = None,
        frozen: Iterable[str] = (),
        values: Mapping[str, Parts] | None = None,
    ):
        refuse_not_positive(stretch, "stretch = ||v - mean|| / |g|")
        self.stretch = stretch
        self.gauge = "canonical" if stretch == 1 else f"stretch={stretch:g}"
        super().__init__(layers=layers, frozen=frozen, values=values)

    def parts(self, entry: Entry, weight: Float[Tensor, "..."]) -> dict[str, Tensor]:
        centred = _centred_rows(entry, weight)
        return {"g": row_norms(centred), "v": entry.from_rows(self.stretch * centred).reshape(entry.shape)}

    def weight(self, entry: Entry, parts: Parts) -> Float[Tensor, "..."]:
        centred = _centred(entry.rows(parts["v"].reshape(-1)))
        return entry.from_rows((parts["g"] / row_norms(centred))[:, None] * centred).reshape(entry.shape)

    def metric(self, local: LocalMap) -> RowMetric:
        centred = _centred(local.entry.rows(local.parts["v"].reshape(-1)))
        lengths, scale = row_norms(centred), local.parts["g"]
        along = torch.zeros_like(lengths) if "g" in self.frozen else torch.ones_like(lengths)
        across = torch.zeros_like(lengths) if "v" in self.frozen else scale.abs() / lengths
        return RowMetric(local.entry, centred / lengths[:, None], along, across, centred=True)

    def project(self, entry: Entry, weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return entry.from_rows(_centred_rows(entry, weight)).reshape(entry.shape)


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=1, keepdim=True)


def _centred_rows(entry: Entry, weight: Tensor) -> Tensor:
    """Rows without their mean; rows whose entries are equal up to rounding are refused: no direction is left."""
    rows = entry.rows(weight.reshape(-1))
    centred = _centred(rows)
    rounding = 10 * torch.finfo(rows.dtype).eps * rows.abs().amax(dim=1)
    constant = (centred.abs().amax(dim=1) <= rounding).nonzero().flatten().tolist()
    if constant:
        raise InputError(
            f"row {constant[0]} of layer {entry.layer!r} ({entry.name}) is constant: without its mean it is zero and "
            "has no direction. Give it other values, or leave the layer out (layers=)."
        )
    return centred
