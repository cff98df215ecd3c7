r"""The factor of GGN-type matrices of convolutional networks, and the dense matrix from it, block by block.

With $G_l = (\partial z_l / \partial f)^T S$ the factor's $R$ columns pulled back to the outputs of layer ``l`` (see
:mod:`curvature.matrices.fast.convolution` for the rest), the block of two layers is the product of their rows of the
factor, $\sum_r (\sum_t G_l[t,o,r]\, a_l[t,i]) (\sum_{t'} G_k[t',o',r]\, a_k[t',i'])$, about $N R P_l P_k$
multiplications; or it is $\sum_t a_l[t,i] \sum_{t'} (\sum_r G_l[t,o,r]\, G_k[t',o',r])\, a_k[t',i']$, about $N T_l
P_l P_k$ where layer ``l`` has fewer positions. Each block takes the cheaper: $N \min(R, T_l, T_k) P_l P_k$.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from torch import Tensor

from curvature.matrices.fast.chain import matmul
from curvature.matrices.fast.convolution import assemble, contract, examples_at_once, held_bytes, pull
from curvature.matrices.fast.network import Network, Trace, Weighted, forward

__all__ = ["factor_rows", "gauss_newton", "gauss_newton_bytes", "gauss_newton_cost"]


def factor_rows(network: Network, where: slice, factor: Callable[[Tensor, Tensor, slice], Tensor]) -> Tensor:
    r"""Rows $(J_n^T S_n)^T$ of a few examples, ``(n R, P)``: one backward pass for all columns, no Jacobian.

    ``factor(outputs, targets, where)`` gives $S_n$, ``(n, C, R)``.
    """
    problem, trace = network.problem, forward(network, where, 1)
    chunk = _Chunk(network, trace, factor(trace.outputs, problem.targets[where], where))
    found = problem.weights.new_empty(len(trace.outputs), chunk.num_columns, problem.dim)
    for s in network.trained:
        step = network.steps[s]
        rows = chunk.rows(s).unflatten(2, (step.fan_out, step.columns))
        for at, place in step.places:
            found[:, :, place] = rows[..., at].flatten(2)
    return found.flatten(0, 1)


def gauss_newton(network: Network, factor: Callable[[Tensor, Tensor, slice], Tensor], num_columns: int) -> Tensor:
    r"""Dense $\sum_n J_n^T S_n S_n^T J_n$, ``(P, P)``; ``factor(outputs, targets, where)`` gives $S_n$, ``(n, C, R)``.

    ``num_columns`` is ``R``. Streams the examples in chunks; memory is the result, its blocks, and a bounded buffer.
    """
    problem = network.problem
    blocks = {
        (s, k): problem.weights.new_zeros(network.steps[s].num_weights, network.steps[k].num_weights)
        for s, k in _pairs(network)
    }
    size = examples_at_once(network, _numbers_per_example(network, num_columns))
    for start in range(0, problem.num_examples, size):
        where = slice(start, start + size)
        trace = forward(network, where, 1)
        chunk = _Chunk(network, trace, factor(trace.outputs, problem.targets[where], where))
        for (s, k), block in blocks.items():
            chunk.add(s, k, block)
    return assemble(network, blocks)


def gauss_newton_bytes(network: Network, num_columns: int) -> float:
    """Upper bound of the memory of :func:`gauss_newton`."""
    numbers = _numbers_per_example(network, num_columns)
    return held_bytes(network, numbers, examples_at_once(network, numbers))


def gauss_newton_cost(network: Network, num_columns: int) -> float:
    """Multiplications of :func:`gauss_newton`, per example."""
    total = 0.0
    for s, k in _pairs(network):
        layer, other = network.steps[s], network.steps[k]
        total += min(num_columns, layer.positions) * layer.num_weights * other.num_weights / (1 + (s == k))
    return total


def _pairs(network: Network) -> list[tuple[int, int]]:
    """Every two layers, the one with fewer positions first: its patches are contracted last."""
    order = sorted(network.trained, key=lambda s: network.steps[s].positions)
    return [(s, k) for place, s in enumerate(order) for k in order[place:]]


def _numbers_per_example(network: Network, num_columns: int) -> int:
    """What is held at once for one example, roughly."""
    layers = [network.steps[s] for s in network.trained]
    signals = sum(prod(step.shape) for step in network.steps)
    rows = sum(num_columns * layer.num_weights for layer in layers if layer.positions >= num_columns)
    pairs = ((network.steps[s], network.steps[k]) for s, k in _pairs(network))
    middle = (prod(s.shape) * _width(k, num_columns) for s, k in pairs if s.positions < num_columns)
    patches = sum(layer.positions * layer.columns for layer in layers)
    return patches + (2 * num_columns + 3) * signals + rows + 2 * max(middle, default=0)


def _width(layer: Weighted, num_columns: int) -> int:
    """How many columns of a layer the derivatives are first taken by: its outputs, or its weights."""
    return prod(layer.shape) if layer.positions < num_columns else layer.num_weights


class _Chunk:
    """The factor of a few examples: its columns pulled back to the outputs of each layer, and its rows."""

    def __init__(self, network: Network, trace: Trace, block: Tensor):
        self.steps, self.trace, self.num_columns = network.steps, trace, block.shape[2]
        self.signals: dict[int, Tensor] = {}  # (n, O T, R)
        self.kept: dict[int, Tensor] = {}
        for s in range(len(network.steps) - 1, network.trained[0] - 1, -1):
            if s in network.trained:
                self.signals[s] = block
            if s > network.trained[0]:
                block = pull(network.steps[s], s, trace, block)

    def add(self, s: int, k: int, block: Tensor) -> None:
        """Add to the block ``(P_s, P_k)`` of two layers, ``s`` the one with fewer positions."""
        layer, other, count = self.steps[s], self.steps[k], len(self.signals[s])
        if self.num_columns <= layer.positions:
            block += matmul(self._kept_rows(s).flatten(0, 1).T, self._kept_rows(k).flatten(0, 1))
            return
        signal = self.signals[s].unflatten(1, (layer.fan_out, -1)).transpose(1, 2).flatten(1, 2)  # (n, T O, R)
        by_outputs = other.positions < self.num_columns
        middle = matmul(signal, self.signals[k].mT if by_outputs else self._kept_rows(k))
        middle = middle.view(count, layer.positions, layer.fan_out, other.fan_out, -1)
        contract(self.trace.rows[s], middle, self.trace.rows[k] if by_outputs else None, block, s == k)

    def rows(self, k: int) -> Tensor:
        """Rows of the factor, the part of one layer: ``(n, R, P_k)``."""
        layer, signal = self.steps[k], self.signals[k]
        signal = signal.mT.reshape(len(signal), -1, layer.positions)  # (n, R O, T)
        return matmul(signal, self.trace.rows[k]).view(len(signal), self.num_columns, layer.num_weights)

    def _kept_rows(self, k: int) -> Tensor:
        if k not in self.kept:
            self.kept[k] = self.rows(k)
        return self.kept[k]
