"""The factor of GGN-type matrices, by one backward pass for all columns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from curvature.structured.chain import Chain, forward

__all__ = ["factor_rows"]


def factor_rows(chain: Chain, where: slice, factor: Callable[[Tensor, Tensor, slice], Tensor]) -> Tensor:
    r"""Rows $(J_n^T S_n)^T$ of a few examples, ``(n R, P)``: one backward pass for all columns, no Jacobian.

    ``factor(outputs, targets, where)`` gives $S_n$, ``(n, C, R)``.
    """
    problem, layers = chain.problem, chain.layers
    inputs, outputs, slopes = forward(chain, where, 1)
    signal = factor(outputs[-1], problem.targets[where], where).mT  # (n, R, C)
    rows = torch.empty(*signal.shape[:2], problem.dim, dtype=problem.dtype, device=problem.device)
    for k in range(len(layers) - 1, -1, -1):
        layer = layers[k]
        fan_in = layer.weight.shape[1]
        if layer.weight_slice is not None:
            part = rows[:, :, layer.weight_slice].unflatten(2, (layer.fan_out, fan_in))
            torch.mul(signal[:, :, :, None], inputs[k][:, None, None, :fan_in], out=part)
        if layer.bias is not None and layer.bias_slice is not None:
            rows[:, :, layer.bias_slice] = signal
        if k:
            signal = (signal @ layer.weight) * slopes[k - 1][0][:, None]
    return rows.flatten(0, 1)
