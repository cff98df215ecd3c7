"""What a notebook shows of a record: a title and a table, every text escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping

__all__ = ["html_rows", "html_table"]


def html_table(title: str, entries: Mapping[str, str], beside: str = "") -> str:
    """Show names and values.

    Parameters
    ----------
    title
        Above the table.
    entries
        Name to value.
    beside
        An element to the right of the table, already escaped.

    Returns
    -------
    str
        One ``<div>``.
    """
    return html_rows(title, ((name, value) for name, value in entries.items()), beside)


def html_rows(title: str, rows: Iterable[tuple[str, ...]], beside: str = "") -> str:
    """Show rows of several columns, the first of which names the row.

    Parameters
    ----------
    title
        Above the table.
    rows
        Cells.
    beside
        An element to the right of the table, already escaped.

    Returns
    -------
    str
        One ``<div>``.
    """
    lines = (
        f"<tr><th>{html.escape(first)}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
        for first, *cells in rows
    )
    table = f"<table>{''.join(lines)}</table>"
    if beside:
        table = f"<div style='display:flex;gap:1em;align-items:center'>{table}{beside}</div>"
    return f"<div><b>{html.escape(title)}</b>{table}</div>"
