r"""Is w the dominant direction of a neuron's gradient covariance, and does projecting it out make the rest spherical?

Claims tested (C2, C3; Salimans & Kingma 2016, section 2.1): per neuron, w is close to the top eigenvector of the
gradient covariance C over its incoming weights, and the covariance that weight norm leaves for v, :math:`M C M` with
:math:`M = I - u u^T`, is closer to a multiple of the identity than C. The controls decide: a random direction (its
expected cosine is known), the mean input of the layer (often the true dominant direction), and for the projection a
random direction and the top eigenvector e1, since projecting out *any* direction helps weakly (Cauchy interlacing).
Sphericity is the Bures distance to the multiples of the identity, 0 at the identity; for a sample covariance of white
gradients it is not 0 but the Marchenko-Pastur value for d weights and N examples, drawn as a line. (Pixels that are
constant leave zeros in the first layer's C that no projection removes.) An answer is the cosine, and the Bures distance
before and after each projection, per layer along training.

    python -m analyses.gradient_covariance --out results/gradient_covariance [--fast]

Writes curves.json (every number in the figure) and figure.svg. About half a minute; ``--fast`` two seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib import pyplot as plt

import curvature as cv
from analyses._protocol import Plan, command_line, epoch_axis, epoch_of, intervals, plot_intervals, trained, write
from curvature.records.marchenko_pastur import marchenko_pastur_bures
from curvature.report.figures.style import BLACK, BLUE, GRAY, GREEN, VERMILLION, Style, finish
from curvature.report.words import layer_of
from curvature.studies.training import Arm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS = (16, 16)
EPOCHS = (0, 1, 2, 4, 8, 16, 30)
FULL = Plan((Arm("standard"), Arm("weight-norm")), seeds=(0, 1, 2, 3, 4), epochs=30, checkpoints=EPOCHS)
FAST = Plan((Arm("standard"),), seeds=(0,), epochs=1, checkpoints=(0, 1), tuning_epochs=1, rates=(0.1, 0.2, 0.4))
DRAWN_ARM = "standard"  # the other arm is in the JSON
DIRECTIONS = {
    "w": Style(VERMILLION, "-", "^"),
    "mean input": Style(BLUE, "--", "s"),
    "random": Style(BLACK, ":", "o"),
    "e1": Style(GREEN, "-.", "D"),
}


def measure(*, fast: bool = False) -> list[dict]:
    """One row per arm, seed, epoch, layer and direction: medians over the layer's neurons.

    ``cosine`` with the top eigenvector and ``rayleigh`` (variance along the direction over the mean variance);
    ``bures`` on the complement of the direction, ``bures_before`` without a projection, and the values expected by
    chance: ``null_cosine``, ``null_bures``.
    """

    def build(seed: int) -> cv.Problem:
        return cv.zoo.digits_problem(150 if fast else None, widths=(4, 4) if fast else WIDTHS, seed=seed)

    rows = []
    for arm, seed, origin, run in trained(FAST if fast else FULL, build):
        for point in run.checkpoints:
            problem = origin.problem.at(point.weights)
            header = {"arm": arm.name, "seed": seed, "epoch": epoch_of(point)}
            rows += [header | row for row in _layers(problem, seed)]
    return rows


def _layers(problem: cv.Problem, seed: int) -> list[dict]:
    covariance = cv.gradient_covariance(problem).materialized()
    generator = torch.Generator().manual_seed(seed)
    aligned = cv.alignments(problem, seed=generator, covariance=covariance)
    whitened = cv.whitening(problem, seed=generator, covariance=covariance)
    before = {record.neuron: record.bures for record in whitened if record.projection == "none"}
    rows = []
    for layer in dict.fromkeys(layer_of(record.neuron) for record in whitened):
        for direction in DIRECTIONS:
            cosines = [r for r in aligned if (layer_of(r.neuron), r.direction) == (layer, direction)]
            projected = [r for r in whitened if (layer_of(r.neuron), r.projection) == (layer, direction)]
            row = {"layer": layer, "direction": direction}
            if cosines:
                row |= {"cosine": _median(r.cosine for r in cosines), "rayleigh": _median(r.rayleigh for r in cosines)}
                row |= {"null_cosine": cosines[0].null_cosine, "num_neurons": len(cosines)}
            if projected:
                row |= {
                    "bures": _median(r.bures for r in projected),
                    "bures_before": _median(before[r.neuron] for r in projected),
                    "bures_ratio": _median(r.bures / before[r.neuron] for r in projected),
                    "l1_over_mean": _median(r.l1_over_mean for r in projected),
                    "null_bures": marchenko_pastur_bures(projected[0].dim, problem.num_examples),
                    "num_neurons": len(projected),
                }
            rows.append(row)
    return rows


def _median(values: Iterable[float]) -> float:
    return float(np.median(list(values)))


def summarize(rows: list[dict]) -> list[dict]:
    """Means over seeds of the medians over neurons, with intervals: of cosines, and of Bures distances and ratios."""
    by = ("arm", "layer", "direction", "epoch")
    summaries = []
    for names in (("cosine", "rayleigh", "null_cosine"), ("bures", "bures_before", "bures_ratio", "null_bures")):
        summaries += intervals([row for row in rows if names[0] in row], by, names, log=False)
    return summaries


def draw(rows: list[dict]) -> Figure:
    """Per layer: cosine with the top eigenvector, sphericity after each projection, and the values of chance."""
    summary = [row for row in summarize(rows) if row["arm"] == DRAWN_ARM]
    layers = list(dict.fromkeys(row["layer"] for row in summary))
    figure, axes = plt.subplots(
        2,
        len(layers),
        figsize=(3.6 * len(layers) + 1, 6.6),
        layout="constrained",
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    epochs = sorted({row["epoch"] for row in rows})
    for column, layer in enumerate(layers):
        in_layer = [row for row in summary if row["layer"] == layer]
        top, bottom = axes[:, column]
        for direction, style in DIRECTIONS.items():
            cosines = [row for row in in_layer if row["direction"] == direction and "cosine" in row]
            distances = [row for row in in_layer if row["direction"] == direction and "bures" in row]
            if cosines:
                plot_intervals(top, cosines, "epoch", "cosine", style, direction)
            if distances:
                plot_intervals(bottom, distances, "epoch", "bures", style, f"without {direction}")
        reference = next(row for row in in_layer if "cosine" in row)
        top.axhline(reference["null_cosine"], color=GRAY, linewidth=1, label="expected of a random direction")
        distances = [row for row in in_layer if row["direction"] == "w" and "bures" in row]
        before = [row["bures_before"] for row in distances]
        bottom.plot([row["epoch"] for row in distances], before, color=GRAY, marker="h", label="no projection")
        bottom.axhline(distances[0]["null_bures"], color=GRAY, linewidth=1, label="expected of white gradients (MP)")
        top.set_ylim(0, 1)
        bottom.set_ylim(0, 1)
        for ax in (top, bottom):
            epoch_axis(ax, epochs)
        finish(top, f"layer {layer}", "", "" if column else "|cos| with the top eigenvector of C")
        finish(bottom, "", "epoch", "" if column else "Bures distance to c·I (0 is white)")
    for ax in axes[:, -1]:
        ax.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def main() -> None:
    """Measure, write, draw."""
    options = command_line(__doc__, "one arm, one seed, 150 examples, one epoch").parse_args()
    rows = measure(fast=options.fast)
    summary = summarize(rows)
    write(options, __doc__, {"rows": rows, "summary": summary}, draw(rows))
    last = max(row["epoch"] for row in rows)
    print(f"{'arm':12} {'layer':6} {'direction':11} {'epoch':>5}  cosine (expected of random)   Bures before -> after")
    for row in summary:
        if row["epoch"] in (0, last):
            name = f"{row['arm']:12} {row['layer']:6} {row['direction']:11} {row['epoch']:5d}"
            if "cosine" in row:
                print(f"{name}  {row['cosine']:.3f} ({row['null_cosine']:.3f})")
            else:
                print(f"{name}  {'':28}  {row['bures_before']:.3f} -> {row['bures']:.3f}")


if __name__ == "__main__":
    main()
