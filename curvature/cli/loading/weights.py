"""Weights from files, in whichever weight-norm form they and the model are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from curvature.cli.loading.files import SAVE_WEIGHTS, contents, existing, load_tensors, oddity, refuse_large
from curvature.cli.loading.wording import Say, dtype_name, first_line, listed
from curvature.errors import ConfigurationError, InputError

__all__ = ["apply_weights", "load_weights"]


def load_weights(path: str | Path, key: str | None = None, say: Say = lambda _: None) -> dict[str, Tensor]:
    """Read a state_dict from ``.safetensors`` or from a ``torch.save`` file, tensors only.

    ``key`` picks a nested dictionary of a checkpoint (``"model"``, or ``"ema/model"`` for two levels).
    """
    path = existing(path, "weights")
    if path.suffix == ".safetensors":
        if key is not None:
            raise ConfigurationError(f"--key {key!r}: {path} is a safetensors file, which has no nested dictionaries.")
        return _load_safetensors(path)
    if path.suffix not in {".pt", ".pth", ".bin", ".ckpt"}:
        raise ConfigurationError(f"weights must be a .safetensors, .pt or .pth file, got {str(path)!r}.")
    found = load_tensors(path, SAVE_WEIGHTS, say)
    for part in [] if key is None else [key] if isinstance(found, Mapping) and key in found else key.split("/"):
        if not isinstance(found, Mapping) or part not in found:
            raise ConfigurationError(f"--key {key!r} is not in {path}; it holds {contents(found)}.")
        found = found[part]
    if not isinstance(found, Mapping) or not found:
        raise InputError(f"{path} holds {contents(found)}, not a state_dict. {SAVE_WEIGHTS}.")
    others = [name for name, value in found.items() if not isinstance(value, Tensor)]
    if others:
        nested = [name for name in others if _is_state_dict(found[name])]
        hint = f"add --key {nested[0]}" if nested else f"{SAVE_WEIGHTS[0].lower()}{SAVE_WEIGHTS[1:]}"
        raise InputError(f"{path} is not a state_dict: {listed(map(str, others))} are no tensors. To use it, {hint}.")
    return {str(name): value for name, value in found.items()}


def apply_weights(model: nn.Module, tensors: Mapping[str, Tensor], say: Say = lambda _: None) -> nn.Module:
    """Put a state_dict into a model, whichever of PyTorch's weight-norm forms either is in.

    Plain layers whose weight comes as ``weight_g, weight_v`` or ``parametrizations.weight.original0/1`` are wrapped in
    ``nn.utils.parametrizations.weight_norm`` first, so that the point keeps its gauge.
    """
    tensors = _without_wrapper_prefix(dict(tensors), model, say)
    wanted = model.state_dict()
    renamed: dict[str, Tensor] = {}
    wrapped, misshapen, twice = [], {}, []
    for name, value in tensors.items():
        found = None if name in wanted else _normalized_name(name)
        if found is None:
            twice += [name] if name in renamed else []
            renamed[name] = value
            continue
        layer, parameter, part = found
        forms = [_form(layer, parameter, form)[part] for form in ("parametrized", "legacy")]
        plain, pair = _join(layer, parameter), _pair_of(tensors, layer, parameter)
        if plain in wanted and pair is not None:
            if oddity(pair[1]) or oddity(pair[0]) or pair[1].shape != wanted[plain].shape:
                misshapen[plain] = pair[1] if oddity(pair[0]) is None else pair[0]
                continue
            weight_norm(model.get_submodule(layer), parameter, dim=_norm_dim(*pair))
            wanted = model.state_dict()
            wrapped.append(plain)
        place = next((form for form in forms if form in wanted), name)
        twice += [place] if place in renamed else []
        renamed[place] = value
    if wrapped:
        say(f"note: the weights are weight-normalized: wrapped {listed(wrapped)} in weight_norm, with its own g and v.")

    renamed |= misshapen
    missing = [name for name in wanted if name not in renamed]
    unexpected = [name for name in renamed if name not in wanted]
    shapes = [
        f"{name} is {tuple(value.shape)} in the file and {tuple(wanted[name].shape)} in the model"
        for name, value in renamed.items()
        if name in wanted
        and oddity(value) is None  # a nested tensor has no shape
        and isinstance(wanted[name], Tensor)
        and value.shape != wanted[name].shape
    ]
    kinds = [
        f"{name} is {kind}"
        for name, value in renamed.items()
        if name in wanted and (kind := _unusable(value, wanted[name])) is not None
    ]
    problems = [f"missing in the file: {listed(missing)}"] if missing else []
    problems += [f"not in the model: {listed(unexpected)}"] if unexpected else []
    problems += [f"given twice: {listed(twice)}"] if twice else []
    problems += [f"of another kind: {listed(kinds, '; ')}"] if kinds else []
    problems += [f"other shapes: {listed(shapes, '; ')}"] if shapes else []
    if problems:
        hint = " The model is weight-normalized, the weights are not: use the plain model."
        plain_file = any(_normalized_name(name) for name in missing) and not any(map(_normalized_name, renamed))
        hint = hint if plain_file else " Save them as dense floating-point tensors." if kinds else ""
        raise InputError(f"the weights do not fit the model: {'; '.join(problems)}.{hint}")
    _refuse_broken_ties(wanted, renamed)
    try:
        model.load_state_dict(renamed, strict=True)
    except Exception as error:  # a module may load its part in a way of its own
        raise InputError(f"the model does not take the weights: {' '.join(str(error).split())}") from error
    return model


def _refuse_broken_ties(wanted: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse different values for names that are one tensor in the model, of which PyTorch would keep the last."""
    first: dict[tuple, str] = {}
    for name, value in wanted.items():
        if not isinstance(value, Tensor) or not value.numel():
            continue
        other = first.setdefault((value.data_ptr(), tuple(value.shape), value.stride()), name)
        if not torch.equal(tensors[name], tensors[other].to(tensors[name])):
            raise InputError(
                f"{other} and {name} are one tensor in the model (tied), but two different ones in the file: the file "
                "belongs to a model that does not tie them."
            )


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    refuse_large(path)
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not a safetensors file: {first_line(error)}.") from error


