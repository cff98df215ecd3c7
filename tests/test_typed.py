"""The annotations of the package are checked while the tests run, and the check itself sees what it should."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation

import curvature as cv
import typed
from curvature import arrays
from curvature.arrays import Float
from typed import checked


@pytest.fixture(autouse=True)
def _every_call_is_checked(monkeypatch):
    monkeypatch.setattr(typed, "EVERY", 1)


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

    def scaled(self, factor: Float[np.ndarray, " d"]) -> Pair:
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
    with pytest.raises(BeartypeCallHintViolation):
        call()


def test_public_functions_and_records_of_the_package_are_checked():
    for function in (cv.spectrum, cv.Problem.from_module, cv.Spectrum.__init__, cv.SymmetricOperator.__matmul__):
        assert hasattr(function, "__wrapped__"), function


def test_tables_hold_the_checked_functions():
    assert cv.zoo.DATA["digits"] is cv.zoo.digits
    assert hasattr(cv.zoo.digits, "__wrapped__")


@pytest.mark.parametrize("wrong", [torch.ones(3), torch.ones(3, 1, dtype=torch.int64), np.ones((3, 1))])
def test_a_record_with_a_field_of_another_shape_or_kind_is_a_violation(wrong):
    record = cv.NullSpace(torch.ones(3, 1), {})
    replace(record, basis=torch.ones(3, 2))
    with pytest.raises(BeartypeCallHintViolation):
        replace(record, basis=wrong)


def test_a_product_of_another_shape_is_a_violation():
    operator = cv.SymmetricOperator.from_dense(torch.eye(3, dtype=torch.float64))
    wrong = replace(operator, matmat=lambda block: block[:2])
    assert (operator @ torch.ones(3, dtype=torch.float64)).shape == (3,)
    with pytest.raises(BeartypeCallHintViolation):
        wrong @ torch.ones(3, dtype=torch.float64)


def test_entries_of_another_size_than_the_matrix_are_a_violation():
    operator = cv.SymmetricOperator.from_dense(torch.eye(3, dtype=torch.float64))
    wrong = replace(operator, routes=cv.Routes(cv.EntriesRoute(lambda: torch.eye(4, dtype=torch.float64), 0.0)))
    assert operator.dense().shape == (3, 3)
    with pytest.raises(BeartypeCallHintViolation):
        wrong.dense()


TREES = {path: ast.parse(path.read_bytes()) for path in sorted(Path(cv.__file__).parent.rglob("*.py"))}


def shapes(tree):
    """Every shape that is written in an annotation: ``"dim columns"``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in arrays.__all__:
            yield ast.literal_eval(node.slice.elts[1])


def test_every_axis_has_a_name_of_the_glossary():
    rows = [line.split("  ", 1) for line in arrays.__doc__.splitlines() if "  " in line]
    known = {name for first, text in rows for name in (first, *re.findall("``([a-z]+)``", text)) if name.isalpha()}
    used = {name for tree in TREES.values() for shape in shapes(tree) for name in re.findall("[a-z]+", shape)}
    assert used == known - {"axis"}
