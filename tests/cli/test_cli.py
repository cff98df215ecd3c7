"""The command line: streams, every wrong input with its exit code, configurations that repeat a run."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from torch import nn
from typer.testing import CliRunner

import curvature as cv
from curvature import cli, matrices, report
from curvature import studies as study
from curvature.cli import commands, configuration, options, seeds, sources, tables
from curvature.errors import ConfigurationError, ExitCode, ResourceError
from curvature.linalg import memory, planning, routes
from curvature.linalg.extremal import KrylovSpace
from curvature.linalg.operator import SymmetricOperator
from curvature.provenance import hash_file
from curvature.records import Check
from oracles import Bomb

ROOT = Path(__file__).parents[2]
# One thread: on a busy machine the threads of small matrices wait for each other.
SMALL = ["--arg", "widths=2", "--num-examples", "20", "-m", "ggn", "--threads", "1"]
TINY_COMPARE = [
    "-m",
    "ggn",
    "--num-seeds",
    "1",
    "--epochs",
    "2",
    "--set",
    "stretches=2",
    "--set",
    "relative_dampings=0.001",
]
TINY_COMPARE += ["--threads", "1"]
HESSIAN = [*SMALL[:4], "-m", "hessian", "--threads", "1"]

NETWORK = """
import torch
from torch import nn
print("a word on stdout")
def make(outputs=2, hidden=None, seed=0):
    print("another word on stdout")
    if hidden is None:
        return nn.Linear(4, outputs)
    return nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, outputs))
def nan():
    layer = nn.Linear(4, 2)
    nn.init.constant_(layer.weight, float("nan"))
    return layer
class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.randn(2)
def noisy():
    return Noisy(4, 2)
def quadratic(output, target):
    return ((output - target) ** 2).sum()
def scalar_less(output, target):
    return output
"""


@pytest.fixture(autouse=True)
def here(empty_folder):
    """Work in a folder with a user's file and data."""
    (empty_folder / "net.py").write_text(NETWORK)
    x, y = np.random.default_rng(0).normal(size=(9, 4)), np.arange(9) % 2
    for name, arrays in {
        "good": (x, y),
        "narrow": (x[:, :3], y),
        "nan": (np.where(x == x[4, 2], np.nan, x), y),
        "infinite_target": (x, np.where(y == 1, np.inf, 0.0)),
        "empty": (x[:0], y[:0]),
        "ragged": (x, y[:5]),
        "classes": (x, y + 2),
    }.items():
        np.savez(f"{name}.npz", x=arrays[0], y=arrays[1])
    return empty_folder


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == code, (result.exit_code, result.stdout[-500:], result.stderr, result.exception)
    assert "Traceback" not in result.output
    return result


def document(*arguments):
    return json.loads(run(*arguments, "--json", "-q").stdout)


def numbers(found):
    """Return what a run measured, without when and how fast."""
    return [{k: v for k, v in row.items() if k not in {"seconds"}} for row in found["spectra"]], found["training"]


# --- before anything is loaded


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["spectrum", "--help"], ["compare", "--help"]])
def test_help_and_version_do_not_import_torch(arguments):
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "curvature", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip() for line in process.stderr.splitlines()}
    assert "curvature.cli" in imported
    assert not {"torch", "matplotlib", "scipy", "sklearn"} & imported
    assert process.stdout


def test_version_is_the_packages():
    assert run("--version").stdout == f"curvature {cv.__version__}\n"


@pytest.mark.parametrize("command", ["spectrum", "compare"])
def test_help_documents_every_exit_code_and_key(command):
    text = " ".join(run(command, "--help").stdout.split())
    for code in (0, 1, 2, 3, 5, 6, 7, 130):
        assert f"{code} {commands.EXIT_WORDS[ExitCode(code)].split()[0]}" in text
    fields = configuration.KINDS[command].model_fields.keys()
    by_set_alone = {"momentum", "stretches", "relative_dampings", "gradient", "threshold", "tuning_epochs"}
    refused = configuration.KINDS[command].refused.keys()
    assert [name for name in fields - by_set_alone - refused if f"--{name.replace('_', '-')}" not in text] == []
    assert [name for name in refused if f"--{name}" in text] == []


def test_names_and_defaults_are_those_of_the_library():
    assert set(configuration.MATRICES.values()) == set(matrices.MATRICES)
    assert set(configuration.SpectrumConfiguration.model_fields["method"].annotation.__args__) == set(planning.METHODS)
    ours, theirs = configuration.CompareConfiguration(), study.quick_settings()
    assert tuple(configuration.MATRICES[name] for name in ours.matrix) == theirs.matrices
    assert tuple(range(ours.num_seeds)) == theirs.seeds
    assert seeds.compare_settings(ours) == theirs
    text = " ".join(run("compare", "--help").stdout.replace("│", " ").split())
    for name in ("epochs", "batch_size", "learning_rate", "relative_damping"):
        assert re.search(rf"--{name.replace('_', '-')} .*? Default: {getattr(ours, name):g}\. ", text), name
    full = configuration.CompareConfiguration(full=True)
    assert f"Default: {ours.num_seeds}, with --full {full.num_seeds}." in text
    assert tuple(range(full.num_seeds)) == study.full_settings().seeds


# --- results and streams


