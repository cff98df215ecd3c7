"""The annotations of the package are checked while the tests run, and the check itself sees what it should."""

from dataclasses import dataclass

import numpy as np
import pytest
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, TypeCheckError

import curvature as cv
from typed import checked

VIOLATIONS = (BeartypeCallHintViolation, TypeCheckError)


@checked
def half(number: float) -> float:
    if isinstance(number, str):
        raise cv.ConfigurationError("half needs a number.")
    return number / 2 if number else 0j


@checked
def first_of_half(number: float) -> float:
    return half(str(number)) if number < 0 else half([number][0])


@checked
@dataclass(frozen=True)
class Pair:
    values: Float[np.ndarray, " k"]
    columns: Float[np.ndarray, "d k"]

    def scaled(self, factor: Float[np.ndarray, " d"]) -> "Pair":
        return Pair(self.values, factor[:, None] * self.columns)


def test_what_is_annotated_passes():
    assert half(1) == half(1.0) == first_of_half(1.0) == 0.5
    pair = Pair(np.ones(2), np.ones((3, 2)))
    assert pair.scaled(2 * np.ones(3)).columns[0, 0] == 2


def test_a_refusal_by_the_function_itself_comes_first():
    with pytest.raises(cv.ConfigurationError, match="needs a number"):
        half("1")
    with pytest.raises(cv.ConfigurationError, match="needs a number"):
        first_of_half(-1.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: half(np.array(1.0)),
        lambda: half(0.0),
        lambda: Pair(np.ones(2), np.ones((3, 3))),
        lambda: Pair(np.ones(2), np.ones((3, 2), dtype=int)),
        lambda: cv.Where(3),
    ],
)
def test_what_no_function_refuses_is_a_violation(call):
    with pytest.raises(VIOLATIONS):
        call()


def test_public_functions_and_records_of_the_package_are_checked():
    for function in (cv.spectrum, cv.Problem.from_module, cv.Spectrum.__init__, cv.SymmetricOperator.__matmul__):
        assert hasattr(function, "__wrapped__"), function
