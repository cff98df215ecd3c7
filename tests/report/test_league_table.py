"""The table of the whitening league: means and intervals over seeds, and what stands where a number is missing."""

import math

import numpy as np
import pytest

from curvature.records import LeagueEntry, Measured, Study
from curvature.report.drawings.league import draw_league
from curvature.report.plain import plain_values
from curvature.report.selection import Selection
from curvature.report.spread import mean_with_interval
from curvature.report.tables.league import league_rows, league_tables

T_2 = 4.302652729911275  # Student's t at 2 degrees of freedom


def study_of(records):
    measured = tuple(Measured("weight-norm", seed, "late", 9, record) for seed, record in records)
    return Study("compare", {}, "net", "digits", 10, 50, measured)


def entry(method, efficiency=0.5, kappa=10.0, note=""):
    return LeagueEntry(method, 1e-3, 0.1, efficiency, efficiency / 0.2, 0.3, kappa, 50, note)


def rows_and_cells(records):
    rows = league_rows(Selection(study_of(records)))
    (table,) = league_tables(plain_values({"league": rows, "checkpoints": ["late"]}))
    return {row["method"]: row for row in rows}, {getattr(r[0], "value", r[0]): r for r in table.rows}


def test_the_efficiency_has_a_geometric_mean_whose_interval_stays_between_zero_and_one():
    values = (0.02, 0.3, 0.9)
    rows, cells = rows_and_cells([(seed, entry("Adam", value)) for seed, value in enumerate(values)])
    logs = np.log(values)
    mean = np.exp(logs.mean())
    low = mean * np.exp(-T_2 * logs.std(ddof=1) / np.sqrt(3))
    assert rows["Adam"]["efficiency"]["mean"] == pytest.approx(mean)
    assert rows["Adam"]["efficiency"]["low"] == pytest.approx(low)
    assert rows["Adam"]["efficiency"]["high"] == 1.0
    assert rows["Adam"]["ratio"]["high"] > 5  # the gain has no upper end
    assert (cells["Adam"][1].low, cells["Adam"][1].high) == (pytest.approx(low), 1.0)


def test_a_share_of_zero_makes_the_mean_zero_and_rounding_above_the_highest_is_cut():
    zero = mean_with_interval([0.0, 0.5], geometric=True, highest=1.0)
    assert (zero.mean, zero.count) == (0.0, 2)
    assert math.isnan(zero.low)
    assert math.isnan(zero.high)
    above = mean_with_interval([1 + 1e-15, 1 + 2e-15], geometric=True, highest=1.0)
    assert (above.mean, above.high) == (1.0, 1.0)
    assert math.isnan(mean_with_interval([0.5], geometric=True, highest=1.0).high)


def test_condition_numbers_of_some_seeds_only_have_no_mean():
    note = "condition number above 1e14: not resolved."
    records = [
        *(
            (seed, entry("SOAP", kappa=kappa, note=words))
            for seed, (kappa, words) in enumerate([(1e13, ""), (math.nan, note), (1e12, "")])
        ),
        *((seed, entry("sphere", kappa=math.nan, note=note)) for seed in range(3)),
        *((seed, entry("Adam", kappa=kappa)) for seed, kappa in enumerate((10.0, 1000.0, 100.0))),
        (0, entry("DoRA, rank 2", math.nan, math.nan, "no layer to adapt.")),
        *((seed, entry("DoRA, rank 2")) for seed in (1, 2)),
    ]
    rows, cells = rows_and_cells(records)
    assert cells["SOAP"][-1].value == "2 of 3 seeds"
    assert cells["SOAP"][0].details == cells["sphere"][0].details == (note,)
    assert cells["sphere"][-1].value is None
    assert cells["Adam"][-1].value == pytest.approx(100.0)
    assert cells["DoRA, rank 2"][-1].value == pytest.approx(10.0)  # of every seed that has the method
    assert rows["SOAP"]["kappa"]["count"] == 2
    assert math.isnan(rows["SOAP"]["kappa"]["mean"])


def test_the_caption_says_that_the_axis_is_logarithmic_where_it_is():
    small, large = [(0, entry("Adam", 0.01)), (1, entry("Adam", 0.02))], [(0, entry("SOAP", 0.9))]
    caption = draw_league(study_of([*small, *large])).caption
    assert caption.endswith("Logarithmic axis: an interval that goes on to the left of it ends in an arrow.")
    assert "ogarithmic" not in draw_league(study_of(large)).caption
