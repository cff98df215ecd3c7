"""Parts of messages: a suggested name, a cut list, the first line of an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from curvature import text
from curvature.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Say", "choice", "dtype_name", "first_line", "listed"]

Value = TypeVar("Value")
Say = Callable[[str], None]  # receives a sentence about what loading did; it may begin with "note: " or "warning: "


def choice(name: str, known: Mapping[str, Value], kind: str, prefix: str = "") -> Value:
    """Look a name up, or refuse it with a suggestion.

    Parameters
    ----------
    name
        What was typed, without the prefix.
    known
        Value of each name.
    kind
        What is chosen, for the message: ``loss``, ``built-in model``.
    prefix
        Shown before each name, e.g. ``builtin:``.

    Returns
    -------
    Value
        The entry of ``known``.

    Raises
    ------
    ConfigurationError
        If the name is unknown.
    """
    if name not in known:
        names = ", ".join(prefix + known_name for known_name in known)
        raise ConfigurationError(
            f"{kind} {prefix + name!r} is unknown{text.did_you_mean(name, known, prefix)}; choose among {names}."
        )
    return known[name]


def listed(names: Iterable[str], separator: str = ", ", limit: int = 8) -> str:
    """Join names; of many, only the first.

    Parameters
    ----------
    names
        What to join.
    separator
        Written between the names.
    limit
        How many names are shown.

    Returns
    -------
    str
        E.g. ``a, b, and 3 more``.
    """
    return text.listed(names, limit, separator=separator, last=f"{separator}and ")


def first_line(error: BaseException) -> str:
    """First line of an error.

    Parameters
    ----------
    error
        Its message may contain escape sequences: PyTorch colours some of them.

    Returns
    -------
    str
        The type and the first line of the message, without escape sequences and final period.
    """
    name = type(error).__name__
    lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines() if line.strip()]
    return f"{name}: {lines[0].strip().rstrip('.')}" if lines else name


def dtype_name(tensor: Tensor) -> str:
    """Name of a tensor's dtype, as NumPy writes it.

    Parameters
    ----------
    tensor
        Any tensor.

    Returns
    -------
    str
        E.g. ``float64``.
    """
    return str(tensor.dtype).removeprefix("torch.")
