"""Comparison of two checkouts: which version is timed, in which order, and what counts as slower."""

import contextlib
import shutil
from pathlib import Path

import pytest

from benchmarks import peer_benchmark, versions

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A second checkout: the same package in another folder, and a `benchmarks` that must not be used."""
    folder = tmp_path_factory.mktemp("other")
    shutil.copytree(ROOT / "curvature", folder / "curvature", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "benchmarks.py").write_text("raise AssertionError('the benchmarks of the other checkout were loaded')\n")
    return folder


@pytest.mark.slow  # starts processes that import torch
def test_each_process_loads_its_own_checkout_and_has_the_same_methods(other):
    with versions.workers(other, fast=True, threads=1) as (new, old):
        assert Path(new.ask("locate")).is_relative_to(ROOT)
        assert Path(old.ask("locate")).is_relative_to(other)
    rows = list(versions.compare(other, ["ggn"], fast=True, threads=1))
    assert [(row["work"], row["method"], row["rounds"]) for row in rows] == [("ggn", "curvature", 6)]
    assert rows[0]["relative_error"] == rows[0]["old_relative_error"] < 1e-11
    assert 0.1 < rows[0]["ratio_quartiles"][0] <= rows[0]["ratio_quartiles"][1] < 10


@pytest.mark.slow  # starts processes that import torch
def test_an_error_in_a_process_ends_the_comparison(capfd):
    worker = versions.Worker(ROOT, fast=True, threads=1)
    with contextlib.closing(worker), pytest.raises(RuntimeError, match="'open'"):
        worker.ask("open", "no such work")
    assert "no such work" in capfd.readouterr().err


class Clockwork:
    """A version of which every call takes the same time."""

    def __init__(self, name, seconds, order):
        self.name, self.seconds, self.order = name, seconds, order

    def ask(self, request, *_):
        if request == "check":
            return {"relative_error": 0.0, "seconds": self.seconds}
        self.order.append(self.name)
        return self.seconds


@pytest.mark.parametrize(("seconds", "is_slower"), [(0.2, False), (0.209, False), (0.211, True), (0.1, False)])
def test_versions_take_turns_and_five_per_cent_are_a_loss(seconds, is_slower):
    order = []
    half = versions._measured(Clockwork("A", seconds, order), Clockwork("B", 0.2, order), 0, fast=True)
    assert "".join(order) == "ABBA" * 3
    row = versions._row([half, half])
    assert row["ratio"] == pytest.approx(seconds / 0.2)
    assert versions.is_slower(row) is is_slower
    row |= {"work": "toy", "size": "P=1", "dtype": "float64", "method": "curvature"}
    assert versions.line(row).endswith("slower") is is_slower
    assert ("**" in versions.markdown([row])) is is_slower


def test_a_handicap_of_the_process_that_is_started_first_is_no_difference_between_versions():
    seconds = {True: (1.3, 1.0), False: (1.0, 1.3)}  # of new and old, by whether new is started first
    halves = [versions.Half([new] * 5, [old] * 5, 0.0, 0.0) for new, old in seconds.values()]
    assert versions._row(halves)["ratio"] == pytest.approx(1)
    assert versions._row([halves[0], halves[0]])["ratio"] == pytest.approx(1.3)


def test_a_folder_without_the_package_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        peer_benchmark.main(["--against", str(tmp_path), "--out", str(tmp_path)])
    assert "is not a checkout" in capsys.readouterr().err
