"""``--stream``: every form of data that is read in parts gives the numbers of a dense computation on all of them."""

import json
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from curvature import cli
from curvature.cli import loading
from curvature.errors import InputError
from curvature.models import streaming
from curvature.models.data.stream import Stream
from curvature.models.losses import CrossEntropy
from oracles import drawn, flat_parameters, outputs_at

NET = """
import numpy as np, torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
X, Y = torch.load("x.pt"), torch.load("y.pt")

class Rows(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y)

class Table(Dataset):
    def __len__(self):
        return len(X)
    def __getitem__(self, index):
        return X[index], Y[index]

def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2))
def rows(): return Rows()
def batches(): return DataLoader(Rows(), batch_size=32)
def shuffled(): return DataLoader(Table(), batch_size=32, shuffle=True)
def mapped(): return np.load("parts/x.npy", mmap_mode="r"), np.load("parts/y.npy", mmap_mode="r")
def noisy(): return DataLoader([(x + torch.randn(5), y) for x, y in zip(X, Y)], batch_size=32)
def changing():
    class Changing(IterableDataset):
        def __iter__(self):
            for x, y in zip(X, Y):
                yield x + torch.randn(5), y
    return Changing()
"""
COUNT = 300
X, Y = drawn(COUNT, 5).float(), (drawn(COUNT, seed=2) > 0).long()
RUN = ("--model", "net.py:model", "--stream", "--threads", "1")


@pytest.fixture
def here(empty_folder, monkeypatch):
    monkeypatch.setattr(streaming, "_chunk_size", lambda *_: 40)
    (empty_folder / "net.py").write_text(NET)
    torch.save(X, "x.pt")
    torch.save(Y, "y.pt")
    write_arrays(X, Y)
    return empty_folder


def write_arrays(x, y):
    np.savez("d.npz", x=x, y=y)
    np.savez("named.npz", one=x, two=y)
    for folder in ("parts", "other"):
        Path(folder).mkdir(exist_ok=True)
        for name, array in zip(("x", "y") if folder == "parts" else ("one", "two"), (x, y), strict=True):
            np.save(f"{folder}/{name}.npy", np.asfortranarray(array))


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == code, result.output
    return result


def words(text):
    return " ".join(text.split())


