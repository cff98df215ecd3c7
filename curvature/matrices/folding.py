"""Gains of normalizations moved into the matrices that read them: other weights, the same function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from curvature.errors import ConfigurationError, InputError
from curvature.matrices.symmetries import Affine, readers_of_norms
from curvature.models import Problem
from curvature.precision import full_precision

__all__ = ["fold_norms"]

_SAME = 1e3  # units of rounding within which two outputs are one function


@full_precision()
def fold_norms(problem: Problem, *, gain: float = 1.0) -> Problem:
    r"""Move the gain and the shift of every LayerNorm and RMSNorm into the linear layers that read it.

    $(\gamma, \beta, W, b) \to (c, 0, W \,\mathrm{diag}(\gamma) / c, b + W \beta)$: the same function, where $c$ is
    ``gain``. This gauge changes every curvature matrix, the Hessian's largest eigenvalue by any factor.

    Parameters
    ----------
    problem
        Model, loss and data at a point.
    gain
        $c$, not zero; 1 is the form in which a network is deployed.

    Returns
    -------
    Problem
        The problem at the folded weights; a sentence in ``notes`` says which normalizations were folded. The shift
        stays where a layer that reads it has no trained bias.

    Raises
    ------
    ConfigurationError
        If the gain is zero or not finite.
    InputError
        If no normalization can be folded: the model has none with a trained gain, or something else than linear layers
        reads its output too.

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
    weights, folded, outputs = problem.weights, [], problem.outputs()
    for path, readers in readers_of_norms(problem).items():
        moved = _folded(problem, weights, path, readers, gain)
        if moved is not None and _same(problem.outputs(moved), outputs):
            weights = moved
            folded.append(path)
    if not folded:
        raise InputError(
            "no normalization can be folded: the model has no LayerNorm or RMSNorm with a trained gain whose output "
            "only linear layers read."
        )
    note = f"The gains of {', '.join(folded)} are folded into the layers that read them: the same function."
    return replace(problem.at(weights), notes=(*problem.notes, note))


def _folded(problem: Problem, weights: Tensor, path: str, readers: Sequence[Affine], gain: float) -> Tensor | None:
    """The weights with one normalization folded; None where its gain is not trained or does not fit."""
    slices = problem.layout.slices
    if f"{path}.weight" not in slices:
        return None
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


def _same(first: Tensor, second: Tensor) -> bool:
    error = torch.linalg.vector_norm(first - second)
    return bool(error <= _SAME * torch.finfo(second.dtype).eps * torch.linalg.vector_norm(second))
