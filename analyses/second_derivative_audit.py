r"""Which second derivatives of PyTorch's modules are right, and by which route?

Claim tested: a Hessian by automatic differentiation is either right or refused. It is not. Every differentiable layer,
activation, normalization, recurrent and attention module, parametrization and loss of ``torch.nn`` is put behind
weights of its own (:mod:`analyses._derivative_cases`), and its Hessian over all weights is computed in float64 by every
route that PyTorch has and by this package, and compared with differences of the plain first derivative.

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
``wrong``: more than ``1e-6`` of the largest entry off, ``raises``, and for this package ``refused`` in its own words),
``error``, ``block`` (the two weights between which the error is largest) and ``message`` (of the exception). A loss
that this package does not take as a module is tried as a callable for one example.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from matplotlib import pyplot as plt
from torch import Tensor

import curvature as cv
from analyses._derivative_cases import CASES, Case
from analyses._protocol import command_line, write
from curvature.report.figures.style import SKY, VERMILLION, finish

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RIGHT, WRONG, RAISES, REFUSED = "right", "wrong", "raises", "refused"
TOLERANCE = 1e-6  # of the largest entry; right routes were measured below 1e-8, wrong ones above 1e-3
KINK = 1e-7  # disagreement of two steps of the reference above which the weights are drawn again
STEP = 2e-3
DRAWS = 20
FAST = (
    "Linear", "Tanh", "LayerNorm", "InstanceNorm1d, affine", "BatchNorm1d, training", "CrossMapLRN2d", "Hardsigmoid",
    "GRUCell",
    "weight_norm of Linear, dim=0", "legacy weight_norm of Linear, dim=0", "HuberLoss", "CrossEntropyLoss",
)  # fmt: skip
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Question:
    """A case at a point: its loss as a function of the flat weights."""

    case: Case
    seed: int
    device: str
    loss: Loss
    weights: Tensor
    names: list[str]  # of the parameter of each weight

    @classmethod
    def of(cls, case: Case, seed: int, device: str) -> Question:
        """Draw the weights and the data of a case."""
        model, loss, inputs, targets = case.made(seed, device)
        if case.targets is None:  # written out: MSELoss, a row of its own, has no derivative forward over reverse
            loss = _mean_square
        named = dict(model.named_parameters())
        sizes = [parameter.numel() for parameter in named.values()]
        shapes = [parameter.shape for parameter in named.values()]

        def value(weights: Tensor) -> Tensor:
            parts = [part.view(shape) for part, shape in zip(weights.split(sizes), shapes, strict=True)]
            parameters = dict(zip(named, parts, strict=True))
            return loss(torch.func.functional_call(model, parameters, (inputs,)), targets)

        names = [name for name, size in zip(named, sizes, strict=True) for _ in range(size)]
        return cls(case, seed, device, value, torch.cat([p.detach().flatten() for p in named.values()]), names)

    def gradient(self, weights: Tensor) -> Tensor:
        """The gradient by one plain backward pass."""
        variable = weights.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(variable), variable)
        return gradient


def _mean_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2).mean()


# ------------------------------------------------------------------------------------------------------------ reference


def reference(question: Question) -> tuple[Tensor, float]:
    """Hessian by differences of the gradient, and the disagreement of two steps relative to its largest entry."""
    coarse, fine, finest = (_differences(question, STEP / 2**k) for k in range(3))
    extrapolated, better = (4 * fine - coarse) / 3, (4 * finest - fine) / 3
    return (better + better.T) / 2, relative(extrapolated, better)


def _differences(question: Question, step: float) -> Tensor:
    weights, columns = question.weights, []
    for direction in torch.eye(len(weights)).to(weights):
        ahead, behind = (question.gradient(weights + sign * step * direction) for sign in (1, -1))
        columns.append((ahead - behind) / (2 * step))
    return torch.stack(columns, 1)


def relative(matrix: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest entry; infinite for NaN."""
    scale = expected.abs().max().clamp(min=1e-12)
    return float(((matrix - expected).abs().max() / scale).nan_to_num(nan=torch.inf))


def gradient_error(question: Question) -> float:
    """Distance of the gradient along a random direction from extrapolated differences of the loss."""
    direction = torch.randn(len(question.weights), generator=torch.Generator().manual_seed(1)).to(question.weights)
    with torch.no_grad():
        slopes = []
        for step in (1e-3, 5e-4):
            ahead, behind = (question.loss(question.weights + sign * step * direction) for sign in (1, -1))
            slopes.append(float(ahead - behind) / (2 * step))
    gradient = question.gradient(question.weights)
    return abs(float(gradient @ direction) - (4 * slopes[1] - slopes[0]) / 3) / float(
        gradient.norm() * direction.norm()
    )


