"""The walk of one call: linear algebra never climbs back into models, charts or matrices; see docs/architecture.md."""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

import curvature as cv
from curvature.linalg.facts import Facts
from curvature.linalg.routes import EntriesRoute, FactorRoute

PACKAGE = Path(cv.__file__).parent
UPSTAIRS = {"models", "charts", "matrices"}


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
    return cv.Problem.from_module(cv.zoo.mlp((64, 8, 10)), loss="cross-entropy", data=cv.zoo.digits(300))


def handed_over(operator):
    """Names of the callables that the builder of a matrix handed to linear algebra as data."""
    seen, names = set(), {operator.matmat.__qualname__}
    queue = [operator.routes.entries, operator.routes.factor, operator.facts, operator.same_rank]
    while queue:
        item = queue.pop()
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, cv.SymmetricOperator):
            names |= handed_over(item)
        for value in vars(item).values() if isinstance(item, EntriesRoute | FactorRoute | Facts) else ():
            functions = [witness.testify for witness in value] if isinstance(value, tuple) else [value]
            for function in functions:
                inner = getattr(function, "__wrapped__", function)
                names |= {inner.__qualname__} if hasattr(inner, "__qualname__") else set()
    return names


def walk(make):
    make()  # imports and caches are not part of a walk
    with Walk() as steps:
        result = make()
    return steps, result


def test_linear_algebra_climbs_only_by_what_it_was_handed(problem):
    operator = cv.pullback(cv.ggn(problem), cv.WeightNorm())
    with Walk() as steps:
        cv.spectrum(operator)
    allowed = handed_over(operator)
    assert set(steps.climbs()) <= allowed, set(steps.climbs()) - allowed
    assert steps.climbs()  # the profile saw the products


def test_lazy_facts_are_computed_once(problem):
    operator = cv.pullback(cv.ggn(problem), cv.WeightNorm())
    with Walk() as steps:
        cv.spectrum(operator)
        cv.spectrum(operator, checks=False)
        cv.extremal_eigenvalues(operator, num_largest=3, checks=False)
    counted = Counter()
    for (there, here, name), count in steps.crossings.items():
        if there == "linalg" and here in UPSTAIRS:
            counted[name] += count
    lazy = {name: count for name, count in counted.items() if "null_space" in name or "gradient" in name.lower()}
    assert all(count == 1 for count in lazy.values()), lazy


def test_a_spectrum_in_a_chart_takes_half_the_calls_and_files_of_version_0_1(problem):
    """Version 0.1 made 1242 calls through 22 files, counted by the same profile: self-checks and imports included."""
    steps, _ = walk(lambda: cv.spectrum(cv.pullback(cv.ggn(problem), cv.WeightNorm())))
    assert steps.calls <= 621
    assert len(steps.files) <= 11


def test_a_climb_would_be_seen(problem):
    """The profile is not blind: a fact that calls a model from linear algebra under another name is reported."""
    operator = cv.ggn(problem)

    def sneaking(block):
        return problem.gradient()[:, None] * block.sum(0)

    assert torch.is_tensor(sneaking(torch.ones(problem.dim, 1, dtype=torch.float64)))
    with Walk() as steps:
        operator @ torch.ones(problem.dim, 1, dtype=torch.float64)
    assert steps.climbs()
