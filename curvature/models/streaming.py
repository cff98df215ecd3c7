"""Assembly of a problem whose data are streamed: tried on the first examples, then counted and read again."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from curvature.errors import InputError, NonFiniteError
from curvature.models.assembly import CHUNK_BYTES, assemble, loss_of, most_at_once, words_of_a_sum
from curvature.models.calling import OutputLike
from curvature.models.data import DataLike, open_stream
from curvature.models.losses import LossLike, ModelLoss
from curvature.models.module.refusal import refuse_module
from curvature.models.module.wrappers import inner_module
from curvature.models.penalty import PenaltyTerms
from curvature.models.point import Point
from curvature.models.trees import (
    StreamedTensors,
    Structure,
    Tensors,
    as_type,
    leaves_by_name,
    mapped,
    structure_of,
    tree_of,
)

__all__ = ["assemble_streamed"]

_TRIED = 64  # examples on which model, loss and derivatives are tried


def assemble_streamed(
    module: nn.Module,
    loss_like: LossLike | None,
    data: DataLike,
    *,
    output: OutputLike | None,
    dtype: torch.dtype | None,
    chunk_size: int | None,
    terms: PenaltyTerms,
) -> Point:
    """Try a module on the first examples of a stream, and compare two passes over all of them.

    Parameters
    ----------
    module, loss_like, data, output, dtype, chunk_size, terms
        As for :func:`~curvature.models.assembly.assemble`.

    Returns
    -------
    Point
        With inputs and targets that are read chunk by chunk.

    Raises
    ------
    InputError
        If the passes differ, or anything about model, data or loss makes the matrices meaningless.
    """
    own_loss = isinstance(loss_of(loss_like, output), ModelLoss)
    refuse_module(module)
    sentences: list[str] = []
    stream = open_stream(data, inner_module(module).forward, with_targets=not own_loss, say=sentences.append)
    examples = stream.read(slice(0, _TRIED))
    head = examples[0] if own_loss else examples
    point = assemble(module, loss_like, head, output=output, dtype=dtype, chunk_size=chunk_size, terms=terms)
    if chunk_size is None:
        point = replace(point, chunk_size=_chunk_size(point, examples))
    inputs, targets = stream.tensors()
    inputs = as_type(inputs, point.dtype, point.device)
    if own_loss:
        targets = StreamedTensors(lambda rows: torch.zeros(rows.stop - rows.start, device=point.device), len(inputs))
    prepared = _Targets(point, examples[1], own_loss=own_loss)
    streamed = replace(point, inputs=inputs, targets=prepared.converted(targets))
    total = prepared.total(streamed, targets)
    head_notes = {point.loss.note(prepared.outputs, point.targets), words_of_a_sum(point.loss, point.total)}
    notes = (
        *sentences,
        *(note for note in point.notes if note not in head_notes),
        words_of_a_sum(point.loss, total),
        _words(streamed),
    )
    denominator = 1.0 if point.loss.reduction == "sum" else total
    return replace(streamed, denominator=denominator, total=total, notes=tuple(filter(None, notes)))


def _chunk_size(point: Point, examples: tuple[Structure, Structure]) -> int:
    """Examples whose factor columns, and whose own tensors, fit into a chunk."""
    leaves = [leaf for part in examples for _, leaf in leaves_by_name(part, "")]
    each = sum(leaf[0].numel() * max(leaf.element_size(), point.weights.element_size()) for leaf in leaves)
    return max(1, min(most_at_once(point.num_outputs, point.weights), CHUNK_BYTES // (4 * max(1, each))))


def _words(point: Point) -> str:
    count, size = point.num_examples, point.chunk_size
    if count <= size:
        return f"The data are streamed: two passes are equal, and the {count} examples fit into one chunk."
    if point.keeps_graphs:
        return (
            f"The data are streamed: two passes are equal, and the graphs of the {count} examples, {size} at a time, "
            "are kept between the products of a matrix."
        )
    return (
        f"The data are streamed: every product of a matrix reads all {count} examples again, {size} at a time, and "
        "compares them with the first pass."
    )


class _Targets:
    """The conversion of targets that the loss asks for, found on the first examples and compared on all."""

    def __init__(self, point: Point, examples: Structure, *, own_loss: bool) -> None:
        self.point = point
        with torch.no_grad():
            self.outputs = point.function.predict(point.weights, point.inputs)
        targets = torch.zeros(len(point.inputs)) if own_loss else tree_of(examples)
        self.head = targets.to(point.device)
        ndims = {leaf.ndim for _, leaf in leaves_by_name(self.head, "")}
        self._moves = point.function.reader.classes_last and ndims == {self.outputs.ndim}
        self._dtypes = [leaf.dtype for _, leaf in leaves_by_name(point.targets, "")]

    def converted(self, targets: StreamedTensors) -> StreamedTensors:
        """Targets as the loss needs them."""
        return StreamedTensors(lambda rows: self._convert(targets[rows]), len(targets))

    def _moved(self, targets: Tensors) -> Tensors:
        targets = targets.to(self.point.device)
        return targets.movedim(-1, 1) if self._moves else targets

    def _convert(self, targets: Tensors) -> Tensors:
        dtypes = iter(self._dtypes)
        return tree_of(mapped(lambda leaf: leaf.to(next(dtypes)), structure_of(self._moved(targets))))

    def total(self, streamed: Point, examples: StreamedTensors) -> float:
        """Check outputs and targets of all examples in a second pass, and sum their denominators."""
        loss, total = self.point.loss, 0.0
        for rows in streamed.chunks():
            with torch.no_grad():
                outputs = streamed.function.predict(streamed.weights, streamed.inputs[rows])
            if not torch.isfinite(outputs).all():
                bad = (~torch.isfinite(outputs.reshape(len(outputs), -1))).any(1).nonzero()[0]
                raise NonFiniteError(
                    f"the model's output is NaN or infinite, first for example {rows.start + int(bad)}."
                )
            targets = streamed.targets[rows]
            try:
                # Together with the first examples: a loss may refuse targets that are all ignored.
                prepared = loss.prepare(
                    torch.cat([self.outputs, outputs]), _joined(self._moved(self.head), self._moved(examples[rows]))
                )
            except InputError as error:
                raise InputError(f"in examples {rows.start} to {rows.stop - 1} of the stream: {error}") from error
            kept = leaves_by_name(prepared[len(self.outputs) :], "")
            if not all(torch.equal(a, b) for (_, a), (_, b) in zip(kept, leaves_by_name(targets, ""), strict=True)):
                raise InputError(
                    f"the loss {loss.name!r} computes targets from the outputs or from all examples, so they cannot be "
                    "streamed. Return the targets that the loss needs from the dataset."
                )
            total += float(loss.denominators(outputs, targets).sum())
        if not total > 0:
            raise InputError("the denominator of the mean loss is zero: every target has weight zero or is ignored.")
        return total


def _joined(first: Tensors, second: Tensors) -> Tensors:
    if isinstance(first, Tensor):
        return torch.cat([first, second])
    others = iter([leaf for _, leaf in leaves_by_name(second, "")])
    return tree_of(mapped(lambda leaf: torch.cat([leaf, next(others)]), structure_of(first)))
