"""Forest plots of a grid: factors, sides and rows are those of the pooled numbers."""

import math

import pytest

from curvature.records import PooledEffect, PooledVerdict
from curvature.report.drawings.grid import draw_claim, draw_groups, draw_sources, is_ratio
from curvature.report.grid import _effect_words, _found

EFFECT = PooledEffect(
    "C1",
    "log(kappa_80, standard / weight norm)",
    ("a", "b", "c"),
    (0.5, -0.2, 0.1),
    (0.1, 0.1, 0.1),
    (0.3, -0.4, -0.1),
    (0.7, 0.0, 0.3),
    (0.3, 0.3, 0.4),
    {"d": "the control failed (canonical gauge)"},
    0.13,
    0.2,
    -0.7,
    0.96,
    -2.0,
    2.3,
    0.34,
    0.9,
    1e-5,
)
VERDICT = PooledVerdict(
    "C1", "own training", "It improves", "undecided", "a rule", math.log(1.1), EFFECT,
    {"a": "supported", "b": "opposite", "c": "undecided", "d": "undecided"},
)  # fmt: skip


def test_a_row_is_the_factor_of_its_cell_below_one_where_weight_norm_is_better():
    rows = {row[0]: row[1:] for row in draw_claim(VERDICT, within=1.1, name="c1").table.rows}
    assert rows["a"][:3] == pytest.approx((math.exp(-0.5), math.exp(-0.7), math.exp(-0.3)), rel=1e-15)
    assert rows["a"][3] == "supported"
    assert rows["b"][0] > 1
    assert rows["All 3 cells"][:3] == pytest.approx((math.exp(-0.13), math.exp(-0.96), math.exp(0.7)), rel=1e-15)
    assert rows["All 3 cells"][3] == "undecided"
    assert math.isnan(rows["d"][0])


def test_one_cell_has_an_open_interval_and_no_prediction():
    one = PooledEffect("C1", "log-ratio", ("a",), (0.5,), (0.1,), (0.3,), (0.7,), (1.0,), {}, 0.5)
    (row,) = draw_groups("C1", [one], within=1.1, name="groups").table.rows
    assert row[:4] == ("C1 (1 cell)", math.exp(-0.5), 0.0, math.inf)
    assert _effect_words(one) == "0.61 [0, ∞]"


def test_every_source_has_its_cells_and_its_pooled_row():
    rows = [row[0] for row in draw_sources([EFFECT], within=1.1).table.rows]
    assert rows == ["C1: a", "C1: b", "C1: c", "C1, all 3 cells"]


def test_the_words_say_the_effect_another_cell_and_whether_the_cells_differ():
    words = _found(VERDICT)
    assert words == (
        "0.88 [0.38, 2.01] over 3 cells; another cell would lie in [0.10, 7.39]; the cells differ (I² 90 %, p = 1e−5)"
    )


@pytest.mark.parametrize(
    ("unit", "ratio"),
    [("log-ratio", True), ("decades of learning rates", True), ("|cos(w, e1)|, mean over neurons", False)],
)
def test_logarithms_and_decades_are_drawn_as_factors(unit, ratio):
    assert is_ratio(PooledEffect("x", unit, (), (), (), (), (), ())) == ratio
