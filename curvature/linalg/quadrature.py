"""Gauss and Gauss-Radau rules of Lanczos: for each probe, bounds of the quadratic form of a function of a matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from curvature.arrays import Float, Float64
from curvature.errors import SelfCheckError
from curvature.linalg.intervals import rounding_units
from curvature.linalg.lanczos import lanczos
from curvature.linalg.operator import SymmetricOperator
from curvature.linalg.spectral_functions import SpectralFunction
from curvature.records.bounds import gauss_radau

__all__ = ["DampedFunction", "quadratures"]

_AT_ONCE = 2**28  # numbers in the Lanczos bases of one group of probes


@dataclass(frozen=True)
class DampedFunction:
    r"""$f(A + \delta I)$.

    Attributes
    ----------
    operator
        $A$.
    function
        $f$.
    damping
        $\delta$.
    end
        A proven lower end of the spectrum of $A + \delta I$; minus infinity where none is known.
    """

    operator: SymmetricOperator
    function: SpectralFunction
    damping: float
    end: float


def quadratures(
    problem: DampedFunction, probes: Float[Tensor, "dim probes"], steps: int
) -> tuple[Float64[np.ndarray, "probes"], Float64[np.ndarray, "probes"]]:
    r"""Bound $D\, q^T f(A + \delta I)\, q$ for each probe, from below and from above.

    Parameters
    ----------
    problem
        Matrix, function and damping.
    probes
        Start vectors, ``(D, P)``; each is scaled to unit length.
    steps
        Lanczos steps.

    Returns
    -------
    tuple of ndarray
        Both ``(P,)``. For a function whose derivatives have unknown signs they are the rule minus and plus its change
        over the last half of the steps, which is no bound.

    Raises
    ------
    SelfCheckError
        If a Ritz value lies below the promised end of the spectrum.

    Notes
    -----
    Costs ``steps`` block products with the probes.
    """
    operator, function, end = problem.operator, problem.function, problem.end
    group = max(1, _AT_ONCE // (steps * operator.dim))
    parts = [_tridiagonal(operator, part, steps) for part in probes.split(group, dim=1)]
    diagonal, off_diagonal = (np.concatenate(part) for part in zip(*parts, strict=True))
    diagonal = diagonal + problem.damping
    nodes, weights = gauss(diagonal, off_diagonal)
    rounding = rounding_units(operator) * float(np.abs(nodes).max())
    if nodes.min() < end - 10 * rounding:
        raise SelfCheckError(
            f"{operator.name} has an eigenvalue of at most {nodes.min() - problem.damping:.3g}, below the promised "
            f"lower bound {end - problem.damping:.3g}."
        )
    if function.certified:
        below, above = _enclosure(problem, diagonal, off_diagonal, nodes, weights)
        return operator.dim * below, operator.dim * above
    middle = function.rule(np.maximum(nodes, end), weights)
    if steps == operator.dim:
        return operator.dim * middle, operator.dim * middle
    half = max(1, steps // 2)
    nodes, weights = gauss(diagonal[:, :half], off_diagonal[:, : half - 1])
    change = np.abs(function.rule(np.maximum(nodes, end), weights) - middle)
    return operator.dim * (middle - change), operator.dim * (middle + change)


def _enclosure(
    problem: DampedFunction,
    diagonal: np.ndarray,
    off_diagonal: np.ndarray,
    nodes: np.ndarray,
    weights: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bound by the Gauss rule and by the Gauss-Radau rule with a node at the end of the spectrum."""
    function, end = problem.function, problem.end
    gauss_above = bool(function.gauss_above)
    rounding = rounding_units(problem.operator) * float(np.abs(nodes).max())
    # Logarithm, inverse and square root are operator monotone (Loewner): moving all nodes one way bounds what any
    # perturbation of the tridiagonal matrix of that norm can do, to the weights as well.
    by_gauss = function.rule(np.maximum(function.moved(nodes, rounding, above=gauss_above), end), weights)
    # A node a little below the spectrum, so that rounding does not put it inside.
    raised = gauss_radau(diagonal + rounding, off_diagonal, end)
    nodes, weights = gauss(raised, off_diagonal)
    if end > 4 * rounding:
        by_radau = function.rule(function.moved(nodes - rounding, rounding, above=not gauss_above), weights)
    else:
        # No room below: the raised matrix itself, and |f(A + X) - f(A)| <= |f(|X|) - f(0)| (Ando 1988) for raising it.
        ends = np.array([end, float(np.abs(nodes).max())])
        change = np.abs(function.values(ends + 2 * rounding) - function.values(ends)).max()
        by_radau = function.rule(np.maximum(nodes, end), weights) + (-change if gauss_above else change)
    return (by_radau, by_gauss) if gauss_above else (by_gauss, by_radau)


def _tridiagonal(operator: SymmetricOperator, probes: Tensor, steps: int) -> tuple[np.ndarray, np.ndarray]:
    starts = probes.to(operator.device, operator.dtype)
    diagonal, off_diagonal = (part.double().cpu().numpy() for part in lanczos(operator, starts, steps))
    # Past an exhausted Krylov space come zeros that belong to no eigenvalue; they have no weight, but must be harmless.
    done = np.concatenate([np.zeros((len(diagonal), 1), bool), np.cumsum(off_diagonal == 0, axis=1) > 0], axis=1)
    return np.where(done, diagonal[:, :1], diagonal), off_diagonal


def gauss(
    diagonal: Float64[np.ndarray, "probes steps"], off_diagonal: Float64[np.ndarray, "probes steps-1"]
) -> tuple[Float64[np.ndarray, "probes steps"], Float64[np.ndarray, "probes steps"]]:
    """Return nodes and weights of the Gauss rules of tridiagonal matrices.

    Parameters
    ----------
    diagonal, off_diagonal
        Shapes ``(P, m)`` and ``(P, m - 1)``.

    Returns
    -------
    tuple of ndarray
        Eigenvalues, and squares of the first components of the eigenvectors, both ``(P, m)``.
    """
    size = diagonal.shape[1]
    matrices = np.zeros((len(diagonal), size, size))
    index = np.arange(size)
    matrices[:, index, index] = diagonal
    matrices[:, index[1:], index[:-1]] = off_diagonal  # LAPACK reads the lower triangle
    nodes, vectors = np.linalg.eigh(matrices)
    return nodes, vectors[:, 0] ** 2
