"""Linear systems by conjugate gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.errors import ConvergenceError, NonFiniteError
from curvature.linalg.operator import SymmetricOperator, require_operator
from curvature.precision import full_precision
from curvature.removed import removed

__all__ = ["conjugate_gradients"]


@removed(shift="damping=shift")
@full_precision()
def conjugate_gradients(
    operator: SymmetricOperator,
    right_hand_sides: Float[Tensor, "dim *columns"],
    *,
    damping: float = 0.0,
    tolerance: float = 1e-10,
    max_products: int | None = None,
) -> Float[Tensor, "dim *columns"]:
    r"""Solve $(A + \lambda I) X = B$ for a positive definite matrix $A + \lambda I$, all columns together.

    Parameters
    ----------
    operator
        The matrix $A$, ``D x D``.
    right_hand_sides
        $B$, ``(D,)`` or ``(D, K)``.
    damping
        $\lambda$, in the unit of the eigenvalues.
    tolerance
        Largest residual of each column at the end, relative to its right-hand side. The residual is recomputed by a
        product before the iteration stops.
    max_products
        Budget of block products; None: ``10 D``.

    Returns
    -------
    Tensor
        $X$, in the shape of $B$.

    Raises
    ------
    ConvergenceError
        If the budget is not enough, or a direction of negative curvature shows that $A + \lambda I$ is not positive
        definite.
    NonFiniteError
        If NaN or infinity appears.

    Notes
    -----
    Costs one block product per iteration. The number of iterations grows with the root of the condition number.

    References
    ----------
    .. [1] Hestenes, Stiefel (1952). Methods of conjugate gradients for solving linear systems. J. Res. Natl. Bur.
       Stand. 49(6). doi:10.6028/jres.049.044
    """
    require_operator(operator, "conjugate_gradients")
    sides = right_hand_sides[:, None] if right_hand_sides.ndim == 1 else right_hand_sides
    with operator.one_pool():
        solution = _solved(
            operator, sides, damping, tolerance, 10 * operator.dim if max_products is None else max_products
        )
    return solution[:, 0] if right_hand_sides.ndim == 1 else solution


def _solved(operator: SymmetricOperator, sides: Tensor, damping: float, tolerance: float, budget: int) -> Tensor:
    def apply(block: Tensor) -> Tensor:
        return operator @ block + damping * block

    # Each column has its own step lengths; columns that have converged no longer move.
    solution = torch.zeros_like(sides)
    residual = sides.clone()
    direction = residual.clone()
    squares = (residual**2).sum(dim=0)
    goal = (tolerance * torch.linalg.vector_norm(sides, dim=0)) ** 2
    used = 0
    while True:
        if (squares <= goal).all():
            residual = sides - apply(solution)  # the updated residual drifts from the true one
            squares = (residual**2).sum(dim=0)
            if (squares <= 4 * goal).all():
                return solution
            direction = residual.clone()
        if used >= budget:
            worst = float((squares / (goal / tolerance**2).clamp(min=1e-300)).max().sqrt())
            raise ConvergenceError(
                f"Conjugate gradients on {operator.name} stopped after {used} products with a relative residual of "
                f"{worst:.1e}. Raise max_products, the damping, or the tolerance."
            )
        image = apply(direction)
        used += 1
        curvature = (direction * image).sum(dim=0)
        active = squares > goal
        if (curvature[active] <= 0).any():
            raise ConvergenceError(
                f"{operator.name} + {damping:g} I is not positive definite: a direction of negative curvature "
                "appeared. Raise the damping."
            )
        step = torch.where(active, squares / torch.where(active, curvature, 1), 0)
        solution = solution + step * direction
        residual = residual - step * image
        shorter = (residual**2).sum(dim=0)
        if not torch.isfinite(shorter).all():
            raise NonFiniteError(f"Conjugate gradients on {operator.name} produced NaN or infinity.")
        direction = residual + torch.where(active, shorter / torch.where(squares > 0, squares, 1), 0) * direction
        squares = shorter
