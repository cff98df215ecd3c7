"""Second moment and covariance of the per-example gradients at the data's labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from curvature.linalg.dense import mirrored
from curvature.linalg.routes import FactorRoute
from curvature.matrices.fast.paths import OutputFactor
from curvature.matrices.output_space import Centre, OutputSpace, accumulated_route, example_shares, output_space
from curvature.matrices.weight_space import WeightSpaceMatrix, require_problem
from curvature.models import Problem
from curvature.precision import full_precision

__all__ = ["empirical_fisher", "gradient_covariance"]


@full_precision()
def empirical_fisher(problem: Problem, *, method: str = "auto") -> WeightSpaceMatrix:
    r"""Build the uncentred second moment $\sum_n \alpha_n g_n g_n^T$ of the per-example gradients at the data's labels.

    It is neither the Fisher information nor a covariance, although both names are in use for it.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.
    method
        ``"structured"``, ``"generic"`` or ``"auto"``, as for :func:`~curvature.hessian`.

    Returns
    -------
    WeightSpaceMatrix
        ``P x P``, unit loss / weight**2, of rank ``N`` at most.

    References
    ----------
    .. [1] Kunstner, Hennig, Balles (2019). Limitations of the empirical Fisher approximation. arXiv:1905.12558
    """
    require_problem(problem, "empirical_fisher")
    space = OutputSpace(_gradient_factor(problem))
    return output_space(problem, space, "empirical_fisher", empirical_fisher, method=method)


@full_precision()
def gradient_covariance(problem: Problem, *, method: str = "auto") -> WeightSpaceMatrix:
    r"""Build the covariance $\sum_n \alpha_n (g_n - \bar g)(g_n - \bar g)^T$ of the per-example gradients.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.
    method
        ``"structured"``, ``"generic"`` or ``"auto"``, as for :func:`~curvature.hessian`.

    Returns
    -------
    WeightSpaceMatrix
        ``P x P``, unit loss / weight**2, of rank ``N - 1`` at most.

    Notes
    -----
    Built from centred gradients. The difference of the second moment and $\bar g \bar g^T$ would cancel digits.
    """
    require_problem(problem, "gradient_covariance")
    mean, roots = cache(problem.gradient), example_shares(problem).sqrt()
    space = OutputSpace(_gradient_factor(problem), centre=Centre(mean, roots))
    operator = output_space(problem, space, "gradient_covariance", gradient_covariance, method=method)
    uncentred = operator.routes.factor
    assert uncentred is not None

    def blocks() -> Iterator[Tensor]:
        for examples, block in zip(problem.chunks(), uncentred.blocks(), strict=True):
            yield block - mean()[:, None] * roots[examples]

    factor = replace(uncentred, blocks=blocks, gram=_centred_gram(uncentred, roots))
    bound = min(problem.dim, max(0, int((roots > 0).sum()) - 1))
    return replace(
        operator,
        routes=replace(operator.routes, entries=accumulated_route(problem, factor), factor=factor),
        facts=replace(operator.facts, rank_bound=bound, gradient=mean, centred=True),
    )


def _centred_gram(uncentred: FactorRoute, roots: Tensor) -> Callable[[], tuple[Tensor, float]] | None:
    """Gram matrix of the centred columns ``B (I - s s^T)``, ``s`` the unit vector of root weights."""
    if uncentred.gram is None:
        return None
    gram = uncentred.gram

    def centred() -> tuple[Tensor, float]:
        matrix, _ = gram()
        scale = float(matrix.diagonal().sum())
        # Subtracting the mean leaves rounding relative to the size before, hence `scale`. (I - s s^T) G (I - s s^T) is
        # computed by two updates of rank one, each the transpose of the other, so it is symmetric only up to rounding.
        along = matrix @ roots
        along -= 0.5 * (roots @ along) * roots
        matrix.addr_(roots, along, alpha=-1).addr_(along, roots, alpha=-1)
        return mirrored(matrix), scale

    return centred


def _gradient_factor(problem: Problem) -> OutputFactor:
    """``S_n`` with a single column, the gradient of example ``n`` times its root weight."""

    def factor(outputs: Tensor, targets: Tensor, _: slice) -> Tensor:
        share = problem.loss.denominators(outputs, targets)
        # The column is sqrt(alpha_n) g_n = grad l_n / sqrt(D_n D); an ignored example has weight zero.
        scale = torch.where(share > 0, (share * problem.denominator).clamp(min=1e-300).rsqrt(), 0.0)
        return (problem.loss.gradient(outputs, targets) * scale[:, None])[:, :, None]

    return factor
