r"""Symmetries of normalization and attention: directions along which a network's function does not change.

* A scale of a normalized feature and the columns that read it: $(\gamma_j, \beta_j, W_{\cdot j}) \to (c\gamma_j,
  c\beta_j, W_{\cdot j} / c)$; a shift of $\beta_j$ and of the biases that undo it.
* Queries and keys of a head: $(W_Q, W_K) \to (A W_Q, A^{-T} W_K)$, $GL(d)$ for each head of the keys, which several
  heads of the queries may share; with rotary embeddings only $A$ that commute with their rotations. Likewise the values
  of a head and the columns of the output that read them.
* A bias of the keys, which adds one number to all scores of a query; a shift of the values' bias, which the output's
  bias undoes.

Modules are recognized by the names that their parts have in common implementations. So a set of directions is kept only
if the outputs of the network, in double precision, do not change along it. Every direction is verified again by a
product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product

import torch
from torch import Tensor, nn

from curvature.linalg.rank import MAX_NULL_DIRECTIONS
from curvature.matrices.affine import Affine, affine_of, affine_parameters, readers_of_norms
from curvature.matrices.autograd import backward_columns, split_columns, tangent_graph
from curvature.models import Problem

__all__ = ["MAX_ENTRIES", "symmetries"]

MAX_ENTRIES = 2**26  # numbers in a set of directions: half a gigabyte, beyond which a rank is not worth it

_HEADS = ("num_heads", "n_head", "n_heads", "heads", "num_attention_heads", "nhead")
_MARKS = {"normalized_shape", "variance_epsilon", "eps", "config", *_HEADS}  # of a normalization or an attention
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads")
_SEPARATE = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v"), ("wq", "wk", "wv"))
_FUSED = ("qkv", "in_proj", "c_attn", "Wqkv", "qkv_proj")
_OUTPUTS = ("out_proj", "o_proj", "c_proj", "wo", "proj", "out", "o")
_STILL = 1e-10  # derivative of the outputs, relative, that counts as none
_STEP, _STILL_BY_DIFFERENCES = 1e-5, 1e-7  # the same by a central difference, whose step this is

_Build = Callable[[], Tensor]


@dataclass(frozen=True, eq=False)
class _Attention:
    """Queries, keys, values and output of one attention layer; the output is None where it was not recognized."""

    queries: Affine
    keys: Affine
    values: Affine
    output: Affine | None
    size: int  # rows of one head

    def heads(self) -> Iterator[tuple[int, list[int]]]:
        """First row of each head of keys and values, and those of the heads of queries that read it."""
        shared = len(self.queries.weight) // len(self.keys.weight)
        for head in range(len(self.keys.weight) // self.size):
            yield head * self.size, [(head * shared + k) * self.size for k in range(shared)]


def symmetries(problem: Problem, *, second_order: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield sets of directions of the symmetries of normalization and attention.

    Parameters
    ----------
    problem
        Model, loss and data, at a point; in double precision, where a direction that is wrong by little does not hide
        in the rounding.
    second_order
        Whether for the Hessian, which vanishes only along directions that are the same at every point.

    Yields
    ------
    tuple of str and Tensor
        The reason and directions ``(P, k)``.
    """
    if not [module for module in problem.model.modules() if not _MARKS.isdisjoint(vars(module))]:
        return
    for reason, candidates in _sets(problem, second_order=second_order):
        for build in candidates:
            vectors = build()
            if vectors.shape[1] and _stand_still(problem, vectors):
                yield reason, vectors
                break


def _sets(problem: Problem, *, second_order: bool) -> Iterator[tuple[str, list[_Build]]]:
    """Reasons with sets of directions that are built one at a time, as each may be large; the first true one counts."""
    attentions = list(_attentions(problem))
    for attention in attentions:
        yield "of biases of keys", [partial(_key_biases, problem, attention)]
    if second_order:
        return
    for attention in attentions:
        forms = (_all_pairs, _rotations_of_halves, _rotations_of_neighbours)
        yield "of the query-key gauge", [partial(_query_key, problem, attention, form) for form in forms]
        yield "of the value-output gauge", [partial(_value_output, problem, attention)]
    for build in _normalizations(problem):
        yield "of scales and shifts of normalization", [build]


