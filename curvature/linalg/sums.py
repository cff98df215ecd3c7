"""Traces of functions of a matrix by Gauss quadrature over Lanczos, with Gauss-Radau bounds, or exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from curvature.errors import ConfigurationError, NotDefinedError, SelfCheckError
from curvature.linalg.intervals import (
    CHEAP_DIM,
    choice,
    demand,
    estimate,
    mean_interval,
    normal,
    quantile,
    rounding_units,
    spread,
)
from curvature.linalg.lanczos import lanczos
from curvature.linalg.lapack import eigenvalues
from curvature.linalg.operator import SymmetricOperator
from curvature.linalg.random import generator_of
from curvature.precision import full_precision
from curvature.records import Estimate
from curvature.records.bounds import gauss_radau
from curvature.removed import removed

__all__ = ["METHODS", "log_determinant", "spectral_sum"]

METHODS = ("auto", "exact", "quadrature")
_PILOT = 10  # probes that decide how many steps and probes are needed
_FIRST_STEPS = 16
_AT_ONCE = 2**28  # numbers in the Lanczos bases of one group of probes


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
    r"""$\log\det(A + \delta I)$ with ``damping`` $\delta$: :func:`spectral_sum` of the logarithm.

    Needs a matrix that is known to be positive definite with its damping: positive semidefinite by definition and
    $\delta > 0$, or ``lower`` $> -\delta$. An indefinite matrix has no log-determinant, and its negative eigenvalues
    are never left out.

    Each of the $D - r$ zeros of a singular matrix adds $\log\delta$: compare only at equal $\delta$ and $D$.

    >>> A = SymmetricOperator.from_dense(torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64)))
    >>> round(log_determinant(A, 1.0).value, 6) == round(math.log(4 * 2), 6)
    True
    """
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
    function: str | float | Callable[[np.ndarray], np.ndarray],
    *,
    damping: float = 0.0,
    method: str = "auto",
    relative_error: float = 0.01,
    lower: float | None = None,
    max_products: int = 4000,
    seed: int | torch.Generator = 0,
) -> Estimate:
    r"""$\operatorname{tr} f(A + \delta I) = \sum_i f(\lambda_i + \delta)$ with a 95 % interval, or exactly.

    Stochastic Lanczos quadrature: $D$ times the mean of $q^T f q$ over uniform unit vectors (Golub & Meurant 2010;
    Ubaru, Chen & Saad 2017, doi:10.1137/16M1104974). The even and the odd derivatives of the logarithm, the inverse and
    fractional powers have one sign each, so that for every probe the Gauss rule lies on one side of the truth and the
    Gauss-Radau rule with a node at the lower end of the spectrum on the other: bounds, not estimates, and rounding is
    in them. What is left to chance is the mean over probes.

    Parameters
    ----------
    function
        ``"log"``, ``"inverse"``, a number $p$ for $x^p$, or a callable on arrays. A callable has no known derivatives:
        its quadrature error is the change over the last half of the steps, which the record's note says.
    damping
        $\delta$, added to every eigenvalue.
    method
        ``"exact"``: all eigenvalues. ``"quadrature"``. ``"auto"``: exact where the entries or a dense form are known
        and ``D`` is at most 4096, where the factor has that few columns, or where ``D`` products cost less than the
        first probes.
    relative_error
        Half the width of the interval wanted, relative to the value. Steps double until the bounds of ten pilot probes
        take less than half of it; the spread of the pilot then fixes the number of probes (Stein 1945).
    lower
        A proven lower bound of the eigenvalues of $A$; None is 0 for a matrix that is positive semidefinite by
        definition. A Ritz value is not one.
    max_products
        Budget. Where it ends first the interval is wider, and ``converged`` False.
    seed
        Of the probes, which are drawn on the CPU; not used where the value is exact.

    Raises
    ------
    NotDefinedError
        If the logarithm, the inverse or a power is asked of a matrix that may be singular or indefinite.
    SelfCheckError
        If a Ritz value lies below what ``lower`` promises.
    """
    choice(method, METHODS)
    if not (damping >= 0 and math.isfinite(damping)):
        raise ConfigurationError(f"damping must be a finite number and not negative, got {damping}.")
    if not relative_error > 0:
        raise ConfigurationError(f"relative_error must be positive, got {relative_error}.")
    started = time.perf_counter()
    rule = _rule(function)
    if lower is None and operator.facts.positive_semidefinite:
        lower = 0.0
    end = -math.inf if lower is None else lower + damping
    if method == "auto":
        known, factor = operator.routes.entries is not None, operator.routes.factor
        short = factor is not None and factor.num_columns < min(operator.dim, CHEAP_DIM)
        cheap = (known and operator.dim <= CHEAP_DIM) or short or operator.dim <= _PILOT * _FIRST_STEPS
        method = "exact" if cheap else "quadrature"
    what = f"trace of {rule.name}" if rule.name != "log" else "log-determinant"
    if method == "exact":
        values, scale, products = _all_eigenvalues(operator)
        rounding = rounding_units(operator) * max(scale, float(np.abs(values).max()))
        if values.min() < (-math.inf if lower is None else lower) - 100 * rounding:
            raise SelfCheckError(
                f"{operator.name} has the eigenvalue {values.min():.3g}, below the promised bound {lower:.3g}."
            )
        if not rule.defined(end):
            if not rule.defined(values.min() + damping, rounding):
                raise _undefined(operator, rule, f"its smallest eigenvalue is {values.min():.3g}")
            end = max(values.min() + damping - rounding, 0.0)
        low, high = rule.sums(values[None] + damping, np.ones((1, 1)), rounding, end)
        value = float(rule.values(np.maximum(values + damping, end)).sum())
        return estimate(operator, what, value, min(low, value), max(high, value), method, products, started)
    if rule.certified and end == -math.inf:
        raise _undefined(operator, rule, "no lower bound of its eigenvalues is known (pass a proven one as lower)")
    if not rule.defined(end):
        raise _undefined(operator, rule, f"its eigenvalues may reach {end:.3g}")
    demand(method, max_products, _PILOT * min(_FIRST_STEPS, operator.dim))
    generator = generator_of(seed)
    return _by_quadrature(operator, rule, what, damping, end, relative_error, max_products, generator, started)


@dataclass(frozen=True)
class _Rule:
    """A function, and on which side of the truth its Gauss rule lies: ``True`` above, ``None`` unknown."""

    name: str
    values: Callable[[np.ndarray], np.ndarray]
    gauss_above: bool | None = None
    increasing: bool = True
    least_steps: int = 1
    domain: str = "real"  # or "positive", or "not negative"

    @property
    def certified(self) -> bool:
        return self.gauss_above is not None

    def defined(self, end: float, rounding: float = 0.0) -> bool:
        """Whether it exists on a spectrum that reaches down to ``end``."""
        return self.domain == "real" or (end > rounding if self.domain == "positive" else end >= -rounding)

    def at(self, nodes: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The rule itself, one sum for each row."""
        return (weights * self.values(nodes)).sum(axis=-1)

    def moved(self, nodes: np.ndarray, rounding: float, *, above: bool) -> np.ndarray:
        """Nodes moved by their rounding to the side that makes the rule larger, or smaller."""
        return nodes + (rounding if above == self.increasing else -rounding)

    def sums(self, nodes: np.ndarray, weights: np.ndarray, rounding: float, end: float) -> tuple[float, float]:
        """The sum at nodes that are known up to rounding, from below and from above."""
        if self.certified:
            moved = (np.maximum(self.moved(nodes, rounding, above=above), end) for above in (False, True))
            low, high = (float(self.at(part, weights)[0]) for part in moved)
            return low, high
        found = float(self.at(np.maximum(nodes, end), weights)[0])
        moved = [self.values(np.maximum(nodes + change, end)) for change in (-rounding, rounding)]
        half = float(np.abs(moved[1] - moved[0]).sum())
        return found - half, found + half


