"""Estimators and certificates: exact where they say so, bounds never violated, intervals covered as advertised."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.stats import binom

import curvature as cv
from curvature import (
    SymmetricOperator,
    damped_condition_number,
    diagonal,
    extremal_eigenvalues,
    inertia,
    log_determinant,
    spectral_density,
    spectral_sum,
    trace,
)
from curvature.errors import ConfigurationError, NonFiniteError, NotDefinedError, SelfCheckError
from curvature.linalg.completeness import _counted
from curvature.linalg.intervals import mean_interval
from curvature.linalg.lanczos import lanczos
from curvature.linalg.lapack import inertia as counted
from curvature.linalg.leave_one_out import xdiag, xnystrace, xtrace
from curvature.linalg.quadrature import DampedFunction, gauss, quadratures
from curvature.linalg.routes import EntriesRoute, FactorRoute, Routes
from curvature.linalg.spectral_functions import spectral_function
from curvature.linalg.traces import _hutchinson
from curvature.records.bounds import cumulative_band, gauss_radau, kato_temple, lanczos_slack
from oracles import factor_route, factored, normal, operator_of, seeded, with_spectrum

DIM = 120
SPECTRA = {
    "flat": np.linspace(0.9, 1.1, DIM),
    "exponential": 0.9 ** np.arange(DIM),
    "polynomial": np.arange(1.0, DIM + 1) ** -1.5,
    "outliers": np.array([100.0, 50.0, 20.0, *np.linspace(0, 1, DIM - 3) ** 3]),
}
TRACES = [("hutchinson", 12), ("hutchinson", 40), ("xtrace", 30), ("xnystrace", 20)]
RANKS = [("xtrace", 12, 16), ("xnystrace", 26, 31)]  # with 30 products: exact, and not any more
DIAGONALS = [("hutchinson", 20), ("xdiag", 20), ("xdiag", 40)]


def signs(dim, count):
    """Every matrix of signs, ``(dim, count)``."""
    for choice in itertools.product([-1.0, 1.0], repeat=dim * count):
        yield torch.tensor(choice, dtype=torch.float64).reshape(dim, count)


def holds(estimate, truth):
    return bool(np.all((estimate.low <= truth) & (truth <= estimate.high)))


# ------------------------------------------------------------------------------------------------------------ exactness


@pytest.mark.parametrize("route", ["kept", "factor", "dense", "products"])
def test_trace_and_diagonal_are_exact_where_the_operator_knows_them(route):
    factor = normal(1, 40, 7)
    matrix = factor @ factor.T
    widths = []
    operator = operator_of(matrix, widths=widths)
    if route == "kept":
        operator = SymmetricOperator.from_dense(matrix).materialized()
    elif route == "dense":
        operator = SymmetricOperator.from_dense(matrix)
    elif route == "factor":
        operator = operator_of(matrix, widths=widths, routes=Routes(factor=factor_route(*factor.split(3, dim=1))))
    for found, truth in ((trace(operator), factor.square().sum()), (diagonal(operator), factor.square().sum(dim=1))):
        assert found.exact
        assert found.level == 1
        assert np.allclose(found.value, truth.numpy(), rtol=1e-13)
        assert holds(found, truth.numpy())
        assert np.all(found.high - found.low < 1e-12 * float(matrix.trace()))
        assert found.num_products == (40 if route == "products" else 0)
    assert sum(widths) == (80 if route == "products" else 0)


def test_exact_trace_of_a_wide_factor_needs_no_matrix():
    """A dense form that must not be touched, and a dimension whose square would not fit."""
    dim = 500_000

    def refuse(*_):
        raise AssertionError

    def blocks():
        return (torch.full((dim, 1), 0.5, dtype=torch.float64) for _ in range(2))

    operator = SymmetricOperator(
        where=cv.Where("wide"),
        dim=dim,
        matmat=refuse,
        dtype=torch.float64,
        device=torch.device("cpu"),
        routes=Routes(EntriesRoute(refuse), FactorRoute(blocks, 2)),
    )
    assert trace(operator).value == dim / 2
    assert (diagonal(operator).value == 0.5).all()


@pytest.mark.parametrize(("method", "rank", "above"), RANKS)
def test_estimators_with_a_range_finder_are_exact_at_low_rank(method, rank, above):
    def of_rank(rank):
        values = [*np.linspace(1, 5, rank), *np.zeros(DIM - rank)]
        return trace(operator_of(with_spectrum(values)), method=method, num_products=30, seed=seeded(2)), 3 * rank

    found, truth = of_rank(rank)
    assert abs(found.value - truth) < 1e-10 * truth
    assert holds(found, truth)
    assert found.high - found.low < 1e-8 * truth
    found, truth = of_rank(above)  # the promise ends before
    assert abs(found.value - truth) > 1e-3


def test_diagonal_is_exact_below_its_rank():
    matrix = with_spectrum([*np.linspace(-2, 5, 13), *np.zeros(DIM - 13)])
    found = diagonal(operator_of(matrix), method="xdiag", num_products=30, seed=seeded(2))
    assert np.allclose(found.value, matrix.diagonal().numpy(), rtol=0, atol=1e-12)
    assert holds(found, matrix.diagonal().numpy())


@pytest.mark.parametrize("method", ["hutchinson", "xtrace", "xnystrace"])
def test_a_multiple_of_the_identity_has_no_sampling_error(method):
    found = trace(operator_of(3 * torch.eye(100, dtype=torch.float64)), method=method, seed=seeded(0))
    assert abs(found.value - 300) < 1e-10
    assert found.high - found.low < 1e-8


@pytest.mark.parametrize("scale", [0.0, 1e-200, 1e150])
@pytest.mark.parametrize("method", ["hutchinson", "xtrace", "xnystrace"])
def test_estimates_scale_with_the_matrix(method, scale):
    matrix = with_spectrum(SPECTRA["polynomial"])
    plain = trace(operator_of(matrix), method=method, num_products=30, seed=seeded(3))
    scaled = trace(operator_of(scale * matrix), method=method, num_products=30, seed=seeded(3))
    for end in ("value", "low", "high"):
        assert (
            abs(getattr(scaled, end) - scale * getattr(plain, end)) <= 1e-9 * scale * plain.value + (scale == 0) * 1e-12
        )


def test_float32_products_give_an_interval_of_their_own_precision():
    matrix = with_spectrum([*np.linspace(1, 5, 10), *np.zeros(DIM - 10)]).float()
    found = trace(operator_of(matrix), method="xtrace", num_products=40, seed=seeded(0))
    assert holds(found, float(matrix.double().trace()))
    assert 1e-7 < found.high - found.low < 1e-2


# --------------------------------------------------------------------------------------------------------- unbiasedness


def test_hutchinson_is_unbiased_over_all_signs():
    matrix = normal(0, 4, 4)
    matrix = matrix + matrix.T
    every = torch.cat(list(signs(4, 1)), dim=1)
    assert abs(_hutchinson(operator_of(matrix), every)[0].mean() - float(matrix.trace())) < 1e-13


def test_xdiag_is_unbiased_over_all_signs():
    matrix = normal(0, 3, 3)
    matrix = matrix + matrix.T
    found = torch.stack([xdiag(operator_of(matrix), probes)[0] for probes in signs(3, 2)])
    assert found.std(dim=0).min() > 0.1
    assert torch.allclose(found.mean(dim=0), matrix.diagonal(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("estimate", [xtrace, xnystrace])
def test_leave_one_out_traces_are_unbiased(estimate):
    matrix = with_spectrum([5.0, 3.0, 1.0, 0.5, 0.2, 0.1])
    operator = operator_of(matrix)
    found = np.array([estimate(operator, normal(seed, 6, 3))[0].mean() for seed in range(500)])
    assert abs(found.mean() - 9.8) < 4 * found.std(ddof=1) / len(found) ** 0.5
    assert found.std() > 0.05


@pytest.mark.parametrize("estimate", [xtrace, xnystrace])
def test_leave_one_out_samples_are_what_leaving_one_out_gives(estimate):
    """By definition: a basis (or a Nystrom form) without one probe, and that probe on the rest."""
    matrix = with_spectrum(np.arange(1.0, 13.0))
    probes = normal(5, 12, 4)
    samples, means, _ = estimate(operator_of(matrix), probes)

    def by_hand(kept):
        found = []
        for i in kept:
            others = probes[:, [j for j in kept if j != i]]
            if estimate is xtrace:
                basis = torch.linalg.qr(matrix @ others).Q
                away = torch.eye(12) - basis @ basis.T
                known, rest = torch.trace(basis.T @ matrix @ basis), away @ probes[:, i]
                sample = rest @ matrix @ rest
            else:
                image = matrix @ others
                nystrom = image @ torch.linalg.inv(others.T @ image) @ image.T
                basis = torch.linalg.qr(others).Q
                known, rest = torch.trace(nystrom), probes[:, i] - basis @ (basis.T @ probes[:, i])
                sample = rest @ (matrix - nystrom) @ rest
            found.append(float(known + sample * (12 - len(kept) + 1) / (rest @ rest)))
        return np.array(found)

    assert np.allclose(samples, by_hand([0, 1, 2, 3]), rtol=1e-10)
    assert np.allclose(means, [by_hand([j for j in range(4) if j != i]).mean() for i in range(4)], rtol=1e-10)


# ------------------------------------------------------------------------------------------------------------- coverage


def coverage_of(seeds, kind, method, budget, spectrum):
    """Share of intervals that hold the truth, and median half-width over median error."""
    values = SPECTRA[spectrum]
    matrix = with_spectrum(values)
    operator = operator_of(matrix, positive_semidefinite=True)
    truth = matrix.diagonal().numpy() if kind is diagonal else values.sum()
    held, widths, errors = [], [], []
    for seed in range(seeds):
        found = kind(operator, method=method, num_products=budget, seed=seeded(seed))
        held.append(np.mean((found.low <= truth) & (truth <= found.high)))
        widths.append(np.mean(found.high - found.low) / 2)
        errors.append(np.mean(np.abs(found.value - truth)))
    return np.array(held), np.median(widths) / np.median(errors)


def least(seeds):
    """Fewer hits than this happen once in a thousand tests of a true 95 % interval."""
    return binom.ppf(1e-3, seeds, 0.95)


def check_trace(seeds, method, budget, spectrum):
    held, length = coverage_of(seeds, trace, method, budget, spectrum)
    assert held.sum() >= least(seeds)
    assert length < 12  # and is not simply long: 2.9 for a normal error


def check_diagonal(seeds, method, budget, spectrum):
    held, length = coverage_of(seeds, diagonal, method, budget, spectrum)
    assert held.mean() > 0.95 - 4 * max(held.std(), 0.01) / seeds**0.5
    assert length < 8


def check_sum(seeds, function, spectrum):
    values, damping = SPECTRA[spectrum], 0.05
    operator = operator_of(with_spectrum(values), positive_semidefinite=True)
    truth = {"log": np.log(values + damping), "inverse": 1 / (values + damping), 0.5: np.sqrt(values + damping)}
    truth = truth[function].sum()
    options = {"damping": damping, "method": "quadrature", "relative_error": 0.05, "max_products": 600}
    found = [spectral_sum(operator, function, seed=seeded(seed), **options) for seed in range(seeds)]
    assert sum(holds(one, truth) for one in found) >= least(seeds)
    assert np.median([one.high - one.low for one in found]) < 16 * np.median([abs(one.value - truth) for one in found])


def check_band(seeds, spectrum):
    values = SPECTRA[spectrum]
    operator = operator_of(with_spectrum(values))
    grid = np.quantile(values, [0.02, 0.1, 0.3, 0.5, 0.8, 0.95, 0.99]) * (1 + 1e-9)
    truth = (values[:, None] <= grid).mean(axis=0)
    held = np.zeros(len(grid))
    for seed in range(seeds):
        density = spectral_density(operator, num_matvecs=25, num_probes=1 + seed % 4, seed=seeded(seed))
        low, middle, high = density.cumulative(grid)
        assert ((low <= middle) & (middle <= high)).all()
        held += (low <= truth) & (truth <= high)
    assert held.min() >= least(seeds)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(("method", "budget"), TRACES)
def test_intervals_of_the_trace_cover_what_they_promise(method, budget, spectrum):
    check_trace(60, method, budget, spectrum)


@pytest.mark.slow
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(("method", "budget"), [*TRACES, ("xtrace", 60), ("xnystrace", 50)])
def test_intervals_of_the_trace_cover_what_they_promise_in_500_runs(method, budget, spectrum):
    check_trace(500, method, budget, spectrum)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(("method", "budget"), DIAGONALS)
def test_intervals_of_the_diagonal_cover_entry_by_entry(method, budget, spectrum):
    check_diagonal(30, method, budget, spectrum)


@pytest.mark.slow
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(("method", "budget"), DIAGONALS)
def test_intervals_of_the_diagonal_cover_entry_by_entry_in_500_runs(method, budget, spectrum):
    check_diagonal(500, method, budget, spectrum)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("function", ["log", "inverse", 0.5])
def test_intervals_of_spectral_sums_cover_what_they_promise(function, spectrum):
    check_sum(25, function, spectrum)


@pytest.mark.slow
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("function", ["log", "inverse", 0.5])
def test_intervals_of_spectral_sums_cover_what_they_promise_in_500_runs(function, spectrum):
    check_sum(500, function, spectrum)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_bands_of_the_cumulative_density_cover_what_they_promise(spectrum):
    check_band(40, spectrum)


@pytest.mark.slow
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_bands_of_the_cumulative_density_cover_what_they_promise_in_500_runs(spectrum):
    check_band(500, spectrum)


def test_leave_one_out_errors_alone_would_not_cover():
    """Why the jackknife: the spread of the samples understates the error where the spectrum decays."""
    values = SPECTRA["exponential"]
    operator = operator_of(with_spectrum(values))
    naive = jackknife = 0
    for seed in range(100):
        samples, means, _ = xnystrace(operator, normal(seed, DIM, 40))
        error = abs(samples.mean() - values.sum())
        naive += error <= 2.02 * samples.std(ddof=1) / 40**0.5
        jackknife += error <= 2.02 * means.std() * 40**0.5
    assert naive < 85
    assert jackknife >= least(100)


@pytest.mark.parametrize("count", [8, 12, 30])
def test_mean_of_skewed_samples_is_covered(count):
    """Chi-squared with one degree of freedom: what a matrix of rank one gives."""
    rng = np.random.default_rng(count)
    held = student = 0
    for _ in range(2000):
        samples = rng.standard_normal(count) ** 2
        low, high = mean_interval(samples)
        held += low <= 1 <= high
        half = {8: 2.365, 12: 2.201, 30: 2.045}[count] * samples.std(ddof=1) / count**0.5
        student += abs(samples.mean() - 1) <= half
    assert held >= 0.92 * 2000
    assert held > student + 40


def test_more_probes_and_independent_seeds_shrink_the_error_like_the_square_root():
    operator = operator_of(with_spectrum(SPECTRA["polynomial"]))

    def variance(budget):
        found = [trace(operator, method="hutchinson", num_products=budget, seed=seeded(s)) for s in range(400)]
        return np.var([one.value for one in found]), np.mean([one.standard_error**2 for one in found])

    (few, said), (many, _) = variance(20), variance(40)
    assert 1.6 < few / many < 2.5
    assert 0.8 < said / few < 1.25


# --------------------------------------------------------------------------------------------- quadrature and its sides


def jacobi(matrix, probe, steps):
    return tuple(part.numpy() for part in lanczos(operator_of(matrix), probe[:, None], steps))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_gauss_is_exact_to_degree_two_m_minus_one_and_radau_to_two_m_minus_two(steps):
    matrix = with_spectrum(np.linspace(1, 3, 30))
    probe = normal(7, 30)
    probe /= torch.linalg.vector_norm(probe)
    diag, off = jacobi(matrix, probe, steps)
    raised = gauss_radau(diag, off, 0.5)
    rules = {"gauss": (gauss(diag, off), 2 * steps - 1), "radau": (gauss(raised, off), 2 * steps - 2)}
    assert abs(rules["radau"][0][0].min() - 0.5) < 1e-12
    for (nodes, weights), degree in rules.values():
        errors = [
            abs(float((weights * nodes**k).sum() - probe @ torch.linalg.matrix_power(matrix, k) @ probe)) / 3**k
            for k in range(degree + 2)
        ]
        assert max(errors[:-1]) < 1e-13
        assert errors[-1] > 1e-9  # the promise ends there


HARD = {
    **{f"condition 1e{k}": np.logspace(-k, 0, 60) for k in (1, 4, 8, 12, 14)},
    "clusters": np.concatenate([1e-6 + 1e-9 * np.arange(20), 0.1 + 1e-7 * np.arange(20), 1 + 1e-4 * np.arange(20)]),
    "multiplicities": np.repeat([1e-8, 1e-3, 0.5, 1.0], 15),
    "null space": np.concatenate([np.zeros(30), np.linspace(0.1, 1, 30)]),
    "identity": np.ones(60),
}


@pytest.mark.parametrize("function", ["log", "inverse", 0.5, 1.5, -0.5])
@pytest.mark.parametrize("spectrum", HARD)
def test_gauss_and_radau_enclose_every_probe(spectrum, function):
    """A diagonal matrix, so that the truth of each probe is a sum with 40 digits."""
    values = HARD[spectrum]
    operator = operator_of(torch.diag(torch.tensor(values)), positive_semidefinite=True)
    damping = 1e-14 if spectrum == "condition 1e14" else 0.0
    if values.min() == 0 and function not in (0.5, 1.5):
        damping = 1e-15  # below the rounding of the matrix
    probes = normal(11, 60, 6)
    unit = (probes / torch.linalg.vector_norm(probes, dim=0)).numpy()
    with mpmath.workdps(40):
        power = {"log": None, "inverse": -1}.get(function, function)
        images = [mpmath.mpf(v) + mpmath.mpf(damping) for v in values.tolist()]
        images = [mpmath.log(x) if power is None else x ** mpmath.mpf(power) for x in images]
        truth = [
            60
            * float(
                mpmath.fsum(mpmath.mpf(q) ** 2 * image for q, image in zip(column, images, strict=True))
                / mpmath.fsum(mpmath.mpf(q) ** 2 for q in column)
            )
            for column in unit.T.tolist()
        ]
    gaps = []
    for steps in (spectral_function(function).least_steps, 5, 20, 60):
        lower = float(values.min())
        problem = DampedFunction(operator, spectral_function(function), damping, lower + damping)
        below, above = quadratures(problem, probes, steps)
        slack = 1e-13 * np.abs(truth)
        assert (below <= truth + slack).all()
        assert (above >= truth - slack).all()
        gaps.append(float((above - below).max()))
    assert gaps[-1] <= gaps[0] * (1 + 1e-9) + 1e-11
    if spectrum in ("condition 1e1", "condition 1e4", "multiplicities", "clusters"):
        assert gaps[-1] < 1e-3 * np.abs(truth).max()  # and they close


@pytest.mark.parametrize("method", ["exact", "quadrature"])
def test_log_determinant_of_a_singular_matrix_is_refused_and_with_damping_right(method):
    values = HARD["null space"]
    operator = operator_of(with_spectrum(values), positive_semidefinite=True)
    with pytest.raises(NotDefinedError, match="positive"):
        log_determinant(operator, 0.0, method=method, seed=seeded(0))
    found = log_determinant(operator, 1e-3, method=method, seed=seeded(0))
    assert holds(found, np.log(values + 1e-3).sum())
    assert found.what == "log-determinant"
    assert (found.high - found.low) / 2 <= 0.01 * abs(found.value) or not found.converged


def test_exact_spectral_sum_says_how_far_rounding_reaches():
    values = np.logspace(-14, 0, 60)
    operator = SymmetricOperator.from_dense(with_spectrum(values), positive_semidefinite=True)
    found = spectral_sum(operator, "inverse", damping=1e-14)
    truth = (1 / (values + 1e-14)).sum()
    assert found.exact
    assert holds(found, truth)
    assert found.high - found.low > 0.01 * truth  # the smallest eigenvalues are rounding, and that is said
    assert spectral_sum(operator, 1.0).value == pytest.approx(values.sum(), rel=1e-12)


@pytest.mark.parametrize("method", ["exact", "quadrature"])
def test_powers_of_an_indefinite_matrix_are_whole_or_refused(method):
    values = np.linspace(-1, 3, 100)
    operator = operator_of(with_spectrum(values))
    found = spectral_sum(operator, 3, method=method, relative_error=0.1, seed=seeded(0))
    assert holds(found, (values**3).sum())
    assert found.quadrature_error < 1e-10
    for power in (0.5, 1.5, -1.0):
        with pytest.raises(NotDefinedError):
            spectral_sum(operator, power, method=method, seed=seeded(0))
    root = spectral_sum(operator, 0.5, damping=1.0, method=method, lower=-1.0, seed=seeded(0))
    assert holds(root, np.sqrt(values + 1).sum())


def test_exact_spectral_sum_of_a_factor_adds_the_zeros():
    factor = normal(0, 5000, 3)
    found = log_determinant(factored(factor), 0.5)
    truth = float(torch.logdet(factor.T @ factor + 0.5 * torch.eye(3))) + 4997 * math.log(0.5)
    assert found.exact
    assert found.value == pytest.approx(truth, rel=1e-10)


def test_indefinite_matrix_has_no_log_determinant():
    matrix = with_spectrum(np.linspace(-1, 3, 200))
    for operator in (SymmetricOperator.from_dense(matrix), operator_of(matrix)):
        with pytest.raises(NotDefinedError, match="positive"):
            log_determinant(operator, 0.5, seed=seeded(0))
    assert holds(log_determinant(SymmetricOperator.from_dense(matrix), 1.5), np.log(np.linspace(0.5, 4.5, 200)).sum())


@pytest.mark.parametrize("method", ["exact", "quadrature"])
def test_a_broken_promise_about_the_spectrum_is_found_out(method):
    operator = operator_of(with_spectrum(np.linspace(-1, 3, 100)), positive_semidefinite=True)
    with pytest.raises(SelfCheckError, match="promised"):
        spectral_sum(operator, "log", damping=0.1, method=method, seed=seeded(0))
    with pytest.raises(SelfCheckError, match="xtrace"):
        trace(operator, method="xnystrace", num_products=40, seed=seeded(0))


def test_a_function_without_known_derivatives_gets_an_estimate_and_says_so():
    values = np.linspace(-1, 3, 100)
    operator = operator_of(with_spectrum(values))
    found = spectral_sum(operator, np.cos, method="quadrature", relative_error=0.05, seed=seeded(0))
    assert holds(found, np.cos(values).sum())
    assert "not a bound" in found.note
    assert found.converged


def test_budget_is_kept_and_what_is_missing_is_said():
    widths = []
    operator = operator_of(with_spectrum(np.logspace(-8, 0, 300)), widths=widths, positive_semidefinite=True)
    found = spectral_sum(operator, "inverse", damping=1e-9, relative_error=1e-6, max_products=700, seed=seeded(0))
    assert sum(widths) == found.num_products <= 700
    assert not found.converged
    assert found.quadrature_error > 0


@pytest.mark.parametrize("relative_error", [0.2, 0.02])
def test_steps_and_probes_are_chosen_for_the_error_that_was_asked_for(relative_error):
    values = np.concatenate([np.linspace(0, 1, 180) ** 2, np.linspace(2, 50, 20)])
    operator = operator_of(with_spectrum(values), positive_semidefinite=True)
    options = {"damping": 0.01, "relative_error": relative_error, "max_products": 20_000}
    found = log_determinant(operator, method="quadrature", seed=seeded(0), **options)
    assert found.converged
    assert (found.high - found.low) / 2 <= relative_error * abs(found.value)
    assert holds(found, np.log(values + 0.01).sum())


# -------------------------------------------------------------------------------------------------------------- density


def test_envelope_holds_the_measure_of_each_probe_for_certain():
    """A huge dimension takes the sampling away: what is left must enclose the probe's own measure everywhere."""
    values = np.sort(np.concatenate([np.linspace(0, 1, 50), [5.0, 5.0, 9.0]]))
    matrix, probe = with_spectrum(values), normal(4, 53)
    density = spectral_density(operator_of(matrix), num_matvecs=9, num_probes=1, seed=seeded(4))
    vectors = torch.linalg.eigh(matrix).eigenvectors
    weights = ((vectors.T @ probe) ** 2 / (probe @ probe)).numpy()
    grid = np.concatenate([np.linspace(-1, 10, 500), values, density.nodes[0]])
    truth = ((values[:, None] <= grid + 1e-12) * weights[:, None]).sum(axis=0)
    low, _, high = cumulative_band(density.nodes, density.weights, 10**12, grid, 0.95)
    at_atoms = np.abs(values[:, None] - grid).min(axis=0) < 1e-9
    assert (low <= truth + 1e-4).all()
    assert (high >= truth - 1e-4)[~at_atoms].all()
    assert (high - low).mean() < 0.4
    assert low[0] == 0
    assert high[-1] > 0.999


