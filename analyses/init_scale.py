r"""How does the initial scale of ``v`` change the neural tangent kernel and the speed of training?

Claim tested (Dukler, Gu & Montufar 2020, arXiv:2006.06878): for a two-layer ReLU network under weight normalization the
neural tangent kernel is a radial part plus ``rho`` times a tangential part, ``rho = (g / ||v||)^2``. Small ``||v||``
trains along the directions ("V-dominated"), large ``||v||`` only along the lengths ("G-dominated"), and both converge.
An answer is the decomposition, exact at every scale, the condition number of the kernel between its two limits, and the
number of gradient descent steps to a fixed loss. The learning rate ``1 / lambda_1`` of each kernel removes the overall
scale, so that conditioning and the growth of ``||v||`` remain. All scales start at one function.

    python -m analyses.init_scale --out results/init_scale [--fast]

Writes curves.json (every number in the figure) and figure.svg. About half a minute; ``--fast`` two seconds.

Keys of a row: ``seed, stretch`` (``||v|| / |g|``, their ``alpha``; None is the standard chart), ``rho``, ``largest``
and ``smallest`` eigenvalue of the kernel over N, ``kappa_80`` (``l_1 / l_k`` at ``k`` = 80 % of N), ``trace_radial``,
``trace_tangential`` (weighted by ``rho``), ``identity_error`` of the decomposition (largest entry), ``rate``, ``steps``
(None: not reached), ``final_loss`` and ``growth``, the median ``||v_T||^2 / ||v_0||^2``. ``limits`` holds the
``kappa_80`` of either part alone, by seed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

import curvature as cv
from analyses._protocol import command_line, write
from curvature.report.figures.style import BLACK, BLUE, GRAY, ORANGE, SKY, VERMILLION, Style, finish
from curvature.report.words import short_number
from curvature.studies.training import SGD, Schedule, Trainable, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STRETCHES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
SEEDS = (0, 1, 2, 3, 4)
NUM_EXAMPLES, HIDDEN, STEPS = 100, 128, 800  # more units than examples: the radial part has full rank, too
LEVEL = 0.05  # half squared error at which the steps are counted; guessing zero costs 0.5
RADIAL, TANGENTIAL = Style(ORANGE, "--", "v"), Style(SKY, "-.", "s")


def problem_at(seed: int, *, fast: bool) -> cv.Problem:
    """Odd or even digit as a regression on unit inputs; only the first layer is trained, as in the paper."""
    inputs, labels = cv.zoo.digits(20 if fast else NUM_EXAMPLES)
    targets = (2.0 * (labels % 2) - 1)[:, None].double()
    hidden = 32 if fast else HIDDEN
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(hidden, 64, generator=generator, dtype=torch.float64))
        signs = torch.randint(2, (1, hidden), generator=generator).double() * 2 - 1
        model[2].weight.copy_(signs / math.sqrt(hidden))
    model[2].weight.requires_grad_(False)
    return cv.Problem.from_module(model, loss="half-squared-error", data=(nn.functional.normalize(inputs), targets))


def scaled_jacobian(problem: cv.Problem) -> Tensor:
    """``J^T / sqrt(N)`` on the weights: the factor of the GGN, since the loss has unit curvature."""
    return torch.cat(list(cv.ggn(problem).routes.factor.blocks()), dim=1)


def kernel_parts(problem: cv.Problem) -> tuple[Tensor, Tensor]:
    """Radial and tangential part of the tangent kernel over N, from the Jacobian on the weights, neuron by neuron."""
    factor = scaled_jacobian(problem)
    weights = problem.weights.view(-1, 64)
    units = weights / torch.linalg.vector_norm(weights, dim=1, keepdim=True)
    along = torch.einsum("hi,hin->hn", units, factor.view(*weights.shape, -1))
    radial = along.T @ along
    return radial, factor.T @ factor - radial


def kernel(problem: cv.Problem, chart: cv.Parameterization) -> Tensor:
    """Tangent kernel over N in the coordinates of a chart: the Gram matrix of the pulled-back Jacobian."""
    factor = scaled_jacobian(problem)
    pulled = chart.at(problem.layout, problem.weights).pull(factor)
    return pulled.T @ pulled


def conditions(matrix: Tensor) -> dict[str, float]:
    """Condition number ``l_1 / l_k`` with ``k`` at 80 % of N."""
    values = torch.linalg.eigvalsh(matrix).flip(0)
    return {"kappa_80": float(values[0] / values[math.ceil(0.8 * len(values)) - 1])}


def measure(*, fast: bool = False) -> dict:
    """Kernels and training at every scale and seed."""
    rows, limits = [], []
    steps = 120 if fast else STEPS
    for seed in SEEDS[: 1 if fast else None]:
        problem = problem_at(seed, fast=fast)
        radial, tangential = kernel_parts(problem)
        for name, part in (("radial", radial), ("tangential", tangential)):
            limits.append({"seed": seed, "part": name} | conditions(part))
        for stretch in (None, *STRETCHES):
            chart = cv.Standard() if stretch is None else cv.WeightNorm(stretch=stretch)
            rho = 1.0 if stretch is None else stretch**-2
            matrix = kernel(problem, chart)
            values = torch.linalg.eigvalsh(matrix)
            rate = 1 / float(values[-1])
            rows.append(
                {
                    "seed": seed,
                    "stretch": stretch,
                    "rho": rho,
                    "largest": float(values[-1]),
                    "smallest": float(values[0]),
                    "trace_radial": float(radial.trace()),
                    "trace_tangential": rho * float(tangential.trace()),
                    "identity_error": float((matrix - radial - rho * tangential).abs().max() / matrix.abs().max()),
                    "rate": rate,
                }
                | conditions(matrix)
                | _trained(problem, chart, rate, steps, seed)
            )
    return {"rows": rows, "limits": limits}


def _trained(problem: cv.Problem, chart: cv.Parameterization, rate: float, steps: int, seed: int) -> dict:
    trainable = Trainable(problem, chart)
    lengths = getattr(trainable.chart, "squared_lengths", None)
    run = train(
        problem,
        trainable,
        Schedule(steps, problem.num_examples, {"end": steps}),
        arm=chart.name,
        seed=seed,
        optimizer=SGD(rate),
    ).require_finite()
    reached = run.curve.steps_to(LEVEL)
    end = run.checkpoints[-1].coordinates
    growth = None if lengths is None else float((lengths(end) / lengths(trainable.coordinates)).median())
    return {
        "steps": reached.steps if reached.reached else None,
        "final_loss": float(run.curve.losses[-1]),
        "growth": growth,
    }


def draw(document: dict) -> Figure:
    """Traces of the parts; condition number between its limits; steps to the loss."""
    rows, limits = document["rows"], document["limits"]
    seeds = list(dict.fromkeys(row["seed"] for row in rows))

    def curve(key: str, seed: int) -> list[float]:
        values = {row["stretch"]: row[key] for row in rows if row["seed"] == seed}
        return [math.nan if values[s] is None else values[s] for s in STRETCHES]

    figure, (traces, kappas, speed) = plt.subplots(1, 3, figsize=(16, 4.6), layout="constrained")
    for seed in seeds:
        label = seed == seeds[0]
        for key, style in (("trace_radial", RADIAL), ("trace_tangential", TANGENTIAL)):
            name = {"trace_radial": "radial part", "trace_tangential": "ρ times tangential part"}[key]
            traces.plot(STRETCHES, curve(key, seed), **style.line, markersize=4, lw=1, label=name if label else None)
        traces.plot(
            STRETCHES, curve("largest", seed), color=VERMILLION, marker="^", markersize=4, linewidth=1,
            label="largest eigenvalue" if label else None,
        )  # fmt: skip
        kappas.plot(
            STRETCHES, curve("kappa_80", seed), color=BLUE, marker="o", markersize=4, linewidth=1,
            label="weight norm" if label else None,
        )  # fmt: skip
        standard = next(row for row in rows if row["seed"] == seed and row["stretch"] is None)
        if standard["steps"] is not None:
            speed.axhline(
                standard["steps"], color=BLACK, linestyle="--", linewidth=0.9, label="standard" if label else None
            )
        speed.plot(
            STRETCHES, curve("steps", seed), color=BLUE, marker="o", markersize=4, linewidth=1,
            label="weight norm" if label else None,
        )  # fmt: skip
    for part, style in (("radial", RADIAL), ("tangential", TANGENTIAL)):
        median = float(np.median([row["kappa_80"] for row in limits if row["part"] == part]))
        kappas.axhline(median, color=style.color, linestyle=style.linestyle, label=f"{part} part alone (median)")
    median = float(np.median([row["kappa_80"] for row in rows if row["stretch"] is None]))
    kappas.axhline(median, color=BLACK, linestyle=":", label="standard (median)")
    for ax in (traces, kappas, speed):
        ax.set(xscale="log", yscale="log")
        ax.axvline(1, color=GRAY, linestyle=(0, (1, 3)), linewidth=1)
    worst = max(row["identity_error"] for row in rows)
    label = "stretch ‖v‖ / |g| at the start (1: canonical gauge)"
    finish(traces, f"Kernel = radial + ρ · tangential, to {worst:.0e}", label, "trace of the kernel over N (no unit)")
    ends = [
        float(np.median([row["kappa_80"] for row in rows if row["stretch"] == s]))
        for s in STRETCHES[:: len(STRETCHES) - 1]
    ]
    title = f"κ₈₀ from {short_number(ends[0])} at small ‖v‖ to {short_number(ends[1])} at large, medians"
    finish(kappas, title, label, "κ₈₀ of the tangent kernel (no unit)")
    missing = sum(row["steps"] is None for row in rows)
    finish(
        speed,
        f"Gradient descent at η = 1/λ₁; {missing} of {len(rows)} runs did not reach it",
        label,
        f"steps to a half squared error of {LEVEL:g}",
    )
    for ax in (traces, kappas, speed):
        ax.legend(fontsize="small")
    return figure


def main() -> None:
    """Measure, write, draw."""
    options = command_line(__doc__, "one seed, 20 examples, 32 hidden units, 120 steps").parse_args()
    document = measure(fast=options.fast)
    write(options, __doc__, document, draw(document))
    print(f"{'stretch':>9}  kappa_80 and steps, per seed")
    for stretch in (None, *STRETCHES):
        seeds = [row for row in document["rows"] if row["stretch"] == stretch]
        numbers = "  ".join(f"{row['kappa_80']:8.1f} {row['steps'] or '-':>5}" for row in seeds)
        print(f"{'standard' if stretch is None else format(stretch, 'g'):>9}  {numbers}")


if __name__ == "__main__":
    main()
