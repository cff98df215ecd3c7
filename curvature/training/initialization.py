"""Where arms start: the module's own weights, or the data-dependent initialization of Salimans & Kingma (2016)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from curvature.errors import InputError
from curvature.parameterization.rows import PAPER_SCALE, row_norms
from curvature.problem import Problem
from curvature.training.network import BatchNormNetwork

__all__ = ["Start", "paper_start"]

_STREAM = 160207868  # so that v is not drawn from the numbers that order the data


@dataclass(frozen=True, eq=False)
class Start:
    """Weights that several arms share at step 0.

    Attributes
    ----------
    name
        ``"module"`` or ``"paper"``.
    problem
        At these weights.
    seed
        Of whatever an arm draws for itself (the placebo's directions).
    v, g
        By weight name, where the initialization chose them; else None and the gauge is the arm's choice.
    """

    name: str
    problem: Problem
    seed: int
    v: Mapping[str, Tensor] | None = field(default=None, repr=False)
    g: Mapping[str, Tensor] | None = field(default=None, repr=False)


def paper_start(problem: Problem, *, seed: int, batch_size: int | None = None) -> Start:
    r"""Initialize by data: $v \sim N(0, 0.05^2)$, then $g$ and $b$ layer by layer from one batch.

    With $t = v \cdot x / \|v\|$ on the batch, $g = 1/\sigma[t]$ and $b = -\mu[t]/\sigma[t]$, so that every
    pre-activation of the batch has mean 0 and variance 1 (claim C6; section 3 of arXiv:1602.07868); a convolution's
    over batch and positions. The layers above see what the initialized layers below give. Parameters of no such layer
    stay as they are.

    Parameters
    ----------
    seed
        Draws $v$, and the batch: the first one that training with this seed sees.
    batch_size
        Examples in the batch; None: all.

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
    order = torch.randperm(problem.num_examples, generator=torch.Generator().manual_seed(seed))
    batch = problem.inputs[order[: batch_size or len(order)].to(problem.device)]
    found = network.statistics(vector, batch)
    for path, statistics in found.items():
        floor = 1e3 * torch.finfo(vector.dtype).eps * statistics.mean.abs()
        constant = (statistics.deviation <= floor).nonzero().flatten().tolist()
        if constant:
            raise InputError(
                f"data-dependent initialization: pre-activation {constant[0]} of layer {path!r} is constant on the "
                "batch, so no scale gives it variance 1. Take a larger batch, or inputs that vary."
            )
    by_weight = {statistics.weight: statistics for statistics in found.values()}
    v = {name: named[name].clone() for name in by_weight}
    g = {name: row_norms(part.flatten(1)) / by_weight[name].deviation for name, part in v.items()}
    return Start("paper", problem.at(network.folded(vector, by_weight)), seed, v, g)
