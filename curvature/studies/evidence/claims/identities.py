"""Claims that are identities (C5, C6): a deviation is within rounding or it is not."""

from __future__ import annotations

import math
from collections.abc import Sequence

from curvature.records import Check, Verdict
from curvature.studies.evidence.claims.drafts import worst_check

__all__ = ["identity"]

SENTENCES = {
    "C5": "For one layer with whitened input, batch normalization equals weight normalization",
    "C6": "Data-dependent initialization gives every pre-activation mean 0 and variance 1",
}


def identity(claim: str, checks: Sequence[Check], sentence: str = "") -> Verdict:
    """C5, C6: an identity, supported where every measured deviation is within its tolerance; no statistics.

    Parameters
    ----------
    claim
        ``"C5"`` or ``"C6"``, or any other name with a sentence.
    checks
        The measured deviations.
    sentence
        What was tested; that of the claim if empty.

    Returns
    -------
    Verdict
        Quotes the largest deviation, in units of the tolerance of each. A deviation that is not finite decides nothing.
    """
    sentence = sentence or SENTENCES[claim]
    if not checks:
        return Verdict(claim, sentence, "not tested", note="needs the deviations of the identity, as checks")
    worst = worst_check(checks)
    num_finite = sum(math.isfinite(check.value) for check in checks)
    if all(check.passed for check in checks):
        outcome = "supported"
    else:
        outcome = "opposite" if num_finite == len(checks) else "undecided"
    return Verdict(
        claim,
        sentence,
        outcome,
        rule="supported where every deviation is within its tolerance, opposite where one is not",
        unit="largest deviation",
        method="identity",
        estimate=worst.value,
        low=worst.value,
        high=worst.value,
        threshold=worst.tolerance,
        num_pairs=num_finite,
        num_missing=len(checks) - num_finite,
        note=worst.name,
    )
