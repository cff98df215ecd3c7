r"""Do the Hessian, products of gradients and the sandwich give the same standard errors of a logistic regression?

The logit of Spector & Mazzeo (1980): 32 students, is a grade improved. The negative log-likelihood is a function of
four named coefficients (``cv.Problem.from_function``), summed over students. At its minimum the covariance of the
coefficients is estimated by the inverse of the Hessian ``H``, by the inverse of the sum ``G`` of outer products of
the gradients of single students (Berndt, Hall, Hall & Hausman 1974), or by the sandwich ``H^-1 G H^-1`` (Huber 1967).
If the model is right, all three agree for many examples. Standardized regressors are a linear chart on the
coefficients, which leaves every fitted probability as it is: what remains of the condition number there is not an
accident of units.

    python -m analyses.logistic_regression --out results/logistic_regression [--fast]

Writes curves.json (every number in the figure) and figure.svg. About two seconds, with or without ``--fast``.

Keys of a row: ``coefficient``, ``estimate``, ``published`` (estimate and standard error of statsmodels), standard
errors by ``hessian``, ``gradients`` and ``sandwich``. ``charts`` holds the eigenvalues of the Hessian and their
``kappa`` in the coefficients as they are and standardized; ``kappa_published`` is that of the first.
``gradient_norm`` is what Newton's method left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import Tensor

import curvature as cv
from analyses._protocol import command_line, write
from curvature.report.figures.style import BLUE, GRAY, ORANGE, VERMILLION, finish
from curvature.report.words import short_number
from curvature.studies.installation.oracles import SPECTOR

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("grade point average", "test score", "PSI", "constant")
PUBLISHED = ((2.8261, 1.2629), (0.0952, 0.1416), (2.3787, 1.0646), (-13.0213, 4.9313))  # of statsmodels
KAPPA = 57130.71
ESTIMATES = {"hessian": (BLUE, "o"), "gradients": (ORANGE, "s"), "sandwich": (VERMILLION, "^")}


def students() -> tuple[Tensor, Tensor]:
    """Regressors with a column of ones, and whether the grade improved."""
    rows = torch.tensor(SPECTOR, dtype=torch.float64)
    return torch.cat([rows[:, :3], torch.ones(len(rows), 1)], dim=1), rows[:, 3]


def negative_log_likelihood(coefficients: dict[str, Tensor], regressors: Tensor, improved: Tensor) -> Tensor:
    """The sum over students."""
    scores = regressors @ torch.stack([coefficients[name] for name in NAMES])
    return torch.nn.functional.softplus(scores).sum() - (improved * scores).sum()


def fitted(steps: int = 12) -> cv.Problem:
    """The problem at its minimum, by Newton's method with the exact Hessian."""
    start = {name: torch.tensor(0.0) for name in NAMES}
    problem = cv.Problem.from_function(negative_log_likelihood, start, students())
    for _ in range(steps):
        problem = problem.at(problem.weights - torch.linalg.solve(cv.hessian(problem).dense(), problem.gradient()))
    return problem


def standardized() -> cv.LinearChart:
    """The coefficients of regressors with mean zero and variance one, as coordinates."""
    regressors = students()[0][:, :3]
    means, spreads = regressors.mean(dim=0), regressors.std(dim=0, correction=0)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.diag(1 / spreads)
    matrix[3, :3] = -means / spreads
    return cv.LinearChart(matrix)


def measure(*, fast: bool = False) -> dict:
    """Standard errors by three estimates, and the spectrum of the Hessian in two charts."""
    del fast  # the data set is small
    problem = fitted()
    curvature = cv.hessian(problem)
    inverse = torch.linalg.inv(curvature.dense())
    # The matrix of the package has the scale of a sum: its mean outer product is that of gradients times N.
    products = cv.empirical_fisher(problem).dense() / problem.num_examples
    covariances = {
        "hessian": inverse,
        "gradients": torch.linalg.inv(products),
        "sandwich": inverse @ products @ inverse,
    }
    errors = {name: covariance.diagonal().sqrt().tolist() for name, covariance in covariances.items()}
    rows = [
        {"coefficient": name, "estimate": float(problem.weights[k]), "published": list(PUBLISHED[k])}
        | {estimate: values[k] for estimate, values in errors.items()}
        for k, name in enumerate(NAMES)
    ]
    charts = []
    for name, matrix in (("as they are", curvature), ("standardized", cv.pullback(curvature, standardized()))):
        values = cv.spectrum(matrix).eigenvalues
        charts.append({"chart": name, "eigenvalues": values.tolist(), "kappa": float(values[-1] / values[0])})
    return {
        "rows": rows,
        "charts": charts,
        "kappa_published": KAPPA,
        "gradient_norm": float(torch.linalg.vector_norm(problem.gradient())),
    }


def draw(document: dict) -> Figure:
    """Standard errors relative to those of the Hessian; eigenvalues of the Hessian in both charts."""
    rows, charts = document["rows"], document["charts"]
    figure, (errors, spectra) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    places = np.arange(len(rows))
    for shift, (name, (color, marker)) in zip((-0.15, 0, 0.15), ESTIMATES.items(), strict=True):
        ratios = [row[name] / row["hessian"] for row in rows]
        label = {"hessian": "inverse Hessian", "gradients": "gradient products"}.get(name, name)
        errors.plot(places + shift, ratios, color=color, marker=marker, linestyle="none", label=label)
    errors.axhline(1, color=GRAY, linewidth=0.9, linestyle="--")
    errors.set_xticks(places, [row["coefficient"] for row in rows])
    errors.set_ylim(0, 1.1 * max(row[name] / row["hessian"] for row in rows for name in ESTIMATES))
    widest = max(abs(np.log(row[name] / row["hessian"])) for row in rows for name in ESTIMATES)
    title = f"32 students: estimates of one standard error differ by up to a factor of {np.exp(widest):.2f}"
    finish(errors, title, "", "standard error / that of the inverse Hessian")
    for chart, (color, marker) in zip(charts, ((BLUE, "o"), (ORANGE, "s")), strict=True):
        label = f"{chart['chart']}: κ = {short_number(chart['kappa'])}"
        spectra.plot([1, 2, 3, 4], chart["eigenvalues"][::-1], color=color, marker=marker, label=label)
    spectra.set(yscale="log", xticks=[1, 2, 3, 4])
    title = "The condition number is that of the units"
    finish(spectra, title, "index", "eigenvalue of the Hessian (loss/coordinate²)")
    for ax in (errors, spectra):
        ax.legend(fontsize="small")
    return figure


def main() -> None:
    """Measure, write, draw."""
    options = command_line(__doc__, "no difference: the data set is small").parse_args()
    document = measure(fast=options.fast)
    write(options, __doc__, document, draw(document))
    print(f"{'':>20} {'estimate':>9} {'published':>9}  standard error: published, Hessian, gradients, sandwich")
    for row in document["rows"]:
        numbers = "  ".join(f"{number:9.4f}" for number in (row["published"][1], *(row[name] for name in ESTIMATES)))
        print(f"{row['coefficient']:>20} {row['estimate']:9.4f} {row['published'][0]:9.4f}  {numbers}")
    for chart in document["charts"]:
        print(f"condition number of the Hessian, coefficients {chart['chart']}: {chart['kappa']:.7g}")


if __name__ == "__main__":
    main()
