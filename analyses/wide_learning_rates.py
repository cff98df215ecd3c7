r"""Does weight normalization train well over a wider range of learning rates?

Claim tested (Salimans & Kingma 2016, section 2.1; C4): ``||v||`` can only grow, and a step turns ``v`` by about the
gradient over ``||v||``, so a rate that is too large stabilizes itself and training is robust to it. All arms start at
one function, the paper's data-dependent initialization, and see the data in the same order; only the coordinates
differ. An answer is the final loss against the learning rate, one curve per arm; the decades of rates that end within
10 % of an arm's best loss, per paired seed; the verdict of ``curvature.studies.evidence`` on each arm against the
standard one; and the squared length of ``v``, which must grow by exactly the squared steps.

    python -m analyses.wide_learning_rates --out results/wide_learning_rates [--fast]

Writes curves.json (every number in the figure, and the verdicts) and figure.svg. About four minutes; ``--fast`` two
seconds, whose verdicts decide nothing.

Keys: ``rows`` has one entry per run: ``arm, seed, learning_rate, final_loss`` (None where it diverged), and for arms
with a ``v`` the median over neurons of ``growth = ||v_T||^2/||v_0||^2`` and of ``predicted_growth``, the same from the
squared steps alone, and the largest ``recursion_deviation`` of a step. ``widths`` has one entry per arm and seed:
``decades``, ``is_open`` (the range leaves the grid, so its width is a lower bound) and ``decades_below_chance`` (the
part of the grid that ends below the loss of guessing, a much weaker claim than "trains well"). An infinite bound is
None.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib import pyplot as plt

import curvature as cv
from analyses._protocol import command_line, medians, write
from curvature.report.figures.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILLION, Style, add_legend, finish
from curvature.studies.evidence import adjust, learning_rate_width
from curvature.studies.evidence.claims import self_stabilizing
from curvature.studies.training import SGD, Arm, NormRecursion, Schedule, learning_rate_sweep, train
from curvature.studies.training import start as starting_point

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from curvature.records import Check, LearningRateSweep, Verdict
    from curvature.studies.training import Start

START = "paper"  # one function for all arms, and the gauge that the paper's authors drew
ARMS = {
    "standard": Style(BLACK, "-", "o"),
    "scaled-standard": Style(ORANGE, ":", "v"),
    "weight-norm": Style(BLUE, "--", "s"),
    "weight-norm-paper": Style(VERMILLION, "-.", "^"),
    "weight-norm-log": Style(GREEN, "--", "D"),
    "placebo-paper": Style(PURPLE, ":", "X"),
}
RATES = tuple(float(10 ** (k / 4)) for k in range(-12, 9))  # quarter decades, 0.001 to 100
FAST_RATES = tuple(float(10 ** (k / 4)) for k in range(-4, 9, 4))
NUM_SEEDS = 10  # pairs that the verdict needs
WIDTHS, EPOCHS, BATCH_SIZE = (16,), 10, 64
CHANCE = math.log(10)  # loss of the uniform prediction


def measure(*, fast: bool = False) -> dict:
    """Every arm at every rate and seed: runs, widths, verdicts against the standard arm."""
    rows, widths, sweeps = [], [], []
    epochs = 4 if fast else EPOCHS
    checks: dict[str, list[Check]] = {arm: [] for arm in ARMS}
    for seed in range(1 if fast else NUM_SEEDS):
        problem = cv.zoo.digits_problem(200 if fast else None, widths=(4,) if fast else WIDTHS, seed=seed)
        origin = starting_point(problem, START, seed=seed, batch_size=BATCH_SIZE)
        for arm in ARMS:
            rates = FAST_RATES if fast else RATES
            runs = [_run(arm, origin, rate, epochs=epochs) for rate in rates]
            rows += [row for row, _ in runs]
            checks[arm] += [check for _, check in runs if check is not None]
            losses = np.array([row["final_loss"] for row, _ in runs])
            budget = Schedule(epochs, BATCH_SIZE).num_steps(problem)
            sweeps.append(learning_rate_sweep(arm, seed, rates, losses, budget=budget))
            width = learning_rate_width(rates, losses)
            below = int((losses < CHANCE).sum()) * math.log10(rates[1] / rates[0])
            is_open = width.status == "lower_bound"
            numbers = {"decades": width.value, "is_open": is_open, "decades_below_chance": below}
            widths.append({"arm": arm, "seed": seed} | numbers)
    return {"rows": rows, "widths": widths, "verdicts": _verdicts(sweeps, checks)}


def _run(arm: str, origin: Start, rate: float, *, epochs: int) -> tuple[dict, Check | None]:
    trainable, optimizer = Arm(arm, origin.name).begin(origin), SGD(rate)
    recursion = NormRecursion(trainable, optimizer) if NormRecursion.applies(trainable, optimizer) else None
    lengths = getattr(trainable.chart, "squared_lengths", None)
    before = None if lengths is None else lengths(trainable.coordinates)
    after, predicted = before, before

    def watch(old: torch.Tensor, gradient: torch.Tensor, new: torch.Tensor) -> None:
        nonlocal after, predicted
        recursion(old, gradient, new)
        after, predicted = lengths(new), predicted + rate**2 * lengths(gradient)

    run = train(
        origin.problem,
        trainable,
        Schedule(epochs, BATCH_SIZE, evaluate_every=10**9),  # the end alone
        arm=arm,
        seed=origin.seed,
        optimizer=optimizer,
        watch=None if recursion is None else watch,
    )
    row = {"arm": arm, "seed": origin.seed, "learning_rate": rate, "final_loss": float(run.curve.losses[-1])}
    if recursion is not None and run.diverged is None:
        row["growth"] = float((after / before).median())
        row["predicted_growth"] = float((predicted / before).median())
        row["recursion_deviation"] = recursion.deviation
        return row, recursion.check(f"{arm}, seed {origin.seed}, rate {rate:g}")
    return row, None


def _verdicts(sweeps: Sequence[LearningRateSweep], checks: dict[str, list[Check]]) -> list[dict]:
    """C4 for each arm against the standard one, decided together (Holm)."""
    drafts = [self_stabilizing(sweeps, checks[arm], arms=("standard", arm)) for arm in ARMS if arm != "standard"]
    others = [arm for arm in ARMS if arm != "standard"]
    return [_entry(arm, verdict) for arm, verdict in zip(others, adjust(drafts), strict=True)]


def _entry(arm: str, verdict: Verdict) -> dict:
    names = ("outcome", "estimate", "low", "high", "p_value", "adjusted_p_value", "threshold", "num_pairs")
    names += ("control", "control_estimate", "control_passed", "unit", "rule", "note")
    return {"arm": arm, "against": "standard"} | {name: getattr(verdict, name) for name in names}


def draw(document: dict) -> Figure:
    """Final loss against the rate; decades per arm and seed (bar: median, hollow: at least); growth, and predicted."""
    rows, widths = document["rows"], document["widths"]
    figure, (losses, decades, growth) = plt.subplots(
        1, 3, figsize=(15, 4.6), layout="constrained", gridspec_kw={"width_ratios": (1.35, 1, 1.2)}
    )
    for arm, style in ARMS.items():
        curve = medians(rows, "learning_rate", "final_loss", arm=arm)
        finite = {rate: loss for rate, loss in curve.items() if math.isfinite(loss)}
        losses.plot(list(finite), list(finite.values()), **style.line, markersize=4.5, linewidth=1.4, label=arm)
    losses.set(xscale="log", yscale="log")
    seeds = len({row["seed"] for row in rows})
    finish(losses, f"Final loss, median of {seeds} seeds", "learning rate η", "training loss after the last step (nat)")
    losses.axhline(CHANCE, color="0.5", linestyle=(0, (1, 3)), linewidth=1, label="guessing")
    losses.legend(fontsize="small", loc="upper left")

    for height, (arm, style) in enumerate(ARMS.items()):
        bounded = [row for row in widths if row["arm"] == arm and math.isfinite(row["decades"])]
        offsets = np.linspace(-0.15, 0.15, len(bounded)) if len(bounded) > 1 else [0]
        for offset, row in zip(offsets, bounded, strict=True):
            face = "white" if row["is_open"] else style.color
            marks = {"marker": style.marker, "color": style.color, "markerfacecolor": face, "linestyle": "none"}
            decades.plot(row["decades"], height + offset, markersize=5, **marks)
        if bounded:
            median = float(np.median([row["decades"] for row in bounded]))
            decades.plot([median] * 2, [height - 0.3, height + 0.3], color=style.color, linewidth=2)
    decades.set_yticks(
        range(len(ARMS)), labels=[f"{arm}\n{below_chance(widths, arm):.1f} decades below chance" for arm in ARMS]
    )
    decades.invert_yaxis()
    decades.set_xlim(left=0)
    outcomes = [verdict["outcome"] for verdict in document["verdicts"]]
    counts = ", ".join(f"{outcomes.count(name)} {name}" for name in dict.fromkeys(outcomes))
    finish(decades, f"Wider than standard (C4, Holm): {counts}", "decades of η within 10 % of the best loss", "")

    for arm, style in ARMS.items():
        runs = [row for row in rows if row["arm"] == arm and "growth" in row]
        rates = sorted({row["learning_rate"] for row in runs})
        if not rates:
            continue
        curves = {
            key: [float(np.median([row[key] - 1 for row in runs if row["learning_rate"] == rate])) for rate in rates]
            for key in ("growth", "predicted_growth")
        }
        marks = {"color": style.color, "linestyle": "none", "marker": style.marker, "markersize": 5}
        growth.plot(rates, curves["growth"], **marks, label=arm)
        growth.plot(rates, curves["predicted_growth"], color=style.color, linestyle=style.linestyle, linewidth=1)
    growth.plot([], [], color="0.4", linewidth=1, label=r"lines: $\eta^2 \sum_t \|\partial L/\partial v\|^2$")
    growth.set(xscale="log", yscale="log")
    finish(
        growth,
        f"Recursion of ‖v‖²: largest deviation {worst_deviation(rows):.0e}",
        "learning rate η",
        r"growth of $\|v\|^2$ over $\|v_0\|^2$, median neuron",
    )
    add_legend(growth)
    return figure


def below_chance(widths: list[dict], arm: str) -> float:
    """Median over the seeds of the decades that end below the loss of guessing."""
    return float(np.median([row["decades_below_chance"] for row in widths if row["arm"] == arm]))


def worst_deviation(rows: list[dict]) -> float:
    """Largest deviation from the recursion of any step of any run."""
    return max((row["recursion_deviation"] for row in rows if "growth" in row), default=math.nan)


def main() -> None:
    """Measure, write, draw."""
    options = command_line(__doc__, "one seed, four rates, 200 examples, four hidden units").parse_args()
    document = measure(fast=options.fast)
    write(options, __doc__, document, draw(document))
    print(f"{'arm':>18}  median decades, below chance  against standard")
    for arm in ARMS:
        widths = [row["decades"] for row in document["widths"] if row["arm"] == arm]
        verdict = next((v for v in document["verdicts"] if v["arm"] == arm), None)
        answer = f"{verdict['outcome']}, {verdict['low']:.2f} to {verdict['high']:.2f} decades more" if verdict else ""
        below = below_chance(document["widths"], arm)
        print(f"{arm:>18}  {np.median(widths):14.2f}, {below:12.2f}  {answer}")


if __name__ == "__main__":
    main()
