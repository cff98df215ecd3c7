"""Plain values: what JSON, TOML and CSV can hold."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import tomli_w

from curvature.report.render import table_csv
from curvature.report.table import Row, Table
from curvature.report.words import HEADLINE
from curvature.text import STEERING

__all__ = ["csv_text", "json_text", "odd_values", "plain_values", "toml_text", "verdicts_csv", "without_none"]

_NESTED = ("numbers", "damped", "values")  # of a row of the summary: no columns of the CSV
_LAST = ("method", "seconds")
_ODD = {"not a number": math.nan, "infinite": math.inf, "minus infinity": -math.inf}


def plain_values(value: Any) -> Any:
    """Reduce to mappings, lists, text and finite numbers.

    Parameters
    ----------
    value
        Any nest of containers, arrays and numbers.

    Returns
    -------
    Any
        NaN and infinity become None with a reason: in the ``note`` of a quantity, under ``<key>_reason`` in another
        mapping, in a mapping of their own in a list.

    Examples
    --------
    >>> plain_values({"x": math.nan})
    {'x': None, 'x_reason': 'not a number'}
    """
    if isinstance(value, Mapping):
        plain = {str(key): plain_values(item) for key, item in value.items()}
        reasons = {key: _reason(item) for key, item in value.items() if _is_odd(item)}
        if "value" in reasons and "status" in value:
            return plain | {"note": value.get("note") or reasons["value"]}
        return plain | {f"{key}_reason": reason for key, reason in reasons.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [{"value": None, "reason": _reason(x)} if _is_odd(x) else plain_values(x) for x in _ordered(value)]
    if isinstance(value, np.ndarray | np.generic):
        return plain_values(value.tolist())
    if _is_odd(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _ordered(values: list[Any] | tuple[Any, ...] | set[Any] | frozenset[Any]) -> Sequence[Any]:
    return sorted(values, key=str) if isinstance(values, set | frozenset) else values


def _is_odd(value: Any) -> bool:
    return isinstance(value, float | np.floating) and not math.isfinite(value)


def _reason(value: float) -> str:
    return "not a number" if math.isnan(value) else "infinite" if value > 0 else "minus infinity"


def odd_values(plain: Any) -> Any:
    """Undo what :func:`plain_values` did to NaN and infinity.

    Parameters
    ----------
    plain
        What it returned.

    Returns
    -------
    Any
        The same nest with NaN and infinity, and without the reasons; lists stay lists.

    Examples
    --------
    >>> odd_values(plain_values({"x": -math.inf, "y": [math.nan], "z": None}))
    {'x': -inf, 'y': [nan], 'z': None}
    """
    if isinstance(plain, list):
        return [odd_values(item) for item in plain]
    if not isinstance(plain, Mapping):
        return plain
    if plain.keys() == {"value", "reason"}:
        return _ODD[plain["reason"]]
    values = {key: odd_values(item) for key, item in plain.items()}
    for key, item in plain.items():
        if item is None and f"{key}_reason" in plain:
            values[key] = _ODD[values.pop(f"{key}_reason")]
    if "status" in values and values.get("value", 0.0) is None:  # of a quantity, with the reason in its note
        values["value"] = _ODD.get(values["note"], math.nan)
    return values


def json_text(value: Any) -> str:
    """JSON of plain values.

    Parameters
    ----------
    value
        What :func:`plain_values` returns.

    Returns
    -------
    str
        ASCII, so that any text survives.
    """
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def without_none(value: Any) -> Any:
    """Fit values into TOML, which has no null.

    Parameters
    ----------
    value
        Any nest of containers, arrays, paths and numbers.

    Returns
    -------
    Any
        The same without the keys whose value is None.
    """
    if isinstance(value, Mapping):
        return {str(key): without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, np.ndarray | np.generic):
        return without_none(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [without_none(item) for item in _ordered(value) if item is not None]
    if isinstance(value, PurePath):
        value = str(value)
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()  # a path may hold bytes that are not text
    return value if isinstance(value, bool | int | float) or hasattr(value, "isoformat") else str(value)


def toml_text(value: Mapping[str, Any]) -> str:
    """TOML of a configuration.

    Parameters
    ----------
    value
        The configuration.

    Returns
    -------
    str
        What could steer a terminal is written as escapes, which read back as the same characters.
    """
    return "".join(
        f"\\U{ord(sign):08X}" if sign != "\n" and unicodedata.category(sign) in STEERING else sign
        for sign in tomli_w.dumps(without_none(value))
    )


def csv_text(rows: Sequence[Row]) -> str:
    """One line of CSV per spectrum, ends of a spectrum and density.

    Parameters
    ----------
    rows
        ``spectra``, ``extremes`` and ``densities`` of the summary.

    Returns
    -------
    str
        RFC 4180.
    """
    names = [name for name in HEADLINE if any(name in row["numbers"] for row in rows)]
    fields = [key for key in _fields(rows) if key not in (*_NESTED, *_LAST)]
    header = (*fields, *(part for name in names for part in (name, f"{name}_status")), *_LAST)
    return table_csv(Table("", header, tuple(_csv_row(row, fields, names) for row in rows)))


def _csv_row(row: Row, fields: Sequence[str], names: Sequence[str]) -> tuple[Any, ...]:
    numbers = [row["numbers"].get(name, {"value": None, "status": ""}) for name in names]
    pairs = (part for number in numbers for part in (number["value"], number["status"]))
    return (*(row.get(key) for key in fields), *pairs, *(row.get(key) for key in _LAST))


def verdicts_csv(verdicts: Sequence[Row]) -> str:
    """One line of CSV per claim.

    Parameters
    ----------
    verdicts
        ``verdicts`` of the summary.

    Returns
    -------
    str
        The paired numbers are in one field, in brackets, separated by semicolons.
    """
    names = _fields(verdicts)
    return table_csv(Table("", tuple(names), tuple(tuple(_joined(row.get(key)) for key in names) for row in verdicts)))


def _fields(rows: Sequence[Row]) -> list[str]:
    keys = dict.fromkeys(key for row in rows for key in row)
    return [key for key in keys if not key.endswith("_reason")]


def _joined(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return f"[{';'.join(str(item['reason'] if isinstance(item, dict) else item) for item in value)}]"
