"""HTML that a notebook shows for a record: a title and a table, with every text escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping

from curvature.text import one_line

__all__ = ["html_rows", "html_table"]


def html_table(title: str, entries: Mapping[str, str], beside: str = "") -> str:
    """Write a title and a table of names and values.

    Parameters
    ----------
    title
        Heading above the table.
    entries
        Value by name.
    beside
        HTML element to the right of the table, already escaped.

    Returns
    -------
    str
        A ``<div>`` element.
    """
    return html_rows(title, ((name, value) for name, value in entries.items()), beside)


def html_rows(title: str, rows: Iterable[tuple[str, ...]], beside: str = "") -> str:
    """Write a title and a table with several columns, the first of which names the row.

    Parameters
    ----------
    title
        Heading above the table.
    rows
        Cells of each row.
    beside
        HTML element to the right of the table, already escaped.

    Returns
    -------
    str
        A ``<div>`` element.
    """
    escaped = ([html.escape(one_line(cell)) for cell in row] for row in rows)
    lines = (f"<tr><th>{first}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for first, *cells in escaped)
    table = f"<table>{''.join(lines)}</table>"
    if beside:
        table = f"<div style='display:flex;gap:1em;align-items:center'>{table}{beside}</div>"
    return f"<div><b>{html.escape(one_line(title))}</b>{table}</div>"
