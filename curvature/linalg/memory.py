"""Free memory, and the refusal of what does not fit."""

from __future__ import annotations

import torch

from curvature.errors import ResourceError
from curvature.machine import available_memory

__all__ = ["USABLE", "ensure_memory", "free_memory", "memory_text"]

USABLE = 0.9  # of the memory that is free


def free_memory(device: torch.device) -> float:
    """Measure the bytes that this process can still have, within its own limits and those of its container.

    Parameters
    ----------
    device
        A CPU or CUDA device.

    Returns
    -------
    float
        Bytes.
    """
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return available_memory()


def memory_text(num_bytes: float) -> str:
    """Format an amount of memory with two digits.

    Parameters
    ----------
    num_bytes
        Bytes.

    Returns
    -------
    str
        Amount with its unit, MB or GB.

    Examples
    --------
    >>> memory_text(3e6), memory_text(5e8), memory_text(9.5e11)
    ('3 MB', '0.47 GB', '885 GB')
    """
    amount = num_bytes / 2**30
    if amount < 0.1:
        return f"{max(1, 1024 * amount):.0f} MB"
    return f"{amount:.2g} GB" if amount < 10 else f"{amount:.0f} GB"


def ensure_memory(num_bytes: float, what: str, device: torch.device | None = None) -> None:
    """Raise an error, before any allocation, if the free memory is not enough.

    Parameters
    ----------
    num_bytes
        Peak memory that is needed, in bytes.
    what
        Subject of the message, e.g. ``"the dense ggn (610 x 610)"``.
    device
        Device of the memory; None: the CPU.

    Raises
    ------
    ResourceError
        If more than nine tenths of the free memory would be needed.
    """
    available = free_memory(device or torch.device("cpu"))
    if num_bytes > USABLE * available:
        raise ResourceError(
            f"{what} needs about {memory_text(num_bytes)}, {memory_text(available)} are free. "
            "Use a smaller model, a block (block='layer'), or products instead of the dense matrix."
        )
