"""The design of a study: every arm tuned and trained alike, from the same start and on the same order of the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from curvature.errors import ConfigurationError, SelfCheckError
from curvature.models import Problem
from curvature.precision import full_precision
from curvature.records import Check, LearningRateSweep
from curvature.studies.training.arms import Arm
from curvature.studies.training.arms import start as begin
from curvature.studies.training.initialization import Start
from curvature.studies.training.loop import Run, train
from curvature.studies.training.optimizers import SGD, Optimizer
from curvature.studies.training.recursion import NormRecursion
from curvature.studies.training.schedule import Schedule
from curvature.studies.training.sweep import tune_learning_rate

__all__ = ["DEFAULT_ARMS", "Trajectory", "TrajectorySettings", "trajectories"]

Say = Callable[[str, float], None]

DEFAULT_ARMS = (
    Arm("standard"),
    Arm("weight-norm"),
    Arm("weight-norm-log"),
    Arm("mean-only-batch-norm"),
    Arm("weight-norm+mean-only-batch-norm"),
    Arm("batch-norm"),
    Arm("prong"),
    Arm("placebo"),
    Arm("standard", start="paper"),
    Arm("scaled-standard", start="paper"),
    Arm("weight-norm", start="paper"),
    Arm("weight-norm-paper", start="paper"),
    Arm("placebo-paper", start="paper"),
)


@dataclass(frozen=True)
class TrajectorySettings:
    """What all arms share: the rule, the budgets, where to stop and look.

    Attributes
    ----------
    optimizer
        The rule; its learning rate is replaced by each arm's own, unless nothing is tuned.
    rates
        The grid of learning rates, at least 7, evenly spaced in the logarithm; it grows at an edge by at most
        ``max_extensions`` points. Empty: nothing is tuned, and every arm trains at the rate of the optimizer.
    tuning_epochs
        Budget of each run of the sweep.
    epochs, batch_size
        Of the run that is kept.
    stages
        Checkpoints, in this order: ``"init"``, ``"early"`` (a tenth of the epochs), ``"middle"``, ``"late"``.
    levels
        Losses at which every arm is also measured.
    evaluate_every
        Steps between evaluations of the loss: how finely levels and steps to a loss are known. None: an epoch.

    Raises
    ------
    ConfigurationError
        If the grid is too short for a fair sweep, or there are too few epochs for the checkpoints.
    """

    optimizer: Optimizer = field(default_factory=lambda: SGD(0.1))
    rates: tuple[float, ...] = tuple(float(rate) for rate in np.logspace(-2, 1, 7))
    max_extensions: int = 6
    tuning_epochs: int = 10
    epochs: int = 30
    batch_size: int = 64
    stages: tuple[str, ...] = ("init", "early", "middle", "late")
    levels: tuple[float, ...] = (1.0, 0.5, 0.25)
    evaluate_every: int | None = None

    def __post_init__(self) -> None:
        if self.rates and len(self.rates) < 7:
            raise ConfigurationError(f"a fair sweep needs at least 7 learning rates, got {len(self.rates)}.")
        fewest = 4 if "middle" in self.stages else 2
        if self.epochs < fewest:
            raise ConfigurationError(
                f"epochs must be at least {fewest} for the checkpoints {', '.join(self.stages)}, got {self.epochs}."
            )

    @property
    def checkpoints(self) -> dict[str, int]:
        """Epochs of the checkpoints."""
        epochs = {"init": 0, "early": max(1, self.epochs // 10), "middle": self.epochs // 2, "late": self.epochs}
        return {stage: epochs[stage] for stage in self.stages}

    @property
    def tuning(self) -> Schedule:
        """Schedule of each run of the sweep."""
        return Schedule(self.tuning_epochs, self.batch_size)

    @property
    def schedule(self) -> Schedule:
        """Schedule of the run that is kept."""
        levels = {f"loss {level:g}": level for level in self.levels}
        return Schedule(self.epochs, self.batch_size, self.checkpoints, levels, self.evaluate_every)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One arm at one seed: its sweep, its run at the rate chosen, and what was checked.

    Attributes
    ----------
    arm
        What was trained.
    start
        The weights at step 0, with the problem; ``start.problem.at(checkpoint.weights)`` is what a checkpoint is
        measured on.
    sweep
        None where nothing was tuned.
    run
        None where every learning rate diverged.
    checks
        That the arm starts at the function of its start, and the recursion of the length of ``v``.
    """

    arm: Arm
    start: Start
    sweep: LearningRateSweep | None
    run: Run | None
    checks: tuple[Check, ...] = field(repr=False)


