"""Gains of normalizations moved into the matrices beside them: other weights, the same function."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from curvature.errors import ConfigurationError, InputError
from curvature.matrices.affine import Affine, affine_of, readers_of_norms, writers_of_batch_norms
from curvature.models import Problem
from curvature.precision import full_precision

__all__ = ["fold_norms"]

_SAME = 1e3  # units of rounding within which two outputs are one function


@full_precision()
def fold_norms(problem: Problem, *, gain: float = 1.0) -> Problem:
    r"""Move the gain and the shift of every normalization into the linear layers beside it.

    With gain $\gamma$ and shift $\beta$, which become $c$ and 0: those of LayerNorm and RMSNorm go into the layers that
    read it, $W \to W \,\mathrm{diag}(\gamma) / c$ and $b \to b + W \beta$. Those of batch normalization in eval mode,
    with mean $\mu$ and deviation $\sigma$ frozen, go into the linear layer or convolution before it,
    $W \to \mathrm{diag}(\gamma) W / c$ and $b \to \mu + (\gamma (b - \mu) + \sigma \beta) / c$. The function stays the
    same. This gauge changes every curvature matrix, the Hessian's largest eigenvalue by any factor.

    Parameters
    ----------
    problem
        Model, loss and data at a point.
    gain
        $c$, not zero; 1 leaves the normalization without a gain, as networks are deployed.

    Returns
    -------
    Problem
        The problem at the folded weights; sentences in ``notes`` say which normalizations were folded. Where the layer
        that would take the shift has no trained bias, the shift stays with the normalization.

    Raises
    ------
    ConfigurationError
        If the gain is zero or not finite.
    InputError
        If no normalization can be folded: the model has none with a trained gain, or something else than linear layers
        reads its output too, or, for batch normalization, reads the output of the layer before it.

    References
    ----------
    .. [1] Dinh, Pascanu, Bengio, Bengio (2017). Sharp minima can generalize for deep nets. arXiv:1703.04933.

    Examples
    --------
    >>> import torch, curvature as cv
    >>> norm, linear = torch.nn.LayerNorm(3), torch.nn.Linear(3, 2)
    >>> torch.nn.init.constant_(norm.weight, 4.0).tolist()
    [4.0, 4.0, 4.0]
    >>> data = torch.randn(8, 3), torch.randn(8, 2)
    >>> problem = cv.Problem.from_module(torch.nn.Sequential(norm, linear), loss="mse", data=data)
    >>> folded = cv.fold_norms(problem)
    >>> folded.unflatten(folded.weights)["0.weight"].tolist(), abs(folded.value() - problem.value()) < 1e-12
    ([1.0, 1.0, 1.0], True)
    """
    if not (math.isfinite(gain) and gain != 0):
        raise ConfigurationError(f"gain must be a finite number that is not zero, got {gain}.")
    weights, outputs = problem.weights, problem.outputs()
    folded: dict[str, list[str]] = {}  # paths by the layers that took the gain
    for path, place, move in _moves(problem, gain):
        moved = move(weights) if f"{path}.weight" in problem.layout.slices else None
        if moved is not None and _same(problem.outputs(moved), outputs):
            weights = moved
            folded.setdefault(place, []).append(path)
    if not folded:
        raise InputError(
            "no normalization can be folded: the model has no LayerNorm or RMSNorm with a trained gain whose output "
            "only linear layers read, and no batch normalization with a trained gain behind a linear layer or a "
            "convolution whose output it alone reads."
        )
    notes = [
        f"The gains of {', '.join(paths)} are folded into the layers {place}: the same function."
        for place, paths in folded.items()
    ]
    return replace(problem.at(weights), notes=(*problem.notes, *notes))


def _moves(problem: Problem, gain: float) -> Iterator[tuple[str, str, Callable[[Tensor], Tensor | None]]]:
    """Normalizations by path, with the place of the layers that take the gain, and the map of the weights."""
    for path, readers in readers_of_norms(problem).items():
        yield path, "that read them", partial(_into_readers, problem, path=path, readers=readers, gain=gain)
    for path, layer in writers_of_batch_norms(problem).items():
        yield path, "before them", partial(_into_layer, problem, path=path, layer=layer, gain=gain)


def _into_readers(
    problem: Problem, weights: Tensor, *, path: str, readers: Sequence[Affine], gain: float
) -> Tensor | None:
    """The weights with one normalization folded into the layers that read it; None where its gain does not fit."""
    slices = problem.layout.slices
    scale = weights[slices[f"{path}.weight"]]
    if any(reader.weight.shape[1] != len(scale) for reader in readers):
        return None
    moved = weights.clone()
    has_shift = f"{path}.bias" in slices and all(reader.bias is not None for reader in readers)
    for reader in readers:
        if has_shift and reader.bias is not None:
            moved[reader.bias] += weights[reader.weight] @ weights[slices[f"{path}.bias"]]
        moved[reader.weight] = weights[reader.weight] * (scale / gain)
    moved[slices[f"{path}.weight"]] = gain
    if has_shift:
        moved[slices[f"{path}.bias"]] = 0
    elif f"{path}.bias" in slices:  # the shift that stays is divided by the gain of the matrices
        moved[slices[f"{path}.bias"]] *= torch.where(scale != 0, gain / scale, torch.nan)
    return moved


def _into_layer(problem: Problem, weights: Tensor, *, path: str, layer: str, gain: float) -> Tensor | None:
    """The weights with one batch normalization folded into the layer before it; None where its gain does not fit."""
    norm: Any = problem.model.get_submodule(path)
    slices, writer = problem.layout.slices, affine_of(problem, layer)
    scale = weights[slices[f"{path}.weight"]]
    if writer is None or len(writer.weight) != len(scale) or norm.running_var is None:
        return None
    deviation, mean = (norm.running_var.to(weights) + norm.eps).sqrt(), norm.running_mean.to(weights)
    bias = _vector(problem, weights, f"{layer}.bias", scale)
    shift = _vector(problem, weights, f"{path}.bias", scale)
    offset = scale * (bias - mean) + deviation * shift  # times the deviation: what is returned for inputs of zero
    moved = weights.clone()
    moved[writer.weight] = weights[writer.weight] * (scale / gain)[:, None]
    moved[slices[f"{path}.weight"]] = gain
    if writer.bias is not None:
        left = shift
        if f"{path}.bias" in slices:
            left = moved[slices[f"{path}.bias"]] = torch.zeros_like(shift)
        moved[writer.bias] = mean + (offset - deviation * left) / gain
    elif f"{path}.bias" in slices:
        moved[slices[f"{path}.bias"]] = (offset - gain * (bias - mean)) / deviation
    return moved


def _vector(problem: Problem, weights: Tensor, name: str, like: Tensor) -> Tensor:
    """A vector of the model by name, trained or not; zero where the model has none."""
    if name in problem.layout.slices:
        return weights[problem.layout.slices[name]]
    path, _, leaf = name.rpartition(".")
    constant = getattr(problem.model.get_submodule(path), leaf)
    return torch.zeros_like(like) if constant is None else constant.detach().to(like)


def _same(first: Tensor, second: Tensor) -> bool:
    error = torch.linalg.vector_norm(first - second)
    return bool(error <= _SAME * torch.finfo(second.dtype).eps * torch.linalg.vector_norm(second))
