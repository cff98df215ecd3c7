"""What a study trains and measures: the quick study of two arms, and the full one with its controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict, Unpack

from curvature.errors import ConfigurationError
from curvature.matrices import MATRICES
from curvature.studies.evidence import THRESHOLD
from curvature.studies.training import DEFAULT_ARMS, SGD, Arm, TrajectorySettings

__all__ = ["MeasuringOptions", "StudySettings", "full_settings", "known_matrices", "quick_settings"]

HEADLINE = ("standard", "weight-norm")  # the arms of the verdicts
# The standard arm, the weight-normalized arm of the paper, and the standard method from the latter's initial weights.
PUBLISHED = ("standard", "weight-norm-paper, paper start", "standard, paper start")


@dataclass(frozen=True)
class StudySettings:
    """A study: every seed times every arm, each trained and measured. The defaults are those of the full study.

    Attributes
    ----------
    seeds
        Paired seeds: each draws one initialization and one order of the data, shared by the arms. A claim about
        training needs at least 10.
    arms, training
        What is trained, and how.
    followed
        Names of the arms that are measured at every checkpoint and in every matrix; the others at the first and the
        last one, by the GGN in the standard chart and in their own.
    own_chart_only
        Followed arms that are measured in every chart at the start alone, where the arms share weights; later in the
        standard chart and their own: no stretches, and no steps, which compare charts. Claims at the same weights take
        those of the weight-norm arm.
    matrices
        Measured along the followed arms.
    both_hessians
        Measure the Hessian of weight norm both in the coordinates of the chart and as an effective matrix.
    stretches
        Gauges of weight norm in which the GGN is measured too, at the weights of the arms with every chart.
    swept_at
        Checkpoints at which it is.
    steps_at
        Checkpoints at which gradient noise of the followed arms is measured, and steps of those with every chart.
    league_at
        Those of them at which the whitening league is measured too, at the weights of the weight-norm arm.
    relative_dampings
        Dampings of the natural-gradient comparison, in units of the mean eigenvalue of the Fisher.
    relative_damping
        The one damping at which closeness to the natural gradient is also measured (at the first and the last
        checkpoint: it costs the eigenvalues of every chart).
    closeness_of_controls
        Measure the closeness of every chart; False: only what the claim compares, at the last checkpoint the standard
        chart, and weight norm at the canonical gauge and at the one that training reached.
    threshold
        The smallest effect that counts in a verdict, as a log-ratio; 10 %.
    whole_batches
        Train the arms that the decomposition needs once more without minibatch noise, for as many steps.

    Raises
    ------
    ConfigurationError
        If a seed is repeated or missing, or a matrix is unknown.
    """

    seeds: tuple[int, ...] = tuple(range(10))
    arms: tuple[Arm, ...] = DEFAULT_ARMS
    training: TrajectorySettings = field(default_factory=TrajectorySettings)
    followed: tuple[str, ...] = (*HEADLINE, *PUBLISHED[1:])
    own_chart_only: tuple[str, ...] = ()
    matrices: tuple[str, ...] = ("hessian", "ggn", "gradient_covariance")
    both_hessians: bool = False
    stretches: tuple[float, ...] = ()
    swept_at: tuple[str, ...] = ("late",)
    steps_at: tuple[str, ...] = ("init", "late")
    league_at: tuple[str, ...] = ("init", "late")
    relative_dampings: tuple[float, ...] = (1e-3,)
    relative_damping: float = 1e-3
    closeness_of_controls: bool = True
    threshold: float = THRESHOLD
    whole_batches: bool = True

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigurationError(f"seeds must be distinct and at least one, got {self.seeds}.")
        known_matrices(self.matrices)

    def in_every_chart(self, arm: str, checkpoint: str) -> bool:
        """Whether an arm is measured in every chart at a checkpoint, by their names."""
        return arm in self.followed and (checkpoint == "init" or arm not in self.own_chart_only)

    @property
    def published(self) -> tuple[str, str, str] | None:
        """Names of the arms that the verdicts on the paper's start need; None if they are not all trained."""
        return PUBLISHED if {arm.name for arm in self.arms}.issuperset(PUBLISHED) else None


