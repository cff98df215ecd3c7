"""A damping in one of its two forms: absolute, or relative to the mean eigenvalue."""

from __future__ import annotations

import math
from dataclasses import dataclass

from curvature.errors import ConfigurationError

__all__ = ["RELATIVE_DAMPING", "Damping"]

RELATIVE_DAMPING = 1e-3  # of the natural gradient, where the caller gives none


@dataclass(frozen=True)
class Damping:
    r"""The multiple of the identity that is added to a matrix, in the form that the caller gave.

    Attributes
    ----------
    damping
        $\lambda$ in $A + \lambda I$, in the unit of the eigenvalues; None where the relative form was given.
    relative_damping
        $a$ in $\lambda = a \operatorname{tr}(A) / D$; None where the absolute form was given.

    Examples
    --------
    >>> Damping(relative_damping=0.1).absolute(trace=9.0, dim=3), Damping(damping=0.3).relative(trace=9.0, dim=3)
    (0.3, 0.1)
    """

    damping: float | None = None
    relative_damping: float | None = None

    @classmethod
    def chosen(
        cls,
        damping: float | None,
        relative_damping: float | None,
        *,
        default: float = RELATIVE_DAMPING,
        zero: bool = False,
    ) -> Damping:
        """Read the two arguments of a function.

        Parameters
        ----------
        damping, relative_damping
            What the caller gave; at most one of them.
        default
            Relative damping where both are None.
        zero
            Whether no damping at all is allowed.

        Returns
        -------
        Damping
            With exactly one of its two forms.

        Raises
        ------
        ConfigurationError
            If both are given, or the value is not a positive finite number (with ``zero``: not negative).
        """
        if damping is not None and relative_damping is not None:
            raise ConfigurationError(
                f"damping={damping:g} and relative_damping={relative_damping:g} both set the damping. Give damping (in "
                "the unit of the eigenvalues) or relative_damping (times the mean eigenvalue), not both."
            )
        if damping is None and relative_damping is None:
            relative_damping = default
        name, value = ("damping", damping) if relative_damping is None else ("relative_damping", relative_damping)
        if not (value >= 0 if zero else value > 0) or math.isinf(value):
            allowed = "finite and not negative" if zero else "positive and finite"
            raise ConfigurationError(f"{name} must be {allowed}, got {value}.")
        return cls(damping, relative_damping)

    def absolute(self, trace: float, dim: int) -> float:
        """The damping in the unit of the eigenvalues, for a matrix with this trace and dimension."""
        return self.relative_damping * trace / dim if self.damping is None else self.damping

    def relative(self, trace: float, dim: int) -> float:
        """The damping in units of the mean eigenvalue, for a matrix with this trace and dimension."""
        return self.damping * dim / trace if self.relative_damping is None else self.relative_damping

    def __bool__(self) -> bool:
        return bool(self.damping or self.relative_damping)

    def __str__(self) -> str:
        if self.damping is None:
            return f"relative damping={self.relative_damping:g}"
        return f"damping={self.damping:g}"
