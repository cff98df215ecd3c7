r"""Spectral normalization: a matrix divided by its largest singular value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.charts.metrics import PlaneMetric
from curvature.charts.per_weight import LocalMap, Parts, PerWeight, as_matrix
from curvature.charts.rows import refuse_not_positive
from curvature.errors import InputError
from curvature.layout import Entry
from curvature.linalg.singular import thin_svd

__all__ = ["SpectralNorm"]

_APART = 1e-8  # relative gap of the two largest singular values below which the largest has no derivative


class SpectralNorm(PerWeight):
    r"""A matrix over its largest singular value, $W = \gamma\, V / \sigma_1(V)$ (Miyato et al. 2018, arXiv:1802.05957).

    The length of ``V`` is a gauge: one null direction for each matrix. With $\gamma$ frozen, as in
    ``torch.nn.utils.parametrizations.spectral_norm``, $\sigma_1(W)$ cannot change, and the chart is not onto.

    Parameters
    ----------
    stretch
        The gauge $\sigma_1(V) / \gamma$; 1 is canonical, $V = W$.
    layers
        Regular expression: only the weights whose name matches.
    frozen
        Parts that are not coordinates; ``gain``, which is $\gamma$, by default.
    values
        ``gain`` and ``v`` of each weight by name, where they are known.

    Notes
    -----
    A weight is the matrix of its neurons, as PyTorch reshapes it: output channels by everything else. Second
    derivatives are closed, since those of a singular value decomposition fail where any two singular values are equal.

    Examples
    --------
    >>> SpectralNorm(), SpectralNorm(frozen=())
    (SpectralNorm('canonical, gain frozen'), SpectralNorm('canonical'))
    """

    name = "spectral-norm"
    part_names = ("gain", "v")
    affine_parts = ("gain",)

    def __init__(
        self,
        *,
        stretch: float = 1.0,
        layers: str | None = None,
        frozen: Iterable[str] = ("gain",),
        values: Mapping[str, Parts] | None = None,
    ):
        refuse_not_positive(stretch, "stretch = sigma_1(V) / gain")
        self.stretch = stretch
        self.gauge = "canonical" if stretch == 1 else f"stretch={stretch:g}"
        super().__init__(layers=layers, frozen=frozen, values=values)

    def parts(self, entry: Entry, weight: Float[Tensor, "..."]) -> dict[str, Tensor]:
        norm = torch.linalg.matrix_norm(as_matrix(entry).rows(weight.reshape(-1)), 2)
        if norm == 0:
            raise InputError(
                f"the weights of layer {entry.layer!r} ({entry.name}) are zero: spectral normalization has no "
                "direction there. Give them other values, or leave the layer out (layers=)."
            )
        return {"gain": norm, "v": self.stretch * weight}

    def weight(self, entry: Entry, parts: Parts) -> Float[Tensor, "..."]:
        norm = torch.linalg.matrix_norm(as_matrix(entry).rows(parts["v"].reshape(-1)), 2)
        return parts["gain"] / norm * parts["v"]

    def check(self, entry: Entry, parts: Parts) -> None:
        values = torch.linalg.svdvals(as_matrix(entry).rows(parts["v"].reshape(-1)))
        if len(values) > 1 and not values[0] - values[1] > _APART * values[0]:
            raise InputError(
                f"the two largest singular values of {entry.name!r} are equal ({float(values[0]):.6g}): the spectral "
                "norm has no derivative there. Move the weights, or leave the layer out (layers=)."
            )

    def metric(self, local: LocalMap) -> PlaneMetric:
        r"""$K = (\gamma/\sigma_1)^2 (I - s s^T + \tau^2 t t^T)$, plus $V V^T / \sigma_1^2$ where $\gamma$ is trained.

        $s = u_1 v_1^T$ is the gradient of $\sigma_1$, and $V / \sigma_1 = s + \tau t$ with a unit $t$ across $s$.
        """
        pair = _top_pair(as_matrix(local.entry), local.parts["v"])
        direction = local.parts["v"].reshape(-1) / pair.norm
        rest = direction - pair.slope
        rest = rest - pair.slope * (pair.slope @ rest)
        tau = torch.linalg.vector_norm(rest)
        spread = tau > 10 * torch.finfo(tau.dtype).eps  # not a matrix of rank one
        basis = torch.stack([pair.slope, rest / tau], dim=1) if spread else pair.slope[:, None]
        inside, along = torch.zeros(2, 2).to(tau), torch.stack([torch.ones_like(tau), tau])
        outside = torch.zeros_like(tau) if "v" in self.frozen else (local.parts["gain"] / pair.norm).abs()
        inside[1, 1] = outside**2 * (1 + tau**2)
        if "gain" not in self.frozen:
            inside += torch.outer(along, along)
        return PlaneMetric(basis, inside[: basis.shape[1], : basis.shape[1]], outside)

    def second_order_product(
        self, local: LocalMap, gradient: Float[Tensor, "numel"], tangents: Float[Tensor, "coordinates columns"]
    ) -> Float[Tensor, "coordinates columns"]:
        matrix = as_matrix(local.entry)
        pair, gain = _top_pair(matrix, local.parts["v"]), local.parts["gain"]
        norm, slope = pair.norm, pair.slope
        has_gain = "gain" not in self.frozen
        change = tangents[0] if has_gain else torch.zeros_like(tangents[0])  # of the gain, for each column
        moved = tangents[1:] if has_gain else tangents  # of v
        along, inner = slope @ moved, gradient @ moved
        height = gradient @ local.parts["v"].reshape(-1)
        curved = pair.bend(matrix, moved)
        product = change * (gradient / norm - height / norm**2 * slope)[:, None]
        product -= gain / norm**2 * (gradient[:, None] * along + slope[:, None] * inner + height * curved)
        product += 2 * gain * height / norm**3 * slope[:, None] * along
        return torch.cat([(inner / norm - height / norm**2 * along)[None], product]) if has_gain else product


class _TopPair(NamedTuple):
    """The largest singular value of a matrix with its derivatives in the entries of the weight."""

    left: Tensor
    values: Tensor
    right: Tensor
    slope: Tensor

    @property
    def norm(self) -> Tensor:
        return self.values[0]

    def bend(self, entry: Entry, tangents: Tensor) -> Tensor:
        r"""Multiply the second derivative of $\sigma_1$ by a block: first-order perturbation of its two vectors."""
        left, values, right = self.left, self.values, self.right
        moved = entry.rows(tangents)
        image_left, image_right = (
            torch.einsum("rik, i -> rk", moved, right[:, 0]),
            torch.einsum("rik, r -> ik", moved, left[:, 0]),
        )
        inside_left, inside_right = left.T @ image_left, right.T @ image_right
        gaps = (values[0] - values) * (values[0] + values)
        gaps[0] = torch.inf
        d_left = left @ ((values[0] * inside_left + values[:, None] * inside_right) / gaps[:, None])
        d_left += (image_left - left @ inside_left) / values[0]
        d_right = right @ ((values[0] * inside_right + values[:, None] * inside_left) / gaps[:, None])
        d_right += (image_right - right @ inside_right) / values[0]
        bent = d_left[:, None] * right[:, 0][:, None] + left[:, 0][:, None, None] * d_right
        return entry.from_rows(bent)


def _top_pair(entry: Entry, v: Tensor) -> _TopPair:
    left, values, right = thin_svd(entry.rows(v.reshape(-1)))
    return _TopPair(left, values, right.T, entry.from_rows(torch.outer(left[:, 0], right[0])))
