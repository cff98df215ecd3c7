"""The record of one number of a matrix, exact or estimated, with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from curvature.arrays import Float
from curvature.records.validation import require
from curvature.records.where import Located, Where

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate(Located):
    r"""One number of a matrix, or one per coordinate, with an interval that contains it.

    Attributes
    ----------
    what
        ``"trace"``, ``"diagonal"``, ``"log-determinant"``, ...
    value, low, high
        The number and its interval; arrays ``(D,)`` for a diagonal, whose intervals hold entry by entry.
    level
        Probability, over the random probes, that the interval contains the true value; 1 for exact and certified
        values.
    method
        ``"exact"`` (the interval is rounding), or the name of the estimator.
    where
        Header: matrix, chart, gauge, block.
    dim
        Dimension of the matrix.
    standard_error
        Standard error of ``value`` over probes; 0 where nothing is random.
    quadrature_error
        Half the width of the part of the interval that more Lanczos steps would remove, as opposed to more probes.
    num_products, num_probes
        Products with the matrix, and independent probes among them.
    converged
        Whether the requested precision was reached; True if none was requested.
    note
        Cautions.
    seconds
        Time of the computation.
    """

    what: str
    value: float | Float[np.ndarray, "dim"]
    low: float | Float[np.ndarray, "dim"]
    high: float | Float[np.ndarray, "dim"]
    level: float
    method: str
    where: Where
    dim: int
    standard_error: float | Float[np.ndarray, "dim"] = 0.0
    quadrature_error: float = 0.0
    num_products: int = 0
    num_probes: int = 0
    converged: bool = True
    note: str = ""
    seconds: float = math.nan

    def validate(self) -> None:
        """Check that the numbers fit together; every reader of a file calls it.

        Raises
        ------
        ValueError
            If value and interval have different shapes, an interval is empty, or the level is not a probability.
        """
        shapes = {np.shape(part) for part in (self.value, self.low, self.high)}
        require(len(shapes) == 1, f"value, low and high have the shapes {sorted(shapes)}")
        require(not np.any(np.greater(self.low, self.high)), "low is above high")
        require(0 <= self.level <= 1, f"the level is {self.level}, not a probability")

    def __repr__(self) -> str:
        return f"Estimate({self})"

    @property
    def exact(self) -> bool:
        """Whether the value is exact up to rounding."""
        return self.method == "exact"

    def __str__(self) -> str:
        total = "sum over examples" if self.reduction == "sum" else ""
        matrix = ", ".join(filter(None, (self.matrix, total, self.penalty)))
        if np.ndim(self.value):
            return f"{self.what} of {matrix}: {self.dim} entries, {self.method}"
        how = self.method if self.exact else f"{100 * self.level:g} %, {self.method}"
        return f"{self.what} of {matrix}: {self.value:.6g} in [{self.low:.6g}, {self.high:.6g}] ({how})"
