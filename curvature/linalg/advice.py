"""The words of a refusal: what a task needs, what is allowed, and what can be done instead."""

from __future__ import annotations

from curvature.linalg.block_matrix import BlockMatrix
from curvature.linalg.memory import memory_text

__all__ = ["NOUNS", "instead", "memory_refusal"]

NOUNS = {"spectrum": "all eigenvalues", "extremal": "ends of the spectrum", "density": "density"}


def memory_refusal(operator: BlockMatrix, wanted: str, needed: dict[str, float], allowed: float) -> str:
    """Say how much memory is needed and allowed, and what else can be done.

    Parameters
    ----------
    operator
        The matrix.
    wanted
        The task, a key of ``NOUNS``.
    needed
        Bytes for each method.
    allowed
        Bytes that may be used.

    Returns
    -------
    str
        The message.
    """
    method = min(needed, key=needed.__getitem__)
    if wanted == "spectrum":
        how, ways = "", _alternatives(operator, allowed)
    else:
        how, ways = f" by {method}", ["fewer probes, products or eigenvalues", "a block", "float32", "a smaller model"]
    verb = "need" if wanted != "density" else "needs"
    return (
        f"{NOUNS[wanted]} of the {operator.shape_text} {verb} about {memory_text(needed[method])}{how}, "
        f"{memory_text(allowed)} can be used. Alternatives: {'; '.join(ways)}."
    )


def _alternatives(operator: BlockMatrix, allowed: float) -> list[str]:
    factor, count = operator.routes.factor, operator.where.num_examples
    ways = ["the ends of the spectrum (curvature.extremal_eigenvalues)", "its density (curvature.spectral_density)"]
    if operator.layout is not None:
        ways.append("one block at a time (curvature.blocks, --block layer)")
    if factor is not None and count:
        # r columns need 4 r D numbers, and every example has the same number of columns.
        columns = min(allowed / (4 * operator.dtype.itemsize * operator.dim), operator.dim)
        fitting = int(columns * count / factor.num_columns)
        ways += [f"the first {fitting} examples, by the factor"] if 1 <= fitting < count else []
    if operator.dtype.itemsize == 8:
        ways.append("half the memory in float32, which resolves condition numbers up to about 1e6")
    return ways


def instead(wanted: str) -> str:
    """Name cheaper tasks.

    Parameters
    ----------
    wanted
        The task, a key of ``NOUNS``.

    Returns
    -------
    str
        What else can be computed.
    """
    if wanted == "spectrum":
        return "the ends (curvature.extremal_eigenvalues) or the density (curvature.spectral_density)"
    return "fewer probes, products or eigenvalues, or fewer examples"
