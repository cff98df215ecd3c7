"""Condition numbers against formulas in fifty digits, gradient descent step by step, and what they must obey."""

import itertools
import json
import math
from dataclasses import replace

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import curvature as cv
from curvature.records import Quantity, Spectrum, Where

PERCENTS = (50, 80, 95)


def spectrum_of(values, *, rank=None, floor=None, semidefinite=True, weights=None, method="dense"):
    values = np.asarray(values, dtype=np.float64)
    order = np.argsort(values)
    largest = float(np.abs(values).max())
    return Spectrum(
        where=Where("ggn", "standard"),
        eigenvalues=values[order],
        positive_semidefinite=semidefinite,
        method=method,
        noise_floor=1e-15 * largest if floor is None else floor,
        rank=int((values != 0).sum()) if rank is None else rank,
        rank_rule="by hand",
        gradient_weights=None if weights is None else np.asarray(weights, dtype=np.float64)[order],
    )


def positive(min_size=1, max_size=30, decades=6):
    """Spectra without zeros, over some decades."""
    exponent = st.floats(-decades, 0)
    return st.lists(exponent, min_size=min_size, max_size=max_size).map(lambda e: 10.0 ** np.array(e))


# ------------------------------------------------------------------------------------------------ formulas


def by_formula(values, rank, damping=1e-6):
    """Every summary in fifty digits, from the definitions, one eigenvalue at a time."""
    with mpmath.workdps(50):
        every = sorted((mpmath.mpf(float(v)) for v in values), reverse=True)
        kept, dim = every[:rank], len(every)
        total = mpmath.fsum(every)
        logs = [mpmath.log(v) for v in kept]
        mean_log = mpmath.fsum(logs) / rank
        shift = mpmath.mpf(damping) * total / dim
        damped = [mpmath.log(v + shift) for v in every]
        mean_damped = mpmath.fsum(damped) / dim
        shares = [v / total for v in every if v > 0]
        found = {
            "kappa_rank": kept[0] / kept[-1],
            "am_gm": mpmath.log(mpmath.fsum(kept) / rank) - mean_log,
            "ai_distance": mpmath.sqrt(mpmath.fsum((x - mean_log) ** 2 for x in logs) / rank),
            "am_gm_damped": mpmath.log(total / dim + shift) - mean_damped,
            "ai_distance_damped": mpmath.sqrt(mpmath.fsum((x - mean_damped) ** 2 for x in damped) / dim),
            "bures": 1 - mpmath.fsum(mpmath.sqrt(v) for v in every) ** 2 / (dim * total),
            "l1_over_mean": dim * every[0] / total,
            "participation_ratio": total**2 / mpmath.fsum(v**2 for v in every),
            "effective_rank": mpmath.exp(-mpmath.fsum(p * mpmath.log(p) for p in shares)),
            "stable_rank": mpmath.fsum(v**2 for v in every) / every[0] ** 2,
            "intrinsic_dimension": total / every[0],
        }
        for percent in PERCENTS:
            position = next(k for k in range(1, rank + 1) if 100 * k >= percent * rank)
            found[f"kappa_{percent}"] = kept[0] / kept[position - 1]
        return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize("zeros", [0, 3])
@pytest.mark.parametrize("rank", [1, 2, 7, 19, 20, 21, 40])
def test_every_quantity_equals_its_formula(rank, zeros):
    rng = np.random.default_rng(rank)
    values = np.concatenate([10 ** rng.uniform(-6, 2, rank), np.zeros(zeros)])
    found = cv.condition_numbers(spectrum_of(values))
    expected = by_formula(values, rank)
    assert found.values.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, rel=1e-12, abs=1e-14), name
        assert found[name].status == "resolved", name


@pytest.mark.parametrize("damping", [1e-9, 1e-3, 1.0])
def test_damped_sphericity_equals_its_formula(damping):
    values = np.array([4.0, 1.0, 1e-5, 0.0])
    found = cv.condition_numbers(spectrum_of(values), relative_damping=damping)
    expected = by_formula(values, 3, damping)
    for name in ("am_gm_damped", "ai_distance_damped"):
        assert found[name].value == pytest.approx(expected[name], rel=1e-12)
        assert f"{damping:g}" in found[name].note


