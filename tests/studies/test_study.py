"""What a study measures, that its checks can fail, and that it can be repeated to the last bit."""

import dataclasses
import functools
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import curvature as cv
from curvature import report
from curvature.charts import WeightNorm
from curvature.errors import ConfigurationError, SelfCheckError
from curvature.matrices import MATRICES
from curvature.models import zoo
from curvature.records import (
    Alignment,
    ConditionNumbers,
    GaugeState,
    Measured,
    Spectrum,
    StepComparison,
    Study,
    TrainingCurve,
    Whitening,
)
from curvature.studies import (
    SpectrumSettings,
    full_settings,
    measure,
    measuring,
    quick_settings,
    run_spectrum,
    run_study,
)
from curvature.studies.evidence import LINEAR_PART
from curvature.studies.training import SGD
from oracles import drawn

WIDTHS = (3, 4, 3)
NEURONS = 7
STAGES = ("init", "early", "late")
QUICK = quick_settings(
    seeds=(0, 4),
    epochs=2,
    batch_size=8,
    learning_rate=0.3,
    stretches=(0.5, 2.0),
    relative_dampings=(1e-3, 1e-1),
    relative_damping=1e-3,
)
SETTINGS = dataclasses.replace(
    QUICK,
    training=dataclasses.replace(QUICK.training, stages=STAGES),
    own_chart_only=(),
    both_hessians=True,
    swept_at=STAGES,
    steps_at=STAGES,
    closeness_of_controls=True,
)


def data():
    return drawn(20, 3), torch.randint(3, (20,), generator=torch.Generator().manual_seed(5))


def build(seed):
    return zoo.mlp(WIDTHS, seed=seed)


def problem_of(module=None, loss="cross-entropy", dtype=torch.float64):
    return cv.Problem.from_module(module or build(0), loss=loss, data=data(), dtype=dtype)


def run(settings=SETTINGS, make=build, dtype=torch.float64, **options):
    return run_study(lambda seed: problem_of(make(seed), dtype=dtype), settings, **options)


@pytest.fixture(scope="module")
def study():
    return run()


def comparable(record):
    """A record as plain values, without the time it took; NaN equals NaN."""
    if dataclasses.is_dataclass(record):
        fields = {f.name: comparable(getattr(record, f.name)) for f in dataclasses.fields(record)}
        fields.pop("seconds", None)
        return fields
    if isinstance(record, np.ndarray):
        return record.tobytes()
    if isinstance(record, dict):
        return {key: comparable(value) for key, value in record.items()}
    if isinstance(record, tuple | list):
        return [comparable(value) for value in record]
    return repr(record)


# ------------------------------------------------------------------------------------------------- what is measured


def test_every_arm_seed_and_checkpoint_is_measured_alike(study):
    places = Counter((m.arm, m.seed, m.checkpoint, m.step) for m in study.measurements)
    steps = {"init": 0, "early": 3, "late": 6}  # three batches an epoch
    assert set(places) == {
        (arm, seed, name, step)
        for arm in ("standard", "weight-norm")
        for seed in (0, 4)
        for name, step in steps.items()
    }
    for arm in ("standard", "weight-norm"):
        assert len({count for place, count in places.items() if place[0] == arm}) == 1


@pytest.mark.parametrize("checkpoint", ["init", "late"])
@pytest.mark.parametrize("arm", ["standard", "weight-norm"])
def test_spectra_are_those_of_each_matrix_in_each_gauge(study, arm, checkpoint):
    found = Counter(
        (m.record.matrix, m.record.chart, m.record.gauge, m.record.effective)
        for m in study.of(Spectrum, arm=arm, seed=4, checkpoint=checkpoint)
    )
    own = ["checkpoint"] if arm == "weight-norm" else []
    expected = Counter()
    for matrix in ("hessian", "ggn", "gradient_covariance"):
        expected[matrix, "standard", "-", False] += 1
        expected[matrix, "weight-norm", "canonical", False] += 1  # in its own coordinates: that is what is checked
        for gauge in ("paper", *own):
            expected[matrix, "weight-norm", gauge, True] += 1
    expected["hessian", "weight-norm", "canonical", True] += 1
    for gauge in own:
        expected["hessian", "weight-norm", gauge, False] += 1
        expected["hessian", "weight-norm, linear part", gauge, True] += 1
    for stretch in ("stretch=0.5", "stretch=2"):
        expected["ggn", "weight-norm", stretch, True] += 1
    assert found == expected


