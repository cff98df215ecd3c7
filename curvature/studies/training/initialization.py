"""Where arms start: the module's weights, or the data-dependent initialization of Salimans & Kingma (2016)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from curvature.arrays import Float
from curvature.charts.rows import PAPER_SCALE, row_norms
from curvature.errors import InputError
from curvature.models import Problem
from curvature.models.calling import arguments
from curvature.models.trees import Tensors, structure_of
from curvature.precision import full_precision
from curvature.records import Check
from curvature.studies.training.network import BatchNormNetwork, neuron_axis

__all__ = ["Start", "paper_start", "start_check"]

_STREAM = 160207868  # so that v is not drawn from the numbers that order the data


@dataclass(frozen=True, eq=False)
class Start:
    """Weights that several arms share at step 0.

    Attributes
    ----------
    name
        ``"module"``, ``"paper"`` or ``"centred"``.
    problem
        At these weights.
    seed
        Draws the order of the data, and what an arm needs to draw (the directions of the placebo).
    v, g
        By weight name, where the initialization chose them; otherwise None, and the arm chooses the gauge.
    """

    name: str
    problem: Problem
    seed: int
    v: Mapping[str, Float[Tensor, "..."]] | None = field(default=None, repr=False)
    g: Mapping[str, Float[Tensor, "..."]] | None = field(default=None, repr=False)


@full_precision()
def paper_start(problem: Problem, *, seed: int, batch_size: int | None = None) -> Start:
    r"""Initialize by data: $v \sim N(0, 0.05^2)$, then $g$ and $b$ layer by layer from one batch.

    With $t = v \cdot x / \|v\|$ on the batch, $g = 1/\sigma[t]$ and $b = -\mu[t]/\sigma[t]$, so that every
    pre-activation of the batch has mean 0 and variance 1 (claim C6; section 3 of arXiv:1602.07868); for a convolution,
    over batch and positions. Each layer is initialized on the outputs of the initialized layers below it. All other
    parameters keep their values.

    Parameters
    ----------
    problem
        The model at any weights.
    seed
        Draws $v$, and the batch: the first one that training with this seed sees.
    batch_size
        Examples in the batch; None: all.

    Returns
    -------
    Start
        The weights, with the ``v`` and ``g`` that they were made of.

    Raises
    ------
    InputError
        If a pre-activation is constant on the batch.
    """
    generator = torch.Generator().manual_seed(seed + _STREAM)
    # This is batch normalization with gamma = 1 and beta = 0, frozen at the statistics of one batch.
    network = BatchNormNetwork(problem, epsilon=0.0)
    vector = torch.cat([problem.weights, problem.weights.new_ones(network.layout.dim - problem.dim)])
    named = network.layout.unflatten(vector)
    for weight, bias in network.targets.values():
        drawn = torch.randn(named[weight].shape, generator=generator, dtype=torch.float64)
        named[weight].copy_(PAPER_SCALE * drawn)
        named[bias].zero_()
    batch = _first_batch(problem, seed, batch_size)
    layers = network.statistics(vector, batch)
    for path, statistics in layers.items():
        floor = 1e3 * torch.finfo(vector.dtype).eps * statistics.mean.abs()
        constant = (statistics.deviation <= floor).nonzero().flatten().tolist()
        if constant:
            raise InputError(
                f"data-dependent initialization: pre-activation {constant[0]} of layer {path!r} is constant on the "
                "batch, so no scale gives it variance 1. Use a larger batch, or inputs that vary."
            )
    by_weight = {statistics.weight: statistics for statistics in layers.values()}
    v = {name: named[name].clone() for name in by_weight}
    g = {name: row_norms(part.flatten(1)) / by_weight[name].deviation for name, part in v.items()}
    return Start("paper", problem.at(network.folded(vector, by_weight)), seed, v, g)


def start_check(start: Start, batch_size: int | None = None) -> Check:
    """C6: mean 0 and variance 1 of every pre-activation of the first batch, observed in the running network.

    Parameters
    ----------
    start
        The data-dependent initialization.
    batch_size
        Of its batch; None: all examples.

    Returns
    -------
    Check
        The largest deviation of a mean or a variance.
    """
    problem = start.problem
    model = copy.deepcopy(problem.model)
    observed: dict[str, Tensor] = {}

    def watch(path: str) -> None:
        def keep(layer: nn.Module, _inputs: object, output: Tensor) -> None:
            neurons_last = output.detach().movedim(neuron_axis(layer), -1)
            observed[path] = neurons_last.flatten(0, -2)  # (batch and positions, neurons)

        model.get_submodule(path).register_forward_hook(keep)

    for entry in problem.layout.entries:
        if entry.normalized:
            watch(entry.layer)
    with torch.no_grad():
        batch = _first_batch(problem, start.seed, batch_size)
        args, kwargs = arguments(structure_of(batch), model.forward)
        torch.func.functional_call(model, problem.unflatten(problem.weights), args, kwargs)
    means = [float(values.mean(dim=0).abs().max()) for values in observed.values()]
    variances = [float((values.var(dim=0, correction=0) - 1).abs().max()) for values in observed.values()]
    return Check(
        f"data-dependent start: pre-activations of the first batch have mean 0 and variance 1 (seed {start.seed})",
        max(means + variances),
        1e-10 if problem.dtype == torch.float64 else 1e-3,
        "largest deviation of a mean from 0 or of a variance from 1, over all neurons of all layers",
        claim="C6",
    )


def _first_batch(problem: Problem, seed: int, batch_size: int | None) -> Tensors:
    """The inputs that training with this seed sees first."""
    order = torch.randperm(problem.num_examples, generator=torch.Generator().manual_seed(seed))
    return problem.inputs[order[: batch_size or len(order)].to(problem.device)]
