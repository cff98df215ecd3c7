"""The trial of the derivatives: a model and its loss are differentiated once and twice, on a few examples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils.checkpoint import CheckpointError

from curvature.errors import InputError, SelfCheckError
from curvature.models.behaviour import first_layer, graph_nodes, narrower
from curvature.models.derivatives import Derivatives
from curvature.models.function import ModelFunction
from curvature.models.trees import Tensors
from curvature.models.trial.differences import deviation, fixed_direction
from curvature.models.trial.embeddings import without_options

__all__ = ["Differentiated", "differentiated"]

_WRONG = "a wrong double backward"
_REENTRANT = ("use_reentrant=True", "None of the inputs have requires_grad=True")  # in an error, in a warning


class Differentiated(NamedTuple):
    """Result of the trial.

    Attributes
    ----------
    function
        The model, with all that its derivatives need.
    derivatives
        Which derivatives there are.
    unused
        Names of the parameters that the loss does not depend on.
    notes
        Sentences about what is computed differently from the user's code.
    """

    function: ModelFunction
    derivatives: Derivatives
    unused: tuple[str, ...]
    notes: tuple[str, ...]


def differentiated(
    function: ModelFunction, weights: Tensor, inputs: Tensors, loss: Callable[[Tensor], Tensor]
) -> Differentiated:
    """Differentiate the loss once and twice, and refuse a model that cannot be differentiated or that loses digits.

    Parameters
    ----------
    function
        The model.
    weights
        The point ``(P,)``.
    inputs
        A few examples ``(N, ...)``.
    loss
        Maps their outputs to one scalar.

    Returns
    -------
    Differentiated
        The model as it is differentiated, and which derivatives it has.

    Raises
    ------
    InputError
        If a layer has no derivative, or computes with fewer digits than the weights have; for reentrant activation
        checkpoints; or if the outputs depend on a parameter in a way that PyTorch does not differentiate.
    SelfCheckError
        If the backward pass of a custom function is not the derivative of its forward pass.
    """
    trial = _Trial(function, weights, inputs, loss)
    try:
        gradient, value = trial.gradient()
    except CheckpointError:
        trial = trial.recomputing()
        gradient, value = trial.gradient()
    trial.refuse_narrower(value)
    entries = function.layout.entries
    unused = tuple(entry.name for entry, part in zip(entries, gradient, strict=True) if part is None)
    trial.refuse_hidden(unused)
    trial.refuse_wrong(gradient, value)
    if any("ScaledDotProduct" in type(node).__name__ for node in graph_nodes(value)):
        trial = replace(trial, function=replace(trial.function, attends=True))
    function, notes = without_options(trial.function, weights, inputs)
    trial = replace(trial, function=function)
    derivatives = trial.derivatives()
    if derivatives != Derivatives():
        trial, derivatives, more = _replaced(trial, derivatives)
        notes += more
    return Differentiated(trial.function, derivatives, unused, notes)


@dataclass(frozen=True, eq=False)
class _Trial:
    """A model and its loss at a point, on a few examples."""

    function: ModelFunction
    weights: Tensor
    inputs: Tensors
    loss: Callable[[Tensor], Tensor]

    def run(self) -> tuple[Tensor, list[Tensor], Tensor]:
        return self.function.loss_graph(self.weights, self.inputs, self.loss)

    def layer_where(self, guilty: Callable[[object], bool]) -> str:
        """The first layer whose output meets a condition, as the end of a phrase; empty if there is none."""
        layer = first_layer(self.function.module, self.run, guilty)
        return f" in {layer}" if layer else ""

    def gradient(self) -> tuple[tuple[Tensor | None, ...], Tensor]:
        """The gradient, None where the loss does not depend on a parameter, and the loss."""
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                _, leaves, value = self.run()
                gradient = torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True)
        except RuntimeError as error:
            if isinstance(error, CheckpointError) and not self.function.recomputes:
                raise
            if _REENTRANT[0] in str(error):
                raise self.reentrant() from error
            raise InputError(
                f"the model cannot be differentiated{self.layer_where(_has_no_gradient)}: {error}"
            ) from error
        if any(_REENTRANT[1] in str(warning.message) for warning in caught):
            raise self.reentrant()
        return gradient, value

    def recomputing(self) -> _Trial:
        """The same model, every call of which keeps its weights, for activation checkpoints."""
        other = replace(self, function=replace(self.function, recomputes=True))
        moved = (1 + 2.0**-7) * self.weights
        if not torch.equal(self._outputs(moved), other._outputs(moved)):
            raise InputError(
                "the model uses activation checkpoints, and a function that replaces a method of a layer. Its weights "
                "are not known when the checkpoints run again. Call the function without torch.utils.checkpoint."
            )
        return other

    def reentrant(self) -> InputError:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            layer = self.layer_where(lambda output: bool(caught) or _has_checkpoint(output))
        return InputError(
            f"activation checkpointing with use_reentrant=True{layer} works only with .backward(): PyTorch does not "
            "differentiate it twice, and drops gradients where the input needs none. Pass use_reentrant=False, which "
            "computes the same function."
        )

    def refuse_narrower(self, value: Tensor) -> None:
        if dropped := narrower(value, self.weights.dtype):
            dtype = self.weights.dtype
            raise InputError(
                f"the model is computed in {dtype}, but forward casts to {', '.join(sorted(map(str, dropped)))}"
                f"{self.layer_where(lambda output: bool(narrower(output, dtype)))}: the digits that small eigenvalues "
                "need are lost there. Remove the cast, or pass dtype=torch.float32 for all of the work."
            )

    def refuse_hidden(self, unused: tuple[str, ...]) -> None:
        """Refuse parameters that change the outputs although autograd finds no path to them."""
        with torch.no_grad():
            before = self.function.predict(self.weights, self.inputs)
            for name in unused:
                moved = self.weights.clone()
                moved[self.function.layout.slices[name]] *= 1.0 + 2.0**-10
                moved[self.function.layout.slices[name]] += 2.0**-10
                if not torch.equal(before, self.function.predict(moved, self.inputs)):
                    raise InputError(
                        f"the outputs depend on {name!r}, but PyTorch finds no derivative: forward uses detach(), "
                        ".data, torch.no_grad(), integers or a derivative without create_graph=True. If it is meant to "
                        f"be constant, call requires_grad_(False) on {name!r}."
                    )

    def refuse_wrong(self, gradient: tuple[Tensor | None, ...], value: Tensor) -> None:
        """Refuse a gradient through a custom autograd function that is not the derivative of the loss."""
        custom = _custom_functions(value)
        if not custom:
            return
        leaves = self.function.leaves(self.weights).values()
        along = _directions(leaves)
        slope = sum(
            (part * way).sum() for part, way in zip(gradient, along, strict=True) if part is not None
        ) + torch.zeros_like(value)
        try:
            self._compare(lambda weights: replace(self, weights=weights).run()[2].detach(), slope.detach(), custom)
        except RuntimeError as error:
            layer = self.layer_where(lambda output: isinstance(output, Tensor) and bool(_custom_functions(output)))
            raise SelfCheckError(
                f"the backward pass of {custom}{layer} is not the derivative of its forward pass (a straight-through "
                "estimator?): the gradient differs from finite differences of the loss, so they do not belong to one "
                "loss. Replace or freeze that layer."
            ) from error

    def derivatives(self) -> Derivatives:
        """Try each derivative that a matrix needs."""
        in_outputs = _error_of(self._in_outputs)
        if in_outputs:
            in_outputs = f"the loss has no second derivative in PyTorch ({in_outputs})"
        tangents = not _error_of(self._tangents)
        second = _error_of(self._second)
        wrong = second.startswith(_WRONG)
        if second:
            layer = first_layer(self.function.module, self.run, _has_no_second_derivative) or "the loss"
            second = f"{layer} has {second}" if wrong else f"{layer} has no second derivative in PyTorch ({second})"
        return Derivatives(second, in_outputs, tangents, wrong)

    def _second(self) -> None:
        _, leaves, value = self.run()
        if _has_fused_weight_norm(value):
            raise RuntimeError(f"{_WRONG}, that of torch._weight_norm")
        directions = _directions(leaves)
        product = _twice(value, leaves, directions)
        if custom := _custom_functions(value):
            self._compare(lambda weights: _flat(self._slopes(weights), weights), _flat(product, self.weights), custom)

    def _slopes(self, weights: Tensor) -> tuple[Tensor | None, ...]:
        _, leaves, value = replace(self, weights=weights).run()
        return torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)

    def _in_outputs(self) -> None:
        with torch.no_grad():
            outputs = self.function.predict(self.weights, self.inputs)
        variable = outputs.detach().requires_grad_()
        with torch.enable_grad():
            _twice(self.loss(variable), [variable], _directions([variable]))

    def _tangents(self) -> None:
        leaves = self.function.leaves(self.weights)
        parts = list(leaves.values())
        with torch.enable_grad():
            outputs = self.function.predict(leaves, self.inputs)
            cotangent = torch.zeros_like(outputs, requires_grad=True)
            # The value c * f has the gradient J^T c, and the derivative of that in c is J.
            tangent = _twice((cotangent * outputs).sum(), parts, _directions(parts), by=[cotangent])
        if custom := _custom_functions(outputs):
            self._compare(lambda weights: self._outputs(weights).reshape(-1), tangent[0].reshape(-1), custom)

    def _outputs(self, weights: Tensor) -> Tensor:
        with torch.no_grad():
            return self.function.predict(weights, self.inputs)

    def _compare(self, function: Callable[[Tensor], Tensor], slope: Tensor, custom: str) -> None:
        """Raise an error if a derivative along the fixed direction differs from differences.

        Only a function of the user can differ without an error of PyTorch: one whose backward pass leaves its graph.
        """
        direction = _flat(_directions(self.function.leaves(self.weights).values()), self.weights)
        if deviation(function, self.weights, direction, slope):
            raise RuntimeError(f"{_WRONG}: by {custom}, the second derivative differs from finite differences")


def _directions(parts: Iterable[Tensor]) -> list[Tensor]:
    """A fixed direction without zeros, for each tensor."""
    return [fixed_direction(part) for part in parts]


def _flat(parts: Iterable[Tensor | None], like: Tensor) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts if part is not None]).detach().to(like)


def _twice(
    value: Tensor, variables: list[Tensor], directions: list[Tensor], by: list[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """Differentiate twice: the derivative of the gradient along directions, by the variables or others.

    Raises what PyTorch raises, and an error where PyTorch drops a function that is marked as differentiable once: its
    own error is not reached by ``torch.autograd.grad`` (torch 2.13).
    """
    by = variables if by is None else by
    zeros = tuple(torch.zeros_like(variable) for variable in by)
    with torch.enable_grad():
        if not value.requires_grad:
            return zeros
        slopes = torch.autograd.grad(value, variables, create_graph=True, allow_unused=True, materialize_grads=True)
        total = sum((part * along).sum() for part, along in zip(slopes, directions, strict=True))
        assert isinstance(total, Tensor)
        if not total.requires_grad:
            return zeros
        if any(type(node).__name__ == "Error" for node in graph_nodes(total)):
            raise RuntimeError("a backward pass is marked with @once_differentiable")
        return torch.autograd.grad(total, by, retain_graph=True, allow_unused=True, materialize_grads=True)


def _custom_functions(output: Tensor) -> str:
    """Names of the user's autograd functions in a graph."""
    nodes = {type(node).__name__ for node in graph_nodes(output) if isinstance(node, BackwardCFunction)}
    return ", ".join(sorted(name.removesuffix("Backward") for name in nodes))


