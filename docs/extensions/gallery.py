"""A line ``% example NAME`` becomes title, caption, figure and code of ``docs/gallery/NAME.py``."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from sphinx.application import Sphinx

GALLERY = Path(__file__).parents[1] / "gallery"


def shown(match: re.Match[str]) -> str:
    """One example as Markdown."""
    name = match[1]
    source = (GALLERY / f"{name}.py").read_text(encoding="utf-8")
    title, _, caption = (ast.get_docstring(ast.parse(source)) or name).partition("\n")
    title = title.rstrip(".")
    code = source.split('"""\n', 1)[1].strip()
    figure = f"![{title}](figures/gallery/{name}.svg)\n\n" if name != "small_study" else ""
    return f"### {title}\n\n{figure}{caption.strip()}\n\n```python\n{code}\n```\n"


def expand(_app: Sphinx, page: str, source: list[str]) -> None:
    """Expand the examples of the page of the gallery."""
    if page == "gallery":
        source[0] = re.sub(r"^% example (\w+)$", shown, source[0], flags=re.MULTILINE)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the expansion."""
    app.connect("source-read", expand)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
