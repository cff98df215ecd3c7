"""Records of the evidence across networks: an effect pooled over the cells of a grid, and the verdict on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from curvature.records.validation import require

__all__ = ["PooledEffect", "PooledVerdict"]


@dataclass(frozen=True)
class PooledEffect:
    r"""One effect in every cell of a grid, and its mean by a random-effects model.

    A cell is a network on one data set under one optimizer. Its effect $y_i$ is the mean over paired seeds of a number
    that is positive where the claim holds, with the standard error $s_i$ of that mean.

    Attributes
    ----------
    name
        What was pooled.
    unit
        Of the effects, the intervals and ``tau``.
    cells
        Names of the cells, in the order of the next fields.
    effects, standard_errors
        $y_i$ and $s_i$.
    lows, highs
        95 % interval of each cell (Student t over its seeds).
    weights
        Share of each cell in the pooled effect; they sum to 1.
    missing
        Cells without an effect, with the reason.
    estimate, standard_error
        Pooled effect, and its standard error (Hartung & Knapp, at least that of the random-effects model).
    low, high
        95 % interval of the pooled effect: Student t with one degree of freedom less than there are cells. It is about
        the mean over cells like these. Infinite for one cell.
    prediction_low, prediction_high
        95 % interval for the effect in another cell of the same kind; infinite for fewer than three cells.
    tau
        Standard deviation of the true effects between cells (Paule & Mandel), NaN for one cell.
    i2
        Share of the spread between cells that seeds alone do not explain (Higgins & Thompson).
    heterogeneity_p
        p-value of Cochran's test that all cells have one effect.
    """

    name: str
    unit: str
    cells: tuple[str, ...]
    effects: tuple[float, ...]
    standard_errors: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    weights: tuple[float, ...]
    missing: Mapping[str, str] = field(default_factory=dict)
    estimate: float = math.nan
    standard_error: float = math.nan
    low: float = -math.inf
    high: float = math.inf
    prediction_low: float = -math.inf
    prediction_high: float = math.inf
    tau: float = math.nan
    i2: float = math.nan
    heterogeneity_p: float = math.nan

    def validate(self) -> None:
        """Check that every cell has one number of each kind; every reader of a file calls it.

        Raises
        ------
        ValueError
            If one has not.
        """
        columns = (self.effects, self.standard_errors, self.lows, self.highs, self.weights)
        require(all(len(column) == len(self.cells) for column in columns), "the cells and their numbers do not match")

    def __str__(self) -> str:
        number = f"{self.estimate:+.3g}, 95 % interval [{self.low:+.3g}, {self.high:+.3g}]"
        return f"{self.name}: {number}; {self.unit}; {len(self.cells)} cells, I2 {100 * self.i2:.0f} %"


@dataclass(frozen=True)
class PooledVerdict:
    """Outcome of the test of one claim over all cells of a grid, by the rule of a single study.

    Attributes
    ----------
    claim, case
        As in :class:`Verdict`.
    sentence
        The tested statement.
    outcome
        ``"supported"``, ``"too small"``, ``"opposite"``, ``"undecided"`` or ``"not tested"``.
    rule
        The rule that decided, in words.
    threshold
        Smallest effect that counts.
    effect
        The pooled effect; for an identity without numbers.
    outcomes
        Outcome of each cell, tested by itself; also of cells that have no effect to pool.
    decided_low, decided_high, level
        The interval that decided, and its level after Holm's adjustment over the claims.
    p_value, adjusted_p_value
        Two-sided, against the threshold: of this claim alone, and after the adjustment.
    """

    claim: str
    case: str
    sentence: str
    outcome: str
    rule: str
    threshold: float
    effect: PooledEffect
    outcomes: Mapping[str, str] = field(default_factory=dict)
    decided_low: float = -math.inf
    decided_high: float = math.inf
    level: float = math.nan
    p_value: float = math.nan
    adjusted_p_value: float = math.nan

    @property
    def name(self) -> str:
        """Claim and case: ``"C1, own training"``."""
        return f"{self.claim}, {self.case}" if self.case else self.claim

    def __str__(self) -> str:
        return f"{self.name}: {self.outcome}: {self.effect}"
