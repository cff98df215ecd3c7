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
from matplotlib import pyplot as plt

import curvature as cv
from analyses._protocol import Plan, command_line, epoch_of, intervals, trained, write
from curvature.natural_gradient import ENDS, METHODS
from curvature.report.figures.league import FAMILIES
from curvature.report.figures.style import finish
from curvature.studies.training import Arm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS = (6,)
FULL = Plan((Arm("weight-norm"),), seeds=(0, 1, 2, 3, 4), epochs=20, checkpoints=(0, 4, 20))
FAST = Plan((Arm("weight-norm"),), seeds=(0,), epochs=1, checkpoints=(0, 1), tuning_epochs=1, rates=(0.1, 0.2, 0.4))


def at_point(problem: cv.Problem, chart: cv.Parameterization, seed: int) -> list[dict]:
    """One row per method."""
    names = ("method", "efficiency", "index", "kappa", "ratio")
    league = cv.whitening_league(problem, chart, seed=seed)
    rows = [{name: getattr(entry, name) for name in names} for entry in league]
    return [row | {"kappa": None if math.isnan(row["kappa"]) else row["kappa"]} for row in rows]


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
    names = list(METHODS)
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
            row, (color, marker) = here[name], FAMILIES[METHODS[name]]
            bars = np.nan_to_num(
                [[row["efficiency"] - row["efficiency_low"]], [row["efficiency_high"] - row["efficiency"]]]
            )
            ax.errorbar(row["efficiency"], place, xerr=bars, color=color, marker=marker, markersize=6, capsize=2)
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
