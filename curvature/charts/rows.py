r"""Rows of normalized weights: their lengths, values given per row, what is refused, and the algebra of one row.

A row is written $w = g\, v / \|v\|$. With $u = v / \|v\|$, $M = I - u u^T$, $s = \|v\|$ and the weight gradient $r$ of
the row, $J (a, b) = a u + (g / s) M b$, and the second derivatives are ``gg: 0``, ``gv: M r / s`` and
``vv: -(g / s^2) [u (M r)^T + (M r) u^T + (u.r) M]``. With $g = e^t$ the first coordinate is rescaled by $dg/dt = g$ and
gains the second derivative $g\, (u.r)$.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from curvature.arrays import Float, Num
from curvature.errors import ConfigurationError, InputError
from curvature.layout import Entry

__all__ = ["PAPER_SCALE", "NormalizedRows", "refuse_not_positive", "refuse_zero_rows", "row_norms", "row_values"]

PAPER_SCALE = 0.05  # Salimans & Kingma (2016), section 3: v is drawn from N(0, 0.05^2)


def row_norms(rows: Float[Tensor, "rows length"]) -> Float[Tensor, "rows"]:
    """Compute the length of each row.

    Parameters
    ----------
    rows
        ``(rows, length)``.

    Returns
    -------
    Tensor
        ``(rows,)``.
    """
    return torch.linalg.vector_norm(rows, dim=1)


def row_values(
    values: Mapping[str, Num[Tensor, "..."]], entry: Entry, like: Float[Tensor, "..."], what: str
) -> Float[Tensor, "rows"]:
    """Look up positive values, one per row, that the user gave for an entry.

    Parameters
    ----------
    values
        Values by name of the entry.
    entry
        The weight.
    like
        A tensor with the dtype and device of the result.
    what
        Name of the argument, for messages.

    Returns
    -------
    Tensor
        ``(rows,)``.

    Raises
    ------
    ConfigurationError
        If the values are missing, too few or too many, not positive or not finite.
    """
    if entry.name not in values or values[entry.name].numel() != entry.num_rows:
        raise ConfigurationError(f"{what} for {entry.name!r} must hold {entry.num_rows} row values.")
    row = values[entry.name].detach().to(like).reshape(-1)
    if not (torch.isfinite(row) & (row > 0)).all():
        raise ConfigurationError(f"{what} for {entry.name!r} must be positive and finite.")
    return row


def refuse_not_positive(value: float, what: str) -> None:
    """Raise an error that names a value that is not positive and finite.

    Parameters
    ----------
    value
        Given by the user.
    what
        Its name and meaning, for the message: ``"stretch = ||v|| / |g|"``.

    Raises
    ------
    ConfigurationError
        If the value is not positive and finite.
    """
    if not (math.isfinite(value) and value > 0):
        raise ConfigurationError(f"{what} must be a positive number, got {value}.")


def refuse_zero_rows(lengths: Float[Tensor, "rows"], entry: Entry, what: str) -> None:
    """Raise an error that names the layer and the first row whose length is zero.

    Parameters
    ----------
    lengths
        Length of each row, ``(rows,)``.
    entry
        The weight.
    what
        What has these rows, for the message: ``"v of"``.

    Raises
    ------
    InputError
        If a length is zero.
    """
    zero = (lengths == 0).nonzero().flatten().tolist()
    if zero:
        raise InputError(
            f"{what} layer {entry.layer!r} ({entry.name}) is zero in row {zero[0]}"
            + (f" and {len(zero) - 1} more" if len(zero) > 1 else "")
            + ": weight normalization has no direction there. Give the row a non-zero value, or leave the layer "
            "out (layers=)."
        )


@dataclass(frozen=True, eq=False)
class NormalizedRows:
    r"""The rows of one normalized weight at a point; blocks of $K$ vectors are ``(rows, length, K)``.

    Attributes
    ----------
    unit
        $u$, ``(rows, length)``.
    scale, length
        $g$ and $\|v\|$, ``(rows,)``.
    log_scale
        Whether the first coordinate is $\log g$ instead of $g$.
    """

    unit: Float[Tensor, "rows length"]
    scale: Float[Tensor, "rows"]
    length: Float[Tensor, "rows"]
    log_scale: bool = False

    @property
    def rate(self) -> Float[Tensor, "rows"]:
        """Derivative of ``g`` in the first coordinate, ``(rows,)``."""
        return self.scale if self.log_scale else torch.ones_like(self.scale)

    @property
    def null_dim(self) -> int:
        """Coordinates that do not move the weights: one per row; all of ``v`` where ``g = 0``."""
        return int(torch.where(self.scale == 0, self.unit.shape[1], 1).sum())

    def weights(self) -> Float[Tensor, "rows length"]:
        """``g u``, ``(rows, length)``."""
        return self.scale[:, None] * self.unit

    def directions(self) -> Float[Tensor, "rows length"]:
        """``v``, ``(rows, length)``."""
        return self.length[:, None] * self.unit

    def multipliers(self, *, polar: bool) -> tuple[Float[Tensor, "rows"], Float[Tensor, "rows"]]:
        """Radial and tangential multipliers of ``J``, ``(rows,)`` each; only their signs for its polar factor."""
        along, across = self.rate, self.scale / self.length
        return (along.sign(), across.sign()) if polar else (along, across)

    def push(
        self, g: Float[Tensor, "rows columns"], v: Float[Tensor, "rows length columns"], *, polar: bool
    ) -> Float[Tensor, "rows length columns"]:
        """Map ``(a, b)`` to ``along * a u + across * M b``: ``(rows, K)`` and ``(rows, length, K)``."""
        along, across = self.multipliers(polar=polar)
        inner = self._inner(v)
        coefficient = along[:, None] * g - across[:, None] * inner
        return across[:, None, None] * v + self.unit[:, :, None] * coefficient[:, None]

    def pull(
        self, block: Float[Tensor, "rows length columns"], *, polar: bool
    ) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, "rows length columns"]]:
        """Map ``r`` to ``(along * u.r, across * M r)``: the transpose of :meth:`push`."""
        along, across = self.multipliers(polar=polar)
        inner = self._inner(block)
        tangential = across[:, None, None] * (block - self.unit[:, :, None] * inner[:, None])
        return along[:, None] * inner, tangential

    def metric_root(self, block: Float[Tensor, "rows length columns"]) -> Float[Tensor, "rows length columns"]:
        r"""Multiply by $K^{1/2} = |along|\, u u^T + |across|\, M$."""
        along, across = (multiplier.abs() for multiplier in self.multipliers(polar=False))
        coefficient = (along - across)[:, None] * self._inner(block)
        return across[:, None, None] * block + self.unit[:, :, None] * coefficient[:, None]

    def without_unit(self, blocks: Float[Tensor, "rows length columns"]) -> Float[Tensor, "rows length columns"]:
        """``M B`` per row."""
        return blocks - self.unit[:, :, None] * self._inner(blocks)[:, None]

    def slopes(
        self, gradient: Float[Tensor, "rows length"]
    ) -> tuple[Float[Tensor, "rows"], Float[Tensor, "rows length"]]:
        """Radial part ``u.r`` ``(rows,)`` and tangential part ``M r`` ``(rows, length)`` of a weight gradient."""
        radial = (self.unit * gradient).sum(dim=1)
        return radial, gradient - radial[:, None] * self.unit

    def second_order_product(
        self,
        gradient: Float[Tensor, "rows length"],
        g: Float[Tensor, "rows columns"],
        v: Float[Tensor, "rows length columns"],
    ) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, "rows length columns"]]:
        """Multiply the second-order term for a weight gradient ``(rows, length)`` by a block ``(a, b)``."""
        radial, across = self.slopes(gradient)
        mixed = (self.rate / self.length)[:, None] * across
        bend = self.scale / self.length**2
        unit_v = self._inner(v)
        across_v = torch.einsum("ri, rik -> rk", across, v)
        mixed_v = torch.einsum("ri, rik -> rk", mixed, v)
        product_g = mixed_v + (self.scale * radial)[:, None] * g if self.log_scale else mixed_v
        product_v = mixed[:, :, None] * g[:, None] - bend[:, None, None] * (
            self.unit[:, :, None] * (across_v - radial[:, None] * unit_v)[:, None]
            + across[:, :, None] * unit_v[:, None]
            + radial[:, None, None] * v
        )
        return product_g, product_v

    def second_order(
        self, gradient: Float[Tensor, "rows length"]
    ) -> tuple[Float[Tensor, "rows"], Float[Tensor, "rows length"], Float[Tensor, "rows length length"]]:
        """Entries of the second-order term: ``gg`` ``(rows,)``, ``gv`` ``(rows, d)`` and ``vv`` ``(rows, d, d)``."""
        unit = self.unit
        radial, across = self.slopes(gradient)
        outer = unit[:, :, None] * across[:, None]
        projector = torch.eye(unit.shape[1], dtype=unit.dtype, device=unit.device) - unit[:, :, None] * unit[:, None]
        tangential = -(self.scale / self.length**2)[:, None, None] * (
            outer + outer.mT + radial[:, None, None] * projector
        )
        mixed = (self.rate / self.length)[:, None] * across
        return (self.scale * radial if self.log_scale else torch.zeros_like(radial)), mixed, tangential

    def horizontal_second_order(self, gradient: Float[Tensor, "rows length"]) -> Float[Tensor, "rows length length"]:
        """Entries of the second-order term on the horizontal space, mapped to the weights: ``(rows, d, d)``."""
        # The polar factor of J is (a, b) -> sign(a) u.x, sign(b) M x: M keeps the mixed part, and of the tangential one
        # what lies in M on both sides.
        along, across = self.multipliers(polar=True)
        radial, mixed, tangential = self.second_order(gradient)
        outer = self.unit[:, :, None] * ((along * across)[:, None] * mixed)[:, None]
        flat = across[:, None, None] ** 2 * self.without_unit(self.without_unit(tangential).mT)
        return flat + outer + outer.mT + radial[:, None, None] * self.unit[:, :, None] * self.unit[:, None]

    def _inner(self, block: Tensor) -> Tensor:
        """``u.b`` for each column, ``(rows, K)``."""
        return torch.einsum("ri, rik -> rk", self.unit, block)
