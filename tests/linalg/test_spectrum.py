"""Eigenvalues: prescribed spectra, hostile operators, saved records, networks whose spectrum is known by formula."""

import itertools
import json
import math
import re
import sys
from dataclasses import fields, replace

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import curvature as cv
from curvature.linalg.facts import Facts
from curvature.matrices import MATRICES
from oracles import factor_route, factored, in_chart, normal, operator_of, with_spectrum

EPS = torch.finfo(torch.float64).eps


def orthogonal(dim, generator):
    return torch.linalg.qr(normal(generator, dim, dim)).Q


def relative_error(found, expected):
    return float(np.max(np.abs(np.asarray(found) - np.asarray(expected)) / np.abs(np.asarray(expected))))


# ------------------------------------------------------------------------------------------------ prescribed spectra

# LAPACK's generators of test matrices (xLATMS, modes 1 to 5), largest eigenvalue 1, condition number kappa.
FAMILIES = {
    "one large": lambda dim, kappa, _: torch.tensor([1.0, *[1 / kappa] * (dim - 1)], dtype=torch.float64),
    "one small": lambda dim, kappa, _: torch.tensor([*[1.0] * (dim - 1), 1 / kappa], dtype=torch.float64),
    "geometric": lambda dim, kappa, _: kappa ** -torch.linspace(0, 1, dim, dtype=torch.float64),
    "arithmetic": lambda dim, kappa, _: torch.linspace(1, 1 / kappa, dim, dtype=torch.float64),
    "log-uniform": lambda dim, kappa, generator: torch.cat(
        [
            torch.tensor([1.0, 1 / kappa], dtype=torch.float64),
            kappa ** -torch.rand(dim - 2, generator=generator, dtype=torch.float64),
        ]
    ),
}
KAPPAS = [1e0, 1e3, 1e8, 1e12, 1e14]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("route", ["entries", "products"])
def test_dense_eigenvalues_are_within_rounding_of_the_norm(route, kappa, family, generator):
    """LAPACK's own criterion: error below 30 units times dimension times norm."""
    dim = 60
    expected = FAMILIES[family](dim, kappa, generator)
    matrix = with_spectrum(expected, generator)
    wrap = cv.SymmetricOperator.from_dense if route == "entries" else operator_of
    found = cv.spectrum(wrap(matrix), method="dense")
    assert np.abs(found.eigenvalues - expected.sort().values.numpy()).max() < 30 * dim * EPS
    assert found.noise_floor < 30 * dim * EPS


@pytest.mark.parametrize("family", FAMILIES)
def test_indefinite_eigenvalues_keep_their_signs_and_inertia(family, generator):
    expected = FAMILIES[family](60, 1e6, generator) * (-1.0) ** torch.arange(60)
    found = cv.spectrum(cv.SymmetricOperator.from_dense(with_spectrum(expected, generator)))
    assert np.abs(found.eigenvalues - expected.sort().values.numpy()).max() < 30 * 60 * EPS
    assert found.inertia == (30, 0, 30)
    assert (np.diff(found.eigenvalues) >= 0).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", ["tall", "square", "wide", "streamed"])
def test_factor_route_resolves_a_condition_number_of_1e12(shape, family, generator):
    """Relative accuracy about ``2 u sqrt(kappa)``: digits that the entries of the matrix no longer hold."""
    dim, kappa = 40, 1e12
    expected = FAMILIES[family](dim, kappa, generator).sort().values
    columns = {"tall": dim, "square": dim, "wide": 3 * dim, "streamed": 5 * dim}[shape]
    rows = 2 * dim if shape == "tall" else dim
    left = orthogonal(rows, generator)[:, :dim]
    right = orthogonal(columns, generator)[:, :dim]
    factor = left @ (expected.sqrt()[:, None] * right.T)
    blocks = list(factor.split(7 if shape == "streamed" else columns, dim=1))
    found = cv.spectrum(factored(*blocks), method="factor")
    assert relative_error(found.eigenvalues[-dim:], expected) < 1e-9
    assert not found.eigenvalues[:-dim].any()
    assert found.num_resolved == found.rank == dim
    assert found.noise_floor < 1e-20


def test_dense_route_cannot_resolve_what_the_factor_can_and_says_so(generator):
    """The negative control: small eigenvalues are lost among the entries, and the floor admits it."""
    expected = FAMILIES["geometric"](40, 1e20, generator)
    factor = orthogonal(40, generator) @ (expected.sqrt()[:, None] * orthogonal(40, generator))
    dense = cv.spectrum(factored(factor), method="dense")
    smallest = float(expected.min())
    assert abs(dense.eigenvalues[0] - smallest) > 100 * smallest
    assert smallest < dense.noise_floor
    assert dense.num_resolved < 40
    assert cv.spectrum(factored(factor), method="factor").num_resolved == 40


