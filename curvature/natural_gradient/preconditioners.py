r"""Linear charts $w = w_0 + M\theta$ from a Fisher matrix: the controls that weight normalization is measured against.

Gradient descent in such a chart is preconditioned by $K = M M^T$. With a damping $\lambda$ on the weights:

================  ==========================================================================================
``jacobi``        $K = \operatorname{diag}(F + \lambda I)^{-1}$
``neuron-block``  inverse of each neuron's block of $F + \lambda I$ (row of weights and its bias): the most that any
                  chart with a neuron-block $K$, weight normalization included, could do for those blocks
``layer-block``   inverse of each layer's block
``kfac``          $(A + \pi\sqrt\lambda I)^{-1} \otimes (G + \sqrt\lambda/\pi\, I)^{-1}$ per layer (Martens & Grosse
                  2015, arXiv:1503.05671; convolutions as Grosse & Martens 2016, arXiv:1602.01407)
``ekfac``         $U (\operatorname{diag}(U^T F U) + \lambda I)^{-1} U^T$ per layer, with $U$ the eigenvectors of
                  $G \otimes A$ (George et al. 2018, arXiv:1806.03884)
``prong``         inputs of every layer whitened, function kept (Desjardins et al. 2015, arXiv:1507.00210):
                  $(A + \epsilon I)^{-1} \otimes I$ with $A$ the second moment of the inputs and the constant 1
``full``          $(F + \lambda I)^{-1}$: the damped natural gradient itself
================  ==========================================================================================

The damping of ``prong`` has the unit of the inputs, not of $F$. It is the relative damping times the mean eigenvalue of
each layer's $A$.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.charts import Chart, LinearChart
from curvature.charts.linear import AffineChart
from curvature.errors import ConfigurationError
from curvature.layout import Layout
from curvature.linalg.lapack import eigenvalues
from curvature.linalg.operator import SymmetricOperator
from curvature.matrices import fisher as fisher_matrix
from curvature.matrices.gradient_moments import scale_words
from curvature.models import Problem
from curvature.models.layers import trace_layers
from curvature.precision import full_precision
from curvature.records.damping import Damping

__all__ = ["KINDS", "Preconditioners", "absolute_damping", "preconditioner", "refuse_scale_of_loss"]

KINDS = ("jacobi", "neuron-block", "layer-block", "kfac", "prong", "full")  # the controls of every comparison
_ALL = ("jacobi", "neuron-block", "layer-block", "kfac", "ekfac", "prong", "full")

_BLOCKS = {"neuron-block": "neuron", "layer-block": "layer", "full": "all"}
_Block = tuple[Tensor, Tensor]  # indices, root of the inverse
_Eigenblock = tuple[Tensor, Tensor, Tensor]  # indices, eigenvalues, eigenvectors


def absolute_damping(matrix: Float[Tensor, "dim dim"], damping: Damping) -> float:
    r"""Return $\lambda$ in the unit of the eigenvalues of a matrix.

    Parameters
    ----------
    matrix
        All entries, ``(P, P)``.
    damping
        In either form.

    Returns
    -------
    float
        $\lambda$, or $a \operatorname{tr}(A) / P$.
    """
    return damping.absolute(float(matrix.trace()), len(matrix))


@full_precision()
def preconditioner(
    problem: Problem,
    kind: str,
    *,
    damping: float | None = None,
    relative_damping: float | None = None,
    fisher: SymmetricOperator | None = None,
) -> LinearChart:
    r"""Build the chart of one preconditioner at the problem's weights.

    Parameters
    ----------
    problem
        Model, loss and data at the point.
    kind
        ``"jacobi"``, ``"neuron-block"``, ``"layer-block"``, ``"kfac"``, ``"ekfac"``, ``"prong"`` or ``"full"``; see
        :mod:`curvature.natural_gradient.preconditioners`.
    damping
        $\lambda$, added to $F$ on the weights.
    relative_damping
        $a$ in $\lambda = a \operatorname{tr}(F)/P$, instead of ``damping``; 1e-3 if neither is given.
    fisher
        The Fisher to invert, if it has been computed already.

    Returns
    -------
    LinearChart
        Affine around the problem's weights.

    Raises
    ------
    ConfigurationError
        If ``kind`` is unknown, both dampings are given, or the damping is not positive.

    Notes
    -----
    Parameters outside linear and convolutional layers get the Jacobi preconditioner in ``"kfac"`` and ``"prong"``.
    Costs the Fisher and one eigendecomposition per block. For several kinds or dampings, :class:`Preconditioners`
    shares both.
    """
    return Preconditioners(problem, fisher).chart(kind, damping=damping, relative_damping=relative_damping)


class Preconditioners:
    """All preconditioners of one problem: the Fisher and its blocks are factorized once for every damping.

    Parameters
    ----------
    problem
        Model, loss and data at the point.
    fisher, eigenvalues
        The Fisher and its eigenvalues, ascending, if they have been computed already.
    """

    def __init__(
        self,
        problem: Problem,
        fisher: SymmetricOperator | None = None,
        eigenvalues: Float[np.ndarray, "weights"] | None = None,
    ):
        refuse_scale_of_loss(problem, fisher)
        self.problem, self._fisher, self._eigenvalues = problem, fisher, eigenvalues
        self._eigenblocks: dict[str, list[_Eigenblock]] = {}
        self._factorized: dict[str, tuple[float, list[_Block]]] = {}  # with the damping

    @cached_property
    def matrix(self) -> Float[Tensor, "weights weights"]:
        """Entries of the Fisher; ``prong`` does not compute them where every parameter is in a layer."""
        return (self._fisher or fisher_matrix(self.problem)).entries()

    @cached_property
    def eigenvalues(self) -> Float[np.ndarray, "weights"]:
        """Eigenvalues of the Fisher, ascending."""
        return eigenvalues(self.matrix.cpu().numpy()) if self._eigenvalues is None else self._eigenvalues

    def chart(self, kind: str, *, damping: float | None = None, relative_damping: float | None = None) -> LinearChart:
        """Build the chart of one preconditioner.

        Parameters
        ----------
        kind, damping, relative_damping
            As for :func:`preconditioner`.

        Returns
        -------
        LinearChart
            Affine around the problem's weights.

        Raises
        ------
        ConfigurationError
            As for :func:`preconditioner`.
        """
        if kind not in _ALL:
            raise ConfigurationError(f"preconditioner must be one of {', '.join(_ALL)}, got {kind!r}.")
        chosen = Damping.chosen(damping, relative_damping)
        if kind == "prong":
            return LinearChart(self._whitening(chosen), name=kind, gauge=str(chosen))
        if kind in ("kfac", "ekfac"):
            blocks = self._kronecker(chosen) if kind == "kfac" else self._in_kronecker_eigenvectors(chosen)
            return LinearChart(blocks, name=kind, gauge=str(chosen))
        shift = absolute_damping(self.matrix, chosen)
        if kind == "jacobi":
            return LinearChart((self.matrix.diagonal() + shift).rsqrt(), name=kind, gauge=str(chosen))
        name = "natural-gradient" if kind == "full" else kind
        return _InverseBlocks(self, _BLOCKS[kind], shift, name=name, gauge=str(chosen))

    def factorized(self, by: str, shift: float) -> list[_Block]:
        r"""Factorize the blocks of $F + \lambda I$ by Cholesky; those of the last damping are kept.

        Parameters
        ----------
        by
            ``"all"``, ``"layer"`` or ``"neuron"``.
        shift
            $\lambda$.

        Returns
        -------
        list
            Indices and lower triangle of each block.
        """
        if self._factorized.get(by, (None, []))[0] != shift:
            damping, whole = self._factorized.get("all", (None, []))
            blocks = []
            for indices in self.problem.layout.blocks(by).values():
                rows = indices.to(self.problem.device)
                if damping == shift and torch.equal(indices, torch.arange(len(indices))):
                    triangle = whole[0][1][: len(rows), : len(rows)]  # of a leading block, as the first layer is
                else:
                    block = self.matrix.clone() if by == "all" else self.matrix[rows][:, rows]
                    block.diagonal().add_(shift)
                    triangle = torch.linalg.cholesky(block)
                blocks.append((rows, triangle))
            self._factorized[by] = shift, blocks
        return self._factorized[by][1]

    def inverse_roots(self, by: str, shift: float) -> list[_Block]:
        r"""Compute the inverse root of each block of $F + \lambda I$.

        Parameters
        ----------
        by, shift
            As for :meth:`factorized`.

        Returns
        -------
        list
            Indices and root of each block.
        """
        blocks = self._eigendecomposed(by)
        return [(indices, _inverse_root_of(values, vectors, shift)) for indices, values, vectors in blocks]

    def _eigendecomposed(self, by: str) -> list[_Eigenblock]:
        if by not in self._eigenblocks:
            blocks = []
            for indices in self.problem.layout.blocks(by).values():
                rows = indices.to(self.problem.device)
                values, vectors = torch.linalg.eigh(self.matrix[rows][:, rows])
                blocks.append((rows, values, vectors))
            self._eigenblocks[by] = blocks
        return self._eigenblocks[by]

    @cached_property
    def moments(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per layer: rows of the layout, second moment of the inputs, second moment of the output scores."""
        problem = self.problem
        scale = problem.denominator**-0.5
        traces = trace_layers(problem, lambda outputs, targets: problem.loss.fisher_factor(outputs, targets) * scale)
        moments = []
        for trace in traces.values():
            assert trace.output_gradients is not None  # a factor was given
            inputs = trace.inputs.flatten(0, 1)
            scores = trace.output_gradients.flatten(0, 2)
            positions = trace.inputs.shape[1]
            moments.append(
                (
                    trace.rows(problem).to(problem.device),
                    inputs.T @ inputs / problem.num_examples,
                    scores.T @ scores / positions,
                )
            )
        return moments

    def _whitening(self, damping: Damping) -> list[_Block]:
        # A relative damping does not need the Fisher.
        share = damping.value if damping.is_relative else self._relative(damping)
        blocks = []
        for trace in trace_layers(self.problem).values():
            inputs = trace.inputs.flatten(0, 1)
            moment = inputs.T @ inputs / self.problem.num_examples
            root = _inverse_root(moment, share * float(moment.trace()) / len(moment))
            blocks.append((trace.rows(self.problem).to(self.problem.device), root))  # one block for all rows
        return blocks + self._jacobi_of_the_rest(blocks, damping)

    def _relative(self, damping: Damping) -> float:
        return damping.relative(float(self.matrix.trace()), len(self.matrix))

    def _kronecker(self, damping: Damping) -> list[_Block]:
        blocks, shift = [], absolute_damping(self.matrix, damping)
        for rows, inputs, scores in self.moments:
            # pi balances the two factors by their mean eigenvalues (Martens & Grosse 2015, section 6.3).
            means = float(inputs.trace()) / len(inputs), float(scores.trace()) / len(scores)
            pi = (means[0] / means[1]) ** 0.5 if min(means) > 0 else 1.0
            input_root = _inverse_root(inputs, pi * shift**0.5)
            output_root = _inverse_root(scores, shift**0.5 / pi)
            blocks.append((rows.reshape(-1), torch.kron(output_root, input_root)))
        return blocks + self._jacobi_of_the_rest(blocks, damping)

    def _in_kronecker_eigenvectors(self, damping: Damping) -> list[_Block]:
        blocks, shift = [], absolute_damping(self.matrix, damping)
        for rows, inputs, scores in self.moments:
            order = rows.reshape(-1)
            vectors = torch.kron(*(torch.linalg.eigh(factor).eigenvectors for factor in (scores, inputs)))
            moments = (vectors * (self.matrix[order][:, order] @ vectors)).sum(dim=0)
            blocks.append((order, _inverse_root_of(moments, vectors, shift)))
        return blocks + self._jacobi_of_the_rest(blocks, damping)

    def _jacobi_of_the_rest(self, blocks: list[_Block], damping: Damping) -> list[_Block]:
        rest = torch.ones(self.problem.dim, dtype=torch.bool, device=self.problem.device)
        for rows, _ in blocks:
            rest[rows] = False
        if not rest.any():
            return []
        diagonal = self.matrix.diagonal()[rest] + absolute_damping(self.matrix, damping)
        return [(rest.nonzero().flatten(), torch.diag(diagonal.rsqrt()))]


