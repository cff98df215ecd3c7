"""Compare two checkouts of this package: the same cases, one process each, in turns.

    python -m benchmarks.peer_benchmark --against PATH --out results/against

A row is one method of ours. Rounds alternate between the two processes, so that a slow phase of the machine hits both,
and the ratio of a row is the median over the rounds of new seconds / old seconds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import curvature as cv
from benchmarks.cases import WORKS
from benchmarks.networks import FAST, Scale
from benchmarks.timing import Case, Contender, calls_for, clock, fixed_threads, quiet

ROOT = Path(__file__).parents[1]
SLOWER = 1.05  # a ratio above this is a loss of speed
ROW_SECONDS = 20.0  # rounds of one row stop after about this long, within ROUNDS
ROUNDS = (5, 31)
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
def workers(other: Path, *, fast: bool, threads: int) -> Iterator[tuple[Worker, Worker]]:
    """Start one process for this checkout and one for the other."""
    new = Worker(ROOT, fast=fast, threads=threads)
    try:
        old = Worker(other.resolve(), fast=fast, threads=threads)
        try:
            yield new, old
        finally:
            old.close()
    finally:
        new.close()


def compare(new: Worker, old: Worker, works: Iterable[str], *, fast: bool) -> Iterator[dict]:
    """One row per method of ours, as soon as it is measured.

    Parameters
    ----------
    new, old
        Processes of the two checkouts.
    works
        Names in ``WORKS``.
    fast
        Few rounds, for tests.
    """
    for work in works:
        methods = new.ask("open", work)
        if methods != old.ask("open", work):
            raise RuntimeError(f"The two checkouts have different methods or sizes for '{work}'.")
        for index, method in enumerate(methods):
            yield method | _measured(new, old, index, fast=fast)


def _measured(new: Worker, old: Worker, index: int, *, fast: bool) -> dict:
    first, first_old = new.ask("check", index), old.ask("check", index)
    slower = max(first["seconds"], first_old["seconds"])
    calls = calls_for(slower)
    rounds = FAST_ROUNDS if fast else int(np.clip(ROW_SECONDS / (2 * calls * slower), *ROUNDS))
    pairs = [(new.ask("time", index, calls), old.ask("time", index, calls)) for _ in range(rounds)]
    seconds, old_seconds = zip(*pairs, strict=True)
    ratios = [now / before for now, before in pairs]
    return {
        "seconds": statistics.median(seconds),
        "old_seconds": statistics.median(old_seconds),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [float(q) for q in np.quantile(ratios, (0.25, 0.75))],
        "ratio_of_fastest": min(seconds) / min(old_seconds),
        "rounds": rounds,
        "relative_error": first["relative_error"],
        "old_relative_error": first_old["relative_error"],
    }


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
