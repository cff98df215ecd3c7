"""Pooling: planted effects come back, intervals cover, and the estimates are those of formulas written here."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from curvature.errors import ConfigurationError
from curvature.studies.evidence import THRESHOLD, pool
from curvature.studies.evidence.inference import side_of
from curvature.studies.evidence.pooling import _random_effects, distance_p, pooled_interval

pytest.importorskip("statsmodels")

REPETITIONS = 500
CELLS = 8
SAMPLE = {"digits": [0.5, 0.6, 0.4], "wine": [0.1, 0.2, 0.3], "text": [0.3, 0.2, 0.4], "cancer": [0.9, 0.7, 0.6]}


def paule_mandel(means, errors):
    """Variance between cells by bisection of the estimating equation; statsmodels uses Newton's method."""

    def excess(variance):
        weights = 1 / (errors**2 + variance)
        mean = weights @ means / weights.sum()
        return weights @ (means - mean) ** 2 - (len(means) - 1)

    low, high = 0.0, float(np.ptp(means) ** 2 * len(means) + 1e-9)
    if excess(low) <= 0:
        return 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return (low + high) / 2


def grid(generator, mean, tau, num_seeds, noise=0.2):
    """Paired numbers of every cell: the true effects differ by tau, the seeds of a cell by its own noise."""
    effects = mean + tau * generator.normal(size=CELLS)
    noises = noise * generator.uniform(0.5, 2, size=CELLS)
    return {
        f"cell {k}": effect + spread * generator.normal(size=num_seeds)
        for k, (effect, spread) in enumerate(zip(effects, noises, strict=True))
    }


@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(0.01, 1)), min_size=2, max_size=12))
def test_mean_spread_and_intervals_are_those_of_paule_and_mandel_and_of_hartung_and_knapp(cells):
    means, errors = np.array(cells).T
    pooled = _random_effects(means, errors)
    variance = paule_mandel(means, errors)
    assert pooled["tau"] ** 2 == pytest.approx(variance, rel=1e-3, abs=1e-4 * errors.min() ** 2)
    weights = 1 / (errors**2 + pooled["tau"] ** 2)
    mean, count = weights @ means / weights.sum(), len(means)
    knapp = (weights @ (means - mean) ** 2 / (count - 1) / weights.sum()) ** 0.5
    error = max(knapp, weights.sum() ** -0.5)
    assert pooled["estimate"] == pytest.approx(mean, rel=1e-9, abs=1e-12)
    assert pooled["standard_error"] == pytest.approx(error, rel=1e-9)
    assert pooled["weights"] == pytest.approx(tuple(weights / weights.sum()))
    assert pooled["high"] - pooled["estimate"] == pytest.approx(stats.t.ppf(0.975, count - 1) * error)
    if count > 2:
        around = stats.t.ppf(0.975, count - 2) * (pooled["tau"] ** 2 + error**2) ** 0.5
        assert pooled["prediction_high"] - pooled["estimate"] == pytest.approx(around)
    else:
        assert pooled["prediction_high"] == np.inf
    # Cochran's Q, and what the formula of DerSimonian and Laird takes from it.
    fixed = errors**-2.0
    spread = fixed @ (means - fixed @ means / fixed.sum()) ** 2
    assert pooled["i2"] == pytest.approx(max(0, (spread - count + 1) / spread) if spread else 0, abs=1e-6)
    assert pooled["heterogeneity_p"] == pytest.approx(stats.chi2.sf(spread, count - 1), abs=1e-9)


@pytest.mark.parametrize("num_seeds", [3, 10])
@pytest.mark.parametrize("tau", [0.0, 0.4])
def test_the_pooled_interval_covers_a_planted_effect(num_seeds, tau):
    generator = np.random.default_rng(num_seeds)
    pooled = [pool(grid(generator, 0.3, tau, num_seeds)) for _ in range(REPETITIONS)]
    covered = np.mean([effect.low <= 0.3 <= effect.high for effect in pooled])
    assert covered >= 0.93
    assert np.mean([effect.estimate for effect in pooled]) == pytest.approx(0.3, abs=0.03)


