"""Compare two checkouts of this package: the same cases, one process each, in turns.

    python -m benchmarks.peer_benchmark --against PATH --out results/against

A row is one method of ours. A round is new, old, old, new, so that a slow phase of the machine hits both processes, and
so does what the one before leaves behind. Half of the rounds are run by processes that are started in the other order:
the same code was measured at 1.2 to 1.4 times its own time in the process that had been started first. The ratio of a
row is the geometric mean of the two halves' medians of new seconds / old seconds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import curvature as cv
from benchmarks.cases import WORKS
from benchmarks.networks import FAST, Scale
from benchmarks.timing import Case, Contender, calls_for, clock, fixed_threads, quiet

ROOT = Path(__file__).parents[1]
SLOWER = 1.05  # a ratio above this is a loss of speed
ROW_SECONDS = 10.0  # rounds of one row and half stop after about this long, within ROUNDS
ROUNDS = (3, 16)
FAST_ROUNDS = 3
# `curvature` comes from PYTHONPATH, the other checkout; `benchmarks` is always this one.
BOOTSTRAP = "import sys, curvature; sys.path.insert(0, sys.argv[1]); import benchmarks.versions as v; v.serve()"


class Worker:
    """A process that has loaded one checkout and times the methods that it is asked to time."""

    def __init__(self, checkout: Path, *, fast: bool, threads: int) -> None:
        self.checkout = checkout
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", BOOTSTRAP, str(ROOT), json.dumps({"fast": fast, "threads": threads})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout)},
        )
        loaded = Path(self.ask("locate"))
        if not loaded.is_relative_to(checkout):
            self.close()
            raise RuntimeError(f"The process for {checkout} loaded {loaded}, so it would time another version.")

    def ask(self, request: str, *arguments: Any) -> Any:
        """Send one request and wait for its answer."""
        print(json.dumps([request, *arguments]), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"The process for {self.checkout} ended during '{request}'; its error is above.")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@contextmanager
def workers(other: Path, *, fast: bool, threads: int, new_first: bool = True) -> Iterator[tuple[Worker, Worker]]:
    """Start one process for this checkout and one for the other; ``new_first`` is the order of the starts."""
    with ExitStack() as stack:

        def start(checkout: Path) -> Worker:
            worker = Worker(checkout, fast=fast, threads=threads)
            stack.callback(worker.close)
            return worker

        if new_first:
            new, old = start(ROOT), start(other.resolve())
        else:
            old, new = start(other.resolve()), start(ROOT)
        yield new, old


def compare(other: Path, works: Iterable[str], *, fast: bool, threads: int) -> Iterator[dict]:
    """One row per method of ours, after each work.

    Parameters
    ----------
    other
        The other checkout.
    works
        Names in ``WORKS``.
    fast
        Toy sizes and few rounds, for tests.
    threads
        Of every library.
    """
    for work in works:
        halves = []
        for new_first in (True, False):
            with workers(other, fast=fast, threads=threads, new_first=new_first) as (new, old):
                methods = new.ask("open", work)
                if methods != old.ask("open", work):
                    raise RuntimeError(f"The two checkouts have different methods or sizes for '{work}'.")
                halves.append([_measured(new, old, index, fast=fast) for index in range(len(methods))])
        for method, *measured in zip(methods, *halves, strict=True):
            yield method | _row(measured)


@dataclass(frozen=True)
class Half:
    """What one pair of processes measured for one method: seconds for each round, and the errors of the results."""

    seconds: list[float]
    old_seconds: list[float]
    relative_error: float
    old_relative_error: float

    @property
    def ratios(self) -> list[float]:
        return [new / old for new, old in zip(self.seconds, self.old_seconds, strict=True)]


def _measured(new: Worker, old: Worker, index: int, *, fast: bool) -> Half:
    first, first_old = new.ask("check", index), old.ask("check", index)
    slower = max(first["seconds"], first_old["seconds"])
    calls = calls_for(slower)
    rounds = FAST_ROUNDS if fast else int(np.clip(ROW_SECONDS / (4 * calls * slower), *ROUNDS))
    seconds, old_seconds = zip(*(_round(new, old, index, calls) for _ in range(rounds)), strict=True)
    return Half(list(seconds), list(old_seconds), first["relative_error"], first_old["relative_error"])


def _row(halves: Sequence[Half]) -> dict:
    """The halves together: the ratio is the geometric mean of their medians."""
    seconds = [value for half in halves for value in half.seconds]
    old_seconds = [value for half in halves for value in half.old_seconds]
    ratios = [ratio for half in halves for ratio in half.ratios]
    return {
        "seconds": statistics.median(seconds),
        "old_seconds": statistics.median(old_seconds),
        "ratio": statistics.geometric_mean(statistics.median(half.ratios) for half in halves),
        "ratio_quartiles": [float(q) for q in np.quantile(ratios, (0.25, 0.75))],
        "ratio_of_fastest": min(seconds) / min(old_seconds),
        "rounds": len(ratios),
        "relative_error": max(half.relative_error for half in halves),
        "old_relative_error": max(half.old_relative_error for half in halves),
    }


def _round(new: Worker, old: Worker, index: int, calls: int) -> tuple[float, float]:
    """Mean seconds of each version, which were measured in the order new, old, old, new."""
    before, *between, after = (worker.ask("time", index, calls) for worker in (new, old, old, new))
    return (before + after) / 2, sum(between) / 2


def is_slower(row: dict) -> bool:
    """Whether a row lost more than 5 % of its speed."""
    return row["ratio"] > SLOWER


def line(row: dict) -> str:
    """One row for the terminal."""
    low, high = row["ratio_quartiles"]
    return (
        f"{row['work']:15}  {row['size']:27}  {row['dtype']:8}  {row['method']:28}  {row['seconds']:.4g} s  "
        f"{row['old_seconds']:.4g} s  {row['ratio']:.3f} [{low:.3f}, {high:.3f}]  {row['rounds']}"
        + ("  slower" if is_slower(row) else "")
    )


def markdown(rows: list[dict]) -> str:
    """A table with one line per row."""
    lines = [
        "| work | size | dtype | method | new | old | new / old | quartiles | rounds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["ratio_quartiles"]
        ratio = f"**{row['ratio']:.3f}**" if is_slower(row) else f"{row['ratio']:.3f}"
        cells = [row["work"], row["size"], row["dtype"], row["method"], f"{row['seconds']:.4g} s"]
        cells += [f"{row['old_seconds']:.4g} s", ratio, f"{low:.3f} to {high:.3f}", str(row["rounds"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


# -------------------------------------------------------------------------------------------------- inside the process


class _Timer:
    """Our methods of one work, in the version that this process has loaded."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.methods: list[tuple[Case, Contender]] = []
        self.runs: dict[int, Any] = {}

    def locate(self) -> str:
        return str(cv.__file__)

    def open(self, work: str) -> list[dict]:
        self.runs.clear()
        self.methods = [
            (case, contender) for case in WORKS[work](self.scale) for contender in case.contenders if contender.is_ours
        ]
        return [
            {"work": case.work, "size": case.size, "dtype": case.precision, "method": contender.name}
            for case, contender in self.methods
        ]

    def check(self, index: int) -> dict:
        case, contender = self.methods[index]
        self.runs[index] = contender.prepare()
        error = (contender.check or case.check)(self.runs[index]())
        return {"relative_error": error, "seconds": self.time(index, 1)}

    def time(self, index: int, calls: int) -> float:
        return clock(self.runs[index], calls)[0]


def serve() -> None:
    """Answer requests, one JSON list per line on standard input, until it is closed."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is not an answer
    settings = json.loads(sys.argv[2])
    timer = _Timer(FAST if settings["fast"] else Scale())
    with fixed_threads(settings["threads"]), quiet():
        for text in sys.stdin:
            request, *arguments = json.loads(text)
            print(json.dumps(getattr(timer, request)(*arguments)), file=answers, flush=True)
