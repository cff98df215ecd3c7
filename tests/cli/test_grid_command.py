"""``curvature compare --grid`` as a user runs it: planned, interrupted, resumed, repeated from its file, and read."""

import csv
import html
import json
import re
import shutil
import sys
import tomllib

import pytest
from typer.testing import CliRunner

import browser
from curvature import cli, report
from curvature.errors import ExitCode
from curvature.report.parts import Parts

pytest.importorskip("statsmodels")

TINY = """
data = ["wine", "breast-cancer", "diabetes"]
architectures = ["tanh-mlp"]
optimizers = ["sgd"]
arms = ["standard", "weight-norm"]
matrix = ["ggn"]
num_seeds = 3
num_examples = 40
num_weights = 60
epochs = 3
tuning_epochs = 1
whole_batches = false
"""
SAME = ("verdicts", "sources", "groups", "cells", "warnings", "config")


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == code, (result.exit_code, result.stdout[-500:], result.stderr, result.exception)
    return result


@pytest.fixture(autouse=True)
def here(empty_folder):
    (empty_folder / "tiny.toml").write_text(TINY)
    return empty_folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that all others must repeat bit by bit."""
    folder = tmp_path_factory.mktemp("grid")
    (folder / "tiny.toml").write_text(TINY)
    result = run("compare", "--grid", str(folder / "tiny.toml"), "--out", str(folder / "whole"))
    return folder / "whole", result


def summary(folder):
    return report.read_sealed(folder / "summary.json")


def test_the_report_begins_with_the_question_the_answer_and_every_claim_on_one_axis(whole):
    out, _ = whole
    document, page = summary(out), (out / "report.html").read_text()
    assert document["question"] == "Does weight norm improve the conditioning of 3 networks?"
    main = next(row for row in document["verdicts"] if row["name"] == "C1, own training")
    assert document["answer"]["outcome"] == main["outcome"]
    assert main["in_words"].partition(" over ")[0] in document["answer"]["text"]
    places = [
        page.index(text) for text in (document["question"], 'class="answer"', "Every claim over all", 'id="verdicts"')
    ]
    assert places == sorted(places)
    assert "too few networks have a number" in (out / "figures" / "claims.svg").read_text()


def test_the_terminal_shows_the_claims_over_all_cells_and_where_everything_is(whole):
    out, result = whole
    assert "Claims over all cells" in result.stdout
    assert "C1, own training" in result.stdout
    assert "3 cells x 3 paired seeds x 2 arms" in result.stderr
    assert f"report: {out / 'report.html'}" in result.stderr
    assert f"curvature compare --grid {out / 'config.toml'}" in result.stderr
    assert [path.name for path in out.parent.iterdir() if path.name != "tiny.toml"] == ["whole"]


def test_every_number_of_every_seed_and_cell_is_in_the_files(whole):
    out, _ = whole
    document = summary(out)
    assert [cell["name"] for cell in document["cells"]] == [
        "wine, tanh-mlp, sgd",
        "breast-cancer, tanh-mlp, sgd",
        "diabetes, tanh-mlp, sgd",
    ]
    with (out / "summary.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    pooled = {f"{row['claim']}, {row['case']}".strip(", "): row for row in rows if row["cell"] == "all"}
    for verdict in document["verdicts"]:
        row = pooled[verdict["name"]]
        assert row["outcome"] == verdict["outcome"]
        assert row["effect"] == ("" if verdict["effect"]["estimate"] is None else str(verdict["effect"]["estimate"]))
    with (out / "effects.csv").open(newline="") as stream:
        effects = [row for row in csv.DictReader(stream) if (row["claim"], row["case"]) == ("C1", "own training")]
    (verdict,) = [verdict for verdict in document["verdicts"] if verdict["name"] == "C1, own training"]
    for cell, effect in zip(verdict["effect"]["cells"], verdict["effect"]["effects"], strict=True):
        numbers = [float(row["low"]) for row in effects if row["cell"] == cell]
        assert len(numbers) == 3
        assert sum(numbers) / 3 == pytest.approx(effect)


def test_the_page_names_every_claim_and_draws_a_row_for_every_cell(whole):
    out, _ = whole
    page = (out / "report.html").read_text()
    text = html.unescape(re.sub(r"<[^>]*>", "", page))
    for verdict in summary(out)["verdicts"]:
        assert verdict["sentence"].split(",")[0] in text
    forest = (out / "figures" / "C1-own-training.svg").read_text()
    (verdict,) = [verdict for verdict in summary(out)["verdicts"] if verdict["name"] == "C1, own training"]
    pooled = f"All {len(verdict['effect']['cells'])} cell"
    for text in ("wine, tanh-mlp, sgd", "diabetes, tanh-mlp, sgd", pooled, "favours weight norm"):
        assert text in forest
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_its_page_fits_a_phone_in_both_colours_and_axe_finds_nothing_serious(whole, tmp_path):
    if browser.PROGRAM is None:
        pytest.skip("needs Chromium: `apt install chromium`, or its path in CHROMIUM")
    path, window = whole[0] / "report.html", browser.Browser(tmp_path / "profile")
    try:
        for width, dark in ((400, False), (1000, True)):
            window.open(path, width, 800, dark=dark)
            assert window.run("document.querySelector('header .narrow svg').checkVisibility()") == (width == 400)
            assert window.run("document.querySelector('header figure').getBoundingClientRect().top") < 800
            window.run("document.querySelectorAll('details').forEach(e => e.open = true)")
            assert window.run(browser.CLIPPED) == window.run(browser.UNREACHABLE) == []
            assert window.run("document.documentElement.scrollWidth") <= width
            assert browser.AXE is None or browser.axe_findings(window) == []
        assert window.messages == []
        assert set(window.requests) == {path.resolve().as_uri()}
    finally:
        window.close()


def test_interrupted_and_resumed_it_ends_with_the_same_bits(here):
    smaller = TINY.replace(', "diabetes"]', "]").replace("num_seeds = 3", "num_seeds = 1")
    (here / "tiny.toml").write_text(smaller)
    run("compare", "--grid", "tiny.toml", "--out", "whole")
    keep = Parts.__setitem__

    def keep_then_interrupt(*given):
        keep(*given)
        raise KeyboardInterrupt

    command = ["compare", "--grid", "tiny.toml", "--out", "run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parts, "__setitem__", keep_then_interrupt)
        stopped = run(*command, code=ExitCode.INTERRUPTED)
    assert "1 finished part of this run is kept" in stopped.stderr
    assert "--resume" in run(*command, code=ExitCode.USAGE).stderr
    resumed = run(*command, "--resume")
    assert "1 finished part found" in resumed.stderr
    before, after = summary(here / "whole"), summary(here / "run")
    assert {name: after[name] for name in SAME} == {name: before[name] for name in SAME}
    effects = (here / "run" / "effects.csv").read_bytes()
    assert effects == (here / "whole" / "effects.csv").read_bytes()
    assert effects.count(b"\n") > 10
    assert "nothing is left to do" in run(*command, "--resume").stderr


def test_its_configuration_repeats_it_and_another_grid_is_refused(whole, here):
    shutil.copytree(whole[0], here / "run")
    again = run("compare", "--grid", "run/config.toml", "--out", "run", "--resume")
    assert "nothing is left to do" in again.stderr
    assert tomllib.loads((here / "run" / "config.toml").read_text())["command"] == "compare --grid"
    (here / "other.toml").write_text(TINY.replace("epochs = 3", "epochs = 4", 1))
    other = run("compare", "--grid", "other.toml", "--out", "run", "--resume", code=ExitCode.USAGE)
    assert "epochs was 3, is 4" in other.stderr
    for_compare = run("compare", "--config", "run/config.toml", code=ExitCode.USAGE)
    assert "`curvature compare --grid`" in for_compare.stderr


def test_the_report_of_a_grid_is_not_made_again_and_the_message_says_how_to_repeat_the_run(whole):
    assert "compare --grid" in run("report", str(whole[0]), code=ExitCode.USAGE).stderr


def test_a_plan_counts_units_and_weights_and_trains_nothing(here):
    result = run("compare", "--grid", "small", "--dry-run", "--json")
    plan = json.loads(result.stdout)
    assert plan["units"] == 12
    assert all(300 <= cell["num_weights"] <= 400 for cell in plan["cells"])
    assert [path.name for path in here.iterdir()] == ["tiny.toml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--grid", "smal"), "did you mean small?"),
        (("--grid", "nowhere.toml"), "cannot be read"),
        (("--grid", "small", "--epochs", "3"), "leave it out"),
        (("--grid", "small", "--fail-on", "kappa_95 > 1"), "use --strict"),
        (("--grid", "small", "--scheduler", "tcp://127.0.0.1:1"), "belongs to the backend dask"),
        (("--grid", "small", "--backend", "ray"), "'joblib' or 'dask'"),
    ],
)
def test_a_wrong_option_is_an_error_that_says_what_to_do(arguments, message):
    assert message in " ".join(run("compare", *arguments, code=ExitCode.USAGE).stderr.lower().split())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('architectures = ["cnn"]', "cnn cannot take breast-cancer"),
        ('architectures = ["mlp"]', "'mlp' is unknown"),
        ('arms = ["standard"]', "weight-norm is not trained"),
        ('arms = ["standard", "weight-norm", "weight-nrm"]', "weight-nrm"),
        ("[rates]\nadam = [0.1]", "none of the optimizers"),
        ("[rates]\nsgd = [0.1]", "at least 7"),
        ("epoch = 3", "'epoch' is unknown (did you mean epochs?)"),
        ("num_seeds = 0", "num_seeds"),
        ('preset = "huge"', "preset must be one of small, full"),
        ("x = ", "not a TOML file"),
    ],
)
def test_a_wrong_line_of_a_grid_is_an_error_that_names_it(here, line, message):
    (here / "grid.toml").write_text(line if "preset" in line else f'preset = "small"\n{line}\n')
    assert message in run("compare", "--grid", "grid.toml", "--dry-run", code=ExitCode.USAGE).stderr


def test_without_statsmodels_the_command_says_what_to_install_before_it_trains(monkeypatch):
    monkeypatch.setitem(sys.modules, "statsmodels.stats.meta_analysis", None)
    assert "curvature-toolkit[grid]" in run("compare", "--grid", "tiny.toml", code=ExitCode.USAGE).stderr
