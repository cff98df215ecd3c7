"""Whether PyTorch's derivative is that of the loss: ``detach()`` in ``forward`` can put another one in its place.

It is then that of the loss in which the detached values are constant, at the weights where they were computed. The
optimizer follows that gradient, so it is a legitimate wish, and there is a warning and no refusal.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.models.behaviour import narrower
from curvature.models.function import ModelFunction
from curvature.models.module.copying import private_copy
from curvature.models.trees import Tensors, as_type
from curvature.models.trial.differences import deviation, fixed_direction

__all__ = ["note_surrogate"]

_NEAR = 1e-3  # steps as long as this part of the usual one meet no jump of 1e6 quantized weights
_ASIDE = 1e-3  # distance from kinks at the weights themselves, such as the ReLU of a bias that starts at zero


def note_surrogate(
    function: ModelFunction,
    weights: Float[Tensor, "weights"],
    inputs: Tensors,
    loss: Callable[[Tensor], Tensor],
) -> str:
    """Say that the gradient is not the derivative of the loss, because ``forward`` or the loss detaches a part of it.

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
        A note; empty if both agree, or cannot be compared.

    Notes
    -----
    Compared in float64, at a point a little beside the weights, which may be at a kink. Costs one gradient and four
    forward passes.
    """
    try:
        if weights.dtype != torch.float64:
            function = replace(function, module=private_copy(function.module, torch.float64))
            weights, inputs = weights.double(), as_type(inputs, torch.float64, weights.device)
        off = _deviation_of_gradient(function, weights, inputs, loss)
    except Exception:  # of the user's code, which may have no value there or in that precision
        return ""
    if not off:
        return ""
    note = (
        "PyTorch's gradient is not the derivative of this loss: along one direction they differ by "
        f"{100 * off:.3g} % of the larger one. The forward pass or the loss detaches values that depend on the weights "
        "(a straight-through estimator or a stop-gradient). Gradients, products, traces and entries are those of the "
        "loss with these values held constant, and the self-checks of a spectrum may refuse them. For matrices of the "
        "loss itself, remove detach(), .data and torch.no_grad()."
    )
    warnings.warn(note, stacklevel=4)  # the call of from_module
    return note


def _deviation_of_gradient(
    function: ModelFunction, weights: Tensor, inputs: Tensors, loss: Callable[[Tensor], Tensor]
) -> float:
    direction = fixed_direction(weights)
    aside = (1.7 * torch.arange(len(weights), device=weights.device) + 1).cos().to(weights)
    size = torch.linalg.vector_norm(weights).clamp(min=1) / torch.linalg.vector_norm(aside)
    weights = weights + _ASIDE * size * aside
    _, leaves, value = function.loss_graph(weights, inputs, loss)
    if narrower(value, weights.dtype):  # a model in float32 may cast to it
        return 0.0
    parts = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    slope = torch.cat([part.reshape(-1) for part in parts]) @ direction

    def value_at(point: Tensor) -> Tensor:
        return function.loss_graph(point, inputs, loss)[2].detach()

    return deviation(value_at, weights, direction, slope.detach(), length=_NEAR)
