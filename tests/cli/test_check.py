"""``curvature check``: what was found and what it would cost, without a spectrum."""

import json
from collections import Counter

import pytest
from typer.testing import CliRunner

from curvature import Standard, WeightNorm, cli, zoo
from curvature.errors import SelfCheckError
from curvature.studies import SpectrumSettings, check_spectrum

SMALL = ["check", "--num-examples", "40", "--arg", "widths=3", "--threads", "1", "-m", "ggn"]
NET = """
import torch
from torch import nn

def make():
    model = nn.Sequential(nn.Linear(64, 3), nn.Tanh(), nn.Linear(3, 10))
    model[0].bias.requires_grad_(False)
    model.spare = nn.Parameter(torch.zeros(2))
    return model
"""


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == code, (result.exit_code, result.stdout[-500:], result.stderr, result.exception)
    return result


@pytest.fixture(autouse=True)
def here(empty_folder):
    return empty_folder


def test_it_says_what_was_found_and_what_it_costs_and_computes_no_spectrum(monkeypatch):
    monkeypatch.setattr("curvature.studies.spectrum.spectrum", None)
    result = run(*SMALL, "--chart", "weight-norm")
    words = " ".join(result.stdout.split())
    for part in ("235 weights in 4 tensors", "40 examples of 64", "weight-norm (canonical)", "passed", "plan: GGN"):
        assert part in words
    (following,) = [line.partition("spectrum ")[2] for line in result.stderr.splitlines() if line.startswith("next: ")]
    assert sorted(following.replace("--matrix", "-m").split()) == sorted([*SMALL[1:], "--chart", "weight-norm"])


def test_json_has_the_plan_and_every_check():
    document = json.loads(run(*SMALL, "--json").stdout)
    assert document["schema"] == "curvature/check/1"
    assert document["num_weights"] == 235
    assert document["plans"][0]["method"] == "dense"
    assert document["plans"][0]["num_bytes"] > 0
    assert {"repetition", "linearity", "symmetry"} <= {check["name"] for check in document["checks"]["ggn"]}


def test_every_matrix_is_checked_in_every_chart():
    charts, matrices = [Standard(), WeightNorm(stretch=3.0)], ["hessian", "ggn"]
    settings = SpectrumSettings(matrices=matrices, charts=charts, method="auto")
    checks = check_spectrum(zoo.digits_problem(20, widths=(2,)), settings)
    counts = {matrix: Counter(check.name for check in checks[matrix]) for matrix in matrices}
    for name in ("repetition", "linearity", "symmetry"):
        assert [counts[matrix][name] for matrix in matrices] == [len(charts)] * len(matrices)


def test_frozen_and_unused_parameters_are_named(here):
    (here / "net.py").write_text(NET)
    stdout = run("check", "--model", "net.py:make", "--num-examples", "40", "-m", "ggn", "--threads", "1").stdout
    assert "frozen:  0.bias" in stdout
    assert "unused:  spare" in stdout


def test_a_failed_self_check_ends_with_its_exit_code(monkeypatch):
    def fail(*_):
        raise SelfCheckError("not symmetric.")

    monkeypatch.setattr("curvature.studies.check_spectrum", fail)
    assert "not symmetric" in run(*SMALL, code=6).stderr


def test_data_that_cannot_be_read_end_with_their_exit_code():
    assert "missing.npz" in run("check", "--data", "missing.npz", code=5).stderr


def test_options_that_write_or_judge_results_are_those_of_spectrum_alone():
    assert "No such option" in run("check", "--out", "run", code=2).stderr
