"""The walk of one call: linear algebra never climbs back into models, charts or matrices; see docs/architecture.md."""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import curvature as cv
from curvature.linalg.checks import Witness
from curvature.linalg.facts import Facts
from curvature.linalg.routes import EntriesRoute, FactorRoute

PACKAGE = Path(cv.__file__).parent
UPSTAIRS = {"models", "charts", "matrices"}
CALLS = 1200


def place(code):
    """Path of a code object inside the package; None for other code."""
    try:
        return Path(code.co_filename).relative_to(PACKAGE)
    except ValueError:
        return None


class Walk:
    """Calls between the files of the package while a function runs."""

    def __init__(self):
        self.crossings, self.calls, self.files = Counter(), 0, set()

    def __call__(self, frame, event, _):
        if event != "call" or (here := place(frame.f_code)) is None:
            return
        self.calls += 1
        self.files.add(here)
        caller = frame.f_back
        while caller is not None and place(caller.f_code) is None:  # torch calls back into closures
            caller = caller.f_back
        if caller is not None and (there := place(caller.f_code)) != here:
            self.crossings[there.parts[0], here.parts[0], frame.f_code.co_qualname] += 1

    def __enter__(self):
        sys.setprofile(self)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)

    def climbs(self):
        """Calls from the linear-algebra wing into the wings above it."""
        return Counter(
            {
                name: count
                for (there, here, name), count in self.crossings.items()
                if there == "linalg" and here in UPSTAIRS
            }
        )


@pytest.fixture
def problem():
    return cv.Problem.from_module(cv.zoo.mlp((64, 8, 10)), loss="cross-entropy", data=cv.zoo.digits(100))


def handed_over(operator):
    """Names of the functions that the builder of a matrix handed to linear algebra as data."""
    seen, names = set(), set()
    queue = [operator.matmat, operator.routes.entries, operator.routes.factor, operator.facts, operator.same_rank]
    while queue:
        item = queue.pop()
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, cv.SymmetricOperator):
            names |= handed_over(item)
        elif isinstance(item, EntriesRoute | FactorRoute | Facts):
            queue += vars(item).values()
        elif isinstance(item, tuple):
            queue += [witness.testify for witness in item]
        elif callable(item):
            function = getattr(item, "__wrapped__", getattr(item, "__func__", item))
            names.add(getattr(function, "__qualname__", ""))
            # A witness in a chart is that of the weights behind a map: both lie in its closure.
            cells = getattr(function, "__closure__", None) or ()
            queue += [cell.cell_contents for cell in cells if callable(cell.cell_contents)]
            queue += [cell.cell_contents.testify for cell in cells if isinstance(cell.cell_contents, Witness)]
    return names


def test_linear_algebra_climbs_only_by_what_it_was_handed(problem):
    operator = cv.pullback(cv.ggn(problem), cv.WeightNorm())
    with Walk() as steps:
        cv.spectrum(operator)
    climbs = set(steps.climbs())
    assert climbs <= handed_over(operator), climbs - handed_over(operator)
    assert climbs  # the profile saw the products


@pytest.mark.parametrize("matrix", [cv.ggn, cv.hessian, cv.gradient_covariance], ids=lambda matrix: matrix.__name__)
def test_lazy_facts_are_computed_once(problem, matrix):
    """Null space, gradient and gram: once for a matrix, whatever is asked of it, in however many charts."""
    operator = matrix(problem)
    with Walk() as steps:
        for chart in (cv.WeightNorm(), cv.WeightNorm(stretch=3.0)):
            moved = cv.pullback(operator, chart)
            cv.spectrum(moved, gradient=True, checks=False)
            cv.extremal_eigenvalues(moved, num_largest=3, checks=False)
    lazy = {
        name: count
        for (_, _, name), count in steps.crossings.items()
        if name in ("known_null_space", "Problem.gradient")
    }
    assert all(count == 1 for count in lazy.values()), lazy
    assert matrix is not cv.ggn or lazy


def test_the_walk_is_shorter_than_that_of_version_0_1(problem):
    """By the same profile version 0.1 made 1408 calls for ``spectrum(ggn, chart=WeightNorm())``, self-checks included.

    It went through 24 files; these are smaller now (none has more than 400 lines, where the largest had 1110), so the
    walk goes through more of them, and what counts is that it never turns back upstairs.
    """
    operator = cv.ggn(problem)
    cv.spectrum(cv.pullback(cv.ggn(problem), cv.WeightNorm()))  # imports are not part of a walk
    with Walk() as steps:
        cv.spectrum(cv.pullback(operator, cv.WeightNorm()))
    assert steps.calls < CALLS


def test_a_climb_would_be_seen(problem):
    """The profile is not blind: linear algebra that asks the model for more than it was handed is reported."""
    operator = cv.ggn(problem)

    def sneaking(block):
        return problem.value() * block

    spied = replace(operator, matmat=sneaking)
    with Walk() as steps:
        spied @ torch.ones(problem.dim, 1, dtype=torch.float64)
    assert "Problem.value" in steps.climbs()
    assert "Problem.value" not in handed_over(operator)
