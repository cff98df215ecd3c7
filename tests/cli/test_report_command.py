"""``curvature report``: a run made anew from its result, and several runs side by side."""

import csv
import dataclasses
import json
import math
import sys

import pytest
from typer.testing import CliRunner

import curvature as cv
from curvature import cli, report
from curvature.studies.evidence.inference import paired_interval

SMALL = ["--num-examples", "30", "--threads", "1"]


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.exit_code, result.stdout[-500:], result.stderr, result.exception)
    return result


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two spectra of two widths, two short studies at the same seeds, and an overview."""
    folder = tmp_path_factory.mktemp("runs")
    both = ["-m", "ggn", "-m", "hessian", "--chart", "standard", "--chart", "weight-norm", "--gauge", "paper"]
    for width in (2, 3):
        run("spectrum", *SMALL, *both, "--arg", f"widths={width},", "--out", folder / f"width{width}")
    study = [*SMALL, "--arg", "widths=2,", "--num-seeds", "3", "--epochs", "2", "-m", "ggn", "--set", "stretches=1,2"]
    for rate in (0.2, 0.1):
        run("compare", *study, "--learning-rate", rate, "--out", folder / f"rate{rate}")
    run("analyze", *SMALL, "--arg", "widths=2,", "--out", folder / "overview")
    return folder


def table_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["width2", "rate0.2", "overview"])
def test_a_run_is_made_anew_as_it_was(runs, name, tmp_path):
    run("report", runs / name, "--out", tmp_path / "again")
    before, now = contents(runs / name), contents(tmp_path / "again")
    for binary in ("result.nc", "DONE"):  # NetCDF has no canonical bytes; DONE lists its hash
        before.pop(binary, None), now.pop(binary, None)
    assert now.keys() == before.keys()
    assert [name for name in now if now[name] != before[name]] == []


def test_a_lost_report_comes_back_in_its_place(runs, tmp_path):
    run("report", runs / "width2", "--out", tmp_path / "copy")
    page = (tmp_path / "copy" / "report.html").read_bytes()
    (tmp_path / "copy" / "report.html").unlink()
    assert "written again from its result" in run("report", tmp_path / "copy").stderr
    assert (tmp_path / "copy" / "report.html").read_bytes() == page


def test_numbers_of_two_runs_stand_next_to_each_other(runs, tmp_path):
    names = ("width2", "width3")
    result = run("report", *(runs / name for name in names), "--out", tmp_path / "both")
    rows = table_of(tmp_path / "both" / "side_by_side.csv")
    assert len(rows) == 8  # two matrices in two charts of two runs
    for name in names:
        for m in report.load_study(runs / name).measurements:
            record = m.record
            if type(record).__name__ == "Spectrum":
                found = [row for row in rows if row["run"] == name and float(row["largest"]) == record.eigenvalues[-1]]
                assert [float(row["rank"]) for row in found] == [record.rank]
    page = (tmp_path / "both" / "report.html").read_text()
    assert "arg was" in page
    assert "the model has other values" in page
    assert "<svg" in page
    assert "not comparable" in result.stdout
    assert "different ranks" in result.stdout


def test_ratios_are_paired_by_seed(runs, tmp_path):
    run("report", runs / "rate0.2", runs / "rate0.1", "--out", tmp_path / "both")
    ratios = table_of(tmp_path / "both" / "ratios.csv")
    first, second = (report.load_summary(runs / name)["spectra"] for name in ("rate0.2", "rate0.1"))

    def kappa(rows, seed):
        (row,) = [
            row for row in rows
            if (row["arm"], row["checkpoint"], row["seed"]) == ("standard", "late", seed)
            and (row["chart"], row["effective"], row["block"]) == ("standard", False, "all")
        ]  # fmt: skip
        return row["numbers"]["kappa_50"]

    logs = [math.log(kappa(second, seed)["value"] / kappa(first, seed)["value"]) for seed in range(3)]
    (row,) = [row for row in ratios if row["matrix and chart"] == "GGN, standard, Standard arm, late"]
    assert row["pairs"] == "3"
    assert float(row["kappa_50"]) == pytest.approx(math.exp(sum(logs) / 3))
    both = report.side_by_side({name: report.load_study(runs / name) for name in ("rate0.2", "rate0.1")})
    numbers, table = both.numbers, both.ratios
    (cell,) = [line[3] for line in table.rows if line[0] == row["matrix and chart"]]
    assert (cell.low, cell.high) == pytest.approx(tuple(map(math.exp, paired_interval(logs))))
    assert all(len(line) in (1, len(found.header)) for found in numbers for line in found.rows)
    same = json.loads((tmp_path / "both" / "runs.json").read_text())["differences"]["rate0.1"]
    assert same == ["learning_rate was 0.2, is 0.1"]


def test_a_ratio_that_one_seed_lacks_is_that_of_the_others_and_says_so(runs):
    studies = {name: report.load_study(runs / name) for name in ("rate0.2", "rate0.1")}

    def without(m):
        """One seed, in which a number is only bounded."""
        if m.seed != 1 or not isinstance(m.record, cv.ConditionNumbers) or "kappa_50" not in m.record.values:
            return m
        bound = dataclasses.replace(m.record.values["kappa_50"], status="lower_bound")
        values = {**m.record.values, "kappa_50": bound}
        return dataclasses.replace(m, record=dataclasses.replace(m.record, values=values))

    whole = report.side_by_side(studies).ratios
    changed = dataclasses.replace(studies["rate0.1"], measurements=tuple(map(without, studies["rate0.1"].measurements)))
    both = report.side_by_side({**studies, "rate0.1": changed})
    column = both.ratios.header.index("kappa_50")
    (row,) = [line for line in both.ratios.rows if line[0] == "GGN, standard, Standard arm, late"]
    (before,) = [line for line in whole.rows if line[0] == row[0]]
    cell = row[column]
    assert (cell.share, cell.low) == ("2 of 3 seeds", None)
    assert cell.value != before[column].value
    assert cell.value == pytest.approx(before[column].value, rel=0.5)
    assert "2 of 3 seeds" in both.files["report.html"]
    lines = csv.DictReader(both.files["ratios.csv"].splitlines())
    (line,) = [line for line in lines if line["matrix and chart"] == row[0]]
    assert (line["pairs"], line["kappa_50_pairs"]) == ("3", "2")


def test_panels_that_are_not_drawn_are_named(runs, monkeypatch):
    monkeypatch.setattr(sys.modules["curvature.report.side_by_side"], "_MAX_PANELS", 1)
    both = report.side_by_side({name: report.load_study(runs / name) for name in ("width2", "width3")})
    left_out = json.loads(both.files["runs.json"])["not_drawn"]
    assert len(left_out) == 3
    assert f"Not drawn: {left_out[0]}" in both.files["report.html"]


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["width2", "width3"], [], "needs a place: add --out DIR"),
        (["width2", "nowhere"], ["--out", "new"], "is not a finished run"),
        (["width2", "width2"], ["--out", "new"], "is named twice"),
        (["width2", "overview"], ["--out", "new"], "is a run of analyze or track"),
        (["width2"], ["--out", "taken"], "taken"),
    ],
)
def test_what_cannot_be_reported_is_said(runs, names, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("mine")
    stderr = run("report", *(runs / name for name in names), *options, code=2).stderr
    assert message in " ".join(stderr.split())
    assert (tmp_path / "taken" / "mine").read_text() == "mine"
    assert not (tmp_path / "new").exists()


def test_a_damaged_run_is_an_error_in_words(runs, tmp_path):
    run("report", runs / "width2", "--out", tmp_path / "copy")
    data = bytearray((tmp_path / "copy" / "result.nc").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "copy" / "result.nc").write_bytes(bytes(data))
    assert "has changed since it was written" in run("report", tmp_path / "copy", code=2).stderr
