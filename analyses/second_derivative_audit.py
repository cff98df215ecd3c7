r"""Which second derivatives of PyTorch's modules are right, and by which route?

Claim tested: a Hessian by automatic differentiation is either right or refused. It is not. Every differentiable layer,
activation, normalization, recurrent and attention module, parametrization and loss of ``torch.nn`` is put behind
weights of its own (:mod:`curvature.studies.installation`), and its Hessian over all weights is computed in float64 by
every route that PyTorch has and by this package, and compared with differences of the plain first derivative.

    python -m analyses.second_derivative_audit --out results/audit [--page docs/second_derivatives.md] [--fast]

Writes curves.json (every number) and figure.svg; ``--page`` also writes the table of the documentation. About two
minutes; ``--fast`` tries a few cases, in seconds.

Routes
    ``double backward``: ``torch.autograd.grad`` of each entry of a gradient with ``create_graph=True``; the same with
    ``is_grads_batched=True``; ``forward over reverse``: ``torch.func.jvp`` of ``torch.func.grad``, one direction at a
    time, and the same under ``vmap``; ``jacrev(grad)``; ``torch.func.hessian``; ``jacrev(jacrev)``; ``curvature``: the
    spectrum of ``cv.hessian``, with its self-checks, and the matrix behind it.

Reference
    Central differences of the gradient by one plain backward pass, at steps ``h`` and ``h / 2``, extrapolated. Weights
    are drawn again while the steps disagree by more than ``1e-7``, as they do across a kink. The gradient is compared
    with differences of the loss along a random direction: ``gradient_error``.

Keys of a row: ``case, family, parameters, reference_error, gradient_error`` and for each route ``outcome`` (``right``,
``wrong``: by more than ``1e-6`` of the largest entry, ``raises``, and ``refused`` where this package raises its own
error), ``error``, ``block`` (the two weights between which the error is largest) and ``message`` (of the exception). A
loss that this package does not accept as a module is passed as a callable for one example.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from matplotlib import pyplot as plt

from analyses._protocol import command_line, write
from curvature.report.figures.style import SKY, VERMILLION, finish
from curvature.studies.installation import RAISES, REFUSED, RIGHT, ROUTES, TOLERANCE, WRONG, audit_cases

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("curvature", *(name for name in ROUTES if name != "curvature"))
FAST = (
    "Linear", "Tanh", "LayerNorm", "InstanceNorm1d, affine", "BatchNorm1d, training", "CrossMapLRN2d", "Hardsigmoid",
    "GRUCell",
    "weight_norm of Linear, dim=0", "legacy weight_norm of Linear, dim=0", "HuberLoss", "CrossEntropyLoss",
)  # fmt: skip

PAGE = """\
# Second derivatives of PyTorch's modules

Is a Hessian by automatic differentiation right? Every differentiable module and loss of `torch.nn` is tested here. Each
is differentiated twice in float64, by every route that PyTorch offers and by this package, and the result is compared
with finite differences of the first derivative. Of {rows} cases with torch {torch} on {device}, {num_right} are right
by every route. The table shows the others.

`python -m analyses.second_derivative_audit --out results/audit --page docs/second_derivatives.md` wrote this page.

