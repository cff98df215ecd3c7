"""Eigenvectors: against torch.linalg.eigh and products by torch.func, by every route, flat and by name."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, jvp
from torch.nn import functional

import curvature as cv
from curvature.linalg import vectors as packing
from curvature.matrices import MATRICES
from curvature.records import Eigenvectors
from oracles import factor_route, factored, in_chart, normal, operator_of, with_spectrum

EPS = torch.finfo(torch.float64).eps
VALUES = [0.3, 0.7, 1.1, 2.0, 3.5, 5.0, 8.0]  # simple, so that each vector is known but for its sign
ROUTES = ("dense", "factor", "extremal")


def computed(operator, route, **options):
    """All eigenvectors by one route; by Lanczos those of all eigenvalues."""
    if route == "extremal":
        options = {"tolerance": 1e-12, **options}
        return cv.extremal_eigenvalues(operator, num_largest=operator.dim, **options).vectors
    return cv.spectrum(operator, method=route, vectors=True, **options).vectors


def with_factor(values, seed=0, dtype=torch.float64):
    """A semidefinite matrix with these eigenvalues, and an operator that knows its entries and a factor."""
    values = torch.tensor(values, dtype=torch.float64)
    basis = torch.linalg.qr(normal(seed, len(values), len(values))).Q
    factor = (basis[:, values > 0] * values[values > 0].sqrt()).to(dtype)
    matrix = factor @ factor.T
    operator = cv.SymmetricOperator.from_dense(matrix, positive_semidefinite=True)
    return matrix, replace(operator, routes=replace(operator.routes, factor=factor_route(*factor.split(3, dim=1))))


def recomputed(matrix, vectors):
    """``|A q - lambda q|`` in double precision, one vector at a time."""
    columns, values = torch.from_numpy(vectors.columns).double(), torch.from_numpy(vectors.eigenvalues).double()
    pairs = zip(columns.T, values, strict=True)
    return np.array([float(torch.linalg.vector_norm(matrix.double() @ q - value * q)) for q, value in pairs])


# --------------------------------------------------------------------------------------------------- against eigh


@pytest.mark.parametrize("route", ROUTES)
def test_vectors_are_those_of_eigh_but_for_the_sign(route):
    matrix, operator = with_factor(VALUES)
    vectors = computed(operator, route)
    values, expected = torch.linalg.eigh(matrix)
    assert np.abs(vectors.eigenvalues - values.numpy()).max() < 100 * EPS * 8
    overlaps = np.abs((vectors.columns * expected.numpy()).sum(axis=0))
    assert np.abs(overlaps - 1).max() < 1e-13
    assert (len(vectors), vectors.dim, vectors.columns.dtype) == (7, 7, np.float64)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("values", [VALUES, [0.0] * 4 + VALUES, [1.0] * 3 + [2.0] * 4, [1.0] * 6], ids=str)
def test_vectors_are_orthonormal_and_solve_the_equation(values, route):
    """With a null space too, whose basis any route may choose."""
    matrix, operator = with_factor(values)
    vectors = computed(operator, route)
    columns = torch.from_numpy(vectors.columns)
    assert columns.shape == (len(values), len(values))
    assert torch.linalg.matrix_norm(columns.T @ columns - torch.eye(len(values), dtype=torch.float64), 2) < 1e-13
    residual = matrix @ columns - columns * torch.from_numpy(vectors.eigenvalues)
    assert residual.abs().max() < 1e-13 * max(values)
    assert (np.diff(vectors.eigenvalues) >= 0).all()


@pytest.mark.parametrize("route", ROUTES)
def test_a_multiple_eigenvalue_has_the_projector_of_eigh_whatever_its_basis(route):
    values = [0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 4.0, 4.0]
    matrix, operator = with_factor(values, seed=3)
    vectors = computed(operator, route)
    exact, basis = torch.linalg.eigh(matrix)
    for value in (0.0, 1.0, 2.0, 4.0):
        ours = vectors.columns[:, np.abs(vectors.eigenvalues - value) < 1e-9]
        theirs = basis[:, (exact - value).abs() < 1e-9].numpy()
        assert ours.shape == theirs.shape
        assert np.abs(ours @ ours.T - theirs @ theirs.T).max() < 1e-13


@pytest.mark.parametrize("route", ["dense", "extremal"])
def test_an_indefinite_matrix_has_vectors_of_both_ends(route):
    matrix = with_spectrum([-4.0, -2.0, -0.5, 0.25, 1.0, 3.0], seed=1)
    operator = cv.SymmetricOperator.from_dense(matrix)
    if route == "extremal":
        record = cv.extremal_eigenvalues(operator, num_largest=2, num_smallest=2, tolerance=1e-12)
        vectors, places = record.vectors, [0, 1, 4, 5]
        assert np.array_equal(vectors.eigenvalues, [*record.smallest, *record.largest[::-1]])
        assert np.array_equal(vectors.residuals, record.residuals)
    else:
        vectors, places = cv.spectrum(operator, vectors=True).vectors, range(6)
    _, expected = torch.linalg.eigh(matrix)
    overlaps = np.abs((vectors.columns * expected[:, list(places)].numpy()).sum(axis=0))
    assert np.abs(overlaps - 1).max() < 1e-13


def test_the_vectors_behind_a_short_factor_are_completed_by_a_basis_of_the_null_space():
    """Two columns for nine rows: seven null vectors that no singular vector of the factor gives."""
    factor = normal(5, 9, 2)
    vectors = cv.spectrum(factored(factor), method="factor", vectors=True).vectors
    assert np.abs(factor.T.numpy() @ vectors.columns[:, :7]).max() < 1e-14 * float(factor.norm())
    assert np.abs(vectors.columns.T @ vectors.columns - np.eye(9)).max() < 1e-13
    assert not vectors.eigenvalues[:7].any()


@pytest.mark.parametrize("route", ROUTES)
def test_single_precision_stays_single(route):
    matrix, operator = with_factor(VALUES, dtype=torch.float32)
    vectors = computed(operator, route, **({"tolerance": 1e-6} if route == "extremal" else {}))
    assert vectors.columns.dtype == vectors.eigenvalues.dtype == np.float32
    assert np.abs(vectors.columns.T @ vectors.columns - np.eye(7)).max() < 1e-5
    assert recomputed(matrix, vectors).max() < 1e-5 * 8
    assert 0 < vectors.residuals.max() < 1e-5 * 8


# ------------------------------------------------------------------------------------------------------ residuals


def test_residuals_of_rough_vectors_are_those_of_products():
    """Few Lanczos steps leave residuals far above rounding, which can be compared digit by digit."""
    matrix = with_spectrum(np.linspace(-1, 3, 150), seed=2)
    record = cv.extremal_eigenvalues(
        operator_of(matrix), num_largest=3, num_smallest=2, tolerance=1e-3, space=cv.KrylovSpace(max_products=25)
    )
    vectors = record.vectors
    assert vectors.residuals.max() > 1e-3
    np.testing.assert_allclose(vectors.residuals, recomputed(matrix, vectors), rtol=1e-8, atol=1e-13)
    # An eigenvalue lies within the residual of each Ritz value.
    exact = torch.linalg.eigvalsh(matrix).numpy()
    nearest = np.abs(vectors.eigenvalues[:, None] - exact).min(axis=1)
    assert (nearest <= vectors.residuals + 1e-13).all()


@pytest.mark.parametrize("route", ["dense", "factor"])
@pytest.mark.parametrize("size", [1e-3, 1e-8])
def test_wrong_vectors_of_a_decomposition_have_residuals_that_say_so(route, size, monkeypatch):
    matrix, operator = with_factor(VALUES)

    def turned(decompose, place):
        def wrong(*arguments, **options):
            parts = list(decompose(*arguments, **options))
            part = torch.as_tensor(parts[place])
            part = part if place == 1 else part.mT
            part[:, -1] = torch.cos(torch.tensor(size)) * part[:, -1] + torch.sin(torch.tensor(size)) * part[:, 0]
            return tuple(parts)

        return wrong

    if route == "dense":
        monkeypatch.setattr(np.linalg, "eigh", turned(np.linalg.eigh, 1))
    else:
        monkeypatch.setattr(torch.linalg, "svd", turned(torch.linalg.svd, 2))
    vectors = computed(operator, route)
    expected = recomputed(matrix, vectors)
    assert size < vectors.residuals.max() < 20 * size  # the gap between the two eigenvalues is 7.7
    np.testing.assert_allclose(vectors.residuals, expected, rtol=1e-6, atol=1e-13)


def test_residuals_come_from_products_and_not_from_the_entries():
    """Entries that are a little off: the products know."""
    matrix, operator = with_factor(VALUES)
    entries = replace(operator.routes.entries, compute=lambda: matrix + 1e-6 * torch.eye(7, dtype=torch.float64))
    rough = replace(operator, routes=replace(operator.routes, entries=entries))
    vectors = cv.spectrum(rough, method="dense", vectors=True, checks=False).vectors
    np.testing.assert_allclose(vectors.residuals, 1e-6, rtol=1e-6)


# ------------------------------------------------------------------------------------------------- which are there


def test_vectors_come_only_where_they_are_asked_for():
    _, operator = with_factor(VALUES)
    for method in ("dense", "factor", "gram"):
        assert cv.spectrum(operator, method=method).vectors is None
    with pytest.raises(cv.ConfigurationError, match=r"vectors=True needs eigenvectors of the matrix itself"):
        cv.spectrum(operator, method="gram", vectors=True)


@pytest.mark.parametrize("method", ["dense", "factor"])
def test_eigenvalues_are_the_same_with_and_without_vectors_and_so_are_the_components_of_the_gradient(method):
    _, operator = with_factor(VALUES)
    slope = normal(9, 7)
    operator = replace(operator, facts=replace(operator.facts, gradient=lambda: slope))
    plain = cv.spectrum(operator, method=method)
    both = cv.spectrum(operator, method=method, gradient=True, vectors=True)
    assert np.abs(plain.eigenvalues - both.eigenvalues).max() < 20 * EPS * 8
    np.testing.assert_allclose(both.gradient_weights, (both.vectors.columns.T @ slope.numpy()) ** 2, rtol=1e-9)
    assert cv.spectrum(operator, method=method, gradient=True).vectors is None


def test_vectors_are_saved_with_a_spectrum_unless_they_are_left_out(tmp_path):
    _, operator = with_factor(VALUES)
    record = cv.spectrum(operator, vectors=True)
    loaded = cv.Spectrum.load(record.save(tmp_path / "values.npz"))
    assert np.array_equal(loaded.eigenvalues, record.eigenvalues)
    for name in ("eigenvalues", "columns", "residuals"):
        assert np.array_equal(getattr(loaded.vectors, name), getattr(record.vectors, name)), name
    assert loaded.vectors.names == record.vectors.names == ()
    assert cv.Spectrum.load(record.save(tmp_path / "without.npz", vectors=False)).vectors is None


def test_vectors_that_could_not_be_read_again_are_not_written(tmp_path, monkeypatch):
    _, operator = with_factor(VALUES)
    record = cv.spectrum(operator, vectors=True)
    monkeypatch.setattr("curvature.records.files._MAX_BYTES", 100)
    with pytest.raises(cv.ConfigurationError, match=r"exceeds the .* limit .*save\(path, vectors=False\)"):
        record.save(tmp_path / "values.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"eigenvalues": np.arange(2.0)}, r"shape \(3, 3\) instead of"),
        ({"residuals": -np.ones(3)}, "negative"),
        ({"columns": np.full((3, 3), np.nan)}, "eigenvectors"),
        ({"columns": np.ones(3)}, "1 axes, not 2"),
        ({"names": (("0.weight", (2, 2)),)}, "the parameters have 4 numbers, the vectors 3"),
    ],
)
def test_vectors_that_contradict_each_other_are_refused(change, reason):
    vectors = Eigenvectors(np.arange(3.0), np.eye(3), np.zeros(3), names=(("0.weight", (1, 2)), ("0.bias", (1,))))
    vectors.validate()
    for name, value in change.items():
        object.__setattr__(vectors, name, value)  # the constructor would not pass the checked annotations
    with pytest.raises(ValueError, match=reason):
        vectors.validate()


# --------------------------------------------------------------------------------------------------------- by name


@pytest.fixture(scope="module")
def module(mlp):
    return mlp(3, 4, 2)


@pytest.fixture(scope="module")
def data(classification_data):
    return classification_data(9, 3, 2)


@pytest.fixture(scope="module")
def problem(module, data):
    return cv.Problem.from_module(module, loss="cross-entropy", data=data)


@pytest.mark.parametrize("route", ["dense", "extremal"])
def test_vectors_by_name_are_eigenvectors_for_torch_and_its_own_names(route, module, data, problem):
    """A product by torch.func on the module, in a dictionary of its parameters: no layout of ours."""
    inputs, targets = data
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def slope(named):
        return grad(lambda p: functional.cross_entropy(functional_call(module, p, inputs), targets))(named)

    operator = cv.hessian(problem)
    if route == "extremal":
        vectors = cv.extremal_eigenvalues(operator, num_largest=3, num_smallest=2, tolerance=1e-12).vectors
    else:
        vectors = cv.spectrum(operator, vectors=True).vectors
    for k in (0, len(vectors) - 1, -2):
        direction = {name: torch.from_numpy(part.copy()) for name, part in vectors.vector(k).items()}
        assert {name: part.shape for name, part in direction.items()} == {n: p.shape for n, p in parameters.items()}
        _, image = jvp(slope, (parameters,), (direction,))
        for name, part in direction.items():
            assert float((image[name] - vectors.eigenvalues[k] * part).abs().max()) < 1e-11, name
            assert np.array_equal(vectors[name][k], part.numpy())


WEIGHTS = ["0.weight", "0.bias", "2.weight", "2.bias"]
NORMALIZED = ["0.weight.g", "0.weight.v", "0.bias", "2.weight.g", "2.weight.v", "2.bias"]
CHARTS = [None, cv.WeightNorm(stretch=2.0), cv.WeightNorm("paper", log_scale=True), cv.ScaledStandard(0.5)]


@pytest.mark.parametrize("effective", [False, True])
@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: "none" if chart is None else f"{chart.name} {chart.gauge}")
@pytest.mark.parametrize("name", ["hessian", "ggn"])
def test_names_are_those_of_the_coordinates_in_every_chart(name, chart, effective, problem):
    operator = in_chart(MATRICES[name](problem), chart, effective=effective)
    vectors = cv.spectrum(operator, vectors=True).vectors
    matrix = operator.dense()
    for k in (0, -1):
        parts = vectors.vector(k)
        assert list(parts) == (NORMALIZED if isinstance(chart, cv.WeightNorm) and not effective else WEIGHTS)
        assert {n: p.shape for n, p in parts.items()} == {e.name: tuple(e.shape) for e in operator.layout.entries}
        assert np.array_equal(np.concatenate([part.reshape(-1) for part in parts.values()]), vectors.flat(k))
        # Each name holds the rows of its own coordinates: products with the block of one name give its share.
        for entry, span in operator.layout.pairs():
            image = (matrix[span] @ torch.from_numpy(vectors.flat(k))).numpy()
            assert np.abs(image - vectors.eigenvalues[k] * parts[entry.name].reshape(-1)).max() < 1e-12


def test_components_on_one_parameter_survive_a_file_and_a_wrong_name_lists_the_right_ones(problem, tmp_path):
    record = cv.spectrum(cv.hessian(problem), vectors=True)
    vectors = cv.Spectrum.load(record.save(tmp_path / "named.npz")).vectors
    assert vectors.names == record.vectors.names
    assert vectors["2.weight"].shape == (len(vectors), *dict(vectors.names)["2.weight"])
    flat = np.concatenate([vectors[name].reshape(len(vectors), -1) for name, _ in vectors.names], axis=1)
    assert np.array_equal(flat.T, record.vectors.columns)
    with pytest.raises(cv.ConfigurationError, match=r"'weight'.* are 0\.weight, 0\.bias, 2\.weight, 2\.bias"):
        vectors["weight"]
    with pytest.raises(cv.ConfigurationError, match=r"no parameter 0.* use vector\(0\)"):
        vectors[0]


def test_coordinates_without_names_have_flat_vectors_only(problem):
    _, operator = with_factor(VALUES)
    block = cv.hessian(problem).block("0.weight")
    for vectors in (cv.spectrum(operator, vectors=True).vectors, cv.spectrum(block, vectors=True).vectors):
        assert vectors.names == ()
        with pytest.raises(cv.ConfigurationError, match=r"have no names.* Use flat\(k\)"):
            vectors.vector(0)
        with pytest.raises(cv.ConfigurationError, match=r"have no names.* Use flat\(k\)"):
            vectors["0.weight"]
        assert np.array_equal(vectors.flat(0), vectors.columns[:, 0])


@pytest.mark.parametrize("k", [5, -6, 100])
def test_places_that_do_not_exist_are_refused(k):
    vectors = cv.spectrum(cv.SymmetricOperator.from_dense(with_spectrum([1.0, 2, 3, 4, 5])), vectors=True).vectors
    assert np.array_equal(vectors.flat(-5), vectors.flat(0))
    with pytest.raises(
        cv.ConfigurationError, match=rf"k must be in \[0, 5\), since this record has 5 eigenvectors; got {k}"
    ):
        vectors.flat(k)


def test_a_record_of_vectors_is_one_line():
    vectors = Eigenvectors(np.ones(2), np.eye(3)[:, :2], np.array([1e-16, 3e-9]))
    assert repr(vectors) == "Eigenvectors(2 of dimension 3, largest residual 3.0e-09)"
    assert repr(Eigenvectors(np.ones(0), np.eye(3)[:, :0], np.ones(0))).startswith("Eigenvectors(0 of dimension 3")
    assert packing.eigenvectors(operator_of(torch.eye(3, dtype=torch.float64)), np.ones(2), np.eye(3)[:, :2]).dim == 3
