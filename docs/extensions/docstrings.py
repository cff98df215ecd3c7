"""How docstrings are read: ``$...$`` is a formula, and an array is written with its axes."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx


def mark_formulas(_app: Sphinx, _what: str, name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Write the formulas of a docstring as reStructuredText does; give its references names of their own."""
    text = re.sub(r"^( *)\$\$(.+)\$\$$", r"\1.. math:: \2", "\n".join(lines), flags=re.MULTILINE)
    text = re.sub(r"(?<![\w$`])\$([^$\n]+(?:\n[^$\n]+)?)\$(?![\w$])", _as_role, text)
    text = re.sub(r"\[(\d)\](?=_)|(?<=\.\. )\[(\d)\]", rf"[#{name.replace('.', '-')}-\1\2]", text)
    lines[:] = _one_by_one(text.split("\n"))


def _as_role(match: re.Match[str]) -> str:
    """Join a formula over two lines, and begin the second line after it, as far to the right as before."""
    first, newline, second = match[1].partition("\n")
    indent = second[: len(second) - len(second.lstrip())]
    return f":math:`{first}{' ' if newline else ''}{second.strip()}`{newline}{indent}"


def _one_by_one(lines: list[str]) -> list[str]:
    """Write ``:ivar a, b: text`` for each of its names, since the last one alone would count as the name."""
    starts = [index for index, line in enumerate(lines) if re.match(r":ivar ([\w*]+, )+[\w*]+:", line)]
    for start in reversed(starts):
        rest = range(start + 1, len(lines))
        end = next((index for index in rest if lines[index] and not lines[index].startswith(" ")), len(lines))
        names, _, text = lines[start].removeprefix(":ivar ").partition(":")
        entries = [[f":ivar {name}:{text}", *lines[start + 1 : end]] for name in names.split(", ")]
        lines = [*lines[:start], *(line for entry in entries for line in entry), *lines[end:]]
    return lines


def name_axes(
    _app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, ...]:
    """Write ``Tensor['dim columns']`` for ``Annotated[Tensor, 'dim columns']``, and ``...`` for a made default."""
    annotation = r"~?(?:\w+\.)*Annotated\[([\w.~]+), ('[^']*')\]"
    texts = [text and text.replace("<factory>", "...") for text in (signature, returned)]  # else nothing is linked
    return tuple(text and re.sub(annotation, r"\1[\2]", text) for text in texts)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register both readers."""
    app.connect("autodoc-process-docstring", mark_formulas)
    app.connect("autodoc-process-signature", name_axes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
