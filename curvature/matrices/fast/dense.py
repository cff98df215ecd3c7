r"""Entries of the matrices of a chain, as matrix products between row-wise Kronecker products.

See :mod:`curvature.matrices.fast` for the formula and the names $a_l$, $g_l$, $J_{lk}$ and $B_{lk}$.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.linalg.dense import mirrored, unfilled
from curvature.matrices.fast.chain import Chain, Layer, forward, matmul

__all__ = ["curvature", "curvature_bytes"]

_CHUNK_BYTES = 32 * 2**20  # of the two factors of one product over a chunk of examples


def curvature(
    chain: Chain, output_hessian: Callable[[Tensor, Tensor], Tensor], *, second_order: bool
) -> Float[Tensor, "weights weights"]:
    r"""Compute the entries of the Hessian, or of a matrix of the form of the GGN.

    Parameters
    ----------
    chain
        The chain, with $P$ weights in all.
    output_hessian
        ``(outputs, targets)`` to $\nabla_f^2 \ell_n$ or another symmetric matrix in output space, ``(n, C, C)``.
    second_order
        Whether to add the terms with $\phi''$ and with $g$, for the Hessian.

    Returns
    -------
    Tensor
        ``(P, P)``.

    Notes
    -----
    About $N P^2$ multiplications. The examples are processed in chunks. Memory is the result, the blocks before they
    are put in place (half of the result), and a bounded buffer.
    """
    problem = chain.problem
    pairs, size = _pairs(chain), _examples_at_once(chain)
    sums: dict[tuple[int, int], Tensor] = {}
    crossed: dict[tuple[int, int], Tensor] = {}
    for start in range(0, problem.num_examples, size):
        pass_ = _forward_backward(chain, slice(start, start + size), output_hessian, second_order)
        # Every sum over examples is one product with the examples as the inner dimension. The outer dimensions, pairs
        # of outputs and pairs of inputs, make it a large matrix product, the fastest operation there is.
        for row, col in pairs:
            middle = pass_.curvatures[row, col]
            left, right = pass_.inputs[row], pass_.inputs[col]
            # First term of the formula, sum_n B[o, o'] a_l[i] a_k[i'], indexed (o o', i i').
            if row == col:  # symmetric in (o, o') and in (i, i'): both triangles packed, a quarter of the work
                _add(sums, (row, col), _upper_triangle(middle), _products(left))
            else:
                _add(sums, (row, col), middle.flatten(1), _row_kronecker(left, right))
            # Second term, sum_n g_l[o] (d a_l[i] / d z_k[o']) a_k[i'].
            if second_order and row == col + 1:
                # a_l = phi(z_k): the derivative is diagonal, i = o', so the sum is indexed (o i, i').
                _add(crossed, (row, col), _row_kronecker(pass_.gradients[row], pass_.slopes[col]), right)
            elif second_order and row > col:
                # d a_l / d z_k = diag(phi') J, the sum is indexed (o i', i o').
                moved = pass_.slopes[row - 1][:, :, None] * pass_.jacobians[row - 1, col]
                _add(crossed, (row, col), _row_kronecker(pass_.gradients[row], right), moved.flatten(1))
    return _assemble(chain, sums, crossed)


def curvature_bytes(chain: Chain) -> float:
    """Bound the peak memory of :func:`curvature`: the result, its blocks, and one chunk of examples.

    Parameters
    ----------
    chain
        The chain.

    Returns
    -------
    float
        Upper bound in bytes.
    """
    layers = chain.layers
    kept = sum(layers[row].fan_out * layers[col].fan_out for row, col in _pairs(chain))  # B and J of one example
    count = min(chain.problem.num_examples, _examples_at_once(chain))
    return chain.problem.weights.element_size() * (3 * chain.problem.dim**2 + count * (3 * kept + 3 * _widest(chain)))


def _pairs(chain: Chain) -> list[tuple[int, int]]:
    return [(row, col) for row in range(len(chain.layers)) for col in range(row + 1)]


def _widest(chain: Chain) -> int:
    """Largest number of entries of the two factors of one product, for one example."""
    layers = chain.layers
    return max(layers[r].fan_out * layers[c].fan_out + layers[r].columns * layers[c].columns for r, c in _pairs(chain))


def _examples_at_once(chain: Chain) -> int:
    return max(32, _CHUNK_BYTES // (_widest(chain) * chain.problem.weights.element_size()))


@dataclass(frozen=True, eq=False)
class _Pass:
    """Derivatives of one chunk of examples; ``g`` and ``B`` are divided by the denominator of the mean.

    Attributes
    ----------
    inputs
        Augmented inputs ``a_l`` of each layer.
    slopes
        ``phi'`` of the activations after each layer.
    gradients
        ``g_l`` at the outputs of each layer.
    curvatures
        ``B`` by layers ``(l, k)`` with ``k <= l``.
    jacobians
        ``J`` by layers ``(l, k)`` with ``k < l``.
    """

    inputs: list[Tensor]
    slopes: list[Tensor]
    gradients: list[Tensor]
    curvatures: dict[tuple[int, int], Tensor]
    jacobians: dict[tuple[int, int], Tensor]


def _forward_backward(
    chain: Chain, examples: slice, output_hessian: Callable[[Tensor, Tensor], Tensor], second_order: bool
) -> _Pass:
    """Carry ``J`` forward and ``B`` and ``g`` backward through the layers."""
    problem, layers = chain.problem, chain.layers
    inputs, outputs, derivatives = forward(chain, examples, 2 if second_order else 1)
    slopes = [parts[0] for parts in derivatives]
    targets = problem.targets[examples]
    last = len(layers) - 1
    jacobians: dict[tuple[int, int], Tensor] = {}
    # J_{(l+1) k} = W_{l+1} diag(phi'_l) J_{lk}, from J_{kk} = I.
    for k in range(last):
        jacobians[k + 1, k] = layers[k + 1].weight * slopes[k][:, None]
        for row in range(k + 1, last):
            jacobians[row + 1, k] = torch.matmul(layers[row + 1].weight, slopes[row][:, :, None] * jacobians[row, k])
    gradients: list[Tensor] = [problem.loss.gradient(outputs[last], targets) / problem.denominator]
    # B of the last layer is the Hessian of the loss in the outputs, times J. Going back,
    # B_{lk} = diag(phi'_l) W_{l+1}^T B_{(l+1) k} + diag((W_{l+1}^T g_{l+1}) phi''_l) J_{lk},
    # where the second summand belongs to the Hessian only.
    curved = output_hessian(outputs[last], targets) / problem.denominator
    curvatures = {(last, k): curved @ jacobians[last, k] for k in range(last)} | {(last, last): curved}
    for row in range(last - 1, -1, -1):
        back = gradients[0] @ layers[row + 1].weight
        for k in range(row + 1):
            through = torch.matmul(layers[row + 1].weight.T, curvatures[row + 1, k]).mul_(slopes[row][:, :, None])
            if second_order:
                bend = back * derivatives[row][1]
                if k == row:  # J is the identity
                    through.diagonal(dim1=1, dim2=2).add_(bend)
                else:
                    through.addcmul_(bend[:, :, None], jacobians[row, k])
            curvatures[row, k] = through
        gradients.insert(0, slopes[row] * back)
    return _Pass(inputs, slopes, gradients, curvatures, jacobians)


def _upper_triangle(blocks: Tensor) -> Tensor:
    """Pack the upper triangles of symmetric ``(n, size, size)``, row by row."""
    num, size = blocks.shape[:2]
    # Slices row by row: contiguous copies, without an index tensor.
    packed = blocks.new_empty(num, size * (size + 1) // 2)
    for o, start in enumerate(_starts(size)):
        packed[:, start : start + size - o] = blocks[:, o, o:]
    return packed


def _products(rows: Tensor) -> Tensor:
    """Products of all pairs of entries of each row, packed in the order of :func:`_upper_triangle`."""
    num, size = rows.shape
    packed = rows.new_empty(num, size * (size + 1) // 2)
    for i, start in enumerate(_starts(size)):
        torch.mul(rows[:, i : i + 1], rows[:, i:], out=packed[:, start : start + size - i])
    return packed


def _starts(size: int) -> list[int]:
    """Start of each row in a packed upper triangle."""
    return [o * size - o * (o - 1) // 2 for o in range(size)]


def _row_kronecker(left: Tensor, right: Tensor) -> Tensor:
    """Kronecker product of each row of ``left`` with the same row of ``right``, ``(n, I J)``."""
    return (left[:, :, None] * right[:, None, :]).flatten(1)


def _add(sums: dict[tuple[int, int], Tensor], key: tuple[int, int], left: Tensor, right: Tensor) -> None:
    """Add ``left^T right`` to the sum of this key."""
    product = matmul(left.T, right)
    if key in sums:
        sums[key] += product
    else:
        sums[key] = product


def _assemble(chain: Chain, sums: dict[tuple[int, int], Tensor], crossed: dict[tuple[int, int], Tensor]) -> Tensor:
    """Copy the sums, indexed ``(o o', i i')``, to the entries ``(o i, o' i')`` of the matrix.

    Only the upper triangle is written and then mirrored. Each sum is freed once it is in place.
    """
    problem, layers = chain.problem, chain.layers
    result = unfilled(problem.dim, problem.dim, dtype=problem.dtype, device=problem.device)
    for row, col in list(sums):
        first, second = layers[row], layers[col]
        block = sums.pop((row, col))
        if row == col:
            _place_symmetric(result, first, block)
            continue
        block = block.view(first.fan_out, second.fan_out, first.columns, second.columns)
        cross = crossed.pop((row, col), None)
        if cross is not None and row == col + 1:
            # Indexed (o i, i'), to be added where i = o': the derivative is zero elsewhere.
            block.diagonal(dim1=1, dim2=2).add_(cross.view(first.fan_out, second.fan_out, -1).mT)
        elif cross is not None:
            # Indexed (o i', i o'); i stops before the appended 1, whose derivative is zero.
            cross = cross.view(first.fan_out, second.columns, -1, second.fan_out)
            block[:, :, : cross.shape[2]] += cross.permute(0, 3, 2, 1)
        for first_columns, rows in first.places:
            for second_columns, cols in second.places:
                part = block[:, :, first_columns][..., second_columns]
                _put(result, rows, cols, part.permute(0, 2, 1, 3))
    return mirrored(result)


def _place_symmetric(result: Tensor, layer: Layer, block: Tensor) -> None:
    """Copy the block of a layer with itself, whose index pairs are both packed as upper triangles."""
    size, width = layer.fan_out, layer.columns
    block = block.index_select(1, _unpack(width).to(block.device)).view(-1, width, width)
    starts = _starts(size)
    for number, (first_columns, rows) in enumerate(layer.places):
        for second_columns, cols in layer.places[number:]:
            if rows == cols:
                target = result[rows, cols].unflatten(1, (size, -1)).unflatten(0, (size, -1))
                for o, start in enumerate(starts):
                    target[o, :, o:] = block[start : start + size - o, first_columns, second_columns].transpose(0, 1)
            else:
                whole = block[:, first_columns, second_columns].index_select(0, _unpack(size).to(block.device))
                _put(result, rows, cols, whole.unflatten(0, (size, size)).permute(0, 2, 1, 3))


def _put(result: Tensor, rows: slice, cols: slice, part: Tensor) -> None:
    """Write ``part``, indexed ``(o, i, o', i')``, to the upper triangle, transposed if its rows come later."""
    if rows.start < cols.start:
        target = result[rows, cols].unflatten(1, part.shape[2:]).unflatten(0, part.shape[:2])
        target.copy_(part)
    else:
        target = result[cols, rows].unflatten(1, part.shape[:2]).unflatten(0, part.shape[2:])
        target.copy_(part.permute(2, 3, 0, 1))


def _unpack(size: int) -> Tensor:
    """Position of each pair ``(a, b)`` in the packed upper triangle, pairs row by row."""
    position = torch.empty(size, size, dtype=torch.long)
    triangle = torch.triu_indices(size, size)
    position[triangle[0], triangle[1]] = torch.arange(triangle.shape[1])
    position[triangle[1], triangle[0]] = torch.arange(triangle.shape[1])
    return position.reshape(-1)
