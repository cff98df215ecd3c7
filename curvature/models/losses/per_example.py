"""A user's loss, written for one example."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from curvature.arrays import Float
from curvature.errors import InputError, NotDefinedError
from curvature.models.losses.loss import Loss
from curvature.models.substitutes import Substitutes
from curvature.models.trees import Structure, Tensors, as_type, shapes, structure_of

__all__ = ["OneByOne", "PerExample", "differentiable", "refuse_other_reduction"]

# Methods by which Python reads the value of a tensor. A function that uses them means one example.
_READING = {
    getattr(Tensor, name) for name in ("__bool__", "__float__", "__int__", "__index__", "item", "tolist", "numpy")
}


@dataclass(frozen=True, repr=False)
class PerExample(Loss):
    """A user's loss: ``function(output, target) -> scalar`` for *one* example, averaged over examples.

    It is differentiated for all examples at once by ``torch.func.vmap`` where that is possible, and otherwise for one
    example after another, which is exact too but slower. No likelihood is assumed: there is no Fisher.

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

    def prepare(self, outputs: Float[Tensor, "examples ..."], targets: Tensors) -> Tensors:
        targets = as_type(targets, outputs.dtype, outputs.device)
        try:
            value = self.function(outputs[0].clone(), structure_of(targets[0].clone()))
        except Exception as error:  # a user's function may raise anything
            raise InputError(
                f"the loss {self.name!r} failed on one example (output of shape {tuple(outputs.shape[1:])}, target of "
                f"{shapes(targets[0], 'target')}): {error}"
            ) from error
        if not isinstance(value, Tensor) or value.ndim:
            returned = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"the loss {self.name!r} must return one scalar per example, got {returned}.")
        return targets

    @property
    def remedy(self) -> str:
        return (
            'If the model returns log-probabilities, use loss="cross-entropy" with classes or probabilities as '
            "targets: log_softmax leaves log-probabilities as they are, so it is the same function of the weights, and "
            "its GGN is that of the softmax. Otherwise move the last nonlinearity of the model into the loss, or use "
            "cv.hessian."
        )

    def first_term(self, outputs: Float[Tensor, "examples ..."], targets: Tensors) -> Tensor:
        """The loss of the first example at detached outputs; a graph shows what else it depends on."""
        with torch.enable_grad():
            return self.function(outputs[0].detach().clone(), structure_of(targets[0].clone()))

    def terms(self, outputs: Tensor, targets: Tensors) -> Tensor:
        return _vectorized(self.function)(outputs, structure_of(targets))

    def hessian(
        self, outputs: Float[Tensor, "examples ..."], targets: Tensors
    ) -> Float[Tensor, "examples outputs outputs"]:
        # Reverse over reverse: some losses (Huber, soft margin) have no rule in forward mode, and for some layers
        # torch.func.hessian is wrong.
        second = _vectorized(torch.func.jacrev(torch.func.grad(self.function)))(outputs, structure_of(targets))
        size = outputs[0].numel()
        return second.reshape(len(outputs), size, size)

    def hessian_factor(
        self, outputs: Float[Tensor, "examples ..."], targets: Tensors
    ) -> Float[Tensor, "examples outputs columns"]:
        values, vectors = torch.linalg.eigh(self.hessian(outputs, targets))
        if (values < -100 * torch.finfo(values.dtype).eps * values.abs().max()).any():
            raise NotDefinedError(
                f"the loss {self.name!r} is not convex in the outputs here, so its GGN has no factor; "
                "use the dense route (method='dense')."
            )
        return vectors * values.clamp(min=0).sqrt()[:, None]

    def __repr__(self) -> str:
        return f"PerExample({self.name})"


