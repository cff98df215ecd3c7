r"""How different are the blocks of the Fisher, and how far are its block-diagonal and Kronecker approximations from it?

Two claims are tested. Blocks of different layers have different spectra (heterogeneity, Zhang et al. 2024,
arXiv:2402.16788). The error of the block-diagonal and of the Kronecker-factored Fisher against the exact one is of
order one, and yet their inverses precondition well (arXiv:2602.00816). An answer is, at initialization, early in
training and after it: the eigenvalues of every block; the mean Jensen-Shannon distance between the spectra of two
blocks (0: equal, 1: disjoint); the relative error ``||B - F|| / ||F||`` of each approximation ``B`` in the Frobenius
norm; and the spectrum of ``(B + lambda)^(-1/2) (F + lambda) (B + lambda)^(-1/2)``, all of whose eigenvalues are 1 where
``B`` is exact.

    python -m analyses.block_approximations --out results/block_approximations [--fast]

Writes curves.json (every number in the figure) and figure.svg. About 20 seconds; ``--fast`` two seconds.

Keys: ``rows`` has one entry per seed, epoch and approximation (``error``, ``kappa`` of the preconditioned matrix),
``heterogeneity`` one per seed and epoch, ``spectra`` the eigenvalues of blocks and of preconditioned matrices of the
first seed after training.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import Tensor

import curvature as cv
from analyses._protocol import Plan, command_line, epoch_of, intervals, plot_intervals, trained, write
from curvature.natural_gradient.preconditioners import Preconditioners
from curvature.report.figures.style import BLACK, BLUE, GREEN, ORANGE, VERMILLION, Style, finish
from curvature.studies.training import Arm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RELATIVE_DAMPING = 1e-3
BINS = np.linspace(-12, 2, 29)  # log10 of the eigenvalue, two bins a decade
FULL = Plan((Arm("standard"),), seeds=(0, 1, 2, 3, 4), epochs=20, checkpoints=(0, 1, 20))
FAST = Plan((Arm("standard"),), seeds=(0,), epochs=1, checkpoints=(0, 1), tuning_epochs=1, rates=(0.1, 0.2, 0.4))
LOOKS = {
    "diagonal": Style(BLACK, ":", "v"),
    "neuron blocks": Style(ORANGE, "--", "^"),
    "layer blocks": Style(BLUE, "-", "s"),
    "K-FAC": Style(VERMILLION, "-.", "o"),
}


def approximations(problem: cv.Problem, fisher: Tensor) -> dict[str, Tensor]:
    """The exact Fisher cut to blocks, and the Kronecker products of second moments (Martens & Grosse 2015)."""
    cut = {"diagonal": torch.diag(fisher.diagonal())}
    for name, by in (("neuron blocks", "neuron"), ("layer blocks", "layer")):
        cut[name] = torch.zeros_like(fisher)
        for rows in problem.layout.blocks(by).values():
            cut[name][rows[:, None], rows] = fisher[rows[:, None], rows]
    return cut | {"K-FAC": _kronecker(problem)}


def _kronecker(problem: cv.Problem) -> Tensor:
    """``E[s s^T] x E[a a^T]`` of each layer, with the inputs ``a`` (and 1 for the bias) and the scores ``s``."""
    matrix = torch.zeros(problem.dim, problem.dim, dtype=problem.dtype)
    for rows, inputs, scores in Preconditioners(problem).moments:
        block = rows.reshape(-1)
        matrix[block[:, None], block] = torch.kron(scores, inputs)
    return matrix


def distance_of_spectra(first: np.ndarray, second: np.ndarray) -> float:
    """Jensen-Shannon distance (base 2) between histograms of the logarithms of two sets of eigenvalues."""
    shares = []
    for values in (first, second):
        counts, _ = np.histogram(np.log10(np.clip(values, 1e-12, None)), BINS)
        shares.append(counts / counts.sum())
    middle = (shares[0] + shares[1]) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(share > 0, share * np.log2(share / middle), 0).sum() for share in shares]
    return float(np.sqrt(max(0.0, sum(terms) / 2)))


def preconditioned(fisher: Tensor, approximation: Tensor) -> Tensor:
    """Eigenvalues of ``(F + lambda)`` against ``(B + lambda)``, one ``lambda`` for both."""
    shift = RELATIVE_DAMPING * float(fisher.trace()) / len(fisher)
    identity = shift * torch.eye(len(fisher), dtype=fisher.dtype)
    lower = torch.linalg.cholesky(approximation + identity)
    half = torch.linalg.solve_triangular(lower, fisher + identity, upper=False)
    whole = torch.linalg.solve_triangular(lower, half.T, upper=False)
    return torch.linalg.eigvalsh((whole + whole.T) / 2)


def measure(*, fast: bool = False) -> dict:
    """Errors, heterogeneity and spectra at every checkpoint of training."""

    def build(seed: int) -> cv.Problem:
        return cv.zoo.digits_problem(60 if fast else 500, widths=(3,) if fast else (8, 8), seed=seed)

    errors, heterogeneity, spectra = [], [], {}
    plan = FAST if fast else FULL
    for _, seed, origin, run in trained(plan, build):
        for point in run.checkpoints:
            problem = origin.problem.at(point.weights)
            fisher, header = cv.fisher(problem).dense(), {"seed": seed, "epoch": epoch_of(point)}
            blocks = {
                name: torch.linalg.eigvalsh(fisher[rows][:, rows]).flip(0).numpy()
                for name, rows in problem.layout.blocks("layer").items()
            }
            pairs = itertools.combinations(blocks.values(), 2)
            mean = float(np.mean([distance_of_spectra(*pair) for pair in pairs]))
            heterogeneity.append(header | {"distance": mean})
            against = {"nothing": torch.linalg.eigvalsh(fisher).flip(0).numpy()}
            for name, matrix in approximations(problem, fisher).items():
                values = preconditioned(fisher, matrix)
                error = float(torch.linalg.norm(matrix - fisher) / torch.linalg.norm(fisher))
                errors.append(header | {"approximation": name, "error": error, "kappa": float(values[-1] / values[0])})
                against[name] = values.flip(0).numpy()
            if seed == plan.seeds[0]:
                spectra = (
                    {name: values.tolist() for name, values in blocks.items()},
                    {name: values.tolist() for name, values in against.items()},
                )
    return {
        "rows": errors,
        "heterogeneity": heterogeneity,
        "spectra": {"blocks": spectra[0], "preconditioned": spectra[1]},
    }


def draw(content: dict) -> Figure:
    """Spectra of the blocks, spectra after preconditioning, and the error of each approximation along training."""
    figure, axes = plt.subplots(1, 4, figsize=(17, 4), layout="constrained")
    looks = [Style(BLUE, "-", "o"), Style(ORANGE, "--", "s"), Style(GREEN, "-.", "^")]
    for (name, values), look in zip(content["spectra"]["blocks"].items(), looks, strict=False):
        kept = [value for value in values if value > 1e-15 * values[0]]
        axes[0].loglog(np.arange(1, len(kept) + 1), kept, label=f"layer {name}", **look.line, markevery=0.2)
    finish(axes[0], "Blocks of the Fisher, after training", "rank", "eigenvalue")
    for name, values in content["spectra"]["preconditioned"].items():
        if name in LOOKS:
            share = np.linspace(0, 1, len(values))
            axes[1].semilogy(share, values, label=name, **LOOKS[name].line, markevery=0.15)
    axes[1].axhline(1, color="0.4", linewidth=1)
    finish(axes[1], "Preconditioned, after training", "share of the eigenvalues", "eigenvalue (exact: 1)")
    for ax, of, label in ((axes[2], "error", "‖B − F‖ / ‖F‖"), (axes[3], "kappa", "condition number, damped")):
        for name, look in LOOKS.items():
            rows = [row for row in content["rows"] if row["approximation"] == name]
            plot_intervals(ax, intervals(rows, ("epoch",), (of,)), "epoch", of, look, name)
        ax.set_xscale("symlog", linthresh=1)
        ax.set_yscale("log")
        finish(ax, {"error": "Error of the approximation", "kappa": "After preconditioning"}[of], "epoch", label)
    for ax in axes:
        ax.legend(fontsize="small")
    return figure


def main() -> None:
    """Measure, write, draw."""
    options = command_line(__doc__, "one seed, 60 examples, three hidden units, one epoch").parse_args()
    content = measure(fast=options.fast)
    write(options, __doc__, content, draw(content))
    for row in intervals(content["rows"], ("epoch", "approximation"), ("error", "kappa")):
        print(
            f"epoch {row['epoch']:3d}  {row['approximation']:>13}: error {row['error']:.3f}, kappa {row['kappa']:.3g}"
        )
    for row in intervals(content["heterogeneity"], ("epoch",), ("distance",), log=False):
        print(f"epoch {row['epoch']:3d}  distance between the spectra of two layers {row['distance']:.2f}")


if __name__ == "__main__":
    main()
