"""Train one arm: the same weights, data and order, in the coordinates of a chart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.charts import Parameterization
from curvature.errors import NonFiniteError
from curvature.models import Problem
from curvature.models.trees import Tensors
from curvature.precision import full_precision
from curvature.records import TrainingCurve
from curvature.studies.training.optimizers import Optimizer, Update
from curvature.studies.training.schedule import Schedule
from curvature.studies.training.trainable import Trainable

__all__ = ["Checkpoint", "Run", "Watch", "train"]

Watch = Callable[[Tensor, Tensor, Tensor], None]
"""``watch(before, gradient, after)``: coordinates before and after one step; none of them may be kept or changed."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A point of a run: its weights, its coordinates, and the chart there (its own gauge)."""

    name: str
    step: int
    weights: Float[Tensor, "weights"] = field(repr=False)
    coordinates: Float[Tensor, "coordinates"] = field(repr=False)
    chart: Parameterization


@dataclass(frozen=True, eq=False)
class Run:
    """One arm trained once.

    Attributes
    ----------
    curve
        Losses over all data. If training diverged, the last one is infinite.
    checkpoints
        In the order in which they were reached.
    missing
        Name of each checkpoint that was not reached, with the reason.
    diverged
        What happened, in one sentence, or None.
    """

    curve: TrainingCurve
    checkpoints: tuple[Checkpoint, ...]
    missing: Mapping[str, str] = field(default_factory=dict)
    diverged: str | None = None

    def require_finite(self) -> Run:
        """Return the run; raise :class:`NonFiniteError` if training diverged."""
        if self.diverged is not None:
            raise NonFiniteError(self.diverged)
        return self


@full_precision()
@torch.no_grad()
def train(
    problem: Problem,
    trained: Parameterization | Trainable,
    schedule: Schedule,
    *,
    arm: str,
    seed: int,
    optimizer: Optimizer,
    watch: Watch | None = None,
) -> Run:
    r"""Minibatch training of the coordinates of a chart that starts at the problem's weights.

    Every step takes $J(\theta)^T \nabla L_B$, with the mean loss $L_B$ of the batch and the penalty of the problem, to
    the optimizer. Only first derivatives are taken through the chart. Divergence is an outcome: the run ends there.

    Parameters
    ----------
    problem
        The starting weights, the loss and all data.
    trained
        What is optimized: a parameterization, or a :class:`Trainable` of this problem.
    schedule
        Epochs, batch size, checkpoints and evaluations.
    arm, seed
        For the records; ``seed`` also draws the order of the data, the same for every arm.
    optimizer
        The rule, with its learning rate.
    watch
        Called after every step.

    Returns
    -------
    Run
        Curve and checkpoints; ``diverged`` tells whether it ended early.

    Raises
    ------
    NonFiniteError
        If the loss is not finite at the start.

    Examples
    --------
    >>> from curvature.models import zoo
    >>> from curvature.charts import WeightNorm
    >>> from curvature.studies.training import SGD
    >>> schedule = Schedule(epochs=2, batch_size=10, checkpoints={"end": 2})
    >>> problem = zoo.digits_problem(50, widths=(4,))
    >>> run = train(problem, WeightNorm(), schedule, arm="weight-norm", seed=0, optimizer=SGD(0.1))
    >>> run.curve.steps.tolist(), run.checkpoints[0].chart.name
    ([0, 5, 10], 'weight-norm')
    """
    trainable = trained if isinstance(trained, Trainable) else Trainable(problem, trained)
    coordinates = trainable.coordinates.clone()
    outputs = problem.outputs(trainable.weights(coordinates))
    record = _Record(problem, trainable, schedule)
    if not record.evaluate(0, coordinates, outputs):
        raise NonFiniteError(f"the loss of the arm {arm!r} is not finite where training starts.")
    update, failure = optimizer.begin(coordinates), None
    batches = _Batches(problem, outputs, schedule.batch_size, seed)
    for step, batch in enumerate(batches.stream(schedule.epochs), start=1):
        try:
            if trainable.refresh_every and step > 1 and (step - 1) % trainable.refresh_every == 0:
                coordinates = trainable.refresh(coordinates).clone()
                update = optimizer.begin(coordinates)
            fine = _take_step(trainable, coordinates, batch, update, watch)
            if fine and record.is_due(step):
                fine = record.evaluate(step, coordinates)
        except NonFiniteError:  # of a whitening, say, at weights that have diverged
            fine = False
        if not fine:
            failure = (
                f"training of the arm {arm!r} diverged at step {step}: use a smaller learning rate than "
                f"{optimizer.learning_rate:g}."
            )
            record.add(step, math.inf, math.nan)
            break
    curve = TrainingCurve(
        arm,
        seed,
        np.array(record.steps),
        np.array(record.losses),
        np.array(record.accuracies),
        optimizer.learning_rate,
    )
    return Run(curve, tuple(record.checkpoints), record.missing(failure), failure)