def test_spectrum_prints_tables_and_picture_to_stdout_and_the_rest_to_stderr():
    result = run("spectrum", *SMALL, "--chart", "standard,weight-norm", "--gauge", "3", "--gauge", "paper")
    for part in (
        "GGN (N = 20",
        "kappa_95",
        "weight-norm (stretch=3)",
        "weight-norm (paper)",
        "noise floor",
        "< 0",
        "█",
    ):
        assert part in result.stdout
    for part in ("curvature 0", "torch 2", "cpu", "model: builtin:digits-mlp(widths=2)", "20 examples", "plan:"):
        assert part in result.stderr
        assert part not in result.stdout
    assert "\x1b" not in result.output  # no terminal, no colours
    assert "[100%]" in result.stderr  # nor a bar: plain lines


def test_printed_numbers_are_the_librarys():
    problem = cv.zoo.digits_problem(num_examples=20, widths=(2,), seed=4)
    expected = cv.spectrum(cv.ggn(problem), gradient=True)
    text = run("spectrum", *SMALL, "--seed", "4").stdout
    assert f"{expected.eigenvalues[-1]:.4g}" in text
    for quantity in expected.condition_numbers().headline.values():
        assert str(quantity) in text


def test_signs_of_an_indefinite_matrix_are_shown_apart():
    text = run("spectrum", *HESSIAN).stdout
    assert "abs_kappa_95" in text
    assert "indefinite: kappa_50, kappa_80, kappa_95; " in text


def test_quiet_says_nothing_on_stderr_and_verbose_says_all():
    assert run("spectrum", *SMALL, "-q").stderr == ""
    loud = run("spectrum", *SMALL, "-v")
    assert "effective_rank" in loud.stdout
    assert "effective_rank" not in run("spectrum", *SMALL).stdout


@pytest.mark.parametrize("arguments", [SMALL, ["--model", "net.py:make", "--data", "good.npz"]])
def test_json_is_one_document_and_nothing_else(arguments):
    result = run("spectrum", *arguments, "--json")
    found = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert found["schema"] == "curvature/1"
    assert found["config"]["command"] == "spectrum"
    assert found["provenance"]["versions"]["torch"] == torch.__version__
    assert len(found["provenance"]["model_sha256"]) == 64
    if "net.py:make" in arguments:
        assert "another word on stdout" in result.stderr


def test_blocks_and_sampled_fisher():
    fishers = ["-m", "mc-fisher,empirical_fisher", "--num-samples", "3"]
    text = run("spectrum", *SMALL[:4], *fishers, "--block", "layer").stdout
    for part in ("Monte Carlo Fisher", "3 sampled labels", "empirical Fisher", "standard, 0", "standard, 2"):
        assert part in text


def test_seed_draws_the_sampled_labels(here):
    torch.save(cv.zoo.mlp((64, 2, 10)).state_dict(), here / "w.pt")  # the same weights for both seeds
    sampled = [*SMALL[:4], "-m", "mc-fisher", "--threads", "1", "--weights", "w.pt"]
    one, again, two = (numbers(document("spectrum", *sampled, "--seed", seed)) for seed in "112")
    assert one == again
    assert one != two