def test_after_the_start_the_quick_study_measures_the_standard_arm_in_its_own_chart_alone():
    found = run(dataclasses.replace(QUICK, seeds=(4,)))
    charts = {
        (m.arm, m.checkpoint): {other.record.chart for other in found.of(Spectrum, arm=m.arm, checkpoint=m.checkpoint)}
        for m in found.measurements
    }
    everywhere = {"standard", "weight-norm"}
    assert charts["standard", "init"] == everywhere
    assert charts["standard", "late"] == {"standard"}
    assert charts["weight-norm", "late"] == everywhere | {LINEAR_PART}
    late = found.of(Spectrum, arm="standard", checkpoint="late")
    assert {m.record.matrix for m in late} == {"hessian", "ggn", "gradient_covariance"}
    assert found.of(Alignment, arm="standard", checkpoint="late")
    for kind in (StepComparison, GaugeState):
        assert {m.arm for m in found.of(kind, checkpoint="late")} == {"weight-norm"}
    assert {v.claim for v in found.verdicts if v.outcome == "not tested"} == {"C4", "C8"}
    sentence = "At the weights that the standard arm reached only the standard chart was measured."
    assert any(sentence in limit["text"] for limit in report.study_document(found)["findings"])


def test_every_spectrum_has_its_condition_numbers_and_only_the_ggn_a_gradient(study):
    spectra, numbers = study.of(Spectrum), study.of(ConditionNumbers)
    assert len(spectra) == len(numbers) > 0
    for spectrum, number in zip(spectra, numbers, strict=True):
        assert (number.record.matrix, number.record.gauge) == (spectrum.record.matrix, spectrum.record.gauge)
        assert number.record["kappa_95"] == spectrum.record.condition_numbers()["kappa_95"]
    with_gradient = {m.record.matrix for m in spectra if m.record.gradient_weights is not None}
    assert with_gradient == {"ggn"}


@pytest.mark.parametrize("arm", ["standard", "weight-norm"])
def test_other_records_are_counted_per_neuron_gauge_chart_and_damping(study, arm):
    def number(kind, **where):
        return len(study.of(kind, arm=arm, seed=0, checkpoint="early", **where))

    own = arm == "weight-norm"
    assert number(Alignment) == 3 * NEURONS
    assert number(Whitening) == 4 * NEURONS
    assert number(GaugeState) == 2 + own
    assert number(StepComparison) == 2 * (12 + own)
    assert number(StepComparison, relative_damping=1e-1) == 12 + own
    closeness = [np.isfinite(m.record.kappa) for m in study.of(StepComparison, arm=arm, seed=0, checkpoint="late")]
    assert sum(closeness) == 12 + own  # at one damping alone


def test_spectra_are_those_of_the_weights_that_training_reached(study):
    """The late standard spectrum, measured again from scratch on a network trained by PyTorch."""
    module, (inputs, targets) = build(4), data()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
    order = torch.Generator().manual_seed(4)
    for _ in range(2):
        for batch in torch.randperm(20, generator=order).split(8):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    expected = torch.linalg.eigvalsh(cv.hessian(problem_of(module), method="generic").dense()).numpy()
    (found,) = study.of(Spectrum, arm="standard", seed=4, checkpoint="late", matrix="hessian", chart="standard")
    assert np.abs(found.record.eigenvalues - expected).max() < 1e-12 * np.abs(expected).max()


def test_the_gauge_sweep_is_that_of_the_effective_ggn(study):
    problem = problem_of(build(0))
    for stretch in (0.5, 2.0):
        expected = np.linalg.eigvalsh(cv.pullback(cv.ggn(problem), cv.WeightNorm(stretch=stretch)).dense().numpy())
        (found,) = study.of(Spectrum, arm="standard", seed=0, checkpoint="init", gauge=f"stretch={stretch:g}")
        assert found.record.eigenvalues == pytest.approx(expected[NEURONS:], rel=1e-9, abs=1e-14)


