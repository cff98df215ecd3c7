"""Whether PyTorch's derivative is that of the loss: ``detach()`` in ``forward`` can put another one in its place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from curvature.models.function import ModelFunction
from curvature.models.trees import Tensors

__all__ = ["note_surrogate"]

_OFF = 1e-3  # relative distance of a slope from what finite differences allow


def note_surrogate(
    function: ModelFunction,
    weights: Tensor,
    inputs: Tensors,
    loss: Callable[[Tensor], Tensor],
) -> str:
    """Compare the gradient with the loss itself along one direction.

    Parameters
    ----------
    function
        The model.
    weights
        The point ``(P,)``.
    inputs
        A few examples ``(N, ...)``.
    loss
        Maps their outputs to one scalar.

    Returns
    -------
    str
        A sentence for the user; empty if the two agree, or in less than float64, where differences are too coarse.

    Notes
    -----
    At a kink every number between the slopes of both sides is an answer, so the slope is compared with the range of
    one-sided differences of two lengths. A straight-through estimator of a rounding is far outside: the loss does not
    change at all. It is a legitimate wish, since the optimizer sees that gradient, so it is a note and no refusal.
    """
    if weights.dtype != torch.float64:
        return ""
    # Signs and lengths without a pattern that a symmetry of the weights could cancel.
    direction = 1 + 0.5 * torch.arange(weights.numel(), device=weights.device).sin().to(weights)
    direction *= torch.linalg.vector_norm(weights).clamp(min=1) / torch.linalg.vector_norm(direction)
    _, leaves, total = function.loss_graph(weights, inputs, loss)
    gradient = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    parts = function.layout.unflatten(direction).values()
    slope = sum(float((part * way).sum()) for part, way in zip(gradient, parts, strict=True))

    def value(step: float) -> float:
        with torch.no_grad():
            return float(loss(function.predict(weights + step * direction, inputs)))

    here, unit = value(0.0), torch.finfo(weights.dtype).eps
    steps = [sign * length * unit ** (1 / 3) for length in (1.0, 0.1) for sign in (1, -1)]
    slopes = [(value(step) - here) / step for step in steps]
    rounding = 100 * unit * abs(here) / min(map(abs, steps))
    allowed = _OFF * max(map(abs, (slope, *slopes))) + rounding
    if min(slopes) - allowed <= slope <= max(slopes) + allowed:
        return ""
    true = sum(slopes) / len(slopes)
    return (
        "PyTorch's gradient is not the derivative of this loss: along one direction it is "
        f"{slope:.3g}, the loss itself changes by {true:.3g}. forward detaches something that depends on the weights, "
        "as a straight-through estimator does. Every matrix here is made of PyTorch's derivatives, which the optimizer "
        "sees too; they belong to no loss, so a Hessian of them need not be symmetric."
    )
