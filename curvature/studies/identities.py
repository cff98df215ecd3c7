"""Claims that are identities: measured in every study, with no statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from curvature.charts import WeightNorm
from curvature.errors import ConfigurationError, InputError, NonFiniteError
from curvature.models import Problem
from curvature.models.zoo.networks import seeded
from curvature.records import Check
from curvature.studies.training import SGD, BatchNormalized, Schedule, paper_start, start_check, train

__all__ = ["claimed_identities", "one_layer_identity"]

LEARNING_RATE = 0.1  # of C5; the identity holds at every rate


def claimed_identities(problem: Problem, *, seed: int, batch_size: int) -> tuple[list[Check], list[str]]:
    """Measure C5 and C6 for one initialization.

    Parameters
    ----------
    problem
        The model at its initial weights.
    seed
        Draws the single layer of C5, and the initialization of C6.
    batch_size
        Of the batch that the initialization of C6 sees.

    Returns
    -------
    tuple
        The deviations, and why one of them could not be measured on this model.
    """
    checks, reasons = [], []
    for claim, measure in (
        ("C5", lambda: one_layer_identity(problem, seed)),
        ("C6", lambda: start_check(paper_start(problem, seed=seed, batch_size=batch_size), batch_size)),
    ):
        try:
            checks.append(measure())
        except (ConfigurationError, InputError, NonFiniteError) as error:
            reasons.append(f"{claim} is not tested on this model: {error}")
    return checks, reasons


def one_layer_identity(problem: Problem, seed: int, steps: int = 5) -> Check:
    r"""C5: one layer on whitened inputs, trained with batch normalization and with weight normalization, side by side.

    Parameters
    ----------
    problem
        Gives the inputs, in the directions in which they vary, and the targets.
    seed
        Draws the weights of the layer.
    steps
        Of gradient descent.

    Returns
    -------
    Check
        The largest difference of the weights after training.

    Notes
    -----
    Whole batches, so that the inputs of every batch are white; $\epsilon$ of batch normalization next to 0.
    """
    if not isinstance(problem.inputs, Tensor):
        raise ConfigurationError("its inputs are several tensors, and a single layer takes one.")
    flat = problem.inputs.flatten(1).double()
    targets = problem.targets.double() if problem.targets.is_floating_point() else problem.targets
    left, values, _ = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False)
    white = left[:, values > 1e-8 * values[0]] * len(flat) ** 0.5
    generator = torch.Generator().manual_seed(seed)
    with seeded(seed), torch.no_grad():  # the default initialization draws from the global generator
        layer = nn.Linear(white.shape[1], problem.num_outputs, dtype=torch.float64)
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64))
        layer.bias.zero_()
    single = Problem.from_module(layer, loss=problem.loss, data=(white.to(problem.device), targets))
    arms = (BatchNormalized(single, epsilon=1e-30), WeightNorm())
    schedule = Schedule(steps, single.num_examples, {"late": steps})
    runs = [train(single, arm, schedule, arm="one layer", seed=seed, optimizer=SGD(LEARNING_RATE)) for arm in arms]
    weights = [run.require_finite().checkpoints[0].weights for run in runs]
    return Check(
        f"one layer with whitened inputs: batch normalization equals weight normalization (seed {seed})",
        float((weights[0] - weights[1]).abs().max() / weights[1].abs().max()),
        1e-10,
        f"largest difference of weights after {steps} steps, over the largest weight",
        claim="C5",
    )
