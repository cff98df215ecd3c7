"""The trial of a model on its data: that it is a fixed function of one example, and can be differentiated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from curvature.errors import InputError, NonFiniteError, SelfCheckError
from curvature.models.behaviour import first_layer, generator_states, graph_nodes, narrower

if TYPE_CHECKING:
    from curvature.models.problem import Problem

__all__ = ["checked_outputs", "differentiated_once"]


def checked_outputs(problem: Problem) -> tuple[Tensor, tuple[str, ...]]:
    """Outputs of the whole data, and names of the buffers that forward writes into.

    Refuses what is not, with these buffers as they were, a fixed function of one example.
    """
    buffers = {name: (buffer, buffer.clone()) for name, buffer in problem.model.named_buffers()}
    weights, states = problem.weights.clone(), generator_states(problem.device)
    try:
        whole = _outputs(problem, problem.num_examples)
    except Exception as error:  # anything may come out of a user's module
        layer = first_layer(problem.model, lambda: _outputs(problem, problem.num_examples), lambda _: False)
        raise InputError(
            f"the model failed on inputs of shape {tuple(problem.inputs.shape)}: {type(error).__name__}: {error}"
            + (f" (in {layer})" if layer else "")
        ) from error
    now = generator_states(problem.device)
    drawn = [name for name, state in states.items() if state != now[name]]
    moved = [name for name, where in problem.layout.slices.items() if (weights != problem.weights)[where].any()]
    if moved:
        raise InputError(
            f"forward writes into the parameter {moved[0]!r} (a constraint on weights, say), so that the model is no "
            "function of its weights. Apply the constraint once, before, and remove it from forward."
        )
    if not isinstance(whole, Tensor):
        raise InputError(f"the model must return one tensor, it returns {type(whole).__name__}.")
    if whole.ndim < 1 or len(whole) != problem.num_examples:
        raise InputError(
            f"the model must return one output per example ({problem.num_examples} examples), got shape "
            f"{tuple(whole.shape)}."
        )
    if not torch.isfinite(whole).all():
        example = int((~torch.isfinite(whole.reshape(len(whole), -1))).any(1).nonzero()[0])
        raise NonFiniteError(f"the model's output is NaN or infinite, first for example {example}.")
    written = _put_back(problem, buffers)
    fixed = replace(problem, written=written)
    if drawn:
        _refuse_drawing(fixed, drawn)
    scale = whole.abs().max()
    tolerance = 1e3 * torch.finfo(whole.dtype).eps * scale
    if (difference := (whole - _outputs(fixed, problem.num_examples)).abs().max()) > tolerance:
        raise SelfCheckError(
            f"the model is not deterministic: two passes over the same data differ by {difference / scale:.1e} "
            f"(relative){_first_after(fixed, problem.num_examples)}. Something in it is random or keeps a state; call "
            "model.eval() or remove the noise."
        )
    for few in sorted({1, max(1, problem.num_examples // 2)}):
        _refuse_coupled(fixed, whole, few, tolerance)
    return whole, written


def differentiated_once(problem: Problem) -> tuple[tuple[str, ...], bool]:
    """Names of parameters that the loss does not depend on, and whether fused attention is in its graph.

    Refuses a model that cannot be differentiated, or that drops digits on the way.
    """

    def named(guilty: Callable[[object], bool]) -> str:
        layer = first_layer(problem.model, lambda: problem._chunk_loss(slice(0, 1)), guilty)
        return f" in {layer}" if layer else ""

    try:
        _, leaves, loss = problem._chunk_loss(slice(0, 1))
        parts = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
    except RuntimeError as error:
        raise InputError(f"the model cannot be differentiated{named(_has_no_gradient)}: {error}") from error
    if dropped := narrower(loss, problem.dtype):
        raise InputError(
            f"the model is computed in {problem.dtype}, but forward casts to {', '.join(sorted(map(str, dropped)))}"
            f"{named(lambda output: bool(narrower(output, problem.dtype)))}: the digits that small eigenvalues need "
            "are lost there. Remove the cast, or pass dtype=torch.float32 for all of the work."
        )
    unused = tuple(entry.name for entry, part in zip(problem.layout.entries, parts, strict=True) if part is None)
    return unused, any("ScaledDotProduct" in type(node).__name__ for node in graph_nodes(loss))


def _has_no_gradient(output: object) -> bool:
    if not isinstance(output, Tensor) or not output.requires_grad:
        return False
    variables = [node.variable for node in graph_nodes(output) if hasattr(node, "variable")]
    try:
        torch.autograd.grad(output.sum(), variables, retain_graph=True)
    except RuntimeError:
        return True
    return False


def _outputs(problem: Problem, count: int) -> Tensor:
    with torch.no_grad():
        return problem.predict(problem.weights, problem.inputs[:count])


def _put_back(problem: Problem, buffers: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[str, ...]:
    """Give buffers that a pass has written into their values back; their names."""
    written = []
    for name, now in list(problem.model.named_buffers()):
        tensor, value = buffers.get(name, (now, now))
        if now is not tensor or not torch.equal(now, value):
            path, _, leaf = name.rpartition(".")
            setattr(problem.model.get_submodule(path), leaf, value)
            written.append(name)
    return tuple(written)


def _refuse_drawing(problem: Problem, drawn: list[str]) -> None:
    states = generator_states(problem.device)
    layer = first_layer(
        problem.model,
        lambda: _outputs(problem, problem.num_examples),
        lambda _: generator_states(problem.device) != states,
    )
    raise SelfCheckError(
        f"the model is not deterministic: {layer or 'something in it'} draws random numbers ({', '.join(drawn)}) in "
        "each pass. Call model.eval(), or remove the noise; copy.deepcopy(model).eval() leaves your own model as it is."
    )


def _refuse_coupled(problem: Problem, whole: Tensor, few: int, tolerance: Tensor) -> None:
    """Compare the outputs for the first examples with those in the company of all."""
    try:
        part = _outputs(problem, few)
    except Exception as error:  # anything may come out of a user's module
        layer = first_layer(problem.model, lambda: _outputs(problem, few), lambda _: False)
        raise SelfCheckError(
            f"the model takes all {problem.num_examples} examples, and fails on {few} of them, in {layer or 'itself'} "
            f"({type(error).__name__}: {error}): it needs the others, as batch norm does that computes statistics. A "
            "mean over examples needs a model that treats them one by one."
        ) from error
    if part.shape != whole[:few].shape:
        apart = f"have shape {tuple(part.shape)}"
    elif (difference := (whole[:few] - part).abs().max()) > tolerance:
        apart = f"differ by {difference / whole.abs().max():.1e} (relative)"
    else:
        return
    raise SelfCheckError(
        f"the output for an example depends on the other examples in its batch: {few} of {len(whole)} alone "
        f"{apart}{_first_after(problem, few)}. A mean over examples needs a model that treats them one by one."
    )


def _first_after(problem: Problem, few: int) -> str:
    """Name the first layer whose outputs for ``few`` examples are not those that it gives for all, in a second pass."""
    recorded: list[object] = []
    first_layer(problem.model, lambda: _outputs(problem, few), lambda output: bool(recorded.append(output)))
    before = iter(recorded)
    layer = first_layer(
        problem.model,
        lambda: _outputs(problem, problem.num_examples),
        lambda output: not _same(next(before, None), output),
    )
    return f", first after {layer}" if layer else ""


def _same(one: object, other: object) -> bool:
    """Equal up to rounding, as far as both go."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or not one.is_floating_point():
        return True
    if not one.ndim or one.shape[1:] != other.shape[1:]:
        return True
    few = min(len(one), len(other))
    allowed = 1e3 * torch.finfo(one.dtype).eps * one.abs().max()
    return bool((one[:few] - other[:few]).abs().max() <= allowed)
