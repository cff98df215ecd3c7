"""Curvature matrices of a problem in its weights: what ``pullback`` moves into a chart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from torch import Tensor

from curvature.charts import Standard
from curvature.errors import ConfigurationError
from curvature.linalg.checks import Witness
from curvature.linalg.facts import Facts
from curvature.linalg.operator import SymmetricOperator
from curvature.linalg.rank import MAX_NULL_DIRECTIONS
from curvature.linalg.routes import Routes
from curvature.matrices.fast.paths import FastPath, fast_path
from curvature.matrices.nullspace import expected_directions, known_null_space
from curvature.matrices.witnesses import not_finite, other_chunks_witness
from curvature.models import Problem
from curvature.records import Where

__all__ = ["Definition", "WeightSpaceMatrix", "chosen_path", "on_weights", "require_problem"]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class WeightSpaceMatrix(SymmetricOperator):
    """A matrix of a problem on its weights, which can be written in any chart at the same point.

    Attributes
    ----------
    problem
        Whose matrix this is.
    definition
        How it was built, and whether it holds second derivatives of the model.
    """

    problem: Problem = field(repr=False)
    definition: Definition = field(repr=False)


@dataclass(frozen=True, eq=False)
class Definition:
    """What makes a matrix on the weights.

    Attributes
    ----------
    name
        ``"hessian"``, ``"ggn"``, ...
    rebuild
        ``(problem, method=) -> matrix``: the same matrix of another problem, for the self-checks.
    difference
        The matrix by finite differences.
    second_order
        Whether it holds second derivatives of the model, so that a curved chart adds a term.
    reversible
        Whether it stays the same when the examples are reversed: not with labels sampled for each place.
    num_samples
        Sampled labels per example; None unless Monte Carlo.
    """

    name: str
    rebuild: Callable[..., WeightSpaceMatrix]
    difference: Witness
    second_order: bool = False
    reversible: bool = True
    num_samples: int | None = None


def require_problem(problem: object, function: str) -> None:
    """Refuse what is not a problem, and show the call that makes one.

    Parameters
    ----------
    problem
        The first argument of ``function``.
    function
        Its public name.

    Raises
    ------
    ConfigurationError
        If it is not a :class:`~curvature.models.Problem`.
    """
    if not isinstance(problem, Problem):
        raise ConfigurationError(
            f"{function} needs a Problem, got {type(problem).__name__}. Make one from the model, its loss and its data "
            'first: problem = cv.Problem.from_module(model, loss="cross-entropy", data=(X, y)).'
        )


def chosen_path(problem: Problem, method: str) -> FastPath | None:
    """Choose between the closed forms of a known structure and autograd.

    Parameters
    ----------
    problem
        Whose model is read.
    method
        ``"auto"``, ``"structured"`` or ``"generic"``.

    Returns
    -------
    FastPath or None
        None: autograd.

    Raises
    ------
    ConfigurationError
        If ``"structured"`` is asked of another model.
    """
    if method not in ("auto", "structured", "generic"):
        raise ConfigurationError(f"method must be 'auto', 'structured' or 'generic', got {method!r}.")
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
    """Build a matrix of a problem with everything that is known of it.

    Parameters
    ----------
    problem, definition
        Which matrix.
    matmat
        Products.
    routes
        Entries and factor.
    positive_semidefinite, rank_bound, centred
        See :class:`~curvature.linalg.facts.Facts`.

    Returns
    -------
    WeightSpaceMatrix
        With null directions, gradient and witnesses as facts that are computed when they are first needed.
    """
    second_order, rebuild = definition.second_order, definition.rebuild
    few = rank_bound is not None and rank_bound <= problem.dim - MAX_NULL_DIRECTIONS
    facts = Facts(
        positive_semidefinite=positive_semidefinite,
        rank_bound=rank_bound,
        null_space=cache(lambda: known_null_space(problem, second_order=second_order)),
        num_null_directions=0 if few else expected_directions(problem, second_order=second_order),
        gradient=cache(problem.gradient),
        centred=centred,
        witnesses=(other_chunks_witness(problem, rebuild, definition.reversible), definition.difference),
        diagnose=lambda block: not_finite(problem, rebuild, block),
    )
    return WeightSpaceMatrix(
        where=Where(
            definition.name,
            Standard.name,
            Standard.gauge,
            num_examples=problem.num_examples,
            num_samples=definition.num_samples,
            dtype=str(problem.dtype).removeprefix("torch."),
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
