import csv
import errno
import io
import json
import math
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray as xr

from curvature import report
from curvature.errors import ConfigurationError, ResourceError
from curvature.records import (
    Alignment,
    Check,
    ConditionNumbers,
    ExtremalEigenvalues,
    GaugeState,
    Measured,
    Quantity,
    SpectralDensity,
    Spectrum,
    StepComparison,
    Study,
    TrainingCurve,
    Verdict,
    Where,
    Whitening,
)
from curvature.records.conditioning import condition_numbers
from curvature.report import page as pages
from curvature.report.drawings import drawings_of
from curvature.report.figures import render_svg
from curvature.report.plain import csv_text, plain_values
from curvature.report.render import page_number

DIM = 24
NULL = 4
HOSTILE = '"><script>alert(1)</script>'


def decay(seed, power=1.0, dim=DIM):
    """Eigenvalues of a matrix with ``NULL`` zeros, ascending; the seed moves the small ones."""
    ranks = np.arange(1, dim - NULL + 1)
    values = 3.0 * ranks ** -(2.0 + power) * np.exp(0.05 * np.sin(ranks * (seed + 1)))
    return np.sort(np.concatenate([np.zeros(NULL), values]))


def spectrum(matrix, chart, gauge, values, *, effective=False, floor=1e-15, weights=False, block="all"):
    values = np.sort(values)
    definite = matrix != "hessian"
    return Spectrum(
        where=Where(matrix, chart, gauge, block, effective, num_examples=50),
        eigenvalues=values,
        positive_semidefinite=definite,
        method="dense" if matrix == "hessian" else "factor",
        noise_floor=floor,
        rank=int((np.abs(values) > 1e-14).sum()),
        rank_rule="formula: 24 - 4 verified null directions" if definite else "threshold: absolute value above 1e-14",
        gradient_weights=np.linspace(1, 2, len(values)) * 1e-3 if weights else None,
        seconds=0.25,
    )


def make_study(seeds=(0, 1, 2), arms=("standard", "weight-norm")):
    """Two arms, two checkpoints, four charts, a gauge sweep, an indefinite Hessian and an unresolved number."""
    measurements, curves = [], []
    for arm in arms:
        for seed in seeds:
            curves.append(
                TrainingCurve(
                    arm, seed, np.array([0, 5, 50]), np.array([2.3, 1.1, 0.3 + seed / 50]), np.array([0.1, 0.6, 0.9])
                )
            )
            for checkpoint, step in (("init", 0), ("late", 50)):

                def add(*records, place=(arm, seed, checkpoint, step)):
                    measurements.extend(Measured(*place, record) for record in records)

                def add_spectrum(record, add=add):
                    add(record, condition_numbers(record))

                values = decay(seed, power=0.3 * (arm == "weight-norm"))
                charts = [("standard", "-", 0.0), ("weight-norm", "canonical", 0.0), ("weight-norm", "paper", 0.2)]
                charts += [("weight-norm", "checkpoint", 0.1)] if arm == "weight-norm" else []
                for chart, gauge, change in charts:
                    bent = values * np.linspace(1 - change, 1 + change, DIM)
                    elsewhere = chart != "standard"
                    add_spectrum(spectrum("ggn", chart, gauge, bent, effective=elsewhere, weights=True))
                    add_spectrum(spectrum("gradient_covariance", chart, gauge, bent / 2, effective=elsewhere))
                    signed = bent * np.where(np.arange(DIM) % 3, 1, -0.1) + 1e-9 * elsewhere
                    add_spectrum(spectrum("hessian", chart, gauge, signed, effective=elsewhere))
                    if elsewhere:
                        add(GaugeState(chart, gauge, 0.5, 1.0, 2.0, 7))
                for stretch in (0.5, 1.0, 2.0):
                    bent = values * np.linspace(1, stretch**0.5, DIM)
                    add_spectrum(spectrum("ggn", "weight-norm", f"stretch={stretch:g}", bent, effective=True))
                unresolved = spectrum("fisher", "standard", "-", values)
                add_spectrum(replace(unresolved, noise_floor=float(np.sort(values)[NULL + 3])))
                for damping in (1e-3, 1e-1):
                    for chart, gauge, efficiency in (
                        ("standard", "-", 0.1),
                        ("weight-norm", "paper", 0.15),
                        ("neuron-block", f"relative damping={damping:g}", 0.7),
                    ):
                        index = math.nan if chart == "standard" else efficiency
                        e = efficiency + seed / 100 + damping
                        add(StepComparison(chart, gauge, damping, damping / 7, e, index=index, num_examples=50))
                for neuron in ("0[0]", "0[1]", "2[0]"):
                    for direction, cosine in (("w", 0.3), ("random", 0.2), ("mean input", 0.9)):
                        add(Alignment(neuron, direction, cosine, 1.5, 0.25, 9, 50))
                    for projection, bures in (("none", 0.6), ("w", 0.5), ("random", 0.58), ("e1", 0.4)):
                        add(Whitening(neuron, projection, bures, 2.0, 5.0, 9, 50))
    return Study(
        command="compare",
        config={
            "model": "builtin:digits-mlp",
            "seeds": list(seeds),
            "relative_damping": 1e-3,
            "out": None,
            "fit": {"rate": 0.2},
        },
        model="perceptron 6-3-2",
        data="50 digits",
        num_weights=DIM,
        num_examples=50,
        measurements=tuple(measurements),
        curves=tuple(curves),
        checks=(
            Check("canonical gauge leaves the ggn spectrum unchanged (standard arm, seed 0, init)", 0.0, 1e-10, "gap"),
            Check(
                "canonical gauge leaves the ggn spectrum unchanged (standard arm, seed 1, init)", 1e-12, 1e-10, "gap"
            ),
        ),
        warnings=("computed on a laptop",),
        provenance={
            "versions": {"curvature": "0", "torch": "2.13.0"},
            "command": ["curvature", "compare"],
            "seconds": 1.5,
        },
    )


