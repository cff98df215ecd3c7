"""Claims with known answers come out as known, mistakes are as rare as promised, and parts add up."""

import csv
import itertools
import json
import math
from collections import Counter
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import curvature as cv
from curvature import report
from curvature.charts import Standard, WeightNorm
from curvature.errors import ConfigurationError
from curvature.models import zoo
from curvature.natural_gradient import alignments, compare_charts, control_charts, preconditioner, whitening
from curvature.records import Check, ConditionNumbers, LearningRateSweep, Measured, Quantity, TrainingCurve, Verdict
from curvature.records.marchenko_pastur import marchenko_pastur_bures
from curvature.records.sphericity import sphericity
from curvature.report.claims import label_of
from curvature.studies import quick_settings, run_study
from curvature.studies.evidence import (
    LINEAR_PART,
    SOURCES,
    THRESHOLD,
    adjust,
    claims,
    decide,
    decompose,
    decomposition,
    holm,
    interval_at,
    log_ratio,
    median_interval,
    paired_interval,
    part_intervals,
    verdicts,
)
from curvature.studies.evidence import pairs as pairing
from curvature.studies.evidence.claims.training import _gap
from curvature.studies.training import SGD, Schedule, learning_rate_sweep, train

REPETITIONS = 200
POOL = 60
NUM_SEEDS = 5
SCALES = torch.tensor([3.0, 1.3, 1.0, 0.8, 0.6, 0.5], dtype=torch.float64)


