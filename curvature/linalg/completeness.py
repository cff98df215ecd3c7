"""Completeness of extremal Ritz values: counted by inertia, or checked by Lanczos from a second start."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.linalg.lanczos import lanczos
from curvature.linalg.lapack import inertia
from curvature.linalg.operator import SymmetricOperator
from curvature.records import ExtremalEigenvalues
from curvature.records.bounds import FAILURE, spectral_bounds

__all__ = ["new_start", "verified"]

_INERTIA_DIM = 4096  # largest dimension at which eigenvalues are counted: seconds, and half a gigabyte
_SECOND_START = 50  # minimum of steps of the second run


def verified(
    operator: SymmetricOperator,
    record: ExtremalEigenvalues,
    ritz: Float[Tensor, "values dim"],
    every: Float[np.ndarray, "ritz"],
    generator: torch.Generator,
) -> ExtremalEigenvalues:
    """Look for eigenvalues that are missing in a record of extremal eigenvalues.

    Parameters
    ----------
    operator
        The matrix.
    record
        Ritz values at the ends of its spectrum.
    ritz
        Their vectors as rows, ``(k, D)``.
    every
        All Ritz values, ascending.
    generator
        Source of the second start vector.

    Returns
    -------
    ExtremalEigenvalues
        The record with ``complete``, ``unseen`` and ``num_missed``.

    Notes
    -----
    If a route to the entries is known and the dimension is at most 4096, the eigenvalues beyond the last value are
    counted by inertia, which is a proof. Otherwise Lanczos runs from a second random start, orthogonal to the vectors.
    """
    # The Ritz values can be paired with as many eigenvalues, copies counted, each within this radius (Kahan 1967).
    radius = math.hypot(*record.residuals) + record.noise_floor
    if operator.routes.entries is not None and operator.dim <= _INERTIA_DIM:
        matrix = operator.entries().double().cpu().numpy()
        top, over = _counted(matrix, record.largest, every, radius) if len(record.largest) else (np.inf, 0)
        bottom, under = _counted(-matrix, -record.smallest, -every, radius) if len(record.smallest) else (np.inf, 0)
        missed, unseen, status, products = over + under, (float(-bottom), float(top)), "certified by inertia", 0
    else:
        rest, reached, products = _second_start(operator, ritz, record.num_products, generator)
        over = int((rest > record.largest[-1] + radius).sum()) if len(record.largest) else 0
        under = int((rest < record.smallest[-1] - radius).sum()) if len(record.smallest) else 0
        low, high = spectral_bounds(
            float(rest[0]),
            float(rest[-1]),
            operator.dim - len(ritz),
            reached,
            positive_semidefinite=False,
            failure=FAILURE,
        )
        missed, unseen, status = over + under, (low - radius, high + radius), "checked by a second start"
    return replace(
        record,
        complete="incomplete" if missed else status,
        num_missed=missed,
        unseen=(-np.inf, np.inf) if missed else unseen,
        converged=record.converged and not missed,
        num_products=record.num_products + products,
    )


def new_start(
    span: Float[Tensor, "values dim"], width: int, generator: torch.Generator
) -> Float[Tensor, "columns dim"]:
    """Draw random orthonormal rows that are orthogonal to given ones.

    Parameters
    ----------
    span
        Orthonormal rows, ``(k, D)``.
    width
        Number of new rows.
    generator
        Source of the numbers.

    Returns
    -------
    Tensor
        ``(width, D)``.
    """
    rows = torch.randn(width, span.shape[1], generator=generator, dtype=torch.float64).to(span)
    for _ in range(2):  # one projection leaves rounding along the span, relative to the length before it
        rows = rows - (rows @ span.T) @ span
        rows = torch.linalg.qr(rows.T).Q.T
    return rows


def _counted(matrix: np.ndarray, descending: np.ndarray, every: np.ndarray, radius: float) -> tuple[float, int]:
    """Bound all eigenvalues that are not among the given largest ones, and count those that are missing."""
    last = float(descending[-1])
    beyond = np.sort(every[every < last - 4 * radius])
    if len(beyond):
        # There is a gap below the last value: a single count inside it decides, and bounds all other eigenvalues.
        gap = (last - radius + float(beyond[-1])) / 2
        _, above, error = inertia(matrix, gap)
        if above == len(descending) and error < last - radius - gap:
            return gap + error, 0
    # The last value may be one of several copies, so count just above its cluster.
    radius += len(matrix) * np.finfo(np.float64).eps * float(np.abs(every).max())
    edge = last + radius
    for value in descending[::-1]:
        if value <= edge + radius:
            edge = max(edge, float(value) + radius)
    _, above, error = inertia(matrix, edge)
    return edge + error, max(0, above - int((descending > edge).sum()))


def _second_start(
    operator: SymmetricOperator, ritz: Tensor, spent: int, generator: torch.Generator
) -> tuple[np.ndarray, int, int]:
    """Ritz values on the complement of the rows ``ritz``, the dimension of their Krylov space, and the products."""
    remaining_dim = operator.dim - len(ritz)
    start = new_start(ritz, 1, generator)
    # Rounding brings the removed vectors back, and they would grow if their eigenvalues were extreme. So on their span
    # the matrix is replaced by a multiple of the identity from the middle of the spectrum.
    middle = float((start @ (operator @ start.T)).squeeze())

    def matmat(block: Tensor) -> Tensor:
        removed = ritz.T @ (ritz @ block)
        image = operator @ (block - removed)
        return image - ritz.T @ (ritz @ image) + middle * removed

    remainder = replace(operator, where=replace(operator.where, matrix=f"the rest of {operator.name}"), matmat=matmat)
    steps = min(remaining_dim, max(_SECOND_START, spent // 2))
    diagonal, off_diagonal = (part[0].double().cpu() for part in lanczos(remainder, start.T, steps))
    used = next((k + 1 for k, coupling in enumerate(off_diagonal.tolist()) if coupling == 0), steps)
    small = torch.diag(diagonal[:used]) + torch.diag(off_diagonal[: used - 1], 1)
    small = small + torch.diag(off_diagonal[: used - 1], -1)
    # An exhausted Krylov space contains every eigenvalue of the rest, though not every copy: nothing is left to miss.
    return torch.linalg.eigvalsh(small).numpy(), remaining_dim if used < steps else used, steps + 1