def test_band_is_monotone_and_narrows_with_steps_and_probes():
    operator = operator_of(with_spectrum(np.linspace(0, 1, 300)))
    grid = np.linspace(-0.1, 1.1, 61).reshape(1, 61)

    def width(steps, probes):
        low, _, high = spectral_density(operator, num_matvecs=steps, num_probes=probes, seed=seeded(0)).cumulative(grid)
        assert low.shape == (1, 61)
        assert (np.diff(low) >= -1e-12).all()
        assert (np.diff(high) >= -1e-12).all()
        return float((high - low).mean())

    assert width(40, 8) < 0.7 * width(10, 8)
    assert width(40, 8) < 0.8 * width(40, 1)


# --------------------------------------------------------------------------------------------------------- certificates


@pytest.mark.parametrize("shift", [-2.0, 0.0, 0.1, 2.5, 10.0])
def test_inertia_counts_what_the_eigenvalues_say(shift):
    values = np.array([-1.5, -1.5, -0.2, 0.3, 0.7, 1.0, 4.0, 4.0])
    found = inertia(SymmetricOperator.from_dense(with_spectrum(values)), shift)
    assert (found.below, found.above) == ((values < shift).sum(), (values > shift).sum())
    assert 0 < found.tolerance < 1e-12


def test_inertia_needs_pairs_of_pivots():
    """Zero diagonals: no 1 x 1 pivot exists, and the sign of the diagonal of D says nothing."""
    matrix = np.kron(np.diag([1.0, -2.0, 3.0]), [[0.0, 1.0], [1.0, 0.0]])
    assert counted(matrix, 0.0)[:2] == (3, 3)
    assert counted(np.zeros((4, 4)), 0.0)[:2] == (0, 0)
    assert counted(np.ones((1, 1)), 0.0)[:2] == (0, 1)


