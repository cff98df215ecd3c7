r"""Symmetries of normalization and attention: directions along which a network's function does not change.

* A scale of a normalized feature and the columns that read it: $(\gamma_j, \beta_j, W_{\cdot j}) \to (c\gamma_j,
  c\beta_j, W_{\cdot j} / c)$; a shift of $\beta_j$ and of the biases that undo it.
* Queries and keys of a head: $(W_Q, W_K) \to (A W_Q, A^{-T} W_K)$, $GL(d)$ for each head; likewise its values and the
  columns of the output that read them.
* A bias of the keys, which adds one number to all scores of a query; a shift of the values' bias, which the output's
  bias undoes.

Modules are recognized by the names that their parts have in common implementations. So a set of directions is kept only
if the outputs of the network stand still along it, and every direction is verified again by a product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from curvature.linalg.rank import MAX_NULL_DIRECTIONS
from curvature.models import Problem

__all__ = ["MAX_ENTRIES", "Affine", "readers_of_norms", "symmetries"]

MAX_ENTRIES = 2**26  # numbers in a set of directions: half a gigabyte, beyond which a rank is not worth it

_HEADS = {"num_heads", "n_head", "n_heads", "heads", "num_attention_heads", "nhead"}
_SEPARATE = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v"), ("wq", "wk", "wv"))
_FUSED = ("qkv", "in_proj", "c_attn", "Wqkv", "qkv_proj")
_OUTPUTS = ("out_proj", "o_proj", "c_proj", "wo", "proj", "out", "o")
_NORMS = (nn.LayerNorm, nn.RMSNorm)
_STEP, _STILL = 1e-5, 1e-7  # of a central difference; change of the outputs, relative, that counts as none


@dataclass(frozen=True, eq=False)
class Affine:
    """Positions of an affine map among the flat weights.

    Attributes
    ----------
    weight
        ``(rows, columns)``.
    bias
        ``(rows,)``; None where there is none that is trained.
    """

    weight: Tensor
    bias: Tensor | None

    def rows(self, start: int, stop: int) -> Affine:
        return Affine(self.weight[start:stop], None if self.bias is None else self.bias[start:stop])

    def augmented(self) -> Tensor:
        """``(rows, columns + 1)`` with the bias, ``(rows, columns)`` without."""
        return self.weight if self.bias is None else torch.cat([self.weight, self.bias[:, None]], dim=1)


@dataclass(frozen=True, eq=False)
class _Attention:
    """Queries, keys, values and output of one attention layer; the output is None where it was not recognized."""

    queries: Affine
    keys: Affine
    values: Affine
    output: Affine | None
    heads: int


def symmetries(problem: Problem, *, second_order: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield sets of directions of the symmetries of normalization and attention.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.
    second_order
        Whether for the Hessian, which vanishes only along directions that are the same at every point.

    Yields
    ------
    tuple of str and Tensor
        The reason and directions ``(P, k)``.
    """
    if not [m for m in problem.model.modules() if isinstance(m, _NORMS) or not _HEADS.isdisjoint(vars(m))]:
        return
    for reason, vectors in _sets(problem, second_order=second_order):
        if vectors.shape[1] and _stand_still(problem, vectors):
            yield reason, vectors


def _sets(problem: Problem, *, second_order: bool) -> Iterator[tuple[str, Tensor]]:
    """Sets of directions with their reasons, before they are verified; one at a time, since each may be large."""
    attentions = list(_attentions(problem))
    for attention in attentions:
        yield "of biases of keys", _key_biases(problem, attention)
    if second_order:
        return
    for attention in attentions:
        yield "of the query-key gauge", _query_key(problem, attention)
        yield "of the value-output gauge", _value_output(problem, attention)
    for vectors in _normalizations(problem):
        yield "of scales and shifts of normalization", vectors