def test_an_absolute_damping_of_the_sphericity_is_that_share_of_the_mean():
    values = np.array([4.0, 1.0, 0.5, 0.0])
    relative = cv.sphericity(values, relative_damping=0.01)
    absolute = cv.sphericity(values, damping=0.01 * values.mean())
    for name in ("am_gm_damped", "ai_distance_damped"):
        assert absolute[name].value == pytest.approx(relative[name].value, rel=1e-13)
    with pytest.raises(cv.ConfigurationError, match="not both"):
        cv.sphericity(values, damping=0.01, relative_damping=0.01)


@pytest.mark.parametrize(
    ("percent", "rank", "position"), [(95, 20, 19), (95, 21, 20), (50, 5, 3), (80, 5, 4), (50, 1, 1)]
)
def test_percentiles_count_eigenvalues_without_rounding(percent, rank, position):
    """``ceil(0.95 * 20)`` is 19, though ``0.95 * 20`` is a little more in binary in some libraries."""
    values = 2.0 ** -np.arange(rank)
    assert cv.condition_numbers(spectrum_of(values))[f"kappa_{percent}"].value == 2.0 ** (position - 1)


def test_damped_condition_numbers_are_those_of_the_shifted_matrix():
    values = np.array([5.0, 2.0, 1e-4, 0.0])
    found = cv.condition_numbers(spectrum_of(values)).damped
    mean = values.mean()
    assert np.allclose(sorted(found), mean * 10.0 ** np.arange(-6, 1), rtol=1e-14)
    for delta, (kappa, dimension) in found.items():
        assert kappa.value == pytest.approx((5.0 + delta) / delta, rel=1e-13)
        assert dimension.value == pytest.approx(sum(v / (v + delta) for v in values), rel=1e-13)


# ------------------------------------------------------------------------------------------------ gradient descent


def descend(values, components, accuracy):
    """Steps of gradient descent at rate ``1 / l_1`` on ``sum l x^2 / 2`` until ``accuracy`` of the gap is left."""
    x = np.array(components) / np.array(values)  # gradient l x
    start = float(np.sum(values * x**2) / 2)
    steps = 0
    while np.sum(values * x**2) / 2 > accuracy * start:
        x = x - (values * x) / np.max(values)
        steps += 1
    return steps


@pytest.mark.parametrize("accuracy", [0.3, 1e-2, 1e-4])
@pytest.mark.parametrize("seed", range(6))
def test_gd_time_counts_the_steps_of_gradient_descent(seed, accuracy):
    rng = np.random.default_rng(seed)
    values, components = 10 ** rng.uniform(-2.5, 0, 12), rng.standard_normal(12)
    found = cv.condition_numbers(spectrum_of(values, weights=components**2), accuracy=accuracy)["gd_time"]
    assert found.status == "resolved"
    assert f"{accuracy:g}" in found.note
    assert math.ceil(found.value - 1e-6) == descend(values, components, accuracy)


@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    ("values", "weights"),
    [([2.0], [1.0]), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), ([1.0, 0.5], [1.0, 0.0]), ([1.0, 0.1], [1.0, 1e-9])],
)
def test_gradient_descent_on_one_eigenvalue_takes_one_step(values, weights):
    """At rate ``1 / l_1`` the first step ends there; zero would make every log-ratio infinite."""
    assert descend(np.array(values), np.sqrt(weights), 1e-2) == 1
    found = cv.condition_numbers(spectrum_of(values, weights=weights))["gd_time"]
    assert 0 < found.value <= 1


@pytest.mark.parametrize("kappa", [1e2, 1e6, 1e12, 1e17, 1e20])
def test_gd_time_of_one_slow_direction_is_its_decay_time(kappa):
    """All the gap in one eigenvalue: ``t = log(accuracy) / (2 log(1 - 1/kappa))``."""
    found = cv.condition_numbers(spectrum_of([1.0, 1 / kappa], weights=[0.0, 1.0], floor=1e-30, method="factor"))[
        "gd_time"
    ]
    with mpmath.workdps(50):
        expected = mpmath.log(mpmath.mpf("0.01")) / (2 * mpmath.log(1 - 1 / mpmath.mpf(kappa)))
    assert found.value == pytest.approx(float(expected), rel=1e-7)


