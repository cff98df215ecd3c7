"""``curvature spectrum --save-eigenvectors``: the files hold the eigenvectors of a dense ``eigh``, by parameter."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from torch import nn
from torch.func import functional_call, hessian
from typer.testing import CliRunner

import curvature as cv
from curvature import cli, report, studies
from curvature.records import ExtremalEigenvalues, Spectrum
from curvature.report.parts import Parts

MODEL = ["--num-examples", "40", "--arg", "widths=2", "--threads", "1"]
SMALL = ["spectrum", *MODEL, "-m", "hessian"]


@pytest.fixture(autouse=True)
def here(empty_folder):
    return empty_folder


@pytest.fixture(scope="module")
def problem():
    return cv.zoo.digits_problem(num_examples=40, widths=(2,))


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == code, (result.exit_code, result.stdout[-500:], result.stderr, result.exception)
    return result


def words(result):
    return " ".join(result.stderr.split())


def flat(path):
    """Vectors of a file as rows, in the order of its tensors in the model."""
    tensors = load_file(path)
    rows = [tensors[name].reshape(len(tensors[name]), -1) for name in ("0.weight", "0.bias", "2.weight", "2.bias")]
    return np.concatenate(rows, axis=1)


def about(path):
    with safe_open(path, framework="np") as file:
        return json.loads(file.metadata()["curvature"])


def dense_eigenpairs(problem):
    """Ascending, by autograd of the plain network and NumPy; nothing of this package but weights and data."""
    net = nn.Sequential(nn.Linear(64, 2), nn.Tanh(), nn.Linear(2, 10)).double()
    shapes = {name: value.shape for name, value in net.named_parameters()}

    def loss(weights):
        parts = weights.split([shape.numel() for shape in shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return nn.functional.cross_entropy(functional_call(net, named, (problem.inputs,)), problem.targets)

    return np.linalg.eigh(hessian(loss)(problem.weights).numpy())


@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_the_files_hold_the_eigenvectors_of_a_dense_eigh_by_parameter(problem, method):
    run(*SMALL, "--save-eigenvectors", "3", "--method", method, "--out", "run")
    path = "run/eigenvectors/hessian-standard.safetensors"
    values, columns = dense_eigenpairs(problem)
    vectors, header = flat(path), about(path)
    assert load_file(path)["0.weight"].shape == (3, 2, 64)
    assert np.allclose(np.abs((vectors * columns[:, -3:].T).sum(axis=1)), 1, atol=1e-10 if method == "dense" else 1e-5)
    assert np.allclose(header["eigenvalues"], values[-3:], rtol=1e-6)
    assert (header["matrix"], header["chart"]) == ("hessian", "standard")
    assert max(header["residuals"]) < 1e-3


def test_a_chart_has_the_eigenvectors_of_its_own_matrix_under_its_own_names(problem):
    run("spectrum", *MODEL, "-m", "ggn", "--chart", "weight-norm", "--save-eigenvectors", "2", "--out", "run")
    tensors = load_file("run/eigenvectors/ggn-weight-norm-canonical.safetensors")
    matrix = cv.pullback(cv.ggn(problem), cv.WeightNorm())
    expected = np.linalg.eigh(matrix.entries().numpy())[1][:, -2:]
    rows = np.concatenate([tensors[entry.name].reshape(2, -1) for entry in matrix.layout.entries], axis=1)
    assert np.allclose(np.abs((rows * expected.T).sum(axis=1)), 1, atol=1e-9)


@pytest.mark.parametrize("route", ["dense", "factor"])
def test_k_vectors_are_the_last_of_all_also_beyond_the_rank(problem, route):
    matrix = cv.ggn(problem)
    every = cv.spectrum(matrix, method=route, vectors=True).vectors
    for count in (1, 5, matrix.dim, matrix.dim + 7):
        some = cv.spectrum(matrix, method=route, vectors=count).vectors
        assert len(some) == min(count, matrix.dim)
        assert np.array_equal(some.columns, every.columns[:, -len(some) :])
        assert some.residuals.max() < 1e-12
    assert cv.spectrum(matrix, method=route, vectors=0).vectors is None


def test_some_vectors_survive_the_file_of_a_spectrum_and_others_are_refused(problem, tmp_path):
    record = cv.spectrum(cv.hessian(problem), vectors=2)
    loaded = cv.Spectrum.load(record.save(tmp_path / "record.npz"))
    assert np.array_equal(loaded.vectors.columns, record.vectors.columns)
    assert np.array_equal(loaded.vectors.eigenvalues, record.eigenvalues[-2:])
    other = cv.Eigenvectors(record.eigenvalues[:2], record.vectors.columns, record.vectors.residuals)
    with pytest.raises(ValueError, match="belong to other eigenvalues"):
        replace(record, vectors=other).validate()
    with pytest.raises(cv.ConfigurationError, match="number of eigenvectors, got -1"):
        cv.spectrum(cv.hessian(problem), vectors=-1)


def test_a_block_has_a_file_and_one_that_is_smaller_than_k_has_all_of_its_vectors():
    run(*SMALL, "--block", "layer", "--save-eigenvectors", "40", "--out", "run")
    numbers = {
        path.stem: {len(tensor) for tensor in load_file(path).values()} for path in Path("run/eigenvectors").iterdir()
    }
    assert numbers == {"hessian-standard-0": {40}, "hessian-standard-2": {30}}


def test_a_run_that_is_read_and_written_again_has_the_same_vectors_in_every_file():
    run(*SMALL, "--save-eigenvectors", "2", "--out", "run", "--chart", "standard,weight-norm")
    study = report.load_study("run")
    (first, second) = (m.record for m in study.of(Spectrum))
    assert len(first.vectors) == len(second.vectors) == 2
    assert np.array_equal(
        first.vectors["0.weight"], load_file("run/eigenvectors/hessian-standard.safetensors")["0.weight"]
    )
    run("report", "run", "--out", "again")
    files = list(Path("run").rglob("*.safetensors"))
    assert len(files) == 2
    for path in files:
        assert path.read_bytes() == Path("again", *path.parts[1:]).read_bytes()


def test_an_interrupted_run_continues_to_the_same_files(monkeypatch):
    options = [*SMALL, "--chart", "standard,weight-norm", "--save-eigenvectors", "2", "--method", "lanczos"]
    run(*options, "--out", "whole")

    def keep_then_interrupt(parts, name, part, keep=Parts.__setitem__):
        keep(parts, name, part)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "__setitem__", keep_then_interrupt)
        run(*options, "--out", "on", code=130)
    assert "save_eigenvectors was 2, is 3" in words(
        run(*options[:-4], "--save-eigenvectors", "3", "--method", "lanczos", "--out", "on", "--resume", code=2)
    )
    run(*options, "--out", "on", "--resume")
    for path in Path("whole/eigenvectors").iterdir():
        assert path.read_bytes() == Path("on/eigenvectors", path.name).read_bytes()


def test_the_report_and_the_json_document_list_every_vector():
    result = run(*SMALL, "--save-eigenvectors", "2", "--out", "run", "--json")
    rows = json.loads(result.stdout)["eigenvectors"]
    assert [(row["rank"], row["index"]) for row in rows] == [(1, 1), (2, 0)]
    assert rows[0]["eigenvalue"] == report.load_study("run").of(Spectrum)[0].record.eigenvalues[-1]
    page = Path("run/report.html").read_text()
    assert page.count("eigenvectors/hessian-standard.safetensors") == 2
    assert "eigenvectors: 1 file in" in words(result)
    tensors = load_file("run/eigenvectors/hessian-standard.safetensors")
    shares = {name: float((tensor[-1] ** 2).sum()) for name, tensor in tensors.items()}
    assert rows[0]["parameter"] == max(shares, key=shares.get)
    assert rows[0]["share"] == pytest.approx(max(shares.values()))


def test_a_changed_file_of_eigenvectors_is_found():
    run(*SMALL, "--save-eigenvectors", "1", "--out", "run")
    path = Path("run/eigenvectors/hessian-standard.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(cv.ConfigurationError, match="safetensors has changed"):
        report.load_study("run")


def test_without_the_option_a_run_keeps_no_vectors():
    run(*SMALL, "--method", "lanczos", "--out", "run")
    assert not Path("run/eigenvectors").exists()
    assert report.load_study("run").of(ExtremalEigenvalues)[0].record.vectors is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--save-eigenvectors", "3"], "--save-eigenvectors writes files into the run directory, and there is none"),
        (["--save-eigenvectors", "0", "--out", "run"], "--save-eigenvectors"),
        (["--save-eigenvectors", "-2", "--out", "run"], "--save-eigenvectors"),
        (["--save-eigenvectors", "many", "--out", "run"], "--save-eigenvectors"),
        (["--save-eigenvectors", "3", "--method", "gram", "--out", "run"], "method gram, which computes no"),
        (["--save-eigenvectors", "3", "--method", "slq", "--out", "run"], "method slq, which computes no"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_computed(options, message):
    assert message in words(run(*SMALL, *options, code=2))
    assert not Path("run").exists()


def test_the_plan_counts_eigenvectors_and_needs_no_directory():
    assert "plan:" in run(*SMALL, "--dry-run", "--save-eigenvectors", "3").stdout
    for count in (0, 3):
        dense = studies.SpectrumSettings(["hessian"], [cv.Standard()], gradient=False, num_vectors=count)
        assert dense.counts("hessian").vectors == (count > 0)
    by_lanczos = studies.SpectrumSettings(["hessian"], [cv.Standard()], method="lanczos", num_vectors=30)
    assert by_lanczos.counts("hessian").num_eigenvalues == 30


def test_more_eigenvectors_than_a_result_holds_are_refused_with_the_numbers(problem, monkeypatch):
    monkeypatch.setattr("curvature.studies.spectrum._MOST_BYTES", 1000)
    settings = studies.SpectrumSettings(["hessian"], [cv.Standard()], num_vectors=2)
    with pytest.raises(
        cv.ResourceError, match=r"2 eigenvectors of 160 coordinates in each of 1 spectrum take .* Save fewer"
    ):
        studies.plan_spectrum(problem, settings)
    with pytest.raises(cv.ConfigurationError, match="num_vectors=2 cannot be kept"):
        studies.SpectrumSettings(["hessian"], [cv.Standard()], method="slq", num_vectors=2)
