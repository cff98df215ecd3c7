"""Claims about the gradient covariance of single neurons: its dominant direction (C2) and its roundness (C3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from curvature.errors import ConfigurationError
from curvature.records import Alignment, Measured, Verdict, Whitening
from curvature.records.marchenko_pastur import marchenko_pastur_bures
from curvature.studies.evidence.claims.drafts import decided, with_control
from curvature.studies.evidence.inference import MIN_PAIRS, THRESHOLD
from curvature.studies.evidence.pairs import averages, log_of_ratio, paired

__all__ = ["alignment", "sphericity"]

CLOSE = 2**-0.5  # within 45 degrees: closer to the direction than to its complement


def alignment(
    measured: Sequence[Measured[Alignment]], *, against: str = "random", threshold: float = THRESHOLD
) -> Verdict:
    r"""C2: $|\cos(w, e_1)|$, mean over neurons, $e_1$ the top eigenvector of the neuron's gradient covariance.

    Parameters
    ----------
    measured
        :class:`Alignment` records of the weight-normalized arm.
    against
        ``"random"``: $w$ must be within 45 degrees of $e_1$, $|\cos| > 1/\sqrt 2$, and a random direction must not be
        (in two dimensions it is). ``"mean input"``: $w$ must be closer to $e_1$ than the mean input activation is;
        a random direction must not be.
    threshold
        Against the mean input, the smallest log-ratio of the mean cosines that counts.

    Returns
    -------
    Verdict
        Decided on its own.

    Raises
    ------
    ConfigurationError
        If ``against`` is neither of the two.
    """
    cosines = {
        name: averages([m for m in measured if m.record.direction == name], "cosine")
        for name in ("w", "random", "mean input")
    }
    if against == "random":
        effects, control, threshold = cosines["w"], cosines["random"], CLOSE
        case, sentence = (
            "within 45 degrees",
            "A neuron's weights are within 45 degrees of the top eigenvector of its gradient covariance",
        )
        unit, control_name = "|cos(w, e1)|, mean over neurons", "random direction"
    elif against == "mean input":
        effects = paired(cosines["w"], cosines["mean input"], log_of_ratio)
        control = paired(cosines["random"], cosines["mean input"], log_of_ratio)
        case, sentence = (
            "against the mean input",
            "A neuron's weights are closer to the top eigenvector of its gradient covariance than its mean input is",
        )
        unit, control_name = "log(|cos(w, e1)| / |cos(mean input, e1)|)", "random direction in place of w"
    else:
        raise ConfigurationError(f"against must be 'random' or 'mean input', got {against!r}.")
    draft = Verdict(
        claim="C2",
        case=case,
        sentence=sentence,
        outcome="not tested",
        unit=unit,
        method="student",
        threshold=threshold,
        note=f"needs alignments of w, a random direction and the mean input for at least {MIN_PAIRS} seeds",
    )
    draft = with_control(draft, control_name, control, lambda value: value < threshold)
    return decided(draft, effects, note=f"mean |cos| with e1: {_means(cosines, '.2f')}")


def sphericity(measured: Sequence[Measured[Whitening]], *, threshold: float = THRESHOLD) -> Verdict:
    r"""C3: how much closer to $cI$ removing $w$ brings a neuron's gradient covariance than removing a random direction.

    Parameters
    ----------
    measured
        :class:`Whitening` records of the weight-normalized arm.
    threshold
        The smallest log-ratio that counts.

    Returns
    -------
    Verdict
        Decided on its own. Its note gives what sampling alone leaves of a covariance that *is* a multiple of the
        identity (Marchenko & Pastur 1967).

    Notes
    -----
    $\log(b_\text{random} / b_w)$, $b$ the Bures distance to the nearest multiple of the identity, mean over neurons.
    Any projection helps weakly (Cauchy interlacing), hence the random one. Control: removing $e_1$ must pass the
    threshold; otherwise no direction dominates and nothing can be decided.
    """
    distances = {
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
    control = paired(distances["random"], distances["e1"], log_of_ratio)
    draft = with_control(draft, "e1 removed in place of w", control, lambda value: value > threshold)
    sizes = {(m.record.dim, m.record.num_examples) for m in measured if m.record.projection == "none"}
    sampling = [marchenko_pastur_bures(dim, num_examples) for dim, num_examples in sizes]
    note = ""
    if sampling:
        note = f"Bures distance after removing: {_means(distances, '.3f')}; "
        note += f"sampling alone gives {min(sampling):.3f} to {max(sampling):.3f}"
    return decided(draft, paired(distances["random"], distances["w"], log_of_ratio), note=note)


def _means(by_name: Mapping[str, Mapping[int, float]], digits: str) -> str:
    """Mean over seeds of every number that was measured, as text."""
    means = {name: np.mean(list(by_seed.values())) for name, by_seed in by_name.items() if by_seed}
    return ", ".join(f"{'nothing' if name == 'none' else name} {mean:{digits}}" for name, mean in means.items())
