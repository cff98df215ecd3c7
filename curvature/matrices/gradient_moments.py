"""Second moment and covariance of the per-example gradients at the data's labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from curvature.errors import ConfigurationError, NotDefinedError
from curvature.linalg.dense import mirrored
from curvature.linalg.routes import FactorRoute
from curvature.matrices.fast.paths import OutputFactor
from curvature.matrices.gauss_newton import require_likelihood
from curvature.matrices.output_space import Centre, OutputSpace, accumulated_route, example_shares, output_space
from curvature.matrices.weight_space import WeightSpaceMatrix, require_problem
from curvature.models import Problem
from curvature.precision import full_precision

__all__ = ["empirical_fisher", "gradient_covariance", "scale_of_loss", "scale_words"]

_SAME_SCALE = 1e-9  # relative difference of two scales that is rounding


_NAMES = {"loss": "empirical_fisher", "fisher": "empirical_fisher_at_fisher_scale"}


@full_precision()
def empirical_fisher(problem: Problem, *, scale: str = "loss", method: str = "auto") -> WeightSpaceMatrix:
    r"""Build the uncentred second moment of the per-example gradients at the data's labels.

    It is neither the Fisher information nor a covariance, although both names are in use for it. The penalty of the
    problem is not part of these gradients.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.
    scale
        ``"loss"``: $\sum_n \alpha_n g_n g_n^T$ with the gradients $g_n$ of the loss itself. It is the gradient
        covariance plus the outer product of the mean gradient. ``"fisher"``: $\frac1D \sum_n s_n s_n^T$ with the scores
        $s_n$, the gradients of the negative log-likelihoods. With labels drawn from the model its mean is the Fisher,
        and its name in records is ``"empirical_fisher_at_fisher_scale"``.
    method
        ``"structured"``, ``"generic"`` or ``"auto"``, as for :func:`~curvature.hessian`.

    Returns
    -------
    WeightSpaceMatrix
        ``P x P``, unit loss / weight**2, of rank ``N`` at most.

    Raises
    ------
    NotDefinedError
        With ``scale="fisher"`` for a loss that is not a likelihood, or has label smoothing.
    ConfigurationError
        If ``scale`` is neither.

    Notes
    -----
    The loss of an example is the *mean* of its $C$ terms: over outputs for binary cross-entropy, mean squared error and
    the other elementwise losses, over positions for cross-entropy of sequences and images. So $g_n = s_n / C$, and its
    outer product is divided by $C^2$, while the Fisher of the mean is divided by $C$ only. With labels drawn from the
    model, the mean of ``scale="loss"`` is therefore $1/C$ of the Fisher. The two scales agree for cross-entropy with
    one label for each example and for half squared error, where $C = 1$. For a loss that is a sum over $N$ examples,
    the mean of ``scale="loss"`` is $N$ times the Fisher. Labels of the mean squared error are drawn with variance 1/2
    for each output. Each example has one column: the terms of an example are added before the outer product, not after
    it, which has the same mean as the sum over single terms.

    References
    ----------
    .. [1] Kunstner, Hennig, Balles (2019). Limitations of the empirical Fisher approximation. arXiv:1905.12558

    Examples
    --------
    >>> import curvature as cv
    >>> cv.empirical_fisher(cv.zoo.softmax_regression(), scale="fisher")
    WeightSpaceMatrix(empirical_fisher_at_fisher_scale, standard, 15 x 15, float64, cpu)
    """
    _require_examples(problem, "empirical_fisher")
    if scale not in _NAMES:
        raise ConfigurationError(f"scale must be 'loss' or 'fisher', got {scale!r}.")
    if scale == "fisher":
        require_likelihood(problem)
        _, outputs = next(iter(problem.evaluated()))
        problem.loss.score(outputs[:1], problem.targets[:1])  # refused for this loss, before any work
    factor = _gradient_factor(problem) if scale == "loss" else _score_factor(problem)

    def rebuild(other: Problem, *, method: str = "auto") -> WeightSpaceMatrix:
        return empirical_fisher(other, scale=scale, method=method)

    return output_space(problem, OutputSpace(factor), _NAMES[scale], rebuild, method=method)


def _require_examples(problem: Problem, name: str) -> None:
    """Refuse a bare objective, which is not a mean over examples."""
    require_problem(problem, name)
    if not problem.has_examples:
        raise NotDefinedError(
            f"{name} is about the gradients of single examples, and {problem.model_name!r} is a function without data. "
            "Pass data=(inputs, targets) to Problem.from_function, or use cv.hessian."
        )


def scale_of_loss(problem: Problem) -> tuple[float, float]:
    """Compute by how much the Fisher exceeds the mean of the empirical Fisher, for labels drawn from the model.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.

    Returns
    -------
    tuple of float
        Smallest and largest factor of an example that counts: its number of terms in the mean, over the number of
        examples if the loss is their sum.
    """
    parts = [problem.loss.num_terms(outputs, problem.targets[rows]) for rows, outputs in problem.evaluated()]
    terms = torch.cat(parts)
    terms = terms[terms > 0] * (problem.denominator / problem.total)
    return float(terms.min()), float(terms.max())


def scale_words(problem: Problem) -> str:
    """Describe the scale of the empirical Fisher in comparison with the Fisher.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.

    Returns
    -------
    str
        A sentence, or an empty string where the scales agree.
    """
    low, high = scale_of_loss(problem)
    if abs(low - 1) < _SAME_SCALE and abs(high - 1) < _SAME_SCALE:
        return ""
    factor = f"{low:.4g}" if abs(high - low) < _SAME_SCALE * high else f"{low:.4g} to {high:.4g}"
    return (
        f"the empirical Fisher is the second moment of the gradients of the loss {problem.loss.label}. With labels "
        f"drawn from the model, the Fisher is {factor} times its mean: the scales differ by the number of terms in the "
        "loss of one example. cv.empirical_fisher(problem, scale='fisher') has the scale of the Fisher."
    )


@full_precision()
def gradient_covariance(problem: Problem, *, method: str = "auto") -> WeightSpaceMatrix:
    r"""Build the covariance $\sum_n \alpha_n (g_n - \bar g)(g_n - \bar g)^T$ of the per-example gradients.

    A penalty would add the same vector to every $g_n$, so it does not change the covariance.

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
    In the scale of the loss, as :func:`empirical_fisher` with ``scale="loss"``, from which it differs by the outer
    product of the mean gradient. Built from centred gradients. The difference of the second moment and
    $\bar g \bar g^T$ would cancel digits.
    """
    _require_examples(problem, "gradient_covariance")
    mean, roots = cache(problem.data_gradient), example_shares(problem).sqrt()
    space = OutputSpace(_gradient_factor(problem), centre=Centre(mean, roots))
    operator = output_space(problem, space, "gradient_covariance", gradient_covariance, method=method)
    uncentred = operator.routes.factor
    assert uncentred is not None

    def blocks() -> Iterator[Tensor]:
        for examples, block in zip(problem.chunks(), uncentred.blocks(), strict=True):
            yield block - torch.outer(roots[examples], mean()).T  # rows of the factor are contiguous, not its columns

    factor = replace(uncentred, blocks=blocks, gram=_centred_gram(uncentred, roots))
    bound = min(problem.dim, max(0, int((roots > 0).sum()) - 1))
    if bound == 0:  # of one example, the difference to the mean is rounding
        return _zero(operator, mean)
    return replace(
        operator,
        routes=replace(operator.routes, entries=accumulated_route(problem, factor), factor=factor),
        facts=replace(operator.facts, rank_bound=bound, gradient=mean, centred=True),
    )


def _zero(operator: WeightSpaceMatrix, mean: Callable[[], Tensor]) -> WeightSpaceMatrix:
    """The matrix of the same problem that is exactly zero."""
    problem, uncentred = operator.problem, operator.routes.factor
    assert uncentred is not None

    def blocks() -> Iterator[Tensor]:
        for examples in problem.chunks():
            yield problem.weights.new_zeros(problem.dim, examples.stop - examples.start)

    factor = replace(uncentred, blocks=blocks, gram=None)
    return replace(
        operator,
        matmat=torch.zeros_like,
        routes=replace(operator.routes, entries=accumulated_route(problem, factor), factor=factor),
        facts=replace(operator.facts, rank_bound=0, gradient=mean, centred=True, witnesses=()),
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
    ratio = (problem.total / problem.denominator) ** 0.5  # one for a mean loss

    def factor(outputs: Tensor, targets: Tensor, _: slice) -> Tensor:
        share = problem.loss.denominators(outputs, targets)
        # The column is sqrt(alpha_n) g_n = grad l_n sqrt(T / D) / sqrt(D_n D), with alpha_n = D_n / T and
        # g_n = T grad l_n / (D_n D); an ignored example has weight zero.
        scale = torch.where(share > 0, (share * problem.denominator).clamp(min=1e-300).rsqrt(), 0.0) * ratio
        return (problem.loss.gradient(outputs, targets) * scale[:, None])[:, :, None]

    return factor


def _score_factor(problem: Problem) -> OutputFactor:
    """``S_n`` with a single column, the score of example ``n`` over the root of the denominator of the loss."""
    scale = problem.denominator**-0.5

    def factor(outputs: Tensor, targets: Tensor, _: slice) -> Tensor:
        return (problem.loss.score(outputs, targets) * scale)[:, :, None]

    return factor