def small():
    return make_study(seeds=(0,), arms=("standard",))


def single():
    place = Measured("given", 0, "given", 0, spectrum("ggn", "standard", "-", decay(0)))
    return Study("spectrum", {"model": "a.py:net"}, "perceptron 6-3-2", "50 digits", DIM, 50, (place,))


@pytest.fixture(scope="module")
def study():
    return make_study()


@pytest.fixture(scope="module")
def run(study, tmp_path_factory):
    return report.write_run(study, tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="module")
def document(study):
    return report.study_document(study)


class Page(HTMLParser):
    """What a browser would see: tags with attributes, text, and whether the tags nest."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open, self.errors = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append((tag, self.getpos()))

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", "".join(self.text))


@pytest.fixture(scope="module")
def seen(run):
    return Page((run / "report.html").read_text(encoding="utf-8"))


def same(ours, theirs):
    if isinstance(ours, np.ndarray):
        return np.array_equal(ours, theirs) and ours.dtype.kind == theirs.dtype.kind
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, tuple | list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if hasattr(ours, "__dataclass_fields__"):
        pairs = [(getattr(ours, f.name), getattr(theirs, f.name)) for f in fields(ours)]
        return type(ours) is type(theirs) and all(same(*pair) for pair in pairs)
    return (ours == theirs and type(ours) is type(theirs)) or (ours != ours and theirs != theirs)


# ------------------------------------------------------------------------------------------------- the run directory


def test_run_directory_holds_what_it_promises(run):
    assert {path.name for path in run.iterdir()} == {
        "config.toml", "provenance.json", "result.nc", "summary.json", "summary.csv", "report.html", "figures", "DONE",
    }  # fmt: skip
    assert (run / "DONE").read_text().startswith("curvature/1\n")
    assert [path.name for path in run.parent.iterdir()] == ["digits"]
    assert {path.stem for path in (run / "figures").iterdir()} == {
        "eigenvalues", "training-conditions", "gauge-sweep", "efficiency", "efficiency-damping", "alignment",
        "whitening", "training", "two-spectra",
    }  # fmt: skip


def test_a_run_is_read_back_equal(run, study):
    loaded = report.load_study(run)
    assert len(loaded.measurements) == len(study.measurements)
    for ours, theirs in zip(study.measurements, loaded.measurements, strict=True):
        assert same(ours, theirs), (ours, theirs)
    config = {key: value for key, value in study.config.items() if value is not None}
    assert loaded.config == config
    for name in ("curves", "checks", "warnings", "model", "data", "command", "num_weights", "num_examples"):
        assert same(getattr(study, name), getattr(loaded, name)), name
    assert dict(loaded.provenance) == study.provenance


def test_a_run_written_from_what_was_read_back_is_the_same(tmp_path):
    run = report.write_run(small(), tmp_path / "run")
    again = report.write_run(report.load_study(run), tmp_path / "again")
    for name in ("summary.csv", "result.nc", "provenance.json"):
        assert (again / name).read_bytes() == (run / name).read_bytes()


def test_two_writes_are_byte_identical(run, study, tmp_path):
    again = report.write_run(study, tmp_path / "other")
    files = [path.relative_to(run) for path in run.rglob("*") if path.is_file()]
    assert len(files) == 7 + 9
    for name in files:
        assert (run / name).read_bytes() == (again / name).read_bytes(), name


def test_config_is_toml_without_empty_values(run):
    config = tomllib.loads((run / "config.toml").read_text())
    assert config == {"model": "builtin:digits-mlp", "seeds": [0, 1, 2], "relative_damping": 1e-3, "fit": {"rate": 0.2}}


def test_result_file_opens_in_xarray_with_names_and_attributes(run, study):
    with xr.open_datatree(run / "result.nc", engine="h5netcdf") as tree:
        first, record = tree["spectra/0000"], study.measurements[0].record
        assert first["eigenvalues"].dims == ("row", "index")
        assert np.array_equal(first["eigenvalues"][0], record.eigenvalues)
        assert np.array_equal(first["gradient_weights"][0], record.gradient_weights)
        assert first["matrix"][0] == "ggn"
        assert first["arm"][0] == "standard"
        assert json.loads(str(first["effective"][0].item())) is False
        assert json.loads(str(first["num_samples"][0].item())) is None
        table = tree["condition_numbers"].to_dataset()
        column = list(table["quantity"].to_numpy()).index("kappa_95")
        assert float(table["value"][0, column]) == condition_numbers(record)["kappa_95"].value
        assert set(tree.children) == {
            "spectra", "condition_numbers", "StepComparison", "Alignment", "Whitening", "GaugeState", "checks",
            "curves",
        }  # fmt: skip


def test_figures_are_svg_files_without_a_date(run):
    for path in (run / "figures").iterdir():
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "date" not in path.read_text().lower()


# ---------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize("name", ["", "..", ".hidden", "-rf", "a b", "a\nb", "é", "x" * 81, "con", "NUL.txt", "a:b"])
def test_names_outside_the_allow_list_are_refused(name, tmp_path):
    with pytest.raises(ConfigurationError, match=r"(?s)is named by.*Choose another --out"):
        report.check_target(f"{tmp_path}/sub/{name}" if name else ".")


def test_checking_a_target_touches_nothing(tmp_path):
    assert report.check_target(tmp_path / "a" / "b" / "run-1.0_x") == tmp_path / "a" / "b" / "run-1.0_x"
    assert not list(tmp_path.iterdir())


def test_parents_are_created(tmp_path):
    out = report.write_run(single(), tmp_path / "a" / "b" / "run")
    assert (out / "DONE").exists()


def test_an_existing_run_is_replaced_only_when_asked(tmp_path):
    out = report.write_run(single(), tmp_path / "run")
    with pytest.raises(ConfigurationError, match=r"exists. Choose another --out, or pass --overwrite"):
        report.write_run(small(), out)
    assert report.load_summary(out)["command"] == "spectrum"
    (out / "log.jsonl").write_text("{}")
    report.write_run(small(), out, overwrite=True)
    assert report.load_summary(out)["command"] == "compare"
    assert not (out / "log.jsonl").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_is_not_a_run_is_never_replaced(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("x")
    with pytest.raises(ConfigurationError, match="not a run directory, so it is not replaced"):
        report.check_target(home, overwrite=True)
    (home / "DONE").write_text("")
    with pytest.raises(ConfigurationError, match=r"holds files that a run does not write \(thesis.tex\)"):
        report.write_run(single(), home, overwrite=True)
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ConfigurationError, match="is a file"):
        report.check_target(file, overwrite=True)
    with pytest.raises(ConfigurationError, match="not a directory"):
        report.check_target(file / "run")
    assert (home / "thesis.tex").read_text() == "x"


@pytest.mark.parametrize("target", ["loop", "nothing"])
def test_a_link_above_the_run_that_leads_nowhere_is_refused_by_name(tmp_path, target):
    (tmp_path / "loop").symlink_to(tmp_path / target)
    with pytest.raises(ConfigurationError, match=r"loop is a broken symbolic link\. Choose another --out"):
        report.check_target(tmp_path / "loop" / "runs" / "run")


@pytest.mark.parametrize("to_something", [True, False])
def test_a_symbolic_link_is_refused(tmp_path, to_something):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / ("real" if to_something else "nothing"))
    with pytest.raises(ConfigurationError, match="symbolic link"):
        report.check_target(link, overwrite=True)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, ResourceError),
        (errno.EIO, ResourceError),
        (errno.EACCES, ConfigurationError),
        (errno.ELOOP, ConfigurationError),
    ],
)
@pytest.mark.parametrize("where", ["fsync", "rename"])
def test_a_failing_disk_leaves_the_earlier_run_as_it_was(tmp_path, monkeypatch, number, kind, where):
    out = report.write_run(single(), tmp_path / "run")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    renames, rename = [], Path.rename

    def fail(*paths):
        renames.append(paths)
        if where == "fsync" or len(renames) == 2:  # the old run has stepped aside, the new one cannot take its place
            raise OSError(number, os.strerror(number))
        return rename(*paths)

    with monkeypatch.context() as patched:
        if where == "fsync":
            patched.setattr(os, "fsync", fail)
        else:
            patched.setattr(Path, "rename", fail)
        with pytest.raises(kind, match=re.escape(f"{out}: {os.strerror(number)}. Nothing was changed there")):
            report.write_run(single(), out, overwrite=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_everything_is_on_the_disk_before_the_name_is_given(tmp_path, monkeypatch):
    synced, named, fsync, rename = set(), [], os.fsync, Path.rename

    def note(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def give_name(path, target):
        named.extend(held.stat().st_ino for held in (path, *path.rglob("*")))
        assert synced.issuperset(named)
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "rename", give_name)
    report.write_run(single(), tmp_path / "run")
    assert len(named) == 1 + 8 + 2  # the directory, its files and figures/, the two figures
    assert tmp_path.stat().st_ino in synced


@pytest.mark.parametrize("victim", ["report.html", "result.nc"])
def test_a_full_disk_in_earnest(tmp_path, victim):
    """A limit on file size, which the kernel enforces on every writer, HDF5 included."""
    written = report.write_run(single(), tmp_path / "whole")
    sizes = {path.name: path.stat().st_size for path in written.rglob("*") if path.is_file()}
    limit = sizes["report.html"] - 1 if victim == "report.html" else max(sizes.values()) + 1
    code = f"""
        import resource, signal, sys
        from dataclasses import replace
        sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[2])]!r}
        import numpy as np
        from test_report import TrainingCurve, report, single
        from curvature.errors import CurvatureError
        long = TrainingCurve("standard", 0, *np.ones((3, {limit} // 20)))  # large in the result file alone
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        try:
            curves = (long,) if {victim == "result.nc"} else ()
            report.write_run(replace(single(), curves=curves), {str(tmp_path / "run")!r})
        except CurvatureError as error:
            print(type(error).__name__, error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ResourceError could not write the run directory"), done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_what_is_no_run_is_said(tmp_path, run):
    with pytest.raises(ConfigurationError, match="not a finished run"):
        report.load_study(tmp_path)
    with pytest.raises(ConfigurationError, match="not the summary of a run"):
        report.load_summary(tmp_path)
    (tmp_path / "summary.json").write_text('{"schema": "curvature/9"}')
    with pytest.raises(ConfigurationError, match="not a summary of schema"):
        report.load_summary(tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in run.iterdir():
        if path.is_file():
            (broken / path.name).write_bytes(path.read_bytes()[: 5000 if path.suffix == ".nc" else None])
    with pytest.raises(ConfigurationError, match="cannot be read as a run"):
        report.load_study(broken)


# ------------------------------------------------------------------------------------------------------ the document


def walk(value, path=()):
    yield path, value
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from walk(child, (*path, key))


def test_the_document_is_json_without_nan_and_says_why(document, run):
    text = json.dumps(document, allow_nan=False)
    assert json.loads(text) == document == report.load_summary(run)
    assert document["schema"] == "curvature/1"
    quantities = [value for _, value in walk(document["spectra"]) if isinstance(value, dict) and "status" in value]
    undefined = [quantity for quantity in quantities if quantity["value"] is None]
    assert undefined
    assert all(quantity["note"] for quantity in undefined)
    assert {quantity["status"] for quantity in undefined} == {"indefinite"}
    assert all("negative" in quantity["note"] for quantity in undefined)
    bounded = [quantity for quantity in quantities if quantity["status"] == "lower_bound"]
    assert {(quantity["high"], quantity["high_reason"]) for quantity in bounded} == {(None, "infinite")}


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ({"x": math.nan}, {"x": None, "x_reason": "not a number"}),
        ({"x": np.float64("inf"), "y": 1.0}, {"x": None, "y": 1.0, "x_reason": "infinite"}),
        ({"value": math.nan, "status": "", "note": ""}, {"value": None, "status": "", "note": "not a number"}),
        ({"value": -math.inf, "status": "", "note": "why"}, {"value": None, "status": "", "note": "why"}),
        ([1.0, math.inf], [1.0, {"value": None, "reason": "infinite"}]),
        ((np.int64(3), np.array([1.5]), Path("a"), True, None), [3, [1.5], "a", True, None]),
        ({"x": None}, {"x": None}),
    ],
)  # fmt: skip
def test_plain_values(value, plain):
    assert plain_values(value) == plain


def test_ratios_are_medians_of_log_ratios_seed_by_seed(study, document):
    logs = []
    for seed in range(3):
        place = {"arm": "standard", "seed": seed, "checkpoint": "late", "matrix": "ggn"}
        (ours,) = study.of(ConditionNumbers, chart="weight-norm", gauge="paper", **place)
        (theirs,) = study.of(ConditionNumbers, chart="standard", **place)
        logs.append(math.log(ours.record["kappa_95"].value / theirs.record["kappa_95"].value))
    (row,) = [
        row
        for row in document["ratios"]
        if (row["matrix"], row["gauge"], row["arm"], row["checkpoint"], row["quantity"], row["design"])
        == ("ggn", "paper", "standard", "late", "kappa_95", "same weights")
    ]
    assert row["median"] == pytest.approx(np.median(logs))
    assert (row["low"], row["high"]) == (min(logs), max(logs))
    assert row["factor"] == pytest.approx(math.exp(row["median"]))
    assert row["compared"] == row["pairs"] == 3


def test_the_arms_are_compared_in_their_own_charts(document):
    own = [row for row in document["ratios"] if row["design"] == "own training"]
    assert {(row["arm"], row["gauge"]) for row in own} == {("weight-norm", "checkpoint")}


def test_numbers_on_different_ranks_or_not_resolved_enter_no_ratio(document, study):
    hessian = [row for row in document["ratios"] if row["matrix"] == "hessian"]
    assert {row["reading"] for row in hessian} == {"not comparable"}
    assert {row["excluded"] for row in hessian} == {"different ranks"}
    bounded = []
    for m in study.of(ConditionNumbers, matrix="ggn", gauge="paper"):
        values = dict(m.record.values) | {"kappa_95": Quantity(9.0, "lower_bound", "too small")}
        bounded.append(replace(m, record=replace(m.record, values=values)))
    others = [
        m for m in study.measurements if not (isinstance(m.record, ConditionNumbers) and m.record.gauge == "paper")
    ]
    changed = report.study_document(replace(study, measurements=(*others, *bounded)))
    rows = [row for row in changed["ratios"] if row["gauge"] == "paper" and row["matrix"] == "ggn"]
    rows = [row for row in rows if row["quantity"] == "kappa_95"]
    assert rows
    assert all(row["excluded"] == "not resolved" and not row["compared"] for row in rows)


def test_the_canonical_gauge_is_measured_not_assumed(document, study):
    assert {row["matrix"]: row["largest_difference"] for row in document["equality"]} == {
        "ggn": 0.0, "gradient_covariance": 0.0,
    }  # fmt: skip
    off = [
        replace(m, record=replace(m.record, eigenvalues=m.record.eigenvalues * 1.5))
        if isinstance(m.record, Spectrum) and m.record.gauge == "canonical" and m.record.matrix == "ggn"
        else m
        for m in study.measurements
    ]
    changed = report.study_document(replace(study, measurements=tuple(off)))
    assert {row["matrix"]: round(row["largest_difference"], 9) for row in changed["equality"]}["ggn"] == 0.5
    problems = [finding["text"] for finding in changed["findings"] if finding["kind"] == "problem"]
    assert "differs from the standard one by 0.5 times" in problems[0]


def test_findings_say_when_nothing_can_be_concluded(study):
    def limits(study):
        return " ".join(f["text"] for f in report.study_document(study)["findings"] if f["kind"] == "limit")

    assert "3 seeds: they show spread" in limits(study)
    assert "Only one seed: nothing can be concluded" in limits(small())
    assert "Only one chart was measured: nothing can be concluded" in limits(single())
    hessian = tuple(m for m in study.measurements if getattr(m.record, "matrix", "") == "hessian")
    assert "nothing can be concluded about conditioning" in limits(replace(study, measurements=hessian))
    assert "headline numbers are not resolved" in limits(study)
    words = json.dumps(report.study_document(study)["findings"]).lower()
    assert not re.search("supported|opposite|verif|prove", words)


def test_a_failed_check_comes_first(study):
    failed = replace(study, checks=(*study.checks, Check("symmetry", math.nan, 1e-13)))
    first = report.study_document(failed)["findings"][0]
    assert first["kind"] == "problem"
    assert "1 of 3 checks failed, the first: symmetry" in first["text"]


def test_unresolved_numbers_are_counted(document):
    fisher = 2 * 2 * 3
    assert document["unresolved"]["lower_bound"] == fisher
    assert document["unresolved"]["indefinite"] > 0


def test_condition_numbers_are_computed_where_the_study_has_only_spectra(study, document):
    bare = replace(
        study, measurements=tuple(m for m in study.measurements if not isinstance(m.record, ConditionNumbers))
    )
    assert report.study_document(bare)["ratios"] == document["ratios"]


# --------------------------------------------------------------------------------------------------------------- CSV


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_csv_has_a_line_per_spectrum_with_the_records_numbers(run, study):
    rows = read_csv((run / "summary.csv").read_bytes().decode())
    spectra = study.of(Spectrum)
    assert len(rows) == len(spectra)
    m, row = spectra[0], rows[0]
    assert (row["arm"], row["matrix"], row["chart"], row["gauge"], row["effective"]) == (
        "standard",
        "ggn",
        "standard",
        "",
        "false",
    )
    assert float(row["largest"]) == m.record.eigenvalues[-1]
    assert float(row["kappa_95"]) == condition_numbers(m.record)["kappa_95"].value
    assert (int(row["rank"]), int(row["zero"]), row["kappa_95_status"]) == (DIM - NULL, NULL, "resolved")
    indefinite = next(row for row in rows if row["matrix"] == "hessian")
    assert (indefinite["kappa_95"], indefinite["kappa_95_status"]) == ("", "indefinite")
    assert indefinite["abs_kappa_95_status"] == "resolved"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\0"])
def test_csv_text_is_never_a_formula(start):
    study = single()
    record = study.measurements[0].record
    record = replace(record, where=replace(record.where, chart=f'{start}cmd|"/c calc"!A1', gauge="-"))
    text = csv_text(
        report.study_document(replace(study, measurements=(Measured("given", 0, "x", 0, record),)))["spectra"]
    )
    (row,) = read_csv(text)
    assert row["chart"] == f"'{record.chart}".replace("\0", "\\x00")
    assert row["gauge"] == ""
    assert float(row["smallest"]) == 0.0
    assert text.count("\r\n") >= 2


# -------------------------------------------------------------------------------------------------------------- HTML


def test_the_page_is_well_formed_and_has_its_sections(seen):
    assert not seen.errors
    assert not seen.open
    ids = [attrs["id"] for _, attrs in seen.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {"findings", "table", "figures", "checks", "method", "provenance"} <= set(ids)
    targets = {attrs["href"][1:] for tag, attrs in seen.tags if tag == "a"}
    assert targets <= set(ids)


def test_the_page_needs_no_script_and_no_network(run, seen):
    text = (run / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|javascript:|@import|url\((?!['\"]?#)", text)
    assert "script" not in {tag for tag, _ in seen.tags}
    assert not {tag for tag, _ in seen.tags} & {"link", "iframe", "object", "embed", "img", "base", "form"}
    assert not [name for _, attrs in seen.tags for name in attrs if name.startswith("on")]
    policy = [attrs["content"] for _, attrs in seen.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    for _, attrs in seen.tags:
        for name in ("href", "xlink:href", "src"):
            assert attrs.get(name, "#").startswith("#")
    assert len(text.encode()) <= pages.MAX_HTML


def test_every_figure_has_words_and_numbers(seen):
    tags = [tag for tag, _ in seen.tags]
    assert tags.count("figure") == tags.count("figcaption") == 9
    pictures = [attrs for tag, attrs in seen.tags if tag == "svg"]
    assert len(pictures) == 9
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in pictures)
    assert seen.words.count("The numbers in this figure") == 9


def test_the_page_says_statuses_in_words(seen):
    assert "lower bound" in seen.words
    assert "indefinite: κ undefined" in seen.words
    assert "✓ passed" in seen.words
    assert "computed on a laptop" in seen.words
    assert "curvature compare --config config.toml" in seen.words


def test_the_page_shows_the_numbers_of_the_document(seen, document):
    row = next(row for row in document["table"] if row["matrix"] == "ggn" and row["checkpoint"] == "late")
    for item in (row["trace"], row["numbers"]["kappa_95"], row["numbers"]["gd_time"]):
        assert page_number(item["median"]) in seen.words
    for finding in document["findings"]:
        assert re.sub(r"\s+", " ", finding["text"]) in seen.words


@pytest.mark.parametrize(
    "text", [HOSTILE, "\x00\x1b[31m\u202e\u2028\udc80", "{{ 7*7 }}{% raw %}", "]]><!--", "$a$ & <b>"]
)
def test_hostile_text_stays_text_everywhere(text, tmp_path):
    study = single()
    record = replace(study.measurements[0].record, where=Where(text, text, text, text), rank_rule=text)
    step = StepComparison(text, text, 1e-3, 1e-4, 0.5)
    noise = Alignment(text, text, 0.5, 1.0, 0.1, 3, 4)
    places = [Measured(text, 0, text, 60, item) for item in (record, step, noise)]
    study = replace(
        study,
        measurements=(*study.measurements, *places),
        curves=(*study.curves, TrainingCurve(text, 1, np.array([0, 1]), np.array([2.0, 1.0]), np.array([0.0, 1.0]))),
        model=text,
        data=text,
        warnings=(text,),
        checks=(Check(text, 1.0, 0.0, text),),
        config={"model": text, "deep": {"list": [text, None]}},
        provenance={text: text, "command": [text], "versions": {"curvature": text}},
    )
    out = report.write_run(study, tmp_path / "run")
    content = (out / "report.html").read_text(encoding="utf-8")
    seen = Page(content)
    assert not seen.errors
    assert "script" not in {tag for tag, _ in seen.tags}
    assert text not in content or not re.search("[<&]", text)
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e\u2028\ud800-\udfff]", content)
    assert "7*7" in content or "7*7" not in text
    for name in (out / "figures").iterdir():
        ElementTree.parse(name)
    assert tomllib.loads((out / "config.toml").read_text(encoding="utf-8"))["deep"]["list"]
    assert report.load_summary(out)["model"] == text
    assert len(report.load_study(out).measurements) == len(study.measurements)


def test_a_single_spectrum_makes_a_report_without_empty_sections(tmp_path):
    out = report.write_run(single(), tmp_path / "run")
    text = (out / "report.html").read_text(encoding="utf-8")
    seen = Page(text)
    assert not seen.errors
    assert sorted(path.stem for path in (out / "figures").iterdir()) == ["eigenvalues", "histogram"]
    headings = {attrs.get("id") for tag, attrs in seen.tags if tag == "section"}
    assert headings == {"trust", "findings", "table", "figures", "method", "provenance"}
    assert "condition number κ₉₅" in seen.words
    assert "curvature spectrum --config config.toml" in seen.words
    without_glossary = re.sub(r'<dl class="glossary">.*?</dl>', "", text, flags=re.DOTALL)
    assert not re.search(r"Efficiency of one step|Condition numbers over|Gauges|seeds", Page(without_glossary).words)
    document = report.load_summary(out)
    assert document["ratios"] == document["efficiencies"] == document["checks"] == []


@pytest.mark.parametrize(
    "values", [np.zeros(3), np.array([1.0]), np.array([-1.0, 0.0, 1.0]), np.array([1e150, 1e-150])]
)
def test_odd_spectra_are_reported_without_a_crash(values, tmp_path):
    record = spectrum("hessian", "standard", "-", values)
    study = replace(single(), measurements=(Measured("given", 0, "given", 0, record),))
    out = report.write_run(study, tmp_path / "run")
    assert not Page((out / "report.html").read_text(encoding="utf-8")).errors


def estimated():
    """Ends and densities of two matrices in two charts, one of them not converged."""
    random = np.random.default_rng(0)
    records = []
    for matrix, chart, gauge in (("hessian", "standard", "-"), ("ggn", "weight-norm", "paper")):
        largest, smallest = np.array([3.0, 2.0, 1.5]), np.array([-1.0, -0.25])[: 2 * (matrix == "hessian")]
        bounds = np.array([1e-3, 2e-4, 1e-9, 1e-12, 1e-14])[: 3 + len(smallest)]
        where = Where(matrix, chart, gauge, "layer0", True, num_examples=50, num_samples=3, dtype="float32")
        values = (largest, smallest, bounds / 2, bounds)
        records.append(ExtremalEigenvalues(where, DIM, *values, matrix == "ggn", 44, seconds=0.5))
        nodes, weights = np.sort(random.normal(size=(4, 6)), axis=1), random.dirichlet(np.ones(6), 4)
        records.append(SpectralDensity(where, DIM, nodes, weights, num_products=24, seconds=0.5))
    measurements = tuple(Measured("given", 0, "given", 0, record) for record in records)
    return replace(single(), measurements=measurements)


def test_ends_and_densities_are_written_read_back_and_shown(tmp_path):
    study = estimated()
    out = report.write_run(study, tmp_path / "run")
    back = report.load_study(out)
    assert all(same(*pair) for pair in zip(back.measurements, study.measurements, strict=True))
    assert {path.stem for path in (out / "figures").iterdir()} == {"extremes", "density"}
    seen = Page((out / "report.html").read_text(encoding="utf-8"))
    assert not seen.errors
    headings = [attrs.get("id") for tag, attrs in seen.tags if tag == "section"]
    assert headings == ["trust", "findings", "estimates", "figures", "method", "provenance"]
    for words in (
        "the largest eigenvalue is 3, to",
        "not all of the values asked for have converged",
        "the spectrum was estimated and not computed",
        "nothing finer should be read from it",
        "4 × 6",
        "✗ no",
        "✓ yes",
    ):
        assert words in seen.words
    assert "Only one chart" not in seen.words


def test_ends_and_densities_stand_in_the_summary_and_the_csv(tmp_path):
    study = estimated()
    out = report.write_run(study, tmp_path / "run")
    document = report.load_summary(out)
    ends, density = study.measurements[0].record, study.measurements[1].record
    row = document["extremes"][0]
    assert [(v["end"], v["value"], v["error_bound"]) for v in row["values"]] == [
        ("largest", 3.0, 1e-14), ("largest", 2.0, 1e-12), ("largest", 1.5, 1e-9),
        ("smallest", -1.0, 1e-3), ("smallest", -0.25, 2e-4),
    ]  # fmt: skip
    assert (row["converged"], row["num_products"], row["largest_error_bound"]) == (False, 44, ends.error_bounds.max())
    row = document["densities"][0]
    mean, error = density.moment(1)
    assert (row["trace"], row["trace_standard_error"]) == pytest.approx((DIM * mean, DIM * error))
    assert row["resolution"] == pytest.approx((density.nodes.max() - density.nodes.min()) / 6)
    lines = read_csv((out / "summary.csv").read_text(encoding="utf-8"))
    assert [(line["matrix"], line["method"]) for line in lines] == [
        ("hessian", "lanczos"), ("ggn", "lanczos"), ("hessian", "slq"), ("ggn", "slq"),
    ]  # fmt: skip
    assert float(lines[0]["largest"]) == 3.0
    assert lines[0]["converged"] == "false"
    assert lines[1]["smallest"] == ""
    assert float(lines[2]["trace"]) == row["trace"]


def test_blocks_are_reported_as_a_heat_map(tmp_path):
    places = tuple(
        Measured("given", 0, "given", 0, spectrum("ggn", chart, gauge, decay(index), block=f"layer{index}"))
        for index in range(5)
        for chart, gauge in (("standard", "-"), ("weight-norm", "paper"))
    )
    out = report.write_run(replace(single(), measurements=places), tmp_path / "run")
    assert {path.stem for path in (out / "figures").iterdir()} == {"eigenvalues", "layers"}
    (finding,) = [f for f in report.load_summary(out)["findings"] if f["kind"] == "result"]
    assert "block by block" in finding["text"]
    assert finding["items"] == ["weight-norm (paper): 1.00 to 1.00, larger in 0 of 5 blocks"]


def test_a_study_without_measurements_is_reported_as_such(tmp_path):
    out = report.write_run(replace(single(), measurements=()), tmp_path / "run")
    assert report.load_summary(out)["spectra"] == []
    assert not report.load_study(out).measurements


def test_a_page_that_would_be_too_large_loses_tables_then_figures(monkeypatch):
    study = small()
    drawings = drawings_of(study)
    svgs = {drawing.name: render_svg(drawing.figure, drawing.title) for drawing in drawings}

    def write():
        return pages.html_page(report.study_document(study), drawings, svgs)

    whole = len(write().encode())
    monkeypatch.setattr(pages, "MAX_HTML", whole - 1)
    assert whole / 2 < len(write().encode()) < whole
    assert write().count("<figure>") == len(drawings)
    monkeypatch.setattr(pages, "MAX_HTML", whole // 3)
    assert len(write().encode()) <= whole // 3
    assert "<figure>" not in write()
    monkeypatch.setattr(pages, "MAX_HTML", 1000)
    with pytest.raises(ResourceError, match="would exceed"):
        write()


def test_text_keeps_its_contrast(run):
    """WCAG: 4.5 to 1 for every colour of text in the style sheet, on both backgrounds."""

    def luminance(color):
        if len(color) == 4:
            color = "#" + "".join(2 * digit for digit in color[1:])
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    style = re.search(r"<style>(.*?)</style>", (run / "report.html").read_text(encoding="utf-8"), re.DOTALL)[1]
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]+)", part)) for part in style.split("prefers-color-scheme")[:2]
    )
    used = set(re.findall(r"[; {]color: var\(--(\w+)\)", style)) | {"ink", "gray"}
    assert not re.search(r"[; {]color: #", style)
    assert used >= {"ink", "soft", "blue", "red"}
    assert light.keys() == dark.keys()
    for colors in (light, dark):
        for color in used:
            for ground in ("paper", "band"):
                high, low = sorted((luminance(colors[color]), luminance(colors[ground])), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= 4.5, (color, ground)
        for color in (name for name in colors if name.startswith("series")):  # lines and markers
            high, low = sorted((luminance(colors[color]), luminance(colors["paper"])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 2, color


def test_a_run_with_the_words_of_version_0_1_is_read_with_those_of_today(study, tmp_path):
    old = [
        Verdict("C1", "It is so", "refuted", "a", method="student", estimate=-1.0, low=-2.0, high=-0.5, threshold=0.1),
        Verdict("C1", "It is so", "refuted", "b", method="student", estimate=0.0, low=-0.1, high=0.05, threshold=0.1),
        Verdict("C6", "It is so", "refuted", method="identity", estimate=2.0, low=2.0, high=2.0, threshold=1e-12),
        Verdict("C8", "It is so", "inconclusive", method="sign", threshold=0.1),
    ]
    out = report.write_run(replace(study, verdicts=tuple(old)), tmp_path / "run")
    now = ["opposite", "too small", "opposite", "undecided"]
    assert [verdict.outcome for verdict in report.load_study(out).verdicts] == now
    assert [row["outcome"] for row in report.load_summary(out)["verdicts"]] == now
