"""The noise floor: the size of rounding in the eigenvalues of a matrix."""

from __future__ import annotations

import numpy as np
import torch

from curvature.arrays import Float
from curvature.errors import SelfCheckError
from curvature.linalg.operator import SymmetricOperator
from curvature.records import Check

__all__ = ["measured_rounding", "noise_floor", "rounding_units", "singular_units"]

# Rounding by LAPACK and by the sums before it, in units of rounding of the norm: 20, or a share of D if that is more.
# Measured: 14 units where all eigenvalues but one are equal. Rounding of equal sign adds up: the zero eigenvalues of a
# matrix of ones are off by D / 20 units (D up to 1000), those from its factor by D / 4. Rounding of random signs in a
# long QR decomposition: 0.4 times the root of the number of columns (60 rows, 2030 columns).
_FLOOR, _SHARE, _SINGULAR_SHARE = 20, 1 / 12, 1 / 3


def rounding_units(dim: int, dtype: torch.dtype) -> float:
    """Estimate the rounding of eigenvalues by LAPACK and by the sums before it, relative to the norm.

    Parameters
    ----------
    dim, dtype
        Dimension and precision of the matrix.

    Returns
    -------
    float
        At least 20 units of rounding.
    """
    return max(_FLOOR, _SHARE * dim) * torch.finfo(dtype).eps


def singular_units(dim: int, num_columns: int, dtype: torch.dtype) -> float:
    """Estimate the rounding of singular values of a factor, relative to the largest.

    Parameters
    ----------
    dim, num_columns, dtype
        Shape and precision of the factor.

    Returns
    -------
    float
        At least 20 units of rounding.
    """
    return max(_FLOOR, _SINGULAR_SHARE * dim, num_columns**0.5) * torch.finfo(dtype).eps


def measured_rounding(values: Float[np.ndarray, "dim"], checks: tuple[Check, ...]) -> float:
    """Estimate the rounding of eigenvalues from the difference between two ways to the same products.

    Parameters
    ----------
    values
        The eigenvalues, ``(D,)``.
    checks
        Self-checks, some of which compare products.

    Returns
    -------
    float
        In the unit of the eigenvalues; 0 where no products were compared.

    Notes
    -----
    Two computations of the same products differ by ``E v``: ``|E v| / |A v|`` of a random ``v`` estimates the ratio of
    the Frobenius norms of ``E`` and ``A``, and the norm of ``E`` bounds the error of each eigenvalue (Weyl).
    """
    apart = max([check.rounding or 0.0 for check in checks], default=0.0)
    size = float(np.abs(values).max())
    return 2 * apart * size * float(np.linalg.norm(values / (size or 1.0)))


def noise_floor(
    operator: SymmetricOperator,
    values: Float[np.ndarray, "dim"],
    method: str,
    size: float,
    checks: tuple[Check, ...],
    formula: tuple[int, str] | None,
) -> tuple[float, str]:
    """Estimate the noise floor as the largest of several estimates of rounding.

    Parameters
    ----------
    operator
        The matrix.
    values
        Its eigenvalues, ``(D,)``.
    method
        How they were computed: ``"dense"``, ``"factor"`` or ``"gram"``.
    size
        Scale of the rounding: the norm, or more.
    checks
        Self-checks; those that compare two computations of the same products measure rounding.
    formula
        Rank by formula and its rule, if there is one: computed values of eigenvalues that must be zero are rounding.

    Returns
    -------
    tuple of float and str
        The floor, and the estimate that set it.

    Raises
    ------
    SelfCheckError
        If an eigenvalue that is zero by formula is far from it.
    """
    eps = torch.finfo(operator.dtype).eps
    sizes = np.sort(np.abs(values))
    if method == "factor":
        assert operator.routes.factor is not None
        units = singular_units(len(values), operator.routes.factor.num_columns, operator.dtype)
        parts = {f"{units / eps:.0f} units of rounding of the largest singular value": units**2 * size}
    else:
        units = rounding_units(len(values), operator.dtype)
        parts = {
            f"{units / eps:.0f} units of rounding of the norm": units * size,
            "difference between two ways to the same products": measured_rounding(values, checks),
        }
    if operator.facts.error is not None:
        parts["the error of the finite differences"] = operator.error()
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
