"""``--function``: functions of named tensors on the command line, against dense matrices by autograd and LAPACK."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional
from typer.testing import CliRunner

from curvature import cli
from oracles import drawn

FUNCTIONS = """
import torch, curvature as cv
from torch.nn import functional

def valley(x, steep=100.0):
    return (1 - x[0]) ** 2 + steep * (x[1] - x[0] ** 2) ** 2
def named(p, steep=100.0):
    return (1 - p["a"]) ** 2 + steep * (p["b"] - p["a"] ** 2) ** 2
def poisson(p, x, y):
    return torch.exp(x @ p["beta"]) - y * (x @ p["beta"])
def summed(p, x, y):
    return poisson(p, x, y).sum()
def by_name(p, counts, features):
    return poisson(p, features, counts)
def scores(p, x):
    return x @ p["w"].T + p["b"]
def start(): return {"a": torch.tensor(0.5), "b": torch.tensor(-1.0)}
def pair(steep=100.0): return (lambda p: named(p, steep)), start()
def with_data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 3, generator=generator)
    return poisson, {"beta": torch.zeros(3)}, (x, torch.ones(40))
def problem(): return cv.Problem.from_function(valley, torch.tensor([0.5, -1.0]))
def residuals():
    fit = lambda p: torch.stack([1 - p["a"], 10 * (p["b"] - p["a"] ** 2)])
    return cv.Problem.from_function(lambda r: r.square().sum(), start(), outputs=fit)
