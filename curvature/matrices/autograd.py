"""Products and factors for any model by autograd, with batched backward passes that are checked against single ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from curvature.arrays import Float
from curvature.linalg.routes import ProductCost
from curvature.matrices.fast.paths import OutputFactor
from curvature.models import Problem
from curvature.models.behaviour import graph_nodes
from curvature.models.derivatives import pulled_back
from curvature.models.trees import Structure, Tensors, structure_of, tree_of

__all__ = [
    "FEWEST_COLUMNS",
    "accumulated",
    "backward_columns",
    "batches_backward",
    "columns_at_once",
    "factor_block",
    "kept_graphs",
    "product_cost",
    "split_columns",
    "tangent_graph",
]

_CONVOLUTIONS = (nn.modules.conv._ConvNd,)
# In one vectorized backward pass. Measured 2.4 ms a column with 8 and 3.2 ms with 32 where the tensors leave the cache.
# Where they stay in it the overhead of a pass counts: all columns of a transformer of 788 weights took 0.7 to 1.0 s
# with 8, and 0.5 s with 32, 64 or 128, on one thread.
FEWEST_COLUMNS, _MOST_COLUMNS = 8, 48
_CACHE_BYTES = 4e6


def batches_backward(problem: Problem) -> bool:
    """Decide whether batched backward passes are faster than a loop.

    Parameters
    ----------
    problem
        The problem whose model is differentiated.

    Returns
    -------
    bool
        False for models with convolutions: vmap over their backward pass is slower on the CPU (measured 1.2x).
    """
    return not any(isinstance(layer, _CONVOLUTIONS) for layer in problem.model.modules())


def columns_at_once(problem: Problem) -> int:
    """Choose the number of columns of one batched backward pass, by what the forward pass saves.

    Parameters
    ----------
    problem
        The problem whose model is differentiated.

    Returns
    -------
    int
        0 for a loop over single passes.
    """
    if not batches_backward(problem):
        return 0
    _, each = _saved_bytes(problem, problem.leaves())
    chunk = max(1, each) * min(problem.num_examples, problem.chunk_size)
    return int(min(max(_CACHE_BYTES / chunk, FEWEST_COLUMNS), _MOST_COLUMNS))


def kept_graphs(problem: Problem, build: Callable[[slice], tuple]) -> Callable[[], Iterable[tuple]]:
    """Make a function that returns the graphs of all chunks of examples.

    Parameters
    ----------
    problem
        The problem with its chunks of examples.
    build
        ``examples -> graph``.

    Returns
    -------
    Callable
        Returns the graphs; they are kept from one product to the next if there are at most four chunks.
    """
    if not problem.keeps_graphs:
        return lambda: map(build, problem.chunks())
    return cache(lambda: [build(examples) for examples in problem.chunks()])


def split_columns(problem: Problem, block: Float[Tensor, "weights columns"]) -> list[Float[Tensor, "columns ..."]]:
    """Split a block of vectors into one tensor per parameter.

    Parameters
    ----------
    problem
        The problem with the layout of its weights.
    block
        ``(P, K)``.

    Returns
    -------
    list of Tensor
        ``(K, *shape)`` for each parameter, in the order of the layout.
    """
    return [block[span].T.reshape(-1, *entry.shape) for entry, span in problem.layout.pairs()]


def tangent_graph(
    problem: Problem, examples: slice
) -> tuple[list[Float[Tensor, "..."]], Float[Tensor, "examples ..."], Float[Tensor, "..."], list[Float[Tensor, "..."]]]:
    """Build the graph that gives tangents of the outputs in reverse mode, so that no layer needs a forward-mode rule.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.
    examples
        Whose outputs.

    Returns
    -------
    leaves, outputs, cotangent, pulled
        The weights in the order of the layout, the outputs ``f``, a cotangent ``c``, and ``J^T c`` for each leaf. It is
        linear in ``c``, so its derivative along ``v`` is ``J v``.
    """
    named = problem.leaves()
    leaves = list(named.values())
    with torch.enable_grad():
        outputs = problem.predict(named, problem.inputs[examples])
        cotangent = torch.zeros_like(outputs, requires_grad=True)
        pulled = pulled_back([outputs], leaves, [cotangent], create_graph=True)
    return leaves, outputs, cotangent, list(pulled)


def backward_columns(
    outputs: list[Float[Tensor, "..."]],
    leaves: list[Float[Tensor, "..."]],
    columns: list[Float[Tensor, "columns ..."]],
    *,
    at_once: int,
) -> Float[Tensor, "weights columns"]:
    """Pull ``K`` cotangents back through a graph.

    Parameters
    ----------
    outputs
        Tensors with a graph, which is kept.
    leaves
        Tensors that the outputs are differentiated by.
    columns
        Cotangents of each output, ``(K, *shape)``.
    at_once
        Columns of one batched backward pass; 0 for single passes.

    Returns
    -------
    Tensor
        ``(sum of leaf sizes, K)``.

    Notes
    -----
    Some layers have no batched second derivative, and some have a wrong one. So the last column of a batched pass is
    compared with a single pass, and single passes are used if the two differ.
    """
    num_columns = len(columns[0])
    sizes = [leaf.numel() for leaf in leaves]
    with_graph = [(output, column) for output, column in zip(outputs, columns, strict=True) if output.requires_grad]
    if not with_graph:
        return columns[0].new_zeros(sum(sizes), num_columns)
    outputs, columns = (list(part) for part in zip(*with_graph, strict=True))

    def pull(cotangents: list[Tensor], lead: tuple[int, ...]) -> Tensor:
        if lead:
            parts = torch.autograd.grad(
                outputs,
                leaves,
                cotangents,
                retain_graph=True,
                is_grads_batched=True,
                allow_unused=True,
                materialize_grads=True,
            )
        else:
            parts = pulled_back(outputs, leaves, cotangents, retain_graph=True)
        if any(part.shape != (*lead, *leaf.shape) for part, leaf in zip(parts, leaves, strict=True)):
            raise RuntimeError("a batched backward pass returned a wrong shape")
        return torch.cat([part.reshape(*lead, -1) for part in parts], dim=-1)

    if at_once and num_columns > 2:  # with two, a batched pass and the single one are more than two single ones
        try:
            batches = zip(*(column.split(at_once) for column in columns), strict=True)
            rows = torch.cat([pull(list(batch), (len(batch[0]),)) for batch in batches])
            if _agree(rows[-1], pull([column[-1] for column in columns], ())):
                return rows.T
        except RuntimeError:
            pass  # a layer without batched second derivative: one column at a time works
    return torch.stack([pull(list(single), ()) for single in zip(*columns, strict=True)], dim=1)


def factor_block(problem: Problem, examples: slice, factor: OutputFactor) -> Float[Tensor, "weights width"]:
    """Compute the block ``[J_n^T S_n, ...]`` of the factor for one chunk of examples.

    Parameters
    ----------
    problem
        Model and data.
    examples
        The chunk.
    factor
        Returns ``S_n``, ``(n, C, R)``.

    Returns
    -------
    Tensor
        ``(P, examples * R)``.
    """
    inputs, targets = problem.inputs[examples], problem.targets[examples]
    with torch.no_grad():
        outputs = problem.predict(problem.weights, inputs)
        columns = factor(outputs, targets, examples)
    rows = _vectorized_rows(problem, inputs, columns)
    if rows is None:
        rows = torch.stack([_example_rows(problem, inputs[n : n + 1], part) for n, part in enumerate(columns.mT)])
    return rows.reshape(-1, problem.dim).T


def _vectorized_rows(problem: Problem, inputs: Tensors, columns: Tensor) -> Tensor | None:
    """Rows ``(n, R, P)`` by vmap over examples and columns; None if torch fails or its result is wrong.

    Some layers fail under nested vmap (recurrent ones), others silently give wrong numbers (the gradient of a PReLU
    weight, torch 2.13). So the first and the last example are compared with plain backward passes.
    """

    def pulled(example: Structure, cotangents: Tensor) -> Tensor:
        def single(weights: Tensor) -> Tensor:
            return problem.predict(weights, tree_of(example)[None])[0].reshape(-1)

        transposed = torch.func.vjp(single, problem.weights)[1]
        return torch.func.vmap(lambda cotangent: transposed(cotangent)[0])(cotangents)

    cotangents = columns.mT
    try:
        rows = torch.func.vmap(pulled)(structure_of(inputs), cotangents)
    except RuntimeError:
        return None
    if rows.shape != (*cotangents.shape[:2], problem.dim):
        return None
    checked = {0, len(inputs) - 1}
    trusted = all(_agree(rows[n], _example_rows(problem, inputs[n : n + 1], cotangents[n])) for n in checked)
    return rows if trusted else None


def _agree(values: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are equal up to rounding, relative to the largest entry."""
    return bool((values - expected).abs().max() <= 1e4 * torch.finfo(values.dtype).eps * expected.abs().max())


