"""One pool of threads at a time: torch's, or that of NumPy's BLAS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_pool"]


@contextmanager
def one_pool(numpy_blas: bool) -> Iterator[None]:
    """Keep torch on one thread while NumPy's BLAS uses all; a loop of products belongs inside.

    After a parallel region torch's threads spin for milliseconds on the cores that the BLAS waits for: measured on
    two cores, 26 ms for a product that takes 0.9 ms so. The number of threads is restored, also after an exception.

    Parameters
    ----------
    numpy_blas
        Whether products go through NumPy's BLAS; otherwise nothing changes.

    Yields
    ------
    None
        Inside, torch has one thread.
    """
    threads = torch.get_num_threads()
    if not numpy_blas or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
