"""Products with the Hessian or a matrix of the form of the GGN, for a convolutional network, linearized once."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.matrices.fast.chain import matmul
from curvature.matrices.fast.network import Network, forward
from curvature.matrices.fast.products import OutputProduct
from curvature.matrices.fast.steps import Pointwise, Select, Weighted

__all__ = ["NetworkProducts", "product_bytes"]

_TANGENT_BYTES = 4 * 2**20  # of the tangents of all examples at one step: sets the number of columns at once


def product_bytes(network: Network) -> tuple[float, float]:
    """Bound the peak memory of :class:`NetworkProducts`.

    Parameters
    ----------
    network
        The network.

    Returns
    -------
    tuple of float
        Bytes that do not depend on the number of columns, and bytes for each column of a block.
    """
    problem = network.problem
    # Slopes, bends and gradients in addition to the signals. The tangents of one column may exceed _TANGENT_BYTES.
    return 6.0 * network.trace_bytes + 8 * _TANGENT_BYTES, 2.0 * problem.dim * problem.weights.element_size()


class NetworkProducts:
    r"""Products with blocks of vectors for a convolutional network, which is linearized once.

    The algorithm is that of :class:`curvature.matrices.fast.products.Products`. The inputs of a convolution are
    patches, and the layer is one matrix (``network.linearizes`` decides whether that is worth it). Tangents and
    cotangents are ``(K, n, size)``. Patches and slopes of all examples are kept in memory.
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

    def __call__(self, block: Float[Tensor, "weights columns"]) -> Float[Tensor, "weights columns"]:
        """Multiply a block of vectors ``(P, K)``."""
        parts = [self._product(part) for part in block.split(self.columns, dim=1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _product(self, block: Tensor) -> Tensor:
        """Multiply a few columns: tangents forward through all steps, then tangents of the gradients back."""
        steps, first, count = self.network.steps, self.network.trained[0], block.shape[1]
        vectors = block.T.contiguous()
        image = torch.empty_like(vectors)
        weight_dots: dict[int, Tensor] = {}
        dots: dict[int, Tensor] = {}  # tangents of the inputs of each step
        # Forward: z_dot = W a_dot + W_dot a.
        dot: Tensor | None = None
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
        assert dot is not None  # the first step is a layer that moves
        # Backward, from the Hessian of the loss times the tangents of the outputs: g_dot.
        curved = self.curve(dot.transpose(0, 1)).div_(self.network.problem.denominator)
        slope_dot = curved.transpose(0, 1).contiguous()
        for s in range(len(steps) - 1, first - 1, -1):
            step = steps[s]
            if s in weight_dots:
                self._collect(s, slope_dot, dots.get(s), image)
            if s == first:
                break
            # W^T g_dot, and for the Hessian W_dot^T g at a layer and g phi'' z_dot at an elementwise step.
            back = self._pull(s, slope_dot)
            if self.second_order and isinstance(step, Weighted) and s in weight_dots:
                back += matmul(self.gradients[s], step.spread(weight_dots[s][..., : step.fan_in]))
            elif self.second_order and isinstance(step, Pointwise):
                back.addcmul_(self.bends[s], dots[s])
            slope_dot = back
        return image.T

    def _rows(self, layer: Weighted, vectors: Tensor) -> Tensor:
        """Parts of the vectors that belong to a layer, ``(K, O, columns)``; zero for frozen parameters."""
        dots = vectors.new_zeros(len(vectors), layer.fan_out, layer.columns)
        for columns, place in layer.places:
            dots[..., columns] = vectors[:, place].view(len(vectors), layer.fan_out, -1)
        return dots

    def _collect(self, s: int, slope_dot: Tensor, signal_dot: Tensor | None, image: Tensor) -> None:
        """Write the part of a layer, the sum of ``g_dot a^T`` and for the Hessian of ``g a_dot^T``."""
        layer = self.network.layer(s)
        slopes = slope_dot.unflatten(2, (layer.fan_out, -1)).mT.reshape(len(image), -1, layer.fan_out)
        total = matmul(slopes.mT, self.trace.rows[s].flatten(0, 1))
        if self.second_order and signal_dot is not None:
            total[..., : layer.fan_in] += layer.gather(matmul(self.gradients[s].T, signal_dot))
        for columns, place in layer.places:
            image[:, place] = total[..., columns].flatten(1)

    def _push(self, s: int, block: Tensor) -> Tensor:
        """Push tangents ``(K, n, inputs)`` forward through a step."""
        step = self.network.steps[s]
        if isinstance(step, Pointwise):
            return block * self.trace.slopes[s]
        if isinstance(step, Weighted):
            return matmul(block, _matrix(step).T)
        if isinstance(step, Select):
            return block.gather(2, self.trace.chosen[s].expand(len(block), -1, -1))
        return step.module(block.reshape(-1, *step.before)).view(*block.shape[:2], -1)

    def _pull(self, s: int, block: Tensor) -> Tensor:
        """Pull cotangents ``(K, n, outputs)`` back through a step."""
        step = self.network.steps[s]
        if isinstance(step, Pointwise):
            return block * self.trace.slopes[s]
        if isinstance(step, Weighted):
            return matmul(block, _matrix(step))
        if isinstance(step, Select):
            pulled = block.new_zeros(*block.shape[:2], prod(step.before))
            return pulled.scatter_add_(2, self.trace.chosen[s].expand(len(block), -1, -1), block)
        return step.pull(block.flatten(0, 1)[..., None]).view(*block.shape[:2], -1)


def _matrix(layer: Weighted) -> Tensor:
    """The layer as one matrix, which every layer but the first has if the network is linearized."""
    assert layer.matrix is not None
    return layer.matrix
