"""What the measurements say about a claim, and where a difference comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Decomposition", "Verdict"]


@dataclass(frozen=True)
class Verdict:
    r"""What the measurements say about one claim, by a rule that was fixed before they were made.

    Every paired number is oriented: positive means what the claim says. The rules: :mod:`curvature.studies.evidence`.

    Attributes
    ----------
    claim, case
        ``"C1"`` to ``"C8"``, and which form of it where there are several.
    sentence
        What was tested, as a sentence that can be false.
    outcome
        ``"supported"``, ``"refuted"`` (an effect of the claimed size is excluded), ``"inconclusive"``, or ``"not
        tested"`` (``note`` says what would be needed).
    rule
        The rule that decided, in words.
    unit
        What ``estimate``, the interval and ``threshold`` are measured in.
    method
        ``"student"`` (mean and t interval), ``"sign"`` (median, exact sign test; for numbers that may be bounds) or
        ``"identity"`` (largest deviation against a tolerance; no statistics).
    estimate, low, high, level
        The number, and the interval that decided: at ``level`` for this claim alone, where Holm's step-down compares
        it. ``low`` and ``high`` are infinite where too few pairs allow no interval.
    p_value, adjusted_p_value
        Two-sided against ``threshold``, alone and after Holm over the family.
    threshold
        The smallest effect that counts; for an identity, the tolerance.
    num_pairs, num_missing
        Pairs that entered, and pairs that have no number (not resolved, not finite, different ranks).
    effects, ceilings
        The paired numbers themselves, by seed; where a number is only known to lie between two bounds these are the
        lower and the upper ones (``ceilings`` is empty where nothing is bounded).
    min_pairs
        Fewer pairs than this decide nothing.
    control, control_estimate, control_low, control_high, control_passed
        What makes it evidence, its 95 % interval, and whether it came out as it must; None where it has no such rule.
    note
        What a reader must know before quoting it.
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
        """One character beside the word: a tick, a cross, a question mark or a dash."""
        return {"supported": "✓", "refuted": "✗", "inconclusive": "?"}.get(self.outcome, "–")

    @property
    def found(self) -> str:
        """The number with its interval, in words."""
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
    """The log-ratio of one quantity between the two arms, cut into its sources; see :mod:`curvature.studies.evidence`.

    Attributes
    ----------
    quantity, matrix
        What was compared.
    sources
        Names of the columns of ``parts``.
    parts
        ``(num_seeds, num_sources)``; each row sums to ``whole``.
    whole
        ``(num_seeds,)``: log of the weight-normalized arm's number over the standard arm's.
    seeds
        One per row.
    held
        Sources that were not varied on their own, and why: their column is zero, and what they do, if anything, is
        in the part that the reason names.
    num_orders
        How many orders of switching the sources the parts are averaged over; 1 is a plain telescoping sum.
    num_missing
        Seeds left out because a number of theirs is missing.
    arms
        The standard and the weight-normalized arm.
    """

    quantity: str
    matrix: str
    sources: tuple[str, ...]
    parts: np.ndarray = field(repr=False)
    whole: np.ndarray = field(repr=False)
    seeds: tuple[int, ...]
    held: Mapping[str, str] = field(default_factory=dict)
    num_orders: int = 1
    num_missing: int = 0
    arms: tuple[str, ...] = ("standard", "weight-norm")

    def __repr__(self) -> str:
        means = zip(self.sources, self.parts.mean(axis=0), strict=True)
        parts = ", ".join(f"{source} {value:+.3g}" for source, value in means if source not in self.held)
        about = f"{self.matrix}, {self.quantity}, {len(self.whole)} seeds"
        return f"Decomposition({about}: {self.whole.mean():+.3g} = {parts})"
