"""The stopwatch: methods take turns, results are checked first, medians are compared with peers and with floors."""

from __future__ import annotations

import importlib.util
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
import threadpoolctl
import torch

WRONG = 1e-3  # relative error above which a method is not one to be compared with
MIN_SECONDS = 0.05  # a shorter run is repeated until one measurement takes this long


@dataclass(frozen=True, eq=False)
class Contender:
    """One method.

    Attributes
    ----------
    name
        Shown in the table.
    prepare
        Makes the callable that is timed.
    is_ours
        Whether the method is one of this package.
    needs
        Package to import; without it the method is left out.
    note
        Shown in the table.
    check
        Takes the result and returns its relative error; None: the check of the case.
    num_bytes
        Memory that the method needs at once, where that is much.
    """

    name: str
    prepare: Callable[[], Callable[[], Any]]
    is_ours: bool = False
    needs: str | None = None
    note: str = ""
    check: Callable[[Any], float] | None = None
    num_bytes: float = 0


@dataclass(frozen=True, eq=False)
class Case:
    """One work at one size and precision.

    ``flops`` counts the operations of the fastest known algorithm, ``eigenvalues`` is the order of the matrix that
    LAPACK must diagonalize.
    """

    work: str
    size: str
    dtype: torch.dtype
    contenders: tuple[Contender, ...]
    check: Callable[[Any], float]
    flops: float = 0.0
    eigenvalues: int = 0

    @property
    def precision(self) -> str:
        return str(self.dtype).removeprefix("torch.")


@dataclass(eq=False)
class Entrant:
    """A contender and what has been measured of it so far."""

    contender: Contender
    run: Callable[[], Any] | None = None
    times: list[float] = field(default_factory=list)
    repetitions: int = 0
    calls: int = 1
    relative_error: float | None = None
    error: str | None = None


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the warnings of other packages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def fixed_threads(count: int) -> Iterator[None]:
    """Set one number of threads in PyTorch and in every BLAS; restore PyTorch's afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    with threadpoolctl.threadpool_limits(count):
        try:
            yield
        finally:
            torch.set_num_threads(before)


def available(package: str | None) -> bool:
    """Whether a package can be imported."""
    return package is None or importlib.util.find_spec(package) is not None


def clock(run: Callable[[], Any], calls: int) -> tuple[float, Any]:
    """Seconds per call, and the last result."""
    started = time.perf_counter()
    for _ in range(calls):
        result = run()
    return (time.perf_counter() - started) / calls, result


def calls_for(seconds: float) -> int:
    """How many calls of this duration make one measurement."""
    return max(1, math.ceil(MIN_SECONDS / seconds))


def race(case: Case, repetitions: int) -> list[Entrant]:
    """Run and check each method once (timed only if it is slow), then time all of them in rounds."""
    entrants = [Entrant(contender) for contender in case.contenders if available(contender.needs)]
    for entrant in entrants:
        try:
            with quiet():
                _first_run(case, entrant, repetitions)
        except Exception as error:  # a peer may fail in any way; its row shows how
            if entrant.contender.is_ours:
                raise
            entrant.error = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
    while waiting := [e for e in entrants if e.error is None and len(e.times) < e.repetitions]:
        for entrant in waiting:
            with quiet():
                entrant.times.append(clock(entrant.run, entrant.calls)[0])
    return entrants


def _first_run(case: Case, entrant: Entrant, repetitions: int) -> None:
    contender = entrant.contender
    if contender.num_bytes > 0.8 * psutil.virtual_memory().available:
        raise MemoryError(f"needs about {contender.num_bytes / 2**30:.0f} GB")
    entrant.run = contender.prepare()
    seconds, result = clock(entrant.run, 1)
    entrant.relative_error = (contender.check or case.check)(result)
    entrant.repetitions = repetitions if seconds < 10 or contender.is_ours else 2 if seconds < 30 else 1
    if seconds >= 10 or repetitions == 1:
        entrant.times.append(seconds)
        entrant.repetitions = min(entrant.repetitions, 5)
    else:
        entrant.calls = calls_for(clock(entrant.run, 1)[0])


def is_approximate(work: str) -> bool:
    """Densities are approximate by design, so no peer is excluded for its error there."""
    return work.startswith(("density", "spectrum"))


def is_wrong(row: dict) -> bool:
    """Whether the result of a row is too far from the reference to be compared with."""
    return (row["relative_error"] or 0) > WRONG and not is_approximate(row["work"])


def rows_of(case: Case, entrants: list[Entrant], floors: dict[str, float]) -> list[dict]:
    """Medians, and their ratios to the fastest correct peer and to the floor."""
    medians = {e: statistics.median(e.times) for e in entrants if e.times}
    largest_error = math.inf if is_approximate(case.work) else WRONG
    peers = [
        seconds
        for e, seconds in medians.items()
        if not e.contender.is_ours and e.relative_error is not None and e.relative_error < largest_error
    ]
    fastest = min(peers, default=None)
    floor = case.flops / floors[f"matrix_product_{case.precision}"]
    floor += floors["lapack_seconds"] * (case.eigenvalues / floors["lapack_order"]) ** 3
    return [
        {
            "work": case.work,
            "size": case.size,
            "dtype": case.precision,
            "method": e.contender.name,
            "is_ours": e.contender.is_ours,
            "seconds": medians.get(e),
            "fastest_seconds": min(e.times, default=None),
            "repetitions": len(e.times),
            "ratio_to_fastest_peer": medians[e] / fastest if fastest and e in medians else None,
            "ratio_to_floor": medians[e] / floor if floor and e in medians else None,
            "relative_error": e.relative_error,
            "note": e.contender.note,
            "error": e.error,
        }
        for e in entrants
    ]


def measure_floors(order: int) -> dict[str, float]:
    """Rate of a matrix product (operations per second) in both precisions; time of LAPACK's symmetric eigenvalues."""
    floors: dict[str, float] = {"lapack_order": order}
    matrix = np.random.default_rng(0).standard_normal((order, order))
    for name, operand in (("float64", matrix), ("float32", matrix.astype(np.float32))):
        tensor = torch.from_numpy(operand)
        best = min(clock(run, 1)[0] for _ in range(5) for run in (lambda a=operand: a @ a, lambda a=tensor: a @ a))
        floors[f"matrix_product_{name}"] = 2 * order**3 / best
    floors["lapack_seconds"] = min(clock(lambda: np.linalg.eigvalsh(matrix + matrix.T), 1)[0] for _ in range(3))
    return floors