@pytest.mark.parametrize("name", ["ggn", "fisher", "empirical_fisher", "gradient_covariance"])
def test_the_gram_route_gives_the_dense_eigenvalues_and_zeros(name, mlp, classification_data):
    problem = cv.Problem.from_module(mlp(6, 7, 3), loss="cross-entropy", data=classification_data(9, 6, 3))
    operator = MATRICES[name](problem)
    found, expected = (cv.spectrum(operator, method=method) for method in ("gram", "dense"))
    assert found.method == "gram"
    assert len(found.eigenvalues) == problem.dim > operator.routes.factor.num_columns
    assert np.abs(found.eigenvalues - expected.eigenvalues).max() < 50 * EPS * expected.eigenvalues[-1]
    assert found.noise_floor >= 10 * EPS * found.eigenvalues[-1]  # no better than dense, and it says so
    assert found.rank == expected.rank
    for chart in (cv.WeightNorm(stretch=3.0), cv.ScaledStandard(0.3)):
        moved, reference = (cv.spectrum(cv.pullback(operator, chart), method=method) for method in ("gram", "dense"))
        assert np.abs(moved.eigenvalues - reference.eigenvalues).max() < 50 * EPS * reference.eigenvalues[-1]


def test_the_gram_route_says_where_it_loses_what_the_factor_resolves(generator):
    values = torch.logspace(-12, 0, 7, dtype=torch.float64)
    left = torch.linalg.qr(normal(generator, 20, 7)).Q
    operator = factored(left * values.sqrt())
    by_factor, by_gram = cv.spectrum(operator, method="factor"), cv.spectrum(operator, method="gram")
    assert by_factor.num_resolved == by_gram.num_resolved == 7
    smaller = factored(left * (1e-6 * values).sqrt() @ orthogonal(7, generator), left[:, -1:])
    assert cv.spectrum(smaller, method="factor").num_resolved > cv.spectrum(smaller, method="gram").num_resolved


def test_covariance_of_gradients_with_a_large_mean_has_the_floor_of_what_cancels():
    """Gradients nearly equal: centring their Gram matrix leaves rounding of the mean, which the floor must cover."""
    generator = torch.Generator().manual_seed(3)
    inputs = 1.0 + 1e-7 * normal(generator, 9, 12)
    layer = nn.Linear(12, 1, bias=False, dtype=torch.float64)
    problem = cv.Problem.from_module(layer, loss="mse", data=(inputs, torch.full((9, 1), 50.0, dtype=torch.float64)))
    found = cv.spectrum(cv.gradient_covariance(problem), method="gram")
    expected = cv.spectrum(cv.gradient_covariance(problem), method="factor")
    assert found.noise_floor > 1e3 * EPS * expected.eigenvalues[-1]
    assert np.abs(found.eigenvalues - expected.eigenvalues).max() < found.noise_floor


def test_the_gram_route_is_refused_where_it_cannot_serve(mlp, classification_data):
    few = cv.Problem.from_module(mlp(6, 7, 3), loss="cross-entropy", data=classification_data(5, 6, 3))
    many = cv.Problem.from_module(mlp(2, 3), loss="cross-entropy", data=classification_data(50, 2, 3))
    with pytest.raises(cv.ConfigurationError, match="needs eigenvectors of the matrix itself"):
        cv.spectrum(cv.ggn(few), method="gram", gradient=True)
    with pytest.raises(cv.ConfigurationError, match=r"Gram matrix of ggn has 100 rows, the matrix itself 9"):
        cv.spectrum(cv.ggn(many), method="gram")
    with pytest.raises(cv.ConfigurationError, match="hessian has no factor"):
        cv.spectrum(cv.hessian(few), method="gram")
    with pytest.raises(cv.ConfigurationError, match="hessian has no factor"):
        cv.hessian(few).gram()


def test_auto_takes_the_factor_where_it_has_no_more_columns_than_rows(generator):
    narrow, wide = normal(generator, 10, 6), normal(generator, 10, 14)
    assert cv.spectrum(factored(narrow)).method == "factor"
    assert cv.spectrum(factored(narrow), method="dense").method == "dense"
    assert cv.spectrum(factored(wide)).method == "dense"
    assert cv.spectrum(factored(wide), method="factor").method == "factor"
    assert cv.spectrum(cv.SymmetricOperator.from_dense(narrow @ narrow.T)).method == "dense"


@given(dim=st.integers(1, 40), rank=st.integers(0, 40), seed=st.integers(0, 2**16), decades=st.integers(0, 6))
def test_rank_counts_the_eigenvalues_that_are_there(dim, rank, seed, decades):
    rank, generator = min(rank, dim), torch.Generator().manual_seed(seed)
    values = torch.zeros(dim, dtype=torch.float64)
    values[:rank] = 10.0 ** (decades * (torch.rand(rank, generator=generator, dtype=torch.float64) - 1))
    matrix = with_spectrum(values, generator)
    assert cv.spectrum(cv.SymmetricOperator.from_dense(matrix)).rank == rank
    left = orthogonal(dim, generator)[:, :rank] * values[:rank].sqrt()
    factor = left @ normal(generator, rank, dim) if rank else torch.zeros(dim, 1, dtype=torch.float64)
    assert cv.spectrum(factored(factor), method="factor").rank == rank


