"""Everything one command measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from curvature.records.quantity import Check
from curvature.records.training import LearningRateSweep, TrainingCurve
from curvature.records.verdict import Decomposition, Verdict

__all__ = ["Measured", "Study"]


RecordT = TypeVar("RecordT")


@dataclass(frozen=True)
class Measured(Generic[RecordT]):
    """One record and where it was taken: arm (whose weights), seed, checkpoint and optimizer step."""

    arm: str
    seed: int
    checkpoint: str
    step: int
    record: RecordT


@dataclass(frozen=True)
class Study:
    """Everything one command measured: what the run directory and the report are made from.

    Attributes
    ----------
    command
        ``"spectrum"`` or ``"compare"``.
    config
        The resolved configuration; running it again gives the same numbers.
    model, data
        One line each, for people.
    num_weights, num_examples
        ``P`` and ``N``.
    measurements
        All records, each with its place.
    curves
        Training curves, if anything was trained.
    checks
        Identities and self-checks with their values.
    sweeps
        Learning rates tried, if they were tuned.
    verdicts
        What the measurements say about the claims, if claims were tested.
    decompositions
        Where the difference between the arms comes from, if it was asked.
    warnings
        What a reader must know before quoting a number.
    provenance
        Versions, seeds, hashes, machine, times.
    """

    command: str
    config: Mapping[str, Any]
    model: str
    data: str
    num_weights: int
    num_examples: int
    measurements: tuple[Measured[Any], ...] = field(repr=False)
    curves: tuple[TrainingCurve, ...] = field(default=(), repr=False)
    checks: tuple[Check, ...] = field(default=(), repr=False)
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sweeps: tuple[LearningRateSweep, ...] = field(default=(), repr=False)
    verdicts: tuple[Verdict, ...] = ()
    decompositions: tuple[Decomposition, ...] = ()

    @property
    def self_checks(self) -> tuple[Check, ...]:
        """Self-checks that all records carry, one for each matrix and name: the one closest to its tolerance."""
        found: dict[tuple[str, str], list[Check]] = {}
        for m in self.measurements:
            for check in getattr(m.record, "checks", ()):
                found.setdefault((m.record.matrix, check.name), []).append(check)

        def badness(check: Check) -> float:  # what could not be compared must be seen
            return check.value / check.tolerance if math.isfinite(check.tolerance) else math.inf

        return tuple(
            replace(worst, name=f"{matrix}: {name}", note=f"{worst.note}; the worst of {len(checks)}")
            for (matrix, name), checks in found.items()
            for worst in [max(checks, key=badness)]
        )

    def of(self, kind: type[RecordT], **where: Any) -> list[Measured[RecordT]]:
        """Measurements of one kind of record; ``where`` filters by place or by the record's own fields.

        >>> study.of(Spectrum, matrix="ggn", checkpoint="late")  # doctest: +SKIP
        """

        def value(measured: Measured, key: str) -> Any:
            owner = measured if hasattr(measured, key) else measured.record
            return getattr(owner, key)

        return [
            measured
            for measured in self.measurements
            if isinstance(measured.record, kind) and all(value(measured, k) == v for k, v in where.items())
        ]