# --------------------------------------------------------------------------------------------------------------- routes


def _first_derivative(question: Question) -> tuple[Tensor, Tensor]:
    variable = question.weights.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(question.loss(variable), variable, create_graph=True)
    return variable, gradient


def double_backward(question: Question) -> Tensor:
    """Rows by ``torch.autograd.grad`` of the entries of the gradient."""
    variable, gradient = _first_derivative(question)
    if not gradient.requires_grad:  # a loss that is linear in the weights
        return torch.zeros_like(variable).expand(len(variable), -1)
    rows = [torch.autograd.grad(g, variable, retain_graph=True, materialize_grads=True)[0] for g in gradient]
    return torch.stack(rows)


def batched_double_backward(question: Question) -> Tensor:
    """The same rows at once."""
    variable, gradient = _first_derivative(question)
    if not gradient.requires_grad:
        return torch.zeros_like(variable).expand(len(variable), -1)
    directions = torch.eye(len(variable)).to(variable)
    options = {"is_grads_batched": True, "materialize_grads": True}
    return torch.autograd.grad(gradient, variable, directions, **options)[0]


def forward_over_reverse(question: Question) -> Tensor:
    """Columns by ``torch.func.jvp`` of ``torch.func.grad``."""
    gradient, weights = torch.func.grad(question.loss), question.weights
    directions = torch.eye(len(weights)).to(weights)
    return torch.stack([torch.func.jvp(gradient, (weights,), (direction,))[1] for direction in directions], 1)


def forward_over_reverse_under_vmap(question: Question) -> Tensor:
    """The same columns at once: ``torch.func.jacfwd(torch.func.grad(f))``."""
    return torch.func.jacfwd(torch.func.grad(question.loss))(question.weights)


def jacrev_of_grad(question: Question) -> Tensor:
    """``torch.func.jacrev(torch.func.grad(f))``."""
    return torch.func.jacrev(torch.func.grad(question.loss))(question.weights)


def func_hessian(question: Question) -> Tensor:
    """``torch.func.hessian(f)``, which is ``jacfwd(jacrev(f))``."""
    return torch.func.hessian(question.loss)(question.weights)


def jacrev_of_jacrev(question: Question) -> Tensor:
    """``torch.func.jacrev(torch.func.jacrev(f))``."""
    return torch.func.jacrev(torch.func.jacrev(question.loss))(question.weights)


def product(question: Question) -> Tensor:
    """By this package: the matrix behind a spectrum with its self-checks, in the module's own coordinates."""
    model, loss, inputs, targets = question.case.made(question.seed, question.device)
    try:
        problem = cv.Problem.from_module(model, loss=loss, data=(inputs, targets))
    except cv.ConfigurationError:  # it takes the callable that its message asks for
        of_one = cv.PerExample(lambda output, target: loss(output[None], target[None]))
        problem = cv.Problem.from_module(model, loss=of_one, data=(inputs, targets))
    operator = cv.hessian(problem)
    if problem.chart != cv.Standard():
        operator = cv.pullback(operator, problem.chart)
    cv.spectrum(operator)
    return operator.dense()


ROUTES: dict[str, Callable[[Question], Tensor]] = {
    "double backward": double_backward,
    "batched": batched_double_backward,
    "forward over reverse": forward_over_reverse,
    "under vmap": forward_over_reverse_under_vmap,
    "jacrev(grad)": jacrev_of_grad,
    "func.hessian": func_hessian,
    "jacrev(jacrev)": jacrev_of_jacrev,
    "curvature": product,
}


def outcome(route: Callable[[Question], Tensor], question: Question, expected: Tensor) -> dict:
    """What a route answers: right, wrong (how far, and where) or an exception."""
    try:
        matrix = route(question).detach()
    except Exception as error:
        lines = str(error).splitlines() or [""]
        kind = REFUSED if route is product and isinstance(error, cv.errors.CurvatureError) else RAISES
        return {"outcome": kind, "error": None, "block": None, "message": f"{type(error).__name__}: {lines[0]}"}
    if route is product and _is_reordered(question):  # a chart names and orders its coordinates in its own way
        matrix, expected = torch.linalg.eigvalsh(matrix), torch.linalg.eigvalsh(expected)
    error = relative(matrix, expected)
    answer = {"outcome": RIGHT if error <= TOLERANCE else WRONG, "error": error, "block": None, "message": None}
    if answer["outcome"] == WRONG and matrix.ndim == 2:
        worst = int((matrix - expected).abs().nan_to_num(nan=torch.inf).argmax())
        answer["block"] = " x ".join(question.names[index] for index in divmod(worst, len(expected)))
    return answer


