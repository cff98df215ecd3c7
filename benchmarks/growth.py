"""Time and peak memory of the dense Hessian against the number of examples and of weights."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

import curvature as cv
from benchmarks.networks import Scale
from benchmarks.timing import clock, fixed_threads

ROOT = Path(__file__).parents[1]
THEORY = {"N": {"seconds": 1.0, "peak_bytes": 0.0}, "P": {"seconds": 2.0, "peak_bytes": 2.0}}
AXES = {"N": "num_examples", "P": "dim"}


def growth(scale: Scale, threads: int) -> list[dict]:
    """One row per point, each measured in its own process."""
    largest = scale.growth_examples[-1]
    lines: dict[tuple[int, tuple[int, ...]], str] = {}  # the corner lies on both lines
    for axis, points in (
        ("N", [(count, scale.small) for count in scale.growth_examples]),
        ("P", [(largest, (width,)) for width in scale.growth_widths]),
    ):
        for point in points:
            lines[point] = lines.get(point, "") + axis
    header = {"work": "growth", "method": "curvature", "is_ours": True, "dtype": "float64"}
    rows = []
    for point, along in lines.items():
        settings = json.dumps([*point, scale.repetitions, threads])
        command = [sys.executable, "-m", "benchmarks.peer_benchmark", "--growth-point", settings]
        answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
        rows.append(header | {"along": along} | json.loads(answer.stdout))
    return rows


def growth_point(num_examples: int, widths: list[int], repetitions: int, threads: int) -> dict:
    """Measure one point; run in its own process, whose peak is then that of this one matrix."""
    with fixed_threads(threads):
        problem = cv.zoo.digits_problem(num_examples, widths=widths)
        cv.hessian(cv.zoo.digits_problem(20, widths=(2,))).dense()  # loads the libraries
        before = resident_bytes(forget_peak=True)
        times = [clock(lambda: cv.hessian(problem).dense(), 1)[0] for _ in range(max(repetitions, 2))]
        peak = resident_bytes(peak=True) - before
    return {
        "size": f"P={problem.dim}, N={num_examples}",
        "num_examples": num_examples,
        "dim": problem.dim,
        "seconds": statistics.median(times[1:]),
        "repetitions": len(times) - 1,
        "peak_bytes": peak,
        "matrix_bytes": 8 * problem.dim**2,
        "ratio_to_fastest_peer": None,
        "relative_error": None,
    }


def resident_bytes(*, peak: bool = False, forget_peak: bool = False) -> int:
    """Resident memory of this process, now or at its peak.

    Read from Linux's ``/proc``: the peak that ``getrusage`` reports includes the parent's, which a child inherits.
    """
    if forget_peak:
        Path("/proc/self/clear_refs").write_text("5")
    field = "VmHWM" if peak else "VmRSS"
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def exponents(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Slopes in log-log, by least squares, and those of the operation count."""
    fits = {}
    for axis, key in AXES.items():
        points = [row for row in rows if axis in row.get("along", "")]
        for quantity in ("seconds", "peak_bytes"):
            if len(points) > 1 and min(row[quantity] for row in points) > 0:
                slope = np.polyfit(*(np.log([row[name] for row in points]) for name in (key, quantity)), 1)[0]
                fits[f"{quantity} against {axis}"] = {"fitted": float(slope), "theory": THEORY[axis][quantity]}
    return fits