def _stand_still(problem: Problem, vectors: Tensor) -> bool:
    """Whether the outputs for the first examples do not change along a random combination of the directions."""
    generator = torch.Generator().manual_seed(0)
    mixed = vectors @ torch.randn(vectors.shape[1], generator=generator, dtype=torch.float64).to(vectors)
    mixed *= torch.linalg.vector_norm(problem.weights) / torch.linalg.vector_norm(mixed)
    first = next(iter(problem.chunks()))
    if problem.derivatives.tangents:
        _, outputs, cotangent, pulled = tangent_graph(problem, first)
        change = backward_columns(pulled, [cotangent], split_columns(problem, mixed[:, None]), at_once=0)
        allowed = _STILL
    else:
        step = _STEP * mixed
        with torch.no_grad():
            outputs, behind = (problem.predict(problem.weights + s * step, problem.inputs[first]) for s in (1, -1))
        change, allowed = (outputs - behind) / (2 * _STEP), _STILL_BY_DIFFERENCES
    return bool(torch.linalg.vector_norm(change) <= allowed * torch.linalg.vector_norm(outputs))


def _attentions(problem: Problem) -> Iterator[_Attention]:
    for path, module in problem.model.named_modules():
        prefix = f"{path}." if path else ""
        heads = _number(module, _HEADS)
        parts = _queries_keys_values(problem, module, prefix, heads) if heads else None
        if parts is None or len(parts[0].weight) % heads:
            continue
        queries, keys, values = parts
        size = len(queries.weight) // heads
        if len(keys.weight) != len(values.weight) or len(keys.weight) % size or len(queries.weight) % len(keys.weight):
            continue
        outputs = (_linear(problem, module, prefix, name) for name in _OUTPUTS)
        yield _Attention(queries, keys, values, next((output for output in outputs if output is not None), None), size)


def _number(module: nn.Module, names: Iterable[str]) -> int:
    """A number that a module, or the configuration that it holds, has under one of these names; 0 without one."""
    own, config = vars(module), vars(module).get("config")
    values = [own.get(name, getattr(config, name, None)) for name in names]
    return next((value for value in values if isinstance(value, int) and value > 0), 0)