def _rule(function: str | float | Callable) -> _Rule:
    if callable(function):
        return _Rule(getattr(function, "__name__", "a function"), function)
    if function == "log":
        return _Rule("log", np.log, gauss_above=True, domain="positive")
    if function == "inverse":
        function = -1.0
    if isinstance(function, str) or not math.isfinite(function) or function == 0:
        raise ConfigurationError(
            f"function must be 'log', 'inverse', a finite power other than 0, or a callable, got {function!r}."
        )
    power = float(function)
    if power > 0 and power.is_integer():  # a polynomial: its rule is exact, and lies on no side
        return _Rule(f"x^{power:g}", lambda x: x**power, least_steps=math.ceil(power) + 2)
    # The derivative of order j > p of x^p has the sign (-1)^(j - ceil(p)), or (-1)^j for p < 0; the Gauss rule is
    # below the truth where even ones are positive.
    return _Rule(
        f"x^{power:g}" if power != -1 else "inverse",
        lambda x: x**power,
        gauss_above=power > 0 and math.ceil(power) % 2 == 1,
        increasing=power > 0,
        least_steps=max(1, math.ceil(power)),
        domain="positive" if power < 0 else "not negative",
    )


def _by_quadrature(
    operator: SymmetricOperator,
    rule: _Rule,
    what: str,
    damping: float,
    end: float,
    relative_error: float,
    max_products: int,
    generator: torch.Generator,
    started: float,
) -> Estimate:
    probes = normal(operator.dim, _PILOT, generator)
    steps, used = min(max(_FIRST_STEPS, rule.least_steps), operator.dim), 0
    while True:
        below, above = _quadratures(operator, rule, probes, steps, damping, end)
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
        rest = _quadratures(operator, rule, normal(operator.dim, more, generator), steps, damping, end)
        below, above = np.concatenate([below, rest[0]]), np.concatenate([above, rest[1]])
        used += more * steps
    count = len(below)
    middle = (below + above) / 2
    value = float(middle.mean())
    stein = pilot / count**0.5
    rounding = rounding_units(operator) * abs(value)
    low = min(mean_interval(below)[0], float(below.mean()) - stein) - rounding
    high = max(mean_interval(above)[1], float(above.mean()) + stein) + rounding
    return estimate(
        operator,
        what,
        value,
        low,
        high,
        "quadrature",
        used,
        started,
        spread(middle) / count**0.5,
        count,
        quadrature_error=float((above - below).mean()) / 2,
        converged=(high - low) / 2 <= relative_error * abs(value),
        note=f"{steps} Lanczos steps"
        + ("" if rule.certified else "; the quadrature part is the change over the last half of them, not a bound"),
    )


