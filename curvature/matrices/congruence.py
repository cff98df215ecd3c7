r"""The two ways into a chart: the exact pullback of a weight-space matrix, and its form without gauge zeros."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property

import torch
from torch import Tensor

from curvature.charts import Chart, Parameterization
from curvature.charts.linear import GivenChart
from curvature.errors import ConfigurationError, SelfCheckError
from curvature.linalg.facts import Facts, NullSpace
from curvature.linalg.operator import SymmetricOperator
from curvature.linalg.routes import EntriesRoute, FactorRoute, Routes
from curvature.matrices.weight_space import WeightSpaceMatrix
from curvature.matrices.witnesses import gradient_witness
from curvature.precision import full_precision

__all__ = ["effective", "pullback"]


@full_precision()
def pullback(operator: SymmetricOperator, chart: Parameterization) -> SymmetricOperator:
    r"""Write a weight-space matrix in the coordinates of a chart at the same point, exactly.

    This is $J^T A J$ with $J = \partial w / \partial \theta$. The Hessian has the additional term $\sum_k r_k\,
    \partial^2 w_k / \partial\theta^2$ with $r = \nabla L$, the gradient in the weights.

    Parameters
    ----------
    operator
        A matrix of a problem on its weights, e.g. ``ggn(problem)``.
    chart
        The chart; its gauge is taken at the weights of the problem.

    Returns
    -------
    SymmetricOperator
        ``Q x Q``, unit loss / coordinate**2.

    Raises
    ------
    ConfigurationError
        If the matrix was not made from a problem, or is already in a chart or a block.
    SelfCheckError
        If the closed forms of the chart contradict its map.

    Notes
    -----
    The network is not differentiated again: the closed forms of the chart act on the matrix, which costs a few passes
    over its entries for weight normalization.

    Examples
    --------
    >>> import curvature as cv
    >>> problem = cv.zoo.digits_problem(num_examples=50, widths=(8,))
    >>> cv.pullback(cv.ggn(problem), cv.WeightNorm(stretch=3.0))
    SymmetricOperator(ggn, weight-norm (stretch=3), 628 x 628, float64, cpu)
    """
    return _moved(operator, chart, "pullback", horizontal=False)


@full_precision()
def effective(operator: SymmetricOperator, chart: Parameterization) -> SymmetricOperator:
    r"""Write the curvature of a chart without its structural zeros: $K^{1/2} A K^{1/2}$ on the weights.

    With $K = J J^T$ its non-zero eigenvalues are those of the pullback. For the Hessian it is the pullback, with the
    second-order term, restricted to the horizontal space $(\ker J)^\perp$ and written there in weight-space directions.

    Parameters
    ----------
    operator
        A matrix of a problem on its weights, e.g. ``ggn(problem)``.
    chart
        The chart; its gauge is taken at the weights of the problem.

    Returns
    -------
    SymmetricOperator
        ``P x P``, unit loss / coordinate**2.

    Raises
    ------
    ConfigurationError
        If the matrix was not made from a problem, or is already in a chart or a block.
    """
    return _moved(operator, chart, "effective", horizontal=True)


@dataclass(frozen=True, eq=False)
class _Move:
    """A weight-space matrix and the chart that it is moved to.

    Attributes
    ----------
    operator
        The matrix on the weights.
    chart
        The chart at the same point.
    horizontal
        Whether it is written on the horizontal space in weight-space directions (``effective``), or in the coordinates
        of the chart (``pullback``).
    """

    operator: WeightSpaceMatrix
    chart: Chart
    horizontal: bool

    @property
    def bends(self) -> bool:
        """Whether the second derivatives of the chart add a term: only for a curved chart and the Hessian."""
        return self.operator.definition.second_order and not self.chart.flat

    @cached_property
    def keeps_rank(self) -> bool:
        """Whether the rank is that of the weight-space matrix.

        A map onto the weights keeps the rank (Sylvester). For the term that a curved chart adds there is no formula.
        """
        if self.operator.facts.null_space is None or self.bends or self.chart.dim < self.operator.dim:
            return False  # without the rank of the chart, which may need its Jacobian
        if type(self.chart).null_dim is Chart.null_dim and not self._moves_every_weight():
            return False  # a frozen weight shows it by one product, without the Jacobian
        return self.chart.dim - self.chart.null_dim == self.operator.dim

    def _moves_every_weight(self) -> bool:
        """Whether no row of the Jacobian is zero: else its product with a random vector is exactly zero there."""
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(self.chart.dim, 1, generator=generator, dtype=torch.float64).to(self.chart.coordinates)
        return bool((self.chart.push(drawn) != 0).all())

    def push(self, block: Tensor) -> Tensor:
        return self.chart.metric_root(block) if self.horizontal else self.chart.push(block)

    def pull(self, block: Tensor) -> Tensor:
        return self.chart.metric_root(block) if self.horizontal else self.chart.pull(block)

    def slope(self) -> Tensor:
        """The gradient in the weights, for the second-order term."""
        assert self.operator.facts.gradient is not None
        return self.operator.facts.gradient()

    def second_order(self, block: Tensor) -> Tensor:
        if not self.horizontal:
            return self.chart.second_order_product(self.slope(), block)
        lifted = self.chart.second_order_product(self.slope(), self.chart.horizontal(block))
        return self.chart.horizontal_transpose(lifted)

    def product(self, block: Tensor) -> Tensor:
        image = self.pull(self.operator.matmat(self.push(block)))
        return image + self.second_order(block) if self.bends else image

    def entries(self) -> Tensor:
        move = self.chart.effective if self.horizontal else self.chart.pulled_back
        return move(self.operator.entries(), self.slope() if self.bends else None)

    def terms(self) -> float:
        r"""Size of the terms of $J^T A J$: an inverse root that stretches null directions of $A$ amplifies rounding."""
        assert isinstance(self.chart, GivenChart)
        return self.chart.largest_entry**2 * float(self.operator.entries().abs().max())

    def gradient(self) -> Tensor:
        pulled = self.chart.pull(self.slope()[:, None])
        return (self.chart.horizontal_transpose(pulled) if self.horizontal else pulled)[:, 0]

    def error(self) -> float:
        """Bound of what the chart makes of an error of the entries: its norm times the squared norm of J."""
        assert self.operator.facts.error is not None
        coordinates = self.chart.coordinates
        jacobian = self.chart.push(torch.eye(self.chart.dim, dtype=coordinates.dtype, device=coordinates.device))
        return self.operator.facts.error() * float(torch.linalg.matrix_norm(jacobian, 2)) ** 2

    def routes(self) -> Routes:
        """Routes by the weight-space ones; the entries need two or three copies, and more for a curved chart."""
        operator, routes = self.operator, self.operator.routes
        dim = operator.dim if self.horizontal else self.chart.dim
        square = operator.dtype.itemsize * max(dim, operator.dim) ** 2
        entries = (
            EntriesRoute(self.entries) if routes.entries is None else replace(routes.entries, compute=self.entries)
        )
        peak = max(operator.dense_bytes, (7.0 if self.bends else 4.0) * square)
        terms = self.terms if isinstance(self.chart, GivenChart) else None
        factor = None
        if routes.factor is not None:
            blocks = routes.factor.blocks

            def moved() -> Iterator[Tensor]:
                return map(self.pull, blocks())

            factor = FactorRoute(
                moved,
                routes.factor.num_columns,
                2 * routes.factor.block_bytes,
                seconds=routes.factor.seconds,
            )
        column = routes.products.column_bytes + 4 * operator.dtype.itemsize * dim
        return Routes(
            replace(entries, compute=self.entries, peak_bytes=peak, kept=None, terms=terms),
            factor,
            replace(routes.products, column_bytes=column),
            routes.numpy_blas,
        )

    def null_space(self) -> NullSpace:
        """Null directions of the Hessian among the weights that a curved chart keeps as they are.

        The loss is constant along them for every point, and along a coordinate that is a weight the chart adds no
        second derivative. In the other coordinates the directions of the weights are bent, and no longer null.
        """
        assert self.operator.facts.null_space is not None
        basis = self.operator.facts.null_space().basis
        inside = ~(basis[~self.chart.kept_weights.to(basis.device)] != 0).any(dim=0)
        if not inside.any():
            return NullSpace(basis.new_zeros(self.operator.dim if self.horizontal else self.chart.dim, 0), {})
        return NullSpace(self.pull(basis[:, inside]), {"among the weights that the chart keeps": int(inside.sum())})

    def facts(self) -> Facts:
        """Facts of the matrix in these coordinates, with finite differences as the witness."""
        known, definition, chart = self.operator.facts, self.operator.definition, self.chart
        if definition.second_order:
            difference = gradient_witness(self.operator.problem, chart)
        else:
            difference = definition.difference.through(chart.push)
        gauge = chart.null_dim if self.keeps_rank and not self.horizontal else 0
        note = f"besides, {gauge} verified directions of the {chart.name} gauge"
        diagnose = known.diagnose
        return Facts(
            positive_semidefinite=known.positive_semidefinite,
            rank_bound=known.rank_bound,
            null_space=cache(self.null_space) if self.bends and known.null_space is not None else None,
            num_null_directions=known.num_null_directions,
            rank_note=note if gauge else "",
            gradient=cache(self.gradient),
            error=None if known.error is None else cache(self.error),
            centred=known.centred,
            witnesses=(difference.through(chart.horizontal) if self.horizontal else difference,),
            diagnose=None if diagnose is None else lambda block: diagnose(self.push(block)),
        )


def _moved(
    operator: SymmetricOperator, parameterization: Parameterization, function: str, *, horizontal: bool
) -> SymmetricOperator:
    if not isinstance(operator, SymmetricOperator):
        raise ConfigurationError(
            f"{function} needs a matrix, got {type(operator).__name__}. Choose the matrix first: "
            f"cv.{function}(cv.ggn(problem), chart)."
        )
    if not isinstance(operator, WeightSpaceMatrix):
        raise ConfigurationError(
            f"{operator.name} ({operator.where.chart}) was not made from a problem, or is already in a chart or a "
            "block: only a whole matrix on the weights can be moved to a chart. Move first, then take blocks."
        )
    if not isinstance(parameterization, Parameterization):
        raise ConfigurationError(
            f"chart must be a Parameterization such as WeightNorm(), got {type(parameterization).__name__}."
        )
    problem = operator.problem
    chart = parameterization.at(problem.layout, problem.weights)
    move = _Move(operator, chart, horizontal)
    if move.keeps_rank and not horizontal:
        _verify_gauge(chart)
    return SymmetricOperator(
        where=replace(operator.where, chart=chart.name, gauge=chart.gauge, effective=horizontal),
        dim=problem.dim if horizontal else chart.dim,
        matmat=move.product,
        dtype=operator.dtype,
        device=operator.device,
        routes=move.routes(),
        facts=move.facts(),
        layout=problem.layout if horizontal else chart.layout,
        same_rank=operator if move.keeps_rank else None,
    )


def _verify_gauge(chart: Chart) -> None:
    r"""Check that random elements of $\ker J$ do not move the weights, since the rank rule counts them as null."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(chart.dim, 2, generator=generator, dtype=torch.float64).to(chart.coordinates)
    inside = drawn - chart.horizontal(chart.horizontal_transpose(drawn))
    left, size = (float(torch.linalg.matrix_norm(chart.push(block))) for block in (inside, drawn))
    if not left <= 1e3 * torch.finfo(drawn.dtype).eps * size:
        raise SelfCheckError(
            f"the gauge of {chart.name} ({chart.gauge}) moves the weights: by {left:.1e}, a random direction by "
            f"{size:.1e}. The closed forms of the chart contradict its map. For a chart of this package this is a bug; "
            "please report it."
        )
