"""The factor of GGN-type matrices by one backward pass for all columns, and its Gram matrix without the factor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from curvature.linalg.dense import mirrored
from curvature.matrices.fast.chain import Chain, Layer, forward, matmul

__all__ = ["factor_rows", "gram"]

_CACHE_BYTES = 4 * 2**20


def factor_rows(chain: Chain, examples: slice, factor: Callable[[Tensor, Tensor, slice], Tensor]) -> Tensor:
    r"""Rows $(J_n^T S_n)^T$ of some examples: one backward pass for all columns, no Jacobian.

    Parameters
    ----------
    chain
        The layers.
    examples
        Which ones.
    factor
        ``(outputs, targets, examples)`` to $S_n$, ``(n, C, R)``.

    Returns
    -------
    Tensor
        ``(n R, P)``.
    """
    problem, layers = chain.problem, chain.layers
    inputs, outputs, slopes = forward(chain, examples, 1)
    signal = factor(outputs[-1], problem.targets[examples], examples).mT  # (n, R, C)
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


def gram(chain: Chain, factor: Callable[[Tensor, Tensor, slice], Tensor]) -> Tensor:
    r"""Gram matrix $B^T B$ of the factor $B = [J_1^T S_1, J_2^T S_2, \dots]$ without $B$.

    Parameters
    ----------
    chain
        The layers.
    factor
        ``(outputs, targets, examples)`` to $S_n$, ``(n, C, R)``.

    Returns
    -------
    Tensor
        ``(N R, N R)``.

    Notes
    -----
    With $\tilde a_l$ the inputs of layer $l$ (a 1 appended for the bias) and $G_l$ the columns of $S_n$ pulled back to
    its outputs, the entry for columns $r$ of example $n$ and $s$ of example $m$ is $\sum_l (\tilde a_{ln}^T \tilde
    a_{lm}) (g_{lnr}^T g_{lms})$: about $N^2 R^2$ times the sum of the widths, where $P$ would stand with $B$.
    """
    problem, layers = chain.problem, chain.layers
    inputs, outputs, slopes = forward(chain, slice(None), 1)
    signals = [factor(outputs[-1], problem.targets, slice(None)).mT.contiguous()]  # (N, R, C)
    for k in range(len(layers) - 1, 0, -1):
        signals.insert(0, (signals[0] @ layers[k].weight) * slopes[k - 1][0][:, None])
    count, width = signals[0].shape[:2]
    total = torch.zeros(count * width, count * width, dtype=problem.dtype, device=problem.device)
    step = max(1, _CACHE_BYTES // (count * width**2 * total.element_size()))
    kept = [_kept_columns(layer, a) for layer, a in zip(layers, inputs, strict=True)]
    for start in range(0, count, step):
        chunk, rest = slice(start, start + step), slice(start, None)  # the matrix is symmetric: only what lies above
        place = total[start * width : (start + step) * width, start * width :]
        place = place.unflatten(1, (-1, width)).unflatten(0, (-1, width))  # (n, r, m, s)
        for a, g in zip(kept, signals, strict=True):
            alike = matmul(a[chunk], a[rest].T)
            part = matmul(g[chunk].flatten(0, 1), g[rest].flatten(0, 1).T)
            place.addcmul_(part.view(place.shape), alike[:, None, :, None])
    return mirrored(total)


def _kept_columns(layer: Layer, inputs: Tensor) -> Tensor:
    """Augmented inputs without the columns of frozen parameters; none are left where both are frozen."""
    fan_in = layer.weight.shape[1]
    first = 0 if layer.weight_slice is not None else fan_in
    last = fan_in + (layer.bias is not None and layer.bias_slice is not None)
    return inputs[:, first:last]