@pytest.mark.parametrize("seed", range(10))
def test_inertia_is_right_outside_its_tolerance(seed):
    values = np.sort(np.random.default_rng(seed).standard_normal(60) ** 3)
    operator = SymmetricOperator.from_dense(with_spectrum(values, seed))
    for shift in (values[10], values[30] + 1e-12, 0.0):
        found = inertia(operator, shift)
        assert (values > shift + found.tolerance).sum() <= found.above <= (values > shift - found.tolerance).sum()


def test_kato_temple_holds_and_is_quadratic():
    rng = np.random.default_rng(0)
    better = []
    for _ in range(500):
        values = np.sort(rng.standard_normal(12))
        place = int(rng.integers(0, 12))
        vector = np.zeros(12)
        vector[place] = 1
        vector += 10 ** rng.uniform(-6, -1) * rng.standard_normal(12)
        vector /= np.linalg.norm(vector)
        theta = vector**2 @ values
        residual = np.linalg.norm((values - theta) * vector)
        below = values[place - 1] if place else -np.inf
        above = values[place + 1] if place < 11 else np.inf
        low, high = kato_temple(np.array([theta]), np.array([residual]), np.array([below]), np.array([above]))
        if below < theta < above:
            assert low[0] - 1e-15 <= values[place] <= high[0] + 1e-15
            better.append((high[0] - low[0]) / (2 * residual))
    assert len(better) > 300
    assert np.median(better) < 0.05


