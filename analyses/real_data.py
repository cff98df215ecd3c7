r"""Does weight norm change the conditioning of the GGN on other data as it does on digits?

Claim tested (C1): weight norm lowers the headline condition numbers, on each of several data sets: digits, breast
cancer, wine and diabetes (from scikit-learn, no download), a synthetic table modelled on California housing, and any
other that ``--data`` names as on the command line of ``curvature`` (``mnist:FOLDER``, ``cifar10:FOLDER``,
``file.npz``). An answer is the ratio to the standard chart, per data set and gauge, with its interval over seeds:
pointwise (the same weights in two charts) at initialization and after training, and by trajectory (the
weight-normalized arm in its own chart over the standard arm in its own). The canonical gauge must give 1. A change of
less than 10 % does not count.

    python -m analyses.real_data --out results/real_data [--fast] [--data mnist:FOLDER --data ...]

One hidden layer of eight tanh units; classes by softmax cross-entropy, numbers by half squared error. Each
arm has its own tuned learning rate. Intervals are not corrected for the number of data sets.

Writes curves.json (every number in the figure) and figure.svg. About a minute without ``--data``; ``--fast`` two
seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import pyplot as plt

import curvature as cv
from analyses._protocol import Plan, command_line, headline, intervals, legend_below, trained, write
from curvature.cli.loading import load_data, load_loss
from curvature.report.figures.style import BLUE, ORANGE, SKY, VERMILLION, Style, finish
from curvature.studies.evidence import THRESHOLD
from curvature.studies.training import Arm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DATA = {
    "builtin:digits": "cross-entropy",
    "builtin:breast-cancer": "cross-entropy",
    "builtin:wine": "cross-entropy",
    "builtin:diabetes": "half-squared-error",
    "builtin:housing": "half-squared-error",
}
FULL = Plan(
    (Arm("standard"), Arm("weight-norm")),
    (0, 1, 2, 3, 4),
    epochs=20,
    checkpoints=(0, 20),
    tuning_epochs=10,
    batch_size=32,
)
FAST = Plan(
    (Arm("standard"), Arm("weight-norm")), (0,), epochs=1, checkpoints=(0, 1), tuning_epochs=1, rates=(0.1, 0.2, 0.4)
)
NUMBERS = ("kappa_80", "kappa_95", "gd_time")
DRAWN = "kappa_80"
COMPARISONS = {
    "canonical": Style(SKY, "none", "s"),
    "paper's gauge": Style(VERMILLION, "none", "^"),
    "own gauge": Style(BLUE, "none", "D"),
    "trajectory": Style(ORANGE, "none", "o"),
}


def measure(*, fast: bool = False, more: Sequence[str] = ()) -> list[dict]:
    """One row per data set, seed, arm, checkpoint and chart; ``more`` lists further data sets with classes."""
    rows = []
    for spec, loss_name in (DATA | dict.fromkeys(more, "cross-entropy")).items():
        loss = load_loss(loss_name)
        inputs, targets = load_data(spec, loss, num_examples=60 if fast and spec in DATA else None)
        inputs = inputs.flatten(1).double()
        outputs = targets.shape[1] if targets.is_floating_point() else int(targets.max()) + 1

        def build(seed: int, data=(inputs, targets), loss=loss, outputs=outputs) -> cv.Problem:
            model = cv.zoo.mlp((data[0].shape[1], 3 if fast else 8, outputs), seed=seed)
            return cv.Problem.from_module(model, loss=loss, data=data)

        for arm, seed, origin, run in trained(FAST if fast else FULL, build):
            for point in run.checkpoints:
                problem = origin.problem.at(point.weights)
                matrix = cv.ggn(problem).materialized()
                charts = {
                    "standard": cv.Standard(),
                    "canonical": cv.WeightNorm(),
                    "paper's gauge": cv.WeightNorm("paper"),
                }
                if arm.method == "weight-norm":
                    charts["own gauge"] = point.chart
                for gauge, chart in charts.items():
                    rows.append(
                        {
                            "data": spec,
                            "num_examples": problem.num_examples,
                            "num_weights": problem.dim,
                            "seed": seed,
                            "arm": arm.name,
                            "when": "init" if point.step == 0 else "trained",
                            "gauge": gauge,
                            "final_loss": float(run.curve.losses[-1]),
                            "learning_rate": run.curve.learning_rate,
                        }
                        | headline(matrix, chart)
                    )
    return rows


def summarize(rows: list[dict]) -> list[dict]:
    """Ratios to the standard chart, geometric means over seeds with intervals; ratios of bounds are left out."""
    by_place = {(row["data"], row["seed"], row["arm"], row["when"], row["gauge"]): row for row in rows}
    ratios = []
    for (data, seed, arm, when, gauge), row in by_place.items():
        if arm != "weight-norm" or gauge == "standard":
            continue
        references = {gauge: by_place[data, seed, arm, when, "standard"]}
        if gauge == "own gauge" and (data, seed, "standard", when, "standard") in by_place:
            references["trajectory"] = by_place[data, seed, "standard", when, "standard"]
        for comparison, reference in references.items():
            ratio = {"data": data, "when": when, "comparison": comparison, "seed": seed}
            for name in NUMBERS:
                resolved = row[f"{name}_status"] == reference[f"{name}_status"] == "resolved"
                ratio[f"{name}_ratio"] = row[name] / reference[name] if resolved else math.nan
            ratios.append(ratio)
    return intervals(ratios, ("data", "when", "comparison"), [f"{name}_ratio" for name in NUMBERS])


def draw(rows: list[dict]) -> Figure:
    """One line per data set: ratios of the condition number, before and after training; the band is 10 %."""
    summary = summarize(rows)
    names = list(dict.fromkeys(row["data"] for row in rows))
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 1.6 + 0.75 * len(names)), layout="constrained", sharey=True)
    for ax, when in zip(axes, ("init", "trained"), strict=True):
        ax.axvspan(math.exp(-THRESHOLD), math.exp(THRESHOLD), color="0.9", label="less than 10 %")
        ax.axvline(1, color="0.4", linewidth=0.8)
        for number, (comparison, style) in enumerate(COMPARISONS.items()):
            points = [row for row in summary if (row["when"], row["comparison"]) == (when, comparison)]
            heights = [names.index(row["data"]) + 0.16 * (number - 1.5) for row in points]
            middle, low, high = (
                np.array([row[f"{DRAWN}_ratio{end}"] for row in points]) for end in ("", "_low", "_high")
            )
            label = "own chart over the standard arm's" if comparison == "trajectory" else f"same weights, {comparison}"
            bars = np.nan_to_num([middle - low, high - middle])
            ax.errorbar(middle, heights, xerr=bars, **style.line, markersize=5, capsize=2, label=label)
        ax.set_xscale("log")
        finish(
            ax,
            "at initialization" if when == "init" else "after training",
            "κ₈₀ of the GGN, weight norm / standard",
            "",
        )
        ax.set_ylim(len(names) - 0.5, -0.5)
    axes[0].set_yticks(range(len(names)), [name.removeprefix("builtin:") for name in names])
    legend_below(figure, axes[1])
    return figure


def main() -> None:
    """Measure, write, draw."""
    parser = command_line(__doc__, "one seed, 60 examples, three hidden units, one epoch")
    parser.add_argument("--data", action="append", default=[], help="further data with classes, e.g. mnist:FOLDER")
    options = parser.parse_args()
    rows = measure(fast=options.fast, more=options.data)
    summary = summarize(rows)
    write(options, __doc__, {"rows": rows, "summary": summary}, draw(rows))
    print(f"{'data':22} {'when':8} {'comparison':14} kappa_80 over standard [interval]")
    for row in summary:
        ratio = [row[f"kappa_80_ratio{end}"] for end in ("", "_low", "_high")]
        print(
            f"{row['data']:22} {row['when']:8} {row['comparison']:14} {ratio[0]:8.3f} [{ratio[1]:.3f}, {ratio[2]:.3f}]"
        )


if __name__ == "__main__":
    main()
