"""Gains moved into the next matrix: the same function, another curvature, as the Jacobian of the move says."""

import pytest
import torch
from torch import nn

import curvature as cv
from oracles import distance, normal


def problem_of(module, generator, width=4, outputs=2):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 + normal(generator, *parameter.shape))
    return cv.Problem.from_module(module, loss="mse", data=(normal(generator, 9, width), normal(generator, 9, outputs)))


def network(norm, bias=True):
    return nn.Sequential(nn.Linear(4, 5), norm, nn.Linear(5, 3, bias=bias), nn.Tanh(), nn.Linear(3, 2)).double()


@pytest.mark.parametrize("gain", [1.0, -0.2, 30.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", [nn.LayerNorm(5), nn.RMSNorm(5)], ids=["layer", "rms"])
def test_the_function_stays_and_the_gain_is_what_was_asked_for(norm, bias, gain, generator):
    problem = problem_of(network(norm, bias), generator)
    folded = cv.fold_norms(problem, gain=gain)
    assert distance(folded.outputs(), problem.outputs()) < 1e-13
    named = folded.unflatten(folded.weights)
    assert torch.equal(named["1.weight"], torch.full((5,), gain, dtype=torch.float64))
    if bias and isinstance(norm, nn.LayerNorm):
        assert not named["1.bias"].any()
    assert "1 are folded" in folded.notes[-1]
    assert problem.notes == ()


def test_the_gradient_changes_by_the_gain_that_moved(generator):
    """With ``W -> W diag(gamma)`` the derivative in an entry of the matrix is divided by its gain."""
    problem = problem_of(network(nn.LayerNorm(5)), generator)
    folded = cv.fold_norms(problem)
    gain, shift = (problem.unflatten(problem.weights)[name] for name in ("1.weight", "1.bias"))
    before, after = (point.unflatten(point.gradient()) for point in (problem, folded))
    # W x = W' x' + const with x = gamma x' + beta: dL/dW = dL/d(output) x^T.
    expected = after["2.weight"] * gain + after["2.bias"][:, None] * shift
    assert distance(before["2.weight"], expected) < 1e-12


def test_sharpness_is_changed_at_will_by_a_gauge_of_one_function(generator):
    problem = problem_of(network(nn.LayerNorm(5)), generator)
    tops = [
        float(torch.linalg.eigvalsh(cv.hessian(cv.fold_norms(problem, gain=gain)).dense())[-1])
        for gain in (1.0, 1e3, 1e6)
    ]
    assert tops[2] > 1e10 * tops[0]


class Shared(nn.Module):
    """Something else than a linear layer reads the normalized features."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, inputs):
        normed = self.norm(inputs)
        return self.linear(normed) + normed[:, :2]


@pytest.mark.parametrize("module", [Shared(), nn.Sequential(nn.Linear(4, 2))], ids=["shared", "none"])
def test_what_cannot_be_folded_is_refused(module, generator):
    with pytest.raises(cv.InputError, match="no normalization can be folded"):
        cv.fold_norms(problem_of(module.double(), generator))


@pytest.mark.parametrize("gain", [0.0, float("nan")])
def test_an_impossible_gain_is_refused(gain, generator):
    with pytest.raises(cv.ConfigurationError, match="gain must be a finite number"):
        cv.fold_norms(problem_of(network(nn.LayerNorm(5)), generator), gain=gain)
