r"""How does the Fisher at initialization depend on depth and width, and how do the choices of weight norm change it?

Claims tested: (a) mean-field theory (Karakida, Akaho & Amari 2019, arXiv:1806.01316) predicts the largest eigenvalue at
He's initialization, and weight norm at the canonical gauge cannot change it; (b) the paper's gauge rescales layers by
their fan-in, :math:`\rho_l = \|w\|^2 / (0.05^2 d_l)`; (c) the data-dependent initialization centres pre-activations,
which removes correlation between examples and with it a part of the outlier. An answer is the largest eigenvalue over
the mean (on the rank) and the headline condition number against depth and against width, with the predictions as thin
lines.

    python -m analyses.conditioning_at_init --out results/conditioning_at_init [--fast]

ReLU networks with Gaussian inputs and half squared error, where the theory applies: its Fisher is that of
:math:`T` examples and :math:`C` outputs, of rank at most :math:`TC`. With :math:`\hat q` the second moments of the
activations of one example (1) and of two (2), :math:`\tilde q` those of the backpropagated derivatives, both of one
unit summed over a layer as in the paper, and :math:`d_l` the fan-in of layer l,

    kappa_i = sum_l qt_{i,l} (rho_l d_l qh_{i,l-1} + 1),    trace = C kappa_1,    l_1 = ((T-1) kappa_2 + kappa_1) / T,

where the ones are the biases. For the data-dependent initialization the same recursion is used with the moments that it
enforces: variance 1 in a layer for one example, covariance 0 between examples. That prediction is ours.

Writes curves.json (every number in the figure) and figure.svg. About a minute; ``--fast`` two seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from matplotlib import pyplot as plt

import curvature as cv
from analyses._protocol import command_line, intervals, legend_below, plot_intervals, write
from curvature.report.figures.style import BLACK, BLUE, ORANGE, VERMILLION, Style, finish
from curvature.studies.training import paper_start

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTHS, AT_WIDTH = (1, 2, 3, 4, 5), 48  # hidden layers, at this width
WIDTHS, AT_DEPTH = (16, 32, 48, 96), 3
SEEDS = (0, 1, 2, 3)
NUM_INPUTS, NUM_OUTPUTS, NUM_EXAMPLES = 32, 2, 100
CASES = {  # (start, gauge)
    ("he", "standard"): Style(BLACK, "-", "o"),
    ("he", "paper"): Style(VERMILLION, "-.", "^"),
    ("data-dependent", "standard"): Style(BLUE, "--", "s"),
    ("data-dependent", "paper"): Style(ORANGE, ":", "D"),
}
START_NAMES = {"he": "He's start", "data-dependent": "data-dependent start"}
NUMBERS = ("l1_over_mean", "kappa_50", "kappa_80", "predicted_l1_over_mean")


def mean_field(
    widths: Sequence[int], num_examples: int, *, centred: bool = False, gauge: str = "standard"
) -> dict[str, float]:
    """Trace and largest eigenvalue of the Fisher of a wide ReLU network with inputs of variance 1.

    ``widths`` lists inputs, hidden layers and outputs; ``centred`` is the data-dependent initialization, else He's.
    """
    same, different = [1.0], [0.0]  # second moments of activations: within one example, between two examples
    slopes, variances = [], []
    for _ in widths[1:]:
        variance = 1 / (same[-1] - different[-1]) if centred else 2.0  # of the weights, times the fan-in
        variances.append(variance)
        q1, q2 = (1.0, 0.0) if centred else (variance * same[-1], variance * different[-1])
        angle = math.acos(min(1.0, q2 / q1))  # moments of relu are in closed form (Cho & Saul 2009)
        same.append(q1 / 2)
        different.append(q1 / (2 * math.pi) * (math.sin(angle) + (math.pi - angle) * math.cos(angle)))
        slopes.append((0.5, (math.pi - angle) / (2 * math.pi)))
    back, kappas = (1.0, 1.0), [0.0, 0.0]
    for layer in reversed(range(len(widths) - 1)):
        fan_in = widths[layer]
        rho = variances[layer] / (0.05**2 * fan_in) if gauge == "paper" else 1.0
        for k, forward in enumerate((same, different)):
            kappas[k] += back[k] * (rho * fan_in * forward[layer] + 1)
        if layer:
            back = tuple(variances[layer] * b * slope for b, slope in zip(back, slopes[layer - 1], strict=True))
    largest = ((num_examples - 1) * kappas[1] + kappas[0]) / num_examples
    return {"trace": widths[-1] * kappas[0], "largest": largest}


def he_problem(widths: Sequence[int], num_examples: int, seed: int) -> cv.Problem:
    """ReLU network at He's initialization, biases zero, on Gaussian inputs."""
    generator = torch.Generator().manual_seed(1000 + seed)
    data = [
        torch.randn(num_examples, size, generator=generator, dtype=torch.float64) for size in widths[:: len(widths) - 1]
    ]
    problem = cv.Problem.from_module(
        cv.zoo.mlp(widths, activation="relu", seed=seed), loss="half-squared-error", data=tuple(data)
    )
    named = problem.unflatten(torch.zeros_like(problem.weights))
    for name, tensor in named.items():
        if name.endswith("weight"):
            normal = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(normal * (2 / tensor.shape[1]) ** 0.5)
    return problem.at(problem.layout.flatten(named))


