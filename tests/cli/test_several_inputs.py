"""Several inputs and several outputs on the command line."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional
from typer.testing import CliRunner

from curvature import cli
from curvature.cli import loading
from curvature.errors import ConfigurationError, InputError
from curvature.models.losses import CrossEntropy, ModelLoss
from oracles import drawn, rows_of

NETWORK = """
import torch
from torch import nn
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.embed, self.last = nn.Linear(4, 3), nn.Embedding(3, 3), nn.Linear(3, 3)
    def forward(self, x, kind, labels=None):
        logits = self.last(torch.tanh(self.first(x) + self.embed(kind)))
        return {"loss": labels is not None and nn.functional.cross_entropy(logits, labels), "scores": logits}
def make(seed=0):
    torch.manual_seed(seed)
    return Two()
"""
X, KIND, LABELS = drawn(6, 4), torch.tensor([0, 1, 2, 1, 0, 2]), torch.tensor([0, 2, 1, 1, 0, 2])


@pytest.fixture
def here(empty_folder):
    (empty_folder / "net.py").write_text(NETWORK)
    np.savez("d.npz", x=X, kind=KIND, labels=LABELS)
    torch.save({"x": X, "kind": KIND, "labels": LABELS}, "d.pt")
    torch.save(({"x": X, "kind": KIND}, LABELS), "pair.pt")
    return empty_folder


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == code, result.output
    return result


def trace_of_the_hessian():
    scope = {}
    exec(NETWORK, scope)
    module = scope["make"]().double()
    loss = functional.cross_entropy(module(X, KIND)["scores"], LABELS)
    parameters = list(module.parameters())
    return float(rows_of(rows_of(loss[None], parameters)[0], parameters).detach().trace())


@pytest.mark.parametrize(
    "options",
    [
        ("--data", "d.npz", "--target", "labels", "--output", "scores"),
        ("--data", "d.pt", "--target", "labels", "--output", "scores"),
        ("--data", "pair.pt", "--output", "scores"),
        ("--data", "d.npz", "--loss", "model"),
        ("--data", "d.pt", "--loss", "model", "--output", "loss"),
    ],
)
@pytest.mark.usefixtures("here")
def test_arrays_by_name_are_inputs_by_name(options):
    result = run("spectrum", "--model", "net.py:make", "-m", "hessian", "--json", *options)
    (record,) = json.loads(result.stdout)["spectra"]
    assert record["trace"] == pytest.approx(trace_of_the_hessian(), rel=1e-12)
    assert "6 examples of x 4, kind 1" in result.stderr


@pytest.mark.parametrize(
    ("path", "loss", "options", "message"),
    [
        ("d.npz", CrossEntropy(), {}, "must contain inputs named x .*it contains x, kind, labels.*--target"),
        ("d.npz", CrossEntropy(), {"target": "z"}, "entry of d.npz 'z' is unknown; choose among x, kind, labels"),
        ("pair.pt", CrossEntropy(), {"target": "y"}, "--target y names an entry of a dictionary"),
        ("only.npz", CrossEntropy(), {"target": "y"}, "contains only 'y'"),
        ("ragged.npz", CrossEntropy(), {"target": "y"}, r"has 6 inputs\['a'\] but 5 inputs\['b'\]"),
        ("ragged.npz", ModelLoss(), {}, r"has 6 inputs\['a'\] but 5 inputs\['b'\]"),
    ],
)
@pytest.mark.usefixtures("here")
def test_files_whose_target_is_not_known_are_refused(path, loss, options, message):
    np.savez("only.npz", y=LABELS)
    np.savez("ragged.npz", a=X, b=KIND[:5], y=LABELS)
    with pytest.raises((ConfigurationError, InputError), match=message):
        loading.load_data(path, loss, **options)


@pytest.mark.usefixtures("here")
def test_a_file_with_one_target_and_other_names_needs_no_option():
    np.savez("named.npz", words=X, kind=KIND, labels=LABELS)
    inputs, targets = loading.load_data("named.npz", CrossEntropy(), num_examples=4)
    assert list(inputs) == ["words", "kind"]
    assert inputs["kind"].tolist() == KIND[:4].tolist()
    assert targets.tolist() == LABELS[:4].tolist()


@pytest.mark.usefixtures("here")
def test_training_by_the_loss_of_the_model_is_refused_in_a_sentence():
    result = run("compare", "--model", "net.py:make", "--data", "d.npz", "--loss", "model", code=2)
    assert "the study needs the outputs of the model" in " ".join(result.stderr.split())