@pytest.mark.parametrize("dim", [30, 100, 300, 600])
@pytest.mark.parametrize("method", ["dense", "factor"])
def test_rounding_of_a_rank_one_matrix_is_never_counted_as_rank(method, dim, generator):
    """Rounding grows with the dimension, so must the floor: else ``kappa_rank`` would be noise called resolved."""
    columns = torch.rand(1, dim - 10, generator=generator, dtype=torch.float64)
    operator = factored(torch.ones(dim, 1, dtype=torch.float64) * columns)
    found = cv.spectrum(operator, method=method)
    assert found.eigenvalues[-1] == pytest.approx(dim * float((columns**2).sum()), rel=1e-12)
    assert found.rank == 1


@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1e150, 1e300])
@pytest.mark.parametrize("method", ["dense", "factor"])
def test_extreme_scales_neither_overflow_nor_vanish(method, scale, generator):
    expected = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    factor = orthogonal(3, generator) @ torch.diag((scale * expected).sqrt())
    found = cv.spectrum(factored(factor), method=method)
    assert relative_error(found.eigenvalues / scale, [0.25, 0.5, 1.0]) < 1e-13
    assert (found.rank, found.num_resolved) == (3, 3)


@pytest.mark.parametrize("method", ["dense", "factor"])
def test_the_zero_matrix_has_rank_zero_and_no_condition_number(method):
    found = cv.spectrum(factored(torch.zeros(4, 3, dtype=torch.float64)), method=method)
    assert not found.eigenvalues.any()
    assert (found.rank, found.inertia, found.trace) == (0, (0, 4, 0), 0.0)
    assert found.condition_numbers()["kappa_rank"].status == "undefined"
    assert "3 eigenvalues in [0, 0]" in repr(found) or "4 eigenvalues in [0, 0]" in repr(found)
    assert "\n" not in repr(found)


@pytest.mark.parametrize("value", [3.0, -2.0])
def test_a_one_by_one_matrix_is_its_eigenvalue(value):
    found = cv.spectrum(cv.SymmetricOperator.from_dense(torch.tensor([[value]], dtype=torch.float64)))
    assert found.eigenvalues.tolist() == [value]
    assert found.rank == 1


def test_the_identity_has_equal_eigenvalues():
    found = cv.spectrum(cv.SymmetricOperator.from_dense(torch.eye(7, dtype=torch.float64)))
    assert found.eigenvalues.tolist() == [1.0] * 7
    assert (found.rank, found.trace, found.inertia) == (7, 7.0, (0, 0, 7))


# ------------------------------------------------------------------------------------------------ hostile operators


def test_asymmetric_operators_are_refused(generator):
    matrix = normal(generator, 5, 5)
    with pytest.raises(cv.SelfCheckError, match='matrix fails its self-check "symmetry"'):
        cv.spectrum(operator_of(matrix))
    with pytest.raises(cv.SelfCheckError, match="matrix is not symmetric: entries differ by"):
        cv.spectrum(operator_of(matrix), checks=False)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_operators_that_are_not_finite_are_refused(bad):
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[2, 2] = bad
    with pytest.raises(cv.NonFiniteError, match="matrix is NaN or infinite"):
        cv.spectrum(operator_of(matrix))
    with pytest.raises(cv.NonFiniteError):
        operator_of(matrix) @ torch.ones(4, dtype=torch.float64)


def test_factors_that_are_not_finite_are_refused(generator):
    factor = normal(generator, 5, 3)
    factor[1, 1] = torch.nan
    with pytest.raises(cv.CurvatureError):
        cv.spectrum(factored(factor), method="factor")


def test_random_operators_are_refused():
    """A different answer each time is never a symmetric matrix."""
    noise = torch.Generator().manual_seed(0)

    def matmat(block):
        return 2 * block + 1e-9 * torch.randn(block.shape, generator=noise, dtype=torch.float64)

    operator = cv.SymmetricOperator(
        where=cv.Where("noisy"), dim=6, matmat=matmat, dtype=torch.float64, device=torch.device("cpu")
    )
    with pytest.raises(cv.SelfCheckError, match='noisy fails its self-check "repetition"'):
        cv.spectrum(operator)


def test_negative_eigenvalues_of_a_semidefinite_matrix_are_refused(generator):
    matrix = with_spectrum(torch.tensor([1.0, 0.5, -1e-3], dtype=torch.float64), generator)
    with pytest.raises(cv.SelfCheckError, match=r"must be positive semidefinite but has the eigenvalue -0.001"):
        cv.spectrum(cv.SymmetricOperator.from_dense(matrix, positive_semidefinite=True))


def test_options_that_cannot_be_met_are_refused():
    given_matrix = cv.SymmetricOperator.from_dense(torch.eye(3, dtype=torch.float64))
    for options, message in [
        ({"method": "lanczos"}, "method must be one of auto, dense, factor, gram, got 'lanczos'"),
        ({"method": "factor"}, "matrix has no factor. Use method='dense'"),
        ({"gradient": True}, "matrix has no gradient: gradient=True needs a matrix made from a problem"),
    ]:
        with pytest.raises(cv.ConfigurationError, match=message):
            cv.spectrum(given_matrix, **options)
    for move in (cv.pullback, cv.effective):
        with pytest.raises(cv.ConfigurationError, match="only a whole matrix on the weights can be moved to a chart"):
            move(given_matrix, cv.WeightNorm())


