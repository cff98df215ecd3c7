"""The protocol of the closed forms, and its implementations for chains of linear layers and convolutional networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.linalg.routes import EntriesRoute, ProductCost
from curvature.matrices.fast import convolution, dense, factor, network_factor, network_products, products
from curvature.matrices.fast.chain import Chain, chain_of
from curvature.matrices.fast.network import Network, network_of
from curvature.matrices.fast.products import OutputProduct
from curvature.models import Problem
from curvature.models.derivatives import pulled_back
from curvature.models.function import ModelFunction

__all__ = ["FastPath", "OutputFactor", "OutputMatrix", "fast_path"]

# (outputs, targets, examples) -> S_n, (n, C, R)
OutputFactor = Callable[[Tensor, Tensor, slice], Tensor]
# (outputs, targets) -> D M_n, (n, C, C)
OutputMatrix = Callable[[Tensor, Tensor], Tensor]

_COMPARED, _COMPARED_ENTRIES = 8, 2**22  # examples, and numbers in their gradients

_CONTRACTED_FROM = (
    3  # columns R of S_n: the contraction takes N P^2 multiplications, the factor times itself R N P^2 / 2
)


class FastPath(Protocol):
    """Closed forms of the matrices of one problem whose model has a known structure."""

    def contraction(self, matrix: OutputMatrix, *, second_order: bool) -> EntriesRoute:
        r"""Make the route to the entries of $\sum_n J_n^T M_n J_n$ by contraction over examples.

        Parameters
        ----------
        matrix
            ``(outputs, targets)`` to $D M_n$.
        second_order
            Whether to add the terms of the Hessian.

        Returns
        -------
        EntriesRoute
            With counted work and memory.
        """
        ...

    def gauss_newton(self, factor: OutputFactor, matrix: OutputMatrix | None, num_columns: int) -> EntriesRoute | None:
        r"""Make the route to the entries of $\sum_n J_n^T S_n S_n^T J_n$.

        Parameters
        ----------
        factor
            ``(outputs, targets, examples)`` to $S_n$.
        matrix
            ``(outputs, targets)`` to $D S_n S_n^T$; None if it is not known.
        num_columns
            Columns $R$ of $S_n$.

        Returns
        -------
        EntriesRoute or None
            None if the product of the factor with itself is cheaper.
        """
        ...

    def factor_rows(self, examples: slice, output_factor: OutputFactor) -> Float[Tensor, "width weights"]:
        r"""Compute rows $(J_n^T S_n)^T$ of the transposed factor for some examples.

        Parameters
        ----------
        examples
            Slice of the examples.
        output_factor
            ``(outputs, targets, examples)`` to $S_n$.

        Returns
        -------
        Tensor
            ``(n R, P)``.
        """
        ...

    def gram(self, output_factor: OutputFactor) -> Callable[[], tuple[Tensor, float]] | None:
        """Make the computation of the Gram matrix of the factor without the factor.

        Parameters
        ----------
        output_factor
            ``(outputs, targets, examples)`` to ``S_n``.

        Returns
        -------
        Callable or None
            As :attr:`~curvature.linalg.routes.FactorRoute.gram`; None if there is no such computation.
        """
        ...

    def products(self, product: OutputProduct, *, second_order: bool) -> Callable[[Tensor], Tensor] | None:
        """Make products with blocks of vectors, with the network linearized once, at the first product.

        Parameters
        ----------
        product
            Multiplication by ``D M_n``.
        second_order
            Whether the matrix is the Hessian.

        Returns
        -------
        Callable or None
            ``V -> A V``; None if autograd is as fast.
        """
        ...

    def product_cost(self, *, second_order: bool) -> ProductCost | None:
        """Count the cost of :meth:`products`.

        Parameters
        ----------
        second_order
            Whether the matrix is the Hessian.

        Returns
        -------
        ProductCost or None
            None if :meth:`products` is None.
        """
        ...


def fast_path(problem: Problem) -> FastPath | None:
    """Find the closed forms for the model of a problem.

    Parameters
    ----------
    problem
        The problem, whose model is inspected.

    Returns
    -------
    FastPath or None
        For a chain of linear layers or a convolutional network; None for any other model, which autograd serves, and
        for one that computes something else than its layers say.

    Notes
    -----
    Outputs and one vector-Jacobian product of a few examples are compared with those of the module, once for each model
    (measured for a network 64-8-10: 0.7 ms; the entries of its Hessian take 8 ms with 200 examples, 30 with 1797).
    """
    path = _path(problem)
    return path if path is not None and _runs_the_same(problem, path) else None


def _path(problem: Problem) -> FastPath | None:
    if not isinstance(problem.inputs, Tensor) or not problem.function.reader.is_plain:
        return None
    chain = chain_of(problem)
    if chain is not None:
        return _ChainPath(chain)
    network = network_of(problem)
    return None if network is None else _NetworkPath(network)


_AGREED: WeakKeyDictionary[ModelFunction, bool] = WeakKeyDictionary()


def _runs_the_same(problem: Problem, path: FastPath) -> bool:
    """Whether closed forms and module have the same outputs and first derivatives, for a few examples; kept.

    The types of the layers do not say everything about the code that runs: methods can be replaced on a class, and
    functions in torch.
    """
    if problem.function not in _AGREED:
        _AGREED[problem.function] = _agree(problem, path)
    return _AGREED[problem.function]


def _agree(problem: Problem, path: FastPath) -> bool:
    examples = slice(0, max(1, min(_COMPARED, _COMPARED_ENTRIES // problem.dim)))
    leaves = problem.leaves()
    with torch.enable_grad():
        outputs = problem.predict(leaves, problem.inputs[examples])
    if not torch.isfinite(outputs).all():  # there is nothing to compare, and no matrix
        return True
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
    slopes = pulled_back([outputs], list(leaves.values()), [cotangent])
    computed = []

    def factor(values: Tensor, _targets: Tensor, _examples: slice) -> Tensor:
        computed.append(values.detach().reshape(outputs.shape))
        return cotangent.reshape(len(outputs), -1, 1)

    with torch.no_grad():
        rows = path.factor_rows(examples, factor).sum(dim=0)
    parts = zip(problem.unflatten(rows).values(), slopes, strict=True)
    return _close(computed[0], outputs.detach()) and all(_close(part, slope) for part, slope in parts)


def _close(value: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are equal but for rounding."""
    size = torch.maximum(value.abs().max(), expected.abs().max())
    return bool((value - expected).abs().max() <= torch.finfo(value.dtype).eps ** 0.6 * size)


