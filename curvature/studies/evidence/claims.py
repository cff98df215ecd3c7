r"""The claims about weight normalization, each with its number, its control and the rule that can refute it.

====  ====================================================================================================
C1    weight norm improves conditioning
C2    a neuron's weights lie along the dominant eigenvector of its gradient covariance
C3    in the coordinates of weight norm the gradient covariance is closer to a multiple of the identity
C4    the step size stabilizes itself: a wider range of learning rates works
C5    for one layer with whitened input batch normalization is weight normalization
C6    data-dependent initialization gives pre-activations of mean 0 and variance 1
C7    a step of weight norm resembles a step of the natural gradient
C8    training converges faster
====  ====================================================================================================

The unit of replication is the seed: neurons of one network are averaged first. Every paired number is positive where
the claim holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from curvature.errors import ConfigurationError
from curvature.records import (
    Check,
    ConditionNumbers,
    LearningRateSweep,
    Measured,
    Quantity,
    TrainingCurve,
    Verdict,
)
from curvature.records.conditioning import marchenko_pastur_bures
from curvature.studies.evidence.inference import MIN_PAIRS, THRESHOLD, decide, paired_interval
from curvature.studies.evidence.pairs import (
    NEAR_BEST,
    averages,
    by_place,
    by_rate,
    by_seed,
    final_loss,
    learning_rate_width,
    log_of_ratio,
    log_ratio,
    paired,
    steps_at,
    steps_to,
    tuned_rate,
)

__all__ = [
    "alignment",
    "closeness",
    "conditioning",
    "efficiency",
    "identity",
    "resemblance",
    "self_stabilizing",
    "sphericity",
    "training_speed",
]

CONTROL_SHARE = 0.01  # of the threshold: how far a control that must be zero may be off by rounding
CLOSE = 2**-0.5  # within 45 degrees: closer to the direction than to its complement
RESEMBLES = 0.5  # of the way from gradient descent to neuron-block natural gradient: nearer to the second
MIN_TRAINED_PAIRS = 10  # of claims about training runs
MIN_RATES = 3  # on a grid of two both are edges

_IDENTITIES = {
    "C5": "For one layer with whitened input, batch normalization equals weight normalization",
    "C6": "Data-dependent initialization gives every pre-activation mean 0 and variance 1",
}


def conditioning(
    ours: Sequence[Measured],
    theirs: Sequence[Measured],
    *,
    quantity: str = "kappa_80",
    threshold: float = THRESHOLD,
    control: tuple[Sequence[Measured], Sequence[Measured]] = ((), ()),
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
    control
        The canonical gauge and the standard chart at the same weights. Their log-ratio must be 0 up to rounding: else
        the pipeline itself makes a difference, and nothing is decided.
    """
    matrix = next((m.record.matrix for m in ours), "curvature").replace("_", " ").replace("ggn", "GGN")
    reasons: dict[str, None] = {}

    def gain(mine: ConditionNumbers, reference: ConditionNumbers) -> float:
        found, reason = log_ratio(reference, mine, quantity)
        reasons[reason] = None
        return found

    zero = paired(by_place(control[0]), by_place(control[1]), lambda a, b: log_ratio(b, a, quantity)[0])
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
    effects = paired(by_seed(ours), by_seed(theirs), gain)
    left_out = ", ".join(sorted(reasons.keys() - {""}))
    draft = _with_zero_control(draft, "canonical gauge", zero)
    return _tested(draft, effects, note=f"left out: {left_out}" if left_out else "")