def _queries_keys_values(problem: Problem, module: nn.Module, prefix: str, heads: int) -> list[Affine] | None:
    """The three maps of an attention layer, from separate matrices or from one that holds all three."""
    whole = affine_parameters(problem, f"{prefix}in_proj_weight", f"{prefix}in_proj_bias")  # nn.MultiheadAttention
    for name in _FUSED:
        whole = whole or _linear(problem, module, prefix, name)
    shared = heads + 2 * (_number(module, _KEY_HEADS) or heads)
    if whole is not None and len(whole.weight) % shared == 0:
        size = len(whole.weight) // shared
        bounds = [0, heads * size, (heads + shared) * size // 2, shared * size]
        return [whole.rows(start, stop) for start, stop in pairwise(bounds)]
    for names in _SEPARATE:
        parts = [_linear(problem, module, prefix, name) for name in names]
        if all(part is not None for part in parts):
            return [part for part in parts if part is not None]
    return None


def _linear(problem: Problem, module: nn.Module, prefix: str, name: str) -> Affine | None:
    return affine_of(problem, f"{prefix}{name}") if isinstance(getattr(module, name, None), nn.Module) else None


def _has_room(problem: Problem, count: int) -> bool:
    """Whether so many directions are worth their memory."""
    return count <= min(MAX_NULL_DIRECTIONS, MAX_ENTRIES // problem.dim)


_Elements = list[list[tuple[int, int, float]]]  # of the matrices that span an algebra: row, column, value


def _all_pairs(size: int) -> _Elements:
    """Every matrix."""
    return [[(a, b, 1.0)] for a in range(size) for b in range(size)]


def _rotations_of_halves(size: int) -> _Elements:
    """Matrices that commute with rotary embeddings, which turn coordinate ``a`` and that half a head after it."""
    return _commuting((a, a + size // 2) for a in range(size // 2))


def _rotations_of_neighbours(size: int) -> _Elements:
    """The same, where they turn each coordinate with its neighbour."""
    return _commuting((a, a + 1) for a in range(0, size - 1, 2))


def _commuting(planes: Iterable[tuple[int, int]]) -> _Elements:
    """Multiples of the identity and of the turn by a right angle, in each plane."""
    return [element for a, b in planes for element in ([(a, a, 1.0), (b, b, 1.0)], [(a, b, 1.0), (b, a, -1.0)])]


def _query_key(problem: Problem, attention: _Attention, form: Callable[[int], _Elements]) -> Tensor:
    """Row ``a`` of the queries gains row ``b``; row ``b`` of the keys loses row ``a``."""
    weights, elements = problem.weights, form(attention.size)
    queries, keys = attention.queries.augmented(), attention.keys.augmented()
    heads = list(attention.heads())
    if not _has_room(problem, len(heads) * len(elements)):
        return weights.new_zeros(problem.dim, 0)
    vectors = weights.new_zeros(problem.dim, len(heads) * len(elements))
    columns = iter(vectors.T)
    for key, starts in heads:
        for element in elements:
            vector = next(columns)
            for a, b, value in element:
                for query in starts:
                    vector[queries[query + a]] += value * weights[queries[query + b]]
                vector[keys[key + b]] -= value * weights[keys[key + a]]
    return vectors


def _value_output(problem: Problem, attention: _Attention) -> Tensor:
    """Row ``a`` of the values gains row ``b``; column ``b`` of the output loses column ``a``; shifts of the biases."""
    weights, values, output = problem.weights, attention.values.augmented(), attention.output
    size, heads = attention.size, list(attention.heads())
    if output is None or output.weight.shape[1] != len(attention.queries.weight):
        return weights.new_zeros(problem.dim, 0)
    if not _has_room(problem, len(heads) * size**2):
        return weights.new_zeros(problem.dim, 0)
    vectors = weights.new_zeros(problem.dim, len(heads) * size**2)
    columns = iter(vectors.T)
    for value, starts in heads:
        for a, b in product(range(size), repeat=2):
            vector = next(columns)
            vector[values[value + a]] = weights[values[value + b]]
            for start in starts:
                vector[output.weight[:, start + b]] -= weights[output.weight[:, start + a]]
    if attention.values.bias is None or output.bias is None:
        return vectors
    shifts = _shifts(problem, attention.values.bias, [])
    for value, starts in heads if shifts.shape[1] else ():
        for a, start in product(range(size), starts):
            shifts[output.bias, value + a] -= weights[output.weight[:, start + a]]
    return torch.cat([vectors, shifts], dim=1)


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


def _normalizations(problem: Problem) -> Iterator[_Build]:
    """Scales and shifts of the features of each normalization that affine maps read."""
    slices = problem.layout.slices
    index = torch.arange(problem.dim, device=problem.device)
    for path, readers in readers_of_norms(problem).items():
        names = (f"{path}.{part}" for part in ("weight", "bias"))
        gain, shift = (index[slices[name]] if name in slices else None for name in names)
        if gain is None or any(reader.weight.shape[1] != len(gain) for reader in readers):
            continue
        yield partial(_scales, problem, [gain] if shift is None else [gain, shift], readers)
        if shift is not None and all(reader.bias is not None for reader in readers):
            yield partial(_shifts, problem, shift, readers)


def _scales(problem: Problem, scaled: list[Tensor], readers: list[Affine]) -> Tensor:
    """Each entry of some vectors of equal length, with the column of the matrices that undoes its scale."""
    weights, count = problem.weights, len(scaled[0])
    vectors = weights.new_zeros(problem.dim, count if _has_room(problem, count) else 0)
    if not vectors.shape[1]:
        return vectors
    for positions in scaled:
        vectors[positions] = torch.diag(weights[positions])
    for reader in readers:
        for k, column in enumerate(reader.weight.T):
            vectors[column, k] = -weights[column]
    return vectors
