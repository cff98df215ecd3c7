"""Numbers of eigenvalues below and above a shift, without computing any eigenvalue."""

from __future__ import annotations

import numpy as np

from curvature.errors import ConfigurationError
from curvature.linalg import lapack
from curvature.linalg.memory import ensure_memory
from curvature.linalg.operator import SymmetricOperator, require_operator
from curvature.precision import full_precision
from curvature.records import Inertia

__all__ = ["inertia"]


@full_precision()
def inertia(operator: SymmetricOperator, shift: float = 0.0) -> Inertia:
    r"""Count the eigenvalues below and above a shift, by Sylvester's law of inertia.

    Unlike a Krylov method this is a proof: it needs no start vector and no convergence, and it counts copies. It says
    nothing about eigenvalues within ``tolerance`` of ``shift``, so counts at 0 do not give the rank of a singular
    matrix.

    Parameters
    ----------
    operator
        The matrix.
    shift
        Number that eigenvalues are compared with, unit loss / coordinate**2.

    Returns
    -------
    Inertia
        The counts, proven for eigenvalues farther from ``shift`` than ``tolerance``.

    Raises
    ------
    ConfigurationError
        If ``shift`` is not finite.
    ResourceError
        If the factorization does not fit in memory.

    Notes
    -----
    Costs the entries (``D`` products unless a cheaper route is known), about $D^3$ operations, and memory for six
    matrices.

    Examples
    --------
    >>> import torch
    >>> A = SymmetricOperator.from_dense(torch.diag(torch.tensor([3.0, 1.0, -2.0], dtype=torch.float64)))
    >>> counts = inertia(A, 0.5)
    >>> counts.below, counts.above
    (1, 2)
    """
    require_operator(operator, "inertia")
    if not np.isfinite(shift):
        raise ConfigurationError(f"shift must be finite, got {shift}.")
    ensure_memory(6 * operator.dim**2 * 8, f"the factorization of {operator.shape_text}")
    below, above, tolerance = lapack.inertia(operator.entries().cpu().numpy(), shift)
    return Inertia(operator.where, operator.dim, float(shift), below, above, tolerance + operator.error())
