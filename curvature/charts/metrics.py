r"""The metric $K = J J^T$ of one weight: its powers, from a closed form or from a decomposition."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.layout import Entry
from curvature.linalg.singular import thin_svd

__all__ = ["DenseMetric", "PlaneMetric", "ProductMetric", "RowMetric", "WeightMetric"]


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


class ProductMetric(WeightMetric):
    r"""$K$ of a product $W = B A$, $K = B B^T \otimes I + I \otimes A^T A$, whose eigenvectors are Kronecker products.

    Parameters
    ----------
    entry
        The weight, whose rows are those of ``B``.
    left
        ``B``, ``(rows, k)``; zero where ``A`` is not trained.
    right
        ``A``, ``(k, length)``; zero where ``B`` is not trained.
    """

    def __init__(self, entry: Entry, left: Float[Tensor, "rows columns"], right: Float[Tensor, "columns length"]):
        self.entry = entry
        self.left, self.left_values = _range(left)
        self.right, self.right_values = _range(right.T)

    @property
    def rank(self) -> int:
        rows, length = len(self.left), len(self.right)
        return rows * length - (rows - len(self.left_values)) * (length - len(self.right_values))

    def root(self, block: Float[Tensor, "numel columns"]) -> Float[Tensor, "numel columns"]:
        return self._mapped(block, lambda values: values)

    def inverse_root(self, block: Float[Tensor, "numel columns"]) -> Float[Tensor, "numel columns"]:
        return self._mapped(block, torch.reciprocal)

    def _mapped(self, block: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Multiply by a function of the root, part by part: where both factors act, where one of them does."""
        rows, left, right = self.entry.rows(block), self.left, self.right
        on_left, on_right = torch.einsum("mp, mnk -> pnk", left, rows), torch.einsum("mnk, nq -> mqk", rows, right)
        on_both = torch.einsum("pnk, nq -> pqk", on_left, right)
        on_left = on_left - torch.einsum("pqk, nq -> pnk", on_both, right)
        on_right = on_right - torch.einsum("mp, pqk -> mqk", left, on_both)
        both = function(torch.hypot(self.left_values[:, None], self.right_values))[:, :, None] * on_both
        mapped = torch.einsum("mp, pnk -> mnk", left, function(self.left_values)[:, None, None] * on_left)
        mapped += torch.einsum("mqk, nq -> mnk", function(self.right_values)[:, None] * on_right, right)
        mapped += torch.einsum("mp, pqk, nq -> mnk", left, both, right)
        return self.entry.from_rows(mapped)


class PlaneMetric(WeightMetric):
    r"""$K = b^2 (I - Q Q^T) + Q M Q^T$: one factor but in a few directions.

    Parameters
    ----------
    basis
        $Q$ with orthonormal columns, ``(numel, k)``.
    inside
        $M$, symmetric and not negative, ``(k, k)``.
    outside
        $b$, not negative.
    """

    def __init__(
        self,
        basis: Float[Tensor, "numel columns"],
        inside: Float[Tensor, "columns columns"],
        outside: Float[Tensor, ""],
    ):
        values, turned = torch.linalg.eigh(inside)
        rounding = 4 * torch.finfo(values.dtype).eps * values.abs().max()
        self.values = torch.where(values > rounding, values, 0).sqrt()
        self.basis, self.outside = basis @ turned, outside.reshape(1)

    @property
    def rank(self) -> int:
        numel, directions = self.basis.shape
        return int((self.values > 0).sum()) + (numel - directions) * int(self.outside > 0)

    def root(self, block: Float[Tensor, "numel columns"]) -> Float[Tensor, "numel columns"]:
        return self._scaled(block, self.values, self.outside)

    def inverse_root(self, block: Float[Tensor, "numel columns"]) -> Float[Tensor, "numel columns"]:
        return self._scaled(block, _inverse(self.values), _inverse(self.outside))

    def _scaled(self, block: Tensor, values: Tensor, outside: Tensor) -> Tensor:
        inner = self.basis.T @ block
        return outside * (block - self.basis @ inner) + self.basis @ (values[:, None] * inner)


class DenseMetric(WeightMetric):
    r"""$K$ from the singular value decomposition of a dense $J$, ``(numel, coordinates)``.

    Parameters
    ----------
    jacobian
        $J$ of one weight.
    """

    def __init__(self, jacobian: Float[Tensor, "numel coordinates"]):
        self.left, self.values = _range(jacobian)

    @property
    def rank(self) -> int:
        return len(self.values)

    def root(self, block: Float[Tensor, "numel columns"]) -> Float[Tensor, "numel columns"]:
        return self.left @ (self.values[:, None] * (self.left.T @ block))

    def inverse_root(self, block: Float[Tensor, "numel columns"]) -> Float[Tensor, "numel columns"]:
        return self.left @ ((self.left.T @ block) / self.values[:, None])


def _range(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors and singular values on the range of a matrix."""
    left, values, _ = thin_svd(matrix)
    kept = values > max(matrix.shape) * torch.finfo(values.dtype).eps * values[0]
    return left[:, kept], values[kept]


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1 / values, 0)
