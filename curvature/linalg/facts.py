"""What is known of a matrix besides its products: data that its builder hands over, never a way back to the builder.

Numbers, and thunks that give a tensor when it is first asked for. The linear algebra reads them and does not know what
a model or a chart is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from curvature.linalg.checks import Witness

__all__ = ["Facts", "NullSpace"]


@dataclass(frozen=True, eq=False)
class NullSpace:
    """Directions that are null by construction; each is verified by a product before it counts.

    Attributes
    ----------
    basis
        Orthonormal, ``(D, z)``.
    reasons
        How many directions each reason brought; a direction that two reasons share counts once.
    """

    basis: Tensor = field(repr=False)
    reasons: Mapping[str, int]

    @property
    def dim(self) -> int:
        """Number of independent directions."""
        return self.basis.shape[1]


@dataclass(frozen=True, eq=False)
class Facts:
    r"""What the definition of a matrix guarantees.

    Attributes
    ----------
    positive_semidefinite
        True where the definition guarantees it.
    rank_bound
        An upper bound of the rank, e.g. ``N (C - 1)``.
    null_space
        Gives the directions that are null by construction.
    num_null_directions
        How many these will probably be.
    rank_note
        What a line about the rank of this matrix adds to that of ``same_rank``.
    gradient
        Gives the gradient of the loss in the same coordinates, ``(D,)``.
    scale
        Gives what rounding is relative to, where that may be more than the norm: the terms of a difference are larger
        than what they leave.
    centred
        Whether the columns of the factor had the gradient, their mean, taken out: the cancellation amplifies rounding.
    witnesses
        Other ways to ``V^T A V`` that the products must agree with; see :mod:`curvature.linalg.checks`.
    diagnose
        ``block -> sentence``: where a product that is NaN or infinite comes from.
    """

    positive_semidefinite: bool = False
    rank_bound: int | None = None
    null_space: Callable[[], NullSpace] | None = field(default=None, repr=False)
    num_null_directions: int = 0
    rank_note: str = ""
    gradient: Callable[[], Tensor] | None = field(default=None, repr=False)
    scale: Callable[[], float] | None = field(default=None, repr=False)
    centred: bool = False
    witnesses: tuple[Witness, ...] = field(default=(), repr=False)
    diagnose: Callable[[Tensor], str] | None = field(default=None, repr=False)
