"""The Hessian of the mean loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from curvature.linalg.dense import symmetric_product
from curvature.linalg.routes import EntriesRoute, ProductCost, Routes
from curvature.matrices.autograd import backward_columns, columns_at_once, kept_graphs, product_cost, split_columns
from curvature.matrices.differences import difference_matrix
from curvature.matrices.weight_space import Definition, WeightSpaceMatrix, chosen_path, on_weights, require_problem
from curvature.matrices.witnesses import gradient_witness
from curvature.models import Problem
from curvature.precision import full_precision

__all__ = ["hessian"]


@full_precision()
def hessian(problem: Problem, *, method: str = "auto") -> WeightSpaceMatrix:
    r"""Build the Hessian $\nabla^2 (L + R)$ of the objective in the weights, which is indefinite in general.

    Without a penalty $R$ this is the Hessian of the mean loss $L$.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.
    method
        How products and entries are computed. ``"structured"``: closed forms for sequences of linear layers,
        convolutions, pooling and elementwise activations, see :mod:`curvature.matrices.fast`. ``"generic"``: autograd,
        for any module. ``"auto"``: structured if the model allows it. ``"finite-differences"``: differences of the
        gradient in float64, for models that PyTorch differentiates only once; six gradients for each weight. Their
        error is estimated and is in the noise floor and the intervals of every number; the matrix is called
        ``"hessian (finite differences)"``.

    Returns
    -------
    WeightSpaceMatrix
        ``P x P``, unit loss / weight**2; nothing is computed yet.

    Raises
    ------
    ConfigurationError
        If ``method="structured"`` and the model has no such structure.
    NotDefinedError
        If PyTorch has no second derivative of a layer or of the loss; the message names it.
    SelfCheckError
        If the second derivative of a layer with a custom autograd function is wrong.

    Notes
    -----
    A generic product costs one backward pass per column through the graph of the gradient (reverse over reverse). The
    graph is kept from one product to the next if the data are few chunks. At a kink of a ReLU the result is the second
    derivative that holds almost everywhere.

    References
    ----------
    .. [1] Pearlmutter (1994). Fast exact multiplication by the Hessian. Neural Computation 6(1).
       doi:10.1162/neco.1994.6.1.147

    Examples
    --------
    >>> import curvature as cv
    >>> cv.hessian(cv.zoo.softmax_regression())
    WeightSpaceMatrix(hessian, standard, 15 x 15, float64, cpu)
    """
    require_problem(problem, "hessian")
    if method == "finite-differences":
        return _by_differences(problem)
    problem.derivatives.require_second()
    definition = Definition("hessian", hessian, gradient_witness(problem), second_order=True, penalized=True)
    path, loss = chosen_path(problem, method), problem.loss
    products = cost = entries = None
    if path is not None:
        entries = path.contraction(loss.hessian, second_order=True)
        products = path.products(loss.hessian_product, second_order=True)
        cost = path.product_cost(second_order=True)
    routes = Routes(entries, None, cost or product_cost(problem), path is not None and problem.device.type == "cpu")
    return on_weights(problem, definition, products or _double_backward(problem), routes)


def _by_differences(problem: Problem) -> WeightSpaceMatrix:
    """The Hessian by differences of the gradient: its entries, computed once, and their error."""
    computed = cache(lambda: difference_matrix(problem))

    def again(other: Problem, *, method: str) -> WeightSpaceMatrix:
        del method
        return _by_differences(other)

    square = 3.0 * problem.weights.element_size() * problem.dim**2
    entries = EntriesRoute(lambda: computed().entries.clone(), None, square)
    witness = gradient_witness(problem)
    definition = Definition("hessian (finite differences)", again, witness, second_order=True, penalized=True)
    operator = on_weights(
        problem,
        definition,
        lambda block: symmetric_product(computed().entries, block),
        Routes(entries, None, ProductCost(square), problem.device.type == "cpu"),
    )
    # The witness takes other differences, along random directions; the same ones in another order would tell nothing.
    facts = replace(operator.facts, error=lambda: computed().error, witnesses=(definition.difference,))
    return replace(operator, facts=facts)


def _double_backward(problem: Problem) -> Callable[[Tensor], Tensor]:
    """Products by differentiating the gradient of each chunk."""
    at_once = cache(lambda: columns_at_once(problem))

    def graph(examples: slice) -> tuple[list[Tensor], list[Tensor]]:
        _, leaves, loss = problem.chunk_loss(examples)
        with torch.enable_grad():
            gradient = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
        return list(gradient), leaves

    graphs = kept_graphs(problem, graph)

    def matmat(block: Tensor) -> Tensor:
        total = torch.zeros_like(block)
        for gradient, leaves in graphs():
            total += backward_columns(gradient, leaves, split_columns(problem, block), at_once=at_once())
        return total

    return matmat
