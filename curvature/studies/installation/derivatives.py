"""Second derivatives of PyTorch's modules: each by every route, against differences of the plain first derivative."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvature.charts import Standard
from curvature.errors import ConfigurationError, CurvatureError
from curvature.linalg.eigen import spectrum
from curvature.linalg.operator import SymmetricOperator
from curvature.matrices import hessian, pullback
from curvature.models import Problem
from curvature.models.losses import PerExample
from curvature.studies.installation.cases import Case
from curvature.studies.installation.modules import CASES

__all__ = ["RAISES", "REFUSED", "RIGHT", "ROUTES", "TOLERANCE", "WRONG", "Question", "audit", "audit_cases"]

RIGHT, WRONG, RAISES, REFUSED = "right", "wrong", "raises", "refused"
TOLERANCE = 1e-6  # of the largest entry; right routes were measured below 1e-8, wrong ones above 1e-3
KINK = 1e-7  # disagreement of two steps of the reference above which the weights are drawn again
STEP = 2e-3
DRAWS = 20
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
        model, module, inputs, targets = case.made(seed, device)
        # Written out for a layer: MSELoss, a row of its own, has no derivative forward over reverse.
        loss: Callable[[Tensor, Tensor], Tensor] = _mean_square if case.targets is None else module
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
        problem = Problem.from_module(model, loss=loss, data=(inputs, targets))
    except ConfigurationError:  # it takes the callable that its message asks for
        of_one = PerExample(lambda output, target: loss(output[None], target[None]))
        problem = Problem.from_module(model, loss=of_one, data=(inputs, targets))
    operator: SymmetricOperator = hessian(problem)
    if problem.chart != Standard():
        operator = pullback(operator, problem.chart)
    spectrum(operator)
    return operator.dense()


OURS = "curvature"
ROUTES: dict[str, Callable[[Question], Tensor]] = {
    "double backward": double_backward,
    "batched": batched_double_backward,
    "forward over reverse": forward_over_reverse,
    "under vmap": forward_over_reverse_under_vmap,
    "jacrev(grad)": jacrev_of_grad,
    "func.hessian": func_hessian,
    "jacrev(jacrev)": jacrev_of_jacrev,
    OURS: product,
}


def outcome(
    route: Callable[[Question], Tensor], question: Question, expected: Tensor, *, ours: bool = False
) -> dict[str, Any]:
    """What a route answers: right, wrong (how far, and where) or an exception."""
    try:
        matrix = route(question).detach()
    except Exception as error:
        lines = str(error).splitlines() or [""]
        kind = REFUSED if ours and isinstance(error, CurvatureError) else RAISES
        return {"outcome": kind, "error": None, "block": None, "message": f"{type(error).__name__}: {lines[0]}"}
    if ours and _is_reordered(question):  # a chart names and orders its coordinates in its own way
        matrix, expected = torch.linalg.eigvalsh(matrix), torch.linalg.eigvalsh(expected)
    distance = relative(matrix, expected)
    answer: dict[str, Any] = {
        "outcome": RIGHT if distance <= TOLERANCE else WRONG,
        "error": distance,
        "block": None,
        "message": None,
    }
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
    } | {name: outcome(route, question, expected, ours=name == OURS) for name, route in ROUTES.items()}


def audit_cases(names: Collection[str] | None = None, device: str = "cpu") -> list[dict[str, Any]]:
    """Audit all modules and losses of ``torch.nn``, or those with these names.

    Parameters
    ----------
    names
        Names of cases; None: all of :data:`CASES`.
    device
        Where everything is computed.

    Returns
    -------
    list of dict
        A row for each case: ``case, family, parameters, reference_error, gradient_error``, and for each of
        :data:`ROUTES` its ``outcome, error, block, message``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of what is tried
        return [audit(case, device) for case in CASES if names is None or case.name in names]
