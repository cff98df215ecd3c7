"""A number with its status and interval, and the result of a self-check."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from curvature.errors import UnresolvedError

__all__ = ["Check", "Quantity"]


# How each status begins where a number was asked for.
_REFUSALS = {
    "lower_bound": "only a lower bound is known, {value}",
    "upper_bound_only": "only an upper bound is known, {value}",
    "below_noise_floor": "it is below the noise floor, {value}: it cannot be told from zero",
    "unresolved": "it is not resolved, {value}",
    "indefinite": "the matrix has eigenvalues of both signs",
    "undefined": "it is undefined",
}


@dataclass(frozen=True)
class Quantity(NDArrayOperatorsMixin):
    """A number with its status and the interval that contains it; where it is resolved, it behaves like a float.

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

    Notes
    -----
    ``float``, ``round``, arithmetic and NumPy take the value of a resolved quantity, and the result is a plain number
    without an interval. Of any other quantity they raise :class:`curvature.UnresolvedError`, which says why; ``value``
    is what was computed. ``==`` compares all fields.

    ``<``, ``<=``, ``>`` and ``>=`` compare intervals, and bounds where only a bound is known: ``quantity > 1e8`` is
    True or False if every number that the quantity may be agrees, and raises otherwise. A resolved quantity without an
    interval is its value.

    Examples
    --------
    >>> str(Quantity(1e-17, "below_noise_floor", low=-1e-15, high=1e-15)), str(Quantity(2e9, "lower_bound"))
    ('< 1e-15', '> 2e+09')
    >>> float(Quantity(8.0)), float(Quantity(8.0) / 2), f"{Quantity(8.0):.2f}"
    (8.0, 4.0, '8.00')
    >>> Quantity(2e9, "lower_bound") > 1e8
    True
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
        return self._marked(shown)

    def __format__(self, specification: str) -> str:
        if not specification:
            return str(self)
        if self.status == "below_noise_floor" and self.high is not None:
            return f"< {self.high:{specification}}"
        return self._marked(f"{self.value:{specification}}") if self.has_value else self.status

    def __float__(self) -> float:
        if self.status == "resolved":
            return float(self.value)
        reason = _REFUSALS.get(self.status, self.status).format(value=self)
        raise UnresolvedError(
            f"This quantity has no number to compute with: {reason}{f' ({self.note})' if self.note else ''}. "
            "Print it, or use .value with .status."
        )

    def __round__(self, digits: int | None = None) -> float:
        return round(float(self), digits)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if dtype is not None and np.dtype(dtype) == object:  # a column of quantities, as of pandas
            held = np.empty((), object)
            held[()] = self
            return held
        return np.asarray(float(self), dtype=dtype)

    def __array_ufunc__(self, function: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        numbers = [float(item) if isinstance(item, Quantity) else item for item in inputs]
        return getattr(function, method)(*numbers, **options)

    def __lt__(self, other: Any) -> Any:
        return self._compared(other, operator.lt)

    def __le__(self, other: Any) -> Any:
        return self._compared(other, operator.le)

    def __gt__(self, other: Any) -> Any:
        return self._compared(other, operator.gt)

    def __ge__(self, other: Any) -> Any:
        return self._compared(other, operator.ge)

    def _compared(self, other: Any, compare: Callable[[Any, Any], bool]) -> Any:
        """The answer that holds for every number that both sides may be."""
        if not isinstance(other, Quantity):
            if np.ndim(other):  # an array decides element by element
                return compare(float(self), other)
            other = Quantity(float(other))
        if self is other and self.has_value:
            return compare(0, 0)
        if self.has_value and other.has_value:
            (low, high), (other_low, other_high) = self._possible, other._possible
            answers = {compare(low, other_high), compare(high, other_low)}
            if len(answers) == 1:
                return answers.pop()
        sign = {operator.lt: "<", operator.le: "<=", operator.gt: ">", operator.ge: ">="}[compare]
        notes = "; ".join(quantity.note for quantity in (self, other) if quantity.note)
        raise UnresolvedError(
            f"({self._range}) {sign} ({other._range}) has no answer: what is known allows both"
            f"{f' ({notes})' if notes else ''}. Compare .value to ignore this."
        )

    @property
    def _possible(self) -> tuple[float, float]:
        """Smallest and largest number that it may be."""
        low, high = self.low, self.high
        if self.status == "resolved":
            return self.value if low is None else low, self.value if high is None else high
        if self.status == "lower_bound":
            return self.value if low is None else low, np.inf
        if self.status == "upper_bound_only":
            return -np.inf if low is None else low, self.value if high is None else high
        return -np.inf if low is None else low, np.inf if high is None else high

    @property
    def _range(self) -> str:
        return f"{self}, in {self.interval}" if self.interval and self.has_value else str(self)

    def _marked(self, shown: str) -> str:
        """The digits with the sign of what is known about them."""
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
