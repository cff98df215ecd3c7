"""One table, whoever shows it: the terminal, the page and a CSV file have their renderers in :mod:`.render`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

__all__ = ["Cell", "Entry", "Row", "Table", "quantity_cell", "spread_cell"]


@dataclass(frozen=True)
class Cell:
    """A number with what a reader has to know of it.

    Attributes
    ----------
    value
        The number; a text in its place; None where there is none.
    low, high
        Range or interval.
    error
        Standard error.
    status
        As in :class:`~curvature.records.Quantity`; ``"failed"`` for a check.
    share
        How many of the numbers behind it have that status: ``"1 of 3"``.
    details
        Small print, for the page alone.
    signed
        Whether it is a difference, written with its sign.
    factor
        Whether it is a ratio, written with two decimals where it is near 1.
    prefix
        What stands before the number.
    """

    value: float | str | None
    low: float | None = None
    high: float | None = None
    error: float | None = None
    status: str = ""
    share: str = ""
    details: tuple[str, ...] = ()
    signed: bool = False
    factor: bool = False
    prefix: str = ""


Entry: TypeAlias = str | float | bool | np.integer | np.floating | Cell | None
Row: TypeAlias = Mapping[str, Any]  # of the summary of a run: plain values


@dataclass(frozen=True)
class Table:
    """What a table says, without how it looks.

    Attributes
    ----------
    title
        One line.
    header
        Names of the columns. Quantities by their names in the records; the page writes their symbols.
    rows
        As many entries as columns; a row of one entry is a heading over the rows that follow it. The first entry names
        the row.
    notes
        How to read it, one paragraph each.
    folded
        Whether a page shows it only to who asks.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()
    folded: bool = False

    def without(self, names: Collection[str]) -> Table:
        """The same table with fewer columns.

        Parameters
        ----------
        names
            Columns to leave out; those that the table lacks are ignored.

        Returns
        -------
        Table
            Headings stay.
        """
        kept = [index for index, name in enumerate(self.header) if name not in names]
        rows = (row if len(row) == 1 else tuple(row[index] for index in kept) for row in self.rows)
        return replace(self, header=tuple(self.header[index] for index in kept), rows=tuple(rows))


def spread_cell(item: Row | None, form: Callable[[float], float] = float, **more: Any) -> Cell:
    """Cell of a median and range over seeds.

    Parameters
    ----------
    item
        The plain values of a :class:`~curvature.report.spread.Spread`; None where nothing was measured.
    form
        Applied to the three numbers.
    more
        Further fields of the cell.

    Returns
    -------
    Cell
        Without a range where there is one seed.
    """
    if not item:
        return Cell(None, **more)
    if item["median"] is None:
        return Cell(None, status="indefinite" if item["status"] == "indefinite" else "undefined", **more)
    is_range = item["count"] > 1
    low, high = (form(item["low"]), form(item["high"])) if is_range else (None, None)
    share = f"{item['affected']} of {item['count']}" if is_range and item["affected"] else ""
    return Cell(form(item["median"]), low, high, status=item["status"], share=share, **more)


def quantity_cell(item: Row | None, *, interval: bool = False) -> Cell:
    """Cell of one number with its status.

    Parameters
    ----------
    item
        The plain values of a :class:`~curvature.records.Quantity`; None where it was not measured.
    interval
        Whether its interval is shown.

    Returns
    -------
    Cell
        The number, or the status where there is none.
    """
    if not item:
        return Cell(None)
    low, high = (item["low"], item["high"]) if interval else (None, None)
    return Cell(item["value"], low, high, status=item["status"])
