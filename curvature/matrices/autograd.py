"""Products and factors of any model by autograd: backward passes in batches, checked against single ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from curvature.linalg.routes import ProductCost
from curvature.matrices.fast.paths import OutputFactor
from curvature.models import Problem

__all__ = [
    "accumulated",
    "backward_columns",
    "batches_backward",
    "factor_block",
    "kept_graphs",
    "product_cost",
    "split_columns",
]

_CONVOLUTIONS = (nn.modules.conv._ConvNd,)
_BATCHED_COLUMNS = 8  # in one vectorized backward pass; more leave the cache (measured: 2.4 ms a column, 32: 3.2)
_KEPT_CHUNKS = 4  # graphs of so many chunks of examples are kept between products


def batches_backward(problem: Problem) -> bool:
    """Whether several backward passes at once are quicker than a loop.

    Parameters
    ----------
    problem
        Whose model is differentiated.

    Returns
    -------
    bool
        Not with convolutions: vmap over their backward pass is slower on the CPU (measured 1.2x).
    """
    return not any(isinstance(layer, _CONVOLUTIONS) for layer in problem.model.modules())


def kept_graphs(problem: Problem, build: Callable[[slice], tuple]) -> Callable[[], Iterable[tuple]]:
    """Build the graph of each chunk of examples, kept from one product to the next where the chunks are few.

    Parameters
    ----------
    problem
        With its chunks of examples.
    build
        ``examples -> graph``.

    Returns
    -------
    Callable
        Gives the graphs.
    """
    if problem.num_examples > _KEPT_CHUNKS * problem.chunk_size:
        return lambda: map(build, problem.chunks())
    return cache(lambda: [build(examples) for examples in problem.chunks()])


def split_columns(problem: Problem, block: Tensor) -> list[Tensor]:
    """Split ``(P, K)`` into one ``(K, *shape)`` tensor per parameter.

    Parameters
    ----------
    problem
        With its layout.
    block
        ``(P, K)``.

    Returns
    -------
    list of Tensor
        In the order of the layout.
    """
    return [block[span].T.reshape(-1, *entry.shape) for entry, span in problem.layout.pairs()]


def backward_columns(outputs: list[Tensor], leaves: list[Tensor], columns: list[Tensor], *, batched: bool) -> Tensor:
    """Pull ``K`` cotangents back through a kept graph.

    Parameters
    ----------
    outputs
        Tensors with a graph.
    leaves
        What they are differentiated by.
    columns
        Cotangents of each output, ``(K, *shape)``.
    batched
        Whether to try several at once; some layers have no batched second derivative, and some a wrong one, so the
        last column is compared with a single pass.

    Returns
    -------
    Tensor
        ``(sum of leaf sizes, K)``.
    """
    num_columns = len(columns[0])
    sizes = [leaf.numel() for leaf in leaves]
    with_graph = [(output, column) for output, column in zip(outputs, columns, strict=True) if output.requires_grad]
    if not with_graph:
        return columns[0].new_zeros(sum(sizes), num_columns)
    outputs, columns = (list(part) for part in zip(*with_graph, strict=True))

    def pull(cotangents: list[Tensor], lead: tuple[int, ...]) -> Tensor:
        parts = torch.autograd.grad(
            outputs,
            leaves,
            cotangents,
            retain_graph=True,
            is_grads_batched=bool(lead),
            allow_unused=True,
            materialize_grads=True,
        )
        if any(part.shape != (*lead, *leaf.shape) for part, leaf in zip(parts, leaves, strict=True)):
            raise RuntimeError("a batched backward pass returned a wrong shape")
        return torch.cat([part.reshape(*lead, -1) for part in parts], dim=-1)

    if batched and num_columns > 1:
        try:
            batches = zip(*(column.split(_BATCHED_COLUMNS) for column in columns), strict=True)
            rows = torch.cat([pull(list(batch), (len(batch[0]),)) for batch in batches])
            if _agree(rows[-1], pull([column[-1] for column in columns], ())):
                return rows.T
        except RuntimeError:
            pass  # some layers have no batched second derivative; one column at a time they do
    return torch.stack([pull([column[k] for column in columns], ()) for k in range(num_columns)], dim=1)


def factor_block(problem: Problem, examples: slice, factor: OutputFactor) -> Tensor:
    """``J_n^T S_n`` of the examples of one chunk side by side.

    Parameters
    ----------
    problem
        Model and data.
    examples
        The chunk.
    factor
        Gives ``S_n``.

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
        rows = torch.stack([_example_rows(problem, *pair) for pair in zip(inputs, columns.mT, strict=True)])
    return rows.reshape(-1, problem.dim).T


