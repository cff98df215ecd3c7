"""Products with the matrix of a convolutional network, linearized once by hand."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from curvature.matrices.fast.chain import matmul
from curvature.matrices.fast.network import Network, Pointwise, Select, Weighted, forward
from curvature.matrices.fast.products import OutputProduct

__all__ = ["NetworkProducts", "product_bytes"]

_TANGENT_BYTES = 4 * 2**20


def product_bytes(network: Network) -> tuple[float, float]:
    """Upper bounds of the memory of :class:`NetworkProducts`: held once, and for each column of a block on top."""
    problem = network.problem
    # Slopes, bends and gradients beside the signals; one column's tangents may be larger than the cache allows.
    return 6.0 * network.trace_bytes + 8 * _TANGENT_BYTES, 2.0 * problem.dim * problem.weights.element_size()


class NetworkProducts:
    r"""Products of the Hessian or a GGN-type matrix with blocks of vectors, the network linearized once.

    As :class:`curvature.matrices.fast.Products`, with patches for the inputs of a convolution and one matrix for its
    weights (``network.linearizes`` says where that is worth it). Tangents and cotangents here are ``(columns, n,
    size)``. Memory: patches and slopes of all examples.
    """

    def __init__(self, network: Network, output_product: OutputProduct, *, second_order: bool):
        self.network, self.second_order = network, second_order
        problem, steps = network.problem, network.steps
        trace = self.trace = forward(network, slice(None), 2 if second_order else 1)
        self.curve = output_product(trace.outputs, problem.targets)
        self.gradients: dict[int, Tensor] = {}  # at the outputs of the layers
        self.bends: dict[int, Tensor] = {}
        if second_order:
            slope = problem.loss.gradient(trace.outputs, problem.targets)[None] / problem.denominator
            for s in range(len(steps) - 1, network.trained[0] - 1, -1):
                if isinstance(steps[s], Weighted):
                    self.gradients[s] = slope[0]
                elif isinstance(steps[s], Pointwise):
                    self.bends[s] = slope[0] * trace.bends[s]
                if s > network.trained[0]:
                    slope = self._pull(s, slope)
        widest = max(prod(step.shape) for step in steps)
        self.columns = max(1, _TANGENT_BYTES // (problem.num_examples * widest * problem.weights.element_size()))

    def __call__(self, block: Tensor) -> Tensor:
        """Multiply ``(P, K)``."""
        parts = [self._few(part) for part in block.split(self.columns, dim=1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _few(self, block: Tensor) -> Tensor:
        steps, first, count = self.network.steps, self.network.trained[0], block.shape[1]
        vectors = block.T.contiguous()
        found = torch.empty_like(vectors)
        weight_dots = {}
        dots: dict[int, Tensor] = {}  # of what enters a step
        dot = None
        for s in range(first, len(steps)):
            step = steps[s]
            if dot is not None:
                dots[s] = dot
                dot = self._push(s, dot)
            if isinstance(step, Weighted) and step.trained:
                weight_dots[s] = self._rows(step, vectors)
                moved = matmul(self.trace.rows[s].flatten(0, 1), weight_dots[s].mT)  # (K, n T, O)
                moved = moved.view(count, -1, step.positions, step.fan_out).mT.flatten(2)
                dot = moved if dot is None else dot + moved
        curved = self.curve(dot.transpose(0, 1)).div_(self.network.problem.denominator)
        slope_dot = curved.transpose(0, 1).contiguous()
        for s in range(len(steps) - 1, first - 1, -1):
            step = steps[s]
            if s in weight_dots:
                self._collect(s, slope_dot, dots.get(s), found)
            if s == first:
                break
            back = self._pull(s, slope_dot)
            if self.second_order and s in weight_dots:
                back += matmul(self.gradients[s], step.spread(weight_dots[s][..., : step.fan_in]))
            elif self.second_order and isinstance(step, Pointwise):
                back.addcmul_(self.bends[s], dots[s])
            slope_dot = back
        return found.T

    def _rows(self, layer: Weighted, vectors: Tensor) -> Tensor:
        """The vectors' parts that belong to a layer, ``(K, O, columns)``, zero where it is frozen."""
        dots = vectors.new_zeros(len(vectors), layer.fan_out, layer.columns)
        for at, place in layer.places:
            dots[..., at] = vectors[:, place].view(len(vectors), layer.fan_out, -1)
        return dots

    def _collect(self, s: int, slope_dot: Tensor, signal_dot: Tensor | None, found: Tensor) -> None:
        layer = self.network.steps[s]
        slopes = slope_dot.unflatten(2, (layer.fan_out, -1)).mT.reshape(len(found), -1, layer.fan_out)
        total = matmul(slopes.mT, self.trace.rows[s].flatten(0, 1))
        if self.second_order and signal_dot is not None:
            total[..., : layer.fan_in] += layer.gather(matmul(self.gradients[s].T, signal_dot))
        for at, place in layer.places:
            found[:, place] = total[..., at].flatten(1)

    def _push(self, s: int, block: Tensor) -> Tensor:
        step = self.network.steps[s]
        if isinstance(step, Pointwise):
            return block * self.trace.slopes[s]
        if isinstance(step, Weighted):
            return matmul(block, step.matrix.T)
        if isinstance(step, Select):
            return block.gather(2, self.trace.chosen[s].expand(len(block), -1, -1))
        return step.module(block.reshape(-1, *step.before)).view(*block.shape[:2], -1)

    def _pull(self, s: int, block: Tensor) -> Tensor:
        step = self.network.steps[s]
        if isinstance(step, Pointwise):
            return block * self.trace.slopes[s]
        if isinstance(step, Weighted):
            return matmul(block, step.matrix)
        if isinstance(step, Select):
            found = block.new_zeros(*block.shape[:2], prod(step.before))
            return found.scatter_add_(2, self.trace.chosen[s].expand(len(block), -1, -1), block)
        return step.pull(block.flatten(0, 1)[..., None]).view(*block.shape[:2], -1)
