r"""Does training in weight norm pass through better conditioned points, in the coordinates of the optimizer?

Claim tested (C1, trajectory design): along training, the headline condition numbers of the GGN in the chart of the
weight-normalized arms are lower than those of the standard arm. Every arm is measured twice at the same weights: in its
own chart, and *lifted to the canonical gauge*, where weight norm changes nothing, so that only the effect of the path
to those weights remains. An answer is a curve per arm with intervals over seeds. An effect that the placebo (weight
norm about random directions) has too is not due to the direction of w.

    python -m analyses.conditioning_along_training --out results/conditioning_along_training [--fast]

Each arm has its own tuned learning rate; all have the same order of the data and, for each start, the same function.
The ratios of each arm, in its own chart, to the standard arm are also written, with paired intervals.

Writes curves.json (every number in the figure) and figure.svg. About two minutes; ``--fast`` two seconds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib import pyplot as plt

import curvature as cv
from analyses._protocol import (
    Plan,
    command_line,
    epoch_axis,
    epoch_of,
    headline,
    intervals,
    legend_below,
    losses_by_step,
    plot_intervals,
    trained,
    write,
)
from curvature.report.figures.style import BLACK, BLUE, ORANGE, PURPLE, SKY, VERMILLION, Style, finish
from curvature.studies.training import Arm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = {
    Arm("standard"): Style(BLACK, "-", "o"),
    Arm("weight-norm"): Style(SKY, "--", "s"),
    Arm("placebo"): Style(PURPLE, ":", "X"),
    Arm("standard", start="paper"): Style(ORANGE, "-", "v"),
    Arm("weight-norm-paper", start="paper"): Style(VERMILLION, "-.", "^"),
    Arm("placebo-paper", start="paper"): Style(BLUE, ":", "P"),
}
WIDTHS = (8, 8)  # small enough that every eigenvalue is computed
FULL = Plan(tuple(ARMS), seeds=(0, 1, 2, 3, 4), epochs=30, checkpoints=(0, 1, 2, 4, 8, 16, 30), tuning_epochs=15)
FAST = Plan(
    tuple(ARMS)[:5:2], seeds=(0,), epochs=2, checkpoints=(0, 2), tuning_epochs=1, rates=(0.1, 0.2, 0.4), batch_size=50
)
NUMBERS = ("kappa_50", "kappa_80", "kappa_95", "gd_time")
DRAWN = {"kappa_80": "κ₈₀ of the GGN", "gd_time": "descent steps (gd_time) of the GGN"}
CHARTS = {"own": "own chart", "canonical": "lifted to the canonical gauge"}


def measure(*, fast: bool = False) -> list[dict]:
    """One row per arm, seed, checkpoint and chart (``own``, ``canonical``)."""
    plan = FAST if fast else FULL

    def build(seed: int) -> cv.Problem:
        return cv.zoo.digits_problem(100 if fast else None, widths=(4,) if fast else WIDTHS, seed=seed)

    rows = []
    for arm, seed, origin, run in trained(plan, build):
        losses = losses_by_step(run)
        for point in run.checkpoints:
            problem = origin.problem.at(point.weights)
            matrix = cv.ggn(problem).materialized()
            for name, chart in (("own", point.chart), ("canonical", cv.WeightNorm())):
                rows.append(
                    {
                        "arm": arm.name,
                        "seed": seed,
                        "epoch": epoch_of(point),
                        "chart": name,
                        "gauge": chart.gauge,
                        "loss": losses[point.step],
                        "learning_rate": run.curve.learning_rate,
                    }
                    | headline(matrix, chart)
                )
    return rows


def summarize(rows: list[dict]) -> list[dict]:
    """Geometric means over seeds with intervals; and paired log-ratios to the standard arm of the same start."""
    means = intervals(rows, ("arm", "epoch", "chart"), (*NUMBERS, "loss"))
    values = {(row["arm"], row["seed"], row["epoch"], row["chart"]): row for row in rows}
    ratios = []
    for (arm, seed, epoch, chart), row in values.items():
        reference = values.get(
            ("standard, paper start" if arm.endswith("paper start") else "standard", seed, epoch, "own")
        )
        if reference is None or chart != "own":
            continue
        ratio = {"arm": arm, "seed": seed, "epoch": epoch}
        for name in NUMBERS:
            both = row[f"{name}_status"] == reference[f"{name}_status"] == "resolved"
            ratio[f"log_ratio_{name}"] = math.log(row[name] / reference[name]) if both else math.nan
        ratios.append(ratio)
    paired = intervals(ratios, ("arm", "epoch"), [f"log_ratio_{name}" for name in NUMBERS], log=False)
    joined = {(row["arm"], row["epoch"]): row for row in paired}
    return [row | (joined.get((row["arm"], row["epoch"]), {}) if row["chart"] == "own" else {}) for row in means]


def draw(rows: list[dict]) -> Figure:
    """Condition number and descent steps against the epoch; columns: own chart, canonical gauge."""
    summary = summarize(rows)
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.6), layout="constrained", sharex=True, sharey="row")
    for column, (chart, title) in enumerate(CHARTS.items()):
        for arm, style in ARMS.items():
            curve = [row for row in summary if (row["arm"], row["chart"]) == (arm.name, chart)]
            for line, quantity in enumerate(DRAWN):
                if curve:
                    plot_intervals(axes[line, column], curve, "epoch", quantity, style, arm.name)
        for line, label in enumerate(DRAWN.values()):
            ax = axes[line, column]
            ax.set_yscale("log")
            values = [value for row in summary if math.isfinite(value := row[list(DRAWN)[line]])]
            ax.set_ylim(min(values) / 10, max(values) * 10)  # the widest intervals leave it
            finish(ax, title if not line else "", "epoch" if line else "", "" if column else label)
            epoch_axis(ax, sorted({row["epoch"] for row in rows}))
    figure.suptitle(
        "geometric means with 95 % intervals over seeds; the widest intervals leave the axes", fontsize="small"
    )
    legend_below(figure, axes[0, 1])
    return figure


def main() -> None:
    """Measure, write, draw."""
    options = command_line(__doc__, "three arms, one seed, 100 examples, two epochs").parse_args()
    rows = measure(fast=options.fast)
    summary = summarize(rows)
    write(options, __doc__, {"rows": rows, "summary": summary}, draw(rows))
    print(
        f"{'arm':30} {'epoch':>5}  {'loss':>7} {'kappa_80':>9}   log-ratio to the standard arm [interval]   own charts"
    )
    for row in summary:
        if row["chart"] == "own":
            ratio = [row.get(f"log_ratio_kappa_80{end}", math.nan) for end in ("", "_low", "_high")]
            print(
                f"{row['arm']:30} {row['epoch']:5d}  {row['loss']:7.4f} {row['kappa_80']:9.3g}   "
                f"{ratio[0]:+.2f} [{ratio[1]:+.2f}, {ratio[2]:+.2f}]"
            )


if __name__ == "__main__":
    main()
