"""Principal blocks of a matrix by layer, by neuron, or by parameter name."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from curvature.errors import ConfigurationError
from curvature.linalg.memory import USABLE, free_memory
from curvature.linalg.operator import SymmetricOperator, require_operator

__all__ = ["blocks"]


def blocks(operator: SymmetricOperator, by: str) -> dict[str, SymmetricOperator]:
    """Take the principal blocks of a matrix.

    Parameters
    ----------
    operator
        A matrix with named coordinates.
    by
        ``"all"``; ``"layer"``; ``"neuron"``, which is one output row of a weight tensor with its bias; or a regular
        expression, whose matches form a single block.

    Returns
    -------
    dict
        Operator by the name of the block.

    Raises
    ------
    ConfigurationError
        If the coordinates have no names, or no name matches the regular expression.

    Notes
    -----
    The entries of the whole matrix are computed once, when the first block needs them, and shared by all blocks. If
    they do not fit in memory, each block is computed from its products.
    """
    require_operator(operator, "blocks")
    layout = operator.layout
    if layout is None:
        raise ConfigurationError(f"{operator.name} has no named coordinates, so it has no blocks by {by!r}.")
    if by == "all":
        return {"all": operator}
    fits = operator.dense_bytes <= USABLE * free_memory(operator.device)
    if not fits:
        operator = replace(operator, routes=replace(operator.routes, entries=None))
    shared = cache(operator.entries) if fits else None
    return {name: operator.principal(index, name, entries=shared) for name, index in layout.blocks(by).items()}
