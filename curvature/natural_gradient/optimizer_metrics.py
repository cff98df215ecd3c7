r"""Optimizers as linear charts: the metric in which Adam, Shampoo and SOAP descend, at a state.

An optimizer that multiplies the gradient by a positive definite matrix $K$ descends in the chart $w = w_0 + K^{1/2}
\theta$. With a gradient $G$ of a weight $W$, $L = E[G G^T]$ and $R = E[G^T G]$:

===========  ===================================================================================================
``adam``     $K = 1 / (\sqrt{v} + \epsilon)$, elementwise, with $v = E[G^2]$ (Kingma & Ba 2014, arXiv:1412.6980)
``shampoo``  $K = (L + \epsilon I)^{-1/4} \otimes (R + \epsilon I)^{-1/4}$; a vector has
             $(E[g g^T] + \epsilon I)^{-1/2}$ (Gupta et al. 2018, arXiv:1802.09568)
``soap``     Adam in the eigenvectors of $L$ and $R$ (Vyas et al. 2024, arXiv:2409.11321), $K = 0$ in directions that
             have no gradient; a vector has Adam
===========  ===================================================================================================

Muon replaces $G$ by its polar factor, which is no linear map of it: it has no such chart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from curvature.arrays import Float, Int
from curvature.charts import LinearChart
from curvature.errors import ConfigurationError, InputError
from curvature.layout import Entry
from curvature.matrices import empirical_fisher
from curvature.models import Problem
from curvature.precision import full_precision

__all__ = ["OPTIMIZERS", "adam_moments", "optimizer_metric"]

OPTIMIZERS = ("adam", "shampoo", "soap")

_Block = tuple[Tensor, Tensor]  # indices, root of the metric


@full_precision()
def optimizer_metric(
    problem: Problem,
    kind: str = "adam",
    *,
    moments: Mapping[str, Float[Tensor, "..."]] | None = None,
    batch_size: int = 1,
    epsilon: float = 1e-8,
) -> LinearChart:
    r"""Build the chart in which an optimizer descends, at the problem's weights.

    Parameters
    ----------
    problem
        Model, loss and data at the point.
    kind
        ``"adam"``, ``"shampoo"`` or ``"soap"``; see :mod:`curvature.natural_gradient.optimizer_metrics`. For K-FAC and
        EKFAC use :func:`~curvature.preconditioner`.
    moments
        For Adam, its second moments $v$ by name, e.g. :func:`adam_moments` of an optimizer. None, and always for the
        others: their expectation at these weights, what an optimizer that stays here long enough has.
    batch_size
        Examples of one gradient, for the expectation: with $B$ of them drawn with replacement, $E[g g^T] = \frac1B
        \sum_n \alpha_n g_n g_n^T + (1 - \frac1B)\, \bar g \bar g^T$.
    epsilon
        $\epsilon$ of the formulas.

    Returns
    -------
    LinearChart
        Affine around the problem's weights.

    Raises
    ------
    ConfigurationError
        If ``kind`` or an option is unknown, or the moments do not fit the problem.

    Notes
    -----
    Momentum is no part of the metric. Shampoo and SOAP cost an eigendecomposition of both factors and a dense block for
    each weight. A weight is the matrix of its neurons: output channels by everything else.

    Examples
    --------
    >>> import curvature as cv
    >>> problem = cv.zoo.digits_problem(num_examples=50, widths=(4,))
    >>> cv.pullback(cv.ggn(problem), cv.optimizer_metric(problem, "adam"))
    SymmetricOperator(ggn, adam (batch size 1), 310 x 310, float64, cpu)
    """
    if kind not in OPTIMIZERS:
        raise ConfigurationError(f"kind must be one of {', '.join(OPTIMIZERS)}, got {kind!r}.")
    if not (isinstance(batch_size, int) and batch_size > 0):
        raise ConfigurationError(f"batch_size must be a positive whole number, got {batch_size!r}.")
    if not epsilon > 0:
        raise ConfigurationError(f"epsilon must be a positive number, got {epsilon}.")
    if moments is not None:
        if kind != "adam":
            raise ConfigurationError(f"moments are those of Adam; {kind} has factors, which are computed here.")
        return LinearChart(_adam_root(_flattened(problem, moments), epsilon), name="adam", gauge="checkpoint")
    gauge = f"batch size {batch_size}"
    expected = _Expectation(problem, batch_size)
    if kind == "adam":
        return LinearChart(_adam_root(expected.of(Tensor.square), epsilon), name=kind, gauge=gauge)
    root = _shampoo if kind == "shampoo" else _soap
    blocks = [root(entry, span, expected, epsilon) for entry, span in problem.layout.pairs()]
    return LinearChart(blocks, name=kind, gauge=gauge)


def adam_moments(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Float[Tensor, "..."]]:
    r"""Read the second moments of Adam, corrected for their start at zero, by the names of the parameters.

    Parameters
    ----------
    optimizer
        ``torch.optim.Adam`` or ``AdamW``.
    module
        Whose parameters it trains.

    Returns
    -------
    dict
        $v / (1 - \beta_2^t)$ of each trained parameter; with ``amsgrad`` of the largest $v$.

    Raises
    ------
    ConfigurationError
        If the optimizer is another one.
    InputError
        If a parameter has no state yet, or is not one of the module.
    """
    if not isinstance(optimizer, torch.optim.Adam):  # AdamW is one
        raise ConfigurationError(f"adam_moments needs torch.optim.Adam or AdamW, got {type(optimizer).__name__}.")
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    moments: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not parameter.requires_grad:
                continue
            name, state = names.get(id(parameter)), optimizer.state.get(parameter, {})
            if name is None:
                raise InputError("the optimizer trains a parameter that the module does not have: pass its own module.")
            if "exp_avg_sq" not in state:
                raise InputError(f"Adam has no second moments of {name!r} yet: take a step first.")
            largest = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
            moments[name] = largest.detach() / (1 - group["betas"][1] ** float(state["step"]))
    return moments


class _Expectation:
    """Expectations of quadratic functions of the gradient of a batch, at a point."""

    def __init__(self, problem: Problem, batch_size: int):
        self.batch_size, self.mean = batch_size, problem.data_gradient()
        factor = empirical_fisher(problem).routes.factor
        assert factor is not None  # the second moment of per-example gradients always has one
        self.blocks: Callable[[], Iterator[Tensor]] = factor.blocks

    def of(self, square: Callable[[Tensor], Tensor], span: slice = slice(None)) -> Tensor:
        """Sum a quadratic function of columns ``(numel, K)``, one gradient each, that returns one value per column."""
        single = sum(square(block[span]).sum(dim=-1) for block in self.blocks())
        whole = square(self.mean[span, None])[..., 0]
        return single / self.batch_size + (1 - 1 / self.batch_size) * whole


def _adam_root(moments: Tensor, epsilon: float) -> Tensor:
    """Root of the metric of Adam, a diagonal."""
    return (moments.clamp(min=0).sqrt() + epsilon).rsqrt()


def _flattened(problem: Problem, moments: Mapping[str, Tensor]) -> Tensor:
    """Second moments in the order of the weights."""
    missing = [name for name in problem.layout.slices if name not in moments]
    if missing:
        raise ConfigurationError(
            f"moments lack {', '.join(map(repr, missing))}; they have {', '.join(map(repr, moments)) or 'none'}. An "
            "optimizer of a weight-normalized or otherwise parametrized module trains other coordinates than the "
            "weights; leave moments out to use their expectation."
        )
    return problem.layout.flatten({name: moments[name].to(problem.weights) for name in problem.layout.slices})


def _matrix(entry: Entry) -> Entry:
    """The weight as the matrix of its neurons."""
    return replace(entry, norm_axis=entry.neuron_axis or 0)


def _order(entry: Entry, span: slice) -> Int[Tensor, "numel"]:
    """Positions of a weight in the flat vector, row by row of its matrix."""
    return _matrix(entry).rows(torch.arange(span.start, span.stop)).reshape(-1)


def _factors(entry: Entry, span: slice, expected: _Expectation) -> tuple[Tensor, Tensor]:
    """Second moments $L$ and $R$ of the rows and of the columns of a gradient."""
    matrix = _matrix(entry)
    return (
        expected.of(lambda block: torch.einsum("ink, jnk -> ijk", matrix.rows(block), matrix.rows(block)), span),
        expected.of(lambda block: torch.einsum("mik, mjk -> ijk", matrix.rows(block), matrix.rows(block)), span),
    )


def _shampoo(entry: Entry, span: slice, expected: _Expectation, epsilon: float) -> _Block:
    if len(entry.shape) < 2:
        moment = expected.of(lambda block: torch.einsum("ik, jk -> ijk", block, block), span)
        return torch.arange(span.start, span.stop), _power(moment, epsilon, -1 / 4)
    left, right = _factors(entry, span, expected)
    return _order(entry, span), torch.kron(_power(left, epsilon, -1 / 8), _power(right, epsilon, -1 / 8))


def _soap(entry: Entry, span: slice, expected: _Expectation, epsilon: float) -> _Block:
    if len(entry.shape) < 2:
        return torch.arange(span.start, span.stop), torch.diag(_adam_root(expected.of(Tensor.square, span), epsilon))
    matrix = _matrix(entry)
    left, right = (torch.linalg.eigh(factor).eigenvectors for factor in _factors(entry, span, expected))
    turned = expected.of(
        lambda block: torch.einsum("im, ijk, jn -> mnk", left, matrix.rows(block), right).square(), span
    )
    moments, vectors = turned.reshape(-1), torch.kron(left, right)
    # Where no gradient points, SOAP does not move; K = 1 / epsilon would only enlarge rounding.
    points = moments > len(moments) * torch.finfo(moments.dtype).eps * moments.max()
    root = torch.where(points, _adam_root(moments, epsilon), 0)
    return _order(entry, span), _symmetric((vectors * root) @ vectors.T)


def _power(matrix: Tensor, epsilon: float, exponent: float) -> Tensor:
    """Power of a semidefinite matrix plus a multiple of the identity."""
    values, vectors = torch.linalg.eigh(matrix)
    return _symmetric((vectors * (values.clamp(min=0) + epsilon) ** exponent) @ vectors.T)


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2
