r"""The builder of $\sum_n J_n^T M_n J_n$: every matrix except the Hessian has this form, with different $M_n$."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.linalg.routes import EntriesRoute, FactorRoute, ProductCost, Routes
from curvature.linalg.speed import timed
from curvature.matrices.autograd import (
    accumulated,
    backward_columns,
    columns_at_once,
    factor_block,
    kept_graphs,
    product_cost,
    split_columns,
    tangent_graph,
)
from curvature.matrices.fast.paths import FastPath, OutputFactor, OutputMatrix
from curvature.matrices.fast.products import OutputProduct
from curvature.matrices.weight_space import Definition, WeightSpaceMatrix, chosen_path, on_weights
from curvature.matrices.witnesses import output_witness, plus_penalty
from curvature.models import Problem

__all__ = ["Centre", "OutputSpace", "accumulated_route", "example_shares", "output_space"]


@dataclass(frozen=True, eq=False)
class Centre:
    """The mean that is subtracted from the columns of a factor with one column for each example.

    Attributes
    ----------
    mean
        Returns the mean, ``(P,)``.
    roots
        Roots $s_n$ of the weights of the examples, ``(N,)``: $s_n$ times the mean is subtracted from column $n$.
    """

    mean: Callable[[], Tensor]
    roots: Float[Tensor, "examples"]


@dataclass(frozen=True, eq=False)
class OutputSpace:
    r"""The matrices $M_n$ in output space, by a factor $S_n$ with $M_n = S_n S_n^T$ or by their entries.

    Attributes
    ----------
    factor
        Returns $S_n$; None if $M_n$ may be indefinite.
    matrix
        Returns $D M_n$.
    product
        Multiplies by $D M_n$, if there is a cheaper way than by its entries.
    centre
        The mean that is subtracted from the columns of the whole factor.
    visible
        Returns $S_n$ without the part of $M_n$ below its rounding, and whether there is no such part; None if $M_n$ has
        negative eigenvalues. Where ``factor`` is None, it shows the rank.
    """

    factor: OutputFactor | None = None
    matrix: OutputMatrix | None = None
    product: OutputProduct | None = None
    centre: Centre | None = None
    visible: Callable[[], tuple[OutputFactor, bool] | None] | None = None

    def multiply(
        self,
        problem: Problem,
        outputs: Float[Tensor, "examples ..."],
        examples: slice,
        tangents: Float[Tensor, "examples outputs columns"],
    ) -> Float[Tensor, "examples outputs columns"]:
        """Multiply tangents of the outputs by ``M_n``.

        Parameters
        ----------
        problem
            Model, loss and data.
        outputs
            Outputs of the examples, ``(n, C)``.
        examples
            The examples.
        tangents
            ``(n, C, K)``.

        Returns
        -------
        Tensor
            ``(n, C, K)``, without the centre.
        """
        targets = problem.targets[examples]
        if self.factor is not None:
            columns = self.factor(outputs, targets, examples)
            return columns @ (columns.mT @ tangents)
        assert self.matrix is not None
        return self.matrix(outputs, targets) @ tangents / problem.denominator

    def output_product(self) -> OutputProduct | None:
        """Choose how to multiply rows by ``D M_n``.

        Returns
        -------
        Callable or None
            ``(outputs, targets) -> (rows -> rows)``; None if neither the entries nor a product is known.
        """
        matrix = self.matrix
        if self.product is not None or matrix is None:
            return self.product

        def product(outputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
            matrices = matrix(outputs, targets)
            return lambda rows: torch.bmm(rows, matrices)

        return product


def output_space(
    problem: Problem,
    space: OutputSpace,
    name: str,
    rebuild: Callable[..., WeightSpaceMatrix],
    *,
    method: str,
    num_samples: int | None = None,
    penalized: bool = False,
) -> WeightSpaceMatrix:
    r"""Build $\sum_n J_n^T M_n J_n$.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.
    space
        The matrices $M_n$.
    name
        Name of the matrix.
    rebuild
        ``(problem, method=) -> matrix``: builds the same matrix for another problem, for the self-checks.
    method
        ``"structured"``, ``"generic"`` or ``"auto"``.
    num_samples
        Sampled labels per example; None for every matrix but the Monte Carlo Fisher.
    penalized
        Whether to add the Hessian of the penalty of the problem.

    Returns
    -------
    WeightSpaceMatrix
        The matrix on the weights. With a centre, its products are centred, but its routes to entries and factor are
        not yet: the caller replaces them.
    """
    path = chosen_path(problem, method)

    def middle(outputs: Tensor, examples: slice, tangents: Tensor) -> Tensor:
        return space.multiply(problem, outputs, examples, tangents)

    difference = output_witness(problem, middle, None if space.centre is None else space.centre.mean)
    if penalized:
        difference = plus_penalty(problem, difference)
    definition = Definition(
        name,
        rebuild,
        difference,
        reversible=num_samples is None,
        num_samples=num_samples,
        penalized=penalized,
    )
    products, cost = None, None
    if path is not None and (product := space.output_product()) is not None:
        products, cost = path.products(product, second_order=False), path.product_cost(second_order=False)
    products = products or (_by_autograd if problem.derivatives.tangents else _by_jacobian)(problem, space)
    cost = cost or product_cost(problem)
    numpy_blas = path is not None and problem.device.type == "cpu"
    if space.factor is None:
        assert space.matrix is not None
        entries = None if path is None else path.contraction(space.matrix, second_order=False)
        operator = on_weights(problem, definition, products, Routes(entries, None, cost, numpy_blas))
        return replace(operator, facts=replace(operator.facts, rank_factor=_rank_factor(problem, path, space, cost)))
    num_columns = _num_columns(problem, space.factor)
    factor = _factor_route(problem, path, space.factor, num_columns, cost)
    entries = None if path is None else path.gauss_newton(space.factor, space.matrix, num_columns)
    counted = int((example_shares(problem) > 0).sum())
    per_example = problem.loss.rank_per_example(problem.num_outputs) if num_columns > 1 else 1
    return on_weights(
        problem,
        definition,
        products,
        Routes(entries or accumulated_route(problem, factor), factor, cost, numpy_blas),
        positive_semidefinite=True,
        rank_bound=min(problem.dim, counted * min(per_example, num_columns)),
    )


def _rank_factor(
    problem: Problem, path: FastPath | None, space: OutputSpace, cost: ProductCost
) -> Callable[[], tuple[FactorRoute, bool] | None]:
    def build() -> tuple[FactorRoute, bool] | None:
        visible = None if space.visible is None else space.visible()
        if visible is None:
            return None
        factor, complete = visible
        return _factor_route(problem, path, factor, _num_columns(problem, factor), cost), complete

    return build


def _num_columns(problem: Problem, factor: OutputFactor) -> int:
    """Number of columns of ``S_n``, from the first example."""
    with torch.no_grad():
        first = problem.predict(problem.weights, problem.inputs[:1])
        return factor(first, problem.targets[:1], slice(0, 1)).shape[2]


def _factor_route(
    problem: Problem, path: FastPath | None, factor: OutputFactor, num_columns: int, cost: ProductCost
) -> FactorRoute:
    """The factor chunk by chunk, by closed forms or by autograd."""

    def blocks() -> Iterator[Tensor]:
        for examples in problem.chunks():
            if path is None:
                yield factor_block(problem, examples, factor)
            else:
                yield path.factor_rows(examples, factor).T

    # The rows of one chunk and a copy; vmap over autograd also holds the tensors of a backward pass for every row.
    held = num_columns * min(problem.chunk_size, problem.num_examples)
    rows = 2.0 * problem.weights.element_size() * problem.dim * held
    rows = rows if path is not None else 2 * rows + num_columns * cost.fixed_bytes
    gram = None if path is None else path.gram(factor)
    seconds = None if path is not None else cache(lambda: _factor_seconds(problem, factor))
    return FactorRoute(blocks, problem.num_examples * num_columns, rows, gram, seconds)


def _factor_seconds(problem: Problem, factor: OutputFactor) -> float:
    """Time of all blocks by autograd, from those of one and of eight examples: each chunk has a fixed cost."""
    few, several = 1, min(8, problem.num_examples, problem.chunk_size)
    fixed = timed(lambda: factor_block(problem, slice(0, few), factor), calls=1)
    longer = timed(lambda: factor_block(problem, slice(0, several), factor), calls=1)
    each = max(0.0, longer - fixed) / max(1, several - few)
    num_chunks = math.ceil(problem.num_examples / problem.chunk_size)
    return num_chunks * fixed + (problem.num_examples - num_chunks) * each


def accumulated_route(problem: Problem, factor: FactorRoute) -> EntriesRoute:
    """Make the route to the entries by ``B B^T``, block by block.

    Parameters
    ----------
    problem
        The problem, for dimension and precision.
    factor
        The factor ``B`` with ``r`` columns.

    Returns
    -------
    EntriesRoute
        With ``r P^2 / 2`` multiplications.
    """
    square = 3.0 * problem.weights.element_size() * problem.dim**2
    return EntriesRoute(
        lambda: accumulated(factor.blocks(), problem),
        0.5 * factor.num_columns * problem.dim**2,
        square + 1.5 * factor.block_bytes,
        seconds=factor.seconds,
    )


def example_shares(problem: Problem) -> Float[Tensor, "examples"]:
    r"""Compute the weights $\alpha_n = D_n / T$ of the examples in the mean.

    Parameters
    ----------
    problem
        Model, loss and data.

    Returns
    -------
    Tensor
        ``(N,)``, with sum one.
    """
    shares = problem.weights.new_empty(problem.num_examples)  # small tensors between chunks would fragment the memory
    for rows, outputs in problem.evaluated():
        shares[rows] = problem.loss.denominators(outputs, problem.targets[rows])
    return shares / problem.total


def _by_jacobian(problem: Problem, space: OutputSpace) -> Callable[[Tensor], Tensor]:
    """Products by the Jacobian of each chunk, one backward pass for each output of each example.

    For models with a layer that PyTorch differentiates only once: no other route gives tangents of the outputs.
    """

    def each(outputs: Tensor, _targets: Tensor, _examples: slice) -> Tensor:
        size = outputs[0].numel()
        return torch.eye(size, dtype=outputs.dtype, device=outputs.device).expand(len(outputs), size, size)

    def graph(examples: slice) -> tuple[slice, Tensor, Tensor]:
        with torch.no_grad():
            outputs = problem.predict(problem.weights, problem.inputs[examples])
        return examples, outputs, factor_block(problem, examples, each)

    graphs = kept_graphs(problem, graph)

    def matmat(block: Tensor) -> Tensor:
        total = torch.zeros_like(block)
        for examples, outputs, jacobian in graphs():
            tangents = (jacobian.T @ block).reshape(len(outputs), -1, block.shape[1])
            weighted, correction = _weighted(problem, space, outputs, examples, tangents, block)
            total += jacobian @ weighted.reshape(-1, block.shape[1]) - correction
        return total

    return matmat


def _weighted(
    problem: Problem, space: OutputSpace, outputs: Tensor, examples: slice, tangents: Tensor, block: Tensor
) -> tuple[Tensor, Tensor]:
    """Tangents times ``M_n``, and the term that a centre subtracts from the product."""
    if space.centre is None:
        return space.multiply(problem, outputs, examples, tangents), torch.zeros_like(block)
    # The mean is subtracted before the sum over examples: the difference of two products would lose twice as many
    # digits.
    assert space.factor is not None
    mean, roots = space.centre.mean(), space.centre.roots[examples]
    directions = space.factor(outputs, problem.targets[examples], examples)
    inner = directions.mT @ tangents - roots[:, None, None] * (mean @ block)
    return directions @ inner, mean[:, None] * (roots @ inner[:, 0])


def _by_autograd(problem: Problem, space: OutputSpace) -> Callable[[Tensor], Tensor]:
    """Products by autograd: tangents ``J V`` of the outputs, ``M_n``, and a backward pass."""
    at_once = cache(lambda: columns_at_once(problem))

    def graph(examples: slice) -> tuple[slice, list[Tensor], Tensor, Tensor, list[Tensor]]:
        return examples, *tangent_graph(problem, examples)

    graphs = kept_graphs(problem, graph)

    def matmat(block: Tensor) -> Tensor:
        total = torch.zeros_like(block)
        for examples, leaves, outputs, cotangent, pulled in graphs():
            pushed = backward_columns(pulled, [cotangent], split_columns(problem, block), at_once=at_once())
            pushed = pushed.reshape(len(outputs), -1, block.shape[1])
            weighted, correction = _weighted(problem, space, outputs.detach(), examples, pushed, block)
            total -= correction
            columns = [weighted.permute(2, 0, 1).reshape(block.shape[1], *outputs.shape)]
            total += backward_columns([outputs], leaves, columns, at_once=at_once())
        return total

    return matmat
