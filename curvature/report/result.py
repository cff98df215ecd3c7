"""The result file: everything numeric about a study as NetCDF, and back."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from curvature import records
from curvature.errors import ConfigurationError
from curvature.records import (
    Check,
    ConditionNumbers,
    Decomposition,
    Eigenvectors,
    ExtremalEigenvalues,
    LearningRateSweep,
    Measured,
    Quantity,
    SpectralDensity,
    Spectrum,
    Study,
    TrainingCurve,
    Verdict,
)
from curvature.records.conditioning import QUANTITIES
from curvature.records.storage import from_plain, storable, to_plain
from curvature.records.verdict import present_outcome
from curvature.report.netcdf import Arrays, Group, Variables, read_netcdf, write_netcdf
from curvature.report.selection import place_of
from curvature.report.spread import grouped
from curvature.text import one_line

if TYPE_CHECKING:
    import h5py

__all__ = ["SCHEMA", "read_result", "write_result"]

Dimensions: TypeAlias = Mapping[str, tuple[str, ...]]  # of each array of a record
Contents: TypeAlias = tuple[Arrays, dict[str, Any]]  # of a group that is read: arrays and attributes
Numbered: TypeAlias = tuple[int, Measured[Any]]  # a measurement with its place in the study

SCHEMA = "curvature/1"
MAX_BYTES = 4 * 2**30  # of the arrays of a result file; a study of every arm and seed has some megabytes
_RECORDS = {name: getattr(records, name) for name in records.__all__}
_PLACE = {"arm": str, "seed": int, "checkpoint": str, "step": int, "order": int}
# Records with arrays: by their folder, the dimensions of every array.
_ARRAYS: Mapping[str, tuple[type, Dimensions]] = {
    "spectra": (Spectrum, {"eigenvalues": ("index",), "gradient_weights": ("index",)}),
    "extremes": (
        ExtremalEigenvalues,
        {"largest": ("rank",), "smallest": ("rank_from_below",), "residuals": ("value",), "error_bounds": ("value",)},
    ),
    "densities": (SpectralDensity, {"nodes": ("probe", "node"), "weights": ("probe", "node")}),
}
# Eigenvectors of a record, by its place in the study.
_VECTORS: Dimensions = {
    "eigenvalues": ("vector",),
    "columns": ("coordinate", "vector"),
    "residuals": ("vector",),
}
# Condition numbers: by the name of their table, field of a quantity and its type.
_GRIDS = {
    "value": ("value", float),
    "status": ("status", object),
    "note": ("note", object),
    "low": ("low", float),
    "high": ("high", float),
    "interval_method": ("method", object),
}
# What is not a measurement, by its field in a study: one table, or one node each with the dimensions of its arrays.
_ROWS = {"verdicts": Verdict, "checks": Check}
_ITEMS: Mapping[str, tuple[type, Dimensions]] = {
    "decompositions": (Decomposition, {"parts": ("seed", "source"), "whole": ("seed",)}),
    "sweeps": (LearningRateSweep, {"rates": ("rate",), "final_losses": ("rate",)}),
    "curves": (TrainingCurve, {"steps": ("record",), "losses": ("record",), "accuracies": ("record",)}),
}
_FIELDS = {"command": str, "model": str, "data": str, "num_weights": int, "num_examples": int}


# --- writing


def write_result(study: Study, path: Path) -> None:
    """Write NetCDF: a table per kind of record, of arrays one per size; a node per curve, sweep and decomposition.

    Parameters
    ----------
    study
        What to write.
    path
        Of the file.

    Raises
    ------
    OSError
        If the disk is full or fails.
    """
    attributes = {name: getattr(study, name) for name in _FIELDS}
    attributes |= {"schema": SCHEMA, "warnings": list(study.warnings)}
    tables = _measurement_tables(study)
    tables |= {f"/{name}": _row_table(list(map(to_plain, rows))) for name in _ROWS if (rows := getattr(study, name))}
    groups = {"/": Group({}, _attributes(attributes))}
    groups |= {path: Group(table, {}) for path, table in tables.items()}
    for name, (_, dimensions) in _ITEMS.items():
        for number, item in enumerate(getattr(study, name)):
            groups[f"/{name}/{number:04d}"] = _item_group(item, dimensions)
    for order, m in enumerate(study.measurements):
        if (vectors := getattr(m.record, "vectors", None)) is not None:
            groups[f"/vectors/{order}"] = _item_group(vectors, _VECTORS)
    try:
        write_netcdf(groups, path)
    except RuntimeError as error:  # what HDF5 says when the disk fails
        raise OSError(errno.EIO, str(error)) from error


def _measurement_tables(study: Study) -> dict[str, Variables]:
    tables = {}
    kinds = grouped(enumerate(study.measurements), lambda numbered: type(numbered[1].record).__name__)
    for folder, (kind, dimensions) in _ARRAYS.items():
        for number, table in enumerate(_array_tables(kinds.pop(kind.__name__, []), dimensions)):
            tables[f"/{folder}/{number:04d}"] = table
    if numbers := kinds.pop(ConditionNumbers.__name__, None):
        tables["/condition_numbers"] = _number_table(numbers)
    return tables | {f"/{name}": _row_table(list(map(_row, members))) for name, members in kinds.items()}


def _item_group(item: Any, dimensions: Dimensions) -> Group:
    plain = to_plain(item)
    arrays = {name: (axes, plain.pop(name)) for name, axes in dimensions.items()}
    return Group(arrays, _attributes(plain))


def _attributes(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _stored(value) for name, value in values.items()}


def _stored(value: Any) -> Any:
    """Keep numbers and text; write None, booleans and containers, which NetCDF does not know, as JSON."""
    if isinstance(value, str):
        return value if "\0" not in value and value.isprintable() else one_line(value)
    return storable(value)


def _row(numbered: Numbered, without: Collection[str] = ()) -> dict[str, Any]:
    order, m = numbered
    fields = {name: value for name, value in to_plain(m.record).items() if name not in without}
    return place_of(m) | {"order": order} | fields


def _row_table(rows: Sequence[Mapping[str, Any]]) -> Variables:
    columns: Variables = {}
    for name, usual in (("reduction", "mean"), ("penalty", "")):  # left out of records that have the usual one
        if any(name in row for row in rows):
            rows = [{name: usual, **row} for row in rows]
    for key in rows[0]:
        values = [_stored(row[key]) for row in rows]
        if any(isinstance(value, str) for value in values):
            texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
            columns[key] = ("row",), np.array(texts, dtype=object)
        else:
            columns[key] = ("row",), np.array(values)
    return columns


def _array_tables(members: Sequence[Numbered], dimensions: Dimensions) -> Iterator[Variables]:
    """One table for each set of array shapes: a node per record is slow to write and to read."""

    def shapes_of(numbered: Numbered) -> tuple[tuple[int, ...] | None, ...]:
        arrays = (getattr(numbered[1].record, name) for name in dimensions)
        return tuple(None if array is None else array.shape for array in arrays)

    for shapes, alike in grouped(members, shapes_of).items():
        yield _row_table([_row(numbered, without=dimensions) for numbered in alike]) | {
            name: (("row", *dimensions[name]), np.stack([getattr(m.record, name) for _, m in alike]))
            for name, shape in zip(dimensions, shapes, strict=True)
            if shape is not None
        }


def _number_table(members: Sequence[Numbered]) -> Variables:
    """One row per record, and by the name of the quantity its value, status, note, interval and method."""
    names = list(dict.fromkeys(name for _, m in members for name in m.record.values))
    rows = []
    for numbered in members:
        pairs = numbered[1].record.damped.items()
        damped = [[delta, *(list(asdict(quantity).values()) for quantity in pair)] for delta, pair in pairs]
        rows.append(_row(numbered, without=("values", "damped")) | {"damped": damped})
    missing = Quantity(math.nan, "", "")
    cells = [[m.record.values.get(name, missing) for name in names] for _, m in members]
    columns: Variables = {"quantity": (("quantity",), np.array(names, dtype=object))}
    for grid, (name, dtype) in _GRIDS.items():
        values = [[getattr(quantity, name) for quantity in row] for row in cells]
        columns[grid] = ("row", "quantity"), np.array(values, dtype=dtype)
    return _row_table(rows) | columns


# --- reading


def read_result(path: Path, config: dict[str, Any], provenance: dict[str, Any]) -> Study:
    """Read a study from a result file.

    The file is checked before it is read: arrays of any claimed shape can lie in a few bytes, and a dataset can name
    another file of the machine as its content.

    Parameters
    ----------
    path
        Of the file.
    config, provenance
        Of the study: they are in files of their own.

    Returns
    -------
    Study
        What :func:`write_result` wrote.

    Raises
    ------
    ConfigurationError
        If the file has another schema.
    ValueError
        If it claims too much memory, or holds a link.
    """
    import h5py

    with h5py.File(path, "r") as file:
        _refuse_claims(file)
        groups = read_netcdf(file)
    if groups["/"][1].get("schema") != SCHEMA:
        raise ConfigurationError(f"{one_line(path.name)} holds no result of schema {SCHEMA}.")
    return _decoded(groups, config, provenance)


def _refuse_claims(file: h5py.File) -> None:
    import h5py

    size, seen = 0, set()
    queue = [file["/"]]
    while queue:
        group = queue.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{name} is a link to another place")  # noqa: TRY004
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                raise ValueError(f"{name} is there twice")
            seen.add(address)
            if isinstance(item, h5py.Group):
                queue.append(item)
            elif not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
                raise ValueError(f"{name} does not lie in the file")
            else:
                size += item.size * item.dtype.itemsize if item.shape is not None else 0
    if size > MAX_BYTES:
        raise ValueError(f"its arrays claim {size / 2**30:.3g} GB; the limit is {MAX_BYTES / 2**30:.3g} GB")


def _decoded(groups: Mapping[str, Contents], config: dict[str, Any], provenance: dict[str, Any]) -> Study:
    """The study with its measurements in their old order."""
    attributes = groups["/"][1]
    children: dict[str, list[tuple[str, Contents]]] = {}
    tables = {}
    for path, contents in groups.items():
        folder, _, name = path.strip("/").partition("/")
        if name:
            children.setdefault(folder, []).append((name, contents))
        else:
            tables[folder] = contents[0]
    measured = [
        numbered
        for folder in _ARRAYS
        for _, (arrays, _) in children.get(folder, ())
        for numbered in _arrays(folder, arrays)
    ]
    if "condition_numbers" in tables:
        measured += _numbers(tables["condition_numbers"])
    for name in _RECORDS.keys() & tables.keys():
        measured += [_measured(_RECORDS[name], row) for row in _rows(tables[name])]
    fields: dict[str, Any] = {name: kind(attributes[name]) for name, kind in _FIELDS.items()}
    for name, row_kind in _ROWS.items():
        fields[name] = tuple(from_plain(row_kind, row) for row in (_rows(tables[name]) if name in tables else ()))
    fields["verdicts"] = tuple(
        replace(verdict, outcome=present_outcome(verdict.outcome, verdict.high, verdict.threshold))
        for verdict in fields["verdicts"]
    )
    for name, (kind, dimensions) in _ITEMS.items():
        fields[name] = tuple(_item(kind, dimensions, contents) for _, contents in children.get(name, ()))
    return Study(
        **fields,
        config=config,
        provenance=provenance,
        measurements=_with_vectors(measured, children.get("vectors", ())),
        warnings=tuple(json.loads(attributes["warnings"])),
    )


def _item(kind: type, dimensions: Dimensions, contents: Contents) -> Any:
    arrays, attributes = contents
    return from_plain(kind, attributes | {name: arrays[name] for name in dimensions})


def _with_vectors(measured: Sequence[Numbered], vectors: Sequence[tuple[str, Contents]]) -> tuple[Measured[Any], ...]:
    """Measurements in their old order, each with its eigenvectors."""
    in_order = dict(sorted(measured, key=lambda numbered: numbered[0]))
    for order, contents in vectors:
        m = in_order[int(order)]
        m = replace(m, record=replace(m.record, vectors=_item(Eigenvectors, _VECTORS, contents)))
        m.record.validate()
        in_order[int(order)] = m
    return tuple(in_order.values())


def _arrays(folder: str, table: Arrays) -> Iterator[Numbered]:
    """Records of one table, each with its rows of the arrays."""
    kind, dimensions = _ARRAYS[folder]
    arrays = {name: table[name] for name in dimensions if name in table}
    for index, row in enumerate(_rows(table, without=arrays)):
        # A copy: a view would keep the arrays of all records alive.
        own = {name: arrays[name][index].copy() if name in arrays else None for name in dimensions}
        yield _measured(kind, row | own)


def _numbers(table: Arrays) -> Iterator[Numbered]:
    known = {name: k for k, name in enumerate(QUANTITIES)}
    columns = sorted(enumerate(table["quantity"]), key=lambda column: known.get(column[1], len(known)))
    # Files of an older version have fewer.
    grids = {field: table[name] for name, (field, _) in _GRIDS.items() if name in table}
    for index, row in enumerate(_rows(table, without={"quantity", *_GRIDS})):
        values = {
            name: from_plain(Quantity, {key: grid[index, k] for key, grid in grids.items()})
            for k, name in columns
            if grids["status"][index, k]
        }
        damped = {
            float(delta): (Quantity(*kappa), Quantity(*dimension))
            for delta, kappa, dimension in json.loads(row.pop("damped"))
        }
        yield _measured(ConditionNumbers, row | {"values": values, "damped": damped})


def _measured(kind: type, row: dict[str, Any]) -> Numbered:
    place = {name: declared(row.pop(name)) for name, declared in _PLACE.items()}
    order = place.pop("order")
    return order, Measured(**place, record=from_plain(kind, row))


def _rows(table: Arrays, without: Collection[str] = ()) -> list[dict[str, Any]]:
    columns = {name: values.tolist() for name, values in table.items() if name not in without}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
