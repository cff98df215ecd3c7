"""Work shared by threads, each with the BLAS to itself on one core: elementwise work between products is shared too."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

__all__ = ["add_side_by_side", "num_threads"]

Item = TypeVar("Item")

_own = threading.local()  # shares: in a thread of the pool, whose work is a share already


def num_threads(device: torch.device) -> int:
    """Threads that NumPy's BLAS would use here.

    Parameters
    ----------
    device
        Where the work is.

    Returns
    -------
    int
        1 on another device than the CPU, in a thread that shares work already, and where the threads are OpenMP's: each
        thread has its own number of those, and none can be set for all.

    Notes
    -----
    Waits until no other caller keeps the BLAS on one thread.
    """
    if device.type != "cpu" or getattr(_own, "shares", False):
        return 1
    with _turns():
        return _blas_threads()


def add_side_by_side(add: Callable[[Sequence[Item], Tensor], None], items: Sequence[Item], total: Tensor) -> None:
    """Add up contributions in as many threads as the BLAS has, each with a BLAS of one core.

    Parameters
    ----------
    add
        ``(items, total)`` adds the contributions of some items.
    items
        All of them; each thread has consecutive ones.
    total
        What they are added to, in place.

    Notes
    -----
    Each thread has a partial total of its own, and these are added in order: one number of threads, one result to the
    last bit. With one thread it is a plain call. Callers in several threads take turns. It is a plain call, too, while
    another thread holds the limits of the BLAS: threadpoolctl (3.8) then ignores everyone else's.
    """
    number = min(num_threads(total.device), len(items)) if len(items) > 1 else 1
    if number == 1 or not _added(add, items, total, number):
        add(items, total)


def _added(add: Callable[[Sequence[Item], Tensor], None], items: Sequence[Item], total: Tensor, number: int) -> bool:
    """Add the items in threads; False where the BLAS cannot be limited, and nothing was added."""
    parts = [items[start:stop] for start, stop in pairwise(len(items) * k // number for k in range(number + 1))]
    with _turns(), _blas().limit(limits=1):
        if _blas_threads() > 1:
            return False
        partial = [torch.zeros_like(total) for _ in parts[1:]]
        others = [_pool(number - 1).submit(add, *share) for share in zip(parts[1:], partial, strict=True)]
        try:
            add(parts[0], total)
        finally:
            wait(others)
    for other, sum_ in zip(others, partial, strict=True):
        other.result()
        total += sum_
    return True


def _blas_threads() -> int:
    return max((library.num_threads for library in _blas().lib_controllers), default=1)


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(internal_api="openblas").select(threading_layer="pthreads")


@cache
def _turns() -> threading.RLock:
    return threading.RLock()


@cache
def _pool(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(
        number, thread_name_prefix="curvature", initializer=setattr, initargs=(_own, "shares", True)
    )


def _forget() -> None:
    """Start afresh in a forked child: the threads of the pool, and the holder of the lock, exist in the parent only."""
    _pool.cache_clear()
    _turns.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
