"""Train one arm: the same weights, data and order, in the coordinates of a chart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from curvature.charts import Parameterization
from curvature.errors import ConfigurationError, NonFiniteError
from curvature.models import Problem
from curvature.precision import full_precision
from curvature.records import TrainingCurve
from curvature.studies.training.optimizers import Optimizer
from curvature.studies.training.trainable import Trainable

__all__ = ["Checkpoint", "Run", "Watch", "train"]

Watch = Callable[[Tensor, Tensor, Tensor], None]
"""``watch(before, gradient, after)``: coordinates before and after one step; none of them may be kept or changed."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A point of a run: its weights, its coordinates, and the chart there (its own gauge)."""

    name: str
    step: int
    weights: Tensor = field(repr=False)
    coordinates: Tensor = field(repr=False)
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
        """Raise :class:`NonFiniteError` if training diverged; else give the run."""
        if self.diverged is not None:
            raise NonFiniteError(self.diverged)
        return self


@full_precision()
@torch.no_grad()
def train(
    problem: Problem,
    trained: Parameterization | Trainable,
    *,
    arm: str,
    seed: int,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int,
    checkpoints: Mapping[str, int] | None = None,
    levels: Mapping[str, float] | None = None,
    evaluate_every: int | None = None,
    watch: Watch | None = None,
) -> Run:
    r"""Minibatch training of the coordinates of a chart that starts at the problem's weights.

    Every step takes $J(\theta)^T \nabla L_B$, with the mean loss $L_B$ of the batch, to the optimizer. Only first
    derivatives are taken through the chart. Divergence is an outcome: the run ends there.

    Parameters
    ----------
    problem
        The starting weights, the loss and all data.
    trained
        What is optimized: a parameterization, or a :class:`Trainable` of this problem.
    arm, seed
        For the records; ``seed`` also draws the order of the data, the same for every arm.
    checkpoints
        Name to epoch (0 is the start), each at most ``epochs``.
    levels
        Name to loss: a checkpoint at the first evaluation whose loss over all data is not above it. One that is never
        reached stands in ``Run.missing``.
    evaluate_every
        Steps between evaluations of the loss over all data; None: once per epoch. The start, the end and the
        checkpoints are always evaluated.
    watch
        Called after every step.

    Raises
    ------
    NonFiniteError
        If the loss is not finite at the start.
    """
    checkpoints, levels = dict(checkpoints or {}), dict(levels or {})
    if epochs < 1 or batch_size < 1 or (evaluate_every is not None and evaluate_every < 1):
        raise ConfigurationError(
            "training needs epochs >= 1, batch_size >= 1 and evaluate_every >= 1, got "
            f"{epochs}, {batch_size}, {evaluate_every}."
        )
    late = {name: epoch for name, epoch in checkpoints.items() if not 0 <= epoch <= epochs}
    if late:
        raise ConfigurationError(f"checkpoints must lie in epochs 0 to {epochs}, got {late}.")
    if twice := sorted(checkpoints.keys() & levels.keys()):
        raise ConfigurationError(f"a checkpoint has one name, {twice} stand for an epoch and for a loss.")
    trainable = trained if isinstance(trained, Trainable) else Trainable(problem, trained)
    per_epoch = math.ceil(problem.num_examples / batch_size)
    last, every = epochs * per_epoch, evaluate_every or per_epoch
    at_step: dict[int, list[str]] = {}
    for name, epoch in checkpoints.items():
        at_step.setdefault(epoch * per_epoch, []).append(name)

    coordinates = trainable.coordinates.clone()
    update = optimizer.begin(coordinates)
    outputs = problem.outputs(trainable.weights(coordinates))
    batches = _Batches(problem, outputs, batch_size, seed)
    steps, losses, accuracies, reached = [], [], [], []
    failure = None

    def evaluate(step: int, outputs: Tensor | None = None) -> bool:
        weights = trainable.weights(coordinates)
        outputs = problem.outputs(weights) if outputs is None else outputs
        loss = float(problem.loss.terms(outputs, problem.targets).sum()) / problem.denominator
        if not math.isfinite(loss):
            return False
        names = at_step.get(step, []) + [name for name, level in levels.items() if loss <= level]
        if names:
            chart = trainable.parameterization(coordinates)
            reached.extend(Checkpoint(name, step, weights.clone(), coordinates.clone(), chart) for name in names)
        for name in names:
            levels.pop(name, None)
        steps.append(step)
        losses.append(loss)
        accuracies.append(_accuracy(outputs, problem.targets))
        return True

    if not evaluate(0, outputs):
        raise NonFiniteError(f"the loss of the arm {arm!r} is not finite where training starts.")
    for step, (inputs, targets, share) in enumerate(batches.stream(epochs), start=1):
        try:
            if trainable.refresh_every and step > 1 and (step - 1) % trainable.refresh_every == 0:
                coordinates = trainable.refresh(coordinates).clone()
                update = optimizer.begin(coordinates)
            if share:  # else every target of this batch is ignored
                loss, gradient = trainable.loss_and_gradient(coordinates, inputs, targets, share)
            else:
                loss, gradient = coordinates.new_zeros(()), torch.zeros_like(coordinates)
            before = coordinates.clone() if watch else None
            update(coordinates, gradient)
            if watch:
                watch(before, gradient, coordinates)
            # The norm, not the entries: where ||v|| overflows, g v / ||v|| is a silent zero.
            fine = math.isfinite(float(loss)) and math.isfinite(float(torch.linalg.vector_norm(coordinates)))
            if fine and (step % every == 0 or step in at_step or step == last):
                fine = evaluate(step)
        except NonFiniteError:  # of a whitening, say, at weights that have run away
            fine = False
        if not fine:
            failure = (
                f"training of the arm {arm!r} diverged at step {step}: use a smaller learning rate than "
                f"{optimizer.learning_rate:g}."
            )
            steps, losses, accuracies = [*steps, step], [*losses, math.inf], [*accuracies, math.nan]
            break
    curve = TrainingCurve(arm, seed, np.array(steps), np.array(losses), np.array(accuracies), optimizer.learning_rate)
    found = {checkpoint.name for checkpoint in reached}
    missing = {name: failure for name in checkpoints if name not in found}
    for name, level in levels.items():
        missing[name] = failure or f"no loss of {level:g} or less in {last} steps; the lowest was {min(losses):g}."
    return Run(curve, tuple(reached), missing, failure)


class _Batches:
    """The data in an order drawn anew for each epoch; gathered once per epoch, so that a batch is a view."""

    def __init__(self, problem: Problem, outputs: Tensor, batch_size: int, seed: int):
        self.problem, self.batch_size = problem, batch_size
        self.shares = problem.loss.denominators(outputs, problem.targets)
        self.generator = torch.Generator().manual_seed(seed)

    def stream(self, epochs: int) -> object:
        for _ in range(epochs):
            order = torch.randperm(self.problem.num_examples, generator=self.generator).to(self.problem.device)
            parts = [part[order].split(self.batch_size) for part in (self.problem.inputs, self.problem.targets)]
            shares = [float(share.sum()) for share in self.shares[order].split(self.batch_size)]
            yield from zip(*parts, shares, strict=True)


def _accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Share of right classes; NaN where the targets are not classes."""
    if targets.is_floating_point() or outputs.ndim != 2:
        return float("nan")
    return float((outputs.argmax(dim=1) == targets).double().mean())
