"""Modules as users have them: what is refused, and in which precision and on which device they are computed."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.parametrizations import _OrthMaps, _Orthogonal, _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm as LegacySpectralNorm

from curvature.errors import ConfigurationError, InputError
from curvature.models.behaviour import describe_layer
from curvature.models.module.wrappers import refuse_sharded

__all__ = ["common_type", "refuse_module"]


def refuse_module(module: nn.Module) -> None:
    """Refuse, by layer, what would make the matrix meaningless: random, batch-coupled or moving layers, TorchScript.

    Parameters
    ----------
    module
        The user's module; not run.

    Raises
    ------
    InputError
        Naming the first such layer.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"the model must be a torch.nn.Module, got {type(module).__name__}.")
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError("TorchScript modules cannot be differentiated twice here; pass the original nn.Module.")
    refuse_sharded(module)
    _refuse_global_hooks()
    for path, layer in module.named_modules():
        label = describe_layer(path, layer)
        if isinstance(layer, torch.jit.ScriptModule):
            raise InputError(
                f"{label} is a TorchScript module, which cannot be differentiated twice; use the original nn.Module."
            )
        if any(nn.parameter.is_lazy(parameter) for parameter in layer.parameters(recurse=False)):
            raise InputError(f"{label} is not initialized yet: run the model once on an input.")
        _refuse_parametrization(path, layer)
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None:
            raise InputError(
                f"{label} has no running statistics (track_running_stats=False): it normalizes by the batch in "
                "evaluation mode too, so the loss is not a mean over examples. Use LayerNorm or GroupNorm, or batch "
                "norm with running statistics in evaluation mode."
            )
        if layer.training:
            _refuse_training_mode(label, layer)


def _refuse_global_hooks() -> None:
    """Refuse hooks that PyTorch runs on every module of the process: they would also run on the private copy."""
    for kind in ("forward_pre", "forward", "backward_pre", "backward"):
        for hook in getattr(torch.nn.modules.module, f"_global_{kind}_hooks", {}).values():
            name = getattr(hook, "__qualname__", type(hook).__name__)
            raise InputError(
                f"the global hook {name!r} (registered for all modules) would run in every pass of the analysis. "
                "Remove it first, and register it again afterwards."
            )


def _refuse_training_mode(label: str, layer: nn.Module) -> None:
    """Refuse a layer in training mode that is random there, or computes statistics of the batch."""
    drops = isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0
    drops |= isinstance(layer, nn.RNNBase | nn.MultiheadAttention) and layer.dropout > 0
    if drops or isinstance(layer, nn.RReLU):
        raise InputError(f"{label} is random in training mode: call model.eval() first.")
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        raise InputError(
            f"{label} is in training mode, where the loss is not a mean over examples: call model.eval() first "
            "(curvature at the running statistics)."
        )
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm) and layer.track_running_stats:
        raise InputError(f"{label} would update its running statistics: call model.eval() first.")


def _refuse_parametrization(path: str, layer: nn.Module) -> None:
    """Refuse parametrizations whose value changes each time they are computed, or that are not smooth functions."""
    owner = f"layer {path.split('.parametrizations.')[0].removeprefix('parametrizations.')!r}"
    legacy = any(isinstance(hook, LegacySpectralNorm) for hook in layer._forward_pre_hooks.values())
    if layer.training and (legacy or (isinstance(layer, _SpectralNorm) and hasattr(layer, "_u"))):
        raise InputError(
            f"spectral_norm of {owner} is in training mode, where each pass changes its estimate of the largest "
            "singular value, so there is no fixed function to differentiate. Call model.eval() first (the singular "
            "vectors then stay as they are)."
        )
    if isinstance(layer, _Orthogonal) and layer.orthogonal_map == _OrthMaps.householder:
        raise InputError(
            f"orthogonal of {owner} uses Householder reflections, which PyTorch multiplies by rounded signs: it jumps "
            "at every point that it is initialized to. Use orthogonal_map='matrix_exp' or 'cayley'."
        )


def common_type(module: nn.Module, dtype: torch.dtype | None) -> tuple[torch.dtype, torch.device]:
    """Choose the precision to compute in, and find the one device of the module.

    Parameters
    ----------
    module
        The user's module.
    dtype
        The precision asked for; None keeps that of the module.

    Returns
    -------
    dtype, device
        ``torch.float32`` or ``torch.float64``, and where parameters and buffers are.

    Raises
    ------
    InputError
        If parameters are complex, not finite, of several dtypes without a choice, or on several devices.
    ConfigurationError
        If the precision is another one.
    """
    tensors = dict(module.named_parameters())
    if not tensors:
        raise InputError("the module has no parameters: there is nothing to differentiate.")
    device = _common_device(module)
    for name, tensor in tensors.items():
        if tensor.is_complex():
            raise InputError(f"parameter {name!r} is complex; only real parameters are supported.")
        if not torch.isfinite(tensor.detach()).all():
            raise InputError(f"parameter {name!r} contains NaN or infinity.")
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if dtype is None and len(dtypes) > 1:
        raise InputError(
            f"the parameters have several dtypes ({', '.join(map(str, dtypes))}): pass dtype=torch.float64."
        )
    chosen = dtype or dtypes.pop()
    if chosen not in (torch.float32, torch.float64):
        raise ConfigurationError(
            f"dtype must be torch.float64 or torch.float32, got {chosen}: curvature needs the digits."
        )
    return chosen, device


def _common_device(module: nn.Module) -> torch.device:
    names_on: dict[torch.device, list[str]] = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        names_on.setdefault(tensor.device, []).append(name)
    main = max(names_on, key=lambda device: len(names_on[device]))
    others = "; ".join(f"{', '.join(names)} on {device}" for device, names in names_on.items() if device != main)
    if others:
        raise InputError(f"the module is on several devices: most of it on {main}, {others}. Move it to one.")
    if main.type == "meta":
        raise InputError("the module is on the meta device, where tensors hold no numbers: load its weights first.")
    return main
