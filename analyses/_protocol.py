"""What several analyses share: training of arms, headline numbers, intervals and medians over seeds, and output.

An arm is one way to train the network. Every arm has its own learning rate, tuned on the same grid. One seed draws the
initialization and the order of the data, the same for all arms.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from matplotlib import pyplot as plt

matplotlib.use("agg")
import numpy as np
from matplotlib.transforms import ScaledTranslation

import curvature as cv
from curvature.studies.evidence import paired_interval
from curvature.studies.training import SGD, Arm, Run, Schedule, Start, start, train, tune_learning_rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from curvature.report.figures.style import Style
    from curvature.studies.training import Checkpoint

HEADLINES = ("kappa_50", "kappa_80", "kappa_95", "gd_time")


@dataclass(frozen=True)
class Plan:
    """Which arms are trained, for how long, and where they are measured.

    Attributes
    ----------
    arms, seeds
        Every arm is trained from every seed.
    epochs, tuning_epochs
        Length of a run, and of the runs that choose the learning rate.
    checkpoints
        Epochs after which the arm is measured.
    rates
        Learning rates to choose from.
    batch_size
        Examples of one step.
    levels
        Losses at which the arm is also measured, when it first reaches them.
    evaluate_every
        Steps between two losses of the curve; None: an epoch.
    """

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    epochs: int
    checkpoints: tuple[int, ...]
    tuning_epochs: int = 5
    rates: tuple[float, ...] = tuple(float(rate) for rate in np.logspace(-2, 1, 7))
    batch_size: int = 64
    levels: tuple[float, ...] = ()
    evaluate_every: int | None = None


def trained(plan: Plan, problem_of_seed: Callable[[int], cv.Problem]) -> Iterator[tuple[Arm, int, Start, Run]]:
    """Tune and train every arm at every seed; an arm whose runs all diverged is left out."""
    for seed in plan.seeds:
        problem = problem_of_seed(seed)
        starts = {
            name: start(problem, name, seed=seed, batch_size=plan.batch_size)
            for name in dict.fromkeys(arm.start for arm in plan.arms)
        }
        for arm in plan.arms:
            origin = starts[arm.start]
            shared = {"arm": arm.name, "seed": seed}
            sweep = tune_learning_rate(
                origin.problem,
                lambda arm=arm, origin=origin: arm.begin(origin),
                Schedule(plan.tuning_epochs, plan.batch_size),
                optimizer=SGD(1.0),
                rates=plan.rates,
                **shared,
            )
            if not math.isfinite(sweep.chosen):
                continue
            checkpoints = {f"epoch {epoch}": epoch for epoch in plan.checkpoints}
            levels = {f"loss {level:g}": level for level in plan.levels}
            schedule = Schedule(plan.epochs, plan.batch_size, checkpoints, levels, plan.evaluate_every)
            run = train(origin.problem, arm.begin(origin), schedule, optimizer=SGD(sweep.chosen), **shared)
            yield arm, seed, origin, run


def losses_by_step(run: Run) -> dict[int, float]:
    """Losses over all data, by the number of steps taken."""
    return dict(zip(run.curve.steps.tolist(), run.curve.losses.tolist(), strict=True))


def epoch_of(point: Checkpoint) -> int:
    """Epoch of a checkpoint that :func:`trained` took after whole epochs."""
    return int(point.name.removeprefix("epoch "))


def with_status(numbers: cv.ConditionNumbers, names: Sequence[str]) -> dict:
    """Condition numbers as ``NAME`` and ``NAME_status`` of a row."""
    row = {}
    for name in names:
        row |= {name: numbers[name].value, f"{name}_status": numbers[name].status}
    return row


def headline(matrix: cv.SymmetricOperator, chart: cv.Parameterization) -> dict:
    """Headline numbers of ``K^(1/2) A K^(1/2)``, each with its status, and the rank on which they are computed."""
    numbers = cv.spectrum(cv.effective(matrix, chart), gradient=True).condition_numbers()
    return {"rank": numbers.rank} | with_status(numbers, HEADLINES)


def intervals(rows: Sequence[dict], by: Sequence[str], of: Sequence[str], *, log: bool = True) -> list[dict]:
    """Mean over the seeds of each group, with Student's 95 % interval.

    Parameters
    ----------
    rows
        One row per seed and group.
    by
        Keys that define a group.
    of
        Keys that are averaged. Only finite values count (with ``log`` only positive ones). With fewer than two of them
        the interval is NaN.
    log
        Take means and intervals of the logarithm: geometric means.

    Returns
    -------
    list of dict
        One row per group: ``NAME``, ``NAME_low``, ``NAME_high``, the count ``num_NAME``, and where rows have a
        ``NAME_status`` also ``num_NAME_unresolved``, the number of bounds and estimates.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    summaries = []
    for key, members in groups.items():
        summary = dict(zip(by, key, strict=True))
        for name in of:
            values = [row[name] for row in members if row[name] is not None and math.isfinite(row[name])]
            values = [math.log(value) for value in values if value > 0] if log else values
            ends = paired_interval(values) if len(values) > 1 else (math.nan, math.nan)
            numbers = (float(np.mean(values)) if values else math.nan, *ends)
            if log:
                numbers = tuple(math.exp(number) for number in numbers)
            summary |= dict(zip((name, f"{name}_low", f"{name}_high"), numbers, strict=True))
            summary[f"num_{name}"] = len(values)
            if f"{name}_status" in members[0]:
                summary[f"num_{name}_unresolved"] = sum(row[f"{name}_status"] != "resolved" for row in members)
        summaries.append(summary)
    return summaries