@pytest.mark.parametrize("function", [cv.spectrum, cv.plan])
def test_arguments_of_the_old_version_are_refused_with_the_call_that_replaces_them(function, problem):
    refused = {
        "chart": (cv.WeightNorm(), f"{function.__name__}(pullback(A, chart))"),
        "effective": (True, f"{function.__name__}(effective(A, chart))"),
    }
    for argument, (value, instead) in refused.items():
        for kind in (cv.RemovedArgumentError, cv.ConfigurationError, TypeError):
            with pytest.raises(kind, match=re.escape(f"no longer takes {argument}=. Write {instead} instead")):
                function(cv.ggn(problem), **{argument: value})


# ------------------------------------------------------------------------------------------------ gradient weights


@pytest.fixture(scope="module")
def problem(mlp, classification_data):
    return cv.Problem.from_module(mlp(3, 4, 3), loss="cross-entropy", data=classification_data(6, 3, 3))


@pytest.mark.parametrize("name", ["hessian", "ggn", "empirical_fisher"])
@pytest.mark.parametrize("chart", [None, cv.WeightNorm(stretch=2.0)])
def test_gradient_weights_are_squared_components_along_the_eigenvectors(name, chart, problem):
    operator = MATRICES[name](problem)
    moved = in_chart(operator, chart)
    found = cv.spectrum(moved, gradient=True)
    slope = moved.facts.gradient()
    # Moments sum_i c_i^2 l_i^k = g^T A^k g know the eigenvectors without a basis of a degenerate eigenspace.
    power = slope
    for k in range(4):
        expected = float(slope @ power)
        moment = float((found.gradient_weights * found.eigenvalues**k).sum())
        assert moment == pytest.approx(expected, rel=1e-11)
        power = moved.dense() @ power
    assert (found.gradient_weights >= 0).all()
    assert len(found.gradient_weights) == found.dim


def test_gradient_weights_of_both_routes_agree(problem):
    by_factor, dense = (cv.spectrum(cv.empirical_fisher(problem), method=m, gradient=True) for m in ("factor", "dense"))
    top = slice(-4, None)
    assert by_factor.method == "factor"
    assert np.allclose(by_factor.gradient_weights[top], dense.gradient_weights[top], rtol=1e-9, atol=1e-14)
    assert by_factor.gradient_weights.sum() == pytest.approx(dense.gradient_weights.sum(), rel=1e-12)


# ------------------------------------------------------------------------------------------------ records


@pytest.fixture
def record(problem):
    return cv.spectrum(
        cv.pullback(cv.monte_carlo_fisher(problem, 2, torch.Generator().manual_seed(0)), cv.WeightNorm("paper"))
    )


@pytest.mark.parametrize("gradient", [False, True])
def test_saving_and_loading_give_the_same_spectrum(gradient, problem, tmp_path):
    before = cv.spectrum(cv.effective(cv.ggn(problem), cv.WeightNorm(stretch=2.0)), gradient=gradient)
    after = cv.Spectrum.load(before.save(tmp_path / "ggn.npz"))
    for item in fields(before):
        mine, theirs = getattr(before, item.name), getattr(after, item.name)
        assert type(mine) is type(theirs), item.name
        assert np.array_equal(mine, theirs) if isinstance(mine, np.ndarray) else mine == theirs, item.name
    assert after.eigenvalues.dtype == np.float64
    assert after.condition_numbers().to_dict() == before.condition_numbers().to_dict()


def test_records_made_by_hand_survive_saving_too(tmp_path):
    before = cv.Spectrum(cv.Where("Åß"), np.array([0.0, 1.0], dtype=np.float32), True, "dense", 1e-7, 1, "by <hand>")
    after = cv.Spectrum.load(before.save(tmp_path / "x.npz"))
    assert (after.matrix, after.rank_rule, after.num_examples) == ("Åß", "by <hand>", None)
    assert after.eigenvalues.dtype == np.float32
    assert math.isnan(after.seconds)


def test_only_npz_files_are_written(record, tmp_path):
    with pytest.raises(cv.ConfigurationError, match=r"saved as an .npz file, got 'spectrum.json'"):
        record.save(tmp_path / "spectrum.json")


def garbage(kind, good, tmp_path):
    """Files that are no spectrum, as accidents and attacks make them."""
    path, raw = tmp_path / "bad.npz", good.read_bytes()
    about = {"schema": "curvature/spectrum/1"}
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("eigenvalues: 1, 2, 3")
    elif kind == "truncated":
        path.write_bytes(raw[: len(raw) // 2])
    elif kind == "flipped byte":
        place = raw.index(b"NUMPY") + 200
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 0xFF]) + raw[place + 1 :])
    elif kind == "one array":
        np.save(tmp_path / "one.npy", np.ones(3))
        path.write_bytes((tmp_path / "one.npy").read_bytes())
    elif kind == "other arrays":
        np.savez(path, weights=np.ones(3))
    elif kind == "pickle":
        np.savez(path, about=np.array({"schema": "curvature/spectrum/1"}, dtype=object), allow_pickle=True)
    elif kind == "no json":
        np.savez(path, about=np.array("{"))
    elif kind == "json of another kind":
        np.savez(path, about=np.array("[1, 2]"))
    elif kind == "future schema":
        np.savez(path, about=np.array(json.dumps({"schema": "curvature/spectrum/99"})))
    elif kind == "unknown field":
        np.savez(path, about=np.array(json.dumps(about | {"surprise": 1})), eigenvalues=np.ones(3))
    elif kind == "missing fields":
        np.savez(path, about=np.array(json.dumps(about)), eigenvalues=np.ones(3))
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "text",
        "truncated",
        "flipped byte",
        "one array",
        "other arrays",
        "pickle",
        "no json",
        "json of another kind",
        "future schema",
        "unknown field",
        "missing fields",
    ],
)
def test_files_that_are_no_spectrum_are_refused_by_name(kind, record, tmp_path):
    path = garbage(kind, record.save(tmp_path / "good.npz"), tmp_path)
    with pytest.raises(cv.ConfigurationError, match=r"bad\.npz"):
        cv.Spectrum.load(path)