@pytest.mark.parametrize("definite", [True, False])
def test_bounds_from_a_random_start_are_violated_less_often_than_they_admit(definite):
    values = np.concatenate([np.linspace(0, 1, 199) ** 0.5, [1.05]]) - (0 if definite else 0.5)
    matrix = with_spectrum(values)
    operator = operator_of(matrix, positive_semidefinite=definite)
    tight = 0
    for seed in range(60):
        ends = extremal_eigenvalues(operator, num_largest=1, tolerance=0.1, seed=seeded(seed))
        low, high = ends.spectral_bounds()
        assert low <= values.min()
        assert high >= values.max()
        assert ends.num_steps == ends.num_products
        tight += high < values.max() + 1.2 * (values.max() - values.min())
    assert tight > 30  # where a bound of the spread exists it is not vacuous
    assert lanczos_slack(200, 10, 1e-3) > lanczos_slack(200, 40, 1e-3) > lanczos_slack(200, 200, 1e-3) == 0
    assert lanczos_slack(200, 0, 1e-3) == math.inf


def test_a_few_steps_from_a_random_start_bound_what_they_have_not_reached():
    """Few eigenvalues near the top: ten steps leave some 3 % of the spread, and the bound must know."""
    values = torch.tensor(1 - np.linspace(0, 1, 20_000) ** 0.5)
    operator = SymmetricOperator(
        where=cv.Where("diagonal"),
        dim=len(values),
        matmat=lambda block: values[:, None] * block,
        dtype=values.dtype,
        device=values.device,
    )
    for seed in range(20):
        ends = extremal_eigenvalues(operator, num_largest=1, space=cv.KrylovSpace(max_products=10), seed=seeded(seed))
        assert ends.num_steps == 10
        assert ends.largest[0] < 0.98
        assert ends.spectral_bounds()[1] >= 1


