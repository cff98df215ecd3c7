r"""Do the Fisher, the empirical Fisher, the GGN and the Hessian stay close to each other along training?

Claim tested: near a good fit the empirical Fisher and the GGN are both close to the Hessian, so that any of them may
stand for the others (against it: Kunstner, Hennig & Balles 2019, arXiv:1905.12558). For cross-entropy Fisher and GGN
are equal at every point; the empirical Fisher equals the Fisher in expectation only where the model is right; the
Hessian equals the GGN only where residuals vanish. An answer is, at every checkpoint: the relative distance
``||A - H|| / ||H||`` in the Frobenius norm; the same after the best multiple of ``A``, the sine of the angle between
the two matrices; the ratio of the traces; the overlap of the spaces of the top ``C`` eigenvectors with those of the
Hessian; and the share of the Hessian that is negative.

    python -m analyses.fisher_drift --out results/fisher_drift [--fast]

Writes curves.json (every number in the figure) and figure.svg. About 20 seconds; ``--fast`` two seconds.

Keys of a row: ``seed, epoch, loss, matrix`` (``ggn``, ``fisher``, ``empirical_fisher``), ``distance``,
``shape_distance`` (after the best multiple), ``trace_ratio``, ``overlap`` (1: the same space), ``negative_share`` of
the Hessian.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from matplotlib import pyplot as plt
from torch import Tensor

import curvature as cv
from analyses._protocol import (
    Plan,
    command_line,
    epoch_axis,
    epoch_of,
    intervals,
    legend_below,
    losses_by_step,
    plot_intervals,
    trained,
    write,
)
from curvature.report.figures.style import BLACK, BLUE, VERMILLION, Style, finish
from curvature.studies.training import Arm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_CLASSES = 10
FULL = Plan((Arm("standard"),), seeds=(0, 1, 2, 3, 4), epochs=50, checkpoints=(0, 1, 2, 5, 10, 20, 50))
FAST = Plan((Arm("standard"),), seeds=(0,), epochs=2, checkpoints=(0, 2), tuning_epochs=1, rates=(0.1, 0.2, 0.4))
LOOKS = {
    "ggn": Style(BLUE, "-", "o"),
    "fisher": Style(BLACK, ":", "s"),
    "empirical_fisher": Style(VERMILLION, "--", "^"),
}
PANELS = {
    "distance": "distance from the Hessian",
    "shape_distance": "the same, after the best multiple",
    "trace_ratio": "trace over the Hessian's",
    "overlap": "overlap of the top 10 eigenvectors",
}


def closeness(matrix: Tensor, hessian: Tensor) -> dict[str, float]:
    """Distances, ratio of traces and overlap of the top spaces of a matrix with the Hessian."""
    size, other = torch.linalg.norm(hessian), torch.linalg.norm(matrix)
    cosine = float((matrix * hessian).sum() / (size * other))
    tops = [torch.linalg.eigh(part).eigenvectors[:, -NUM_CLASSES:] for part in (matrix, hessian)]
    return {
        "distance": float(torch.linalg.norm(matrix - hessian) / size),
        "shape_distance": max(0.0, 1 - cosine**2) ** 0.5,
        "trace_ratio": float(matrix.trace() / hessian.trace()),
        "overlap": float((tops[0].T @ tops[1]).square().sum()) / NUM_CLASSES,
    }


def measure(*, fast: bool = False) -> list[dict]:
    """One row per seed, epoch and matrix."""

    def build(seed: int) -> cv.Problem:
        return cv.zoo.digits_problem(60 if fast else 500, widths=(3,) if fast else (8,), seed=seed)

    rows = []
    for _, seed, origin, run in trained(FAST if fast else FULL, build):
        losses = losses_by_step(run)
        for point in run.checkpoints:
            problem = origin.problem.at(point.weights)
            hessian = cv.hessian(problem).dense()
            values = torch.linalg.eigvalsh(hessian)
            header = {
                "seed": seed,
                "epoch": epoch_of(point),
                "loss": losses[point.step],
                "negative_share": float(values.clamp(max=0).abs().sum() / values.abs().sum()),
            }
            for name, build_matrix in (
                ("ggn", cv.ggn), ("fisher", cv.fisher), ("empirical_fisher", cv.empirical_fisher)
            ):  # fmt: skip
                rows.append(header | {"matrix": name} | closeness(build_matrix(problem).dense(), hessian))
    return rows


def draw(rows: list[dict]) -> Figure:
    """Four panels along training: each matrix against the Hessian."""
    figure, axes = plt.subplots(1, 4, figsize=(16, 4), layout="constrained")
    for ax, (of, label) in zip(axes, PANELS.items(), strict=True):
        log = of == "trace_ratio"
        for name, look in LOOKS.items():
            summary = intervals([row for row in rows if row["matrix"] == name], ("epoch",), (of,), log=log)
            plot_intervals(ax, summary, "epoch", of, look, name.replace("_", " "))
        epoch_axis(ax, sorted({row["epoch"] for row in rows}))
        if log:
            ax.set_yscale("log")
        finish(ax, label, "epoch", "")
    legend_below(figure, axes[0])
    return figure


def main() -> None:
    """Measure, write, draw."""
    options = command_line(__doc__, "one seed, 60 examples, three hidden units, two epochs").parse_args()
    rows = measure(fast=options.fast)
    write(options, __doc__, {"rows": rows}, draw(rows))
    for row in intervals(rows, ("epoch", "matrix"), tuple(PANELS), log=False):
        numbers = ", ".join(f"{label} {row[of]:.3g}" for of, label in PANELS.items())
        print(f"epoch {row['epoch']:3d}  {row['matrix']:>17}: {numbers}")


if __name__ == "__main__":
    main()
