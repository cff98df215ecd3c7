"""Dense matrices as matrix products between row-wise Kronecker products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from curvature.structured.chain import Chain, forward, places

__all__ = ["curvature", "curvature_bytes"]

_CHUNK_BYTES = 64 * 2**20


def curvature(chain: Chain, output_hessian: Callable[[Tensor, Tensor], Tensor], *, second_order: bool) -> Tensor:
    r"""Dense Hessian (``second_order=True``) or GGN-type matrix of the mean loss, ``(P, P)``.

    ``output_hessian(outputs, targets)`` gives $\nabla_f^2 \ell_n$ (or another symmetric matrix in output space),
    ``(n, C, C)``. Streams the examples in chunks; memory is the result, its blocks before they are put in place (half
    of it), and a bounded buffer.
    """
    problem, layers = chain.problem, chain.layers
    pairs, size = _pairs(chain), _examples_at_once(chain)
    sums: dict[tuple[int, int], np.ndarray | Tensor] = {}
    crossed: dict[tuple[int, int], np.ndarray | Tensor] = {}
    symmetric = [(_triangle(layer.fan_out), _triangle(layer.columns)) for layer in layers]
    for start in range(0, problem.num_examples, size):
        where = slice(start, start + size)
        pass_ = _forward_backward(chain, where, output_hessian, second_order)
        for row, col in pairs:
            middle = pass_.curvatures[row, col]
            left, right = pass_.inputs[row], pass_.inputs[col]
            if row == col:
                outs, ins = (index.to(problem.device) for index in symmetric[row])
                packed = middle[:, outs[0], outs[1]]
                products = left[:, ins[0]] * left[:, ins[1]]
            else:
                packed = middle.flatten(1)
                products = _row_kronecker(left, right)
            _add(sums, (row, col), packed, products)
            if second_order and row > col:
                slopes = _row_kronecker(pass_.gradients[row], right)
                _add(crossed, (row, col), slopes, pass_.input_jacobians[row, col].flatten(1))
    return _assemble(chain, sums, crossed, symmetric)


def curvature_bytes(chain: Chain) -> float:
    """Upper bound of the memory of :func:`curvature`: the result, its blocks, and what one chunk of examples holds."""
    layers = chain.layers
    kept = sum(layers[row].fan_out * layers[col].fan_out for row, col in _pairs(chain))  # of each example, by layers
    count = min(chain.problem.num_examples, _examples_at_once(chain))
    return chain.problem.weights.element_size() * (3 * chain.problem.dim**2 + count * (3 * kept + 3 * _widest(chain)))


def _pairs(chain: Chain) -> list[tuple[int, int]]:
    return [(row, col) for row in range(len(chain.layers)) for col in range(row + 1)]


def _widest(chain: Chain) -> int:
    """Length of the two factors of one product, for one example."""
    layers = chain.layers
    return max(layers[r].fan_out * layers[c].fan_out + layers[r].columns * layers[c].columns for r, c in _pairs(chain))


def _examples_at_once(chain: Chain) -> int:
    return max(32, _CHUNK_BYTES // (_widest(chain) * chain.problem.weights.element_size()))


@dataclass(frozen=True, eq=False)
class _Pass:
    """What one chunk of examples contributes, by layer; keys ``(l, k)`` with ``k <= l``."""

    inputs: list[Tensor]
    gradients: list[Tensor]
    curvatures: dict[tuple[int, int], Tensor]
    input_jacobians: dict[tuple[int, int], Tensor]


def _forward_backward(
    chain: Chain, where: slice, output_hessian: Callable[[Tensor, Tensor], Tensor], second_order: bool
) -> _Pass:
    problem, layers = chain.problem, chain.layers
    inputs, outputs, slopes = forward(chain, where, 2 if second_order else 1)
    targets = problem.targets[where]
    last = len(layers) - 1
    jacobians: dict[tuple[int, int], Tensor] = {}
    for k in range(len(layers)):
        width = layers[k].fan_out
        identity = torch.eye(width, dtype=problem.dtype, device=problem.device)
        jacobians[k, k] = identity.expand(len(targets), width, width)
        for row in range(k, last):
            jacobians[row + 1, k] = torch.matmul(layers[row + 1].weight, slopes[row][0][:, :, None] * jacobians[row, k])
    gradients: list[Tensor] = [problem.loss.gradient(outputs[last], targets) / problem.denominator]
    curved = output_hessian(outputs[last], targets) / problem.denominator
    curvatures = {(last, k): curved @ jacobians[last, k] for k in range(len(layers))}
    for row in range(last - 1, -1, -1):
        back = gradients[0] @ layers[row + 1].weight
        for k in range(row + 1):
            through = torch.matmul(layers[row + 1].weight.T, curvatures[row + 1, k])
            curvatures[row, k] = slopes[row][0][:, :, None] * through
            if second_order:
                curvatures[row, k] += (back * slopes[row][1])[:, :, None] * jacobians[row, k]
        gradients.insert(0, slopes[row][0] * back)
    input_jacobians = {}
    if second_order:
        for row in range(1, len(layers)):
            for k in range(row):
                # d a_l / d z_k; the appended 1 depends on nothing.
                moved = slopes[row - 1][0][:, :, None] * jacobians[row - 1, k]
                if layers[row].bias is not None:
                    moved = torch.cat([moved, torch.zeros_like(moved[:, :1])], dim=1)
                input_jacobians[row, k] = moved
    return _Pass(inputs, gradients, curvatures, input_jacobians)


def _triangle(size: int) -> Tensor:
    return torch.triu_indices(size, size)


def _row_kronecker(left: Tensor, right: Tensor) -> Tensor:
    return (left[:, :, None] * right[:, None, :]).flatten(1)


def _add(sums: dict, key: tuple[int, int], left: Tensor, right: Tensor) -> None:
    """Add ``left^T right``; numpy's OpenBLAS is the faster GEMM on the CPU, and memory is shared."""
    if left.device.type == "cpu":
        product = torch.from_numpy(np.matmul(left.contiguous().numpy().T, right.contiguous().numpy()))
    else:
        product = left.T @ right
    if key in sums:
        sums[key] += product
    else:
        sums[key] = product


