"""A damping in one of its two forms: absolute, or relative to the mean eigenvalue."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from curvature.errors import ConfigurationError

__all__ = ["RELATIVE_DAMPING", "Damping"]

RELATIVE_DAMPING = 1e-3  # of the natural gradient, where the caller gives none


@dataclass(frozen=True)
class Damping:
    r"""The multiple of the identity that is added to a matrix, in the form that the caller gave.

    Attributes
    ----------
    value
        $\lambda$ in $A + \lambda I$, in the unit of the eigenvalues, or $a$ in $\lambda = a \operatorname{tr}(A) / D$.
    is_relative
        Whether it is $a$.

    Examples
    --------
    >>> Damping(0.1, is_relative=True).absolute(trace=10.0, dim=2), Damping(0.5).relative(trace=10.0, dim=2)
    (0.5, 0.1)
    """

    value: float
    is_relative: bool = False

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
            The one that was given.

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
        if damping is not None:
            name, value = "damping", damping
        else:
            name, value = "relative_damping", default if relative_damping is None else relative_damping
        if not (value >= 0 if zero else value > 0) or math.isinf(value):
            allowed = "finite and not negative" if zero else "positive and finite"
            raise ConfigurationError(f"{name} must be {allowed}, got {value}.")
        return cls(value, is_relative=damping is None)

    @property
    def damping(self) -> float | None:
        """The absolute form, where that was given."""
        return None if self.is_relative else self.value

    @property
    def relative_damping(self) -> float | None:
        """The relative form, where that was given."""
        return self.value if self.is_relative else None

    def absolute(self, trace: float, dim: int) -> float:
        """Convert to the unit of the eigenvalues.

        Parameters
        ----------
        trace, dim
            Of the matrix.

        Returns
        -------
        float
            What is added to each eigenvalue.
        """
        return self.value * trace / dim if self.is_relative else self.value

    def relative(self, trace: float, dim: int) -> float:
        """Convert to units of the mean eigenvalue.

        Parameters
        ----------
        trace, dim
            Of the matrix.

        Returns
        -------
        float
            Share of the mean eigenvalue.
        """
        return self.value if self.is_relative else self.value * dim / trace

    def divided(self, scale: float) -> Damping:
        """Damp the matrix divided by a number.

        Parameters
        ----------
        scale
            What the matrix is divided by.

        Returns
        -------
        Damping
            A relative damping stays as it is.
        """
        return self if self.is_relative else replace(self, value=self.value / scale)

    def __bool__(self) -> bool:
        return self.value != 0

    def __str__(self) -> str:
        return f"relative damping={self.value:g}" if self.is_relative else f"damping={self.value:g}"