@full_precision()
def trajectories(
    problem: Problem,
    arms: Sequence[Arm] = DEFAULT_ARMS,
    settings: TrajectorySettings | None = None,
    *,
    seed: int,
    say: Say | None = None,
) -> tuple[Trajectory, ...]:
    """Tune and train every arm at one seed: the same data order for all, the same function for all of one start.

    Parameters
    ----------
    problem
        The model as it was initialized for this seed.
    arms
        What is trained.
    settings
        How; None: the defaults.
    seed
        Draws the order of the data, and everything else that is random.
    say
        Called with a message and the share of the arms that is done.

    Returns
    -------
    tuple
        One trajectory for each arm.

    Raises
    ------
    ConfigurationError
        If an arm is repeated.
    SelfCheckError
        If an arm does not start at the function of its start.
    NonFiniteError
        If nothing is tuned and training diverges.

    Notes
    -----
    Costs ``len(arms) * (len(rates) * tuning_epochs + epochs)`` epochs, more where a grid grows.
    """
    settings = settings or TrajectorySettings()
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"arms must be distinct, got {', '.join(names)}.")
    starts: dict[str, Start] = {}
    results = []
    for number, arm in enumerate(arms):
        if say:
            say(f"seed {seed}: training the {arm.name} arm", number / len(arms))
        if arm.start not in starts:
            starts[arm.start] = begin(problem, arm.start, seed=seed, batch_size=settings.batch_size)
        results.append(_trajectory(arm, starts[arm.start], settings))
    return tuple(results)


def _trajectory(arm: Arm, start: Start, settings: TrajectorySettings) -> Trajectory:
    seed = start.seed
    if not settings.rates:
        run = train(
            start.problem, arm.begin(start), settings.schedule, arm=arm.name, seed=seed, optimizer=settings.optimizer
        )
        return Trajectory(arm, start, None, run.require_finite(), ())
    checks = [_matched(arm, start)]
    sweep = tune_learning_rate(
        start.problem,
        lambda: arm.begin(start),
        settings.tuning,
        arm=arm.name,
        seed=seed,
        optimizer=settings.optimizer,
        rates=settings.rates,
        max_extensions=settings.max_extensions,
    )
    if not np.isfinite(sweep.chosen):
        return Trajectory(arm, start, sweep, None, tuple(checks))
    optimizer = settings.optimizer.at_rate(sweep.chosen)
    trainable = arm.begin(start)
    recursion = NormRecursion(trainable, optimizer) if NormRecursion.applies(trainable, optimizer) else None
    run = train(
        start.problem,
        trainable,
        settings.schedule,
        arm=arm.name,
        seed=seed,
        optimizer=optimizer,
        watch=recursion,
    )
    if recursion is not None:
        checks.append(recursion.check(f"{arm.name}, seed {seed}"))
    return Trajectory(arm, start, sweep, run, tuple(checks))


def _matched(arm: Arm, start: Start) -> Check:
    """Outputs at the coordinates where the arm starts, against those of its start; to rounding."""
    trainable = arm.begin(start)
    with torch.no_grad():
        outputs = start.problem.outputs(trainable.weights(trainable.coordinates))
    expected = start.problem.outputs()
    check = Check(
        f"the arm starts at the function of its start ({arm.name}, seed {start.seed})",
        float((outputs - expected).abs().max() / expected.abs().max()),
        1e4 * torch.finfo(expected.dtype).eps,
        "largest difference of an output over the largest output",
    )
    if not check.passed:
        raise SelfCheckError(f"{check.name} fails: outputs differ by {check.value:.1e}.")
    return check
