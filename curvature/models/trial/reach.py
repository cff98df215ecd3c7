"""Trainable tensors that reach the objective in another way than as weights of the layout through the outputs."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from curvature.arrays import Float
from curvature.errors import InputError
from curvature.models.behaviour import leaf_variables
from curvature.models.function import ModelFunction
from curvature.models.module.unregistered import unregistered
from curvature.models.trees import Tensors
from curvature.text import listed

__all__ = ["note_unregistered", "refuse_kept_results", "refuse_other_ways"]


def refuse_other_ways(value: Tensor, module: nn.Module) -> None:
    """Refuse a loss that depends on trainable tensors although the outputs are held fixed.

    Parameters
    ----------
    value
        The loss of detached outputs.
    module
        The user's module, for the names of its parameters.

    Raises
    ------
    InputError
        If the value can be differentiated; names the tensors and says what to do instead.
    """
    if not value.requires_grad:
        return
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    reached = leaf_variables(value)
    ids = {id(tensor) for tensor in reached}
    if of_model := [name for key, name in names.items() if key in ids]:
        raise InputError(
            f"the loss depends on parameters of the model ({listed(of_model)}) in another way than through its "
            "outputs, so that part would be missing from every derivative. Pass a loss of the outputs alone, and the "
            "rest as penalty=lambda weights: ... (a function of the dictionary of weights) or weight_decay=. For a "
            "constant, use detach()."
        )
    shapes = [f"shape {tuple(tensor.shape)}" for tensor in reached]
    raise InputError(
        f"the loss depends on trainable tensors in another way than through the outputs of the model "
        f"({listed(shapes)}), so that part would be missing from every derivative. Pass a penalty on weights as "
        "penalty= or weight_decay=, return hidden activations among the outputs, and make parameters of the loss part "
        "of the module, or constant by requires_grad_(False)."
    )


def refuse_kept_results(module: nn.Module, unused: tuple[str, ...]) -> None:
    """Refuse a module that keeps a tensor computed once from parameters that the loss then does not depend on.

    Parameters
    ----------
    module
        The user's module.
    unused
        Names of parameters that the loss of its copy, which keeps the tensor without its graph, does not depend on.

    Raises
    ------
    InputError
        Naming the tensor and the parameter.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters() if name in unused}
    for path, layer in module.named_modules():
        for attribute, value in vars(layer).items():
            if not isinstance(value, Tensor) or value.is_leaf:
                continue
            if sources := [names[id(tensor)] for tensor in leaf_variables(value) if id(tensor) in names]:
                raise InputError(
                    f"{f'{path}.{attribute}' if path else attribute} was computed from {listed(sources)} once, "
                    "before forward, so the outputs do not follow these parameters. Compute it in forward."
                )


def note_unregistered(
    function: ModelFunction, module: nn.Module, weights: Float[Tensor, "weights"], inputs: Tensors
) -> str:
    """Warn about trainable tensors of a module that are not registered as its parameters.

    Parameters
    ----------
    function
        The private copy of the module.
    module
        The user's module.
    weights
        The point ``(P,)``.
    inputs
        A few examples ``(N, ...)``.

    Returns
    -------
    str
        The warning, for reports; empty if there is nothing to warn about.

    Raises
    ------
    InputError
        If a function that was put into the module uses parameters by another way than as attributes of a layer, where
        an analysis puts the weights.
    """
    leaves = function.leaves(weights)
    registered = {name: tensor for name, tensor in function.module.named_parameters() if name in leaves}
    for parameter in registered.values():
        parameter.requires_grad_()
    try:
        with torch.enable_grad():
            outputs = function.predict(leaves, inputs)
    finally:
        for parameter in registered.values():
            parameter.requires_grad_(False)
    given = {id(leaf) for leaf in leaves.values()}
    reached = [tensor for tensor in leaf_variables(outputs) if id(tensor) not in given]
    names = {id(parameter): name for name, parameter in (*module.named_parameters(), *registered.items())}
    if by_variable := [names[id(tensor)] for tensor in reached if id(tensor) in names]:
        raise InputError(
            f"a function of the module refers to the parameters {listed(by_variable)} through variables. The "
            "analysis sets the weights as attributes of the layers (self.weight), so this function would not see "
            "them. Read the parameters from the layer: layer.forward = types.MethodType(function, layer), with "
            "self.weight inside."
        )
    named = unregistered(function.module)
    loose = [name for name, _ in named]
    known = {id(tensor) for _, tensor in named}
    if others := [tensor for tensor in reached if id(tensor) not in known]:
        # What forward makes itself, such as inputs that it differentiates by, is another tensor in every pass.
        with torch.enable_grad():
            lasting = {id(tensor) for tensor in leaf_variables(function.predict(leaves, inputs))}
        loose += [f"a tensor of shape {tuple(tensor.shape)}" for tensor in others if id(tensor) in lasting]
    if not loose:
        return ""
    message = (
        f"trainable tensors of the module are not registered as its parameters: {listed(loose)}. They are held "
        "fixed, and no matrix has rows for them. If they are trained, register them by nn.Parameter, nn.ModuleList, "
        "nn.ModuleDict or nn.ParameterList."
    )
    warnings.warn(message, stacklevel=4)  # the call of from_module
    return message
