"""Arguments that an earlier version had: the error shows the call that replaces them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from curvature.errors import RemovedArgumentError

__all__ = ["removed"]

P = ParamSpec("P")
R = TypeVar("R")


def removed(**replacements: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Refuse arguments that a function no longer takes, and show what to write instead.

    Parameters
    ----------
    replacements
        By the name of the argument, the call that replaces it.

    Returns
    -------
    Callable
        A decorator.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def checked(*arguments: P.args, **options: P.kwargs) -> R:
            for name in replacements.keys() & options.keys():
                raise RemovedArgumentError(
                    f"{function.__qualname__.removesuffix('.__init__')} no longer takes {name}=. "
                    f"Write {replacements[name]} instead."
                )
            return function(*arguments, **options)

        return checked

    return decorate
