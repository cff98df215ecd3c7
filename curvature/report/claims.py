"""The verdicts of a study in words: what was compared, as a factor below 1 where weight norm is favoured, and why."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from curvature.records import PooledVerdict, Study, Verdict
from curvature.report.effects import Effect
from curvature.report.words import capital, factor_words, quantity_symbol, short_number
from curvature.studies.evidence import interval_at

__all__ = [
    "claim_effects",
    "claim_words",
    "control_words",
    "factor_of",
    "factors_of",
    "in_percent",
    "label_of",
    "reason_words",
]

_LABELS = {  # of a claim and its case; the ratios are written so that below 1 favours weight norm
    "C2, against the mean input": "Nearness to the main noise direction: mean input over weights",
    "C2, within 45 degrees": "Weights within 45° of the main direction of the gradient noise",
    "C3, own gauge": "Gradient noise: distance from white, at the gauge of training",
    "C3, without w": "Gradient noise: distance from white, w removed over random",
    "C4": "Range of learning rates that work: standard over weight norm",
    "C5": "Identity: batch norm is weight norm on whitened inputs",
    "C6": "Identity: the data-dependent start gives mean 0, variance 1",
    "C7, against random directions": "Progress of one step: random directions over weight norm",
    "C7, closeness": "Condition number of the Fisher in the metric of a step",
    "C7, index": "One step resembles the natural gradient (index R)",
    "C8": "Steps to a fixed loss, each at its best learning rate",
}
_OWN_TRAINING = "own training"
_CONTROLS = {  # what follows from a control that failed, by the beginning of its name
    "canonical gauge": "the measurement itself makes a difference where there is none, and none can be attributed to "
    "weight norm",
    "random direction": "a random direction reaches the threshold too, and reaching it says nothing about the weights",
    "e1 removed": "not even the main direction matters, and no direction can be shown to",
    "placebo": "random directions come as near, and nearness says nothing about the weights",
    "best learning rates": "the best learning rate may lie beyond the grid: extend the grid and repeat the run",
}
_ELSE = "what the claim rests on does not hold in this run"


def factor_of(unit: str, effect: float) -> float:
    """Effect of a claim as a factor.

    Parameters
    ----------
    unit
        Of the verdict.
    effect
        Positive where the claim holds.

    Returns
    -------
    float
        Below 1 where weight norm is favoured; NaN where the unit is no logarithm.

    Examples
    --------
    >>> factor_of("log(a / b)", 0.0), factor_of("decades of learning rates", -1.0), factor_of("index R", 0.3)
    (1.0, 10.0, nan)
    """
    decades = unit.startswith("decades")
    if not decades and not unit.startswith("log"):
        return math.nan
    with np.errstate(over="ignore"):
        return float(np.power(10.0, -effect) if decades else np.exp(-effect))


def factors_of(unit: str, effect: float, low: float, high: float) -> tuple[float, float, float]:
    """Effect of a claim and its interval as factors, whose ends change places.

    Parameters
    ----------
    unit
        Of the verdict.
    effect, low, high
        Positive where the claim holds.

    Returns
    -------
    tuple of float
        The factor and the lower and upper end of its interval.

    Examples
    --------
    >>> factors_of("decades of learning rates", 1.0, -1.0, math.inf)
    (0.1, 0.0, 10.0)
    """
    return factor_of(unit, effect), factor_of(unit, high), factor_of(unit, low)


def in_percent(verdict: Verdict) -> str:
    """The threshold of a claim: in per cent where it is a ratio, else in its own unit.

    Parameters
    ----------
    verdict
        Of a claim.

    Returns
    -------
    str
        For instance ``"10 %"``.
    """
    factor = factor_of(verdict.unit, -verdict.threshold)
    return short_number(verdict.threshold, 2) if math.isnan(factor) else f"{100 * (factor - 1):.3g} %"


def claim_words(verdict: Verdict) -> dict[str, Any]:
    """What a report says about one claim.

    Parameters
    ----------
    verdict
        Of the claim.

    Returns
    -------
    dict
        ``label``: what was compared; ``factor``, ``factor_low``, ``factor_high``: the effect with its 95 % interval,
        not adjusted for the other claims; ``number``: the same in words; ``smallest_effect``: the threshold;
        ``reason``: why the outcome is what it is; ``adjusted``: the interval that decided; ``test``: by which method;
        ``control_words``.
    """
    low, high = interval_at(verdict) if verdict.effects else (math.nan, math.nan)
    factor, factor_low, factor_high = factors_of(verdict.unit, verdict.estimate, low, high)
    return {
        "label": label_of(verdict),
        "factor": factor,
        "factor_low": factor_low,
        "factor_high": factor_high,
        "number": _number(verdict, factor, (factor_low, factor_high), (low, high)),
        "smallest_effect": in_percent(verdict),
        "reason": reason_words(verdict),
        "adjusted": _adjusted(verdict),
        "test": capital(verdict.rule.partition("; ")[2] or verdict.rule),
        "control_words": control_words(verdict),
    }


def claim_effects(study: Study) -> list[Effect]:
    """Every claim of a study as a row of a forest plot.

    Parameters
    ----------
    study
        With its verdicts.

    Returns
    -------
    list of Effect
        In the order of the verdicts; those that were not tested last.
    """
    effects = []
    for verdict in sorted(study.verdicts, key=lambda verdict: verdict.outcome == "not tested"):
        claim = claim_words(verdict)
        number = "no measurement in this run" if verdict.outcome == "not tested" else claim["number"]
        ends = claim["factor_low"], claim["factor_high"]
        effects.append(Effect(claim["label"], claim["factor"], *ends, verdict.outcome, number))
    return effects


def label_of(verdict: Verdict | PooledVerdict) -> str:
    """Say what was compared.

    Parameters
    ----------
    verdict
        Of one study, or pooled over a grid.

    Returns
    -------
    str
        The label of the claim and its case; the sentence of a claim that has no label.
    """
    start = re.match(r"Weight norm makes the (.+) better conditioned \((\w+) smaller\)", verdict.sentence)
    if start:
        quantity = quantity_symbol(start[2])
        subject = f"Condition number {quantity}" if "kappa" in start[2] else capital(quantity)
        return f"{subject} of the {start[1]}, {_case(verdict.case)}"
    for name in (verdict.name, verdict.claim):
        if name in _LABELS:
            case = "" if name == verdict.name or not verdict.case else f", {_case(verdict.case)}"
            return _LABELS[name] + case
    return verdict.sentence + (f", {verdict.case}" if verdict.case else "")


def _case(case: str) -> str:
    """Name the case of a claim as it follows a comma.

    >>> _case("own training, at the same loss of 0.25"), _case("the paper's start")
    ('each after its own training, at the same loss of 0.25', "from the paper's start")
    """
    case = re.sub(rf"^{_OWN_TRAINING}", "each after its own training", case)
    case = re.sub(r"^(same weights)", r"at the \1", case)
    return re.sub(r"(^|, )the paper's start", r"\1from the paper's start", case)


def _number(verdict: Verdict, factor: float, ends: tuple[float, float], interval: tuple[float, float]) -> str:
    if verdict.outcome == "not tested":
        return verdict.note
    if verdict.method == "identity":
        return f"largest deviation {verdict.estimate:.0e}, allowed {verdict.threshold:.0e}".replace("-", "−")
    if not verdict.num_pairs:
        return "no pair has a number"
    if not math.isnan(factor_of(verdict.unit, 0.0)):
        bounds = f"bounds only: {factor_words(ends[0])} to {factor_words(ends[1])}"
        return bounds if math.isnan(factor) else factor_words(factor, *ends)
    low, high = (f"{end:.2f}".replace("-", "−") for end in interval)
    name = "|cos|" if verdict.unit.startswith("|cos") else "index R" if "index R" in verdict.unit else verdict.unit
    estimate = f"{verdict.estimate:.2f}".replace("-", "−")
    return f"{name} {estimate} [{low}, {high}]; needed: above {short_number(verdict.threshold, 2)}"


def reason_words(verdict: Verdict) -> str:
    """Why the outcome of a claim is what it is, without a sign convention.

    Parameters
    ----------
    verdict
        Of the claim.

    Returns
    -------
    str
        One sentence.
    """
    if verdict.outcome == "not tested":
        return capital(verdict.note) + "."
    if verdict.method == "identity":
        holds = verdict.outcome == "supported"
        return "Every deviation is within rounding." if holds else "Not every deviation is within its tolerance."
    size = in_percent(verdict)
    ratio = size.endswith("%")
    needed = f"an advantage of more than {size}" if ratio else f"a value above {size}"
    reached = {
        "supported": f"The whole interval shows {needed}.",
        "too small": f"{capital(needed)} is excluded.",
        "opposite": f"The whole interval shows a disadvantage of more than {size}."
        if ratio
        else f"The whole interval lies below −{size}.",
    }
    if verdict.outcome in reached:
        return reached[verdict.outcome]
    first = verdict.rule.partition(";")[0]
    if first.startswith("the interval contains"):
        return f"The interval reaches across the threshold: {needed} is neither shown nor excluded."
    return capital(first) + "."


def control_words(verdict: Verdict) -> str:
    """What the control of a claim gave, and what follows if it failed.

    Parameters
    ----------
    verdict
        Of the claim.

    Returns
    -------
    str
        A sentence or two; empty without a control.
    """
    if not verdict.control:
        return ""
    value = verdict.control_estimate
    factor = factor_of(verdict.unit, value)
    if math.isnan(value):
        number = ""
    elif math.isnan(factor):
        number = f": {short_number(value)}"
    elif abs(value) < 1e-6:
        number = ": no difference, up to rounding"
    else:
        number = f": {factor_words(factor)}"
    if verdict.control_passed is None:
        return f"Control, {verdict.control}{number}."
    if verdict.control_passed:
        return f"Control, {verdict.control}{number}, as it must be."
    follows = next((consequence for name, consequence in _CONTROLS.items() if verdict.control.startswith(name)), _ELSE)
    return f"Control, {verdict.control}{number}: FAILED. So {follows}. The claim stays undecided."


def _adjusted(verdict: Verdict) -> str:
    """The interval that decided, with its level and its p-value."""
    if math.isnan(verdict.level) or not verdict.num_pairs:
        return ""
    factor = factor_of(verdict.unit, verdict.estimate)
    if math.isnan(factor_of(verdict.unit, 0.0)):
        ends = f"[{short_number(verdict.low)}, {short_number(verdict.high)}]"
    else:
        low, high = factor_of(verdict.unit, verdict.high), factor_of(verdict.unit, verdict.low)
        ends = factor_words(factor if math.isfinite(factor) else 1.0, low, high).partition(" ")[2]
    p_value = ""
    if not math.isnan(verdict.p_value):
        values = [short_number(value, 2) for value in (verdict.p_value, verdict.adjusted_p_value)]
        p_value = f"; p = {values[0]} against the threshold, {values[1]} after Holm's adjustment"
    return f"{100 * verdict.level:.4g} % interval {ends}{p_value}"
