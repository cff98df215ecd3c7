"""The noise floor: how large rounding is in the eigenvalues of a matrix."""

from __future__ import annotations

import numpy as np
import torch

from curvature.errors import SelfCheckError
from curvature.linalg.operator import SymmetricOperator
from curvature.records import Check

__all__ = ["noise_floor", "rounding_units", "singular_units"]

# Units of rounding of the norm, a share of D if that is more: what LAPACK and the sums before it leave. Measured: 14
# where all eigenvalues but one are equal. Rounding of one sign adds up: a matrix of ones has its zeros off by D / 20
# (up to 1000), its factor's by D / 4.
_FLOOR, _SHARE, _SINGULAR_SHARE = 20, 1 / 12, 1 / 3


def rounding_units(dim: int, dtype: torch.dtype) -> float:
    """Rounding of eigenvalues, relative to the norm: what LAPACK and the sums before it leave.

    Parameters
    ----------
    dim, dtype
        Of the matrix.

    Returns
    -------
    float
        A multiple of the unit of rounding.
    """
    return max(_FLOOR, _SHARE * dim) * torch.finfo(dtype).eps


def singular_units(dim: int, dtype: torch.dtype) -> float:
    """Rounding of singular values, relative to the largest.

    Parameters
    ----------
    dim, dtype
        Of the factor's longer side.

    Returns
    -------
    float
        A multiple of the unit of rounding.
    """
    return max(_FLOOR, _SINGULAR_SHARE * dim) * torch.finfo(dtype).eps


def noise_floor(
    operator: SymmetricOperator,
    values: np.ndarray,
    method: str,
    size: float,
    checks: tuple[Check, ...],
    formula: tuple[int, str] | None,
) -> tuple[float, str]:
    """Take the largest of everything that shows how large rounding is.

    Parameters
    ----------
    operator
        The matrix.
    values
        Its eigenvalues, ``(D,)``.
    method
        How they were computed.
    size
        What rounding is relative to: the norm, or more.
    checks
        Self-checks; those that compare two ways to the same products measure rounding.
    formula
        Rank by formula and its rule, where there is one: what is known to be zero shows what zero looks like.

    Returns
    -------
    tuple of float and str
        The floor, and which of its parts was the largest.

    Raises
    ------
    SelfCheckError
        If an eigenvalue that is zero by formula is far from it.
    """
    eps = torch.finfo(operator.dtype).eps
    sizes = np.sort(np.abs(values))
    if method == "factor":
        units = singular_units(len(values), operator.dtype)
        parts = {f"{units / eps:.0f} units of rounding of the largest singular value": units**2 * size}
    else:
        units = rounding_units(len(values), operator.dtype)
        # The same products by other sums: |E v| / |A v| of random vectors is the ratio of Frobenius norms.
        apart = max((check.rounding or 0.0 for check in checks), default=0.0)
        frobenius = size * float(np.linalg.norm(values / (size or 1.0)))
        parts = {
            f"{units / eps:.0f} units of rounding of the norm": units * size,
            "difference between two ways to the same products": 2 * apart * frobenius,
        }
    if formula is not None and formula[0] < len(values):
        known, rule = formula
        largest = float(sizes[len(values) - known - 1])
        if largest > (eps if method == "factor" else eps**0.5) * size:
            raise SelfCheckError(
                f"the rank of {operator.name} in {operator.where.chart} is at most {known} ({rule}), but its "
                f"eigenvalue {known + 1} is {largest:.3g} (largest {size:.3g}): the formula or a derivative is wrong."
            )
        parts["the known null space"] = largest
    if operator.facts.positive_semidefinite:
        parts["the most negative eigenvalue"] = -float(values.min())
    rule = max(parts, key=parts.__getitem__)
    return parts[rule], rule
