"""Derivatives of a vector function in several directions at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from curvature.arrays import Float

__all__ = ["derivative_along"]


def derivative_along(
    function: Callable[[Tensor], Tensor], point: Float[Tensor, "dim"], tangents: Float[Tensor, "dim columns"]
) -> Float[Tensor, "values columns"]:
    """Differentiate a function of a vector in several directions.

    Parameters
    ----------
    function
        A differentiable function from vectors to vectors.
    point
        Where, ``(Q,)``.
    tangents
        The directions as columns, ``(Q, K)``.

    Returns
    -------
    Tensor
        One derivative per column.
    """

    def along(tangent: Tensor) -> Tensor:
        return torch.func.jvp(function, (point,), (tangent,))[1]

    # Stacked in front: torch's vmap misplaces an output that does not depend on the tangent (a linear map) elsewhere.
    return torch.func.vmap(along, in_dims=1)(tangents).T
