"""``curvature analyze`` as a user runs it."""

import csv
import json
import re
from dataclasses import replace

import pytest
from typer.testing import CliRunner

import curvature as cv
from curvature import cli, studies
from curvature.errors import ExitCode

SMALL = ["analyze", "--num-examples", "40", "--arg", "widths=3", "--threads", "1"]


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, [*SMALL, *arguments])
    assert result.exit_code == code, (result.exit_code, result.stdout[-500:], result.stderr, result.exception)
    return result


@pytest.fixture(autouse=True)
def here(empty_folder):
    return empty_folder


@pytest.fixture(scope="module")
def analysis():
    return cv.analyze(cv.zoo.digits_problem(40, widths=(3,)))


def test_table_is_that_of_the_library(analysis):
    lines = run().stdout.splitlines()
    assert lines[0] == analysis.summary
    for row in analysis.rows:
        shown = " ".join(line for line in lines if line.startswith(f"{row.layer} "))  # a narrow terminal has two parts
        assert all(text in shown for text in row.texts[:-1])


def test_warnings_go_to_standard_error_in_words(analysis):
    stderr = " ".join(run().stderr.split())
    assert analysis.warnings
    assert all(" ".join(warning.split()) in stderr for warning in analysis.warnings)


def test_json_has_every_number_with_its_status(analysis):
    document = json.loads(run("--json").stdout)
    assert document["schema"] == "curvature/analysis/1"
    (first,) = document["analyses"]
    assert first["whole"]["kappa_80"]["value"] == analysis.whole.kappa_80.value
    assert first["whole"]["kappa_80"]["status"] == analysis.whole.kappa_80.status
    assert [layer["layer"] for layer in first["layers"]] == ["0", "2"]


def test_run_directory_has_tables_and_figures_and_repeats_itself(here):
    result = run("-m", "ggn", "-m", "hessian", "--chart", "standard", "--chart", "weight-norm", "--out", "run")
    assert "--config run/config.toml" in result.stderr.replace(f"{here}/", "")
    figures = sorted(path.name for path in (here / "run" / "figures").iterdir())
    assert figures == [
        "ggn_standard.svg",
        "ggn_weight-norm_canonical.svg",
        "hessian_standard.svg",
        "hessian_weight-norm_canonical.svg",
    ]
    with (here / "run" / "analysis.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4 * 3
    page = (here / "run" / "report.html").read_text()
    assert page.count("<figure>") == 4
    assert "GGN, standard: the largest eigenvalue is" in re.sub(r"<[^>]*>", "", page)
    CliRunner().invoke(cli.app, ["analyze", "--config", "run/config.toml", "--out", "again"])
    for name in ("analysis.csv", "figures/ggn_standard.svg", "config.toml"):
        assert (here / "again" / name).read_bytes() == (here / "run" / name).read_bytes()
    assert "--overwrite" in run("--out", "run", code=ExitCode.USAGE).stderr


def test_a_gauge_alone_means_weight_norm():
    output = run("--gauge", "paper").stdout
    assert "ggn, weight-norm (paper)" in output
    assert "ggn, standard" not in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "gnn"], "did you mean ggn"),
        (["--chart", "weightnorm"], "weight-norm"),
        (["--gauge", "papr"], "paper"),
        (["--seed", "-1"], "seed"),
    ],
)
def test_wrong_values_are_refused_with_the_right_ones(arguments, words):
    assert words in run(*arguments, code=ExitCode.USAGE).stderr


def test_strict_ends_with_3_where_a_number_is_open(monkeypatch):
    run("--strict")
    usual = studies.analyze

    def with_a_bound(*arguments, **options):
        analysis = usual(*arguments, **options)
        return replace(analysis, whole=replace(analysis.whole, kappa_80=cv.Quantity(1e9, "lower_bound")))

    monkeypatch.setattr(studies, "analyze", with_a_bound)
    result = run("--strict", code=ExitCode.UNRESOLVED)
    assert "--strict: 1 numbers are open, the first: kappa_80 of ggn, standard (lower bound)." in result.stderr
    run()
