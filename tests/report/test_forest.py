"""The forest plot: what is drawn is what the numbers say."""

import math

import pytest

from curvature.report.drawings.forest import Effect, draw_forest, forest_figure
from curvature.report.figures import render_svg

EFFECTS = [
    Effect("Condition number, each after its own training", 1.07, 0.85, 1.35, "undecided"),
    Effect("Condition number, at the same weights", 1.02, 0.99, 1.05, "too small"),
    Effect("Distance from a multiple of the identity", 0.8, 0.7, 0.88, "supported"),
    Effect("Time of descent", 1.6, 1.2, math.inf, "opposite"),
    Effect("Index of the step", outcome="not tested", number="needs the efficiencies of both steps"),
    Effect("All of them", 1.2, 1.05, 1.4, prediction=(0.8, 1.9), pooled=True),
]


def _lines(figure):
    (ax,) = figure.axes
    return [line for line in ax.lines if line.get_transform() == ax.transData]


@pytest.mark.parametrize("narrow", [False, True])
def test_each_estimate_and_each_interval_is_drawn_at_its_number(narrow):
    figure = forest_figure(EFFECTS, narrow=narrow)
    (ax,) = figure.axes
    low, high = ax.get_xlim()
    drawn = [tuple(map(float, line.get_xdata())) for line in _lines(figure)]
    for effect in EFFECTS[:4]:
        assert (effect.factor,) in drawn
        assert (effect.low, min(effect.high, high)) in drawn
    assert (0.8, 1.9) in drawn
    assert low * high == pytest.approx(1)  # 1 is in the middle
    (diamond,) = [patch for patch in ax.patches if len(patch.get_xy()) == 5 and patch.get_xy()[0][0] == 1.05]
    assert sorted(set(diamond.get_xy()[:, 0])) == [1.05, 1.2, 1.4]


def test_an_interval_that_leaves_the_axis_ends_in_an_arrow():
    markers = [line.get_marker() for line in _lines(forest_figure(EFFECTS))]
    assert markers.count(">") == 1
    assert "<" not in markers


def test_the_band_reaches_from_the_inverse_of_the_factor_to_the_factor():
    (ax,) = forest_figure(EFFECTS, within=1.25).axes
    band = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    assert (band.x0, band.x1) == pytest.approx((0.8, 1.25))


@pytest.mark.parametrize("narrow", [False, True])
def test_the_side_of_factors_below_one_is_the_one_that_is_named_first(narrow):
    (ax,) = forest_figure(EFFECTS, favours=("the arm", "standard"), narrow=narrow).axes
    sides = {text.get_text().strip("◂▸ "): text.xy[0] for text in ax.texts if "favours" in text.get_text()}
    assert sides == {"favours the arm": 0, "favours standard": 1}  # from the left end of the axis to the right one


def test_a_verdict_differs_in_word_marker_and_colour():
    looks = {}
    for outcome in ("supported", "too small", "opposite", "undecided"):
        line = _lines(forest_figure([Effect("x", 2.0, 1.5, 3.0, outcome)]))[-1]
        looks[outcome] = line.get_marker(), line.get_color(), line.get_markerfacecolor()
    assert len({marker + fill for marker, _, fill in looks.values()}) == len({c for _, c, _ in looks.values()}) == 4


@pytest.mark.parametrize("narrow", [False, True])
def test_every_label_number_and_verdict_can_be_read_and_the_bytes_repeat(narrow):
    svg = render_svg(forest_figure(EFFECTS, narrow=narrow), "Claims")
    assert svg == render_svg(forest_figure(EFFECTS, narrow=narrow), "Claims")
    for effect in EFFECTS:
        assert effect.label in svg
        assert effect.words in svg
        assert effect.outcome in svg


def test_the_numbers_of_the_drawing_are_those_of_the_effects():
    drawing = draw_forest(EFFECTS, "Claims", "How to read it.")
    assert drawing.table.rows[0] == ("Condition number, each after its own training", 1.07, 0.85, 1.35, "undecided")
