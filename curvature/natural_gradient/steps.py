r"""Gradient steps of a chart and damped natural-gradient steps, both on the weights.

Damping is not invariant under a chart: $(F_\theta + \lambda I)^{-1}$ pushes forward to $(F + \lambda K^{-1})^{-1}$.
So one damping metric is fixed on the weights, $A = F + \lambda I$, and pushed-forward steps are compared in its norm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.charts import Parameterization
from curvature.charts.per_weight import as_matrix
from curvature.linalg.operator import SymmetricOperator
from curvature.matrices import fisher as fisher_matrix
from curvature.models import Problem
from curvature.natural_gradient.preconditioners import absolute_damping, refuse_scale_of_loss
from curvature.precision import full_precision
from curvature.records.damping import Damping

__all__ = ["chart_step", "muon_step", "natural_gradient_step"]


@full_precision()
def chart_step(problem: Problem, chart: Parameterization) -> Float[Tensor, "weights"]:
    r"""Gradient step of a chart, pushed forward to the weights.

    Parameters
    ----------
    problem
        Model, loss and data at the point.
    chart
        Any parameterization.

    Returns
    -------
    Tensor
        $-K \nabla L$ with $K = J J^T$, shape ``(P,)``, at learning rate 1.
    """
    at_weights = chart.at(problem.layout, problem.weights)
    return -at_weights.metric(problem.gradient()[:, None])[:, 0]


@full_precision()
def muon_step(problem: Problem) -> Float[Tensor, "weights"]:
    r"""Step of Muon on every matrix of weights, without momentum; vectors do not move.

    Parameters
    ----------
    problem
        Model, loss and data at the point.

    Returns
    -------
    Tensor
        $-U V^T$, shape ``(P,)``, at learning rate 1, with $G = U S V^T$ the gradient of a weight as the matrix of its
        neurons (output channels by everything else) and $S > 0$. It is not linear in the gradient, so no chart has it.

    References
    ----------
    Jordan et al. (2024). Muon: an optimizer for hidden layers in neural networks.
    """
    gradient = problem.gradient()
    step = torch.zeros_like(gradient)
    for entry, span in problem.layout.pairs():
        if len(entry.shape) > 1:
            matrix = as_matrix(entry)
            left, values, right = torch.linalg.svd(matrix.rows(gradient[span]), full_matrices=False)
            # Singular vectors of zero are arbitrary.
            moves = values > max(entry.shape) * torch.finfo(values.dtype).eps * values[0]
            step[span] = -matrix.from_rows(left[:, moves] @ right[moves])
    return step


@full_precision()
def natural_gradient_step(
    problem: Problem,
    *,
    damping: float | None = None,
    relative_damping: float | None = None,
    block: str = "all",
    fisher: SymmetricOperator | None = None,
) -> Float[Tensor, "weights"]:
    r"""Damped natural-gradient step on the weights.

    Parameters
    ----------
    problem
        Model, loss and data at the point.
    damping
        $\lambda$. Zero gives the minimum-norm step $-F^+ \nabla L$, which needs a well separated null space.
    relative_damping
        $a$ in $\lambda = a \operatorname{tr}(F)/P$, instead of ``damping``; 1e-3 if neither is given.
    block
        ``"all"``, or ``"layer"`` or ``"neuron"`` for a block-diagonal $F$.
    fisher
        The Fisher, if it has been computed already.

    Returns
    -------
    Tensor
        $-(F + \lambda I)^{-1} \nabla L$, shape ``(P,)``, at learning rate 1.

    Raises
    ------
    ConfigurationError
        If both dampings are given, the damping is negative, or ``fisher`` is an empirical Fisher of another scale.

    Notes
    -----
    The gradient is that of the objective, with its penalty; $F$ is that of the data unless ``fisher`` says otherwise
    (``ggn(problem, penalty=True)``). Costs one eigendecomposition per block. Without damping the step does not depend
    on the chart, up to the null space of $F$; with damping it does.
    """
    chosen = Damping.chosen(damping, relative_damping, zero=True)
    refuse_scale_of_loss(problem, fisher)
    matrix = (fisher or fisher_matrix(problem)).entries()
    gradient = problem.gradient()
    step = torch.zeros_like(gradient)
    shift = absolute_damping(matrix, chosen)
    for indices in problem.layout.blocks(block).values():
        rows = indices.to(problem.device)
        values, vectors = torch.linalg.eigh(matrix[rows][:, rows])
        if chosen:
            inverse = 1 / (values.clamp(min=0) + shift)
        else:
            kept = values > len(values) * torch.finfo(values.dtype).eps * values.max()
            inverse = torch.where(kept, 1 / values.where(kept, torch.ones_like(values)), 0.0)
        step[rows] = -vectors @ (inverse * (vectors.T @ gradient[rows]))
    return step
