"""Products with the matrix, the network linearized once by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from curvature.matrices.fast.chain import Chain, Layer, forward, matmul, places
from curvature.matrices.fast.threads import add_side_by_side, num_threads

__all__ = ["OutputProduct", "Products", "product_bytes", "product_multiplications"]

# (outputs, targets) -> multiplication of rows (N, K, C) by a symmetric matrix per example
OutputProduct = Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]
# Examples, and the multiplication by their Hessian in the outputs
Piece = tuple[slice, Callable[[Tensor], Tensor]]

_TANGENT_BYTES = 2**20  # of a few examples and columns in one layer: what stays in cache
_COLUMNS = 16  # at once


def product_bytes(chain: Chain) -> tuple[float, float]:
    """Upper bounds of the memory of :class:`Products`: held once, and for each column of a block on top.

    A column is held with its image and its parts of the layers, straight and transposed; in each thread there are the
    tangents of a few examples, a room for the image, and what is being added to it.
    """
    threads = num_threads(chain.problem.device)
    problem, widths = chain.problem, [layer.fan_out for layer in chain.layers]
    signals = problem.num_examples * (sum(widths) + max(chain.layers[0].columns, *widths))
    item = problem.weights.element_size()
    return item * signals * 10 + threads * len(widths) * 4 * _TANGENT_BYTES, (3 + 3 * threads) * problem.dim * item


def product_multiplications(chain: Chain, *, second_order: bool) -> float:
    """Multiply-adds of :class:`Products` with one vector: two to six passes through the weights of each layer."""
    first = next(k for k, layer in enumerate(chain.layers) if places(layer))
    total = 0
    for k, layer in enumerate(chain.layers[first:]):
        moves = bool(places(layer))
        total += 2 * moves * layer.fan_out * layer.columns
        total += (k > 0) * (2 + 2 * (moves and second_order)) * layer.weight.numel()
    return float(chain.problem.num_examples * total)


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
        # Signals are kept as (width, N) and tangents as (K, width, N): the BLAS wants long rows, and was measured a
        # third faster than on (N, K, width).
        self.inputs = [a.T.contiguous() for a in inputs]
        self.slopes = [parts[0].T.contiguous() for parts in slopes]
        self.gradients: list[Tensor] = []
        self.bends: list[Tensor] = []
        if second_order:
            slope = problem.loss.gradient(outputs[-1], problem.targets) / problem.denominator
            self.gradients = [slope.T.contiguous()]
            for k in range(len(layers) - 1, 0, -1):
                back = layers[k].weight.T @ self.gradients[0]
                self.bends.insert(0, back * slopes[k - 1][1].T)
                self.gradients.insert(0, back * self.slopes[k - 1])
        self.output_product, self.outputs = output_product, outputs[-1]
        self.first = next(k for k, layer in enumerate(layers) if places(layer))  # nothing moves before
        self.widest = max(layer.fan_out for layer in layers)
        self.pieces: dict[int, list[Piece]] = {}
        self.kept = threading.local()

    def __call__(self, block: Tensor) -> Tensor:
        """Multiply ``(P, K)``."""
        vectors = block.T.contiguous()
        product = torch.zeros_like(vectors)
        parts = -(-len(vectors) // _COLUMNS)
        columns = -(-len(vectors) // parts)
        size = max(1, _TANGENT_BYTES // (columns * self.widest * vectors.element_size()))
        if (pieces := -(-len(self.outputs) // size)) > 1:  # as many for each thread
            pieces += -pieces % num_threads(block.device)
            size = -(-len(self.outputs) // pieces)
        for few, found in zip(vectors.tensor_split(parts), product.tensor_split(parts), strict=True):
            dots = [_augmented(layer, few) for layer in self.chain.layers]
            turned = [
                None if dot is None else dot[..., : layer.weight.shape[1]].mT.flatten(0, 1)
                for layer, dot in zip(self.chain.layers, dots, strict=True)
            ]

            def add(pieces: list[Piece], room: Tensor, dots: list = dots, turned: list = turned) -> None:
                for where, curve in pieces:
                    self._add(where, curve, dots, turned, room)

            add_side_by_side(add, self._cut(size), found)
        return product.T

    def _cut(self, size: int) -> list[Piece]:
        """Pieces of at most ``size`` examples, each with its Hessian in the outputs; the last ones are kept."""
        found = self.pieces.get(size)
        if found is None:  # looked up once: another thread may replace what is kept
            count, problem = len(self.outputs), self.chain.problem
            number = -(-count // size)
            where = [slice(*cut) for cut in pairwise(count * piece // number for piece in range(number + 1))]
            found = [(at, self.output_product(self.outputs[at], problem.targets[at])) for at in where]
            self.pieces = {size: found}
        return found

    def _add(
        self,
        where: slice,
        curve: Callable[[Tensor], Tensor],
        weight_dots: list[Tensor | None],
        turned: list[Tensor | None],
        found: Tensor,
    ) -> None:
        """Add what a few examples bring to the rows ``found (K, P)``; every step is one matrix product over them.

        ``weight_dots (K, O, columns)`` are the tangents of the weights, ``turned (K I, O)`` their transposes.
        """
        layers, first = self.chain.layers, self.first
        count, size = len(found), where.stop - where.start
        z_dots: dict[int, Tensor] = {}
        signal_dots: dict[int, Tensor] = {}  # of what enters a layer
        for k in range(first, len(layers)):
            dot = z_dots[k] = self._room(f"z{k}", found, count, layers[k].fan_out, size)
            if k > first:
                matmul(layers[k].weight, signal_dots[k], out=dot)
            if weight_dots[k] is not None:
                moved = self._room("moved", found, *dot.shape) if k > first else dot
                matmul(weight_dots[k].flatten(0, 1), self.inputs[k][:, where], out=moved.flatten(0, 1))
                dot = dot.add_(moved) if k > first else dot
            if k + 1 < len(layers):
                signal_dots[k + 1] = self._room(f"signal{k}", found, *dot.shape)
                torch.mul(dot, self.slopes[k][:, where], out=signal_dots[k + 1])
        curved = curve(z_dots[len(layers) - 1].permute(2, 0, 1)).div_(self.chain.problem.denominator)
        slope_dot = curved.permute(1, 2, 0).contiguous()
        for k in range(len(layers) - 1, first - 1, -1):
            layer, moves = layers[k], weight_dots[k] is not None
            fan_in = layer.weight.shape[1]
            crosses = self.second_order and k > first
            if moves:
                total = matmul(slope_dot.flatten(0, 1), self.inputs[k][:, where].T).view(count, layer.fan_out, -1)
                if crosses:
                    total[..., :fan_in] += matmul(self.gradients[k][:, where], signal_dots[k].mT)
                for at, place in places(layer):
                    found[:, place] += total[..., at].flatten(1)
            if k > first:
                back = self._room(f"slope{k}", found, count, fan_in, size)
                matmul(layer.weight.T, slope_dot, out=back)
                if crosses and moves:
                    moved = self._room("moved", found, *back.shape)
                    matmul(turned[k], self.gradients[k][:, where], out=moved.flatten(0, 1))
                    back += moved
                slope_dot = back.mul_(self.slopes[k - 1][:, where])
                if self.second_order:
                    slope_dot.addcmul_(self.bends[k - 1][:, where], z_dots[k - 1])

    def _room(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """Memory that is kept from one product to the next, each thread its own: new memory costs what a pass costs."""
        kept, length = self.kept.__dict__, prod(shape)
        if name not in kept or len(kept[name]) < length:
            kept[name] = like.new_empty(length)
        return kept[name][:length].view(shape)


def _augmented(layer: Layer, vectors: Tensor) -> Tensor | None:
    """The vectors' parts for a layer, ``(K, O, columns)``, zero where it is frozen; None if all of it is."""
    where = places(layer)
    if not where:
        return None
    dots = vectors.new_zeros(len(vectors), layer.fan_out, layer.columns)
    for at, place in where:
        dots[..., at] = vectors[:, place].view(len(vectors), layer.fan_out, -1)
    return dots
