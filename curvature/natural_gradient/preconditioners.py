r"""Linear charts $w = w_0 + M\theta$ from a Fisher matrix: the controls that weight normalization is measured against.

Gradient descent in such a chart is preconditioned by $K = M M^T$. With damping $\lambda = a \operatorname{tr}(F)/P$:

================  ==========================================================================================
``jacobi``        $K = \operatorname{diag}(F + \lambda I)^{-1}$
``neuron-block``  inverse of each neuron's block of $F + \lambda I$ (row of weights and its bias): the most that any
                  chart with a neuron-block $K$, weight normalization included, could do for those blocks
``layer-block``   inverse of each layer's block
``kfac``          $(A + \pi\sqrt\lambda I)^{-1} \otimes (G + \sqrt\lambda/\pi\, I)^{-1}$ per layer (Martens & Grosse
                  2015, arXiv:1503.05671; convolutions as Grosse & Martens 2016, arXiv:1602.01407)
``prong``         inputs of every layer whitened, function kept (Desjardins et al. 2015, arXiv:1507.00210):
                  $(A + \epsilon I)^{-1} \otimes I$ with $A$ the second moment of the inputs and the constant 1
``full``          $(F + \lambda I)^{-1}$: the damped natural gradient itself
================  ==========================================================================================
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from curvature.charts import LinearChart
from curvature.errors import ConfigurationError
from curvature.linalg.operator import SymmetricOperator
from curvature.matrices import fisher as fisher_matrix
from curvature.models import Problem
from curvature.models.layers import trace_layers
from curvature.precision import full_precision

__all__ = ["KINDS", "Preconditioners", "absolute_damping", "preconditioner"]

KINDS = ("jacobi", "neuron-block", "layer-block", "kfac", "prong", "full")


def absolute_damping(fisher: SymmetricOperator | Tensor, damping: float) -> float:
    r"""Give $\lambda = a \operatorname{tr}(F) / P$ for the relative damping ``a``; unit loss / weight**2."""
    if not damping > 0:
        raise ConfigurationError(f"damping must be positive (it is relative to tr(F)/P), got {damping}.")
    matrix = fisher if isinstance(fisher, Tensor) else fisher.entries()
    return damping * float(matrix.trace()) / len(matrix)


@full_precision()
def preconditioner(
    problem: Problem, kind: str, *, damping: float = 1e-3, fisher: SymmetricOperator | None = None
) -> LinearChart:
    """Build the chart of one preconditioner at the problem's weights; for several, see :class:`Preconditioners`.

    Parameters
    ----------
    kind
        One of ``KINDS``.
    damping
        Relative damping $a$ (``prong``: relative to the mean eigenvalue of each layer's $A$).
    fisher
        The Fisher to invert, if it is at hand; else it is computed. Parameters that K-FAC or PRONG know nothing of
        (not in a linear or convolutional layer) get the Jacobi preconditioner.
    """
    return Preconditioners(problem, fisher).chart(kind, damping)


class Preconditioners:
    """All preconditioners of one problem: the Fisher and its blocks are factorized once for every damping."""

    def __init__(self, problem: Problem, fisher: SymmetricOperator | None = None):
        self.problem, self._fisher = problem, fisher
        self._spectra: dict[str, list[_Block]] = {}

    @cached_property
    def matrix(self) -> Tensor:
        """The Fisher, dense; PRONG does without where every parameter lies in a layer that it whitens."""
        return (self._fisher or fisher_matrix(self.problem)).entries()

    def chart(self, kind: str, damping: float) -> LinearChart:
        """Build one of ``KINDS`` at one relative damping."""
        if kind not in KINDS:
            raise ConfigurationError(f"preconditioner must be one of {', '.join(KINDS)}, got {kind!r}.")
        gauge = f"damping={damping:g}"
        if kind == "prong":
            return LinearChart(self._whitening(damping), name=kind, gauge=gauge)
        if kind == "kfac":
            return LinearChart(self._kronecker(damping), name=kind, gauge=gauge)
        shift = absolute_damping(self.matrix, damping)
        if kind == "jacobi":
            return LinearChart((self.matrix.diagonal() + shift).rsqrt(), name=kind, gauge=gauge)
        by = {"neuron-block": "neuron", "layer-block": "layer", "full": "all"}[kind]
        blocks = [(where, _inverse_root(values, vectors, shift)) for where, values, vectors in self._blocks(by)]
        return LinearChart(blocks, name=kind if kind != "full" else "natural-gradient", gauge=gauge)

    def _blocks(self, by: str) -> list[_Block]:
        if by not in self._spectra:
            found = []
            for indices in self.problem.layout.blocks(by).values():
                where = indices.to(self.problem.device)
                found.append((where, *torch.linalg.eigh(self.matrix[where][:, where])))
            self._spectra[by] = found
        return self._spectra[by]

    @cached_property
    def _moments(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per layer: rows of the layout, second moment of the inputs, second moment of the output scores."""
        problem = self.problem
        scale = problem.denominator**-0.5
        traces = trace_layers(problem, lambda outputs, targets: problem.loss.fisher_factor(outputs, targets) * scale)
        found = []
        for trace in traces.values():
            inputs = trace.inputs.flatten(0, 1)
            scores = trace.output_gradients.flatten(0, 2)
            positions = trace.inputs.shape[1]
            found.append(
                (
                    trace.rows(problem).to(problem.device),
                    inputs.T @ inputs / problem.num_examples,
                    scores.T @ scores / positions,
                )
            )
        return found

    def _whitening(self, damping: float) -> list[tuple[Tensor, Tensor]]:
        if not damping > 0:
            raise ConfigurationError(f"damping must be positive (relative to the mean eigenvalue), got {damping}.")
        blocks = []
        for trace in trace_layers(self.problem).values():
            inputs = trace.inputs.flatten(0, 1)
            moment = inputs.T @ inputs / self.problem.num_examples
            root = _inverse_root(*torch.linalg.eigh(moment), damping * float(moment.trace()) / len(moment))
            blocks.append((trace.rows(self.problem).to(self.problem.device), root))  # one block for all rows
        return blocks + self._jacobi_of_the_rest(blocks, damping)

    def _kronecker(self, damping: float) -> list[tuple[Tensor, Tensor]]:
        blocks, shift = [], absolute_damping(self.matrix, damping)
        for rows, inputs, scores in self._moments:
            # pi balances the two factors by their mean eigenvalues (Martens & Grosse 2015, section 6.3).
            means = float(inputs.trace()) / len(inputs), float(scores.trace()) / len(scores)
            pi = (means[0] / means[1]) ** 0.5 if min(means) > 0 else 1.0
            input_root = _inverse_root(*torch.linalg.eigh(inputs), pi * shift**0.5)
            output_root = _inverse_root(*torch.linalg.eigh(scores), shift**0.5 / pi)
            blocks.append((rows.reshape(-1), torch.kron(output_root, input_root)))
        return blocks + self._jacobi_of_the_rest(blocks, damping)

    def _jacobi_of_the_rest(self, blocks: list[tuple[Tensor, Tensor]], damping: float) -> list[tuple[Tensor, Tensor]]:
        rest = torch.ones(self.problem.dim, dtype=torch.bool, device=self.problem.device)
        for where, _ in blocks:
            rest[where] = False
        if not rest.any():
            return []
        diagonal = self.matrix.diagonal()[rest] + absolute_damping(self.matrix, damping)
        return [(rest.nonzero().flatten(), torch.diag(diagonal.rsqrt()))]


_Block = tuple[Tensor, Tensor, Tensor]  # indices, eigenvalues, eigenvectors


def _inverse_root(values: Tensor, vectors: Tensor, shift: float) -> Tensor:
    # Rounding leaves eigenvalues slightly below zero; the shift is far above it.
    root = (vectors * (values.clamp(min=0) + shift).rsqrt()) @ vectors.T
    return (root + root.T) / 2
