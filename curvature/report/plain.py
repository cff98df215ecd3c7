"""Plain values: what JSON, TOML and CSV can hold."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import tomli_w

from curvature.report.document import HEADLINE
from curvature.report.figures import printable


def plain_values(value: Any) -> Any:
    """Reduce to mappings, lists, text and finite numbers; NaN and infinity become null with a reason beside them."""
    if isinstance(value, Mapping):
        found = {str(key): plain_values(item) for key, item in value.items()}
        odd = {key: _why(item) for key, item in value.items() if _is_odd(item)}
        if "value" in odd and "status" in value:
            return found | {"note": value.get("note") or odd["value"]}
        return found | {f"{key}_reason": reason for key, reason in odd.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [{"value": None, "reason": _why(item)} if _is_odd(item) else plain_values(item) for item in items]
    if isinstance(value, np.ndarray | np.generic):
        return plain_values(value.tolist())
    if _is_odd(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _is_odd(value: Any) -> bool:
    return isinstance(value, float | np.floating) and not math.isfinite(value)


def _why(value: float) -> str:
    return "not a number" if math.isnan(value) else "infinite" if value > 0 else "minus infinity"


def json_text(value: Any) -> str:
    """JSON of plain values; ASCII, so that any text survives."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def without_none(value: Any) -> Any:
    """Fit values into TOML, which has no null; keys without a value are left out."""
    if isinstance(value, Mapping):
        return {str(key): without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, np.ndarray | np.generic):
        return without_none(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [without_none(item) for item in items if item is not None]
    if isinstance(value, PurePath):
        value = str(value)
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()  # a path may hold bytes that are no text
    return value if isinstance(value, bool | int | float) or hasattr(value, "isoformat") else str(value)


def toml_text(value: Any) -> str:
    """TOML of a configuration, with what could steer a terminal as escapes: read back, it is the same."""
    odd = {"Cc", "Cf", "Zl", "Zp"}
    return "".join(
        f"\\U{ord(sign):08X}" if sign != "\n" and unicodedata.category(sign) in odd else sign
        for sign in tomli_w.dumps(without_none(value))
    )


def csv_text(spectra: list[dict[str, Any]]) -> str:
    """One line per spectrum, end and density (RFC 4180); text that a spreadsheet takes for a formula gets a ``'``."""
    names = [name for name in HEADLINE if any(name in row["numbers"] for row in spectra)]
    nested = ("numbers", "damped", "values")
    about = [key for row in spectra for key in row if key not in (*nested, "method", "seconds")]
    about = [key for key in dict.fromkeys(about) if not key.endswith("_reason")]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow([*about, *(part for name in names for part in (name, f"{name}_status")), "method", "seconds"])
    for row in spectra:
        numbers = [row["numbers"].get(name, {"value": None, "status": ""}) for name in names]
        cells = [row.get(key) for key in about]
        cells += [part for number in numbers for part in (number["value"], number["status"])]
        writer.writerow([_csv_cell(cell) for cell in (*cells, row.get("method"), row.get("seconds"))])
    return stream.getvalue()


def verdicts_csv(verdicts: list[dict[str, Any]]) -> str:
    """One line per claim; the paired numbers in one cell, in brackets, separated by semicolons."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\r\n")
    names = list(dict.fromkeys(key for row in verdicts for key in row if not key.endswith("_reason")))
    writer.writerow(names)
    for row in verdicts:
        writer.writerow([_csv_cell(_joined(row[key])) for key in names])
    return stream.getvalue()


def _joined(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return f"[{';'.join(str(item['reason'] if isinstance(item, dict) else item) for item in value)}]"


def _csv_cell(value: Any) -> Any:
    if value is None or value == "-":  # no gauge, and not a formula either
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return value
    text = "".join(part if part.isspace() else printable(part) for part in re.split(r"([\t\r\n]+)", value))
    return f"'{text}" if value[:1] in ("=", "+", "-", "@", "\t", "\r", "\0") else text