def test_curves_are_those_of_both_arms_for_every_seed(study):
    assert [(c.arm, c.seed) for c in study.curves] == [(a, s) for s in (0, 4) for a in ("standard", "weight-norm")]
    for curve in study.curves:
        assert isinstance(curve, TrainingCurve)
        assert curve.steps.tolist() == [0, 3, 6]
    starts = {curve.seed: [c.losses[0] for c in study.curves if c.seed == curve.seed] for curve in study.curves}
    for first, second in starts.values():
        assert first == pytest.approx(second, rel=1e-14)
    assert starts[0] != starts[4]


def test_a_study_says_what_it_is_about(study):
    assert (study.command, study.num_weights, study.num_examples) == ("compare", 31, 20)
    assert study.warnings == ()


def test_monte_carlo_matrices_and_the_gauge_at_the_init_are_as_asked():
    settings = dataclasses.replace(
        SETTINGS, seeds=(0,), matrices=("monte_carlo_fisher",), stretches=(), relative_dampings=(1e-3,)
    )
    found = run(settings)
    assert {m.record.matrix for m in found.of(Spectrum)} == {"monte_carlo_fisher"}
    assert {m.record.num_samples for m in found.of(Spectrum)} == {1}
    (state,) = found.of(GaugeState, arm="weight-norm", checkpoint="init", gauge="checkpoint")
    assert (state.record.minimum, state.record.maximum) == (pytest.approx(1, rel=1e-14), pytest.approx(1, rel=1e-14))
    (late,) = found.of(GaugeState, arm="weight-norm", checkpoint="late", gauge="checkpoint")
    assert late.record.maximum > 1 + 1e-4
    assert late.record.num_rows == NEURONS


def test_a_normalized_module_is_measured_like_the_plain_one():
    """Both arms start at the effective weights; the gauge of the module itself does not matter."""

    def normalized(seed):
        module = build(seed)
        for layer in (module[0], module[2]):
            weight_norm(layer)
        return module

    settings = dataclasses.replace(SETTINGS, seeds=(0,), relative_dampings=(1e-3,))
    plain, found = run(settings), run(settings, normalized)
    for first, second in zip(plain.of(Spectrum), found.of(Spectrum), strict=True):
        assert second.record.label == first.record.label
        scale = np.abs(first.record.eigenvalues).max()
        assert np.abs(second.record.eigenvalues - first.record.eigenvalues).max() < 1e-11 * scale


@pytest.mark.parametrize("dim", [1, None])
def test_modules_normalized_over_other_axes_can_be_studied(dim):
    def normalized(seed):
        module = build(seed)
        weight_norm(module[0], dim=dim)
        return module

    settings = dataclasses.replace(SETTINGS, seeds=(0,), stretches=(), relative_dampings=(1e-3,))
    assert all(check.passed for check in run(settings, normalized).checks)


def test_a_loss_without_likelihood_is_compared_without_natural_gradient_and_says_so():
    def quartic(output, target):
        return ((output - target) ** 4).sum()

    targets = drawn(20, 3, seed=2)
    training = dataclasses.replace(SETTINGS.training, optimizer=SGD(0.01))
    settings = dataclasses.replace(SETTINGS, seeds=(0,), training=training)
    problem = cv.Problem.from_module(build(0), loss=quartic, data=(data()[0], targets))
    found = run_study(lambda _seed: problem, settings)
    assert found.of(StepComparison) == []
    assert "no natural-gradient comparison: the loss 'quartic' has no Fisher." in found.warnings
    (other,) = (words for words in found.warnings if "natural-gradient" not in words)
    assert other.startswith("C5 is not tested on this model: ")


# ------------------------------------------------------------------------------------------------------------ checks


