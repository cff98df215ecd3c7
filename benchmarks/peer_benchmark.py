r"""How fast are exact curvature matrices here, in other packages and in plain PyTorch?

Claim tested: matrices, spectra and products that a study needs cost a fraction of what curvlinops, PyHessian,
hessian-eigenthings, BackPACK, ``torch.func`` and ``torch.autograd.functional`` need for the same numbers. An answer
is a table of times on one machine, each with the error of its result and the distance from what the hardware allows.

    python -m benchmarks.peer_benchmark --out results/peer_benchmark [--only hessian --only top] [--fast]
    python -m benchmarks.peer_benchmark --against ../older-checkout --out results/against [--only hessian] [--fast]

The first command writes curves.json (one row per work and method), table.md and figure.svg. ``--only`` runs one work
and may be repeated; most take a minute or two, ``hessian-large`` and ``spectrum-large`` several. ``--fast`` is every
work at toy size, for tests: its ratios mean nothing.

The second command compares this checkout with another one (``benchmarks/versions.py``): our rows only, one process for
each version, in turns. It writes against.json and against.md, and exits with 1 where a row is slower by more than 5 %.

What is timed
    Digits (N = 1797), softmax cross-entropy, tanh networks trained for a few seeded epochs, one CPU with the same fixed
    number of threads for every library (``--threads``). The time runs from the problem or module to the result; for
    products, densities and top eigenvalues every method gets its operator before. The methods of one work take turns,
    round by round, after one untimed run of each; a row is a median. A peer slower than ten seconds runs twice, one
    slower than thirty runs once, its first run included; ``repetitions`` shows it.

What is checked
    Every result is compared with products by plain double backward in float64 (GGN: forward over reverse), which share
    no code with any method timed here: ``relative_error`` is in the largest norm. For a density it is the Wasserstein
    distance to the exact spectrum over the spectrum's width (large network: the error of its second moment). A peer
    that fails has a row with its ``error``. One whose result is wrong has a row, and others are not compared with it.

Peers at their best
    Blocks have the best of several widths for each package, determinism probes are off (and so are our self-checks),
    the data are one batch, graphs are kept where a package can keep them. A peer without a routine for a work gets the
    usual loop around its products. hessian-eigenthings is told the number of Lanczos steps that just meets the
    tolerance.

Keys of a row
    ``work, size, dtype, method, is_ours, seconds, repetitions, ratio_to_fastest_peer, relative_error``; also
    ``ratio_to_floor`` (the operations of the fastest algorithm known to us at the measured rate of a matrix product,
    plus, for spectra, the measured time of LAPACK), ``fastest_seconds`` (the best repetition), ``note`` and ``error``.

The cases are in ``cases.py``, the peers' methods in ``peers.py``, the references in ``truth.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib import metadata
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt

from benchmarks import versions
from benchmarks.cases import WORKS
from benchmarks.figure import draw, draw_growth
from benchmarks.growth import exponents, growth, growth_point
from benchmarks.networks import FAST, Scale
from benchmarks.peers import PEERS
from benchmarks.table import line, markdown
from benchmarks.timing import available, fixed_threads, measure_floors, race, rows_of

QUESTION = __doc__.splitlines()[0]


def measure(*, fast: bool = False, only: list[str] | None = None, threads: int = 2) -> dict:
    """Measure all works, or those in ``only``: a document with rows, floors and fits."""
    scale = FAST if fast else Scale()
    rows: list[dict] = []
    with fixed_threads(threads):
        floors = measure_floors(scale.matrix_product)
        for name, work in WORKS.items():
            if only and name not in only:
                continue
            for case in work(scale):
                measured = rows_of(case, race(case, scale.repetitions), floors)
                print("\n".join(line(row) for row in measured), flush=True)
                rows += measured
    if not only or "growth" in only:
        rows += growth(scale, threads)
    return {
        "question": QUESTION,
        "fast": fast,
        "threads": threads,
        "processor": processor(),
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy", *PEERS.values())},
        "missing": missing(),
        "floors": floors,
        "growth": exponents(rows),
        "rows": rows,
    }


def missing() -> list[str]:
    """Peers that are not installed."""
    return [name for name in PEERS if not available(name)]


def version(package: str) -> str | None:
    """Installed version; None where the package is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """Model of the processor, where the system names it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    model = next((text.split(":", 1)[1].strip() for text in lines if text.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores"


def write(document: dict, out: Path) -> None:
    """Write curves.json, table.md, figure.svg and, where it was measured, growth.svg."""
    (out / "curves.json").write_text(json.dumps(document, indent=2) + "\n")
    (out / "table.md").write_text(markdown(document))
    matplotlib.rcParams["svg.hashsalt"] = "peer_benchmark"
    pictures = {"figure": draw} | ({"growth": draw_growth} if document["growth"] else {})
    for name, picture in pictures.items():
        figure = picture(document)
        figure.savefig(out / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)
    for name, slopes in document["growth"].items():
        print(f"growth of {name}: exponent {slopes['fitted']:.2f}, theory {slopes['theory']:.0f}")


def against(options: argparse.Namespace) -> int:
    """Compare with another checkout, write the rows, and return the exit status."""
    print("work, size, dtype, method: seconds, seconds of the other, new / old [quartiles], rounds")
    rows = []
    for row in versions.compare(options.against, options.only or WORKS, fast=options.fast, threads=options.threads):
        print(versions.line(row), flush=True)
        rows.append(row)
    document = {"against": str(options.against), "fast": options.fast, "threads": options.threads, "rows": rows}
    (options.out / "against.json").write_text(json.dumps(document | {"processor": processor()}, indent=2) + "\n")
    (options.out / "against.md").write_text(versions.markdown(rows))
    num_slower = sum(versions.is_slower(row) for row in rows)
    print(f"{num_slower} of {len(rows)} rows are slower by more than {versions.SLOWER - 1:.0%}")
    return int(num_slower > 0)


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--only", action="append", choices=[*WORKS, "growth"], help="one work; may be repeated")
    parser.add_argument("--threads", type=int, help="of every library (default 2; --fast: 1)")
    parser.add_argument("--fast", action="store_true", help="toy sizes, one repetition: for tests")
    parser.add_argument("--against", type=Path, help="another checkout of this package: compare its speed with ours")
    parser.add_argument("--growth-point", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.growth_point is None and options.out is None:
        parser.error("the following arguments are required: --out")
    if options.against and not (options.against / "curvature" / "__init__.py").exists():
        parser.error(f"{options.against} is not a checkout: it contains no folder 'curvature'.")
    if options.against and "growth" in (options.only or ()):
        parser.error("growth has no rows to compare with --against: leave it out.")
    options.threads = options.threads or (1 if options.fast else min(2, os.cpu_count() or 1))
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure, write and draw; return the exit status."""
    options = options_of(arguments)
    if options.growth_point:
        print(json.dumps(growth_point(*json.loads(options.growth_point))))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    if options.against:
        return against(options)
    absent = missing()
    print(f"{options.threads} threads" + (f"; not installed, left out: {', '.join(absent)}" if absent else ""))
    print("work, size, dtype, method: seconds, repetitions, over fastest peer, over floor, relative error")
    write(measure(fast=options.fast, only=options.only, threads=options.threads), options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