def _assemble(chain: Chain, sums: dict, crossed: dict, symmetric: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Put the sums, indexed ``(o o', i i')``, in their places ``(o i, o' i')`` in the order of the layout."""
    problem, layers = chain.problem, chain.layers
    result = torch.empty(problem.dim, problem.dim, dtype=problem.dtype, device=problem.device)
    for row, col in list(sums):
        first, second = layers[row], layers[col]
        block = sums.pop((row, col))
        if row == col:
            outs, ins = (_unpack(index).to(problem.device) for index in symmetric[row])
            block = block.index_select(1, ins).index_select(0, outs)
        block = block.view(first.fan_out, second.fan_out, first.columns, second.columns)
        if (row, col) in crossed:
            # indexed (o i', i o')
            cross = crossed.pop((row, col)).view(first.fan_out, second.columns, first.columns, second.fan_out)
            block += cross.permute(0, 3, 2, 1)
        block = block.permute(0, 2, 1, 3)  # (o, i, o', i')
        for at_first, rows in places(first):
            for at_second, cols in places(second):
                part = block[:, at_first][:, :, :, at_second]
                target = result[rows, cols]
                # rows are (o i), columns (o' i'): splitting them needs no copy
                target.unflatten(1, part.shape[2:]).unflatten(0, part.shape[:2]).copy_(part)
                if row != col:
                    result[cols, rows] = target.T
    return result


def _unpack(triangle: Tensor) -> Tensor:
    """Position of ``(a, b)`` in the packed upper triangle, for all ``a, b`` row by row."""
    size = int(triangle.max()) + 1
    position = torch.empty(size, size, dtype=torch.long)
    position[triangle[0], triangle[1]] = torch.arange(triangle.shape[1])
    position[triangle[1], triangle[0]] = torch.arange(triangle.shape[1])
    return position.reshape(-1)
