"""Reading the present weights, buffers and gauge of a module that is being trained, without touching it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from curvature.charts import Parameterization, Standard, WeightNorm
from curvature.errors import InputError
from curvature.models.function import ModelFunction
from curvature.models.module.copying import holding
from curvature.models.module.wrappers import inner_module
from curvature.models.problem import Problem
from curvature.models.unwrapping import Normalized, normalized_weights
from curvature.precision import full_precision
from curvature.text import listed

__all__ = ["coordinate_parameters", "followed"]

_MOST_NAMES = 4  # in a message


@full_precision()
def followed(problem: Problem, module: nn.Module) -> Problem:
    """Move a problem to the point at which a module is now.

    Parameters
    ----------
    problem
        Made from this module, or from one of the same architecture.
    module
        Being trained; only read. Wrappers (``torch.compile``, ``DistributedDataParallel``, ...) are looked through.

    Returns
    -------
    Problem
        At a copy of the present weights, with the present buffers (running statistics of batch norm); its chart is that
        of the present ``(g, v)`` of weight normalization.

    Raises
    ------
    InputError
        If names or shapes differ, or a weight that the problem treats as constant has changed.
    NonFiniteError
        If a weight is NaN or infinite.
    """
    function = problem.function
    state = _State.of(module)
    layout = function.layout
    if missing := [name for name in layout.slices if name not in state.values]:
        raise InputError(
            f"the module has no weight {_listed(missing)}, which the problem was made with; it has "
            f"{_listed(list(state.values))}. Pass the same model, or the part of it that the problem was made from."
        )
    parts = []
    for entry in layout.entries:
        value = state.value(entry.name, problem.weights)
        if tuple(value.shape) != tuple(entry.shape):
            raise InputError(
                f"the weight {entry.name!r} has shape {tuple(value.shape)}, and {tuple(entry.shape)} in the problem. "
                "Pass the model that the problem was made from."
            )
        parts.append(value.reshape(-1))
    point = torch.cat(parts)
    moved = replace(problem, function=_with_buffers(function, state)).at(point)
    _refuse_other_constants(function, state, point)
    return replace(moved, chart=state.chart(function, point))


def coordinate_parameters(problem: Problem, module: nn.Module) -> dict[str, Tensor]:
    """Find the parameters of a module that the coordinates of a problem are read from.

    Parameters
    ----------
    problem
        Made from this module, or from one of the same architecture.
    module
        Being trained.

    Returns
    -------
    dict
        Parameter by the name of the coordinates in the chart that :func:`followed` gives: the name of a weight, with
        ``.g`` or ``.v`` behind it for a normalized one.
    """
    values = _State.of(module).values
    parameters: dict[str, Tensor] = {}
    for name in problem.function.layout.slices:
        value = values[name]
        parts = {f"{name}.g": value.g, f"{name}.v": value.v} if isinstance(value, Normalized) else {name: value}
        parameters |= parts
    return parameters


@dataclass(frozen=True, eq=False)
class _State:
    """Parameters and buffers of a module by the names that they have without wrappers."""

    values: Mapping[str, Tensor | Normalized]
    buffers: Mapping[str, Tensor]

    @classmethod
    def of(cls, module: nn.Module) -> _State:
        """Read a module, looking through its wrappers; tied parameters are there under each name."""
        layers = list(_layers("", module))
        normalized = normalized_weights(layers)
        hidden = {id(part) for weight in normalized for part in (weight.g, weight.v)}
        values: dict[str, Tensor | Normalized] = {weight.path: weight for weight in normalized}
        for path, layer in layers:
            for name, parameter in layer._parameters.items():
                if parameter is not None and id(parameter) not in hidden:
                    values[_joined(path, name)] = parameter
        buffers = {
            _joined(path, name): buffer
            for path, layer in layers
            for name, buffer in layer._buffers.items()
            if buffer is not None
        }
        return cls(values, buffers)

    def value(self, name: str, like: Tensor) -> Tensor:
        """A copy of a weight, in the precision and on the device of another tensor."""
        value = self.values[name]
        if isinstance(value, Normalized):
            return value.effective_weight(like.dtype).to(like.device)
        return value.detach().to(like, copy=True)

    def chart(self, function: ModelFunction, like: Tensor) -> Parameterization:
        """Weight normalization at the module's own values; the standard chart where nothing is normalized."""
        normalized = {
            name: value
            for name in function.layout.slices
            if isinstance(value := self.values[name], Normalized)
        }  # fmt: skip
        if not normalized:
            return Standard()
        g = {name: weight.g.detach().to(like, copy=True) for name, weight in normalized.items()}
        v = {name: weight.v.detach().to(like, copy=True) for name, weight in normalized.items()}
        return WeightNorm(v=v, g=g)


def _layers(path: str, layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every layer with its path, wrappers left out; a layer that is there twice is there under both paths."""
    layer = inner_module(layer)
    yield path, layer
    for name, child in layer._modules.items():
        if child is not None:
            yield from _layers(_joined(path, name), child)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _listed(names: list[str]) -> str:
    return listed(map(repr, names), _MOST_NAMES)


def _refuse_other_constants(function: ModelFunction, state: _State, point: Tensor) -> None:
    """Refuse a parameter that is not a weight of the problem and differs from the problem's, and one it lacks."""
    known = dict(function.module.named_parameters(remove_duplicate=False))
    originals = {id(known[name]): name for name in function.layout.slices if name in known}
    tied = {name: originals[id(value)] for name, value in known.items() if id(value) in originals} | dict(
        function.aliases
    )
    variable = function.layout.unflatten(point)
    for name in state.values:
        if name in variable:
            continue
        if name in tied:
            if not torch.equal(state.value(name, point), variable[tied[name]]):
                raise InputError(
                    f"{name!r} and {tied[name]!r} are one weight in the problem, but differ in this module. Make the "
                    "problem again, from this module."
                )
        elif name not in known:
            raise InputError(
                f"the module has a parameter {name!r} which the problem does not have. Pass the model that the problem "
                "was made from, or make the problem again."
            )
        elif not torch.equal(state.value(name, point), known[name].detach().to(point)):
            raise InputError(
                f"the parameter {name!r} has changed, but is constant in the problem (it was frozen, or left out by "
                "subset). Make the problem again with requires_grad=True for every parameter that is trained."
            )


def _with_buffers(function: ModelFunction, state: _State) -> ModelFunction:
    """The function with the present buffers of the module, such as running statistics."""
    changed = {}
    for name, buffer in function.module.named_buffers():
        present = state.buffers.get(name)
        if present is None:
            continue  # made by the copy itself
        if present.shape != buffer.shape:
            raise InputError(f"the buffer {name!r} has shape {tuple(present.shape)}, and {tuple(buffer.shape)} before.")
        present = present.detach().to(buffer)
        if not torch.equal(present, buffer):
            changed[name] = present.clone()
    return replace(function, module=holding(function.module, changed)) if changed else function