def test_a_spectrum_knows_its_chart_and_gauge(problem):
    for chart, effective, label in [
        (None, False, "ggn, standard"),
        (cv.WeightNorm(stretch=3.0), False, "ggn, weight-norm (stretch=3)"),
        (cv.WeightNorm("paper", log_scale=True), True, "ggn, weight-norm (paper, g = exp(s))"),
        (cv.ScaledStandard(2.0), True, "ggn, scaled-standard (scale=2)"),
    ]:
        found = cv.spectrum(in_chart(cv.ggn(problem), chart, effective=effective))
        assert (found.label, found.effective, found.num_examples) == (label, effective, 6)
    block = cv.blocks(cv.ggn(problem), "layer")["2"]
    assert (cv.spectrum(block).block, cv.spectrum(block).label) == ("2", "ggn, standard, 2")
    assert "\n" not in repr(found)


def test_dataframes_hold_one_row_per_eigenvalue(record):
    frame = record.to_dataframe()
    assert frame["eigenvalue"].tolist() == record.eigenvalues.tolist()
    assert frame["index"].tolist() == list(range(record.dim))
    assert frame["resolved"].sum() == record.num_resolved
    assert set(frame["matrix"]) == {"monte_carlo_fisher"}
    assert set(frame["gauge"]) == {"paper"}


def test_labelled_arrays_survive_netcdf(record, tmp_path):
    import xarray as xr

    array = record.to_xarray()
    array.to_netcdf(tmp_path / "x.nc", engine="h5netcdf")
    with xr.load_dataarray(tmp_path / "x.nc", engine="h5netcdf") as stored:
        assert stored.values.tolist() == record.eigenvalues.tolist()
        assert stored.attrs["gauge"] == "paper"
        assert stored.attrs["num_samples"] == 2
        assert json.loads(stored.attrs["positive_semidefinite"]) is True


# ------------------------------------------------------------------------------------------------ networks by formula


def linear_model(inputs, num_outputs, loss, targets=None, weights=None, bias=False):
    layer = nn.Linear(inputs.shape[1], num_outputs, bias=bias).double()
    with torch.no_grad():
        layer.weight.zero_() if weights is None else layer.weight.copy_(weights)
    if targets is None:
        labels = torch.arange(len(inputs)) % num_outputs
        targets = labels if loss == "cross-entropy" else torch.zeros(len(inputs), num_outputs)
    return cv.Problem.from_module(layer, loss=loss, data=(inputs, targets))


def squared_singular_values(matrix):
    return (torch.linalg.svdvals(matrix) ** 2).flip(0).numpy()


@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher"])
def test_linear_regression_has_the_spectrum_of_the_inputs(name, generator):
    inputs = normal(generator, 30, 8)
    found = cv.spectrum(MATRICES[name](linear_model(inputs, 1, "half-squared-error")))
    assert relative_error(found.eigenvalues, squared_singular_values(inputs) / 30) < 1e-12


def test_gaussian_inputs_fill_the_marchenko_pastur_interval(generator):
    """Edges fluctuate by about ``N^(-2/3)``, one per cent here."""
    inputs = normal(generator, 1000, 100)
    found = cv.spectrum(cv.ggn(linear_model(inputs, 1, "half-squared-error")))
    root = math.sqrt(100 / 1000)
    assert found.eigenvalues[-1] == pytest.approx((1 + root) ** 2, rel=0.05)
    assert found.eigenvalues[0] == pytest.approx((1 - root) ** 2, rel=0.05)
    ratio = found.condition_numbers()["kappa_rank"].value
    assert ratio == pytest.approx(cv.marchenko_pastur_ratio(100, 1000), rel=0.1)


@pytest.mark.parametrize("name", ["hessian", "ggn"])
def test_logistic_regression_at_zero_weights_is_a_quarter_of_the_covariance(name, generator):
    inputs = normal(generator, 30, 6)
    targets = torch.rand(30, 1, generator=generator, dtype=torch.float64)
    found = cv.spectrum(MATRICES[name](linear_model(inputs, 1, "binary-cross-entropy", targets)))
    assert relative_error(found.eigenvalues, squared_singular_values(inputs) / 30 / 4) < 1e-12


