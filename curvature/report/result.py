"""The result file: everything numeric about a study as NetCDF, and back."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from curvature.errors import ConfigurationError
from curvature.records import (
    Alignment,
    Check,
    ConditionNumbers,
    Decomposition,
    ExtremalEigenvalues,
    GaugeState,
    LearningRateSweep,
    Measured,
    Quantity,
    SpectralDensity,
    Spectrum,
    StepComparison,
    Study,
    TrainingCurve,
    Verdict,
    Whitening,
)
from curvature.records.storage import from_plain, storable, to_plain
from curvature.report.selection import place_of
from curvature.text import one_line

SCHEMA = "curvature/1"
MAX_BYTES = 4 * 2**30  # of the arrays of a result file; a study of every arm and seed has some megabytes
_KINDS = {kind.__name__: kind for kind in (StepComparison, Alignment, Whitening, GaugeState)}
_PLACE = {"arm": str, "seed": int, "checkpoint": str, "step": int, "order": int}
# Records with arrays: the folder of their kind, and the dimensions of every array.
_NODES = {
    "spectra": (Spectrum, {"eigenvalues": ("index",), "gradient_weights": ("index",)}),
    "extremes": (
        ExtremalEigenvalues,
        {"largest": ("rank",), "smallest": ("rank_from_below",), "residuals": ("value",), "error_bounds": ("value",)},
    ),
    "densities": (SpectralDensity, {"nodes": ("probe", "node"), "weights": ("probe", "node")}),
}
# Of condition numbers, by the name of the table: field of a quantity, type.
_GRIDS = {
    "value": ("value", float),
    "status": ("status", object),
    "note": ("note", object),
    "low": ("low", float),
    "high": ("high", float),
    "interval_method": ("method", object),
}
_CURVE = ("steps", "losses", "accuracies")
_SWEEP = ("rates", "final_losses")
_APART = {*_NODES, "curves", "sweeps", "decompositions"}  # folders; every other name is a table


def write_result(study: Study, path: Path) -> None:
    """Write NetCDF: a table per kind of record, of arrays one per size; a node per curve and sweep."""
    import xarray as xr

    about = {name: getattr(study, name) for name in ("command", "model", "data", "num_weights", "num_examples")}
    about |= {"schema": SCHEMA, "warnings": list(study.warnings)}
    nodes = {"/": xr.Dataset(attrs=_attributes(about))}
    groups: dict[str, list[tuple[int, Measured]]] = {}
    for order, m in enumerate(study.measurements):
        groups.setdefault(type(m.record).__name__, []).append((order, m))
    for folder, (kind, dimensions) in _NODES.items():
        for number, table in enumerate(_array_tables(groups.pop(kind.__name__, []), dimensions)):
            nodes[f"/{folder}/{number:04d}"] = table
    if "ConditionNumbers" in groups:
        nodes["/condition_numbers"] = _number_table(groups.pop("ConditionNumbers"))
    for kind, members in groups.items():
        nodes[f"/{kind}"] = _row_table([place_of(m) | {"order": order} | to_plain(m.record) for order, m in members])
    if study.verdicts:
        nodes["/verdicts"] = _row_table([to_plain(verdict) for verdict in study.verdicts])
    for number, item in enumerate(study.decompositions):
        about = to_plain(item)
        arrays = {"parts": (("seed", "source"), about.pop("parts")), "whole": ("seed", about.pop("whole"))}
        nodes[f"/decompositions/{number:04d}"] = xr.Dataset(arrays, attrs=_attributes(about))
    if study.checks:
        nodes["/checks"] = _row_table([to_plain(check) for check in study.checks])
    for number, sweep in enumerate(study.sweeps):
        about = to_plain(sweep)
        arrays = {name: ("rate", about.pop(name)) for name in _SWEEP}
        nodes[f"/sweeps/{number:04d}"] = xr.Dataset(arrays, attrs=_attributes(about))
    for number, curve in enumerate(study.curves):
        arrays = {name: ("record", getattr(curve, name)) for name in ("steps", "losses", "accuracies")}
        attributes = _attributes({"arm": curve.arm, "seed": curve.seed, "learning_rate": curve.learning_rate})
        nodes[f"/curves/{number:04d}"] = xr.Dataset(arrays, attrs=attributes)
    try:
        xr.DataTree.from_dict(nodes).to_netcdf(path, engine="h5netcdf")
    except RuntimeError as error:  # what HDF5 says when the disk fails
        raise OSError(errno.EIO, str(error)) from error


def _attributes(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _stored(value) for name, value in values.items()}


def _stored(value: Any) -> Any:
    """Keep numbers and text; write None, booleans and containers, which NetCDF does not know, as JSON."""
    if isinstance(value, str):
        return value if "\0" not in value and value.isprintable() else one_line(value)
    return storable(value)


def _row_table(rows: list[dict[str, Any]]) -> Any:
    import xarray as xr

    columns = {}
    for key in rows[0]:
        values = [_stored(row[key]) for row in rows]
        if any(isinstance(value, str) for value in values):
            texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
            columns[key] = ("row", np.array(texts, dtype=object))
        else:
            columns[key] = ("row", np.array(values))
    return xr.Dataset(columns)


def _array_tables(members: list[tuple[int, Measured]], dimensions: Mapping[str, tuple[str, ...]]) -> Iterable[Any]:
    """Records with arrays, one table for each set of array shapes: a node per record is slow to write and to read."""
    alike: dict[tuple, list[tuple[int, Measured]]] = {}
    for order, m in members:
        shapes = tuple(None if (values := getattr(m.record, name)) is None else values.shape for name in dimensions)
        alike.setdefault(shapes, []).append((order, m))
    for shapes, few in alike.items():
        rows = [
            place_of(m)
            | {"order": order}
            | {name: value for name, value in to_plain(m.record).items() if name not in dimensions}
            for order, m in few
        ]
        yield _row_table(rows).assign(
            {
                name: (("row", *dimensions[name]), np.stack([getattr(m.record, name) for _, m in few]))
                for name, shape in zip(dimensions, shapes, strict=True)
                if shape is not None
            }
        )


def _number_table(members: list[tuple[int, Measured]]) -> Any:
    """Condition numbers: one row each, and by the name of the quantity its value, status, note, interval and method."""
    names = list(dict.fromkeys(name for _, m in members for name in m.record.values))
    rows = []
    for order, m in members:
        about = {name: value for name, value in to_plain(m.record).items() if name not in ("values", "damped")}
        damped = [[delta, *(list(asdict(q).values()) for q in pair)] for delta, pair in m.record.damped.items()]
        rows.append(place_of(m) | {"order": order} | about | {"damped": damped})
    missing = Quantity(math.nan, "", "")
    cells = [[m.record.values.get(name, missing) for name in names] for _, m in members]
    return _row_table(rows).assign(
        quantity=("quantity", np.array(names, dtype=object)),
        **{
            grid: (("row", "quantity"), np.array([[getattr(q, name) for q in row] for row in cells], dtype=dtype))
            for grid, (name, dtype) in _GRIDS.items()
        },
    )


def read_result(path: Path, config: dict[str, Any], provenance: dict[str, Any]) -> Study:
    """Read a study from a result file, given its configuration and provenance.

    Looked at before it is read: arrays of any claimed shape can lie in a few bytes, and a dataset can name another file
    of the machine as its content.
    """
    import xarray as xr

    _refuse_claims(path)
    with xr.open_datatree(path, engine="h5netcdf") as tree:
        if tree.attrs.get("schema") != SCHEMA:
            raise ConfigurationError(f"{one_line(path.name)} holds no result of schema {SCHEMA}.")
        return decoded_study(tree, config, provenance)


def _refuse_claims(path: Path) -> None:
    import h5py

    size, seen = 0, set()
    with h5py.File(path, "r") as file:
        queue = [file["/"]]
        while queue:
            group = queue.pop()
            for name in group:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise ValueError(f"{name} is a link to another place")  # noqa: TRY004
                item = group[name]
                place = h5py.h5o.get_info(item.id).addr
                if place in seen:
                    raise ValueError(f"{name} is there twice")
                seen.add(place)
                if isinstance(item, h5py.Group):
                    queue.append(item)
                elif not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
                    raise ValueError(f"{name} does not lie in the file")
                else:
                    size += item.size * item.dtype.itemsize if item.shape is not None else 0
    if size > MAX_BYTES:
        raise ValueError(
            f"its arrays claim {size / 2**30:.3g} GB, more than the {MAX_BYTES / 2**30:.3g} GB that are read"
        )


def decoded_study(tree: Any, config: dict[str, Any], provenance: dict[str, Any]) -> Study:
    """Read a study from an open result file, given its configuration and provenance."""
    children = {name: [*node.children.values()] for name, node in tree.children.items()}
    tables = {name: tree[name].to_dataset() for name in tree.children.keys() - _APART}
    found: list[tuple[int, Measured]] = []
    for folder, (kind, dimensions) in _NODES.items():
        for node in children.get(folder, ()):
            table = node.to_dataset()
            arrays = {name: table[name].to_numpy() for name in dimensions if name in table}
            for index, row in enumerate(_rows(table.drop_vars(list(arrays)))):
                # a copy, or one record would keep all others alive
                own = {name: arrays[name][index].copy() if name in arrays else None for name in dimensions}
                found.append(_measured(kind, row, own))
    if "condition_numbers" in tables:
        found += _decoded_numbers(tables["condition_numbers"])
    for kind in _KINDS.keys() & tables.keys():
        found += [_measured(_KINDS[kind], row) for row in _rows(tables[kind])]
    curves = [
        TrainingCurve(
            str(node.attrs["arm"]),
            int(node.attrs["seed"]),
            *(node[name].to_numpy() for name in _CURVE),
            learning_rate=float(node.attrs.get("learning_rate", math.nan)),
        )
        for node in children.get("curves", ())
    ]
    checks = [from_plain(Check, row) for row in _rows(tables["checks"])] if "checks" in tables else []
    return Study(
        **{name: str(tree.attrs[name]) for name in ("command", "model", "data")},
        **{name: int(tree.attrs[name]) for name in ("num_weights", "num_examples")},
        config=config,
        measurements=tuple(m for _, m in sorted(found, key=lambda pair: pair[0])),
        curves=tuple(curves),
        sweeps=tuple(
            from_plain(LearningRateSweep, {**node.attrs, **{name: node[name].to_numpy() for name in _SWEEP}})
            for node in children.get("sweeps", ())
        ),
        checks=tuple(checks),
        warnings=tuple(json.loads(tree.attrs["warnings"])),
        provenance=provenance,
        verdicts=tuple(from_plain(Verdict, row) for row in (_rows(tables["verdicts"]) if "verdicts" in tables else ())),
        decompositions=tuple(_decoded_decomposition(node) for node in children.get("decompositions", ())),
    )


def _decoded_decomposition(node: Any) -> Decomposition:
    arrays = {name: node[name].to_numpy() for name in ("parts", "whole")}
    return from_plain(Decomposition, {**node.attrs, **arrays})


def _decoded_numbers(table: Any) -> Iterable[tuple[int, Measured]]:
    names = [str(name) for name in table["quantity"].to_numpy()]
    stored = [grid for grid in _GRIDS if grid in table]  # files of an older version have fewer
    grids = {_GRIDS[grid][0]: table[grid].to_numpy() for grid in stored}
    for index, row in enumerate(_rows(table.drop_vars(["quantity", *stored]))):
        values = {
            name: from_plain(Quantity, {key: grid[index, k] for key, grid in grids.items()})
            for k, name in enumerate(names)
            if grids["status"][index, k]
        }
        damped = {float(delta): (Quantity(*one), Quantity(*two)) for delta, one, two in json.loads(row.pop("damped"))}
        yield _measured(ConditionNumbers, row, {"values": values, "damped": damped})


def _measured(kind: type, row: dict[str, Any], more: Mapping[str, Any] | None = None) -> tuple[int, Measured]:
    place = {name: declared(row.pop(name)) for name, declared in _PLACE.items()}
    order = place.pop("order")
    return order, Measured(**place, record=from_plain(kind, row | dict(more or {})))


def _rows(table: Any) -> list[dict[str, Any]]:
    columns = {str(name): table[name].to_numpy().tolist() for name in table.data_vars}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
