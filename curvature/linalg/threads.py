"""Thread pools: torch's is limited to one thread while NumPy's BLAS computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_pool"]


@contextmanager
def one_pool(numpy_blas: bool) -> Iterator[None]:
    """Limit torch to one thread while NumPy's BLAS uses all cores; wrap a whole loop of products in it.

    Parameters
    ----------
    numpy_blas
        Whether the products use NumPy's BLAS; if not, nothing changes.

    Yields
    ------
    None
        Inside the context torch has one thread.

    Notes
    -----
    After a parallel region torch's threads spin for some milliseconds on the cores that the BLAS needs: measured on two
    cores, a product took 26 ms instead of 0.9 ms. The number of threads is restored at the end, also by an exception.
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
