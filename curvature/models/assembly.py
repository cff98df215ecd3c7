"""What a problem is made of, from what users have: a module, a loss and data, tried together once."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from curvature.charts import Parameterization
from curvature.errors import ConfigurationError, InputError
from curvature.models.data import DataLike, as_type, materialize, refuse_non_finite
from curvature.models.function import ModelFunction
from curvature.models.losses import Loss, LossLike, PerExample, refuse_other_reduction, resolve_loss
from curvature.models.module import common_type, refuse_module
from curvature.models.trial import checked_outputs, differentiated_once
from curvature.models.unwrapping import unwrap

__all__ = ["Parts", "assemble"]

_CHUNK_BYTES = 256 * 2**20  # of per-example factor columns held at once


class Parts(NamedTuple):
    """The fields of a :class:`~curvature.models.Problem`, in their order."""

    function: ModelFunction
    loss: Loss
    inputs: Tensor
    targets: Tensor
    weights: Tensor
    chart: Parameterization
    denominator: float
    frozen: tuple[str, ...]
    unused: tuple[str, ...]
    num_outputs: int
    chunk_size: int


def assemble(
    module: nn.Module, loss_like: LossLike, data: DataLike, *, dtype: torch.dtype | None, chunk_size: int | None
) -> Parts:
    """Copy a module and its data, and try them with the loss.

    Parameters
    ----------
    module, loss_like, data, dtype, chunk_size
        The arguments of :meth:`Problem.from_module <curvature.models.Problem.from_module>`.

    Returns
    -------
    Parts
        The fields of the problem at the weights of the module.

    Raises
    ------
    ConfigurationError
        If the chunk size is below one, or the loss or the precision is unknown.
    InputError
        If the denominator of the mean is zero, or anything else about model, data or loss makes the matrices
        meaningless.
    """
    declared, loss = isinstance(loss_like, Loss), resolve_loss(loss_like)
    refuse_module(module)
    if chunk_size is not None and chunk_size < 1:
        raise ConfigurationError(f"chunk_size must be at least 1, got {chunk_size}.")
    dtype, device = common_type(module, dtype)
    inputs, targets = materialize(data)
    inputs, targets = as_type(inputs, dtype, device), targets.to(device)
    refuse_non_finite(inputs, targets)

    unwrapped = unwrap(module, dtype)
    function, weights = unwrapped.function, unwrapped.weights
    outputs, written = checked_outputs(function, weights, inputs)
    function = replace(function, written=written)
    targets = loss.prepare(outputs, targets)
    if isinstance(loss, PerExample) and not declared:
        refuse_other_reduction(loss, outputs, targets)
    num_outputs = outputs[0].numel()
    if chunk_size is None:
        columns = max(1, num_outputs) * len(weights) * weights.element_size()
        chunk_size = max(1, min(len(inputs), _CHUNK_BYTES // columns))
    denominator = float(loss.denominators(outputs, targets).sum())
    if not denominator > 0:
        raise InputError("the denominator of the mean loss is zero: every target has weight zero or is ignored.")
    unused, attends = differentiated_once(
        function, weights, inputs[:1], lambda outputs: loss.terms(outputs, targets[:1]).sum() / denominator
    )
    return Parts(
        replace(function, attends=attends),
        loss,
        inputs,
        targets,
        weights,
        unwrapped.chart,
        denominator,
        unwrapped.frozen,
        unused,
        num_outputs,
        chunk_size,
    )
