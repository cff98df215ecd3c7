"""The plan of a study counts what the study then does."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

import curvature as cv
from curvature.errors import ConfigurationError, ResourceError
from curvature.records import LeagueEntry, Spectrum, StepComparison
from curvature.studies import full_settings, plan_study, pricing, quick_settings, run_study


def build(seed):
    return cv.zoo.digits_problem(60, widths=(2,), seed=seed)


QUICK = quick_settings(seeds=(0, 1), epochs=2, stretches=(0.5,), relative_dampings=(1e-3,))
FULL = full_settings(seeds=(0,), epochs=4, tuning_epochs=1)
CASES = {
    "quick": QUICK,
    "one matrix": replace(QUICK, seeds=(3,), matrices=("gradient_covariance",), both_hessians=False),
    # Without levels, whose checkpoints only exist if the loss falls so far.
    "every chart": replace(QUICK, seeds=(1,), own_chart_only=(), both_hessians=True),
    "full": replace(FULL, training=replace(FULL.training, levels=())),
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_the_plan_counts_the_spectra_the_runs_and_the_largest_matrix_of_the_study(settings):
    plan, study = plan_study(build(0), settings), run_study(build, settings)
    spectra = study.of(Spectrum)
    assert plan.num_spectra == Counter(m.record.matrix for m in spectra)
    assert plan.dim == max(m.record.dim for m in spectra)
    assert (plan.num_seeds, plan.num_arms) == (len(settings.seeds), len(settings.arms))
    assert all(curve.steps[-1] == plan.steps_per_run for curve in study.curves)
    whole = {m.arm for m in spectra if m.arm.endswith("whole batches")}
    assert plan.num_runs == len(study.curves) + len(whole)
    assert plan.num_tuning_runs == len(settings.seeds) * len(settings.arms) * len(settings.training.rates)
    compared = {(m.arm, m.seed, m.checkpoint) for m in study.of(StepComparison)}
    assert plan.num_step_comparisons == len(compared)
    assert plan.num_leagues == len({(m.seed, m.checkpoint) for m in study.of(LeagueEntry)})


def test_nothing_is_trained_or_decomposed_for_a_plan(monkeypatch):
    problem = build(0)
    for name in ("curvature.linalg.lapack.eigenvalues", "curvature.linalg.eigen.spectrum", "torch.autograd.backward"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("work"))
    assert plan_study(problem, QUICK).num_bytes > 3 * 8 * 160**2  # three matrices are kept


def test_a_plan_refuses_what_the_study_would_refuse(monkeypatch):
    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, x):
            return self.scale * x

    x = torch.ones(4, 3, dtype=torch.float64)
    with pytest.raises(ConfigurationError, match="no linear or convolutional layer"):
        plan_study(cv.Problem.from_module(Scale(), loss="mse", data=(x, x)), QUICK)
    monkeypatch.setattr(pricing, "free_memory", lambda _: 1e5)
    with pytest.raises(ResourceError):
        plan_study(build(0), QUICK)