def _vectorized_rows(problem: Problem, inputs: Tensor, columns: Tensor) -> Tensor | None:
    """Rows ``(n, R, P)`` by vmap over examples and columns; None where torch cannot, or cannot be trusted to.

    Some layers fail under nested vmap (recurrent ones), others give wrong numbers in silence (the gradient of a PReLU
    weight, torch 2.13), so the first and the last example are compared with plain backward passes.
    """

    def pulled(example: Tensor, cotangents: Tensor) -> Tensor:
        def single(weights: Tensor) -> Tensor:
            return problem.predict(weights, example[None])[0].reshape(-1)

        transposed = torch.func.vjp(single, problem.weights)[1]
        return torch.func.vmap(lambda cotangent: transposed(cotangent)[0])(cotangents)

    cotangents = columns.mT
    try:
        rows = torch.func.vmap(pulled)(inputs, cotangents)
    except RuntimeError:
        return None
    if rows.shape != (*cotangents.shape[:2], problem.dim):
        return None
    checked = {0, len(inputs) - 1}
    trusted = all(_agree(rows[n], _example_rows(problem, inputs[n], cotangents[n])) for n in checked)
    return rows if trusted else None


def _agree(values: Tensor, expected: Tensor) -> bool:
    """Equal up to rounding, relative to the largest entry."""
    return bool((values - expected).abs().max() <= 1e4 * torch.finfo(values.dtype).eps * expected.abs().max())


def _example_rows(problem: Problem, example: Tensor, cotangents: Tensor) -> Tensor:
    """Rows ``(R, P)`` of one example by one backward pass per column."""
    named = problem.leaves()
    with torch.enable_grad():
        outputs = problem.predict(named, example[None])
    columns = [cotangents.reshape(len(cotangents), *outputs.shape)]
    return backward_columns([outputs], list(named.values()), columns, batched=False).T


def accumulated(blocks: Iterable[Tensor], problem: Problem) -> Tensor:
    r"""Add up $B_k B_k^T$ over the blocks of a factor.

    Parameters
    ----------
    blocks
        ``(P, r_k)`` each.
    problem
        Gives size, precision and device.

    Returns
    -------
    Tensor
        ``(P, P)``.
    """
    total = torch.zeros(problem.dim, problem.dim, dtype=problem.dtype, device=problem.device)
    for block in blocks:
        if block.device.type == "cpu":
            columns = block.numpy()
            # numpy's GEMM recognizes B B^T as symmetric and is the faster BLAS here; memory is shared.
            with np.errstate(invalid="ignore"):  # infinite rows end in one NonFiniteError, not in a warning per chunk
                total += torch.from_numpy(np.matmul(columns, columns.T))
        else:
            total += block @ block.T
    return total


def product_cost(problem: Problem) -> ProductCost:
    """Memory of products through autograd, from the tensors that a forward pass saves.

    Parameters
    ----------
    problem
        Whose model is run on one example.

    Returns
    -------
    ProductCost
        Multiplications are not counted.
    """
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor
        return tensor

    named = problem.leaves()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = problem.predict(named, problem.inputs[:1])
    weights = {leaf.data_ptr() for leaf in named.values()}
    each = sum(t.numel() * t.element_size() for address, t in saved.items() if address not in weights)
    each += 8 * outputs.numel() * outputs.element_size()
    each *= min(problem.num_examples, problem.chunk_size)
    vector = 4.0 * problem.dim * problem.weights.element_size()
    # The graph of a gradient holds what forward and backward pass hold, and its own backward as much again; a column
    # of a batched backward pass holds one tangent for each of them at a time.
    return ProductCost(4.0 * each, vector + (each if batches_backward(problem) else 0))
