"""The numbers of a grid as records, read back from the plain values of its summary: all that a report is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from curvature.errors import ConfigurationError
from curvature.records import Check, PooledEffect, PooledVerdict, Verdict
from curvature.records.storage import from_plain
from curvature.report.parts import read_sealed, repeat_advice
from curvature.report.plain import odd_values
from curvature.report.target import shown_path
from curvature.text import reason_of

__all__ = ["GRID_SCHEMA", "WORDS", "CellRecord", "GridRecord", "grid_record", "read_grid_summary"]

GRID_SCHEMA = "curvature/grid/1"
WORDS = ("name", "label", "icon", "in_words")  # of a verdict in a summary; they follow from its numbers
_MEASURED = ("cells", "verdicts", "sources", "hessian_sources", "arms", "groups")  # members of a summary


@dataclass(frozen=True)
class CellRecord:
    """One network on one data set under one optimizer.

    Attributes
    ----------
    name, data, architecture, optimizer, batch_size
        As in :class:`~curvature.studies.grid.Cell`.
    num_weights, num_examples, num_seeds, num_checks
        Counts.
    failed_checks
        Those that did not pass.
    verdicts
        Of this cell by itself, with the number of each seed.
    """

    name: str
    data: str
    architecture: str
    optimizer: str
    batch_size: int
    num_weights: int
    num_examples: int
    num_seeds: int
    num_checks: int
    failed_checks: tuple[Check, ...]
    verdicts: tuple[Verdict, ...] = field(repr=False)


@dataclass(frozen=True)
class GridRecord:
    """What was measured and decided in a grid, without the training runs.

    Attributes
    ----------
    cells
        In the order of the grid.
    threshold
        Smallest effect that counts, as a log-ratio.
    verdicts, sources, hessian_sources, arms, groups
        As in :class:`~curvature.studies.grid.GridStudy`.
    """

    cells: tuple[CellRecord, ...]
    threshold: float
    verdicts: tuple[PooledVerdict, ...]
    sources: tuple[PooledEffect, ...]
    hessian_sources: tuple[PooledEffect, ...]
    arms: tuple[PooledEffect, ...]
    groups: Mapping[str, tuple[PooledEffect, ...]]


def grid_record(document: Mapping[str, Any]) -> GridRecord:
    """Read the numbers of a summary as records.

    Parameters
    ----------
    document
        As :func:`~curvature.report.grid_document` returns it.

    Returns
    -------
    GridRecord
        Every number with the bits that were written.
    """
    plain = odd_values({"hessian_sources": []} | {name: document[name] for name in _MEASURED if name in document})
    return GridRecord(
        cells=tuple(_cell(row) for row in plain["cells"]),
        threshold=document["config"]["threshold"],
        verdicts=tuple(from_plain(PooledVerdict, _without_words(row)) for row in plain["verdicts"]),
        sources=_effects(plain["sources"]),
        hessian_sources=_effects(plain["hessian_sources"]),
        arms=_effects(plain["arms"]),
        groups={name: _effects(rows) for name, rows in plain["groups"].items()},
    )


def read_grid_summary(directory: Path) -> dict[str, Any]:
    """Read the summary of the run directory of a grid.

    Parameters
    ----------
    directory
        With ``summary.json``; every other file follows from it.

    Returns
    -------
    dict
        Plain values.

    Raises
    ------
    ConfigurationError
        If the file is missing or not the summary of a grid, or one bit of it has changed since it was written.
    """
    path = directory / "summary.json"
    document = read_sealed(path, repeat_advice(directory, "compare", "--grid"))
    if document.get("schema") != GRID_SCHEMA:
        raise ConfigurationError(
            f"{shown_path(directory)} has no result.nc, so its report could only be made from the summary of a grid, "
            f"but its summary.json has the schema {document.get('schema')!r} instead of {GRID_SCHEMA!r}. Use a "
            "complete copy of the run."
        )
    try:
        grid_record(document)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{shown_path(path)} lacks numbers that its report needs: {reason_of(error)}. Use another copy, or repeat "
            "the run."
        ) from error
    return document


def _cell(row: Mapping[str, Any]) -> CellRecord:
    verdicts = tuple(from_plain(Verdict, _without_words(verdict)) for verdict in row["verdicts"])
    failed = tuple(from_plain(Check, check) for check in row["failed_checks"])
    shown = {item.name: row[item.name] for item in fields(CellRecord)}
    return CellRecord(**shown | {"verdicts": verdicts, "failed_checks": failed})


def _effects(rows: list[Mapping[str, Any]]) -> tuple[PooledEffect, ...]:
    return tuple(from_plain(PooledEffect, row) for row in rows)


def _without_words(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in WORDS}
