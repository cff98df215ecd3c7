"""The table of parameterizations by name: every row builds one, and a new row is all that a new name needs."""

import pytest
import torch

import curvature as cv
from curvature.charts.registry import CHARTS, NamedChart
from curvature.cli.loading import build_charts


@pytest.mark.parametrize("name", CHARTS)
def test_every_name_builds_the_parameterization_of_that_name(name, mlp, regression_data):
    problem = cv.Problem.from_module(mlp(3, 4, 2), loss="mse", data=regression_data(5, 3, 2))
    kind = CHARTS[name]
    gauge = {} if kind.default_gauge is None else {"gauge": kind.default_gauge}
    parameterization = kind.build(**gauge, **({"seed": 3} if kind.seeded else {}))
    assert parameterization.name == name
    assert parameterization.at(problem.layout, parameterization.nearest(problem.layout, problem.weights)).name == name
    if kind.default_gauge is not None:
        assert parameterization.gauge == kind.default_gauge + (", seed=3" if kind.seeded else "")
        assert kind.build(stretch=2.0).gauge == "stretch=2"


class Exponential(cv.Parameterization):
    name = "exponential"

    def to_weights(self, coordinates):
        return coordinates.sinh()

    def from_weights(self, weights):
        return weights.asinh()


def test_a_new_parameterization_is_a_class_and_a_row(monkeypatch, mlp, regression_data):
    monkeypatch.setitem(CHARTS, "exponential", NamedChart(Exponential))
    (chart,) = build_charts(["exponential"], [])
    problem = cv.Problem.from_module(mlp(3, 4, 2), loss="mse", data=regression_data(5, 3, 2))
    jacobian = problem.weights.asinh().cosh()
    expected = jacobian[:, None] * cv.ggn(problem).dense() * jacobian
    assert torch.allclose(cv.pullback(cv.ggn(problem), chart).dense(), expected, rtol=1e-12, atol=1e-14)
    assert cv.spectrum(cv.pullback(cv.ggn(problem), chart)).chart == "exponential"
