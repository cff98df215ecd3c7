"""Blocks of the entries, one for each pair of layers of a convolutional network."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.matrices.fast.chain import matmul
from curvature.matrices.fast.network import Network

__all__ = ["assemble", "contract", "spread"]

_PIECE_BYTES = 4 * 2**20  # of one factor of a product over examples, so that it stays in cache


def contract(rows: Tensor, middle: Tensor, other_rows: Tensor | None, block: Tensor, symmetric: bool = False) -> None:
    r"""Add $\sum_{n, t} a[t, i]\, B[t, o, c]$ to a block; for outputs $c$, contracted with their patches.

    Parameters
    ----------
    rows
        Patches of the layer, ``(n, T, I)``.
    middle
        $B$, by the outputs of another layer, ``(n, T, O, O', T')``, or by its weights, ``(n, T, O, O', I')``.
    other_rows
        Patches of the other layer, ``(n, T', I')``, if ``middle`` is by its outputs; otherwise None.
    block
        ``(O I, columns)``; changed in place.
    symmetric
        Whether the block is of a layer with itself; then only the parts with ``o <= o'`` are added.

    Notes
    -----
    A few pairs ``(o, o')`` at a time, so that the second factor of each product stays in cache.
    """
    left = rows.flatten(0, 1).T
    count, _, fan_out, channels, _ = middle.shape
    columns = block.shape[1] // channels
    block = block.view(fan_out, -1, channels, columns)
    buffer = middle.new_empty(max(_PIECE_BYTES // middle.element_size(), left.shape[1] * columns))
    most = len(buffer) // (left.shape[1] * columns)  # pairs (o, o') at once
    step = 1 if symmetric else max(1, most // channels)
    for o in range(0, fan_out, step):
        for first in range(o if symmetric else 0, channels, most):
            piece = middle[:, :, o : o + step, first : first + most]
            if other_rows is None:
                part = piece.flatten(0, 1).flatten(1)  # a view if all channels are taken
            else:
                # First sum_t' B[t, o, o', t'] a_k[t', i'], into a buffer that is used again for every piece.
                multiply = torch.mul if other_rows.shape[1] == 1 else matmul
                shape = (count, piece[0, ..., 0].numel(), columns)
                part = multiply(piece.reshape(*shape[:2], -1), other_rows, out=buffer[: prod(shape)].view(shape))
            # Then the sum over examples and positions, one product with n T as the inner dimension.
            total = matmul(left, part.view(left.shape[1], -1)).view(len(left), *piece.shape[2:4], columns)
            block[o : o + step, :, first : first + most] += total.transpose(0, 1)


def spread(compact: Float[Tensor, "examples outputs _"], channels: int) -> Float[Tensor, "examples outputs _"]:
    """Expand compact tangents to full ones, with zeros for all other channels.

    Parameters
    ----------
    compact
        ``(n, channels * positions, columns)``.
    channels
        Number of channels; the weights of one channel influence only this channel.

    Returns
    -------
    Tensor
        ``(n, channels * positions, channels * columns)``.
    """
    compact = compact.unflatten(1, (channels, -1))
    full = compact.new_zeros(*compact.shape[:3], channels, compact.shape[3])
    full.diagonal(dim1=1, dim2=3).copy_(compact.permute(0, 2, 3, 1))
    return full.flatten(3).flatten(1, 2)


def assemble(network: Network, blocks: dict[tuple[int, int], Float[Tensor, "_ _"]]) -> Float[Tensor, "weights weights"]:
    """Copy the blocks to the entries of the matrix, in the order of the layout.

    Parameters
    ----------
    network
        The network.
    blocks
        By the indices of two layers; rows and columns are ``(o i)`` with the bias last. Emptied, so that each block is
        freed once it is copied.

    Returns
    -------
    Tensor
        ``(P, P)``.
    """
    problem = network.problem
    result = problem.weights.new_empty(problem.dim, problem.dim)
    for row, col in list(blocks):
        first, second = network.layer(row), network.layer(col)
        block = blocks.pop((row, col)).view(first.fan_out, first.columns, second.fan_out, second.columns)
        if row == col:
            for o in range(first.fan_out - 1):  # only the parts o <= o' were computed
                block[o + 1 :, :, o] = block[o, :, o + 1 :].permute(1, 2, 0)
        for first_columns, rows in first.places:
            for second_columns, cols in second.places:
                part = block[:, first_columns][:, :, :, second_columns]
                target = result[rows, cols]
                target.unflatten(1, part.shape[2:]).unflatten(0, part.shape[:2]).copy_(part)
                if row != col:
                    result[cols, rows] = target.T
    return result
