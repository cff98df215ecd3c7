"""The generalized Gauss-Newton matrix and the Fisher information, exact and with sampled labels."""

from __future__ import annotations

import numbers
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from curvature.errors import ConfigurationError
from curvature.linalg.memory import ensure_memory
from curvature.linalg.random import generator_of
from curvature.matrices.fast.paths import OutputFactor
from curvature.matrices.linear_losses import warn_of_linear_outputs
from curvature.matrices.output_space import OutputSpace, output_space
from curvature.matrices.weight_space import WeightSpaceMatrix, require_problem
from curvature.models import Problem
from curvature.models.losses import ModelLoss
from curvature.models.trees import Tensors
from curvature.precision import full_precision
from curvature.removed import removed

__all__ = ["fisher", "fisher_is_ggn", "ggn", "monte_carlo_fisher", "require_likelihood"]


@full_precision()
def ggn(problem: Problem, *, method: str = "auto", penalty: bool = False) -> WeightSpaceMatrix:
    r"""Build the generalized Gauss-Newton matrix $\frac1D \sum_n J_n^T (\nabla_f^2 \ell_n) J_n$.

    It is positive semidefinite for every loss that is convex in the outputs: all named ones but ``"gaussian-nll"``.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.
    method
        ``"structured"``, ``"generic"`` or ``"auto"``, as for :func:`~curvature.hessian`.
    penalty
        Whether to add the Hessian $\nabla^2 R$ of the penalty of the problem. By default it is left out, so the
        matrix is about the data alone, and ``where.penalty`` of every record says ``"without ..."``.

    Returns
    -------
    WeightSpaceMatrix
        ``P x P``, unit loss / weight**2; nothing is computed yet.

    Raises
    ------
    NotDefinedError
        If only the loss of the model is known, and not its outputs, or if PyTorch has no second derivative of the loss
        in the outputs. If the loss is linear in log-probabilities, as the negative log-likelihood: the GGN is exactly
        zero then, for every model, and the message says which loss has the GGN that is meant.
    ConfigurationError
        If ``penalty=True`` and the problem has none.

    Warns
    -----
    UserWarning
        If a piecewise linear loss (absolute error, Huber) has no curvature in some outputs or in all: they add nothing
        to the GGN.

    Notes
    -----
    A product costs one forward and one backward pass over all examples for each column. Where a layer is differentiated
    only once by PyTorch, it costs the Jacobian of the outputs: one backward pass for each output of each example.

    References
    ----------
    .. [1] Schraudolph (2002). Fast curvature matrix-vector products for second-order gradient descent. Neural
       Computation 14(7). doi:10.1162/08997660260028683

    Examples
    --------
    >>> import curvature as cv
    >>> cv.ggn(cv.zoo.softmax_regression())
    WeightSpaceMatrix(ggn, standard, 15 x 15, float64, cpu)
    """
    require_problem(problem, "ggn")
    if isinstance(problem.loss, ModelLoss):  # the loss raises the error
        problem.loss.hessian_factor(problem.targets[:1], problem.targets[:1])
    problem.derivatives.require_in_outputs()
    if penalty and problem.penalty is None:
        raise ConfigurationError(
            "ggn(problem, penalty=True) needs a problem with a penalty. Pass penalty= or weight_decay= to "
            "Problem.from_module."
        )
    warn_of_linear_outputs(problem)
    return _ggn(problem, method=method, penalty=penalty)


def _ggn(problem: Problem, *, method: str = "auto", penalty: bool = False) -> WeightSpaceMatrix:
    """Build the GGN without a warning, also for a part of the data."""
    loss, scale = problem.loss, problem.denominator**-0.5
    factor = None
    if loss.convex:

        def factor(outputs: Tensor, targets: Tensor, _: slice) -> Tensor:
            return loss.hessian_factor(outputs, targets) * scale

    visible = None if loss.convex or penalty else partial(_visible_factor, problem)
    space = OutputSpace(factor, loss.hessian, loss.hessian_product, visible=visible)
    rebuild = partial(_ggn, penalty=True) if penalty else _ggn
    return output_space(problem, space, "ggn", rebuild, method=method, penalized=penalty)


