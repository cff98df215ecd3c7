"""A damping in either of its two forms: absolute, or relative to the mean eigenvalue."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from curvature.errors import ConfigurationError

__all__ = ["RELATIVE_DAMPING", "Damping"]

RELATIVE_DAMPING = 1e-3  # default of the natural gradient


@dataclass(frozen=True)
class Damping:
    r"""Multiple of the identity that is added to a matrix, in the form in which it was given.

    Attributes
    ----------
    value
        $\lambda$ in $A + \lambda I$, in the unit of the eigenvalues, or $a$ with $\lambda = a \operatorname{tr}(A)/D$.
    is_relative
        Whether ``value`` is $a$.

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
        """Read the two damping arguments of a function.

        Parameters
        ----------
        damping, relative_damping
            The arguments; at most one of them may be set.
        default
            Relative damping if both are None.
        zero
            Whether a damping of zero is allowed.

        Returns
        -------
        Damping
            The damping that is set, or the default.

        Raises
        ------
        ConfigurationError
            If both are set, or the value is not finite and positive (with ``zero``: not negative).
        """
        if damping is not None and relative_damping is not None:
            raise ConfigurationError(
                f"damping={damping:g} and relative_damping={relative_damping:g} both set the damping. Give damping (in "
                "the unit of the eigenvalues) or relative_damping (a multiple of the mean eigenvalue), not both."
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
        """The absolute damping; None if it is relative."""
        return None if self.is_relative else self.value

    @property
    def relative_damping(self) -> float | None:
        """The relative damping; None if it is absolute."""
        return self.value if self.is_relative else None

    def absolute(self, trace: float, dim: int) -> float:
        """Convert to the unit of the eigenvalues.

        Parameters
        ----------
        trace, dim
            Trace and dimension of the matrix.

        Returns
        -------
        float
            The number that is added to each eigenvalue.
        """
        return self.value * trace / dim if self.is_relative else self.value

    def relative(self, trace: float, dim: int) -> float:
        """Convert to a multiple of the mean eigenvalue.

        Parameters
        ----------
        trace, dim
            Trace and dimension of the matrix.

        Returns
        -------
        float
            Multiple of the mean eigenvalue.
        """
        return self.value if self.is_relative else self.value * dim / trace

    def divided(self, scale: float) -> Damping:
        """Convert to the damping of the same matrix divided by a number.

        Parameters
        ----------
        scale
            Divisor of the matrix.

        Returns
        -------
        Damping
            An absolute damping is divided too; a relative one does not change.
        """
        return self if self.is_relative else replace(self, value=self.value / scale)

    def __bool__(self) -> bool:
        return self.value != 0

    def __str__(self) -> str:
        return f"relative damping={self.value:g}" if self.is_relative else f"damping={self.value:g}"
