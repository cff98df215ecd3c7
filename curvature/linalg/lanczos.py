"""Lanczos tridiagonalization with full reorthogonalization, for many start vectors at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.linalg.memory import ensure_memory
from curvature.linalg.norms import vector_norms
from curvature.linalg.operator import SymmetricOperator

__all__ = ["lanczos"]


def lanczos(
    operator: SymmetricOperator, starts: Float[Tensor, "dim probes"], num_matvecs: int
) -> tuple[Float[Tensor, "probes steps"], Float[Tensor, "probes steps-1"]]:
    r"""Tridiagonalize a matrix on the Krylov space of each start vector, with one block product per step.

    Parameters
    ----------
    operator
        The matrix, ``D x D``.
    starts
        Start vectors, ``(D, P)``, none of them zero.
    num_matvecs
        Number of steps $m$.

    Returns
    -------
    tuple of Tensor
        Diagonals, ``(P, m)``, and off-diagonals, ``(P, m - 1)``. Where a Krylov space is exhausted before step $m$, the
        remaining entries are zero.

    Raises
    ------
    ResourceError
        If the bases, ``m * P`` vectors of length ``D``, do not fit in memory.
    """
    with operator.one_pool():
        return _tridiagonalized(operator, starts, num_matvecs)


def _tridiagonalized(operator: SymmetricOperator, starts: Tensor, num_matvecs: int) -> tuple[Tensor, Tensor]:
    dim, num_probes = starts.shape
    ensure_memory(num_matvecs * num_probes * dim * operator.dtype.itemsize, "the Lanczos basis")
    basis = torch.empty(num_probes, num_matvecs, dim, dtype=operator.dtype, device=operator.device)
    diagonal = starts.new_zeros(num_probes, num_matvecs)
    off_diagonal = starts.new_zeros(num_probes, num_matvecs)
    vectors = (starts / torch.linalg.vector_norm(starts, dim=0)).T.contiguous()
    scale = starts.new_zeros(num_probes)
    for step in range(num_matvecs):
        basis[:, step] = vectors
        residual = (operator @ vectors.T).T
        diagonal[:, step] = (vectors * residual).sum(dim=1)
        scale = torch.maximum(scale, vector_norms(residual, 1))
        if step + 1 == num_matvecs:
            break
        span = basis[:, : step + 1]
        # The three-term recurrence first: it leaves components along older vectors that are small, though not rounding.
        # Then full projections. Two are enough (Giraud, Langou & Rozloznik 2005), and one is if the vector has not
        # become much shorter (Daniel, Gragg, Kaufman & Stewart 1976).
        residual = residual - diagonal[:, step, None] * vectors
        if step:
            residual -= off_diagonal[:, step - 1, None] * basis[:, step - 1]
        for _ in range(3):
            before = vector_norms(residual, 1)
            residual = residual - _projected(span, residual)
            if (vector_norms(residual, 1) > 0.7 * before).all():
                break
        length = vector_norms(residual, 1)
        alive = length > dim * torch.finfo(operator.dtype).eps * scale
        off_diagonal[:, step] = torch.where(alive, length, 0)
        vectors = torch.where(alive[:, None], residual / torch.where(alive, length, 1)[:, None], 0)
    return diagonal, off_diagonal[:, : num_matvecs - 1]


def _projected(span: Tensor, vectors: Tensor) -> Tensor:
    """Project each vector of ``(P, D)`` on its orthonormal rows in ``(P, k, D)``; NumPy is five times as fast."""
    if span.device.type != "cpu":
        return torch.matmul(span.mT, torch.matmul(span, vectors[:, :, None]))[:, :, 0]
    rows = span.numpy()
    inner = np.matmul(rows, vectors.numpy()[:, :, None])
    return torch.from_numpy(np.matmul(inner.transpose(0, 2, 1), rows)[:, 0])
