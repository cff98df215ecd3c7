"""What several analyses share: how arms are trained, the headline numbers, intervals over seeds, and how results end.

Every arm has its own learning rate, tuned on the same grid; one seed draws the initialization and the order of the
data, the same for all arms.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

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

HEADLINES = ("kappa_50", "kappa_80", "kappa_95", "gd_time")


@dataclass(frozen=True)
class Plan:
    """Who is trained, and how long.

    ``look`` are the epochs of the checkpoints, ``levels`` losses at which an arm is also looked at, ``evaluate_every``
    the steps between two losses of the curve (None: an epoch).
    """

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    epochs: int
    look: tuple[int, ...]
    tuning_epochs: int = 5
    rates: tuple[float, ...] = tuple(float(rate) for rate in np.logspace(-2, 1, 7))
    batch_size: int = 64
    levels: tuple[float, ...] = ()
    evaluate_every: int | None = None


def trained(plan: Plan, problem_of_seed) -> Iterator[tuple[Arm, int, Start, Run]]:
    """Tune and train every arm at every seed; where every rate diverged, an arm is left out."""
    for seed in plan.seeds:
        problem = problem_of_seed(seed)
        starts = {
            name: start(problem, name, seed=seed, batch_size=plan.batch_size)
            for name in dict.fromkeys(arm.start for arm in plan.arms)
        }
        for arm in plan.arms:
            begun = starts[arm.start]
            shared = {"arm": arm.name, "seed": seed}
            sweep = tune_learning_rate(
                begun.problem,
                lambda arm=arm, begun=begun: arm.begin(begun),
                Schedule(plan.tuning_epochs, plan.batch_size),
                optimizer=SGD(1.0),
                rates=plan.rates,
                **shared,
            )
            if not math.isfinite(sweep.chosen):
                continue
            checkpoints = {f"epoch {epoch}": epoch for epoch in plan.look}
            levels = {f"loss {level:g}": level for level in plan.levels}
            schedule = Schedule(plan.epochs, plan.batch_size, checkpoints, levels, plan.evaluate_every)
            run = train(begun.problem, arm.begin(begun), schedule, optimizer=SGD(sweep.chosen), **shared)
            yield arm, seed, begun, run


def headline(matrix: cv.SymmetricOperator, chart: cv.Parameterization) -> dict:
    """Headline numbers of ``K^(1/2) A K^(1/2)``, each with its status, and the rank they stand on."""
    numbers = cv.spectrum(cv.effective(matrix, chart), gradient=True).condition_numbers()
    row = {"rank": numbers.rank}
    for name in HEADLINES:
        row |= {name: numbers[name].value, f"{name}_status": numbers[name].status}
    return row


def intervals(rows: Sequence[dict], by: Sequence[str], of: Sequence[str], *, log: bool = True) -> list[dict]:
    """Mean over the seeds of each group, with Student's 95 % interval; ``log``: of the logarithm (geometric mean).

    Only finite numbers count (positive ones with ``log``), and ``num_NAME`` says how many; below two there is no
    interval (NaN). Where rows have a ``NAME_status``, ``num_NAME_unresolved`` counts bounds and estimates.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    found = []
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
        found.append(summary)
    return found


def plot_intervals(ax: Axes, summary: Sequence[dict], x: str, y: str, style: Style, label: str) -> None:
    """Means joined by a line, intervals as bars; what has no interval has no bar.

    Each further curve on the Axes lies a point further right, so that bars do not cover each other.
    """
    shift = ScaledTranslation((1.6 * len(ax.containers) - 3) / 72, 0, ax.figure.dpi_scale_trans)
    xs = [row[x] for row in summary]
    ys = np.array([row[y] for row in summary])
    bars = [[row[y] - row[f"{y}_low"] for row in summary], [row[f"{y}_high"] - row[y] for row in summary]]
    bars = np.nan_to_num(bars, posinf=0)
    drawn = ax.errorbar(
        xs, ys, yerr=bars, **style.line, markersize=5, linewidth=1.4, elinewidth=0.9, capsize=2, label=label
    )
    line, caps, columns = drawn.lines
    for artist in (line, *caps, *columns):  # afterwards, so that the limits are those of the data
        artist.set_transform(ax.transData + shift)


def legend_below(figure: Figure, ax: Axes, columns: int = 3) -> None:
    """One legend for all panels, below them: it covers no data."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize="small",
                  handlelength=3)  # fmt: skip


def command_line(document: str, fast: str) -> argparse.ArgumentParser:
    """Options of every analysis; ``fast`` says what ``--fast`` leaves out."""
    parser = argparse.ArgumentParser(description=document.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for curves.json and figure.svg")
    parser.add_argument("--fast", action="store_true", help=fast)
    return parser


def write(options: argparse.Namespace, document: str, content: dict, figure: Figure) -> None:
    """Write curves.json (question, settings, content) and figure.svg, the same bytes every time; NaN is null."""
    options.out.mkdir(parents=True, exist_ok=True)
    content = {"question": document.splitlines()[0], "fast": options.fast} | content
    (options.out / "curves.json").write_text(json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")
    matplotlib.rcParams["svg.hashsalt"] = document.splitlines()[0]
    figure.savefig(options.out / "figure.svg", metadata={"Date": None})


def _finite(part: object) -> object:
    """JSON has no infinities and no NaN: None."""
    if isinstance(part, dict):
        return {key: _finite(value) for key, value in part.items()}
    if isinstance(part, list):
        return [_finite(value) for value in part]
    return None if isinstance(part, float) and not math.isfinite(part) else part
