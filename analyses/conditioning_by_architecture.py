r"""How does the condition number at initialization depend on width, depth, skip connections and normalization?

Claims tested: the largest eigenvalue of the Fisher grows with width (Karakida, Akaho & Amari 2019, arXiv:1806.01316);
skip connections and layer normalization remove most of the effect of depth; and weight normalization does not, since
at the gauge that PyTorch produces it changes nothing. An answer is ``kappa_80`` and the largest eigenvalue of the GGN
against width and against depth, for plain, residual and layer-normalized networks on the weights, and ``kappa_80`` with
weight normalization at the paper's gauge over the one on the weights.

    python -m analyses.conditioning_by_architecture --out results/conditioning_by_architecture [--fast]

Writes curves.json (every number in the figure) and figure.svg. About a minute; ``--fast`` two seconds.

Keys of a row: ``network`` (``plain``, ``skip``, ``layer norm``, ``skip + layer norm``), ``width``, ``depth`` (hidden
layers), ``seed``, ``chart``, ``num_weights``, ``rank``, ``kappa_80`` with its status, ``largest``.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING

import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

import curvature as cv
from analyses._protocol import command_line, intervals, legend_below, plot_intervals, with_status, write
from curvature.report.figures.style import BLACK, BLUE, GREEN, VERMILLION, Style, finish

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_EXAMPLES, SEEDS = 300, (0, 1, 2, 3, 4)
WIDTH, DEPTH = 8, 2  # where the other one varies
WIDTHS, DEPTHS = (4, 8, 12, 16), (1, 2, 3, 4, 6, 8)
NETWORKS = {
    "plain": (False, False),
    "skip": (True, False),
    "layer norm": (False, True),
    "skip + layer norm": (True, True),
}
CHARTS = {"weights": cv.Standard(), "weight norm, paper's gauge": cv.WeightNorm("paper")}
LOOKS = {
    "plain": Style(BLACK, "-", "o"),
    "skip": Style(BLUE, "--", "s"),
    "layer norm": Style(VERMILLION, "-.", "^"),
    "skip + layer norm": Style(GREEN, ":", "D"),
}


class Hidden(nn.Module):
    """One hidden layer: layer norm (if any), linear map, tanh, and the input added (if there is a skip)."""

    def __init__(self, width: int, *, skip: bool, norm: bool):
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.linear, self.skip = nn.Linear(width, width), skip

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``(N, width)`` to ``(N, width)``."""
        outputs = torch.tanh(self.linear(self.norm(inputs)))
        return inputs + outputs if self.skip else outputs


def network(kind: str, width: int, depth: int, seed: int) -> nn.Module:
    """Digits to ten classes: a first layer, ``depth - 1`` hidden ones of one kind, and a last one."""
    skip, norm = NETWORKS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden = [Hidden(width, skip=skip, norm=norm) for _ in range(depth - 1)]
        return nn.Sequential(nn.Linear(64, width), nn.Tanh(), *hidden, nn.Linear(width, 10)).double()


def measure(*, fast: bool = False) -> list[dict]:
    """One row per network, size, seed and chart."""
    widths, depths, seeds = ((4,), (1, 2), (0,)) if fast else (WIDTHS, DEPTHS, SEEDS)
    sizes = dict.fromkeys(
        [(width, DEPTH) for width in widths] + [(WIDTH if not fast else 4, depth) for depth in depths]
    )
    inputs, labels = cv.zoo.digits(50 if fast else NUM_EXAMPLES)
    rows = []
    for kind in NETWORKS:
        for width, depth in sizes:
            for seed in seeds:
                problem = cv.Problem.from_module(
                    network(kind, width, depth, seed), loss="cross-entropy", data=(inputs, labels)
                )
                matrix = cv.ggn(problem).materialized()
                for name, chart in CHARTS.items():
                    spectrum = cv.spectrum(cv.effective(matrix, chart))
                    numbers = spectrum.condition_numbers()
                    rows.append(
                        {"network": kind, "width": width, "depth": depth, "seed": seed, "chart": name}
                        | {"num_weights": problem.dim, "rank": numbers.rank, "largest": float(spectrum.eigenvalues[-1])}
                        | with_status(numbers, ("kappa_80",))
                    )
    return rows


def draw(rows: list[dict]) -> Figure:
    """Against width and depth: kappa_80 and the largest eigenvalue on the weights, and what weight norm changes."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    fixed = {"width": ("depth", DEPTH), "depth": ("width", min(WIDTH, max(row["width"] for row in rows)))}
    for line, (along, (other, value)) in zip(axes, fixed.items(), strict=True):
        chosen = [row for row in rows if row[other] == value]
        for name, look in LOOKS.items():
            by_chart = {
                chart: [row for row in chosen if row["network"] == name and row["chart"] == chart] for chart in CHARTS
            }
            weights, normed = by_chart.values()
            ratios = [
                first | {"ratio": second["kappa_80"] / first["kappa_80"]}
                for first, second in zip(weights, normed, strict=True)
            ]
            for ax, members, of in (
                (line[0], weights, "kappa_80"),
                (line[1], weights, "largest"),
                (line[2], ratios, "ratio"),
            ):
                summary = sorted(intervals(members, (along,), (of,)), key=itemgetter(along))
                plot_intervals(ax, summary, along, of, look, name)
        where = f"{other} {value}"
        finish(line[0], f"κ₈₀ of the GGN, {where}", along, "κ₈₀")
        finish(line[1], f"Largest eigenvalue, {where}", along, "eigenvalue")
        finish(line[2], f"Weight norm at the paper's gauge, {where}", along, "κ₈₀ / κ₈₀ on the weights")
        line[2].axhline(1, color="0.4", linewidth=1)
        for ax in line:
            ax.set_yscale("log")
    legend_below(figure, axes[0, 0], columns=4)
    return figure


def main() -> None:
    """Measure, write, draw."""
    options = command_line(__doc__, "one seed, 50 examples, width 4, depths 1 and 2").parse_args()
    rows = measure(fast=options.fast)
    write(options, __doc__, {"rows": rows}, draw(rows))
    for row in intervals(rows, ("network", "width", "depth", "chart"), ("kappa_80", "largest")):
        size = f"width {row['width']:2d}, depth {row['depth']}"
        print(
            f"{row['network']:>17}, {size}, {row['chart']:>26}: kappa_80 {row['kappa_80']:.3g}, "
            f"largest {row['largest']:.3g}"
        )


if __name__ == "__main__":
    main()