@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher"])
def test_softmax_at_zero_weights_repeats_each_eigenvalue_c_minus_one_times(name, generator):
    inputs, classes = normal(generator, 30, 5), 4
    found = cv.spectrum(MATRICES[name](linear_model(inputs, classes, "cross-entropy")))
    values = squared_singular_values(inputs) / 30 / classes
    expected = np.sort(np.repeat(values, classes - 1))
    assert relative_error(found.eigenvalues[5:], expected) < 1e-12
    assert np.abs(found.eigenvalues[:5]).max() < 1e-14 * values[-1]
    assert found.rank == 5 * (classes - 1)


@pytest.mark.parametrize("loss", ["cross-entropy", "binary-cross-entropy", "mse", "half-squared-error"])
def test_linear_models_have_equal_hessian_and_ggn(loss, generator):
    inputs, weights = normal(generator, 12, 4), normal(generator, 3, 4)
    targets = None if loss == "cross-entropy" else torch.rand(12, 3, generator=generator, dtype=torch.float64)
    problem = linear_model(inputs, 3, loss, targets, weights, bias=True)
    hessian, ggn = cv.hessian(problem).dense(), cv.ggn(problem).dense()
    assert torch.linalg.norm(hessian - ggn) < 1e-14 * torch.linalg.norm(ggn)


def whitened(num_examples, fan_in, generator):
    """Inputs with ``X^T X / N = I`` exactly."""
    return torch.linalg.qr(normal(generator, num_examples, fan_in)).Q * num_examples**0.5


def test_two_layer_linear_network_with_whitened_inputs_has_sums_of_squared_singular_values(generator):
    """Non-zero GGN eigenvalues ``sigma_i(W2)^2 + sigma_j(W1)^2``, zero-padded; the remaining ones vanish."""
    fan_in, hidden, outputs = 4, 3, 2
    model = nn.Sequential(nn.Linear(fan_in, hidden, bias=False), nn.Linear(hidden, outputs, bias=False)).double()
    for parameter in model.parameters():
        parameter.data.copy_(normal(generator, *parameter.shape))
    inputs, targets = whitened(20, fan_in, generator), normal(generator, 20, outputs)
    found = cv.spectrum(cv.ggn(cv.Problem.from_module(model, loss="half-squared-error", data=(inputs, targets))))
    first, second = (torch.linalg.svdvals(parameter.detach()) ** 2 for parameter in model.parameters())
    first, second = functional.pad(first, (0, fan_in - len(first))), functional.pad(second, (0, outputs - len(second)))
    expected = (second[:, None] + first).reshape(-1).sort().values.numpy()
    assert relative_error(found.eigenvalues[-len(expected) :], expected) < 1e-12
    assert np.abs(found.eigenvalues[: -len(expected)]).max() < 1e-13


# ------------------------------------------------------------------------------------------------ weight norm


@pytest.mark.parametrize("which", [0, 2, 4])
@pytest.mark.parametrize("name", ["hessian", "ggn"])
def test_at_a_least_squares_optimum_along_an_eigenvector_all_others_scale_by_rho(name, which, generator):
    """``w`` along eigenvector i: the eigenvalues are ``l_i`` and ``rho l_j``, and one zero for the gauge."""
    values, stretch = torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5], dtype=torch.float64), 1.7
    basis = orthogonal(5, generator)
    inputs = whitened(20, 5, generator) @ (values.sqrt()[:, None] * basis.T)
    solution = 1.3 * basis[:, which]
    problem = linear_model(inputs, 1, "half-squared-error", (inputs @ solution)[:, None], solution[None])
    assert problem.gradient().abs().max() < 1e-14
    scaled = values / stretch**2
    scaled[which] = values[which]
    chart = cv.WeightNorm(stretch=stretch)
    found = cv.spectrum(cv.pullback(MATRICES[name](problem), chart))
    assert relative_error(found.eigenvalues[1:], scaled.sort().values) < 1e-12
    assert abs(found.eigenvalues[0]) < 1e-14
    without = cv.spectrum(cv.effective(MATRICES[name](problem), chart))
    assert relative_error(without.eigenvalues, scaled.sort().values) < 1e-12


def test_at_any_least_squares_optimum_the_spectrum_is_that_of_the_preconditioned_covariance(generator):
    """Non-zero spectrum of ``S^(1/2) (u u^T + rho M) S^(1/2)``."""
    inputs, solution, stretch = normal(generator, 30, 5), normal(generator, 5), 0.4
    problem = linear_model(inputs, 1, "half-squared-error", (inputs @ solution)[:, None], solution[None])
    covariance, u = inputs.T @ inputs / 30, solution / solution.norm()
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors @ (values.sqrt()[:, None] * vectors.T)
    metric = torch.outer(u, u) + (torch.eye(5, dtype=torch.float64) - torch.outer(u, u)) / stretch**2
    expected = torch.linalg.eigvalsh(root @ metric @ root)
    for name in ("ggn", "hessian"):
        found = cv.spectrum(cv.pullback(MATRICES[name](problem), cv.WeightNorm(stretch=stretch)))
        assert relative_error(found.eigenvalues[1:], expected) < 1e-11


# ------------------------------------------------------------------------------------------------ symmetries


