"""Eigenvectors: orthonormal, with true residuals, in the order of the eigenvalues, flat and by parameter."""

import numpy as np
import pytest
import torch

import curvature as cv
from oracles import factored, normal, operator_of, with_spectrum

VALUES = np.array([-3.0, -0.5, 0.0, 1.0, 1.0, 2.0, 7.0, 20.0])


def assert_eigenvectors(vectors, matrix, values, tolerance=1e-13):
    """Orthonormal columns whose residuals are those of the record, and small."""
    matrix = matrix.double().numpy()
    residuals = np.linalg.norm(matrix @ vectors.columns - vectors.columns * values, axis=0)
    size = np.abs(matrix).sum(axis=0).max()
    assert np.array_equal(vectors.eigenvalues, values)
    assert np.abs(vectors.columns.T @ vectors.columns - np.eye(len(vectors))).max() < tolerance
    assert residuals.max() < tolerance * size
    assert np.abs(vectors.residuals - residuals).max() < tolerance * size


@pytest.mark.parametrize("wrap", [cv.SymmetricOperator.from_dense, operator_of])
def test_eigenvectors_of_a_matrix_are_orthonormal_with_the_residuals_they_claim(wrap):
    matrix = with_spectrum(VALUES)
    spectrum = cv.spectrum(wrap(matrix), vectors=True)
    assert np.abs(spectrum.eigenvalues - VALUES).max() < 1e-13
    assert len(spectrum.vectors) == spectrum.vectors.dim == len(VALUES)
    assert_eigenvectors(spectrum.vectors, matrix, spectrum.eigenvalues)
    assert cv.spectrum(wrap(matrix)).vectors is None
    assert np.array_equal(spectrum.vectors.flat(-1), spectrum.vectors.columns[:, -1])


@pytest.mark.parametrize("columns", [3, 12, 30])
def test_eigenvectors_by_the_factor_span_the_null_space_too(columns):
    factor = normal(1, 12, columns)
    spectrum = cv.spectrum(factored(factor), method="factor", vectors=True)
    assert_eigenvectors(spectrum.vectors, factor @ factor.T, spectrum.eigenvalues)


def test_eigenvectors_at_the_ends_follow_the_order_of_their_record():
    matrix = with_spectrum(np.concatenate([[-40.0, -30.0], np.linspace(-1, 1, 60), [50.0, 60.0, 70.0]]))
    ends = cv.extremal_eigenvalues(operator_of(matrix), num_largest=3, num_smallest=2, tolerance=1e-12, seed=0)
    assert_eigenvectors(ends.vectors, matrix, ends.vectors.eigenvalues, 1e-10)
    assert np.allclose(ends.vectors.eigenvalues, [-40, -30, 50, 60, 70])
    assert np.array_equal(np.sort(ends.vectors.eigenvalues), np.sort([*ends.largest, *ends.smallest]))


@pytest.mark.parametrize("chart", [None, cv.WeightNorm(stretch=3.0)])
def test_eigenvectors_are_given_by_the_names_and_shapes_of_the_parameters(chart, mlp, classification_data):
    problem = cv.Problem.from_module(mlp(3, 4, 2), loss="cross-entropy", data=classification_data(9, 3, 2))
    operator = cv.hessian(problem) if chart is None else cv.pullback(cv.hessian(problem), chart)
    spectrum = cv.spectrum(operator, vectors=True)
    assert_eigenvectors(spectrum.vectors, operator.dense(), spectrum.eigenvalues, 1e-12)
    named = spectrum.vectors.vector(-1)
    assert {name: part.shape for name, part in named.items()} == {e.name: e.shape for e in operator.layout.entries}
    flat = torch.from_numpy(np.concatenate([part.reshape(-1) for part in named.values()]))
    assert np.array_equal(flat, spectrum.vectors.flat(-1))
    slope = problem.gradient()
    if chart is None:
        along = {name: torch.from_numpy(part) for name, part in named.items()}
        assert float(problem.flatten(along) @ slope) == pytest.approx(float(flat @ slope), rel=1e-12)


def test_eigenvectors_in_single_precision_have_its_residuals():
    matrix = with_spectrum(VALUES).float()
    spectrum = cv.spectrum(cv.SymmetricOperator.from_dense(matrix), vectors=True)
    assert_eigenvectors(spectrum.vectors, matrix, spectrum.eigenvalues, 2e-6)


def test_what_has_no_eigenvectors_or_no_names_says_so():
    matrix = cv.SymmetricOperator.from_dense(with_spectrum(VALUES))
    vectors = cv.spectrum(matrix, vectors=True).vectors
    with pytest.raises(cv.ConfigurationError, match="have no names, so its eigenvectors"):
        vectors.vector(0)
    for k in (8, -9):
        with pytest.raises(cv.ConfigurationError, match="has 8 eigenvectors"):
            vectors.flat(k)
    with pytest.raises(cv.ConfigurationError, match="vectors=True needs eigenvectors"):
        cv.spectrum(factored(normal(1, 12, 3)), method="gram", vectors=True)
    assert repr(vectors).startswith("Eigenvectors(8 of dimension 8, largest residual ")
