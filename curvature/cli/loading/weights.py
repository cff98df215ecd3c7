"""Weights from files, in either of PyTorch's forms of weight normalization or in none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from curvature.cli.loading.files import (
    SAVE_WEIGHTS,
    describe_contents,
    existing,
    expanded,
    load_tensors,
    pickled_objects,
    refuse_large,
    unusual_kind,
)
from curvature.cli.loading.names import normalized_name, without_prefix
from curvature.cli.loading.shards import file_in, load_shards
from curvature.cli.wording import Say, dtype_name, first_line, listed
from curvature.errors import ConfigurationError, InputError

__all__ = ["apply_weights", "load_weights"]


def load_weights(path: str | Path, key: str | None = None, say: Say = lambda _: None) -> dict[str, Tensor]:
    """Read a state_dict; only tensors are unpickled, and all other objects are left out.

    Parameters
    ----------
    path
        A ``.safetensors`` file, a file of ``torch.save``, the index of several such files (``.index.json``), or a
        folder that has one of those under the name that ``save_pretrained`` gives it.
    key
        Key of the state_dict in a checkpoint: ``model``, or ``ema/model`` for two levels. None: ``state_dict`` if
        there are weights under it, as in checkpoints of Lightning.
    say
        Receives a note about objects that were left out, and a warning if this version of PyTorch has a known flaw.

    Returns
    -------
    dict
        Tensors by name, on the CPU.

    Raises
    ------
    ConfigurationError
        If the suffix is unknown, or the checkpoint does not contain the key.
    InputError
        If the file is missing, too large or damaged, or does not contain a state_dict.
    """
    path = expanded(path, "weights")
    path = file_in(path) if path.is_dir() else existing(path, "weights")
    if path.name.endswith(".index.json"):
        return load_shards(path, lambda shard: load_weights(shard, key, say))
    if path.suffix == ".safetensors":
        if key is not None:
            raise ConfigurationError(f"--key {key!r}: {path} is a safetensors file, which has no nested dictionaries.")
        return _load_safetensors(path)
    if path.suffix not in {".pt", ".pth", ".bin", ".ckpt"}:
        raise ConfigurationError(
            f"weights must be a .safetensors, .pt, .pth, .bin or .ckpt file, an index of such files (.index.json), or "
            f"their folder, got {str(path)!r}."
        )
    return _load_pickle(path, key, say)


def apply_weights(
    model: nn.Module, tensors: Mapping[str, Tensor], say: Say = lambda _: None, *, strip_prefix: str | None = None
) -> nn.Module:
    """Load a state_dict into a model, where either may use either of PyTorch's forms of weight normalization.

    Parameters
    ----------
    model
        Changed in place. A plain layer whose weight comes as ``weight_g, weight_v`` or as
        ``parametrizations.weight.original0/1`` is first wrapped in ``nn.utils.parametrizations.weight_norm``, so that
        the gauge of the file is kept.
    tensors
        The state_dict.
    say
        Receives a message about wrapped layers and renamed weights.
    strip_prefix
        Prefix of the names to use; None: a prefix is removed where the names of the model are found without it.

    Returns
    -------
    nn.Module
        The model.

    Raises
    ------
    ConfigurationError
        If no name has the prefix ``strip_prefix``.
    InputError
        If names, shapes or types do not fit; every difference is listed.
    """
    tensors = without_prefix(tensors, model.state_dict().keys(), strip_prefix, say)
    matches = _match_names(model, tensors)
    if matches.wrapped:
        say(
            f"note: the weights are weight-normalized: wrapped {listed(matches.wrapped)} in weight_norm, with g and v "
            "from the file."
        )
    _refuse_differences(model.state_dict(), matches)
    _refuse_broken_ties(model.state_dict(), matches.tensors)
    try:
        model.load_state_dict(matches.tensors, strict=True)
    except Exception as error:  # a module can define how it loads its own part
        raise InputError(f"the model rejects the weights: {' '.join(str(error).split())}") from error
    return model


@dataclass
class _Matches:
    """Tensors of a file under the names of the model, and what was special about them."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    wrapped: list[str] = field(default_factory=list)  # weights whose layer was wrapped
    duplicates: list[str] = field(default_factory=list)  # names that occur in both forms

    def add(self, name: str, tensor: Tensor) -> None:
        if name in self.tensors:
            self.duplicates.append(name)
        self.tensors[name] = tensor


def _match_names(model: nn.Module, tensors: Mapping[str, Tensor]) -> _Matches:
    """Rename tensors of weight-normalized layers to the form of the model; wrap plain layers."""
    matches, misshapen = _Matches(), {}
    expected = model.state_dict()
    for name, tensor in tensors.items():
        normalized = None if name in expected else normalized_name(name)
        if normalized is None:
            matches.add(name, tensor)
            continue
        layer, parameter, part = normalized
        plain, pair = _join(layer, parameter), _pair_of(tensors, layer, parameter)
        if plain in expected and pair is not None:
            g, v = pair
            if unusual_kind(v) or unusual_kind(g) or v.shape != expected[plain].shape:
                misshapen[plain] = v if unusual_kind(g) is None else g  # to be refused under the model's name
                continue
            weight_norm(model.get_submodule(layer), parameter, dim=_norm_dim(g, v))  # type: ignore[arg-type]
            expected = model.state_dict()
            matches.wrapped.append(plain)
        forms = [_form(layer, parameter, form)[part] for form in ("parametrized", "legacy")]
        matches.add(next((form for form in forms if form in expected), name), tensor)
    matches.tensors |= misshapen
    return matches


