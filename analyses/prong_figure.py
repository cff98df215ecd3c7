r"""How does the conditioning of the Fisher change along training with plain SGD, batch norm, PRONG and weight norm?

After figure 2 of Desjardins et al. (2015, arXiv:1507.00210), who follow the condition number of the Fisher of a small
network in the coordinates of each method; weight norm is added here. Claim tested: whitening every layer's input
(PRONG) conditions the Fisher far better than plain SGD, and batch normalization somewhat better. Is this also true of
weight normalization? An answer is one curve per method, each on its own trajectory, in its own coordinates. Batch
normalization has two: with the population statistics frozen, as in eval mode, and through the statistics of the full
batch, which training with them descends on. The dotted curves are the same points on the weights: they separate the
effect of the chart from the effect of the trajectory.

    python -m analyses.prong_figure --out results/prong_figure [--fast]

Writes curves.json (every number in the figure) and figure.svg. About a minute; ``--fast`` three seconds.

Keys of a row: ``arm`` (``batch-norm, full batch`` shares the run of ``batch-norm``), ``seed, epoch, step, loss,
learning_rate`` (each arm's best of a grid), ``rank``, and ``kappa_50, kappa_80, kappa_95`` of the Fisher with its
``_status``, in the arm's coordinates and, with the suffix ``_weights``, on the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib import pyplot as plt

import curvature as cv
from analyses._protocol import command_line, epoch_axis, losses_by_step, medians, with_status, write
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
    origin = starting_point(problem, "module", seed=seed)
    shared = {"arm": arm, "seed": seed}
    rate = tune_learning_rate(
        problem,
        lambda: Arm(arm).begin(origin),
        Schedule(2 if fast else 10, BATCH_SIZE),
        optimizer=SGD(1.0),
        rates=RATES[1::2] if fast else RATES,
        max_extensions=0 if fast else 6,
        **shared,
    ).chosen
    trainable = Arm(arm).begin(origin)
    marks = {str(epoch): epoch for epoch in epochs}
    schedule = Schedule(epochs[-1], BATCH_SIZE, marks)
    run = train(problem, trainable, schedule, optimizer=SGD(rate), **shared).require_finite()
    losses = losses_by_step(run)
    rows = []
    for point in run.checkpoints:
        header = {"seed": seed, "epoch": int(point.name), "step": point.step, "loss": losses[point.step]}
        for name, numbers in _conditions(problem, trainable, point, arm).items():
            rows.append({"arm": name} | header | {"learning_rate": rate} | numbers)
    return rows


def _conditions(problem: cv.Problem, trainable: Trainable, point: Checkpoint, arm: str) -> dict[str, dict]:
    fisher = cv.fisher(problem.at(point.weights)).materialized()
    charts = {arm: point.chart}
    if arm == "batch-norm":
        charts[FULL_BATCH] = trainable.full_batch_parameterization(point.coordinates)
    weights = cv.spectrum(fisher).condition_numbers()
    on_weights: dict = {}
    for key in NUMBERS:
        on_weights |= {f"{key}_weights": weights[key].value, f"{key}_weights_status": weights[key].status}
    rows = {}
    for name, chart in charts.items():
        own = cv.spectrum(cv.pullback(fisher, chart)).condition_numbers()
        rows[name] = {"rank": own.rank} | with_status(own, NUMBERS) | on_weights
    return rows


def draw(rows: list[dict]) -> Figure:
    """Condition numbers against epochs, medians and single seeds; the same points on the weights; the losses."""
    figure, axes = plt.subplots(1, 3, figsize=(16, 4.6), layout="constrained")
    final = max(row["epoch"] for row in rows)
    for ax, key in zip(axes, ("kappa_50", "kappa_80"), strict=False):
        for arm, style in LOOKS.items():
            for seed in SEEDS:
                run = [row for row in rows if row["arm"] == arm and row["seed"] == seed]
                ax.plot([row["epoch"] for row in run], [row[key] for row in run], color=style.color, lw=0.6, alpha=0.4)
            curve = medians(rows, "epoch", key, arm=arm)
            ax.plot(list(curve), list(curve.values()), **style.line, markersize=5, linewidth=1.5, label=arm)
            if arm not in ("standard", FULL_BATCH):
                curve = medians(rows, "epoch", f"{key}_weights", arm=arm)
                ax.plot(list(curve), list(curve.values()), color=style.color, linestyle=(0, (1, 2.5)), linewidth=1.2)
        ax.plot([], [], color="0.4", linestyle=(0, (1, 2.5)), label="same points, on the weights")
        standard, prong, weight_norm = (
            medians(rows, "epoch", key, arm=arm)[final] for arm in ("standard", "prong", "weight-norm")
        )
        ax.set_yscale("log")
        ratios = f"standard / PRONG {standard / prong:.2g}, standard / weight norm {standard / weight_norm:.2g}"
        title = f"{key}, {final} epochs: {ratios}"
        finish(ax, title, "epoch", f"{key} of the Fisher, own coordinates (no unit)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize="small", loc="outside lower center", ncols=len(labels), frameon=False)
    for arm, style in LOOKS.items():
        if arm != FULL_BATCH:
            curve = medians(rows, "epoch", "loss", arm=arm)
            axes[2].plot(list(curve), list(curve.values()), **style.line, markersize=5, linewidth=1.5, label=arm)
    axes[2].set_yscale("log")
    seeds = len({row["seed"] for row in rows})
    finish(axes[2], f"Training loss, median of {seeds} seeds", "epoch", "cross-entropy, mean over examples (nat)")
    for ax in axes:
        epoch_axis(ax, sorted({row["epoch"] for row in rows}))
    return figure


def main() -> None:
    """Measure, write, draw."""
    options = command_line(__doc__, "one seed, 120 examples, three hidden units, five epochs").parse_args()
    rows = measure(fast=options.fast)
    write(options, __doc__, {"rows": rows}, draw(rows))
    final = max(row["epoch"] for row in rows)
    print(f"{'arm after the last epoch':>24}  {'kappa_50':>9}  {'kappa_80':>9}  kappa_80 on the weights")
    for arm in LOOKS:
        keys = ("kappa_50", "kappa_80", "kappa_80_weights")
        print(f"{arm:>24}  " + "  ".join(f"{medians(rows, 'epoch', key, arm=arm)[final]:9.3g}" for key in keys))


if __name__ == "__main__":
    main()
