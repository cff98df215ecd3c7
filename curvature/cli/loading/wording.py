"""Words that messages share: the nearest name, a list that ends, the first line of an error."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from curvature.errors import ConfigurationError

__all__ = ["Say", "choice", "dtype_name", "first_line", "listed", "near"]


Say = Callable[[str], None]


def choice(name: str, known: Mapping[str, Any], what: str, prefix: str = "") -> Any:
    """Give what a name stands for, or refuse it with the nearest one and all of them."""
    if name not in known:
        names = ", ".join(prefix + one for one in known)
        raise ConfigurationError(f"{what} {prefix + name!r} is unknown{near(name, known, prefix)}; choose {names}.")
    return known[name]


def near(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Give the nearest known name in brackets, or nothing."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {prefix}{close[0]}?)" if close else ""


def listed(names: Iterable[str], separator: str = ", ", most: int = 8) -> str:
    """Join names, the first few of many."""
    names = list(names)
    more = f"{separator}and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def first_line(error: BaseException) -> str:
    """Give the first line without escape sequences: torch colours its messages."""
    name = type(error).__name__
    lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines() if line.strip()]
    return f"{name}: {lines[0].strip().rstrip('.')}" if lines else name


def dtype_name(tensor: Tensor) -> str:
    """Name a dtype as NumPy does."""
    return str(tensor.dtype).removeprefix("torch.")