def _visible_factor(problem: Problem) -> tuple[OutputFactor, bool] | None:
    r"""Factor of $\nabla_f^2 \ell_n$ for a loss that is not known to be convex, by its eigenvalues above rounding.

    Also whether there are no others; None if one is negative.
    """
    loss, scale = problem.loss, problem.denominator**-0.5

    def decomposed(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(loss.hessian(outputs, targets))
        largest = values.abs().amax(dim=1, keepdim=True)
        return values, vectors, values.shape[1] * 20 * torch.finfo(values.dtype).eps * largest

    def factor(outputs: Tensor, targets: Tensor, _: slice) -> Tensor:
        values, vectors, rounding = decomposed(outputs, targets)
        return vectors * torch.where(values > rounding, values, 0).sqrt()[:, None] * scale

    complete = True
    for outputs, targets in _in_chunks(problem):
        values, _, rounding = decomposed(outputs, targets)
        if (values < -rounding).any():
            return None
        complete = complete and bool((values > rounding).all())
    return factor, complete


def _in_chunks(problem: Problem) -> Iterator[tuple[Tensor, Tensors]]:
    """Outputs and targets of as many examples as fit into memory with a matrix for each."""
    for examples, outputs in problem.evaluated():
        targets = problem.targets[examples]
        for start in range(0, len(outputs), problem.chunk_size):
            rows = slice(start, start + problem.chunk_size)
            yield outputs[rows], targets[rows]


@full_precision()
def fisher(problem: Problem, *, method: str = "auto") -> WeightSpaceMatrix:
    r"""Build the Fisher information, by the exact expectation over the labels of the model (not of the data).

    This is $\frac1D \sum_n J_n^T \mathbb{E}_{y \sim p(\cdot | f_n)}[\nabla_f \ell\, \nabla_f \ell^T] J_n$, computed as
    the second moment of the score over all labels. It equals the GGN where the outputs are the natural parameters of an
    exponential family: cross-entropy, binary cross-entropy with logits, the squared errors, and Poisson with logarithms
    of rates. It differs from it for probabilities, rates, and means with variances. For log-probabilities it is the GGN
    of the softmax, while that of the loss is zero.

    Parameters
    ----------
    problem
        Model, loss and data, at a point; the loss must be a likelihood.
    method
        ``"structured"``, ``"generic"`` or ``"auto"``, as for :func:`~curvature.hessian`.

    Returns
    -------
    WeightSpaceMatrix
        ``P x P``, unit loss / weight**2; nothing is computed yet.

    Raises
    ------
    NotDefinedError
        For a loss that is not a likelihood, or whose outputs are not normalized log-probabilities.

    References
    ----------
    .. [1] Martens (2020). New insights and perspectives on the natural gradient method. JMLR 21(146).
    """
    require_problem(problem, "fisher")
    require_likelihood(problem)
    scale = problem.denominator**-0.5

    def factor(outputs: Tensor, targets: Tensor, _: slice) -> Tensor:
        return problem.loss.fisher_factor(outputs, targets) * scale

    def second_moment(outputs: Tensor, targets: Tensor) -> Tensor:
        columns = problem.loss.fisher_factor(outputs, targets)
        return columns @ columns.mT

    return output_space(problem, OutputSpace(factor, second_moment), "fisher", fisher, method=method)


@full_precision()
def fisher_is_ggn(problem: Problem) -> bool:
    """Find out whether the Fisher is the GGN at this point, so that one matrix can serve as both.

    Parameters
    ----------
    problem
        Model, loss and data, at a point; the loss must be a likelihood.

    Returns
    -------
    bool
        Whether the second moment of the score is the Hessian of the loss in the outputs, for every example and up to
        rounding.

    Raises
    ------
    NotDefinedError
        As for :func:`fisher`.

    Notes
    -----
    Both matrices are compared as numbers: the name of a loss does not say whether its outputs are natural parameters.
    Costs one forward pass.
    """
    require_likelihood(problem)
    for outputs, targets in _in_chunks(problem):
        columns = problem.loss.fisher_factor(outputs, targets)
        moment = columns @ columns.mT
        size = moment.abs().amax(dim=(1, 2), keepdim=True)  # of each example: a large one must not hide another
        rounding = 4 * columns.shape[2] * torch.finfo(moment.dtype).eps * size
        if not ((problem.loss.hessian(outputs, targets) - moment).abs() <= rounding).all():
            return False
    return True


@removed(generator="seed=generator")
@full_precision()
def monte_carlo_fisher(
    problem: Problem, num_samples: int, seed: int | torch.Generator = 0, *, method: str = "auto"
) -> WeightSpaceMatrix:
    """Build the Fisher information with labels drawn from the model: an unbiased estimate of :func:`fisher`.

    The labels are drawn once, in this call, so the result is a fixed matrix.

    Parameters
    ----------
    problem
        Model, loss and data, at a point; the loss must be a likelihood.
    num_samples
        Labels per example.
    seed
        Seed or generator of the labels.
    method
        ``"structured"``, ``"generic"`` or ``"auto"``, as for :func:`~curvature.hessian`.

    Returns
    -------
    WeightSpaceMatrix
        ``P x P``, unit loss / weight**2, of rank ``N num_samples`` at most.

    Raises
    ------
    NotDefinedError
        For a loss that is not a likelihood.
    ConfigurationError
        If ``num_samples`` is no integer, or below 1.
    """
    require_problem(problem, "monte_carlo_fisher")
    if not isinstance(num_samples, numbers.Integral) or num_samples < 1:
        raise ConfigurationError(f"num_samples must be an integer of at least 1, got {num_samples!r}.")
    require_likelihood(problem)
    if problem.is_streamed:
        held = 2.0 * problem.num_examples * problem.num_outputs * num_samples * problem.weights.element_size()
        ensure_memory(held, f"the {num_samples} labels drawn for each of {problem.num_examples} examples")
    generator = generator_of(seed)
    parts = [
        problem.loss.sampled_factor(outputs, problem.targets[rows], num_samples, generator)
        for rows, outputs in problem.evaluated()
    ]
    drawn = torch.cat(parts) * problem.denominator**-0.5

    def factor(outputs: Tensor, _: Tensor, examples: slice) -> Tensor:
        return drawn[examples].to(outputs)

    def of_drawn(other: Problem, *, method: str) -> WeightSpaceMatrix:
        space = OutputSpace(factor)
        return output_space(other, space, "monte_carlo_fisher", of_drawn, method=method, num_samples=num_samples)

    return of_drawn(problem, method=method)


def require_likelihood(problem: Problem) -> None:
    """Raise an error for a loss that is not a likelihood at this point.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.

    Raises
    ------
    NotDefinedError
        If the loss has no Fisher, or its outputs are not normalized log-probabilities.
    """
    if not problem.loss.likelihood:  # the loss raises the error, which names it
        problem.loss.fisher_factor(problem.targets[:1], problem.targets[:1])
    if problem.loss.flat:
        for rows, outputs in problem.evaluated():
            problem.loss.check_likelihood(outputs, problem.targets[rows])
