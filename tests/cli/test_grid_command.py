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
from curvature.cli.grid_configuration import GridConfiguration
from curvature.errors import ExitCode
from curvature.records.sealed import sealed_text
from curvature.report.parts import Parts
from curvature.report.plain import json_text
from curvature.studies.grid import OPTIMIZERS

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


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_report_is_made_again_byte_for_byte_also_from_the_summary_alone(whole, here):
    shutil.copytree(whole[0], here / "run")
    (here / "run" / "report.html").write_text("")
    run("report", "run")
    assert contents(here / "run") == contents(whole[0])
    (here / "reduced").mkdir()
    shutil.copy(whole[0] / "summary.json", here / "reduced")
    assert "written again" in run("report", "reduced").stderr
    assert contents(here / "reduced") == contents(whole[0])


def test_a_report_that_is_made_again_has_the_numbers_of_the_run_and_the_sentences_of_this_version(whole, here):
    document = summary(whole[0])
    rows = [{name: x for name, x in row.items() if name not in ("label", "icon")} for row in document["verdicts"]]
    older = document | {"question": "old words", "answer": {"text": "old words"}, "verdicts": rows}
    (here / "older").mkdir()
    (here / "older" / "summary.json").write_text(sealed_text(json_text(older)))
    run("report", "older", "--out", "newer")
    assert contents(here / "newer") == contents(whole[0])
    assert [path.name for path in (here / "older").iterdir()] == ["summary.json"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda text: text.replace('"num_seeds": 3', '"num_seeds": 4', 1),
            "its SHA-256 differs). No report can be made from it. Restore the file, or repeat the run.",
        ),
        (lambda _: sealed_text('{\n "schema": "curvature/result/1"\n}\n'), "instead of 'curvature/grid/1'"),
        (lambda _: sealed_text('{\n "schema": "curvature/grid/1"\n}\n'), "lacks numbers that its report needs"),
    ],
)
def test_a_summary_from_which_no_report_can_be_made_is_named(whole, here, damage, message):
    (here / "run").mkdir()
    (here / "run" / "summary.json").write_text(damage((whole[0] / "summary.json").read_text()))
    assert message in " ".join(run("report", "run", code=ExitCode.USAGE).stderr.split())
    assert [path.name for path in (here / "run").iterdir()] == ["summary.json"]


def test_a_damaged_summary_comes_with_the_command_that_repeats_the_run(whole, here):
    shutil.copytree(whole[0], here / "run")
    path = here / "run" / "summary.json"
    path.write_text(path.read_text().replace('"num_seeds": 3', '"num_seeds": 4', 1))
    stderr = " ".join(run("report", "run", code=ExitCode.USAGE).stderr.split())
    assert "or repeat the run: `curvature compare --grid run/config.toml --out NEW`." in stderr
    assert "Delete it" not in stderr


def resolved(monkeypatch, *arguments):
    """The configuration of a grid that a command line asks for."""
    seen = []
    monkeypatch.setattr("curvature.cli.grid.execute_grid", lambda config, *_: seen.append(config))
    run("compare", *arguments)
    return seen[0]


def test_options_and_set_override_a_preset_and_a_file(here, monkeypatch):
    usual = resolved(monkeypatch, "--grid", "small").model_dump()
    changed = resolved(
        monkeypatch, "--grid", "small", "--data", "builtin:wine,digits", "--num-seeds", "2", "--epochs", "5",
        "-m", "ggn", "--num-examples", "60", "--batch-size", "16",
        "--set", "architectures=tanh-mlp", "--set", "optimizers=adam,sgd",
        "--set", "arms=standard,weight-norm,standard, paper start", "--set", "rates={adam=[1,2,3,4,5,6,7]}",
    ).model_dump()  # fmt: skip
    assert {name: value for name, value in changed.items() if value != usual[name]} == {
        "data": ("wine", "digits"),
        "num_seeds": 2,
        "epochs": 5,
        "matrix": ("ggn",),
        "num_examples": 60,
        "batch_sizes": (16,),
        "architectures": ("tanh-mlp",),
        "optimizers": ("adam", "sgd"),
        "arms": ("standard", "weight-norm", "standard, paper start"),
        "rates": {"adam": (1, 2, 3, 4, 5, 6, 7)},
    }
    monkeypatch.setenv("CURVATURE_NUM_SEEDS", "4")
    (here / "rates.toml").write_text(TINY + "[rates]\nsgd = [1, 2, 3, 4, 5, 6, 7]\n")
    of_file = resolved(monkeypatch, "--grid", "rates.toml", "--set", "optimizers=adam", "--set", "epochs=7")
    assert (of_file.num_seeds, of_file.epochs, of_file.num_weights, of_file.rates) == (4, 7, 60, {})
    assert resolved(monkeypatch, "--grid", "rates.toml", "--num-seeds", "2").num_seeds == 2
    assert of_file.configuration().model_dump().keys() == of_file.model_dump().keys() - {
        "grid", "jobs", "backend", "scheduler", "threads",
    }  # fmt: skip


