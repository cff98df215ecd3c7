"""The trial of a model on its data: that it is a fixed function of one example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.errors import InputError, NonFiniteError, SelfCheckError
from curvature.models.behaviour import describe_layer, first_layer, generator_states
from curvature.models.calling import Reader, reader_of
from curvature.models.function import ModelFunction
from curvature.models.trees import Tensors, shapes

__all__ = ["checked_outputs"]

_NEARBY = 0.1  # of the length of the weights, how far the second point of a model's own loss lies
_COMPARED = 64  # examples that are compared there: each needs a pass
_GRAPH = "If the examples are nodes of a graph, the whole graph is one example: pass cv.Packed(inputs, targets)."


@dataclass(frozen=True, eq=False)
class _Trial:
    """A model at one point, on all of its inputs."""

    function: ModelFunction
    weights: Tensor
    inputs: Tensors

    @property
    def num_examples(self) -> int:
        return len(self.inputs)

    def returned(self) -> Any:
        """What ``forward`` returns for all examples, without a graph."""
        with torch.no_grad():
            return self.function.call(self.weights, self.inputs)

    def outputs(self, count: int | None = None) -> Tensor:
        """Outputs for the first ``count`` examples, or for all of them, without a graph."""
        with torch.no_grad():
            return self.function.predict(self.weights, self.inputs[:count])

    def first_layer(self, count: int | None = None, guilty: Callable[[object], bool] = lambda _: False) -> str:
        """Name the first layer whose output is ``guilty``, or else in which the pass fails; see ``behaviour``."""
        return first_layer(self.function.module, lambda: self.outputs(count), guilty)

    def generator_states(self) -> dict[str, object]:
        return generator_states(self.weights.device)


def checked_outputs(
    function: ModelFunction, weights: Float[Tensor, "weights"], inputs: Tensors
) -> tuple[Float[Tensor, "examples ..."], ModelFunction, str]:
    """Compute the outputs for all data, and refuse a model that is not a fixed function of one example.

    Parameters
    ----------
    function
        The model, with no buffer declared as written yet, and with the output that the user asked for.
    weights
        The point ``(P,)``.
    inputs
        All examples ``(N, ...)``.

    Returns
    -------
    outputs, function, note
        Outputs ``(N, ...)``; the model, which knows the buffers that ``forward`` writes into, whether it takes
        derivatives itself, and where its outputs are; and a sentence about which outputs were found, or an empty
        string.

    Raises
    ------
    InputError
        If the model fails, writes into its parameters, or does not return one output per example.
    NonFiniteError
        If an output is NaN or infinite.
    SelfCheckError
        If two passes differ, or the output for an example depends on the other examples.
    """
    trial = _Trial(function, weights, inputs)
    buffers = {name: (buffer, buffer.clone()) for name, buffer in function.module.named_buffers()}
    before, states = weights.clone(), trial.generator_states()
    trial, returned = _run(trial)
    states_after = trial.generator_states()
    drawn = [name for name, state in states.items() if state != states_after[name]]
    moved = [name for name, span in function.layout.slices.items() if (before != weights)[span].any()]
    if moved:
        raise InputError(_written(function, moved[0]))
    reader, note = _reader(function.reader, returned, trial.num_examples)
    written = _restore_buffers(function, buffers)
    trial = replace(trial, function=replace(trial.function, reader=reader, written=written))
    outputs = trial.outputs() if reader.scalar else reader(returned).detach()
    _refuse_outputs(outputs, trial.num_examples)
    if reader.scalar:
        _refuse_other_mean(outputs, reader(returned)[0], "")
        _refuse_other_mean_elsewhere(trial)
    if drawn:
        _refuse_drawing(trial, drawn)
    tolerance = 1e3 * torch.finfo(outputs.dtype).eps * outputs.abs().max()
    _refuse_changing(trial, outputs, tolerance)
    for count in sorted({1, max(1, trial.num_examples // 2)}):
        _refuse_coupled(trial, outputs, count, tolerance)
    return outputs, trial.function, note


def _run(trial: _Trial) -> tuple[_Trial, Any]:
    """What ``forward`` returns; with gradients enabled if it fails without, as it does if it differentiates."""
    try:
        return trial, trial.returned()
    except Exception as error:  # a user's module may raise anything
        enabled = replace(trial, function=replace(trial.function, differentiates=True))
        with suppress(Exception):
            return enabled, enabled.returned()
        layer = first_layer(trial.function.module, trial.returned, lambda _: False)
        raise InputError(
            f"the model failed on inputs of {shapes(trial.inputs, 'inputs')}: {type(error).__name__}: {error}"
            + (f" (in {layer})" if layer else "")
        ) from error


def _restore_buffers(function: ModelFunction, buffers: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[str, ...]:
    """Restore the buffers that a pass has written into; return their names."""
    written = []
    for name, buffer in list(function.module.named_buffers()):
        original, value = buffers.get(name, (buffer, buffer))
        if buffer is not original or not torch.equal(buffer, value):
            path, _, leaf = name.rpartition(".")
            setattr(function.module.get_submodule(path), leaf, value)
            written.append(name)
    return tuple(written)


def _written(function: ModelFunction, name: str) -> str:
    """Say that forward writes into a parameter, which layer owns it, and what to do."""
    path, _, _ = name.rpartition(".")
    layer = function.module.get_submodule(path)
    bound = getattr(layer, "max_norm", None)
    if bound is not None:
        return (
            f"{describe_layer(path, layer)} writes into the parameter {name!r} (max_norm={bound:g}), so the model's "
            "output depends on more than its weights. Run the model on the data once first. That shortens the rows, "
            "and forward then leaves them as they are."
        )
    return (
        f"forward writes into the parameter {name!r} (a constraint on weights, for example), so the model's "
        "output depends on more than its weights. Apply the constraint once beforehand, and remove it from forward."
    )


def _reader(reader: Reader, returned: Any, num_examples: int) -> tuple[Reader, str]:
    """Complete a reader from what ``forward`` returned for all examples; and a sentence about it."""
    output, note = reader_of(returned, reader.output, reader.own_loss)
    reader = replace(reader, output=output)
    value = reader(returned)
    scalar = reader.own_loss and isinstance(value, Tensor) and value.numel() == 1
    return replace(reader, scalar=scalar and (num_examples > 1 or value.ndim == 0)), note


def _refuse_other_mean(losses: Tensor, together: Tensor, place: str) -> None:
    """Refuse a module whose loss for all examples is not the mean of its losses for single ones."""
    if abs(together - losses.mean()) > 1e4 * torch.finfo(losses.dtype).eps * losses.abs().mean():
        raise InputError(
            f"the loss that the model returns for {len(losses)} examples together{place} is {float(together):.6g}, but "
            f"the mean of its losses for single examples is {float(losses.mean()):.6g}. It is not a mean over "
            "examples: its denominator may be the number of tokens that are not ignored, or it may be a sum. Use the "
            "outputs, with output='logits' (or as they are called) and a loss by name."
        )


def _refuse_other_mean_elsewhere(trial: _Trial) -> None:
    """Compare again at weights nearby: at special ones, such as a last layer of zeros, every example has one loss."""
    step = max(1, trial.num_examples // _COMPARED)
    some = replace(trial, inputs=trial.inputs[::step])
    drawn = torch.randn(len(trial.weights), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    length = float(torch.linalg.vector_norm(trial.weights)) or 1.0
    drawn = drawn.to(trial.weights) * (_NEARBY * length / float(torch.linalg.vector_norm(drawn)))
    some = replace(some, weights=trial.weights + drawn)
    losses, together = some.outputs(), some.function.reader(some.returned())[0]
    if torch.isfinite(losses).all():
        _refuse_other_mean(losses, together, " at weights nearby")


def _refuse_outputs(outputs: object, num_examples: int) -> None:
    """Refuse anything but one finite tensor with one row per example."""
    if not isinstance(outputs, Tensor):
        raise InputError(f"the model must return one tensor, it returns {type(outputs).__name__}.")
    if outputs.ndim < 1 or len(outputs) != num_examples:
        raise InputError(
            f"the model must return one output per example ({num_examples} examples), got shape {tuple(outputs.shape)}."
        )
    if not torch.isfinite(outputs).all():
        example = int((~torch.isfinite(outputs.reshape(len(outputs), -1))).any(1).nonzero()[0])
        raise NonFiniteError(f"the model's output is NaN or infinite, first for example {example}.")


def _refuse_drawing(trial: _Trial, drawn: list[str]) -> None:
    states = trial.generator_states()
    layer = trial.first_layer(guilty=lambda _: trial.generator_states() != states)
    raise SelfCheckError(
        f"the model is not deterministic: {layer or 'one of its layers'} draws random numbers ({', '.join(drawn)}) in "
        "each pass. Call model.eval(), or remove the noise; copy.deepcopy(model).eval() leaves your own model as it is."
    )


def _refuse_changing(trial: _Trial, outputs: Tensor, tolerance: Tensor) -> None:
    """Compare the outputs with those of a second pass."""
    difference = (outputs - trial.outputs()).abs().max()
    if difference > tolerance:
        raise SelfCheckError(
            "the model is not deterministic: two passes over the same data differ by "
            f"{difference / outputs.abs().max():.1e} (relative){_first_difference(trial, trial.num_examples)}. One of "
            "its layers is random or keeps a state. Call model.eval() or remove the noise."
        )


def _refuse_coupled(trial: _Trial, outputs: Tensor, count: int, tolerance: Tensor) -> None:
    """Compare the outputs for the first examples with those computed together with all others."""
    try:
        part = trial.outputs(count)
    except Exception as error:  # a user's module may raise anything
        raise SelfCheckError(
            f"the model takes all {trial.num_examples} examples, but fails on {count} of them, in "
            f"{trial.first_layer(count) or 'forward'} ({type(error).__name__}: {error}). It needs the other examples, "
            "as batch norm does when it computes statistics. A mean over examples needs a model that treats them one "
            f"by one. {_GRAPH}"
        ) from error
    if part.shape != outputs[:count].shape:
        mismatch = f"have shape {tuple(part.shape)}"
    elif (difference := (outputs[:count] - part).abs().max()) > tolerance:
        mismatch = f"differ by {difference / outputs.abs().max():.1e} (relative)"
    else:
        return
    raise SelfCheckError(
        f"the output for an example depends on the other examples in its batch: {count} of {len(outputs)} alone "
        f"{mismatch}{_first_difference(trial, count)}. A mean over examples needs a model that treats them one by one. "
        + _GRAPH
    )


def _first_difference(trial: _Trial, count: int) -> str:
    """Name the first layer whose outputs for ``count`` examples differ from those for all, in a second pass."""
    recorded: list[object] = []

    def record(output: object) -> bool:
        recorded.append(output)
        return False

    trial.first_layer(count, record)
    before = iter(recorded)
    layer = trial.first_layer(guilty=lambda output: not _same(next(before, None), output))
    return f", first after {layer}" if layer else ""


def _same(first: object, second: object) -> bool:
    """Whether two outputs are equal up to rounding, on the examples that both have."""
    if not isinstance(first, Tensor) or not isinstance(second, Tensor) or not first.is_floating_point():
        return True
    if not first.ndim or first.shape[1:] != second.shape[1:]:
        return True
    count = min(len(first), len(second))
    allowed = 1e3 * torch.finfo(first.dtype).eps * first.abs().max()
    return bool((first[:count] - second[:count]).abs().max() <= allowed)