def alignment(measured: Sequence[Measured], *, against: str = "random", threshold: float = THRESHOLD) -> Verdict:
    r"""C2: $|\cos(w, e_1)|$, mean over neurons, $e_1$ the top eigenvector of the neuron's gradient covariance.

    ``against="random"``: $w$ must lie within 45 degrees of $e_1$, $|\cos| > 1/\sqrt 2$, and a random direction must
    not (it does in two dimensions). ``against="mean input"``: $w$ must be closer to $e_1$ than the mean input
    activation is, by ``threshold`` in the log-ratio of the mean cosines; the random direction must not be.
    """
    direction = {
        name: averages([m for m in measured if m.record.direction == name], "cosine")
        for name in ("w", "random", "mean input")
    }
    words = ", ".join(f"{name} {np.mean(list(found.values())):.2f}" for name, found in direction.items() if found)
    if against == "random":
        effects, control, threshold = direction["w"], direction["random"], CLOSE
        sentence = "A neuron's weights lie within 45 degrees of the top eigenvector of its gradient covariance"
        unit, name = "|cos(w, e1)|, mean over neurons", "random direction"
    elif against == "mean input":
        effects = paired(direction["w"], direction["mean input"], log_of_ratio)
        control = paired(direction["random"], direction["mean input"], log_of_ratio)
        sentence = (
            "A neuron's weights lie closer to the top eigenvector of its gradient covariance than its mean input does"
        )
        unit, name = "log(|cos(w, e1)| / |cos(mean input, e1)|)", "random direction in place of w"
    else:
        raise ConfigurationError(f"against must be 'random' or 'mean input', got {against!r}.")
    draft = Verdict(
        claim="C2",
        case="within 45 degrees" if against == "random" else "against the mean input",
        sentence=sentence,
        outcome="not tested",
        unit=unit,
        method="student",
        threshold=threshold,
        note=f"needs alignments of w, a random direction and the mean input for at least {MIN_PAIRS} seeds",
    )
    draft = _with_control(draft, name, control, lambda value: value < threshold)
    return _tested(draft, effects, note=f"mean |cos| with e1: {words}")


def sphericity(measured: Sequence[Measured], *, threshold: float = THRESHOLD) -> Verdict:
    r"""C3: how much closer to $cI$ removing $w$ brings a neuron's gradient covariance than removing a random direction.

    $\log(b_\text{random} / b_w)$, $b$ the Bures distance to the nearest multiple of the identity, mean over neurons.
    Any projection helps weakly (Cauchy interlacing), hence the random one. Control: removing $e_1$ must pass the
    threshold, else no direction stands out and nothing can be decided. The note gives what sampling alone leaves of a
    covariance that *is* a multiple of the identity (Marchenko & Pastur 1967).
    """
    distance = {
        name: averages([m for m in measured if m.record.projection == name], "bures")
        for name in ("none", "w", "random", "e1")
    }
    draft = Verdict(
        claim="C3",
        case="without w",
        sentence="Removing the direction of w brings a neuron's gradient covariance closer to a multiple of the "
        "identity than removing a random direction does",
        outcome="not tested",
        unit="log(Bures distance without a random direction / without w)",
        method="student",
        threshold=threshold,
        note=f"needs the sphericity of projected gradient covariances for at least {MIN_PAIRS} seeds",
    )
    control = paired(distance["random"], distance["e1"], log_of_ratio)
    draft = _with_control(draft, "e1 removed in place of w", control, lambda value: value > threshold)
    sizes = {(m.record.dim, m.record.num_examples) for m in measured if m.record.projection == "none"}
    words = ", ".join(f"{name} {np.mean(list(found.values())):.3f}" for name, found in distance.items() if found)
    null = [marchenko_pastur_bures(*size) for size in sizes]
    note = f"Bures distance without: {words}; sampling alone {min(null):.3f} to {max(null):.3f}" if null else ""
    return _tested(draft, paired(distance["random"], distance["w"], log_of_ratio), note=note)


