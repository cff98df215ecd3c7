"""The record of eigenvectors, with residuals from products and names from the layout."""

from __future__ import annotations

import numpy as np
import torch

from curvature.arrays import Float
from curvature.linalg.norms import vector_norms
from curvature.linalg.operator import SymmetricOperator
from curvature.records import Eigenvectors

__all__ = ["eigenvectors"]


def eigenvectors(
    operator: SymmetricOperator, values: Float[np.ndarray, "values"], columns: Float[np.ndarray, "dim values"]
) -> Eigenvectors:
    r"""Make the record of eigenvectors from orthonormal columns.

    Parameters
    ----------
    operator
        The matrix.
    values
        Eigenvalues, ``(K,)``.
    columns
        Eigenvectors, ``(D, K)``.

    Returns
    -------
    Eigenvectors
        With the residuals $\|A q_k - \lambda_k q_k\|$, from ``K`` products.
    """
    block = torch.from_numpy(np.ascontiguousarray(columns)).to(operator.device, operator.dtype)
    shifts = torch.from_numpy(np.ascontiguousarray(values)).to(block)
    residuals = vector_norms(operator @ block - block * shifts, 0).cpu().numpy()
    entries = () if operator.layout is None else operator.layout.entries
    names = tuple((entry.name, tuple(entry.shape)) for entry in entries)
    return Eigenvectors(values, columns, residuals, names)
