"""What a hostile file, name or folder can do: nothing.

One test for each item that no other file tests. Where the others are:

- pickles: ``weights_only`` and its fallback, a pickled module, ``.pt2``, ``allow_pickle``, Python's CIFAR: test_loading
- sizes before reading: ``.pt``, ``.safetensors``, ``.npz`` (the whole, and one array), MNIST, CIFAR: test_loading
- code executed aloud, its folder not searched: test_loading; not from somebody else's configuration: test_cli
- names of run directories, links, what is not a run, full disks, two writers: test_report
- the page: its policy, no script, nothing fetched, hostile text in every field, figures, TOML, NetCDF: test_report
- cells of a CSV file that would be formulas: test_report
- random command lines, configurations, environments, files and run directories: test_fuzz
"""

import ast
import importlib.metadata
import io
import json
import os
import re
import runpy
import socket
import subprocess
import sys
import urllib.request
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from curvature import cli, report
from curvature.cli import loading, sources
from curvature.cli.loading import arrays, files
from curvature.cli.terminal import Terminal
from curvature.errors import ConfigurationError, InputError
from curvature.models.losses import CrossEntropy
from curvature.report import result

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "curvature"
TREES = {path: ast.parse(path.read_bytes()) for path in PACKAGE.rglob("*.py")}
SMALL = ["--arg", "widths=2", "--num-examples", "20", "-m", "ggn", "--threads", "1"]


@pytest.fixture(autouse=True)
def here(empty_folder):
    return empty_folder


def run(*arguments, code=0):
    found = CliRunner().invoke(cli.app, list(arguments), color=True)
    assert found.exit_code == code, (found.exit_code, found.stderr, found.exception)
    return found


# --- code: what there is of it, and where from


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


def test_nothing_is_unpickled_or_evaluated_but_where_it_is_said():
    found = {(path.name, name) for path, tree in TREES.items() for name, _ in calls(tree)}
    assert {place for place, name in found if name in {"exec", "eval", "__import__"}} == {"code.py"}
    unpickling = r"(pickle|joblib|dill|cloudpickle|shelve|marshal|yaml)\.\w*loads?"
    assert not [pair for pair in found if re.fullmatch(unpickling, pair[1]) or pair[1] == "os.system"]
    for path, tree in TREES.items():
        for name, options in calls(tree):
            if name == "torch.load":
                assert options["weights_only"] == "True", path
            if name == "np.load":
                assert options["allow_pickle"] == "False", path
            assert options.get("shell") != "True", path


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def test_everything_imported_is_required_and_pinned():
    names = {name for tree in TREES.values() for name in imported(tree)} - sys.stdlib_module_names - {"curvature"}
    distributions = {"sklearn": "scikit-learn", "tomli_w": "tomli-w"}
    wanted = {distributions.get(name, name) for name in names}
    setup = ast.parse((ROOT / "setup.py").read_bytes())
    (given,) = [ast.literal_eval(node.value) for node in setup.body if _assigns(node, "REQUIRES")]
    required = {re.match(r"[\w.-]+", text)[0] for text in given}
    (extras,) = [ast.literal_eval(node.value) for node in setup.body if _assigns(node, "EXTRAS")]
    optional = {
        re.match(r"[\w.-]+", text)[0].removesuffix("-skinny")
        for name in ("integrations", "grid")
        for text in extras[name]
    } | {"distributed"}  # brought by who has a cluster
    assert wanted - optional == required - {"h5netcdf"}  # an engine that xarray looks for by its name
    pins = re.findall(r"^([\w.-]+)==\S+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert {name.lower() for name in required} <= {name.lower().replace("_", "-") for name in pins}
    assert not names & {"yaml", "requests", "urllib3", "httpx", "aiohttp", "pickle5", "dill"}


def _assigns(node, name):
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name


def test_no_network_is_touched(monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("the network was asked for something")

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    run("spectrum", *SMALL, "--out", "run")
    assert report.load_study("run").num_examples == 20


def test_python_m_does_not_search_the_current_folder(here):
    for name in ("typer", "numpy", "pydantic", "a_model"):
        (here / f"{name}.py").write_text("open('exploded', 'w')")
    command = [sys.executable, "-m", "curvature", "spectrum", "--model", "a_model:make", "--config", "c.toml"]
    (here / "c.toml").write_text("num_examples = 3")
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert (done.returncode, "no module 'a_model'" in done.stderr) == (5, True), done.stderr
    assert not (here / "exploded").exists()


def test_a_run_is_read_and_written_again_without_its_code(here):
    (here / "net.py").write_text(
        "open('ran', 'a').write('x')\nfrom torch import nn\ndef make(): return nn.Linear(64, 2)"
    )
    np.savez("d.npz", x=np.eye(64)[:4], y=[0, 1, 0, 1])
    run("spectrum", "--model", "net.py:make", "--data", "d.npz", "-m", "ggn", "--threads", "1", "--out", "run")
    assert (here / "ran").read_text() == "x"
    for name in ("net.py", "d.npz"):
        (here / name).unlink()
    report.write_run(report.load_study("run"), here / "again")
    assert (here / "ran").read_text() == "x"


@pytest.mark.parametrize(
    ("key", "value"), [("loss", "builtin:f"), ("loss", "mnist:f"), ("model", "m.pt2"), ("data", "net.py:d")]
)
def test_a_configuration_names_no_code_in_disguise(here, key, value):
    (here / "c.toml").write_text(f"{key} = '{value}'")
    with pytest.raises(ConfigurationError, match="names code to run"):
        sources.resolve("spectrum", {}, file=Path("c.toml"), environment={})


# --- files: their size, their shape, their kind


def test_a_table_is_refused_when_its_numbers_outgrow_what_is_read(here, monkeypatch):
    (here / "d.csv").write_text("a,b\n" + "1,0\n" * 100)
    monkeypatch.setattr(arrays, "MAX_BYTES", 8 * 2 * 99)
    with pytest.raises(InputError, match=r"the numbers of d.csv exceed the limit"):
        loading.load_data("d.csv", CrossEntropy(), target="b")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="has no file without an end")
def test_a_configuration_without_an_end_is_not_read_to_it():
    with pytest.raises(ConfigurationError, match="exceeds the limit of 1048576 bytes"):
        sources.resolve("spectrum", {}, file=Path("/dev/zero"), environment={})


def test_an_archive_that_cannot_be_listed_is_not_handed_to_another_reader(here):
    torch.save({"w": torch.zeros(3)}, "w.pt")
    content = bytearray((here / "w.pt").read_bytes())
    place = content.find(b"PK\x01\x02") + 6  # the version needed to unpack it
    content[place : place + 2] = b"\xff\xff"
    (here / "w.pt").write_bytes(content)
    with pytest.raises(InputError, match="damaged archive"):
        loading.load_weights("w.pt")


def test_an_archive_in_an_exported_program_is_measured_too(here, monkeypatch):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**6))
    with zipfile.ZipFile("m.pt2", "w") as archive:
        archive.writestr("m/data/sample_inputs/model.pt", inner.getvalue())
    assert (here / "m.pt2").stat().st_size < 10**5
    monkeypatch.setattr(files, "MAX_BYTES", 10**5)
    with pytest.raises(InputError, match=r"m.pt2: m/data/sample_inputs/model.pt is .* the limit is"):
        loading.load_model("m.pt2")


