r"""Which parameterization or optimizer comes closest to a whitened natural gradient?

Claim tested (C7, asked of everything that claims it): a method descends in a metric ``K`` that is close to the inverse
Fisher. Every method is put at the same function, the weights of a weight-normalized network at initialization, early in
training and after it, and one damping ``lambda`` is fixed on the weights. An answer is, per method: the efficiency
``E`` (the share of the damped natural gradient's progress that one step makes), the index ``R`` (0: gradient descent,
1: neuron-block natural gradient), and the condition number of ``K^(1/2) (F + lambda) K^(1/2)``, which is 1 where ``K``
is a multiple of the inverse. Adam, Shampoo and SOAP have the expectation of their moments at these weights: the state
of an optimizer that stayed there long enough. Muon has no metric, and its step is compared, on matrices only. Weight
standardization cannot represent these weights: it is measured at the nearest ones, against gradient descent there, and
marked.

    python -m analyses.whitening_league --out results/whitening_league [--fast]

Writes curves.json (every number in the figure) and figure.svg. About two minutes; ``--fast`` three seconds.

Keys of a row: ``seed, epoch, method, efficiency, index, kappa`` (None where ``K`` is singular to rounding), ``ratio``
(``E`` over that of gradient descent at the same weights). ``summary`` has means over seeds with 95 % intervals,
geometric for the ratio and ``kappa``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import Tensor

import curvature as cv
from analyses._protocol import Plan, command_line, epoch_of, intervals, trained, write
from curvature.natural_gradient import Controls, best_stretches, compare_charts
from curvature.natural_gradient.comparison import step_efficiencies
from curvature.natural_gradient.optimizer_metrics import optimizer_metric
from curvature.report.figures.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILLION, finish
from curvature.studies.training import Arm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS, RELATIVE_DAMPING, RANK = (6,), 1e-3, 2
RESOLUTION = 1e14  # a larger condition number is rounding
FULL = Plan((Arm("weight-norm"),), seeds=(0, 1, 2, 3, 4), epochs=20, checkpoints=(0, 4, 20))
FAST = Plan((Arm("weight-norm"),), seeds=(0,), epochs=1, checkpoints=(0, 1), tuning_epochs=1, rates=(0.1, 0.2, 0.4))
NEAREST = "weight standardization *"
FAMILIES = {
    "gradient descent": BLACK,
    "weight norm, canonical": VERMILLION,
    "weight norm, gauge reached": VERMILLION,
    "weight norm, paper's gauge": VERMILLION,
    "weight norm, best gauge": VERMILLION,
    "placebo, paper's gauge": PURPLE,
    "sphere": BLUE,
    "random weight factorization": BLUE,
    NEAREST: BLUE,
    f"DoRA, rank {RANK}": BLUE,
    "Jacobi": ORANGE,
    "Adam": ORANGE,
    "Muon (step on matrices)": ORANGE,
    "Shampoo": ORANGE,
    "SOAP": ORANGE,
    "PRONG": GREEN,
    "K-FAC": GREEN,
    "EKFAC": GREEN,
    "neuron-block natural gradient": GREEN,
    "layer-block natural gradient": GREEN,
    "natural gradient": GREEN,
}
ENDS = ("gradient descent", "neuron-block natural gradient")
MARKERS = {BLACK: "o", VERMILLION: "^", PURPLE: "X", BLUE: "P", ORANGE: "D", GREEN: "s"}
KINDS = {
    "Jacobi": "jacobi",
    "PRONG": "prong",
    "K-FAC": "kfac",
    "EKFAC": "ekfac",
    "neuron-block natural gradient": "neuron-block",
    "layer-block natural gradient": "layer-block",
    "natural gradient": "full",
}


def charts(
    problem: cv.Problem, own: cv.Parameterization, seed: int, fisher: cv.SymmetricOperator, controls: Controls
) -> dict[str, cv.Parameterization]:
    """Every method with a metric, at the weights of the problem."""
    stretches = best_stretches(
        problem, by="neuron", criterion="efficiency", relative_damping=RELATIVE_DAMPING,
        fisher=fisher,
    )  # fmt: skip
    preconditioners = controls.preconditioners
    return {
        "gradient descent": cv.Standard(),
        "weight norm, canonical": cv.WeightNorm(),
        "weight norm, gauge reached": own,
        "weight norm, paper's gauge": cv.WeightNorm("paper"),
        "weight norm, best gauge": cv.WeightNorm(stretch=stretches),
        "placebo, paper's gauge": cv.Placebo("paper", seed=seed),
        "sphere": cv.Sphere(),
        "random weight factorization": cv.RandomWeightFactorization(seed=seed),
        f"DoRA, rank {RANK}": cv.DoRA(RANK, seed=seed),
        "Adam": optimizer_metric(problem, "adam"),
        "Shampoo": optimizer_metric(problem, "shampoo"),
        "SOAP": optimizer_metric(problem, "soap"),
    } | {name: preconditioners.chart(kind, relative_damping=RELATIVE_DAMPING) for name, kind in KINDS.items()}


def muon_step(problem: cv.Problem, gradient: Tensor) -> Tensor:
    """The polar factor of the gradient of every matrix; nothing elsewhere."""
    step = torch.zeros_like(gradient)
    for entry, span in problem.layout.pairs():
        if len(entry.shape) == 2:
            left, _, right = torch.linalg.svd(gradient[span].view(entry.shape), full_matrices=False)
            step[span] = (left @ right).reshape(-1)
    return step


def at_point(problem: cv.Problem, own: cv.Parameterization, seed: int) -> list[dict]:
    """One row per method."""
    fisher = cv.fisher(problem).materialized()
    controls = Controls(problem, fisher)
    named = charts(problem, own, seed, fisher, controls)
    steps = compare_charts(problem, list(named.values()), relative_dampings=(RELATIVE_DAMPING,), controls=controls)
    rows = [
        {"method": name, "efficiency": step.efficiency, "index": step.index, "kappa": _resolved(step.kappa)}
        for name, step in zip(named, steps, strict=True)
    ]
    low, high = (next(row["efficiency"] for row in rows if row["method"] == name) for name in ENDS)
    damped = fisher.dense() + steps[0].damping * torch.eye(problem.dim, dtype=problem.dtype)
    gradient = problem.gradient()
    (muon,) = step_efficiencies(gradient, [muon_step(problem, gradient)], damped, torch.linalg.cholesky(damped))
    rows.append(
        {"method": "Muon (step on matrices)", "efficiency": muon, "index": (muon - low) / (high - low), "kappa": None}
    )
    for row in rows:
        row["ratio"] = row["efficiency"] / low
    return [*rows, _at_the_nearest(problem)]


def _at_the_nearest(problem: cv.Problem) -> dict:
    """Weight standardization at the nearest weights that it can represent, and gradient descent there."""
    chart = cv.WeightStandardization()
    moved = cv.nearest(problem, chart)
    standard, step = compare_charts(moved, [cv.Standard(), chart], relative_dampings=(RELATIVE_DAMPING,))
    return {
        "method": NEAREST,
        "efficiency": step.efficiency,
        "index": step.index,
        "kappa": _resolved(step.kappa),
        "ratio": step.efficiency / standard.efficiency,
    }


def _resolved(kappa: float) -> float | None:
    """A condition number in float64; None beyond its resolution, or where there is none."""
    return kappa if math.isfinite(kappa) and kappa < RESOLUTION else None


def measure(*, fast: bool = False) -> list[dict]:
    """One row per seed, epoch and method."""

    def build(seed: int) -> cv.Problem:
        return cv.zoo.digits_problem(100 if fast else 500, widths=(3,) if fast else WIDTHS, seed=seed)

    rows = []
    for _, seed, origin, run in trained(FAST if fast else FULL, build):
        for point in run.checkpoints:
            header = {"seed": seed, "epoch": epoch_of(point)}
            rows += [header | row for row in at_point(origin.problem.at(point.weights), point.chart, seed)]
    return rows


def summarize(rows: list[dict]) -> list[dict]:
    """Means over seeds with intervals: of the logarithm for ratios."""
    plain = intervals(rows, ("epoch", "method"), ("efficiency", "index"), log=False)
    logs = intervals(rows, ("epoch", "method"), ("ratio", "kappa"))
    return [first | second for first, second in zip(plain, logs, strict=True)]


def draw(rows: list[dict]) -> Figure:
    """Efficiency of every method, one panel per checkpoint."""
    summary = summarize(rows)
    epochs = sorted({row["epoch"] for row in summary})
    names = list(FAMILIES)
    figure, axes = plt.subplots(
        1,
        len(epochs),
        figsize=(3.4 * len(epochs) + 3, 6.2),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for ax, epoch in zip(axes[0], epochs, strict=True):
        here = {row["method"]: row for row in summary if row["epoch"] == epoch}
        for end in ENDS:
            ax.axvline(here[end]["efficiency"], color="0.5", linestyle=":", linewidth=1)
        for place, name in enumerate(names):
            row, color = here[name], FAMILIES[name]
            bars = np.nan_to_num(
                [[row["efficiency"] - row["efficiency_low"]], [row["efficiency_high"] - row["efficiency"]]]
            )
            ax.errorbar(
                row["efficiency"], place, xerr=bars, color=color, marker=MARKERS[color], markersize=6, capsize=2
            )
        finish(ax, "at initialization" if epoch == 0 else f"epoch {epoch}", "efficiency E of one step", "")
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_xlim(-0.02, 1.02)
    axes[0, 0].set_yticks(range(len(names)), names)
    figure.supxlabel(
        "E: share of the damped natural gradient's progress; bars: 95 % over seeds; dotted: gradient descent and\n"
        "neuron-block natural gradient.  *: at the nearest weights of mean zero, another function",
        fontsize="small",
    )
    return figure


def main() -> None:
    """Measure, write, draw."""
    options = command_line(__doc__, "one seed, 100 examples, three hidden units, one epoch").parse_args()
    rows = measure(fast=options.fast)
    summary = summarize(rows)
    write(options, __doc__, {"summary": summary, "rows": rows}, draw(rows))
    for row in summary:
        print(
            f"epoch {row['epoch']:3d}  {row['method']:>30}: E {row['efficiency']:.3f}, R {row['index']:+.3f}, "
            f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}] times gradient descent, "
            f"kappa {row['kappa']:.3g}"
        )


if __name__ == "__main__":
    main()
