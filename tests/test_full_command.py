"""``curvature compare --full`` as a user runs it: side by side, interrupted, gone on with, repeated from its file."""

import os
import tomllib
from dataclasses import asdict

import numpy as np
import pytest
from typer.testing import CliRunner

from curvature import cli, report
from curvature.cli import full
from curvature.errors import ExitCode

# One thread: on a busy machine the threads of small matrices wait for each other.
TINY = ["compare", "--full", "--seeds", "2", "--num-examples", "60", "--arg", "widths=2", "--epochs", "4"]
TINY += ["--set", "tuning_epochs=1", "-m", "ggn", "--threads", "1"]
MEASURED = ("measurements", "sweeps", "curves", "checks", "verdicts", "decompositions", "warnings")


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == code, (result.exit_code, result.stdout[-500:], result.stderr, result.exception)
    return result


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("CURVATURE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that all others must repeat bit by bit."""
    out = tmp_path_factory.mktemp("full") / "whole"
    result = run(*TINY, "--out", str(out))
    return out, result


def assert_bitwise_equal(first, second):
    first, second = (asdict(report.load_study(folder)) for folder in (first, second))
    for name in MEASURED:
        assert len(first[name]) > 0 or name == "warnings"
        np.testing.assert_equal(second[name], first[name], err_msg=name)  # NaN equals NaN, no tolerance


def interrupted_after_one_seed(monkeypatch, *arguments):
    """The interrupt arrives right after the first seed is on the disk."""
    write = report.write_part

    def write_then_interrupt(part, path):
        write(part, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(report, "write_part", write_then_interrupt)
        return run(*arguments, code=ExitCode.INTERRUPTED)


def test_the_page_begins_with_the_verdicts_and_nothing_is_left_beside_it(whole):
    out, result = whole
    assert result.stdout.index("C1") < result.stdout.index("standard arm")
    assert "resumes" not in result.stderr
    assert f"report: {out / 'report.html'}" in result.stderr
    assert [path.name for path in out.parent.iterdir()] == ["whole"]
    page = (out / "report.html").read_text()
    assert page.index("Verdicts") < page.index("kappa_80")


def test_its_own_configuration_repeats_it_bit_by_bit(whole, here):
    out, _ = whole
    run("compare", "--config", str(out / "config.toml"), "--trust-config", "--out", "again")
    assert_bitwise_equal(out, here / "again")
    first, again = (tomllib.loads((folder / "config.toml").read_text()) for folder in (out, here / "again"))
    assert first == again


def test_seeds_side_by_side_give_the_same_bits(whole, here):
    run(*TINY, "--jobs", "2", "--out", "both")
    assert_bitwise_equal(whole[0], here / "both")


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_interrupted_study_keeps_its_seeds_and_goes_on(whole, here, monkeypatch, jobs):
    stopped = interrupted_after_one_seed(monkeypatch, *TINY, "--jobs", jobs, "--out", "on")
    assert "1 seed of 2 kept in" in " ".join(stopped.stderr.split())
    assert "the same command goes on from there" in " ".join(stopped.stderr.split())
    assert stopped.stdout == ""
    assert not (here / "on").exists()
    kept = sorted(path.name for path in (here / "on.parts").iterdir())
    assert [name.split(".")[1:] for name in kept] == [["nc"], ["nc", "sha256"]]

    measured = []
    one = full._measured
    monkeypatch.setattr(full, "_measured", lambda *given: measured.append(given[4]) or one(*given))
    went_on = run(*TINY, "--out", "on")
    assert "resumes: 1 seed of 2 found in" in went_on.stderr
    assert measured == [1 - int(kept[0].split("-")[1])]
    assert_bitwise_equal(whole[0], here / "on")
    assert not (here / "on.parts").exists()


def test_seeds_of_other_settings_are_not_used(whole, here, monkeypatch):
    interrupted_after_one_seed(monkeypatch, *TINY, "--epochs", "5", "--out", "on")
    assert "resumes" not in run(*TINY, "--out", "on").stderr
    assert_bitwise_equal(whole[0], here / "on")


def test_a_damaged_seed_is_refused_by_name(here, monkeypatch):
    interrupted_after_one_seed(monkeypatch, *TINY, "--out", "on")
    (kept,) = (here / "on.parts").glob("*.nc")
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)
    assert kept.name in run(*TINY, "--out", "on", code=ExitCode.USAGE).stderr
