"""How a module is unwrapped: a private copy, its weights, and the chart of its weight normalization."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm as LegacyWeightNorm

from curvature.arrays import Float
from curvature.charts import Parameterization, Standard, WeightNorm
from curvature.errors import InputError
from curvature.layout import Entry, Layout
from curvature.models.function import ModelFunction
from curvature.models.module.copying import private_copy
from curvature.models.module.named import NamedTensors

__all__ = ["Normalized", "Unwrapped", "normalized_weights", "unwrap"]

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


@dataclass(frozen=True, eq=False)
class Unwrapped:
    """A module as a function of its trainable weights, at a point.

    Attributes
    ----------
    function
        A private copy of the module, with the names of its trainable weights; weight-normalized weights are replaced
        by their effective weights.
    weights
        The point ``(P,)``.
    frozen
        Names of the parameters with ``requires_grad=False``.
    chart
        ``Standard()``, or ``WeightNorm`` at the module's own ``(g, v)``, without the ``g`` or ``v`` that are frozen.
    """

    function: ModelFunction
    weights: Float[Tensor, "weights"]
    frozen: tuple[str, ...]
    chart: Parameterization


def unwrap(module: nn.Module, dtype: torch.dtype) -> Unwrapped:
    """Copy a module, replace weight-normalized parameters by effective weights, and list what is trainable.

    Parameters
    ----------
    module
        The user's module; not modified.
    dtype
        Precision of the copy.

    Returns
    -------
    Unwrapped
        The copy as a function, the point, the frozen names and the chart.

    Raises
    ------
    InputError
        If weight normalization cannot be unwrapped (stacked, half tied, a zero row), if the module cannot
        be copied, or if no parameter is trainable.
    """
    model = private_copy(module, dtype)
    normalized = normalized_weights(model.named_modules())
    owners = _owners(normalized)
    aliases = {w.path: owners[id(w.g)].path for w in normalized if owners[id(w.g)] is not w}
    directions = {id(wrapped.v) for wrapped in owners.values()}
    entries: list[Entry] = []
    values: list[Tensor] = []
    frozen: list[str] = []
    chart_v: dict[str, Tensor] = {}
    chart_g: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in directions:
            continue
        owner = owners.get(id(parameter))
        if not (owner.trained if owner else parameter.requires_grad):
            frozen.append(owner.path if owner else name)
        elif owner is None:
            value = parameter.detach().clone()
            entries.append(_plain_entry(model, name, value, any_normalized=bool(normalized)))
            values.append(value)
        else:
            value = owner.effective_weight(dtype)
            axis = _neuron_axis(model.get_submodule(owner.layer), value)
            entries.append(Entry(owner.path, tuple(value.shape), owner.layer, axis, True, owner.axis))
            values.append(value)
            chart_g[owner.path], chart_v[owner.path] = owner.g.detach().clone(), owner.v.detach().clone()
    for wrapped in normalized:
        _write_effective_weight(model, wrapped, dtype)
    layout = Layout(tuple(entries))
    if not layout.dim:
        raise InputError("the module has no parameter with requires_grad=True: there is nothing to differentiate.")
    model.requires_grad_(False)
    return Unwrapped(
        ModelFunction(model, layout, aliases),
        torch.cat([value.reshape(-1) for value in values]),
        tuple(frozen),
        _chart_of(layout, chart_v, chart_g, [owner for owner in owners.values() if owner.trained]),
    )


def _chart_of(
    layout: Layout, v: dict[str, Tensor], g: dict[str, Tensor], trained: list[Normalized]
) -> Parameterization:
    """Weight normalization at these values, without the ``g`` or the ``v`` that the module freezes."""
    if not trained:
        return Standard()
    chart: Parameterization = WeightNorm(v=v, g=g)
    for part in ("g", "v"):
        names = [weight.path for weight in trained if not getattr(weight, part).requires_grad]
        short = len(names) == len(trained) and not layout.named(part, required=False)  # nothing else has this name
        patterns = [part] if short else [f"{name}.{part}" for name in names]
        for pattern in patterns:
            chart = chart.freeze(pattern)
    return chart


def _owners(normalized: list[Normalized]) -> dict[int, Normalized]:
    """The first of the weight-normalized parameters that share one ``g``, by the identity of ``g``."""
    owners: dict[int, Normalized] = {}
    for wrapped in normalized:
        first = owners.setdefault(id(wrapped.g), wrapped)
        if first.v is not wrapped.v or first.axis != wrapped.axis:
            raise InputError(f"layers {first.layer!r} and {wrapped.layer!r} share g but not v: tie both or neither.")
    if len({id(wrapped.v) for wrapped in owners.values()}) < len(owners):
        raise InputError("two weight-normalized layers share v but not g: tie both or neither.")
    return owners


def _plain_entry(module: nn.Module, name: str, value: Tensor, *, any_normalized: bool) -> Entry:
    """The entry of a parameter that is not weight-normalized; normalizable if nothing in the module is normalized."""
    path, _, leaf = name.rpartition(".")
    if isinstance(module, NamedTensors):  # any matrix may be one of rows; a tensor without a layer is one
        return Entry(name, tuple(value.shape), path or leaf, 0 if value.ndim else None, value.ndim > 1)
    layer = module.get_submodule(path)
    normalizable = not any_normalized and leaf == "weight" and isinstance(layer, _NORMALIZABLE) and value.ndim > 1
    return Entry(name, tuple(value.shape), path, _neuron_axis(layer, value), normalizable)


def _neuron_axis(layer: nn.Module, value: Tensor) -> int | None:
    if isinstance(layer, nn.modules.conv._ConvTransposeNd) and value.ndim > 1:
        return 1 if layer.groups == 1 else None  # its weight is (in, out / groups, ...): an output channel is a column
    return 0 if value.ndim else None


def _write_effective_weight(model: nn.Module, wrapped: Normalized, dtype: torch.dtype) -> None:
    """Replace a weight-normalized parameter of the copy by a plain one."""
    layer = model.get_submodule(wrapped.layer)
    if wrapped.legacy:
        torch.nn.utils.remove_weight_norm(layer, wrapped.name)
    elif hasattr(layer, "parametrizations"):
        _strip_parametrizations(layer)
    setattr(layer, wrapped.name, nn.Parameter(wrapped.effective_weight(dtype)))


@dataclass(frozen=True, eq=False)
class Normalized:
    """A weight-normalized parameter of a module, in either of PyTorch's forms."""

    layer: str
    name: str
    g: Tensor
    v: Tensor
    axis: int | None
    legacy: bool

    @property
    def path(self) -> str:
        """Name of the effective weight: that of the parameter without weight normalization."""
        return f"{self.layer}.{self.name}" if self.layer else self.name

    @property
    def trained(self) -> bool:
        """Whether the effective weight is: ``g``, ``v``, or both."""
        return self.g.requires_grad or self.v.requires_grad

    def effective_weight(self, dtype: torch.dtype) -> Tensor:
        """The weight ``g v / ||v||`` in some precision; refused for a zero row of ``v``."""
        v, g = self.v.detach().to(dtype), self.g.detach().to(dtype)
        entry = Entry(self.name, tuple(v.shape), self.layer, norm_axis=self.axis)
        rows = entry.rows(v.reshape(-1))
        lengths = torch.linalg.vector_norm(rows, dim=1)
        zero = (lengths == 0).nonzero().flatten().tolist()
        if zero:
            raise InputError(
                f"layer {self.layer!r}: row {zero[0]} of v ({self.name}) is zero, so weight normalization is undefined "
                "there. Give it any non-zero value."
            )
        return entry.from_rows((g.reshape(-1) / lengths)[:, None] * rows).view(v.shape)


