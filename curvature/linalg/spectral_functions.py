"""Functions of eigenvalues, and on which side of the truth their Gauss rules lie."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from curvature.arrays import Float, Float64
from curvature.errors import ConfigurationError

__all__ = ["Function", "SpectralFunction", "spectral_function"]

Function = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class SpectralFunction:
    """A function of the eigenvalues of a matrix.

    Attributes
    ----------
    name
        For records and messages.
    values
        The function on an array.
    gauss_above
        Whether its Gauss rule lies above the truth (True), below (False), or on no known side (None).
    increasing
        Whether it increases.
    least_steps
        Lanczos steps below which ``gauss_above`` does not hold.
    domain
        ``"real"``, ``"positive"`` or ``"not negative"``: where it exists.
    """

    name: str
    values: Function
    gauss_above: bool | None = None
    increasing: bool = True
    least_steps: int = 1
    domain: str = "real"

    @property
    def certified(self) -> bool:
        """Whether Gauss and Gauss-Radau rules enclose the truth."""
        return self.gauss_above is not None

    def defined(self, end: float, rounding: float = 0.0) -> bool:
        """Whether it exists on a spectrum.

        Parameters
        ----------
        end
            Lower end of the spectrum.
        rounding
            How far that may be off.

        Returns
        -------
        bool
            True where the whole spectrum is in the domain.
        """
        return self.domain == "real" or bool(end > rounding if self.domain == "positive" else end >= -rounding)

    def rule(
        self, nodes: Float64[np.ndarray, "probes steps"], weights: Float64[np.ndarray, "probes steps"]
    ) -> Float64[np.ndarray, "probes"]:
        """Sum of weighted values at the nodes.

        Parameters
        ----------
        nodes, weights
            Shape ``(P, m)``.

        Returns
        -------
        ndarray
            One sum for each row, ``(P,)``.
        """
        return (weights * self.values(nodes)).sum(axis=-1)

    def moved(
        self, nodes: Float64[np.ndarray, "*points"], rounding: float, *, above: bool
    ) -> Float64[np.ndarray, "*points"]:
        """Nodes moved by their rounding.

        Parameters
        ----------
        nodes
            Any shape.
        rounding
            How far they may be off.
        above
            Move them to the side that makes the sum larger (True) or smaller.

        Returns
        -------
        ndarray
            Of the shape of ``nodes``.
        """
        return nodes + (rounding if above == self.increasing else -rounding)

    def sums(self, eigenvalues: Float[np.ndarray, "dim"], rounding: float, end: float) -> tuple[float, float]:
        """Bound the sum over eigenvalues that are known up to rounding.

        Parameters
        ----------
        eigenvalues
            All of them, ``(D,)``.
        rounding
            How far each may be off.
        end
            Lower end of the spectrum; a computed eigenvalue below it is rounding.

        Returns
        -------
        tuple
            Lower and upper bound.
        """
        if self.certified:
            low, high = (
                float(self.values(np.maximum(self.moved(eigenvalues, rounding, above=above), end)).sum())
                for above in (False, True)
            )
            return low, high
        middle = float(self.values(np.maximum(eigenvalues, end)).sum())
        down, up = (self.values(np.maximum(eigenvalues + change, end)) for change in (-rounding, rounding))
        half = float(np.abs(up - down).sum())
        return middle - half, middle + half


def spectral_function(function: str | float | Function) -> SpectralFunction:
    """Recognize a function by name, exponent or callable.

    Parameters
    ----------
    function
        ``"log"``, ``"inverse"``, a finite exponent other than 0, or a callable on arrays.

    Returns
    -------
    SpectralFunction
        With the side of its Gauss rule, where the signs of its derivatives are known.

    Raises
    ------
    ConfigurationError
        If it is none of these.
    """
    if callable(function):
        return SpectralFunction(getattr(function, "__name__", "a function"), function)
    if function == "log":
        return SpectralFunction("log", np.log, gauss_above=True, domain="positive")
    if function == "inverse":
        function = -1.0
    if isinstance(function, str) or not math.isfinite(function) or function == 0:
        raise ConfigurationError(
            f"function must be 'log', 'inverse', a finite power other than 0, or a callable, got {function!r}."
        )
    power = float(function)
    if power > 0 and power.is_integer():  # a polynomial: its rule is exact, and lies on no side
        return SpectralFunction(f"x^{power:g}", lambda x: x**power, least_steps=math.ceil(power) + 2)
    # The derivative of order j > p of x^p has the sign (-1)^(j - ceil(p)), or (-1)^j for p < 0; the Gauss rule is
    # below the truth where even ones are positive.
    return SpectralFunction(
        f"x^{power:g}" if power != -1 else "inverse",
        lambda x: x**power,
        gauss_above=power > 0 and math.ceil(power) % 2 == 1,
        increasing=power > 0,
        least_steps=max(1, math.ceil(power)),
        domain="positive" if power < 0 else "not negative",
    )
