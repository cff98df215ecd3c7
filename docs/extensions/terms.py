"""A line ``% glossary`` becomes the terms of the package, which reports use as well."""

from __future__ import annotations

from sphinx.application import Sphinx

from curvature.report.glossary import Term, glossary


def definition(term: Term) -> str:
    """One term as an entry of a glossary in MyST."""
    also = f" Also: {', '.join(term.also)}." if term.also else ""
    return f"{term.name}\n  {term.text}{also} [More](/{term.page}.md)\n"


def expand(_app: Sphinx, page: str, source: list[str]) -> None:
    """Expand the terms of the page of the glossary."""
    if page == "glossary":
        terms = "\n".join(map(definition, glossary().values()))
        source[0] = source[0].replace("% glossary", f"```{{glossary}}\n{terms}\n```".replace("```", "::::"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the expansion."""
    app.connect("source-read", expand)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
