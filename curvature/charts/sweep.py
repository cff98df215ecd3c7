r"""A matrix mapped through a chart that acts row by row, both sides while a few rows of it are in cache.

Weight normalization maps each normalized row by $R$: $x \mapsto (a\, u^T x,\; b\, x + c\, u u^T x)$. $R A R^T$ by two
maps over the whole matrix and two transpositions is memory traffic; here a few rows of the matrix are mapped from the
left and, while they are still in cache, from the right. Only the upper triangle is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.linalg.dense import unfilled

__all__ = ["RowAction", "RowMap", "swept"]

_CACHE_BYTES = 2 * 2**20


@dataclass(frozen=True, eq=False)
class RowAction:
    r"""The map $x \mapsto (a\, u^T x,\; b\, x + c\, u u^T x)$ of each row.

    Attributes
    ----------
    unit
        $u$, ``(rows, length)``.
    keep, along
        $b$ and $c$, ``(rows,)``.
    radial
        Positions of the first part in the result, and $a$; None if there is no first part.
    """

    unit: Float[Tensor, "rows length"]
    keep: Float[Tensor, "rows"]
    along: Float[Tensor, "rows"]
    radial: tuple[slice, Float[Tensor, "rows"]] | None = None


@dataclass(frozen=True, eq=False)
class RowMap:
    """What happens to the rows of one weight.

    Attributes
    ----------
    source
        Positions of the contiguous rows in the matrix.
    target
        Positions of the mapped rows in the result.
    action
        The map; None copies the rows.
    """

    source: slice
    target: slice
    action: RowAction | None = None


def swept(matrix: Float[Tensor, "weights weights"], maps: Sequence[RowMap], dim: int) -> Float[Tensor, "dim dim"]:
    """Map a symmetric matrix from both sides.

    Parameters
    ----------
    matrix
        ``(P, P)``.
    maps
        What happens to each weight; they cover the ``P`` positions in order.
    dim
        Size of the result.

    Returns
    -------
    Tensor
        ``(dim, dim)``, of which only the upper triangle is written.

    Notes
    -----
    About one pass over the matrix and one over the result.
    """
    result = unfilled(dim, dim, dtype=matrix.dtype, device=matrix.device)
    for number, current in enumerate(maps):
        rest = maps[number:]
        rows = matrix[current.source, current.source.start :]
        action = current.action
        if action is None:
            _from_the_right(rows, rest, result[current.target])
            continue
        count, length = action.unit.shape
        step = max(1, _CACHE_BYTES // (length * len(matrix) * matrix.element_size()))
        for start in range(0, count, step):
            chunk = slice(start, min(start + step, count))
            span = slice(chunk.start * length, chunk.stop * length)
            unit, keep, along = action.unit[chunk], action.keep[chunk], action.along[chunk]
            part = rows[span].unflatten(0, (-1, length))
            inner = torch.bmm(unit[:, None], part)
            mapped = (part * keep[:, None, None]).baddbmm_((along[:, None] * unit)[:, :, None], inner)
            _from_the_right(mapped.flatten(0, 1), rest, result[current.target][span])
            if action.radial is not None:
                target, factor = action.radial
                _from_the_right(factor[chunk, None] * inner[:, 0], rest, result[target][chunk])
    return result


def _from_the_right(block: Tensor, maps: Sequence[RowMap], target: Tensor) -> None:
    """Map the columns of a few rows, from those of the first map on, into ``target (rows, dim)``."""
    first = maps[0].source.start
    for current in maps:
        part = block[:, current.source.start - first : current.source.stop - first]
        result = target[:, current.target]
        action = current.action
        if action is None:
            result.copy_(part)
            continue
        part, result = (side.unflatten(1, action.unit.shape) for side in (part, result))
        inner = torch.einsum("ard, rd -> ar", part, action.unit)
        torch.mul(part, action.keep[:, None], out=result)
        result.addcmul_(inner[:, :, None], action.along[:, None] * action.unit)
        if action.radial is not None:
            span, factor = action.radial
            torch.mul(inner, factor, out=target[:, span])
