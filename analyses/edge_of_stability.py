r"""In which geometry does full-batch training sit at the edge of stability?

Claim tested (Cohen et al. 2021, arXiv:2103.00065; Cohen et al. 2022, arXiv:2207.14484): training with learning rate
``eta`` sharpens until the largest eigenvalue of the Hessian reaches the edge of the rule, and stays near it while the
loss keeps falling. The edge is ``2 / eta`` for gradient descent, ``2 (1 + mu) / eta`` with momentum ``mu``, and
``2 (1 + beta_1) / ((1 - beta_1) eta)`` for Adam. The Hessian is the one in the geometry of the steps: in the
coordinates of a chart, such as ``(g, v)`` of weight normalization, with the second-order term; for Adam preconditioned
by its divisors, ``P^(-1/2) H P^(-1/2)``. An answer is the largest eigenvalue over the edge along training, with a line
at 1: near 1 in the geometry of the steps, anywhere on the weights. Beside it is the critical sharpness
(arXiv:2601.16979) of a step without momentum: the curvature along the gradient, for Adam divided by its divisors, from
values of the loss alone. It is at most the largest eigenvalue where the loss is quadratic.

    python -m analyses.edge_of_stability --out results/edge_of_stability [--fast]

Writes curves.json (every number in the figure) and figure.svg. About five minutes; ``--fast`` ten seconds.

Keys: ``rows`` has one entry per point (``case, seed, learning_rate, step, loss, own, weights, critical``); the last
three are over the edge: in the geometry of the steps, on the weights (none for Adam, whose edge has another unit), and
along the gradient. ``summary`` has one entry per case and seed: the medians over the second half of training, the first
value and the largest.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

import curvature as cv
from analyses._protocol import command_line, losses_by_step, write
from curvature.report.figures.style import BLACK, BLUE, GRAY, VERMILLION, finish
from curvature.studies.critical import critical_sharpness
from curvature.studies.training import SGD, Adam, Arm, Optimizer, Schedule, SecondMoment, train
from curvature.studies.training import start as starting_point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Each rate leaves room to sharpen, and is small enough to reach the edge before the loss is gone.
CASES: dict[str, tuple[str, Optimizer]] = {
    "gradient descent": ("standard", SGD(0.15)),
    "weight norm": ("weight-norm", SGD(0.15)),
    "weight norm, paper's gauge": ("weight-norm-paper", SGD(0.05)),
    "random weight factorization": ("random-weight-factorization", SGD(0.02)),
    "momentum": ("standard", SGD(0.25, momentum=0.5)),
    "weight norm, momentum": ("weight-norm", SGD(0.2, momentum=0.5)),
    "Adam": ("standard", Adam(0.004)),
    "weight norm, Adam": ("weight-norm", Adam(0.002)),
    "sphere": ("sphere", SGD(0.28)),
}
ON_THE_WEIGHTS = ("gradient descent", "momentum")
LOOKS = {
    "own": {"color": BLUE, "linestyle": "-", "marker": "o", "label": "in the geometry of the steps"},
    "weights": {"color": GRAY, "linestyle": ":", "marker": "v", "label": "Hessian on the weights"},
    "critical": {
        "color": VERMILLION,
        "linestyle": "-.",
        "marker": "x",
        "label": "along the gradient (critical sharpness)",
    },
}
FAST = ("gradient descent", "weight norm", "weight norm, paper's gauge", "Adam")
SEEDS = (0, 1, 2)
NUM_EXAMPLES, WIDTHS, STEPS, EVERY = 200, (16,), 3000, 100
TOLERANCE = 1e-4  # of lambda_max, relative: far below the width of a line


def problem_at(seed: int, *, fast: bool) -> cv.Problem:
    """Digits as regression on one-hot targets: squared error keeps its curvature when the fit is good."""
    inputs, labels = cv.zoo.digits(40 if fast else NUM_EXAMPLES)
    targets = nn.functional.one_hot(labels, 10).double()
    model = cv.zoo.mlp((64, *((6,) if fast else WIDTHS), 10), seed=seed)
    return cv.Problem.from_module(model, loss="half-squared-error", data=(inputs, targets))


@dataclass
class Divisors:
    """The divisors of Adam at some steps of a run, from the gradients that the run meets.

    Attributes
    ----------
    optimizer
        The rule.
    steps
        Where to keep them.
    kept
        ``sqrt(s / (1 - beta_2^t)) + epsilon`` by step.
    """

    optimizer: Adam
    steps: Container[int]
    kept: dict[int, Tensor] = field(default_factory=dict)
    moment: SecondMoment | None = None

    def __call__(self, before: Tensor, gradient: Tensor, after: Tensor) -> None:
        """Watch one step."""
        del before, after
        self.moment = self.moment or SecondMoment(self.optimizer, gradient)
        self.moment.add(gradient)
        if self.moment.step in self.steps:
            self.kept[self.moment.step] = self.moment.divisors()


def sharpness(problem: cv.Problem, chart: cv.Parameterization, divisors: Tensor | None = None) -> float:
    """Largest eigenvalue of the Hessian in a chart, by Lanczos on its products; preconditioned by the divisors."""
    operator = cv.pullback(cv.hessian(problem), chart)
    if divisors is not None:
        operator = operator.congruence(torch.diag(divisors.rsqrt()), "preconditioned Hessian")
    return float(cv.extremal_eigenvalues(operator, num_largest=1, tolerance=TOLERANCE).largest[0])


def along_the_gradient(problem: cv.Problem, chart: cv.Parameterization, divisors: Tensor | None = None) -> float:
    """Critical sharpness of a step along the gradient in a chart, divided by the divisors."""
    point, loss = chart.at(problem.layout, problem.weights), problem.value()
    gradient = point.pull(problem.gradient()[:, None])[:, 0]
    step = gradient if divisors is None else gradient / divisors

    def change(rate: float) -> float:
        return problem.value(point.to_weights(point.coordinates - rate * step)) - loss

    return critical_sharpness(change, loss, float(step @ gradient), precision=2.2e-16).value


def measure(*, fast: bool = False) -> list[dict]:
    """Train every case on the full batch and measure its geometry every few steps."""
    rows = []
    for seed in SEEDS[: 1 if fast else None]:
        problem = problem_at(seed, fast=fast)
        for case in FAST if fast else CASES:
            rows += [{"case": case, "seed": seed} | row for row in _run(problem, case, seed, fast=fast)]
    return rows


def _run(problem: cv.Problem, case: str, seed: int, *, fast: bool) -> list[dict]:
    arm, optimizer = CASES[case]
    if fast and isinstance(optimizer, Adam):
        optimizer = optimizer.at_rate(0.01)  # the edge is out of reach in so few steps at the small rate
    steps, every = (400, 50) if fast else (STEPS, EVERY)
    marks = {f"step {step}": step for step in range(every, steps + 1, every)}
    divisors = Divisors(optimizer, set(marks.values())) if isinstance(optimizer, Adam) else None
    run = train(
        problem,
        Arm(arm).begin(starting_point(problem, "module", seed=seed)),
        Schedule(steps, problem.num_examples, marks, evaluate_every=every),  # an epoch of the full batch is one step
        arm=arm,
        seed=seed,
        optimizer=optimizer,
        watch=divisors,
    ).require_finite()
    losses, rows = losses_by_step(run), []
    for point in run.checkpoints:
        here, geometry = problem.at(point.weights), (divisors.kept[point.step] if divisors else None)
        numbers = {
            "own": sharpness(here, point.chart, geometry),
            "weights": None if divisors else sharpness(here, cv.Standard()),
            "critical": along_the_gradient(here, point.chart, geometry),
        }
        rows.append(
            {"learning_rate": optimizer.learning_rate, "step": point.step, "loss": losses[point.step]}
            | {name: None if value is None else value / optimizer.edge for name, value in numbers.items()}
        )
    return rows


def summary(rows: list[dict]) -> list[dict]:
    """Medians over the second half of each run, the first value and the largest."""
    medians = []
    for case, seed in dict.fromkeys((row["case"], row["seed"]) for row in rows):
        run = [row for row in rows if (row["case"], row["seed"]) == (case, seed)]
        second_half = [row for row in run if row["step"] > run[-1]["step"] / 2]
        numbers = {name: _median([row[name] for row in second_half]) for name in ("own", "weights", "critical")}
        ends = {"own_at_start": run[0]["own"], "own_largest": max(row["own"] for row in run)}
        medians.append({"case": case, "seed": seed} | ends | numbers)
    return medians


def _median(values: list[float | None]) -> float | None:
    """The median; None where there are no numbers."""
    return None if None in values else float(np.median(np.array(values, dtype=float)))


def draw(rows: list[dict]) -> Figure:
    """One panel per case: the largest eigenvalue over the edge, in the geometry of the steps and on the weights."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    columns = 3
    figure, axes = plt.subplots(
        -(-len(cases) // columns), columns, figsize=(13, 3.3 * -(-len(cases) // columns)), layout="constrained",
        sharex=True, squeeze=False,
    )  # fmt: skip
    medians = summary(rows)
    for ax in axes.flat[len(cases) :]:
        ax.set_axis_off()
    for ax, case in zip(axes.flat, cases, strict=False):
        first = True
        for seed in dict.fromkeys(row["seed"] for row in rows):
            run = [row for row in rows if (row["case"], row["seed"]) == (case, seed)]
            steps = [row["step"] for row in run]
            for name, look in LOOKS.items():
                if name == "weights" and (case in ON_THE_WEIGHTS or run[0]["weights"] is None):
                    continue  # the same curve as in the coordinates, or no number
                label = look["label"] if first else None
                ax.plot(steps, [row[name] for row in run], **{**look, "label": label}, linewidth=1.2, markersize=3.5)
            first = False
        ax.axhline(1, color=BLACK, linestyle="--", linewidth=1, label="edge of stability")
        late = np.median([row["own"] for row in medians if row["case"] == case])
        finish(ax, f"{case}: late median {late:.2f}", "full-batch step", "largest eigenvalue / edge")
        ax.set_ylim(0, 1.3)
    axes[0, 0].legend(fontsize="small", loc="lower right")
    axes[0, 1].legend(fontsize="small", loc="lower right")
    return figure


def main() -> None:
    """Measure, write, draw."""
    options = command_line(__doc__, "one seed, four cases, 40 examples, six hidden units, 400 steps").parse_args()
    rows = measure(fast=options.fast)
    runs = summary(rows)
    write(options, __doc__, {"summary": runs, "rows": rows}, draw(rows))
    print(f"{'case':>28}  seed  over the edge: at the start, second half (largest); on the weights; along the gradient")
    for row in runs:
        weights = "-" if row["weights"] is None else f"{row['weights']:.2f}"
        print(
            f"{row['case']:>28}  {row['seed']:4d}  {row['own_at_start']:.2f}, {row['own']:.2f} "
            f"({row['own_largest']:.2f}); {weights}; {row['critical']:.2f}"
        )


if __name__ == "__main__":
    main()
