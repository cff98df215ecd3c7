"""Analysis scripts are found, not listed: each runs at its smallest size; their numbers are asserted one by one."""

import contextlib
import functools
import importlib
import io
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import curvature as cv
from curvature.natural_gradient import best_stretches
from curvature.records.marchenko_pastur import marchenko_pastur_bures
from curvature.studies.training import paper_start

SCRIPTS = sorted(path.stem for path in (Path(__file__).parents[2] / "analyses").glob("[!_]*.py"))


def run_main(name, folder):
    """Run a script as a user does, at its smallest size; what it printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [name, "--out", str(folder), "--fast"])
        importlib.import_module(f"analyses.{name}").main()
    return printed.getvalue()


@pytest.fixture(scope="session")
def ran(tmp_path_factory):
    """``ran(name)``: folder, document and output of one script, which runs once for all tests."""

    @functools.cache
    def run(name):
        folder = tmp_path_factory.mktemp(name) / "out"
        printed = run_main(name, folder)
        return SimpleNamespace(
            folder=folder, printed=printed, document=json.loads((folder / "curves.json").read_text())
        )

    return run


@pytest.fixture(scope="session")
def rows_of(ran):
    """``rows_of(name, arm="standard")``: the rows of a script that have these values."""

    def select(name, **values):
        rows = ran(name).document["rows"]
        return [row for row in rows if all(row.get(key) == value for key, value in values.items())]

    return select


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_writes_its_numbers_and_its_figure(name, ran):
    result = ran(name)
    assert {".json", ".svg"} <= {path.suffix for path in result.folder.iterdir()}
    assert result.document["rows"]
    assert result.document["fast"] is True
    assert result.printed
    documentation = importlib.import_module(f"analyses.{name}").__doc__
    assert documentation.splitlines()[0].endswith("?")
    assert f"python -m analyses.{name} --out" in documentation


def test_gauge_sweep_stays_inside_the_bound_and_passes_through_the_standard_value(rows_of):
    rows = rows_of("gauge_sweep")
    standard = next(row for row in rows if row["stretch"] is None)
    for row in rows:
        stretch = row["stretch"] or 1.0
        ratio = row["kappa_50"] / standard["kappa_50"]
        assert 1 / max(stretch, 1 / stretch) ** 2 < ratio * (1 + 1e-8)
        assert ratio < max(stretch, 1 / stretch) ** 2 * (1 + 1e-8)
        assert row["rank"] == standard["rank"]
    ratios = {row["stretch"]: row["kappa_50"] / standard["kappa_50"] for row in rows}
    assert ratios[1.0] == pytest.approx(1, abs=1e-9)
    assert ratios[16.0] > 2  # the gauge does matter


def test_charts_at_one_function_reach_what_the_formulas_say_and_interlace(ran, rows_of):
    """No chart can turn more eigenvalues on than it reaches; those of the sphere interlace (Cauchy)."""
    shapes, rank = ((4, 64), (10, 4)), 2
    rows = {row["chart"]: row for row in rows_of("charts_at_one_function")}
    weights = rows["standard"]["weights"]
    normed, biases = sum(m * n for m, n in shapes), weights - sum(m * n for m, n in shapes)
    expected = {
        "standard": weights,
        "weight norm, stretch 3": weights,
        "sphere": weights - 14,
        "random weight factorization": weights,
        "weight standardization": weights - 14,
        "spectral norm": weights - 2,
        "LoRA at B = 0": biases + 14 * rank,
        "LoRA, PiSSA": biases + sum(rank * (m + n - rank) for m, n in shapes),
        "DoRA at B = 0": biases + 14 + 14 * rank,
        # 3 less than m + r (m + n - r): diagonal D whose D W0 is in the tangent space of the adapter. For 4 x 64 they
        # solve 3 equations of 4 unknowns; for 10 x 4, of rank 3 as its rows have mean zero, W0 has rank 1: 2 of them.
        "DoRA, PiSSA": biases + 14 + sum(rank * (m + n - rank) for m, n in shapes) - 3,
        "deep linear": biases + normed - 7,  # 10 x 4 of rank 3: K = 0 on (10 - 3) (4 - 3) directions
    }
    assert {name: row["reach"] for name, row in rows.items()} == expected
    spectra = ran("charts_at_one_function").document["spectra"]
    whole, sphere = spectra["standard"], spectra["sphere"]
    for k, value in enumerate(sphere):
        assert value <= whole[k] * (1 + 1e-9)
        assert k + 14 >= len(whole) or value >= whole[k + 14] * (1 - 1e-9)


# ------------------------------------------------------------------------------------------- what the scripts share


def test_intervals_are_those_of_student_over_the_logarithms():
    from analyses._protocol import intervals

    values = (1.0, math.e, math.e**2)
    rows = [{"arm": "a", "seed": seed, "kappa": value} for seed, value in enumerate(values)]
    rows += [{"arm": "b", "seed": 0, "kappa": 3.0}, {"arm": "b", "seed": 1, "kappa": math.nan}]
    first, second = intervals(rows, ("arm",), ("kappa",))
    assert first["kappa"] == pytest.approx(math.e)
    reach = 4.302652729696142 / 3**0.5  # t(2) at 97.5 %, standard deviation 1
    assert first["kappa_high"] == pytest.approx(math.exp(1 + reach))
    assert first["kappa_low"] == pytest.approx(math.exp(1 - reach))
    assert (second["kappa"], second["num_kappa"]) == (pytest.approx(3), 1)
    assert math.isnan(second["kappa_low"])
    plain = intervals(rows[:3], ("arm",), ("kappa",), log=False)[0]
    assert plain["kappa"] == pytest.approx(np.mean(values))


def test_intervals_count_what_is_not_resolved():
    from analyses._protocol import intervals

    rows = [{"kappa": 2.0, "kappa_status": status} for status in ("resolved", "lower_bound", "unresolved")]
    assert intervals(rows, (), ("kappa",))[0]["num_kappa_unresolved"] == 2


def test_a_script_writes_the_same_bytes_every_time(ran, tmp_path):
    first = ran("layerwise_conditioning").folder
    run_main("layerwise_conditioning", tmp_path)
    for name in ("curves.json", "figure.svg"):
        assert (tmp_path / name).read_bytes() == (first / name).read_bytes()


# -------------------------------------------------------------------------------------------- conditioning at init


def test_mean_field_of_one_hidden_layer_is_what_paper_and_pencil_give():
    from analyses.conditioning_at_init import mean_field

    inputs, width, examples = 7, 30, 11
    plain = mean_field((inputs, width, 3), examples)
    same = (width + 1) + (inputs + 1)  # E relu(z)^2 = 1 at variance 2; derivatives: 2 * 1/2
    different = (
        width / math.pi + 1
    ) + 0.5  # E relu(x) relu(y) = 2 / (2 pi); 2 * 1/4 for the bias, inputs are independent
    assert plain["trace"] == pytest.approx(3 * same)
    assert plain["largest"] == pytest.approx(((examples - 1) * different + same) / examples)
    scaled = mean_field((inputs, width, 3), examples, gauge="paper")
    rhos = [2 / (0.05**2 * fan_in) for fan_in in (inputs, width)]
    assert scaled["trace"] == pytest.approx(3 * (rhos[1] * width + 1 + rhos[0] * inputs + 1))
    centred = mean_field((inputs, width, 3), examples, centred=True)
    variance = 1 / (0.5 - 0.5 / math.pi)  # of the second layer's weights; the first has 1
    same = (width / 2 + 1) + variance / 2 * (inputs + 1)
    assert centred["trace"] == pytest.approx(3 * same)


@pytest.mark.parametrize(("centred", "room"), [(False, 0.15), (True, 0.3)])
def test_mean_field_agrees_with_wide_networks_before_and_after_centring(centred, room):
    """Mean of the logarithms over eight networks; layers of 160 units and 60 examples are not yet the limit."""
    from analyses.conditioning_at_init import he_problem, mean_field

    sizes, examples = (32, 160, 160, 2), 60
    theory = mean_field(sizes, examples, centred=centred)
    logs = []
    for seed in range(8):
        problem = he_problem(sizes, examples, seed)
        gram = cv.fisher(paper_start(problem, seed=seed).problem if centred else problem).gram()
        values = torch.linalg.eigvalsh(gram)
        logs.append((math.log(values.sum() / theory["trace"]), math.log(values[-1] / theory["largest"])))
    assert np.abs(np.mean(logs, axis=0)).max() < room
    assert (theory["largest"] / theory["trace"] < 0.12) is centred  # 0.16 before: what centring takes away


def test_canonical_gauge_changes_nothing_at_initialization_and_the_papers_does(rows_of):
    rows = {(row["sweep"], row["depth"], row["start"], row["gauge"]): row for row in rows_of("conditioning_at_init")}
    for (sweep, depth, start, gauge), row in rows.items():
        standard = rows[sweep, depth, start, "standard"]
        assert row["rank"] == standard["rank"] <= 20 * 2
        assert row["l1_over_mean"] >= 1
        assert row["kappa_80"] >= row["kappa_50"] >= 1
        if gauge == "canonical":
            assert row["largest"] == pytest.approx(standard["largest"], rel=1e-10)
            assert row["kappa_80"] == pytest.approx(standard["kappa_80"], rel=1e-6)
            assert row["predicted_trace"] == standard["predicted_trace"]
        elif gauge == "paper":
            assert abs(math.log(row["kappa_80"] / standard["kappa_80"])) > 0.01


# ------------------------------------------------------------------------------------- conditioning along training


def test_along_training_the_charts_agree_where_they_are_the_same(ran, rows_of):
    name = "conditioning_along_training"
    for row in rows_of(name, arm="standard", chart="canonical"):
        (own,) = rows_of(name, arm="standard", chart="own", epoch=row["epoch"])
        assert row["kappa_50"] == pytest.approx(own["kappa_50"], rel=1e-8)
        assert row["rank"] == own["rank"]
    standard, placebo = (rows_of(name, arm=arm, chart="own", epoch=0)[0] for arm in ("standard", "placebo"))
    assert placebo["kappa_50"] == pytest.approx(standard["kappa_50"], rel=1e-8)  # at stretch 1 its K is the identity
    assert placebo["loss"] == standard["loss"]  # one function
    assert [row["gauge"] for row in rows_of(name, arm="standard", chart="canonical")] == ["canonical"] * 2
    paper = {row["chart"]: row for row in rows_of(name, arm="weight-norm-paper, paper start", epoch=0)}
    assert abs(math.log(paper["own"]["kappa_80"] / paper["canonical"]["kappa_80"])) > 0.01
    summary = ran(name).document["summary"]
    ratios = [row for row in summary if row["arm"] == "standard" and row["chart"] == "own"]
    assert [row["log_ratio_kappa_80"] for row in ratios] == [0, 0]
    (pair,) = [row for row in summary if (row["arm"], row["chart"], row["epoch"]) == ("placebo", "own", 2)]
    last = [rows_of(name, arm=arm, chart="own", epoch=2)[0] for arm in ("placebo", "standard")]
    assert pair["log_ratio_kappa_80"] == pytest.approx(math.log(last[0]["kappa_80"] / last[1]["kappa_80"]))


# ---------------------------------------------------------------------------------------------- gradient covariance


def test_gradient_covariance_at_the_start_is_that_of_plain_eigenvectors(rows_of):
    problem = cv.zoo.digits_problem(150, widths=(4, 4), seed=0)
    matrix = cv.gradient_covariance(problem, method="generic").dense().numpy()
    cosines, means, befores, afters = [], [], [], []
    mean = problem.inputs.mean(dim=0).numpy()
    for neuron in range(4):  # the first layer: 64 weights each, one row after the other
        rows = slice(64 * neuron, 64 * neuron + 64)
        values, vectors = np.linalg.eigh(matrix[rows, rows])
        w = problem.weights[rows].numpy()
        cosines.append(abs(w @ vectors[:, -1]) / np.linalg.norm(w))
        means.append(abs(mean @ vectors[:, -1]) / np.linalg.norm(mean))
        for distances, spectrum in ((befores, values.clip(0)), (afters, values[:-1].clip(0))):
            distances.append(1 - np.sqrt(spectrum).sum() ** 2 / (len(spectrum) * spectrum.sum()))
    place = {"arm": "standard", "epoch": 0, "layer": "0"}
    rows = {row["direction"]: row for row in rows_of("gradient_covariance", **place)}
    assert rows["w"]["cosine"] == pytest.approx(np.median(cosines), rel=1e-9)
    assert rows["mean input"]["cosine"] == pytest.approx(np.median(means), rel=1e-9)
    assert rows["e1"]["bures_before"] == pytest.approx(np.median(befores), abs=1e-6)
    assert rows["e1"]["bures"] == pytest.approx(np.median(afters), abs=1e-6)
    assert rows["w"]["null_bures"] == pytest.approx(marchenko_pastur_bures(63, 150))
    assert rows["w"]["null_cosine"] == pytest.approx(math.sqrt(2 / (64 * math.pi)), rel=0.01)
    assert rows["mean input"]["cosine"] > 0.9 > 0.5 > rows["w"]["cosine"]  # what the claim says is not so


def test_gradient_covariance_numbers_stay_in_their_ranges(rows_of):
    for row in rows_of("gradient_covariance"):
        assert 0 <= row.get("cosine", 0) <= 1
        assert 0 <= row.get("bures", 0) < 1
        assert row.get("l1_over_mean", 1) >= 1


# ------------------------------------------------------------------------------------------------- natural gradient


@pytest.mark.parametrize("epoch", [0, 1])
def test_scale_of_resemblance_is_calibrated_and_the_best_gauges_are_the_best(rows_of, epoch):
    rows = {(row["chart"], row["gauge"]): row for row in rows_of("natural_gradient_resemblance", epoch=epoch)}
    standard, canonical = rows["standard", "-"], rows["weight-norm", "canonical"]
    assert standard["index"] == 0
    assert rows["neuron-block", "-"]["index"] == 1
    assert canonical["index"] == pytest.approx(0, abs=1e-9)
    assert rows["natural-gradient", "-"]["efficiency"] == pytest.approx(1, abs=1e-8)
    assert all(0 <= row["efficiency"] <= 1 + 1e-9 for row in rows.values())
    for row in rows.values():
        kappa = row["damped_kappa"]
        assert kappa is None or row["efficiency"] >= 4 * kappa / (1 + kappa) ** 2 * (1 - 1e-6)  # Kantorovich
    best = [
        rows["weight-norm", f"best efficiency per {scope}"]["efficiency"] for scope in ("network", "layer", "neuron")
    ]
    assert standard["efficiency"] <= best[0] + 1e-9
    assert best == sorted(best)
    for gauge in ("paper", "checkpoint"):
        assert rows["weight-norm", gauge]["efficiency"] <= best[2] * (1 + 1e-6)
    least = [rows["weight-norm", f"best kappa per {scope}"]["kappa_80"] for scope in ("neuron", "layer", "network")]
    assert [*least, canonical["kappa_80"] * (1 + 1e-6)] == sorted([*least, canonical["kappa_80"] * (1 + 1e-6)])


def test_resemblance_of_the_best_gauge_is_that_of_the_stretches_found_for_it(rows_of):
    problem = cv.zoo.digits_problem(100, widths=(2,), seed=0)
    chart = cv.WeightNorm(stretch=best_stretches(problem, by="layer", relative_damping=1e-3))
    (row,) = rows_of("natural_gradient_resemblance", epoch=0, gauge="best efficiency per layer")
    assert row["efficiency"] == pytest.approx(cv.efficiency(problem, chart).efficiency, rel=1e-9)


# ------------------------------------------------------------------------------------- convergence and conditioning


def test_rank_correlation_counts_what_never_arrives_as_last():
    from analyses.convergence_against_conditioning import spearman

    def rows(predictors, steps):
        return [{"kappa": k, "steps": s} for k, s in zip(predictors, steps, strict=True)]

    assert spearman(rows([1.0, 10.0, 100.0, 1e6], [5, 6, 7, None]), "kappa") == pytest.approx(1)
    assert spearman(rows([1e6, 100.0, 10.0, 1.0], [5, 6, 7, None]), "kappa") == pytest.approx(-1)
    assert spearman(rows([1.0, 2.0, 3.0, 4.0], [1, 4, None, None]), "kappa") == pytest.approx(0.9486832980505138)
    assert spearman(rows([1.0, 2.0, None, 4.0], [1, 2, 0, 3]), "kappa") == pytest.approx(1)
    assert math.isnan(spearman(rows([1.0, None, None, 4.0], [1, 2, 0, 3]), "kappa"))
    assert math.isnan(spearman(rows([1.0, 2.0, 3.0], [None, None, None]), "kappa"))


def test_convergence_is_measured_against_each_arms_own_chart(ran, rows_of):
    name = "convergence_against_conditioning"
    for seed in (0, 1):
        rows = {row["arm"]: row for row in rows_of(name, seed=seed)}
        assert rows["weight-norm"]["kappa_80_start"] == pytest.approx(rows["standard"]["kappa_80_start"], rel=1e-6)
        assert abs(math.log(rows["weight-norm-paper"]["kappa_80_start"] / rows["standard"]["kappa_80_start"])) > 0.01
        assert all(row["steps"] is None or 0 < row["steps"] <= row["total_steps"] for row in rows.values())
        assert any(row["steps"] is not None for row in rows.values())
    for summary in ran(name).document["summary"]:
        assert -1 <= summary["correlation_low"] <= summary["correlation"] <= summary["correlation_high"] <= 1
        assert summary["correlation"] == pytest.approx(np.mean(summary["by_seed"]))


# -------------------------------------------------------------------------------------------------- layer by layer


def test_layers_obey_ostrowski_and_the_canonical_gauge_changes_none(rows_of):
    rows = {(row["epoch"], row["layer"], row["gauge"]): row for row in rows_of("layerwise_conditioning")}
    assert {layer for _, layer, _ in rows} == {"0", "2", "4"}
    for (epoch, layer, gauge), row in rows.items():
        standard = rows[epoch, layer, "standard"]
        assert row["rank"] == standard["rank"]
        assert row["dim"] == standard["dim"]  # no gauge zeros: the effective matrix
        rhos = [row["smallest_stretch"] ** -2, row["largest_stretch"] ** -2, 1.0]
        bound = max(rhos) / min(rhos)
        factor = row["kappa_80"] / standard["kappa_80"]
        assert 1 / bound * (1 - 1e-6) <= factor <= bound * (1 + 1e-6)
        if gauge == "canonical" or (gauge == "own gauge" and epoch == 0):
            assert factor == pytest.approx(1, rel=1e-6)
    assert rows[0, "4", "stretch 8"]["kappa_80"] > 2 * rows[0, "4", "standard"]["kappa_80"]


# ------------------------------------------------------------------------------------------------------- real data


def test_on_every_data_set_the_canonical_gauge_gives_one_and_the_start_is_shared(ran):
    summary = {
        (row["data"], row["when"], row["comparison"]): row["kappa_80_ratio"]
        for row in ran("real_data").document["summary"]
    }
    names = {data for data, _, _ in summary}
    assert names == {f"builtin:{name}" for name in ("digits", "breast-cancer", "wine", "diabetes", "housing")}
    for name in names:
        for when in ("init", "trained"):
            assert summary[name, when, "canonical"] == pytest.approx(1, rel=1e-6)
        for comparison in ("own gauge", "trajectory"):
            assert summary[name, "init", comparison] == pytest.approx(1, rel=1e-6)
        assert abs(math.log(summary[name, "trained", "own gauge"])) > 0.001  # ||v|| has grown
        assert abs(math.log(summary[name, "init", "paper's gauge"])) > 0.001


def test_further_data_are_measured_like_the_others(tmp_path, monkeypatch):
    real_data = importlib.import_module("analyses.real_data")
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 40)
    np.savez(tmp_path / "d.npz", x=generator.normal(size=(40, 2, 3)) + labels[:, None, None], y=labels)
    monkeypatch.setattr(real_data, "DATA", {})
    rows = real_data.measure(fast=True, more=[str(tmp_path / "d.npz")])
    assert {(row["num_examples"], row["num_weights"]) for row in rows} == {(40, 6 * 3 + 3 + 3 * 3 + 3)}
    assert {row["gauge"] for row in rows} == {"standard", "canonical", "paper's gauge", "own gauge"}