def _unusable(value: Tensor, wanted: Any) -> str | None:
    """Why a tensor cannot be copied into the model without becoming another: nothing is cast in silence."""
    if oddity(value) is not None:
        return oddity(value)
    if isinstance(wanted, Tensor) and wanted.is_floating_point() and not value.is_floating_point():
        return f"{dtype_name(value)} in the file and {dtype_name(wanted)} in the model"
    return None


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(part, Tensor) for part in value.values())


def _without_wrapper_prefix(tensors: dict[str, Tensor], model: nn.Module, say: Say) -> dict[str, Tensor]:
    """Drop what ``DataParallel`` and ``torch.compile`` put before every name."""
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in tensors) and not any(
            n.startswith(prefix) for n in model.state_dict()
        ):
            say(f"note: dropped the prefix {prefix!r} from the names of the weights.")
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _form(layer: str, parameter: str, form: str) -> tuple[str, str]:
    """Names of ``g`` and ``v`` in one of PyTorch's two forms."""
    if form == "legacy":
        return _join(layer, f"{parameter}_g"), _join(layer, f"{parameter}_v")
    stem = _join(layer, f"parametrizations.{parameter}.original")
    return f"{stem}0", f"{stem}1"


def _normalized_name(name: str) -> tuple[str, str, int] | None:
    """Layer, parameter and part (0 for ``g``, 1 for ``v``) where the name is that of a weight-normalized tensor."""
    layer, _, leaf = name.rpartition(".")
    if leaf in {"original0", "original1"}:
        found = re.fullmatch(r"(?:(.*)\.)?parametrizations\.([^.]+)", layer)
        return (found[1] or "", found[2], int(leaf[-1])) if found else None
    if leaf.endswith(("_g", "_v")):
        return layer, leaf[:-2], "gv".index(leaf[-1])
    return None


def _pair_of(tensors: Mapping[str, Tensor], layer: str, parameter: str) -> tuple[Tensor, Tensor] | None:
    for form in ("parametrized", "legacy"):
        names = _form(layer, parameter, form)
        if all(name in tensors for name in names):
            return tensors[names[0]], tensors[names[1]]
    return None


def _norm_dim(g: Tensor, v: Tensor) -> int | None:
    """Which ``dim`` of ``weight_norm`` leaves a ``g`` of this shape; PyTorch's default where several do."""
    for dim in range(v.ndim):
        if tuple(g.shape) == tuple(size if axis == dim else 1 for axis, size in enumerate(v.shape)):
            return dim
    return None


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
