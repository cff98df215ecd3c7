r"""Which inputs silently break curvature tools?

Claim tested: for each of these inputs, all met in practice, this package returns the right answer or refuses the input
with a reason. One documented exception remains: the kink of a ReLU. curvlinops, PyHessian and hessian-eigenthings get
the same module, loss and loader, through their public interface and its defaults. An answer is a table: one row per
hazard and one cell per tool, with the error of its number or the exception it raised. The truth is computed another way
(plain double backward over all data at once, a closed form, the same question asked twice). A tool that is not
installed is shown as such.

    python -m benchmarks.peer_hazards --out results/peer_hazards [--page docs/hazards.md] [--fast]

Writes curves.json (one row per hazard and tool), table.md and figure.svg; ``--page`` also writes the page of the
documentation. Two seconds; ``--fast`` is the same.

Keys of a row: ``hazard`` (its key), ``tool``, ``outcome`` (``right``, ``wrong``, ``raises``, ``missing``), ``error``
(relative, for side effects a count; None where there is no finite number) and ``words``.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("agg")
import torch
from matplotlib import pyplot as plt

from benchmarks.hazard_tools import TOOLS, NotOffered, installed, quiet, versions
from benchmarks.hazards import HAZARDS, Question
from curvature.report.figures.style import BLUE, GRAY, GREEN, VERMILLION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUESTION = __doc__.splitlines()[0]


def answered(question: Question, tool: str) -> dict[str, Any]:
    """Ask one tool: its outcome, error and description."""
    if not installed(tool):
        return {"outcome": "missing", "error": None, "words": "not installed"}
    try:
        with quiet():
            answer = question.ask(tool)
    except NotOffered as absent:
        return {"outcome": "missing", "error": None, "words": str(absent)}
    except Exception as raised:  # a peer may raise anything; that is its answer
        message = " ".join(str(raised).split())
        return {"outcome": "raises", "error": None, "words": f"{type(raised).__name__}: {message[:240]}"}
    error, words = answer if isinstance(answer, tuple) else (answer, spoken(answer, question))
    outcome = "right" if error <= question.tolerance else "wrong"
    return {"outcome": outcome, "error": error if math.isfinite(error) else None, "words": words}


def spoken(error: float, question: Question) -> str:
    """Describe an error."""
    if error <= question.tolerance and error < 0.001:
        return f"error {error:.0e}" if error > 1e-12 else "up to rounding"
    if not math.isfinite(error):
        return "not a finite number"
    amount = f"{100 * error:.{0 if error > 0.1 else 2}{'f' if error > 0.1 else 'g'}} %"
    return f"{amount if error < 10 else f'{error:.0f}-fold'} {question.unit}"


def measure(*, fast: bool = False) -> list[dict]:
    """Every hazard and tool."""
    del fast  # it is small as it is
    rows = []
    for hazard in HAZARDS.values():
        for tool in TOOLS:
            with quiet():
                question = hazard.build()  # anew for each tool, which may change the module
            rows.append({"hazard": hazard.key, "tool": tool} | answered(question, tool))
    return rows


# -------------------------------------------------------------------------------------------------------------- telling


def cell(row: dict) -> str:
    """One cell of the table: wrong numbers stand out, messages are cut short."""
    if row["outcome"] == "wrong":
        return f"**wrong**: {row['words']}"
    if row["outcome"] == "right":
        return f"right, {row['words']}"
    if row["outcome"] == "missing":
        return row["words"]
    name, _, message = row["words"].partition(": ")
    message = message.split(". ")[0]
    message = message if len(message) <= 90 else message[:87].rsplit(" ", 1)[0] + " ..."
    message = message.replace("|", "/").replace("<", "(").replace(">", ")").replace("`", "'").replace("*", "")
    return f"raises `{name}`" + (f": {message}" if message else "")


def markdown(rows: list[dict]) -> str:
    """The table, a row per hazard."""
    numbers = versions()
    names = [f"{tool} {numbers[tool] or ''}".strip() for tool in TOOLS]
    lines = ["| hazard | truth | " + " | ".join(names) + " |", "| --- " * (2 + len(names)) + "|"]
    for hazard in HAZARDS.values():
        cells = [
            cell(next(row for row in rows if (row["hazard"], row["tool"]) == (hazard.key, tool))) for tool in TOOLS
        ]
        lines.append(f"| {hazard.title} | {hazard.truth} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def page(rows: list[dict]) -> str:
    """The page of the documentation."""
    wrong = ", ".join(f"{tool} in {_silently_wrong(rows, tool)}" for tool in TOOLS)
    return f"""# Inputs that silently break curvature tools

