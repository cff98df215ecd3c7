r"""Does normalization remove the outliers of the Hessian's spectrum?

Claim tested (Ghorbani, Krishnan & Xiao 2019, arXiv:1901.10159): without normalization about as many large isolated
eigenvalues as classes appear early in training, and the gradient lies in their space. With batch normalization both are
almost absent; with its population statistics they return. They did not measure weight normalization. Here every Hessian
is exact (all eigenvalues) in the coordinates in which the steps are taken, at every checkpoint of the arm's own
training: plain, batch norm through the statistics of the full batch and with them frozen, weight norm at the canonical
and at the paper's gauge. An answer is, per arm, the size of the outliers ``lambda_1 / lambda_(C + 1)``, their number,
the gap that separates them, and the share of the gradient in the top ``C`` eigenvectors. The exact eigenvalues are
compared with the density of the same matrix by stochastic Lanczos quadrature, the paper's method.

    python -m analyses.hessian_outliers --out results/hessian_outliers [--fast]

Writes curves.json (every number in the figure) and figure.svg. About a minute; ``--fast`` three seconds.

Keys of a row: ``arm, seed, epoch, loss``, ``largest, smallest``, ``outlier_size`` (``lambda_1 / lambda_(C+1)``),
``count`` (the ``k`` of the largest ratio ``lambda_k / lambda_(k+1)`` among the first ``2 C``) with that ratio as
``gap``, ``gradient_share`` (squared) and ``uniform_share`` (``C`` over the number of coordinates, the share of a random
gradient). ``spectra`` holds all eigenvalues, and nodes and weights of the density, of the first seed after training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib import pyplot as plt

import curvature as cv
from analyses._protocol import command_line, epoch_axis, losses_by_step, medians, write
from curvature.report.figures.style import BLACK, BLUE, GREEN, ORANGE, VERMILLION, Style, finish
from curvature.studies.training import SGD, Arm, Schedule, train
from curvature.studies.training import start as starting_point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from curvature.charts import Parameterization

FULL_BATCH, FROZEN = "batch-norm, full batch", "batch-norm, frozen"
RATES = {"standard": 0.5, "batch-norm": 0.3, "weight-norm": 0.5, "weight-norm-paper": 0.1}
LOOKS = {
    "standard": Style(BLACK, "-", "o"),
    FULL_BATCH: Style(GREEN, "-", "P"),
    FROZEN: Style(ORANGE, ":", "v"),
    "weight-norm": Style(BLUE, "--", "s"),
    "weight-norm-paper": Style(VERMILLION, "-.", "^"),
}
NUM_CLASSES = 10
SEEDS = (0, 1, 2)
NUM_EXAMPLES, WIDTHS, BATCH_SIZE = 400, (10,), 50
EPOCHS = (0, 1, 2, 5, 10, 30)
PROBES, STEPS = 10, 80  # of the density


def measure(*, fast: bool = False) -> dict:
    """Rows of every arm, seed and epoch, and the spectra of the first seed after training."""
    rows, spectra = [], {}
    epochs = (0, 4) if fast else EPOCHS
    for seed in SEEDS[: 1 if fast else None]:
        problem = cv.zoo.digits_problem(100 if fast else NUM_EXAMPLES, widths=(4,) if fast else WIDTHS, seed=seed)
        for method, rate in RATES.items():
            trainable = Arm(method).begin(starting_point(problem, "module", seed=seed))
            run = train(
                problem,
                trainable,
                Schedule(epochs[-1], BATCH_SIZE, {str(epoch): epoch for epoch in epochs}),
                arm=method,
                seed=seed,
                optimizer=SGD(rate),
            ).require_finite()
            losses = losses_by_step(run)
            for point in run.checkpoints:
                charts = {method: point.chart}
                if method == "batch-norm":
                    through = trainable.full_batch_parameterization(point.coordinates)
                    charts = {FULL_BATCH: through, FROZEN: point.chart}
                hessian = cv.hessian(problem.at(point.weights)).materialized()
                for arm, chart in charts.items():
                    header = {"arm": arm, "seed": seed, "epoch": int(point.name), "loss": losses[point.step]}
                    numbers, spectrum = _measured(hessian, chart)
                    rows.append(header | numbers)
                    if seed == SEEDS[0] and point is run.checkpoints[-1]:
                        spectra[arm] = spectrum
    return {"rows": rows, "spectra": spectra}


def _measured(hessian: cv.SymmetricOperator, chart: Parameterization) -> tuple[dict, dict]:
    operator = cv.pullback(hessian, chart).materialized()
    values, vectors = torch.linalg.eigh(operator.dense())
    top = values.flip(0)[: 2 * NUM_CLASSES + 1]
    ratios = top[:-1] / top[1:]
    count = int(ratios.argmax()) + 1
    gradient = operator.facts.gradient()
    share = (vectors[:, -NUM_CLASSES:].T @ gradient).square().sum() / gradient.square().sum()
    density = cv.spectral_density(operator, num_matvecs=min(STEPS, operator.dim), num_probes=PROBES)
    numbers = {
        "largest": float(values[-1]),
        "smallest": float(values[0]),
        "outlier_size": float(top[0] / top[NUM_CLASSES]),
        "count": count,
        "gap": float(ratios[count - 1]),
        "gradient_share": float(share),
        "uniform_share": NUM_CLASSES / operator.dim,
    }
    spectrum = {
        "eigenvalues": values.tolist(),
        "nodes": density.nodes.tolist(),
        "weights": density.weights.tolist(),
    }
    return numbers, spectrum


def draw(document: dict) -> Figure:
    """Exact spectra with their densities, one panel per arm; then numbers along training."""
    rows, spectra = document["rows"], document["spectra"]
    figure, axes = plt.subplots(2, len(LOOKS), figsize=(19, 7.6), layout="constrained")
    last = max(row["epoch"] for row in rows)
    for ax, (arm, style) in zip(axes[0], LOOKS.items(), strict=True):
        row = next(row for row in rows if row["arm"] == arm and row["epoch"] == last and row["seed"] == SEEDS[0])
        _spectrum(ax, spectra[arm], style)
        title = f"{arm}: λ₁/λ₁₁ = {row['outlier_size']:.1f}; gap {row['gap']:.1f} after {row['count']}"
        finish(ax, title, "eigenvalue λ  (nat / coordinate²)", "eigenvalues above λ")
        ax.title.set_fontsize("small")
    axes[0, 0].legend(fontsize="small", loc="upper right")
    panels = {
        "outlier_size": "λ₁ / λ₁₁  (no unit)",
        "gap": "largest gap among λ₁ … λ₂₁  (ratio)",
        "count": "eigenvalues above the largest gap",
        "gradient_share": "squared share of the gradient",
        "loss": "cross-entropy  (nat)",
    }
    titles = {
        "outlier_size": "Size of the outliers",
        "gap": "Gap below the outliers",
        "count": "Number of outliers",
        "gradient_share": "Gradient in the top 10 directions",
        "loss": "Training loss",
    }
    for ax, (key, label) in zip(axes[1], panels.items(), strict=True):
        for arm, style in LOOKS.items():
            if key == "loss" and arm == FROZEN:
                continue  # the same run
            curve = medians(rows, "epoch", key, arm=arm)
            ax.plot(list(curve), list(curve.values()), **style.line, markersize=5, linewidth=1.4, label=arm)
        if key in ("outlier_size", "gap", "loss"):
            ax.set_yscale("log")
        if key == "count":
            ax.axhline(NUM_CLASSES, color="0.5", linestyle=(0, (1, 3)), label="number of classes")
        if key == "gradient_share":
            uniform = rows[0]["uniform_share"]
            ax.axhline(uniform, color="0.5", linestyle=(0, (1, 3)), label="random gradient")
            ax.set_ylim(0, 1)
        seeds = len({row["seed"] for row in rows})
        finish(ax, f"{titles[key]}, median of {seeds} seed{'s' * (seeds > 1)}", "epoch", label)
        epoch_axis(ax, sorted({row["epoch"] for row in rows}))
    axes[1, 0].legend(fontsize="small")
    return figure


def _spectrum(ax: Axes, spectrum: dict, style: Style) -> None:
    """Number of eigenvalues above each value: exact as steps, from the density as the mean over its probes."""
    values = np.array(spectrum["eigenvalues"])[::-1]
    largest = values[0]
    shown = values[values > 1e-3 * largest]
    ax.plot(shown, np.arange(1, len(shown) + 1), color=style.color, marker=style.marker, ms=4, lw=0, label="exact")
    nodes, weights = np.array(spectrum["nodes"]), np.array(spectrum["weights"])
    grid = np.geomspace(1e-3 * largest, 1.05 * largest, 300)
    above = np.array([(weights * (nodes > value)).sum(axis=1).mean() for value in grid]) * len(values)
    ax.plot(grid, above, color="0.35", linestyle="-", linewidth=1, label=f"Lanczos density, {len(nodes)} probes")
    ax.set(xscale="log", yscale="log", ylim=(0.5, 2 * len(shown)))
    ax.axhline(NUM_CLASSES, color="0.5", linestyle=(0, (1, 3)), label="number of classes")


def main() -> None:
    """Measure, write, draw."""
    options = command_line(__doc__, "one seed, 100 examples, four hidden units, four epochs").parse_args()
    document = measure(fast=options.fast)
    write(options, __doc__, document, draw(document))
    last = max(row["epoch"] for row in document["rows"])
    print(f"{'after the last epoch':>22}  l_1/l_11  count    gap  gradient in the top {NUM_CLASSES}")
    for arm in LOOKS:
        numbers = {
            key: medians(document["rows"], "epoch", key, arm=arm)[last]
            for key in ("outlier_size", "count", "gap", "gradient_share")
        }
        print(
            f"{arm:>22}  {numbers['outlier_size']:8.2f}  {numbers['count']:5.0f}  {numbers['gap']:5.2f}  "
            f"{numbers['gradient_share']:.2f}"
        )


if __name__ == "__main__":
    main()
