"""Conversion of records to plain values and back, shared by the npz, NetCDF and JSON formats."""

from __future__ import annotations

import functools
import json
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from curvature.records.vectors import Eigenvectors
from curvature.records.where import Where

__all__ = ["from_plain", "storable", "to_json", "to_plain"]

Record = TypeVar("Record")
_hints: Callable[[type], dict[str, Any]] = functools.cache(get_type_hints)


def to_plain(record: Any) -> dict[str, Any]:
    """Convert a record to a dict of its fields, with the header flattened.

    Parameters
    ----------
    record
        A dataclass of this package.

    Returns
    -------
    dict
        Value by field; arrays and tuples are not converted. Eigenvectors are left out: they are as large as the matrix,
        and only :meth:`curvature.Spectrum.save` stores them.
        The reduction is left out where it is the mean, and the penalty where there is none, as it was before there were
        sums and penalties.
    """
    plain: dict[str, Any] = {}
    for item in fields(record):
        value = getattr(record, item.name)
        if isinstance(value, Where):
            plain |= {part.name: getattr(value, part.name) for part in fields(value)}
            if value.reduction == "mean":
                del plain["reduction"]
            if not value.penalty:
                del plain["penalty"]
        elif not isinstance(value, Eigenvectors):
            plain[item.name] = value
    return plain


def from_plain(kind: type[Record], plain: Mapping[str, Any]) -> Record:
    """Rebuild a record from the output of :func:`to_plain`, each value by the declared type of its field.

    Parameters
    ----------
    kind
        Class of the record.
    plain
        Value by field; a value that :func:`storable` wrote as JSON is parsed.

    Returns
    -------
    Record
        An instance of ``kind``.

    Raises
    ------
    ValueError, TypeError, KeyError
        If a field is unknown or missing, a value does not fit its type, or the values do not fit together (by the
        method ``validate`` of the record, where it has one).
    """
    declared = _hints(kind)
    header = _hints(Where) if "where" in declared else {}
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    if unknown := set(plain) - known - set(header):
        raise ValueError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")
    values = {name: _restored(value, declared[name]) for name, value in plain.items() if name in known}
    if header:
        values["where"] = Where(**{name: _restored(plain[name], header[name]) for name in header if name in plain})
    record = kind(**values)
    if hasattr(record, "validate"):
        record.validate()
    return record


def storable(value: Any) -> Any:
    """Convert a value to a type that NetCDF has: numbers and text as they are, everything else as JSON.

    Parameters
    ----------
    value
        Any value of a record except an array. NetCDF has no None, booleans, records or containers.

    Returns
    -------
    int, float or str
        A value that a NetCDF attribute or column can store.
    """
    plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    return value if plain else to_json(value)


def to_json(value: Any) -> str:
    """Write plain values and records as JSON.

    Parameters
    ----------
    value
        A mapping, sequence, record, text or number, nested to any depth.

    Returns
    -------
    str
        JSON text.
    """
    return json.dumps(value, default=asdict)


def _restored(value: Any, declared: Any) -> Any:
    """Undo :func:`storable`, guided by the declared type of the field."""
    value = value.item() if isinstance(value, np.generic) else value
    if declared is str:
        return str(value)
    options = get_args(declared) if get_origin(declared) in (Union, types.UnionType) else (declared,)
    if isinstance(value, str) and str not in options:
        value = json.loads(value)
    if types.NoneType in options and (value is None or (isinstance(value, float) and math.isnan(value))):
        return None
    if isinstance(value, np.ndarray) and np.ndarray in options:
        return value
    (kind,) = [option for option in options if option is not types.NoneType][:1]
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if parts[-1] is Ellipsis:
            parts = parts[:1] * len(value)
        return tuple(_restored(item, part) for item, part in zip(value, parts, strict=True))
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, Mapping):
        return from_plain(kind, value)
    return _fitting(value, kind)


def _fitting(value: Any, kind: Any) -> Any:
    """Convert whole numbers to the declared type; refuse what is not of it."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and number:
        return float(value)
    if kind is int and number and float(value).is_integer():
        return int(value)
    expected = get_origin(kind) or kind
    if kind in (int, float) or not isinstance(value, expected):
        raise TypeError(f"{value!r} is not of the declared type {expected.__name__}")
    return value
