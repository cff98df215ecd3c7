"""The audit of second derivatives: its reference, its verdict on a route, what it covers, and what it finds."""

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

from analyses import second_derivative_audit
from curvature.studies.installation import derivatives as audit
from curvature.studies.installation.cases import EXAMPLES, Case
from curvature.studies.installation.modules import CASES, NOT_TRIED

PAGE = Path(__file__).parents[2] / "docs" / "second_derivatives.md"


@pytest.fixture(scope="module")
def rows():
    """Rows of the fast setting, by case."""
    return {row["case"]: row for row in second_derivative_audit.measure(fast=True)["rows"]}


def question(name, seed=0):
    return audit.Question.of(next(case for case in CASES if case.name == name), seed, "cpu")


def test_every_module_of_torch_is_tried_or_left_out_for_a_reason():
    modules = {name for name, kind in inspect.getmembers(nn, inspect.isclass) if issubclass(kind, nn.Module)}
    modules = {name for name in modules if not name.startswith("Lazy")}  # become the others at their first call
    tried = {case.name.split(",")[0] for case in CASES}
    assert modules - tried - set(NOT_TRIED) == set()
    assert not tried & set(NOT_TRIED)
    assert all(NOT_TRIED.values())


@pytest.mark.filterwarnings("ignore")  # deprecations of what is tried
def test_cases_have_different_names_and_a_loss_that_depends_on_all_weights():
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        gradient = audit.Question.of(case, 0, "cpu")
        assert torch.isfinite(gradient.gradient(gradient.weights)).all(), case.name


def test_reference_is_the_closed_form_where_there_is_one():
    """The mean of (w_0 u_i x_i + b)^2 over examples and outputs: second derivatives by hand."""
    point = question("Linear")
    model, _, inputs, targets = point.case.made(0)
    upstream, weight, bias = (parameter.detach() for parameter in model.parameters())
    signal = inputs * upstream
    residual = signal @ weight.T + bias - targets
    scale = 2 / residual.numel()
    jacobian = torch.cat(
        [
            torch.einsum("oi,ni->noi", weight, inputs).flatten(0, 1),
            torch.einsum("op,ni->nopi", torch.eye(2), signal).flatten(2).flatten(0, 1),
            torch.eye(2, dtype=torch.float64).repeat(EXAMPLES, 1),
        ],
        dim=1,
    )
    expected = scale * jacobian.T @ jacobian
    cross = scale * torch.einsum("no,ni->oi", residual, inputs)  # of w_oi and u_i
    for output in range(2):
        for column in range(3):
            row = 3 + 3 * output + column
            expected[row, column] += cross[output, column]
            expected[column, row] += cross[output, column]
    found, disagreement = audit.reference(point)
    assert audit.relative(found, expected) < 1e-11
    assert disagreement < 1e-11


@pytest.mark.parametrize("block", [(0, 0), (0, 4)])
def test_a_wrong_entry_is_called_wrong_with_its_size_and_its_block(block):
    point = question("Linear")
    expected, _ = audit.reference(point)

    def wrong(_):
        matrix = expected.clone()
        matrix[block] += 0.25 * expected.abs().max()
        return matrix

    answer = audit.outcome(wrong, point, expected)
    assert answer["outcome"] == audit.WRONG
    assert answer["error"] == pytest.approx(0.25)
    assert answer["block"] == f"{point.names[block[0]]} x {point.names[block[1]]}"
    line = second_derivative_audit.line({"case": "Linear", **dict.fromkeys(audit.ROUTES, answer)})
    assert line.count("**wrong**: 25%") == len(audit.ROUTES)
    assert line.endswith(f" **wrong**: 25% | {answer['block'].replace('layer.', '')} |")


def test_nan_is_wrong_and_an_exception_is_an_answer():
    point = question("Linear")
    expected, _ = audit.reference(point)
    assert audit.outcome(lambda _: expected * torch.nan, point, expected)["outcome"] == audit.WRONG

    def fails(_):
        raise RuntimeError("no derivative\nand more")

    answer = audit.outcome(fails, point, expected)
    assert (answer["outcome"], answer["message"]) == (audit.RAISES, "RuntimeError: no derivative")


def test_kink_in_reach_of_the_differences_is_noticed_and_drawn_again(monkeypatch):
    point = question("ReLU")
    point.weights[0] = 0.0
    assert audit.reference(point)[1] > audit.KINK
    usual = question("ReLU", seed=1)
    monkeypatch.setattr(audit.Question, "of", lambda _, seed, __: usual if seed else point)
    row = audit.audit(point.case)
    assert row["reference_error"] < audit.KINK
    monkeypatch.setattr(audit.Question, "of", lambda *_: point)
    with pytest.raises(RuntimeError, match="did not converge"):
        audit.audit(point.case)


def test_a_wrong_gradient_is_noticed():
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * ctx.saved_tensors[0]  # forgets the 2

    class Layer(nn.Module):
        def forward(self, x):
            return Halved.apply(x)

    assert audit.gradient_error(audit.Question.of(Case("halved", "activation", Layer, (2,)), 0, "cpu")) > 0.1
    assert audit.gradient_error(question("Tanh")) < 1e-10


@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="names what torch 2.13 answers")
def test_known_errors_of_torch_are_found(rows):
    for name in ("LayerNorm", "InstanceNorm1d, affine", "BatchNorm1d, training"):
        assert rows[name]["func.hessian"]["outcome"] == rows[name]["jacrev(jacrev)"]["outcome"] == audit.WRONG
        assert rows[name]["func.hessian"]["block"] == "layer.weight x upstream"
        assert rows[name]["jacrev(grad)"]["outcome"] == rows[name]["double backward"]["outcome"] == audit.RIGHT
    for form in ("weight_norm", "legacy weight_norm"):
        row = rows[f"{form} of Linear, dim=0"]
        assert row["double backward"]["outcome"] == row["jacrev(grad)"]["outcome"] == audit.WRONG
        assert row["forward over reverse"]["outcome"] == audit.RAISES
    assert rows["Hardsigmoid"]["double backward"]["outcome"] == audit.RAISES
    assert rows["HuberLoss"]["forward over reverse"]["outcome"] == audit.RAISES
    assert {answer["outcome"] for answer in rows["GRUCell"].values() if isinstance(answer, dict)} == {audit.RIGHT}


def test_this_package_is_right_or_refuses_in_its_own_words(rows):
    answers = {name: row["curvature"] for name, row in rows.items()}
    refused = {name for name, answer in answers.items() if answer["outcome"] == audit.REFUSED}
    assert {name for name, answer in answers.items() if answer["outcome"] == audit.RIGHT} == set(answers) - refused
    assert refused == {"BatchNorm1d, training", "CrossMapLRN2d"}


@pytest.mark.slow
def test_this_package_is_right_or_refuses_on_every_case():
    rows = second_derivative_audit.measure()["rows"]
    assert {row["curvature"]["outcome"] for row in rows} == {audit.RIGHT, audit.REFUSED}


@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="the page is about torch 2.13")
def test_page_shows_what_is_found(rows):
    text = PAGE.read_text()
    assert f"{len(CASES)} cases with torch {torch.__version__.split('+')[0]}" in text
    for row in second_derivative_audit.exceptional(list(rows.values())):
        assert second_derivative_audit.line(row) in text