def test_all_checks_pass_and_name_their_place(study):
    names = [check.name for check in study.checks if not check.claim]
    claimed = [(check.claim, check.name[-8:]) for check in study.checks if check.claim]
    assert claimed == [(claim, f"(seed {seed})") for seed in (0, 4) for claim in ("C5", "C6")]
    expected = [
        f"canonical gauge leaves the {matrix} spectrum unchanged ({arm} arm, seed {seed}, {checkpoint})"
        for seed in (0, 4)
        for arm in ("standard", "weight-norm")
        for checkpoint in ("init", "early", "late")
        for matrix in ("GGN", "gradient covariance")
    ]
    assert names == [*expected, "both arms start at the same function"]
    assert all(check.passed for check in study.checks)
    assert max(check.value for check in study.checks) < 2e-13  # rounding, far below what is allowed


def make_pullbacks_wrong(monkeypatch):
    """Of the factor, and of the entries: which of them is used depends on the numbers of examples and weights."""
    chart_type = type(WeightNorm().at(problem_of().layout, problem_of().weights))
    pull, pulled_back = chart_type.pull, chart_type.pulled_back
    monkeypatch.setattr(chart_type, "pull", lambda self, cotangents: pull(self, cotangents) * (1 + 1e-6))
    monkeypatch.setattr(chart_type, "pulled_back", lambda self, *given: pulled_back(self, *given) * (1 + 1e-6))


def leave_self_checks_out(monkeypatch):
    monkeypatch.setattr(measuring, "spectrum", functools.partial(cv.spectrum, checks=False))


@pytest.mark.parametrize("matrix", ["ggn", "fisher", "empirical_fisher", "gradient_covariance"])
def test_a_wrong_pullback_fails_the_canonical_check(matrix, monkeypatch):
    make_pullbacks_wrong(monkeypatch)
    with pytest.raises(SelfCheckError, match=matrix):
        measure(problem_of(), matrices=(matrix,))
    leave_self_checks_out(monkeypatch)
    with pytest.raises(SelfCheckError, match=f"the {matrix} spectrum at the canonical gauge differs"):
        measure(problem_of(), matrices=(matrix,))


def test_a_wrong_pullback_fails_the_study_too(monkeypatch):
    make_pullbacks_wrong(monkeypatch)
    leave_self_checks_out(monkeypatch)
    with pytest.raises(SelfCheckError, match="canonical gauge"):
        run()


def test_arms_that_start_apart_fail_their_check(monkeypatch):
    chart_type = type(WeightNorm().at(problem_of().layout, problem_of().weights))
    right = chart_type.to_weights
    monkeypatch.setattr(chart_type, "to_weights", lambda self, coordinates: 1.01 * right(self, coordinates))
    monkeypatch.setattr(chart_type, "moved", lambda _self, _coordinates: cv.Standard())
    check = run(dataclasses.replace(SETTINGS, seeds=(0,))).checks[-1]
    assert check.name == "both arms start at the same function"
    assert not check.passed


def test_single_precision_passes_its_checks_and_warns():
    # From seed 15 the losses of the two arms differ in their last digit at the start, as rounding allows.
    settings = dataclasses.replace(SETTINGS, seeds=(15,), relative_dampings=(1e-2,), relative_damping=1e-2)
    found = run(settings, dtype=torch.float32)
    assert {m.record.dtype for m in found.of(Spectrum)} == {"float32"}
    assert found.warnings == ("computed in float32: condition numbers above about 1e6 cannot be resolved.",)
    assert [check.name for check in found.checks if not check.passed] == []


# --------------------------------------------------------------------------------------------------- reproducibility


def test_the_same_settings_give_the_same_bits(study):
    torch.manual_seed(99)  # global state must not matter
    again = run()
    assert comparable(again.measurements) == comparable(study.measurements)
    assert comparable(again.curves) == comparable(study.curves)
    assert comparable(again.checks) == comparable(study.checks)


def test_another_seed_gives_other_numbers_and_no_seed_depends_on_the_others(study):
    alone = run(dataclasses.replace(SETTINGS, seeds=(4,)))
    assert comparable(alone.measurements) == comparable([m for m in study.measurements if m.seed == 4])
    values = [study.of(Spectrum, seed=seed, matrix="ggn")[0].record.eigenvalues[-1] for seed in (0, 4)]
    assert abs(values[0] - values[1]) > 1e-3 * values[0]


