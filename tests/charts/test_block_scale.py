"""Constant factors for blocks of weights."""

import pytest
import torch
from torch import nn

import curvature as cv
from oracles import drawn


@pytest.fixture(scope="module")
def problem():
    module = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    return cv.Problem.from_module(module, loss="mse", data=(drawn(5, 3), drawn(5, 4)))


def factors(problem, scale):
    chart = cv.BlockScale(scale).at(problem.layout, problem.weights)
    pushed = chart.layout.unflatten(chart.push(torch.ones(chart.dim, 1, dtype=torch.float64))[:, 0])
    assert all((block == block.reshape(-1)[0]).all() for block in pushed.values())
    return {name: float(block.reshape(-1)[0]) for name, block in pushed.items()}


def test_block_scales_are_those_of_the_published_tables(problem):
    root = 3**-0.5
    ntk = {"0.weight": root, "0.bias": 1, "2.weight": 0.25, "2.bias": 1, "4.weight": 0.25, "4.bias": 1}
    mup = {"0.weight": 4, "0.bias": 4, "2.weight": 1, "2.bias": 4, "4.weight": 0.25, "4.bias": 2}
    assert factors(problem, "ntk") == pytest.approx(ntk)
    assert factors(problem, "mup") == pytest.approx(mup)
    given = factors(problem, {"0.weight": 3.0, "bias": 0.5, "^[04].*": 2.0})
    assert given == {"0.weight": 3, "0.bias": 0.5, "2.weight": 1, "2.bias": 0.5, "4.weight": 2, "4.bias": 0.5}


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        ("ntp", "scale must be 'ntk', 'mup' or factors by name, got 'ntp'"),
        ({"0": 0.0}, "the factor of '0' must be a pos"),
    ],
)
def test_wrong_scales_are_refused(scale, words):
    with pytest.raises(cv.ConfigurationError, match=words):
        cv.BlockScale(scale)


def test_a_name_that_matches_nothing_is_an_error(problem):
    with pytest.raises(cv.InputError, match="'7' matches no coordinate"):
        cv.BlockScale({"7": 2.0}).at(problem.layout, problem.weights)