def test_gd_time_ignores_zero_modes_and_directions_without_gradient():
    values, weights = [1.0, 0.1, 1e-3], [0.3, 1.0, 0.5]
    once = cv.condition_numbers(spectrum_of(values, weights=weights))["gd_time"].value
    with_zero = spectrum_of([*values, 0.0], rank=3, weights=[*weights, 0.0])
    idle = spectrum_of([*values, 1e-9], weights=[*weights, 0.0])
    assert cv.condition_numbers(with_zero)["gd_time"].value == pytest.approx(once, rel=1e-8)
    assert cv.condition_numbers(idle)["gd_time"].value == pytest.approx(once, rel=1e-8)


def test_gd_time_says_when_it_hangs_on_noise():
    """Half of the gap lies in a direction whose eigenvalue is noise."""
    noisy = spectrum_of([1.0, 1e-16], weights=[1.0, 1e-16], floor=1e-15, rank=2)
    found = cv.condition_numbers(noisy)["gd_time"]
    assert found.status == "unresolved"
    assert "50% of the gap lies below the noise floor" in found.note
    assert str(found).startswith("(")


def test_gd_time_needs_a_gradient():
    assert "gd_time" not in cv.condition_numbers(spectrum_of([2.0, 1.0])).values
    nothing = cv.condition_numbers(spectrum_of([2.0, 1.0, 0.0], weights=[0.0, 0.0, 1.0]))["gd_time"]
    assert (nothing.status, math.isnan(nothing.value)) == ("undefined", True)


# ------------------------------------------------------------------------------------------------ what is not resolved


def test_a_ratio_to_noise_is_a_lower_bound():
    found = cv.condition_numbers(spectrum_of([1.0, 0.5, 0.25, 1e-17], floor=1e-15, rank=4))
    # Computed as 1e-17, it may be as large as that and a floor: a bound with the floor alone would not be one.
    assert (found["kappa_rank"].status, found["kappa_rank"].high) == ("lower_bound", math.inf)
    assert found["kappa_rank"].value == found["kappa_rank"].low == pytest.approx(1 / 1.01e-15, rel=1e-14)
    assert "eigenvalue 4 of 4 is below the noise floor" in found["kappa_rank"].note
    assert str(found["kappa_rank"]) == "> 9.901e+14"
    assert (found["kappa_50"].status, found["kappa_50"].value) == ("resolved", 2.0)
    assert found["kappa_95"] == found["kappa_rank"]
    for name in ("am_gm", "ai_distance"):
        assert found[name].status == "unresolved"
        assert "1 of 4 eigenvalues are below the noise floor" in found[name].note


def test_the_zero_matrix_has_no_condition_number():
    found = cv.condition_numbers(spectrum_of([0.0, 0.0], floor=0.0))
    assert {found[name].status for name in ("kappa_rank", *(f"kappa_{p}" for p in PERCENTS))} == {"undefined"}
    assert all(math.isnan(quantity.value) for quantity in found.values.values())
    assert found["kappa_rank"].note == "the matrix is zero"


def test_an_indefinite_matrix_has_no_condition_number_but_ratios_of_absolute_values():
    values = np.array([4.0, -3.0, 2.0, -0.5])
    found = cv.condition_numbers(spectrum_of(values, semidefinite=False))
    for name in ("kappa_rank", "kappa_50", "kappa_80", "kappa_95"):
        assert found[name].status == "indefinite"
        assert found[name].note == "2 eigenvalues are negative and 2 positive beyond the noise floor"
    assert found["abs_kappa_50"].value == pytest.approx(4 / 3)
    assert found["abs_kappa_80"].value == pytest.approx(8.0)
    assert found["stable_rank"].value == pytest.approx((values**2).sum() / 16)
    assert found["participation_ratio"].value == pytest.approx(values.sum() ** 2 / (values**2).sum())
    assert {"am_gm", "bures", "gd_time", "effective_rank"}.isdisjoint(found.values)
    assert list(found.headline)[-3:] == ["abs_kappa_50", "abs_kappa_80", "abs_kappa_95"]


def test_negative_rounding_does_not_make_a_hessian_indefinite():
    found = cv.condition_numbers(spectrum_of([-1e-16, 1.0, 2.0], rank=2, semidefinite=False, floor=1e-15))
    assert (found["kappa_rank"].status, found["kappa_rank"].value) == ("resolved", 2.0)
    barely = cv.condition_numbers(spectrum_of([-2e-15, 1.0, 2.0], rank=3, semidefinite=False, floor=1e-15))
    assert barely["kappa_rank"].status == "indefinite"


