r"""Finite differences of a problem's outputs and gradient: witnesses that share no second derivative with a matrix.

Central differences along unit vectors; the first step is $\epsilon^{1/3} \max(1, \|\theta\|)$ long, where truncation
and rounding balance for functions of ordinary size, the others much shorter, for functions with kinks or on inputs of
large numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from curvature.charts import Chart
from curvature.errors import CurvatureError, SelfCheckError
from curvature.linalg.checks import Testimony, Witness, same_form
from curvature.linalg.operator import SymmetricOperator
from curvature.models import Problem
from curvature.models.behaviour import graph_nodes

__all__ = ["gradient_witness", "not_finite", "other_chunks_witness", "output_witness"]

_DIFFERENCE_ERROR = 1e-8  # relative, of a squared difference quotient of ordinary size
_SHRINKS = (1.0, 2.0**-5, 2.0**-10)
_LEAP = 1e-3  # of the outputs, over the shortest step
# Nodes of a graph whose own backward is wrong, or is missing; the name in the graph, and what to tell a user.
_SUSPECTS = {
    "WeightNormInterfaceBackward": "torch._weight_norm is in the graph, whose double backward is wrong (write "
    "g * v / v.norm() instead, or use torch.nn.utils.parametrizations.weight_norm, which is unwrapped)",
    "ScaledDotProductFlashAttention": "fused attention is in the graph (use the math kernel: "
    "torch.nn.attention.sdpa_kernel)",
}


def gradient_witness(problem: Problem, chart: Chart | None = None) -> Witness:
    """Testify for a Hessian, on the weights or in the coordinates of a chart.

    ``(G(x + h v) - G(x - h v)) / 2h`` along each vector, ``G`` the gradient in the same coordinates by one backward
    pass. Cost: two gradients for each vector, as a rule.
    """
    point = problem.weights if chart is None else chart.coordinates

    def gradient(coordinates: Tensor) -> Tensor:
        if chart is None:
            return problem.gradient(coordinates)
        weights, pull = chart.linearize(coordinates)
        return pull(problem.gradient(weights))

    def testify(block: Tensor, shrink: float) -> Testimony:
        slopes, rounding, roughness = _central(gradient, point, block, shrink)
        if roughness > 0 and shrink == _SHRINKS[-1]:  # a kink may be; a jump of the outputs is no kink
            to_weights = (lambda weights: weights) if chart is None else chart.to_weights
            _central(lambda at: problem.outputs(to_weights(at)), point, block, shrink, continuous=True)
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
    """Testify for ``sum_n J_n^T M_n J_n``: tangents ``J_n v`` from differences of outputs, no backward pass at all.

    ``middle`` multiplies tangents ``(n, M, K)`` of the examples in a slice by ``M_n``, given their outputs; with
    ``centre``, the outer product of that vector is taken off (a covariance). Cost: two forward passes for each vector.
    """

    def testify(block: Tensor, shrink: float) -> Testimony:
        at = problem.outputs()
        slopes, rounding, roughness = _central(
            lambda weights: problem.outputs(weights).reshape(-1),
            problem.weights,
            block,
            shrink,
            continuous=shrink == _SHRINKS[-1],
        )
        tangents = slopes.reshape(len(at), -1, block.shape[1])

        def total(rows: Tensor) -> Tensor:
            form = block.new_zeros(rows.shape[2], rows.shape[2])
            for where in problem.chunks():
                part = rows[where]
                form += torch.einsum("nmj, nmk -> jk", part, middle(at[where], where, part))
            return form

        form = total(tangents)
        # Rounding of t is amplified by M: (t + e)^T M (t + e) moves by at most 2 sqrt(t M t * e M e) + e M e.
        noise = abs(float(total(torch.full_like(tangents[:, :, :1], rounding))))
        moved = noise + 2 * (noise * float(form.abs().max())) ** 0.5
        if centre is not None:
            along = centre() @ block
            moved += _DIFFERENCE_ERROR * float(form.abs().max())  # which does not cancel
            form = form - along[:, None] * along
        return Testimony(form, moved, roughness)

    return Witness(
        "finite differences of the outputs",
        testify,
        "The derivative of the outputs that autograd computes is not what the outputs do: a layer has a wrong backward "
        "pass. Replace or freeze that layer.",
        _SHRINKS,
        _tolerance(problem.weights),
    )


def _central(
    function: Callable[[Tensor], Tensor], point: Tensor, block: Tensor, shrink: float, *, continuous: bool = False
) -> tuple[Tensor, float, float]:
    """Derivatives along each column, their rounding, and by how much one-sided differences disagree, relatively.

    With ``continuous``, a function whose values jump is an error.
    """
    eps = torch.finfo(point.dtype).eps
    length = shrink * eps ** (1 / 3) * max(1.0, float(torch.linalg.vector_norm(point)))
    # Smooth functions do not need it: their first step agrees.
    at = function(point) if shrink < 1 else None
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
        if at is not None:
            jump = max(jump, float(torch.linalg.vector_norm(ahead - 2 * at + behind)))
        change = max(change, float(torch.linalg.vector_norm(ahead - behind)))
    if continuous and jump > _LEAP * largest:
        raise SelfCheckError(
            f"the model is discontinuous at this point: a step of {length:.0e} in the weights moves its outputs by "
            f"{jump / largest:.0e} (relative), so there is no derivative. Look for rounding, signs, comparisons or "
            "integer casts of weights in its layers."
        )
    rounding = 4 * eps * largest / length
    return torch.stack(slopes, dim=1), rounding, jump / change if change > 0 else 0.0


def _tolerance(point: Tensor) -> float:
    """What truncation leaves at the first step, with room: 1e-5 in float64."""
    return 2.7e5 * torch.finfo(point.dtype).eps ** (2 / 3) if point.dtype == torch.float64 else 2e-2


def _suspects(problem: Problem) -> str:
    """Say what in the graph is known to have a wrong second derivative, or none."""
    _, _, loss = problem.chunk_loss(slice(0, 1))
    found = [words for node in graph_nodes(loss) for name, words in _SUSPECTS.items() if name in type(node).__name__]
    known = "; ".join(dict.fromkeys(found))
    return "What autograd computes is not the derivative of the gradient: " + (
        f"{known}." if known else "a layer or the loss has a wrong double backward; replace or freeze it."
    )


def other_chunks_witness(problem: Problem, rebuild: Callable[..., SymmetricOperator], reversible: bool) -> Witness:
    """Testify by autograd in double precision, on examples in the opposite order, cut in other places.

    The difference is what the order of sums and single precision do to a product.

    Parameters
    ----------
    problem
        Whose matrix it is.
    rebuild
        ``(problem, method=) -> matrix``.
    reversible
        False where the examples have fixed places, as with sampled labels.

    Returns
    -------
    Witness
        For a matrix on the weights.
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


def not_finite(problem: Problem, rebuild: Callable[..., SymmetricOperator], block: Tensor) -> str:
    """Say for which example and in which parameters a product is not finite, by bisection.

    Parameters
    ----------
    problem
        Whose matrix it is.
    rebuild
        ``(problem, method=) -> matrix``.
    block
        Columns whose product is not finite.

    Returns
    -------
    str
        The end of a sentence.
    """

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
    names = [name for name, part in rows.items() if not torch.isfinite(part).all()]
    if not names:
        return "each example alone is finite: a sum overflows. Scale the loss down."
    return f"first for example {start}, in {', '.join(names)}; look at the model at this point."