def blind_start(seed, dim, hidden=1.2):
    """Top values 10 and 5, one just below ``hidden``, a bulk; the start vector of this seed never sees ``hidden``."""
    start = normal(seed, dim, 1)
    basis = normal(99, dim, dim)
    vector = basis[:, :1] - start @ (start.T @ basis[:, :1]) / (start.T @ start)
    vector /= torch.linalg.vector_norm(vector)
    basis[:, :1] = vector
    basis = torch.linalg.qr(basis).Q
    values = torch.tensor([hidden, 10.0, 5.0, 1.1, *np.linspace(0, 1, dim - 4)], dtype=torch.float64)
    matrix = basis @ (values[:, None] * basis.T)
    return (matrix + matrix.T) / 2


@pytest.mark.parametrize("dense", [True, False])
def test_an_eigenvector_that_the_start_cannot_see_is_reported_missing(dense):
    matrix = blind_start(17, 300)
    operator = SymmetricOperator.from_dense(matrix) if dense else operator_of(matrix)
    options = {"num_largest": 3, "tolerance": 1e-3}
    blind = extremal_eigenvalues(operator, seed=seeded(17), **options)
    assert blind.converged  # it believes so, and nothing in its residuals says otherwise
    assert blind.complete == "not checked"
    assert abs(blind.largest[2] - 1.2) > 0.05
    checked = extremal_eigenvalues(operator, seed=seeded(17), verify=True, **options)
    assert checked.complete == "incomplete"
    assert checked.num_missed == 1
    assert not checked.converged


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dense", [True, False])
def test_a_double_eigenvalue_at_either_end_is_missed_by_one_vector_and_found_by_two(dense, sign):
    matrix = with_spectrum([sign * v for v in (1.3, 1.3, 1.2, *np.linspace(0, 1, 197))])
    operator = SymmetricOperator.from_dense(matrix) if dense else operator_of(matrix)
    counts = {"num_largest": 2} if sign > 0 else {"num_largest": 0, "num_smallest": 2}
    options = {"tolerance": 1e-3, "verify": True, **counts}
    single = extremal_eigenvalues(operator, seed=seeded(0), **options)
    assert single.complete == "incomplete"
    assert not single.converged
    assert abs(single.largest[-1] if sign > 0 else single.smallest[-1]) == pytest.approx(1.2, abs=1e-2)
    pair = extremal_eigenvalues(operator, space=cv.KrylovSpace(block_size=2), seed=seeded(0), **options)
    assert pair.complete == ("certified by inertia" if dense else "checked by a second start")
    assert pair.converged
    assert np.allclose(sign * np.concatenate([pair.largest, pair.smallest]), 1.3, atol=2e-3)