def test_many_blocks_have_a_few_pictures():
    text = run("spectrum", *SMALL, "--block", "neuron", "--arg", "widths=8").stdout
    assert text.count("< floor") <= tables.MOST_PICTURES
    assert "more pictures: -v" in text


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    out, net, data = folder / "tiny", folder / "net.py", folder / "data.npz"
    net.write_text(NETWORK)
    np.savez(data, x=np.random.default_rng(1).normal(size=(12, 4)), y=np.arange(12) % 2)
    arguments = ["--model", f"{net}:make", "--arg", "hidden=3", "--data", str(data), *TINY_COMPARE, "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "160")  # a narrow terminal has two lines for a claim
        return out, run("compare", *arguments)


def test_compare_prints_the_answer_and_the_picture_on_one_screen(compared):
    out, result = compared
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Does weight norm improve the conditioning of ")
    assert lines[2].startswith("Undecided: after its own training, weight norm multiplies the condition number")
    assert len(lines) <= 24
    assert any(line.startswith("✓ supported   Identity") for line in lines)
    assert "Range of learning rates that work" in result.stdout.partition("not tested: ")[2]
    assert "kappa_95" not in result.stdout
    assert "\x1b" not in result.output
    assert f"report: {out / 'report.html'}" in result.stderr
    assert "checks:" in result.stderr


def test_verbose_compare_prints_how_claims_were_decided_and_every_table(compared, capsys):
    study = report.load_study(compared[0])
    tables.print_compare(study, report.study_document(study), verbose=True)
    text = capsys.readouterr().out
    for part in (
        "standard arm", "weight-norm arm", "accuracy", "init", "late", "kappa_95", "weight-norm (checkpoint)",
        "over those of the standard chart", "at the canonical gauge", "largest difference", "placebo",
        "Efficiency of one step (damping 0.001)", "natural-gradient", "C1, own training: Weight norm makes the GGN",
    ):  # fmt: skip
        assert part in text, part


def test_run_directory_repeats_itself(compared, here):
    out, _ = compared
    written = tomllib.loads((out / "config.toml").read_text())
    assert written["epochs"] == 2
    assert written["arg"] == {"hidden": 3}
    first = json.loads((out / "summary.json").read_text())
    again = document("compare", "--config", str(out / "config.toml"), "--trust-config", "--out", "again")
    assert numbers(again) == numbers(first)
    assert tomllib.loads((here / "again" / "config.toml").read_text()) == written
    assert again["provenance"]["command"]


def test_spectrum_configuration_repeats_the_numbers(here):
    first = document("spectrum", *SMALL, "--gauge", "3", "--seed", "5", "--out", "a")
    written = tomllib.loads((here / "a" / "config.toml").read_text())
    assert (written["chart"], written["gauge"]) == (["standard", "weight-norm"], ["3"])
    assert numbers(document("spectrum", "--config", "a/config.toml")) == numbers(first)
    changed = document("spectrum", "--config", "a/config.toml", "--seed", "6")
    assert numbers(changed) != numbers(first)


def test_the_next_command_is_one_that_works(here):
    arguments = ["--model", "net.py:make", "--arg", "hidden=3", "--data", "good.npz", "-m", "ggn", "--threads", "1"]
    stderr = run("spectrum", *arguments).stderr
    assert "train: curvature compare --model net.py:make --arg hidden=3 --data good.npz\n" in stderr
    stderr = run("spectrum", *arguments, "--out", "a folder/run").stderr
    (command,) = re.findall(r"next: curvature (.*) repeats this run", stderr)
    assert "--trust-config" in command
    run(*shlex.split(command))
    assert (here / "a folder" / "run-again" / "report.html").exists()
    assert "--trust-config" not in run("spectrum", *SMALL, "--out", "b").stderr


def test_the_next_command_names_target_and_number_of_examples(here):
    rows = [f"{k % 3},{k % 5},{k % 2}" for k in range(12)]
    (here / "d.csv").write_text("\n".join(["a,b,y", *rows]))
    arguments = ["--model", "builtin:mlp", "--arg", "inputs=2", "--arg", "outputs=2", "--arg", "widths=2"]
    arguments += ["--data", "d.csv", "--target", "y", "--num-examples", "9"]
    stderr = run("spectrum", *arguments, "-m", "ggn", "--threads", "1").stderr
    assert f"train: curvature compare {' '.join(arguments)}\n" in stderr


def test_arguments_of_the_model_are_written_as_they_are_read():
    read = sources.resolve("spectrum", {"arg": ["widths=4,", "sizes=1,2", "rate=0.5", "bias=true"]}, environment={})
    written = options.model_and_data(read)
    assert written[::2] == ["--arg"] * 4
    assert sources.resolve("spectrum", {"arg": written[1::2]}, environment={}) == read


def test_compare_takes_a_model_of_the_users(here):
    tensors = nn.Linear(4, 2).state_dict()
    torch.save(tensors, here / "w.pt")
    arguments = ["--model", "net.py:make", "--data", "good.npz", "--weights", "w.pt", *TINY_COMPARE, "--num-seeds", "2"]
    result = run("compare", *arguments)
    assert "every seed starts from the same --weights" in result.stderr
    assert "weight norm multiplies" in result.stdout


# --- the user's things


@pytest.mark.parametrize("form", ["legacy", "parametrized"])
def test_weight_normalized_checkpoint_keeps_its_gauge(here, form):
    model = cv.zoo.mlp((64, 2, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for layer in (model[0], model[2]):
            (nn.utils.weight_norm if form == "legacy" else nn.utils.parametrizations.weight_norm)(layer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("_v", "original1")):
                parameter.mul_(3.0)
    torch.save({"model": model.state_dict()}, here / "checkpoint.pt")
    result = run("spectrum", *SMALL, "--weights", "checkpoint.pt", "--key", "model")
    assert "wrapped 0.weight, 2.weight in weight_norm" in result.stderr
    assert re.search(r"^weight-norm \(checkpoint\) +12 +3 +3 +3$", result.stdout, re.MULTILINE)
    problem = cv.Problem.from_module(model, loss="cross-entropy", data=cv.zoo.digits(20))
    expected = cv.spectrum(cv.pullback(cv.ggn(problem), problem.chart))
    assert f"{expected.eigenvalues[-1]:.4g}" in result.stdout


def test_executed_file_is_said_with_path_and_hash_even_to_the_quiet(here):
    result = run("spectrum", "--model", "net.py:make", "--data", "good.npz", "-m", "ggn", "-q")
    assert f"executing {here / 'net.py'} (SHA-256 {hash_file('net.py')})" in result.stderr


def test_convolutional_model_gets_images():
    result = run("spectrum", "--model", "builtin:digits-cnn", *SMALL, "--arg", "channels=1", code=2)
    assert "It takes channels, activation" in result.stderr  # not widths
    result = run("spectrum", "--model", "builtin:digits-cnn", "--arg", "channels=1", *SMALL[2:])
    assert "20 examples of 1 x 8 x 8" in result.stderr


def test_loss_of_the_users_own():
    arguments = ["--model", "net.py:make", "--arg", "outputs=1", "--data", "good.csv", "--target", "t"]
    Path("good.csv").write_text("a,b,c,d,t\n1,2,3,4,0.5\n2,1,0,1,0.1\n0,1,1,3,2\n")
    mine = document("spectrum", *arguments, "--loss", "net.py:quadratic", "-m", "ggn")
    theirs = document("spectrum", *arguments, "--loss", "mse", "-m", "ggn")
    assert np.isclose(mine["table"][0]["largest"]["median"], theirs["table"][0]["largest"]["median"])


# --- the plan, and what comes of it


def test_the_plan_is_printed_before_anything_is_computed(monkeypatch):
    def fail(*_args, **_options):
        raise ResourceError("computed")

    monkeypatch.setattr(study.spectrum, "spectrum", fail)
    text = run("spectrum", *SMALL, "--chart", "standard,weight-norm", code=7).stderr
    assert re.search(r"plan:  GGN: exact \(dense\), 2 spectra, up to 172 x 172, \d+ MB, about [\d.e-]+ s\n", text)
    assert text.index("plan:") < text.index("[  0%]") < text.index("error: computed")
    text = run("spectrum", *SMALL, "-v", code=7).stderr
    assert "not factor: 180 columns for 160 rows" in text


def test_a_dry_run_of_compare_counts_the_work_and_promises_no_time(monkeypatch):
    monkeypatch.setattr(seeds, "measured_seeds", lambda *_: pytest.fail("a dry run trains nothing"))
    options = ["compare", *SMALL, "--epochs", "4", "--dry-run", "-q", "--out", "runs/dry"]
    lines = run(*options).stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["training", "spectra", "steps", "memory", "time"]
    assert lines[0].startswith("training: 3 paired seeds x 2 arms: 6 runs of 4 optimizer steps")
    assert lines[-1].startswith("time:     not estimated")
    full = run(*options, "--full").stdout
    assert full.startswith(
        "tuning:   at least 910 runs of 10 optimizer steps\ntraining: 10 paired seeds x 13 arms: 160 runs of 4 "
    )
    found = json.loads(run(*options, "--json").stdout)
    assert found["schema"] == "curvature/plan/1"
    # Each seed: the standard arm in three charts and then its own; that of weight norm in four, and at four stretches.
    assert found["study"]["num_spectra"] == {"ggn": 3 * (3 + 1 + 2 * 4 + 4)}
    assert not Path("runs").exists()


def test_dry_run_prints_the_plan_and_ends(monkeypatch):
    monkeypatch.setattr(study, "run_spectrum", lambda *_, **__: pytest.fail("a dry run computes nothing"))
    result = run("spectrum", *SMALL, "-m", "hessian", "--dry-run", "-q", "--out", "runs/dry")
    assert result.stderr == ""
    assert not Path("runs").exists()
    for part in ("plan: GGN: exact (dense)", "plan: Hessian: exact", "ggn, standard, 160 x 160: dense", "not factor:"):
        assert part in result.stdout
    found = json.loads(run("spectrum", *SMALL, "--dry-run", "--json", "-q", "--method", "factor").stdout)
    assert found["schema"] == "curvature/plan/1"
    assert [(one["method"], one["dim"], one["wanted"]) for one in found["plans"]] == [("factor", 160, "spectrum")]


def test_ends_by_lanczos_are_printed_and_written():
    arguments = ["spectrum", *HESSIAN, "-m", "ggn", "--method", "lanczos", "--num-eigenvalues", "3", "--gauge", "3"]
    result = run(*arguments, "--out", "runs/ends")
    problem = cv.zoo.digits_problem(num_examples=20, widths=(2,))
    for build, count in ((cv.hessian, 3), (cv.ggn, 0)):
        exact = cv.spectrum(build(problem)).eigenvalues
        for value in (*exact[-3:], *exact[:count]):
            assert f"{value:.8g}"[:6] in result.stdout
    assert "Hessian, ends (N = 20, float64, lanczos)" in result.stdout
    assert "plan:  Hessian: ends of the spectrum (lanczos)" in result.stderr
    assert "kappa" not in result.stdout
    found = [m.record for m in report.load_study("runs/ends").of(cv.ExtremalEigenvalues)]
    assert [(one.matrix, one.chart, len(one.largest), len(one.smallest)) for one in found] == [
        ("hessian", "standard", 3, 3),
        ("hessian", "weight-norm", 3, 3),
        ("ggn", "standard", 3, 0),
        ("ggn", "weight-norm", 3, 0),
    ]
    assert (Path("runs/ends") / "figures" / "extremes.svg").exists()


def test_the_density_is_printed_and_repeats_from_its_configuration():
    arguments = ["spectrum", *SMALL, "--method", "slq", "--num-probes", "4", "--num-matvecs", "15", "--seed", "3"]
    result = run(*arguments, "--out", "runs/density")
    assert "GGN, density (N = 20, float64, slq, 4 probes x 15 products)" in result.stdout
    run("spectrum", "--config", "runs/density/config.toml", "--out", "runs/again", "-q")
    one, two = (report.load_study(f"runs/{name}").of(cv.SpectralDensity)[0].record for name in ("density", "again"))
    assert one.nodes.shape == (4, 15)
    assert np.array_equal(one.nodes, two.nodes)
    assert document(*arguments)["densities"][0]["num_products"] == 60
    # A block smaller than the number of products takes as many as it has dimensions.
    blocks = document("spectrum", *SMALL, "--method", "slq", "--block", "layer")["densities"]
    assert [(row["block"], row["dim"], row["num_matvecs"]) for row in blocks] == [("0", 130, 60), ("2", 30, 30)]


def test_what_does_not_fit_is_estimated_by_auto_and_refused_by_exact(monkeypatch):
    free = 5e6
    for room in (memory, planning, routes, study.spectrum):
        monkeypatch.setattr(room, "free_memory", lambda _: free)
    monkeypatch.setattr(SymmetricOperator, "dense_bytes", property(lambda _: 6e6))
    monkeypatch.setattr(routes.ProductCost, "memory", lambda _, columns: 8.0 * columns)
    arguments = ["spectrum", *SMALL, "--method"]
    result = run(*arguments, "auto", "--num-probes", "2", "--out", "runs/both")
    assert "all eigenvalues of the ggn (160 x 160) need about" in result.stderr
    assert "the ends and the density were estimated instead" in result.stderr
    assert "GGN, ends" in result.stdout
    assert "GGN, density" in result.stdout
    summary = report.load_summary("runs/both")
    assert any("no condition number" in f["text"] for f in summary["findings"] if f["kind"] == "limit")
    assert any("estimated instead" in warning for warning in summary["warnings"])
    assert summary["spectra"] == []
    text = run(*arguments, "exact", code=7).stderr
    assert "Alternatives: the ends of the spectrum" in text
    assert run(*arguments, "exact", "--dry-run", code=7).stdout == ""


def test_ends_that_did_not_converge_are_warned_of_and_strict_refuses_them(monkeypatch):
    measure = study.spectrum.extremal_eigenvalues
    monkeypatch.setattr(
        study.spectrum, "extremal_eigenvalues", lambda *a, **k: measure(*a, **k, space=KrylovSpace(max_products=6))
    )
    result = run("spectrum", *SMALL, "--method", "lanczos", "--num-eigenvalues", "3", "--strict", code=3)
    assert "did not all converge" in result.stderr
    assert "the extremal eigenvalues of ggn in standard (not converged)" in result.stderr
    assert "NOT converged" in result.stdout


# --- every wrong input: its exit code, one message, no traceback

USER = ["--model", "net.py:make", "--data", "good.npz"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--data", "narrow.npz", *USER[:2]], 5, "the model failed on inputs of shape (9, 3)"),
        (["--data", "nan.npz", *USER[:2]], 5, "NaN or infinity in 1 of 9 examples, first in example 4"),
        (["--data", "infinite_target.npz", *USER[:2]], 5, "the targets contain NaN or infinity, first in example 1"),
        (["--data", "empty.npz", *USER[:2]], 5, "empty.npz is empty"),
        (["--data", "ragged.npz", *USER[:2]], 5, "9 inputs but 5 targets"),
        (["--data", "classes.npz", *USER[:2]], 5, "targets must be classes 0 to 1 (the model has 2 outputs), got"),
        (["--data", "missing.npz", *USER[:2]], 5, "missing.npz does not exist"),
        (["--data", "good.npz", "--model", "net.py:nan"], 5, "parameter 'weight' contains NaN"),
        (["--data", "good.npz", "--model", "net.py:noisy"], 6, "the model is not deterministic"),
        ([*USER, "--loss", "mse"], 5, "needs targets of the outputs' shape (9, 2), got (9,)"),
        ([*USER, "--loss", "net.py:scalar_less"], 5, "must return one scalar per example"),
        ([*USER, "--loss", "mes"], 2, "did you mean mse?"),
        ([*USER, "--loss", "net.py:quadratic", "-m", "fisher"], 2, "the Fisher needs a likelihood"),
        ([*USER, "--num-examples", "10"], 2, "--num-examples 10: good.npz has 9 examples"),
        ([*USER, "--weights", "missing.pt"], 5, "the weights file missing.pt does not exist"),
        ([*USER, "--weights", "pickled.pt"], 5, "pickled Python objects"),
        ([*USER, "--weights", "other.pt"], 5, "weight is (7, 3) in the file and (2, 4) in the model"),
        (["--model", "pickled.pt"], 5, "not unpickled"),
        (["--model", "builtin:digits-mpl"], 2, "did you mean builtin:digits-mlp?"),
        (["--model", "net.py:mkae"], 5, "did you mean make?"),
        (["--arg", "width=3"], 2, "did you mean widths?"),
        (["--arg", "widths"], 2, "write NAME=VALUE"),
        (["-m", "hesian"], 2, "did you mean hessian?"),
        (["--chart", "weightnorm"], 2, "did you mean weight-norm?"),
        (["--gauge", "papr"], 2, "gauge 'papr' is unknown"),
        (["--gauge", "checkpoint"], 2, "takes g and v from a weight-normalized model"),
        ([*SMALL, "--block", "nothing"], 2, "matches no parameter"),
        ([*SMALL, "--block", "("], 2, "is not a regular expression"),
        (["--method", "lanzcos"], 2, "'lanczos' or 'slq', got 'lanzcos'"),
        (["--num-probes", "0"], 2, "--num-probes: should be greater than 0, got 0"),
        (["--method", "factor", *HESSIAN], 2, "has no factor"),
        (["--dtype", "float16"], 2, "--dtype: should be 'float64' or 'float32'"),
        (["--device", "tpu"], 2, "choose cpu, cuda"),
        (["--num-examples", "0"], 2, "--num-examples: should be greater than 0, got 0"),
        (["--key", "model"], 2, "add --weights FILE"),
        (["--target", "a"], 2, "--target names a column of a .csv"),
        (["--set", "momentum=0.9"], 2, "'momentum' belongs to `curvature compare`"),
        (["--set", "num_exampels=3"], 2, "did you mean num_examples?"),
        (["--set", "seed"], 2, "write --set KEY=VALUE"),
        (["--config", "missing.toml"], 2, "missing.toml cannot be read"),
        (["--config", "net.py"], 2, "net.py is not a TOML file"),
        (["--out", ".hidden"], 2, "Choose another --out"),
        (["--nonsense"], 2, "No such option: --nonsense"),
        (["--seed", "x"], 2, "unable to parse string as an integer"),
    ],
)  # fmt: skip
def test_wrong_input_ends_in_one_message_and_its_exit_code(arguments, code, words):
    torch.save(nn.Linear(2, 2), "pickled.pt")
    torch.save(nn.Linear(3, 7).state_dict(), "other.pt")
    result = run("spectrum", *arguments, code=code)
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert result.stdout == ""
    assert result.stderr.count("error: ") + result.stderr.count("Error ─") == 1


def test_wrong_compare_ends_in_one_message():
    for arguments, words in (
        (["--epochs", "1"], "--epochs: should be greater than or equal to 2, got 1"),
        (["--num-seeds", "0"], "--num-seeds: should be greater than 0"),
        (["--learning-rate", "nan"], "--learning-rate: should be a finite number"),
        (["--set", "stretches=1,x"], "--set stretches: should be a valid number"),
        (["--set", "seed=3"], "'seed' belongs to `curvature spectrum`"),
    ):
        assert words in run("compare", *arguments, code=2).stderr
    diverged = run("compare", *USER, *TINY_COMPARE, "--learning-rate", "1e308", code=6)
    assert "use a smaller learning rate" in diverged.stderr


def test_pickled_files_are_never_executed(here):
    torch.save(Bomb(), "bomb.pt")
    for arguments in (["--weights", "bomb.pt"], ["--data", "bomb.pt"], ["--model", "bomb.pt"]):
        run("spectrum", *arguments, code=5)
    assert not (here / "exploded").exists()


def test_unexpected_error_is_one_line_and_debug_shows_where(monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("three\nlines\nof it")

    monkeypatch.setattr(study, "run_spectrum", fail)
    message = "error: internal error, ZeroDivisionError: three (--debug shows where)."
    assert run("spectrum", *SMALL, "-q", code=1).stderr == message + "\n"
    result = CliRunner().invoke(cli.app, ["spectrum", *SMALL, "--debug"])
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert message in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (MemoryError(), 7),
        (torch.OutOfMemoryError("CUDA out of memory"), 7),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."), 7),
        (RuntimeError("std::bad_alloc"), 7),
        (SystemError("error return without exception set"), 7),
        (ResourceError("too large"), 7),
        (ConfigurationError("odd"), 2),
    ],
)
def test_errors_of_the_work_have_their_codes(monkeypatch, here, error, code):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(study, "run_spectrum", fail)
    result = run("spectrum", *SMALL, "--out", "a", code=code)
    assert result.stderr.count("error: ") == 1
    assert not (here / "a").exists()


def test_failed_check_is_exit_code_6_and_names_it(monkeypatch):
    measure = study.run_spectrum
    failed = Check("identity of the trace", 0.5, 1e-10)
    monkeypatch.setattr(study, "run_spectrum", lambda *a, **k: replace(measure(*a, **k), checks=(failed,)))
    assert "identity of the trace: 0.5, allowed 1e-10" in run("spectrum", *SMALL, code=6).stderr


def test_bound_is_a_result_unless_strict():
    # With 20 examples a gap shows the rank even in float32; with 100 the eigenvalues go on below the floor.
    small = [*SMALL[:2], "--num-examples", "100", *SMALL[4:]]
    arguments = ["spectrum", *small, "--dtype", "float32", "--method", "dense"]
    assert "> x: at least x" in run(*arguments).stdout
    assert "is a bound or" not in run(*arguments).stderr
    assert "--strict: " in run(*arguments, "--strict", code=3).stderr
    run("spectrum", *USER, "-m", "ggn", "--strict")


def test_weight_decay_moves_every_eigenvalue_of_the_hessian_and_of_no_other_matrix():
    arguments = ["spectrum", *SMALL, "-m", "hessian"]
    plain, decayed = (document(*arguments, *more) for more in ([], ["--weight-decay", "0.25", "--out", "decayed"]))
    rows = [{row["matrix"]: row for row in measured["spectra"]} for measured in (plain, decayed)]
    for end in ("smallest", "largest"):
        shift = rows[1]["hessian"][end] - rows[0]["hessian"][end]
        assert abs(shift - 0.25) < 1e-12
    assert rows[1]["ggn"]["largest"] == rows[0]["ggn"]["largest"]
    assert rows[1]["hessian"]["penalty"] == "weight_decay=0.25"
    assert rows[1]["ggn"]["penalty"] == "without weight_decay=0.25"
    assert "penalty" not in rows[0]["hessian"]
    assert "without weight_decay=0.25" in Path("decayed/report.html").read_text()
    assert "weight_decay = 0.25" in Path("decayed/config.toml").read_text()
    assert "--weight-decay: should be greater" in run("spectrum", *SMALL, "--weight-decay", "-1", code=2).stderr


def test_compare_has_the_weight_decay_of_its_training():
    refused = run("compare", *SMALL[:4], "--full", "--num-seeds", "1", "--weight-decay", "0.25", code=2)
    assert "batch normalization cannot train with weight_decay=0.25" in refused.stderr


def test_existing_target_is_refused_before_any_work():
    Path("a").mkdir()
    result = run("spectrum", *SMALL, "--out", "a", code=2)
    assert "model:" not in result.stderr


def test_control_characters_of_a_name_do_not_reach_the_terminal():
    Path("\x1b[31mred.csv").write_text("a,\x1b]0;title\x07\n1,2\n")
    data = ["--data", "\x1b[31mred.csv"]
    for arguments in (data, [*data, "--target", "b"], ["--model", "\u202eabc:d"]):
        result = run("spectrum", *arguments, code=2)
        assert not {"\x1b", "\x07", "\u202e"} & set(result.output)


# --- where options come from


def resolve(flags=None, **options):
    return sources.resolve("compare", flags or {}, environment=options.pop("environment", {}), **options)


def test_flags_beat_set_beat_environment_beat_file_beat_defaults(here):
    file = here / "c.toml"
    values = {"epochs": 11, "batch_size": 11, "num_seeds": 11, "learning_rate": 11.0}
    file.write_text(tomli_w.dumps(values | {"arg": {"widths": [11], "activation": "relu"}}))
    found = resolve(
        {"epochs": 44, "arg": ["widths=44,"]},
        file=file,
        settings=["epochs=33", "batch_size=33", "arg.extra=33"],
        environment={"CURVATURE_EPOCHS": "22", "CURVATURE_BATCH_SIZE": "22", "CURVATURE_NUM_SEEDS": "22", "HOME": "/"},
    )
    assert (found.epochs, found.batch_size, found.num_seeds, found.learning_rate, found.momentum) == (
        44,
        33,
        22,
        11.0,
        0.0,
    )
    assert found.arg == {"widths": [44], "activation": "relu", "extra": 33}


def test_environment_writes_lists_with_commas_and_warns_of_what_is_no_option():
    said = []
    environment = {
        "CURVATURE_MATRIX": "ggn, Empirical_Fisher",
        "CURVATURE_STRETCHES": "0.5,2",
        "CURVATURE_ARG": "widths=8 activation=relu",
        "CURVATURE_EPOCH": "3",
        "CURVATURE_GAUGE": "paper",  # of the other command
        "CURVATURE_FAST": "1",  # of the notebooks
    }
    found = resolve(environment=environment, warn=said.append)
    assert found.matrix == ("ggn", "empirical-fisher")
    assert found.stretches == (0.5, 2.0)
    assert found.arg == {"widths": 8, "activation": "relu"}
    assert said == [
        "the environment variable CURVATURE_EPOCH is not an option (did you mean CURVATURE_EPOCHS?) and is ignored"
    ]


@pytest.mark.parametrize(
    ("old", "new"), [("damping", "relative_damping"), ("dampings", "relative_dampings"), ("seeds", "num_seeds")]
)
def test_a_field_under_its_old_name_is_refused_with_the_new_one(here, old, new):
    (here / "c.toml").write_text(f"{old} = 1")
    for source in ({"file": Path("c.toml")}, {"settings": [f"{old}=1"]}, {"environment": {f"CURVATURE_{old}": "1"}}):
        with pytest.raises(ConfigurationError, match=f"'{old}' is now called '{new}'; its meaning is the same"):
            resolve(**source)
    if old != "dampings":  # which was never an option
        words = f"--{old} is now called --{new.replace('_', '-')}; its meaning is the same."
        assert words in run("compare", f"--{old}", "1", code=2).stderr


def test_environment_and_config_reach_the_command(here, monkeypatch):
    values = {"command": "spectrum", "matrix": ["ggn"], "gauge": [3.0], "num_examples": 20}
    (here / "c.toml").write_text(tomli_w.dumps(values))
    monkeypatch.setenv("CURVATURE_NUM_EXAMPLES", "15")
    found = document("spectrum", "--config", "c.toml", "--arg", "widths=2", "--set", "gradient=false")
    assert found["num_examples"] == 15
    assert found["config"]["gauge"] == ["3"]
    assert found["config"]["gradient"] is False


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("epoch = 3", "c.toml: epoch: 'epoch' is unknown (did you mean epochs?)"),
        ("epochs = 'many'", "c.toml: epochs: should be a valid integer"),
        ("epochs = [", "c.toml is not a TOML file"),
        ("command = 'spectrum'", "c.toml is a configuration for `curvature spectrum`, not for `curvature compare`"),
        ("gauge = ['paper']", "'gauge' belongs to `curvature spectrum`"),
        ("matrix = []", "c.toml: matrix: "),
        ("learning_rate = inf", "c.toml: learning_rate: should be a finite number"),
    ],
)
def test_wrong_configuration_names_its_key(here, content, words):
    (here / "c.toml").write_text(content)
    with pytest.raises(ConfigurationError) as found:
        resolve(file=Path("c.toml"))
    assert words in str(found.value)


