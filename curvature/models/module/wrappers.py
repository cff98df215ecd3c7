"""Wrappers around a module that leave its function as it is: compilation, data parallelism, averaging."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from curvature.errors import InputError
from curvature.models.behaviour import describe_layer

__all__ = ["inner_module", "refuse_sharded", "wrapped", "wrapper_notes"]


class _Wrapper(NamedTuple):
    """The attribute that holds the wrapped module, and what a note says about it."""

    attribute: str
    words: str


# By name: importing torch._dynamo or torch.distributed takes longer than most analyses.
_WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": _Wrapper(
        "_orig_mod", "is compiled by torch.compile; the module in it was used, uncompiled"
    ),
    "torch.nn.parallel.data_parallel.DataParallel": _Wrapper(
        "module", "is wrapped in DataParallel; the module in it was used, on one device"
    ),
    "torch.nn.parallel.distributed.DistributedDataParallel": _Wrapper(
        "module",
        "is wrapped in DistributedDataParallel; the module in it was used, on the data of this process alone",
    ),
    "torch.optim.swa_utils.AveragedModel": _Wrapper(
        "module", "is wrapped in AveragedModel; the module in it was used, at the averaged weights"
    ),
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.CheckpointWrapper": _Wrapper(
        "_checkpoint_wrapped_module", "is wrapped for activation checkpointing; the module in it was used directly"
    ),
}
_SHARDED = {
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": "FullyShardedDataParallel",
    "torch.distributed.fsdp.FSDPModule": "fully_shard",
    "torch.distributed.fsdp._fully_shard._fully_shard.FSDPModule": "fully_shard",
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def _class_in(layer: nn.Module, names: dict) -> type | None:
    """The class of a module, or of its bases, that is one of some qualified names."""
    return next((kind for kind in type(layer).__mro__ if f"{kind.__module__}.{kind.__qualname__}" in names), None)


def wrapped(layer: nn.Module) -> nn.Module | None:
    """Find the module that a wrapper wraps.

    Parameters
    ----------
    layer
        Any module.

    Returns
    -------
    Module or None
        None if it is not a wrapper, or a subclass of one that computes something else.
    """
    kind = _class_in(layer, _WRAPPERS)
    if kind is None or getattr(type(layer), "forward", None) is not getattr(kind, "forward", None):
        return None
    return getattr(layer, _WRAPPERS[f"{kind.__module__}.{kind.__qualname__}"].attribute)


def inner_module(module: nn.Module) -> nn.Module:
    """Remove the wrappers around a whole module.

    Parameters
    ----------
    module
        The user's module; not changed.

    Returns
    -------
    Module
        The innermost module, which is the given one if nothing wraps it.
    """
    while (inner := wrapped(module)) is not None:
        module = inner
    return module


def wrapper_notes(module: nn.Module) -> tuple[str, ...]:
    """Say which wrappers and which hooks on gradients a private copy leaves out.

    Parameters
    ----------
    module
        The user's module.

    Returns
    -------
    tuple of str
        A sentence for each wrapper, and for each layer with such hooks.

    Raises
    ------
    InputError
        If hooks are registered on a wrapper, and would be left out with it.
    """
    return tuple(_notes(module))


def _notes(module: nn.Module) -> Iterator[str]:
    for path, layer in module.named_modules():
        label = describe_layer(path, layer)
        if wrapped(layer) is not None:
            kind = _class_in(layer, _WRAPPERS)
            assert kind is not None
            if any(getattr(layer, hooks) for hooks in _HOOKS):
                raise InputError(
                    f"{label} is a wrapper with hooks, which would be lost with the wrapper. Register them on the "
                    "module inside, or remove them."
                )
            yield f"{label} {_WRAPPERS[f'{kind.__module__}.{kind.__qualname__}'].words}."
        elif getattr(layer, "_compiled_call_impl", None) is not None:
            yield f"{label} is compiled in place by Module.compile; it was used uncompiled."
        elif _has_gradient_hook(layer):
            yield (
                f"hooks on the gradients of {label} do not run. They may change the gradients in training; the "
                "derivatives here are those of the loss."
            )


def _has_gradient_hook(layer: nn.Module) -> bool:
    """Whether a hook is registered on the gradients of a layer or of one of its parameters."""
    parameters = layer.parameters(recurse=False)
    return bool(layer._backward_hooks or layer._backward_pre_hooks) or any(p._backward_hooks for p in parameters)


def refuse_sharded(module: nn.Module) -> None:
    """Refuse a module whose parameters are split over processes.

    Parameters
    ----------
    module
        The user's module.

    Raises
    ------
    InputError
        Naming the first such layer.
    """
    advice = "Load its full state_dict into a plain module, and pass that."
    for path, layer in module.named_modules():
        kind = _class_in(layer, _SHARDED)
        if kind is not None:
            words = _SHARDED[f"{kind.__module__}.{kind.__qualname__}"]
            raise InputError(
                f"{describe_layer(path, layer)} is sharded by {words}: each process holds a part of its parameters. "
                + advice
            )
        for name, parameter in layer.named_parameters(recurse=False):
            if type(parameter.data).__name__ == "DTensor":
                raise InputError(
                    f"parameter {name!r} of {describe_layer(path, layer)} is a DTensor, which is split over "
                    f"processes. {advice}"
                )