class MeasuringOptions(TypedDict, total=False):
    """Fields of :class:`StudySettings` that both presets pass on."""

    matrices: tuple[str, ...]
    stretches: tuple[float, ...]
    relative_dampings: tuple[float, ...]
    relative_damping: float
    threshold: float


def quick_settings(
    *,
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 30,
    batch_size: int = 64,
    learning_rate: float = 0.2,
    momentum: float = 0.0,
    **measured: Unpack[MeasuringOptions],
) -> StudySettings:
    """Settings of ``curvature compare``: two arms at one learning rate, measured before and after training.

    After training the weight-norm arm is measured in every chart, the standard arm in its own.

    Parameters
    ----------
    seeds
        Paired seeds.
    epochs, batch_size, learning_rate, momentum
        Minibatch gradient descent, the same in both arms.
    **measured
        Fields of :class:`StudySettings`; by default four stretches and three relative dampings.

    Returns
    -------
    StudySettings
        For :func:`~curvature.studies.run_study`.
    """
    stages = ("init", "late")
    training = TrajectorySettings(
        optimizer=SGD(learning_rate, momentum=momentum),
        rates=(),
        epochs=epochs,
        batch_size=batch_size,
        stages=stages,
        levels=(),
    )
    sweeps: MeasuringOptions = {
        "stretches": (0.125, 0.5, 2.0, 8.0),
        "relative_dampings": (1e-5, 1e-3, 1e-1),
    }
    return StudySettings(
        seeds=tuple(seeds),
        arms=tuple(Arm(name) for name in HEADLINE),
        training=training,
        own_chart_only=HEADLINE[:1],
        league_at=(),
        closeness_of_controls=False,
        whole_batches=False,
        **(sweeps | measured),
    )


def full_settings(
    *,
    seeds: Sequence[int] = range(10),
    epochs: int = 30,
    batch_size: int = 64,
    learning_rate: float = 0.2,
    momentum: float = 0.0,
    tuning_epochs: int = 10,
    **measured: Unpack[MeasuringOptions],
) -> StudySettings:
    """Settings of ``curvature compare --full``: every arm with its controls, each at its own learning rate.

    Parameters
    ----------
    seeds
        Paired seeds.
    epochs, batch_size, momentum
        Minibatch gradient descent, the same in all arms.
    learning_rate
        Replaced by the one that each arm's sweep chooses.
    tuning_epochs
        Of each run of the sweep.
    **measured
        Fields of :class:`StudySettings`; by default no stretches, and ``relative_damping`` alone.

    Returns
    -------
    StudySettings
        For :func:`~curvature.studies.run_study`.
    """
    training = TrajectorySettings(
        optimizer=SGD(learning_rate, momentum=momentum),
        tuning_epochs=tuning_epochs,
        epochs=epochs,
        batch_size=batch_size,
    )
    dampings: MeasuringOptions = {"relative_dampings": (measured.get("relative_damping", 1e-3),)}
    return StudySettings(seeds=tuple(seeds), training=training, **(dampings | measured))


def known_matrices(names: Sequence[str]) -> tuple[str, ...]:
    """Refuse names of matrices that do not exist.

    Parameters
    ----------
    names
        At least one.

    Returns
    -------
    tuple
        The names.

    Raises
    ------
    ConfigurationError
        If one is not in ``curvature.matrices.MATRICES``, or there is none.
    """
    unknown = [name for name in names if name not in MATRICES]
    if unknown or not names:
        raise ConfigurationError(f"matrices must be among {', '.join(MATRICES)}, got {', '.join(unknown) or 'none'}.")
    return tuple(names)