def folded(depth):
    """A billion laughs: lists in lists, each ten times, a tensor at the bottom."""
    found = [torch.zeros(1)]
    for _ in range(depth):
        found = [found] * 10
    return found


def endless():
    found = {}
    found["again"] = found
    return found


@pytest.mark.timeout(60)
@pytest.mark.parametrize("saved", [folded(30), endless(), [endless()]])
def test_containers_that_hold_themselves_or_much_the_same_are_looked_through_once(saved):
    torch.save({"model": saved}, "w.pt")
    with pytest.raises(InputError, match="is not a state_dict"):
        loading.load_weights("w.pt")


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (torch.zeros(2, 4, dtype=torch.complex64), "weight is complex"),
        (torch.zeros(2, 4, dtype=torch.int8), "weight is int8 in the file and float32 in the model"),
        (torch.zeros(2, 4).to_sparse(), "weight is sparse"),
        (torch.zeros(2, 4, device="meta"), "weight is without values"),
    ],
)
def test_weights_of_another_kind_are_refused_and_not_cast(weight, words):
    torch.save({"weight": weight, "bias": torch.zeros(2)}, "w.pt")
    with pytest.raises(InputError, match=f"{words}.* Save them as dense floating-point tensors"):
        loading.apply_weights(nn.Linear(4, 2), loading.load_weights("w.pt"))


def test_weights_given_in_both_forms_are_refused():
    g, v = torch.ones(2, 1), torch.ones(2, 4)
    both = {"weight_g": g, "weight_v": v, "bias": torch.zeros(2)}
    both |= {"parametrizations.weight.original0": g, "parametrizations.weight.original1": 2 * v}
    with pytest.raises(InputError, match="in both forms of weight normalization"):
        loading.apply_weights(nn.Linear(4, 2), both)


# --- result files


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    run("spectrum", *SMALL, "--out", str(out))
    return out


