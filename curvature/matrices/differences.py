r"""The Hessian by differences of the gradient, for models that PyTorch differentiates only once.

Central differences $D(h) = (G(w + h e_k) - G(w - h e_k)) / 2h$ of three steps $h, 2h, 4h$ are extrapolated twice
(Richardson): $R(h) = (4 D(h) - D(2h)) / 3$ is of fourth order, $(16 R(h) - R(2h)) / 15$ of sixth. The difference of
$R(h)$ and $R(2h)$ contains the truncation of both and the rounding of all gradients, so it estimates the error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.errors import ConfigurationError
from curvature.models import Problem

__all__ = ["DifferenceMatrix", "difference_matrix"]

# Length of the shortest step, times max(1, |w_k|). The error estimate, of fourth order, stays near 1e-11 of the Hessian
# of smooth models; the extrapolation itself, of sixth order, is better, and rounding of the gradients adds 1e-12.
_STEP = 3e-4
# Where all steps cross a jump j of the gradient, the result is off by 0.60 j / h and the difference is 0.29 j / h.
_SAFETY = 3


@dataclass(frozen=True, eq=False)
class DifferenceMatrix:
    """A Hessian by differences.

    Attributes
    ----------
    entries
        ``(P, P)``, exactly symmetric.
    error
        Estimate of the norm of its error.
    """

    entries: Float[Tensor, "weights weights"]
    error: float


def difference_matrix(problem: Problem) -> DifferenceMatrix:
    """Compute the Hessian of the mean loss by central differences of the gradient, with an estimate of their error.

    Parameters
    ----------
    problem
        Model, loss and data, at a point, in float64.

    Returns
    -------
    DifferenceMatrix
        The symmetric part; and three times the Frobenius norm of the difference of two extrapolations, or that of the
        part that is not symmetric, whichever is larger.

    Raises
    ------
    ConfigurationError
        In another precision, which has too few digits for differences.

    Notes
    -----
    Costs six gradients over all examples for each weight.
    """
    if problem.dtype != torch.float64:
        raise ConfigurationError(
            f"method='finite-differences' needs float64, the problem is in {problem.dtype}: the differences would keep "
            "too few digits. Pass dtype=torch.float64 to Problem.from_module."
        )
    columns, spread = torch.empty_like(torch.diag(problem.weights)), 0.0
    for k, weight in enumerate(problem.weights.tolist()):
        step = _STEP * max(1.0, abs(weight))
        shortest, middle, longest = (_central(problem, k, scale * step) for scale in (1, 2, 4))
        near, far = (4 * shortest - middle) / 3, (4 * middle - longest) / 3
        columns[:, k] = (16 * near - far) / 15
        spread += float((near - far).square().sum())
    entries = 0.5 * (columns + columns.T)
    return DifferenceMatrix(entries, max(_SAFETY * spread**0.5, float(torch.linalg.matrix_norm(columns - entries))))


def _central(problem: Problem, index: int, step: float) -> Tensor:
    """Central difference of the gradient along one weight."""
    ahead, behind = problem.weights.clone(), problem.weights.clone()
    ahead[index] += step
    behind[index] -= step
    return (problem.data_gradient(ahead) - problem.data_gradient(behind)) / float(ahead[index] - behind[index])