def least_squares(seed, direction=None, scales=SCALES, num_examples=60):
    """One linear neuron; ``direction`` puts its weights along the k-th eigenvector of the input covariance."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_examples, len(scales), generator=generator, dtype=torch.float64) * scales
    targets = torch.randn(num_examples, 1, generator=generator, dtype=torch.float64)
    layer = nn.Linear(len(scales), 1, bias=False, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(inputs.T @ inputs / num_examples)
    weights = torch.randn(len(scales), generator=generator, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_((weights if direction is None else vectors[:, direction])[None])
    return cv.Problem.from_module(layer, loss="half-squared-error", data=(inputs, targets)), values


def measured(records, arm="weight-norm", checkpoint="late"):
    return [Measured(arm, seed, checkpoint, 1, record) for seed, record in records]


def numbers(problem, chart=None, *, effective=True):
    ggn = cv.ggn(problem)
    if chart is not None:
        ggn = cv.effective(ggn, chart) if effective else cv.pullback(ggn, chart)
    return cv.spectrum(ggn).condition_numbers()


def pool(direction):
    """Condition numbers of ``POOL`` problems: standard, weight norm with the best stretch, canonical gauge."""
    found = []
    for seed in range(POOL):
        problem, values = least_squares(seed, direction)
        tuned = WeightNorm(stretch=float(values[-2] / values[-1]) ** 0.5)  # rho = l1 / l2
        found.append([numbers(problem), numbers(problem, tuned), numbers(problem, WeightNorm(), effective=False)])
    return found


@pytest.fixture(scope="module")
def top():
    return pool(-1)


@pytest.fixture(scope="module")
def bottom():
    return pool(0)


def outcomes(repetition, number=REPETITIONS):
    """Counts of outcomes over repetitions that each draw their own seeds."""
    drawn = (np.random.default_rng(k).choice(POOL, NUM_SEEDS, replace=False) for k in range(number))
    return Counter(repetition(choice).outcome for choice in drawn)


def rare(count, number, rate):
    """Whether ``count`` of ``number`` is what a chance of at most ``rate`` could give (one in a thousand beyond)."""
    return count <= stats.binom.ppf(0.999, number, rate)


# ------------------------------------------------------------------------------------------------------ known answers


def gain(rows, choice, **options):
    standard, tuned, canonical = (measured([(int(k), rows[k][column]) for k in choice]) for column in range(3))
    return claims.conditioning(tuned, standard, control=(canonical, standard), **options)


def test_weights_along_the_top_eigenvector_with_the_best_stretch_support_better_conditioning(top):
    assert outcomes(lambda choice: gain(top, choice))["supported"] >= 0.95 * REPETITIONS


def test_weights_along_the_bottom_eigenvector_exclude_better_conditioning(bottom):
    for quantity in ("kappa_80", "kappa_95"):
        found = outcomes(lambda choice, quantity=quantity: gain(bottom, choice, quantity=quantity))
        assert found["too small"] + found["opposite"] >= 0.95 * REPETITIONS


def test_the_gain_is_the_one_that_theory_gives(top):
    ratios = [float(values[-1] / values[-2]) for values in (least_squares(seed, -1)[1] for seed in range(POOL))]
    verdict = gain(top, range(POOL), quantity="kappa_95")
    assert np.allclose(verdict.effects, np.log(ratios), atol=1e-9)
    assert verdict.num_pairs == POOL
    assert verdict.control_passed
    assert abs(verdict.control_estimate) < 1e-12


def test_the_canonical_gauge_makes_no_difference_exactly(top):
    standard = measured([(k, row[0]) for k, row in enumerate(top[:4])])
    same = claims.conditioning(standard, standard)
    assert (same.outcome, same.estimate, same.low, same.high) == ("too small", 0.0, 0.0, 0.0)
    assert same.p_value == 0.0
    assert "no difference, exactly" in str(same)
    canonical = measured([(k, row[2]) for k, row in enumerate(top[:4])])
    rounded = claims.conditioning(canonical, standard)
    assert rounded.outcome == "too small"
    assert abs(rounded.estimate) < 1e-12


def test_two_arms_of_one_kind_are_rarely_told_apart(top):
    rows = [row[0] for row in top]

    def null(choice):
        rng = np.random.default_rng(int(choice.sum()))
        others = rng.choice(POOL, NUM_SEEDS, replace=False)
        ours = measured([(k, rows[one]) for k, one in enumerate(choice)])
        theirs = measured([(k, rows[one]) for k, one in enumerate(others)])
        return claims.conditioning(ours, theirs, threshold=0.0)

    found = outcomes(null)
    assert rare(found["supported"] + found["too small"] + found["opposite"], REPETITIONS, 0.05)


def test_a_control_that_is_not_zero_stops_the_verdict(top):
    standard = measured([(k, row[0]) for k, row in enumerate(top[:5])])
    tuned = measured([(k, row[1]) for k, row in enumerate(top[:5])])
    stopped = claims.conditioning(tuned, standard, control=(tuned, standard))
    assert (stopped.outcome, stopped.control_passed) == ("undecided", False)
    assert "the control failed" in stopped.rule


def noise_records(direction, scales=SCALES, seeds=range(6), num_examples=300, size=1.0):
    aligned, whitened = [], []
    for seed in seeds:
        problem, _ = least_squares(seed, direction, scales, num_examples)
        problem = problem.at(size * problem.weights)
        generator = torch.Generator().manual_seed(seed)
        aligned += measured([(seed, record) for record in alignments(problem, seed=generator)])
        whitened += measured([(seed, record) for record in whitening(problem, seed=generator)])
    return aligned, whitened


def test_noise_along_the_weights_supports_alignment_and_whitening_and_across_them_supports_neither():
    loud = torch.cat([torch.tensor([6.0]), torch.ones(7)]).double()
    for direction, expected in ((-1, {"supported"}), (3, {"too small", "opposite"})):
        aligned, whitened = noise_records(direction, loud)
        assert claims.alignment(aligned).outcome in expected
        found = claims.sphericity(whitened)
        assert found.outcome in expected
        assert found.control_passed
        assert "sampling alone" in found.note


def test_isotropic_noise_supports_no_whitening_and_no_alignment():
    """Small weights: with larger ones the residual, and so the noise, is largest along the weights themselves."""
    outcomes = []
    for start in range(0, 40, 5):
        seeds = range(start, start + 5)
        aligned, whitened = noise_records(None, torch.ones(12).double(), seeds=seeds, size=1e-6)
        outcomes.append(claims.sphericity(whitened).outcome)
        assert claims.alignment(aligned).outcome == "too small"
    assert "supported" not in outcomes


def test_alignment_in_two_dimensions_is_no_evidence():
    """A random direction in the plane lies within 45 degrees of any other half of the time."""
    aligned, _ = noise_records(-1, torch.tensor([3.0, 0.3]).double(), seeds=range(4))
    near = [replace(m, record=replace(m.record, cosine=0.9)) if m.record.direction == "random" else m for m in aligned]
    assert claims.alignment(near).outcome == "undecided"
    with pytest.raises(ConfigurationError, match="against must be"):
        claims.alignment(near, against="nothing")


def test_alignment_against_the_mean_input_says_which_of_the_two_is_closer():
    shifted = []
    for seed in range(5):
        problem, _ = least_squares(seed, 0)
        moved = cv.Problem.from_module(
            nn.Linear(6, 1, bias=False, dtype=torch.float64),
            loss="half-squared-error",
            data=(problem.inputs + 8.0, problem.targets),
        )
        shifted += measured([(seed, r) for r in alignments(moved, seed=torch.Generator().manual_seed(seed))])
    assert claims.alignment(shifted, against="mean input").outcome == "opposite"


def steps(own, seeds=4):
    """Step comparisons in which ``own(problem)`` takes the place of weight norm at the gauge of a checkpoint."""
    found = []
    for seed in range(seeds):
        problem, _ = least_squares(seed)
        charts = control_charts(problem, relative_damping=1e-3, seed=seed)
        for record in compare_charts(problem, charts, relative_dampings=(1e-3,)):
            found.append((seed, record))
        (record,) = compare_charts(problem, [own(problem)], relative_dampings=(1e-3,))
        found.append((seed, replace(record, chart="weight-norm", gauge="checkpoint")))
    return measured(found)


def test_the_natural_gradient_resembles_itself_and_gradient_descent_does_not():
    natural = steps(lambda problem: preconditioner(problem, "neuron-block", relative_damping=1e-3))
    assert claims.resemblance(natural).outcome == "supported"
    assert claims.resemblance(natural).estimate == pytest.approx(1.0)
    assert claims.closeness(natural).outcome == "supported"
    plain = steps(lambda _: Standard())
    index = claims.resemblance(plain)
    assert index.outcome == "too small"
    assert index.estimate == pytest.approx(0.0, abs=1e-9)
    close = claims.closeness(plain)
    assert (close.outcome, close.control_estimate) == ("too small", pytest.approx(0.0, abs=1e-12))
    assert claims.efficiency(plain).control_passed


def test_the_index_where_both_ends_coincide_is_missing_and_counted():
    plain = steps(lambda _: Standard())
    undefined = [replace(m, record=replace(m.record, index=math.nan)) for m in plain]
    found = claims.resemblance(undefined)
    assert (found.outcome, found.num_pairs, found.num_missing) == ("undecided", 0, 4)
    assert math.isnan(found.estimate)


# ---------------------------------------------------------------------------------------------------- training curves


@pytest.fixture(scope="module")
def sweep():
    """Whole-batch gradient descent and natural gradient at five rates, ten seeds: the second is faster by design."""
    curves = []
    for seed in range(10):
        problem, values = least_squares(seed, num_examples=20)
        natural = preconditioner(problem, "full", relative_damping=1e-3)
        for arm, chart, unit in (("standard", Standard(), 1 / float(values[-1])), ("weight-norm", natural, 1.0)):
            for rate in (0.04, 0.2, 1.0, 1.9, 1.99):
                run = train(
                    problem,
                    chart,
                    Schedule(12, 20),
                    arm=arm,
                    seed=seed,
                    optimizer=SGD(rate * unit),
                )
                curves.append(replace(run.curve, learning_rate=rate))
    return curves


def tuned(curves):
    """The sweep of every arm and seed over the rates of its curves, and its curve at the rate chosen."""
    groups = {}
    for curve in curves:
        groups.setdefault((curve.arm, curve.seed), {})[curve.learning_rate] = curve
    sweeps = [
        learning_rate_sweep(arm, seed, sorted(runs), [runs[rate].losses[-1] for rate in sorted(runs)], budget=12)
        for (arm, seed), runs in groups.items()
    ]
    return [groups[sweep.arm, sweep.seed][sweep.chosen] for sweep in sweeps], sweeps


def swapped(records):
    names = {"standard": "weight-norm", "weight-norm": "standard"}
    return [replace(record, arm=names[record.arm]) for record in records]


def test_the_faster_arm_is_found_and_swapping_the_arms_flips_the_sign(sweep):
    curves, sweeps = tuned(sweep)
    fast = claims.training_speed(curves, sweeps)
    assert (fast.outcome, fast.num_pairs, fast.method) == ("supported", 10, "sign")
    slow = claims.training_speed(swapped(curves), swapped(sweeps))
    assert slow.outcome == "opposite"
    assert slow.estimate == pytest.approx(-fast.estimate)
    assert sorted(slow.effects) == pytest.approx(sorted(-e for e in fast.ceilings or fast.effects))


def test_an_arm_is_as_fast_as_itself(sweep):
    plain = [curve for curve in sweep if curve.arm == "standard"]
    twins = plain + [replace(curve, arm="weight-norm") for curve in plain]
    curves, sweeps = tuned(twins)
    found = claims.training_speed(curves, sweeps)
    assert (found.outcome, found.estimate) == ("too small", 0.0)
    widths = claims.self_stabilizing(sweeps)
    assert widths.outcome in ("too small", "undecided")  # bounds where the range leaves the grid


def test_a_run_that_never_arrives_is_a_bound_and_not_a_number():
    def curve(arm, seed, losses):
        return TrainingCurve(arm, seed, np.array([0, 10, 20]), np.array(losses), np.zeros(3), 1.0)

    curves = []
    for seed in range(10):
        never = seed < 3
        curves.append(curve("standard", seed, [1.0, 0.1, 0.1]))
        ours = [1.0, 0.9, math.nan if seed == 0 else 0.8] if never else [1.0, 0.5, 0.1]
        curves.append(curve("weight-norm", seed, ours))
    sweeps = [
        LearningRateSweep(c.arm, c.seed, np.array([0.1, 1.0, 10.0]), np.array([0.9, 0.1, 0.9]), 1.0, False, 20)
        for c in curves
    ]
    found = claims.training_speed(curves, sweeps, loss=0.2)
    assert found.num_pairs == 10
    assert [low for low in found.effects if low == -math.inf] == [-math.inf] * 3
    assert all(high < 0 for high in found.ceilings)  # the standard arm was there before step 10
    assert found.outcome == "opposite"
    assert "3 runs never reached it" in found.note
    assert found.estimate == pytest.approx(np.median(found.ceilings), abs=1)
    assert claims.training_speed(curves[:2], sweeps[:2], loss=0.2).outcome == "undecided"  # one seed
    edge = claims.training_speed(curves, [replace(sweeps[0], at_edge=True), *sweeps[1:]], loss=0.2)
    assert (edge.outcome, edge.control_passed) == ("undecided", False)


def test_steps_to_a_loss_are_interpolated_on_the_logarithm():
    curve = TrainingCurve("a", 0, np.array([0, 10, 20]), np.array([1.0, 0.1, 0.01]), np.zeros(3))
    assert pairing.steps_to(curve, 10**-1.5) == pytest.approx((15, 15))
    assert pairing.steps_to(curve, 10**-1.2) == pytest.approx((12, 12))
    assert pairing.steps_to(curve, 2.0) == (0, 0)
    assert pairing.steps_to(curve, 0.001) == (20, math.inf)
    assert pairing.steps_to(replace(curve, losses=np.array([math.inf, 0.5, 0.1])), 0.6) == (10, 10)


def assert_equal(actual, expected, **tolerance):
    """Two quantities are one but for rounding of their values."""
    assert actual.value == pytest.approx(expected.value, **tolerance)
    assert replace(actual, value=expected.value) == expected


def test_the_width_of_learning_rates_knows_its_bounds():
    rates = np.logspace(-2, 2, 9)
    losses = np.exp(np.log10(rates) ** 2)  # within a factor 1.1 of its best where |log10 rate| < sqrt(log 1.1)
    fine = np.logspace(-2, 2, 4001)
    width = pairing.learning_rate_width(fine, np.exp(np.log10(fine) ** 2))
    assert_equal(width, Quantity(2 * math.log(1.1) ** 0.5), abs=1e-6)
    assert pairing.learning_rate_width(rates[::-1], losses[::-1]) == pairing.learning_rate_width(rates, losses)
    assert pairing.learning_rate_width([1, 10, 100], [1.0, 1.0, 1.0]) == Quantity(
        2.0, "lower_bound", "it runs into the end of the grid"
    )
    for one_end in ([1.0, 2.0, 4.0], [4.0, 2.0, 1.0]):
        found = pairing.learning_rate_width([1, 10, 100], one_end)
        assert_equal(found, Quantity(math.log(1.1) / math.log(2), "lower_bound", found.note))
    assert pairing.learning_rate_width([1, 10, 100], [math.nan, 1.0, math.inf]) == Quantity(0.0)
    assert pairing.learning_rate_width([1, 10], [math.nan, math.inf]).status == "undefined"
    assert pairing.learning_rate_width([1, 10, 100], [1.0, 0.0, 1.0]).status == "undefined"


def test_the_width_is_where_the_interpolated_loss_leaves_ten_percent_of_the_best():
    def width(losses):
        return pairing.learning_rate_width(np.logspace(0, len(losses) - 1, len(losses)), losses)

    ends = math.log(1.1 / 1.05) / math.log(2.0 / 1.05), math.log(1.1) / math.log(1.2)
    assert_equal(width([2.0, 1.05, 1.0, 1.2, 3.0]), Quantity(ends[0] + 1 + ends[1]))
    # No interpolation towards divergence, and no credit beyond a gap.
    left = math.log(1.1) / math.log(2.0)
    assert_equal(width([2.0, 1.0, np.inf, 1.0]), Quantity(left))
    assert_equal(width([2.0, 1.0, 1.5, 1.0, 2.0]), Quantity(left + math.log(1.1) / math.log(1.5)))


def test_the_difference_of_two_widths_is_open_where_one_of_them_is():
    known, bound = Quantity(2.0), Quantity(3.0, "lower_bound", "it runs into the end of the grid")
    assert _gap(known, known) == (0.0, 0.0)
    assert _gap(bound, known) == (1.0, math.inf)
    assert _gap(known, bound) == (-math.inf, -1.0)
    assert _gap(bound, bound) == (-math.inf, math.inf)
    nothing = Quantity(math.nan, "undefined", "every learning rate diverged")
    for pair in ((bound, nothing), (nothing, bound)):
        assert np.isnan(_gap(*pair)).all()


def test_a_wider_range_of_learning_rates_is_found():
    """Final losses ``exp((log10 rate)^2 / spread^2)``: a range of ``2 spread sqrt(log 1.1)`` decades."""
    rates, sweeps = np.logspace(-2, 2, 81), []
    for seed in range(10):
        for arm, spread in (("standard", 1.0 + seed / 50), ("weight-norm", 2.0)):
            losses = np.exp((np.log10(rates) / spread) ** 2)
            sweeps.append(learning_rate_sweep(arm, seed, rates, losses, budget=1))
    exact = [Check("recursion of the squared norm", 1e-15, 1e-12, claim="C4")]
    found = claims.self_stabilizing(sweeps, exact)
    assert found.outcome == "supported"
    expected = [2 * math.log(1.1) ** 0.5 * (2 - 1 - seed / 50) for seed in range(10)]
    assert np.allclose(found.effects, expected, atol=5e-3)
    assert claims.self_stabilizing(swapped(sweeps), exact).outcome == "opposite"
    off = claims.self_stabilizing(sweeps, [replace(exact[0], value=1e-3)])
    assert (off.outcome, off.control_passed) == ("undecided", False)
    missing = [sweep for sweep in sweeps if not (sweep.seed == 4 and sweep.arm == "standard")]
    assert claims.self_stabilizing(missing).num_missing == 1
    diverged = [replace(s, final_losses=np.full(81, np.inf)) if s.seed == 4 else s for s in sweeps]
    assert claims.self_stabilizing(diverged).num_missing == 1
    assert claims.self_stabilizing([sweep for sweep in sweeps if sweep.arm == "standard"]).outcome == "not tested"
    assert claims.self_stabilizing([]).outcome == "not tested"


def test_an_identity_is_supported_within_its_tolerance_and_broken_beyond():
    good = [Check("layer 0", 1e-14, 1e-12, claim="C6"), Check("layer 1", 5e-13, 1e-12, claim="C6")]
    found = claims.identity("C6", good)
    assert (found.outcome, found.estimate, found.num_pairs, found.note) == ("supported", 5e-13, 2, "layer 1")
    assert "largest deviation 5.0e-13, allowed 1.0e-12" in str(found)
    assert claims.identity("C6", [*good, Check("layer 2", 2e-12, 1e-12)]).outcome == "opposite"
    unknown = claims.identity("C6", [*good, Check("layer 2", math.nan, 1e-12)])
    assert (unknown.outcome, unknown.num_missing) == ("undecided", 1)
    assert claims.identity("C5", []).outcome == "not tested"
    assert claims.identity("C5", [Check("exact", 0.0, 0.0)]).outcome == "supported"


# --------------------------------------------------------------------------------------------- intervals and families


def draft(effects, threshold=THRESHOLD, **options):
    options = {"method": "student", "min_pairs": 3} | options
    return decide(Verdict("C1", "it is so", "not tested", threshold=threshold, effects=tuple(effects), **options))


@pytest.mark.parametrize("count", [3, 10, 20])
def test_students_interval_covers_as_often_as_it_says(count):
    number = 800
    draws = np.random.default_rng(count).normal(0.3, 2.0, (number, count))
    missed = sum(not low <= 0.3 <= high for low, high in map(paired_interval, draws))
    assert stats.binom.ppf(0.001, number, 0.05) <= missed <= stats.binom.ppf(0.999, number, 0.05)


def test_the_bootstrap_covers_too_rarely_in_small_samples():
    draws = np.random.default_rng(0).normal(size=(60, 3))
    found = [
        stats.bootstrap((row,), np.mean, confidence_level=0.95, rng=np.random.default_rng(0)).confidence_interval
        for row in draws
    ]
    assert np.mean([interval.low <= 0 <= interval.high for interval in found]) < 0.87


def test_the_interval_of_the_median_covers_at_least_as_often_as_it_says():
    number = 2000
    draws = np.random.default_rng(1).exponential(size=(number, 9))
    missed = sum(not low <= math.log(2) <= high for low, high in map(median_interval, draws))
    exact = 2 * stats.binom.cdf(1, 9, 0.5)  # between the second and the eighth
    assert exact <= 0.05
    assert abs(missed / number - exact) < 4 * (exact / number) ** 0.5


def test_the_interval_is_the_one_of_scipy():
    values = np.random.default_rng(2).normal(size=7)
    expected = stats.ttest_1samp(values, 0.1)
    assert paired_interval(values, 0.99) == pytest.approx(tuple(expected.confidence_interval(0.99)))
    assert draft(values, 0.1).p_value == pytest.approx(expected.pvalue)
    signs = draft(values, 0.1, method="sign")
    assert signs.p_value == pytest.approx(stats.binomtest(int((values > 0.1).sum()), 7).pvalue)


def test_two_pairs_decide_nothing():
    found = draft([5.0, 5.1])
    assert (found.outcome, found.num_pairs) == ("undecided", 2)
    assert math.isnan(found.p_value)
    assert "2 of the 3 pairs" in found.rule
    assert paired_interval([1.0]) == (-math.inf, math.inf)


def test_missing_pairs_are_counted_and_many_of_them_decide_nothing(top):
    standard = measured([(k, row[0]) for k, row in enumerate(top[:12])])
    tuned = measured([(k, row[1]) for k, row in enumerate(top[:12])])
    few = claims.conditioning(tuned[:11], standard)
    assert (few.outcome, few.num_pairs, few.num_missing) == ("supported", 11, 1)
    assert "11 of 12 pairs" in str(few)
    bad = [
        replace(m, record=replace(m.record, values={"kappa_80": replace(m.record["kappa_80"], status="lower_bound")}))
        for m in tuned[:3]
    ]
    many = claims.conditioning([*bad, *tuned[3:]], standard)
    assert (many.outcome, many.num_pairs, many.num_missing) == ("undecided", 9, 3)
    assert "not resolved" in many.note
    with pytest.raises(ConfigurationError, match="count a pair without a number"):
        paired_interval([1.0, math.nan])


def test_holm_equals_hand_computed_cases():
    assert holm([0.01]).tolist() == [0.01]
    assert holm([0.02, 0.01, 0.4]).tolist() == pytest.approx([0.04, 0.03, 0.4])
    assert holm([0.01, 0.02, 0.021, 0.022]).tolist() == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.6, 0.9]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


@given(st.lists(st.lists(st.floats(-2, 2), min_size=4, max_size=6), min_size=1, max_size=5))
def test_a_claim_is_decided_exactly_where_its_adjusted_p_value_is_small(families):
    found = adjust([draft(effects) for effects in families])
    for verdict in found:
        decided = verdict.low > verdict.threshold or verdict.high < verdict.threshold
        if abs(verdict.adjusted_p_value - 0.05) > 1e-9:
            assert decided == (verdict.adjusted_p_value < 0.05)
            assert decided == (verdict.outcome in ("supported", "too small", "opposite"))
        assert verdict.adjusted_p_value >= verdict.p_value
        assert verdict.level >= 0.95 - 1e-12


def test_a_claim_after_the_first_undecided_one_is_held_to_the_same_level():
    """p = 0.03 and 0.04: the first fails at 0.05 / 2, so the second may not be decided at 0.05."""
    pattern = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    error = pattern.std(ddof=1) / 5**0.5
    family = [draft(stats.t.isf(p / 2, 4) * error + pattern, 0.0) for p in (0.03, 0.04)]
    assert [verdict.p_value for verdict in family] == pytest.approx([0.03, 0.04])
    assert [verdict.outcome for verdict in family] == ["supported", "supported"]
    found = adjust(family)
    assert [verdict.level for verdict in found] == pytest.approx([0.975, 0.975])
    assert [verdict.adjusted_p_value for verdict in found] == pytest.approx([0.06, 0.06])
    assert [verdict.outcome for verdict in found] == ["undecided", "undecided"]


def test_mistakes_in_a_family_are_as_rare_as_promised():
    """Six claims whose true effect is the threshold itself: any decision is a mistake."""
    number, rng = 200, np.random.default_rng(3)
    wrong = 0
    for _ in range(number):
        family = adjust([draft(rng.normal(THRESHOLD, 1.0, 5)) for _ in range(6)])
        wrong += any(verdict.outcome != "undecided" for verdict in family)
    assert rare(wrong, number, 0.05)


@pytest.mark.parametrize(
    ("mean", "outcome"),
    [(0.3, "supported"), (0.105, "undecided"), (0.0, "too small"), (-0.08, "too small"), (-0.3, "opposite")],
)
def test_a_word_says_on_which_side_of_both_thresholds_the_interval_is(mean, outcome):
    spread = 0.01 * np.array([-1.0, -0.5, 0.5, 1.0])
    assert draft(mean + spread, 0.1).outcome == outcome


def test_the_reverse_is_read_from_an_interval_in_which_all_claims_hold_together():
    """Twenty claims whose true effect is minus the threshold, the later ones noisier and at a lower level of Holm."""
    number, rng, wrong, small = 150, np.random.default_rng(4), 0, 0
    for _ in range(number):
        family = adjust([draft(rng.normal(-1.0, spread, 6), 1.0) for spread in np.logspace(-6, -1, 20)])
        wrong += any(verdict.outcome == "opposite" for verdict in family)
        small += all(verdict.outcome in ("too small", "opposite") for verdict in family)
    assert small == number
    assert rare(wrong, number, 0.025)


def test_intervals_at_one_level_do_not_depend_on_the_family():
    verdict = adjust([draft([0.1, 0.2, 0.4], 0.1), draft([0.3, 0.1, -0.1], 0.1)])[0]
    assert verdict.level > 0.95
    assert interval_at(verdict) == paired_interval([0.1, 0.2, 0.4], 0.95)
    bounds = draft([1, 2, 3, 4, 5, 6], method="sign", ceilings=(1, 2, 3, 4, 5, math.inf))
    assert interval_at(bounds) == (1, math.inf)


effects_lists = st.lists(st.floats(-3, 3), min_size=3, max_size=8)


@given(effects_lists, st.randoms(use_true_random=False))
def test_a_verdict_does_not_depend_on_the_order_of_the_seeds(effects, random):
    mixed = list(effects)
    random.shuffle(mixed)
    for method in ("student", "sign"):
        ours, theirs = draft(effects, method=method), draft(mixed, method=method)
        assert ours.outcome == theirs.outcome
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@given(st.lists(st.tuples(st.floats(1.5, 1e6), st.floats(1.5, 1e6)), min_size=3, max_size=6))
def test_swapping_the_arms_flips_the_sign(values):
    def side(index):
        record = numbers_of(1.0)
        return measured([(k, numbers_of(pair[index], record)) for k, pair in enumerate(values)])

    forth, back = claims.conditioning(side(0), side(1)), claims.conditioning(side(1), side(0))
    assert back.estimate == pytest.approx(-forth.estimate, abs=1e-12)
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low), abs=1e-9)


def numbers_of(kappa, record=None):
    record = record or _template()
    return replace(record, values={"kappa_80": cv.records.Quantity(kappa)} if kappa else {})


def _template(found=[]):  # noqa: B006 - computed once
    if not found:
        found.append(numbers(least_squares(0)[0]))
    return found[0]


def test_numbers_on_other_ranks_are_not_compared_but_those_of_the_whole_matrix_are():
    ours = _template()
    theirs = replace(ours, rank=ours.rank + 3)
    assert log_ratio(ours, theirs, "kappa_80")[1] == "different ranks"
    assert log_ratio(ours, theirs, "stable_rank") == (0.0, "")
    assert log_ratio(ours, theirs, "nonsense")[1] == "not measured"


def test_the_null_of_the_bures_distance_is_what_sampling_gives():
    for dim, count in ((20, 200), (50, 40), (30, 30)):
        draws = np.random.default_rng(dim).normal(size=(20, count, dim))
        found = np.mean([sphericity(np.linalg.eigvalsh(x.T @ x / count).clip(0))["bures"].value for x in draws])
        assert marchenko_pastur_bures(dim, count) == pytest.approx(found, abs=0.02)
    with pytest.raises(ConfigurationError, match="at least 1"):
        marchenko_pastur_bures(0, 3)


# ------------------------------------------------------------------------------------------------------ decomposition


def lattice(changes):
    return [frozenset(some) for size in range(len(changes) + 1) for some in itertools.combinations(changes, size)]


@given(st.integers(1, 4), st.integers(0, 10**6))
def test_parts_of_any_lattice_add_up_and_are_shapley_values(count, seed):
    changes, rng = SOURCES[:count], np.random.default_rng(seed)
    states = {state: rng.normal(size=3) for state in lattice(changes)}
    found = decompose(states)
    assert np.allclose(found.parts.sum(axis=1), found.whole, atol=1e-12)
    assert found.num_orders == math.factorial(count)
    for k, source in enumerate(changes):
        rest = [state for state in states if source not in state]
        weights = [math.factorial(len(s)) * math.factorial(count - len(s) - 1) / math.factorial(count) for s in rest]
        expected = sum(w * (states[s | {source}] - states[s]) for w, s in zip(weights, rest, strict=True))
        assert np.allclose(found.parts[:, k], expected)


@given(st.integers(0, 10**6))
def test_a_chain_telescopes_and_minibatch_noise_is_what_the_whole_batches_lack(seed):
    rng = np.random.default_rng(seed)
    chain = [frozenset(SOURCES[:size]) for size in range(5)]
    noisy, clean = ({state: rng.normal(size=4) for state in chain} for _ in range(2))
    found = decompose(noisy, noise_free=clean)
    assert np.allclose(found.parts.sum(axis=1), found.whole, atol=1e-12)
    expected = [clean[b] - clean[a] for a, b in itertools.pairwise(chain)]
    assert np.allclose(found.parts[:, :4], np.transpose(expected))
    assert np.allclose(found.parts[:, 4], found.whole - (clean[chain[-1]] - clean[chain[0]]))
    assert (found.num_orders, dict(found.held)) == (1, {})


def test_seeds_without_a_number_are_left_out_and_counted():
    states = {frozenset(): [0.0, 1.0, 2.0], frozenset({"gauge"}): [1.0, math.nan, 4.0]}
    found = decompose(states, seeds=[7, 8, 9])
    assert (found.seeds, found.num_missing) == ((7, 9), 1)
    assert found.whole.tolist() == [1.0, 2.0]
    assert set(found.held) == set(SOURCES) - {"gauge"}
    assert part_intervals(found)["gauge"][0] == 1.5
    assert "gauge +1.5" in repr(found)


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ({frozenset(): [0.0], frozenset({"weather"}): [1.0]}, "changes must be among"),
        ({frozenset(): [0.0], frozenset({"noise"}): [1.0]}, "noise is given by"),
        ({frozenset({"gauge"}): [1.0]}, "without any change"),
        ({frozenset(): [0.0], frozenset({"gauge"}): [1.0, 2.0]}, "one number per seed"),
        ({frozenset(): [0.0], frozenset({"gauge", "trajectory"}): [1.0]}, "no order of the changes"),
    ],
)
def test_states_that_make_no_path_are_refused(states, words):
    with pytest.raises(ConfigurationError, match=words):
        decompose(states)


# --------------------------------------------------------------------------------------------- a study and its report


@pytest.fixture(scope="module")
def study():
    inputs, targets = zoo.digits(60)
    inputs, targets = inputs[:, 18:26], targets % 3
    settings = quick_settings(seeds=(0, 1, 2), epochs=3, batch_size=10, stretches=(1.0,), relative_dampings=(1e-3,))
    settings = replace(settings, own_chart_only=())

    def build(seed):
        module = zoo.mlp((8, 3, 3), seed=seed)
        return cv.Problem.from_module(module, loss="cross-entropy", data=(inputs, targets))

    return run_study(build, settings)


def test_a_study_has_a_verdict_or_a_reason_for_every_claim(study):
    found = {verdict.name: verdict for verdict in study.verdicts}
    assert len(found) == len(study.verdicts)
    assert {verdict.claim for verdict in study.verdicts} == {f"C{k}" for k in range(1, 9)}
    untested = {verdict.claim for verdict in study.verdicts if verdict.outcome == "not tested"}
    assert untested == {"C4", "C8"}
    assert all("needs" in v.note for v in study.verdicts if v.outcome == "not tested")
    for verdict in study.verdicts:
        if verdict.method == "identity":
            assert (verdict.outcome, verdict.num_pairs) == ("supported", 3)
        elif verdict.outcome != "not tested":
            assert (verdict.num_pairs + verdict.num_missing, verdict.control_passed is not None) == (3, True)
    own = study.of(ConditionNumbers, matrix="ggn", checkpoint="late", gauge="checkpoint")
    base = study.of(ConditionNumbers, arm="standard", matrix="ggn", checkpoint="late", chart="standard")
    ratios = [math.log(b.record["kappa_80"].value / o.record["kappa_80"].value) for o, b in zip(own, base, strict=True)]
    assert np.allclose(found["C1, own training"].effects, ratios)
    assert found["C1, own training"].estimate == pytest.approx(np.mean(ratios))


def test_measured_identities_and_sweeps_reach_the_verdicts(study, sweep):
    checks = tuple(Check("layer 0", 1e-15, 1e-12, claim=claim) for claim in ("C5", "C6"))
    curves, sweeps = map(tuple, tuned(sweep))
    found = {v.claim: v for v in verdicts(replace(study, checks=checks, curves=curves, sweeps=sweeps))}
    assert [found[claim].outcome for claim in ("C5", "C6", "C8")] == ["supported"] * 3
    assert found["C8"].adjusted_p_value > found["C8"].p_value
    empty = replace(study, measurements=(), curves=(), checks=())
    assert {verdict.outcome for verdict in verdicts(empty)} == {"not tested"}


def test_the_difference_between_the_arms_adds_up_over_its_sources(study):
    by_matrix = {found.matrix: found for found in study.decompositions}
    assert set(by_matrix) == {"ggn", "gradient_covariance", "hessian"}
    for found in study.decompositions:
        assert np.allclose(found.parts.sum(axis=1), found.whole, atol=1e-12)
        bends = "second-order term" not in found.held
        assert bends == (found.matrix == "hessian")
    ggn = by_matrix["ggn"]
    (verdict,) = [v for v in study.verdicts if v.name == "C1, own training"]
    assert np.allclose(ggn.whole, -np.array(verdict.effects))
    (same,) = [v for v in study.verdicts if v.name == "C1, same weights"]
    assert np.allclose(ggn.parts[:, SOURCES.index("gauge")], -np.array(same.effects))
    assert "same weights" in ggn.held["initialization"]


def test_the_linear_part_of_a_hessian_lacks_the_second_order_term_alone(study):
    """``K^(1/2) H K^(1/2)`` against the pullback: at one set of weights, by the dense formula."""
    problem = cv.Problem.from_module(
        zoo.mlp((3, 2, 2), seed=3), loss="cross-entropy", data=(torch.randn(9, 3).double(), torch.arange(9) % 2)
    )
    from curvature.studies.measuring import linear_part as _linear_part

    chart = WeightNorm(stretch=0.4)
    root = chart.at(problem.layout, problem.weights).metric_root(torch.eye(problem.dim).double())
    expected = torch.linalg.eigvalsh(root @ cv.hessian(problem).dense() @ root)
    found = cv.spectrum(cv.effective(cv.hessian(problem), _linear_part(problem, chart)))
    assert np.allclose(found.eigenvalues, expected, atol=1e-12)
    places = study.of(ConditionNumbers, chart=LINEAR_PART)
    assert {(m.arm, m.record.gauge, m.record.matrix) for m in places} == {("weight-norm", "checkpoint", "hessian")}


def test_a_fixed_gauge_averages_gauge_and_trajectory_over_their_two_orders(study):
    found = decomposition(study, gauge="paper", matrix="ggn")
    assert found.num_orders == 2

    def logs(arm, chart, gauge):
        records = study.of(ConditionNumbers, arm=arm, matrix="ggn", checkpoint="late", chart=chart, gauge=gauge)
        return np.log([m.record["kappa_80"].value for m in records])

    a, b = (logs(arm, "standard", "-") for arm in ("standard", "weight-norm"))
    a_paper, b_paper = (logs(arm, "weight-norm", "paper") for arm in ("standard", "weight-norm"))
    assert np.allclose(found.parts[:, SOURCES.index("gauge")], ((a_paper - a) + (b_paper - b)) / 2)
    assert np.allclose(found.whole, b_paper - a)
    assert decomposition(replace(study, measurements=())) is None


def test_named_arms_separate_initialization_and_noise(study):
    """Third and noise-free arms: copies of the two arms whose standard and own numbers are scaled by known factors."""

    def scaled(arm, name, factor):
        copies = []
        for m in study.of(ConditionNumbers, arm=arm, matrix="ggn"):
            values = {"kappa_80": replace(m.record["kappa_80"], value=m.record["kappa_80"].value * factor)}
            copies.append(replace(m, arm=name, record=replace(m.record, values=values)))
        return copies

    extra = [*scaled("standard", "matched", 2.0), *scaled("standard", "matched, whole", 2.0)]
    extra += [*scaled("standard", "standard, whole", 1.0), *scaled("weight-norm", "weight-norm, whole", 1 / 3)]
    wider = replace(study, measurements=(*study.measurements, *extra))
    found = decomposition(
        wider,
        arms=("standard", "weight-norm", "matched"),
        noise_free=("standard, whole", "weight-norm, whole", "matched, whole"),
    )
    column = {source: found.parts[:, k] for k, source in enumerate(SOURCES)}
    assert np.allclose(column["initialization"], math.log(2))
    assert np.allclose(column["noise"], math.log(3))
    assert np.allclose(found.parts.sum(axis=1), found.whole, atol=1e-12)
    assert set(found.held) == {"second-order term"}


@pytest.fixture(scope="module")
def written(study, tmp_path_factory):
    few = study.measurements[:12]  # the figures of the rest would only take time
    return report.write_run(replace(study, measurements=few), tmp_path_factory.mktemp("runs") / "run")


def plain(record):
    return {f.name: repr(getattr(record, f.name)) for f in fields(record)}


def test_verdicts_are_read_back_equal(study, written):
    loaded = report.load_study(written)
    assert list(map(plain, loaded.verdicts)) == list(map(plain, study.verdicts))
    for ours, theirs in zip(study.decompositions, loaded.decompositions, strict=True):
        assert np.array_equal(ours.parts, theirs.parts)
        assert (ours.sources, ours.seeds, dict(ours.held)) == (theirs.sources, theirs.seeds, dict(theirs.held))
    assert [curve.learning_rate for curve in loaded.curves] == [0.2] * 6
    assert [check.claim for check in loaded.checks] == [check.claim for check in study.checks]


def test_the_report_says_verdicts_first_in_words_and_signs(study, written):
    page = (written / "report.html").read_text(encoding="utf-8")
    assert page.index('id="verdicts"') < page.index('id="findings"')
    panel = page[page.index('<section id="verdicts">') : page.index('<section id="findings">')]
    for verdict in study.verdicts:
        if verdict.outcome != "not tested":
            assert f'<span aria-hidden="true">{verdict.icon}</span> {verdict.outcome}</span> <b>' in panel
            assert f"Claim ({verdict.name}): " in panel
    assert "the difference between the arms" in page
    bare = report.write_run(replace(study, verdicts=(), decompositions=(), measurements=()), written.parent / "bare")
    assert 'id="verdicts"' not in (bare / "report.html").read_text(encoding="utf-8")
    assert not (bare / "verdicts.csv").exists()


def test_the_summary_and_the_table_hold_every_verdict(study, written):
    document = json.loads((written / "summary.json").read_text())
    assert [row["outcome"] for row in document["verdicts"]] == [verdict.outcome for verdict in study.verdicts]
    first = document["verdicts"][0]
    assert first["estimate"] == study.verdicts[0].estimate
    assert first["found"] == study.verdicts[0].found
    assert "Intervals belong to the claims alone." in json.dumps(document["findings"])
    means = {row["matrix"]: row["means"] for row in document["decompositions"]}
    (ggn,) = [found for found in study.decompositions if found.matrix == "ggn"]
    assert means["ggn"]["whole"]["mean"] == pytest.approx(ggn.whole.mean())
    with (written / "verdicts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["outcome"] for row in rows] == [verdict.outcome for verdict in study.verdicts]
    assert [float(x) for x in rows[0]["effects"].strip("[]").split(";")] == list(study.verdicts[0].effects)
    assert set(asdict(study.verdicts[0])) <= set(rows[0])


def test_the_terminal_prints_verdicts_before_anything_else(study, capsys):
    from curvature.cli.tables import print_compare

    print_compare(study, report.study_document(study), False)
    text = capsys.readouterr().out
    assert text.startswith("Does weight norm improve the conditioning of given model?")
    labels = {verdict.name: label_of(verdict) for verdict in study.verdicts}
    for verdict in study.verdicts:
        assert labels[verdict.name] in text
    untested = [labels[verdict.name] for verdict in study.verdicts if verdict.outcome == "not tested"]
    assert f"not tested: {'; '.join(untested)}" in text.replace("\n", " ")
    print_compare(study, report.study_document(study), True)
    verbose = capsys.readouterr().out
    assert all(f"{verdict.name}: {verdict.sentence}" in verbose for verdict in study.verdicts)
    assert "needs a sweep of learning rates in both arms" in verbose
