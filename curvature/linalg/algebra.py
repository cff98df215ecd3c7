"""Routes and facts of sums, multiples, congruences and principal blocks, derived from those of their parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

from curvature.arrays import Float, Int
from curvature.errors import ConfigurationError
from curvature.linalg.facts import Facts
from curvature.linalg.routes import EntriesRoute, FactorRoute, ProductCost, Routes
from curvature.records import Where

__all__ = [
    "congruent_facts",
    "congruent_routes",
    "restricted_facts",
    "restricted_routes",
    "scaled_facts",
    "scaled_routes",
    "sum_facts",
    "sum_routes",
    "sum_where",
]

Map = Callable[[Tensor], Tensor]


def sum_where(first: Where, second: Where) -> Where:
    """Derive the header of ``A + B``.

    Parameters
    ----------
    first, second
        Headers of the terms.

    Returns
    -------
    Where
        With both names. Coordinates of the chart ``"given"`` are compatible with all others.

    Raises
    ------
    ConfigurationError
        If the terms are written in different coordinates, or one belongs to a mean loss and one to a sum.
    """
    for part in ("chart", "gauge", "block", "effective"):
        if getattr(first, part) != getattr(second, part) and "given" not in (first.chart, second.chart):
            raise ConfigurationError(
                f"{first.label} and {second.label} are written in different coordinates, so their sum means nothing. "
                "Pull both back to the same chart, and take the same block of both."
            )
    if first.reduction != second.reduction and "given" not in (first.chart, second.chart):
        raise ConfigurationError(
            f"{first.label} and {second.label} belong to losses of different scale, the mean over examples and the "
            "sum, so their sum means nothing. Use one reduction for both."
        )
    base = second if first.chart == "given" else first
    penalties = dict.fromkeys(filter(None, (first.penalty, second.penalty)))
    return replace(base, matrix=f"{first.matrix} + {second.matrix}", penalty="; ".join(penalties))


def sum_routes(first: Routes, second: Routes) -> Routes:
    """Derive the routes of ``A + B``: those that both terms have.

    Parameters
    ----------
    first, second
        Routes of the terms.

    Returns
    -------
    Routes
        Entries are added; the factor is ``[B, C]`` for ``A = B B^T + C C^T``.
    """
    entries = factor = None
    if first.entries is not None and second.entries is not None:
        summand, addend = first.entries, second.entries
        entries = EntriesRoute(
            lambda: summand.compute().add_(addend.compute()),
            _added(summand.multiplications, addend.multiplications),
            summand.peak_bytes + addend.peak_bytes,
        )
    if first.factor is not None and second.factor is not None:
        left, right = first.factor, second.factor

        def blocks() -> Iterator[Tensor]:
            return chain(left.blocks(), right.blocks())

        factor = FactorRoute(blocks, left.num_columns + right.num_columns, max(left.block_bytes, right.block_bytes))
    cost = ProductCost(
        first.products.fixed_bytes + second.products.fixed_bytes,
        first.products.column_bytes + second.products.column_bytes,
        _added(first.products.multiplications, second.products.multiplications),
        first.products.passes + second.products.passes,
    )
    return Routes(entries, factor, cost, first.numpy_blas and second.numpy_blas)


def sum_facts(first: Facts, second: Facts, scale: Callable[[], float]) -> Facts:
    """Derive the facts of ``A + B``.

    Parameters
    ----------
    first, second
        Facts of the terms.
    scale
        Returns the norm of the terms, whose rounding a difference keeps however small it is.

    Returns
    -------
    Facts
        Semidefinite if both terms are; the rank bound is the sum of the bounds.
    """
    bound = None
    if first.rank_bound is not None and second.rank_bound is not None:
        bound = first.rank_bound + second.rank_bound
    errors = [facts.error for facts in (first, second) if facts.error is not None]
    error = (lambda: sum(each() for each in errors)) if errors else None
    definite = first.positive_semidefinite and second.positive_semidefinite
    return Facts(definite, rank_bound=bound, scale=scale, error=error)


def scaled_routes(routes: Routes, scale: float) -> Routes:
    """Derive the routes of ``c A``.

    Parameters
    ----------
    routes
        Routes of ``A``.
    scale
        ``c``.

    Returns
    -------
    Routes
        The scaled entries and, for a positive ``c``, the scaled factor.
    """
    entries, factor = routes.entries, None
    if entries is not None:
        compute = entries.compute
        entries = replace(entries, compute=lambda: compute().mul_(scale), kept=None)
    if routes.factor is not None and scale > 0:
        blocks = routes.factor.blocks
        factor = replace(routes.factor, blocks=lambda: (scale**0.5 * block for block in blocks()), gram=None)
    return replace(routes, entries=entries, factor=factor)


def scaled_facts(facts: Facts, scale: float) -> Facts:
    """Derive the facts of ``c A``.

    Parameters
    ----------
    facts
        Facts of ``A``.
    scale
        ``c``, not zero.

    Returns
    -------
    Facts
        Null space and rank bound of ``A``; semidefinite only if ``c`` is positive.
    """
    return Facts(
        facts.positive_semidefinite and scale > 0,
        rank_bound=facts.rank_bound,
        null_space=facts.null_space,
        num_null_directions=facts.num_null_directions,
        scale=_times(facts.scale, abs(scale)),
        error=_times(facts.error, abs(scale)),
        diagnose=facts.diagnose,
    )


def congruent_routes(routes: Routes, map_: Float[Tensor, "dim coordinates"]) -> Routes:
    """Derive the routes of ``M^T A M``.

    Parameters
    ----------
    routes
        Routes of ``A``.
    map_
        ``M``, ``(D, Q)``.

    Returns
    -------
    Routes
        Entries and factor of ``A``, multiplied by ``M``. The work is not counted.
    """
    entries, factor = routes.entries, None
    if entries is not None:
        compute = entries.compute
        entries = EntriesRoute(lambda: map_.T @ compute() @ map_, None, entries.peak_bytes)
    if routes.factor is not None:
        blocks = routes.factor.blocks
        factor = replace(routes.factor, blocks=lambda: (map_.T @ block for block in blocks()), gram=None)
    cost = replace(routes.products, multiplications=None)
    return Routes(entries, factor, cost)


def congruent_facts(facts: Facts, map_: Float[Tensor, "dim coordinates"], scale: Callable[[], float]) -> Facts:
    """Derive the facts of ``M^T A M``.

    Parameters
    ----------
    facts
        Facts of ``A``.
    map_
        ``M``, ``(D, Q)``.
    scale
        Gives what rounding is relative to: a map onto directions that are nearly null leaves little else.

    Returns
    -------
    Facts
        Definiteness, a bound of the rank, and the witnesses of ``A`` applied to ``M V``.
    """
    bound = min(map_.shape) if facts.rank_bound is None else min(*map_.shape, facts.rank_bound)
    error = facts.error
    return Facts(
        facts.positive_semidefinite,
        rank_bound=bound,
        scale=scale,
        error=None if error is None else lambda: error() * float(torch.linalg.matrix_norm(map_, 2)) ** 2,
        witnesses=tuple(witness.through(lambda block: map_ @ block) for witness in facts.witnesses),
        diagnose=None if facts.diagnose is None else _through(facts.diagnose, lambda block: map_ @ block),
    )


def restricted_routes(
    routes: Routes, index: Int[Tensor, "block"], dim: int, dtype: torch.dtype, shared: Callable[[], Tensor] | None
) -> Routes:
    """Derive the routes of the principal block of some coordinates.

    Parameters
    ----------
    routes
        Routes of the whole matrix.
    index
        Coordinates of the block, ``(d,)``.
    dim, dtype
        Dimension and precision of the whole matrix.
    shared
        Returns the entries of the whole matrix, if several blocks share them; None: the route of the whole matrix.

    Returns
    -------
    Routes
        Rows (and columns) ``index`` of the entries and of the factor.
    """
    entries, factor = None, None
    compute = shared or (None if routes.entries is None else routes.entries.compute)
    if compute is not None:
        count = None if routes.entries is None else routes.entries.multiplications
        peak = routes.dense_bytes(dim, dtype)
        entries = EntriesRoute(lambda: compute()[index][:, index], count, peak)
    if routes.factor is not None:
        blocks = routes.factor.blocks
        factor = replace(routes.factor, blocks=lambda: (block[index] for block in blocks()), gram=None)
    padded = routes.products.column_bytes + 2 * dim * dtype.itemsize
    return replace(routes, entries=entries, factor=factor, products=replace(routes.products, column_bytes=padded))


def restricted_facts(facts: Facts, index: Int[Tensor, "block"], pad: Map) -> Facts:
    """Derive the facts of the principal block of some coordinates.

    Parameters
    ----------
    facts
        Facts of the whole matrix.
    index
        Coordinates of the block, ``(d,)``.
    pad
        Pads columns with zeros outside the block, ``(d, K)`` to ``(D, K)``.

    Returns
    -------
    Facts
        Definiteness, rank bound, gradient and witnesses of the block. Null directions of the whole matrix are not null
        directions of a block.
    """
    gradient = facts.gradient
    return Facts(
        facts.positive_semidefinite,
        rank_bound=None if facts.rank_bound is None else min(facts.rank_bound, len(index)),
        gradient=None if gradient is None else lambda: gradient()[index],
        scale=facts.scale,
        error=facts.error,
        centred=facts.centred,
        witnesses=tuple(witness.through(pad) for witness in facts.witnesses),
        diagnose=None if facts.diagnose is None else _through(facts.diagnose, pad),
    )


def _through(diagnose: Callable[[Tensor], str], map_: Map) -> Callable[[Tensor], str]:
    return lambda block: diagnose(map_(block))


def _times(scale: Callable[[], float] | None, factor: float) -> Callable[[], float] | None:
    return None if scale is None else lambda: factor * scale()


def _added(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first + second
