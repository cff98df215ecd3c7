"""A derivative against finite differences along one direction."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from curvature.arrays import Float

__all__ = ["deviation", "fixed_direction"]

_OFF = 1e-4  # relative difference of a derivative from finite differences that shows another function
_ROUNDING = 100  # units of rounding of a value


def fixed_direction(like: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return a fixed direction without zeros.

    Parameters
    ----------
    like
        A tensor of its shape, precision and device.

    Returns
    -------
    Tensor
        With entries between 0.5 and 1.5.
    """
    return 1 + 0.5 * torch.arange(like.numel(), device=like.device).sin().to(like).view_as(like)


def deviation(
    function: Callable[[Tensor], Tensor],
    weights: Float[Tensor, "weights"],
    direction: Float[Tensor, "weights"],
    slope: Tensor,
    *,
    length: float = 1.0,
) -> float:
    """Compare a derivative along a direction with central differences of two lengths.

    Parameters
    ----------
    function
        A function of the weights.
    weights
        The point ``(P,)``.
    direction
        A direction ``(P,)``.
    slope
        What the derivative should be.
    length
        Length of the longer step, times the usual one.

    Returns
    -------
    float
        The largest difference relative to the larger of both; zero where rounding or a kink may explain it, next to
        which differences of two lengths do not agree with each other.
    """
    eps = torch.finfo(slope.dtype).eps
    scale = float(torch.linalg.vector_norm(weights).clamp(min=1) / torch.linalg.vector_norm(direction))
    step = length * scale * eps ** (1 / 3)
    differences, largest = [], 0.0
    for each in (step, 0.1 * step):
        ahead, behind = (function(weights + sign * each * direction) for sign in (1, -1))
        differences.append((ahead - behind) / (2 * each))
        largest = max(largest, float(ahead.abs().max()))
    size = max(float(part.abs().max()) for part in (slope, *differences))
    steady = float((differences[0] - differences[1]).abs().max())
    off = float((differences[0] - slope).abs().max())
    return off / size if off > max(_OFF * size, 10 * steady, _ROUNDING * eps * largest / step) else 0.0
