r"""The Hessian of a penalty on the weights, added to the routes of a matrix of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.errors import NotDefinedError
from curvature.linalg.routes import COLUMNS_AT_ONCE, EntriesRoute, FactorRoute, Routes
from curvature.matrices.autograd import FEWEST_COLUMNS, backward_columns, split_columns
from curvature.models import Problem
from curvature.models.penalty import Penalty

__all__ = ["PenaltyHessian", "penalty_hessian"]

_WORK = 8.0  # multiply-adds per weight of a product with the Hessian of a user's penalty: elementwise functions


@dataclass(frozen=True, eq=False)
class PenaltyHessian:
    r"""The matrix $\nabla^2 R = \operatorname{diag}(\lambda) + \nabla^2 r$ of a problem's penalty, at its weights.

    Attributes
    ----------
    penalty
        $R$.
    product_of_function
        ``V -> (Hessian of r) V``; None where the penalty is weight decay alone.
    """

    penalty: Penalty
    product_of_function: Callable[[Tensor], Tensor] | None

    @property
    def positive_semidefinite(self) -> bool:
        """Whether it is positive semidefinite by definition: weight decay is, a user's function may not be."""
        return self.product_of_function is None

    @property
    def positive_definite(self) -> bool:
        """Whether every weight decays, so that the penalty leaves no null direction."""
        decay = self.penalty.decay
        return self.positive_semidefinite and decay is not None and bool((decay > 0).all())

    def product(self, block: Float[Tensor, "weights columns"]) -> Float[Tensor, "weights columns"]:
        """Multiply columns.

        Parameters
        ----------
        block
            ``(P, K)``.

        Returns
        -------
        Tensor
            ``(P, K)``.
        """
        image = torch.zeros_like(block) if self.penalty.decay is None else self.penalty.decay[:, None] * block
        return image if self.product_of_function is None else image + self.product_of_function(block)

    def not_finite(self, block: Float[Tensor, "weights columns"]) -> str:
        """Explain where NaN or infinity in a product comes from, if it is the penalty.

        Parameters
        ----------
        block
            Columns whose product is not finite, ``(P, K)``.

        Returns
        -------
        str
            The second half of an error message; empty if the penalty is finite.
        """
        bad = (~torch.isfinite(self.product(block))).any(dim=1)
        names = [name for name, span in self.penalty.layout.slices.items() if bad[span].any()]
        if not names:
            return ""
        return (
            f"the second derivative of the penalty is NaN or infinite in {', '.join(names)}; look at the penalty at "
            "this point."
        )

    def add_to(self, matrix: Float[Tensor, "weights weights"]) -> Float[Tensor, "weights weights"]:
        """Add the entries.

        Parameters
        ----------
        matrix
            ``(P, P)``; changed.

        Returns
        -------
        Tensor
            The same tensor.
        """
        if self.penalty.decay is not None:
            matrix.diagonal().add_(self.penalty.decay)
        if self.product_of_function is not None:
            for start in range(0, len(matrix), COLUMNS_AT_ONCE):
                columns = matrix[:, start : start + COLUMNS_AT_ONCE]
                identity = torch.zeros_like(columns)
                identity[start : start + columns.shape[1]].fill_diagonal_(1)
                columns += self.product_of_function(identity)
        return matrix

    def routes(self, routes: Routes) -> Routes:
        """Derive the routes to a matrix plus this one.

        Parameters
        ----------
        routes
            Routes to the matrix.

        Returns
        -------
        Routes
            The same, with the work of the penalty counted. A factor stays only with weight decay.
        """
        dim, work = self.penalty.layout.dim, 1.0 if self.product_of_function is None else _WORK
        entries, products = routes.entries, routes.products
        if entries is not None:
            compute, count = entries.compute, entries.multiplications
            if self.product_of_function is not None and count is not None:
                count += work * dim**2
            entries = EntriesRoute(lambda: self.add_to(compute()), count, entries.peak_bytes)
        if products.multiplications is not None:
            products = replace(products, multiplications=products.multiplications + work * dim)
        return replace(routes, entries=entries, factor=self._factor(routes.factor), products=products)

    def _factor(self, factor: FactorRoute | None) -> FactorRoute | None:
        r"""``[B, diag(sqrt(lambda))]``, without the columns that are zero."""
        decay = self.penalty.decay
        if factor is None or decay is None or not self.positive_semidefinite:
            return None
        places = decay.nonzero().flatten()

        def roots() -> Iterator[Tensor]:
            for part in places.split(COLUMNS_AT_ONCE):
                block = torch.zeros(len(decay), len(part), dtype=decay.dtype, device=decay.device)
                block[part, torch.arange(len(part), device=decay.device)] = decay[part].sqrt()
                yield block

        data, columns = factor, factor.num_columns + len(places)
        held = float(decay.element_size() * len(decay) * min(len(places), COLUMNS_AT_ONCE))
        return FactorRoute(lambda: chain(data.blocks(), roots()), columns, max(data.block_bytes, held))


def penalty_hessian(problem: Problem) -> PenaltyHessian | None:
    """Make the Hessian of the penalty of a problem.

    Parameters
    ----------
    problem
        The problem, at a point.

    Returns
    -------
    PenaltyHessian or None
        None without a penalty.

    Raises
    ------
    NotDefinedError
        From its products, if PyTorch has no second derivative of the user's function.

    Notes
    -----
    That of weight decay is a diagonal. That of a user's function is multiplied by double backward, through a graph that
    is built at the first product.
    """
    penalty = problem.penalty
    if penalty is None:
        return None
    if penalty.function is None:
        return PenaltyHessian(penalty, None)

    @cache
    def graph() -> tuple[list[Tensor], list[Tensor]]:
        value, leaves = penalty.graph(problem.weights)
        with torch.enable_grad():
            slopes = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
        return list(slopes), leaves

    def product(block: Tensor) -> Tensor:
        try:
            slopes, leaves = graph()
            return backward_columns(slopes, leaves, split_columns(problem, block), at_once=FEWEST_COLUMNS)
        except RuntimeError as error:  # also NotImplementedError
            raise NotDefinedError(
                f"PyTorch has no second derivative of the penalty ({' '.join(str(error).split())}), so there is no "
                "Hessian. Write the penalty with other functions, e.g. torch.linalg.vector_norm for torch.cdist."
            ) from error

    return PenaltyHessian(penalty, product)