@pytest.fixture
def copy(finished, here):
    (here / "run").mkdir()
    for path in finished.iterdir():
        if path.is_file():
            (here / "run" / path.name).write_bytes(path.read_bytes())
    return here / "run"


def claim(file):
    file.create_dataset("spectra/0000/huge", (2**40,), "f8", chunks=(2**10,), compression="gzip")


def point_outside(file):
    file["spectra/other"] = h5py.ExternalLink("/etc/secret.h5", "/")


def store_outside(file):
    file.create_dataset("spectra/0000/secret", (4,), "u1", external=[("/etc/passwd", 0, 4)])


def circle(file):
    file["spectra/0000/again"] = file["spectra"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (claim, "its arrays claim 8.19e.03 GB"),
        (point_outside, "other is a link to another place"),
        (store_outside, "secret does not lie in the file"),
        (circle, "again is there twice"),
    ],
)
def test_a_result_file_is_looked_at_before_it_is_read(copy, spoil, words):
    with h5py.File(copy / "result.nc", "a") as file:
        spoil(file)
    (copy / "DONE").write_text(report.atomic.manifest(copy))  # by somebody who means it
    with pytest.raises(ConfigurationError, match=words):
        report.load_study(copy)


@pytest.mark.parametrize("name", ["result.nc", "config.toml", "provenance.json"])
def test_one_flipped_bit_of_a_run_is_found(copy, name):
    assert report.load_study(copy).num_examples == 20
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"{name} has changed since it was written"):
        report.load_study(copy)


def test_the_hashes_are_those_of_sha256sum(finished):
    done = subprocess.run(["sha256sum", "--check", "DONE"], cwd=finished, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "result.nc: OK" in done.stdout


def test_a_damaged_part_is_found_and_named(copy, here):
    part = here / "run.parts" / "seed-0-abc.nc"
    report.write_part(report.load_study(copy), part)
    assert report.load_part(part).num_examples == 20
    content = bytearray(part.read_bytes())
    content[-100] ^= 1
    part.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"seed-0-abc.nc is damaged: .* Delete it"):
        report.load_part(part)


def test_arrays_of_a_result_are_counted_before_they_are_read(copy, monkeypatch):
    monkeypatch.setattr(result, "MAX_BYTES", 1000)
    with pytest.raises(ConfigurationError, match="its arrays claim"):
        report.load_study(copy)


# --- folders


def test_what_lies_beside_a_run_is_not_deleted_with_its_parts(here):
    (here / "run.parts").mkdir()
    names = ("seed-0-0123abcd.nc", "seed-0-0123abcd.nc.sha256", "seed-1-0123abcd.writing", "thesis.tex")
    for name in names:
        (here / "run.parts" / name).write_text("x")
    report.forget_parts(here / "run")
    assert [path.name for path in (here / "run.parts").iterdir()] == ["thesis.tex"]
    (here / "run.parts" / "thesis.tex").unlink()
    report.forget_parts(here / "run")
    assert not (here / "run.parts").exists()


def test_parts_are_not_kept_behind_a_link(here):
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "seed-0-abc.nc").write_text("mine")
    (here / "run.parts").symlink_to(here / "elsewhere")
    assert "is a symbolic link. Move it away" in run("compare", "--full", *SMALL, "--out", "run", code=2).stderr
    report.forget_parts(here / "run")
    assert (here / "elsewhere" / "seed-0-abc.nc").read_text() == "mine"


def test_folders_of_any_name_are_written_and_read():
    folder = Path("with space", "ünïcödé 漢", "new\nline", "\udc80", "deep/" * 40)
    run("spectrum", *SMALL, "--out", str(folder / "run"))
    assert report.load_study(folder / "run").num_weights == 160


