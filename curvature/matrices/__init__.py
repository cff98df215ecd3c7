r"""The six curvature matrices of a problem on its weights, and their exact pullback to any chart.

With $f_n$ the outputs for example $n$, $J_n = \partial f_n / \partial w$ and weights $\alpha_n = D_n / D$ of the
examples (see :mod:`curvature.models.losses`; all $1/N$ unless classes are weighted or targets ignored):

=======================  =============================================================================
``hessian``              $\nabla^2 L$
``ggn``                  $\frac1D \sum_n J_n^T (\nabla_f^2 \ell_n) J_n$
``fisher``               expectation of the squared score over the *model's* labels; equals the GGN here
``monte_carlo_fisher``   the same with sampled labels
``empirical_fisher``     $\sum_n \alpha_n g_n g_n^T$, labels of the data, $g_n$ the gradient of example $n$
``gradient_covariance``  $\sum_n \alpha_n (g_n - \bar g)(g_n - \bar g)^T$, $\bar g = \nabla L$
=======================  =============================================================================

The last five are $\sum_n J_n^T S_n S_n^T J_n$ with different factors $S_n$ in output space: one code path. Fisher,
empirical Fisher and gradient covariance are three matrices (Kunstner, Hennig & Balles 2019, arXiv:1905.12558).
Unit of the entries: loss / weight**2.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from curvature.charts import Chart, Parameterization, Standard
from curvature.errors import ConfigurationError, CurvatureError, SelfCheckError
from curvature.linalg.checks import Witness, same_form
from curvature.linalg.operator import SymmetricOperator, Work, mirrored
from curvature.matrices import fast as structured
from curvature.matrices.nullspace import expected_directions, known_null_space, rank_of_few, verified
from curvature.matrices.witnesses import gradient_witness, output_witness
from curvature.models import Problem
from curvature.precision import full_precision

__all__ = [
    "MATRICES",
    "effective",
    "empirical_fisher",
    "fisher",
    "ggn",
    "gradient_covariance",
    "hessian",
    "monte_carlo_fisher",
    "pullback",
]

_CONVOLUTIONS = (nn.modules.conv._ConvNd,)
_BATCHED_COLUMNS = 8  # in one vectorized backward pass; more leave the cache (measured: 2.4 ms a column, 32: 3.2)
_KEPT_CHUNKS = 4  # graphs of so many chunks of examples are kept between products


@full_precision()
def hessian(problem: Problem, *, method: str = "auto") -> SymmetricOperator:
    r"""Hessian $\nabla^2 L$ of the mean loss in the weights. Indefinite in general.

    ``method`` chooses how the entries are computed, here and below: ``"structured"`` (sequences of linear layers,
    convolutions, pooling and elementwise activations, see :mod:`curvature.matrices.fast`), ``"generic"`` (any
    module), or ``"auto"``.

    Generic products cost one backward pass per column through the graph of the gradient (reverse over reverse), which
    is kept from one product to the next where the data are few chunks. At a ReLU kink it is the almost-everywhere
    second derivative.
    """
    batched = _batches_backward(problem)

    def graph(where: slice) -> tuple[list[Tensor], list[Tensor]]:
        _, leaves, loss = problem.chunk_loss(where)
        with torch.enable_grad():
            gradient = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
        return list(gradient), leaves

    graphs = _graphs(problem, graph)

    def matmat(block: Tensor) -> Tensor:
        total = torch.zeros_like(block)
        for gradient, leaves in graphs():
            total += _backward_columns(gradient, leaves, _split_columns(problem, block), batched=batched)
        return total

    chain = _chain(problem, method)
    about = {"difference": gradient_witness(problem), "rebuild": hessian}
    if chain is None:
        return _on_weights(problem, "hessian", matmat, work=_work(problem, None), **about)
    return _on_weights(
        problem,
        "hessian",
        _linearized_once(chain, problem.loss.hessian_product, second_order=True)
        if structured.linearizes(chain)
        else matmat,
        dense_form=lambda: structured.curvature(chain, problem.loss.hessian, second_order=True),
        work=_contraction_work(_work(problem, chain, second_order=True), chain),
        numpy_blas=problem.device.type == "cpu",
        **about,
    )


@full_precision()
def ggn(problem: Problem, *, method: str = "auto") -> SymmetricOperator:
    r"""Generalized Gauss-Newton matrix $\frac1D \sum_n J_n^T (\nabla_f^2 \ell_n) J_n$.

    Positive semidefinite for every named loss; for a user's loss only where that loss is convex in the outputs.
    """
    loss = problem.loss
    if not loss.convex:
        return _output_space(problem, "ggn", method, ggn, matrix=loss.hessian, product=loss.hessian_product)
    scale = problem.denominator**-0.5
    return _output_space(
        problem,
        "ggn",
        method,
        ggn,
        factor=lambda f, y, _: loss.hessian_factor(f, y) * scale,
        matrix=loss.hessian,
        product=loss.hessian_product,
    )


@full_precision()
def fisher(problem: Problem, *, method: str = "auto") -> SymmetricOperator:
    """Fisher information: exact expectation over the model's own labels, never the data's.

    Equals the GGN for the named losses (their likelihoods are natural exponential families), by a different
    formula: the second moment of the score over all labels. Raises ``NotDefinedError`` for a user's loss.
    """
    _require_likelihood(problem)
    scale = problem.denominator**-0.5

    def second_moment(outputs: Tensor, targets: Tensor) -> Tensor:
        columns = problem.loss.fisher_factor(outputs, targets)
        return columns @ columns.mT

    return _output_space(
        problem,
        "fisher",
        method,
        fisher,
        factor=lambda f, y, _: problem.loss.fisher_factor(f, y) * scale,
        matrix=second_moment,
    )


@full_precision()
def monte_carlo_fisher(
    problem: Problem, num_samples: int, generator: torch.Generator, *, method: str = "auto"
) -> SymmetricOperator:
    """Fisher with ``num_samples`` labels per example drawn from the model: unbiased, not exact.

    The labels are drawn once, here, so the result is a fixed matrix. The caller owns the seed.
    """
    if num_samples < 1:
        raise ConfigurationError(f"num_samples must be at least 1, got {num_samples}.")
    _require_likelihood(problem)
    drawn = problem.loss.sampled_factor(problem.outputs(), problem.targets, num_samples, generator)
    drawn = drawn * problem.denominator**-0.5

    def of_drawn(other: Problem, *, method: str) -> SymmetricOperator:
        return _output_space(
            other, "monte_carlo_fisher", method, of_drawn, factor=lambda outputs, _, where: drawn[where].to(outputs)
        )

    return replace(of_drawn(problem, method=method), details={"num_samples": num_samples})


@full_precision()
def empirical_fisher(problem: Problem, *, method: str = "auto") -> SymmetricOperator:
    r"""Second moment $\sum_n \alpha_n g_n g_n^T$ of the per-example gradients at the data's labels, uncentred.

    Neither the Fisher nor a covariance, though it is often called so.
    """
    return _output_space(problem, "empirical_fisher", method, empirical_fisher, factor=_gradient_factor(problem))


@full_precision()
def gradient_covariance(problem: Problem, *, method: str = "auto") -> SymmetricOperator:
    r"""Centred covariance $\sum_n \alpha_n (g_n - \bar g)(g_n - \bar g)^T$ of the per-example gradients.

    Built from centred gradients, not as a difference of matrices. Rank at most ``N - 1``.
    """
    mean = cache(problem.gradient)
    root_weights = _example_weights(problem).sqrt()
    uncentred = _output_space(
        problem,
        "gradient_covariance",
        method,
        gradient_covariance,
        factor=_gradient_factor(problem),
        centre=(mean, root_weights),
    )

    def factor_blocks() -> Iterator[Tensor]:
        for where, block in zip(problem.chunks(), uncentred.factor_blocks(), strict=True):
            yield block - mean()[:, None] * root_weights[where]

    def gram_form() -> tuple[Tensor, float]:
        matrix, _ = uncentred.gram_form()
        scale = float(matrix.diagonal().sum())
        # Columns B (I - s s^T) with the unit vector s of root weights. The mean taken out leaves its rounding behind,
        # which is relative to what was there before, and not symmetric.
        along = matrix @ root_weights
        along -= 0.5 * (root_weights @ along) * root_weights
        matrix.addr_(root_weights, along, alpha=-1).addr_(along, root_weights, alpha=-1)
        return mirrored(matrix), scale

    num_counted = int((root_weights > 0).sum())
    return replace(
        uncentred,
        factor_blocks=factor_blocks,
        dense_form=lambda: _accumulate(factor_blocks(), problem),
        gram_form=None if uncentred.gram_form is None else gram_form,
        work=_accumulation_work(uncentred.work, problem, uncentred.factor_columns),
        rank_bound=min(problem.dim, max(0, num_counted - 1)),
        centred=True,
    )


MATRICES: dict[str, Callable[..., SymmetricOperator]] = {
    "hessian": hessian,
    "ggn": ggn,
    "fisher": fisher,
    "monte_carlo_fisher": monte_carlo_fisher,
    "empirical_fisher": empirical_fisher,
    "gradient_covariance": gradient_covariance,
}


@full_precision()
def pullback(operator: SymmetricOperator, chart: Parameterization) -> SymmetricOperator:
    r"""Write a weight-space matrix in the coordinates of a chart at the same point; exact.

    $J^T A J$; for the Hessian plus $\sum_k r_k\, \partial^2 w_k / \partial\theta^2$ with $r = \nabla L$ the weight
    gradient. Nothing is differentiated a second time: the closed forms of the chart act on the matrix, which costs
    a few passes over it for weight normalization.
    """
    return _move(operator, chart, False)


@full_precision()
def effective(operator: SymmetricOperator, chart: Parameterization) -> SymmetricOperator:
    r"""The chart's curvature without its structural zeros: $K^{1/2} A K^{1/2}$ on the weights, ``P x P``.

    $K = J J^T$. Its non-zero eigenvalues are those of the pullback. For the Hessian it is the pullback, second-order
    term included, restricted to the horizontal space $(\ker J)^\perp$ and written there in weight-space directions.
    """
    return _move(operator, chart, True)


def _move(operator: SymmetricOperator, chart: Parameterization, on_weights: bool) -> SymmetricOperator:
    if operator.to_chart is None:
        raise ConfigurationError(
            f"{operator.name} ({operator.chart}) was not made from a problem, or is already in a chart or a block: "
            "only a whole matrix on the weights can be moved to a chart. Move first, then take blocks."
        )
    if not isinstance(chart, Parameterization):
        raise ConfigurationError(f"chart must be a Parameterization such as WeightNorm(), got {type(chart).__name__}.")
    return operator.to_chart(operator, chart, on_weights)


def _in_chart(
    operator: SymmetricOperator,
    problem: Problem,
    parameterization: Parameterization,
    on_weights: bool,
    difference: Witness,
) -> SymmetricOperator:
    chart = parameterization.at(problem.layout, problem.weights)
    bends = operator.name == "hessian" and not chart.flat
    forward, back = (chart.metric_root, chart.metric_root) if on_weights else (chart.push, chart.pull)

    def second_order(block: Tensor) -> Tensor:
        if not on_weights:
            return chart.second_order_product(operator.gradient(), block)
        return chart.horizontal_transpose(chart.second_order_product(operator.gradient(), chart.horizontal(block)))

    def matmat(block: Tensor) -> Tensor:
        product = back(operator.matmat(forward(block)))
        return product + second_order(block) if bends else product

    def dense_form() -> Tensor:
        move = chart.effective if on_weights else chart.pulled_back
        return move(operator.entries(), operator.gradient() if bends else None)

    def gradient() -> Tensor:
        slope = problem.gradient()[:, None]
        return (chart.horizontal_transpose(chart.pull(slope)) if on_weights else chart.pull(slope))[:, 0]

    def structural_rank(_: SymmetricOperator) -> tuple[int, str]:
        rank, rule = operator.structural_rank(operator)
        gauge = 0 if on_weights else chart.null_dim
        return rank, f"{rule}; besides, {gauge} verified directions of the {chart.name} gauge" if gauge else rule

    # The Hessian's in these coordinates: nothing of the formulas above.
    difference = gradient_witness(problem, chart) if operator.name == "hessian" else difference.through(chart.push)
    # A map onto the weights keeps the rank (Sylvester); a bent one adds to the Hessian what has no formula.
    keeps_rank = operator.structural_rank is not None and not bends and chart.dim - chart.null_dim == problem.dim
    if keeps_rank and not on_weights:
        _verify_gauge(chart)
    return replace(
        operator,
        dim=problem.dim if on_weights else chart.dim,
        matmat=matmat,
        chart=chart.name,
        gauge=chart.gauge,
        layout=problem.layout if on_weights else chart.layout,
        gradient=gradient,
        dense_form=dense_form,
        factor_blocks=None if operator.factor_blocks is None else lambda: map(back, operator.factor_blocks()),
        gram_form=None,
        structural_rank=structural_rank if keeps_rank else None,
        same_rank=operator if keeps_rank else None,
        to_chart=None,
        details={**operator.details, "effective": on_weights},
        kept=None,
        witnesses=(difference.through(chart.horizontal) if on_weights else difference,),
        blame=None if operator.blame is None else lambda block: operator.blame(forward(block)),
        work=_work_in_chart(operator, problem.dim if on_weights else chart.dim, bends),
    )


def _verify_gauge(chart: Chart) -> None:
    r"""Push random elements of $\ker J$ forward: what does not vanish is no gauge, and a wrong map (no rank then)."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(chart.dim, 2, generator=generator, dtype=torch.float64).to(chart.coordinates)
    inside = drawn - chart.horizontal(chart.horizontal_transpose(drawn))
    left, size = (float(torch.linalg.matrix_norm(chart.push(block))) for block in (inside, drawn))
    if not left <= 1e3 * torch.finfo(drawn.dtype).eps * size:
        raise SelfCheckError(
            f"the gauge of {chart.name} ({chart.gauge}) moves the weights: {left:.1e} against {size:.1e} of a random "
            "direction. Its closed forms do not belong to its map, which is a defect: please report it."
        )