class _InverseBlocks(LinearChart):
    r"""The chart with $K$ the inverse of the blocks of $F + \lambda I$, whose roots are computed when needed."""

    def __init__(self, preconditioners: Preconditioners, by: str, shift: float, *, name: str, gauge: str):
        self.preconditioners, self.by, self.shift, self.name, self.gauge = preconditioners, by, shift, name, gauge

    @cached_property
    def factor(self) -> list[_Block]:  # type: ignore[override]
        return self.preconditioners.inverse_roots(self.by, self.shift)

    def at(self, layout: Layout, weights: Float[Tensor, "weights"]) -> Chart:
        return _InverseBlocksChart(self, layout, weights)


class _InverseBlocksChart(AffineChart):
    """The products with ``K`` and its inverse by triangles; all others by the roots of the blocks."""

    def __init__(self, parameterization: _InverseBlocks, layout: Layout, weights: Tensor):
        super().__init__(parameterization, layout, weights, ())
        del self.blocks  # the property below computes them
        self.inverse = parameterization

    @cached_property
    def blocks(self) -> list[_Block]:  # type: ignore[override]
        return self.inverse.factor

    @property
    def _triangles(self) -> list[_Block]:
        return self.inverse.preconditioners.factorized(self.inverse.by, self.inverse.shift)

    def metric(self, block: Tensor) -> Tensor:
        product = block.clone()
        for indices, triangle in self._triangles:
            product[indices] = torch.cholesky_solve(block[indices], triangle)
        return product

    def similar(self, matrix: Tensor) -> Tensor:
        return self._solved(self._solved(matrix).T)

    def _solved(self, block: Tensor) -> Tensor:
        """Multiply by ``L^-1``, with ``K^-1 = L L^T``."""
        solved = block.clone()
        for indices, triangle in self._triangles:
            solved[indices] = torch.linalg.solve_triangular(triangle, block[indices], upper=False)
        return solved


def refuse_scale_of_loss(problem: Problem, fisher: SymmetricOperator | None) -> None:
    """Refuse an empirical Fisher used as the Fisher if its scale differs.

    Parameters
    ----------
    problem
        Model, loss and data at the point.
    fisher
        The matrix that is taken as the Fisher; None: it is not computed yet.

    Raises
    ------
    ConfigurationError
        If it is the second moment of the gradients of a loss that is a mean over outputs or positions.
    """
    if fisher is not None and fisher.name == "empirical_fisher" and (words := scale_words(problem)):
        raise ConfigurationError(f"this matrix cannot replace the Fisher: {words}")


def _inverse_root(matrix: Tensor, shift: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return _inverse_root_of(values, vectors, shift)


def _inverse_root_of(values: Tensor, vectors: Tensor, shift: float) -> Tensor:
    # Rounding leaves eigenvalues slightly below zero; the shift is far above it.
    root = (vectors * (values.clamp(min=0) + shift).rsqrt()) @ vectors.T
    return (root + root.T) / 2
