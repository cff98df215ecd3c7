"""Curvature at the weights of one checkpoint; it depends on nothing else, so any order gives the same numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from curvature.charts import Parameterization, Standard
from curvature.errors import ResourceError
from curvature.linalg.eigen import spectrum
from curvature.linalg.extremal import extremal_eigenvalues
from curvature.linalg.operator import SymmetricOperator
from curvature.linalg.planning import plan
from curvature.linalg.traces import trace
from curvature.matrices import pullback
from curvature.models import Problem
from curvature.precision import full_precision
from curvature.records import MatrixSummary, Quantity
from curvature.studies.analysis import estimated_quantity, exact_numbers
from curvature.studies.measuring import matrix_of
from curvature.studies.settings import known_matrices

__all__ = ["MOST_EXACT", "summarize_matrices"]

# A spectrum of this size takes seconds on one core; there may be hundreds of checkpoints.
MOST_EXACT = 2000
_NOT_COMPUTED = Quantity(np.nan, "undefined", "needs every eigenvalue (--method exact)")


@full_precision()
def summarize_matrices(
    problem: Problem,
    *,
    matrices: Sequence[str] = ("hessian", "ggn"),
    charts: Sequence[Parameterization] = (Standard(),),
    num_largest: int = 5,
    method: str = "auto",
    seed: int = 0,
) -> tuple[MatrixSummary, ...]:
    """Summarize matrices of one problem: their largest eigenvalues, trace, condition number and effective rank.

    Parameters
    ----------
    problem
        At the weights of the checkpoint.
    matrices
        Names from ``curvature.matrices.MATRICES``.
    charts
        Each matrix is summarized in the coordinates of each.
    num_largest
        Eigenvalues to keep.
    method
        ``"exact"``: every eigenvalue. ``"lanczos"``: the largest ones, and an estimate of the trace. ``"auto"``: exact
        up to dimension 2000, if it fits in memory.
    seed
        Of start vectors, probes and drawn labels. No start vector comes from another checkpoint.

    Returns
    -------
    tuple of MatrixSummary
        One for each matrix in each chart.

    Raises
    ------
    ConfigurationError
        If a matrix is unknown, or not defined for the loss.
    ResourceError
        If ``"exact"`` does not fit in memory.
    """
    summaries = []
    for name in known_matrices(matrices):
        operator = matrix_of(problem, name, seed, 1)
        for chart in charts:
            in_chart = operator if isinstance(chart, Standard) else pullback(operator, chart)
            summaries.append(_summarized(in_chart, num_largest, method, seed))
    return tuple(summaries)


def _summarized(operator: SymmetricOperator, num_largest: int, method: str, seed: int) -> MatrixSummary:
    num_largest = min(num_largest, operator.dim)
    exact = _exact_method(operator, method)
    warnings: list[str] = []
    if exact is None:
        ends = extremal_eigenvalues(operator, num_largest=num_largest, seed=seed)
        count, total = len(ends.largest), estimated_quantity(trace(operator, seed=seed))
        eigenvalues = tuple(ends.eigenvalue(len(ends.smallest) + count - 1 - k) for k in range(count))
        numbers = {"smallest": _NOT_COMPUTED, "kappa_80": _NOT_COMPUTED, "effective_rank": _NOT_COMPUTED}
        if not ends.converged:
            warnings.append(f"the largest eigenvalues did not all converge in {ends.num_products} products")
    else:
        record = spectrum(operator, method=exact)
        numbers, warnings = exact_numbers(record, record.condition_numbers())
        eigenvalues = tuple(record.eigenvalue(record.dim - 1 - k) for k in range(num_largest))
        total = numbers["trace"]
    return MatrixSummary(
        matrix=operator.where.matrix,
        chart=operator.where.chart,
        gauge=operator.where.gauge,
        dim=operator.dim,
        eigenvalues=eigenvalues,
        smallest=numbers["smallest"],
        trace=total,
        kappa_80=numbers["kappa_80"],
        effective_rank=numbers["effective_rank"],
        method=exact or "lanczos",
        warnings=tuple(warnings),
    )


def _exact_method(operator: SymmetricOperator, method: str) -> str | None:
    """How to compute every eigenvalue; None for the largest ones alone."""
    if method == "lanczos" or (method == "auto" and operator.dim > MOST_EXACT):
        return None
    try:
        return plan(operator).method
    except ResourceError:
        if method == "exact":
            raise
        return None
