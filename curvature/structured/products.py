"""Products with the matrix, the network linearized once by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from curvature.structured.chain import Chain, forward, matmul

__all__ = ["OutputProduct", "Products", "product_bytes"]

# (outputs, targets) -> multiplication of rows (N, K, C) by a symmetric matrix per example
OutputProduct = Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]

_TANGENT_BYTES = 4 * 2**20


def product_bytes(chain: Chain) -> tuple[float, float]:
    """Upper bounds of the memory of :class:`Products`: held once, and for each column of a block on top."""
    problem, widths = chain.problem, [layer.fan_out for layer in chain.layers]
    signals = problem.num_examples * (sum(widths) + max(chain.layers[0].columns, *widths))
    item = problem.weights.element_size()
    return item * signals * 10 + len(widths) * 4 * _TANGENT_BYTES, 2 * problem.dim * item


class Products:
    r"""Products of the Hessian or a GGN-type matrix with blocks of vectors, the network linearized once.

    The forward and the backward pass are linearized by hand (the R-operator of Pearlmutter 1994): with tangents $\dot
    W$, $\dot z_l = W_l \dot a_l + \dot W_l a_l$ and $\dot g_l = \partial_{\dot W} g_l$ the product is $\sum_n \dot
    g_l a_l^T + g_l \dot a_l^T$; without the terms in $g$ and $\phi''$ it is the GGN's. Everything that does not
    depend on the tangents is computed when the object is made, and takes memory for it: about ``6 N`` times the sum
    of the widths.
    """

    def __init__(self, chain: Chain, output_product: OutputProduct, *, second_order: bool):
        self.chain, self.second_order = chain, second_order
        problem, layers = chain.problem, chain.layers
        inputs, outputs, slopes = forward(chain, slice(None), 2 if second_order else 1)
        self.inputs = [a[:, : layer.weight.shape[1]] for a, layer in zip(inputs, layers, strict=True)]
        self.slopes = [parts[0] for parts in slopes]
        self.curve = output_product(outputs[-1], problem.targets)
        self.gradients: list[Tensor] = []
        self.bends: list[Tensor] = []
        if second_order:
            slope = problem.loss.gradient(outputs[-1], problem.targets) / problem.denominator
            self.gradients = [slope]
            for k in range(len(layers) - 1, 0, -1):
                back = self.gradients[0] @ layers[k].weight
                self.bends.insert(0, back * slopes[k - 1][1])
                self.gradients.insert(0, back * slopes[k - 1][0])
        # Tangents of about a megabyte per layer stay in cache; larger blocks measured slower.
        widest = max(layer.fan_out for layer in layers)
        self.columns = max(1, _TANGENT_BYTES // (problem.num_examples * widest * problem.weights.element_size()))

    def __call__(self, block: Tensor) -> Tensor:
        """Multiply ``(P, K)``."""
        parts = [self._few(part) for part in block.tensor_split(-(-block.shape[1] // self.columns), dim=1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _few(self, block: Tensor) -> Tensor:
        """Tangents are kept as ``(N, K, width)``: every step is one matrix product over all of them."""
        layers, count, size = self.chain.layers, block.shape[1], self.chain.problem.num_examples
        vectors = block.T.contiguous()
        product = torch.empty_like(vectors)
        signal_dots: list[Tensor | None] = [None]
        weight_dots: list[Tensor | None] = []
        z_dots: list[Tensor] = []
        for k, layer in enumerate(layers):
            dot = None
            weight_dot = None
            if layer.weight_slice is not None:
                weight_dot = vectors[:, layer.weight_slice].reshape(count * layer.fan_out, -1)
                dot = matmul(self.inputs[k], weight_dot.T).view(size, count, -1)
            if layer.bias is not None and layer.bias_slice is not None:
                bias_dot = vectors[:, layer.bias_slice]
                dot = bias_dot.expand(size, -1, -1).clone() if dot is None else dot.add_(bias_dot)
            if signal_dots[k] is not None:
                moved = matmul(signal_dots[k].flatten(0, 1), layer.weight.T).view(size, count, -1)
                dot = moved if dot is None else dot.add_(moved)
            if dot is None:
                dot = block.new_zeros(size, count, layer.fan_out)
            weight_dots.append(weight_dot)
            z_dots.append(dot)
            if k + 1 < len(layers):
                signal_dots.append(self.slopes[k][:, None] * dot)
        slope_dot = self.curve(z_dots[-1]).div_(self.chain.problem.denominator)
        for k in range(len(layers) - 1, -1, -1):
            layer = layers[k]
            if layer.weight_slice is not None:
                total = matmul(slope_dot.flatten(1).T, self.inputs[k]).view(count, layer.fan_out, -1)
                if self.second_order and k:
                    crossed = matmul(self.gradients[k].T, signal_dots[k].flatten(1))
                    total += crossed.view(layer.fan_out, count, -1).transpose(0, 1)
                product[:, layer.weight_slice] = total.flatten(1)
            if layer.bias is not None and layer.bias_slice is not None:
                product[:, layer.bias_slice] = slope_dot.sum(dim=0)
            if k:
                back = matmul(slope_dot.flatten(0, 1), layer.weight).view(size, count, -1)
                if self.second_order and weight_dots[k] is not None:
                    moved = weight_dots[k].view(count, layer.fan_out, -1).transpose(0, 1).reshape(layer.fan_out, -1)
                    back += matmul(self.gradients[k], moved).view(size, count, -1)
                slope_dot = back.mul_(self.slopes[k - 1][:, None])
                if self.second_order:
                    slope_dot.addcmul_(self.bends[k - 1][:, None], z_dots[k - 1])
        return product.T