@pytest.mark.parametrize("dense", [True, False])
def test_a_set_that_cuts_a_multiple_eigenvalue_is_complete(dense):
    matrix = with_spectrum([5.0, 4.0, 4.0, 4.0, *np.linspace(0, 1, 196)])
    operator = SymmetricOperator.from_dense(matrix) if dense else operator_of(matrix)
    found = extremal_eigenvalues(operator, num_largest=2, verify=True, seed=seeded(0))
    assert found.complete != "incomplete"
    assert found.num_missed == 0
    low, high = found.intervals()
    assert low[0] <= 4 <= high[0]


def test_removed_vectors_do_not_come_back_as_zeros_of_a_negative_definite_matrix():
    values = [-3.0, -3.5, *np.linspace(-10, -9, 198)]
    found = extremal_eigenvalues(operator_of(with_spectrum(values)), num_largest=2, verify=True, seed=seeded(0))
    assert found.complete == "checked by a second start"
    assert -9 <= found.unseen[1] < -8


def test_a_value_within_the_error_of_another_does_not_hide_a_missed_one():
    """Two values one and a half errors apart may belong to eigenvalues on the same side of any number between them."""
    matrix = np.diag([5.0, 1.0006, 1.0, 0.0, 0.0])
    edge, missed = _counted(matrix, np.array([1.0015, 1.0]), np.array([0.0, 1.0, 1.0015]), 1e-3)
    assert missed == 1
    assert edge > 1.0015
    assert _counted(matrix[1:, 1:], np.array([1.0015, 1.0]), np.array([0.0, 1.0, 1.0015]), 1e-3)[1] == 0


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_intervals_of_a_complete_set_hold_the_eigenvalues_in_order(seed, dense):
    rng = np.random.default_rng(seed)
    values = np.sort(np.concatenate([rng.uniform(-1, 1, 150), [-1.4, -1.2, 1.1, 1.2 + 0.1 * rng.random(), 1.5]]))
    matrix = with_spectrum(values, seed)
    operator = SymmetricOperator.from_dense(matrix) if dense else operator_of(matrix)
    found = extremal_eigenvalues(
        operator, num_largest=3, num_smallest=2, tolerance=0.01, verify=True, seed=seeded(seed)
    )
    truth = np.concatenate([values[:2], values[-3:]])
    low, high = found.intervals()
    assert found.complete == ("certified by inertia" if dense else "checked by a second start")
    assert (low <= truth).all()
    assert (truth <= high).all()
    assert found.unseen[0] <= values[2]
    assert values[-4] <= found.unseen[1]
    bottom, top = found.spectral_bounds()
    assert bottom <= values[0]
    assert top >= values[-1]
    if dense:
        assert (high - low).max() < found.residuals.max()  # quadratic, where residuals alone are linear