def _vectorized(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run a function by vmap for all examples, without PyTorch's warning that it loops over some operation."""

    def vectorized(*arguments: Structure) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return torch.func.vmap(function)(*arguments)

    return vectorized


@dataclass(frozen=True, repr=False)
class OneByOne(PerExample):
    """A user's loss that cannot be vectorized: called and differentiated for one example after another.

    Attributes
    ----------
    replaces
        Whether functions of PyTorch without a second derivative are replaced in it.
    by_value
        Whether the function depends on values in Python (``if``, ``float``), so that it is meant for one example.
    """

    replaces: bool = False
    by_value: bool = False

    def terms(self, outputs: Float[Tensor, "examples ..."], targets: Tensors) -> Float[Tensor, "examples"]:
        with Substitutes() if self.replaces else nullcontext():
            # Copies: the rows that a loop over a tensor returns are views, which must not be written to in place.
            pairs = [(output.clone(), targets[n].clone()) for n, output in enumerate(outputs)]
            return torch.stack([self.function(output, structure_of(target)) for output, target in pairs])

    def hessian(
        self, outputs: Float[Tensor, "examples ..."], targets: Tensors
    ) -> Float[Tensor, "examples outputs outputs"]:
        return torch.stack([self._second(output, targets[n : n + 1]) for n, output in enumerate(outputs)])

    def _second(self, output: Tensor, target: Tensors) -> Tensor:
        """The second derivative for one example by one backward pass for each output, ``(M, M)``."""
        variable = output.detach().clone().requires_grad_()
        with torch.enable_grad():
            slope = _slope(self.terms(variable[None], target).sum(), variable).reshape(-1)
        rows = [_slope(entry, variable).reshape(-1) for entry in slope]
        return torch.stack(rows).detach()


def differentiable(
    loss: PerExample, outputs: Tensor, targets: Tensors, *, declared: bool
) -> tuple[PerExample, tuple[str, ...]]:
    """Find out by a trial on two examples how a user's function can be differentiated.

    Parameters
    ----------
    loss
        The user's function.
    outputs, targets
        All examples ``(N, ...)``.
    declared
        Whether the user has built the :class:`PerExample`, which declares that the function is meant for one example.

    Returns
    -------
    loss, notes
        The same loss if ``torch.func.vmap`` agrees with automatic differentiation of single examples, otherwise
        :class:`OneByOne`; and sentences that say so.

    Raises
    ------
    InputError
        If the function returns something else for all examples at once than the mean or the sum.
    """
    ends = sorted({0, len(outputs) - 1})

    def attempt(tried: PerExample) -> tuple[tuple[Tensor, ...] | None, str]:
        return _attempt(lambda: _derivatives(tried, outputs[ends], targets[ends]))

    single = OneByOne(loss.function, loss.name)
    expected, missing = attempt(single)
    if expected is None:
        other = replace(single, replaces=True)
        expected, _ = attempt(other)
        single = single if expected is None else other
    vectorized, error = attempt(loss)
    notes: tuple[str, ...] = ()
    if vectorized is None or expected is None or not _agree(vectorized, expected):
        cause = _first_sentence(error) if error else "vmap changes its derivatives"
        loss = replace(single, by_value=_reads_values(loss.function, outputs[0], targets[0]))
        notes = (
            f"the loss {loss.name!r} is differentiated for one example after another, by reverse over reverse: exact, "
            f"but slow for many examples. torch.func.vmap does not vectorize it: {cause}.",
        )
        if single.replaces:
            notes += (f"the loss {loss.name!r} is computed by an equivalent function: {_first_sentence(missing)}.",)
    return loss, (*notes, *(() if declared else refuse_other_reduction(loss, outputs, targets)))


def _derivatives(loss: PerExample, outputs: Tensor, targets: Tensors) -> tuple[Tensor, ...]:
    """Values, gradients and products of the second derivatives with a fixed direction, by the routes of the loss."""
    direction = torch.linspace(-1.0, 1.0, outputs.numel() + 1)[1:].reshape(outputs.shape).to(outputs)
    variable = outputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        terms = loss.terms(variable, targets)
        slope = _slope(terms.sum(), variable)
        products = _slope((slope * direction).sum(), variable)
    parts = (terms.detach(), slope.detach(), products.detach())
    if isinstance(loss, OneByOne):
        return parts

    def along(output: Tensor, target: Structure, tangent: Tensor) -> Tensor:
        slopes = torch.func.grad(lambda point: loss.function(point, target))
        return torch.func.vjp(slopes, output)[1](tangent)[0]

    # The Hessian in the outputs is computed inside vmap, that of the whole loss outside: both must be right.
    inside = torch.func.vmap(along)(outputs, structure_of(targets), direction)
    return (*parts[:2], inside if _agree([products], [inside]) else torch.full_like(inside, torch.nan))


def _slope(value: Tensor, variable: Tensor) -> Tensor:
    """Gradient with its graph; zero where the value does not depend on the variable."""
    if not value.requires_grad:
        return torch.zeros_like(variable)
    return torch.autograd.grad(
        value, variable, create_graph=True, retain_graph=True, allow_unused=True, materialize_grads=True
    )[0]


def _attempt(compute: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...] | None, str]:
    """The result, or None and the message of the error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of slow fallbacks inside vmap
            return compute(), ""
    except Exception as error:  # a user's function may raise anything
        return None, str(error) or type(error).__name__


def _agree(values: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether tensors are equal up to rounding, relative to the largest entry."""
    for value, wanted in zip(values, expected, strict=True):
        tolerance = 1e4 * torch.finfo(wanted.dtype).eps * float(wanted.abs().max())
        # What is not finite by either way is reported later, with the example.
        if math.isfinite(tolerance) and not torch.allclose(value, wanted, rtol=0, atol=tolerance):
            return False
    return True


