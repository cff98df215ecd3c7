r"""Directions in weight space along which a curvature matrix is zero by construction.

They follow from the network and the data, not from small eigenvalues, and each is verified by a product before it
counts:

* a parameter that the loss does not depend on, and a row of an embedding that ``padding_idx`` masks;
* a combination of a layer's inputs (with the constant 1) that vanishes on all data: constant or duplicated pixels, dead
  units (for the Hessian only in layers whose input does not depend on the weights);
* a combination of a layer's outputs that does not influence the loss: dead units (not for the Hessian);
* the softmax shift: one vector added to every row of the last layer, ``fan_in + 1`` directions;
* rescaling across a positively homogeneous activation, one direction per hidden unit, or across no activation between
  two linear layers, ``H^2`` directions (not for the Hessian away from stationary points);
* scales and shifts of normalized features, and the gauges of attention (:mod:`curvature.matrices.symmetries`).

The null directions of a gauge belong to the chart: ``chart.null_dim``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from curvature.linalg.facts import NullSpace
from curvature.linalg.rank import MAX_NULL_DIRECTIONS
from curvature.matrices.symmetries import MAX_ENTRIES, symmetries
from curvature.matrices.witnesses import in_double
from curvature.models import Problem
from curvature.models.layers import LayerTrace, trace_layers
from curvature.models.losses import CrossEntropy, Loss

__all__ = ["expected_directions", "known_null_space"]

_HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU)


def known_null_space(problem: Problem, *, second_order: bool) -> NullSpace:
    """Collect the directions that should be null by construction.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.
    second_order
        True for the Hessian, False for the GGN and the matrices of its form.

    Returns
    -------
    NullSpace
        An orthonormal basis with the reasons; at most 4096 directions.

    Notes
    -----
    Costs one forward pass, ``C`` backward passes unless it is for the Hessian, and singular value decompositions of the
    size of the layers. All of it is done in double precision: in single precision, vectors that are dependent are not
    told from vectors that nearly are.
    """
    precision = problem.dtype
    if problem.dim <= MAX_ENTRIES:  # else no direction would be kept
        problem = in_double(problem)
    traces: dict[str, LayerTrace] = {}
    if not problem.is_streamed:  # the inputs of a layer for all examples are larger than the data
        traces = trace_layers(problem, None if second_order else _spanning_factor(problem.loss))
    basis = problem.weights.new_zeros(problem.dim, 0)
    reasons: dict[str, int] = {}
    for reason, vectors in _candidates(problem, traces, second_order):
        if basis.shape[1] + vectors.shape[1] > min(MAX_NULL_DIRECTIONS, 4 * problem.dim):
            continue
        grown = _extend(basis, vectors)
        if grown.shape[1] > basis.shape[1]:
            reasons[reason] = reasons.get(reason, 0) + grown.shape[1] - basis.shape[1]
        basis = grown
    return NullSpace(basis.to(precision), reasons)


def _spanning_factor(loss: Loss) -> Callable[[Tensor, Tensor], Tensor] | None:
    """A factor in output space whose columns span everything that a matrix other than the Hessian can see."""
    if loss.convex and not loss.flat:
        return loss.hessian_factor
    # Where the loss is linear its Hessian vanishes, but its gradient does not.
    return loss.fisher_factor if loss.likelihood else None


def expected_directions(problem: Problem, *, second_order: bool) -> int:
    """Estimate the number of directions of :func:`known_null_space` from shapes and the number of examples.

    Parameters
    ----------
    problem
        Model, loss and data.
    second_order
        True for the Hessian, False for the GGN and the matrices of its form.

    Returns
    -------
    int
        An estimate for the planning of work; nothing is computed.
    """
    entries = [entry for entry in problem.layout.entries if len(entry.shape) > 1]
    if not entries:
        return 0
    most = min(MAX_NULL_DIRECTIONS, MAX_ENTRIES // problem.dim)
    widths = [entry.numel // entry.shape[0] + 1 for entry in entries]
    silent = [
        max(0, width - problem.num_examples) * entry.shape[0] for entry, width in zip(entries, widths, strict=True)
    ]
    counted = sum(count for count in (silent[:1] if second_order else silent) if count <= most)
    shift = widths[-1] if isinstance(problem.loss, CrossEntropy) else 0
    return min(problem.dim, MAX_NULL_DIRECTIONS, counted + shift)


def _extend(basis: Tensor, vectors: Tensor) -> Tensor:
    """Extend an orthonormal basis by the part of ``vectors`` that is independent of it.

    The work is restricted to the coordinates where the vectors, and the basis vectors that overlap with them, are not
    zero: mostly those of one layer.
    """
    lengths = torch.linalg.vector_norm(vectors, dim=0)
    vectors = vectors[:, lengths > 0] / lengths[lengths > 0]
    near = basis[(vectors != 0).any(dim=1)].any(dim=0)
    known = basis[:, near]
    support = (vectors != 0).any(dim=1) | (known != 0).any(dim=1)
    vectors, known = vectors[support], known[support]
    for _ in range(2):  # the second pass removes the rounding of the first
        vectors = vectors - known @ (known.T @ vectors)
    # Vectors of one kind are often orthonormal already, and keep their sparse form; otherwise an SVD finds their span.
    products = vectors.T @ vectors
    rounding = 50 * torch.finfo(vectors.dtype).eps
    if not torch.allclose(products, torch.eye(len(products)).to(products), rtol=0, atol=rounding):
        left, values, _ = torch.linalg.svd(vectors, full_matrices=False)
        vectors = left[:, values > 1e-8]
        vectors = torch.linalg.qr(vectors - known @ (known.T @ vectors)).Q
    new = basis.new_zeros(len(basis), vectors.shape[1])
    new[support] = vectors
    return torch.cat([basis, new], dim=1)


def _candidates(problem: Problem, traces: dict[str, LayerTrace], second_order: bool) -> Iterator[tuple[str, Tensor]]:
    """Sets of directions ``(P, k)``, each with its reason."""
    for name in problem.unused:
        span = problem.layout.slices[name]
        yield "of unused parameters", _units(problem, span.start, span.stop)
    for name, part in problem.function.padded.items():
        start, width = problem.layout.slices[name].start, part.values.shape[1]
        for row in part.rows:
            yield "of masked rows of embeddings", _units(problem, start + row * width, start + (row + 1) * width)
    for trace in traces.values():
        rows = trace.rows(problem).to(problem.device)
        if not (second_order and trace.depends_on_weights):
            silent = _left_null(trace.inputs.flatten(0, 1))
            yield "of constant or dependent layer inputs", _fill(problem, rows, None, silent)
        if trace.output_gradients is not None and not trace.is_output:
            silent = _left_null(trace.output_gradients.flatten(0, 2))
            yield "of units that do not reach the loss", _fill(problem, rows, silent, None)
        if trace.is_output and isinstance(problem.loss, CrossEntropy) and trace.inputs.shape[1] == 1:
            ones = problem.weights.new_ones(rows.shape[0], 1)
            yield "of the softmax shift", _fill(problem, rows, ones, None)
    if not second_order:
        yield from _rescalings(problem, traces)
    if not problem.is_streamed:
        yield from symmetries(problem, second_order=second_order)


def _units(problem: Problem, start: int, stop: int) -> Tensor:
    """Unit vectors of a range of weights."""
    vectors = problem.weights.new_zeros(problem.dim, stop - start)
    vectors[start:stop] = torch.eye(stop - start).to(vectors)
    return vectors


def _left_null(samples: Tensor) -> Tensor:
    """Orthonormal basis ``(d, k)`` of the vectors ``c`` with ``samples @ c = 0``, for samples ``(n, d)``."""
    # Units of length one: whether a column depends on the others does not depend on how small it is.
    lengths = torch.linalg.vector_norm(samples, dim=0)
    lengths = torch.where(lengths > 0, lengths, 1.0)
    samples = samples / lengths
    if len(samples) > samples.shape[1]:  # the triangle has the same null space
        samples = torch.linalg.qr(samples, mode="r").R
    _, values, right = torch.linalg.svd(samples, full_matrices=True)
    rank = int((values > 5e-15 * max(samples.shape) ** 0.5 * values.max()).sum()) if len(values) else 0
    return torch.linalg.qr(right[rank:].T / lengths[:, None]).Q


def _fill(problem: Problem, rows: Tensor, out: Tensor | None, inner: Tensor | None) -> Tensor:
    """Weight vectors ``out (x) inner`` in the augmented rows of one layer; None means all directions."""
    fan_out, fan_in = rows.shape
    out = torch.eye(fan_out).to(problem.weights) if out is None else out
    inner = torch.eye(fan_in).to(problem.weights) if inner is None else inner
    count = out.shape[1] * inner.shape[1]
    if count > min(MAX_NULL_DIRECTIONS, MAX_ENTRIES // problem.dim):
        return problem.weights.new_zeros(problem.dim, 0)
    vectors = problem.weights.new_zeros(problem.dim, count)
    # Not torch.kron: torch 2.13 raises for a column that has the strides of a row, as an orthogonal factor may have.
    vectors[rows.reshape(-1)] = torch.einsum("oa,ib->oiab", out, inner).reshape(rows.numel(), count)
    return vectors


def _rescalings(problem: Problem, traces: dict[str, LayerTrace]) -> Iterator[tuple[str, Tensor]]:
    """Directions of ``(W_1, W_2) -> ((I + eE) W_1, W_2 (I - eE))``, ``E`` diagonal across a homogeneous activation."""
    named = problem.unflatten(problem.weights)
    for container in problem.model.modules():
        if not isinstance(container, nn.Sequential):
            continue
        paths = {id(layer): path for path, layer in problem.model.named_modules()}
        steps = [layer for layer in _leaves(container) if not isinstance(layer, nn.Identity | nn.Dropout)]
        linear = [i for i, layer in enumerate(steps) if isinstance(layer, nn.Linear) and paths[id(layer)] in traces]
        for i, j in pairwise(linear):
            between = steps[i + 1 : j]
            if not all(isinstance(layer, _HOMOGENEOUS) for layer in between):
                continue
            first, second = traces[paths[id(steps[i])]], traces[paths[id(steps[j])]]
            hidden = named[first.weight].shape[0]
            pairs = (
                [(h, h) for h in range(hidden)] if between else [(a, b) for a in range(hidden) for b in range(hidden)]
            )
            if len(pairs) > MAX_NULL_DIRECTIONS:
                continue
            rows_in, rows_out = (trace.rows(problem).to(problem.device) for trace in (first, second))
            vectors = problem.weights.new_zeros(problem.dim, len(pairs))
            for k, (a, b) in enumerate(pairs):
                # E = e_a e_b^T: row a of W_1 gains row b, column b of W_2 loses column a.
                vectors[rows_in[a], k] = problem.weights[rows_in[b]]
                vectors[rows_out[:, b], k] -= problem.weights[rows_out[:, a]]
            reason = "of rescaling across an activation" if between else "of mixing between linear layers"
            yield reason, vectors
            if not between and first.bias is not None and second.bias is not None:
                # A shift of the hidden units is undone by the bias of the next layer.
                shifts = problem.weights.new_zeros(problem.dim, hidden)
                shifts[rows_in[:, -1]] = torch.eye(hidden).to(shifts)
                shifts[rows_out[:, -1]] -= problem.weights[rows_out[:, :hidden]]
                yield reason, shifts


def _leaves(container: nn.Sequential) -> Iterator[nn.Module]:
    """Modules in the order of their calls, those of nested containers too."""
    for layer in container:
        if type(layer) is nn.Sequential:
            yield from _leaves(layer)
        else:
            yield layer