def _on_weights(
    problem: Problem,
    name: str,
    matmat: Callable[[Tensor], Tensor],
    *,
    difference: Witness,
    rebuild: Callable[..., SymmetricOperator],
    **about: object,
) -> SymmetricOperator:
    null_space = cache(lambda: known_null_space(problem, second_order=name == "hessian"))

    def structural_rank(operator: SymmetricOperator) -> tuple[int, str]:
        return rank_of_few(operator) or verified(null_space(), operator)

    found = SymmetricOperator(
        name=name,
        dim=problem.dim,
        matmat=matmat,
        dtype=problem.dtype,
        device=problem.device,
        chart=Standard.name,
        gauge=Standard.gauge,
        layout=problem.layout,
        num_examples=problem.num_examples,
        gradient=cache(problem.gradient),
        structural_rank=cache(structural_rank),  # once for all charts
        to_chart=lambda operator, chart, on_weights: _in_chart(operator, problem, chart, on_weights, difference),
        witnesses=(_by_other_chunks(problem, rebuild, name != "monte_carlo_fisher"), difference),
        blame=lambda block: _not_finite(problem, rebuild, block),
        **about,
    )
    expected = 0 if rank_of_few(found) else expected_directions(problem, second_order=name == "hessian")
    return replace(found, work=replace(found.work, null_directions=expected))


