"""What the curves of a figure are called: what differs between the records, and what they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from curvature.errors import ConfigurationError
from curvature.records import Measured
from curvature.report.words import chart_label, form_of, matrix_name, plain_gauge
from curvature.text import one_line

__all__ = [
    "chart_of",
    "common_words",
    "given_labels",
    "labels_of",
    "measurements_of",
    "record_of",
    "records_of",
    "safe",
]

MAX_LABEL = 60  # characters of a name in a figure
_PARTS = ("matrix", "gauge", "form", "block", "arm", "checkpoint", "seed")


def safe(text: str, limit: int = MAX_LABEL) -> str:
    """Make a text fit a figure.

    Parameters
    ----------
    text
        A name.
    limit
        Characters after which it is cut.

    Returns
    -------
    str
        One line, in which a dollar sign starts no formula.
    """
    text = one_line(text)
    return (text if len(text) <= limit else text[: limit - 1] + "…").replace("$", r"\$")


def record_of(item: Any) -> Any:
    """Record of a measurement.

    Parameters
    ----------
    item
        A measurement, or a record.

    Returns
    -------
    record
        The item itself if it is a record.
    """
    return item.record if isinstance(item, Measured) else item


def records_of(items: Sequence[Any], kind: type) -> list[Any]:
    """Records of one kind.

    Parameters
    ----------
    items
        Measurements or records.
    kind
        What they must be.

    Returns
    -------
    list of records
        One per item.

    Raises
    ------
    ConfigurationError
        If there is none, or one of another kind.
    """
    records = [record_of(item) for item in items]
    if not records:
        raise ConfigurationError(f"no {kind.__name__} to draw.")
    wrong = {type(record).__name__ for record in records if not isinstance(record, kind)}
    if wrong:
        raise ConfigurationError(f"expected records of {kind.__name__}, got {', '.join(sorted(wrong))}.")
    return records


def measurements_of(items: Sequence[Any], kind: type) -> list[Measured]:
    """Measurements of records of one kind.

    Parameters
    ----------
    items
        Measurements or records.
    kind
        What the records must be.

    Returns
    -------
    list of Measured
        One per item; a record alone becomes the only point of its own run.

    Raises
    ------
    ConfigurationError
        If there is none, or one of another kind.
    """
    records = records_of(items, kind)
    pairs = zip(items, records, strict=True)
    return [item if isinstance(item, Measured) else Measured("given", 0, "given", 0, record) for item, record in pairs]


def chart_of(item: Any) -> tuple[str, str]:
    """Chart and gauge that tell curves apart.

    Parameters
    ----------
    item
        A measurement, or a record.

    Returns
    -------
    tuple of str
        The gauge without the damping of a preconditioner.
    """
    return record_of(item).chart, plain_gauge(record_of(item).gauge)


def labels_of(items: Sequence[Any], *, without: Sequence[str] = (), chart: bool = False) -> list[str]:
    """Name what differs between the items.

    Parameters
    ----------
    items
        Measurements or records.
    without
        What is not named: ``"gauge"``, ``"block"``, ``"arm"``, ``"checkpoint"``, ``"seed"``.
    chart
        Whether the chart is named even where it does not differ.

    Returns
    -------
    list of str
        One per item; the chart where nothing differs.
    """
    names = _names(items)
    varying = [key for key in _PARTS if key not in without and len({parts[key] for parts in names}) > 1]
    if not varying or (chart and "gauge" not in varying):
        varying.insert(0, "gauge")
    if "gauge" in without:
        names = [parts | {"gauge": record_of(item).chart} for parts, item in zip(names, items, strict=True)]
    return [safe(", ".join(filter(None, (parts[key] for key in varying)))) for parts in names]


def given_labels(items: Sequence[Any], labels: Sequence[str] | None) -> list[str]:
    """Names that the user has chosen, or what differs between the items.

    Parameters
    ----------
    items
        Measurements or records.
    labels
        One for each item; None: those of :func:`labels_of`.

    Returns
    -------
    list of str
        One per item.

    Raises
    ------
    ConfigurationError
        If there are more or fewer labels than items.
    """
    if labels is None:
        return labels_of(items)
    if isinstance(labels, str) or len(labels) != len(items):
        what = repr(labels) if isinstance(labels, str) else f"{len(labels)} of them"
        raise ConfigurationError(
            f"labels names the lines of the figure, one for each of the {len(items)} records, got "
            f"{what}. Pass a list with {len(items)} labels."
        )
    return [safe(str(label)) for label in labels]


def common_words(items: Sequence[Any], keys: Sequence[str] = _PARTS) -> str:
    """What all items have in common, in a few words.

    Parameters
    ----------
    items
        Measurements or records.
    keys
        What is named.

    Returns
    -------
    str
        ``"several matrices"`` where they have nothing in common.
    """
    names = _names(items)
    shared = [names[0][key] for key in keys if len({parts[key] for parts in names}) == 1]
    return ", ".join(filter(None, shared)) or "several matrices"


def _names(items: Sequence[Any]) -> list[dict[str, str]]:
    """What each item could be called by; the form only where there are several."""
    names = []
    for item in items:
        record = record_of(item)
        parts = dict.fromkeys(_PARTS, "")
        parts["matrix"] = matrix_name(record.matrix) if hasattr(record, "matrix") else ""
        parts["gauge"], parts["form"] = chart_label(record.chart, record.gauge), form_of(record)
        parts["block"] = "" if record.block == "all" else record.block
        if isinstance(item, Measured):
            parts |= {"arm": f"{item.arm} arm", "checkpoint": item.checkpoint, "seed": f"seed {item.seed}"}
        names.append(parts)
    if len({parts["form"] for parts in names} - {""}) < 2:
        names = [parts | {"form": ""} for parts in names]
    return names
