"""C7: how a step of weight norm compares with a step of the natural gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from curvature.records import Measured, StepComparison, Verdict
from curvature.studies.evidence.claims.drafts import decided, with_control, with_zero_control
from curvature.studies.evidence.inference import MIN_PAIRS, THRESHOLD
from curvature.studies.evidence.pairs import averages, log_of_ratio, paired, steps_at

__all__ = ["closeness", "efficiency", "resemblance"]

RESEMBLES = 0.5  # of the way from gradient descent to neuron-block natural gradient: nearer to the second


def resemblance(
    measured: Sequence[Measured[StepComparison]], *, gauge: str = "checkpoint", relative_damping: float | None = None
) -> Verdict:
    r"""C7: the index $R = (E - E_\text{SGD})/(E_\text{neuron-block} - E_\text{SGD})$ of weight norm's step.

    Parameters
    ----------
    measured
        :class:`StepComparison` records.
    gauge
        At which weight norm takes its step.
    relative_damping
        Of the natural gradient, in units of the mean eigenvalue of the Fisher; None: see :func:`steps_at`.

    Returns
    -------
    Verdict
        Decided on its own. Its note holds the same index for the top eigenvector in place of $w$, for the best single
        stretch, and at the paper's gauge.

    Notes
    -----
    0 is gradient descent, 1 the best that a chart acting neuron by neuron could aim at. Supported above 0.5: nearer to
    the second. Control: the same multipliers around random directions (placebo) must stay below.
    """
    others = {
        "e1 in place of w": steps_at(measured, "e1-direction", None, relative_damping),
        "best stretch": steps_at(measured, "weight-norm", "best stretch", relative_damping),
        "paper's gauge": steps_at(measured, "weight-norm", "paper", relative_damping),
    }
    draft = Verdict(
        claim="C7",
        case="index",
        sentence="A gradient step in weight norm is nearer to the neuron-block natural gradient than to gradient "
        "descent",
        outcome="not tested",
        unit="index R of the efficiency",
        method="student",
        threshold=RESEMBLES,
        note=f"needs efficiencies of weight norm at the gauge {gauge!r} and of its controls for at least {MIN_PAIRS} "
        "seeds, of a loss with a Fisher",
    )
    placebo = averages(steps_at(measured, "placebo", None, relative_damping), "index")
    draft = with_control(
        draft, "placebo (random directions, the paper's multipliers)", placebo, lambda value: value < RESEMBLES
    )
    indices = {name: [m.record.index for m in steps if math.isfinite(m.record.index)] for name, steps in others.items()}
    means = ", ".join(f"{name} {np.mean(values):+.2f}" for name, values in indices.items() if values)
    own = averages(steps_at(measured, "weight-norm", gauge, relative_damping), "index")
    return decided(draft, own, note=f"index R of {means}" if means else "")


def efficiency(
    measured: Sequence[Measured[StepComparison]],
    *,
    gauge: str = "paper",
    threshold: float = THRESHOLD,
    relative_damping: float | None = None,
) -> Verdict:
    r"""C7: $\log(E_\text{weight norm} / E_\text{placebo})$ at one gauge: is it the direction $w$ that matters.

    Parameters
    ----------
    measured
        :class:`StepComparison` records.
    gauge
        At which both take their steps.
    threshold
        The smallest log-ratio that counts.
    relative_damping
        Of the natural gradient, in units of the mean eigenvalue of the Fisher; None: see :func:`steps_at`.

    Returns
    -------
    Verdict
        Decided on its own.

    Notes
    -----
    Control: the canonical gauge is gradient descent, so its log-ratio to the standard chart must be 0 up to rounding.
    """
    draft = Verdict(
        claim="C7",
        case="against random directions",
        sentence="A step of weight norm makes more of the natural gradient's progress than the same multipliers around "
        "random directions",
        outcome="not tested",
        unit=f"log(efficiency of weight norm / of the placebo), gauge {gauge}",
        method="student",
        threshold=threshold,
        note=f"needs efficiencies of weight norm and of the placebo at the gauge {gauge!r} for at least {MIN_PAIRS} "
        "seeds",
    )
    own, placebo, canonical, standard = (
        averages(steps_at(measured, *chart, relative_damping), "efficiency")
        for chart in (("weight-norm", gauge), ("placebo", gauge), ("weight-norm", "canonical"), ("standard", "-"))
    )
    zero = paired(canonical, standard, log_of_ratio)
    draft = with_zero_control(draft, "canonical gauge against gradient descent", zero)
    return decided(draft, paired(own, placebo, log_of_ratio))


def closeness(
    measured: Sequence[Measured[StepComparison]],
    *,
    gauge: str = "checkpoint",
    threshold: float = THRESHOLD,
    relative_damping: float | None = None,
) -> Verdict:
    r"""C7: log-ratio of the condition numbers of $K^{1/2}(F + \lambda I)K^{1/2}$, standard over weight norm.

    Parameters
    ----------
    measured
        :class:`StepComparison` records, with their condition numbers.
    gauge
        Of weight norm.
    threshold
        The smallest log-ratio that counts.
    relative_damping
        $\lambda$ in units of the mean eigenvalue of the Fisher; None: see :func:`steps_at`.

    Returns
    -------
    Verdict
        Decided on its own.

    Notes
    -----
    The condition number is 1 where $K$ is a multiple of the inverse of the damped Fisher. Control: the canonical
    gauge, exactly 0.
    """
    draft = Verdict(
        claim="C7",
        case="closeness",
        sentence="The metric of weight norm is closer to the inverse of the damped Fisher than the identity is",
        outcome="not tested",
        unit="log(condition number of K^(1/2) (F + lambda) K^(1/2), standard / weight norm)",
        method="student",
        threshold=threshold,
        note=f"needs closeness to the natural gradient at the gauge {gauge!r} for at least {MIN_PAIRS} seeds",
    )
    own, standard, canonical = (
        averages(steps_at(measured, *chart, relative_damping), "kappa")
        for chart in (("weight-norm", gauge), ("standard", "-"), ("weight-norm", "canonical"))
    )
    draft = with_zero_control(draft, "canonical gauge", paired(standard, canonical, log_of_ratio))
    return decided(draft, paired(standard, own, log_of_ratio))
