"""Formulas as MathML, which browsers draw without a script."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx


def as_mathml(source: str, *, displayed: bool = False) -> str:
    """Convert a formula as TeX reads it: one digit above a fraction, no space at bars, a space after ``log``."""
    source = re.sub(r"\\(t?frac)(\d)(\w)", r"\\\1{\2}{\3}", source.replace(r"\dots", r"\ldots"))
    mathml = latex2mathml.tex2mathml(source, as_block=displayed)
    mathml = mathml.replace('<mo stretchy="false">|</mo>', '<mo stretchy="false" lspace="0" rspace="0">|</mo>')
    mathml = re.sub(r'(</mi>)(?=\s*<mi mathvariant="normal">)', r'\1<mspace width="0.1667em"></mspace>', mathml)
    return re.sub(
        r"(<mo>&ApplyFunction;</mo>)(?=\s*<m(?!o|row|space))", r'\1<mspace width="0.1667em"></mspace>', mathml
    )


def write_formula(writer: Any, node: nodes.math | nodes.math_block) -> None:
    """Write a formula, inline or displayed."""
    displayed = isinstance(node, nodes.math_block)
    mathml = as_mathml(node.astext(), displayed=displayed)
    writer.body.append(f'<div class="formula">{mathml}</div>' if displayed else mathml)
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (write_formula, None), (write_formula, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
