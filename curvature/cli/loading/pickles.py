"""Tensors from files that also hold pickled objects: PyTorch's restricted reader, with inert objects in their place."""

from __future__ import annotations

import builtins
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["read_tensors"]

# A file that names these was made to run code, or to reach the system: nothing of it is read.
_HOSTILE = {"os", "posix", "nt", "sys", "subprocess", "runpy", "shutil", "socket", "pty", "ctypes"}


class _Inert:
    """Replaces a pickled object: accepts any arguments and any state, keeps nothing and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _inert(name: str) -> type:
    return type(name.rpartition(".")[2], (_Inert,), {})


def _inert_mapping(name: str) -> type:
    """For subclasses of ``dict``: the reader fills only plain dictionaries."""
    return type(name.rpartition(".")[2], (_Inert,), {"__new__": lambda _cls, *_, **__: OrderedDict()})


def read_tensors(path: Path, *, skip_objects: bool = False) -> tuple[Any, list[str]]:
    """Read a file of ``torch.save`` with ``weights_only=True``, which creates nothing but tensors and containers.

    Parameters
    ----------
    path
        The file.
    skip_objects
        Whether pickled objects, which the reader refuses, may be replaced by inert objects. Their classes are then
        neither imported nor called. Files that name functions of Python or modules of the system are refused all the
        same.

    Returns
    -------
    value, names
        What the file contains, and the names of the classes whose objects were replaced.

    Raises
    ------
    UnpicklingError
        If the file contains objects that may not be replaced, or is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True), []
    except pickle.UnpicklingError as refusal:
        names = _unknown_classes(path) if skip_objects else []
        if not names:
            raise
        last: Exception = refusal
    stand_ins: tuple[Callable[[str], type], ...] = (_inert, _inert_mapping)
    for stand_in in stand_ins:
        with torch.serialization.safe_globals([(stand_in(name), name) for name in names]):
            try:
                return torch.load(path, map_location="cpu", weights_only=True), names
            except Exception as error:  # the reader raises many kinds of errors on objects of another form
                last = error
    raise pickle.UnpicklingError(str(last)) from last


def _unknown_classes(path: Path) -> list[str]:
    """Names of what a file would import, if all of them can be replaced; otherwise an empty list."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # before torch 2.6 the function is missing; the format may be another one, or damaged
        return []
    for name in names:
        module, _, attribute = name.rpartition(".")
        plain_function = module in ("builtins", "__builtin__") and not isinstance(
            getattr(builtins, attribute, None), type
        )
        if plain_function or module.partition(".")[0] in _HOSTILE:
            return []
    return names
