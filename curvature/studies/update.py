"""The step that an optimizer would take next, as a direction: its own rule on copies of the weights."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from curvature.errors import ConfigurationError

__all__ = ["bare_optimizer", "update_direction"]


def bare_optimizer(optimizer: Any) -> Optimizer:
    """Look through the wrappers that trainers put around an optimizer.

    Parameters
    ----------
    optimizer
        An optimizer of PyTorch, or a wrapper with the attribute ``optimizer``.

    Returns
    -------
    torch.optim.Optimizer
        The optimizer itself.

    Raises
    ------
    ConfigurationError
        If it is none, or one that evaluates the loss itself.
    """
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, Optimizer):
        raise ConfigurationError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}.")
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ConfigurationError(
            f"{type(optimizer).__name__} evaluates the loss during its step, so its next update does not follow from "
            "one gradient. Leave out optimizer=: the critical sharpness is then measured along the gradient."
        )
    return optimizer


def update_direction(
    optimizer: Optimizer, parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], float]:
    r"""Compute the next update of an optimizer from given gradients, without changing anything.

    Parameters
    ----------
    optimizer
        With its present state: momentum, second moments, learning rates.
    parameters
        Of the model, by name.
    gradients
        By the same names, in any shape with as many entries.

    Returns
    -------
    direction, rate
        $d = (\theta - \theta^+) / \eta$ by name, in the precision of the gradients, and $\eta$: the learning rate, the
        largest one of several groups. Zero where the optimizer does not have the parameter.

    Raises
    ------
    ConfigurationError
        If the optimizer has none of the parameters.

    Notes
    -----
    The step is that of the class, on a deep copy of the optimizer, which has copies of its parameters. Schedulers
    replace ``optimizer.step`` by a function that would move the original. Hooks are left out.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    clone = copy.deepcopy(optimizer)
    for hooks in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        getattr(clone, hooks, {}).clear()
    pairs = [
        (original, copied)
        for group, copied_group in zip(optimizer.param_groups, clone.param_groups, strict=True)
        for original, copied in zip(group["params"], copied_group["params"], strict=True)
    ]
    known = {names[id(original)]: copied for original, copied in pairs if id(original) in names}
    if not known:
        raise ConfigurationError(
            "the optimizer has none of the weights of the problem. Pass the optimizer that trains this model."
        )
    rate = max(float(group["lr"]) for group in optimizer.param_groups)
    for _, copied in pairs:
        copied.grad = None
    before = {}
    for name, copied in known.items():
        gradient = gradients[name].reshape(copied.shape)
        _cast(clone, copied, gradient)
        before[name] = copied.detach().clone()
        copied.grad = gradient.clone()
    type(clone).step(clone)
    direction = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
    for name, copied in known.items():
        moved = (before[name] - copied.detach()) / (rate or math.nan)
        direction[name] = moved.to(gradients[name]).reshape(gradients[name].shape)
    return direction, rate


def _cast(optimizer: Optimizer, parameter: Tensor, like: Tensor) -> None:
    """Move a parameter and its state to a precision, so that a small step does not round away."""
    parameter.data = parameter.data.to(like)
    state = optimizer.state.get(parameter, {})
    for key, value in state.items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim():
            state[key] = value.to(like)
