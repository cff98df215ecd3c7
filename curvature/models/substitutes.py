"""Functions of PyTorch without a right second derivative, written with operations that have one.

PyTorch differentiates these only once, or returns a gradient that is not the derivative of the function: an option of
an embedding masks it (``padding_idx``), scales it (``scale_grad_by_freq``), makes it sparse, or writes into the weight
first (``max_norm``). While :class:`Substitutes` is active, a call of one of them runs equivalent operations.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["EmbeddingCall", "Padding", "Substitutes", "recorded_embeddings"]

Arguments = Mapping[str, Any]  # of one call, by name, with defaults

# Options of embeddings by which PyTorch's gradient is not the derivative, or by which a call writes into the weight.
_OPTIONS: dict[str, Any] = {"padding_idx": None, "max_norm": None, "scale_grad_by_freq": False, "sparse": False}


class EmbeddingCall(NamedTuple):
    """A call of an embedding with options that change its gradient.

    Attributes
    ----------
    weight
        The weight as it was passed.
    options
        The options that are set, with their values.
    bag
        Whether it was a call of ``embedding_bag``.
    """

    weight: Tensor
    options: Mapping[str, Any]
    bag: bool


class Padding(NamedTuple):
    """Rows of an embedding that its ``padding_idx`` masks.

    Attributes
    ----------
    rows
        Their indices.
    values
        The weight at the point, from which the masked rows are taken as constants.
    """

    rows: tuple[int, ...]
    values: Tensor


class Substitutes(TorchFunctionMode):
    """A context in which functions without a second derivative are replaced by equivalent ones that have it.

    Parameters
    ----------
    padded
        For weights of embeddings with ``padding_idx``, by the identity of the tensor: values whose masked row is used
        as a constant. For other weights it is the present value of the row.
    """

    def __init__(self, padded: Mapping[int, Tensor] | None = None):
        super().__init__()
        self.padded = padded or {}

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple = (), kwargs: Arguments | None = None
    ) -> Any:
        del types
        if func is functional.embedding:
            return _embedding(_bound(func, args, kwargs), self.padded)
        if func in _SUBSTITUTES:
            return _SUBSTITUTES[func](_bound(func, args, kwargs))
        return func(*args, **(kwargs or {}))


class _Recorder(TorchFunctionMode):
    """A context that records the calls of embeddings with options that change the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[EmbeddingCall] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple = (), kwargs: Arguments | None = None
    ) -> Any:
        del types
        if func in (functional.embedding, functional.embedding_bag):
            given = _bound(func, args, kwargs)
            options = {name: given[name] for name, default in _OPTIONS.items() if given[name] != default}
            if options:
                self.calls.append(EmbeddingCall(given["weight"], options, func is functional.embedding_bag))
        return func(*args, **(kwargs or {}))


def recorded_embeddings(run: Callable[[], object]) -> list[EmbeddingCall]:
    """Run something, and list the calls of embeddings with options that change the gradient.

    Parameters
    ----------
    run
        Calls the embeddings.

    Returns
    -------
    list of EmbeddingCall
        In their order.
    """
    with _Recorder() as recorder:
        run()
    return recorder.calls


def _bound(func: Callable[..., Any], args: tuple, kwargs: Arguments | None) -> Arguments:
    bound = _signature(func).bind(*args, **(kwargs or {}))
    bound.apply_defaults()
    return bound.arguments


def _signature(func: Callable[..., Any]) -> inspect.Signature:
    parameter, kind = inspect.Parameter, inspect.Parameter.POSITIONAL_OR_KEYWORD
    # Two are built in, without a signature that Python can read.
    if func in (torch.pdist, functional.pdist):
        return inspect.Signature([parameter("input", kind), parameter("p", kind, default=2.0)])
    if func is torch._weight_norm:
        return inspect.Signature([parameter("v", kind), parameter("g", kind), parameter("dim", kind, default=0)])
    return inspect.signature(func)


def _embedding(call: Arguments, padded: Mapping[int, Tensor]) -> Tensor:
    """Rows of a weight; the row of ``padding_idx`` is a constant. The other options are left out."""
    tokens, weight = call["input"], call["weight"]
    rows = functional.embedding(tokens, weight)
    if call["padding_idx"] is None:
        return rows
    masked = call["padding_idx"] % len(weight)
    constant = padded.get(id(weight), weight)[masked].detach()
    return torch.where((tokens == masked)[..., None], constant, rows)


