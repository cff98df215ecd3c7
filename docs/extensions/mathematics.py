"""Formulas as MathML, which browsers draw without a script."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx


def write_formula(writer: Any, node: nodes.math | nodes.math_block) -> None:
    """Write a formula, inline or displayed."""
    displayed = isinstance(node, nodes.math_block)
    source = node.astext().replace(r"\dots", r"\ldots")
    mathml = latex2mathml.tex2mathml(source, as_block=displayed)
    writer.body.append(f'<div class="formula">{mathml}</div>' if displayed else mathml)
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (write_formula, None), (write_formula, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
