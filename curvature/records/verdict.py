"""Records of the evidence: the verdict on a claim, and the decomposition of a difference into its sources."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from curvature.arrays import Float64
from curvature.records.validation import require

__all__ = ["OUTCOMES", "Decomposition", "Verdict", "present_outcome"]

OUTCOMES = {"supported": "✓", "too small": "≈", "opposite": "✗", "undecided": "?", "not tested": "–"}  # and their icons


def present_outcome(outcome: str, high: float, threshold: float) -> str:
    """Translate the outcome of a verdict that an earlier version has stored.

    Parameters
    ----------
    outcome
        Version 0.1 wrote "inconclusive" for "undecided", and "refuted" for what is now either "too small" or
        "opposite".
    high, threshold
        Upper end of the interval that decided, and the threshold. Of an identity: the deviation and its tolerance.

    Returns
    -------
    str
        One of ``OUTCOMES``, or the word itself where it is unknown.

    Examples
    --------
    >>> present_outcome("refuted", -0.3, 0.1), present_outcome("refuted", 0.05, 0.1)
    ('opposite', 'too small')
    """
    if outcome == "inconclusive":
        return "undecided"
    if outcome != "refuted":
        return outcome
    return "opposite" if high < -threshold or high > threshold else "too small"


@dataclass(frozen=True)
class Verdict:
    r"""Outcome of the test of one claim, by a rule that was fixed before the measurements.

    Every paired number is oriented so that positive values support the claim. The rules are in
    :mod:`curvature.studies.evidence`.

    Attributes
    ----------
    claim, case
        ``"C1"`` to ``"C8"``, and the variant of the claim where there are several.
    sentence
        The tested statement.
    outcome
        ``"supported"``, ``"too small"`` (an effect of the claimed size is excluded), ``"opposite"`` (the reverse of the
        claim is shown), ``"undecided"``, or ``"not tested"`` (``note`` says what would be needed).
    rule
        The rule that decided, in words.
    unit
        Unit of ``estimate``, the interval and ``threshold``.
    method
        ``"student"`` (mean and t interval), ``"sign"`` (median, exact sign test; for numbers that may be bounds) or
        ``"identity"`` (largest deviation against a tolerance; no statistics).
    estimate, low, high, level
        Estimated effect, and the interval that decided. ``level`` is the level of this claim alone, at which Holm's
        step-down procedure compares it. ``low`` and ``high`` are infinite if there are too few pairs for an interval.
    p_value, adjusted_p_value
        Two-sided, against ``threshold``: of this claim alone, and after Holm's adjustment over the family.
    threshold
        Smallest effect that counts; for an identity, the tolerance.
    num_pairs, num_missing
        Pairs that entered, and pairs without a number (not resolved, not finite, or of different ranks).
    min_pairs
        Fewer pairs than this decide nothing.
    effects, ceilings
        Paired numbers by seed. Where a number is only known to lie between two bounds, these are the lower and the
        upper ones; ``ceilings`` is empty if no number is a bound.
    control, control_estimate, control_low, control_high, control_passed
        Control experiment, its result with a 95 % interval, and whether it came out as required; None if there is no
        such requirement.
    note
        Caution that a reader needs before quoting the verdict.
    """

    claim: str
    sentence: str
    outcome: str
    case: str = ""
    rule: str = ""
    unit: str = ""
    method: str = ""
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    level: float = math.nan
    p_value: float = math.nan
    adjusted_p_value: float = math.nan
    threshold: float = math.nan
    num_pairs: int = 0
    num_missing: int = 0
    min_pairs: int = 0
    effects: tuple[float, ...] = field(default=(), repr=False)
    ceilings: tuple[float, ...] = field(default=(), repr=False)
    control: str = ""
    control_estimate: float = math.nan
    control_low: float = math.nan
    control_high: float = math.nan
    control_passed: bool | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """Claim and case: ``"C1, own training"``."""
        return f"{self.claim}, {self.case}" if self.case else self.claim

    @property
    def icon(self) -> str:
        """The outcome as one character: a tick, an "about equal", a cross, a question mark or a dash."""
        return OUTCOMES.get(self.outcome, "–")

    @property
    def found(self) -> str:
        """The result as text: the number with its interval, threshold and number of pairs."""
        if self.outcome == "not tested":
            return self.note
        if self.method == "identity":
            return f"largest deviation {self.estimate:.1e}, allowed {self.threshold:.1e}, {self.num_pairs} comparisons"
        if self.num_pairs and not any(self.effects) and not any(self.ceilings):
            number = "no difference, exactly"
        else:
            unknown = "only bounds" if self.num_pairs else "no number"
            number = unknown if math.isnan(self.estimate) else f"{self.estimate:+.3g}"
            if self.num_pairs and not math.isnan(self.level):
                number += f", {100 * self.level:.4g} % interval [{self.low:+.3g}, {self.high:+.3g}]"
        missing = f" of {self.num_pairs + self.num_missing}" if self.num_missing else ""
        return f"{number}; {self.unit}; threshold {self.threshold:.3g}; {self.num_pairs}{missing} pairs"

    def __str__(self) -> str:
        return f"{self.name}: {self.outcome}: {self.found}"


@dataclass(frozen=True)
class Decomposition:
    """Log-ratio of a quantity between two arms, split into its sources; see :mod:`curvature.studies.evidence`.

    Attributes
    ----------
    quantity, matrix
        Compared quantity, e.g. ``"kappa_80"``, and its matrix.
    sources
        Names of the columns of ``parts``.
    parts
        ``(num_seeds, num_sources)``; each row adds up to ``whole``.
    whole
        Logarithm of the number of the weight-normalized arm over that of the standard arm, ``(num_seeds,)``.
    seeds
        Seed of each row.
    held
        Sources that were not varied separately, with the reason. Their column is zero; their effect, if any, is in the
        part that the reason names.
    num_orders
        Number of orders of the changes that the parts are averaged over; 1 is a plain telescoping sum.
    num_missing
        Seeds left out because one of their numbers is missing.
    arms
        Names of the standard and of the weight-normalized arm.
    """

    quantity: str
    matrix: str
    sources: tuple[str, ...]
    parts: Float64[np.ndarray, "seeds sources"] = field(repr=False)
    whole: Float64[np.ndarray, "seeds"] = field(repr=False)
    seeds: tuple[int, ...]
    held: Mapping[str, str] = field(default_factory=dict)
    num_orders: int = 1
    num_missing: int = 0
    arms: tuple[str, ...] = ("standard", "weight-norm")

    def validate(self) -> None:
        """Check that the parts fit the seeds and the sources; every reader of a file calls it.

        Raises
        ------
        ValueError
            If they do not.
        """
        shape = (len(self.seeds), len(self.sources))
        fits = self.parts.shape == shape and self.whole.shape == shape[:1]
        require(fits, f"parts and whole have the shapes {self.parts.shape} and {self.whole.shape} instead of {shape}")

    def __repr__(self) -> str:
        means = zip(self.sources, self.parts.mean(axis=0), strict=True)
        parts = ", ".join(f"{source} {value:+.3g}" for source, value in means if source not in self.held)
        subject = f"{self.matrix}, {self.quantity}, {len(self.whole)} seeds"
        return f"Decomposition({subject}: {self.whole.mean():+.3g} = {parts})"
