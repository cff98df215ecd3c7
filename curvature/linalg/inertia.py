"""How many eigenvalues lie on each side of a number, without computing any."""

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
    r"""Count the eigenvalues on each side of ``shift`` without computing any: Sylvester's law on the entries.

    A proof where a Krylov method gives evidence: no start vector, no convergence, copies counted. It says nothing
    about eigenvalues within ``tolerance`` of ``shift``, so a count at 0 of a singular matrix is not its rank.

    Parameters
    ----------
    operator
        The matrix.
    shift
        Unit loss / coordinate**2.

    Returns
    -------
    Inertia
        Counts, and how far from ``shift`` they are certain.

    Raises
    ------
    ResourceError
        If the factorization does not fit in memory.

    Notes
    -----
    Costs the dense matrix (``D`` products unless the operator knows a cheaper route), about $D^3$ operations and memory
    for five of them.

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
        raise ConfigurationError(f"shift must be a finite number, got {shift}.")
    ensure_memory(6 * operator.dim**2 * 8, f"the factorization of {operator.shape_text}")
    below, above, tolerance = lapack.inertia(operator.entries().cpu().numpy(), shift)
    return Inertia(operator.where, operator.dim, float(shift), below, above, tolerance)
