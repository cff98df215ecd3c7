"""What Krylov methods find: the ends of a spectrum, and its density."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from curvature.records import ExtremalEigenvalues, Measured, SpectralDensity, Study
from curvature.report.selection import place_of
from curvature.report.table import Cell, Entry, Table
from curvature.report.words import chart_label, matrix_name

__all__ = ["density_rows", "density_table", "ends_table", "extreme_rows", "extreme_table", "histogram_table"]

_SHARED = ("matrix", "chart", "gauge", "effective", "block", "dim", "num_examples", "num_samples", "dtype")


def extreme_rows(study: Study) -> list[dict[str, Any]]:
    """Ends of spectra, one row per matrix and chart.

    Parameters
    ----------
    study
        Where the ends are.

    Returns
    -------
    list of dict
        Flat, but for ``values`` with the error bound of each.
    """
    rows = []
    for m in study.of(ExtremalEigenvalues):
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
        chart = chart_label(record.chart, record.gauge)
        for end, rank, value, bound in _ends(record):
            entry = value if abs(value) > floor else Cell(floor, status="below_noise_floor")
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


def extreme_table(study: Study) -> Table:
    """Ends of spectra, one row per matrix and chart.

    Parameters
    ----------
    study
        Where the ends are.

    Returns
    -------
    Table
        The outermost values, and whether all of them converged.
    """
    rows = [
        (
            _name(m),
            chart_label(m.record.chart, m.record.gauge),
            m.record.dim,
            *(float(values[0]) if len(values) else None for values in (m.record.largest, m.record.smallest)),
            len(m.record.largest) + len(m.record.smallest),
            float(m.record.error_bounds.max()),
            "✓ yes" if m.record.converged else Cell("✗ no", status="failed"),
            m.record.num_products,
            m.record.seconds,
        )
        for m in study.of(ExtremalEigenvalues)
    ]
    names = ("largest", "smallest", "values", "worst error bound", "converged", "products", "seconds")
    return Table(
        "Ends of the spectrum",
        ("matrix", "chart (gauge)", "size", *names),
        tuple(rows),
        (
            "Lanczos: some eigenvalue lies within the error bound of each value. Converged: to the tolerance, given "
            "the gaps that were seen.",
        ),
    )


def _name(m: Measured) -> str:
    return ", ".join(filter(None, (matrix_name(m.record.matrix), m.record.block.removeprefix("all"))))


def density_rows(study: Study) -> list[dict[str, Any]]:
    """Densities of eigenvalues, one row per matrix and chart.

    Parameters
    ----------
    study
        Where the densities are.

    Returns
    -------
    list of dict
        Range, resolution and moments.
    """
    rows = []
    for m in study.of(SpectralDensity):
        record = m.record
        (mean, mean_error), (square, square_error) = record.moment(1), record.moment(2)
        rows.append(
            _estimate_row(m)
            | {
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
            }
        )
    return rows


def density_table(items: Sequence[Measured]) -> Table:
    """Densities of eigenvalues, one row per matrix and chart.

    Parameters
    ----------
    items
        Measurements of :class:`~curvature.records.SpectralDensity`.

    Returns
    -------
    Table
        Range, resolution, moments with their standard errors, and shares on both sides of zero.
    """
    names = ("probes × products", "lowest node", "highest node", "resolution", "trace", "mean square")
    return Table(
        "Density of eigenvalues",
        ("matrix", "chart (gauge)", "dim", *names, "below 0", "near 0", "above 0", "seconds"),
        tuple(map(_density_entries, items)),
        (
            "Stochastic Lanczos quadrature: products with each of several random probes. ±: one standard error over "
            "the probes. Resolution: (highest - lowest) / products; nothing finer can be read. Near 0: within half the "
            "resolution. The nodes are Ritz values, not eigenvalues.",
        ),
    )


def _density_entries(m: Measured) -> tuple[Entry, ...]:
    record = m.record
    (mean, mean_error), (square, square_error) = record.moment(1), record.moment(2)
    near = np.abs(record.nodes) <= record.resolution / 2
    sides = (~near & (record.nodes < 0), near, ~near & (record.nodes > 0))
    shares = [float((record.weights * side).sum(axis=1).mean()) for side in sides]
    return (
        _name(m),
        chart_label(record.chart, record.gauge),
        record.dim,
        f"{record.num_probes} × {record.num_matvecs}",
        float(record.nodes.min()),
        float(record.nodes.max()),
        record.resolution,
        Cell(record.dim * mean, error=_known(record.dim * mean_error)),
        Cell(square, error=_known(square_error)),
        *(f"{share:.1%}" for share in shares),
        record.seconds,
    )


def _known(error: float) -> float | None:
    return error if math.isfinite(error) else None


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
