"""A number with its status and interval, and the result of a self-check."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Check", "Quantity"]


@dataclass(frozen=True)
class Quantity:
    """A number with its status and the interval that contains it.

    Attributes
    ----------
    value
        The number; NaN where there is none.
    status
        ======================  ================================================================================
        ``resolved``            known up to its interval
        ``lower_bound``         at least this; of a ratio, only an upper bound of the denominator is known
        ``upper_bound_only``    at most this
        ``below_noise_floor``   cannot be told from zero: its absolute value is below ``high``
        ``unresolved``          computed, but it depends on lost digits or on an unknown rank
        ``indefinite``          no number: the matrix has eigenvalues of both signs
        ``undefined``           no number for another reason
        ======================  ================================================================================
    note
        The reason, where it is not resolved.
    low, high
        Interval that contains the true value, ``high`` infinite where there is no upper bound; None where no interval
        is known.
    method
        How the interval was obtained.

    Examples
    --------
    >>> str(Quantity(1e-17, "below_noise_floor", low=-1e-15, high=1e-15)), str(Quantity(2e9, "lower_bound"))
    ('< 1e-15', '> 2e+09')
    """

    value: float
    status: str = "resolved"
    note: str = ""
    low: float | None = None
    high: float | None = None
    method: str = ""

    @property
    def has_value(self) -> bool:
        """Whether there is a number at all."""
        return self.status not in ("undefined", "indefinite")

    @property
    def interval(self) -> str:
        """The interval as text; empty where none is known."""
        known = self.low is not None and self.high is not None
        return f"[{self.low:.4g}, {self.high:.4g}]" if known else ""

    def __str__(self) -> str:
        if not self.has_value:
            return self.status
        if self.status == "below_noise_floor" and self.high is not None:
            return f"< {self.high:.2g}"
        shown = f"{self.value:.4g}"
        signs = {"lower_bound": f"> {shown}", "upper_bound_only": f"< {shown}", "unresolved": f"({shown})"}
        return signs.get(self.status, shown)


@dataclass(frozen=True)
class Check:
    """Result of a self-check or of a mathematical identity: a deviation and its tolerance.

    Attributes
    ----------
    name
        What was compared.
    value
        The deviation; NaN where it could not be computed.
    tolerance
        Largest deviation that passes.
    note
        Unit of the deviation, or why nothing was compared.
    claim
        Claim of the study that this check measures (``"C4"``, ``"C5"``, ``"C6"``), if any.
    rounding
        Largest ``|A v - A' v| / |A v|`` where whole products were compared; None where only ``V^T A V`` was.
    """

    name: str
    value: float
    tolerance: float
    note: str = ""
    claim: str = ""
    rounding: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the value is within the tolerance (NaN is not)."""
        return bool(self.value <= self.tolerance)
