"""Euclidean norms that neither overflow nor underflow."""

from __future__ import annotations

import torch
from torch import Tensor

from curvature.arrays import Float

__all__ = ["vector_norms"]


def vector_norms(vectors: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
    r"""Compute $\|x\|$ along one axis, without overflow or underflow of the squares.

    Parameters
    ----------
    vectors
        A tensor of any shape.
    dim
        Axis of the vectors.

    Returns
    -------
    Tensor
        The norms; the axis is removed.

    Notes
    -----
    ``torch.linalg.vector_norm`` of ``1e-200`` is zero, so a residual of that size would look like zero. The check of
    the range costs little. Vectors are scaled first, in a few more passes, only if a norm is extreme.

    Examples
    --------
    >>> bool(vector_norms(torch.tensor([3e-200, 4e-200], dtype=torch.float64), 0) > 4.99e-200)
    True
    """
    norms = torch.linalg.vector_norm(vectors, dim=dim)
    limits = torch.finfo(vectors.dtype)
    if ((norms > limits.tiny**0.5 / limits.eps) & (norms < 0.01 * limits.max**0.5)).all():
        return norms
    largest = vectors.abs().amax(dim=dim, keepdim=True)
    units = vectors / torch.where(largest > 0, largest, 1.0)
    return largest.squeeze(dim) * torch.linalg.vector_norm(units, dim=dim)
