"""``cv.measure``: every chart at one point, each by itself."""

import pytest
import torch

import curvature as cv
from oracles import distance


def charts_of(problem):
    normalized = [entry for entry in problem.layout.entries if entry.normalized]
    one, two = ({entry.name: c * torch.arange(1.0, entry.num_rows + 1) for entry in normalized} for c in (0.5, 3.0))
    return [
        cv.Standard(),
        cv.WeightNorm(stretch=2.0, layers="^0"),
        cv.WeightNorm(stretch=2.0, layers="^2"),
        cv.WeightNorm(stretch=one),
        cv.WeightNorm(stretch=two),
        cv.WeightNorm(stretch=1.0000001),
        cv.WeightNorm(stretch=1.0000002),
        cv.RandomWeightFactorization(seed=1),
        cv.RandomWeightFactorization(seed=2),
    ]


@pytest.mark.parametrize("effective", [True, False])
def test_each_chart_has_its_own_spectrum_however_alike_they_are(mlp, regression_data, effective):
    problem = cv.Problem.from_module(mlp(3, 4, 2), loss="mse", data=regression_data(9, 3, 2))
    charts = charts_of(problem)
    found = [m.record for m in cv.measure(problem, charts, matrices=("hessian",), effective=effective).of(cv.Spectrum)]
    for chart, record in zip(charts, found, strict=True):
        point = chart.at(problem.layout, problem.weights)
        move = point.effective if effective else point.pulled_back
        expected = torch.linalg.eigvalsh(move(cv.hessian(problem).dense(), problem.gradient()))
        assert distance(torch.from_numpy(record.eigenvalues.copy()), expected) < 1e-13, record.label
