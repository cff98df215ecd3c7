"""Traces of functions of a matrix by Gauss quadrature over Lanczos, with Gauss-Radau bounds, or exactly.

What not to conclude: a log-determinant with damping is mostly the damping where the matrix is rank-deficient.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from curvature.errors import ConfigurationError, NotDefinedError, SelfCheckError
from curvature.linalg.intervals import (
    CHEAP_DIM,
    described,
    known_method,
    mean_interval,
    normal_probes,
    quantile,
    require_budget,
    rounding_units,
    spread,
)
from curvature.linalg.lapack import eigenvalues
from curvature.linalg.operator import SymmetricOperator, require_operator
from curvature.linalg.quadrature import DampedFunction, quadratures
from curvature.linalg.random import generator_of
from curvature.linalg.spectral_functions import Function, SpectralFunction, spectral_function
from curvature.precision import full_precision
from curvature.records import Estimate
from curvature.removed import removed

__all__ = ["METHODS", "log_determinant", "spectral_sum"]

METHODS = ("auto", "exact", "quadrature")
_PILOT = 10  # probes that decide how many steps and probes are needed
_FIRST_STEPS = 16


@removed(generator="seed=generator")
@full_precision()
def log_determinant(
    operator: SymmetricOperator,
    damping: float,
    *,
    method: str = "auto",
    relative_error: float = 0.01,
    lower: float | None = None,
    max_products: int = 4000,
    seed: int | torch.Generator = 0,
) -> Estimate:
    r"""Compute or estimate $\log\det(A + \delta I)$.

    Parameters
    ----------
    operator
        The matrix, ``(D, D)``. With its damping it must be known to be positive definite: positive semidefinite by
        definition and $\delta > 0$, or ``lower`` $> -\delta$.
    damping
        $\delta$, in the unit of the eigenvalues.
    method, relative_error, lower, max_products, seed
        As for :func:`spectral_sum`.

    Returns
    -------
    Estimate
        With its 95 % interval; the interval of an exact value is its rounding.

    Raises
    ------
    NotDefinedError
        If the matrix may be singular or indefinite. Negative eigenvalues are never left out.
    SelfCheckError
        If an eigenvalue lies below what ``lower`` promises.

    Notes
    -----
    Each of the $D - r$ zeros of a singular matrix adds $\log\delta$: compare only at equal $\delta$ and $D$.

    Examples
    --------
    >>> A = SymmetricOperator.from_dense(torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64)))
    >>> round(log_determinant(A, 1.0).value, 6) == round(math.log(4 * 2), 6)
    True
    """
    require_operator(operator, "log_determinant")
    return spectral_sum(
        operator,
        "log",
        damping=damping,
        method=method,
        relative_error=relative_error,
        lower=lower,
        max_products=max_products,
        seed=seed,
    )


@removed(generator="seed=generator")
@full_precision()
def spectral_sum(
    operator: SymmetricOperator,
    function: str | float | Function,
    *,
    damping: float = 0.0,
    method: str = "auto",
    relative_error: float = 0.01,
    lower: float | None = None,
    max_products: int = 4000,
    seed: int | torch.Generator = 0,
) -> Estimate:
    r"""Compute or estimate $\operatorname{tr} f(A + \delta I) = \sum_i f(\lambda_i + \delta)$.

    Parameters
    ----------
    operator
        The matrix, ``(D, D)``.
    function
        ``"log"``, ``"inverse"``, a number $p$ for $x^p$, or a callable on arrays. A callable has no known derivatives:
        its quadrature error is the change over the last half of the steps, and the record's note says so.
    damping
        $\delta$, in the unit of the eigenvalues, added to each of them.
    method
        ``"exact"``: all eigenvalues. ``"quadrature"``: see Notes. ``"auto"``: exact where the entries or a dense form
        are known and ``D`` is at most 4096, where the factor has that few columns, or where ``D`` products cost less
        than the first probes.
    relative_error
        Half the width of the interval wanted, relative to the value. Steps double until the bounds of ten pilot probes
        take less than half of it; the spread of the pilot then fixes the number of probes [3]_.
    lower
        A proven lower bound of the eigenvalues of $A$ (a Ritz value is not one). None: 0 for a matrix that is positive
        semidefinite by definition, otherwise unknown.
    max_products
        Budget. Where it ends first the interval is wider, and ``converged`` is False.
    seed
        Of the probes, which are drawn on the CPU; not used where the value is exact.

    Returns
    -------
    Estimate
        With its 95 % interval; the interval of an exact value is its rounding.

    Raises
    ------
    NotDefinedError
        If the logarithm, the inverse or a power is asked of a matrix that may be singular or indefinite.
    SelfCheckError
        If an eigenvalue lies below what ``lower`` promises.

    Notes
    -----
    Stochastic Lanczos quadrature: $D$ times the mean of $q^T f q$ over uniform unit vectors [1]_ [2]_. The even and the
    odd derivatives of the logarithm, the inverse and fractional powers have one sign each. So for every probe the Gauss
    rule lies on one side of the truth, and the Gauss-Radau rule with a node at the lower end of the spectrum on the
    other: bounds, rounding included. Only the mean over probes is left to chance.

    References
    ----------
    .. [1] Golub, Meurant (2010). Matrices, Moments and Quadrature with Applications.
    .. [2] Ubaru, Chen, Saad (2017). Fast estimation of tr(f(A)) via stochastic Lanczos quadrature.
       doi:10.1137/16M1104974
    .. [3] Stein (1945). A two-sample test for a linear hypothesis whose power is independent of the variance.

    Examples
    --------
    >>> A = SymmetricOperator.from_dense(torch.diag(torch.tensor([4.0, 9.0], dtype=torch.float64)))
    >>> round(spectral_sum(A, 0.5, lower=4.0).value, 6)
    5.0
    """
    require_operator(operator, "spectral_sum")
    known_method(method, METHODS)
    if not (damping >= 0 and math.isfinite(damping)):
        raise ConfigurationError(f"damping must be a finite number and not negative, got {damping}.")
    if not relative_error > 0:
        raise ConfigurationError(f"relative_error must be positive, got {relative_error}.")
    started = time.perf_counter()
    if lower is None:
        lower = 0.0 if operator.facts.positive_semidefinite else -math.inf
    problem = DampedFunction(operator, spectral_function(function), damping, end=lower + damping)
    if method == "auto":
        method = "exact" if _cheap(operator) else "quadrature"
    if method == "exact":
        return _exact_sum(problem, lower, started)
    _require_domain(problem)
    require_budget(method, max_products, _PILOT * min(_FIRST_STEPS, operator.dim))
    return _estimated_sum(problem, relative_error, max_products, generator_of(seed), started)


def _cheap(operator: SymmetricOperator) -> bool:
    """Whether all eigenvalues cost less than the first probes, or are affordable."""
    factor = operator.routes.factor
    if factor is not None and factor.num_columns < min(operator.dim, CHEAP_DIM):
        return True
    known = operator.routes.entries is not None
    return (known and operator.dim <= CHEAP_DIM) or operator.dim <= _PILOT * _FIRST_STEPS


def _require_domain(problem: DampedFunction) -> None:
    if problem.function.certified and problem.end == -math.inf:
        raise _undefined(problem, "no lower bound of its eigenvalues is known (pass a proven one as lower)")
    if not problem.function.defined(problem.end):
        raise _undefined(problem, f"its eigenvalues may reach {problem.end:.3g}")


def _exact_sum(problem: DampedFunction, lower: float, started: float) -> Estimate:
    operator, function, damping, end = problem.operator, problem.function, problem.damping, problem.end
    values, scale, num_products = _all_eigenvalues(operator)
    rounding = rounding_units(operator) * max(scale, float(np.abs(values).max()))
    if values.min() < lower - 100 * rounding:
        raise SelfCheckError(
            f"{operator.name} has the eigenvalue {values.min():.3g}, below the promised bound {lower:.3g}."
        )
    if not function.defined(end):
        if not function.defined(values.min() + damping, rounding):
            raise _undefined(problem, f"its smallest eigenvalue is {values.min():.3g}")
        end = max(values.min() + damping - rounding, 0.0)
    low, high = function.sums(values + damping, rounding, end)
    value = float(function.values(np.maximum(values + damping, end)).sum())
    return Estimate(
        what=_subject(function),
        value=value,
        low=min(low, value),
        high=max(high, value),
        num_products=num_products,
        **described(operator, "exact", started),
    )


def _estimated_sum(
    problem: DampedFunction, relative_error: float, max_products: int, generator: torch.Generator, started: float
) -> Estimate:
    operator, function = problem.operator, problem.function
    probes = normal_probes(operator.dim, _PILOT, generator)
    steps, used = min(max(_FIRST_STEPS, function.least_steps), operator.dim), 0
    while True:
        below, above = quadratures(problem, probes, steps)
        used += steps * _PILOT
        goal = relative_error * abs(float(below.mean() + above.mean())) / 2
        settled = float((above - below).mean()) / 2 <= goal / 2
        if settled or steps == operator.dim or used + 2 * steps * _PILOT > max_products:
            break
        steps = min(2 * steps, operator.dim)
    # The number of probes depends on the spread of the pilot alone, so its quantile stays right (Stein 1945).
    pilot = quantile(_PILOT) * spread((below + above) / 2)
    affordable = (max_products - used) // steps
    wanted = math.inf if goal == 0 else math.ceil((2 * pilot / goal) ** 2) - _PILOT
    more = int(min(affordable, max(0, wanted))) if pilot > 0 else 0
    if more:
        rest = quadratures(problem, normal_probes(operator.dim, more, generator), steps)
        below, above = np.concatenate([below, rest[0]]), np.concatenate([above, rest[1]])
        used += more * steps
    num_probes = len(below)
    middle = (below + above) / 2
    value = float(middle.mean())
    stein = pilot / num_probes**0.5
    rounding = rounding_units(operator) * abs(value)
    low = min(mean_interval(below)[0], float(below.mean()) - stein) - rounding
    high = max(mean_interval(above)[1], float(above.mean()) + stein) + rounding
    uncertified = "" if function.certified else "; the quadrature error is its change over the last half, not a bound"
    return Estimate(
        what=_subject(function),
        value=value,
        low=low,
        high=high,
        standard_error=spread(middle) / num_probes**0.5,
        quadrature_error=float((above - below).mean()) / 2,
        num_products=used,
        num_probes=num_probes,
        converged=(high - low) / 2 <= relative_error * abs(value),
        note=f"{steps} Lanczos steps{uncertified}",
        **described(operator, "quadrature", started),
    )


def _subject(function: SpectralFunction) -> str:
    return "log-determinant" if function.name == "log" else f"trace of {function.name}"


def _all_eigenvalues(operator: SymmetricOperator) -> tuple[np.ndarray, float, int]:
    """All eigenvalues in float64, what their rounding is relative to if more than their size, and the products."""
    factor = operator.routes.factor
    if operator.kept is None and factor is not None and factor.num_columns < operator.dim:
        gram, scale = operator.scaled_gram()
        values = eigenvalues(gram.cpu().numpy()).astype(np.float64)
        return np.concatenate([np.zeros(operator.dim - len(values)), values]), scale, 0
    num_products = operator.dim if operator.routes.entries is None else 0
    return eigenvalues(operator.entries().cpu().numpy()).astype(np.float64), 0.0, num_products


def _undefined(problem: DampedFunction, why: str) -> NotDefinedError:
    return NotDefinedError(
        f"the {problem.function.name} of {problem.operator.name} needs eigenvalues known to be positive, but {why}. "
        "Raise the damping, or look at the indefinite spectrum itself."
    )
