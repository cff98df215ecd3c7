"""Modules as users have them: what is refused, and how weight normalization is unwrapped into weights and a chart."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _OrthMaps, _Orthogonal, _SpectralNorm, _WeightNorm
from torch.nn.utils.spectral_norm import SpectralNorm as LegacySpectralNorm
from torch.nn.utils.weight_norm import WeightNorm as LegacyWeightNorm

from curvature.charts import Parameterization, Standard, WeightNorm
from curvature.errors import ConfigurationError, InputError
from curvature.layout import Entry
from curvature.models.behaviour import where_of

__all__ = ["common_type", "refuse_module", "unwrap"]

_NORMALIZABLE = (
    nn.Linear,
    nn.Bilinear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def refuse_module(module: nn.Module) -> None:
    """Refuse, by layer, what would make the matrix meaningless: random, batch-coupled or moving layers, TorchScript."""
    if not isinstance(module, nn.Module):
        raise InputError(f"the model must be a torch.nn.Module, got {type(module).__name__}.")
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError("TorchScript modules cannot be differentiated twice here; pass the original nn.Module.")
    for name, layer in module.named_modules():
        where = where_of(name, layer)
        if any(nn.parameter.is_lazy(parameter) for parameter in layer.parameters(recurse=False)):
            raise InputError(f"{where} is not initialized yet: run the model once on an input.")
        _refuse_parametrization(name, layer)
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None:
            raise InputError(
                f"{where} has no running statistics (track_running_stats=False): it normalizes by the batch in "
                "evaluation mode too, so the loss is not a mean over examples. Use LayerNorm or GroupNorm, or batch "
                "norm with running statistics in evaluation mode."
            )
        if not layer.training:
            continue
        dropping = isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0
        dropping |= isinstance(layer, nn.RNNBase | nn.MultiheadAttention) and layer.dropout > 0
        if dropping or isinstance(layer, nn.RReLU):
            raise InputError(f"{where} is random in training mode: call model.eval() first.")
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise InputError(
                f"{where} is in training mode, where the loss is not a mean over examples: call model.eval() first "
                "(curvature at the running statistics)."
            )
        if isinstance(layer, nn.modules.instancenorm._InstanceNorm) and layer.track_running_stats:
            raise InputError(f"{where} would update its running statistics: call model.eval() first.")


def _refuse_parametrization(name: str, layer: nn.Module) -> None:
    """Refuse parametrizations whose value moves when they are computed, or that are no smooth function."""
    of = f"layer {name.split('.parametrizations.')[0].removeprefix('parametrizations.')!r}"
    legacy = any(isinstance(hook, LegacySpectralNorm) for hook in layer._forward_pre_hooks.values())
    if layer.training and (legacy or (isinstance(layer, _SpectralNorm) and hasattr(layer, "_u"))):
        raise InputError(
            f"spectral_norm of {of} is in training mode, where each pass moves its estimate of the largest singular "
            "value, so that there is no one function to differentiate: call model.eval() first (the singular vectors "
            "then stay as they are)."
        )
    if isinstance(layer, _Orthogonal) and layer.orthogonal_map == _OrthMaps.householder:
        raise InputError(
            f"orthogonal of {of} uses Householder reflections, which PyTorch multiplies by rounded signs: it jumps at "
            "every point that it is initialized to. Use orthogonal_map='matrix_exp' or 'cayley'."
        )


def common_type(module: nn.Module, dtype: torch.dtype | None) -> tuple[torch.dtype, torch.device]:
    """Precision to compute in and the one device of the module; refuses complex, non-finite or scattered parameters."""
    tensors = dict(module.named_parameters())
    if not tensors:
        raise InputError("the module has no parameters: there is nothing to differentiate.")
    device = _common_device(module)
    for name, tensor in tensors.items():
        if tensor.is_complex():
            raise InputError(f"parameter {name!r} is complex; only real parameters are supported.")
        if not torch.isfinite(tensor.detach()).all():
            raise InputError(f"parameter {name!r} contains NaN or infinity.")
    kinds = {tensor.dtype for tensor in tensors.values()}
    if dtype is None and len(kinds) > 1:
        raise InputError(
            f"the parameters have several dtypes ({', '.join(map(str, kinds))}): pass dtype=torch.float64."
        )
    chosen = dtype or kinds.pop()
    if chosen not in (torch.float32, torch.float64):
        raise ConfigurationError(
            f"dtype must be torch.float64 or torch.float32, got {chosen}: curvature needs the digits."
        )
    return chosen, device


def _common_device(module: nn.Module) -> torch.device:
    places: dict[torch.device, list[str]] = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        places.setdefault(tensor.device, []).append(name)
    most = max(places, key=lambda device: len(places[device]))
    others = "; ".join(f"{', '.join(names)} on {device}" for device, names in places.items() if device != most)
    if others:
        raise InputError(f"the module lies on several devices: most of it on {most}, {others}. Move it to one.")
    if most.type == "meta":
        raise InputError("the module lies on the meta device, where tensors hold no numbers: load its weights first.")
    return most


@dataclass(frozen=True)
class _Normalized:
    """A weight-normalized parameter of the user's module, in either of PyTorch's forms."""

    layer: str
    name: str
    g: Tensor
    v: Tensor
    axis: int | None
    legacy: bool


def _find_weight_norm(module: nn.Module) -> list[_Normalized]:
    found = []
    for path, layer in module.named_modules():
        for hook in layer._forward_pre_hooks.values():
            if isinstance(hook, LegacyWeightNorm):
                g, v = getattr(layer, f"{hook.name}_g"), getattr(layer, f"{hook.name}_v")
                found.append(_Normalized(path, hook.name, g, v, _norm_axis(hook.dim, v), legacy=True))
        if not parametrize.is_parametrized(layer):
            continue
        for name, chain in layer.parametrizations.items():
            kinds = [isinstance(step, _WeightNorm) for step in chain]
            if not any(kinds):
                continue
            others = sorted(
                other for other, steps in layer.parametrizations.items() if not isinstance(steps[0], _WeightNorm)
            )
            if len(kinds) > 1 or others:
                raise InputError(
                    f"layer {path!r}: weight_norm of {name!r} stands with other parametrizations "
                    f"({', '.join(others) or 'stacked on it'}); only weight_norm alone can be unwrapped."
                )
            g, v = chain.original0, chain.original1
            found.append(_Normalized(path, name, g, v, _norm_axis(chain[0].dim, v), legacy=False))
    return found


def _norm_axis(dim: int | None, v: Tensor) -> int | None:
    # In PyTorch dim=None and dim=-1 both mean one norm for the whole tensor.
    return None if dim is None or dim == -1 else dim % v.ndim


def unwrap(
    module: nn.Module, dtype: torch.dtype
) -> tuple[nn.Module, list[Entry], dict[str, Tensor], dict[str, str], list[str], Parameterization]:
    """Copy the module, replace weight-normalized parameters by effective weights, list what is trainable."""
    normalized = _find_weight_norm(module)
    wide = torch.complex128 if dtype == torch.float64 else torch.complex64
    # Not Module.to, which casts complex buffers to real ones.
    model = _private_copy(module)._apply(
        lambda t: t.to(dtype) if t.is_floating_point() else t.to(wide) if t.is_complex() else t
    )
    owners: dict[int, _Normalized] = {}
    aliases: dict[str, str] = {}
    for found in normalized:
        layer = model.get_submodule(found.layer)
        if found.legacy:
            torch.nn.utils.remove_weight_norm(layer, found.name)
        elif hasattr(layer, "parametrizations"):
            _strip_parametrizations(layer)
        setattr(layer, found.name, nn.Parameter(_effective_weight(found, dtype)[0]))
        first = owners.setdefault(id(found.g), found)
        if first is not found:
            if first.v is not found.v or first.axis != found.axis:
                raise InputError(f"layers {first.layer!r} and {found.layer!r} share g but not v: tie both or neither.")
            aliases[_join(found.layer, found.name)] = _join(first.layer, first.name)
    directions = {id(found.v): found for found in owners.values()}
    if len(directions) < len(owners):
        raise InputError("two weight-normalized layers share v but not g: tie both or neither.")

    entries: list[Entry] = []
    values: dict[str, Tensor] = {}
    frozen: list[str] = []
    explicit_g, explicit_v = {}, {}
    for name, parameter in module.named_parameters():
        if id(parameter) in directions:
            continue
        layer_path, _, leaf = name.rpartition(".")
        if id(parameter) in owners:
            found = owners[id(parameter)]
            name, layer_path = _join(found.layer, found.name), found.layer
            value, trainable = _effective_weight(found, dtype)
            axis, normalizes = found.axis, True
            if trainable:
                explicit_g[name], explicit_v[name] = found.g.detach().to(dtype), found.v.detach().to(dtype)
        else:
            value, trainable = parameter.detach().to(dtype, copy=True), parameter.requires_grad
            layer = module.get_submodule(layer_path)
            axis = 0
            normalizes = not normalized and leaf == "weight" and isinstance(layer, _NORMALIZABLE) and value.ndim > 1
        if not trainable:
            frozen.append(name)
            continue
        neuron_axis = 0 if value.ndim else None
        transposed = isinstance(module.get_submodule(layer_path), nn.modules.conv._ConvTransposeNd)
        if transposed and value.ndim > 1:  # its weight is (in, out / groups, ...): an output channel is a column
            neuron_axis = 1 if module.get_submodule(layer_path).groups == 1 else None
        entries.append(Entry(name, tuple(value.shape), layer_path, neuron_axis, normalizes, axis))
        values[name] = value
    model.requires_grad_(False)
    chart = WeightNorm(v=explicit_v, g=explicit_g) if explicit_v else Standard()
    return model, entries, values, aliases, frozen, chart


def _strip_parametrizations(layer: nn.Module) -> None:
    """Turn a copied layer, all of whose parametrizations are weight norm, back into its plain class.

    ``parametrize.remove_parametrizations`` deletes the property from the layer's class, which a deep copy
    shares with the user's own layer; here only the instance changes.
    """
    names = list(layer.parametrizations)
    del layer.parametrizations
    layer.__class__ = type(layer).__bases__[0]
    for name in names:
        layer.register_parameter(name, None)


def _effective_weight(found: _Normalized, dtype: torch.dtype) -> tuple[Tensor, bool]:
    if found.g.requires_grad != found.v.requires_grad:
        raise InputError(f"layer {found.layer!r}: one of g and v is frozen, the other is not; freeze both or neither.")
    v, g = found.v.detach().to(dtype), found.g.detach().to(dtype)
    entry = Entry(found.name, tuple(v.shape), found.layer, norm_axis=found.axis)
    rows = entry.rows(v.reshape(-1))
    lengths = torch.linalg.vector_norm(rows, dim=1)
    zero = (lengths == 0).nonzero().flatten().tolist()
    if zero:
        raise InputError(
            f"layer {found.layer!r}: row {zero[0]} of v ({found.name}) is zero, so weight normalization is undefined "
            "there. Give it any non-zero value."
        )
    effective = entry.from_rows((g.reshape(-1) / lengths)[:, None] * rows)
    return effective.view(v.shape), found.g.requires_grad


def _private_copy(module: nn.Module) -> nn.Module:
    """Deep copy, including modules that hold computed tensors, which PyTorch refuses to copy.

    The legacy weight norm leaves such a tensor behind in every layer it was run on.
    """
    memo: dict[int, Tensor] = {}
    for layer in module.modules():
        for value in vars(layer).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        model = copy.deepcopy(module, memo)
    except Exception as error:  # anything may come out of a user's module
        raise InputError(
            f"the module cannot be copied ({type(error).__name__}: {error}), and it is not used in place."
        ) from error
    for parameter in model.parameters():
        parameter.grad = None
    return model


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