def self_stabilizing(
    curves: Sequence[TrainingCurve],
    checks: Sequence[Check] = (),
    *,
    sweeps: Sequence[LearningRateSweep] = (),
    threshold: float = THRESHOLD,
    arms: tuple[str, str] = ("standard", "weight-norm"),
) -> Verdict:
    r"""C4: decades of learning rates that end within 10 % of the best final loss, weight norm minus standard.

    ``curves`` hold one run per arm, seed and learning rate, the same rates in both arms. Control: the identity
    $\|v_{t+1}\|^2 = \|v_t\|^2 + \eta^2 \|\partial L/\partial v\|^2$ of plain gradient descent, as ``checks``. A
    range that leaves the grid is a bound, so the test is the sign test. The threshold is taken in decades. Where
    ``sweeps`` of both arms are given, they are taken instead of curves; each has the rates that its arm needed, and its
    losses are means over the last epochs.
    """
    runs = [by_rate(curves, arm) for arm in arms]
    lows, highs = {}, {}
    if len(runs[0]) >= MIN_RATES and runs[0].keys() == runs[1].keys():
        for seed in sorted({seed for found in (*runs[0].values(), *runs[1].values()) for seed in found}):
            base, mine = (_width(arm, seed) for arm in runs)
            lows[seed], highs[seed] = _gap(mine, base)
    swept = [
        {sweep.seed: learning_rate_width(sweep.rates, sweep.final_losses) for sweep in sweeps if sweep.arm == arm}
        for arm in arms
    ]
    if all(swept):
        lows = paired(*swept[::-1], lambda mine, base: _gap(mine, base)[0])
        highs = paired(*swept[::-1], lambda mine, base: _gap(mine, base)[1])
    draft = Verdict(
        claim="C4",
        sentence="With weight norm a wider range of learning rates ends within 10 % of the best loss",
        outcome="not tested",
        unit="decades of learning rates, weight norm minus standard",
        method="sign",
        threshold=threshold / math.log(10),
        min_pairs=MIN_TRAINED_PAIRS,
        note="needs training curves of both arms at the same three or more learning rates, for at least "
        f"{MIN_TRAINED_PAIRS} seeds",
    )
    if checks:
        worst = _worst(checks)
        draft = replace(
            draft,
            control=worst.name,
            control_estimate=worst.value,
            control_low=worst.value,
            control_high=worst.value,
            control_passed=all(check.passed for check in checks),
        )
    return _tested(draft, lows, highs)


def identity(claim: str, checks: Sequence[Check], sentence: str = "") -> Verdict:
    """C5, C6: an identity, supported where every measured deviation is within its tolerance; no statistics.

    The deviation quoted is the largest in units of its own tolerance. One that is not finite decides nothing.
    """
    sentence = sentence or _IDENTITIES[claim]
    if not checks:
        return Verdict(claim, sentence, "not tested", note="needs the deviations of the identity, as checks")
    worst = _worst(checks)
    known = [check for check in checks if math.isfinite(check.value)]
    passed = all(check.passed for check in checks)
    return Verdict(
        claim,
        sentence,
        "supported" if passed else "refuted" if len(known) == len(checks) else "inconclusive",
        rule="supported where every deviation is within its tolerance, refuted where one is not",
        unit="largest deviation",
        method="identity",
        estimate=worst.value,
        low=worst.value,
        high=worst.value,
        threshold=worst.tolerance,
        num_pairs=len(known),
        num_missing=len(checks) - len(known),
        note=worst.name,
    )


