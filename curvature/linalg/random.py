"""Where random numbers come from: an integer seed, or a generator that the caller owns."""

from __future__ import annotations

import torch

from curvature.errors import ConfigurationError

__all__ = ["generator_of"]


def generator_of(seed: int | torch.Generator) -> torch.Generator:
    """Turn a seed into a generator on the CPU, so that results agree across devices.

    Parameters
    ----------
    seed
        An integer makes a fresh generator; a ``torch.Generator`` is used as it is, and advances.

    Returns
    -------
    torch.Generator
        On the CPU.

    Raises
    ------
    ConfigurationError
        If ``seed`` is neither.
    """
    if isinstance(seed, torch.Generator):
        return seed
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ConfigurationError(f"seed must be an integer or a torch.Generator, got {type(seed).__name__}.")
    return torch.Generator().manual_seed(seed)
