"""The record of a whole study: every measurement of one command."""

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
    """A record with the point of training where it was measured.

    Attributes
    ----------
    arm, seed
        Training run whose weights were measured.
    checkpoint, step
        Name of the checkpoint, and its optimizer step.
    record
        The measurement.
    """

    arm: str
    seed: int
    checkpoint: str
    step: int
    record: RecordT


@dataclass(frozen=True)
class Study:
    """All measurements of one command, from which the run directory and the report are made.

    Attributes
    ----------
    command
        ``"spectrum"`` or ``"compare"``.
    config
        The resolved configuration; running it again gives the same numbers.
    model, data
        Description of each in one line.
    num_weights, num_examples
        Numbers of weights ``P`` and of examples ``N``.
    measurements
        All records, each with its point of training.
    curves
        Training curves; empty if nothing was trained.
    checks
        Identities and self-checks with their values.
    warnings
        Cautions that a reader needs before quoting a number.
    provenance
        Versions, seeds, hashes, machine, times.
    sweeps
        Sweeps of the learning rate; empty if it was not tuned.
    verdicts
        Verdict on each claim; empty if no claims were tested.
    decompositions
        Sources of the difference between two arms; empty if it was not decomposed.
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
        """Self-checks of all records: for each matrix and name, the one closest to its tolerance."""
        by_name: dict[tuple[str, str], list[Check]] = {}
        for m in self.measurements:
            for check in getattr(m.record, "checks", ()):
                by_name.setdefault((m.record.matrix, check.name), []).append(check)

        def badness(check: Check) -> float:  # a check that compared nothing comes first, so that a reader sees it
            return check.value / check.tolerance if math.isfinite(check.tolerance) else math.inf

        return tuple(
            replace(worst, name=f"{matrix}: {name}", note=f"{worst.note}; the worst of {len(checks)}")
            for (matrix, name), checks in by_name.items()
            for worst in [max(checks, key=badness)]
        )

    def of(self, kind: type[RecordT], **where: Any) -> list[Measured[RecordT]]:
        """Select the measurements of one kind of record.

        Parameters
        ----------
        kind
            Class of the record.
        **where
            Values that fields of the measurement (``arm``, ``checkpoint``, ...) or of its record must have.

        Returns
        -------
        list of Measured
            In the order of the study.

        Examples
        --------
        >>> study.of(Spectrum, matrix="ggn", checkpoint="late")  # doctest: +SKIP
        """

        def value(measured: Measured[Any], key: str) -> Any:
            owner = measured if hasattr(measured, key) else measured.record
            return getattr(owner, key)

        return [
            measured
            for measured in self.measurements
            if isinstance(measured.record, kind) and all(value(measured, k) == v for k, v in where.items())
        ]