def medians(rows: Sequence[dict], by: str, of: str, **values: object) -> dict:
    """Median of ``of`` for each ``by``, over the rows that have these values."""
    selected = [row for row in rows if all(row[key] == value for key, value in values.items())]
    keys = sorted({row[by] for row in rows})
    return {key: float(np.median([row[of] for row in selected if row[by] == key])) for key in keys}


def plot_intervals(ax: Axes, summary: Sequence[dict], x: str, y: str, style: Style, label: str) -> None:
    """Means joined by a line, intervals as bars; a mean without an interval has no bar.

    Each further curve on the Axes is shifted to the right by 1.6 points, so that bars do not cover each other.
    """
    shift = ScaledTranslation((1.6 * len(ax.containers) - 3) / 72, 0, ax.figure.dpi_scale_trans)
    xs = [row[x] for row in summary]
    ys = np.array([row[y] for row in summary])
    bars = [[row[y] - row[f"{y}_low"] for row in summary], [row[f"{y}_high"] - row[y] for row in summary]]
    bars = np.nan_to_num(bars, posinf=0)
    container = ax.errorbar(
        xs, ys, yerr=bars, **style.line, markersize=5, linewidth=1.4, elinewidth=0.9, capsize=2, label=label
    )
    line, caps, columns = container.lines
    for artist in (line, *caps, *columns):  # afterwards, so that the limits are those of the data
        artist.set_transform(ax.transData + shift)


def epoch_axis(ax: Axes, epochs: Sequence[int]) -> None:
    """Logarithmic axis of epochs that has a place for 0, with a tick at each of them."""
    ax.set_xscale("symlog", linthresh=1, linscale=0.5)
    ax.set_xlim(-0.25, 1.3 * max(epochs))
    ax.set_xticks(epochs, [str(epoch) for epoch in epochs])
    ax.minorticks_off()


def legend_below(figure: Figure, ax: Axes, columns: int = 3) -> None:
    """One legend for all panels, below them, where it covers no data."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize="small",
                  handlelength=3)  # fmt: skip


def command_line(document: str, fast: str) -> argparse.ArgumentParser:
    """Options of every analysis; ``fast`` is the help text of ``--fast``."""
    parser = argparse.ArgumentParser(description=document.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for curves.json and figure.svg")
    parser.add_argument("--fast", action="store_true", help=fast)
    return parser


def write(options: argparse.Namespace, document: str, content: dict, figure: Figure) -> None:
    """Write curves.json (question, settings, content) and figure.svg: equal results give equal bytes; NaN is null."""
    options.out.mkdir(parents=True, exist_ok=True)
    content = {"question": document.splitlines()[0], "fast": options.fast} | content
    (options.out / "curves.json").write_text(json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")
    matplotlib.rcParams["svg.hashsalt"] = document.splitlines()[0]
    figure.savefig(options.out / "figure.svg", metadata={"Date": None})
    plt.close(figure)


def _finite(part: object) -> object:
    """Replace infinity and NaN, which JSON does not have, by None."""
    if isinstance(part, dict):
        return {key: _finite(value) for key, value in part.items()}
    if isinstance(part, list):
        return [_finite(value) for value in part]
    return None if isinstance(part, float) and not math.isfinite(part) else part