@dataclass(frozen=True, eq=False)
class _ChainPath:
    """Closed forms of a chain of linear layers and elementwise activations."""

    chain: Chain

    def contraction(self, matrix: OutputMatrix, *, second_order: bool) -> EntriesRoute:
        problem = self.chain.problem
        return EntriesRoute(
            lambda: dense.curvature(self.chain, matrix, second_order=second_order),
            float(problem.num_examples * problem.dim**2),
            dense.curvature_bytes(self.chain),
        )

    def gauss_newton(self, factor: OutputFactor, matrix: OutputMatrix | None, num_columns: int) -> EntriesRoute | None:
        del factor
        if matrix is None or num_columns < _CONTRACTED_FROM:
            return None
        return self.contraction(matrix, second_order=False)

    def factor_rows(self, examples: slice, output_factor: OutputFactor) -> Tensor:
        return factor.factor_rows(self.chain, examples, output_factor)

    def gram(self, output_factor: OutputFactor) -> Callable[[], tuple[Tensor, float]] | None:
        return lambda: (factor.gram(self.chain, output_factor), 0.0)

    def products(self, product: OutputProduct, *, second_order: bool) -> Callable[[Tensor], Tensor] | None:
        linearized = cache(lambda: products.Products(self.chain, product, second_order=second_order))
        return lambda block: linearized()(block)

    def product_cost(self, *, second_order: bool) -> ProductCost | None:
        multiplications = products.product_multiplications(self.chain, second_order=second_order)
        return ProductCost(*products.product_bytes(self.chain), multiplications)


@dataclass(frozen=True, eq=False)
class _NetworkPath:
    """Closed forms of a network with convolutions, linear layers, pooling and elementwise activations."""

    network: Network

    def contraction(self, matrix: OutputMatrix, *, second_order: bool) -> EntriesRoute:
        network = self.network
        return EntriesRoute(
            lambda: convolution.curvature(network, matrix, second_order=second_order),
            float(network.problem.num_examples * network.contraction_cost),
            convolution.curvature_bytes(network),
        )

    def gauss_newton(self, factor: OutputFactor, matrix: OutputMatrix | None, num_columns: int) -> EntriesRoute | None:
        del matrix
        network = self.network
        return EntriesRoute(
            lambda: network_factor.gauss_newton(network, factor, num_columns),
            network.problem.num_examples * network_factor.gauss_newton_cost(network, num_columns),
            network_factor.gauss_newton_bytes(network, num_columns),
        )

    def factor_rows(self, examples: slice, output_factor: OutputFactor) -> Tensor:
        return network_factor.factor_rows(self.network, examples, output_factor)

    def gram(self, output_factor: OutputFactor) -> Callable[[], tuple[Tensor, float]] | None:
        del output_factor
        return None

    def products(self, product: OutputProduct, *, second_order: bool) -> Callable[[Tensor], Tensor] | None:
        if not self.network.linearizes:
            return None
        linearized = cache(lambda: network_products.NetworkProducts(self.network, product, second_order=second_order))
        return lambda block: linearized()(block)

    def product_cost(self, *, second_order: bool) -> ProductCost | None:
        del second_order
        return ProductCost(*network_products.product_bytes(self.network)) if self.network.linearizes else None