def resemblance(measured: Sequence[Measured], *, gauge: str = "checkpoint", damping: float | None = None) -> Verdict:
    r"""C7: the index $R = (E - E_\text{SGD})/(E_\text{neuron-block} - E_\text{SGD})$ of weight norm's step.

    0 is gradient descent, 1 the best that a chart acting neuron by neuron could aim at. Supported above 0.5: nearer to
    the second. Control: the same multipliers around random directions (placebo) must not get there. The note holds the
    same index for the top eigenvector in place of $w$ and for the best single stretch.
    """
    own = steps_at(measured, "weight-norm", gauge, damping)
    others = {
        "e1 in place of w": steps_at(measured, "e1-direction", None, damping),
        "best stretch": steps_at(measured, "weight-norm", "best stretch", damping),
        "paper's gauge": steps_at(measured, "weight-norm", "paper", damping),
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
    placebo = averages(steps_at(measured, "placebo", None, damping), "index")
    draft = _with_control(
        draft, "placebo (random directions, the paper's multipliers)", placebo, lambda value: value < RESEMBLES
    )
    means = {name: [m.record.index for m in found if math.isfinite(m.record.index)] for name, found in others.items()}
    words = ", ".join(f"{name} {np.mean(found):+.2f}" for name, found in means.items() if found)
    return _tested(draft, averages(own, "index"), note=f"R of {words}" if words else "")


def efficiency(
    measured: Sequence[Measured], *, gauge: str = "paper", threshold: float = THRESHOLD, damping: float | None = None
) -> Verdict:
    r"""C7: $\log(E_\text{weight norm} / E_\text{placebo})$ at one gauge: is it the direction $w$ that matters.

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
        note=f"needs efficiencies of weight norm and of the placebo at the gauge {gauge!r}, {MIN_PAIRS} seeds or more",
    )
    ours, placebo, canonical, standard = (
        averages(steps_at(measured, *chart, damping), "efficiency")
        for chart in (("weight-norm", gauge), ("placebo", gauge), ("weight-norm", "canonical"), ("standard", "-"))
    )
    draft = _with_zero_control(
        draft, "canonical gauge against gradient descent", paired(canonical, standard, log_of_ratio)
    )
    return _tested(draft, paired(ours, placebo, log_of_ratio))


def closeness(
    measured: Sequence[Measured],
    *,
    gauge: str = "checkpoint",
    threshold: float = THRESHOLD,
    damping: float | None = None,
) -> Verdict:
    r"""C7: log-ratio of the condition numbers of $K^{1/2}(F + \lambda I)K^{1/2}$, standard over weight norm.

    The condition number is 1 where $K$ is a multiple of the inverse Fisher. Control: the canonical gauge, exactly 0.
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
    ours, standard, canonical = (
        averages(steps_at(measured, *chart, damping), "kappa")
        for chart in (("weight-norm", gauge), ("standard", "-"), ("weight-norm", "canonical"))
    )
    draft = _with_zero_control(draft, "canonical gauge", paired(standard, canonical, log_of_ratio))
    return _tested(draft, paired(standard, ours, log_of_ratio))


def training_speed(
    curves: Sequence[TrainingCurve],
    *,
    sweeps: Sequence[LearningRateSweep] = (),
    threshold: float = THRESHOLD,
    loss: float | None = None,
    arms: tuple[str, str] = ("standard", "weight-norm"),
) -> Verdict:
    r"""C8: log-ratio of the steps to a fixed loss, standard over weight norm, each arm at its best learning rate.

    Parameters
    ----------
    curves
        One run per arm, seed and learning rate, the same rates in both arms; with ``sweeps``, one run per arm and seed
        at the rate that its sweep chose.
    loss
        The loss to reach. None: 1.1 times the largest final loss of either arm at the learning rate that is best for
        its median final loss, so that both arms have a rate at which every run gets there (if none diverged).

    Notes
    -----
    An arm's rate is the one with the fewest steps (median over seeds). A run that never gets there needs more steps
    than it had, which is a bound and not a number: hence the median and the exact sign test. Where the best rate of an
    arm lies at an edge of the grid nothing is decided; extend the grid.
    """
    draft = Verdict(
        claim="C8",
        sentence="With weight norm training reaches a fixed loss in fewer steps, each arm at its best learning rate",
        outcome="not tested",
        unit="log(steps of the standard arm / of the weight-normalized arm)",
        method="sign",
        threshold=threshold,
        min_pairs=MIN_TRAINED_PAIRS,
        note="needs training curves of both arms at the same three or more learning rates, for at least "
        f"{MIN_TRAINED_PAIRS} seeds",
    )
    swept = [[sweep for sweep in sweeps if sweep.arm == arm] for arm in arms]
    if all(swept):
        runs = [{curve.seed: curve for curve in curves if curve.arm == arm} for arm in arms]
        if not all(runs):
            return draft
        if loss is None:
            ends = [final_loss(run) for arm in runs for run in arm.values()]
            loss = NEAR_BEST * max((end for end in ends if math.isfinite(end)), default=math.inf)
        tuned = [float(np.median([sweep.chosen for sweep in arm])) for arm in swept]
        inside = not any(sweep.at_edge for arm in swept for sweep in arm)
    else:
        grids = [by_rate(curves, arm) for arm in arms]
        rates = sorted(grids[0])
        if len(rates) < MIN_RATES or rates != sorted(grids[1]):
            return draft
        if loss is None:
            loss = NEAR_BEST * max(_slowest_loss(grid) for grid in grids)
        tuned = [tuned_rate(grid, loss) for grid in grids]
        runs = [grid[rate] for grid, rate in zip(grids, tuned, strict=True)]
        inside = not {rates[0], rates[-1]} & set(tuned)
    base, ours = ({seed: steps_to(run, loss) for seed, run in arm.items()} for arm in runs)
    lows = paired(base, ours, lambda theirs, mine: log_of_ratio(theirs[0], mine[1]))
    highs = paired(base, ours, lambda theirs, mine: log_of_ratio(theirs[1], mine[0]))
    missed = sum(math.isinf(high) for found in (base, ours) for _, high in found.values())
    note = f"to a loss of {loss:.4g}; learning rates {tuned[0]:.3g} ({arms[0]}) and {tuned[1]:.3g} ({arms[1]})"
    note += f"; {missed} runs never got there (bounds)" if missed else ""
    draft = replace(draft, control="best learning rates inside the grid", control_passed=inside)
    return _tested(draft, lows, highs, note=note)


def _tested(
    draft: Verdict, lows: Mapping[int, float], highs: Mapping[int, float] | None = None, note: str = ""
) -> Verdict:
    """Decide a claim on its own; pairs without a number are counted."""
    if not lows:
        return draft
    pairs = {seed: (lows[seed], (highs or lows)[seed]) for seed in sorted(lows)}
    bounded = draft.method == "sign"
    kept = [pair for pair in pairs.values() if not any(map(math.isnan, pair)) and (bounded or math.isfinite(pair[0]))]
    exact = all(low == high for low, high in kept)
    draft = replace(
        draft,
        effects=tuple(low for low, _ in kept),
        ceilings=() if exact else tuple(high for _, high in kept),
        num_missing=len(pairs) - len(kept),
        min_pairs=max(MIN_PAIRS, draft.min_pairs),
        note=note,
    )
    return decide(draft)


def _with_control(draft: Verdict, name: str, values: Mapping[int, float], passes: Callable[[float], bool]) -> Verdict:
    kept = [value for value in values.values() if math.isfinite(value)]
    if not kept:
        return draft
    low, high = paired_interval(kept)
    mean = float(np.mean(kept))
    return replace(
        draft, control=name, control_estimate=mean, control_low=low, control_high=high, control_passed=passes(mean)
    )


def _with_zero_control(draft: Verdict, name: str, values: Mapping[int, float]) -> Verdict:
    """Control that must be zero up to rounding in every pair; a pair that cannot be compared says nothing."""
    found = [abs(value) for value in values.values() if math.isfinite(value)]
    worst = max(found, default=math.nan)
    return _with_control(draft, name, values, lambda _: worst <= CONTROL_SHARE * draft.threshold)


def _gap(mine: Quantity, base: Quantity) -> tuple[float, float]:
    """Lower and upper end of the difference of two widths, either of which may be a lower bound."""
    difference = mine.value - base.value
    known = not math.isnan(difference)
    low = -math.inf if known and base.status == "lower_bound" else difference
    return low, math.inf if known and mine.status == "lower_bound" else difference


def _slowest_loss(arm: Mapping[float, Mapping[int, TrainingCurve]]) -> float:
    """Largest finite final loss at the rate with the smallest median final loss."""
    finals = [[final_loss(run) for run in runs.values()] for runs in arm.values()]
    best = min(finals, key=lambda losses: float(np.median(losses)))
    return max((loss for loss in best if math.isfinite(loss)), default=math.inf)


def _width(arm: Mapping[float, Mapping[int, TrainingCurve]], seed: int) -> Quantity:
    """Width of the range of one seed: one missing run leaves it unknown, one that diverged ends it."""
    if any(seed not in runs for runs in arm.values()):
        return Quantity(math.nan, "undefined", "a run is missing")
    return learning_rate_width(list(arm), [final_loss(runs[seed]) for runs in arm.values()])


def _worst(checks: Sequence[Check]) -> Check:
    """The check with the largest deviation in units of its tolerance; one that is not a number first."""
    return max(
        checks, key=lambda check: math.inf if math.isnan(check.value) else check.value / max(check.tolerance, 1e-300)
    )
