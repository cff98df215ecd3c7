"""One number with its status, and one self-check."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Check", "Quantity"]


@dataclass(frozen=True)
class Quantity:
    """One number with its status; never a bare float.

    Attributes
    ----------
    value
        The number; NaN where there is none.
    status
        ======================  ================================================================================
        ``resolved``            the number, up to the interval
        ``lower_bound``         at least this: of a ratio, what it divides by is known from above only
        ``upper_bound_only``    at most this
        ``below_noise_floor``   cannot be told from zero: its absolute value is below ``high``
        ``unresolved``          computed, but it depends on digits, or on a rank, that nobody knows
        ``indefinite``          no number: the matrix has eigenvalues of both signs
        ``undefined``           no number for another reason
        ======================  ================================================================================
    note
        Why, where it is not resolved.
    low, high
        Interval that holds the truth, with ``high`` infinite where nothing bounds it; None where none is known.
    method
        What the interval rests on.

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
        """The interval as text, empty where none is known."""
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
    """One self-check or identity: what was compared, how far apart it was, and how far it may be.

    ``claim`` names the claim that this check is a measurement of (``"C4"``, ``"C5"``, ``"C6"``), if any; ``rounding``
    is the largest ``|A v - A' v| / |A v|`` where two products were compared whole, not only along other vectors.
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
