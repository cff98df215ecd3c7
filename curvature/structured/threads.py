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

_here = threading.local()  # has_a_part: in this thread, of a sum that is shared


def num_threads(device: torch.device) -> int:
    """Threads that NumPy's BLAS would use here; 1 on another device, and in a part of :func:`add_side_by_side`.

    While another caller's parts run, the BLAS has one thread for all: this waits for them to end.
    """
    if device.type != "cpu" or getattr(_here, "has_a_part", False):
        return 1
    with _turns():
        return _blas_threads()


def add_side_by_side(add: Callable[[Sequence[Item], Tensor], None], items: Sequence[Item], total: Tensor) -> None:
    """Let ``add(some items, room)`` add all items to ``total``, in as many threads as the BLAS has.

    Each thread has consecutive items and a room of its own, and the rooms are added in order: one number of threads,
    one result to the last bit. With one thread it is a plain call. Callers in several threads take turns.
    """
    number = min(num_threads(total.device), len(items))
    if number == 1:
        add(items, total)
        return

    def part(items: Sequence[Item], room: Tensor) -> None:
        _here.has_a_part = True
        try:
            add(items, room)
        finally:
            _here.has_a_part = False

    parts = [items[start:stop] for start, stop in pairwise(len(items) * k // number for k in range(number + 1))]
    rooms = [torch.zeros_like(total) for _ in parts[1:]]
    with _turns(), _blas().limit(limits=1):
        others = [_pool(number - 1).submit(part, *given) for given in zip(parts[1:], rooms, strict=True)]
        try:
            part(parts[0], total)
        finally:
            wait(others)
    for other, room in zip(others, rooms, strict=True):
        other.result()
        total += room


def _blas_threads() -> int:
    return max((library.num_threads for library in _blas().lib_controllers), default=1)


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(internal_api="openblas")


@cache
def _turns() -> threading.Lock:
    return threading.Lock()


@cache
def _pool(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, thread_name_prefix="curvature")


def _forget() -> None:
    """The threads of a pool do not live on in a child, and whoever held the lock is not there to give it back."""
    _pool.cache_clear()
    _turns.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
