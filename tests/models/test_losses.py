"""Factors of the losses' Hessians in the outputs, against more digits and against differentiation."""

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import curvature as cv
from curvature.models.losses import CrossEntropy, Loss, registry, resolve_loss

EPS = torch.finfo(torch.float64).eps


def softmax_hessian(probabilities):
    """``diag(p) - p p^T`` of normalized probabilities in many digits; ``p (1 - p)`` from the other classes."""
    size = len(probabilities)
    exact = mpmath.matrix(size, size)
    for i in range(size):
        for j in range(size):
            others = mpmath.fsum(p for k, p in enumerate(probabilities) if k != i)
            exact[i, j] = probabilities[i] * others if i == j else -probabilities[i] * probabilities[j]
    return exact


def relative_errors(logits):
    """Of every entry of ``S S^T`` for one example."""
    (found,) = CrossEntropy().hessian_factor(torch.tensor([logits], dtype=torch.float64), torch.tensor([0]))
    product = found @ found.T
    with mpmath.workdps(700):
        powers = [mpmath.exp(mpmath.mpf(x)) for x in logits]
        total = mpmath.fsum(powers)
        exact = softmax_hessian([power / total for power in powers])
        size = range(len(logits))
        return [float(abs(mpmath.mpf(float(product[i, j])) / exact[i, j] - 1)) for i in size for j in size]


# exp(-345) = 1.5e-150: the product of two such probabilities is still a normal number.
@given(st.lists(st.floats(-345, 0), min_size=2, max_size=7))
def test_every_entry_of_a_saturated_softmax_hessian_keeps_its_digits(logits):
    assert max(relative_errors(logits)) < 20 * len(logits) * EPS * max(1, max(logits) - min(logits))


@pytest.mark.parametrize("least", [1e-3, 1e-20, 1e-100, 1e-300])
def test_the_curvature_of_an_unlikely_class_keeps_its_digits(least):
    with mpmath.workdps(700):
        depth = float(mpmath.log(least))
    diagonal = relative_errors([depth, 0.0, depth])[::4]
    assert max(diagonal) < 20 * EPS * abs(depth)


@pytest.mark.parametrize("depth", [1.0, 10.0, 30.0, 300.0])
def test_products_of_a_saturated_softmax_hessian_keep_their_digits(depth, generator):
    outputs = torch.tensor([[-depth, 0.0, -2 * depth]], dtype=torch.float64)
    rows = torch.randn(1, 4, 3, generator=generator, dtype=torch.float64)
    found = CrossEntropy().hessian_product(outputs, torch.tensor([0]))(rows)
    columns = CrossEntropy().hessian_factor(outputs, torch.tensor([0]))
    assert torch.allclose(found, rows @ columns @ columns.mT, rtol=1e-13, atol=0)


def test_two_classes_have_one_column_and_one_class_has_a_zero():
    outputs = torch.tensor([[0.0, 0.0], [3.0, 1.0]], dtype=torch.float64)
    factor = CrossEntropy().hessian_factor(outputs, torch.tensor([0, 1]))
    assert factor.shape == (2, 2, 1)
    assert torch.allclose(factor[0].abs(), torch.full((2, 1), 0.5, dtype=torch.float64))
    assert CrossEntropy().hessian_factor(outputs[:, :1], torch.tensor([0, 0])).tolist() == [[[0.0]], [[0.0]]]


LOSSES = {
    "plain": CrossEntropy(),
    "class-weights": CrossEntropy(torch.tensor([0.5, 2.0, 0.0, 1.0])),
    "smoothing": CrossEntropy(label_smoothing=0.3),
    "ignored": CrossEntropy(ignore_index=1),
    "all": CrossEntropy(torch.tensor([0.5, 2.0, 1.0, 1.0]), ignore_index=2, label_smoothing=0.1),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 2), (2, 4, 3, 2)], ids=str)
