"""The last changes to the HTML: keyboard access to what scrolls, levels of headings, attributes under their name."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

REGIONS = ("<pre>", '<div class="table-wrapper', '<div class="formula')


def improve(_app: Sphinx, _page: str, _template: str, context: dict[str, Any], _tree: Any) -> None:
    """Complete the HTML of the page and of the theme's sidebar."""
    context.setdefault("body", "")
    for region in REGIONS:
        tag = region.split(" ")[0].rstrip(">")
        context["body"] = context["body"].replace(region, region.replace(tag, f'{tag} tabindex="0"', 1))
    body = context["body"].replace(">Variables<span", ">Attributes<span")
    context["body"] = re.sub(r"(<p>(?:<a [^>]*>)?<strong>[^\n]*?) -- ", r"\1 – ", body)
    if "furo_navigation_tree" in context:
        heading = 'role="heading"'
        context["furo_navigation_tree"] = context["furo_navigation_tree"].replace(heading, f'{heading} aria-level="2"')


def setup(app: Sphinx) -> dict[str, bool]:
    """Run after the theme."""
    app.connect("html-page-context", improve, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
