"""Products with the matrix, the network linearized once by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from curvature.structured.chain import Chain, forward

__all__ = ["Products"]

_TANGENT_BYTES = 4 * 2**20


class Products:
    r"""Products of the Hessian or a GGN-type matrix with blocks of vectors, the network linearized once.

    The forward and the backward pass are linearized by hand (the R-operator of Pearlmutter 1994): with tangents $\dot
    W$, $\dot z_l = W_l \dot a_l + \dot W_l a_l$ and $\dot g_l = \partial_{\dot W} g_l$ the product is $\sum_n \dot
    g_l a_l^T + g_l \dot a_l^T$; without the terms in $g$ and $\phi''$ it is the GGN's. Everything that does not
    depend on the tangents is computed when the object is made, and takes memory for it: about ``6 N`` times the sum
    of the widths.
    """

    def __init__(self, chain: Chain, output_hessian: Callable[[Tensor, Tensor], Tensor], *, second_order: bool):
        self.chain, self.second_order = chain, second_order
        problem, layers = chain.problem, chain.layers
        inputs, outputs, slopes = forward(chain, slice(None), 2 if second_order else 1)
        self.inputs = [a[:, : layer.weight.shape[1]] for a, layer in zip(inputs, layers, strict=True)]
        self.slopes = [parts[0] for parts in slopes]
        self.curved = output_hessian(outputs[-1], problem.targets) / problem.denominator
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
        widest = max(max(layer.weight.shape) for layer in layers)
        self.columns = max(1, _TANGENT_BYTES // (problem.num_examples * widest * problem.weights.element_size()))

    def __call__(self, block: Tensor) -> Tensor:
        """Multiply ``(P, K)``."""
        parts = [self._few(part) for part in block.split(self.columns, dim=1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _few(self, block: Tensor) -> Tensor:
        layers, count = self.chain.layers, block.shape[1]
        vectors = block.T.contiguous()
        product = torch.empty_like(vectors)
        signal_dots: list[Tensor | None] = [None]
        weight_dots = []
        z_dots = []
        for k, layer in enumerate(layers):
            dot = None
            weight_dot = None
            if layer.weight_slice is not None:
                weight_dot = vectors[:, layer.weight_slice].view(count, *layer.weight.shape)
                dot = self.inputs[k] @ weight_dot.mT
            if layer.bias is not None and layer.bias_slice is not None:
                bias_dot = vectors[:, None, layer.bias_slice]
                dot = bias_dot.expand(-1, len(self.inputs[k]), -1).clone() if dot is None else dot.add_(bias_dot)
            if signal_dots[k] is not None:
                moved = signal_dots[k] @ layer.weight.T
                dot = moved if dot is None else dot.add_(moved)
            if dot is None:
                dot = block.new_zeros(count, len(self.inputs[k]), layer.fan_out)
            weight_dots.append(weight_dot)
            z_dots.append(dot)
            signal_dots.append(self.slopes[k] * dot)
        slope_dot = (
            (self.curved @ z_dots[-1][..., None])[..., 0]
            if count == 1
            else torch.einsum("noc, knc -> kno", self.curved, z_dots[-1])
        )
        for k in range(len(layers) - 1, -1, -1):
            layer = layers[k]
            if layer.weight_slice is not None:
                total = slope_dot.mT @ self.inputs[k]
                if self.second_order and k:
                    total += self.gradients[k].T @ signal_dots[k]
                product[:, layer.weight_slice] = total.flatten(1)
            if layer.bias is not None and layer.bias_slice is not None:
                product[:, layer.bias_slice] = slope_dot.sum(dim=1)
            if k:
                back = slope_dot @ layer.weight
                if self.second_order and weight_dots[k] is not None:
                    back += self.gradients[k] @ weight_dots[k]
                slope_dot = back.mul_(self.slopes[k - 1])
                if self.second_order:
                    slope_dot.addcmul_(self.bends[k - 1], z_dots[k - 1])
        return product.T