def _take_step(
    trainable: Trainable,
    coordinates: Tensor,
    batch: tuple[Tensors, Tensors, float],
    update: Update,
    watch: Watch | None,
) -> bool:
    """Move the coordinates by one batch; whether its loss and the new coordinates are finite."""
    inputs, targets, share = batch
    if share or trainable.problem.penalty is not None:  # else every target of this batch is ignored
        loss, gradient = trainable.loss_and_gradient(coordinates, inputs, targets, share)
    else:
        loss, gradient = coordinates.new_zeros(()), torch.zeros_like(coordinates)
    if watch is None:
        update(coordinates, gradient)
    else:
        before = coordinates.clone()
        update(coordinates, gradient)
        watch(before, gradient, coordinates)
    # The norm, not the entries: where ||v|| overflows, g v / ||v|| is a silent zero.
    return math.isfinite(float(loss)) and math.isfinite(float(torch.linalg.vector_norm(coordinates)))


class _Record:
    """What a run has been seen to do: losses, accuracies and checkpoints."""

    def __init__(self, problem: Problem, trainable: Trainable, schedule: Schedule):
        self.problem, self.trainable, self.schedule = problem, trainable, schedule
        per_epoch = schedule.steps_per_epoch(problem)
        self.last, self.every = schedule.num_steps(problem), schedule.evaluate_every or per_epoch
        self.names_at_step: dict[int, list[str]] = {}
        for name, epoch in schedule.checkpoints.items():
            self.names_at_step.setdefault(epoch * per_epoch, []).append(name)
        self.open_levels = dict(schedule.levels)
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.accuracies: list[float] = []
        self.checkpoints: list[Checkpoint] = []

    def is_due(self, step: int) -> bool:
        return step % self.every == 0 or step in self.names_at_step or step == self.last

    def add(self, step: int, loss: float, accuracy: float) -> None:
        self.steps.append(step)
        self.losses.append(loss)
        self.accuracies.append(accuracy)

    def evaluate(self, step: int, coordinates: Tensor, outputs: Tensor | None = None) -> bool:
        """Record the loss over all data, and the checkpoints that are due; False if the loss is not finite."""
        weights = self.trainable.weights(coordinates)
        outputs = self.problem.outputs(weights) if outputs is None else outputs
        targets = self.problem.targets
        loss = float(self.problem.loss.terms(outputs, targets).sum()) / self.problem.denominator
        if self.problem.penalty is not None:
            loss += self.problem.penalty.value(weights)
        if not math.isfinite(loss):
            return False
        reached = [name for name, level in self.open_levels.items() if loss <= level]
        names = self.names_at_step.get(step, []) + reached
        if names:
            chart = self.trainable.parameterization(coordinates)
            self.checkpoints += [Checkpoint(name, step, weights.clone(), coordinates.clone(), chart) for name in names]
        for name in reached:
            del self.open_levels[name]
        self.add(step, loss, _accuracy(outputs, targets))
        return True

    def missing(self, failure: str | None) -> dict[str, str]:
        """Name of each checkpoint that was not reached, with the reason."""
        reached = {checkpoint.name for checkpoint in self.checkpoints}
        reasons = {name: failure or "not reached" for name in self.schedule.checkpoints if name not in reached}
        for name, level in self.open_levels.items():
            reasons[name] = failure or (
                f"the loss did not fall to {level:g} in {self.last} steps; the lowest was {min(self.losses):g}."
            )
        return reasons


class _Batches:
    """The data, in a new random order for each epoch; gathered once per epoch, so that a batch is a view."""

    def __init__(self, problem: Problem, outputs: Tensor, batch_size: int, seed: int):
        self.problem, self.batch_size = problem, batch_size
        self.shares = problem.loss.denominators(outputs, problem.targets)
        self.generator = torch.Generator().manual_seed(seed)

    def stream(self, epochs: int) -> Iterator[tuple[Tensors, Tensors, float]]:
        for _ in range(epochs):
            order = torch.randperm(self.problem.num_examples, generator=self.generator).to(self.problem.device)
            parts = [part[order].split(self.batch_size) for part in (self.problem.inputs, self.problem.targets)]
            shares = [float(share.sum()) for share in self.shares[order].split(self.batch_size)]
            yield from zip(*parts, shares, strict=True)


def _accuracy(outputs: Tensor, targets: Tensors) -> float:
    """Fraction of correct classes; NaN where the targets are not classes."""
    if not isinstance(targets, Tensor) or targets.is_floating_point() or outputs.ndim != 2:
        return float("nan")
    return float((outputs.argmax(dim=1) == targets).double().mean())
