"""The benchmark as two figures: times over the fastest correct peer, and growth with the size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("agg")
import numpy as np
from matplotlib import pyplot as plt

from benchmarks.growth import AXES
from benchmarks.timing import is_wrong
from curvature.report.figures.style import BLACK, BLUE, VERMILLION, finish

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(document: dict) -> Figure:
    """Times over the fastest correct peer, one line per case."""
    rows = [row for row in document["rows"] if row.get("ratio_to_fastest_peer")]
    cases = list(dict.fromkeys((row["work"], row["size"], row["dtype"]) for row in rows))
    figure, ax = plt.subplots(figsize=(8, 1.5 + 0.28 * len(cases)), layout="constrained")
    styles = {
        "this package": {"color": "C0", "marker": "o", "zorder": 3},
        "peer": {"color": "0.45", "marker": "|", "s": 60},
        "peer, wrong result": {"color": "C3", "marker": "x"},
    }
    grouped: dict[str, list[tuple[float, int]]] = {name: [] for name in styles}
    for row in rows:
        kind = "this package" if row["is_ours"] else "peer, wrong result" if is_wrong(row) else "peer"
        height = cases.index((row["work"], row["size"], row["dtype"]))
        grouped[kind].append((row["ratio_to_fastest_peer"], height))
    for name, points in grouped.items():
        if points:
            ax.scatter(*zip(*points, strict=True), label=name, **styles[name])
    ax.axvline(1, color="0.7", linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(cases)), [f"{work}, {size}, {dtype}" for work, size, dtype in cases], fontsize="x-small")
    ax.invert_yaxis()
    ax.set_xscale("log")
    finish(ax, "Curvature on one CPU", "time over the fastest correct peer", "")
    if rows:
        ax.legend(fontsize="small")
    return figure


def draw_growth(document: dict) -> Figure:
    """Time and peak memory of the dense Hessian against N and P, with the fitted power and that of the theory."""
    figure, axes = plt.subplots(2, 2, figsize=(8, 6), sharex="col", sharey="row", layout="constrained")
    scales = {"seconds": ("time (s)", 1.0), "peak_bytes": ("peak memory (MiB)", 2.0**20)}
    names = {"N": "examples N", "P": "weights P"}
    for column, (axis, key) in enumerate(AXES.items()):
        points = sorted((row for row in document["rows"] if axis in row.get("along", "")), key=lambda row: row[key])
        size = np.array([row[key] for row in points], dtype=float)
        fixed = points[-1]["size"].split(", ")[column].replace("=", " = ")
        for ax, (quantity, (label, unit)) in zip(axes[:, column], scales.items(), strict=True):
            measured = np.array([row[quantity] for row in points]) / unit
            ax.plot(size, measured, color=BLUE, marker="o", label="measured")
            slopes = document["growth"].get(f"{quantity} against {axis}")
            if slopes:
                theory = measured[-1] * (size / size[-1]) ** slopes["theory"]
                ax.plot(size, theory, color=BLACK, ls=":", label=f"theory, power {slopes['theory']:.0f}")
                ax.plot([], [], " ", label=f"fitted power {slopes['fitted']:.2f}")
            if quantity == "peak_bytes":
                dims = np.array([row["dim"] for row in points], dtype=float)
                ax.plot(size, (24 * dims**2 + 2**28) / unit, color=VERMILLION, ls="--", label="3 P² doubles + 256 MiB")
            ax.set(xscale="log", yscale="log")
            finish(ax, f"dense Hessian, {fixed}", names[axis], label)
            ax.legend(fontsize="x-small")
    return figure