def test_the_cross_entropy_factor_has_full_rank_and_multiplies_out_to_the_second_derivative(loss, shape, generator):
    outputs = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    targets = torch.randint(4, (shape[0], *shape[2:]), generator=generator)
    factor = loss.hessian_factor(outputs, targets)
    positions = outputs[0, 0].numel()
    assert factor.shape == (shape[0], 4 * positions, 3 * positions)
    second = torch.autograd.functional.hessian(lambda f: loss.terms(f, targets).sum(), outputs)
    for n, columns in enumerate(factor):
        own = second[n].select(len(shape) - 1, n).reshape(len(columns), -1)
        assert torch.allclose(columns @ columns.T, own, rtol=0, atol=1e-15)


def test_class_probabilities_as_targets_have_the_same_factor(generator):
    outputs = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    mixed = torch.rand(5, 4, generator=generator, dtype=torch.float64).softmax(dim=1)
    hard = torch.randint(4, (5,), generator=generator)
    found = (CrossEntropy().hessian_factor(outputs, targets) for targets in (mixed, hard))
    assert torch.allclose(*found, rtol=0, atol=1e-15)


def test_losses_print_in_one_line_what_is_not_the_default():
    weight = torch.ones(3)
    assert [repr(resolve_loss(name)) for name in ("cross-entropy", "bce", "mse", "half-squared-error")] == [
        "CrossEntropy()",
        "BinaryCrossEntropy()",
        "MeanSquaredError()",
        "HalfSquaredError()",
    ]
    assert (
        repr(CrossEntropy(weight, 7, 0.1)) == "CrossEntropy(weight of 3 classes, ignore_index=7, label_smoothing=0.1)"
    )
    assert repr(resolve_loss(torch.dist)) == "PerExample(dist)"


class LogCosh(Loss):
    name = "log-cosh"
    likelihood = False

    def prepare(self, outputs, targets):
        return targets.to(outputs)

    def terms(self, outputs, targets):
        return (outputs - targets).cosh().log().sum(dim=1)

    def hessian_factor(self, outputs, targets):
        return torch.diag_embed(1 / (outputs - targets).cosh())


def test_a_new_loss_is_a_class_and_a_row_of_the_table(monkeypatch, mlp, regression_data):
    monkeypatch.setitem(registry.LOSSES, "log-cosh", LogCosh)
    module, data = mlp(3, 4, 2), regression_data(5, 3, 2)
    problem = cv.Problem.from_module(module, loss="log-cosh", data=data)
    function = cv.PerExample(lambda output, target: (output - target).cosh().log().sum())
    expected = cv.Problem.from_module(module, loss=function, data=data)
    assert repr(problem.loss) == "LogCosh()"
    for matrix in (cv.hessian, cv.ggn, cv.empirical_fisher):
        assert torch.allclose(matrix(problem).dense(), matrix(expected).dense(), rtol=1e-10, atol=1e-13)
    with pytest.raises(cv.NotDefinedError, match="not declared to be one"):
        cv.fisher(problem)


@pytest.mark.parametrize("loss", [torch.nn.CrossEntropyLoss, torch.nn.NLLLoss, cv.CrossEntropy])
def test_the_class_of_a_loss_is_refused_with_the_instance_to_pass(loss):
    with pytest.raises(cv.ConfigurationError, match=rf"is a class.*Pass an instance: loss=.*{loss.__name__}\(\)"):
        resolve_loss(loss)


@pytest.mark.parametrize(("stray", "mark"), [(-1, -1), (255, 255)])
def test_a_target_that_is_no_class_is_refused_with_the_option_that_ignores_it(stray, mark):
    with pytest.raises(cv.InputError, match=rf"targets must be classes 0 to 2.*ignore_index={mark}\)"):
        cv.CrossEntropy().prepare(torch.zeros(3, 3), torch.tensor([0, 1, stray]))


def test_a_pattern_of_a_shell_is_refused_with_the_regular_expression():
    problem = cv.zoo.digits_problem(num_examples=5, widths=(2,))
    for select in (problem.subset, lambda pattern: cv.blocks(cv.ggn(problem), pattern)):
        with pytest.raises(ValueError, match=r"'\*\.weight' is not a regular expression.*write '\.\*\.weight'"):
            select("*.weight")
    assert list(problem.subset(".*.weight").layout.slices) == ["0.weight", "2.weight"]
