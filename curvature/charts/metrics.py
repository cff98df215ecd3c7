r"""The metric $K = J J^T$ of one weight: its powers, from a closed form by rows or from a decomposition."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.layout import Entry
from curvature.linalg.singular import thin_svd

__all__ = ["DenseMetric", "RowMetric", "WeightMetric"]


class WeightMetric(ABC):
    r"""$K$ of one weight, whose root and its pseudo-inverse give the polar form of $J$."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """Rank of ``K``: directions of this weight that the coordinates reach."""

    @abstractmethod
    def root(self, block: Float[Tensor, "numel columns"]) -> Float[Tensor, "numel columns"]:
        """Multiply by $K^{1/2}$."""

    @abstractmethod
    def inverse_root(self, block: Float[Tensor, "numel columns"]) -> Float[Tensor, "numel columns"]:
        """Multiply by the pseudo-inverse of $K^{1/2}$."""


@dataclass(frozen=True, eq=False)
class RowMetric(WeightMetric):
    r"""Per row $K = a^2\, u u^T + b^2\, (C - u u^T)$, with $C = I$ or the projector onto rows of mean zero.

    Attributes
    ----------
    entry
        The weight, which says what its rows are.
    unit
        $u$, ``(rows, length)``; of mean zero where the rows are.
    along, across
        $a$ and $b$, ``(rows,)``, not negative.
    centred
        Whether $C$ takes the mean of a row away.
    """

    entry: Entry
    unit: Float[Tensor, "rows length"]
    along: Float[Tensor, "rows"]
    across: Float[Tensor, "rows"]
    centred: bool = False

    @property
    def rank(self) -> int:
        directions = self.unit.shape[1] - 1 - self.centred
        return int((self.along > 0).sum()) + directions * int((self.across > 0).sum())

    def root(self, block: Float[Tensor, "numel columns"]) -> Float[Tensor, "numel columns"]:
        return self._scaled(block, self.along, self.across)

    def inverse_root(self, block: Float[Tensor, "numel columns"]) -> Float[Tensor, "numel columns"]:
        return self._scaled(block, _inverse(self.along), _inverse(self.across))

    def _scaled(self, block: Tensor, along: Tensor, across: Tensor) -> Tensor:
        rows = self.entry.rows(block)
        inner = torch.einsum("ri, rik -> rk", self.unit, rows)[:, None]
        if self.centred:
            rows = rows - rows.mean(dim=1, keepdim=True)
        rest = rows - self.unit[:, :, None] * inner
        mapped = across[:, None, None] * rest + along[:, None, None] * self.unit[:, :, None] * inner
        return self.entry.from_rows(mapped)


class DenseMetric(WeightMetric):
    r"""$K$ from the singular value decomposition of a dense $J$, ``(numel, coordinates)``.

    Parameters
    ----------
    jacobian
        $J$ of one weight.
    """

    def __init__(self, jacobian: Float[Tensor, "numel coordinates"]):
        left, values, _ = thin_svd(jacobian)
        kept = values > max(jacobian.shape) * torch.finfo(values.dtype).eps * values[0]
        self.left, self.values = left[:, kept], values[kept]

    @property
    def rank(self) -> int:
        return len(self.values)

    def root(self, block: Float[Tensor, "numel columns"]) -> Float[Tensor, "numel columns"]:
        return self.left @ (self.values[:, None] * (self.left.T @ block))

    def inverse_root(self, block: Float[Tensor, "numel columns"]) -> Float[Tensor, "numel columns"]:
        return self.left @ ((self.left.T @ block) / self.values[:, None])


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1 / values, 0)