def eigenvalues(count=COUNT):
    """Those of the dense Hessian of the mean loss, by plain autograd in float64 and LAPACK."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    x, y = X[:count].double(), Y[:count]

    def loss(vector):
        return nn.functional.cross_entropy(outputs_at(module, vector, x), y)

    return np.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat_parameters(module)).numpy())


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (("--data", "net.py:rows"), COUNT),
        (("--data", "net.py:batches"), COUNT),
        (("--data", "net.py:shuffled"), COUNT),
        (("--data", "net.py:mapped"), COUNT),
        (("--data", "d.npz"), COUNT),
        (("--data", "parts"), COUNT),
        (("--data", "named.npz", "--target", "two"), COUNT),
        (("--data", "other", "--target", "two", "--num-examples", "90"), 90),
        (("--data", "net.py:batches", "--num-examples", "130"), 130),
    ],
)
@pytest.mark.usefixtures("here")
def test_streamed_spectra_are_those_of_a_dense_hessian_of_all_examples(options, count):
    result = run("spectrum", *RUN, *options, "-m", "hessian", "--json")
    (record,) = json.loads(result.stdout)["spectra"]
    expected = eigenvalues(count)
    assert record["num_examples"] == count
    assert record["largest"] == pytest.approx(expected[-1], rel=1e-12)
    assert record["trace"] == pytest.approx(expected.sum(), rel=1e-12)
    assert f"{count} examples of 5, streamed, loss cross-entropy" in words(result.stderr)


@pytest.mark.usefixtures("here")
def test_a_folder_of_arrays_is_also_read_as_a_whole():
    inputs, targets = loading.load_data("parts", CrossEntropy(), num_examples=7)
    assert torch.equal(inputs, X[:7])
    assert torch.equal(targets, Y[:7])


@pytest.mark.usefixtures("here")
def test_the_plan_says_how_often_the_data_are_read_and_the_run_reads_them_so_often(monkeypatch):
    options = (*RUN, "--data", "net.py:batches", "-m", "hessian", "--chart", "standard")
    streams, start = [], Stream._start

    def counted(stream):
        streams.append(stream)
        return start(stream)

    monkeypatch.setattr(Stream, "_start", counted)
    plans = json.loads(run("spectrum", *options, "--dry-run", "--json").stdout)["plans"]
    assert len(streams) == 3  # two when the problem is built, and one timed product
    streams.clear()
    plan = words(run("spectrum", *options).stderr)
    assert f"reads the data about {plans[0]['passes']} times" in plan
    assert abs(len(streams) - 3 - plans[0]["passes"]) <= 2
    assert "reads the data about" in words(run("check", *options).stdout)


@pytest.mark.usefixtures("here")
def test_a_streamed_run_repeats_itself_from_its_configuration_and_resumes_only_with_the_same_data():
    run("spectrum", *RUN, "--data", "d.npz", "-m", "hessian", "--out", "run")
    written = tomllib.loads(Path("run/config.toml").read_text())
    assert written["stream"] is True
    again = run("spectrum", "--config", "run/config.toml", "--trust-config", "--json")
    (record,) = json.loads(again.stdout)["spectra"]
    assert record["trace"] == json.loads(Path("run/summary.json").read_text())["spectra"][0]["trace"]
    finished = run("spectrum", *RUN, "--data", "d.npz", "-m", "hessian", "--out", "run", "--resume")
    assert "nothing is left to do" in finished.stderr
    changed = Y.clone()
    changed[-1] = 1 - changed[-1]
    write_arrays(X, changed)
    refused = run("spectrum", *RUN, "--data", "d.npz", "-m", "hessian", "--out", "run", "--resume", code=2)
    assert "What differs: the data has other values" in words(refused.stderr)


@pytest.mark.usefixtures("here")
def test_analyze_and_track_stream():
    document = json.loads(run("analyze", *RUN, "--data", "parts", "-m", "hessian", "--json").stdout)
    whole = document["analyses"][0]["whole"]
    assert whole["trace"]["value"] == pytest.approx(eigenvalues().sum(), rel=1e-12)
    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2)).state_dict(), "step_0.pt")
    (row,) = json.loads(
        run("track", ".", "--pattern", "step*", *RUN, "--data", "d.npz", "-m", "hessian", "--json").stdout
    )["rows"]
    (matrix,) = row["points"][0]["matrices"]
    assert matrix["largest"][0]["value"] == pytest.approx(eigenvalues()[-1], rel=1e-12)


@pytest.mark.parametrize(
    ("command", "options", "code", "message"),
    [
        ("spectrum", ("--data", "packed.npz"), 5, "x in packed.npz is compressed, so it cannot be read in parts"),
        ("spectrum", ("--data", "parts/x.npy"), 2, "parts/x.npy is one array, and inputs and targets are two"),
        ("spectrum", ("--data", "builtin:digits"), 2, "builtin:digits is always read as a whole. Leave out --stream"),
        ("spectrum", ("--data", "t.csv", "--target", "a"), 2, "--target names an entry of a .npz file or of a folder"),
        ("spectrum", ("--data", "d.npz", "--target", "z"), 2, "entry of d.npz 'z' is unknown; choose among x, y"),
        ("spectrum", ("--data", "d.npz", "--num-examples", "301"), 2, "--num-examples 301: d.npz has 300 examples"),
        ("spectrum", ("--data", "objects.npz"), 5, "contains object, which are not unpickled"),
        ("spectrum", ("--data", "cut.npz"), 5, "cut.npz cannot be read"),
        ("spectrum", ("--data", "missing.npz"), 5, "the data file missing.npz does not exist"),
        ("spectrum", ("--data", "empty"), 5, "empty has no .npy files. Save one for each array"),
        ("spectrum", ("--data", "net.py:model"), 5, "data that are streamed must be a DataLoader of batches"),
        ("spectrum", ("--data", "net.py:changing"), 5, "Reading draws random numbers (torch)"),
        ("compare", ("--data", "d.npz"), 2, "compare trains on the examples in random order, so they must fit"),
    ],
)
def test_what_cannot_be_streamed_is_refused_in_words(here, command, options, code, message):
    np.savez_compressed("packed.npz", x=X, y=Y)
    np.savez("objects.npz", x=np.array([{}, {}]), y=np.zeros(2))
    (here / "cut.npz").write_bytes((here / "d.npz").read_bytes()[:-40])
    (here / "empty").mkdir()
    result = run(command, *RUN, *options, code=code)
    assert message in words(result.stderr)


@pytest.mark.usefixtures("here")
def test_an_iterable_dataset_without_the_option_is_refused_with_it():
    result = run("spectrum", "--model", "net.py:model", "--data", "net.py:rows", code=5)
    assert "--stream on the command line" in words(result.stderr)


def test_a_member_that_claims_more_than_the_archive_holds_is_refused(here):  # noqa: ARG001
    np.savez("d.npz", x=X, y=Y)
    with zipfile.ZipFile("d.npz") as archive:
        header = archive.read("x.npy")[:128].replace(b"(300, 5)", b"(999, 5)")
    with zipfile.ZipFile("false.npz", "w") as archive:
        archive.writestr("x.npy", header)
        archive.writestr("y.npy", header)
    with pytest.raises(InputError, match=r"damaged: its header says the shape \(999, 5\)"):
        loading.load_stream("false.npz", CrossEntropy())