def _error_of(attempt: Callable[[], object]) -> str:
    """Message of the error that an attempt raises, in one line; empty if it succeeds."""
    try:
        attempt()
    except Exception as error:  # a user's autograd function may raise anything
        return (str(error) or type(error).__name__).split("\n")[0].removesuffix(".")
    return ""


def _has_no_gradient(output: object) -> bool:
    if not isinstance(output, Tensor) or not output.requires_grad:
        return False
    try:
        torch.autograd.grad(output.sum(), _variables(output), retain_graph=True)
    except RuntimeError:
        return True
    return False


def _has_no_second_derivative(output: object) -> bool:
    if not isinstance(output, Tensor) or not output.requires_grad:
        return False
    variables = _variables(output)
    directions = _directions(variables)
    if _has_fused_weight_norm(output):
        return True
    return bool(_custom_functions(output) or _error_of(lambda: _twice(output.square().sum(), variables, directions)))


def _has_fused_weight_norm(output: Tensor) -> bool:
    return any("WeightNormInterface" in type(node).__name__ for node in graph_nodes(output))


def _has_checkpoint(output: object) -> bool:
    return isinstance(output, Tensor) and any(
        "CheckpointFunction" in type(node).__name__ for node in graph_nodes(output)
    )


def _variables(output: Tensor) -> list[Tensor]:
    return [node.variable for node in graph_nodes(output) if hasattr(node, "variable")]


def _replaced(trial: _Trial, missing: Derivatives) -> tuple[_Trial, Derivatives, tuple[str, ...]]:
    """Try equivalent functions for those that PyTorch differentiates only once; keep them only if they help."""
    other = replace(trial, function=replace(trial.function, replaces=True))
    derivatives = other.derivatives()
    if derivatives == missing or not _same(trial, other):
        return trial, missing, ()
    reason = missing.second or "a layer has no second derivative in PyTorch"
    note = f"{reason}: an equivalent function with the same values and gradients is used instead."
    return other, derivatives, (note,)


def _same(trial: _Trial, other: _Trial) -> bool:
    """Whether outputs and gradients are equal up to rounding."""
    with torch.no_grad():
        pairs = [tuple(one.function.predict(one.weights, one.inputs) for one in (trial, other))]
    pairs += zip(*(one.gradient()[0] for one in (trial, other)), strict=True)
    return all(
        (first is None) == (second is None)
        and (
            first is None
            or bool((first - second).abs().max() <= 1e4 * torch.finfo(first.dtype).eps * first.abs().max())
        )
        for first, second in pairs
    )