def _stand_still(problem: Problem, vectors: Tensor) -> bool:
    """Whether the outputs for the first examples do not change along a random combination of the directions."""
    generator = torch.Generator().manual_seed(0)
    mixed = vectors @ torch.randn(vectors.shape[1], generator=generator, dtype=torch.float64).to(vectors)
    step = _STEP * torch.linalg.vector_norm(problem.weights) / torch.linalg.vector_norm(mixed) * mixed
    first = next(iter(problem.chunks()))
    inputs = problem.inputs[first]
    with torch.no_grad():
        ahead, behind = (problem.predict(problem.weights + sign * step, inputs) for sign in (1, -1))
    change = torch.linalg.vector_norm(ahead - behind) / (2 * _STEP)
    return bool(change <= _STILL * torch.linalg.vector_norm(ahead))


def _affine(problem: Problem, weight: str, bias: str) -> Affine | None:
    """Positions of a matrix and its bias by name; None if the matrix is not trained, or tied to another."""
    slices, entries = problem.layout.slices, {entry.name: entry for entry in problem.layout.entries}
    if weight not in entries or len(entries[weight].shape) != 2 or weight in problem.aliases.values():
        return None
    index = torch.arange(problem.dim, device=problem.device)
    return Affine(index[slices[weight]].view(entries[weight].shape), index[slices[bias]] if bias in slices else None)


def _attentions(problem: Problem) -> Iterator[_Attention]:
    for path, module in problem.model.named_modules():
        prefix = f"{path}." if path else ""
        heads = next((value for name, value in vars(module).items() if name in _HEADS and isinstance(value, int)), 0)
        parts = _queries_keys_values(problem, module, prefix) if heads else None
        if parts is None or len(parts[0].weight) % heads or len({len(part.weight) for part in parts}) > 1:
            continue
        outputs = (_linear(problem, module, prefix, name) for name in _OUTPUTS)
        queries, keys, values = parts
        yield _Attention(queries, keys, values, next((output for output in outputs if output is not None), None), heads)


def _queries_keys_values(problem: Problem, module: nn.Module, prefix: str) -> list[Affine] | None:
    """The three maps of an attention layer, from separate matrices or from one of three times as many rows."""
    whole = _affine(problem, f"{prefix}in_proj_weight", f"{prefix}in_proj_bias")  # nn.MultiheadAttention
    for name in _FUSED:
        whole = whole or _linear(problem, module, prefix, name)
    if whole is not None and len(whole.weight) % 3 == 0:
        width = len(whole.weight) // 3
        return [whole.rows(k * width, (k + 1) * width) for k in range(3)]
    for names in _SEPARATE:
        parts = [_linear(problem, module, prefix, name) for name in names]
        if all(part is not None for part in parts):
            return [part for part in parts if part is not None]
    return None


def _linear(problem: Problem, module: nn.Module, prefix: str, name: str) -> Affine | None:
    if not isinstance(getattr(module, name, None), nn.Linear):
        return None
    return _affine(problem, f"{prefix}{name}.weight", f"{prefix}{name}.bias")


