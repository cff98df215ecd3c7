"""Which measurements of a study a report shows, and the condition numbers that go with its spectra."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from curvature.records import ConditionNumbers, Measured, Spectrum, Study
from curvature.records.conditioning import condition_numbers

__all__ = [
    "FIRST",
    "LAST",
    "Selection",
    "checkpoints_of",
    "in_one_form",
    "key_of",
    "numbers_of",
    "place_of",
    "shown_part",
    "without_sweep",
]

FIRST, LAST = "init", "late"
_MOST_ARMS = 4  # that can be told apart in one picture


@dataclass(frozen=True)
class Selection:
    """A study, the part of it that a report shows, and the condition numbers of both.

    Attributes
    ----------
    everything
        All that was measured. Single spectra, arms and self-checks are those of all of it.
    """

    everything: Study

    @cached_property
    def study(self) -> Study:
        """The part that tables and pictures show."""
        return shown_part(self.everything)

    @cached_property
    def numbers(self) -> list[Measured[ConditionNumbers]]:
        """Condition numbers of that part."""
        return numbers_of(self.study)

    @cached_property
    def every_number(self) -> list[Measured[ConditionNumbers]]:
        """Condition numbers of everything."""
        return self.numbers if self.study is self.everything else numbers_of(self.everything)


def shown_part(study: Study) -> Study:
    """Part of a study that tables and pictures show.

    Parameters
    ----------
    study
        Everything that was measured.

    Returns
    -------
    Study
        Of a study with many arms, those that were measured all along, at the fixed checkpoints.
    """
    if len({m.arm for m in study.measurements}) <= _MOST_ARMS:
        return study
    followed = {m.arm for m in study.measurements if m.checkpoint not in (FIRST, LAST)}
    shown = [m for m in study.measurements if m.arm in followed and not m.checkpoint.startswith("loss ")]
    curves = [curve for curve in study.curves if curve.arm in followed]
    return replace(study, measurements=tuple(shown), curves=tuple(curves))


def place_of(m: Measured) -> dict[str, Any]:
    """Where a record was taken, as plain values.

    Parameters
    ----------
    m
        One measurement.

    Returns
    -------
    dict
        Arm, seed, checkpoint and step.
    """
    return {"arm": m.arm, "seed": m.seed, "checkpoint": m.checkpoint, "step": m.step}


def key_of(m: Measured) -> Hashable:
    """What tells one spectrum of a study from all others.

    Parameters
    ----------
    m
        Measurement of a spectrum, or of its condition numbers.

    Returns
    -------
    Hashable
        The same for both.
    """
    r = m.record
    return m.arm, m.seed, m.checkpoint, m.step, r.matrix, r.chart, r.gauge, r.block, r.effective


def numbers_of(study: Study) -> list[Measured[ConditionNumbers]]:
    """Condition numbers of every spectrum, once.

    Parameters
    ----------
    study
        Spectra, condition numbers or both.

    Returns
    -------
    list of Measured
        The condition numbers that the study brings; those that it lacks are computed.
    """
    numbers = {key_of(m): m for m in study.of(ConditionNumbers)}
    for m in study.of(Spectrum):
        if key_of(m) not in numbers:
            numbers[key_of(m)] = Measured(**place_of(m), record=condition_numbers(m.record))
    return list(numbers.values())


def checkpoints_of(study: Study) -> list[str]:
    """Names of the checkpoints in the order of training.

    Parameters
    ----------
    study
        Any study.

    Returns
    -------
    list of str
        Each name once.
    """
    return list(dict.fromkeys(m.checkpoint for m in sorted(study.measurements, key=lambda m: m.step)))


def in_one_form(items: Sequence[Measured]) -> list[Measured]:
    """Keep each chart once: on the weights where it was taken there too.

    Parameters
    ----------
    items
        Spectra or condition numbers.

    Returns
    -------
    list of Measured
        Those in the chart's own coordinates only where there is nothing else.
    """
    effective = {(m.record.matrix, m.record.chart, m.record.gauge) for m in items if m.record.effective}
    return [
        m for m in items if m.record.effective or (m.record.matrix, m.record.chart, m.record.gauge) not in effective
    ]


def without_sweep(items: Sequence[Measured]) -> list[Measured]:
    """Leave a sweep over gauges out: another figure shows it.

    Parameters
    ----------
    items
        Spectra or condition numbers.

    Returns
    -------
    list of Measured
        All of them where there is one stretch at most.
    """
    swept = {m.record.gauge for m in items if m.record.gauge.startswith("stretch=")}
    return [m for m in items if len(swept) < 2 or m.record.gauge not in swept]
