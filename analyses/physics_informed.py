r"""What does fast convection, which a physics-informed network fails to learn, do to the curvature of its loss?

``u_t + beta u_x = 0`` on ``[0, 2 pi] x [0, 1]`` with ``u(x, 0) = sin x`` and periodic ends, solved by ``sin(x - beta
t)``. Krishnapriyan et al. (2021, arXiv:2109.01050) report that the network learns it for small ``beta`` and fails for
``beta = 30``. The loss is the sum of three mean squares: of the residual, of the initial values, of the difference of
the ends. It is a function of the network's parameters that differentiates the network (``cv.Problem.from_function``
with the residuals as ``outputs``), so its GGN is ``2 J^T J``. The residual is linear in ``beta``: at fixed weights
the GGN is exactly ``A + beta B + beta^2 C``, and its largest eigenvalue grows as ``beta^2`` while that of the other
two terms stays.

    python -m analyses.physics_informed --out results/physics_informed [--fast]

Writes curves.json (every number in the figure) and figure.svg. About a minute; ``--fast`` some seconds.

Keys of a row: ``seed, beta``; ``largest``, ``kappa_50`` (a lower bound where its status says so) and
``effective_rank`` of the GGN at the initialization; ``residual``, ``initial`` and ``boundary``, the share of each
term in its trace; ``loss`` and ``relative_error`` (of ``u`` in the mean square) after ``steps`` steps of L-BFGS.
``parabola_error`` is the largest entry of ``GGN(beta) - A - beta B - beta^2 C`` relative to the largest of
``GGN(beta)``, with ``A, B, C`` from three other values of ``beta``.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from matplotlib import pyplot as plt
from torch import Tensor

import curvature as cv
from analyses._protocol import command_line, medians, with_status, write
from curvature.report.figures.style import BLACK, BLUE, GREEN, ORANGE, VERMILLION, finish

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BETAS = (1.0, 3.0, 10.0, 30.0)
SEEDS = (0, 1, 2)
STEPS = 400
FULL, FAST = (24, 17, 16), (6, 4, 6)  # collocation points in x and in t, hidden units
TERMS = {"residual": BLUE, "initial": ORANGE, "boundary": GREEN}


def parameters_of(seed: int, hidden: int) -> dict[str, Tensor]:
    """Weights and biases by name, drawn as Glorot & Bengio do."""
    generator = torch.Generator().manual_seed(seed)
    parameters = {}
    for layer, (fan_in, fan_out) in enumerate(pairwise((2, hidden, hidden, 1))):
        spread = math.sqrt(2 / (fan_in + fan_out))
        drawn = torch.randn(fan_out, fan_in, generator=generator, dtype=torch.float64)
        parameters |= {f"{layer}.weight": spread * drawn, f"{layer}.bias": torch.zeros(fan_out, dtype=torch.float64)}
    return parameters


def network(parameters: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
    """``u(x, t)``, a tanh network of both inputs scaled to ``[-1, 1]``."""
    signal = torch.stack([x / math.pi - 1, 2 * t - 1], dim=-1)
    for layer in range(3):
        signal = signal @ parameters[f"{layer}.weight"].T + parameters[f"{layer}.bias"]
        signal = signal if layer == 2 else torch.tanh(signal)
    return signal[..., 0]


def grid(num_x: int, num_t: int) -> tuple[Tensor, Tensor]:
    """Collocation points, without the last place of the period."""
    x = torch.arange(num_x, dtype=torch.float64) * (2 * math.pi / num_x)
    t = torch.linspace(0, 1, num_t, dtype=torch.float64)
    points = torch.meshgrid(x, t, indexing="ij")
    return points[0].reshape(-1), points[1].reshape(-1)


def residuals(parameters: dict[str, Tensor], beta: float, size: tuple[int, int]) -> dict[str, Tensor]:
    """What each term squares, divided by the root of its number of points."""
    x, t = (points.requires_grad_() for points in grid(*size))
    slope_x, slope_t = torch.autograd.grad(network(parameters, x, t).sum(), (x, t), create_graph=True)
    start, times = grid(size[0], 1)[0], torch.linspace(0, 1, size[1], dtype=torch.float64)
    zero, period = torch.zeros_like(times), torch.full_like(times, 2 * math.pi)
    terms = {
        "residual": slope_t + beta * slope_x,
        "initial": network(parameters, start, torch.zeros_like(start)) - torch.sin(start),
        "boundary": network(parameters, zero, times) - network(parameters, period, times),
    }
    return {name: term / math.sqrt(len(term)) for name, term in terms.items()}


def sum_of_squares(outputs: Tensor) -> Tensor:
    """The loss as a function of all residuals."""
    return outputs.square().sum()


def problem_at(seed: int, beta: float, size: tuple[int, int, int], terms: tuple[str, ...] = tuple(TERMS)) -> cv.Problem:
    """The loss, or some of its terms, at the initialization."""

    def outputs(parameters: dict[str, Tensor]) -> Tensor:
        parts = residuals(parameters, beta, size[:2])
        return torch.cat([parts[name] for name in terms])

    return cv.Problem.from_function(sum_of_squares, parameters_of(seed, size[2]), outputs=outputs)


def trained(problem: cv.Problem, steps: int) -> Tensor:
    """The weights after L-BFGS on all points."""
    weights = problem.weights.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=steps, history_size=50, line_search_fn="strong_wolfe",
                                  tolerance_change=0, tolerance_grad=0)  # fmt: skip

    def closure() -> float:
        weights.grad = problem.gradient(weights.detach())
        return problem.value(weights.detach())

    optimizer.step(closure)
    return weights.detach()


def relative_error(problem: cv.Problem, weights: Tensor, beta: float) -> float:
    """Of ``u`` on a grid twice as fine, in the mean square."""
    x, t = grid(48, 33)
    exact = torch.sin(x - beta * t)
    error = network(problem.unflatten(weights), x, t) - exact
    return float(torch.linalg.vector_norm(error) / torch.linalg.vector_norm(exact))


def measure(*, fast: bool = False) -> dict:
    """Spectra at the initialization, and the solution after training, for every speed and seed."""
    rows, worst = [], 0.0
    size, steps = (FAST, 10) if fast else (FULL, STEPS)
    for seed in SEEDS[: 1 if fast else None]:
        at = {beta: cv.ggn(problem_at(seed, beta, size)).dense() for beta in (-1.0, 0.0, 1.0)}
        constant, linear = at[0.0], (at[1.0] - at[-1.0]) / 2
        square = (at[1.0] + at[-1.0]) / 2 - constant
        for beta in BETAS[:: 3 if fast else 1]:
            problem = problem_at(seed, beta, size)
            matrix = cv.ggn(problem)
            spectrum, traces = cv.spectrum(matrix), {}
            difference = matrix.dense() - constant - beta * linear - beta**2 * square
            worst = max(worst, float(difference.abs().max() / matrix.dense().abs().max()))
            for name in TERMS:
                traces[name] = float(cv.trace(cv.ggn(problem_at(seed, beta, size, (name,)))).value) / spectrum.trace
            weights = trained(problem, steps)
            rows.append(
                {"seed": seed, "beta": beta, "largest": float(spectrum.eigenvalues[-1])}
                | with_status(numbers := spectrum.condition_numbers(), ("kappa_50",))
                | {"effective_rank": numbers["effective_rank"].value}
                | traces
                | {"loss": problem.value(weights), "relative_error": relative_error(problem, weights, beta)}
            )
    return {"rows": rows, "parabola_error": worst, "steps": steps}


def draw(document: dict) -> Figure:
    """Spectrum against speed; shares of the terms; error after training."""
    rows = document["rows"]
    figure, (spectrum, shares, errors) = plt.subplots(1, 3, figsize=(16, 4.4), layout="constrained")
    largest, ranks = medians(rows, "beta", "largest"), medians(rows, "beta", "effective_rank")
    betas = list(largest)
    spectrum.plot(betas, list(largest.values()), color=BLACK, marker="o", label="largest eigenvalue (loss/weight²)")
    parabola = [largest[betas[-1]] * (beta / betas[-1]) ** 2 for beta in betas]
    spectrum.plot(betas, parabola, color=BLACK, linestyle=":", label="proportional to β²")
    spectrum.plot(betas, list(ranks.values()), color=VERMILLION, marker="^", linestyle="--", label="effective rank")
    title = f"GGN at the initialization: a parabola in β, to {document['parabola_error']:.0e}"
    finish(spectrum, title, "β", "median over seeds")
    for (name, color), marker in zip(TERMS.items(), "os^", strict=True):
        shares.plot(betas, list(medians(rows, "beta", name).values()), color=color, marker=marker, label=name)
    finish(shares, "Initial and boundary terms lose their share of the curvature", "β", "share of the trace of the GGN")
    for seed in dict.fromkeys(row["seed"] for row in rows):
        chosen = [row for row in rows if row["seed"] == seed]
        errors.plot([row["beta"] for row in chosen], [row["relative_error"] for row in chosen], color=BLUE, marker="o",
                    linewidth=1, label="each seed" if seed == rows[0]["seed"] else None)  # fmt: skip
    errors.axhline(1, color=BLACK, linestyle=":", label="u = 0")
    middle = medians(rows, "beta", "relative_error")
    title = f"After {document['steps']} steps of L-BFGS: {middle[betas[0]]:.2g} at β = {betas[0]:g}, "
    title += f"{middle[betas[-1]]:.2g} at β = {betas[-1]:g}"
    finish(errors, title, "β", "relative error of u (root mean square)")
    for ax in (spectrum, shares, errors):
        ax.set(xscale="log", yscale="linear" if ax is shares else "log")
        ax.set_xticks(betas, [f"{beta:g}" for beta in betas])
        ax.xaxis.set_tick_params(which="minor", bottom=False)
        ax.legend(fontsize="small")
    return figure


def main() -> None:
    """Measure, write, draw."""
    options = command_line(__doc__, "one seed, two speeds, 24 points, six hidden units, 10 steps").parse_args()
    document = measure(fast=options.fast)
    write(options, __doc__, document, draw(document))
    print(f"{'seed':>4} {'beta':>5} {'largest':>8} {'kappa_50':>10} {'rank':>5}  residual, initial, boundary  error")
    for row in document["rows"]:
        parts = "  ".join(f"{row[name]:7.1%}" for name in TERMS)
        kappa = (">" if row["kappa_50_status"] == "lower_bound" else "") + f"{row['kappa_50']:.2g}"
        numbers = f"{row['largest']:8.3g} {kappa:>10} {row['effective_rank']:5.2f}"
        print(f"{row['seed']:4d} {row['beta']:5g} {numbers}  {parts}  {row['relative_error']:8.1e}")
    print(f"the GGN is a parabola in beta to {document['parabola_error']:.1e}")


if __name__ == "__main__":
    main()
