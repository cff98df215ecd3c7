r"""How many directions at a minimum of a matrix factorization are flat, and what does the gauge do to the others?

``L(U, V) = ||U V^T - M||^2 / 2`` of a matrix ``M`` of rank ``r`` and size ``m x n`` (``cv.Problem.from_function``,
with the residuals as ``outputs``). Every ``(U A, V A^-T)`` with an invertible ``A`` of size ``r x r`` is a global
minimum too, so the Hessian there has ``r^2`` zeros, whatever the factors are. The other eigenvalues depend on which
of these minima it is. With singular values ``sigma`` of ``M`` and ``U = P sqrt(sigma) s``, ``V = Q sqrt(sigma) / s``
they are, on paper, ``sigma_i / s^2`` (``m - r`` times), ``sigma_i s^2`` (``n - r`` times) and ``sigma_i / s^2 +
sigma_j s^2``. The two factors of a product are the simplest pair of gauges that represent one function: what weight
norm does with ``g`` and ``v``.

    python -m analyses.matrix_factorization --out results/matrix_factorization [--fast]

Writes curves.json (every number in the figure) and figure.svg. About three seconds; ``--fast`` one.

Keys of a row: ``scale`` (``s``; 1 is balanced), ``dim``, ``rank`` and ``zeros`` of the Hessian, ``largest`` and
``smallest`` non-zero eigenvalue, their ratio ``kappa``, ``kappa_weight_norm`` with ``U`` as rows ``g v / ||v||`` at
the canonical gauge, ``error``, the largest difference of an eigenvalue from paper relative to the largest, and
``loss``. ``expected_zeros`` is ``r^2``. ``spectra`` holds all eigenvalues of the first and the last scale,
descending.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import Tensor

import curvature as cv
from analyses._protocol import command_line, write
from curvature.report.figures.style import BLACK, BLUE, GRAY, ORANGE, VERMILLION, finish
from curvature.report.words import short_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHAPE = (12, 9)
SINGULAR_VALUES = (4.0, 2.5, 1.5, 1.0)
SCALES = (1.0, 1.25, 1.6, 2.0, 2.5, 3.2, 4.0)


def problem_at(scale: float, singular_values: tuple[float, ...] = SINGULAR_VALUES) -> cv.Problem:
    """The factorization at the global minimum with this scale of ``U`` relative to ``V``."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = (
        torch.linalg.qr(torch.randn(size, len(singular_values), generator=generator, dtype=torch.float64)).Q
        for size in SHAPE
    )
    roots = torch.tensor(singular_values, dtype=torch.float64).sqrt()
    target = (rows * roots**2) @ columns.T

    def residuals(factors: dict[str, Tensor]) -> Tensor:
        return factors["U"] @ factors["V"].T - target

    def half_square(residual: Tensor) -> Tensor:
        return residual.square().sum() / 2

    point = {"U": rows * roots * scale, "V": columns * roots / scale}
    return cv.Problem.from_function(half_square, point, outputs=residuals)


def on_paper(scale: float, singular_values: tuple[float, ...] = SINGULAR_VALUES) -> np.ndarray:
    """All eigenvalues of the Hessian at that minimum, ascending."""
    sigma, (height, width), rank = np.array(singular_values), SHAPE, len(singular_values)
    values = [
        *np.repeat(sigma / scale**2, height - rank),
        *np.repeat(sigma * scale**2, width - rank),
        *np.add.outer(sigma / scale**2, sigma * scale**2).ravel(),
        *np.zeros(rank**2),
    ]
    return np.sort(values)


def measure(*, fast: bool = False) -> dict:
    """The spectrum of the Hessian at minima of several scales."""
    rows, spectra = [], {}
    scales = SCALES[:: 3 if fast else 1]
    for scale in scales:
        problem = problem_at(scale)
        spectrum = cv.spectrum(cv.hessian(problem))
        values, expected = spectrum.eigenvalues, on_paper(scale)
        normalized = cv.spectrum(cv.pullback(cv.hessian(problem), cv.WeightNorm(layers="U")))
        kept = values[np.abs(values) > spectrum.noise_floor]
        other = normalized.eigenvalues[np.abs(normalized.eigenvalues) > normalized.noise_floor]
        rows.append(
            {
                "scale": scale,
                "dim": spectrum.dim,
                "rank": spectrum.rank,
                "zeros": spectrum.dim - spectrum.rank,
                "largest": float(kept[-1]),
                "smallest": float(kept[0]),
                "kappa": float(kept[-1] / kept[0]),
                "kappa_weight_norm": float(other[-1] / other[0]),
                "error": float(np.abs(values - expected).max() / expected[-1]),
                "loss": problem.value(),
            }
        )
        if scale in (scales[0], scales[-1]):
            spectra[f"{scale:g}"] = values[::-1].tolist()
    return {"rows": rows, "spectra": spectra, "expected_zeros": len(SINGULAR_VALUES) ** 2}


def draw(document: dict) -> Figure:
    """Eigenvalues at two minima of one function; condition number against the gauge."""
    rows, zeros = document["rows"], document["expected_zeros"]
    figure, (decay, gauge) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    for (scale, values), (color, marker) in zip(
        document["spectra"].items(), ((BLUE, "o"), (VERMILLION, "^")), strict=True
    ):
        kept = values[: len(values) - zeros]
        indices = np.arange(1, len(kept) + 1)
        decay.plot(indices, kept, color=color, marker=marker, markersize=3, linewidth=1, label=f"scale {scale}")
    decay.set(yscale="log")
    decay.axvspan(len(values) - zeros + 0.5, len(values) + 0.5, color=GRAY, alpha=0.25, label=f"{zeros} zeros: r²")
    worst = max(row["error"] for row in rows)
    finish(decay, f"The zeros are those of the gauge group; on paper to {worst:.0e}", "index",
           "eigenvalue of the Hessian (loss/weight²)")  # fmt: skip
    scales = [row["scale"] for row in rows]
    gauge.plot(scales, [row["kappa"] for row in rows], color=BLACK, marker="o", markersize=4, label="standard")
    gauge.plot(scales, [row["kappa_weight_norm"] for row in rows], color=ORANGE, linestyle="--", marker="s",
               markersize=4, label="weight norm of U, canonical gauge: the same")  # fmt: skip
    gauge.set(xscale="log", yscale="log")
    gauge.set_xticks(scales, [f"{scale:g}" for scale in scales])
    gauge.minorticks_off()
    title = f"One product U Vᵀ: κ from {short_number(rows[0]['kappa'])} to {short_number(rows[-1]['kappa'])}"
    finish(gauge, title, "scale s of U against V (1: balanced)", "κ of the non-zero spectrum (no unit)")
    for ax in (decay, gauge):
        ax.legend(fontsize="small")
    return figure


def main() -> None:
    """Measure, write, draw."""
    options = command_line(__doc__, "three scales").parse_args()
    document = measure(fast=options.fast)
    write(options, __doc__, document, draw(document))
    print(f"{'scale':>6} {'rank':>5} {'zeros':>6} {'kappa':>10} {'weight norm':>12} {'error':>9}")
    for row in document["rows"]:
        kappas = f"{row['kappa']:10.4f} {row['kappa_weight_norm']:12.4f}"
        print(f"{row['scale']:6g} {row['rank']:5d} {row['zeros']:6d} {kappas} {row['error']:9.1e}")


if __name__ == "__main__":
    main()
