"""Dense symmetric matrices: products, and symmetrization and mirroring in tiles that fit into cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.errors import NonFiniteError, SelfCheckError

__all__ = ["mirrored", "symmetric_product", "symmetrized", "unfilled"]

_TILE = 512  # rows and columns of a tile: 2 MB in float64, so a tile and its transposed partner fit into cache
_STRIPE = 128  # rows that are copied at once into columns: measured half of the time of 512, for 300 to 4096 rows


def symmetrized(
    matrix: Float[Tensor, "dim dim"], name: str, terms: Callable[[], float] | None = None
) -> Float[Tensor, "dim dim"]:
    """Make a matrix that is symmetric up to rounding exactly symmetric, in place.

    Parameters
    ----------
    matrix
        ``(D, D)``; overwritten.
    name
        Name of the matrix, for messages.
    terms
        Returns the size of the terms whose sums the entries are, where they may cancel; called only if the entries are
        not symmetric up to rounding of the largest one.

    Returns
    -------
    Tensor
        ``matrix``.

    Raises
    ------
    NonFiniteError
        If an entry is NaN or infinite.
    SelfCheckError
        If it is not symmetric up to rounding.

    Notes
    -----
    The tolerance is relative to the largest entry, or to the terms of its sum, and grows with the square root of the
    dimension, as the rounding of sums with random signs does. The matrix is read once, in pairs of a tile and its
    transposed partner.
    """
    scale = matrix.new_zeros(())
    asymmetry = matrix.new_zeros(())
    for rows in _tiles(len(matrix)):
        for cols in _tiles(len(matrix), rows.start):
            # Both tiles are in cache for the comparison, the maximum and the mean: one pass over memory for all three.
            upper, lower = matrix[rows, cols], matrix[cols, rows].T
            scale = torch.maximum(scale, torch.stack(upper.aminmax()).abs().max())  # NaN propagates
            if not torch.equal(upper, lower):
                scale = torch.maximum(scale, lower.abs().max())
                asymmetry = torch.maximum(asymmetry, (upper - lower).abs_().max())
                mean = (upper + lower).mul_(0.5)
                matrix[rows, cols], matrix[cols, rows] = mean, mean.T
    if not torch.isfinite(scale):
        raise NonFiniteError(f"{name} has NaN or infinite entries; look at the model and the data at this point.")
    allowed = 100 * torch.finfo(matrix.dtype).eps * len(matrix) ** 0.5 * scale
    if asymmetry > allowed and (terms is None or asymmetry > allowed / scale * terms()):
        raise SelfCheckError(
            f"{name} is not symmetric: entries differ by {asymmetry / scale:.1e} of the largest, rounding allows "
            f"{allowed / scale:.1e}. A layer has a wrong or a random second derivative: freeze or replace it."
        )
    return matrix


def symmetric_product(
    matrix: Float[Tensor, "dim dim"], block: Float[Tensor, "dim columns"]
) -> Float[Tensor, "dim columns"]:
    """Multiply a symmetric matrix by a block of columns.

    Parameters
    ----------
    matrix
        Symmetric, ``(D, D)``.
    block
        ``(D, K)``.

    Returns
    -------
    Tensor
        ``(D, K)``.

    Notes
    -----
    On the CPU as rows times matrix by NumPy's BLAS, which was measured a third faster than matrix times columns.
    """
    if (
        matrix.device.type != "cpu" or matrix.dtype.itemsize < 4 or block.requires_grad
    ):  # NumPy has no half precision and no graph
        return matrix @ block
    return torch.from_numpy(block.T.contiguous().numpy() @ matrix.numpy()).T


def unfilled(*shape: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "..."]:
    """Allocate a large tensor without filling it.

    Parameters
    ----------
    *shape
        Shape of the tensor.
    dtype, device
        Precision and device of the tensor.

    Returns
    -------
    Tensor
        Uninitialized.

    Notes
    -----
    On the CPU by NumPy, which asks for huge pages: measured a tenth of the time of ``torch.empty`` and its page faults.
    """
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(shape, dtype=torch.empty(0, dtype=dtype).numpy().dtype))


def mirrored(matrix: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim dim"]:
    """Copy the upper triangle into the lower one, in place, a stripe of rows at a time.

    Parameters
    ----------
    matrix
        ``(D, D)``; overwritten.

    Returns
    -------
    Tensor
        ``matrix``.
    """
    for rows in _tiles(len(matrix), size=_STRIPE):
        matrix[rows.stop :, rows] = matrix[rows, rows.stop :].T
        tile = matrix[rows, rows]
        tile.copy_(tile.triu() + tile.triu(1).T)
    return matrix


def _tiles(dim: int, start: int = 0, size: int = _TILE) -> Iterator[slice]:
    return (slice(k, min(k + size, dim)) for k in range(start, dim, size))