def _refuse_differences(expected: Mapping[str, Any], matches: _Matches) -> None:
    """Refuse tensors that do not fit the model, and list every difference."""
    tensors = matches.tensors
    shared = [(name, tensor, expected[name]) for name, tensor in tensors.items() if name in expected]
    missing = [name for name in expected if name not in tensors]
    kinds = [f"{name} is {kind}" for name, tensor, own in shared if (kind := _wrong_kind(tensor, own)) is not None]
    shapes = [
        f"{name} is {tuple(tensor.shape)} in the file and {tuple(own.shape)} in the model"
        for name, tensor, own in shared
        # A nested tensor has no shape.
        if unusual_kind(tensor) is None and isinstance(own, Tensor) and tensor.shape != own.shape
    ]
    differences = {
        "missing in the file: ": listed(missing),
        "not in the model: ": listed(name for name in tensors if name not in expected),
        "in both forms of weight normalization: ": listed(matches.duplicates),
        "of another type: ": listed(kinds, "; "),
        "of another shape: ": listed(shapes, "; "),
    }
    problems = "; ".join(label + names for label, names in differences.items() if names)
    if problems:
        raise InputError(f"the weights do not fit the model: {problems}.{_hint(missing, tensors, kinds)}")


def _hint(missing: Iterable[str], tensors: Iterable[str], kinds: Iterable[str]) -> str:
    if any(map(normalized_name, missing)) and not any(map(normalized_name, tensors)):
        return " The model is weight-normalized, the weights are not. Use the plain model."
    return " Save them as dense floating-point tensors." if kinds else ""


def _refuse_broken_ties(expected: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse different values for names that are one tensor in the model, of which PyTorch would keep the last."""
    first: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name, own in expected.items():
        if not isinstance(own, Tensor) or not own.numel():
            continue
        other = first.setdefault((own.data_ptr(), tuple(own.shape), own.stride()), name)
        # NaN differs from itself: a name is compared only with another one.
        if other != name and not torch.equal(tensors[name], tensors[other].to(tensors[name])):
            raise InputError(
                f"{other} and {name} are one tensor in the model (tied), but two different tensors in the file. The "
                "file belongs to a model that does not tie them."
            )


def _load_pickle(path: Path, key: str | None, say: Say) -> dict[str, Tensor]:
    """Read a state_dict from a file of ``torch.save``, at a key or as the whole content."""
    value, objects = load_tensors(path, SAVE_WEIGHTS, say, skip_objects=True)
    value = _entry(value, key, path, say)
    others = [name for name, entry in value.items() if not isinstance(entry, Tensor)] if _mapping(value) else []
    nested = [name for name in others if _is_state_dict(value[name])]
    if objects and not nested and (others or not _mapping(value)):
        raise pickled_objects(path, objects, SAVE_WEIGHTS)
    if objects:
        say(
            f"note: {path} also contains pickled objects ({listed(objects)}). They were left out, and no code of them "
            "was run."
        )
    if not _mapping(value):
        raise InputError(f"{path} contains {describe_contents(value)}, not a state_dict. {SAVE_WEIGHTS}.")
    if others:
        hint = f"Add --key {nested[0]}" if nested else SAVE_WEIGHTS
        raise InputError(
            f"{path} is not a state_dict: it contains entries that are not tensors: {listed(map(str, others))}. {hint}."
        )
    return {str(name): entry for name, entry in value.items()}


def _entry(value: Any, key: str | None, path: Path, say: Say) -> Any:
    """The entry of a checkpoint at a key; without one, ``state_dict`` if no other entry has weights."""
    if key is None and isinstance(value, Mapping):
        if [name for name, part in value.items() if _is_state_dict(part)] == ["state_dict"]:
            say(f"note: read the weights under state_dict in {path}, as Lightning saves them.")
            return value["state_dict"]
        return value
    for part in _levels(key, value):
        if not isinstance(value, Mapping) or part not in value:
            raise ConfigurationError(f"--key {key!r} is not in {path}; it contains {describe_contents(value)}.")
        value = value[part]
    return value


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    refuse_large(path)
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not a safetensors file: {first_line(error)}.") from error


def _levels(key: str | None, value: Any) -> list[str]:
    """Keys to follow, one after the other; a key that itself contains a slash is one level."""
    if key is None:
        return []
    return [key] if isinstance(value, Mapping) and key in value else key.split("/")


def _wrong_kind(tensor: Tensor, own: Any) -> str | None:
    """Difference of type that would change the values of a tensor: nothing is converted silently."""
    kind = unusual_kind(tensor)
    if kind is not None:
        return kind
    if isinstance(own, Tensor) and own.is_floating_point() and not tensor.is_floating_point():
        return f"{dtype_name(tensor)} in the file and {dtype_name(own)} in the model"
    return None


def _mapping(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value)


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(part, Tensor) for part in value.values())


def _form(layer: str, parameter: str, form: str) -> tuple[str, str]:
    """Names of ``g`` and ``v`` in one of PyTorch's two forms."""
    if form == "legacy":
        return _join(layer, f"{parameter}_g"), _join(layer, f"{parameter}_v")
    stem = _join(layer, f"parametrizations.{parameter}.original")
    return f"{stem}0", f"{stem}1"


def _pair_of(tensors: Mapping[str, Tensor], layer: str, parameter: str) -> tuple[Tensor, Tensor] | None:
    for form in ("parametrized", "legacy"):
        names = _form(layer, parameter, form)
        if all(name in tensors for name in names):
            return tensors[names[0]], tensors[names[1]]
    return None


def _norm_dim(g: Tensor, v: Tensor) -> int | None:
    """Value of ``dim`` for which ``weight_norm`` has a ``g`` of this shape; PyTorch's default if there are several."""
    for dim in range(v.ndim):
        if tuple(g.shape) == tuple(size if axis == dim else 1 for axis, size in enumerate(v.shape)):
            return dim
    return None


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
