"""The terms of reports and of the documentation, from one file: ``glossary.toml``."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

__all__ = ["Term", "glossary"]


@dataclass(frozen=True)
class Term:
    """One entry of the glossary.

    Attributes
    ----------
    name
        The term.
    text
        What it means, in one or two sentences of plain text.
    page
        Page of the documentation that says more, without its ending.
    also
        Other words for it.
    """

    name: str
    text: str
    page: str
    also: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        """Name of its place on a page."""
        return f"term-{self.name.lower().replace(' ', '-').replace('_', '-')}"


@cache
def glossary() -> dict[str, Term]:
    """Read every term.

    Returns
    -------
    dict
        Term by its name, in alphabetical order.

    Examples
    --------
    >>> glossary()["noise floor"].anchor
    'term-noise-floor'
    """
    text = resources.files("curvature.report").joinpath("glossary.toml").read_text(encoding="utf-8")
    terms = (Term(**entry | {"also": tuple(entry.get("also", ()))}) for entry in tomllib.loads(text)["term"])
    return {term.name: term for term in terms}
