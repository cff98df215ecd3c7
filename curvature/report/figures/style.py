"""How everything looks and is called: colours, line styles, labels, axes, and medians over seeds."""

from __future__ import annotations

import math
import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogFormatterSciNotation

from curvature.errors import ConfigurationError
from curvature.records import Measured, Quantity

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GRAY = "#6b6b6b"
MATRIX_NAMES = {
    "hessian": "Hessian",
    "ggn": "GGN",
    "fisher": "Fisher",
    "monte_carlo_fisher": "Monte Carlo Fisher",
    "empirical_fisher": "empirical Fisher",
}
QUANTITY_NAMES = {
    "kappa_50": "κ₅₀",
    "kappa_80": "κ₈₀",
    "kappa_95": "κ₉₅",
    "abs_kappa_50": "|κ|₅₀",
    "abs_kappa_80": "|κ|₈₀",
    "abs_kappa_95": "|κ|₉₅",
    "gd_time": "descent steps",
}
MAX_POINTS = 150  # markers on one line; more are one smear on paper and kilobytes in the file
MAX_LABEL = 60  # characters of a name in a figure
_SUPERSCRIPTS = str.maketrans("-−0123456789", "⁻⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Style:
    """How one line looks, in three ways at once."""

    color: str
    linestyle: Any
    marker: str

    @property
    def line(self) -> dict[str, Any]:
        return {"color": self.color, "linestyle": self.linestyle, "marker": self.marker}


_DOT_DASH_DOT = (0, (5, 1.5, 1, 1.5, 1, 1.5))
KNOWN = {  # the standard chart is a wide solid line: the canonical gauge, which coincides with it, shows on top of it
    ("standard", "-"): Style(BLACK, "-", "o"),
    ("weight-norm", "canonical"): Style(SKY, "--", "s"),
    ("weight-norm", "paper"): Style(VERMILLION, "-.", "^"),
    ("weight-norm", "checkpoint"): Style(BLUE, "-", "D"),
    ("weight-norm", "best stretch"): Style(BLUE, ":", "P"),
    ("scaled-standard", "paper"): Style(ORANGE, ":", "v"),
    ("placebo", "paper"): Style(PURPLE, _DOT_DASH_DOT, "X"),
    ("e1-direction", "paper"): Style(PURPLE, "--", ">"),
    ("jacobi", "-"): Style(ORANGE, "-.", "p"),
    ("neuron-block", "-"): Style(GREEN, "-", "h"),
    ("layer-block", "-"): Style(GREEN, "--", "d"),
    ("kfac", "-"): Style(ORANGE, "--", "<"),
    ("prong", "-"): Style(SKY, ":", "*"),
    ("natural-gradient", "-"): Style(GRAY, "-", "H"),
}
OTHERS = [
    Style(color, line, marker)
    for line, marker in (("--", "8"), (":", "p"), ("-.", "v"), (_DOT_DASH_DOT, "*"), ("-", "<"))
    for color in (GREEN, ORANGE, PURPLE, SKY, VERMILLION, BLUE)
]


def matrix_name(matrix: str) -> str:
    """Name of a matrix in running text.

    >>> matrix_name("gradient_covariance")
    'gradient covariance'
    """
    return MATRIX_NAMES.get(matrix, matrix.replace("_", " ").replace("-", " "))


def quantity_name(quantity: str) -> str:
    """Name of a condition number on an axis and in a sentence."""
    short = QUANTITY_NAMES.get(quantity, quantity)
    if "kappa" in quantity:
        return ("ratio of |eigenvalues| " if quantity.startswith("abs") else "condition number ") + short
    return short


def chart_label(chart: str, gauge: str) -> str:
    """Chart and gauge in a few words; a preconditioner's damping is not a gauge.

    >>> chart_label("weight-norm", "paper"), chart_label("kfac", "relative damping=0.001")
    ('weight-norm (paper)', 'kfac')
    """
    return chart if plain_gauge(gauge) == "-" else f"{chart} ({gauge})"


def plain_gauge(gauge: str) -> str:
    """Gauge of a chart, without the damping by which preconditioners tell themselves apart."""
    return "-" if "damping=" in gauge else gauge


def stretch_of(gauge: str) -> float | None:
    """Return the one stretch that a gauge stands for: 1 for ``"canonical"``, None where every row has its own.

    >>> stretch_of("stretch=0.5"), stretch_of("canonical"), stretch_of("paper")
    (0.5, 1.0, None)
    """
    if gauge == "canonical":
        return 1.0
    found = re.fullmatch(r"stretch=([0-9.eE+-]+)", gauge)
    try:
        return float(found[1]) if found else None
    except ValueError:
        return None


def layer_of(neuron: str) -> str:
    """Layer of a neuron named as ``layer[row]``.

    >>> layer_of("features.0[12]")
    'features.0'
    """
    return neuron.rpartition("[")[0] or neuron


def form_of(item: Any) -> str:
    """Whether a Hessian was taken on the weights; the non-zero spectra of the other matrices do not depend on it."""
    record = record_of(item)
    if record.chart == "standard" or getattr(record, "matrix", "") != "hessian":
        return ""
    return "on the weights" if record.effective else "all coordinates"


def short_number(value: float, digits: int = 3) -> str:
    """A few digits, without the plus sign and zeros of a power of ten.

    >>> short_number(1234567.0), short_number(0.5), short_number(210.0, 2), short_number(3e-16)
    ('1.23e6', '0.5', '210', '3e−16')
    """
    text = f"{value:.{digits}g}" if not 10**digits <= abs(value) < 1000 else f"{value:.0f}"
    return re.sub(r"e\+?(-?)0*(\d+)", r"e\1\2", text).replace("-", "−")


def printable(text: str) -> str:
    r"""Write control, direction-changing and unpaired characters as escapes: they could rewrite a terminal or a page.

    >>> printable("a\x1b[31mb\nc")
    'a\\x1b[31mb c'
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
        else character
        for character in re.sub(r"[\t\n\r]+", " ", text)
    )


def safe(text: str, limit: int = MAX_LABEL) -> str:
    """Make text fit a figure: a dollar in a name starts no formula, and no name takes the whole width."""
    text = printable(text)
    return (text if len(text) <= limit else text[: limit - 1] + "…").replace("$", r"\$")


_PARTS = ("matrix", "gauge", "form", "block", "arm", "checkpoint", "seed")


def _parts(items: Sequence[Any]) -> list[dict[str, str]]:
    """Collect what each item could be called by, without what says nothing here."""
    found = []
    for item in items:
        record = record_of(item)
        parts = dict.fromkeys(_PARTS, "")
        parts["matrix"] = matrix_name(record.matrix) if hasattr(record, "matrix") else ""
        parts["gauge"], parts["form"] = chart_label(record.chart, record.gauge), form_of(item)
        parts["block"] = "" if record.block == "all" else record.block
        if isinstance(item, Measured):
            parts |= {"arm": f"{item.arm} arm", "checkpoint": item.checkpoint, "seed": f"seed {item.seed}"}
        found.append(parts)
    if len({parts["form"] for parts in found} - {""}) < 2:
        found = [parts | {"form": ""} for parts in found]
    return found


def labels_of(items: Sequence[Any], *, without: Sequence[str] = (), chart: bool = False) -> list[str]:
    """Name what differs between the items; the chart where nothing does, or where it is asked for."""
    found = _parts(items)
    varying = [key for key in _PARTS if key not in without and len({parts[key] for parts in found}) > 1]
    if not varying or (chart and "gauge" not in varying):
        varying.insert(0, "gauge")
    if "gauge" in without:
        found = [parts | {"gauge": record_of(item).chart} for parts, item in zip(found, items, strict=True)]
    return [safe(", ".join(filter(None, (parts[key] for key in varying)))) for parts in found]


def common_words(items: Sequence[Any], keys: Sequence[str] = _PARTS) -> str:
    """What all items have in common, in a few words."""
    found = _parts(items)
    shared = [found[0][key] for key in keys if len({parts[key] for parts in found}) == 1]
    return ", ".join(filter(None, shared)) or "several matrices"


def styles_of(items: Sequence[Any]) -> list[Style]:
    """One style per item: the chart's own; where a chart appears again, its colour with other lines and markers."""
    own = {key: KNOWN[key] for key in {chart_of(item) for item in items} if key in KNOWN}
    for key in sorted({chart_of(item) for item in items} - own.keys()):
        start = zlib.crc32(" ".join(key).encode(errors="replace"))
        turns = (OTHERS[(start + step) % len(OTHERS)] for step in range(len(OTHERS)))
        own[key] = next((style for style in turns if style not in own.values()), OTHERS[0])
    seen: dict[tuple[str, str], int] = {}
    found = []
    for item in items:
        key = chart_of(item)
        repeat = seen[key] = seen.get(key, -1) + 1
        style = own[key]
        if repeat:
            style = Style(style.color, ("--", ":", "-.", "-")[(repeat - 1) % 4], "svDP^X"[(repeat - 1) % 6])
        found.append(style)
    return found


def arm_styles(arms: Sequence[str]) -> list[Style]:
    """Dress each arm in the colours of the chart it was trained in."""
    found: list[Style] = []
    for arm in arms:
        known = (KNOWN.get((arm, gauge)) for gauge in ("-", "checkpoint", "paper"))
        start = zlib.crc32(arm.encode(errors="replace"))
        turns = (OTHERS[(start + step) % len(OTHERS)] for step in range(len(OTHERS)))
        free = (style for style in (*known, *turns) if style is not None and style not in found)
        found.append(next(free, OTHERS[0]))
    return found


def record_of(item: Any) -> Any:
    """The record of a measurement; a record is its own."""
    return item.record if isinstance(item, Measured) else item


def chart_of(item: Any) -> tuple[str, str]:
    """Chart and gauge by which curves are told apart."""
    return record_of(item).chart, plain_gauge(record_of(item).gauge)


def records_of(items: Sequence[Any], kind: type) -> list[Any]:
    """The records, all of one kind and at least one."""
    records = [item.record if isinstance(item, Measured) else item for item in items]
    if not records:
        raise ConfigurationError(f"no {kind.__name__} to draw.")
    wrong = {type(record).__name__ for record in records if not isinstance(record, kind)}
    if wrong:
        raise ConfigurationError(f"expected records of {kind.__name__}, got {', '.join(sorted(wrong))}.")
    return records


def grouped(items: Iterable[Any], key: Any) -> dict[Any, list[Any]]:
    """Lists of items by key, in order of appearance."""
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


@dataclass(frozen=True)
class Spread:
    """Median and range over seeds of one number, and the worst status among them."""

    median: float
    low: float
    high: float
    count: int
    status: str = "resolved"
    affected: int = 0  # how many have that status


def spread(quantities: Iterable[Quantity]) -> Spread:
    """Median and range of the values there are; a median that contains a lower bound is itself a lower bound.

    >>> spread([Quantity(1.0), Quantity(4.0, "lower_bound"), Quantity(2.0)])
    Spread(median=2.0, low=1.0, high=4.0, count=3, status='lower_bound', affected=1)
    """
    quantities = list(quantities)
    defined = [q for q in quantities if q.has_value and math.isfinite(q.value)]
    if not defined:
        indefinite = quantities and all(q.status == "indefinite" for q in quantities)
        return Spread(math.nan, math.nan, math.nan, 0, "indefinite" if indefinite else "undefined", len(quantities))
    values = [q.value for q in defined]
    for status in ("unresolved", "lower_bound"):
        affected = sum(q.status == status for q in defined)
        if affected:
            break
    else:
        status = "resolved"
    return Spread(float(np.median(values)), min(values), max(values), len(values), status, affected)


class _PlainLog(LogFormatterSciNotation):
    """Label decades as ``10⁻³`` in plain text: no mathematics layout, so SVG text stays whole."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        text = super().__call__(x, pos).replace(r"\times", "×")
        low, high = sorted(self.axis.get_view_interval())
        if text and low >= 1e-3 and high <= 1e4:
            return f"{x:g}"
        text = re.sub(r"\^\{?([-−]?\d+)\}?", lambda match: match[1].translate(_SUPERSCRIPTS), text)
        return re.sub(r"\$|\\mathdefault|[{}]", "", text)


def axes_or_new(ax: Axes | None) -> Axes:
    """The Axes, or those of a new figure."""
    if ax is not None:
        return ax
    from matplotlib import pyplot as plt  # global state, and a canvas that a notebook shows: only when asked for

    return plt.subplots(figsize=(6.4, 4.2), layout="constrained")[1]


def finish(ax: Axes, title: str, xlabel: str, ylabel: str) -> Axes:
    """Title, axis labels with units, and as little ink as possible beside the data."""
    ax.set_title(safe(title, 100), loc="left", fontsize="medium")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, which="major", color="#e2e2e2", linewidth=0.6)
    ax.set_axisbelow(True)
    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() == "log" and not isinstance(axis.get_major_locator(), FixedLocator):
            axis.set_major_formatter(_PlainLog(labelOnlyBase=True))
            axis.set_minor_formatter(_PlainLog(minor_thresholds=(1, 0.5)))
    return ax


def add_legend(ax: Axes) -> None:
    """A legend if anything has a label: inside the Axes, or beside them if it is long."""
    count = len(ax.get_legend_handles_labels()[1])
    look = {"fontsize": "small", "frameon": True, "framealpha": 0.85, "edgecolor": "none", "handlelength": 2.6}
    if count > 5:  # it would cover the data
        look |= {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    if count:
        ax.legend(**look)


def plot_spreads(ax: Axes, spreads: dict[float, Spread], style: Style, label: str) -> None:
    """Medians joined by a line, ranges as bars, lower bounds as arrows up; undefined points are left out."""
    spreads = {x: item for x, item in spreads.items() if math.isfinite(item.median)}
    if not spreads:
        return
    xs, items = list(spreads), list(spreads.values())
    medians = np.array([item.median for item in items])
    ranges = np.array([medians - [item.low for item in items], [item.high for item in items] - medians])
    ax.errorbar(
        xs, medians, yerr=ranges if ranges.any() else None, **style.line, markersize=5, linewidth=1.5, elinewidth=1,
        capsize=2.5, label=label,
    )  # fmt: skip
    hollow = [(x, item.median) for x, item in spreads.items() if item.status == "unresolved"]
    bounds = [(x, item.median) for x, item in spreads.items() if item.status == "lower_bound"]
    if hollow:
        xs, medians = zip(*hollow, strict=True)
        look = {"marker": style.marker, "color": style.color, "markerfacecolor": "white", "markersize": 5, "zorder": 3}
        ax.plot(xs, medians, linestyle="none", **look)
    for x, y in bounds:
        ax.annotate(
            "", (x, y), xytext=(0, 18), textcoords="offset points", annotation_clip=False,
            arrowprops={"arrowstyle": "<-", "color": style.color, "linewidth": 1.5},
        )  # fmt: skip
    if bounds and "lower bound" not in ax.get_legend_handles_labels()[1]:
        ax.plot([], [], linestyle="none", marker=r"$\uparrow$", color=GRAY, markersize=9, label="lower bound")


def keep_a_decade(ax: Axes) -> None:
    """Show at least a factor of ten: an axis that zooms into rounding makes equal numbers look different."""
    low, high = ax.get_ylim()
    if "lower bound" in ax.get_legend_handles_labels()[1]:
        ax.set_ylim(top=(high := 2.5 * high))  # room for the arrows
    if low > 0 and high / low < 10:
        middle = math.sqrt(low * high)
        ax.set_ylim(middle / math.sqrt(10), middle * math.sqrt(10))


def fanned(count: int, half: float) -> np.ndarray:
    """Offsets in [-half, half] that keep neighbours apart, without a random number: multiples of the golden ratio."""
    return half * (2 * ((np.arange(count) * 0.6180339887498949 + 0.5) % 1) - 1)


def thinned(indices: np.ndarray, limit: int = MAX_POINTS) -> np.ndarray:
    """At most about ``limit`` of the indices, evenly spread on a logarithmic axis, both ends included."""
    if len(indices) <= limit:
        return indices
    return indices[np.unique(np.geomspace(1, len(indices), limit).round().astype(int)) - 1]