| in a cell | meaning; errors are relative to the largest entry |
|---|---|
| right | no entry is wrong by more than {tolerance} |
| **wrong** | an entry is wrong by as much as the percentage says, and no error is raised |
| raises | PyTorch raises an error |
| refused | this package raises an error that gives the reason; the errors are [listed below](#what-curvature-refuses) |

The last column names the two weights of the wrong entry; `upstream` is all weights before the layer.

{table}

## The routes

| route | how the Hessian is computed |
|---|---|
| double backward | `torch.autograd.grad` of each entry of a gradient |
| batched | the same, with `is_grads_batched=True` |
| forward over reverse | `torch.func.jvp` of `torch.func.grad`, one direction at a time |
| under vmap | the same for all directions at once, `jacfwd(grad)` |
| jacrev(grad), func.hessian, jacrev(jacrev) | the functions of `torch.func` with these names |
| curvature | the matrix of `cv.spectrum(cv.hessian(problem))`, after its self-checks |

A loss that curvature does not accept as a module is passed as a function of one example.

## First derivatives

The first derivative is compared with finite differences of the loss. It is wrong by more than {tolerance} for:
{gradients}. For such a module, *right* means that the second derivative belongs to this wrong
gradient.

## What curvature refuses

{messages}

## Right by every route

{right}.
"""


def measure(*, fast: bool = False, device: str = "cpu") -> dict:
    """Rows of all cases."""
    return {"torch": torch.__version__, "device": device, "rows": audit_cases(FAST if fast else None, device)}


# ------------------------------------------------------------------------------------------------------ what is written


def exceptional(rows: Sequence[dict]) -> list[dict]:
    """Rows in which some route is not right, or the gradient itself is wrong."""
    return [
        row
        for row in rows
        if row["gradient_error"] > TOLERANCE or any(row[name]["outcome"] != RIGHT for name in ROUTES)
    ]


def line(row: dict) -> str:
    """One module for the table: this package, the other routes, and where they are wrong."""
    blocks = {_short(row[name]["block"]) for name in COLUMNS if row[name]["outcome"] == WRONG}
    return f"| {row['case']} | {' | '.join(_cell(row[name]) for name in COLUMNS)} | {'; '.join(sorted(blocks))} |"


def _cell(answer: dict) -> str:
    return f"**wrong**: {answer['error']:.0%}" if answer["outcome"] == WRONG else answer["outcome"]


def _short(block: str) -> str:
    return block.replace("layer.", "").replace("parametrizations.", "")


def page(document: dict) -> str:
    """The page of the documentation."""
    rows, version = document["rows"], document["torch"].split("+")[0]
    notable = exceptional(rows)
    lines = [f"| module | {' | '.join(COLUMNS)} | wrong entry |", f"|{'---|' * (len(COLUMNS) + 2)}"]
    lines += map(line, notable)
    right = [row["case"] for row in rows if row not in notable]
    gradients = [f"{row['case']} ({row['gradient_error']:.0e})" for row in rows if row["gradient_error"] > TOLERANCE]
    messages = {f"- {row['case']}: {row['curvature']['message']}" for row in rows if row["curvature"]["message"]}
    prose = {
        "rows": len(rows),
        "torch": version,
        "device": document["device"],
        "num_right": len(right),
        "tolerance": f"{TOLERANCE:g}",
        "table": "\n".join(lines),
        "gradients": ", ".join(gradients) or "none",
        "messages": "\n".join(sorted(messages)) or "Nothing.",
        "right": "; ".join(right),
    }
    return PAGE.format(**prose)


def draw(document: dict) -> Figure:
    """A table in colours: modules that are not right by every route, against the routes."""
    rows = exceptional(document["rows"])
    looks = {
        RIGHT: ("#ffffff", ""),
        WRONG: (VERMILLION, "wrong"),
        RAISES: ("#c9c9c9", "raises"),
        REFUSED: (SKY, "refused"),
    }
    figure, ax = plt.subplots(figsize=(9, 1.6 + 0.24 * len(rows)), layout="constrained")
    for y, row in enumerate(rows):
        for x, name in enumerate(ROUTES):
            color, text = looks[row[name]["outcome"]]
            ax.add_patch(plt.Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, edgecolor="#e2e2e2", linewidth=0.6))
            if row[name]["outcome"] == WRONG:
                text = f"{row[name]['error']:.0%} off"
            ax.text(x, y, text, ha="center", va="center", fontsize="small")
    ax.set(xlim=(-0.5, len(ROUTES) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    ax.set_yticks(range(len(rows)), [row["case"] for row in rows], fontsize="small")
    finish(ax, "Hessians that are not right by every route (white: right)", "route", "")
    ax.set_xticks(range(len(ROUTES)), list(ROUTES), rotation=30, ha="right", fontsize="small")
    ax.grid(visible=False)
    return figure


def main() -> None:
    """Measure, write, draw."""
    parser = command_line(__doc__, "a dozen cases instead of all")
    parser.add_argument("--device", default="cpu", help="where everything is computed (default: cpu)")
    parser.add_argument("--page", type=Path, help="also write the page of the documentation here")
    options = parser.parse_args()
    document = measure(fast=options.fast, device=options.device)
    write(options, __doc__, document, draw(document))
    if options.page:
        options.page.write_text(page(document))
    print(f"{'route':>22}  right  wrong  raises  refused   of {len(document['rows'])}")
    for name in ROUTES:
        counts = Counter(row[name]["outcome"] for row in document["rows"])
        print(f"{name:>22}  {counts[RIGHT]:5}  {counts[WRONG]:5}  {counts[RAISES]:6}  {counts[REFUSED]:7}")


if __name__ == "__main__":
    main()
