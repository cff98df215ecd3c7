"""What several arms of a study share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Shared"]

ResultT = TypeVar("ResultT")


class Shared:
    """What the arms that are at one point share: each matrix, spectrum and step there is computed once."""

    def __init__(self) -> None:
        self._results: dict[tuple[Any, ...], Any] = {}

    def once(self, key: tuple[Any, ...], compute: Callable[[], ResultT]) -> ResultT:
        """Return what an earlier call with this key computed, else compute it.

        Parameters
        ----------
        key
            Says which result.
        compute
            Without arguments.

        Returns
        -------
        object
            The result.
        """
        if key not in self._results:
            self._results[key] = compute()
        return self._results[key]