def test_impossible_options_are_refused():
    for accuracy in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(cv.ConfigurationError, match="accuracy must lie between 0 and 1"):
            cv.condition_numbers(spectrum_of([1.0]), accuracy=accuracy)
    for damping in (0.0, -1.0, math.nan):
        with pytest.raises(cv.ConfigurationError, match="damping must be positive"):
            cv.condition_numbers(spectrum_of([1.0]), relative_damping=damping)


# ------------------------------------------------------------------------------------------------ properties


@given(values=positive())
def test_effective_dimensions_are_ordered(values):
    """Renyi entropies fall with their order: infinity, two, one, zero."""
    found = {name: quantity.value for name, quantity in cv.condition_numbers(spectrum_of(values)).values.items()}
    names = ("stable_rank", "intrinsic_dimension", "participation_ratio", "effective_rank")
    chain = [1.0, *(found[name] for name in names), float(len(values))]
    assert all(small <= large * (1 + 1e-12) for small, large in itertools.pairwise(chain)), chain


@given(values=positive())
def test_ratios_and_distances_keep_their_bounds(values):
    found = {name: quantity.value for name, quantity in cv.condition_numbers(spectrum_of(values)).values.items()}
    chain = [1.0, *(found[f"kappa_{percent}"] for percent in PERCENTS), found["kappa_rank"]]
    assert chain == sorted(chain)
    assert 0 <= found["am_gm"] <= math.log(found["kappa_rank"]) + 1e-12
    assert 0 <= found["ai_distance"] <= math.log(found["kappa_rank"]) / 2 + 1e-12  # Popoviciu
    assert 0 <= found["am_gm_damped"] <= found["am_gm"] + 1e-12  # a shift towards the identity
    assert 0 <= found["bures"] < 1
    assert 1 - 1e-12 <= found["l1_over_mean"] <= len(values) * (1 + 1e-12)


@given(values=positive(min_size=2))
def test_damping_improves_the_condition_number_and_lowers_the_effective_dimension(values):
    damped = cv.condition_numbers(spectrum_of(values)).damped
    kappas, dimensions = zip(*([q.value for q in damped[delta]] for delta in sorted(damped)), strict=True)
    assert list(kappas) == sorted(kappas, reverse=True)
    assert list(dimensions) == sorted(dimensions, reverse=True)
    assert kappas[0] <= values.max() / values.min() * (1 + 1e-12)
    assert dimensions[0] <= len(values)


@pytest.mark.timeout(30)
@given(values=positive(min_size=2), exponent=st.integers(-100, 100), seed=st.integers(0, 100))
def test_no_quantity_depends_on_the_scale(values, exponent, seed):
    """Powers of two are exact; the gradient scales with the loss like the eigenvalues."""
    weights = np.random.default_rng(seed).standard_normal(len(values)) ** 2
    scale = 2.0**exponent
    once = cv.condition_numbers(spectrum_of(values, weights=weights))
    scaled = cv.condition_numbers(spectrum_of(scale * values, weights=scale**2 * weights))
    for name, quantity in once.values.items():
        assert scaled[name].status == quantity.status
        assert scaled[name].value == pytest.approx(quantity.value, rel=1e-9, abs=1e-13), name


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_extreme_scales_neither_overflow_nor_vanish(scale):
    values = np.array([4.0, 2.0, 1.0])
    once, scaled = (cv.condition_numbers(spectrum_of(factor * values)) for factor in (1.0, scale))
    for name, quantity in once.values.items():
        assert scaled[name].value == pytest.approx(quantity.value, rel=1e-9), name


@given(values=positive(), zeros=st.integers(0, 10))
def test_zeros_outside_the_rank_change_only_what_counts_the_dimension(values, zeros):
    once = cv.condition_numbers(spectrum_of(values))
    more = cv.condition_numbers(spectrum_of(np.concatenate([values, np.zeros(zeros)]), rank=len(values)))
    for name in (
        "kappa_rank",
        "kappa_80",
        "am_gm",
        "ai_distance",
        "effective_rank",
        "participation_ratio",
        "stable_rank",
    ):
        assert more[name].value == pytest.approx(once[name].value, rel=1e-12, abs=1e-14), name
    share = len(values) / (len(values) + zeros)
    assert 1 - more["bures"].value == pytest.approx(share * (1 - once["bures"].value), rel=1e-12)


