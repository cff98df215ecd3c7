"""Random generators from integer seeds."""

from __future__ import annotations

import torch

from curvature.errors import ConfigurationError

__all__ = ["generator_of"]


def generator_of(seed: int | torch.Generator) -> torch.Generator:
    """Convert a seed to a generator on the CPU, so that results agree across devices.

    Parameters
    ----------
    seed
        An integer, for a new generator; or a ``torch.Generator``, which is used and advances.

    Returns
    -------
    torch.Generator
        The generator of the caller, or a new one.

    Raises
    ------
    ConfigurationError
        If ``seed`` is neither of these.
    """
    if isinstance(seed, torch.Generator):
        return seed
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ConfigurationError(f"seed must be an integer or a torch.Generator, got {type(seed).__name__}.")
    return torch.Generator().manual_seed(seed)
