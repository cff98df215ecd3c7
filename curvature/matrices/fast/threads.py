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
    """Threads that NumPy's BLAS would use here; 1 on another device, and in a thread that shares work already.

    Waits for the turn of others to end, who keep the BLAS on one thread. 1 also where the threads are OpenMP's: each
    thread has its own number of those, and none can be set for all.
    """
    if device.type != "cpu" or getattr(_own, "shares", False):
        return 1
    with _turns():
        return _blas_threads()


def add_side_by_side(add: Callable[[Sequence[Item], Tensor], None], items: Sequence[Item], total: Tensor) -> None:
    """Let ``add(some items, room)`` add all items to ``total``, in as many threads as the BLAS has.

    Each thread has consecutive items and a room of its own, and the rooms are added in order: one number of threads,
    one result to the last bit. With one thread it is a plain call. Callers in several threads take turns. It is a plain
    call, too, while another thread holds the limits of the BLAS: threadpoolctl (3.8) then ignores everyone else's.
    """
    number = min(num_threads(total.device), len(items)) if len(items) > 1 else 1
    if number == 1 or not _added(add, items, total, number):
        add(items, total)


def _added(add: Callable[[Sequence[Item], Tensor], None], items: Sequence[Item], total: Tensor, number: int) -> bool:
    """Whether the BLAS let itself be limited, and the items were added."""
    parts = [items[start:stop] for start, stop in pairwise(len(items) * k // number for k in range(number + 1))]
    with _turns(), _blas().limit(limits=1):
        if _blas_threads() > 1:
            return False
        rooms = [torch.zeros_like(total) for _ in parts[1:]]
        others = [_pool(number - 1).submit(add, *given) for given in zip(parts[1:], rooms, strict=True)]
        try:
            add(parts[0], total)
        finally:
            wait(others)
    for other, room in zip(others, rooms, strict=True):
        other.result()
        total += room
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
    """The threads of a pool do not live on in a child, and whoever held the lock is not there to give it back."""
    _pool.cache_clear()
    _turns.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
