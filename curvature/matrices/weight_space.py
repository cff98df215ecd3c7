"""Curvature matrices of a problem on its weights, which ``pullback`` and ``effective`` move to a chart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

from torch import Tensor

from curvature.charts import Standard
from curvature.errors import ConfigurationError
from curvature.linalg.checks import Witness
from curvature.linalg.facts import Facts, NullSpace
from curvature.linalg.operator import SymmetricOperator
from curvature.linalg.rank import MAX_NULL_DIRECTIONS
from curvature.linalg.routes import Routes
from curvature.matrices.fast.paths import FastPath, fast_path
from curvature.matrices.nullspace import expected_directions, known_null_space
from curvature.matrices.penalized import PenaltyHessian, penalty_hessian
from curvature.matrices.witnesses import not_finite, other_chunks_witness
from curvature.models import Problem
from curvature.records import Where

__all__ = ["Definition", "WeightSpaceMatrix", "chosen_path", "on_weights", "require_problem"]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class WeightSpaceMatrix(SymmetricOperator):
    """A curvature matrix of a problem on its weights.

    Attributes
    ----------
    problem
        Model, loss and data, at a point.
    definition
        How the matrix was built.

    Notes
    -----
    It can be written in any chart at the same point, by :func:`~curvature.pullback` or :func:`~curvature.effective`.
    """

    problem: Problem = field(repr=False)
    definition: Definition = field(repr=False)


@dataclass(frozen=True, eq=False)
class Definition:
    """The definition of a matrix on the weights, independent of how it is computed.

    Attributes
    ----------
    name
        ``"hessian"``, ``"ggn"``, ...
    rebuild
        ``(problem, method=) -> matrix``: builds the same matrix for another problem, for the self-checks.
    difference
        Witness by finite differences.
    second_order
        Whether it contains second derivatives of the model, so that a curved chart adds a term.
    reversible
        Whether it stays the same if the examples are reversed; False if labels were sampled for each position.
    num_samples
        Sampled labels per example; None for every matrix but the Monte Carlo Fisher.
    penalized
        Whether it contains the Hessian of the penalty of the problem, if there is one.
    """

    name: str
    rebuild: Callable[..., WeightSpaceMatrix]
    difference: Witness
    second_order: bool = False
    reversible: bool = True
    num_samples: int | None = None
    penalized: bool = False


def require_problem(problem: object, function: str) -> None:
    """Raise an error for an argument that is not a problem, and show the call that makes one.

    Parameters
    ----------
    problem
        The first argument of ``function``.
    function
        Public name of the function, for the message.

    Raises
    ------
    ConfigurationError
        If ``problem`` is not a :class:`~curvature.models.Problem`.
    """
    if not isinstance(problem, Problem):
        raise ConfigurationError(
            f"{function} needs a Problem, got {type(problem).__name__}. First make one from the model, its loss and "
            'its data: problem = cv.Problem.from_module(model, loss="cross-entropy", data=(X, y)).'
        )


def chosen_path(problem: Problem, method: str) -> FastPath | None:
    """Choose between closed forms and autograd.

    Parameters
    ----------
    problem
        The problem, whose model is inspected.
    method
        ``"auto"``, ``"structured"`` or ``"generic"``.

    Returns
    -------
    FastPath or None
        The closed forms; None for autograd.

    Raises
    ------
    ConfigurationError
        If the method is unknown, or it is ``"structured"`` and the model has no known structure.
    """
    if method not in ("auto", "structured", "generic"):
        also = " Only hessian has method='finite-differences'." if method == "finite-differences" else ""
        raise ConfigurationError(f"method must be 'auto', 'structured' or 'generic', got {method!r}.{also}")
    path = None if method == "generic" else fast_path(problem)
    if path is None and method == "structured":
        raise ConfigurationError(
            "method='structured' needs a torch.nn.Sequential of Linear layers and elementwise activations, or one with "
            "convolutions and pooling; this model is something else. Use method='auto'."
        )
    return path


def on_weights(
    problem: Problem,
    definition: Definition,
    matmat: Callable[[Tensor], Tensor],
    routes: Routes,
    *,
    positive_semidefinite: bool = False,
    rank_bound: int | None = None,
    centred: bool = False,
) -> WeightSpaceMatrix:
    """Build a matrix of a problem with its header, routes and facts.

    Parameters
    ----------
    problem, definition
        The problem, and the definition of the matrix.
    matmat
        Products ``V -> A V``, without the penalty of the problem.
    routes
        Routes to entries and factor, without the penalty.
    positive_semidefinite, rank_bound, centred
        See :class:`~curvature.linalg.facts.Facts`; without the penalty.

    Returns
    -------
    WeightSpaceMatrix
        The matrix. Null directions, gradient and witnesses are computed when they are first needed.
    """
    second_order, rebuild = definition.second_order, definition.rebuild
    # With so few examples the rank is their number, and null directions are never collected (linalg.rank.rank_of_few).
    bound_decides = rank_bound is not None and rank_bound <= problem.dim - MAX_NULL_DIRECTIONS
    facts = Facts(
        positive_semidefinite=positive_semidefinite,
        rank_bound=rank_bound,
        null_space=cache(lambda: known_null_space(problem, second_order=second_order)),
        num_null_directions=0 if bound_decides else expected_directions(problem, second_order=second_order),
        gradient=cache(problem.gradient),
        centred=centred,
        witnesses=(other_chunks_witness(problem, rebuild, definition.reversible), definition.difference),
        diagnose=lambda block: not_finite(problem, rebuild, block),
    )
    of_data = WeightSpaceMatrix(
        where=Where(
            definition.name,
            Standard.name,
            Standard.gauge,
            num_examples=problem.num_examples,
            num_samples=definition.num_samples,
            reduction="sum" if problem.loss.reduction == "sum" else "mean",
            dtype=str(problem.dtype).removeprefix("torch."),
            penalty=_penalty_label(problem, penalized=definition.penalized),
        ),
        dim=problem.dim,
        matmat=matmat,
        dtype=problem.dtype,
        device=problem.device,
        routes=routes,
        facts=facts,
        layout=problem.layout,
        problem=problem,
        definition=definition,
    )
    added = penalty_hessian(problem) if definition.penalized else None
    return of_data if added is None else _plus(of_data, added)


def _plus(matrix: WeightSpaceMatrix, added: PenaltyHessian) -> WeightSpaceMatrix:
    """Add the Hessian of the penalty to every route and fact of a matrix."""
    multiply, diagnose = matrix.matmat, matrix.facts.diagnose
    assert diagnose is not None
    facts = replace(
        matrix.facts,
        positive_semidefinite=matrix.facts.positive_semidefinite and added.positive_semidefinite,
        rank_bound=None,
        rank_factor=None,
        diagnose=lambda block: added.not_finite(block) or diagnose(block),
    )
    if added.positive_definite:  # no direction that is null in the data stays null
        basis = matrix.problem.weights.new_zeros(matrix.dim, 0)
        facts = replace(facts, null_space=lambda: NullSpace(basis, {}), num_null_directions=0)
    return replace(
        matrix,
        matmat=lambda block: multiply(block) + added.product(block),
        routes=added.routes(matrix.routes),
        facts=facts,
    )


def _penalty_label(problem: Problem, *, penalized: bool) -> str:
    """What the header of a matrix says about the penalty of its problem: its name, and whether it is in the matrix."""
    if problem.penalty is None:
        return ""
    return problem.penalty.label if penalized else f"without {problem.penalty.label}"
