r"""How does the conditioning of the Fisher develop along training, by plain SGD, batch norm, PRONG and weight norm?

After figure 2 of Desjardins et al. (2015, arXiv:1507.00210), who follow the condition number of the Fisher of a small
network in the coordinates of each method, with the arm that they did not have. Claim tested: whitening every layer's
input (PRONG) conditions the Fisher far better than plain SGD, and batch normalization somewhat; does weight
normalization, too? An answer is one curve per method, each on its own trajectory, in its own coordinates. Batch
normalization has two: with the population statistics frozen, as in eval mode, and through the statistics of the full
batch, which is what training with them descends on. What a chart does to one function is told apart from where it
leads: the dotted curves are the same points on the weights.

    python -m analyses.prong_figure --out results/prong_figure [--fast]

Writes curves.json (every number in the figure) and figure.svg. About a minute; ``--fast`` three seconds.

Keys of a row: ``arm`` (``batch-norm, full batch`` shares the run of ``batch-norm``), ``seed, epoch, step, loss,
learning_rate`` (each arm's best of a grid), ``rank``, and ``kappa_50, kappa_80, kappa_95`` of the Fisher with its
``_status``, in the arm's coordinates and, with the suffix ``_weights``, on the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("agg")
import numpy as np
from matplotlib import pyplot as plt

import curvature as cv
from analyses._protocol import command_line, write
from curvature.report.figures.style import BLACK, BLUE, GREEN, ORANGE, SKY, VERMILLION, Style, finish
from curvature.studies.training import SGD, Arm, Schedule, train, tune_learning_rate
from curvature.studies.training import start as starting_point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from curvature.studies.training import Checkpoint, Trainable

ARMS = ("standard", "batch-norm", "prong", "weight-norm", "weight-norm-paper")
FULL_BATCH = "batch-norm, full batch"
LOOKS = {
    "standard": Style(BLACK, "-", "o"),
    "batch-norm": Style(ORANGE, "-", "v"),
    FULL_BATCH: Style(GREEN, "-", "P"),
    "prong": Style(SKY, "-", "*"),
    "weight-norm": Style(BLUE, "--", "s"),
    "weight-norm-paper": Style(VERMILLION, "-.", "^"),
}
NUMBERS = ("kappa_50", "kappa_80", "kappa_95")
SEEDS = (0, 1, 2)
RATES = tuple(float(10 ** (k / 2)) for k in range(-4, 3))  # half decades, 0.01 to 10; grows at an edge
NUM_EXAMPLES, WIDTHS, BATCH_SIZE = 600, (10,), 60
EPOCHS = (0, 1, 2, 5, 10, 20, 30)


def measure(*, fast: bool = False) -> list[dict]:
    """Tune, train and measure every arm; one row per arm, seed and epoch."""
    rows = []
    for seed in SEEDS[: 1 if fast else None]:
        problem = cv.zoo.digits_problem(120 if fast else NUM_EXAMPLES, widths=(3,) if fast else WIDTHS, seed=seed)
        for arm in ARMS:
            rows += _along(problem, arm, seed, fast=fast)
    return rows


def _along(problem: cv.Problem, arm: str, seed: int, *, fast: bool) -> list[dict]:
    epochs = (0, 5) if fast else EPOCHS
    begun = starting_point(problem, "module", seed=seed)
    shared = {"arm": arm, "seed": seed}
    rate = tune_learning_rate(
        problem,
        lambda: Arm(arm).begin(begun),
        Schedule(2 if fast else 10, BATCH_SIZE),
        optimizer=SGD(1.0),
        rates=RATES[1::2] if fast else RATES,
        max_extensions=0 if fast else 6,
        **shared,
    ).chosen
    trainable = Arm(arm).begin(begun)
    marks = {str(epoch): epoch for epoch in epochs}
    schedule = Schedule(epochs[-1], BATCH_SIZE, marks)
    run = train(problem, trainable, schedule, optimizer=SGD(rate), **shared).require_finite()
    losses = dict(zip(run.curve.steps.tolist(), run.curve.losses.tolist(), strict=True))
    rows = []
    for point in run.checkpoints:
        about = {"seed": seed, "epoch": int(point.name), "step": point.step, "loss": losses[point.step]}
        for name, numbers in _conditions(problem, trainable, point, arm).items():
            rows.append({"arm": name} | about | {"learning_rate": rate} | numbers)
    return rows


def _conditions(problem: cv.Problem, trainable: Trainable, point: Checkpoint, arm: str) -> dict[str, dict]:
    fisher = cv.fisher(problem.at(point.weights)).materialized()
    charts = {arm: point.chart}
    if arm == "batch-norm":
        charts[FULL_BATCH] = trainable.full_batch_parameterization(point.coordinates)
    weights = cv.spectrum(fisher).condition_numbers()
    found = {}
    for name, chart in charts.items():
        own = cv.spectrum(cv.pullback(fisher, chart)).condition_numbers()
        found[name] = {"rank": own.rank}
        for key in NUMBERS:
            found[name] |= {key: own[key].value, f"{key}_status": own[key].status}
            found[name] |= {f"{key}_weights": weights[key].value, f"{key}_weights_status": weights[key].status}
    return found


def medians(rows: list[dict], arm: str, key: str) -> dict[int, float]:
    """Median over the seeds of one number by epoch."""
    epochs = sorted({row["epoch"] for row in rows})
    return {
        epoch: float(np.median([row[key] for row in rows if row["arm"] == arm and row["epoch"] == epoch]))
        for epoch in epochs
    }


def draw(rows: list[dict]) -> Figure:
    """Condition numbers against epochs, medians and single seeds; the same points on the weights; the losses."""
    figure, axes = plt.subplots(1, 3, figsize=(16, 4.6), layout="constrained")
    final = max(row["epoch"] for row in rows)
    for ax, key in zip(axes, ("kappa_50", "kappa_80"), strict=False):
        for arm, style in LOOKS.items():
            for seed in SEEDS:
                run = [row for row in rows if row["arm"] == arm and row["seed"] == seed]
                ax.plot([row["epoch"] for row in run], [row[key] for row in run], color=style.color, lw=0.6, alpha=0.4)
            middle = medians(rows, arm, key)
            ax.plot(list(middle), list(middle.values()), **style.line, markersize=5, linewidth=1.5, label=arm)
            if arm not in ("standard", FULL_BATCH):
                middle = medians(rows, arm, f"{key}_weights")
                ax.plot(list(middle), list(middle.values()), color=style.color, linestyle=(0, (1, 2.5)), linewidth=1.2)
        ax.plot([], [], color="0.4", linestyle=(0, (1, 2.5)), label="same points, on the weights")
        gain = medians(rows, "standard", key)[final] / medians(rows, "prong", key)[final]
        own = medians(rows, "standard", key)[final] / medians(rows, "weight-norm", key)[final]
        ax.set_yscale("log")
        ax.set_xscale("symlog", linthresh=1)
        title = f"{key}, {final} epochs: standard / PRONG {gain:.2g}, standard / weight norm {own:.2g}"
        finish(ax, title, "epoch", f"{key} of the Fisher, own coordinates (no unit)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize="small", loc="outside lower center", ncols=len(labels), frameon=False)
    for arm, style in LOOKS.items():
        if arm != FULL_BATCH:
            middle = medians(rows, arm, "loss")
            axes[2].plot(list(middle), list(middle.values()), **style.line, markersize=5, linewidth=1.5, label=arm)
    axes[2].set_yscale("log")
    axes[2].set_xscale("symlog", linthresh=1)
    seeds = len({row["seed"] for row in rows})
    finish(axes[2], f"Training loss, median of {seeds} seeds", "epoch", "cross-entropy, mean over examples (nat)")
    for ax in axes:
        ax.set_xlim(left=-0.15)
        epochs = sorted({row["epoch"] for row in rows})
        ax.set_xticks(epochs, labels=[str(epoch) for epoch in epochs], minor=False)
    return figure


def main() -> None:
    """Measure, write, draw."""
    options = command_line(__doc__, "one seed, 120 examples, three hidden units, five epochs").parse_args()
    rows = measure(fast=options.fast)
    write(options, __doc__, {"rows": rows}, draw(rows))
    final = max(row["epoch"] for row in rows)
    print(f"{'arm after the last epoch':>24}  {'kappa_50':>9}  {'kappa_80':>9}  kappa_80 on the weights")
    for arm in LOOKS:
        own, weights = medians(rows, arm, "kappa_80")[final], medians(rows, arm, "kappa_80_weights")[final]
        print(f"{arm:>24}  {medians(rows, arm, 'kappa_50')[final]:9.3g}  {own:9.3g}  {weights:9.3g}")


if __name__ == "__main__":
    main()