def _has_room(problem: Problem, count: int) -> bool:
    """Whether so many directions are worth their memory."""
    return count <= min(MAX_NULL_DIRECTIONS, MAX_ENTRIES // problem.dim)


def _pairs(problem: Problem, attention: _Attention) -> list[tuple[int, int]]:
    """Pairs of rows of one head; none if they are too many."""
    size = len(attention.queries.weight) // attention.heads
    if not _has_room(problem, attention.heads * size**2):
        return []
    starts = range(0, attention.heads * size, size)
    return [(start + a, start + b) for start in starts for a in range(size) for b in range(size)]


def _query_key(problem: Problem, attention: _Attention) -> Tensor:
    """Row ``a`` of the queries gains row ``b``; row ``b`` of the keys loses row ``a``."""
    pairs, weights = _pairs(problem, attention), problem.weights
    queries, keys = attention.queries.augmented(), attention.keys.augmented()
    vectors = weights.new_zeros(problem.dim, len(pairs))
    for k, (a, b) in enumerate(pairs):
        vectors[queries[a], k] = weights[queries[b]]
        vectors[keys[b], k] -= weights[keys[a]]
    return vectors


def _value_output(problem: Problem, attention: _Attention) -> Tensor:
    """Row ``a`` of the values gains row ``b``; column ``b`` of the output loses column ``a``; shifts of the biases."""
    weights, values, output = problem.weights, attention.values.augmented(), attention.output
    if output is None or output.weight.shape[1] != len(values):
        return weights.new_zeros(problem.dim, 0)
    pairs = _pairs(problem, attention)
    vectors = weights.new_zeros(problem.dim, len(pairs))
    for k, (a, b) in enumerate(pairs):
        vectors[values[a], k] = weights[values[b]]
        vectors[output.weight[:, b], k] -= weights[output.weight[:, a]]
    if attention.values.bias is None or output.bias is None:
        return vectors
    return torch.cat([vectors, _shifts(problem, attention.values.bias, [output])], dim=1)


def _key_biases(problem: Problem, attention: _Attention) -> Tensor:
    """Unit vectors of the biases of the keys."""
    bias = attention.keys.bias
    return problem.weights.new_zeros(problem.dim, 0) if bias is None else _shifts(problem, bias, [])


def _shifts(problem: Problem, shifted: Tensor, readers: list[Affine]) -> Tensor:
    """Each of some numbers that are added to features, with the biases of those that read the features undoing it."""
    vectors = problem.weights.new_zeros(problem.dim, len(shifted) if _has_room(problem, len(shifted)) else 0)
    if not vectors.shape[1]:
        return vectors
    vectors[shifted] = torch.eye(len(shifted)).to(vectors)
    for reader in readers:
        assert reader.bias is not None
        vectors[reader.bias] -= problem.weights[reader.weight]
    return vectors


def _normalizations(problem: Problem) -> Iterator[Tensor]:
    """Scales and shifts of the features of each normalization that affine maps read."""
    slices, weights = problem.layout.slices, problem.weights
    index = torch.arange(problem.dim, device=problem.device)
    for path, readers in readers_of_norms(problem).items():
        names = (f"{path}.{part}" for part in ("weight", "bias"))
        gain, shift = (index[slices[name]] if name in slices else None for name in names)
        if gain is None or any(reader.weight.shape[1] != len(gain) for reader in readers):
            continue
        if not _has_room(problem, len(gain)):
            continue
        vectors = weights.new_zeros(problem.dim, len(gain))
        for positions in (gain, shift):
            if positions is not None:
                vectors[positions] = torch.diag(weights[positions])
        for reader in readers:
            for k, column in enumerate(reader.weight.T):
                vectors[column, k] = -weights[column]
        yield vectors
        if shift is not None and all(reader.bias is not None for reader in readers):
            yield _shifts(problem, shift, readers)


def readers_of_norms(problem: Problem) -> dict[str, list[Affine]]:
    """Find the affine maps whose input is the output of a normalization.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.

    Returns
    -------
    dict
        The maps by the path of the normalization. What else reads the output is not known.
    """
    norms = {path: module for path, module in problem.model.named_modules() if isinstance(module, _NORMS)}
    if not norms:
        return {}
    outputs: dict[int, str] = {}
    kept: list[Tensor] = []  # so that no address is used twice
    readers: dict[str, list[Affine]] = {}

    def keep(path: str, output: Tensor) -> None:
        outputs[id(output)] = path
        kept.append(output)

    def read(affine: Affine | None, arguments: tuple) -> None:
        path = next((outputs[id(argument)] for argument in arguments if id(argument) in outputs), None)
        if path is not None and affine is not None:
            readers.setdefault(path, []).append(affine)

    handles = []
    for path, module in problem.model.named_modules():
        prefix = f"{path}." if path else ""
        if path in norms:
            handles.append(module.register_forward_hook(lambda _m, _i, output, path=path: keep(path, output)))
        elif isinstance(module, nn.Linear | nn.MultiheadAttention):
            name = "in_proj_" if isinstance(module, nn.MultiheadAttention) else ""
            affine = _affine(problem, f"{prefix}{name}weight", f"{prefix}{name}bias")
            handles.append(
                module.register_forward_pre_hook(
                    lambda _m, args, named, affine=affine: read(affine, (*args, *named.values())), with_kwargs=True
                )
            )
    try:
        with torch.no_grad():
            problem.predict(problem.weights, problem.inputs[:1])
    finally:
        for handle in handles:
            handle.remove()
    return readers
