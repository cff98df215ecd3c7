"""The trial of a user's function of named tensors: it is a fixed, differentiable function of these tensors alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from curvature.errors import InputError, NonFiniteError, SelfCheckError
from curvature.models.behaviour import generator_states, leaf_variables
from curvature.models.module.named import NamedTensors
from curvature.text import listed

__all__ = ["tried"]

_SHOWN = 5  # shapes listed in a message


def tried(function: Callable[..., Any], held: NamedTensors, dtype: torch.dtype) -> Tensor:
    """Call a function of named tensors twice, and refuse what cannot be differentiated with respect to them.

    Parameters
    ----------
    function
        Calls the function of the user, not a copy of it, with what it takes in place of its parameters.
    held
        The tensors, as the user named them.
    dtype
        Precision of the copies that the function gets.

    Returns
    -------
    Tensor
        Its value, without a graph.

    Raises
    ------
    InputError
        If the function fails, returns anything but one tensor, or depends on other trainable tensors or on none of
        these.
    NonFiniteError
        If its value is NaN or infinite.
    SelfCheckError
        If it is random, or keeps a state.
    """
    name, device = repr(held.name), next(held.parameters()).device
    states = generator_states(device)
    first, given = _called(function, held, dtype)
    if drawn := [kind for kind, state in generator_states(device).items() if state != states[kind]]:
        raise SelfCheckError(
            f"the function {name} is not deterministic: it draws from a global random generator ({', '.join(drawn)}), "
            "so every call would be another function. Draw the numbers once, before it (collocation points, for "
            "example), or from a torch.Generator that the function makes with a fixed seed."
        )
    second, others = _called(function, held, dtype)
    _refuse_other_tensors(name, first, second, given | others)
    if not any(id(variable) in given for variable in leaf_variables(first)):
        raise InputError(
            f"the function {name} does not depend on its parameters ({listed(held.tensors(), _SHOWN)}), so it has no "
            "derivative. Compute its value from the tensors that it is called with; float(), .item(), .detach(), "
            "torch.tensor(...) and NumPy cut the connection."
        )
    first, second = first.detach(), second.detach()
    if not torch.isfinite(first).all():
        raise NonFiniteError(f"the value of the function {name} is NaN or infinite at these parameters.")
    if first.shape != second.shape or (first - second).abs().max() > (1e3 * torch.finfo(dtype).eps * first.abs().max()):
        raise SelfCheckError(
            f"the function {name} is not deterministic: two calls at the same parameters give two results. Remove "
            "what is random in it, or what it keeps between calls."
        )
    return first


def _called(function: Callable[..., Any], held: NamedTensors, dtype: torch.dtype) -> tuple[Tensor, dict[int, Tensor]]:
    """The value with its graph, and the variables that the function was given."""
    leaves = {name: tensor.detach().to(dtype, copy=True) for name, tensor in held.tensors().items()}
    for name, tensor in held.tensors().items():
        leaves[name].requires_grad_(tensor.requires_grad)
    name, kinds = repr(held.name), "tensor" if held.only else "dictionary of tensors"
    try:
        with torch.enable_grad():
            value = function(held.argument(dict(leaves)))
    except Exception as error:  # a user's function may raise anything
        raise InputError(
            f"the function {name} failed ({type(error).__name__}: {error}). It gets a {kinds}, copies of your "
            f"parameters in {dtype}: {listed((f'{key} {tuple(leaf.shape)}' for key, leaf in leaves.items()), _SHOWN)}. "
            "Tensors that it refers to keep their own precision and device; dtype=None keeps that of the parameters."
        ) from error
    if not isinstance(value, Tensor):
        raise InputError(
            f"the function {name} must return one tensor computed from its parameters, it returns "
            f"{type(value).__name__}. Join several by torch.cat; float(), .item() and NumPy lose the derivative."
        )
    return value, {id(leaf): leaf for leaf in leaves.values()}


def _refuse_other_tensors(name: str, first: Tensor, second: Tensor, given: dict[int, Tensor]) -> None:
    """Refuse trainable tensors that last from one call to the next, and are not among the parameters."""
    lasting = {id(variable) for variable in leaf_variables(second)}
    others = [variable for variable in leaf_variables(first) if id(variable) in lasting and id(variable) not in given]
    if not others:
        return
    shapes = listed((f"shape {tuple(variable.shape)}" for variable in others), _SHOWN)
    raise InputError(
        f"the function {name} depends on tensors with requires_grad=True that are not among its parameters ({shapes}), "
        "so every derivative would miss them. If they are parameters, pass them as such, and read them from the "
        "argument of the function. If they are data by which it differentiates, such as collocation points, start "
        "them anew inside: x = points.detach().requires_grad_(). For a constant, use detach()."
    )
