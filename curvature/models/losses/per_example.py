"""A user's loss, written for one example."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from curvature.errors import InputError, NotDefinedError
from curvature.models.losses.loss import Loss
from curvature.models.trees import Tensors, as_type, shapes, structure_of

__all__ = ["PerExample", "refuse_other_reduction"]


@dataclass(frozen=True, repr=False)
class PerExample(Loss):
    """A user's loss: ``function(output, target) -> scalar`` for *one* example, averaged over examples.

    It is differentiated by ``torch.func``, so it must be written in torch operations without data-dependent
    control flow. No likelihood is assumed: there is no Fisher.

    Parameters
    ----------
    function
        Maps the output and the target of one example to a scalar. The target may be a tuple, list or dictionary of
        tensors.
    name
        For records and messages.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    name: str = "custom"
    likelihood: bool = field(default=False, init=False)
    convex: bool = field(default=False, init=False)
    structured_targets: bool = field(default=True, init=False)

    def prepare(self, outputs: Tensor, targets: Tensors) -> Tensors:
        targets = as_type(targets, outputs.dtype, outputs.device)
        try:
            values = self.terms(outputs[:1], targets[:1])
        except Exception as error:  # a user's function may raise anything
            raise InputError(
                f"the loss {self.name!r} failed on one example (output of shape {tuple(outputs.shape[1:])}, target of "
                f"{shapes(targets[0], 'target')}): {error}"
            ) from error
        if values.shape != (1,):
            raise InputError(
                f"the loss {self.name!r} must return one scalar per example, got shape {tuple(values.shape[1:])}."
            )
        return targets

    def terms(self, outputs: Tensor, targets: Tensors) -> Tensor:
        return torch.func.vmap(self.function)(outputs, structure_of(targets))

    def hessian(self, outputs: Tensor, targets: Tensors) -> Tensor:
        second = torch.func.vmap(torch.func.hessian(self.function))(outputs, structure_of(targets))
        size = outputs[0].numel()
        return second.reshape(len(outputs), size, size)

    def hessian_factor(self, outputs: Tensor, targets: Tensors) -> Tensor:
        values, vectors = torch.linalg.eigh(self.hessian(outputs, targets))
        if (values < -100 * torch.finfo(values.dtype).eps * values.abs().max()).any():
            raise NotDefinedError(
                f"the loss {self.name!r} is not convex in the outputs here, so its GGN has no factor; "
                "use the dense route (method='dense')."
            )
        return vectors * values.clamp(min=0).sqrt()[:, None]

    def __repr__(self) -> str:
        return f"PerExample({self.name})"


def refuse_other_reduction(loss: PerExample, outputs: Tensor, targets: Tensors) -> None:
    """Refuse a user's function that, given all examples at once, is neither the mean nor the sum over single ones.

    Such a function (class weights, ignored targets, its own denominator) was written for batches, and its mean over
    examples is another loss. A function that takes one example only passes. A :class:`PerExample` that the user has
    built is not checked: it declares that the function is meant for single examples.

    Parameters
    ----------
    loss
        The user's function.
    outputs, targets
        All examples ``(N, ...)``.

    Raises
    ------
    InputError
        If the value for all examples at once is neither the mean nor the sum.
    """
    if len(outputs) < 2:
        return
    terms = loss.terms(outputs, targets)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns about shapes that this function does not take as a batch
            together = torch.as_tensor(loss.function(outputs.clone(), structure_of(targets.clone())))
    except Exception:  # a user's function may raise anything; it does not take batches
        return
    if together.numel() != 1 or not torch.isfinite(terms).all():
        return
    tolerance = 1e4 * torch.finfo(outputs.dtype).eps * float(terms.abs().sum())
    if any(abs(float(together) - float(reduced)) <= tolerance for reduced in (terms.mean(), terms.sum())):
        return
    raise InputError(
        f"the loss {loss.name!r} of all {len(terms)} examples at once is {float(together):.6g}, but the mean of its "
        f"values for single examples is {float(terms.mean()):.6g} and their sum {float(terms.sum()):.6g}. It is called "
        "with one example at a time, so what it divides by in a batch (class weights, ignored targets) is lost. Use "
        "CrossEntropy(weight=..., ignore_index=...), or PerExample(function) if it is meant for single examples."
    )