def test_the_global_generator_is_not_moved(study):
    del study
    before = torch.get_rng_state()
    run(dataclasses.replace(SETTINGS, seeds=(0,), relative_dampings=(1e-3,)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("command", ["measure", "run_study", "run_spectrum"])
def test_progress_goes_from_zero_to_one_without_turning_back(command):
    said = []

    def progress(message, fraction):
        said.append((message, fraction))

    if command == "measure":
        measure(problem_of(), progress=progress)
    elif command == "run_study":
        run(dataclasses.replace(SETTINGS, relative_dampings=(1e-3,)), progress=progress)
        assert any("seed 4: training the weight-norm arm" in message for message, _ in said)
    else:
        charts = (cv.Standard(), cv.WeightNorm())
        run_spectrum(problem_of(), SpectrumSettings(("hessian", "ggn"), charts), progress=progress)
        assert said[1] == ("hessian in weight-norm", 0.25)
    fractions = [fraction for _, fraction in said]
    assert all(0 <= fraction <= 1 for fraction in fractions)
    assert fractions == sorted(fractions)
    assert said[-1] == ("seed 4 is done" if command == "run_study" else "done", 1.0)


# ------------------------------------------------------------------------------------------ measure and run_spectrum


def test_compare_measures_the_standard_chart_and_two_gauges():
    found = measure(problem_of())
    assert [(m.record.matrix, m.record.chart, m.record.gauge) for m in found.of(Spectrum)] == [
        (matrix, chart, gauge)
        for matrix in ("hessian", "ggn", "gradient_covariance")
        for chart, gauge in (("standard", "-"), ("weight-norm", "canonical"), ("weight-norm", "paper"))
    ]
    assert {(m.arm, m.seed, m.checkpoint, m.step) for m in found.measurements} == {("given", 0, "given", 0)}
    assert [check.passed for check in found.checks] == [True, True]


def test_compare_adds_the_modules_own_gauge():
    module = build(0)
    weight_norm(module[0])
    gauges = [m.record.gauge for m in measure(problem_of(module), matrices=("ggn",)).of(Spectrum)]
    assert gauges == ["-", "canonical", "paper", "checkpoint"]


@pytest.mark.parametrize("effective", [True, False])
def test_compare_measures_given_charts_as_asked(effective):
    problem, chart = problem_of(), cv.WeightNorm(stretch=3.0)
    found = measure(problem, [cv.Standard(), chart], matrices=("ggn",), effective=effective, gradient=False)
    moved = (cv.effective if effective else cv.pullback)(cv.ggn(problem), chart).dense()
    standard, stretched = (m.record for m in found.of(Spectrum))
    assert stretched.eigenvalues == pytest.approx(np.linalg.eigvalsh(moved.numpy()), rel=1e-9, abs=1e-14)
    assert stretched.effective is effective
    assert standard.gradient_weights is None
    assert found.checks == ()


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("block", ["all", "layer", "neuron", "weight"])
def test_run_spectrum_measures_every_matrix_block_by_block(name, block):
    problem, chart = problem_of(), cv.WeightNorm(stretch=2.0)
    found = run_spectrum(problem, SpectrumSettings((name,), (cv.Standard(), chart), block, seed=3, num_samples=2))
    drawn_labels = (2, torch.Generator().manual_seed(3)) if name == "monte_carlo_fisher" else ()
    operator = MATRICES[name](problem, *drawn_labels)
    expected = []
    for moved in (operator, cv.pullback(operator, chart)):
        matrix = moved.dense().numpy()
        for where in moved.layout.blocks(block).values():
            expected.append(np.linalg.eigvalsh(matrix[np.ix_(where, where)]))
    records = [m.record for m in found.of(Spectrum)]
    assert len(records) == len(expected)
    for record, values in zip(records, expected, strict=True):
        assert np.abs(record.eigenvalues - values).max() < 1e-13 * np.abs(values).max()
        assert (record.gradient_weights is not None) is (name != "gradient_covariance")
    (state,) = found.of(GaugeState)
    assert (state.record.median, state.record.num_rows) == (pytest.approx(2, rel=1e-14), NEURONS)


def test_run_spectrum_keeps_names_and_configuration():
    config = {"matrix": ["ggn"]}
    found = run_spectrum(
        problem_of(), SpectrumSettings(("ggn",), (cv.Standard(),)), model="my model", data="my data", config=config
    )
    assert (found.command, found.model, found.data, found.config) == ("spectrum", "my model", "my data", config)


def test_run_spectrum_by_factor_has_no_negative_eigenvalue():
    found = run_spectrum(problem_of(), SpectrumSettings(("ggn",), (cv.Standard(), cv.WeightNorm()), method="factor"))
    assert [m.record.method for m in found.of(Spectrum)] == ["factor", "factor"]
    assert all((m.record.eigenvalues >= 0).all() for m in found.of(Spectrum))


def test_frozen_and_unused_parameters_are_named_in_the_warnings():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(3, 3), nn.Linear(2, 2, bias=False)

        def forward(self, inputs):
            return self.used(inputs)

    module = Spare().double()
    module.used.bias.requires_grad_(False)
    found = run_spectrum(problem_of(module), SpectrumSettings(("empirical_fisher",), (cv.Standard(),), gradient=False))
    assert any("spare.weight" in warning and "zero rows" in warning for warning in found.warnings)
    assert any("used.bias" in warning and "frozen" in warning for warning in found.warnings)


# --------------------------------------------------------------------------------------------- filters and refusals


def measured(arm, seed, record):
    return Measured(arm, seed, "late", 5, record)


def test_of_filters_by_kind_place_and_the_records_own_fields():
    states = [GaugeState("weight-norm", gauge, 1.0, 1.0, 1.0, 7) for gauge in ("canonical", "paper")]
    comparison = StepComparison("standard", "-", 1e-3, 1e-4, 0.5)
    everything = (
        measured("standard", 0, states[0]),
        measured("standard", 1, states[1]),
        measured("weight-norm", 0, states[1]),
        measured("standard", 0, comparison),
    )
    study = Study("compare", {}, "m", "d", 1, 1, everything)
    assert study.of(GaugeState) == list(everything[:3])
    assert study.of(GaugeState, arm="standard") == list(everything[:2])
    assert study.of(GaugeState, arm="standard", gauge="paper") == [everything[1]]
    assert study.of(StepComparison, relative_damping=1e-3, seed=0) == [everything[3]]
    assert study.of(StepComparison, relative_damping=1e-2) == []
    assert study.of(Spectrum) == []


@pytest.mark.parametrize(("names", "said"), [(("ggn", "kfac"), "got kfac"), ((), "got none")])
def test_unknown_matrices_are_refused_with_the_names_there_are(names, said):
    for call in (
        lambda: measure(problem_of(), matrices=names),
        lambda: SpectrumSettings(names, (cv.Standard(),)),
        lambda: quick_settings(matrices=names),
    ):
        with pytest.raises(ConfigurationError, match=f"matrices must be among hessian, ggn, fisher, .*{said}"):
            call()


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_must_be_distinct(seeds):
    with pytest.raises(ConfigurationError, match="seeds must be distinct and at least one"):
        quick_settings(seeds=seeds)


def test_one_epoch_is_too_few_for_three_checkpoints():
    with pytest.raises(ConfigurationError, match="epochs must be at least 2"):
        quick_settings(epochs=1)
    assert SETTINGS.training.checkpoints == {"init": 0, "early": 1, "late": 2}
    training = dataclasses.replace(SETTINGS.training, epochs=30)
    assert training.checkpoints == {"init": 0, "early": 3, "late": 30}


def test_the_quick_study_is_measured_before_and_after_training_and_only_then_in_many_gauges():
    found = run(dataclasses.replace(QUICK, seeds=(0,)))
    assert {m.checkpoint for m in found.measurements} == {"init", "late"}
    assert {m.checkpoint for m in found.of(Spectrum) if m.record.gauge.startswith("stretch=")} == {"late"}
    near = {(m.checkpoint, m.record.chart, m.record.gauge) for m in found.of(StepComparison) if m.record.kappa > 0}
    claimed = {("standard", "-"), ("weight-norm", "canonical"), ("weight-norm", "checkpoint")}
    assert near == {("late", *chart) for chart in claimed}
    assert {verdict.name for verdict in found.verdicts if verdict.outcome == "not tested"} == {"C4", "C8"}


def test_the_first_numbers_are_said_once_before_anything_is_measured_after_training():
    messages = []
    found = run(dataclasses.replace(QUICK, stretches=()), progress=lambda message, _: messages.append(message))
    (first,) = (message for message in messages if message.startswith("first numbers:"))
    assert messages.index(first) < messages.index("seed 0: standard, late")
    place = {"arm": "standard", "seed": 0, "checkpoint": "init", "matrix": "ggn"}
    for chart, gauge in (("standard", "-"), ("weight-norm", "paper")):
        (number,) = found.of(ConditionNumbers, chart=chart, gauge=gauge, **place)
        assert f" {number.record['kappa_80'].value:.3g} in " in first


def test_arms_that_start_at_the_same_weights_share_what_is_measured_there(monkeypatch):
    """Up to the chart of the weight-normalized arm, which has its own gauge; in float64 both are equal to rounding.

    There K = I: only its Hessian has a spectrum to be computed, which has the second-order term.
    """
    counts, spectrum = Counter(), measuring.spectrum

    def counted(operator, **options):
        counts[operator.where.matrix] += 1
        return spectrum(operator, **options)

    monkeypatch.setattr(measuring, "spectrum", counted)
    found = run(dataclasses.replace(QUICK, seeds=(0,), stretches=()))
    first, second = (
        {m.record.label: comparable(m.record) for m in found.of(Spectrum, arm=arm, checkpoint="init")}
        for arm in ("standard", "weight-norm")
    )
    assert first.items() <= second.items()
    own = [m for m in found.of(Spectrum, arm="weight-norm", checkpoint="init") if m.record.gauge == "checkpoint"]
    assert sum(counts.values()) == len(found.of(Spectrum)) - len(first) - (len(own) - 1)
    problem = problem_of(build(0))
    for m in own:
        chart = WeightNorm() if "linear" not in m.record.chart else cv.Standard()
        operator = cv.effective(MATRICES[m.record.matrix](problem), chart)
        expected = cv.spectrum(operator).eigenvalues
        assert np.abs(m.record.eigenvalues - expected).max() <= 1e-12 * np.abs(expected).max(), m.record.label
    alone = run_study(
        lambda seed: problem_of(build(seed)),
        dataclasses.replace(QUICK, seeds=(0,), stretches=(), arms=QUICK.arms[1:]),
    )
    again = {m.record.label: m.record.eigenvalues for m in alone.of(Spectrum, checkpoint="init")}
    assert again.keys() == second.keys()
    for m in found.of(Spectrum, arm="weight-norm", checkpoint="init"):
        assert np.array_equal(m.record.eigenvalues, again[m.record.label])


def test_a_model_that_weight_norm_cannot_touch_is_refused():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, inputs):
            return inputs * self.scale

    with pytest.raises(ConfigurationError, match="no linear or convolutional layer"):
        run(make=lambda _seed: Scale())


# --------------------------------------------------------------------------------------------------------- cv.study

OPTIONS = {"epochs": 2, "batch_size": 8, "matrices": ("ggn",), "stretches": (), "relative_dampings": (1e-3,)}


@pytest.fixture(scope="module")
def public():
    return cv.study(lambda seed: problem_of(build(seed)), num_seeds=3, **OPTIONS)


def test_the_public_study_is_the_quick_study_of_the_command(public):
    again = run(quick_settings(**OPTIONS))
    assert comparable(public.measurements) == comparable(again.measurements)
    assert comparable(public.verdicts) == comparable(again.verdicts)
    assert [curve.seed for curve in public.curves] == [0, 0, 1, 1, 2, 2]
    assert public.command == "compare"


def test_verdicts_and_decomposition_have_a_public_source(public):
    assert comparable(cv.verdicts(public)) == comparable(public.verdicts)
    stricter = cv.verdicts(public, threshold=10.0)
    assert {verdict.threshold for verdict in stricter if verdict.name == "C1, own training"} == {10.0}
    (ours,) = public.decompositions
    assert comparable(cv.decomposition(public)) == comparable(ours)


def test_seeds_measured_in_parallel_give_the_same_bits(public):
    parallel = cv.study(lambda seed: problem_of(build(seed)), num_seeds=3, jobs=2, **OPTIONS)
    assert comparable(parallel.measurements) == comparable(public.measurements)
    assert comparable(parallel.curves) == comparable(public.curves)


def test_one_problem_starts_every_seed_and_the_study_says_so(public):
    same = cv.study(problem_of(build(0)), num_seeds=2, **OPTIONS)
    first, second = same.curves[0], same.curves[2]
    assert (first.seed, second.seed) == (0, 1)
    assert first.losses[0] == second.losses[0] == public.curves[0].losses[0]
    assert first.losses[-1] != second.losses[-1]  # another order of the data
    warning = "every seed starts from the same weights: the seeds differ only in the order of the data."
    assert warning in same.warnings
    assert warning not in public.warnings
    assert warning not in cv.study(problem_of(build(0)), num_seeds=1, **OPTIONS).warnings


def test_the_full_study_has_its_own_settings_and_options():
    settings = full_settings(seeds=range(3), relative_damping=1e-2, tuning_epochs=3)
    assert (settings.seeds, settings.relative_dampings, settings.training.tuning_epochs) == ((0, 1, 2), (1e-2,), 3)
    assert len(settings.arms) == 13
    assert settings.published is not None
    assert quick_settings().published is None
    with pytest.raises(ConfigurationError, match="epochs must be at least 4 for the checkpoints init, early, middle"):
        cv.study(problem_of(), full=True, epochs=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"learningrate": 0.1},
            "study\\(\\) has no option learningrate. Its options are full, num_seeds, jobs, .* epochs",
        ),
        ({"tuning_epochs": 3}, r"no option tuning_epochs \(tuning_epochs needs full=True\)"),
        ({"arms": ("standard",)}, r"no option arms \(arms needs full=True\)"),
    ],
)
def test_options_that_do_not_exist_are_refused_with_those_that_do(options, message):
    with pytest.raises(TypeError, match=message):
        cv.study(problem_of(), **options)