def test_a_folder_that_may_not_be_written_is_said_before_any_work(here, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    stderr = run("spectrum", *SMALL, "--out", "a/run", code=2).stderr
    assert f"{here} is not a directory that you can write to" in " ".join(stderr.split())
    assert "model:" not in stderr


# --- names of the user's own, wherever they are shown

HOSTILE = "\x1b[31m\u202e\"><script>alert(1)</script><a href='javascript:alert(2)'>\n=cmd|x!A1\x07\x9b]]>${{7*7}}"


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@pytest.fixture
def hostile(here):
    """A layer, a file and a message of an exception, all of them with the same name."""
    (here / "net.py").write_text(
        "from torch import nn\n"
        f"NAME = {HOSTILE.replace('.', '')!r}\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.add_module(NAME, nn.Linear(2, 2))\n"
        "    def forward(self, x): return getattr(self, NAME)(x)\n"
        "def fails(): raise ValueError(NAME)\n"
    )
    name = f"{HOSTILE.replace('/', '|')}.npz"
    np.savez(here / name, x=np.eye(2), y=[0, 1])
    return ["--model", "net.py:Net", "--data", name, "--threads", "1"]


def test_a_name_cannot_steer_the_terminal(hostile):
    for more in (["-m", "hessian,ggn", "-v"], ["--method", "lanczos"], ["--method", "slq"], ["--dry-run"]):
        found = run("spectrum", *hostile, "--block", "layer", *more)
        assert not set(found.output) & set("\x1b\u202e\x07\x9b")
        assert not re.search("^=cmd", found.output, re.MULTILINE)  # nor begin a line
        json.loads(run("spectrum", *hostile, "--block", "layer", *more, "--json", "-q").stdout)
    for wrong in (["--model", "net.py:fails"], ["--block", HOSTILE], ["--set", f"{HOSTILE}=1"], [f"--{HOSTILE}"]):
        found = run("spectrum", *hostile, *wrong, code=5 if "net.py:fails" in wrong else 2)
        assert not set(found.output) & set("\x1b\u202e\x07\x9b")
    debugged = CliRunner().invoke(cli.app, ["spectrum", "--model", "net.py:fails", "--debug"], color=True)
    assert "Traceback" in debugged.stderr
    assert "\x1b" not in debugged.stderr


def test_a_name_stays_text_in_every_file_of_a_run(hostile, here):
    run("spectrum", *hostile, "-m", "hessian,ggn", "--block", "layer", "--out", "run")
    for path in (here / "run").rglob("*"):
        if path.suffix in {".html", ".csv", ".json", ".toml", ".svg"}:
            assert not set(path.read_text(encoding="utf-8")) & set("\x1b\u202e\x07\x9b"), path
    tags = Tags()
    tags.feed((here / "run" / "report.html").read_text(encoding="utf-8"))
    assert not {"script", "iframe", "object", "form", "base"} & {tag for tag, _ in tags.found}
    for _, attributes in tags.found:
        assert not [name for name in attributes if name.startswith("on")]
        assert not [value for name, value in attributes.items() if "href" in name and not value.startswith("#")]
    for path in (here / "run" / "figures").iterdir():
        root = ElementTree.parse(path).getroot()
        assert not [node for node in root.iter() if node.tag.endswith(("script", "foreignObject"))]
    assert report.load_study("run").config["data"] == hostile[3]


def test_a_message_has_an_end():
    shown = io.StringIO()
    terminal = Terminal()
    terminal.console.file = shown
    terminal.error("x" * 10**6)
    assert len(shown.getvalue()) < 5000


# --- what is installed


@pytest.fixture
def tool(request):
    path = ROOT / ".ci" / request.param
    if not path.exists():
        pytest.skip("only in a checkout")
    return runpy.run_path(str(path))


@pytest.mark.parametrize("tool", ["sbom.py"], indirect=True)
def test_the_bill_of_materials_lists_what_is_installed(tool):
    found = tool["bill"](list(importlib.metadata.distributions()))
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    versions = {one["name"]: one["version"] for one in found["components"]}
    for name in ("torch", "numpy", "scikit-learn", "typing-extensions"):
        assert versions[name] == importlib.metadata.version(name).partition("+")[0]
    refs = {one["bom-ref"] for one in (*found["components"], found["metadata"].get("component", {"bom-ref": ""}))}
    needs = {one["ref"]: one["dependsOn"] for one in found["dependencies"]}
    assert f"pkg:pypi/numpy@{versions['numpy']}" in needs[f"pkg:pypi/scipy@{versions['scipy']}"]
    assert {other for others in needs.values() for other in others} <= refs
    assert len(versions) == len(found["components"])


@pytest.mark.parametrize("tool", ["audit.py"], indirect=True)
def test_the_audit_says_what_it_finds_or_why_it_was_skipped(tool, here, monkeypatch, capsys):
    (here / "b.json").write_text(json.dumps({"components": [{"purl": "pkg:pypi/a@1"}, {"purl": "pkg:pypi/b@2"}]}))

    def offline(*_args, **_options):
        raise urllib.request.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    assert tool["main"]("b.json", True) == 0
    assert "dependency audit skipped" in capsys.readouterr().out
    answer = b'{"results": [{}, {"vulns": [{"id": "PYSEC-1"}]}]}'
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(answer))
    assert (tool["main"]("b.json", False), tool["main"]("b.json", True)) == (0, 1)
    assert "known vulnerability: pkg:pypi/b@2: PYSEC-1" in capsys.readouterr().out
