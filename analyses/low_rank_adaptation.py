r"""Are LoRA and DoRA better conditioned than full fine-tuning, at the same function?

Claim tested: adapting a trained network by low-rank factors, with DoRA's normalization on top (Liu et al. 2024,
arXiv:2402.09353), conditions the problem better than moving all weights. The base network is trained on digits; the new
task is the same digits transposed. Full fine-tuning, LoRA and DoRA start at the same function, and the GGN of the new
task there is pulled back to each of them: the spectra differ by the chart alone. Every weight has an adapter, and the
biases are trained in all three. Then each adapts by gradient descent at its own tuned rate, and the spectra are taken
again, now at different functions. An answer is the spectrum, its rank, ``kappa_80`` and largest eigenvalue in each at
both points, with the loss each reaches.

    python -m analyses.low_rank_adaptation --out results/low_rank_adaptation [--fast]

Writes curves.json (every number in the figure) and figure.svg. About a minute; ``--fast`` two seconds.

Keys of a row: ``seed, method, stage`` (``init``, ``late``), ``loss``, ``coordinates``, ``rank``, ``kappa_80`` with its
status, ``largest``. ``spectra`` holds the eigenvalues of the first seed, ``losses`` the mean loss at the end of every
epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import pyplot as plt

import curvature as cv
from analyses._protocol import command_line, intervals, with_status, write
from curvature.report.figures.style import BLACK, BLUE, VERMILLION, Style, finish
from curvature.studies.training import SGD, Schedule, train, tune_learning_rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEEDS, NUM_EXAMPLES, WIDTHS, RANK = (0, 1, 2, 3, 4), 400, (12,), 2
EPOCHS, TUNING_EPOCHS, RATES = 30, 5, tuple(float(rate) for rate in np.logspace(-2, 1, 7))
METHODS = {
    "full fine-tuning": lambda _: cv.Standard(),
    f"LoRA, rank {RANK}": lambda seed: cv.LoRA(RANK, seed=seed),
    f"DoRA, rank {RANK}": lambda seed: cv.DoRA(RANK, seed=seed),
}
LOOKS = [Style(BLACK, "-", "o"), Style(BLUE, "--", "s"), Style(VERMILLION, "-.", "^")]


def adapted_problem(seed: int, *, fast: bool) -> cv.Problem:
    """The new task at the weights of the base network, which has been trained on the old one."""
    inputs, labels = cv.zoo.digits(60 if fast else NUM_EXAMPLES)
    model = cv.zoo.mlp((64, *((4,) if fast else WIDTHS), 10), seed=seed)
    base = cv.Problem.from_module(model, loss="cross-entropy", data=(inputs, labels))
    epochs = 2 if fast else EPOCHS
    run = train(
        base, cv.Standard(), Schedule(epochs, 64, {"end": epochs}), arm="base", seed=seed, optimizer=SGD(0.4)
    ).require_finite()
    turned = inputs.view(-1, 8, 8).mT.reshape(-1, 64)
    task = cv.Problem.from_module(model, loss="cross-entropy", data=(turned, labels))
    return task.at(run.checkpoints[-1].weights)


def measure(*, fast: bool = False) -> dict:
    """Spectra of the GGN of the new task in every method, where adaptation starts and where it ends."""
    rows, spectra, losses = [], {}, {}
    epochs = 2 if fast else EPOCHS
    for seed in SEEDS[: 1 if fast else None]:
        problem = adapted_problem(seed, fast=fast)
        for method, build in METHODS.items():
            chart, shared = build(seed), {"arm": method, "seed": seed}
            sweep = tune_learning_rate(
                problem, lambda chart=chart: chart, Schedule(1 if fast else TUNING_EPOCHS, 64), optimizer=SGD(1.0),
                rates=RATES[:3] if fast else RATES, **shared,
            )  # fmt: skip
            schedule = Schedule(epochs, 64, {"init": 0, "late": epochs})
            run = train(problem, chart, schedule, optimizer=SGD(sweep.chosen), **shared).require_finite()
            losses.setdefault(method, []).append(run.curve.losses.tolist())
            for point in run.checkpoints:
                here = problem.at(point.weights)
                spectrum = cv.spectrum(cv.pullback(cv.ggn(here), point.chart))
                numbers = spectrum.condition_numbers()
                rows.append(
                    {"seed": seed, "method": method, "stage": point.name, "loss": here.value()}
                    | {"coordinates": len(spectrum.eigenvalues), "rank": numbers.rank}
                    | {"largest": float(spectrum.eigenvalues[-1])}
                    | with_status(numbers, ("kappa_80",))
                )
                if seed == SEEDS[0]:
                    kept = spectrum.eigenvalues[spectrum.eigenvalues > spectrum.noise_floor][::-1]
                    spectra.setdefault(point.name, {})[method] = kept.tolist()
    means = {method: np.mean(curves, axis=0).tolist() for method, curves in losses.items()}
    return {"rows": rows, "spectra": spectra, "losses": means}


def draw(content: dict) -> Figure:
    """Spectra at the same function, spectra after adaptation, and the losses."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    titles = {"init": "At the same function", "late": "After adaptation"}
    for ax, (stage, title) in zip(axes, titles.items(), strict=False):
        for (method, values), look in zip(content["spectra"][stage].items(), LOOKS, strict=True):
            ax.loglog(np.arange(1, len(values) + 1), values, **look.line, markevery=0.12, markersize=4, label=method)
        finish(ax, f"{title}: GGN of the new task", "rank of the eigenvalue", "eigenvalue above the noise floor")
    for (method, curve), look in zip(content["losses"].items(), LOOKS, strict=True):
        axes[2].semilogy(range(len(curve)), curve, **look.line, markevery=0.15, markersize=4, label=method)
    finish(axes[2], "Loss, each at its own rate, mean over seeds", "epoch", "cross-entropy")
    for ax in axes:
        ax.legend(fontsize="small")
    return figure


def main() -> None:
    """Measure, write, draw."""
    options = command_line(__doc__, "one seed, 60 examples, four hidden units, two epochs").parse_args()
    content = measure(fast=options.fast)
    write(options, __doc__, content, draw(content))
    for row in intervals(content["rows"], ("stage", "method"), ("kappa_80", "largest", "loss", "rank")):
        print(
            f"{row['stage']:>4}, {row['method']:>16}: kappa_80 {row['kappa_80']:.3g} [{row['kappa_80_low']:.3g}, "
            f"{row['kappa_80_high']:.3g}], largest {row['largest']:.3g}, rank {row['rank']:.0f}, loss {row['loss']:.3g}"
        )


if __name__ == "__main__":
    main()