def measure(*, fast: bool = False) -> list[dict]:
    """One row per sweep, network, seed, start and gauge, with the predictions of the theory."""
    examples = 20 if fast else NUM_EXAMPLES
    depths, widths, seeds = ((1, 2), (8,), SEEDS[:1]) if fast else (DEPTHS, WIDTHS, SEEDS)
    networks = [("depth", depth, AT_WIDTH // 4 if fast else AT_WIDTH) for depth in depths]
    networks += [("width", AT_DEPTH, width) for width in widths]
    rows = []
    for sweep, depth, width in networks:
        sizes = (NUM_INPUTS, *[width] * depth, NUM_OUTPUTS)
        for seed in seeds:
            problem = he_problem(sizes, examples, seed)
            data_dependent = paper_start(problem, seed=seed)
            own = cv.WeightNorm(v=data_dependent.v, g=data_dependent.g)
            starts = {"he": (problem, cv.WeightNorm("paper")), "data-dependent": (data_dependent.problem, own)}
            for name, (point, paper_gauge) in starts.items():
                matrix = cv.fisher(point)
                charts = {"standard": cv.Standard(), "canonical": cv.WeightNorm(), "paper": paper_gauge}
                for gauge, chart in charts.items():
                    rows.append(
                        {"sweep": sweep, "depth": depth, "width": width, "seed": seed, "start": name, "gauge": gauge}
                        | _numbers(matrix, chart, sizes, examples, name, gauge)
                    )
    return rows


def _numbers(
    matrix: cv.SymmetricOperator,
    chart: cv.Parameterization,
    sizes: Sequence[int],
    examples: int,
    start: str,
    gauge: str,
) -> dict:
    spectrum = cv.spectrum(cv.effective(matrix, chart))
    numbers = spectrum.condition_numbers()
    theory = mean_field(sizes, examples, centred=start == "data-dependent", gauge=gauge)
    return {
        "rank": spectrum.rank,
        "trace": float(spectrum.eigenvalues.sum()),
        "largest": float(spectrum.eigenvalues[-1]),
        "l1_over_mean": float(spectrum.eigenvalues[-1] * spectrum.rank / spectrum.eigenvalues.sum()),
        "kappa_50": numbers["kappa_50"].value,
        "kappa_80": numbers["kappa_80"].value,
        "kappa_80_status": numbers["kappa_80"].status,
        "predicted_trace": theory["trace"],
        "predicted_largest": theory["largest"],
        "predicted_l1_over_mean": theory["largest"] * spectrum.rank / theory["trace"],
    }


def summarize(rows: list[dict]) -> list[dict]:
    """Geometric means over seeds, with intervals."""
    return intervals(rows, ("sweep", "depth", "width", "start", "gauge"), NUMBERS)


def draw(rows: list[dict]) -> Figure:
    """Outlier and condition number, against depth and against width; thin lines are the theory."""
    summary = summarize(rows)
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 7.2), layout="constrained", sharex="col", sharey="row")
    fixed = {"depth": f"width {AT_WIDTH}", "width": f"{AT_DEPTH} hidden layers"}
    for column, (sweep, axis) in enumerate((("depth", "hidden layers"), ("width", "width of the hidden layers"))):
        for (start, gauge), style in CASES.items():
            curve = [s for s in summary if (s["sweep"], s["start"], s["gauge"]) == (sweep, start, gauge)]
            gauge_name = "weight norm, paper's gauge" if gauge == "paper" else "standard"
            for row, quantity in enumerate(("l1_over_mean", "kappa_80")):
                plot_intervals(axes[row, column], curve, sweep, quantity, style, f"{START_NAMES[start]}, {gauge_name}")
            xs = [s[sweep] for s in curve]
            axes[0, column].plot(
                xs, [s["predicted_l1_over_mean"] for s in curve], color=style.color, linewidth=0.8, alpha=0.8,
                marker=style.marker, markersize=7, markerfacecolor="none", linestyle=(0, (1, 2)),
            )  # fmt: skip
        for row in range(2):
            axes[row, column].set_yscale("log")
            if sweep == "width":
                axes[row, column].set_xscale("log")
        finish(axes[0, column], f"{sweep} ({fixed[sweep]})", "", "largest / mean eigenvalue")
        finish(axes[1, column], "", axis, "condition number κ₈₀ of the Fisher")
        ticks = sorted({s[sweep] for s in summary if s["sweep"] == sweep})
        axes[1, column].set_xticks(ticks, [str(tick) for tick in ticks])
        axes[1, column].minorticks_off()
    axes[0, 1].plot(
        [],
        [],
        color="0.4",
        marker="o",
        markerfacecolor="none",
        linestyle=(0, (1, 2)),
        label="mean-field theory (same colour and marker, hollow)",
    )
    for ax in (axes[0, 1], axes[1, 1]):
        ax.set_ylabel("")
    legend_below(figure, axes[0, 1], 2)
    return figure


def main() -> None:
    """Measure, write, draw."""
    options = command_line(__doc__, "one seed, 20 examples, small networks").parse_args()
    rows = measure(fast=options.fast)
    write(options, __doc__, {"rows": rows, "summary": summarize(rows)}, draw(rows))
    print(
        f"{'sweep':>6} {'depth':>5} {'width':>5}  {'start':15} {'gauge':9} {'l1/mean':>8} {'theory':>8} {'kappa_80':>9}"
    )
    for row in summarize(rows):
        print(
            f"{row['sweep']:>6} {row['depth']:5d} {row['width']:5d}  {row['start']:15} {row['gauge']:9} "
            f"{row['l1_over_mean']:8.3g} {row['predicted_l1_over_mean']:8.3g} {row['kappa_80']:9.3g}"
        )


if __name__ == "__main__":
    main()
