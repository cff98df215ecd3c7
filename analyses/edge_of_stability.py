r"""In which coordinates does gradient descent on weight normalization sit at the edge of stability?

Claim tested (Cohen et al. 2021, arXiv:2103.00065): full-batch gradient descent with learning rate ``eta`` sharpens
until ``lambda_max = 2 / eta`` and stays near it while the loss keeps falling. The Hessian is that of the coordinates in
which the steps are taken: under weight normalization ``(g, v)``, second-order term included. The weight-space Hessian
at the same points need not come near ``2 / eta``: at a gauge with ``||v|| < g`` it stays far below. An answer is
``eta lambda_max`` along training, in the arm's own coordinates and on the weights, with a line at 2; for the standard
arm both are one curve.

    python -m analyses.edge_of_stability --out results/edge_of_stability [--fast]

Writes curves.json (every number in the figure) and figure.svg. About 40 seconds; ``--fast`` three seconds.

Keys: ``rows`` has one entry per point (``arm, seed, learning_rate, step, loss, own, weights``); the last two are
``eta lambda_max`` in the arm's coordinates and on the weights. ``summary`` has one entry per arm and seed: the medians
over the second half of training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import pyplot as plt
from torch import nn

import curvature as cv
from analyses._protocol import command_line, losses_by_step, write
from curvature.report.figures.style import BLACK, BLUE, VERMILLION, Style, finish
from curvature.studies.training import SGD, Arm, Schedule, train
from curvature.studies.training import start as starting_point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Each rate leaves room to sharpen: eta lambda_max starts between 1 and 1.7.
ARMS = {"standard": 0.15, "weight-norm": 0.15, "weight-norm-paper": 0.05}
LOOKS = {
    "standard": Style(BLACK, "-", "o"),
    "weight-norm": Style(BLUE, "-", "s"),
    "weight-norm-paper": Style(VERMILLION, "-", "^"),
}
SEEDS = (0, 1, 2)
NUM_EXAMPLES, WIDTHS, STEPS, EVERY = 200, (16,), 3000, 50
TOLERANCE = 1e-4  # of lambda_max, relative: far below the width of a line


def problem_at(seed: int, *, fast: bool) -> cv.Problem:
    """Digits as regression on one-hot targets: squared error keeps its curvature when the fit is good."""
    inputs, labels = cv.zoo.digits(40 if fast else NUM_EXAMPLES)
    targets = nn.functional.one_hot(labels, 10).double()
    model = cv.zoo.mlp((64, *((6,) if fast else WIDTHS), 10), seed=seed)
    return cv.Problem.from_module(model, loss="half-squared-error", data=(inputs, targets))


def sharpness(problem: cv.Problem, chart: cv.Parameterization) -> float:
    """Largest eigenvalue of the Hessian in a chart, by Lanczos on its products."""
    operator = cv.pullback(cv.hessian(problem), chart)
    return float(cv.extremal_eigenvalues(operator, num_largest=1, tolerance=TOLERANCE).largest[0])


def measure(*, fast: bool = False) -> list[dict]:
    """Train every arm on the full batch and measure both Hessians every few steps."""
    rows = []
    steps, every = (400, 50) if fast else (STEPS, EVERY)
    for seed in SEEDS[: 1 if fast else None]:
        problem = problem_at(seed, fast=fast)
        for arm, rate in ARMS.items():
            marks = {f"step {step}": step for step in range(0, steps + 1, every)}
            run = train(
                problem,
                Arm(arm).begin(starting_point(problem, "module", seed=seed)),
                # An epoch of the full batch is one step.
                Schedule(steps, problem.num_examples, marks, evaluate_every=every),
                arm=arm,
                seed=seed,
                optimizer=SGD(rate),
            ).require_finite()
            losses = losses_by_step(run)
            for point in run.checkpoints:
                charts = {"own": point.chart, "weights": cv.Standard()}
                rows.append(
                    {"arm": arm, "seed": seed, "learning_rate": rate, "step": point.step, "loss": losses[point.step]}
                    | {name: rate * sharpness(problem.at(point.weights), chart) for name, chart in charts.items()}
                )
    return rows


def summary(rows: list[dict]) -> list[dict]:
    """Medians of ``eta lambda_max`` over the second half of each run, and the lowest at the start."""
    medians = []
    for arm, seed in dict.fromkeys((row["arm"], row["seed"]) for row in rows):
        run = [row for row in rows if (row["arm"], row["seed"]) == (arm, seed)]
        second_half = [row for row in run if row["step"] >= run[-1]["step"] / 2]
        numbers = {name: float(np.median([row[name] for row in second_half])) for name in ("own", "weights")}
        medians.append({"arm": arm, "seed": seed, "own_at_start": run[0]["own"]} | numbers)
    return medians


def draw(rows: list[dict]) -> Figure:
    """One panel per arm: in its own coordinates (solid) and on the weights (dotted); then the losses."""
    figure, axes = plt.subplots(1, len(ARMS) + 1, figsize=(17, 4.2), layout="constrained")
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    top = 1.08 * max(max(row["own"], row["weights"]) for row in rows)
    for ax, (arm, rate) in zip(axes, ARMS.items(), strict=False):
        for seed in seeds:
            run = [row for row in rows if (row["arm"], row["seed"]) == (arm, seed)]
            steps, style = [row["step"] for row in run], LOOKS[arm]
            every = max(1, len(run) // 10)
            names = ("Hessian in (g, v)", "Hessian on the weights") if arm != "standard" else ("Hessian", None)
            first = seed == seeds[0]
            ax.plot(
                steps, [row["own"] for row in run], color=style.color, linewidth=1.1, alpha=0.85, marker=style.marker,
                markersize=4, markevery=every, label=names[0] if first else None,
            )  # fmt: skip
            if names[1]:
                ax.plot(
                    steps, [row["weights"] for row in run], color="0.45", linestyle=":", linewidth=1.3, marker="v",
                    markersize=4, markevery=every, label=names[1] if first else None,
                )  # fmt: skip
            axes[-1].plot(
                steps, [row["loss"] for row in run], color=style.color, linewidth=1, marker=style.marker, markersize=4,
                markevery=every, label=f"{arm}, η = {rate:g}" if first else None,
            )  # fmt: skip
        ax.axhline(2, color="0.2", linestyle="--", linewidth=1, label="edge of stability, 2")
        runs = [row for row in summary(rows) if row["arm"] == arm]
        title = f"{arm}: late median {np.median([row['own'] for row in runs]):.2f}"
        if arm != "standard":
            title += f" (weights {np.median([row['weights'] for row in runs]):.2f})"
        ax.set_ylim(0, top)
        finish(ax, title, f"gradient descent step (η = {rate:g})", r"$\eta\,\lambda_{\max}$  (no unit)")
        ax.legend(fontsize="small", loc="lower right")
    axes[-1].set_yscale("log")
    finish(axes[-1], "Training loss", "gradient descent step", "half squared error, mean over examples")
    axes[-1].legend(fontsize="small")
    return figure


def main() -> None:
    """Measure, write, draw."""
    options = command_line(__doc__, "one seed, 40 examples, six hidden units, 400 steps").parse_args()
    rows = measure(fast=options.fast)
    runs = summary(rows)
    write(options, __doc__, {"summary": runs, "rows": rows}, draw(rows))
    print(f"{'arm':>18}  seed  eta lambda_max: at the start, second half; on the weights")
    for row in runs:
        print(f"{row['arm']:>18}  {row['seed']:4d}  {row['own_at_start']:.2f}, {row['own']:.2f}; {row['weights']:.2f}")


if __name__ == "__main__":
    main()
