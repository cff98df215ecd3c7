"""Forest plots of a grid: factors, sides and rows are those of the pooled numbers."""

import math
from dataclasses import replace

import pytest

from curvature.records import Check, PooledEffect, PooledVerdict
from curvature.report.drawings.grid import draw_arms, draw_claim, draw_groups, draw_sources, is_ratio
from curvature.report.grid import _effect_words, _found, _tables
from curvature.report.grid_record import CellRecord, GridRecord

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
OTHERS = ("supported", "too small", "opposite")  # verdicts that decide


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


def test_the_tables_of_a_grid_have_its_verdicts_its_factors_and_its_counts():
    failed = Check("symmetry", 1.0, 1e-10)
    network = CellRecord("wine, mlp, sgd", "wine", "mlp", "sgd", 64, 420, 150, 3, 20, (failed,), ())
    claims = [replace(VERDICT, outcomes=dict.fromkeys("abcd", "undecided") | {"a": word}) for word in OTHERS]
    arms = (replace(EFFECT, name="weight norm, paper start"), replace(EFFECT, name="placebo", estimate=-0.13))
    tables = {table.title: table for table in _tables(GridRecord((network,), 0.1, tuple(claims), (), (), arms, {}))}
    for row, word in zip(tables["Claims over all cells"].rows, OTHERS, strict=True):
        counts = dict(zip(tables["Claims over all cells"].header[-4:], row[-4:], strict=True))
        assert counts == dict.fromkeys(counts, 0) | {f"cells {word}": 1, "cells undecided": 3}
        assert row[2] == "0.88 [0.38, 2.01]"
    assert [(row[0], row[1][:4]) for row in tables["Arms"].rows] == [
        ("weight norm, paper start", "0.88"),
        ("placebo", "1.14"),
    ]
    (row,) = tables["Cells"].rows
    assert row[:4] == ("wine, mlp, sgd", 420, 150, 3)
    assert row[4].value == "1 of 20 failed"


def test_the_arms_of_a_grid_are_drawn_on_the_side_that_bears_their_name():
    drawing = draw_arms([replace(EFFECT, name="placebo")], within=1.1)
    assert drawing.table.rows[0][:2] == ("placebo (3 cells)", pytest.approx(math.exp(-0.13)))
    (ax,) = drawing.figure.axes
    sides = {text.get_text().strip("◂▸ "): text.xy[0] for text in ax.texts if "favours" in text.get_text()}
    assert sides == {"favours the arm": 0, "favours standard": 1}
