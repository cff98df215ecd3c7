"""Speed of this machine: one timed matrix product, after an untimed first call."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import numpy as np
import torch

from curvature.linalg.block_matrix import BlockMatrix

__all__ = ["multiplication_rate", "product_seconds", "seconds_text", "timed"]

_SIZE = 512  # dimension of the multiplied matrices: a few milliseconds


def multiplication_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Measure the multiply-adds per second of a matrix product; cached for each number of threads.

    Parameters
    ----------
    dtype, device
        Precision and device of the matrices.

    Returns
    -------
    float
        Multiply-adds per second.
    """
    return _rate(dtype, device, torch.get_num_threads())


@cache
def _rate(dtype: torch.dtype, device: torch.device, _threads: int) -> float:
    matrix = torch.ones(_SIZE, _SIZE, dtype=dtype).to(device)
    if device.type == "cpu":
        array = matrix.numpy()  # the BLAS of the structured matrices
        return _SIZE**3 / timed(lambda: np.matmul(array, array))
    return _SIZE**3 / timed(lambda: float((matrix @ matrix)[0, 0]))  # reading a number waits for the device


def product_seconds(operator: BlockMatrix) -> float:
    """Measure the time of one product with one vector.

    Parameters
    ----------
    operator
        The matrix.

    Returns
    -------
    float
        Seconds, without the work that is done once for all products. One product alone is timed if it reads data that
        are not in memory.
    """
    vector = torch.ones(operator.dim, 1, dtype=operator.dtype, device=operator.device)

    def multiply() -> None:
        float((operator @ vector)[0, 0])

    if not operator.routes.products.passes:
        return timed(multiply)
    started = time.perf_counter()
    multiply()
    return time.perf_counter() - started


def timed(work: Callable[[], object], *, calls: int = 3) -> float:
    """Measure the time of a call; one before it loads libraries and fills caches.

    Parameters
    ----------
    work
        The function to call.
    calls
        How often it is timed. On a busy machine one call alone takes up to four times as long.

    Returns
    -------
    float
        Seconds of the fastest call.
    """
    work()
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return max(min(seconds), 1e-9)


def seconds_text(seconds: float) -> str:
    """Format a time that is known to about one digit.

    Parameters
    ----------
    seconds
        The time in seconds.

    Returns
    -------
    str
        The time with its unit: s, min or h.

    Examples
    --------
    >>> seconds_text(0.034), seconds_text(23.4), seconds_text(400.0), seconds_text(20000.0)
    ('0.03 s', '23 s', '7 min', '5.6 h')
    """
    if seconds < 120:
        return f"{seconds:.1g} s" if seconds < 1 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