def changed(module, change):
    """A copy of a three-layer network with other weights."""
    copy = nn.Sequential(
        *(type(layer)(*reversed(layer.weight.shape)) if hasattr(layer, "weight") else layer for layer in module)
    )
    copy.double().load_state_dict(change({name: tensor.clone() for name, tensor in module.state_dict().items()}))
    return copy


def permuted(weights):
    order = torch.tensor([2, 0, 3, 1])
    return weights | {
        "0.weight": weights["0.weight"][order],
        "0.bias": weights["0.bias"][order],
        "2.weight": weights["2.weight"][:, order],
    }


def flipped(weights):
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    return weights | {
        "0.weight": signs[:, None] * weights["0.weight"],
        "0.bias": signs * weights["0.bias"],
        "2.weight": weights["2.weight"] * signs,
    }


CHARTS = [cv.Standard(), cv.WeightNorm(stretch=2.0), cv.WeightNorm("paper", log_scale=True), cv.ScaledStandard()]


@pytest.mark.parametrize("symmetry", [permuted, flipped])
@pytest.mark.parametrize("name", ["hessian", "ggn", "empirical_fisher", "gradient_covariance"])
@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: f"{chart.name} {chart.gauge}")
def test_relabelling_hidden_units_changes_no_eigenvalue(chart, name, symmetry, mlp, classification_data):
    """Permuting hidden units, or flipping the signs around a tanh, is an orthogonal change of the coordinates."""
    module, data = mlp(3, 4, 3), classification_data(6, 3, 3)
    before, after = (
        cv.spectrum(
            cv.pullback(MATRICES[name](cv.Problem.from_module(m, loss="cross-entropy", data=data)), chart)
        ).eigenvalues
        for m in (module, changed(module, symmetry))
    )
    assert np.abs(after - before).max() < 1e-12 * np.abs(before).max()


@pytest.mark.parametrize("name", ["hessian", "ggn", "empirical_fisher"])
def test_freezing_a_layer_interlaces_the_eigenvalues(name, mlp, classification_data):
    """Cauchy: eigenvalues of a principal submatrix lie between those of the matrix."""
    module, data = mlp(3, 4, 3), classification_data(6, 3, 3)
    whole = cv.spectrum(MATRICES[name](cv.Problem.from_module(module, loss="cross-entropy", data=data))).eigenvalues
    module[0].requires_grad_(False)
    part = cv.spectrum(MATRICES[name](cv.Problem.from_module(module, loss="cross-entropy", data=data))).eigenvalues
    missing, slack = len(whole) - len(part), 1e-13 * np.abs(whole).max()
    assert missing == 16
    assert (whole[: len(part)] <= part + slack).all()
    assert (part <= whole[missing:] + slack).all()


class Decayed(nn.Module):
    """A network that hands its own weights to the loss."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, inputs):
        weights = torch.cat([parameter.reshape(-1) for parameter in self.network.parameters()])
        return torch.cat([self.network(inputs), weights.expand(len(inputs), -1)], dim=1)


@pytest.mark.parametrize("name", ["hessian", "ggn"])
def test_weight_decay_adds_its_coefficient_to_every_eigenvalue(name, mlp, classification_data):
    network, data, decay = mlp(3, 4, 3), classification_data(6, 3, 3), 0.7

    def loss(output, target):
        return functional.cross_entropy(output[:3], target) + 0.5 * decay * (output[3:] ** 2).sum()

    plain = cv.spectrum(MATRICES[name](cv.Problem.from_module(network, loss="cross-entropy", data=data)))
    shifted = cv.spectrum(MATRICES[name](cv.Problem.from_module(Decayed(network), loss=loss, data=data)))
    assert np.abs(shifted.eigenvalues - plain.eigenvalues - decay).max() < 1e-12


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6, 1e12])
@pytest.mark.parametrize("name", ["hessian", "ggn"])
def test_condition_numbers_do_not_depend_on_the_scale_of_the_loss(name, scale, mlp, classification_data):
    network, data = mlp(3, 4, 3), classification_data(12, 3, 3)

    def summary(factor):
        problem = cv.Problem.from_module(network, loss=lambda f, y: factor * functional.cross_entropy(f, y), data=data)
        found = cv.spectrum(MATRICES[name](problem), gradient=True)
        return found, found.condition_numbers()

    (once, numbers), (scaled, others) = summary(1.0), summary(scale)
    assert np.abs(scaled.eigenvalues / scale - once.eigenvalues).max() < 1e-12 * np.abs(once.eigenvalues).max()
    assert scaled.rank == once.rank
    assert scaled.inertia == once.inertia
    for quantity in ("kappa_50", "kappa_80", "gd_time", "am_gm_damped", "bures", "abs_kappa_50", "stable_rank"):
        if quantity in numbers.values and numbers[quantity].status == "resolved":
            assert others[quantity].status == "resolved"
            assert others[quantity].value == pytest.approx(numbers[quantity].value, rel=1e-6), quantity


# ------------------------------------------------------------------------------------------------ mean-field theory


def gauss_mean(function, variance, covariance=None):
    """``E f(x)`` or ``E f(x) f(y)`` for Gaussians, by Gauss-Hermite quadrature in one or two dimensions."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    weights = weights / weights.sum()
    x = math.sqrt(variance) * nodes
    if covariance is None:
        return float(weights @ function(x) ** 2)
    slope = covariance / variance
    y = slope * x[:, None] + math.sqrt(max(variance * (1 - slope**2), 0.0)) * nodes
    return float(weights @ (function(x) * (function(y) @ weights)))