def _is_reordered(question: Question) -> bool:
    """Whether the module is weight-normalized: the product then has the coordinates of its chart."""
    return any(name.endswith(("_g", "_v", "original0", "original1")) for name in question.names)


def audit(case: Case, device: str = "cpu") -> dict:
    """One row: the reference and every route, at the first draw without a kink near it."""
    for seed in range(DRAWS):
        question = Question.of(case, seed, device)
        expected, disagreement = reference(question)
        if disagreement < KINK:
            break
    else:
        raise RuntimeError(f"{case.name}: differences of the gradient did not converge in {DRAWS} draws.")
    return {
        "case": case.name,
        "family": case.family,
        "parameters": len(question.weights),
        "reference_error": disagreement,
        "gradient_error": gradient_error(question),
    } | {name: outcome(route, question, expected) for name, route in ROUTES.items()}


def measure(*, fast: bool = False, device: str = "cpu") -> dict:
    """Rows of all cases."""
    cases = [case for case in CASES if not fast or case.name in FAST]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of what is tried
        return {"torch": torch.__version__, "device": device, "rows": [audit(case, device) for case in cases]}


# ------------------------------------------------------------------------------------------------------ what is written


def exceptional(rows: Sequence[dict]) -> list[dict]:
    """Rows in which some route is not right, or the gradient itself is wrong."""
    return [
        row
        for row in rows
        if row["gradient_error"] > TOLERANCE or any(row[name]["outcome"] != RIGHT for name in ROUTES)
    ]


def cell(answer: dict) -> str:
    """One answer for the table."""
    if answer["outcome"] == WRONG:
        return f"**wrong**: {answer['error']:.0%}" + (f", {_short(answer['block'])}" if answer["block"] else "")
    return answer["outcome"]


def _short(block: str) -> str:
    return block.replace("layer.", "").replace("parametrizations.", "")


def page(document: dict) -> str:
    """The page of the documentation."""
    rows, version = document["rows"], document["torch"].split("+")[0]
    notable = exceptional(rows)
    lines = [f"| module | {' | '.join(ROUTES)} |", f"|{'---|' * (len(ROUTES) + 1)}"]
    lines += [f"| {row['case']} | {' | '.join(cell(row[name]) for name in ROUTES)} |" for row in notable]
    right = [row["case"] for row in rows if row not in notable]
    gradients = [f"{row['case']} ({row['gradient_error']:.0e})" for row in rows if row["gradient_error"] > TOLERANCE]
    messages = {f"- {row['case']}: {row['curvature']['message']}" for row in rows if row["curvature"]["message"]}
    return f"""# Second derivatives of PyTorch's modules

Is a Hessian by automatic differentiation right? Every differentiable module and loss of `torch.nn` was differentiated
twice by every route that PyTorch has, and by this package, in float64, and compared with differences of the first
derivative: {len(rows)} cases with torch {version} on {document["device"]}, {len(right)} right by every route.
`python -m analyses.second_derivative_audit --out results/audit --page docs/second_derivatives.md` wrote this page.

A cell is *right* (to {TOLERANCE:g} of the largest entry), **wrong** without a word (by how much of the largest entry,
and between which weights; `upstream` stands for all weights before the layer), or *raises*. *Refused*: this package
says in its own words what it cannot do (below the table).

{chr(10).join(lines)}

**Routes.** *Double backward* is `torch.autograd.grad` of the entries of a gradient; *batched*, the same with
`is_grads_batched=True`; *forward over reverse* is `torch.func.jvp` of `torch.func.grad`, *under vmap* the same for all
directions at once, `jacfwd(grad)`; the others are named as in `torch.func`. *curvature* is the matrix whose spectrum
`cv.spectrum(cv.hessian(problem))` gives, after its self-checks. A loss that it does not take as a module was given as
a callable for one example.

**First derivatives.** Compared with differences of the loss, these are off by more than {TOLERANCE:g}:
{", ".join(gradients) or "none"}. What the table calls right for such a module is the derivative of this gradient.

**Refused here.**

{chr(10).join(sorted(messages)) or "Nothing."}

**Right by every route:** {", ".join(right)}.
"""


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
