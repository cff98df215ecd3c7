"""What Krylov methods find: the ends of a spectrum, and its density."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from curvature.records import ExtremalEigenvalues, Measured, SpectralDensity
from curvature.report.selection import Selection, place_of
from curvature.report.table import Cell, Entry, Row, Table
from curvature.report.words import chart_label, matrix_name

__all__ = ["density_rows", "density_table", "ends_table", "extreme_rows", "extreme_table", "histogram_table"]

_SHARED = ("matrix", "chart", "gauge", "effective", "block", "dim", "num_examples", "num_samples", "dtype")


def extreme_rows(selection: Selection) -> list[dict[str, Any]]:
    """Ends of spectra, one row per matrix and chart.

    Parameters
    ----------
    selection
        What was measured.

    Returns
    -------
    list of dict
        Flat, but for ``values`` with the error bound of each.
    """
    rows = []
    for m in selection.study.of(ExtremalEigenvalues):
        record = m.record
        row = _estimate_row(m) | {"method": "lanczos", "converged": record.converged}
        row["values"] = [
            {"end": end, "rank": rank, "value": value, "error_bound": bound}
            for end, rank, value, bound in _ends(record)
        ]
        row |= {"largest": float(record.largest[0])} if len(record.largest) else {}
        row |= {"smallest": float(record.smallest[0])} if len(record.smallest) else {}
        rows.append(row | {"largest_error_bound": float(record.error_bounds.max())})
    return rows


def _estimate_row(m: Measured) -> dict[str, Any]:
    """What ends and densities share with spectra; there is no rank, noise floor or condition number."""
    record = m.record
    row = place_of(m) | {name: getattr(record, name) for name in _SHARED}
    row |= {"reduction": record.reduction} if record.reduction != "mean" else {}
    row |= {"penalty": record.penalty} if record.penalty else {}
    return row | {"num_products": record.num_products, "seconds": record.seconds, "numbers": {}}


def _ends(record: ExtremalEigenvalues) -> list[tuple[str, int, float, float]]:
    """End, rank from that end, value and error bound of each."""
    return [
        (end, rank, float(value), float(bound))
        for end, values, bounds in (
            ("largest", record.largest, record.largest_bounds),
            ("smallest", record.smallest, record.smallest_bounds),
        )
        for rank, (value, bound) in enumerate(zip(values, bounds, strict=True), start=1)
    ]


def ends_table(title: str, items: Sequence[Measured]) -> Table:
    """Every value at the ends of spectra, with its error bound.

    Parameters
    ----------
    title
        One line.
    items
        Measurements of :class:`~curvature.records.ExtremalEigenvalues`.

    Returns
    -------
    Table
        One row per value; the note says what converged.
    """
    rows: list[tuple[Entry, ...]] = []
    states = []
    for m in items:
        record, floor = m.record, m.record.noise_floor
        chart = ", ".join(filter(None, (chart_label(record.chart, record.gauge), record.penalty)))
        for end, rank, value, bound in _ends(record):
            entry = value if abs(value) > floor or floor == 0 else Cell(floor, status="below_noise_floor")
            rows.append((m.arm, record.block, record.matrix, chart, end, rank, entry, bound))
        block = record.block.removeprefix("all")
        state = "converged" if record.converged else "NOT converged"
        states.append(
            f"{', '.join(filter(None, (chart, block)))}, {record.dim} x {record.dim}: {state} in "
            f"{record.num_products} products"
        )
    reading = "Some eigenvalue lies within the error bound of each value; a multiple eigenvalue is found once."
    header = ("weights", "block", "matrix", "chart", "end", "rank", "eigenvalue", "error bound")
    return Table(title, header, tuple(rows), (reading, *states))


def extreme_table(rows: Sequence[Row]) -> Table:
    """Ends of spectra, one row per matrix and chart.

    Parameters
    ----------
    rows
        ``extremes`` of the summary.

    Returns
    -------
    Table
        The outermost values, and whether all of them converged.
    """
    lines = [
        (
            *_place(row),
            *(row.get(name) for name in ("dim", "largest", "smallest")),
            len(row["values"]),
            row["largest_error_bound"],
            "✓ yes" if row["converged"] else Cell("✗ no", status="failed"),
            row["num_products"],
            row["seconds"],
        )
        for row in rows
    ]
    names = ("largest", "smallest", "values", "worst error bound", "converged", "products", "seconds")
    return Table(
        "Ends of the spectrum",
        ("matrix", "chart (gauge)", "size", *names),
        tuple(lines),
        (
            "Lanczos: some eigenvalue lies within the error bound of each value. Converged: to the tolerance, given "
            "the gaps that were seen.",
        ),
    )


def _place(row: Row) -> tuple[str, str]:
    matrix = ", ".join(filter(None, (matrix_name(row["matrix"]), row["block"].removeprefix("all"))))
    return matrix, chart_label(row["chart"], row["gauge"])


def density_rows(selection: Selection) -> list[dict[str, Any]]:
    """Densities of eigenvalues, one row per matrix and chart.

    Parameters
    ----------
    selection
        What was measured.

    Returns
    -------
    list of dict
        Range, resolution, moments, and shares on both sides of zero.
    """
    return [_density_row(m) for m in selection.study.of(SpectralDensity)]


def _density_row(m: Measured[SpectralDensity]) -> dict[str, Any]:
    record = m.record
    (mean, mean_error), (square, square_error) = record.moment(1), record.moment(2)
    near = np.abs(record.nodes) <= record.resolution / 2
    sides = {"below": ~near & (record.nodes < 0), "near": near, "above": ~near & (record.nodes > 0)}
    return {
        **_estimate_row(m),
        "method": "slq",
        "num_probes": record.num_probes,
        "num_matvecs": record.num_matvecs,
        "lowest_node": float(record.nodes.min()),
        "highest_node": float(record.nodes.max()),
        "resolution": record.resolution,
        "trace": record.dim * mean,
        "trace_standard_error": record.dim * mean_error,
        "mean_square": square,
        "mean_square_standard_error": square_error,
        **{f"share_{side}_zero": float((record.weights * mask).sum(axis=1).mean()) for side, mask in sides.items()},
    }


def density_table(rows: Sequence[Row]) -> Table:
    """Densities of eigenvalues, one row per matrix and chart.

    Parameters
    ----------
    rows
        ``densities`` of the summary.

    Returns
    -------
    Table
        Range, resolution, moments with their standard errors, and shares on both sides of zero.
    """
    lines = [
        (
            *_place(row),
            row["dim"],
            f"{row['num_probes']} × {row['num_matvecs']}",
            *(row[name] for name in ("lowest_node", "highest_node", "resolution")),
            *(Cell(row[name], error=row[f"{name}_standard_error"]) for name in ("trace", "mean_square")),
            *(f"{row[f'share_{side}_zero']:.1%}" for side in ("below", "near", "above")),
            row["seconds"],
        )
        for row in rows
    ]
    names = ("probes × products", "lowest node", "highest node", "resolution", "trace", "mean square")
    return Table(
        "Density of eigenvalues",
        ("matrix", "chart (gauge)", "dim", *names, "below 0", "near 0", "above 0", "seconds"),
        tuple(lines),
        (
            "Stochastic Lanczos quadrature: products with each of several random probes. ±: one standard error over "
            "the probes. Resolution: (highest - lowest) / products; nothing finer can be read. Near 0: within half the "
            "resolution. The nodes are Ritz values, not eigenvalues.",
        ),
    )


def histogram_table(title: str, items: Sequence[Measured]) -> Table:
    """Densities in bins: the numbers in a figure.

    Parameters
    ----------
    title
        Of the figure.
    items
        Measurements of :class:`~curvature.records.SpectralDensity`.

    Returns
    -------
    Table
        One row per bin.
    """
    rows: list[tuple[Entry, ...]] = []
    for m in items:
        edges, density, error = m.record.histogram()
        place = (m.arm, m.record.block, m.record.matrix, chart_label(m.record.chart, m.record.gauge))
        rows += [(*place, *values) for values in zip(edges[:-1], edges[1:], density, error, strict=True)]
    return Table(title, ("weights", "block", "matrix", "chart", "from", "to", "density", "standard error"), tuple(rows))
