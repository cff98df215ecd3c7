"""Assembly of a problem from any function of named tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from curvature.errors import ConfigurationError, InputError
from curvature.models.assembly import assemble
from curvature.models.behaviour import cuda_devices, untouched_generators
from curvature.models.data import DataLike, Packed, materialize, open_stream
from curvature.models.data.reading import array_as_tensor
from curvature.models.losses import Loss, LossLike, Objective, PerExample
from curvature.models.module.named import NamedTensors
from curvature.models.module.refusal import common_type
from curvature.models.penalty import PenaltyTerms
from curvature.models.point import Point
from curvature.models.streaming import assemble_streamed
from curvature.models.trees import as_type, structure_of, tree_of
from curvature.models.trial.differences import fixed_direction
from curvature.models.trial.objective import tried

__all__ = ["FunctionOptions", "ParametersLike", "assemble_function"]

_TRIED = 2  # examples on which outputs are tried
_STEPS = (2.0**-4, -(2.0**-10))  # how far from the parameters a function is compared with its single terms

ParametersLike = Tensor | np.ndarray | Mapping[str, Any] | Iterable[tuple[str, Any]]


class FunctionOptions(NamedTuple):
    """How a function is computed, and what it is called in records."""

    dtype: torch.dtype | None = torch.float64
    chunk_size: int | None = None
    name: str | None = None
    stream: bool = False


def assemble_function(
    loss: LossLike,
    parameters: ParametersLike,
    data: DataLike | None,
    outputs: Callable[..., Tensor] | None,
    options: FunctionOptions,
    terms: PenaltyTerms,
) -> Point:
    """Make a module of named tensors and a function of them, and assemble it as any other.

    Parameters
    ----------
    loss, parameters, data, outputs
        The arguments of :meth:`Problem.from_function <curvature.models.Problem.from_function>`.
    options
        Its arguments ``dtype``, ``chunk_size``, ``name`` and ``stream``.
    terms
        Its arguments ``penalty`` and ``weight_decay``.

    Returns
    -------
    Point
        The function at the parameters.

    Raises
    ------
    ConfigurationError
        If the function, the loss or the outputs are not callable where they must be.
    InputError
        If the parameters are not named real tensors, or the function is not a fixed function of them.
    """
    function = loss if outputs is None else outputs
    if not callable(function) or isinstance(function, Loss):
        raise ConfigurationError(_not_callable(loss, outputs))
    name = options.name or _name_of(function)
    tensors, only = _named(parameters, function)
    held = NamedTensors(function, tensors, name, only=only, takes_inputs=data is not None)
    with untouched_generators(cuda_devices(held)):
        if options.stream:
            return _streamed(loss, held, data, options, terms, of_outputs=outputs is not None)
        if outputs is None:
            loss, data, notes = _of_parameters(held, function, data, *common_type(held, options.dtype))
        else:
            loss, data, notes = _of_outputs(loss, held, function, data, *common_type(held, options.dtype))
        point = assemble(held, loss, data, output=None, dtype=options.dtype, chunk_size=options.chunk_size, terms=terms)
    return replace(point, notes=(*notes, *point.notes))


def _streamed(
    loss: LossLike,
    held: NamedTensors,
    data: DataLike | None,
    options: FunctionOptions,
    terms: PenaltyTerms,
    *,
    of_outputs: bool,
) -> Point:
    """Try the function on the first examples of a stream, and assemble it as a streamed module."""
    if data is None:
        raise ConfigurationError(
            f"stream=True reads data in parts, and the function {held.name!r} has no data. Leave stream=True out."
        )
    function = held.function
    notes: list[str] = []
    stream = open_stream(data, with_targets=of_outputs, say=notes.append)
    head = as_type(tree_of(stream.read(slice(0, _TRIED))[0]), *common_type(held, options.dtype))
    value = tried(_on(function, structure_of(head)), held, common_type(held, options.dtype)[0])
    if not of_outputs:
        loss = Objective(name=held.name)
        if value.shape != (len(head),):
            raise InputError(
                f"the function {held.name!r} returns a tensor of shape {tuple(value.shape)} for {len(head)} examples. "
                "Streamed data are read in parts, so it must return one number for each example, to be averaged."
            )
    point = assemble_streamed(
        held, loss, stream, output=None, dtype=options.dtype, chunk_size=options.chunk_size, terms=terms
    )
    return replace(point, notes=(*notes, *point.notes))


def _not_callable(loss: object, outputs: object) -> str:
    if outputs is not None:
        return (
            f"outputs must be a function of the parameters, and of the inputs if there are data, got "
            f"{type(outputs).__name__}."
        )
    what = repr(loss) if isinstance(loss, str) else f"a {type(loss).__name__}"
    return (
        f"without outputs=, the loss must be a function of the parameters that returns a scalar, got {what}. "
        "Pass outputs=, a function of the parameters and the inputs, for a loss that compares outputs with targets."
    )


def _name_of(function: Any) -> str:
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__name__", type(function).__name__)
    return "objective" if name == "<lambda>" else name


def _named(parameters: ParametersLike, function: Callable[..., Any]) -> tuple[dict[str, Tensor], bool]:
    """The tensors by name, and whether there is a single one, which is then called as the function calls it."""
    if isinstance(parameters, Tensor | np.ndarray):
        return {(name := _first_argument(function)): _tensor(name, parameters)}, True
    advice = (
        "Pass a dictionary of tensors by name, one tensor, or module.named_parameters(); the function is then called "
        "with a dictionary, or with the tensor."
    )
    if not isinstance(parameters, Mapping | Iterable) or isinstance(parameters, str | bytes):
        raise InputError(f"parameters must be named tensors, got {type(parameters).__name__}. {advice}")
    pairs = list(parameters.items() if isinstance(parameters, Mapping) else parameters)
    if not all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise InputError(f"parameters must be tensors with a name each. {advice}")
    if not pairs:
        raise InputError(f"parameters is empty. {advice}")
    names: dict[int, str] = {}
    for name, tensor in pairs:
        if (other := names.setdefault(id(tensor), name)) != name:
            raise InputError(
                f"the parameters {other!r} and {name!r} are the same tensor. Clone one of them if they are two "
                "variables; pass it once, and use it twice inside the function, if they are one."
            )
    tensors = {name: _tensor(name, tensor) for name, tensor in pairs}
    if len(tensors) < len(pairs):
        raise InputError("two parameters have the same name. Give each its own.")
    return tensors, False


def _tensor(name: str, value: Any) -> Tensor:
    value = array_as_tensor(value, f"parameter {name!r}")
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        kind = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise InputError(
            f"parameter {name!r} is {kind}, which has no derivative. Pass a tensor of floating-point numbers, such as "
            "torch.tensor(2.0); what is constant belongs in the function."
        )
    return value


def _first_argument(function: Callable[..., Any]) -> str:
    """What the function calls its argument; ``theta`` where it has no such name."""
    try:
        arguments = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a function of an extension
        arguments = []
    named = [argument for argument in arguments if argument.kind is argument.POSITIONAL_OR_KEYWORD]
    return named[0].name if named else "theta"


def _of_parameters(
    held: NamedTensors, function: Callable[..., Any], data: DataLike | None, dtype: torch.dtype, device: torch.device
) -> tuple[Loss, Any, list[str]]:
    """The loss that the function is: as it is without data, otherwise a mean, a sum or one number for each example."""
    notes: list[str] = []
    if data is None:
        _refuse_other_shape(held.name, tried(function, held, dtype))
        return Objective(name=held.name), torch.zeros(1), notes
    if isinstance(data, Packed):  # all data together are one example
        inputs = data.inputs if isinstance(data.targets, tuple) and not data.targets else (data.inputs, data.targets)
        read, _ = materialize(Packed(inputs), with_targets=False)
        whole = structure_of(as_type(read, dtype, device)[0])
        _refuse_other_shape(held.name, tried(_on(function, whole), held, dtype))
        return Objective(name=held.name), Packed(inputs), notes
    read, _ = materialize(data, with_targets=False, say=notes.append)
    moved = as_type(read, dtype, device)
    together = tried(_on(function, structure_of(moved)), held, dtype)
    if together.shape == (len(moved),):
        return Objective(name=held.name), structure_of(read), notes
    _refuse_other_shape(held.name, together, len(moved))
    held.one_by_one = True
    reduction = _reduction(held, lambda rows: _on(function, structure_of(moved[rows])), len(moved), dtype)
    if len(moved) > 1:
        notes.append(
            f"the function {held.name!r} returns the {reduction} over all examples, so it is called for one example "
            f"after another. If it returns one number for each, of shape ({len(moved)},), they are computed together."
        )
    return Objective(name=held.name, reduction=reduction), structure_of(read), notes


def _reduction(held: NamedTensors, on: Callable[[slice], Callable[[Any], Any]], count: int, dtype: torch.dtype) -> str:
    """Whether the function is the mean or the sum of its values for single examples, here and next to the point.

    At the point alone a penalty can vanish (at zero weights), and so can all terms (at a perfect fit).
    """
    fitting = {"mean", "sum"}
    for step in (0.0, *_STEPS):
        together, single = _evaluated(held, on, count, dtype, step)
        if step and not (torch.isfinite(together) and torch.isfinite(single).all()):
            continue
        tolerance = 1e4 * torch.finfo(dtype).eps * float(single.abs().sum())
        values = {"mean": float(single.mean()), "sum": float(single.sum())}
        fitting = {name for name in fitting if abs(float(together) - values[name]) <= tolerance}
        if not fitting:
            where = "" if not step else " next to these parameters"
            raise InputError(
                f"the value of the function {held.name!r} for all {count} examples is {float(together):.6g}{where}, "
                f"but the mean of its values for single examples is {values['mean']:.6g} and their sum "
                f"{values['sum']:.6g}. A term that does not depend on the data belongs in penalty=. To take the "
                "function as it is, a function of all the data together, pass them as data=cv.Packed(inputs, targets), "
                "or leave data out and refer to them inside it."
            )
    if len(fitting) > 1 < count:
        raise InputError(
            f"the function {held.name!r} is zero for every example, here and next to these parameters, so it is not "
            "known whether it is a mean or a sum. Let it return one number for each example."
        )
    return "mean" if "mean" in fitting else "sum"


def _evaluated(
    held: NamedTensors, on: Callable[[slice], Callable[[Any], Any]], count: int, dtype: torch.dtype, step: float
) -> tuple[Tensor, Tensor]:
    """The values for all examples at once and for single ones, at the parameters moved by a step."""
    tensors = {}
    for name, tensor in held.tensors().items():
        here = tensor.detach().to(dtype)
        tensors[name] = here + step * (fixed_direction(here) + here)
    rows = (slice(n, n + 1) for n in range(count))
    try:
        with torch.enable_grad():  # a function that differentiates needs it
            together = on(slice(None))(held.argument(dict(tensors))).detach().reshape(())
            single = torch.stack([on(row)(held.argument(dict(tensors))).detach().reshape(()) for row in rows])
    except Exception as error:  # a user's function may raise anything
        raise InputError(
            f"the function {held.name!r} takes all {count} examples, but fails on one of them ({type(error).__name__}: "
            f"{error}). Every tensor of the data keeps its first axis there, of length one. To take it as it is, a "
            "function of all the data together, pass them as data=cv.Packed(inputs, targets)."
        ) from error
    return together, single


def _on(function: Callable[..., Any], inputs: Any) -> Callable[[Any], Any]:
    """The function with its inputs, as ``forward`` passes them."""
    if isinstance(inputs, Mapping):
        return lambda given: function(given, **inputs)
    return lambda given: function(given, *(inputs if isinstance(inputs, tuple | list) else (inputs,)))


def _refuse_other_shape(name: str, value: Tensor, count: int = 0) -> None:
    if value.numel() != 1:
        several = f", or one number for each of the {count} examples" if count else ""
        raise InputError(
            f"the function {name!r} must return one number{several}, it returns a tensor of shape "
            f"{tuple(value.shape)}. If these are outputs or residuals, pass the function as outputs=, and a loss of "
            "them: lambda residuals: residuals.square().sum() / 2, for example."
        )


def _of_outputs(
    loss: LossLike,
    held: NamedTensors,
    function: Callable[..., Any],
    data: DataLike | None,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[LossLike, Any, list[str]]:
    """The loss of the outputs; without data it is a function of all of them."""
    notes: list[str] = []
    if data is not None:
        inputs, targets = materialize(data, say=notes.append)
        moved = as_type(inputs, dtype, device)
        packed = isinstance(data, Packed)
        tried(_on(function, structure_of(moved[0] if packed else moved[:_TRIED])), held, dtype)
        return loss, data if packed else (structure_of(inputs), structure_of(targets)), notes
    tried(function, held, dtype)
    if not callable(loss) or isinstance(loss, Loss | torch.nn.Module):
        raise ConfigurationError(
            f"the loss {loss!r} compares outputs with targets, and there are no data. Pass data=(inputs, targets), or "
            "a loss that is a function of the outputs alone: lambda outputs: outputs.square().sum() / 2, for example."
        )
    alone = PerExample(partial(_without_target, loss), name=_name_of(loss))
    return alone, (torch.zeros(1), torch.zeros(1)), notes


def _without_target(loss: Callable[..., Tensor], outputs: Tensor, _target: Tensor) -> Tensor:
    return loss(outputs)
