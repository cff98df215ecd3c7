"""Assembly of a problem: the user's module, loss and data are copied and tried together once."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from curvature.arrays import Float
from curvature.errors import ConfigurationError, InputError
from curvature.models.calling import OutputLike, Reader
from curvature.models.data import DataLike, Packed, materialize, refuse_non_finite
from curvature.models.losses import Loss, LossLike, ModelLoss, PerExample, differentiable, resolve_loss
from curvature.models.module.dora import differentiate_norms
from curvature.models.module.refusal import common_type, refuse_module
from curvature.models.module.wrappers import inner_module, wrapper_notes
from curvature.models.penalty import PenaltyTerms, make_penalty, note_gauge
from curvature.models.point import Point
from curvature.models.trees import Tensors, TensorTree, as_type, leaves_by_name, shapes
from curvature.models.trial.differentiation import differentiated
from curvature.models.trial.hooks import remove_recording_hooks
from curvature.models.trial.outputs import checked_outputs
from curvature.models.trial.reach import note_unregistered, refuse_kept_results, refuse_other_ways
from curvature.models.trial.surrogates import note_surrogate
from curvature.models.unwrapping import unwrap

__all__ = ["CHUNK_BYTES", "assemble", "loss_of", "most_at_once", "words_of_a_sum"]

CHUNK_BYTES = 256 * 2**20  # of per-example factor columns held at once


def assemble(
    module: nn.Module,
    loss_like: LossLike | None,
    data: DataLike,
    *,
    output: OutputLike | None,
    dtype: torch.dtype | None,
    chunk_size: int | None,
    terms: PenaltyTerms,
) -> Point:
    """Copy a module and its data, and try them with the loss.

    Parameters
    ----------
    module, loss_like, data, output, dtype, chunk_size
        The arguments of :meth:`Problem.from_module <curvature.models.Problem.from_module>`.
    terms
        Its arguments ``penalty`` and ``weight_decay``.

    Returns
    -------
    Point
        Model, loss and data at the weights of the module.

    Raises
    ------
    ConfigurationError
        If the chunk size is below one, or the loss or the precision is unknown.
    InputError
        If the denominator of the mean is zero, or anything else about model, data or loss makes the matrices
        meaningless.
    """
    loss = loss_of(loss_like, output)
    refuse_module(module)
    notes = list(wrapper_notes(module))
    module = inner_module(module)
    if chunk_size is not None and chunk_size < 1:
        raise ConfigurationError(f"chunk_size must be at least 1, got {chunk_size}.")
    dtype, device = common_type(module, dtype)
    of_model = isinstance(loss, ModelLoss)
    inputs, targets = materialize(data, module.forward, with_targets=not of_model, say=notes.append)
    inputs, targets = as_type(inputs, dtype, device), targets.to(device)
    refuse_non_finite(inputs, targets)

    unwrapped = unwrap(module, dtype)
    notes.append(differentiate_norms(unwrapped.function.module))
    reader = Reader(output, packed=isinstance(data, Packed), own_loss=of_model)
    outputs, function, note = checked_outputs(replace(unwrapped.function, reader=reader), unwrapped.weights, inputs)
    weights = unwrapped.weights
    remove_recording_hooks(function, weights, inputs)
    if isinstance(targets, TensorTree) and not loss.structured_targets:
        raise InputError(
            f"{loss.name} needs one tensor of targets, got {shapes(targets, 'targets')}. Pass one of them, or a "
            "callable loss(output, target) for one example, which gets the targets as they are."
        )
    if loss.classes_last(outputs, targets):
        function = replace(function, reader=replace(function.reader, classes_last=True))
        targets = targets.movedim(-1, 1) if targets.ndim == outputs.ndim else targets  # probabilities
        outputs = outputs.movedim(-1, 1)
    targets = loss.prepare(outputs, targets)
    notes += [note, loss.note(outputs, targets), _unshifted(inputs, targets)]
    if isinstance(loss, PerExample):
        refuse_other_ways(loss.first_term(outputs, targets), module)
        loss, more = differentiable(loss, outputs, targets, declared=loss is loss_like)
        notes += more
    of_package = type(loss).__module__.startswith("curvature.") and not isinstance(loss, PerExample)
    part = slice(0, 1) if of_package else slice(None)  # a user's loss may treat examples differently
    with torch.enable_grad():
        refuse_other_ways(loss.terms(outputs[part], targets[part]), module)
    num_outputs = outputs[0].numel()
    if chunk_size is None:
        chunk_size = min(len(inputs), most_at_once(num_outputs, weights))
    total = float(loss.denominators(outputs, targets).sum())
    denominator = 1.0 if loss.reduction == "sum" else total
    if not total > 0:
        raise InputError("the denominator of the mean loss is zero: every target has weight zero or is ignored.")
    function, derivatives, unused, more = differentiated(
        function, weights, inputs[:1], lambda outputs: loss.terms(outputs, targets[:1]).sum() / denominator
    )
    several = slice(0, 4)  # one example alone may not show it: an input of zeros
    surrogate = note_surrogate(
        function, weights, inputs[several], lambda outputs: loss.terms(outputs, targets[several]).sum()
    )
    refuse_kept_results(module, unused)
    with torch.enable_grad():
        reached = function.predict(function.leaves(weights), inputs[:1])
        refuse_other_ways(loss.terms(reached.detach(), targets[:1]), module)  # of activations that forward has stored
    penalty = make_penalty(function.layout, weights, terms)
    notes += [surrogate, note_unregistered(function, module, weights, inputs[:1]), note_gauge(penalty, unwrapped.chart)]
    return Point(
        function,
        loss,
        inputs,
        targets,
        weights,
        unwrapped.chart,
        denominator,
        unwrapped.frozen,
        unused,
        num_outputs,
        chunk_size,
        total,
        tuple(filter(None, [*notes, words_of_a_sum(loss, total), *more])),
        derivatives,
        penalty,
    )


def most_at_once(num_outputs: int, weights: Float[Tensor, "weights"]) -> int:
    """Number of examples whose factor columns fit into a chunk.

    Parameters
    ----------
    num_outputs
        Outputs of one example.
    weights
        The point ``(P,)``.

    Returns
    -------
    int
        At least one.
    """
    return max(1, CHUNK_BYTES // (max(1, num_outputs) * len(weights) * weights.element_size()))


def loss_of(loss_like: LossLike | None, output: OutputLike | None) -> Loss:
    """Find the loss, which is that of the model if only its output ``"loss"`` is named.

    Parameters
    ----------
    loss_like, output
        As for :func:`assemble`.

    Returns
    -------
    Loss
        The loss.

    Raises
    ------
    ConfigurationError
        If there is none, or it contradicts the output.
    """
    if loss_like is None and output != "loss":
        raise ConfigurationError(
            "no loss is given. Pass loss='cross-entropy', for example, or loss='model' if the module returns its loss."
        )
    loss = resolve_loss("model" if loss_like is None else loss_like)
    if output == "loss" and not isinstance(loss, ModelLoss):
        raise ConfigurationError(
            "output='loss' is the loss that the module computes itself, so no other loss applies to it. Pass "
            "loss='model', or name the outputs, e.g. output='logits'."
        )
    return loss


def words_of_a_sum(loss: Loss, total: float) -> str:
    """Say what a reader must know about a loss that is a sum.

    Parameters
    ----------
    loss
        Any loss.
    total
        Denominator of the mean.

    Returns
    -------
    str
        A sentence, or an empty string for a mean.
    """
    if loss.reduction != "sum":
        return ""
    return (
        f"The loss {loss.name} is a sum, not a mean: Hessian, GGN and Fisher are {total:g} times those of the mean "
        f"loss, empirical Fisher and gradient covariance {total:g}^2 times."
    )


def _unshifted(inputs: Tensors, targets: Tensors) -> str:
    """A sentence about targets that repeat the input, as the labels of Hugging Face's language models do."""
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.ndim < 2:
        return ""
    for name, leaf in leaves_by_name(inputs, "inputs"):
        same = leaf.shape == targets.shape and not leaf.is_floating_point()
        if same and ((leaf == targets) | (targets < 0)).all():
            return (
                f"The targets equal {name}, so the loss rewards repeating the input. To predict the next token, shift "
                "the targets by one position (Hugging Face's models do that inside their own loss)."
            )
    return ""
