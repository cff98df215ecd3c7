r"""Witnesses of a curvature matrix: finite differences of outputs and gradients, and autograd in another order.

They share no second derivative with the matrix. Differences are central, along unit vectors. The first step has the
length $\epsilon^{1/3} \max(1, \|\theta\|)$, where truncation and rounding balance for functions of ordinary size. The
next steps are much shorter, for functions with kinks and for inputs of large numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from curvature.arrays import Float
from curvature.charts import Chart
from curvature.errors import CurvatureError, SelfCheckError
from curvature.linalg.checks import Testimony, Witness, same_form
from curvature.linalg.operator import SymmetricOperator
from curvature.models import Problem
from curvature.models.behaviour import graph_nodes
from curvature.models.culprit import wrong_layer
from curvature.models.module.copying import private_copy
from curvature.models.trees import as_type

__all__ = ["gradient_witness", "in_double", "not_finite", "other_chunks_witness", "output_witness", "plus_penalty"]

_DIFFERENCE_ERROR = 1e-8  # relative error of a squared difference quotient of ordinary size
_SHRINKS = (1.0, 2.0**-5, 2.0**-10)
_LEAP = 1e-3  # relative jump of the outputs over the shortest step that shows a discontinuity
# Nodes of a graph with a wrong or missing second derivative: the name of the node, and the message for the user.
_SUSPECTS = {
    "ScaledDotProductFlashAttention": "fused attention is in the graph (use the math kernel: "
    "torch.nn.attention.sdpa_kernel)",
}


def gradient_witness(problem: Problem, chart: Chart | None = None) -> Witness:
    """Make the witness of a Hessian by differences of the gradient.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.
    chart
        Coordinates of the Hessian; None: the weights.

    Returns
    -------
    Witness
        By ``(G(x + h v) - G(x - h v)) / 2h`` along each vector, ``G`` the gradient in the same coordinates by one
        backward pass. Costs two gradients for each vector and step.
    """
    point = problem.weights if chart is None else chart.coordinates

    def gradient(coordinates: Tensor) -> Tensor:
        if chart is None:
            return problem.gradient(coordinates)
        weights, pull = chart.linearize(coordinates)
        return pull(problem.gradient(weights))

    def testify(block: Tensor, shrink: float) -> Testimony:
        slopes, rounding, roughness = _central(gradient, point, block, shrink)
        if roughness > 0 and shrink == _SHRINKS[-1]:  # kinks are allowed, but jumps of the outputs are an error
            to_weights = (lambda weights: weights) if chart is None else chart.to_weights
            for part in _chunk_problems(problem) if problem.is_streamed else (problem,):
                _central(partial(_outputs_at, part, to_weights), point, block, shrink, continuous=True)
        form = block.T @ slopes
        return Testimony(
            0.5 * (form + form.T), rounding * float(torch.linalg.vector_norm(block, dim=0).max()), roughness
        )

    return Witness(
        "finite differences of the gradient",
        testify,
        lambda: _suspects(problem),
        _SHRINKS,
        _tolerance(point),
    )


def output_witness(
    problem: Problem, middle: Callable[[Tensor, slice, Tensor], Tensor], centre: Callable[[], Tensor] | None = None
) -> Witness:
    """Make the witness of ``sum_n J_n^T M_n J_n`` by differences of the outputs, without any backward pass.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.
    middle
        ``(outputs, examples, tangents) -> M_n tangents`` for tangents ``(n, C, K)`` of the examples in a slice.
    centre
        Returns the vector whose outer product is subtracted, for a covariance; None otherwise.

    Returns
    -------
    Witness
        With tangents ``J_n v`` by central differences. Costs two forward passes for each vector and step.
    """

    def of_part(part: Problem, first: int, block: Tensor, shrink: float) -> tuple[Tensor, float, float]:
        outputs = part.outputs()
        slopes, rounding, roughness = _central(
            lambda weights: part.outputs(weights).reshape(-1),
            problem.weights,
            block,
            shrink,
            continuous=shrink == _SHRINKS[-1],
        )
        tangents = slopes.reshape(len(outputs), -1, block.shape[1])

        def total(rows: Tensor) -> Tensor:
            form = block.new_zeros(rows.shape[2], rows.shape[2])
            for examples in part.chunks():
                here, among_all = rows[examples], slice(first + examples.start, first + examples.stop)
                form += torch.einsum("nmj, nmk -> jk", here, middle(outputs[examples], among_all, here))
            return form

        form = total(tangents)
        # Rounding e of the tangents t is amplified by M: (t + e)^T M (t + e) differs from t^T M t by at most
        # 2 sqrt(t^T M t * e^T M e) + e^T M e (Cauchy & Schwarz).
        noise = abs(float(total(torch.full_like(tangents[:, :, :1], rounding))))
        return form, noise + 2 * (noise * float(form.abs().max())) ** 0.5, roughness

    def testify(block: Tensor, shrink: float) -> Testimony:
        form, moved, roughness, first = block.new_zeros(block.shape[1], block.shape[1]), 0.0, 0.0, 0
        for part in _chunk_problems(problem) if problem.is_streamed else (problem,):
            added, more, rough = of_part(part, first, block, shrink)
            form, moved, roughness, first = form + added, moved + more, max(roughness, rough), first + part.num_examples
        if centre is not None:
            along = centre() @ block
            moved += _DIFFERENCE_ERROR * float(form.abs().max())  # the error of the larger term does not cancel
            form = form - along[:, None] * along
        return Testimony(form, moved, roughness)

    return Witness(
        "finite differences of the outputs",
        testify,
        lambda: (
            "The derivative of the outputs by autograd differs from finite differences of the outputs: "
            f"{_culprit(problem) or 'a layer has a wrong backward pass'}. Replace or freeze that layer."
        ),
        _SHRINKS,
        _tolerance(problem.weights),
    )


def plus_penalty(problem: Problem, witness: Witness) -> Witness:
    """Add the Hessian of the penalty to a witness, by differences of the gradient of the penalty.

    Parameters
    ----------
    problem
        A problem with a penalty, at a point.
    witness
        Witness of a matrix without the penalty.

    Returns
    -------
    Witness
        Of the matrix with the penalty.
    """
    assert problem.penalty is not None
    gradient = problem.penalty.gradient

    def testify(block: Tensor, shrink: float) -> Testimony:
        of_data = witness.testify(block, shrink)
        slopes, rounding, roughness = _central(gradient, problem.weights, block, shrink)
        form = block.T @ slopes
        rounding *= float(torch.linalg.vector_norm(block, dim=0).max())
        return Testimony(
            of_data.form + 0.5 * (form + form.T), of_data.rounding + rounding, max(of_data.roughness, roughness)
        )

    return replace(witness, testify=testify)


def _outputs_at(problem: Problem, to_weights: Callable[[Tensor], Tensor], coordinates: Tensor) -> Tensor:
    return problem.outputs(to_weights(coordinates))


def _central(
    function: Callable[[Tensor], Tensor], point: Tensor, block: Tensor, shrink: float, *, continuous: bool = False
) -> tuple[Tensor, float, float]:
    """Central differences along each column, their rounding, and the relative disagreement of one-sided differences.

    With ``continuous=True``, a function whose values jump is an error.
    """
    eps = torch.finfo(point.dtype).eps
    length = shrink * eps ** (1 / 3) * max(1.0, float(torch.linalg.vector_norm(point)))
    # The value at the point is needed only to detect kinks and jumps, after the first step has disagreed.
    value = function(point) if shrink < 1 else None
    slopes, largest, jump, change = [], 0.0, 0.0, 0.0
    for vector in block.T:
        size = torch.linalg.vector_norm(vector)
        if size == 0:
            slopes.append(torch.zeros_like(function(point)))
            continue
        step = length / float(size)
        ahead, behind = function(point + step * vector), function(point - step * vector)
        slopes.append((ahead - behind) / (2 * step))
        largest = max(largest, float(ahead.abs().max()), float(behind.abs().max()))
        if value is not None:
            jump = max(jump, float(torch.linalg.vector_norm(ahead - 2 * value + behind)))
        change = max(change, float(torch.linalg.vector_norm(ahead - behind)))
    if continuous and jump > _LEAP * largest:
        raise SelfCheckError(
            f"the model is discontinuous at this point: a step of {length:.0e} in the weights changes its outputs by "
            f"{jump / largest:.0e} (relative), so there is no derivative. Look for rounding, signs, comparisons or "
            "integer casts of weights in its layers."
        )
    rounding = 4 * eps * largest / length
    return torch.stack(slopes, dim=1), rounding, jump / change if change > 0 else 0.0


def _tolerance(point: Tensor) -> float:
    """Truncation error of the first step, with a margin: 1e-5 in float64."""
    return 2.7e5 * torch.finfo(point.dtype).eps ** (2 / 3) if point.dtype == torch.float64 else 2e-2


def _suspects(problem: Problem) -> str:
    """Name the layers in the graph that are known to have a wrong second derivative, as the end of a message."""
    _, _, loss = problem.chunk_loss(slice(0, 1))
    kinds = [type(node).__name__ for node in graph_nodes(loss)]
    advice = "; ".join(text for name, text in _SUSPECTS.items() if any(name in kind for kind in kinds))
    if not advice:
        advice = f"{_culprit(problem) or 'a layer or the loss has a wrong double backward'}; replace or freeze it"
    return f"What autograd computes is not the derivative of the gradient: {advice}."


def _culprit(problem: Problem) -> str:
    return wrong_layer(problem.function, problem.weights, problem.inputs[: min(3, problem.num_examples)])


def other_chunks_witness(problem: Problem, rebuild: Callable[..., SymmetricOperator], reversible: bool) -> Witness:
    """Make the witness by autograd in double precision, with the examples in reverse order and other chunks.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.
    rebuild
        ``(problem, method=) -> matrix``: builds the same matrix for another problem.
    reversible
        Whether the examples may be reversed; not with sampled labels, which belong to positions.

    Returns
    -------
    Witness
        Of a matrix on the weights. The difference of the products is the effect of the order of sums and, for a
        single-precision matrix, of its precision.
    """
    size = max(1, 2 * min(problem.chunk_size, problem.num_examples) // 3)

    def multiply(block: Tensor) -> Tensor:
        other = replace(in_double(problem), chunk_size=size)
        if reversible and not problem.is_streamed:
            other = replace(other, inputs=other.inputs.flip(0), targets=other.targets.flip(0))
        return rebuild(other, method="generic") @ block.to(other.dtype)

    return Witness(
        "products by autograd in other chunks of examples",
        same_form(multiply),
        "The model or the loss is random or keeps a state, or its result for an example depends on the other examples "
        "of the batch, or autograd disagrees with the closed forms of this package for a layer (method='generic' "
        "avoids these).",
    )


def _chunk_problems(problem: Problem) -> Iterable[Problem]:
    """Problems in memory, with the examples of one chunk of streamed data each."""
    return (replace(problem, inputs=problem.inputs[rows], targets=problem.targets[rows]) for rows in problem.chunks())


def in_double(problem: Problem) -> Problem:
    """Copy a problem in double precision, at the same weights.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.

    Returns
    -------
    Problem
        The same object where it is in double precision already, or where its device has none.
    """
    if problem.dtype == torch.float64 or problem.device.type == "mps":
        return problem
    return replace(
        problem,
        function=replace(problem.function, module=private_copy(problem.model, torch.float64)),
        inputs=as_type(problem.inputs, torch.float64, problem.device),
        targets=as_type(problem.targets, torch.float64, problem.device),
        weights=problem.weights.double(),
        penalty=None if problem.penalty is None else problem.penalty.to(torch.float64),
    )


def not_finite(
    problem: Problem, rebuild: Callable[..., SymmetricOperator], block: Float[Tensor, "weights columns"]
) -> str:
    """Find the first example and the parameters for which a product is not finite, by bisection.

    Parameters
    ----------
    problem
        Model, loss and data, at a point.
    rebuild
        ``(problem, method=) -> matrix``: builds the same matrix for another problem.
    block
        Columns whose product is not finite, ``(P, K)``.

    Returns
    -------
    str
        The second half of an error message.
    """

    def product(start: int, stop: int) -> Tensor:
        part = replace(problem, inputs=problem.inputs[start:stop], targets=problem.targets[start:stop])
        return rebuild(part, method="generic").matmat(block)

    start, stop = 0, problem.num_examples
    try:
        problem.gradient()  # if the gradient is not finite already, its error names the cause
        if problem.is_streamed:  # half of the data may be too large
            bad = (rows for rows in problem.chunks() if not torch.isfinite(product(rows.start, rows.stop)).all())
            rows = next(bad, slice(0, 1))
            start, stop = rows.start, rows.stop
        while stop - start > 1:
            half = (start + stop) // 2
            start, stop = (start, half) if not torch.isfinite(product(start, half)).all() else (half, stop)
        parts = problem.unflatten(product(start, stop)[:, 0])
    except CurvatureError as error:
        return str(error)
    names = [name for name, part in parts.items() if not torch.isfinite(part).all()]
    if not names:
        return "each example alone is finite, so their sum overflows. Scale the loss down."
    return f"first for example {start}, in {', '.join(names)}; look at the model at this point."
