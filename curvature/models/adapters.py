"""Modules whose layers train something else than their weights, as plain modules with the chart of what they train."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm

from curvature.charts import DoRA, LoRA, Parameterization, PerWeight, SpectralNorm
from curvature.errors import InputError
from curvature.models.module.copying import private_copy
from curvature.precision import full_precision

__all__ = ["effective_weights"]

_CONVERGED = 1e-6  # relative residual of singular vectors; those of a module in float32 reach 1e-7
_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class _Effective(NamedTuple):
    """A layer with a plain weight, and what the module trains in its place."""

    kind: str
    layer: nn.Module
    parts: Mapping[str, Tensor]
    trained: frozenset[str]


@full_precision()
def effective_weights(module: nn.Module, *, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Parameterization]:
    r"""Copy a module with LoRA, DoRA or spectrally normalized layers as a plain one, with the chart of what it trains.

    The copy computes the same function of its effective weights, $W_0 + \frac\alpha r B A$ for LoRA; the chart has the
    coordinates that the module trains. ``Problem.from_module(module)`` without this takes these themselves as weights:
    the same spectrum, but no comparison with other charts at the same function.

    Parameters
    ----------
    module
        With layers of peft (``get_peft_model`` with LoRA or DoRA, one active adapter), or layers with attributes of the
        same names, or layers under ``torch.nn.utils.parametrizations.spectral_norm`` in eval mode. Not modified.
    dtype
        Precision of the copy.

    Returns
    -------
    module, chart
        A plain module in which the effective weights are trainable, and everything else as it was; and ``LoRA``,
        ``DoRA`` or ``SpectralNorm`` at the module's values.

    Raises
    ------
    InputError
        If there is no such layer, there are several kinds of them, or one computes something else than its formula.

    Notes
    -----
    Every layer is compared with its copy on random inputs. The norm of DoRA, which peft holds constant in its backward
    pass, is differentiated in the chart, and so are the singular vectors of the spectral norm, which PyTorch holds
    constant in eval mode: first derivatives agree where they have converged, and are refused elsewhere.

    Examples
    --------
    >>> import curvature as cv
    >>> layer = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2), n_power_iterations=100).eval()
    >>> plain, chart = cv.effective_weights(nn.Sequential(layer))
    >>> [name for name, _ in plain.named_parameters()], chart
    (['0.weight', '0.bias'], SpectralNorm('checkpoint, gain frozen'))
    """
    model = private_copy(module, dtype)
    replaced: dict[str, _Effective] = {}
    for path, layer in list(model.named_modules()):
        if _is_adapted(layer):
            replaced[path] = _adapted(path, layer)
        elif parametrize.is_parametrized(layer):
            replaced[path] = _spectral(path, layer)
    if not replaced:
        raise InputError(
            "the module has no LoRA, DoRA or spectrally normalized layer: pass it to from_module as it is."
        )
    for path, effective in replaced.items():
        _compare(path, model.get_submodule(path), effective.layer)
        if not path:
            model = effective.layer
            continue
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, effective.layer)
    return model, _chart({f"{path}.weight" if path else "weight": row for path, row in replaced.items()})


def _chart(rows: Mapping[str, _Effective]) -> Parameterization:
    """The chart of the effective weights, without the parts that the module freezes."""
    kinds = sorted({row.kind for row in rows.values()})
    if len(kinds) > 1:
        raise InputError(
            f"the module has layers of several kinds ({', '.join(kinds)}), and one chart has one kind only."
        )
    values = {name: row.parts for name, row in rows.items() if row.trained}
    build: Callable[..., PerWeight] = {"lora": LoRA, "dora": DoRA, "spectral-norm": SpectralNorm}[kinds[0]]
    chart: Parameterization = build(values=values)
    names = sorted({part for row in rows.values() for part in row.parts} & set(build.part_names))  # type: ignore[attr-defined]
    for part in names:
        frozen = [name for name, row in rows.items() if row.trained and part not in row.trained]
        patterns = [part] if len(frozen) == len(values) else [f"{name}.{part}" for name in frozen]
        for pattern in [] if kinds[0] == "spectral-norm" else patterns:  # its gain is frozen by default
            chart = chart.freeze(pattern)
    return chart


def _is_adapted(layer: nn.Module) -> bool:
    """Whether this is a layer of peft with LoRA, or has the attributes of one."""
    return all(hasattr(layer, name) for name in ("lora_A", "lora_B", "scaling", "base_layer"))


def _adapted(path: str, layer: Any) -> _Effective:
    """The effective weight of a layer with one LoRA or DoRA adapter."""
    base = layer.base_layer
    active = [name for name in _listed(getattr(layer, "active_adapters", list(layer.lora_A))) if name in layer.lora_A]
    reasons = {
        f"its base is a {type(base).__name__}": type(base) not in _PLAIN or getattr(base, "groups", 1) != 1,
        f"it has {len(active)} active adapters": len(active) != 1,
        "its adapter is merged into the base": bool(getattr(layer, "merged", False)),
        "its adapter is disabled": bool(getattr(layer, "disable_adapters", False)),
        "the weight of its base is trained too": base.weight.requires_grad,
    }
    wrong = [reason for reason, applies in reasons.items() if applies]
    if wrong:
        raise InputError(
            f"layer {path!r} cannot be written as W0 + scale B A: {' and '.join(wrong)}. Leave effective_weights out; "
            "Problem.from_module takes the parameters of the adapter as they are."
        )
    name = active[0]
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    rows = base.weight.reshape(len(base.weight), -1)
    scale = rows.new_tensor(float(layer.scaling[name]))
    trainable = {"a": a, "b": b}
    parts = {"a": a.reshape(len(a), -1), "b": b.reshape(len(b), -1), "base": base.weight, "scale": scale}
    adapted = rows + scale * parts["b"] @ parts["a"]
    kind = "lora"
    magnitudes = getattr(layer, "lora_magnitude_vector", {})
    if name in magnitudes:
        kind, g = "dora", getattr(magnitudes[name], "weight", magnitudes[name])
        trainable["g"] = g
        parts["g"] = g.reshape(-1)
        adapted = parts["g"][:, None] / torch.linalg.vector_norm(adapted, dim=1, keepdim=True) * adapted
    trained = frozenset(part for part, tensor in trainable.items() if tensor.requires_grad)
    plain = copy.copy(base)
    plain._parameters = dict(base._parameters)
    plain.weight = nn.Parameter(adapted.reshape(base.weight.shape).detach(), requires_grad=bool(trained))
    return _Effective(kind, plain, {part: tensor.detach().clone() for part, tensor in parts.items()}, trained)


def _spectral(path: str, layer: Any) -> _Effective:
    """The effective weight of a layer under PyTorch's spectral norm, whose singular vectors have converged."""
    steps = layer.parametrizations
    if list(steps) != ["weight"] or len(steps.weight) != 1 or not isinstance(steps.weight[0], _SpectralNorm):
        words = ", ".join(f"{type(step).__name__} of {name}" for name, chain in steps.items() for step in chain)
        raise InputError(
            f"layer {path!r} has the parametrizations {words}: only spectral_norm of the weight alone can be replaced "
            "by its chart (weight_norm by Problem.from_module)."
        )
    norm, raw = steps.weight[0], steps.weight.original
    matrix = norm._reshape_weight_to_matrix(raw.detach())
    largest = torch.linalg.matrix_norm(matrix, 2)
    gap = torch.linalg.vector_norm(matrix @ norm._v - largest * norm._u) / largest
    gap = max(float(gap), float(torch.linalg.vector_norm(matrix.T @ norm._u - largest * norm._v) / largest))
    if norm.training or not gap < _CONVERGED:
        raise InputError(
            f"layer {path!r}: the singular vectors of its spectral norm have not converged, or change with each call; "
            f"their residual is {gap:.1e}. Call the module some times in train mode, where each call is a power "
            "iteration, and then module.eval()."
        )
    plain_type = next(kind for kind in type(layer).__mro__ if kind in _PLAIN)
    plain = plain_type.__new__(plain_type)
    plain.__dict__.update(layer.__dict__)
    weight = nn.Parameter((raw / largest).detach(), requires_grad=raw.requires_grad)
    plain._modules, plain._parameters = {}, {"weight": weight, **layer._parameters}
    parts = {"gain": raw.new_ones(()), "v": raw.detach().clone()}
    return _Effective("spectral-norm", plain, parts, frozenset({"v"} if raw.requires_grad else ()))


def _listed(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _compare(path: str, layer: nn.Module, plain: Any) -> None:
    """Refuse a layer that computes something else than its plain copy, on random inputs."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(plain, nn.Linear):
        shape = [3, plain.in_features]
    else:
        reach = zip(plain.dilation, plain.kernel_size, strict=True)
        shape = [3, plain.in_channels, *(dilation * (size - 1) + 2 for dilation, size in reach)]
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64).to(plain.weight)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        expected, computed = layer(inputs), plain(inputs)
    difference = float(torch.linalg.vector_norm(expected - computed) / torch.linalg.vector_norm(expected))
    if not difference < 1e-5:
        raise InputError(
            f"layer {path!r} ({type(layer).__name__}) computes something else than its effective weight: on random "
            f"inputs they differ by {difference:.1e}. Put the module into eval mode (dropout of an adapter is random), "
            "or leave effective_weights out."
        )
