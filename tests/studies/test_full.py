"""The full study at a small size: what is measured where, that seeds do not know of each other, and what is decided."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import curvature as cv
from curvature.errors import ConfigurationError
from curvature.models import Problem, zoo
from curvature.natural_gradient import METHODS
from curvature.records import Alignment, ConditionNumbers, LeagueEntry, Spectrum, StepComparison
from curvature.report import load_study, write_run
from curvature.report.drawings import drawings_of
from curvature.report.plain import plain_values
from curvature.report.selection import Selection
from curvature.report.tables.league import league_answer, league_rows, league_tables
from curvature.report.words import factor_words
from curvature.studies import StudySettings, combined, measure_seed, run_study
from curvature.studies.seeds import WHOLE
from curvature.studies.settings import PUBLISHED
from curvature.studies.training import Arm, TrajectorySettings, start, start_check

ARMS = (
    Arm("standard"),
    Arm("weight-norm"),
    Arm("batch-norm"),
    Arm("prong"),
    Arm("standard", start="paper"),
    Arm("weight-norm-paper", start="paper"),
)
TRAINING = TrajectorySettings(
    rates=tuple(float(rate) for rate in np.logspace(-1.5, 0, 7)),
    tuning_epochs=1,
    epochs=4,
    batch_size=20,
    levels=(2.0, 1e-6),
)
SETTINGS = StudySettings(seeds=(0, 1, 2), arms=ARMS, training=TRAINING)
DATA = zoo.digits(60)


def build(seed):
    return Problem.from_module(zoo.mlp((64, 4, 10), seed=seed), loss="cross-entropy", data=DATA)


@pytest.fixture(scope="module")
def study():
    said = []
    found = run_study(build, SETTINGS, progress=lambda words, share: said.append((share, words)))
    assert [share for share, _ in said] == sorted(share for share, _ in said)
    assert said[-1][0] == 1
    return found


def places(study, kind):
    return {(m.arm, m.checkpoint, m.record.chart, m.record.gauge) for m in study.of(kind, seed=0)}


def test_followed_arms_are_measured_everywhere_and_the_others_at_both_ends(study):
    found = places(study, Spectrum)
    for arm in SETTINGS.followed:
        for checkpoint in ("init", "early", "middle", "late"):
            assert {(arm, checkpoint, "standard", "-"), (arm, checkpoint, "weight-norm", "paper")} <= found
    assert ("weight-norm", "late", "weight-norm", "checkpoint") in found
    for arm, chart, gauge in (
        ("batch-norm", "batch-norm", "population statistics, frozen"),
        ("prong", "prong", "relative damping=0.001"),
    ):
        assert {(a, point) for a, point, c, _ in found if a == arm and c == chart} == {(arm, "init"), (arm, "late")}
        assert (arm, "late", chart, gauge) in found
    whole = {arm for arm, *_ in found if "whole batches" in arm}
    assert whole == {WHOLE.format(name) for name in PUBLISHED}
    for kind in (Spectrum, StepComparison):
        all_of = [
            (
                m.arm,
                m.seed,
                m.checkpoint,
                m.record.chart,
                m.record.gauge,
                *([m.record.matrix, m.record.effective] if kind is Spectrum else [m.record.relative_damping]),
            )
            for m in study.of(kind)
            if m.record.block == "all"
        ]
        assert len(set(all_of)) == len(all_of)
    assert {m.arm for m in study.of(Alignment)} == set(SETTINGS.followed)


def test_the_league_is_measured_at_both_ends_of_weight_norm_and_agrees_with_the_steps_of_the_claims(study):
    entries = study.of(LeagueEntry)
    assert {m.arm for m in entries} == {"weight-norm"}
    places = [(m.seed, m.checkpoint) for m in entries]
    assert set(places) == {(seed, point) for seed in (0, 1, 2) for point in ("init", "late")}
    assert len(places) == 6 * len(METHODS)
    same = {  # measured apart, with charts of their own
        "gradient descent": ("standard", "-"),
        "weight norm, canonical": ("weight-norm", "canonical"),
        "weight norm, gauge reached": ("weight-norm", "checkpoint"),
        "weight norm, paper's gauge": ("weight-norm", "paper"),
        "placebo, paper's gauge": ("placebo", "paper"),
        "K-FAC": ("kfac", "relative damping=0.001"),
        "natural gradient": ("natural-gradient", "relative damping=0.001"),
    }
    for m in study.of(LeagueEntry, checkpoint="late"):
        if m.record.method in same:
            chart, gauge = same[m.record.method]
            (step,) = study.of(
                StepComparison, arm=m.arm, seed=m.seed, checkpoint="late", block="all", chart=chart, gauge=gauge
            )
            assert m.record.efficiency == pytest.approx(step.record.efficiency, rel=1e-12)
            assert m.record.kappa == pytest.approx(step.record.kappa, rel=1e-9)


def test_the_league_in_the_report_is_in_order_with_means_and_intervals_over_seeds(study):
    rows = [row for row in league_rows(Selection(study)) if row["checkpoint"] == "late"]
    shares = [row["efficiency"]["mean"] for row in rows]
    assert shares == sorted(shares, reverse=True)
    best = rows[0]
    assert (best["method"], best["ratio"]["count"]) == ("natural gradient", 3)
    logs = np.log([m.record.ratio for m in study.of(LeagueEntry, checkpoint="late", method="natural gradient")])
    assert best["ratio"]["mean"] == pytest.approx(np.exp(logs.mean()))
    half = 4.302652729911275 * logs.std(ddof=1) / np.sqrt(3)  # Student's t at 2 degrees of freedom
    assert np.log(best["ratio"]["high"] / best["ratio"]["mean"]) == pytest.approx(half)
    document = plain_values({"league": rows, "checkpoints": ["init", "late"]})
    answer = league_answer(document)
    assert answer.startswith("At the end of training one step of weight norm, at the gauge that training has reached,")
    low, high = (factor_words(best["ratio"][end]) for end in ("low", "high"))
    assert answer.endswith(f"and the natural gradient {factor_words(best['ratio']['mean'])} [{low}, {high}].")
    (table,) = league_tables(document)
    assert [getattr(row[0], "value", row[0]) for row in table.rows] == [row["method"] for row in rows]
    assert table.title == "The whitening league at the end of training (relative damping 0.001)"
    assert "with one damping on the weights, 0.001 times the mean eigenvalue of the Fisher:" in table.notes[0]


def test_every_arm_has_its_sweep_and_its_curve_at_the_chosen_rate(study):
    names = [arm.name for arm in ARMS]
    assert [(sweep.arm, sweep.seed) for sweep in study.sweeps] == [(name, seed) for seed in (0, 1, 2) for name in names]
    assert [(curve.arm, curve.learning_rate) for curve in study.curves] == [(s.arm, s.chosen) for s in study.sweeps]


def test_checks_pass_and_measure_the_claims_that_are_identities(study):
    assert all(check.passed for check in study.checks)
    assert {check.claim for check in study.checks} == {"", "C4", "C5", "C6"}
    by_claim = {verdict.claim: verdict for verdict in study.verdicts}
    assert (by_claim["C5"].outcome, by_claim["C6"].outcome) == ("supported", "supported")
    assert (by_claim["C5"].num_pairs, by_claim["C6"].num_pairs) == (3, 3)
    assert max(check.value for check in study.checks if check.claim == "C5") < 1e-12


def test_no_claim_is_untested_and_those_about_training_wait_for_ten_seeds(study):
    outcomes = {f"{v.claim}, {v.case}": v.outcome for v in study.verdicts}
    assert "not tested" not in outcomes.values()
    assert sum("paper's start" in name for name in outcomes) == 4
    for verdict in study.verdicts:
        if verdict.claim in ("C4", "C8"):
            assert verdict.outcome == "undecided"


def test_the_five_sources_add_up_to_the_whole(study):
    named = {(one.matrix, one.arms): one for one in study.decompositions}
    ggn = named["ggn", PUBLISHED[:2]]
    assert set(ggn.sources) - set(ggn.held) == {"initialization", "trajectory", "gauge", "noise"}
    assert "only the Hessian has one" in ggn.held["second-order term"]
    hessian = named["hessian", PUBLISHED[:2]]
    assert "second-order term" not in hessian.held
    for one in study.decompositions:
        assert np.abs(one.parts.sum(axis=1) - one.whole).max() < 1e-12
    seed = ggn.seeds[0]
    late = {
        arm: study.of(ConditionNumbers, arm=arm, seed=seed, checkpoint="late", matrix="ggn", chart=chart, gauge=gauge)[
            0
        ]
        for arm, chart, gauge in ((PUBLISHED[0], "standard", "-"), (PUBLISHED[1], "weight-norm", "checkpoint"))
    }
    ratio = late[PUBLISHED[1]].record["kappa_80"].value / late[PUBLISHED[0]].record["kappa_80"].value
    assert ggn.whole[0] == pytest.approx(np.log(ratio), rel=1e-12)


def test_seeds_do_not_know_of_each_other(study):
    alone = measure_seed(build(1), SETTINGS, seed=1)
    together = [m for m in study.measurements if m.seed == 1]
    assert len(alone.measurements) == len(together)
    for first, second in zip(alone.measurements, together, strict=True):
        assert (first.arm, first.checkpoint, first.step) == (second.arm, second.checkpoint, second.step)
        if isinstance(first.record, Spectrum):
            assert np.array_equal(first.record.eigenvalues, second.record.eigenvalues)
    joined = combined([alone], SETTINGS, build(1))
    assert {v.outcome for v in joined.verdicts if v.claim not in ("C5", "C6")} == {"undecided"}  # one pair


def test_the_study_comes_back_from_its_directory(study, tmp_path):
    few = replace(study, measurements=study.measurements[:20])  # without a league, as version 0.1 wrote it
    found = load_study(write_run(few, tmp_path / "run"))
    assert 'id="league"' not in (tmp_path / "run" / "report.html").read_text()
    assert league_tables({"checkpoints": ["late"]}) == []  # a summary of that version
    assert [(s.arm, s.seed, s.chosen, s.at_edge, s.budget) for s in found.sweeps] == [
        (s.arm, s.seed, s.chosen, s.at_edge, s.budget) for s in study.sweeps
    ]
    assert all(np.array_equal(a.final_losses, b.final_losses) for a, b in zip(found.sweeps, study.sweeps, strict=True))
    assert [one.arms for one in found.decompositions] == [one.arms for one in study.decompositions]
    assert [verdict.outcome for verdict in found.verdicts] == [verdict.outcome for verdict in study.verdicts]


def test_a_start_that_is_not_data_dependent_fails_its_check():
    problem = build(0)
    assert start_check(start(problem, "paper", seed=0, batch_size=20), 20).passed
    other = start(problem, "paper", seed=0, batch_size=30)
    assert not start_check(other, 20).passed
    assert start_check(other, 20).value > 0.01


NETWORKS = {
    "perceptron": (lambda: cv.zoo.mlp((64, 5, 10)), False),
    "convolutions": (lambda: cv.zoo.cnn((2, 3)), True),
    "residual": (lambda: cv.zoo.residual_mlp(64, 10, width=4), False),
    "transformer": (lambda: torch.nn.Sequential(torch.nn.Flatten(1, 2), cv.zoo.transformer(8, 8, 10, width=4)), True),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_paper_s_start_has_mean_0_and_variance_1_in_every_architecture(name):
    network, image = NETWORKS[name]
    problem = cv.Problem.from_module(network(), loss="cross-entropy", data=cv.zoo.digits(60, image=image))
    begin = start(problem, "paper", seed=3, batch_size=40)
    assert start_check(begin, 40).passed
    assert not start_check(begin, 30).passed


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigurationError, match="seeds must be distinct"):
        StudySettings(seeds=(1, 1))
    with pytest.raises(cv.ConfigurationError, match="matrices must be among"):
        StudySettings(matrices=("hesse",))


def test_a_legend_of_thirteen_arms_covers_no_panel(study):
    curve = study.curves[0]
    curves = tuple(replace(curve, arm=f"an arm with a long name, number {k}") for k in range(13))
    (drawing,) = [drawing for drawing in drawings_of(replace(study, curves=curves)) if drawing.name == "training"]
    drawing.figure.draw_without_rendering()
    (legend,) = drawing.figure.legends
    for ax in drawing.figure.axes:
        assert ax.bbox.y0 > legend.get_window_extent().y1
        assert ax.bbox.height > 1.5 * drawing.figure.dpi


def test_figures_say_that_rates_were_tuned_and_their_titles_fit(study):
    drawings = {drawing.name: drawing for drawing in drawings_of(study)}
    assert "its own learning rate, the best of its grid" in drawings["training"].caption
    untuned = {drawing.name: drawing for drawing in drawings_of(replace(study, sweeps=()))}
    assert "the rate was not tuned" in untuned["training"].caption
    for drawing in drawings.values():
        drawing.figure.draw_without_rendering()
        for ax in drawing.figure.axes:
            title = ax._left_title.get_window_extent()
            beyond = [other for other in drawing.figure.axes if other is not ax and other.bbox.x0 > ax.bbox.x1]
            assert title.x1 < min([other.bbox.x0 for other in beyond], default=drawing.figure.bbox.x1)