def _in_double(problem: Problem) -> Problem:
    """The same problem in double precision, at the same weights."""
    if problem.dtype == torch.float64:
        return problem

    def double(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    return replace(
        problem,
        function=replace(problem.function, module=copy.deepcopy(problem.model).double()),
        inputs=double(problem.inputs),
        targets=double(problem.targets),
        weights=problem.weights.double(),
    )


def _by_other_chunks(problem: Problem, rebuild: Callable[..., SymmetricOperator], reversible: bool) -> Witness:
    """Testify by autograd in double precision, on examples in the opposite order, cut in other places.

    The difference is what the order of sums and single precision do to a product. Sampled labels belong to places
    (``reversible`` False).
    """
    size = max(1, 2 * min(problem.chunk_size, problem.num_examples) // 3)

    def multiply(block: Tensor) -> Tensor:
        other = replace(_in_double(problem), chunk_size=size)
        if reversible:
            other = replace(other, inputs=other.inputs.flip(0), targets=other.targets.flip(0))
        return rebuild(other, method="generic") @ block.to(other.dtype)

    return Witness(
        "products by autograd in other chunks of examples",
        same_form(multiply),
        "The model or the loss is random or keeps a state, treats an example differently in other company, or has a "
        "layer that autograd and the formulas of this package disagree about (method='generic' leaves these out).",
    )


def _not_finite(problem: Problem, rebuild: Callable[..., SymmetricOperator], block: Tensor) -> str:
    """Say for which example and in which parameters a product is not finite, by bisection."""

    def product(start: int, stop: int) -> Tensor:
        part = replace(problem, inputs=problem.inputs[start:stop], targets=problem.targets[start:stop])
        return rebuild(part, method="generic").matmat(block)

    start, stop = 0, problem.num_examples
    try:
        problem.gradient()  # where that is not finite, it knows best
        while stop - start > 1:
            half = (start + stop) // 2
            start, stop = (start, half) if not torch.isfinite(product(start, half)).all() else (half, stop)
        rows = problem.unflatten(product(start, stop)[:, 0])
    except CurvatureError as error:
        return str(error)
    where = [name for name, part in rows.items() if not torch.isfinite(part).all()]
    if not where:
        return "each example alone is finite: a sum overflows. Scale the loss down."
    return f"first for example {start}, in {', '.join(where)}; look at the model at this point."


_OutputMap = Callable[[Tensor, Tensor, slice], Tensor]


def _output_space(
    problem: Problem,
    name: str,
    method: str,
    rebuild: Callable[..., SymmetricOperator],
    *,
    factor: _OutputMap | None = None,
    matrix: Callable[[Tensor, Tensor], Tensor] | None = None,
    product: structured.OutputProduct | None = None,
    centre: tuple[Callable[[], Tensor], Tensor] | None = None,
) -> SymmetricOperator:
    """Build ``sum_n J_n^T M_n J_n`` from a factor ``S_n`` (``M_n = S_n S_n^T``) or from ``D M_n`` in output space.

    ``product`` multiplies by ``D M_n`` where that is cheaper than with its entries; ``rebuild`` is for the self-checks.
    With ``centre``, a mean and root weights ``s``, products are those of the columns ``b_n - s_n mean`` (one for each
    example); entries and factor are the caller's.
    """
    chain, batched = _chain(problem, method), _batches_backward(problem)

    def middle(outputs: Tensor, where: slice, tangents: Tensor) -> Tensor:
        targets = problem.targets[where]
        if factor is None:
            return matrix(outputs, targets) @ tangents / problem.denominator
        columns = factor(outputs, targets, where)
        return columns @ (columns.mT @ tangents)

    def graph(where: slice) -> tuple[slice, list[Tensor], Tensor, Tensor, list[Tensor]]:
        named = problem.leaves()
        leaves = list(named.values())
        with torch.enable_grad():
            outputs = problem.predict(named, problem.inputs[where])
            cotangent = torch.zeros_like(outputs, requires_grad=True)
            # J^T c is linear in c; differentiating it in c gives J V without forward-mode rules.
            pulled = torch.autograd.grad(
                outputs, leaves, cotangent, create_graph=True, allow_unused=True, materialize_grads=True
            )
        return where, leaves, outputs, cotangent, list(pulled)

    graphs = _graphs(problem, graph)

    def matmat(block: Tensor) -> Tensor:
        total = torch.zeros_like(block)
        for where, leaves, outputs, cotangent, pulled in graphs():
            pushed = _backward_columns(pulled, [cotangent], _split_columns(problem, block), batched=batched)
            pushed = pushed.reshape(len(outputs), -1, block.shape[1])
            if centre is None:
                weighted = middle(outputs.detach(), where, pushed)
            else:
                # Before the sum over examples: a difference of two products would cancel twice as many digits.
                mean, roots = centre[0](), centre[1][where]
                directions = factor(outputs.detach(), problem.targets[where], where)
                inner = directions.mT @ pushed - roots[:, None, None] * (mean @ block)
                weighted = directions @ inner
                total -= mean[:, None] * (roots @ inner[:, 0])
            columns = [weighted.permute(2, 0, 1).reshape(block.shape[1], *outputs.shape)]
            total += _backward_columns([outputs], leaves, columns, batched=batched)
        return total

    numpy_blas = chain is not None and problem.device.type == "cpu"
    about = {"difference": output_witness(problem, middle, centre and centre[0]), "rebuild": rebuild}

    def contracted() -> Tensor:
        return structured.curvature(chain, matrix, second_order=False)

    if chain is not None and matrix is not None and structured.linearizes(chain):
        matmat = _linearized_once(chain, product or _products_with(matrix), second_order=False)
    if factor is None:
        work = _work(problem, chain)
        if chain is None:
            return _on_weights(problem, name, matmat, work=work, **about)
        work = _contraction_work(work, chain)
        return _on_weights(problem, name, matmat, dense_form=contracted, work=work, numpy_blas=numpy_blas, **about)

    def factor_blocks() -> Iterator[Tensor]:
        for where in problem.chunks():
            if chain is None:
                yield _factor_block(problem, where, factor)
            else:
                yield structured.factor_rows(chain, where, factor).T

    with torch.no_grad():
        first = problem.predict(problem.weights, problem.inputs[:1])
        num_columns = factor(first, problem.targets[:1], slice(0, 1)).shape[2]
    counted = int((_example_weights(problem) > 0).sum())
    network = isinstance(chain, structured.Network)
    contracts = isinstance(chain, structured.Chain) and matrix is not None and structured.contracts(num_columns)
    columns = problem.num_examples * num_columns
    work = _work(problem, None if matrix is None else chain)
    # Rows of one chunk and a copy; without a chain vmap keeps what each row's own backward pass holds.
    held = num_columns * min(problem.chunk_size, problem.num_examples)
    rows = 2.0 * problem.weights.element_size() * problem.dim * held
    rows = rows if chain is not None else 2 * rows + num_columns * work.product_bytes
    work = replace(work, chunk_bytes=rows)
    if network:
        work = replace(
            work,
            multiplications=problem.num_examples * structured.gauss_newton_cost(chain, num_columns),
            entries_bytes=structured.gauss_newton_bytes(chain, num_columns),
        )
    else:
        work = _contraction_work(work, chain) if contracts else _accumulation_work(work, problem, columns)

    def entries() -> Tensor:
        if network:
            return structured.gauss_newton(chain, factor, num_columns)
        return contracted() if contracts else _accumulate(factor_blocks(), problem)

    per_example = problem.loss.rank_per_example(problem.num_outputs) if num_columns > 1 else 1
    return _on_weights(
        problem,
        name,
        matmat,
        positive_semidefinite=True,
        rank_bound=min(problem.dim, counted * min(per_example, num_columns)),
        factor_blocks=factor_blocks,
        factor_columns=columns,
        gram_form=(lambda: (structured.gram(chain, factor), 0.0)) if isinstance(chain, structured.Chain) else None,
        dense_form=entries,
        work=work,
        numpy_blas=numpy_blas,
        **about,
    )


def _work(problem: Problem, chain: structured.Chain | structured.Network | None, second_order: bool = False) -> Work:
    """What products hold: linearized by hand, or through autograd (``chain`` None)."""
    if chain is not None and structured.linearizes(chain):
        once, column = structured.product_bytes(chain)
        counted = None
        if isinstance(chain, structured.Chain):
            counted = structured.product_multiplications(chain, second_order=second_order)
        return Work(product_bytes=once, column_bytes=column, product_multiplications=counted)
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor
        return tensor

    named = problem.leaves()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept = problem.predict(named, problem.inputs[:1])
    weights = {leaf.data_ptr() for leaf in named.values()}
    each = sum(t.numel() * t.element_size() for at, t in saved.items() if at not in weights)
    each += 8 * kept.numel() * kept.element_size()
    each *= min(problem.num_examples, problem.chunk_size)
    vector = 4.0 * problem.dim * problem.weights.element_size()
    # The graph of a gradient holds what forward and backward pass hold, and its own backward as much again; a column
    # of a batched backward pass holds one tangent for each of them at a time.
    return Work(product_bytes=4.0 * each, column_bytes=vector + (each if _batches_backward(problem) else 0))


def _contraction_work(work: Work, chain: structured.Chain | structured.Network) -> Work:
    problem = chain.problem
    each = chain.contraction_cost if isinstance(chain, structured.Network) else problem.dim**2
    return replace(
        work,
        multiplications=float(problem.num_examples * each),
        entries_bytes=structured.curvature_bytes(chain),
    )


def _accumulation_work(work: Work, problem: Problem, columns: int) -> Work:
    entries = 3.0 * problem.weights.element_size() * problem.dim**2
    return replace(work, multiplications=0.5 * columns * problem.dim**2, entries_bytes=entries + 1.5 * work.chunk_bytes)


def _work_in_chart(operator: SymmetricOperator, dim: int, bends: bool) -> Work:
    """The weight-space entries, pulled back through two or three copies; a bent chart acts on an identity too."""
    square = operator.dtype.itemsize * max(dim, operator.dim) ** 2
    vector = operator.dtype.itemsize * dim
    work = operator.work
    return replace(
        work,
        multiplications=None if operator.dense_form is None else work.multiplications,
        entries_bytes=max(operator.dense_bytes, (7.0 if bends else 4.0) * square),
        chunk_bytes=2 * work.chunk_bytes,
        column_bytes=work.column_bytes + 4 * vector,
    )


def _graphs(problem: Problem, build: Callable[[slice], tuple]) -> Callable[[], Iterable[tuple]]:
    """What ``build`` makes of each chunk of examples, kept from one product to the next where there are few."""
    if problem.num_examples > _KEPT_CHUNKS * problem.chunk_size:
        return lambda: map(build, problem.chunks())
    return cache(lambda: [build(where) for where in problem.chunks()])


def _products_with(matrix: Callable[[Tensor, Tensor], Tensor]) -> structured.OutputProduct:
    def product(outputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        matrices = matrix(outputs, targets)
        return lambda rows: torch.bmm(rows, matrices)

    return product


def _linearized_once(
    chain: structured.Chain | structured.Network, output_product: structured.OutputProduct, *, second_order: bool
) -> Callable[[Tensor], Tensor]:
    """Products by hand-linearized passes; what does not depend on the vectors is computed at the first product."""
    products = cache(lambda: structured.linearized(chain, output_product, second_order=second_order))
    return lambda block: products()(block)


def _chain(problem: Problem, method: str) -> structured.Chain | structured.Network | None:
    if method not in ("auto", "structured", "generic"):
        raise ConfigurationError(f"method must be 'auto', 'structured' or 'generic', got {method!r}.")
    chain = None if method == "generic" else structured.structure_of(problem)
    if chain is None and method == "structured":
        raise ConfigurationError(
            "method='structured' needs a torch.nn.Sequential of Linear layers and elementwise activations, or one with "
            "convolutions and pooling; this model is something else. Use method='auto'."
        )
    return chain


def _factor_block(problem: Problem, where: slice, factor: _OutputMap) -> Tensor:
    """``J_n^T S_n`` of the examples of one chunk side by side, ``(P, examples * R)``."""
    inputs, targets = problem.inputs[where], problem.targets[where]
    with torch.no_grad():
        outputs = problem.predict(problem.weights, inputs)
        columns = factor(outputs, targets, where)
    rows = _vectorized_rows(problem, inputs, columns)
    if rows is None:
        rows = torch.stack([_example_rows(problem, *pair) for pair in zip(inputs, columns.mT, strict=True)])
    return rows.reshape(-1, problem.dim).T


def _vectorized_rows(problem: Problem, inputs: Tensor, columns: Tensor) -> Tensor | None:
    """Rows ``(n, R, P)`` by vmap over examples and columns; None where torch cannot, or cannot be trusted to.

    Some layers fail under nested vmap (recurrent ones), others give wrong numbers in silence (the gradient of a PReLU
    weight, torch 2.13), so the first and the last example are compared with plain backward passes.
    """

    def pulled(example: Tensor, cotangents: Tensor) -> Tensor:
        def single(weights: Tensor) -> Tensor:
            return problem.predict(weights, example[None])[0].reshape(-1)

        _, transposed = torch.func.vjp(single, problem.weights)
        return torch.func.vmap(lambda cotangent: transposed(cotangent)[0])(cotangents)

    cotangents = columns.mT
    try:
        rows = torch.func.vmap(pulled)(inputs, cotangents)
    except RuntimeError:
        return None
    if rows.shape != (*cotangents.shape[:2], problem.dim):
        return None
    checked = {0, len(inputs) - 1}
    trusted = all(_agree(rows[n], _example_rows(problem, inputs[n], cotangents[n])) for n in checked)
    return rows if trusted else None


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Equal up to rounding, relative to the largest entry."""
    return bool((found - expected).abs().max() <= 1e4 * torch.finfo(found.dtype).eps * expected.abs().max())


def _example_rows(problem: Problem, example: Tensor, cotangents: Tensor) -> Tensor:
    """Rows ``(R, P)`` of one example by one backward pass per column."""
    named = problem.leaves()
    with torch.enable_grad():
        outputs = problem.predict(named, example[None])
    columns = [cotangents.reshape(len(cotangents), *outputs.shape)]
    return _backward_columns([outputs], list(named.values()), columns, batched=False).T


def _accumulate(factor_blocks: Iterator[Tensor], problem: Problem) -> Tensor:
    total = torch.zeros(problem.dim, problem.dim, dtype=problem.dtype, device=problem.device)
    for block in factor_blocks:
        if block.device.type == "cpu":
            columns = block.numpy()
            # numpy's GEMM recognizes B B^T as symmetric and is the faster BLAS here; memory is shared.
            with np.errstate(invalid="ignore"):  # infinite rows end in one NonFiniteError, not in a warning per chunk
                total += torch.from_numpy(np.matmul(columns, columns.T))
        else:
            total += block @ block.T
    return total


def _example_weights(problem: Problem) -> Tensor:
    r"""$\alpha_n = D_n / D$."""
    return problem.loss.denominators(problem.outputs(), problem.targets) / problem.denominator


def _gradient_factor(problem: Problem) -> _OutputMap:
    def factor(outputs: Tensor, targets: Tensor, where: slice) -> Tensor:
        del where
        share = problem.loss.denominators(outputs, targets)
        # sqrt(alpha_n) g_n = grad l_n / sqrt(D_n D); an ignored example has weight zero.
        scale = torch.where(share > 0, (share * problem.denominator).clamp(min=1e-300).rsqrt(), 0.0)
        return (problem.loss.gradient(outputs, targets) * scale[:, None])[:, :, None]

    return factor


def _require_likelihood(problem: Problem) -> None:
    if not problem.loss.likelihood:
        problem.loss.fisher_factor(problem.targets, problem.targets)


def _batches_backward(problem: Problem) -> bool:
    # vmap over the backward of a convolution is slower than a loop on the CPU (measured 1.2x).
    return not any(isinstance(layer, _CONVOLUTIONS) for layer in problem.model.modules())


def _split_columns(problem: Problem, block: Tensor) -> list[Tensor]:
    """``(P, K)`` to one ``(K, *shape)`` tensor per parameter."""
    return [block[where].T.reshape(-1, *entry.shape) for entry, where in problem.layout.pairs()]


def _backward_columns(outputs: list[Tensor], leaves: list[Tensor], columns: list[Tensor], *, batched: bool) -> Tensor:
    """Pull ``K`` cotangents back through a kept graph: ``(sum of leaf sizes, K)``."""
    num_columns = len(columns[0])
    sizes = [leaf.numel() for leaf in leaves]
    kept = [(output, column) for output, column in zip(outputs, columns, strict=True) if output.requires_grad]
    if not kept:
        return columns[0].new_zeros(sum(sizes), num_columns)
    outputs, columns = zip(*kept, strict=True)

    def pull(cotangents: list[Tensor], lead: tuple[int, ...]) -> Tensor:
        parts = torch.autograd.grad(
            outputs,
            leaves,
            cotangents,
            retain_graph=True,
            is_grads_batched=bool(lead),
            allow_unused=True,
            materialize_grads=True,
        )
        if any(part.shape != (*lead, *leaf.shape) for part, leaf in zip(parts, leaves, strict=True)):
            raise RuntimeError("a batched backward pass returned a wrong shape")
        return torch.cat([part.reshape(*lead, -1) for part in parts], dim=-1)

    if batched and num_columns > 1:
        try:
            few = zip(*(column.split(_BATCHED_COLUMNS) for column in columns), strict=True)
            found = torch.cat([pull(list(part), (len(part[0]),)) for part in few])
            if _agree(found[-1], pull([column[-1] for column in columns], ())):
                return found.T
        except RuntimeError:
            pass  # some layers have no batched second derivative; one column at a time they do
    return torch.stack([pull([column[k] for column in columns], ()) for k in range(num_columns)], dim=1)