class _Readings(TorchFunctionMode):
    """A context that notices where Python reads the value of a tensor."""

    any = False

    def __torch_function__(self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.any |= func in _READING
        return func(*args, **(kwargs or {}))


def _reads_values(function: Callable[[Tensor, Structure], Tensor], output: Tensor, target: Tensors) -> bool:
    with _Readings() as readings:
        function(output.clone(), structure_of(target.clone()))
    return readings.any


def _first_sentence(error: str) -> str:
    return error.split("\n")[0].split(". ")[0].removesuffix(".")


def refuse_other_reduction(loss: PerExample, outputs: Tensor, targets: Tensors) -> tuple[str, ...]:
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

    Returns
    -------
    tuple of str
        A note if the function differs because it branches on values, which is meaningful for a single example only.

    Raises
    ------
    InputError
        If the value for all examples at once is neither the mean nor the sum.
    """
    if len(outputs) < 2:
        return ()
    terms = loss.terms(outputs, targets)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns about shapes that this function does not take as a batch
            together = torch.as_tensor(loss.function(outputs.clone(), structure_of(targets.clone())))
    except Exception:  # a user's function may raise anything; it does not take batches
        return ()
    if together.numel() != 1 or not torch.isfinite(terms).all():
        return ()
    tolerance = 1e4 * torch.finfo(outputs.dtype).eps * float(terms.abs().sum())
    if any(abs(float(together) - float(reduced)) <= tolerance for reduced in (terms.mean(), terms.sum())):
        return ()
    mean = float(terms.mean())
    difference = (
        f"the loss {loss.name!r} of all {len(terms)} examples at once is {float(together):.6g}, but the mean of its "
        f"values for single examples is {mean:.6g} and their sum {float(terms.sum()):.6g}. It is called with one "
        "example at a time"
    )
    if isinstance(loss, OneByOne) and loss.by_value:
        return (f"{difference}, and the mean of these values is measured: it branches on values or reads them.",)
    raise InputError(
        f"{difference}, so what it divides by in a batch (class weights, ignored targets, reduction='batchmean') "
        "is lost. Pass the torch.nn module of the loss with its options (CrossEntropyLoss, NLLLoss, KLDivLoss, ...), "
        "or a function of one example whose mean over examples is your loss. PerExample(function) accepts it as it "
        "is: every matrix is then that of the mean of its values for single examples"
        + (f", {mean / float(together):.3g} times your loss." if float(together) else ".")
    )
