"""Facts about a matrix that its builder supplies as data: definiteness, rank bounds, null directions, witnesses.

Facts are numbers, or functions without arguments that compute a tensor when it is first needed. Linear algebra reads
them without knowing models or charts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from curvature.arrays import Float
from curvature.linalg.checks import Witness
from curvature.linalg.routes import FactorRoute

__all__ = ["Facts", "NullSpace"]


@dataclass(frozen=True, eq=False)
class NullSpace:
    """Directions that should be null by construction; each is verified by a product before it counts.

    Attributes
    ----------
    basis
        Orthonormal columns, ``(D, z)``.
    reasons
        Number of directions by reason; a direction with two reasons counts for the first only.
    """

    basis: Float[Tensor, "dim null"] = field(repr=False)
    reasons: Mapping[str, int]

    @property
    def dim(self) -> int:
        """Number of independent directions."""
        return self.basis.shape[1]


@dataclass(frozen=True, eq=False)
class Facts:
    r"""Properties that the definition of a matrix guarantees, and independent computations of it.

    Attributes
    ----------
    positive_semidefinite
        True if the definition guarantees it.
    rank_bound
        An upper bound of the rank, e.g. ``N (C - 1)``.
    null_space
        Returns the directions that should be null by construction.
    num_null_directions
        Estimate of their number, for the planning of work.
    rank_factor
        Returns a factor that only shows the rank, for a matrix without a route by its factor, and whether it is
        complete: otherwise parts at the level of rounding were left out, and it shows the likely rank. None if there is
        no such factor.
    rank_note
        Addition to the rank rule of ``same_rank``, e.g. the null directions of a gauge.
    gradient
        Returns the gradient of the loss in the same coordinates, ``(D,)``.
    scale
        Returns the scale of rounding, if it may be more than the norm: the terms of a difference are larger than the
        difference.
    error
        Returns an estimate of the norm of the error of the entries, if they have one beyond rounding: those of finite
        differences.
    centred
        Whether the mean, which is the gradient, was subtracted from the columns of the factor: the cancellation
        amplifies rounding.
    witnesses
        Independent computations of ``V^T A V`` that the products must agree with; see :mod:`curvature.linalg.checks`.
    diagnose
        ``block -> sentence`` that explains where NaN or infinity in the product with ``block`` comes from.
    """

    positive_semidefinite: bool = False
    rank_bound: int | None = None
    null_space: Callable[[], NullSpace] | None = field(default=None, repr=False)
    num_null_directions: int = 0
    rank_factor: Callable[[], tuple[FactorRoute, bool] | None] | None = field(default=None, repr=False)
    rank_note: str = ""
    gradient: Callable[[], Tensor] | None = field(default=None, repr=False)
    scale: Callable[[], float] | None = field(default=None, repr=False)
    error: Callable[[], float] | None = field(default=None, repr=False)
    centred: bool = False
    witnesses: tuple[Witness, ...] = field(default=(), repr=False)
    diagnose: Callable[[Tensor], str] | None = field(default=None, repr=False)