def test_an_effect_at_the_threshold_is_rarely_decided_in_either_direction():
    generator = np.random.default_rng(0)
    for tau in (0.0, 0.3):
        pooled = [pool(grid(generator, THRESHOLD, tau, 5)) for _ in range(REPETITIONS)]
        outcomes = [side_of(effect.low, effect.high, THRESHOLD)[0] for effect in pooled]
        assert outcomes.count("supported") <= 0.05 * REPETITIONS
        assert outcomes.count("too small") + outcomes.count("opposite") <= 0.05 * REPETITIONS


def test_a_planted_effect_is_found_and_a_planted_spread_is_seen():
    generator = np.random.default_rng(1)
    equal = [pool(grid(generator, 0.4, 0.0, 10)) for _ in range(100)]
    spread = [pool(grid(generator, 0.4, 0.5, 10)) for _ in range(100)]
    assert np.mean([effect.low > THRESHOLD for effect in equal]) >= 0.95
    assert np.mean([effect.heterogeneity_p < 0.05 for effect in equal]) <= 0.15
    assert np.mean([effect.heterogeneity_p < 0.05 for effect in spread]) >= 0.95
    assert np.median([effect.tau for effect in spread]) == pytest.approx(0.5, abs=0.1)
    assert np.median([effect.i2 for effect in spread]) > 0.9


def test_the_prediction_interval_covers_another_cell():
    generator = np.random.default_rng(2)
    pooled = [pool(grid(generator, 0.3, 0.4, 10)) for _ in range(REPETITIONS)]
    others = 0.3 + 0.4 * generator.normal(size=REPETITIONS)
    inside = [e.prediction_low <= other <= e.prediction_high for e, other in zip(pooled, others, strict=True)]
    assert np.mean(inside) >= 0.9


def test_the_interval_at_another_level_and_its_p_value_agree():
    effect = pool(SAMPLE)
    assert pooled_interval(effect) == pytest.approx((effect.low, effect.high))
    p_value = distance_p(effect, effect.low)
    assert p_value == pytest.approx(0.05)
    assert pooled_interval(effect, 0.5)[0] > effect.low


def test_one_cell_says_nothing_about_others_and_no_cell_says_nothing():
    one, none = pool({"digits": [0.1, 0.2, 0.3]}), pool({})
    assert (one.estimate, one.low, one.weights) == (pytest.approx(0.2), -np.inf, (1.0,))
    assert np.isnan(distance_p(one, 0.1))
    assert np.isnan(none.estimate)
    assert pooled_interval(none) == (-np.inf, np.inf)


def test_seeds_that_agree_exactly_do_not_divide_by_zero():
    effect = pool({"a": [0.0, 0.0, 0.0], "b": [0.0, 0.0, 0.0], "c": [0.0, 0.0, 0.0]})
    assert effect.estimate == 0
    assert effect.high < 1e-5
    mixed = pool({"a": [0.0, 0.0, 0.0], "b": [0.3, 0.4, 0.5], "c": [0.2, 0.4, 0.6]})
    assert mixed.weights == pytest.approx((1 / 3, 1 / 3, 1 / 3), abs=0.15)


def test_a_cell_whose_three_seeds_agree_by_chance_does_not_get_all_the_weight():
    effect = pool({"a": [0.300, 0.301, 0.302], "b": [0.1, 0.5, 0.3], "c": [0.2, 0.4, 0.6], "d": [0.1, 0.2, 0.5]})
    assert max(effect.weights) < 0.5  # without the other cells: 0.9999
    assert effect.standard_errors[0] == pytest.approx(0.001 / 3**0.5)


def test_a_cell_of_one_seed_is_refused():
    with pytest.raises(ConfigurationError, match="at least two seeds"):
        pool({"digits": [0.1]})


def test_the_message_without_statsmodels_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "statsmodels.stats.meta_analysis", None)
    with pytest.raises(ConfigurationError, match=r"curvature-toolkit\[grid\]"):
        pool(SAMPLE)