def test_a_table_is_measured_with_a_network_of_its_size():
    sizes = ["--model", "builtin:mlp", "--arg", "inputs=13", "--arg", "outputs=3", *SMALL]
    found = document("spectrum", "--data", "builtin:wine", *sizes)
    assert found["num_weights"] == 13 * 2 + 2 + 2 * 3 + 3
    assert "builtin:wine: 20 examples of 13, classes 0 to 2" in found["data"]


def test_a_folder_of_images_is_data_not_code(here):
    (here / "c.toml").write_text("data = 'mnist:nowhere'\nmatrix = ['ggn']\n")
    refused = run("spectrum", "--config", "c.toml", code=5)
    assert "the folder 'nowhere' of the MNIST files does not exist" in refused.stderr


def test_code_named_by_a_file_needs_trust(here):
    (here / "c.toml").write_text("model = 'net.py:make'\ndata = 'good.npz'\nmatrix = ['ggn']\n")
    refused = run("spectrum", "--config", "c.toml", code=2)
    assert "add --trust-config, or name the code yourself: --model net.py:make" in refused.stderr
    assert "executing" not in refused.stderr
    for words in (["--trust-config"], ["--model", "net.py:make"]):
        assert "executing" in run("spectrum", "--config", "c.toml", *words).stderr
    (here / "d.toml").write_text("loss = 'os:system'\n")
    assert "names code to run (loss = 'os:system')" in run("spectrum", "--config", "d.toml", code=2).stderr


