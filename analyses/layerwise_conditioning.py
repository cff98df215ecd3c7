r"""How well conditioned is each layer's own block of the GGN, and what does the gauge of weight norm do to it?

Claim tested: normalization improves the conditioning layer by layer. Huang et al. (2020, arXiv:2002.10801) compare
:math:`\kappa_p` of the layers' blocks with and without batch norm; this analysis does it for weight norm. At the
canonical gauge every block equals that of the standard chart; any other stretch moves :math:`\kappa_p` by at most
Ostrowski's factor. An answer is a table of layers and gauges, at initialization and after training, as a heat map.

    python -m analyses.layerwise_conditioning --out results/layerwise_conditioning [--fast]

Blocks are those of :math:`K^{1/2} A K^{1/2}`, which has no gauge zeros, so all gauges have the same rank. The factor
by which each gauge moves the number of the standard chart is also written, with its interval over seeds.

Writes curves.json (every number in the figure) and figure.svg. Half a minute; ``--fast`` two seconds.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import pyplot as plt

import curvature as cv
from analyses._protocol import Plan, command_line, epoch_of, intervals, trained, with_status, write
from curvature.report.figures.style import finish
from curvature.report.words import short_number
from curvature.studies.training import Arm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS = (16, 16)
FULL = Plan((Arm("standard"), Arm("weight-norm")), seeds=(0, 1, 2, 3, 4), epochs=30, checkpoints=(0, 30))
FAST = Plan((Arm("weight-norm"),), seeds=(0,), epochs=1, checkpoints=(0, 1), tuning_epochs=1, rates=(0.1, 0.2, 0.4))
STRETCHES = (0.125, 0.5, 2.0, 8.0)
NUMBERS = ("kappa_50", "kappa_80", "kappa_95")
DRAWN = "kappa_80"


def gauges(own: cv.Parameterization) -> dict[str, cv.Parameterization]:
    """Charts of one checkpoint, by the name of their row."""
    charts: dict[str, cv.Parameterization] = {"standard": cv.Standard(), "canonical": cv.WeightNorm()}
    charts |= {f"stretch {stretch:g}": cv.WeightNorm(stretch=stretch) for stretch in STRETCHES}
    charts["paper's gauge"] = cv.WeightNorm("paper")
    return charts | ({"own gauge": own} if own.name == "weight-norm" else {})


def measure(*, fast: bool = False) -> list[dict]:
    """One row per arm, seed, checkpoint, gauge and layer."""

    def build(seed: int) -> cv.Problem:
        return cv.zoo.digits_problem(150 if fast else None, widths=(4, 4) if fast else WIDTHS, seed=seed)

    rows = []
    for arm, seed, origin, run in trained(FAST if fast else FULL, build):
        for point in run.checkpoints:
            problem = origin.problem.at(point.weights)
            matrix = cv.ggn(problem).materialized()
            ranks: dict[str, dict] = {}
            for gauge, chart in gauges(point.chart).items():
                local = chart.at(problem.layout, problem.weights)
                stretches = local.stretches.tolist() if isinstance(chart, cv.WeightNorm) else [1.0]
                for layer, block in cv.blocks(cv.effective(matrix, chart), "layer").items():
                    spectrum = cv.spectrum(block)
                    # K is invertible on the weights, so no gauge changes a block's rank (Sylvester), but it may carry
                    # an eigenvalue across the threshold: the standard chart comes first and decides.
                    rule = f"{spectrum.rank_rule} in the standard chart"
                    rank = ranks.setdefault(
                        layer, {"rank": spectrum.rank, "rank_rule": rule, "rank_bounds": spectrum.rank_bounds}
                    )
                    numbers = replace(spectrum, **rank).condition_numbers()
                    rows.append(
                        {
                            "arm": arm.name,
                            "seed": seed,
                            "epoch": epoch_of(point),
                            "gauge": gauge,
                            "layer": layer,
                            "dim": numbers.dim,
                            "rank": numbers.rank,
                            "smallest_stretch": min(stretches),
                            "largest_stretch": max(stretches),
                        }
                        | with_status(numbers, NUMBERS)
                    )
    return rows


def summarize(rows: list[dict]) -> list[dict]:
    """Geometric means over seeds, and the factor against the standard chart at the same weights, with intervals."""
    places = ("arm", "epoch", "layer", "seed")
    standard = {tuple(row[name] for name in places): row for row in rows if row["gauge"] == "standard"}
    compared = []
    for row in rows:
        reference = standard[tuple(row[name] for name in places)]
        same = row["rank"] == reference["rank"]
        compared.append(row | {f"{name}_factor": row[name] / reference[name] if same else math.nan for name in NUMBERS})
    return intervals(compared, ("arm", "epoch", "gauge", "layer"), [*NUMBERS, *(f"{name}_factor" for name in NUMBERS)])


def draw(rows: list[dict]) -> Figure:
    """Heat maps of gauges by layers: the colour is the logarithm, the text the number and its factor to standard."""
    summary = summarize(rows)
    panels = sorted({(row["arm"], row["epoch"]) for row in summary}, key=lambda key: (key[1], key[0]))
    panels = [key for key in panels if key[1] or key[0] == panels[0][0]]  # all arms begin at the same weights
    logs = [math.log10(row[DRAWN]) for row in summary if math.isfinite(row[DRAWN])]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.7 * len(panels) + 1.2, 4.6), layout="constrained", squeeze=False, sharey=True
    )
    image = None
    names = list(dict.fromkeys(row["gauge"] for row in summary))
    for ax, (arm, epoch) in zip(axes[0], panels, strict=True):
        cells = {(row["gauge"], row["layer"]): row for row in summary if (row["arm"], row["epoch"]) == (arm, epoch)}
        layers = list(dict.fromkeys(layer for _, layer in cells))
        table = np.full((len(names), len(layers)), np.nan)
        for (gauge, layer), row in cells.items():
            table[names.index(gauge), layers.index(layer)] = math.log10(row[DRAWN])
        image = ax.imshow(table, cmap="cividis", vmin=min(logs), vmax=max(logs), aspect="auto")
        middle = (min(logs) + max(logs)) / 2
        for (gauge, layer), row in cells.items():
            text = f"{short_number(row[DRAWN], 2)}\n×{row[f'{DRAWN}_factor']:.2f}"
            x, y = layers.index(layer), names.index(gauge)
            dark = table[y, x] < middle
            ax.text(x, y, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
        when = "at initialization" if epoch == 0 else f"{arm} arm, epoch {epoch}"
        finish(ax, when, "layer", "chart" if ax is axes[0, 0] else "")
        ax.grid(visible=False)
        ax.set_xticks(range(len(layers)), layers)
        ax.set_yticks(range(len(names)), [name if name == "standard" else f"weight norm, {name}" for name in names])
    figure.colorbar(image, ax=axes[0, -1], label="log₁₀ κ₈₀ of the layer's GGN block")
    return figure


def main() -> None:
    """Measure, write, draw."""
    options = command_line(__doc__, "one arm, one seed, 150 examples, one epoch").parse_args()
    rows = measure(fast=options.fast)
    summary = summarize(rows)
    write(options, __doc__, {"rows": rows, "summary": summary}, draw(rows))
    print(f"{'arm':12} {'epoch':>5} {'gauge':14} {'layer':5} {'kappa_80':>9}  factor against standard [interval]")
    for row in summary:
        factor = [row[f"kappa_80_factor{end}"] for end in ("", "_low", "_high")]
        print(
            f"{row['arm']:12} {row['epoch']:5d} {row['gauge']:14} {row['layer']:5} {row['kappa_80']:9.3g}  "
            f"{factor[0]:.3f} [{factor[1]:.3f}, {factor[2]:.3f}]"
        )


if __name__ == "__main__":
    main()
