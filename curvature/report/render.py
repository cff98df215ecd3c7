"""A table as text for a terminal, as HTML for the page, and as CSV."""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from textwrap import fill
from types import MappingProxyType

import numpy as np
from rich.cells import cell_len

from curvature.report.table import Cell, Entry, Table
from curvature.report.words import factor_words, quantity_symbol, short_number, signed
from curvature.text import one_line, printable

__all__ = ["page_number", "table_csv", "table_html", "table_text"]

_GAP = 2  # characters between columns
_SIGNS = {"lower_bound": "> {}", "upper_bound_only": "< {}", "below_noise_floor": "< {}"}
_LONGEST_LINE = 120  # of a note in a terminal
_NARROW = 9  # columns up to which the page has room for the usual size
_WRAPPED = 40  # characters from which on a text in the page may be broken


# --- terminal


def table_text(
    table: Table, *, width: int = 100, digits: int = 4, digits_of: Mapping[str, int] = MappingProxyType({})
) -> str:
    """Lay a table out for a terminal, with the columns that exceed its width below the others.

    Parameters
    ----------
    table
        What to show; control characters in its texts become escapes.
    width
        Characters of a line. A single column may be wider.
    digits
        Significant digits of a number.
    digits_of
        Those of the columns that differ.

    Returns
    -------
    str
        Lines without trailing spaces. A column without any number is left out.

    Examples
    --------
    >>> print(table_text(Table("Two", ("chart", "rank"), (("standard", 12), ("weight-norm", Cell(9.5, 8, 11))))))
    Two
    chart               rank
    standard              12
    weight-norm  9.5 [8, 11]
    """
    indent = "  " if any(len(row) == 1 for row in table.rows) else ""
    columns = [digits_of.get(name, digits) for name in table.header]
    rows = [[_terminal_entry(entry, columns[k]) for k, entry in enumerate(row)] for row in table.rows]
    for row in rows:
        row[0] = indent + row[0] if len(row) > 1 else row[0]
    header = [one_line(name) for name in table.header]
    full = [row for row in rows if len(row) > 1]
    widths = [max(map(cell_len, column)) for column in zip(header, *full, strict=True)]
    left = _text_columns(table)
    lines = [one_line(table.title)] if table.title else []
    full_columns = [k for k in range(len(header)) if k == 0 or any(row[k] != "-" for row in full)]
    for number, part in enumerate(_parts(full_columns, widths, width)):
        lines += [""] * (number > 0)
        for row in (header, *rows):
            kept = row if len(row) == 1 else [_padded(row[k], widths[k], left=k in left) for k in part]
            lines.append((" " * _GAP).join(kept).rstrip())
    room = min(width, _LONGEST_LINE)
    notes = [fill(one_line(note), room, subsequent_indent="  ", break_on_hyphens=False) for note in table.notes]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _parts(columns: Sequence[int], widths: Sequence[int], width: int) -> list[list[int]]:
    """Columns of each part: the first one, and as many others as a line holds."""
    parts, room = [[0]], width - widths[0]
    for column in columns[1:]:
        if len(parts[-1]) > 1 and room < _GAP + widths[column]:
            parts.append([0])
            room = width - widths[0]
        parts[-1].append(column)
        room -= _GAP + widths[column]
    return parts


def _padded(text: str, width: int, *, left: bool) -> str:
    spaces = " " * (width - cell_len(text))
    return text + spaces if left else spaces + text


def _terminal_entry(entry: Entry, digits: int) -> str:
    cell = _cell(entry)
    if cell.value is None:
        return cell.status.replace("_", " ") or "-"
    if isinstance(cell.value, str):
        return one_line(cell.prefix + cell.value)
    text = _terminal_number(cell.value, cell, digits)
    text = f"({text})" if cell.status == "unresolved" else _SIGNS.get(cell.status, "{}").format(text)
    if cell.low is not None and cell.high is not None:
        text += f" [{_terminal_number(cell.low, cell, digits)}, {_terminal_number(cell.high, cell, digits)}]"
    text += f" ± {cell.error:.1g}" if cell.error is not None else ""
    return cell.prefix + text + (f" ({cell.share})" if cell.share else "")


def _terminal_number(value: float, cell: Cell, digits: int) -> str:
    if isinstance(value, int):
        return str(value)
    if cell.signed:
        return f"{value:+.2f}"
    if cell.factor:
        return factor_words(value)
    # A number with its range takes three times the room: without the padding of the exponent.
    return f"{value:.{digits}g}" if cell.low is None else short_number(value, digits).replace("−", "-")


# --- page