# --- the process around it


def test_threads_are_limited_for_the_run_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert document("spectrum", *SMALL)["provenance"]["threads"] == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_interrupt_ends_with_130_and_leaves_nothing(here):
    process = subprocess.Popen(
        [sys.executable, "-m", "curvature", "compare", "--out", str(here / "a")],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell starts what runs in the background with interrupts ignored, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    for line in process.stderr:
        if "training" in line:
            break
    time.sleep(0.2)
    for _ in range(5):  # one that arrives while a library imports or collects garbage is lost, as at a keyboard
        process.send_signal(signal.SIGINT)
        try:
            stdout, stderr = process.communicate(
                timeout=30
            )  # to end takes seconds on a busy machine, and a second interrupt would kill
            break
        except subprocess.TimeoutExpired:
            continue
    assert process.returncode == 130
    assert stdout == ""
    assert "error: interrupted; nothing was written." in stderr
    assert "Traceback" not in stderr
    assert not (here / "a").exists()


def test_ascii_terminal_gets_the_picture_too():
    process = subprocess.run(
        [sys.executable, "-m", "curvature", "spectrum", *SMALL],
        cwd=ROOT, capture_output=True, check=True, env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert b"####" in process.stdout


def test_garbage_of_user_code_is_collected_and_libraries_are_not_searched_for_it(here):
    code = "import gc, torch\ndef make():\n    print('collects', gc.isenabled(), gc.get_freeze_count() > 1e5)\n"
    code += "    return torch.nn.Linear(4, 2)\n"
    (here / "watched.py").write_text(code)
    process = subprocess.run(
        [sys.executable, "-m", "curvature", "spectrum", "--model", "watched.py:make", "--data", "good.npz"],
        cwd=here, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "collects True True" in process.stderr


def test_threads_of_two_libraries_wait_briefly_for_each_other_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(os, "environ", {"GOMP_SPINCOUNT": "7"})
    for name in ("curvature.cli.run_command_line", "atexit.register"):
        monkeypatch.setattr(name, lambda _action: None)
    monkeypatch.setattr("gc.disable", lambda: None)
    cli.main()
    assert (os.environ["GOMP_SPINCOUNT"], os.environ["OPENBLAS_THREAD_TIMEOUT"]) == ("7", "16")


def test_reader_that_has_gone_is_no_error_of_ours():
    command = f"{sys.executable} -m curvature spectrum {' '.join(SMALL)} -q --block neuron -v | head -n 1"
    process = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.stdout.startswith("GGN")
    assert process.stderr == ""


def test_run_directory_is_complete_and_may_be_replaced(here):
    run("spectrum", *SMALL, "--out", "a")
    wanted = {"report.html", "summary.json", "summary.csv", "config.toml", "provenance.json"}
    assert wanted <= {path.name for path in (here / "a").iterdir()}
    assert report.load_summary(here / "a")["provenance"]["data_sha256"]
    run("spectrum", *SMALL, "--out", "a", "--overwrite")


@pytest.mark.parametrize("command", ["spectrum", "analyze"])
def test_weights_that_a_chart_cannot_represent_are_refused_or_moved_by_name(command):
    options = ["--matrix", "ggn", "--chart", "standard", "--chart", "weight-standardization"]
    options += ["--arg", "widths=2", "--num-examples", "20"]
    refused = run(command, *options, code=5).stderr
    assert "weight-standardization cannot represent '0.weight'" in refused
    assert "--nearest" in refused
    moved = run(command, *options, "--nearest", "--json")
    problem = cv.zoo.digits_problem(20, widths=(2,))
    expected = cv.nearest(problem, cv.WeightStandardization())
    assert expected.notes[0] in " ".join(moved.output.split())
    if command == "spectrum":
        largest = json.loads(moved.stdout)["spectra"][0]["largest"]
        assert largest == pytest.approx(cv.spectrum(cv.ggn(expected)).eigenvalues[-1], rel=1e-9)
