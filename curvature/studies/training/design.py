"""The two designs: every arm trains itself (trajectories), every checkpoint is lifted to every gauge (pointwise)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from curvature.charts import Parameterization, Placebo, Standard, WeightNorm
from curvature.errors import ConfigurationError, SelfCheckError
from curvature.models import Problem
from curvature.precision import full_precision
from curvature.records import Check, LearningRateSweep
from curvature.studies.training.arms import Arm, start
from curvature.studies.training.initialization import Start
from curvature.studies.training.loop import Checkpoint, Run, train
from curvature.studies.training.optimizers import SGD, Optimizer
from curvature.studies.training.recursion import NormRecursion
from curvature.studies.training.schedule import Schedule
from curvature.studies.training.sweep import tune_learning_rate

__all__ = ["DEFAULT_ARMS", "Trajectory", "TrajectorySettings", "lifts", "trajectories"]

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
        The rule; its learning rate is replaced by each arm's own.
    rates
        The grid of learning rates, at least 7, evenly spaced in the logarithm; it grows at an edge by at most
        ``max_extensions`` points.
    tuning_epochs
        Budget of each run of the sweep.
    epochs, batch_size
        Of the run that is kept.
    levels
        Losses at which every arm is also measured.
    evaluate_every
        Steps between evaluations of the loss: how finely levels and steps to a loss are known. None: an epoch.
    """

    optimizer: Optimizer = field(default_factory=lambda: SGD(0.1))
    rates: tuple[float, ...] = tuple(float(rate) for rate in np.logspace(-2, 1, 7))
    max_extensions: int = 6
    tuning_epochs: int = 10
    epochs: int = 30
    batch_size: int = 64
    levels: tuple[float, ...] = (1.0, 0.5, 0.25)
    evaluate_every: int | None = None

    def __post_init__(self) -> None:
        if len(self.rates) < 7:
            raise ConfigurationError(f"a fair sweep needs at least 7 learning rates, got {len(self.rates)}.")
        if self.epochs < 4:
            raise ConfigurationError(f"epochs must be at least 4 (init, early, middle, late), got {self.epochs}.")

    @property
    def checkpoints(self) -> dict[str, int]:
        """Epochs of the checkpoints: before training, after a tenth, half way, at the end."""
        return {"init": 0, "early": max(1, self.epochs // 10), "middle": self.epochs // 2, "late": self.epochs}

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
    start
        The weights at step 0, with the problem; ``start.problem.at(checkpoint.weights)`` is what a checkpoint is
        measured on.
    run
        None where every learning rate diverged.
    """

    arm: Arm
    start: Start
    sweep: LearningRateSweep
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

    Cost: ``len(arms) * (len(rates) * tuning_epochs + epochs)`` epochs, more where a grid grows.

    Parameters
    ----------
    problem
        The model as it was initialized for this seed.
    say
        Told what is done, and which share of the arms is.

    Raises
    ------
    SelfCheckError
        If an arm does not start at the function of its start.
    """
    settings = settings or TrajectorySettings()
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"every arm may stand once, got {', '.join(names)}.")
    starts: dict[str, Start] = {}
    found = []
    for number, arm in enumerate(arms):
        if say:
            say(f"seed {seed}: the arm {arm.name}", number / len(arms))
        if arm.start not in starts:
            starts[arm.start] = start(problem, arm.start, seed=seed, batch_size=settings.batch_size)
        found.append(_trajectory(arm, starts[arm.start], settings, seed))
    return tuple(found)


def _trajectory(arm: Arm, begun: Start, settings: TrajectorySettings, seed: int) -> Trajectory:
    checks = [_matched(arm, begun, seed)]
    sweep = tune_learning_rate(
        begun.problem,
        lambda: arm.begin(begun),
        settings.tuning,
        arm=arm.name,
        seed=seed,
        optimizer=settings.optimizer,
        rates=settings.rates,
        max_extensions=settings.max_extensions,
    )
    if not np.isfinite(sweep.chosen):
        return Trajectory(arm, begun, sweep, None, tuple(checks))
    optimizer = settings.optimizer.at_rate(sweep.chosen)
    trainable = arm.begin(begun)
    recursion = NormRecursion(trainable, optimizer) if NormRecursion.applies(trainable, optimizer) else None
    run = train(
        begun.problem,
        trainable,
        settings.schedule,
        arm=arm.name,
        seed=seed,
        optimizer=optimizer,
        watch=recursion,
    )
    if recursion is not None:
        checks.append(recursion.check(f"{arm.name}, seed {seed}"))
    return Trajectory(arm, begun, sweep, run, tuple(checks))


def _matched(arm: Arm, begun: Start, seed: int) -> Check:
    """Outputs at the coordinates where the arm starts, against those of its start; to rounding."""
    trainable = arm.begin(begun)
    with torch.no_grad():
        outputs = begun.problem.outputs(trainable.weights(trainable.coordinates))
    expected = begun.problem.outputs()
    check = Check(
        f"the arm starts at the function of its start ({arm.name}, seed {seed})",
        float((outputs - expected).abs().max() / expected.abs().max()),
        1e4 * torch.finfo(expected.dtype).eps,
        "largest difference of an output over the largest output",
    )
    if not check.passed:
        raise SelfCheckError(f"{check.name} fails: outputs differ by {check.value:.1e}.")
    return check


def lifts(checkpoint: Checkpoint, *, seed: int = 0) -> list[Parameterization]:
    """Charts in which one checkpoint is measured: the same weights, hence the same function, at every gauge.

    Standard, weight norm at PyTorch's and the paper's gauge, the placebo at the paper's, and the chart that the run
    reached, unless it is the standard one.
    """
    charts = [Standard(), WeightNorm(), WeightNorm("paper"), Placebo("paper", seed=seed)]
    return charts if checkpoint.chart.name == Standard.name else [*charts, checkpoint.chart]