def _example_rows(problem: Problem, example: Tensors, cotangents: Tensor) -> Tensor:
    """Rows ``(R, P)`` of one example by one backward pass per column."""
    named = problem.leaves()
    with torch.enable_grad():
        outputs = problem.predict(named, example)
    columns = [cotangents.reshape(len(cotangents), *outputs.shape)]
    return backward_columns([outputs], list(named.values()), columns, at_once=0).T


def accumulated(blocks: Iterable[Float[Tensor, "weights _"]], problem: Problem) -> Float[Tensor, "weights weights"]:
    r"""Sum $B_k B_k^T$ over the blocks of a factor.

    Parameters
    ----------
    blocks
        Blocks $B_k$, ``(P, r_k)``.
    problem
        The problem, for dimension, precision and device.

    Returns
    -------
    Tensor
        ``(P, P)``.
    """
    total: Tensor | None = None
    for block in blocks:
        if block.device.type == "cpu":
            columns = block.numpy()
            # NumPy recognizes B B^T as symmetric (measured 22.5 useful GF/s against 12.6 by torch); memory is shared.
            with np.errstate(invalid="ignore"):  # infinite entries are reported once, as a NonFiniteError
                part = torch.from_numpy(np.matmul(columns, columns.T))
        else:
            part = block @ block.T
        total = part if total is None else total.add_(part)
    return problem.weights.new_zeros(problem.dim, problem.dim) if total is None else total


