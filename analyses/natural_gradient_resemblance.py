r"""How closely does the gradient step of weight norm follow the natural gradient, at its own gauge and at the best one?

Claim tested (C7): the gradient step of weight norm resembles the natural gradient. For every chart the efficiency E
(``curvature.efficiency``: the share of the damped natural gradient's progress that the chart's step makes) is put on a
scale where 0 is gradient descent and 1 the neuron-block natural gradient, the ceiling of charts with a neuron-block
metric: R = (E - E_SGD) / (E_neuron - E_SGD). An answer is R of weight norm at the canonical, the paper's and its own
gauge. It is compared with the controls (placebo, e1-direction, Jacobi), with PRONG, K-FAC and the natural gradient, and
with the *best* gauge: one rho for the network, per layer or per neuron, by the largest E (exact, by nonnegative least
squares) or by the smallest kappa_80 (by a local search, so the true best may be better).

    python -m analyses.natural_gradient_resemblance --out results/natural_gradient_resemblance [--fast]

The weights are those of the weight-normalized arm at initialization, early in training and after it. The best gauge is
fitted to the same point with all data, so no training could know it.

Writes curves.json (every number in the figure) and figure.svg. About a minute; ``--fast`` three seconds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import pyplot as plt

import curvature as cv
from analyses._protocol import Plan, command_line, epoch_of, intervals, trained, write
from curvature.natural_gradient import Controls, best_stretches, compare_charts, control_charts
from curvature.report.figures.style import BLACK, BLUE, GRAY, GREEN, ORANGE, PURPLE, VERMILLION, finish
from curvature.studies.training import Arm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS = (4,)  # small: the search over rho per neuron takes some hundred eigendecompositions
RELATIVE_DAMPING = 1e-3
FULL = Plan((Arm("weight-norm"),), seeds=(0, 1, 2, 3, 4), epochs=20, checkpoints=(0, 4, 20))
FAST = Plan((Arm("weight-norm"),), seeds=(0,), epochs=1, checkpoints=(0, 1), tuning_epochs=1, rates=(0.1, 0.2, 0.4))
SCOPES = ("network", "layer", "neuron")
NAMES = {  # chart and gauge -> row of the figure and colour, from top to bottom
    ("standard", "-"): ("gradient descent", BLACK),
    ("weight-norm", "canonical"): ("weight norm, canonical gauge", VERMILLION),
    ("weight-norm", "checkpoint"): ("weight norm, gauge reached by training", VERMILLION),
    ("weight-norm", "paper"): ("weight norm, paper's gauge", VERMILLION),
    **{
        ("weight-norm", f"best {criterion} per {scope}"): (f"weight norm, {label} per {scope}", BLUE)
        for criterion, label in (("kappa", "least κ₈₀"), ("efficiency", "largest E"))
        for scope in SCOPES
    },
    ("placebo", "paper"): ("placebo: random directions", PURPLE),
    ("e1-direction", "paper"): ("same rho about e1", PURPLE),
    ("jacobi", "-"): ("Jacobi", ORANGE),
    ("prong", "-"): ("PRONG", ORANGE),
    ("kfac", "-"): ("K-FAC", ORANGE),
    ("neuron-block", "-"): ("neuron-block natural gradient", GREEN),
    ("layer-block", "-"): ("layer-block natural gradient", GREEN),
    ("natural-gradient", "-"): ("natural gradient", GRAY),
}
MARKERS = {BLACK: "o", VERMILLION: "^", BLUE: "P", PURPLE: "X", ORANGE: "D", GREEN: "s", GRAY: "H"}


def measure(*, fast: bool = False) -> list[dict]:
    """One row per seed, epoch and chart: efficiency, index, closeness to the inverse Fisher, and kappa_80."""

    def build(seed: int) -> cv.Problem:
        return cv.zoo.digits_problem(100 if fast else None, widths=(2,) if fast else WIDTHS, seed=seed)

    rows = []
    for _, seed, origin, run in trained(FAST if fast else FULL, build):
        for point in run.checkpoints:
            problem = origin.problem.at(point.weights)
            header = {"seed": seed, "epoch": epoch_of(point)}
            rows += [header | row for row in _charts(problem, point.chart, seed)]
    return rows


def _charts(problem: cv.Problem, own: cv.Parameterization, seed: int) -> list[dict]:
    fisher = cv.fisher(problem).materialized()
    controls = Controls(problem, fisher)
    with_controls = control_charts(problem, relative_damping=RELATIVE_DAMPING, seed=seed, controls=controls)
    charts = [chart for chart in with_controls if chart.gauge != "best stretch"]
    charts.append(own)
    for criterion in ("efficiency", "kappa"):
        for scope in SCOPES:
            stretches = best_stretches(
                problem, by=scope, criterion=criterion, relative_damping=RELATIVE_DAMPING, fisher=fisher
            )
            best = cv.WeightNorm(stretch=stretches)
            best.gauge = f"best {criterion} per {scope}"
            charts.append(best)
    compared = compare_charts(problem, charts, relative_dampings=(RELATIVE_DAMPING,), controls=controls)
    rows = []
    for chart, step in zip(charts, compared, strict=True):
        # Undamped, hence not for charts whose metric is an inverse of the damped Fisher.
        kappa = math.nan
        if not isinstance(chart, cv.LinearChart):
            kappa = cv.spectrum(cv.effective(fisher, chart)).condition_numbers()["kappa_80"].value
        rows.append(
            {
                "chart": step.chart,
                "gauge": "-" if "damping=" in step.gauge else step.gauge,
                "efficiency": step.efficiency,
                "index": step.index,
                "damped_kappa": step.kappa,
                "am_gm": step.am_gm,
                "kappa_80": kappa,
            }
        )
    return rows


def summarize(rows: list[dict]) -> list[dict]:
    """Means of efficiency and index over seeds, with intervals."""
    named = [row for row in rows if (row["chart"], row["gauge"]) in NAMES]
    return intervals(named, ("epoch", "chart", "gauge"), ("efficiency", "index"), log=False)


def draw(rows: list[dict]) -> Figure:
    """Index R of every chart: one panel per checkpoint, 0 = gradient descent, 1 = neuron-block natural gradient."""
    summary = summarize(rows)
    epochs = sorted({row["epoch"] for row in summary})
    figure, axes = plt.subplots(
        1,
        len(epochs),
        figsize=(3.2 * len(epochs) + 2.8, 5.6),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    charts = list(NAMES)
    for ax, epoch in zip(axes[0], epochs, strict=True):
        ax.axvline(0, color="0.4", linestyle=":", linewidth=1)
        ax.axvline(1, color="0.4", linestyle="--", linewidth=1)
        for row in (row for row in summary if row["epoch"] == epoch):
            key = (row["chart"], row["gauge"])
            color = NAMES[key][1]
            bars = np.nan_to_num([[row["index"] - row["index_low"]], [row["index_high"] - row["index"]]])
            ax.errorbar(
                row["index"], charts.index(key), xerr=bars, color=color, marker=MARKERS[color], markersize=6, capsize=2
            )
        finish(ax, "at initialization" if epoch == 0 else f"epoch {epoch}", "index R of the step", "")
        ax.set_ylim(len(charts) - 0.5, -0.5)
    axes[0, 0].set_yticks(range(len(charts)), [name for name, _ in NAMES.values()])
    figure.supxlabel(
        "R = (E − E of gradient descent) / (E of the neuron-block natural gradient − E of gradient descent); "
        "bars: 95 % over seeds",
        fontsize="small",
    )
    return figure


def main() -> None:
    """Measure, write, draw."""
    options = command_line(__doc__, "one seed, 100 examples, two hidden units, one epoch").parse_args()
    rows = measure(fast=options.fast)
    summary = summarize(rows)
    write(options, __doc__, {"rows": rows, "summary": summary}, draw(rows))
    for epoch in sorted({row["epoch"] for row in summary}):
        print(f"epoch {epoch}: {'chart':40} {'E':>7}  R [interval]")
        by_chart = {(row["chart"], row["gauge"]): row for row in summary if row["epoch"] == epoch}
        for key, (name, _) in NAMES.items():
            if key in by_chart:
                row = by_chart[key]
                ends = f"[{row['index_low']:+.3f}, {row['index_high']:+.3f}]"
                print(f"         {name:40} {row['efficiency']:7.4f}  {row['index']:+.3f} {ends}")


if __name__ == "__main__":
    main()
