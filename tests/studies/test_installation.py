"""Public oracles: each is met, and a matrix that is slightly wrong is noticed."""

import contextlib
import math

import pytest
import torch

from curvature.errors import ConfigurationError
from curvature.linalg.operator import SymmetricOperator
from curvature.records import Quantity
from curvature.studies.installation import ORACLES, Met, Oracle, consult
from curvature.studies.installation import oracles as oracles_module


@pytest.mark.parametrize("oracle", ORACLES, ids=lambda oracle: oracle.name)
def test_public_numbers_are_met(oracle):
    rows = consult(oracle)
    assert rows
    assert [row.quantity for row in rows if not row.passed] == []
    assert oracle.source


def test_condition_number_of_longley_is_a_bound_by_the_entries_and_a_value_by_the_factor():
    rows = {row.quantity: row for row in consult(next(oracle for oracle in ORACLES if "Longley" in oracle.name))}
    assert rows["condition number, by the entries"].is_bound
    assert not rows["condition number, by the factor"].is_bound
    assert rows["condition number, by the factor"].digits > 8


@pytest.mark.parametrize("index", range(len(ORACLES)))
def test_a_matrix_that_is_wrong_by_a_thousandth_misses_a_number(index, monkeypatch):
    """The matrices of all oracles are made by these names of the module."""

    def wrong(build):
        def make(*arguments, **options):
            operator = build(*arguments, **options)
            dense = operator.dense().clone()
            dense[0, 0] += 1e-3 * dense.abs().max()
            return SymmetricOperator.from_dense(dense, positive_semidefinite=False)

        return make

    for name in ("hessian", "ggn"):
        monkeypatch.setattr(oracles_module, name, wrong(getattr(oracles_module, name)))
    given = SymmetricOperator.from_dense

    def shifted(matrix, **options):
        return given(matrix + 1e-3 * torch.eye(len(matrix)).to(matrix), **options)

    if "Hilbert" in ORACLES[index].name:
        monkeypatch.setattr(oracles_module.SymmetricOperator, "from_dense", staticmethod(shifted))
    with contextlib.suppress(ConfigurationError):  # Longley asks for a factor, which the wrong matrix does not have
        assert not all(row.passed for row in consult(ORACLES[index]))


def test_digits_are_those_of_the_relative_error():
    def digits(published, computed):
        return Met("", "", published, computed, "", 3).digits

    assert digits(2.0, 2.0) == 16
    assert digits(1000.0, 1001.0) == pytest.approx(3)
    assert digits(1.0, -1.0) == 0
    assert digits(1.0, math.nan) == 0
    assert digits(0.0, 0.0) == 16


def test_a_bound_is_met_where_it_holds():
    def of(value):
        return Oracle("o", "s", lambda: iter([("q", 10.0, Quantity(value, "lower_bound"), 16)]))

    assert consult(of(9.0))[0].passed
    assert not consult(of(11.0))[0].passed
    assert not consult(Oracle("o", "s", lambda: iter([("q", 10.0, Quantity(math.nan, "undefined"), 1)])))[0].passed