def number(): return 3.0
def in_float32(): return cv.Problem.from_function(valley, torch.tensor([0.5, -1.0]), dtype=torch.float32)
"""
X, COUNTS, CLASSES = drawn(200, 3), drawn(200, seed=3).abs().round(), (drawn(200, seed=4) > 0).long()
W, B, BETA = drawn(2, 3, seed=5), drawn(2, seed=6), 0.3 * drawn(3, seed=7)


@pytest.fixture(autouse=True)
def here(empty_folder):
    (empty_folder / "f.py").write_text(FUNCTIONS)
    np.save("point.npy", np.array([0.5, -1.0]))
    np.savez("point.npz", a=np.array(0.5), b=np.array(-1.0))
    save_file({"a": torch.tensor(0.5), "b": torch.tensor(-1.0)}, "point.safetensors")
    torch.save({"a": torch.tensor(0.5), "b": torch.tensor(-1.0)}, "point.pt")
    np.savez("beta.npz", beta=BETA)
    np.savez("linear.npz", w=W, b=B)
    np.savez("counts.npz", x=X, y=COUNTS)
    np.savez("named.npz", features=X, counts=COUNTS)
    np.savez("classes.npz", x=X, y=CLASSES)
    return empty_folder


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == code, result.output
    return result


def words(text):
    return " ".join(text.split())


def eigenvalues(loss, *point):
    """Of the dense Hessian of a function of tensors, by autograd in float64 and LAPACK."""
    flat = torch.cat([part.reshape(-1) for part in point])
    sizes, shapes = [part.numel() for part in point], [part.shape for part in point]

    def of_vector(vector):
        return loss(*(part.reshape(shape) for part, shape in zip(vector.split(sizes), shapes, strict=True)))

    return np.linalg.eigvalsh(torch.autograd.functional.hessian(of_vector, flat).numpy())


def valley(x, y, steep=100.0):
    return (1 - x) ** 2 + steep * (y - x**2) ** 2


def poisson(beta):
    return torch.exp(X @ beta) - COUNTS * (X @ beta)


POINT = (torch.tensor(0.5, dtype=torch.float64), torch.tensor(-1.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("valley", "--parameters", "point.npy"), lambda: eigenvalues(valley, *POINT)),
        (("named", "--parameters", "point.npz"), lambda: eigenvalues(valley, *POINT)),
        (("named", "--parameters", "point.safetensors"), lambda: eigenvalues(valley, *POINT)),
        (("named", "--parameters", "point.pt"), lambda: eigenvalues(valley, *POINT)),
        (
            ("named", "--parameters", "point.npz", "--arg", "steep=7"),
            lambda: eigenvalues(lambda x, y: valley(x, y, 7.0), *POINT),
        ),
        (("pair", "--arg", "steep=7"), lambda: eigenvalues(lambda x, y: valley(x, y, 7.0), *POINT)),
        (("problem",), lambda: eigenvalues(valley, *POINT)),
        (
            ("poisson", "--parameters", "beta.npz", "--data", "counts.npz"),
            lambda: eigenvalues(lambda beta: poisson(beta).mean(), BETA),
        ),
        (
            ("by_name", "--parameters", "beta.npz", "--data", "named.npz"),
            lambda: eigenvalues(lambda beta: poisson(beta).mean(), BETA),
        ),
        (
            ("poisson", "--parameters", "beta.npz", "--data", "counts.npz", "--stream"),
            lambda: eigenvalues(lambda beta: poisson(beta).mean(), BETA),
        ),
        (
            ("summed", "--parameters", "beta.npz", "--data", "counts.npz", "--num-examples", "50"),
            lambda: eigenvalues(lambda beta: poisson(beta)[:50].sum(), BETA),
        ),
        (
            ("poisson", "--parameters", "beta.npz", "--data", "counts.npz", "--weight-decay", "0.5"),
            lambda: eigenvalues(lambda beta: poisson(beta).mean() + 0.25 * beta.square().sum(), BETA),
        ),
        (
            ("scores", "--parameters", "linear.npz", "--data", "classes.npz", "--loss", "cross-entropy"),
            lambda: eigenvalues(lambda w, b: functional.cross_entropy(X @ w.T + b, CLASSES), W, B),
        ),
        (
            ("scores", "--parameters", "linear.npz", "--data", "classes.npz", "--loss", "cross-entropy", "--stream"),
            lambda: eigenvalues(lambda w, b: functional.cross_entropy(X @ w.T + b, CLASSES), W, B),
        ),
    ],
)
def test_the_spectrum_of_a_function_is_that_of_its_dense_hessian(options, expected):
    result = run("spectrum", "--function", f"f.py:{options[0]}", *options[1:], "-m", "hessian", "--json")
    (record,) = json.loads(result.stdout)["spectra"]
    values = expected()
    assert record["dim"] == len(values)
    assert record["largest"] == pytest.approx(values[-1], rel=1e-12)
    assert record["trace"] == pytest.approx(values.sum(), rel=1e-12)


def test_a_loss_of_outputs_has_the_ggn_and_a_bare_function_is_measured_without_it():
    options = ("--parameters", "linear.npz", "--data", "classes.npz", "--loss", "cross-entropy")
    document = json.loads(run("spectrum", "--function", "f.py:scores", *options, "--json").stdout)
    hessian, ggn = document["spectra"]
    assert ggn["trace"] == pytest.approx(hessian["trace"], rel=1e-12)  # the outputs are linear
    a, b = POINT
    jacobian = np.array([[-1.0, 0.0], [-20.0 * float(a), 10.0]])  # of the residuals 1 - a and 10 (b - a^2)
    (_, ggn) = json.loads(run("spectrum", "--function", "f.py:residuals", "--json").stdout)["spectra"]
    assert ggn["trace"] == pytest.approx(2 * (jacobian**2).sum(), rel=1e-12)
    result = run("spectrum", "--function", "f.py:problem", "--json")
    assert [record["matrix"] for record in json.loads(result.stdout)["spectra"]] == ["hessian"]
    assert "only the Hessian is measured" in words(result.stderr)
    document = json.loads(run("analyze", "--function", "f.py:pair", "--json").stdout)
    assert document["analyses"][0]["whole"]["trace"]["value"] == pytest.approx(
        eigenvalues(valley, a, b).sum(), rel=1e-12
    )


def test_a_run_of_a_function_is_described_checked_repeated_and_resumed():
    options = ("--function", "f.py:named", "--parameters", "point.npz")
    result = run("spectrum", *options, "--out", "run")
    assert "model: f.py:named with point.npz: 2 weights in 2 tensors data: none" in words(result.stderr)
    assert "curvature compare" not in result.stderr
    written = tomllib.loads(Path("run/config.toml").read_text())
    assert written["function"] == "f.py:named"
    assert written["matrix"] == ["hessian"]
    assert not {"model", "data", "loss"} & written.keys()
    run("spectrum", "--config", "run/config.toml", "--out", "again", code=2)  # it names code
    run("spectrum", "--config", "run/config.toml", "--trust-config", "--out", "again")
    (first,), (second,) = (json.loads(Path(f"{name}/summary.json").read_text())["spectra"] for name in ("run", "again"))
    assert first | {"seconds": 0} == second | {"seconds": 0}
    assert "nothing is left to do" in run("spectrum", *options, "--out", "run", "--resume").stderr
    np.savez("point.npz", a=np.array(0.4), b=np.array(-1.0))
    refused = run("spectrum", *options, "--out", "run", "--resume", code=2)
    assert "point.npz" in words(refused.stderr)
    checked = run("check", *options)
    assert "data: none" in words(checked.stdout)
    assert "next: curvature spectrum --function f.py:named --parameters point.npz" in words(checked.stderr)
    assert "plan: Hessian: exact (dense), 2 x 2" in words(run("spectrum", *options, "--dry-run").stdout)


def test_a_factory_gets_the_seed_and_parameters_can_be_frozen():
    first, second = (
        json.loads(run("spectrum", "--function", "f.py:with_data", "--seed", seed, "--json").stdout)["spectra"][0]
        for seed in ("0", "1")
    )
    assert first["num_examples"] == 40
    assert first["trace"] != second["trace"]
    frozen = run("spectrum", "--function", "f.py:pair", "--freeze", "a", "--json")
    (record,) = json.loads(frozen.stdout)["spectra"]
    assert record["dim"] == 1
    assert record["trace"] == pytest.approx(200.0, rel=1e-12)  # of 100 (b - a^2)^2 in b


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("f.py:valley",), 2, "f.py:valley takes x, which needs a value. If it is a function of tensors, add their"),
        (("f.py:number",), 5, "must then return a cv.Problem, a pair (function, parameters)"),
        (("f.py:nothing",), 5, "f.py has no 'nothing'"),
        (("f.py",), 2, "names a file, but no function in it: write f.py:FUNCTION"),
        (("f.py:pair", "--arg", "step=1"), 2, "--arg step: f.py:pair has no argument 'step' (did you mean steep?)"),
        (("f.py:pair", "--arg", "seed=1"), 2, "the seed is not an --arg: use --seed"),
        (("f.py:pair", "--data", "counts.npz"), 2, "--data: without --parameters, --function names a factory"),
        (("f.py:pair", "--num-examples", "3"), 2, "--num-examples: without --parameters, --function names a factory"),
        (("f.py:pair", "--model", "builtin:mlp"), 2, "--model belongs to a model, and --function replaces it"),
        (("f.py:pair", "--weights", "w.pt"), 2, "--weights belongs to a model, and --function replaces it"),
        (("f.py:pair", "--stream"), 2, "--stream reads data in parts, and f.py:pair has no data"),
        (("f.py:problem", "--stream"), 2, "returns a finished cv.Problem, whose data cannot be streamed from here"),
        (("f.py:problem", "--weight-decay", "1"), 2, "to which --weight-decay cannot be added"),
        (("f.py:in_float32",), 2, "returns a problem in float32, and --dtype is float64"),
        (("f.py:named", "--parameters", "point.txt"), 2, "--parameters must be a .npz file of named arrays"),
        (("f.py:named", "--parameters", "none.npz"), 5, "the parameters file none.npz does not exist"),
        (("f.py:named", "--parameters", "f.npz"), 5, "the parameters f.npz cannot be read"),
        (("f.py:named", "--parameters", "words.npz"), 5, "a of words.npz must be real numbers"),
        (("f.py:named", "--parameters", "point.npz", "--loss", "mse"), 2, "--loss is about the data of --data"),
        (("f.py:summed", "--parameters", "beta.npz", "--data", "counts.npz", "--stream"), 5, "one number for each"),
        (("f.py:valley", "--parameters", "point.npz"), 5, "It gets a dictionary of tensors"),
    ],
)
def test_what_is_not_a_function_with_its_parameters_is_refused_in_words(here, options, code, message):
    (here / "f.npz").write_text("no archive")
    np.savez("words.npz", a=np.array(["x"]))
    result = run("spectrum", "--function", *options, code=code)
    assert message in words(result.stderr)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("spectrum", "--parameters", "point.npz"), "--parameters are those of a function: add --function NAME"),
        (("compare", "--function", "f.py:pair"), "compare trains networks with and without weight normalization"),
        (("track", ".", "--function", "f.py:pair"), "track follows a model over its checkpoints"),
    ],
)
def test_options_of_functions_elsewhere_are_refused_with_the_reason(command, message):
    assert message in words(run(*command, code=2).stderr)
