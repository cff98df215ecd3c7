"""The two forms of a damping: they name the same number, and only one of them may be given."""

import math

import pytest

from curvature.errors import ConfigurationError
from curvature.records.damping import RELATIVE_DAMPING, Damping


def test_relative_damping_is_in_units_of_the_mean_eigenvalue():
    assert Damping(0.25, is_relative=True).absolute(trace=12.0, dim=3) == 1.0
    assert Damping(1.0).relative(trace=12.0, dim=3) == 0.25


def test_a_matrix_divided_by_a_number_has_the_same_relative_damping():
    assert Damping(1.0).divided(4.0) == Damping(0.25)
    assert Damping(1.0, is_relative=True).divided(4.0) == Damping(1.0, is_relative=True)


def test_each_form_gives_itself_back_to_the_last_bit():
    assert Damping(0.1).absolute(trace=0.3, dim=7) == 0.1
    assert Damping(0.1, is_relative=True).relative(trace=0.3, dim=7) == 0.1


def test_without_either_form_the_default_is_relative():
    assert Damping.chosen(None, None) == Damping(RELATIVE_DAMPING, is_relative=True)
    assert Damping.chosen(None, None, default=1e-6) == Damping(1e-6, is_relative=True)


@pytest.mark.parametrize("values", [(1e-3, 1e-3), (0.0, 0.0)])
def test_both_forms_at_once_are_refused_with_the_remedy(values):
    with pytest.raises(ConfigurationError, match=r"Give damping .* or relative_damping .*, not both"):
        Damping.chosen(*values)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["damping", "relative_damping"])
def test_a_damping_that_is_not_positive_is_refused_under_its_own_name(name, value):
    values = {"damping": None, "relative_damping": None} | {name: value}
    with pytest.raises(ConfigurationError, match=f"^{name} must be positive and finite"):
        Damping.chosen(**values)


@pytest.mark.parametrize("name", ["damping", "relative_damping"])
def test_no_damping_is_allowed_where_a_function_says_so(name):
    values = {"damping": None, "relative_damping": None} | {name: 0.0}
    assert not Damping.chosen(**values, zero=True)
    with pytest.raises(ConfigurationError, match=f"^{name} must be finite and not negative"):
        Damping.chosen(**(values | {name: -1.0}), zero=True)


def test_a_damping_says_which_form_it_has():
    assert str(Damping(0.5)) == "damping=0.5"
    assert str(Damping(1e-3, is_relative=True)) == "relative damping=0.001"
