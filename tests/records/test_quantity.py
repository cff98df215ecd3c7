"""A quantity as a number: where it is resolved it behaves like a float, elsewhere it says why it does not."""

import itertools
import math
import operator
import re

import numpy as np
import pandas as pd
import pytest

import curvature as cv
from curvature.records import Quantity, Where

RESOLVED = Quantity(8.0, low=7.5, high=8.5)
OPEN = {
    "only a lower bound is known, > 2e+09": Quantity(2e9, "lower_bound", "the rank is open"),
    "only an upper bound is known, < 3": Quantity(3.0, "upper_bound_only"),
    "it is below the noise floor, < 1e-15": Quantity(1e-17, "below_noise_floor", low=0.0, high=1e-15),
    "it is not resolved, (4)": Quantity(4.0, "unresolved"),
    "eigenvalues of both signs": Quantity(math.nan, "indefinite"),
    "it is undefined": Quantity(math.nan, "undefined", "there is no second eigenvalue"),
}
ORDERS = (operator.lt, operator.le, operator.gt, operator.ge)


@pytest.fixture(scope="module")
def numbers():
    values = np.array([0.0, 1e-17, 1e-3, 1.0, 8.0])
    where = Where("ggn", "standard")
    return cv.Spectrum(where, values, True, "dense", 1e-15, 3, "by hand", rank_bounds=(3, 4)).condition_numbers()


def test_a_resolved_quantity_behaves_like_a_float():
    assert float(RESOLVED) == round(RESOLVED) == 8
    assert (RESOLVED / 2, 2 * RESOLVED, RESOLVED - RESOLVED, -RESOLVED, RESOLVED**2) == (4, 16, 0, -8, 64)
    assert math.sqrt(RESOLVED) == np.sqrt(RESOLVED) == 8**0.5
    assert np.asarray(RESOLVED).dtype == np.array([RESOLVED, RESOLVED]).dtype == float
    assert (np.float64(3.0) * RESOLVED, f"{RESOLVED:.2e}", f"{RESOLVED}") == (24, "8.00e+00", "8")


@pytest.mark.parametrize("reason", OPEN)
@pytest.mark.parametrize("use", [float, round, np.asarray, np.log10, lambda q: q / 2, lambda q: 2 - q, np.sum])
def test_any_other_quantity_says_why_it_is_no_number(reason, use):
    quantity = OPEN[reason]
    with pytest.raises(cv.UnresolvedError, match=re.escape(reason)) as caught:
        use(quantity)
    assert quantity.note in str(caught.value)


@pytest.mark.parametrize("reason", OPEN)
def test_a_format_keeps_the_sign_of_what_is_known(reason):
    quantity = OPEN[reason]
    assert f"{quantity:.1e}"[0] == str(quantity)[0]
    assert f"{quantity}" == str(quantity)


@pytest.mark.parametrize("order", ORDERS)
def test_a_comparison_is_the_answer_of_every_number_that_both_sides_may_be(order):
    ends = (1.0, 2.0, 3.0)
    intervals = [Quantity(low, low=low, high=high) for low in ends for high in ends if low <= high]
    for left, right in itertools.product(intervals, repeat=2):
        answers = {
            order(a, b)
            for a in np.linspace(left.low, left.high, 5)
            for b in np.linspace(right.low, right.high, 5)
        }  # fmt: skip
        if left is right or len(answers) == 1:
            assert order(left, right) == (order(0, 0) if left is right else answers.pop())
        else:
            with pytest.raises(cv.UnresolvedError, match="what is known allows both"):
                order(left, right)


def test_a_bound_answers_the_comparisons_that_it_decides():
    above, below = Quantity(2e9, "lower_bound"), Quantity(1e-17, "below_noise_floor", low=0.0, high=1e-15)
    assert above > 1e8
    assert not above < 1e8
    assert above > 1e8
    assert below < 1e-3
    assert below >= 0
    assert sorted([above, RESOLVED, below]) == [below, RESOLVED, above]
    for question in (lambda: above > 1e12, lambda: below > 1e-16, lambda: Quantity(math.nan, "undefined") < 1):
        with pytest.raises(cv.UnresolvedError, match="has no answer"):
            question()


def test_condition_numbers_are_a_mapping_for_python_and_pandas(numbers):
    assert dict(numbers) == numbers.values == dict(numbers.items())
    assert list(numbers) == list(numbers.keys())
    assert len(numbers) == len(numbers.values)
    assert "kappa_80" in numbers
    series = pd.Series(numbers)
    assert series["kappa_50"] is numbers["kappa_50"]
    assert pd.DataFrame([numbers, numbers])["kappa_50"].astype(float).tolist() == 2 * [numbers["kappa_50"].value]
    with pytest.raises(cv.UnresolvedError, match="rank"):
        series.astype(float)


def test_the_table_of_condition_numbers_has_each_status(numbers):
    table = numbers.to_dataframe()
    assert table.index.tolist() == list(numbers)
    for name, quantity in numbers.items():
        assert table.loc[name, "status"] == quantity.status
        assert table.loc[name, "value"] == quantity.value or math.isnan(quantity.value)
    assert set(table["status"]) > {"resolved"}
    assert (table[["matrix", "chart"]] == ["ggn", "standard"]).all(axis=None)