def _quadratures(
    operator: SymmetricOperator, rule: _Rule, probes: Tensor, steps: int, damping: float, end: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bound of ``D q^T f(A + damping) q`` for each unit probe; both ``(P,)``."""
    group = max(1, _AT_ONCE // (steps * operator.dim))
    parts = [_tridiagonal(operator, part, steps) for part in probes.split(group, dim=1)]
    diagonal, off_diagonal = (np.concatenate(part) for part in zip(*parts, strict=True))
    diagonal = diagonal + damping
    nodes, weights = _gauss(diagonal, off_diagonal)
    rounding = rounding_units(operator) * float(np.abs(nodes).max())
    if nodes.min() < end - 10 * rounding:
        raise SelfCheckError(
            f"{operator.name} has an eigenvalue of at most {nodes.min() - damping:.3g}, below the promised lower bound "
            f"{end - damping:.3g}."
        )
    if not rule.certified:
        found = rule.at(np.maximum(nodes, end), weights)
        half = max(1, steps // 2)
        nodes, weights = _gauss(diagonal[:, :half], off_diagonal[:, : half - 1])
        change = 0.0 if steps == operator.dim else np.abs(rule.at(np.maximum(nodes, end), weights) - found)
        return operator.dim * (found - change), operator.dim * (found + change)
    # Logarithm, inverse and square root are operator monotone (Loewner): moving all nodes one way bounds what any
    # perturbation of the tridiagonal matrix of that norm can do, to the weights as well.
    gauss = rule.at(np.maximum(rule.moved(nodes, rounding, above=rule.gauss_above), end), weights)
    # A node a little below the spectrum, so that rounding does not put it inside.
    raised = gauss_radau(diagonal + rounding, off_diagonal, end)
    nodes, weights = _gauss(raised, off_diagonal)
    if end > 4 * rounding:
        radau = rule.at(rule.moved(nodes - rounding, rounding, above=not rule.gauss_above), weights)
    else:
        # No room below: the raised matrix itself, and |f(A + X) - f(A)| <= |f(|X|) - f(0)| (Ando 1988) for raising it.
        ends = np.array([end, float(np.abs(nodes).max())])
        change = np.abs(rule.values(ends + 2 * rounding) - rule.values(ends)).max()
        radau = rule.at(np.maximum(nodes, end), weights) + (-change if rule.gauss_above else change)
    below, above = (radau, gauss) if rule.gauss_above else (gauss, radau)
    return operator.dim * below, operator.dim * above


def _tridiagonal(operator: SymmetricOperator, probes: Tensor, steps: int) -> tuple[np.ndarray, np.ndarray]:
    starts = probes.to(operator.device, operator.dtype)
    diagonal, off_diagonal = (part.double().cpu().numpy() for part in lanczos(operator, starts, steps))
    # Past an exhausted Krylov space come zeros that belong to no eigenvalue; they have no weight, but must be harmless.
    done = np.concatenate([np.zeros((len(diagonal), 1), bool), np.cumsum(off_diagonal == 0, axis=1) > 0], axis=1)
    return np.where(done, diagonal[:, :1], diagonal), off_diagonal


def _gauss(diagonal: np.ndarray, off_diagonal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = diagonal.shape[1]
    matrices = np.zeros((len(diagonal), size, size))
    index = np.arange(size)
    matrices[:, index, index] = diagonal
    matrices[:, index[1:], index[:-1]] = off_diagonal  # LAPACK reads the lower triangle
    nodes, vectors = np.linalg.eigh(matrices)
    return nodes, vectors[:, 0] ** 2


def _all_eigenvalues(operator: SymmetricOperator) -> tuple[np.ndarray, float, int]:
    """All eigenvalues in float64, what their rounding is relative to if more than their size, and the products."""
    factor = operator.routes.factor
    if operator.kept is None and factor is not None and factor.num_columns < operator.dim:
        gram, scale = operator.scaled_gram()
        found = eigenvalues(gram.cpu().numpy()).astype(np.float64)
        return np.concatenate([np.zeros(operator.dim - len(found)), found]), scale, 0
    known = operator.routes.entries is not None
    return eigenvalues(operator.entries().cpu().numpy()).astype(np.float64), 0.0, 0 if known else operator.dim


def _undefined(operator: SymmetricOperator, rule: _Rule, why: str) -> NotDefinedError:
    return NotDefinedError(
        f"the {rule.name} of {operator.name} needs eigenvalues known to be positive, but {why}: raise the damping, or "
        "look at the indefinite spectrum itself."
    )
