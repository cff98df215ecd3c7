"""The last changes to a page: descriptions of figures, keyboard access to what scrolls, levels of headings."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

REGIONS = ("<pre>", '<div class="table-wrapper', '<div class="formula')


def complete(_app: Sphinx, tree: nodes.document) -> None:
    """Describe the figures of notebooks, and drop the empty line that ends a doctest."""
    for image in tree.findall(lambda node: isinstance(node, nodes.image) and "alt" not in node):
        section = image.parent
        while not isinstance(section, nodes.section):
            section = section.parent
        image["alt"] = f"Figure of the section {section[0].astext()!r}. The text below it says how to read it."
    for block in tree.findall(nodes.literal_block):
        if block.rawsource == block.astext():
            block.rawsource = block.rawsource.rstrip("\n")
            block.children = [nodes.Text(block.rawsource)]


def improve(_app: Sphinx, _page: str, _template: str, context: dict[str, Any], _tree: Any) -> None:
    """Complete the HTML of the page and of the theme's sidebar."""
    context.setdefault("body", "")
    for region in REGIONS:
        tag = region.split(" ")[0].rstrip(">")
        context["body"] = context["body"].replace(region, region.replace(tag, f'{tag} tabindex="0"', 1))
    body = context["body"].replace(">Variables<span", ">Attributes<span")
    body = re.sub(r'(<img alt="[^"]*" src="([^"]+)" />)', r'<a class="enlarge" href="\2">\1</a>', body)
    context["body"] = re.sub(r"(<p>(?:<a [^>]*>)?<(?:strong|em)>[^\n]*?) -- ", r"\1 – ", body)
    if "furo_navigation_tree" in context:
        heading = 'role="heading"'
        context["furo_navigation_tree"] = context["furo_navigation_tree"].replace(heading, f'{heading} aria-level="2"')


def setup(app: Sphinx) -> dict[str, bool]:
    """Run after the reader of the page, and after the theme."""
    app.connect("doctree-read", complete)
    app.connect("html-page-context", improve, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
