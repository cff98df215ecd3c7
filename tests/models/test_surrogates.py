"""A note where PyTorch's gradient is not the derivative of the loss, and none where a kink leaves several slopes."""

import warnings

import pytest
import torch
from torch import nn

import curvature as cv
from oracles import built, distance, drawn

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
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        problem = cv.Problem.from_module(network, loss="mse", data=(inputs, targets), dtype=dtype)
    assert [str(warning.message) for warning in caught] == list(problem.notes)
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
    "sorted, with ties at zero": lambda x: x.sort(-1).values,
    "remainder": lambda x: x % 1.0,
    "a shift that cancels": lambda x: (x - x.max(-1, keepdim=True).values.detach()).softmax(-1),
    "a constant that is detached": lambda x: x * torch.ones(4, requires_grad=True).detach(),
}


@pytest.mark.parametrize("between", SURROGATES.values(), ids=SURROGATES)
def test_a_gradient_of_something_else_is_noted(between):
    assert notes_of(Network(between))
    assert notes_of(Network(between), dtype=torch.float32)  # it is compared in float64


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


def test_the_hessian_with_detached_values_is_that_of_the_loss_in_which_they_are_constant():
    network = Network(lambda x: x + ((4 * x).round() / 4 - x).detach()).double()
    inputs, targets, first, last = drawn(20, 5), drawn(20, 2, seed=1), network.first, network.last
    with pytest.warns(UserWarning, match="held constant"):
        problem = cv.Problem.from_module(network, loss="mse", data=(inputs, targets))
    hidden = first(inputs).detach()
    shift = (4 * hidden).round() / 4 - hidden

    linear = nn.functional.linear

    def held(weight, bias, out, offset):
        outputs = linear(linear(inputs, weight, bias) + shift, out, offset)
        return nn.functional.mse_loss(outputs, targets)

    parts = tuple(part.detach() for part in (first.weight, first.bias, last.weight, last.bias))
    blocks = torch.autograd.functional.hessian(held, parts)
    rows = zip(parts, blocks, strict=True)
    expected = torch.cat([torch.cat([block.reshape(part.numel(), -1) for block in row], 1) for part, row in rows])
    assert distance(cv.hessian(problem).dense(), expected) < 1e-13
    with pytest.raises(cv.SelfCheckError, match="finite differences of the gradient"):
        cv.spectrum(cv.hessian(problem))


def test_ties_of_max_pooling_are_not_taken_for_detached_values():
    module = built(
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 3))
    )
    nn.init.zeros_(module[0].bias)
    for images in (torch.zeros(6, 1, 8, 8), torch.ones(6, 1, 8, 8), drawn(6, 1, 8, 8)):
        assert not cv.Problem.from_module(module, loss="mse", data=(images.double(), drawn(6, 3))).notes