def normalized_weights(layers: Iterable[tuple[str, nn.Module]]) -> list[Normalized]:
    """List every weight-normalized parameter.

    Parameters
    ----------
    layers
        Path and layer, as ``named_modules()`` yields them.

    Returns
    -------
    list of Normalized
        In the order of the layers.

    Raises
    ------
    InputError
        If weight normalization is combined with other parametrizations.
    """
    normalized: list[Normalized] = []
    for path, layer in layers:
        for hook in layer._forward_pre_hooks.values():
            if isinstance(hook, LegacyWeightNorm):
                g, v = getattr(layer, f"{hook.name}_g"), getattr(layer, f"{hook.name}_v")
                normalized.append(Normalized(path, hook.name, g, v, _norm_axis(hook.dim, v), legacy=True))
        if parametrize.is_parametrized(layer):
            normalized += _parametrized_weight_norm(path, layer)
    return normalized


def _parametrized_weight_norm(path: str, layer: nn.Module) -> list[Normalized]:
    normalized: list[Normalized] = []
    parametrizations: Any = layer.parametrizations  # a ModuleDict that torch does not declare
    for name, steps in parametrizations.items():
        kinds = [isinstance(step, _WeightNorm) for step in steps]
        if not any(kinds):
            continue
        others = sorted(other for other, chain in parametrizations.items() if not isinstance(chain[0], _WeightNorm))
        if len(kinds) > 1 or others:
            raise InputError(
                f"layer {path!r}: weight_norm of {name!r} is combined with other parametrizations "
                f"({', '.join(others) or 'stacked on it'}); only weight_norm alone can be unwrapped."
            )
        g, v = steps.original0, steps.original1
        normalized.append(Normalized(path, name, g, v, _norm_axis(steps[0].dim, v), legacy=False))
    return normalized


def _norm_axis(dim: int | None, v: Tensor) -> int | None:
    # In PyTorch dim=None and dim=-1 both mean one norm for the whole tensor.
    return None if dim is None or dim == -1 else dim % v.ndim


def _strip_parametrizations(layer: nn.Module) -> None:
    """Turn a copied layer, all of whose parametrizations are weight norm, back into its plain class.

    ``parametrize.remove_parametrizations`` deletes the property from the layer's class, which a deep copy
    shares with the user's own layer; here only the instance changes.
    """
    parametrizations: Any = layer.parametrizations
    names = list(parametrizations)
    del layer.parametrizations
    layer.__class__ = type(layer).__bases__[0]
    for name in names:
        layer.register_parameter(name, None)
