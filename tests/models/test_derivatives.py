"""Cotangents are pulled back through a graph, without what PyTorch imports for them."""

import subprocess
import sys

import pytest
import torch

from curvature.models.derivatives import pulled_back
from oracles import distance, drawn


def first(x, y):
    return x.sin() * y.sum()


def second(x, y):
    return torch.stack([x @ y, y.square().sum()])


def test_cotangents_are_pulled_back_as_by_the_transposed_jacobian():
    x, y, unused = (drawn(3, seed=seed).requires_grad_() for seed in range(3))
    cotangents = drawn(3, seed=3).requires_grad_(), drawn(2, seed=4)
    pulled = pulled_back([first(x, y), second(x, y)], [x, y, unused], cotangents, create_graph=True)
    jacobians = [torch.autograd.functional.jacobian(function, (x, y)) for function in (first, second)]
    for leaf, part in enumerate(pulled[:2]):
        expected = sum(jacobian[leaf].T @ along for jacobian, along in zip(jacobians, cotangents, strict=True))
        assert distance(part.detach(), expected.detach()) < 1e-14
    assert torch.equal(pulled[2], torch.zeros(3, dtype=torch.float64))
    # Linear in the cotangents: the derivative along one of them is a column of the Jacobian, to the last bit or so.
    (tangent,) = torch.autograd.grad(pulled[0][1], cotangents[0])
    assert distance(tangent, jacobians[0][0][:, 1]) < 1e-14


def test_a_cotangent_of_another_shape_is_refused_and_not_broadcast():
    x = drawn(3).requires_grad_()
    with pytest.raises(ValueError, match="every cotangent must have the shape of its output"):
        pulled_back([x.sin()[:, None]], [x], [drawn(3, seed=1)])


def test_a_spectrum_comes_without_the_import_of_sympy():
    code = (
        "import sys, curvature as cv;"
        "cv.spectrum(cv.pullback(cv.hessian(cv.zoo.digits_problem(20, widths=(2,))), cv.WeightNorm()));"
        "assert 'sympy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
