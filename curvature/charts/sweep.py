r"""A matrix moved through a chart that acts row by row, both sides while a few rows of it are in cache.

Weight normalization maps each normalized row by $R$: $x \mapsto (a\, u^T x,\; b\, x + c\, u u^T x)$. $R A R^T$ by two
maps over the whole matrix and two transpositions is memory traffic; here a few rows of the matrix are mapped from the
left and, while they are still in cache, from the right. Only the upper triangle is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvature.linalg.dense import empty_square

__all__ = ["RowMap", "swept"]

_CACHE_BYTES = 2 * 2**20


@dataclass(frozen=True, eq=False)
class RowMap:
    r"""What happens to the rows of one weight: $x \mapsto (a\, u^T x,\; b\, x + c\, u u^T x)$; untouched if no unit.

    Attributes
    ----------
    source
        Where the rows lie in the matrix, one after the other.
    target
        Where the second part goes.
    unit
        $u$, ``(rows, length)``.
    keep, along
        $b$ and $c$, ``(rows,)``.
    scalar, radial
        Where the first part goes, and $a$; None if there is none.
    """

    source: slice
    target: slice
    unit: Tensor | None = None
    keep: Tensor | None = None
    along: Tensor | None = None
    scalar: slice | None = None
    radial: Tensor | None = None


def swept(matrix: Tensor, maps: Sequence[RowMap], dim: int) -> Tensor:
    """Map a symmetric ``(P, P)`` from both sides: ``(dim, dim)``, of which only the upper triangle is written.

    ``maps`` cover the coordinates in order. About one pass over the matrix and one over the result.
    """
    result = empty_square(dim, matrix.dtype, matrix.device)
    for number, current in enumerate(maps):
        rest = maps[number:]
        rows = matrix[current.source, current.source.start :]
        if current.unit is None:
            _from_the_right(rows, rest, result[current.target])
            continue
        unit, keep, along = current.unit, current.keep, current.along
        count, length = unit.shape
        step = max(1, _CACHE_BYTES // (length * len(matrix) * matrix.element_size()))
        for start in range(0, count, step):
            few = slice(start, min(start + step, count))
            at = slice(few.start * length, few.stop * length)
            part = rows[at].unflatten(0, (-1, length))
            inner = torch.bmm(unit[few, None], part)
            mapped = (part * keep[few, None, None]).baddbmm_((along[few, None] * unit[few])[:, :, None], inner)
            _from_the_right(mapped.flatten(0, 1), rest, result[current.target][at])
            if current.scalar is not None:
                _from_the_right(current.radial[few, None] * inner[:, 0], rest, result[current.scalar][few])
    return result


def _from_the_right(block: Tensor, maps: Sequence[RowMap], target: Tensor) -> None:
    """Map the columns of a few rows, those of the first map on, into their places in ``(rows, dim)``."""
    first = maps[0].source.start
    for current in maps:
        part = block[:, current.source.start - first : current.source.stop - first]
        place = target[:, current.target]
        if current.unit is None:
            place.copy_(part)
            continue
        part, place = (side.unflatten(1, current.unit.shape) for side in (part, place))
        inner = torch.einsum("ard, rd -> ar", part, current.unit)
        torch.mul(part, current.keep[:, None], out=place)
        place.addcmul_(inner[:, :, None], current.along[:, None] * current.unit)
        if current.scalar is not None:
            torch.mul(inner, current.radial, out=target[:, current.scalar])
