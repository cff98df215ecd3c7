"""Charts that are measured together: different ones have different labels, everywhere that labels are printed."""

import numpy as np
import pytest
import torch

import curvature as cv
from curvature.charts.distinct import distinct
from curvature.charts.registry import CHARTS
from curvature.cli import loading
from curvature.cli.configuration import KINDS
from curvature.studies import SpectrumSettings, run_spectrum


def small_problem():
    return cv.zoo.digits_problem(40, widths=(3,))


def reached(problem, factor):
    """Weight norm at a gauge that training could have reached: the same weights, other lengths of v."""
    point = cv.WeightNorm(stretch=factor).at(problem.layout, problem.weights)
    return point.moved(point.coordinates)


def scaled(problem, factor):
    """One row of scales for each weight, which the label does not hold."""
    weights = {entry.name: torch.full((entry.shape[0],), factor).double() for entry in problem.layout.entries}
    return cv.ScaledStandard({name: scale for name, scale in weights.items() if name.endswith("weight")})


PAIRS = {
    "checkpoint": lambda problem: [reached(problem, 2.0), reached(problem, 5.0)],
    "given": lambda problem: [scaled(problem, 2.0), scaled(problem, 5.0)],
    "stretch=3": lambda _: [cv.WeightNorm(stretch=3.0), cv.WeightNorm(stretch=3.0000001)],
    "-": lambda problem: [cv.LinearChart(k * torch.ones(problem.dim, dtype=torch.float64)) for k in (2.0, 5.0)],
}


@pytest.mark.parametrize("gauge", PAIRS)
def test_two_charts_of_one_label_are_numbered_and_each_has_its_own_spectrum(gauge):
    problem = small_problem()
    first, second = PAIRS[gauge](problem)
    assert first.label == second.label
    numbered = f"{gauge}, no. 2".removeprefix("-, ")
    of_spectrum = run_spectrum(problem, SpectrumSettings(("ggn",), [first, second]), finished={})
    for study in (of_spectrum, cv.measure(problem, [first, second], matrices=("ggn",), effective=False)):
        records = [m.record for m in study.of(cv.Spectrum)]
        assert [record.gauge for record in records] == [gauge, numbered]
        for record, chart in zip(records, (first, second), strict=True):
            alone = cv.spectrum(cv.pullback(cv.ggn(problem), chart))
            np.testing.assert_allclose(record.eigenvalues, alone.eigenvalues, rtol=0, atol=alone.noise_floor)
        assert np.abs(records[0].eigenvalues - records[1].eigenvalues).max() > 1e4 * records[0].noise_floor
    steps = cv.compare_charts(problem, [first, second])
    assert [step.gauge for step in steps] == [gauge, numbered]
    assert (first.gauge, second.gauge) == (gauge, gauge)  # the user's own are not changed


@pytest.mark.parametrize("name", CHARTS)
def test_every_chart_prints_its_number_and_a_chart_that_is_there_twice_has_none(name):
    problem, build = small_problem(), CHARTS[name].build
    assert [chart.gauge for chart in distinct([build(), build()])] == [build().gauge] * 2
    other = build()
    other.told_apart = "by what no label holds"
    again = build()
    labels = [chart.label for chart in distinct([build(), other, again, other])]
    assert labels[0] == labels[2] == build().label
    assert labels[1] == labels[3] == distinct([build(), other])[1].label
    assert "no. 2" in labels[1]
    moved = cv.nearest(problem, build())
    chart = distinct([build(), other])[1].at(moved.layout, moved.weights)
    assert chart.label == labels[1]


def test_the_gauge_of_a_configuration_keeps_all_its_digits():
    config = KINDS["spectrum"](gauge=[3.0, 3.1622776601683795, 2])
    assert config.gauge == ("3", "3.1622776601683795", "2")
    charts = loading.build_charts(("weight-norm",), ("3", "3.0", "3.0000001"))
    assert [chart.gauge for chart in charts] == ["stretch=3", "stretch=3", "stretch=3, no. 2"]
    assert [chart.stretch for chart in charts] == [3.0, 3.0, 3.0000001]
