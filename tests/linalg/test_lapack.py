"""The two-stage driver against the one-stage driver and prescribed spectra."""

import ctypes

import numpy as np
import pytest

from curvature.linalg import lapack


def prescribed(values, seed=0):
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    matrix = (basis * values) @ basis.T
    return (matrix + matrix.T) / 2


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("size", [1, 2, 33, 39, 40, 41, 150])  # a band of 40 between the stages
def test_two_stages_find_prescribed_eigenvalues_of_both_signs(size, dtype):
    values = np.sort(np.concatenate([[3.0], np.repeat(-2.0, size // 3), np.linspace(-1, 1, size - 1 - size // 3)]))
    matrix = prescribed(values).astype(dtype)
    kept = matrix.copy()
    found = lapack.eigenvalues(matrix, two_stage_from=0)
    assert found.dtype == dtype
    assert np.array_equal(matrix, kept)
    assert np.abs(found - values).max() < 20 * max(1, size**0.5) * np.finfo(dtype).eps * 3
    assert np.abs(found - np.linalg.eigvalsh(matrix)).max() < 20 * max(1, size**0.5) * np.finfo(dtype).eps * 3


def test_the_installed_numpy_or_scipy_has_the_two_stage_driver():
    """If this fails the spectrum of a large matrix takes twice as long, nothing else."""
    assert lapack._routines(np.dtype(np.float64))[-1] is ctypes.c_double


@pytest.mark.parametrize("band", [1, 7, 64, 200])
def test_eigenvalues_do_not_depend_on_the_width_of_the_band(band, monkeypatch):
    matrix = prescribed(np.linspace(-1, 2, 160))
    monkeypatch.setattr(lapack, "_band", lambda _size: band)
    assert np.abs(lapack.eigenvalues(matrix, two_stage_from=0) - np.linspace(-1, 2, 160)).max() < 1e-13


def test_small_matrices_and_a_missing_driver_take_one_stage(monkeypatch):
    matrix = prescribed(np.arange(5.0))
    one_stage = lapack.eigenvalues(matrix)
    monkeypatch.setattr(lapack, "_routines", lambda _dtype: None)
    assert np.array_equal(lapack.eigenvalues(matrix, two_stage_from=0), one_stage)
    monkeypatch.setattr(lapack, "_two_stage", lambda _matrix: pytest.fail("too small for two stages"))
    assert np.array_equal(lapack.eigenvalues(matrix), one_stage)
    assert np.abs(one_stage - np.linalg.eigvalsh(matrix)).max() < 1e-14


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("size", [1, 2, 3, 33, 150])  # blocks of 32 reflectors
def test_one_stage_finds_prescribed_eigenvalues_of_both_signs(size, scale, order, dtype):
    values = np.sort(np.concatenate([[3.0], np.repeat(-2.0, size // 3), np.linspace(-1, 1, size - 1 - size // 3)]))
    matrix = np.array(scale * prescribed(values), dtype, order=order)
    kept = matrix.copy()
    found = lapack.eigenvalues(matrix)
    assert found.dtype == dtype
    assert np.array_equal(matrix, kept)
    assert np.abs(found / dtype(scale) - values).max() < 60 * max(1, size**0.5) * np.finfo(dtype).eps


def test_eigenvalues_that_do_not_converge_are_an_error(monkeypatch):
    original = lapack.get_lapack_funcs

    def gives_up(names, arrays):
        return [lambda diagonal, _: (diagonal, 3)] if names == ("sterf",) else original(names, arrays)

    monkeypatch.setattr(lapack, "get_lapack_funcs", gives_up)
    with pytest.raises(np.linalg.LinAlgError, match="did not converge: code 3"):
        lapack.eigenvalues(prescribed(np.arange(5.0)))


def test_what_did_not_converge_in_two_stages_takes_one(monkeypatch):
    matrix = prescribed(np.arange(5.0))
    *stages, _, integer, real = lapack._routines(np.dtype(np.float64))

    def gives_up(_size, _diagonal, _off_diagonal, info):
        info._obj.value = 1

    monkeypatch.setattr(lapack, "_routines", lambda _dtype: (*stages, gives_up, integer, real))
    assert np.array_equal(lapack.eigenvalues(matrix, two_stage_from=0), lapack.eigenvalues(matrix))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("size", [1, 2, 3, 40])
def test_the_spectral_measure_is_that_of_the_eigenvectors(size, dtype):
    """Of simple eigenvalues, by moments of the matrix itself: x^T A^k x is the k-th moment of the measure."""
    matrix = prescribed(np.linspace(-1, 2, size)).astype(dtype)
    vector = np.random.default_rng(1).standard_normal(size).astype(dtype)
    values, weights = lapack.spectral_measure(matrix, vector)
    assert (values.dtype, weights.dtype) == (dtype, dtype)
    powers = vector.astype(np.float64)
    for power in range(4):
        expected = vector.astype(np.float64) @ powers
        found = weights.astype(np.float64) @ (values.astype(np.float64) ** power)
        assert found == pytest.approx(expected, abs=200 * float(np.finfo(dtype).eps) * size)
        powers = matrix.astype(np.float64) @ powers


def test_a_matrix_that_is_not_finite_has_no_spectral_measure_and_no_eigenvalues():
    matrix = np.full((3, 3), np.nan)
    with pytest.raises(np.linalg.LinAlgError):
        lapack.spectral_measure(matrix, np.ones(3))
    with pytest.raises(np.linalg.LinAlgError):
        lapack.eigenvalues(matrix)
