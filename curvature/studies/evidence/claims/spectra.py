"""Claims about the spectrum of a matrix: C1, and C3 at the gauge that training reached."""

from __future__ import annotations

from collections.abc import Sequence

from curvature.records import ConditionNumbers, Measured, Verdict
from curvature.studies.evidence.claims.drafts import decided, with_zero_control
from curvature.studies.evidence.inference import MIN_PAIRS, THRESHOLD
from curvature.studies.evidence.pairs import by_place, by_seed, log_ratio, paired

__all__ = ["conditioning"]


def conditioning(
    ours: Sequence[Measured[ConditionNumbers]],
    theirs: Sequence[Measured[ConditionNumbers]],
    *,
    quantity: str = "kappa_80",
    threshold: float = THRESHOLD,
    control: tuple[Sequence[Measured[ConditionNumbers]], Sequence[Measured[ConditionNumbers]]] = ((), ()),
    claim: str = "C1",
    case: str = "",
    sentence: str = "",
) -> Verdict:
    r"""C1: $\log(\kappa_\text{standard} / \kappa_\text{weight norm})$, seed by seed; positive is better conditioned.

    Parameters
    ----------
    ours, theirs
        :class:`ConditionNumbers` of the weight-normalized and the standard side; at the same weights, or each arm at
        its own.
    quantity
        Which of the condition numbers.
    threshold
        The smallest log-ratio that counts.
    control
        The canonical gauge and the standard chart at the same weights. Their log-ratio must be 0 up to rounding:
        otherwise the pipeline itself makes a difference, and nothing is decided.
    claim, case, sentence
        Names of the verdict; the sentence of C1 if empty.

    Returns
    -------
    Verdict
        Decided on its own; not tested where a side is empty.
    """
    matrix = next((m.record.matrix for m in ours), "curvature").replace("_", " ").replace("ggn", "GGN")
    reasons: set[str] = set()

    def gain(mine: ConditionNumbers, reference: ConditionNumbers) -> float:
        ratio, reason = log_ratio(reference, mine, quantity)
        reasons.add(reason)
        return ratio

    draft = Verdict(
        claim=claim,
        case=case,
        sentence=sentence or f"Weight norm makes the {matrix} better conditioned ({quantity} smaller)",
        outcome="not tested",
        unit=f"log({quantity} standard / {quantity} weight norm)",
        method="student",
        threshold=threshold,
        note=f"needs {quantity} of the same matrix in both charts, or in both arms, for at least {MIN_PAIRS} seeds",
    )
    canonical, standard = (by_place(side) for side in control)
    zero = paired(canonical, standard, lambda mine, reference: log_ratio(reference, mine, quantity)[0])
    effects = paired(by_seed(ours), by_seed(theirs), gain)
    reasons.discard("")
    note = f"left out: {', '.join(sorted(reasons))}" if reasons else ""
    return decided(with_zero_control(draft, "canonical gauge", zero), effects, note=note)
