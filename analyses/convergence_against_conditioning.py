r"""Does an arm that is better conditioned reach a fixed loss sooner?

Claim tested: measured speed (steps of SGD to a fixed loss over all data, at the arm's own tuned learning rate) follows
the measured condition number of the GGN in the arm's own chart, kappa_80 or gd_time (steps of gradient descent on the
local quadratic model, weighted by the gradient). If conditioning mattered as the argument for weight norm says, both
would rank the arms alike. An answer is Spearman's rank correlation, with an interval: of the arms *within* each seed,
averaged over seeds (Student's t over the seeds, since seeds are random and arms are not), and of all points together.
An arm that never reaches the loss ranks last; ranks need no number for it.

    python -m analyses.convergence_against_conditioning --out results/convergence_against_conditioning [--fast]

Conditioning is measured before training and where the loss first falls to the middle level. A correlation over ten arms
that differ in more than conditioning does not prove a cause; its absence is evidence against one.

Writes curves.json (every number in the figure) and figure.svg. About two minutes; ``--fast`` two seconds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import pyplot as plt
from scipy import stats

import curvature as cv
from analyses._protocol import Plan, command_line, headline, intervals, legend_below, trained, write
from curvature.report.figures.style import arm_styles, finish
from curvature.studies.evidence.pairs import steps_to
from curvature.studies.training import Arm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = (
    Arm("standard"),
    Arm("weight-norm"),
    Arm("weight-norm-paper"),
    Arm("placebo-paper"),
    Arm("batch-norm"),
    Arm("prong"),
    Arm("standard", start="paper"),
    Arm("scaled-standard", start="paper"),
    Arm("weight-norm-paper", start="paper"),
    Arm("placebo-paper", start="paper"),
)
WIDTHS = (8, 8)
TARGET, MIDDLE = 0.3, 1.0  # losses: steps are counted to the first, conditioning is also measured at the second
FULL = Plan(ARMS, (0, 1, 2, 3, 4), epochs=30, checkpoints=(0,), tuning_epochs=10, levels=(MIDDLE,), evaluate_every=5)
FAST = Plan(
    ARMS[:5], (0, 1), epochs=2, checkpoints=(0,), tuning_epochs=1, rates=(0.1, 0.2, 0.4), batch_size=20, levels=(2.2,),
    evaluate_every=1,
)  # fmt: skip
FAST_TARGET = 2.1
PREDICTORS = {"kappa_80": "κ₈₀ of the GGN", "gd_time": "descent steps (gd_time)"}
PLACES = {"start": "before training", "middle": "at the middle level of the loss"}


def measure(*, fast: bool = False) -> list[dict]:
    """One row per seed and arm: steps to the loss (None: never reached), and the headline numbers at both places."""

    def build(seed: int) -> cv.Problem:
        return cv.zoo.digits_problem(100 if fast else None, widths=(4,) if fast else WIDTHS, seed=seed)

    rows = []
    for arm, seed, origin, run in trained(FAST if fast else FULL, build):
        low, high = steps_to(run.curve, FAST_TARGET if fast else TARGET)
        row = {"arm": arm.name, "seed": seed, "learning_rate": run.curve.learning_rate}
        row |= {"steps": low if low == high else None, "total_steps": int(run.curve.steps[-1])}
        for point in run.checkpoints:
            place = "start" if point.name == "epoch 0" else "middle"
            matrix = cv.ggn(origin.problem.at(point.weights)).materialized()
            row |= {f"{name}_{place}": value for name, value in headline(matrix, point.chart).items()}
        rows.append(row)
    return rows


def spearman(rows: list[dict], predictor: str) -> float:
    """Rank correlation of a predictor and the steps; arms without the predictor are left out, NaN below three."""
    pairs = [
        (row[predictor], math.inf if row["steps"] is None else row["steps"])
        for row in rows
        if row.get(predictor) is not None and math.isfinite(row[predictor])
    ]
    if len(pairs) < 3:
        return math.nan
    ranks = np.array([stats.rankdata(column) for column in zip(*pairs, strict=True)])  # infinite steps tie for the last
    return float(np.corrcoef(ranks)[0, 1]) if np.ptp(ranks, axis=1).all() else math.nan


def summarize(rows: list[dict]) -> list[dict]:
    """Per place and predictor: mean within-seed correlation with its interval, and that of all points together."""
    summaries = []
    for place in PLACES:
        for predictor in PREDICTORS:
            name = f"{predictor}_{place}"
            seeds = [
                {"place": place, "predictor": predictor, "seed": seed,
                 "correlation": spearman([row for row in rows if row["seed"] == seed], name)}
                for seed in sorted({row["seed"] for row in rows})
            ]  # fmt: skip
            (summary,) = intervals(seeds, ("place", "predictor"), ("correlation",), log=False)
            for end in ("correlation_low", "correlation_high"):  # Student's interval may leave [-1, 1]
                summary[end] = float(np.clip(summary[end], -1, 1))
            summaries.append(summary | {"pooled": spearman(rows, name), "by_seed": [s["correlation"] for s in seeds]})
    return summaries


def draw(rows: list[dict]) -> Figure:
    """Steps to the loss against each predictor; one colour and marker per arm, one point per seed."""
    summary = {(s["place"], s["predictor"]): s for s in summarize(rows)}
    figure, axes = plt.subplots(2, 2, figsize=(9, 7.6), layout="constrained", sharey=True)
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    most = max(row["total_steps"] for row in rows)
    for line, (place, moment) in enumerate(PLACES.items()):
        for column, (predictor, label) in enumerate(PREDICTORS.items()):
            ax, name = axes[line, column], f"{predictor}_{place}"
            for arm, style in zip(arms, arm_styles(arms), strict=True):
                measured = [row for row in rows if row["arm"] == arm and row.get(name) is not None]
                reached = [row for row in measured if row["steps"] is not None]
                never = [row for row in measured if row["steps"] is None]
                marks = {"color": style.color, "marker": style.marker, "linestyle": "none", "markersize": 6}
                ax.plot([row[name] for row in reached], [row["steps"] for row in reached], **marks, label=arm)
                ax.plot([row[name] for row in never], [1.3 * most] * len(never), **marks, markerfacecolor="none")
            ax.set(xscale="log", yscale="log")
            ax.axhline(1.13 * most, color="0.6", linewidth=0.8, linestyle=":")
            numbers = summary[place, predictor]
            title = f"rank correlation within seeds {numbers['correlation']:+.2f}"
            if math.isfinite(numbers["correlation_low"]):
                title += f" [{numbers['correlation_low']:+.2f}, {numbers['correlation_high']:+.2f}]"
            finish(ax, title, f"{label}, {moment}", "" if column else "steps to the loss (hollow: never)")
    legend_below(figure, axes[0, 0], 4)
    return figure


def main() -> None:
    """Measure, write, draw."""
    options = command_line(__doc__, "five arms, two seeds, 100 examples, two epochs").parse_args()
    rows = measure(fast=options.fast)
    summary = summarize(rows)
    write(options, __doc__, {"rows": rows, "summary": summary}, draw(rows))
    for row in summary:
        print(
            f"{row['predictor']:9} {PLACES[row['place']]:32} within seeds {row['correlation']:+.2f} "
            f"[{row['correlation_low']:+.2f}, {row['correlation_high']:+.2f}], all points {row['pooled']:+.2f}"
        )
    print(f"{'arm':34} steps to the loss, per seed")
    for arm in dict.fromkeys(row["arm"] for row in rows):
        steps = ["never" if row["steps"] is None else f"{row['steps']:.0f}" for row in rows if row["arm"] == arm]
        print(f"{arm:34} {' '.join(steps)}")


if __name__ == "__main__":
    main()
