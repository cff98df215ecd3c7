"""Every claim that a study has measurements for, decided together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from curvature.records import Alignment, Check, ConditionNumbers, Measured, StepComparison, Study, Verdict, Whitening
from curvature.studies.evidence.claims import (
    alignment,
    closeness,
    conditioning,
    efficiency,
    identity,
    resemblance,
    self_stabilizing,
    sphericity,
    training_speed,
)
from curvature.studies.evidence.inference import LEVEL, THRESHOLD, adjust
from curvature.studies.evidence.pairs import last_checkpoint, matched_checkpoint

__all__ = ["verdicts"]

RecordT = TypeVar("RecordT")


def verdicts(
    study: Study,
    *,
    threshold: float = THRESHOLD,
    level: float = LEVEL,
    matrix: str = "ggn",
    quantity: str = "kappa_80",
    arms: tuple[str, str] = ("standard", "weight-norm"),
    published: tuple[str, str, str] | None = None,
    loss: float | None = None,
) -> tuple[Verdict, ...]:
    r"""Test every claim that a study has measurements for, as one family.

    Parameters
    ----------
    study
        Two arms with paired seeds, as :func:`curvature.study` gives it.
    threshold
        The smallest effect that counts, as a log-ratio: $\log 1.1$. To be chosen before looking.
    level
        1 minus the chance of one wrong decision in the family.
    matrix, quantity
        The one headline number of C1.
    arms
        Names of the standard and the weight-normalized arm.
    published
        Names of a second standard and weight-normalized arm, trained from another initialization, and of the standard
        method from the initial weights of the second: C1, C4 and C8 are tested for them too, in the same family.
    loss
        The loss to reach (C8); see :func:`~curvature.studies.evidence.claims.training_speed` for what None means.

    Returns
    -------
    tuple
        Claims that the study has no measurements for come back as "not tested", with what would be needed.

    Examples
    --------
    >>> study = cv.study(build)  # doctest: +SKIP
    >>> cv.verdicts(study, threshold=math.log(1.2))  # doctest: +SKIP
    """
    tests = _Tests(study, threshold, matrix, quantity, arms, loss)
    claims = [*tests.of_both_arms()]
    if published is not None:
        claims += tests.of_published_arms(*published)
    return adjust(claims, level)


@dataclass(frozen=True)
class _Tests:
    """The claims of one study, each decided on its own."""

    study: Study
    threshold: float
    matrix: str
    quantity: str
    arms: tuple[str, str]
    loss: float | None

    def of_both_arms(self) -> Iterator[Verdict]:
        plain, normed = self.arms
        yield self.conditioning(normed, plain, "own training")
        matched = matched_checkpoint(self.study, self.arms)
        if matched:
            # After as many steps the arms may be at very different losses, and curvature falls with the loss.
            case = f"own training, at the same loss of {matched.split()[-1]}"
            yield self.conditioning(normed, plain, case, checkpoint=matched)
        yield self.conditioning(normed, normed, "same weights")
        aligned, steps = self.measured(Alignment, normed), self.measured(StepComparison, normed)
        yield alignment(aligned)
        yield alignment(aligned, against="mean input", threshold=self.threshold)
        yield sphericity(self.measured(Whitening, normed), threshold=self.threshold)
        yield self.own_gauge(normed)
        yield self.self_stabilizing(self.arms, self.checks("C4"))
        yield identity("C5", self.checks("C5"))
        yield identity("C6", self.checks("C6"))
        yield resemblance(steps)
        yield efficiency(steps, threshold=self.threshold)
        yield closeness(steps, threshold=self.threshold)
        yield self.training_speed(self.arms)

    def of_published_arms(self, plain: str, normed: str, plain_start: str) -> Iterator[Verdict]:
        """C1, C4 and C8 again; ``plain_start`` is the standard method from the initial weights of ``normed``."""
        checks = [check for check in self.checks("C4") if normed in check.name]
        yield self.conditioning(normed, plain_start, "own training, the paper's start")
        yield replace(self.self_stabilizing((plain_start, normed), checks), case="the paper's start")
        yield replace(self.training_speed((plain_start, normed)), case="the paper's start")
        yield replace(self.training_speed((plain, normed)), case="the paper's start against PyTorch's")

    def conditioning(self, normed: str, plain: str, case: str, checkpoint: str | None = None) -> Verdict:
        """C1: weight norm at the gauge that the first arm reached, against the standard chart in the second."""
        both = [
            [m for arm in self.arms for m in self.numbers(arm, self.matrix, chart, gauge)]
            for chart, gauge in (("weight-norm", "canonical"), ("standard", "-"))
        ]
        return conditioning(
            self.numbers(normed, self.matrix, "weight-norm", "checkpoint", checkpoint),
            self.numbers(plain, self.matrix, "standard", "-", checkpoint),
            quantity=self.quantity,
            threshold=self.threshold,
            control=(both[0], both[1]),
            case=case,
        )

    def own_gauge(self, normed: str) -> Verdict:
        """C3 at the gauge that training reached."""
        own, standard, canonical = (
            self.numbers(normed, "gradient_covariance", chart, gauge)
            for chart, gauge in (("weight-norm", "checkpoint"), ("standard", "-"), ("weight-norm", "canonical"))
        )
        return conditioning(
            own,
            standard,
            quantity="ai_distance",
            threshold=self.threshold,
            control=(canonical, standard),
            claim="C3",
            case="own gauge",
            sentence="At the gauge that training reached, weight norm brings the gradient covariance closer to a "
            "multiple of the identity (standard deviation of the log eigenvalues smaller)",
        )

    def self_stabilizing(self, arms: tuple[str, str], checks: list[Check]) -> Verdict:
        return self_stabilizing(self.study.sweeps, checks, threshold=self.threshold, arms=arms)

    def training_speed(self, arms: tuple[str, str]) -> Verdict:
        return training_speed(self.study.curves, self.study.sweeps, threshold=self.threshold, loss=self.loss, arms=arms)

    def measured(
        self, kind: type[RecordT], arm: str, checkpoint: str | None = None, **fields: Any
    ) -> list[Measured[RecordT]]:
        """Records of one arm at a checkpoint, the last one if None."""
        checkpoint = checkpoint or last_checkpoint(self.study)
        return self.study.of(kind, arm=arm, checkpoint=checkpoint, **fields)

    def numbers(
        self, arm: str, matrix: str, chart: str, gauge: str, checkpoint: str | None = None
    ) -> list[Measured[ConditionNumbers]]:
        """Condition numbers of effective matrices; at the canonical gauge, of the chart's own coordinates."""
        rows = self.measured(ConditionNumbers, arm, checkpoint, matrix=matrix, chart=chart, gauge=gauge, block="all")
        return [m for m in rows if chart == "standard" or m.record.effective or gauge == "canonical"]

    def checks(self, claim: str) -> list[Check]:
        return [check for check in self.study.checks if check.claim == claim]
