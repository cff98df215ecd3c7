"""Labels of charts: two charts that differ by their seed or by the weights they apply to are told apart."""

import itertools

import pytest

import curvature as cv
from curvature.charts.registry import CHARTS

LAYERED = [name for name in CHARTS if name not in ("standard", "scaled-standard")]


@pytest.mark.parametrize("name", LAYERED)
def test_a_label_names_the_layers_and_the_seed_that_were_given(name):
    kind = CHARTS[name]
    variants = [kind.build(layers=layers) for layers in (None, "^0", "^2")]
    if kind.seeded:
        variants += [kind.build(layers=layers, seed=seed) for layers in (None, "^0") for seed in (1, 2)]
    for first, second in itertools.combinations(variants, 2):
        assert first.label != second.label
    assert "layers='^0'" in variants[1].label
    assert "layers" not in variants[0].label
    assert "seed" not in variants[0].label
    assert kind.build(layers=None).label == kind.build(**({"seed": 0} if kind.seeded else {})).label


def test_a_seed_that_draws_nothing_is_not_named():
    assert cv.LoRA(2, init="pissa", seed=3).gauge == "rank=2, pissa"
    assert cv.RandomWeightFactorization(scale=2.0, seed=3).gauge == "scale=2"
    assert cv.Placebo(directions={}, seed=3).gauge == "canonical"


@pytest.mark.parametrize(
    "chart", [cv.WeightNorm(layers="^0"), cv.Placebo(layers="^0", seed=3), cv.Sphere(layers="^0")], ids=repr
)
def test_the_layers_are_still_named_where_training_has_arrived(chart, mlp, regression_data):
    problem = cv.Problem.from_module(mlp(3, 4, 2), loss="mse", data=regression_data(5, 3, 2))
    point = chart.at(problem.layout, problem.weights)
    moved = point.moved(point.coordinates * 1.1)
    assert moved.gauge == "checkpoint, layers='^0'"
    assert moved.at(problem.layout, point.to_weights(point.coordinates * 1.1)).dim == point.dim


def test_frozen_coordinates_and_layers_are_both_named():
    assert cv.LoRA(2, frozen=("a",), layers="^0", seed=4).gauge == "rank=2, B = 0, seed=4, a frozen, layers='^0'"
    assert cv.WeightNorm(layers="^0").freeze("v").gauge == "canonical, layers='^0', v frozen"