MEAN_FIELD = {
    "tanh": (nn.Tanh, np.tanh, lambda x: 1 / np.cosh(x) ** 2, 3.0, 0.64),
    "relu": (nn.ReLU, lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(float), 2.0, 0.1),
}


def karakida(activation, depth, num_examples):
    """``(k1, k2)`` of Karakida, Akaho & Amari (2019) for equal widths, and ``alpha``."""
    _, phi, slope, weight_variance, bias_variance = MEAN_FIELD[activation]
    forward, pre = [(1.0, 0.0)], []
    for _ in range(depth - 1):
        q1, q2 = (weight_variance * second_moment + bias_variance for second_moment in forward[-1])
        pre.append((q1, q2))
        forward.append((gauss_mean(phi, q1), gauss_mean(phi, q1, q2)))
    backward = [(1.0, 1.0)]
    for q1, q2 in reversed(pre):
        t1, t2 = backward[0]
        backward.insert(
            0, (weight_variance * t1 * gauss_mean(slope, q1), weight_variance * t2 * gauss_mean(slope, q1, q2))
        )
    alpha = depth - 1
    k1, k2 = (sum(b[i] * f[i] for b, f in zip(backward, forward, strict=True)) / alpha for i in (0, 1))
    return k1, k2, alpha * ((num_examples - 1) / num_examples * k2 + k1 / num_examples)


@pytest.mark.parametrize("activation", MEAN_FIELD)
def test_wide_random_networks_have_the_mean_and_largest_eigenvalue_of_mean_field_theory(activation, generator):
    """Karakida, Akaho & Amari 2019: mean ``k1 C / M``, largest ``alpha ((T-1)/T k2 + k1/T) M`` with multiplicity C."""
    width, num_examples, outputs, depth = 120, 150, 2, 3
    layer, _, _, weight_variance, bias_variance = MEAN_FIELD[activation]
    widths = [width, width, width, outputs]
    layers = []
    for fan_in, fan_out in itertools.pairwise(widths):
        linear = nn.Linear(fan_in, fan_out).double()
        linear.weight.data.copy_((weight_variance / fan_in) ** 0.5 * normal(generator, fan_out, fan_in))
        linear.bias.data.copy_(bias_variance**0.5 * normal(generator, fan_out))
        linear.bias.requires_grad_(False)  # lower order in the width, and not part of weight norm
        layers += [linear, layer()]
    data = normal(generator, num_examples, width), torch.zeros(num_examples, outputs)
    problem = cv.Problem.from_module(nn.Sequential(*layers[:-1]), loss="half-squared-error", data=data)
    found = cv.spectrum(cv.fisher(problem))
    k1, _, top = karakida(activation, depth, num_examples)
    # alpha M^2 parameters in the theory: only layers between wide ones count.
    assert found.trace == pytest.approx(k1 * outputs * (depth - 1) * width, rel=0.1)
    assert found.eigenvalues[-outputs:] == pytest.approx(np.full(outputs, top * width), rel=0.15)
    assert found.eigenvalues[-outputs - 1] < 0.5 * top * width
    lifted = cv.spectrum(cv.pullback(cv.fisher(problem), cv.WeightNorm()))
    assert lifted.dim == found.dim + 2 * width + outputs
    resolved = slice(-num_examples * outputs, None)
    assert relative_error(lifted.eigenvalues[resolved], found.eigenvalues[resolved]) < 1e-9


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on the address space")
def test_few_examples_of_a_wide_network_need_memory_for_their_factor_only(mlp, regression_data):
    """40 columns of 29 thousand weights are 9 MB; the null directions are a thousand times as many."""
    import resource

    problem = cv.Problem.from_module(mlp(120, 120, 120, 2), loss="mse", data=regression_data(20, 120, 2))
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 3 * 2**30, before[1]))
    try:
        found = cv.spectrum(cv.ggn(problem))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert (found.method, found.rank) == ("factor", 40)


def test_what_the_gradient_has_outside_a_short_factor_is_one_null_direction(generator):
    factor = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    slope = torch.randn(9, generator=generator, dtype=torch.float64)
    operator = cv.SymmetricOperator.from_dense(
        factor @ factor.T, facts=Facts(positive_semidefinite=True, gradient=lambda: slope)
    )
    operator = replace(operator, routes=replace(operator.routes, factor=factor_route(factor[:, :3], factor[:, 3:])))
    by_factor, dense = (cv.spectrum(operator, method=method, gradient=True) for method in ("factor", "dense"))
    np.testing.assert_allclose(by_factor.gradient_weights[-4:], dense.gradient_weights[-4:], rtol=1e-9)
    projector = torch.eye(9, dtype=torch.float64) - factor @ torch.linalg.pinv(factor)
    outside = float((projector @ slope) @ slope)
    np.testing.assert_allclose(by_factor.gradient_weights[:5], [outside, 0, 0, 0, 0], rtol=1e-10)
    np.testing.assert_allclose(dense.gradient_weights[:5].sum(), outside, rtol=1e-10)
