"""Inputs that silently break curvature tools: each question, and the answers of four tools."""

import importlib.util
from pathlib import Path

import pytest
import torch

from benchmarks import hazard_tools, peer_hazards
from benchmarks import hazards as hazard_questions

PEERS_PRESENT = all(
    importlib.util.find_spec(name) is not None for name in ("curvlinops", "pyhessian", "hessian_eigenthings")
)


@pytest.fixture(scope="module")
def hazards():
    return {(row["hazard"], row["tool"]): row for row in peer_hazards.measure(fast=True)}


def test_every_hazard_is_right_or_refused_here_but_for_the_kink(hazards):
    refused = {"weight_decay_in_the_loss", "dropout", "noise", "training_batch_norm", "nan_input"}
    refused |= {"ggn_of_log_probabilities"}
    for key in hazard_questions.HAZARDS:
        expected = "raises" if key in refused else "wrong" if key == "relu_kink" else "right"
        assert hazards[key, "curvature"]["outcome"] == expected, hazards[key, "curvature"]
    for key in refused:
        assert hazards[key, "curvature"]["words"].startswith(("InputError: ", "SelfCheckError: ", "NotDefinedError: "))


@pytest.mark.skipif(not PEERS_PRESENT, reason="needs the peers")
def test_peers_answer_as_the_table_says(hazards):
    wrong = {
        ("fused_weight_norm", "PyHessian"),
        ("fused_weight_norm", "hessian-eigenthings"),
        ("ragged_batches", "hessian-eigenthings"),
        ("class_weights", "curvlinops"),
        ("ignored_targets", "curvlinops"),
        ("lanczos_ghosts", "hessian-eigenthings"),
        ("multiplicity", "hessian-eigenthings"),
        ("single_precision", "curvlinops"),
        ("gap_at_the_floor", "curvlinops"),
        ("gap_at_the_floor", "PyHessian"),
        ("gap_at_the_floor", "hessian-eigenthings"),
        ("side_effects", "PyHessian"),
    }
    assert {pair for pair in wrong if hazards[pair]["outcome"] == "wrong"} == wrong
    assert hazards["ragged_batches", "curvlinops"]["outcome"] == "right"  # the question is fair
    assert hazards["fused_weight_norm", "curvlinops"]["outcome"] == "raises"
    assert all(hazards["tied_weights", tool]["outcome"] == "right" for tool in hazard_tools.TOOLS)


def test_truth_of_a_hazard_is_the_hessian_of_torch_func():
    network, (inputs, targets) = hazard_questions.network(), hazard_questions.data()
    names = [name for name, _ in network.named_parameters()]
    point = torch.nn.utils.parameters_to_vector(network.parameters()).detach()

    def loss(vector):
        parts = vector.split([p.numel() for p in network.parameters()])
        named = {n: part.view(p.shape) for n, part, p in zip(names, parts, network.parameters(), strict=True)}
        return torch.nn.functional.cross_entropy(torch.func.functional_call(network, named, (inputs,)), targets)

    expected = torch.linalg.eigvalsh(torch.func.hessian(loss)(point))
    spectrum = hazard_questions.exact(network, torch.nn.CrossEntropyLoss(), inputs, targets)
    assert torch.allclose(spectrum, expected, rtol=0, atol=1e-13)


def test_quadratic_of_given_spectrum_has_it():
    values = torch.tensor([5.0, 2.0, 1.0], dtype=torch.float64)
    network, criterion, batches = hazard_questions.quadratic(values)
    spectrum = hazard_questions.exact(network, criterion, *batches.dataset.tensors)
    assert torch.allclose(spectrum.flip(0), values, rtol=1e-12)


def test_peer_that_is_not_installed_is_shown_as_such(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyhessian" else object())
    row = peer_hazards.answered(hazard_questions.Question(lambda _tool: 0.0), "PyHessian")
    assert row == {"outcome": "missing", "error": None, "words": "not installed"}
    assert peer_hazards.cell(row) == "not installed"


def test_crash_of_a_tool_is_its_answer_and_fits_a_cell():

    def ask(_tool):
        raise ValueError("a | b\n<script> `x` " + "long " * 100)

    row = peer_hazards.answered(hazard_questions.Question(ask), "curvature")
    assert row["outcome"] == "raises"
    text = peer_hazards.cell(row)
    assert text.startswith("raises `ValueError`: a / b (script)")
    assert "|" not in text
    assert len(text) < 140


def test_page_of_hazards_has_a_row_for_every_question_of_the_script_and_its_outcome_here(hazards):
    path = Path(__file__).parents[2] / "docs" / "hazards.md"
    lines = [line for line in path.read_text().splitlines() if line.startswith("| ")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    questions = hazard_questions.HAZARDS.values()
    assert [(row[0], row[1]) for row in cells] == [(question.title, question.truth) for question in questions]
    beginnings = {"right": "right, ", "raises": "raises `", "wrong": "**wrong**: "}
    for row, key in zip(cells, hazard_questions.HAZARDS, strict=True):
        assert row[2].startswith(beginnings[hazards[key, "curvature"]["outcome"]])