def product_cost(problem: Problem) -> ProductCost:
    """Bound the memory of products by autograd, from the tensors that a forward pass saves.

    Parameters
    ----------
    problem
        The problem, whose model is run on one example.

    Returns
    -------
    ProductCost
        With memory, and passes over streamed data; multiplications are not counted.
    """
    named = problem.leaves()
    outputs, each = _saved_bytes(problem, named)
    each += 8 * outputs.numel() * outputs.element_size()
    each *= min(problem.num_examples, problem.chunk_size)
    vector = 4.0 * problem.dim * problem.weights.element_size()
    # The graph of a gradient holds the tensors of a forward and a backward pass, and its backward pass as many again. A
    # column of a batched backward pass adds one tangent for each tensor.
    column = vector + (each if batches_backward(problem) else 0)
    return ProductCost(4.0 * each, column, passes=int(problem.is_streamed and not problem.keeps_graphs))


def _saved_bytes(problem: Problem, named: dict[str, Tensor]) -> tuple[Tensor, int]:
    """Outputs for one example, and the size of what a forward pass saves for it besides the weights."""
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor
        return tensor

    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = problem.predict(named, problem.inputs[:1])
    except RuntimeError:  # torch.func inside forward does not run under such hooks: count what flows through the graph
        with torch.enable_grad():
            outputs = problem.predict(named, problem.inputs[:1])
        flows = (metadata for node in graph_nodes(outputs) for metadata in getattr(node, "_input_metadata", ()))
        return outputs, sum(math.prod(flow.shape) * outputs.element_size() for flow in flows)
    weights = {leaf.data_ptr() for leaf in named.values()}
    return outputs, sum(t.numel() * t.element_size() for address, t in saved.items() if address not in weights)
