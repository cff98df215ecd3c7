"""Options of embeddings that make PyTorch's gradient differ from the derivative: they are left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from curvature.models.function import ModelFunction
from curvature.models.substitutes import EmbeddingCall, Padding, recorded_embeddings
from curvature.models.trees import Tensors

__all__ = ["without_options"]


def without_options(function: ModelFunction, weights: Tensor, inputs: Tensors) -> tuple[ModelFunction, tuple[str, ...]]:
    """Find the embeddings with options that change the gradient, and leave the options out.

    Parameters
    ----------
    function
        The model.
    weights
        The point ``(P,)``.
    inputs
        A few examples ``(N, ...)``.

    Returns
    -------
    function, notes
        The model, whose derivatives are those of a function; and a sentence for each option that says what it means.
    """
    leaves = function.leaves(weights)
    calls = recorded_embeddings(lambda: function.predict(leaves, inputs))
    if not calls:
        return function, ()
    names = {id(leaf): name for name, leaf in leaves.items()}
    trained = [(names[id(call.weight)], call) for call in calls if id(call.weight) in names]
    rows: dict[str, set[int]] = {}
    for name, call in trained:
        if "padding_idx" in call.options:
            rows.setdefault(name, set()).add(call.options["padding_idx"] % len(call.weight))
    padded = {name: Padding(tuple(sorted(masked)), leaves[name].detach()) for name, masked in rows.items()}
    notes = dict.fromkeys(note for name, call in trained for note in _notes_of(name, call))
    return replace(function, replaces=True, padded=padded), tuple(notes)


def _notes_of(name: str, call: EmbeddingCall) -> Iterator[str]:
    """Notes that say how each option of an embedding is treated."""
    embedding, options = f"the embedding {name!r}", call.options
    if "padding_idx" in options:
        rows, width = call.weight.shape
        treatment = "is in no bag" if call.bag else "counts as a constant, as in PyTorch's gradient"
        yield (
            f"row {options['padding_idx'] % rows} of {embedding} (padding_idx) {treatment}: its {width} weights have "
            "zero rows in every matrix, unless they are used elsewhere too."
        )
    if "scale_grad_by_freq" in options:
        yield (
            f"scale_grad_by_freq of {embedding} is left out: gradients divided by the counts of a batch are not the "
            "derivative of the loss."
        )
    if "max_norm" in options:
        yield (
            f"max_norm={options['max_norm']:g} of {embedding} is left out: the weights obey it at this point, and "
            "PyTorch does not differentiate it."
        )
