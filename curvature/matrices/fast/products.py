r"""Products with the Hessian or a matrix of the form of the GGN, for a chain that is linearized once.

The forward and the backward pass are differentiated by hand (the R-operator of Pearlmutter 1994). Let $\dot W$ be the
tangents of the weights. Forward, $\dot z_l = W_l \dot a_l + \dot W_l a_l$ and $\dot a_{l+1} = \phi' \circ \dot z_l$.
Backward, from $\dot g_L = (\nabla_f^2 \ell) \dot z_L$,

$$\dot g_{l-1} = \phi' \circ (W_l^T \dot g_l + \dot W_l^T g_l) + (W_l^T g_l) \circ \phi'' \circ \dot z_{l-1} ,$$

and the product is $\sum_n \dot g_l a_l^T + g_l \dot a_l^T$. Without the terms in $g$ it is that of the GGN.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.matrices.fast.chain import Chain, Layer, forward, matmul
from curvature.matrices.fast.threads import add_side_by_side, num_threads

__all__ = ["OutputProduct", "Products", "product_bytes", "product_multiplications"]

# (outputs, targets) -> multiplication of rows (N, K, C) by the symmetric matrix D M_n of each example
OutputProduct = Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]
# Some examples, and the multiplication by their D M_n
Piece = tuple[slice, Callable[[Tensor], Tensor]]

_TANGENT_BYTES = 2**20  # of the tangents of a piece of examples in one layer, so that they stay in cache
_COLUMNS = 16  # at once: 4 to 16 were measured fastest, 32 takes 1.1 to 1.6 times as long


def product_bytes(chain: Chain) -> tuple[float, float]:
    """Bound the peak memory of :class:`Products`.

    Parameters
    ----------
    chain
        The chain.

    Returns
    -------
    tuple of float
        Bytes that do not depend on the number of columns, and bytes for each column of a block.

    Notes
    -----
    A column needs its image and its parts for the layers, in both layouts. Each thread needs the tangents of a piece of
    examples, a partial image, and the term that is added to it.
    """
    threads = num_threads(chain.problem.device)
    problem, widths = chain.problem, [layer.fan_out for layer in chain.layers]
    signals = problem.num_examples * (sum(widths) + max(chain.layers[0].columns, *widths))
    item = problem.weights.element_size()
    return item * signals * 10 + threads * len(widths) * 4 * _TANGENT_BYTES, (3 + 3 * threads) * problem.dim * item


def product_multiplications(chain: Chain, *, second_order: bool) -> float:
    """Count the multiply-adds of :class:`Products` with one vector.

    Parameters
    ----------
    chain
        The chain.
    second_order
        Whether the matrix is the Hessian.

    Returns
    -------
    float
        Two to six times the number of weights of each layer, for every example.
    """
    first = next(k for k, layer in enumerate(chain.layers) if layer.places)
    total = 0
    for k, layer in enumerate(chain.layers[first:]):
        moves = bool(layer.places)
        total += 2 * moves * layer.fan_out * layer.columns
        total += (k > 0) * (2 + 2 * (moves and second_order)) * layer.weight.numel()
    return float(chain.problem.num_examples * total)


@dataclass(frozen=True, eq=False)
class _Move:
    """Tangents of the weights of one layer.

    Attributes
    ----------
    weights
        ``(K, O, columns)``, the bias as the last column.
    turned
        The transposed weights without the bias, ``(K I, O)``.
    """

    weights: Tensor
    turned: Tensor


class Products:
    """Products with blocks of vectors for a chain, which is linearized once.

    Signals, slopes and gradients do not depend on the vectors, so they are computed in the constructor and kept: about
    ``6 N`` times the sum of the widths.

    Parameters
    ----------
    chain
        The chain.
    output_product
        Multiplication by ``D M_n``.
    second_order
        Whether the matrix is the Hessian.
    """

    def __init__(self, chain: Chain, output_product: OutputProduct, *, second_order: bool):
        self.chain, self.second_order = chain, second_order
        problem, layers = chain.problem, chain.layers
        inputs, outputs, slopes = forward(chain, slice(None), 2 if second_order else 1)
        # Signals are (width, N) and tangents (K, width, n): matrix products with long rows ran at 40 to 50 GF/s on one
        # thread, with tangents (n, K, width) at 26 to 46.
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
        self.first = next(k for k, layer in enumerate(layers) if layer.places)  # layers before it have no tangents
        self.widest = max(layer.fan_out for layer in layers)
        self.pieces: dict[int, list[Piece]] = {}
        self.buffers = threading.local()

    def __call__(self, block: Float[Tensor, "weights columns"]) -> Float[Tensor, "weights columns"]:
        """Multiply a block of vectors ``(P, K)``."""
        vectors = block.T.contiguous()
        product = torch.zeros_like(vectors)
        parts = -(-len(vectors) // _COLUMNS)
        columns = -(-len(vectors) // parts)  # of each part: equal parts instead of full ones and a short rest
        # Examples are cut too, so that the tangents of one layer stay in cache on their way to the next layer.
        size = max(1, _TANGENT_BYTES // (columns * self.widest * vectors.element_size()))
        if (pieces := -(-len(self.outputs) // size)) > 1:  # the same number for each thread
            pieces += -pieces % num_threads(block.device)
            size = -(-len(self.outputs) // pieces)
        for chunk, image in zip(vectors.tensor_split(parts), product.tensor_split(parts), strict=True):
            moves = self._moves(chunk)

            def add(pieces: Sequence[Piece], image: Tensor, moves: list[_Move | None] = moves) -> None:
                for examples, curve in pieces:
                    self._add(examples, curve, moves, image)

            add_side_by_side(add, self._cut(size), image)
        return product.T

    def _moves(self, vectors: Tensor) -> list[_Move | None]:
        """Tangents of the weights of each layer; None for a frozen layer."""
        dots = [_augmented(layer, vectors) for layer in self.chain.layers]
        return [
            None if dot is None else _Move(dot, dot[..., : layer.fan_in].mT.flatten(0, 1))
            for layer, dot in zip(self.chain.layers, dots, strict=True)
        ]

    def _cut(self, size: int) -> list[Piece]:
        """Pieces of at most ``size`` examples with their multiplication by ``D M_n``; the last ones are kept."""
        pieces = self.pieces.get(size)
        if pieces is None:  # a single lookup, since another thread may replace the kept pieces
            count, targets = len(self.outputs), self.chain.problem.targets
            number = -(-count // size)
            spans = [slice(*cut) for cut in pairwise(count * piece // number for piece in range(number + 1))]
            pieces = [(span, self.output_product(self.outputs[span], targets[span])) for span in spans]
            self.pieces = {size: pieces}
        return pieces

    def _add(
        self, examples: slice, curve: Callable[[Tensor], Tensor], moves: list[_Move | None], image: Tensor
    ) -> None:
        """Add the contribution of some examples to the rows ``image (K, P)``."""
        z_dots, signal_dots = self._forward(examples, moves, image)
        # g_dot at the outputs. The output product wants (n, K, C).
        curved = curve(z_dots[len(self.chain.layers) - 1].permute(2, 0, 1)).div_(self.chain.problem.denominator)
        slope_dot = curved.permute(1, 2, 0).contiguous()
        for k in range(len(self.chain.layers) - 1, self.first - 1, -1):
            if moves[k] is not None:
                self._collect(k, examples, slope_dot, signal_dots, image)
            if k > self.first:
                slope_dot = self._backward(k, examples, moves[k], slope_dot, z_dots[k - 1], image)

    def _forward(
        self, examples: slice, moves: list[_Move | None], like: Tensor
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Tangents ``(K, width, n)`` of the outputs of every layer, and of its inputs."""
        layers, first, count, size = self.chain.layers, self.first, len(like), examples.stop - examples.start
        z_dots: dict[int, Tensor] = {}
        signal_dots: dict[int, Tensor] = {}
        for k in range(first, len(layers)):
            # z_dot = W a_dot + W_dot a. The first term is zero in the first trained layer, the second in a frozen one.
            dot = z_dots[k] = self._buffer(f"z{k}", like, count, layers[k].fan_out, size)
            if k > first:
                matmul(layers[k].weight, signal_dots[k], out=dot)
            move = moves[k]
            if move is not None:
                # All K tangents of the weights as one tall matrix: a single product for all vectors.
                moved = self._buffer("moved", like, *dot.shape) if k > first else dot
                matmul(move.weights.flatten(0, 1), self.inputs[k][:, examples], out=moved.flatten(0, 1))
                if k > first:
                    dot.add_(moved)
            if k + 1 < len(layers):
                signal_dots[k + 1] = self._buffer(f"signal{k}", like, *dot.shape)
                torch.mul(dot, self.slopes[k][:, examples], out=signal_dots[k + 1])
        return z_dots, signal_dots

    def _collect(
        self, k: int, examples: slice, slope_dot: Tensor, signal_dots: dict[int, Tensor], image: Tensor
    ) -> None:
        """Add the part of layer ``k``: the sum of ``g_dot a^T`` over examples, and of ``g a_dot^T`` for the Hessian."""
        layer = self.chain.layers[k]
        total = matmul(slope_dot.flatten(0, 1), self.inputs[k][:, examples].T).view(len(image), layer.fan_out, -1)
        if self.second_order and k > self.first:
            total[..., : layer.fan_in] += matmul(self.gradients[k][:, examples], signal_dots[k].mT)
        for columns, place in layer.places:
            image[:, place] += total[..., columns].flatten(1)

    def _backward(
        self, k: int, examples: slice, move: _Move | None, slope_dot: Tensor, z_dot: Tensor, like: Tensor
    ) -> Tensor:
        """Tangents of the gradients at the outputs of layer ``k - 1`` from those of layer ``k``."""
        layer, size = self.chain.layers[k], examples.stop - examples.start
        back = self._buffer(f"slope{k}", like, len(like), layer.fan_in, size)
        matmul(layer.weight.T, slope_dot, out=back)
        if self.second_order and move is not None:
            moved = self._buffer("moved", like, *back.shape)
            matmul(move.turned, self.gradients[k][:, examples], out=moved.flatten(0, 1))
            back += moved
        slope_dot = back.mul_(self.slopes[k - 1][:, examples])
        if self.second_order:  # the bends are (W^T g) phi''
            slope_dot.addcmul_(self.bends[k - 1][:, examples], z_dot)
        return slope_dot

    def _buffer(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """Memory that each thread keeps from one product to the next: new memory costs as much as a pass over it."""
        buffers, length = self.buffers.__dict__, prod(shape)
        if name not in buffers or len(buffers[name]) < length:
            buffers[name] = like.new_empty(length)
        return buffers[name][:length].view(shape)


def _augmented(layer: Layer, vectors: Tensor) -> Tensor | None:
    """Parts of the vectors for a layer, ``(K, O, columns)``, zero for a frozen parameter; None for a frozen layer."""
    if not layer.places:
        return None
    dots = vectors.new_zeros(len(vectors), layer.fan_out, layer.columns)
    for columns, place in layer.places:
        dots[..., columns] = vectors[:, place].view(len(vectors), layer.fan_out, -1)
    return dots