@pytest.mark.parametrize("optimizers", ["sgd-slow", "adam,sgd-slow", '["adam", "sgd-slow"]'])
def test_rates_stay_for_the_optimizers_that_are_named_not_for_those_whose_name_is_part_of_one(
    here, monkeypatch, optimizers
):
    monkeypatch.setitem(OPTIMIZERS, "sgd-slow", OPTIMIZERS["sgd"])
    seven = "[1, 2, 3, 4, 5, 6, 7]"
    (here / "rates.toml").write_text(
        f"{TINY}[rates]\nsgd = {seven}\nadam = {seven}\n".replace('["sgd"]', '["sgd", "adam"]')
    )
    rates = resolved(monkeypatch, "--grid", "rates.toml", "--set", f"optimizers={optimizers}").rates
    assert set(rates) == {"adam"} & set(re.findall("adam", optimizers))


@pytest.mark.parametrize("start", ["paper", "centred"])
def test_the_comma_of_a_start_belongs_to_the_name_of_its_arm(start):
    names = ("standard", "weight-norm", f"standard, {start} start")
    for value in (",".join(names), list(names), [names[0], ", ".join(names[1:])]):
        assert GridConfiguration(data="digits", architectures="tanh-mlp", optimizers="sgd", arms=value).arms == names


def test_a_grid_that_was_changed_by_options_is_repeated_by_its_configuration(here):
    run("compare", "--grid", "tiny.toml", "--set", "data=wine", "--num-seeds", "1", "--epochs", "2", "--out", "run")
    written = tomllib.loads((here / "run" / "config.toml").read_text())
    assert (written["data"], written["num_seeds"], written["epochs"]) == (["wine"], 1, 2)
    again = run("compare", "--grid", "run/config.toml", "--out", "run", "--resume")
    assert "nothing is left to do" in again.stderr


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
        (("--grid", "small", "--learning-rate", "0.3"), "the grid decides about --learning-rate. leave it out"),
        (("--grid", "small", "--set", "model=builtin:mlp"), "--set architectures=name,name"),
        (("--grid", "small", "--epochs", "1"), "--epochs: should be greater than or equal to 2, got 1"),
        (("--grid", "small", "--num-seeds", "0"), "--num-seeds: should be greater than 0, got 0"),
        (("--grid", "small", "--data", "digit"), "data: 'digit' is unknown (did you mean digits?)"),
        (("--grid", "small", "--data", "wine", "--set", "architectures=cnn"), "cnn cannot take wine"),
        (("--grid", "small", "--set", "arms=standard"), "weight-norm is not trained"),
        (("--grid", "small", "--set", "arms=standard,weight-nrm"), "weight-nrm"),
        (("--grid", "small", "--set", "optimizers=lion"), "optimizers: 'lion' is unknown"),
        (("--grid", "small", "--set", "rates={adam=[0.1]}"), "none of the optimizers of this grid"),
        (("--grid", "small", "--set", "arms=standard,weigth-norm"), "did you mean weight-norm?"),
        (("--grid", "small", "--batch-size", "1000000"), "more than the 250 examples of digits"),
        (("--grid", "small", "--set", "num_weights=1", "--dry-run"), "it needs num_weights="),
        (
            ("--grid", "small", "--set", "num_weihgts=9"),
            "(did you mean num_weights?); choose among data, architectures",
        ),
        (("--grid", "small", "--set", "widht=3"), "relative_damping, threshold, whole_batches."),
        (("--grid", "small", "--set", "architecture=cnn"), "did you mean architectures?"),
        (("--grid", "small", "-m", "hesian"), "did you mean hessian?"),
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
        ("preset = ['small']", "preset must be one of small, full, got ['small']"),
        ("x = ", "not a TOML file"),
        pytest.param("data = " + "[" * 100_000, "its values are nested too deeply", id="nested"),
        pytest.param("#" * 2**20, "exceeds the limit of 1048576 bytes", id="large"),
        pytest.param("num_seeds = " + "1" * 5000, "a number has too many digits", id="digits"),
        ("command = 'spectrum'", "a configuration for `curvature spectrum`, not for `curvature compare --grid`"),
    ],
)
def test_a_wrong_line_of_a_grid_is_an_error_that_names_it(here, line, message):
    (here / "grid.toml").write_text(line if "preset" in line else f'preset = "small"\n{line}\n')
    assert message in run("compare", "--grid", "grid.toml", "--dry-run", code=ExitCode.USAGE).stderr


def test_without_statsmodels_the_command_says_what_to_install_before_it_trains(monkeypatch):
    monkeypatch.setitem(sys.modules, "statsmodels.stats.meta_analysis", None)
    assert "curvature-toolkit[grid]" in run("compare", "--grid", "tiny.toml", code=ExitCode.USAGE).stderr