def _embedding_bag(call: Arguments) -> Tensor:
    """Sum, mean or maximum of the rows in each bag, by rows and an indexed reduction."""
    weight, offsets = call["weight"], call["offsets"]
    tokens = call["input"].reshape(-1)
    if offsets is None:
        count, each = call["input"].shape
        bags = torch.arange(count, device=tokens.device).repeat_interleave(each)
    else:
        starts = offsets[:-1] if call["include_last_offset"] else offsets
        count = len(starts)
        bags = torch.searchsorted(starts.contiguous(), torch.arange(len(tokens), device=tokens.device), right=True) - 1
    rows = functional.embedding(tokens, weight)
    if call["per_sample_weights"] is not None:
        rows = rows * call["per_sample_weights"].reshape(-1, 1)
    if call["padding_idx"] is not None:
        kept = tokens != call["padding_idx"] % len(weight)
        rows, bags = rows[kept], bags[kept]
    if call["mode"] == "max":
        index = bags[:, None].expand_as(rows)
        return rows.new_zeros(count, rows.shape[1]).scatter_reduce(0, index, rows, "amax", include_self=False)
    total = rows.new_zeros(count, rows.shape[1]).index_add(0, bags, rows)
    if call["mode"] == "sum":
        return total
    sizes = rows.new_zeros(count).index_add(0, bags, torch.ones_like(bags, dtype=rows.dtype))
    return total / sizes.clamp(min=1)[:, None]


def _hardsigmoid(call: Arguments) -> Tensor:
    # PyTorch's gradient multiplies by 1/6 in single precision (torch 2.13), 3e-8 off. It is kept: the derivatives here
    # belong to the gradient that training sees.
    inside = functional.relu6(call["input"] + 3)
    slope = inside * float(torch.tensor(1 / 6, dtype=torch.float32))
    return slope + (inside / 6 - slope).detach()


def _weight_norm(call: Arguments) -> Tensor:
    """``g v / ||v||``, whose double backward is wrong in torch 2.13; ``dim=-1`` is the norm of all of ``v``."""
    v, dim = call["v"], call["dim"]
    others = [axis for axis in range(v.ndim) if axis != dim]
    length = torch.linalg.vector_norm(v) if dim == -1 else torch.linalg.vector_norm(v, dim=others, keepdim=True)
    return v * (call["g"] / length)


def _cdist(call: Arguments) -> Tensor:
    return _distances(call["x1"][..., :, None, :] - call["x2"][..., None, :, :], call["p"])


def _pdist(call: Arguments) -> Tensor:
    points = call["input"]
    first, second = torch.triu_indices(len(points), len(points), 1, device=points.device)
    return _distances(points[first] - points[second], call["p"])


def _distances(differences: Tensor, p: float) -> Tensor:
    """Norms along the last axis; where a difference is zero, the norm and all of its derivatives are zero."""
    zero = (differences == 0).all(dim=-1, keepdim=True)
    norms = torch.linalg.vector_norm(torch.where(zero, 1.0, differences), p, dim=-1)
    return torch.where(zero[..., 0], 0.0, norms)


def _multi_margin_loss(call: Arguments) -> Tensor:
    scores, labels = _with_examples(call)
    labels = labels.reshape(-1, 1).long()
    excess = functional.relu(call["margin"] - scores.gather(1, labels) + scores) ** call["p"]
    if call["weight"] is not None:
        excess = excess * call["weight"][labels]
    return _reduced(excess.scatter(1, labels, 0.0).sum(dim=1) / scores.shape[1], call)


def _multilabel_margin_loss(call: Arguments) -> Tensor:
    scores, labels = _with_examples(call)
    listed = (labels >= 0).long().cumprod(dim=1).bool()  # a negative number ends the list of labels
    labels = labels.clamp(min=0)
    positive = torch.zeros_like(scores).scatter_add(1, labels, listed.to(scores)) > 0
    excess = functional.relu(1 - scores.gather(1, labels)[:, :, None] + scores[:, None])
    counted = listed[:, :, None] & ~positive[:, None]
    return _reduced(torch.where(counted, excess, 0.0).sum(dim=(1, 2)) / scores.shape[1], call)


def _with_examples(call: Arguments) -> tuple[Tensor, Tensor]:
    """Scores ``(N, C)`` and their targets with an axis of examples."""
    scores, targets = call["input"], call["target"]
    return (scores[None], targets[None]) if scores.ndim == 1 else (scores, targets)


def _reduced(terms: Tensor, call: Arguments) -> Tensor:
    """Reduce the losses of the examples as the call asks, by ``reduction`` or by its two older options."""
    older = call["reduce"] is not None or call["size_average"] is not None
    if call["reduce"] is False or (not older and call["reduction"] == "none"):
        return terms[0] if call["input"].ndim == 1 else terms
    mean = call["size_average"] is not False if older else call["reduction"] == "mean"
    return terms.mean() if mean else terms.sum()


_SUBSTITUTES: dict[Callable[..., Any], Callable[[Arguments], Tensor]] = {
    functional.embedding_bag: _embedding_bag,
    functional.hardsigmoid: _hardsigmoid,
    torch._weight_norm: _weight_norm,
    torch.cdist: _cdist,
    torch.pdist: _pdist,
    functional.pdist: _pdist,
    functional.multi_margin_loss: _multi_margin_loss,
    functional.multilabel_margin_loss: _multilabel_margin_loss,
}