Each row is an input that occurs in practice and for which the right answer is known. Every tool gets the same module,
loss and loader, and runs with its default settings. The column *truth* says what the answer is compared with. The error
is the largest difference between an eigenvalue and its true value, relative to the largest eigenvalue, unless the cell
says otherwise. An exception is not counted as wrong: in several rows it is the right answer.

Of {len(HAZARDS)} rows, the tools are silently wrong in this many: {wrong}.

`python -m benchmarks.peer_hazards --out results/peer_hazards --page docs/hazards.md` wrote this page with torch
{torch.__version__.split("+")[0]}. Each row is a function in `benchmarks/hazards.py`.

{markdown(rows)}
At the kink of a ReLU, every tool returns the second derivative that holds almost everywhere, and misses the jump of the
gradient. In curvature, the self-checks of a spectrum report that finite differences disagree. PyHessian switches the
module to evaluation mode and does not switch it back. This is why its two answers under dropout and under batch norm
agree.
"""


def _silently_wrong(rows: list[dict], tool: str) -> int:
    return sum(row["outcome"] == "wrong" for row in rows if row["tool"] == tool)


COLORS = {"right": (GREEN, "o"), "raises": (BLUE, "s"), "wrong": (VERMILLION, "X"), "missing": (GRAY, "_")}


def draw(rows: list[dict]) -> Figure:
    """Draw the table as marks: what each tool did with each hazard."""
    figure, ax = plt.subplots(figsize=(10, 0.34 * len(HAZARDS) + 1.6), layout="constrained")
    keys, tools = list(HAZARDS), list(TOOLS)
    for outcome, (color, marker) in COLORS.items():
        marked = [row for row in rows if row["outcome"] == outcome]
        if not marked:
            continue
        places = [tools.index(row["tool"]) for row in marked], [keys.index(row["hazard"]) for row in marked]
        ax.plot(*places, linestyle="none", marker=marker, color=color, markersize=8, label=outcome)
        for row, x, y in zip(marked, *places, strict=True):
            if outcome == "wrong" and "%" in row["words"]:
                amount = row["words"].partition("%")[0] + "%"
                ax.annotate(amount, (x, y), xytext=(8, -3), textcoords="offset points", fontsize=7)
    ax.set_xticks(range(len(tools)), labels=tools)
    ax.set_yticks(range(len(keys)), labels=[hazard.title.replace("`", "") for hazard in HAZARDS.values()], fontsize=8)
    ax.set_xlim(-0.4, len(tools) - 0.2)
    ax.invert_yaxis()
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, axis="y", color="#e2e2e2", linewidth=0.6)
    ax.set_axisbelow(True)
    wrong = ", ".join(f"{tool} {_silently_wrong(rows, tool)}" for tool in tools)
    ax.set(xlabel="tool", ylabel="hazard")
    figure.suptitle(f"Silently wrong, of {len(keys)}: {wrong}", fontsize="medium")
    figure.legend(loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    return figure


def main() -> None:
    """Ask, write, draw."""
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--out", type=Path, required=True, help="folder for curves.json, table.md and figure.svg")
    parser.add_argument("--page", type=Path, help="also write the page of the documentation here")
    parser.add_argument("--fast", action="store_true", help="no difference: it is small as it is")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = measure(fast=arguments.fast)
    document = {
        "question": QUESTION,
        "fast": arguments.fast,
        "versions": versions() | {"torch": torch.__version__},
        "hazards": {hazard.key: {"title": hazard.title, "truth": hazard.truth} for hazard in HAZARDS.values()},
        "rows": rows,
    }
    (arguments.out / "curves.json").write_text(json.dumps(document, indent=2) + "\n")
    (arguments.out / "table.md").write_text(markdown(rows))
    if arguments.page:
        arguments.page.parent.mkdir(parents=True, exist_ok=True)
        arguments.page.write_text(page(rows))
    matplotlib.rcParams["svg.hashsalt"] = "peer_hazards"
    draw(rows).savefig(arguments.out / "figure.svg", metadata={"Date": None})
    for row in rows:
        print(f"{row['hazard']:>20}  {row['tool']:>20}  {row['outcome']:>7}  {row['words'][:90]}")


if __name__ == "__main__":
    main()