def test_verification_costs_nothing_unless_asked_and_half_of_the_work_then():
    matrix = with_spectrum(np.concatenate([np.linspace(0, 1, 297), [2.0, 3.0, 4.0]]))
    runs = []
    for verify in (False, True):
        widths = []
        operator = operator_of(matrix, widths=widths)
        found = extremal_eigenvalues(operator, num_largest=3, verify=verify, checks=False, seed=seeded(0))
        assert found.num_products == sum(widths)
        runs.append(found)
    assert runs[1].num_products == runs[0].num_products + max(50, runs[0].num_products // 2) + 1
    assert np.array_equal(runs[0].largest, runs[1].largest)
    assert runs[0].intervals()[1][0] - runs[0].largest[-1] == pytest.approx(runs[0].error_bounds[0])


@pytest.mark.parametrize("values", [[0.0] * 12, [2.0] * 12, [3.0] + [0.0] * 11])
@pytest.mark.parametrize("dense", [True, False])
def test_degenerate_matrices_are_verified_without_an_accident(values, dense):
    matrix = with_spectrum(values)
    operator = SymmetricOperator.from_dense(matrix) if dense else operator_of(matrix)
    found = extremal_eigenvalues(operator, num_largest=2, verify=True, seed=seeded(0))
    assert found.complete != "incomplete"
    assert np.allclose(found.largest, sorted(values)[:-3:-1], atol=1e-12)


def test_the_whole_space_needs_no_verification():
    matrix = with_spectrum([3.0, 2.0, 1.0, 0.0])
    found = extremal_eigenvalues(operator_of(matrix), num_largest=2, seed=seeded(0))
    assert found.complete == "the whole space"
    assert found.certified


# --------------------------------------------------------------------------------------------- condition number, damped


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("damping", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("smallest", [0.0, 1e-9, 0.5])
def test_damped_condition_number_lies_between_its_bounds(smallest, damping, dense):
    values = np.concatenate([np.linspace(max(smallest, 0.3), 1, 198), [smallest], [4.0]])
    matrix = with_spectrum(values)
    about = {"positive_semidefinite": True}
    operator = SymmetricOperator.from_dense(matrix, **about) if dense else operator_of(matrix, **about)
    ends = extremal_eigenvalues(operator, num_largest=1, num_smallest=1, tolerance=1e-8, verify=dense, seed=seeded(0))
    found = damped_condition_number(ends, damping)
    truth = (4 + damping) / (smallest + damping) if smallest + damping > 0 else np.inf
    assert found.low <= truth * (1 + 1e-12)
    assert truth <= found.high
    assert found.level == (1.0 if dense else 0.999)
    if damping == 1:
        assert found.high < 8.5
    if smallest == 0 and damping == 0:
        assert found.high == np.inf
        assert found.low > 1e12
    if dense and smallest == 0.5:
        assert found.high < truth * 1.001


def test_condition_number_of_a_possibly_indefinite_matrix_is_refused():
    ends = extremal_eigenvalues(operator_of(torch.eye(5, dtype=torch.float64)), num_largest=1, seed=seeded(0))
    with pytest.raises(NotDefinedError, match="indefinite"):
        damped_condition_number(ends, 1.0)
    definite = operator_of(torch.eye(5, dtype=torch.float64), positive_semidefinite=True)
    ends = extremal_eigenvalues(definite, num_largest=1, seed=seeded(0))
    with pytest.raises(ConfigurationError, match="damping"):
        damped_condition_number(ends, -1.0)
    assert damped_condition_number(ends, 1.0).value == pytest.approx(1)


# --------------------------------------------------------------------------------------------------- records, bad input


def test_default_is_exact_or_the_best_estimator_for_the_matrix():
    matrix = with_spectrum(SPECTRA["polynomial"])
    assert trace(SymmetricOperator.from_dense(matrix)).method == "exact"
    assert trace(operator_of(matrix), seed=seeded(0)).method == "xtrace"
    assert trace(operator_of(matrix, positive_semidefinite=True), seed=seeded(0)).method == "xnystrace"
    assert diagonal(operator_of(matrix), seed=seeded(0)).method == "xdiag"


@pytest.mark.parametrize("method", ["hutchinson", "xtrace", "xnystrace"])
def test_record_says_what_was_done_and_the_same_seed_gives_the_same_bits(method):
    widths = []
    matrix = with_spectrum(SPECTRA["polynomial"])
    where = cv.Where("matrix", "weight-norm", "canonical")
    operator = operator_of(matrix, where=where, widths=widths, positive_semidefinite=True)
    first, second = (trace(operator, method=method, num_products=31, seed=seeded(1)) for _ in range(2))
    assert (first.value, first.low, first.high) == (second.value, second.low, second.high)
    assert sum(widths) == 2 * first.num_products <= 62
    assert (first.matrix, first.chart, first.gauge, first.dim) == ("matrix", "weight-norm", "canonical", DIM)
    assert first.level == 0.95
    assert first.low < first.value < first.high
    assert first.standard_error > 0
    assert "trace of matrix" in str(first)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a: trace(a, method="hutch"), "method"),
        (lambda a: trace(a, method="xtrace", seed="0"), "seed"),
        (lambda a: trace(a, method="xtrace", num_products=3, seed=seeded(0)), "at least 12"),
        (lambda a: diagonal(a, method="trace"), "method"),
        (lambda a: spectral_sum(a, "cosine"), "function"),
        (lambda a: spectral_sum(a, 0), "function"),
        (lambda a: spectral_sum(a, "log", damping=-1.0), "damping"),
        (lambda a: spectral_sum(a, "log", relative_error=0), "relative_error"),
        (lambda a: spectral_sum(a, 2.0, method="quadrature", lower=0.0, max_products=5), "budget"),
        (lambda a: inertia(a, math.nan), "finite"),
        (
            lambda a: spectral_density(a, num_matvecs=2, num_probes=1, seed=seeded(0)).cumulative([0], level=2),
            "level",
        ),
    ],
)
def test_bad_calls_are_refused_in_words(call, words):
    with pytest.raises(ConfigurationError, match=words):
        call(operator_of(with_spectrum(SPECTRA["flat"])))


def test_not_a_number_is_never_averaged():
    operator = operator_of(torch.full((100, 100), torch.nan, dtype=torch.float64))
    with pytest.raises(NonFiniteError):
        trace(operator, method="xtrace", seed=seeded(0))
    broken = operator_of(torch.eye(9), routes=Routes(factor=factor_route(torch.full((9, 1), torch.nan))))
    with pytest.raises(NonFiniteError):
        trace(broken)