@pytest.mark.parametrize("dim", [1, 2, 10])
def test_a_multiple_of_the_identity_is_perfect(dim):
    found = cv.condition_numbers(spectrum_of([3.0] * dim))
    for name, best in {
        **dict.fromkeys(["kappa_rank", "kappa_50", "kappa_80", "kappa_95", "l1_over_mean"], 1.0),
        **dict.fromkeys(["am_gm", "ai_distance", "am_gm_damped", "ai_distance_damped", "bures"], 0.0),
        **dict.fromkeys(["participation_ratio", "effective_rank", "stable_rank", "intrinsic_dimension"], float(dim)),
    }.items():
        assert found[name].value == pytest.approx(best, abs=1e-14), name


@given(values=positive(min_size=2), seed=st.integers(0, 100))
def test_sphericity_depends_neither_on_order_nor_on_scale(values, seed):
    shuffled = np.random.default_rng(seed).permutation(values)
    once = cv.sphericity(values)
    for other in (cv.sphericity(shuffled), cv.sphericity(1e-9 * values)):
        for name, quantity in once.items():
            assert other[name].value == pytest.approx(quantity.value, rel=1e-9, abs=1e-12), name


def test_sphericity_of_the_zero_matrix_is_undefined():
    assert {quantity.status for quantity in cv.sphericity(np.zeros(3)).values()} == {"undefined"}


# ------------------------------------------------------------------------------------------------ Marchenko-Pastur


@pytest.mark.parametrize(("dim", "num_examples"), [(50, 1000), (200, 800), (800, 200)])
def test_marchenko_pastur_ratio_is_that_of_sampled_covariances(dim, num_examples):
    """Even a perfectly spherical truth looks ill-conditioned; the edges converge like ``N^(-2/3)``."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(5):
        singular = np.linalg.svd(rng.standard_normal((num_examples, dim)), compute_uv=False)
        ratios.append((singular[0] / singular[-1]) ** 2)
    assert cv.marchenko_pastur_ratio(dim, num_examples) == pytest.approx(np.exp(np.mean(np.log(ratios))), rel=0.1)


def test_marchenko_pastur_ratio_is_symmetric_and_diverges_at_the_square():
    assert cv.marchenko_pastur_ratio(3, 12) == cv.marchenko_pastur_ratio(12, 3) == pytest.approx(9.0)
    assert cv.marchenko_pastur_ratio(5, 5) == math.inf
    for wrong in ((0, 3), (3, 0), (-1, 3)):
        with pytest.raises(cv.ConfigurationError, match="must be at least 1"):
            cv.marchenko_pastur_ratio(*wrong)


# ------------------------------------------------------------------------------------------------ records


def test_condition_numbers_carry_their_context_and_refuse_unknown_names():
    where = Where("ggn", "weight-norm", "paper", num_examples=9)
    found = replace(spectrum_of([2.0, 1.0]), where=where).condition_numbers()
    assert (found.matrix, found.chart, found.gauge, found.num_examples) == ("ggn", "weight-norm", "paper", 9)
    with pytest.raises(cv.ConfigurationError, match=r"ggn has no quantity 'kappa'\. It has kappa_rank"):
        found["kappa"]
    assert "\n" not in repr(found)
    assert "weight-norm (paper)" in repr(found)
    told = json.loads(json.dumps(found.to_dict()))["kappa_50"]
    assert (told["value"], told["status"], told["note"]) == (1.0, "resolved", "")
    assert told["low"] == 1.0 <= told["high"] < 1 + 1e-14


@pytest.mark.parametrize(
    ("quantity", "shown"),
    [
        (Quantity(12345.678), "1.235e+04"),
        (Quantity(1e15, "lower_bound"), "> 1e+15"),
        (Quantity(7.0, "unresolved"), "(7)"),
        (Quantity(7.0, "upper_bound_only"), "< 7"),
        (Quantity(-3e-17, "below_noise_floor", low=-1e-15, high=1e-15), "< 1e-15"),
        (Quantity(math.nan, "undefined"), "undefined"),
        (Quantity(math.nan, "indefinite"), "indefinite"),
    ],
)
def test_numbers_are_shown_with_their_status(quantity, shown):
    assert str(quantity) == shown
