"""Every claim that a study has measurements for, decided together."""

from __future__ import annotations

from dataclasses import replace

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
        Two arms with paired seeds. Claims whose measurements it does not hold come back as "not tested", with what
        would be needed.
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
        method from the initial weights of the second: C1, C4 and C8 are asked of them too, in the same family.
    loss
        The loss to reach (C8); see :func:`training_speed` for what None means.
    """
    plain, normed = arms
    last = last_checkpoint(study)

    def at(kind: type, arm: str, point: str = last, **where: object) -> list[Measured]:
        return study.of(kind, arm=arm, checkpoint=point, **where)

    def numbers(arm: str, name: str, chart: str, gauge: str, point: str = last) -> list[Measured]:
        found = at(ConditionNumbers, arm, point, matrix=name, chart=chart, gauge=gauge, block="all")
        return [m for m in found if chart == "standard" or m.record.effective or gauge == "canonical"]

    own = numbers(normed, matrix, "weight-norm", "checkpoint")
    canonical = (
        [m for arm in arms for m in numbers(arm, matrix, "weight-norm", "canonical")],
        [m for arm in arms for m in numbers(arm, matrix, "standard", "-")],
    )
    aligned, whitened, steps = (at(kind, normed) for kind in (Alignment, Whitening, StepComparison))
    found = [
        conditioning(
            own,
            numbers(plain, matrix, "standard", "-"),
            quantity=quantity,
            threshold=threshold,
            control=canonical,
            case="own training",
        ),
        conditioning(
            own,
            numbers(normed, matrix, "standard", "-"),
            quantity=quantity,
            threshold=threshold,
            control=canonical,
            case="same weights",
        ),
        alignment(aligned),
        alignment(aligned, against="mean input", threshold=threshold),
        sphericity(whitened, threshold=threshold),
        conditioning(
            numbers(normed, "gradient_covariance", "weight-norm", "checkpoint"),
            numbers(normed, "gradient_covariance", "standard", "-"),
            quantity="ai_distance",
            threshold=threshold,
            control=(
                numbers(normed, "gradient_covariance", "weight-norm", "canonical"),
                numbers(normed, "gradient_covariance", "standard", "-"),
            ),
            claim="C3",
            case="own gauge",
            sentence="At the gauge that training reached, weight norm brings the gradient covariance closer to a "
            "multiple of the identity (standard deviation of the log eigenvalues smaller)",
        ),
        self_stabilizing(study.curves, _claimed(study, "C4"), sweeps=study.sweeps, threshold=threshold, arms=arms),
        identity("C5", _claimed(study, "C5")),
        identity("C6", _claimed(study, "C6")),
        resemblance(steps),
        efficiency(steps, threshold=threshold),
        closeness(steps, threshold=threshold),
        training_speed(study.curves, sweeps=study.sweeps, threshold=threshold, loss=loss, arms=arms),
    ]
    matched = matched_checkpoint(study, arms)
    if matched:
        # After as many steps the arms may be at very different losses, and curvature falls with the loss.
        equal = conditioning(
            numbers(normed, matrix, "weight-norm", "checkpoint", matched),
            numbers(plain, matrix, "standard", "-", matched),
            quantity=quantity,
            threshold=threshold,
            control=canonical,
            case=f"own training, at the same loss of {matched.split()[-1]}",
        )
        found.insert(1, equal)
    if published is not None:
        base, theirs, plain_start = published
        charts = numbers(theirs, matrix, "weight-norm", "checkpoint")
        own_start = (plain_start, theirs)
        c4 = [check for check in _claimed(study, "C4") if theirs in check.name]
        pairs = [
            (
                conditioning(
                    charts,
                    numbers(plain_start, matrix, "standard", "-"),
                    quantity=quantity,
                    threshold=threshold,
                    control=canonical,
                ),
                "own training, the paper's start",
            ),
            (
                self_stabilizing(
                    study.curves, c4, sweeps=study.sweeps, threshold=threshold, arms=(plain_start, theirs)
                ),
                "the paper's start",
            ),
            (
                training_speed(study.curves, sweeps=study.sweeps, threshold=threshold, loss=loss, arms=own_start),
                "the paper's start",
            ),
            (
                training_speed(study.curves, sweeps=study.sweeps, threshold=threshold, loss=loss, arms=(base, theirs)),
                "the paper's start against PyTorch's",
            ),
        ]
        found += [replace(verdict, case=case) for verdict, case in pairs]
    return adjust(found, level)


def _claimed(study: Study, claim: str) -> list[Check]:
    return [check for check in study.checks if check.claim == claim]
