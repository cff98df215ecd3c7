"""Affine maps of a model among the flat weights, and the normalizations that they read from or write into."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvature.charts.per_weight import as_matrix
from curvature.models import Problem

__all__ = ["Affine", "affine_of", "affine_parameters", "readers_of_norms", "writers_of_batch_norms"]

_NORMS = ("LayerNorm", "RMSNorm")  # ends of the names of classes: libraries have their own
BatchNorm: Any = nn.modules.batchnorm._BatchNorm
Convolution: Any = nn.modules.conv._ConvNd


@dataclass(frozen=True, eq=False)
class Affine:
    """Positions of an affine map among the flat weights.

    Attributes
    ----------
    weight
        ``(rows, columns)``, a row for each output.
    bias
        ``(rows,)``; None where there is none that is trained.
    """

    weight: Tensor
    bias: Tensor | None

    def rows(self, start: int, stop: int) -> Affine:
        """The map to some of the outputs."""
        return Affine(self.weight[start:stop], None if self.bias is None else self.bias[start:stop])

    def augmented(self) -> Tensor:
        """``(rows, columns + 1)`` with the bias, ``(rows, columns)`` without."""
        return self.weight if self.bias is None else torch.cat([self.weight, self.bias[:, None]], dim=1)


def affine_of(problem: Problem, path: str) -> Affine | None:
    """Find the affine map that a layer is among the flat weights.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.
    path
        Of the layer: linear, a convolution, the ``Conv1D`` of GPT-2, whose weight is transposed, or the queries, keys
        and values of ``nn.MultiheadAttention``.

    Returns
    -------
    Affine or None
        None if it is another layer, if its matrix is not trained, or if it is tied to another.
    """
    layer = problem.model.get_submodule(path)
    prefix = f"{path}." if path else ""
    if isinstance(layer, nn.MultiheadAttention):
        return affine_parameters(problem, f"{prefix}in_proj_weight", f"{prefix}in_proj_bias")
    if not isinstance(layer, nn.Linear | Convolution) and not _is_transposed(layer):
        return None
    affine = affine_parameters(problem, f"{prefix}weight", f"{prefix}bias")
    return Affine(affine.weight.T, affine.bias) if affine is not None and _is_transposed(layer) else affine


def affine_parameters(problem: Problem, weight: str, bias: str) -> Affine | None:
    """Find an affine map by the names of its parameters, as :func:`affine_of` does by its layer.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.
    weight, bias
        Names of a matrix, a row for each output, and of a vector.

    Returns
    -------
    Affine or None
        None if there is no such matrix, if it is not trained, or if it is tied to another.
    """
    entry = next((entry for entry in problem.layout.entries if entry.name == weight), None)
    if entry is None or len(entry.shape) < 2 or weight in problem.aliases.values():
        return None
    slices, index = problem.layout.slices, torch.arange(problem.dim, device=problem.device)
    return Affine(as_matrix(entry).rows(index[slices[weight]]), index[slices[bias]] if bias in slices else None)


def _is_transposed(layer: nn.Module) -> bool:
    """Whether a layer is the ``Conv1D`` of transformers, which a model that has one has imported."""
    kind = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return kind is not None and isinstance(layer, kind)


def _is_norm(module: nn.Module) -> bool:
    """Whether a module seems to be a LayerNorm or an RMSNorm, by its class or the name of it."""
    return isinstance(module, nn.LayerNorm | nn.RMSNorm) or type(module).__name__.endswith(_NORMS)


def readers_of_norms(problem: Problem) -> dict[str, list[Affine]]:
    """Find the affine maps whose input is the output of a LayerNorm or an RMSNorm.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.

    Returns
    -------
    dict
        The maps by the path of the normalization. What else reads the output is not known.
    """
    modules = dict(problem.model.named_modules())
    norms = [path for path, module in modules.items() if _is_norm(module)]
    readers: dict[str, list[Affine]] = {}
    for norm, path in _passes(problem, norms, [path for path, m in modules.items() if not isinstance(m, Convolution)]):
        affine = affine_of(problem, path)
        if affine is not None:
            readers.setdefault(norm, []).append(affine)
    return readers


def writers_of_batch_norms(problem: Problem) -> dict[str, str]:
    """Find the linear layers and convolutions whose output a batch normalization reads.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.

    Returns
    -------
    dict
        Path of the layer by that of the normalization, if there is one. What else reads its output is not known.
    """
    modules = dict(problem.model.named_modules())
    layers = [path for path, module in modules.items() if isinstance(module, nn.Linear | Convolution)]
    pairs = _passes(problem, layers, [path for path, module in modules.items() if isinstance(module, BatchNorm)])
    writers: dict[str, set[str]] = {}
    for layer, norm in pairs:
        writers.setdefault(norm, set()).add(layer)
    return {norm: written.pop() for norm, written in writers.items() if len(written) == 1}


def _passes(problem: Problem, sources: Collection[str], receivers: Collection[str]) -> list[tuple[str, str]]:
    """Pairs of modules of which the second takes what the first returns, as the same tensor, for one example."""
    if not (sources and receivers):
        return []
    outputs: dict[int, tuple[str, Tensor]] = {}  # with the tensor, so that no address is used twice
    pairs: list[tuple[str, str]] = []

    def keep(path: str, output: Tensor) -> None:
        outputs[id(output)] = path, output

    def take(path: str, arguments: tuple) -> None:
        source = next((outputs[id(argument)][0] for argument in arguments if id(argument) in outputs), None)
        if source is not None:
            pairs.append((source, path))

    handles = []
    for path, module in problem.model.named_modules():
        if path in sources:
            handles.append(module.register_forward_hook(lambda _m, _i, output, path=path: keep(path, output)))
        if path in receivers:
            handles.append(
                module.register_forward_pre_hook(
                    lambda _m, args, named, path=path: take(path, (*args, *named.values())), with_kwargs=True
                )
            )
    try:
        with torch.no_grad():
            problem.predict(problem.weights, problem.inputs[:1])
    finally:
        for handle in handles:
            handle.remove()
    return pairs
