"""The terms of reports and of the documentation, from one file: ``glossary.toml``."""

from __future__ import annotations

import html
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

__all__ = ["Term", "glossary", "linked"]


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


def linked(text: str) -> str:
    """Escape a text for a page, and link each technical term to its entry where the text first uses it.

    Parameters
    ----------
    text
        Plain text.

    Returns
    -------
    str
        HTML.

    Examples
    --------
    >>> linked("The gauge of A<B, and two gauges")
    'The <a class="term" href="#term-gauge">gauge</a> of A&lt;B, and two gauges'
    """
    pattern, anchors = _names()
    seen: set[str] = set()

    def link(match: re.Match[str]) -> str:
        word = html.unescape(match[0]).lower()
        anchor = anchors[word if word in anchors else word.removesuffix("s")]
        if anchor in seen:
            return match[0]
        seen.add(anchor)
        return f'<a class="term" href="#{anchor}">{match[0]}</a>'

    return pattern.sub(link, html.escape(text))


@cache
def _names() -> tuple[re.Pattern[str], dict[str, str]]:
    """A pattern of all names, the longest first, also in the plural, and the anchor of each name."""
    anchors = {name.lower(): term.anchor for term in glossary().values() for name in (term.name, *term.also)}
    names = "|".join(re.escape(html.escape(name)) for name in sorted(anchors, key=len, reverse=True))
    return re.compile(rf"(?<![\w|&-])(?:{names})s?(?![\w-])", re.IGNORECASE), anchors