def test_the_arms_of_a_full_study_can_be_chosen():
    names = ("standard", "weight-norm", "weight-standardization, centred start")
    options = {"epochs": 4, "tuning_epochs": 1, "num_seeds": 1, "matrices": ("ggn", "gradient_covariance")}
    study = cv.study(problem_of(), full=True, arms=names, **options)
    assert [curve.arm for curve in study.curves] == list(names)
    charts = {m.record.label for m in study.of(cv.Spectrum) if m.arm == names[-1]}
    assert charts == {"ggn, standard", "ggn, weight-standardization (checkpoint)"}


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (("standard", "sphere"), "compare the arms standard and weight-norm: add weight-norm to arms="),
        (("standard", "weight-norm", "spere"), "must be one of standard, .*got 'spere'"),
        (("standard", "weight-norm", "weight-norm"), "arms must be distinct"),
        ("standard", r"arms must be a list of names, got 'standard'. Write arms=\['standard', 'weight-norm'\]"),
        ("sphere", r"Write arms=\['standard', 'weight-norm', 'sphere'\]"),
    ],
)
def test_arms_that_cannot_be_studied_are_refused(arms, message):
    with pytest.raises(ConfigurationError, match=message):
        cv.study(problem_of(), full=True, arms=arms)


@pytest.mark.parametrize("build_module", [build(0), build], ids=["module", "function"])
def test_a_study_of_a_module_is_refused_with_the_call_that_works(build_module):
    with pytest.raises(ConfigurationError, match=r"needs a Problem or a function build\(seed\).*Problem.from_module"):
        cv.study(build_module, num_seeds=1, **OPTIONS)


def test_the_old_name_shows_the_two_new_ones():
    with pytest.raises(AttributeError, match=r"cv\.measure\(problem\).*cv\.study\(build\)"):
        cv.compare  # noqa: B018
    assert not hasattr(cv, "compare")
    assert {"measure", "study"} <= set(dir(cv))
