"""``curvature compare --full`` as a user runs it: side by side, interrupted, gone on with, repeated from its file."""

import shutil
import tomllib
from dataclasses import asdict

import numpy as np
import pytest
from typer.testing import CliRunner

from curvature import cli, report
from curvature.cli import seeds
from curvature.errors import ExitCode
from curvature.natural_gradient import METHODS
from curvature.records import LeagueEntry
from curvature.report.parts import Parts
from curvature.report.tables.league import league_answer

# One thread: on a busy machine the threads of small matrices wait for each other.
TINY = ["compare", "--full", "--num-seeds", "2", "--num-examples", "60", "--arg", "widths=2", "--epochs", "4"]
TINY += ["--set", "tuning_epochs=1", "-m", "ggn", "--threads", "1"]
MEASURED = ("measurements", "sweeps", "curves", "checks", "verdicts", "decompositions", "warnings")


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == code, (result.exit_code, result.stdout[-500:], result.stderr, result.exception)
    return result


@pytest.fixture(autouse=True)
def here(empty_folder):
    return empty_folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that all others must repeat bit by bit."""
    out = tmp_path_factory.mktemp("full") / "whole"
    result = run(*TINY, "--out", str(out))
    return out, result


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The folder of a run whose interrupt arrives right after the first seed is on the disk, and what it said."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, interrupted_after_one_seed(*TINY, "--out", "on")


def interrupted_after_one_seed(*arguments):
    keep = Parts.__setitem__

    def keep_then_interrupt(*given):
        keep(*given)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parts, "__setitem__", keep_then_interrupt)
        return run(*arguments, code=ExitCode.INTERRUPTED)


def without_seconds(value):
    if isinstance(value, dict):
        return {key: without_seconds(item) for key, item in value.items() if key != "seconds"}
    return [without_seconds(item) for item in value] if isinstance(value, list | tuple) else value


def assert_bitwise_equal(first, second):
    first, second = (without_seconds(asdict(report.load_study(folder))) for folder in (first, second))
    for name in MEASURED:
        assert len(first[name]) > 0 or name == "warnings"
        np.testing.assert_equal(second[name], first[name], err_msg=name)  # NaN equals NaN, no tolerance


def test_the_answer_comes_first_and_nothing_is_left_beside_the_run(whole):
    out, result = whole
    assert result.stdout.index("Undecided: ") < result.stdout.index("favours weight norm")
    (league,) = (line for line in result.stdout.splitlines() if line.startswith("whitening league: "))
    assert league.removeprefix("whitening league: ") == league_answer(report.load_summary(out))
    assert "makes" in league
    assert "resume:" not in result.stderr
    assert f"report: {out / 'report.html'}" in result.stderr
    assert [path.name for path in out.parent.iterdir()] == ["whole"]
    page = (out / "report.html").read_text()
    order = [page.index(f'id="{name}"') for name in ("verdicts", "league", "trust", "arms", "table")]
    assert order == sorted(order)
    section = page[order[1] : order[2]]
    assert section.count("<svg") == 2  # wide and narrow
    assert section.index("At the end of training one step of") < section.index("<svg") < section.index("<table")
    assert all(method in section for method in METHODS)
    assert (out / "figures" / "league.svg").is_file()


def test_its_own_configuration_repeats_it_bit_by_bit_with_seeds_side_by_side(whole, here):
    out, _ = whole
    run("compare", "--config", str(out / "config.toml"), "--jobs", "2", "--out", "again")
    assert_bitwise_equal(out, here / "again")
    first, again = (tomllib.loads((folder / "config.toml").read_text()) for folder in (out, here / "again"))
    assert again == first | {"jobs": 2}


def test_an_interrupted_study_keeps_its_seeds_and_goes_on(whole, interrupted, here, monkeypatch):
    folder, stopped = interrupted
    said = " ".join(stopped.stderr.split())
    assert "1 finished part of this run is kept in on.parts" in said
    assert "the same command with --resume continues from there" in said
    assert stopped.stdout == ""
    assert [path.name for path in folder.iterdir()] == ["on.parts"]
    kept = sorted(path.name for path in (folder / "on.parts").iterdir())
    assert [name.split(".")[1:] for name in kept] == [["json"], ["nc"], ["nc", "sha256"]]

    shutil.copytree(folder / "on.parts", here / "on.parts")
    measured = []
    one = seeds._measured
    monkeypatch.setattr(seeds, "_measured", lambda *given: measured.append(given[2]) or one(*given))
    went_on = run(*TINY, "--out", "on", "--resume")
    assert "resume: 1 finished part found in" in went_on.stderr
    assert measured == [1 - int(kept[1].split("-")[1])]
    assert_bitwise_equal(whole[0], here / "on")
    assert len(report.load_study(here / "on").of(LeagueEntry)) == 2 * 2 * len(METHODS)  # seeds, ends of training
    assert not (here / "on.parts").exists()


@pytest.mark.slow
def test_an_interrupt_while_seeds_are_measured_side_by_side_loses_none_that_is_done(whole, here):
    stopped = interrupted_after_one_seed(*TINY, "--jobs", "2", "--out", "on")
    assert "1 finished part of this run is kept in" in " ".join(stopped.stderr.split())
    assert "resume: 1 finished part found in" in run(*TINY, "--out", "on", "--resume").stderr
    assert_bitwise_equal(whole[0], here / "on")


@pytest.mark.parametrize("other", [["--epochs", "5"], ["--num-examples", "61"], ["--arg", "widths=3"]])
def test_seeds_of_other_settings_are_not_used_and_stay(interrupted, here, monkeypatch, other):
    shutil.copytree(interrupted[0] / "on.parts", here / "on.parts")
    before = {path.name: path.read_bytes() for path in (here / "on.parts").iterdir()}

    monkeypatch.setattr(seeds, "_measured", lambda *_: pytest.fail("nothing is measured"))
    for how in ([], ["--resume"]):
        run(*TINY, *other, *how, "--out", "on", code=ExitCode.USAGE)
    assert {path.name: path.read_bytes() for path in (here / "on.parts").iterdir()} == before


def test_a_damaged_seed_is_refused_by_name(interrupted, here):
    shutil.copytree(interrupted[0] / "on.parts", here / "on.parts")
    (kept,) = (here / "on.parts").glob("*.nc")
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)
    assert kept.name in run(*TINY, "--out", "on", "--resume", code=ExitCode.USAGE).stderr
