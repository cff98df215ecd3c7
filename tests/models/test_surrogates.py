"""A note where PyTorch's gradient is not the derivative of the loss, and none where a kink leaves several slopes."""

import pytest
import torch
from torch import nn

import curvature as cv
from oracles import drawn

NOTE = "is not the derivative of this loss"


class Network(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between):
        super().__init__()
        self.first, self.last, self.between = nn.Linear(5, 4), nn.Linear(4, 2), between

    def forward(self, inputs):
        return self.last(self.between(self.first(inputs)))


def rounded_weights(network):
    """The network with first weights rounded to quarters by a straight-through estimator."""

    class Rounded(nn.Linear):
        def forward(self, inputs):
            rounded = (4 * self.weight).round() / 4
            return nn.functional.linear(inputs, self.weight + (rounded - self.weight).detach(), self.bias)

    network.first = Rounded(5, 4)
    return network


def notes_of(network, *, zero=False, dtype=torch.float64):
    torch.manual_seed(0)
    inputs, targets = drawn(20, 5), drawn(20, 2, seed=1)
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            parameter.copy_(drawn(*parameter.shape, seed=10 + number))
        if zero:  # all examples but one are at every kink of the first layer
            network.first.bias.zero_()
            inputs[:-1] = 0
    problem = cv.Problem.from_module(network, loss="mse", data=(inputs, targets), dtype=dtype)
    return [note for note in problem.notes if NOTE in note]


SURROGATES = {
    "signs, straight through": lambda x: x + (torch.sign(x) - x).detach(),
    "a length taken as constant": lambda x: x / (1 + x.detach().norm(dim=1, keepdim=True)),
    "half of a gate taken as constant": lambda x: x * torch.sigmoid(x).detach(),
}
KINKS = {
    "relu": torch.relu,
    "absolute value": torch.abs,
    "largest of two": lambda x: torch.maximum(x, -0.1 * x),
    "hinge after hinge": lambda x: torch.relu(1 - torch.relu(x)),
    "smooth": torch.tanh,
    "steep": lambda x: torch.sigmoid(100 * x),
    "a constant that is detached": lambda x: x * torch.ones(4, requires_grad=True).detach(),
}


@pytest.mark.parametrize("between", SURROGATES.values(), ids=SURROGATES)
def test_a_gradient_of_something_else_is_noted(between):
    assert notes_of(Network(between))
    assert not notes_of(Network(between), dtype=torch.float32)  # differences are too coarse there to say anything


def test_rounded_weights_are_noted():
    assert notes_of(rounded_weights(Network(torch.tanh)))


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("between", KINKS.values(), ids=KINKS)
def test_a_kink_or_a_steep_slope_is_not(between, zero):
    assert not notes_of(Network(between), zero=zero)


def test_a_minimum_is_not():
    """Where the gradient is rounding alone, so are the differences."""
    inputs = drawn(30, 3)
    network = nn.Linear(3, 1).double()
    targets = inputs @ network.weight.detach().T + network.bias.detach()
    problem = cv.Problem.from_module(network, loss="mse", data=(inputs, targets))
    assert float(problem.gradient().norm()) < 1e-14
    assert not any(NOTE in note for note in problem.notes)
