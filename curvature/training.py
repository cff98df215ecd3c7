"""Train one arm: the same weights, data and order, in the coordinates of a chart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from curvature.errors import ConfigurationError, NonFiniteError
from curvature.parameterization import Parameterization
from curvature.problem import Problem
from curvature.records import TrainingCurve

__all__ = ["Checkpoint", "Run", "train"]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A point of a run: its weights, and the chart at the coordinates the run had reached (its own gauge)."""

    name: str
    step: int
    weights: Tensor = field(repr=False)
    chart: Parameterization


@dataclass(frozen=True, eq=False)
class Run:
    """One arm trained once."""

    curve: TrainingCurve
    checkpoints: tuple[Checkpoint, ...]


def train(
    problem: Problem,
    parameterization: Parameterization,
    *,
    arm: str,
    seed: int,
    learning_rate: float,
    epochs: int,
    batch_size: int,
    checkpoints: Mapping[str, int],
    momentum: float = 0.0,
) -> Run:
    r"""Minibatch gradient descent on the coordinates of a chart that starts at the problem's weights.

    $\theta \leftarrow \theta - \eta\, J(\theta)^T \nabla L_B$ with (heavy-ball) momentum; the batch loss is the mean
    over the batch. Only first derivatives are taken through the chart.

    Parameters
    ----------
    problem
        The starting weights, the loss and all data.
    parameterization
        What is optimized.
    arm, seed
        For the records; ``seed`` also draws the order of the data, the same for every arm.
    checkpoints
        Name to epoch (0 is the start), each at most ``epochs``.

    Raises
    ------
    NonFiniteError
        If the loss is not finite any more; the message names the step.
    """
    if not learning_rate > 0 or epochs < 1 or batch_size < 1 or not 0 <= momentum < 1:
        raise ConfigurationError(
            "training needs learning_rate > 0, epochs >= 1, batch_size >= 1 and 0 <= momentum < 1, got "
            f"{learning_rate}, {epochs}, {batch_size}, {momentum}."
        )
    late = {name: epoch for name, epoch in checkpoints.items() if not 0 <= epoch <= epochs}
    if late:
        raise ConfigurationError(f"checkpoints must lie in epochs 0 to {epochs}, got {late}.")
    chart = parameterization.at(problem.layout, problem.weights)
    coordinates, velocity = chart.coordinates.clone(), torch.zeros_like(chart.coordinates)
    generator = torch.Generator().manual_seed(seed)
    steps, losses, accuracies, reached = [], [], [], []
    step = 0

    def observe(epoch: int) -> None:
        weights = chart.to_weights(coordinates)
        outputs = problem.outputs(weights)
        losses.append(float(problem.loss.terms(outputs, problem.targets).sum()) / problem.denominator)
        accuracies.append(_accuracy(outputs, problem.targets))
        steps.append(step)
        if not np.isfinite(losses[-1]):
            raise NonFiniteError(_diverged(arm, step, learning_rate))
        for name, at in checkpoints.items():
            if at == epoch:
                reached.append(Checkpoint(name, step, weights.clone(), chart.moved(coordinates)))

    observe(0)
    for epoch in range(1, epochs + 1):
        order = torch.randperm(problem.num_examples, generator=generator)
        for batch in order.split(batch_size):
            loss, gradient = _batch_gradient(problem, chart.to_weights, coordinates, batch.to(problem.device))
            velocity = momentum * velocity + gradient
            coordinates = coordinates - learning_rate * velocity
            step += 1
            # The norm, not the entries: where ||v|| overflows, g v / ||v|| is a silent zero.
            if not (torch.isfinite(torch.linalg.vector_norm(coordinates)) and torch.isfinite(loss)):
                raise NonFiniteError(_diverged(arm, step, learning_rate))
        observe(epoch)
    curve = TrainingCurve(arm, seed, np.array(steps), np.array(losses), np.array(accuracies), learning_rate)
    return Run(curve, tuple(reached))


def _diverged(arm: str, step: int, learning_rate: float) -> str:
    return f"training of the arm {arm!r} diverged at step {step}: use a smaller learning rate than {learning_rate:g}."


def _batch_gradient(
    problem: Problem, to_weights: Callable[[Tensor], Tensor], coordinates: Tensor, batch: Tensor
) -> tuple[Tensor, Tensor]:
    variable = coordinates.detach().requires_grad_()
    targets = problem.targets[batch]
    with torch.enable_grad():
        outputs = problem.predict(to_weights(variable), problem.inputs[batch])
        share = float(problem.loss.denominators(outputs.detach(), targets).sum())
        if share == 0:  # every target of this batch is ignored
            return coordinates.new_zeros(()), torch.zeros_like(coordinates)
        loss = problem.loss.terms(outputs, targets).sum() / share
    return loss.detach(), torch.autograd.grad(loss, variable)[0]


def _accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Share of right classes; NaN where the targets are not classes."""
    if targets.is_floating_point() or outputs.ndim != 2:
        return float("nan")
    return float((outputs.argmax(dim=1) == targets).double().mean())
