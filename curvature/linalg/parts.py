"""Principal blocks of a matrix by layer, by neuron, or by the names of parameters."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from curvature.errors import ConfigurationError
from curvature.linalg.memory import USABLE, free_memory
from curvature.linalg.operator import SymmetricOperator, require_operator

__all__ = ["blocks"]


def blocks(operator: SymmetricOperator, by: str) -> dict[str, SymmetricOperator]:
    """Cut a matrix into principal blocks.

    Parameters
    ----------
    operator
        With named coordinates.
    by
        ``"all"``, ``"layer"``, ``"neuron"`` (one output row of a weight tensor together with its bias) or a regular
        expression, whose matches form one block.

    Returns
    -------
    dict
        Name of the block to operator.

    Raises
    ------
    ConfigurationError
        If the coordinates have no names, or no name matches.

    Notes
    -----
    The entries of the whole matrix are computed once, when the first block needs them, and shared; where they do not
    fit in memory, each block is computed from its own products.
    """
    require_operator(operator, "blocks")
    if operator.layout is None:
        raise ConfigurationError(f"{operator.name} has no named coordinates, so it has no blocks by {by!r}.")
    if by == "all":
        return {"all": operator}
    fits = operator.dense_bytes <= USABLE * free_memory(operator.device)
    if not fits:
        operator = replace(operator, routes=replace(operator.routes, entries=None))
    shared = cache(operator.entries) if fits else None
    return {name: operator.principal(index, name, entries=shared) for name, index in operator.layout.blocks(by).items()}
