r"""How differently do parameterizations see one function?

Every chart of the package at the same trained weights: the same outputs, the same loss, other coordinates. Weight
standardization can represent only rows of mean zero, so the network is trained in its coordinates; every other chart
can represent what it finds. The spectra are those of the GGN without the structural zeros of the gauge,
``K^(1/2) G K^(1/2)`` with ``K = J J^T``.

    python -m analyses.charts_at_one_function --out results/charts_at_one_function [--fast]

Writes curves.json (every number in the figure) and figure.svg. About ten seconds; ``--fast`` two.

Keys of a row: ``chart``, ``coordinates``, ``null`` (coordinates that move nothing), ``reach`` (rank of ``K``, of
``weights``), ``rank`` of the GGN, its ``largest`` eigenvalue and the condition numbers. ``loss`` is the loss of all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import pyplot as plt

import curvature as cv
from analyses._protocol import command_line, with_status, write
from curvature.report.figures.style import OTHERS, Style, finish

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = "by rows and lengths"
PRODUCTS = "by matrix products"
CHARTS: dict[str, dict[str, cv.Parameterization]] = {
    ROWS: {
        "weight norm, stretch 3": cv.WeightNorm(stretch=3.0),
        "sphere": cv.Sphere(),
        "random weight factorization": cv.RandomWeightFactorization(),
        "weight standardization": cv.WeightStandardization(),
        "spectral norm": cv.SpectralNorm(),
    },
    PRODUCTS: {
        "deep linear": cv.DeepLinear(),
        "LoRA at B = 0": cv.LoRA(2),
        "LoRA, PiSSA": cv.LoRA(2, init="pissa"),
        "DoRA at B = 0": cv.DoRA(2),
        "DoRA, PiSSA": cv.DoRA(2, init="pissa"),
    },
}
STANDARD = Style("#000000", "-", "")


def trained(*, fast: bool = False) -> cv.Problem:
    """A digits network with rows of mean zero, after full-batch gradient descent in weight standardization."""
    problem = cv.zoo.digits_problem(100 if fast else 400, widths=(4,) if fast else (8,))
    problem = cv.nearest(problem, cv.WeightStandardization())
    chart = cv.WeightStandardization().at(problem.layout, problem.weights)
    coordinates = chart.coordinates
    for _ in range(20 if fast else 200):
        weights, pull = chart.linearize(coordinates)
        coordinates = coordinates - 0.5 * pull(problem.gradient(weights))
    return problem.at(chart.to_weights(coordinates))


def measure(*, fast: bool = False) -> dict:
    """One row and one spectrum per chart."""
    problem = trained(fast=fast)
    matrix = cv.ggn(problem).materialized()
    rows, spectra = [], {}
    for name, parameterization in ({"standard": cv.Standard()} | CHARTS[ROWS] | CHARTS[PRODUCTS]).items():
        spectrum = cv.spectrum(cv.effective(matrix, parameterization))
        chart = parameterization.at(problem.layout, problem.weights)
        numbers = spectrum.condition_numbers()
        above = spectrum.eigenvalues[spectrum.eigenvalues > spectrum.noise_floor][::-1]
        row = {"chart": name, "coordinates": chart.dim, "null": chart.null_dim, "reach": chart.dim - chart.null_dim}
        row |= {"weights": problem.dim, "rank": spectrum.rank, "largest": float(above[0])}
        rows.append(row | with_status(numbers, ("kappa_80", "kappa_95")))
        spectra[name] = above.tolist()
    return {"rows": rows, "spectra": spectra, "loss": problem.value()}


def draw(document: dict) -> Figure:
    """The decay of the eigenvalues of every chart, the weights themselves in both panels."""
    spectra, rows = document["spectra"], document["rows"]
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.8), sharey=True, layout="constrained")
    reach = {row["chart"]: row["reach"] for row in rows}
    for ax, (title, charts) in zip(axes, CHARTS.items(), strict=True):
        for name, style in zip(("standard", *charts), (STANDARD, *OTHERS[::7]), strict=False):
            values = np.array(spectra[name])
            label = name if name == "standard" else f"{name}: reaches {reach[name]}"
            ax.plot(np.arange(1, len(values) + 1), values, **style.line, markersize=4, linewidth=1.4, label=label,
                    markevery=0.1)  # fmt: skip
        ax.set(xscale="log", yscale="log")
        finish(ax, f"Coordinates {title}", f"rank of the eigenvalue, of {rows[0]['weights']} weights",
               "eigenvalue of the GGN (loss/coordinate²)")  # fmt: skip
        ax.legend(fontsize="small", loc="lower left")
    return figure


def main() -> None:
    """Measure, write, draw."""
    options = command_line(__doc__, "100 examples, four hidden units").parse_args()
    document = measure(fast=options.fast)
    write(options, __doc__, document, draw(document))
    print(f"{'chart':28} {'coordinates':>11} {'null':>5} {'reach':>6} {'largest':>9} {'kappa_80':>9}")
    for row in document["rows"]:
        counts = f"{row['coordinates']:11d} {row['null']:5d} {row['reach']:6d}"
        print(f"{row['chart']:28} {counts} {row['largest']:9.3g} {row['kappa_80']:9.3g}")


if __name__ == "__main__":
    main()