def table_html(table: Table, most_rows: int | None = None) -> str:
    """Lay a table out as HTML, with every text escaped.

    Parameters
    ----------
    table
        What to show; its notes become the caption, its title is left to the page.
    most_rows
        Rows after which it ends with a count of the others.

    Returns
    -------
    str
        One ``table`` element, and a paragraph if rows were left out.
    """
    left = _text_columns(table)
    names = "".join(
        f'<th{_class(index in left)} scope="col">{_escaped(quantity_symbol(name))}</th>'
        for index, name in enumerate(table.header)
    )
    lines = [
        '<table class="dense">' if len(table.header) > _NARROW else "<table>",
        *([f"<caption>{'<br>'.join(map(_escaped, table.notes))}</caption>"] if table.notes else []),
        f"<thead><tr>{names}</tr></thead>",
        "<tbody>",
    ]
    shown = table.rows if most_rows is None else table.rows[:most_rows]
    for row in shown:
        first, *others = row
        if others:
            cells = "".join(f"<td{_class(k in left, e)}>{_html_entry(e)}</td>" for k, e in enumerate(others, start=1))
            lines.append(f'<tr><th{_class(True, first)} scope="row">{_html_entry(first)}</th>{cells}</tr>')
        else:
            span = f'class="text" scope="rowgroup" colspan="{len(table.header)}"'
            lines.append(f'<tr class="group"><th {span}>{_html_entry(first)}</th></tr>')
    lines.append("</tbody></table>")
    if len(shown) < len(table.rows):
        lines.append(f'<p class="note">{len(table.rows) - len(shown)} more rows are in <code>summary.csv</code>.</p>')
    return "\n".join(lines)


def page_number(value: float | None) -> str:
    """A number in a table of the page: integers whole, others with three digits.

    Parameters
    ----------
    value
        Any number.

    Returns
    -------
    str
        A dash if the value is missing or not finite.

    Examples
    --------
    >>> page_number(1028.0), page_number(-0.5), page_number(None)
    ('1028', '−0.5', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, int):
        return str(value)
    return str(int(value)).replace("-", "−") if value.is_integer() and abs(value) < 1e6 else short_number(value)


def _html_entry(entry: Entry) -> str:
    cell = _cell(entry)
    small = list(map(_escaped, cell.details))
    if cell.value is None:
        text = f'<span class="word">{_escaped(cell.status.replace("_", " "))}</span>' if cell.status else "–"
    elif isinstance(cell.value, str):
        text = _escaped(cell.value)
        text = f'<span class="failed">{text}</span>' if cell.status == "failed" else text
    else:
        write = signed if cell.signed else factor_words if cell.factor else page_number
        text = _escaped(_SIGNS.get(cell.status, "{}").format(write(cell.value)))
        if cell.low is not None and cell.high is not None and write(cell.low) != write(cell.high):
            small.insert(0, f"{write(cell.low)}&nbsp;to&nbsp;{write(cell.high)}")
        small += [f"±&nbsp;{page_number(cell.error)}"] if cell.error is not None else []
    text = _escaped(cell.prefix) + text + "".join(f"<small>{line}</small>" for line in small)
    if cell.status in ("lower_bound", "unresolved"):
        share = f" ({_escaped(cell.share)})" if cell.share else ""
        text += f'<small class="word">{cell.status.replace("_", " ")}{share}</small>'
    return text


def _class(text: bool, entry: Entry = "") -> str:
    cell = _cell(entry)
    long = any(isinstance(line, str) and len(line) > _WRAPPED for line in (cell.value, *cell.details))
    names = " ".join(name for name, applies in (("text", text), ("wrap", long)) if applies)
    return f' class="{names}"' if names else ""


def _escaped(text: str) -> str:
    return html.escape(printable(text))


# --- CSV


def table_csv(table: Table) -> str:
    """Write a table as CSV (RFC 4180), with the header's names and plain numbers.

    Parameters
    ----------
    table
        What to write; of cells the value alone. Headings are left out.

    Returns
    -------
    str
        A text that a spreadsheet would take for a formula begins with an apostrophe; a gauge ``"-"`` is empty.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(table.header)
    writer.writerows([_csv_entry(_cell(entry).value) for entry in row] for row in table.rows if len(row) > 1)
    return stream.getvalue()


def _csv_entry(value: float | str | None) -> float | str:
    if value is None or value == "-":  # no gauge, and not a formula either
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return value
    text = "".join(part if part.isspace() else printable(part) for part in re.split(r"([\t\r\n]+)", value))
    return f"'{text}" if value[:1] in ("=", "+", "-", "@", "\t", "\r", "\0") else text


# --- all


def _cell(entry: Entry) -> Cell:
    if isinstance(entry, Cell):
        return entry
    return Cell(entry.item() if isinstance(entry, np.generic) else entry)


def _text_columns(table: Table) -> set[int]:
    """Columns on the left: the first, and those of texts alone."""
    full = [row for row in table.rows if len(row) > 1]
    texts = (
        k for k in range(1, len(table.header)) if full and all(isinstance(_cell(row[k]).value, str) for row in full)
    )
    return {0, *texts}
