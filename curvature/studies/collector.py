"""What a study has measured so far, each record with its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from curvature.matrices.gradient_moments import scale_words
from curvature.matrices.linear_losses import linear_words
from curvature.models import Problem
from curvature.records import Check, LearningRateSweep, Measured, Spectrum, Study, TrainingCurve
from curvature.records.conditioning import condition_numbers
from curvature.studies.progress import Progress
from curvature.text import listed

__all__ = ["Collector", "Finished", "Place", "with_warnings"]


class Finished(Protocol):
    """Finished parts of a piece of work, by name, so that it can be interrupted: a dict, or files."""

    def get(self, name: str, /) -> Any:
        """A part; None if it is not finished."""

    def __setitem__(self, name: str, part: Any, /) -> None:
        """Keep a part as soon as it is finished."""


@dataclass(frozen=True)
class Place:
    """Where a number was taken: whose weights, which seed, which point of training."""

    arm: str
    seed: int
    checkpoint: str
    step: int

    def __str__(self) -> str:
        return f"{self.arm} arm, seed {self.seed}, {self.checkpoint}"


@dataclass
class Collector:
    """Measurements, curves, sweeps, checks and warnings, in the order in which they were made."""

    progress: Progress | None = None
    measurements: list[Measured[Any]] = field(default_factory=list)
    curves: list[TrainingCurve] = field(default_factory=list)
    sweeps: list[LearningRateSweep] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    warnings: dict[str, None] = field(default_factory=dict)
    share: float = 0.0
    ending: str = "done"  # said when everything is measured: of a part, what is done

    def say(self, message: str, share: float | None = None) -> None:
        """Report progress, if anybody listens; without a share, at the one that was reported last."""
        self.share = self.share if share is None else share
        if self.progress is not None:
            self.progress(message, self.share)

    def warn(self, message: str) -> None:
        """Add a warning once."""
        self.warnings[message] = None

    def extend(self, place: Place, records: Iterable[Any]) -> None:
        """Add records that were taken at one place."""
        self.measurements += [
            Measured(place.arm, place.seed, place.checkpoint, place.step, record) for record in records
        ]

    def add(self, place: Place, spectrum: Spectrum) -> None:
        """Add a spectrum and its condition numbers."""
        self.extend(place, [spectrum, condition_numbers(spectrum)])

    def add_part(self, part: Study) -> None:
        """Add everything that was measured apart."""
        self.measurements += part.measurements
        self.curves += part.curves
        self.sweeps += part.sweeps
        self.checks += part.checks
        for message in part.warnings:
            self.warn(message)

    def study(
        self,
        command: str,
        problem: Problem,
        config: Mapping[str, Any] | None = None,
        *,
        model: str = "given model",
        data: str = "given data",
    ) -> Study:
        """Everything as a :class:`Study`; ``problem`` gives the numbers of weights and examples."""
        self.say(self.ending, 1.0)
        return Study(
            command=command,
            config=dict(config or {}),
            model=model,
            data=data,
            num_weights=problem.dim,
            num_examples=problem.num_examples,
            measurements=tuple(self.measurements),
            curves=tuple(self.curves),
            sweeps=tuple(self.sweeps),
            checks=tuple(self.checks),
            warnings=tuple(self.warnings),
        )


def with_warnings(study: Study, problem: Problem) -> Study:
    """Add what a reader must know about the problem before quoting a number.

    Parameters
    ----------
    study
        The measurements.
    problem
        At the first point that was measured.

    Returns
    -------
    Study
        The same study with more warnings: notes of the problem, unused and frozen parameters, single precision, kinks
        under a Hessian, outputs that a GGN lacks, the scale of an empirical Fisher.
    """
    warnings = [*study.warnings, *problem.notes]
    if problem.unused:
        rest = "zero rows, counted as null directions" if problem.penalty is None else "only the penalty acts on them"
        warnings.append(f"the loss does not depend on {', '.join(problem.unused)}: {rest}.")
    if problem.penalty is not None:
        warnings.append(
            f"the objective has {problem.penalty.label}: it is part of losses, gradients and Hessians. The GGN, the "
            "Fisher and the moments of gradients are those of the data, without it."
        )
    if problem.frozen:
        warnings.append(f"left out, because frozen: {listed(problem.frozen)}.")
    if problem.dtype != torch.float64:
        warnings.append("computed in float32: condition numbers above about 1e6 cannot be resolved.")
    measured = {getattr(m.record, "matrix", "") for m in study.measurements}
    if "ggn" in measured and (sentence := linear_words(problem)):
        warnings.append(f"{sentence}.")
    if "empirical_fisher" in measured and (sentence := scale_words(problem)):
        warnings.append(sentence)
    near, total = problem.kinks()
    if total and "hessian" in measured:
        warnings.append(
            "the Hessian of a piecewise linear network is its almost-everywhere second derivative, without the jumps "
            f"of the gradient at kinks. {near} of {total} pre-activations are at a kink (within 1e-8 of the largest) "
            "at the first point measured. The GGN is not affected."
        )
    return replace(study, warnings=tuple(dict.fromkeys(warnings)))
