"""The public face: what ``import curvature as cv`` offers, for people, editors and type checkers."""

import ast
import inspect
import re
import types
import typing
from pathlib import Path

import pytest

import curvature as cv

PACKAGE = Path(cv.__file__).parent
FUNCTIONS = sorted(name for name in cv.__all__ if inspect.isfunction(inspect.unwrap(getattr(cv, name))))


def own_classes(hint):
    """Classes of the package inside a type hint."""
    if isinstance(hint, type) and not typing.get_args(hint):
        return {hint} if hint.__module__.startswith("curvature") else set()
    inner = set().union(*map(own_classes, typing.get_args(hint)), set())
    origin = typing.get_origin(hint)
    return inner | own_classes(origin) if isinstance(origin, type) and origin is not types.UnionType else inner


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_type_that_a_public_function_returns_is_exported(name):
    hints = typing.get_type_hints(inspect.unwrap(getattr(cv, name)))
    assert "return" in hints
    missing = {cls.__name__ for cls in own_classes(hints["return"])} - set(cv.__all__)
    assert not missing


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_document_their_arguments(name):
    function = inspect.unwrap(getattr(cv, name))
    text = inspect.getdoc(function)
    assert re.search(r"^Returns\n-------$", text, re.MULTILINE)
    for argument in inspect.signature(function).parameters.values():
        stars = {argument.VAR_POSITIONAL: r"\*", argument.VAR_KEYWORD: r"\*\*"}.get(argument.kind, "")
        assert re.search(rf"^({stars}\w+, )*{stars}{argument.name}\b", text, re.MULTILINE), argument.name


def test_the_stub_offers_exactly_the_lazy_names():
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text())
    stub = {
        (f"{node.module}.{alias.name}", alias.asname)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazy = {(f"curvature.{home}.{name}", name) for name, home in cv._NAMES.items()}
    lazy |= {(f"curvature.{home}", name) for name, home in cv._MODULES.items()}
    assert stub == lazy | {("curvature._version.__version__", "__version__")}
    assert (PACKAGE / "py.typed").exists()


def test_every_public_name_exists_and_is_listed():
    assert set(cv.__all__) <= set(dir(cv))
    assert all(getattr(cv, name) is not None for name in cv.__all__)


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (lambda problem, _: cv.spectrum(problem), r"Choose the matrix first: cv\.spectrum\(cv\.ggn\(problem\)\)"),
        (lambda problem, _: cv.extremal_eigenvalues(problem), r"cv\.extremal_eigenvalues\(cv\.ggn\(problem\)\)"),
        (lambda problem, _: cv.pullback(problem, cv.WeightNorm()), r"cv\.pullback\(cv\.ggn\(problem\), chart\)"),
        (lambda _, model: cv.ggn(model), r"ggn needs a Problem, got Sequential\. .*Problem\.from_module"),
        (lambda _, model: cv.hessian(model), r"hessian needs a Problem, got Sequential"),
        (lambda problem, _: cv.pullback(cv.ggn(problem), "weight-norm"), "chart must be a Parameterization"),
    ],
)
def test_the_likeliest_slips_get_one_helpful_sentence(call, answer):
    model = cv.zoo.mlp((5, 3, 2))
    problem = cv.zoo.softmax_regression(20, 3, 2)
    with pytest.raises(cv.ConfigurationError, match=answer):
        call(problem, model)


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (lambda A: cv.spectrum(A, chart=cv.WeightNorm()), r"Write spectrum\(pullback\(A, chart\)\) instead"),
        (lambda A: cv.spectrum(A, effective=True), r"Write spectrum\(effective\(A, chart\)\) instead"),
        (lambda A: cv.plan(A, chart=cv.WeightNorm()), r"Write plan\(pullback\(A, chart\)\) instead"),
        (lambda A: cv.spectral_density(A, generator=None), r"Write seed=generator instead"),
        (lambda A: cv.extremal_eigenvalues(A, block_size=2), r"Write space=KrylovSpace\(block_size=\.\.\.\) instead"),
    ],
)
def test_old_calls_raise_a_type_error_that_shows_the_new_ones(call, answer):
    operator = cv.ggn(cv.zoo.softmax_regression(20, 3, 2))
    with pytest.raises(TypeError, match=answer) as caught:
        call(operator)
    assert isinstance(caught.value, cv.RemovedArgumentError)


def test_objects_print_in_one_line():
    problem = cv.zoo.softmax_regression(20, 3, 2)
    operator = cv.ggn(problem)
    spectrum = cv.spectrum(operator, vectors=True)
    things = [problem, problem.loss, problem.chart, cv.WeightNorm("paper"), cv.Placebo(), operator]
    things += [cv.pullback(operator, cv.Standard()), spectrum, spectrum.vectors, spectrum.condition_numbers()]
    things += [cv.extremal_eigenvalues(operator, num_largest=2), cv.spectral_density(operator, num_matvecs=3)]
    things += [cv.trace(operator), cv.inertia(operator), cv.plan(operator), spectrum.where, spectrum.eigenvalue(0)]
    for thing in things:
        assert "\n" not in repr(thing)
        assert len(repr(thing)) < 250, repr(thing)
        assert type(thing).__name__ in repr(thing)
