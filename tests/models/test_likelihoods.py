"""Losses of torch.nn by module, function and name: every matrix against plain differentiation of the module itself.

The Jacobian is one backward pass for each output, the Hessian of the loss a double backward pass on the outputs of all
data at once, and the Fisher an enumeration of all labels (for Gaussians a quadrature), with gradients of the module.
"""

import itertools
import math
import warnings
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import curvature as cv
from curvature.matrices.gauss_newton import fisher_is_ggn
from curvature.models import losses
from oracles import built, distance

NUM, CLASSES = 5, 3
TIGHT = 1e-12


class MeanAndVariance(nn.Module):
    """The second half of the outputs becomes positive."""

    def forward(self, outputs):
        means, spread = outputs.chunk(2, dim=1)
        return torch.cat([means, functional.softplus(spread) + 0.3], dim=1)


class Positions(nn.Module):
    """Outputs as ``(N, C, positions)``."""

    def forward(self, outputs):
        return outputs.unflatten(1, (CLASSES, -1))


def inputs_of(num=NUM):
    return torch.randn(num, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def drawn(kind, num=NUM, *shape):
    generator = torch.Generator().manual_seed(6)
    shape = shape or (CLASSES,)
    if kind == "classes":
        return torch.randint(CLASSES, (num, *shape[1:]), generator=generator)
    if kind == "labels":
        return torch.randint(2, (num, *shape), generator=generator).double()
    if kind == "counts":
        return torch.randint(4, (num, *shape), generator=generator).double()
    reals = torch.randn(num, *shape, generator=generator, dtype=torch.float64)
    return reals.softmax(dim=1) if kind == "probabilities" else reals


def model_of(head, num_outputs=CLASSES):
    return built(lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, num_outputs), *head))


# ---------------------------------------------------------------------------------- labels of one example, enumerated


def bernoulli(chance):
    for labels in itertools.product((0.0, 1.0), repeat=len(chance)):
        label = torch.tensor(labels, dtype=torch.float64)
        yield float((label * chance + (1 - label) * (1 - chance)).prod()), label


def categorical(probabilities):
    """Labels of every position; ``probabilities`` is ``(C, positions)``."""
    for labels in itertools.product(range(len(probabilities)), repeat=probabilities.shape[1]):
        label = torch.tensor(labels)
        yield float(probabilities.gather(0, label[None]).prod()), label


def normal(means, variances):
    """Gauss-Hermite quadrature: exact for the polynomials of degree 4 that occur."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    weights = weights / weights.sum()
    for picks in itertools.product(range(5), repeat=len(means)):
        noise = torch.tensor(nodes[list(picks)])
        yield float(weights[list(picks)].prod()), means + variances.sqrt() * noise


def poisson(rates):
    """Counts above 30 have a probability below 1e-20 for the rates here."""
    for counts in itertools.product(range(30), repeat=len(rates)):
        label = torch.tensor(counts, dtype=torch.float64)
        yield float((label * rates.log() - rates - (label + 1).lgamma()).exp().prod()), label


def laplace(means):
    for signs in itertools.product((-1.0, 1.0), repeat=len(means)):
        yield 2.0 ** -len(means), means + torch.tensor(signs, dtype=torch.float64)


@dataclass
class Case:
    """A loss module with everything that belongs to it; ``labels`` maps outputs of one example to its distribution."""

    module: object  # (reduction) -> nn.Module
    targets: torch.Tensor
    head: tuple = ()
    num_outputs: int = CLASSES
    labels: object = None
    unweighted: object = None  # the same module without weights, and its weights at the labels of the data, (N, M)
    weight: object = None
    zero: bool = False
    reductions: tuple = ("mean", "sum")
    tolerance: float = TIGHT


def one_hot_rows(targets, weights):
    return weights[targets][:, None].expand(-1, CLASSES)


WEIGHT = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
POSITIVE = torch.tensor([3.0, 0.5, 1.0], dtype=torch.float64)
LABELS, CLASS, IGNORED = drawn("labels"), drawn("classes"), drawn("classes")
IGNORED[1] = 7
PLACES = drawn("classes", NUM, CLASSES, 2)
CASES = {
    "bce with logits": Case(partial(nn.BCEWithLogitsLoss), LABELS, labels=lambda f: bernoulli(f.sigmoid())),
    "bce with logits, pos_weight": Case(
        partial(nn.BCEWithLogitsLoss, pos_weight=POSITIVE),
        LABELS,
        labels=lambda f: bernoulli(f.sigmoid()),
        unweighted=nn.BCEWithLogitsLoss,
        weight=1 + (POSITIVE - 1) * LABELS,
    ),
    "bce with logits, both weights": Case(
        partial(nn.BCEWithLogitsLoss, pos_weight=POSITIVE, weight=WEIGHT),
        LABELS,
        labels=lambda f: bernoulli(f.sigmoid()),
        unweighted=nn.BCEWithLogitsLoss,
        weight=WEIGHT * (1 + (POSITIVE - 1) * LABELS),
    ),
    "bce of soft labels": Case(partial(nn.BCEWithLogitsLoss, pos_weight=POSITIVE), drawn("probabilities")),
    # PyTorch adds 1e-12 to p (1 - p) in the derivatives of this loss.
    "bce": Case(nn.BCELoss, LABELS, (nn.Sigmoid(),), labels=bernoulli, tolerance=1e-10),
    "bce, weight": Case(
        partial(nn.BCELoss, weight=WEIGHT),
        LABELS,
        (nn.Sigmoid(),),
        labels=bernoulli,
        unweighted=nn.BCELoss,
        weight=WEIGHT.expand(NUM, -1),
        tolerance=1e-10,
    ),
    "nll": Case(nn.NLLLoss, CLASS, (nn.LogSoftmax(1),), labels=lambda f: categorical(f.exp()[:, None]), zero=True),
    "nll, weight": Case(
        partial(nn.NLLLoss, weight=WEIGHT),
        CLASS,
        (nn.LogSoftmax(1),),
        labels=lambda f: categorical(f.exp()[:, None]),
        unweighted=nn.NLLLoss,
        weight=one_hot_rows(CLASS, WEIGHT),
        zero=True,
    ),
    "nll, ignored": Case(
        partial(nn.NLLLoss, ignore_index=7),
        IGNORED,
        (nn.LogSoftmax(1),),
        labels=lambda f: categorical(f.exp()[:, None]),
        unweighted=nn.NLLLoss,
        weight=(IGNORED != 7).double()[:, None].expand(-1, CLASSES),
        zero=True,
    ),
    "nll of positions": Case(
        nn.NLLLoss,
        PLACES,
        (Positions(), nn.LogSoftmax(1)),
        2 * CLASSES,
        labels=lambda f: categorical(f.exp()),
        zero=True,
    ),
    "cross-entropy, smoothed and weighted": Case(
        partial(nn.CrossEntropyLoss, weight=WEIGHT, label_smoothing=0.2, ignore_index=7), IGNORED
    ),
    "kl": Case(
        nn.KLDivLoss,
        drawn("probabilities"),
        (nn.LogSoftmax(1),),
        zero=True,
        reductions=("mean", "sum", "batchmean"),
    ),
    "kl, log_target": Case(
        partial(nn.KLDivLoss, log_target=True),
        drawn("probabilities").log(),
        (nn.LogSoftmax(1),),
        zero=True,
        reductions=("mean", "sum", "batchmean"),
    ),
    "gaussian": Case(
        nn.GaussianNLLLoss,
        drawn("reals", NUM, 2),
        (MeanAndVariance(),),
        4,
        labels=lambda f: normal(f[:2], f[2:]),
    ),
    "gaussian, full": Case(partial(nn.GaussianNLLLoss, full=True), drawn("reals", NUM, 2), (MeanAndVariance(),), 4),
    "poisson": Case(nn.PoissonNLLLoss, drawn("counts", NUM, 2), (), 2, labels=lambda f: poisson(f.exp())),
    "poisson, full": Case(partial(nn.PoissonNLLLoss, full=True), drawn("counts", NUM, 2), (), 2),
    "poisson of rates": Case(
        partial(nn.PoissonNLLLoss, log_input=False, eps=0.1),
        drawn("counts", NUM, 2) + 1,
        (nn.Softplus(),),
        2,
        labels=poisson,
    ),
    "huber": Case(partial(nn.HuberLoss, delta=5.0), drawn("reals")),
    "smooth-l1": Case(partial(nn.SmoothL1Loss, beta=7.0), drawn("reals")),
    "l1": Case(nn.L1Loss, drawn("reals"), labels=laplace),
    "mse": Case(nn.MSELoss, drawn("reals", NUM, 2), (), 2, labels=lambda f: normal(f, torch.full_like(f, 0.5))),
}
PAIRS = [(name, reduction) for name, case in CASES.items() for reduction in case.reductions]


def value_of(module, outputs, targets):
    """The module as a user calls it: a Gaussian takes means and variances apart."""
    if isinstance(module, nn.GaussianNLLLoss):
        means, variances = outputs.chunk(2, dim=1)
        return module(means, targets, variances)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mean of KLDivLoss divides by the classes too
        return module(outputs, targets)


def second_derivative(value, variables):
    (slope,) = torch.autograd.grad(value, variables, create_graph=True)
    rows = [
        torch.autograd.grad(entry, variables, retain_graph=True, allow_unused=True, materialize_grads=True)[0].reshape(
            -1
        )
        if entry.requires_grad
        else torch.zeros(variables.numel(), dtype=torch.float64)
        for entry in slope.reshape(-1)
    ]
    return torch.stack(rows)


class Reference:
    """Every matrix of one module by loops."""

    def __init__(self, case, reduction):
        self.case, self.reduction = case, reduction
        self.model, self.inputs, self.targets = model_of(case.head, case.num_outputs), inputs_of(), case.targets
        self.module = case.module(reduction=reduction)
        self.shape = {name: p.shape for name, p in self.model.named_parameters()}
        self.point = torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])

    def outputs(self, vector):
        parts = vector.split([math.prod(shape) for shape in self.shape.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(self.shape.items(), parts, strict=True)}
        return torch.func.functional_call(self.model, named, (self.inputs,))

    def jacobian(self):
        jacobian = torch.autograd.functional.jacobian(self.outputs, self.point)
        return jacobian.reshape(NUM, -1, len(self.point))

    def hessian(self):
        point = self.point.clone().requires_grad_()
        return second_derivative(value_of(self.module, self.outputs(point), self.targets), point)

    def ggn(self):
        outputs = self.outputs(self.point).detach().requires_grad_()
        middle = second_derivative(value_of(self.module, outputs, self.targets), outputs)
        jacobian = self.jacobian().reshape(outputs.numel(), -1)
        return jacobian.T @ middle @ jacobian

    def total(self):
        """What the mean divides by: PyTorch's sum over its mean."""
        outputs = self.outputs(self.point)
        mean = value_of(self.case.module(reduction="mean"), outputs, self.targets)
        return float((value_of(self.case.module(reduction="sum"), outputs, self.targets) / mean).detach())

    def fisher(self):
        jacobian, outputs = self.jacobian(), self.outputs(self.point).detach()
        plain = (self.case.unweighted or self.case.module)(reduction="sum")
        total = torch.zeros(len(self.point), len(self.point), dtype=torch.float64)
        for n, output in enumerate(outputs):
            root = 1.0 if self.case.weight is None else self.case.weight[n].reshape(-1).sqrt()
            chances, labels = zip(*self.case.labels(output), strict=True)
            labels, chances = torch.stack(labels), torch.tensor(chances, dtype=torch.float64)
            variable = output.expand(len(labels), *output.shape).clone().requires_grad_()
            labels = labels[:, 0] if isinstance(plain, nn.NLLLoss) and output.ndim == 1 else labels
            (scores,) = torch.autograd.grad(value_of(plain, variable, labels), variable)
            rows = (root * scores.reshape(len(labels), -1)) @ jacobian[n]
            total += rows.T @ (chances[:, None] * rows)
        return total / (1.0 if self.reduction == "sum" else self.total())

    def gradients(self):
        """Gradients of single examples in the scale of the loss, with their weights in the mean."""
        outputs, jacobian = self.outputs(self.point).detach(), self.jacobian()
        mean = self.case.module(reduction="mean" if self.reduction == "sum" else self.reduction)
        weights, rows = [], []
        for n in range(NUM):
            variable = outputs[n : n + 1].clone().requires_grad_()
            alone = value_of(mean, variable, self.targets[n : n + 1])
            whole = value_of(self.case.module(reduction="sum"), variable, self.targets[n : n + 1])
            share = float(whole.detach() / alone.detach()) if torch.isfinite(alone) else 0.0
            weights.append(share)
            slope = torch.autograd.grad(alone, variable)[0] if share else torch.zeros_like(variable)
            rows.append(jacobian[n].T @ slope.reshape(-1))
        weights = torch.tensor(weights, dtype=torch.float64)
        scale = float(weights.sum()) if self.reduction == "sum" else 1.0
        return torch.stack(rows) * scale, weights / weights.sum()

    def problem(self, **options):
        return cv.Problem.from_module(
            self.model, loss=self.module, data=(self.inputs, self.targets), chunk_size=2, **options
        )


@pytest.mark.parametrize(("name", "reduction"), PAIRS)
def test_value_hessian_and_ggn_of_a_loss_module_are_those_of_pytorch(name, reduction):
    reference = Reference(CASES[name], reduction)
    problem = reference.problem()
    expected = float(value_of(reference.module, reference.outputs(reference.point), reference.targets).detach())
    assert problem.value() == pytest.approx(expected, rel=1e-13)
    for method in ("auto", "generic"):
        assert distance(cv.hessian(problem, method=method).dense(), reference.hessian()) < CASES[name].tolerance
    expected = reference.ggn()
    if name == "l1":
        assert not expected.any()
        with pytest.warns(UserWarning, match="GGN is exactly zero, since the loss 'absolute-error' is linear"):
            assert not cv.ggn(problem).dense().any()
        return
    if CASES[name].zero:
        assert not expected.any()
        with pytest.raises(
            cv.NotDefinedError, match=r"the GGN is exactly zero, since the loss .* is linear in the out"
        ):
            cv.ggn(problem)
        return
    matrix = cv.ggn(problem)
    tolerance = CASES[name].tolerance
    assert distance(matrix.dense(), expected) < tolerance
    assert distance(cv.ggn(problem, method="generic").dense(), expected) < tolerance
    assert distance(matrix @ torch.eye(problem.dim, dtype=torch.float64), expected) < tolerance


@pytest.mark.parametrize(("name", "reduction"), [pair for pair in PAIRS if CASES[pair[0]].labels is not None])
def test_the_fisher_of_a_likelihood_is_the_mean_over_all_of_its_labels(name, reduction):
    reference = Reference(CASES[name], reduction)
    expected = reference.fisher()
    for method in ("auto", "generic"):
        assert distance(cv.fisher(reference.problem(), method=method).dense(), expected) < 1e-10


@pytest.mark.parametrize(("name", "reduction"), [pair for pair in PAIRS if CASES[pair[0]].labels is not None])
def test_the_fisher_is_known_to_be_the_ggn_exactly_where_the_two_matrices_agree(name, reduction):
    reference = Reference(CASES[name], reduction)
    assert fisher_is_ggn(reference.problem()) == (distance(reference.fisher(), reference.ggn()) < 1e-10)


def test_one_large_example_does_not_hide_that_the_fisher_is_not_the_ggn():
    """A Poisson rate of 1e-18 has a Fisher information of 1e18; at the other rates the labels are not the means."""
    inputs = torch.tensor([[1e-18, 0.0], [0.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    rates = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    torch.nn.init.ones_(rates.weight)
    loss = torch.nn.PoissonNLLLoss(log_input=False, eps=1e-300)
    targets = torch.tensor([[1e-18], [5.0], [1.0]], dtype=torch.float64)
    problem = cv.Problem.from_module(rates, loss=loss, data=(inputs, targets))
    assert float(cv.ggn(problem).dense()[1, 1]) > 1.5 * float(cv.fisher(problem).dense()[1, 1])
    assert not fisher_is_ggn(problem)


@pytest.mark.parametrize(("name", "reduction"), PAIRS)
def test_second_moments_of_gradients_are_those_of_single_examples_in_the_scale_of_the_loss(name, reduction):
    reference = Reference(CASES[name], reduction)
    rows, weights = reference.gradients()
    mean, problem = weights @ rows, reference.problem()
    assert distance(problem.gradient(), mean) < TIGHT
    second = rows.T @ (weights[:, None] * rows)
    assert distance(cv.empirical_fisher(problem).dense(), second) < TIGHT
    centred = (rows - mean).T @ (weights[:, None] * (rows - mean))
    assert distance(cv.gradient_covariance(problem).dense(), centred) < 1e-11


@pytest.mark.parametrize("name", ["nll", "nll, weight", "nll, ignored", "nll of positions"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_way_out_of_a_zero_ggn_is_the_ggn_of_the_logits(name, reduction):
    """As the message says: the same model under cross-entropy, or the Fisher; against the softmax written out."""
    reference = Reference(CASES[name], reduction)
    module = reference.module
    options = {"weight": module.weight, "ignore_index": module.ignore_index, "reduction": reduction}
    problem = reference.problem()
    same = cv.Problem.from_module(
        reference.model, loss=nn.CrossEntropyLoss(**options), data=(reference.inputs, reference.targets)
    )
    cross_entropy = partial(nn.CrossEntropyLoss, weight=module.weight, ignore_index=module.ignore_index)
    case = CASES[name]
    expected = Reference(Case(cross_entropy, case.targets, case.head[:-1], case.num_outputs), reduction).ggn()
    assert distance(cv.hessian(same).dense(), cv.hessian(problem).dense()) < TIGHT
    assert distance(cv.ggn(same).dense(), expected) < TIGHT
    assert distance(cv.fisher(problem).dense(), expected) < TIGHT
    spectrum = cv.spectrum(cv.fisher(problem))
    assert spectrum.rank == cv.spectrum(cv.ggn(same)).rank


@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean"])
@pytest.mark.parametrize("log_target", [False, True])
def test_the_fisher_of_kullback_leibler_is_the_ggn_of_its_logits_in_the_same_scale(reduction, log_target):
    reference = Reference(CASES["kl, log_target" if log_target else "kl"], reduction)
    bare = nn.Sequential(*list(reference.model)[:-1])
    names = dict(bare.named_parameters())

    def logits(vector):
        parts = vector.split([p.numel() for p in names.values()])
        named = {name: part.view(names[name].shape) for name, part in zip(names, parts, strict=True)}
        return torch.func.functional_call(bare, named, (reference.inputs,))

    outputs = logits(reference.point).detach().requires_grad_()
    middle = second_derivative(value_of(reference.module, outputs.log_softmax(dim=1), reference.targets), outputs)
    jacobian = torch.autograd.functional.jacobian(logits, reference.point).reshape(outputs.numel(), -1)
    problem = reference.problem()
    assert distance(cv.fisher(problem).dense(), jacobian.T @ middle @ jacobian) < TIGHT
    with pytest.raises(cv.NotDefinedError, match=r"cv\.fisher\(problem\), which is the GGN of .* the logits"):
        cv.ggn(problem)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.labels is not None or name == "kl"])
def test_drawn_labels_have_the_second_moment_of_the_fisher(name):
    """Every entry of the mean over 20000 draws is within six standard errors."""
    reference = Reference(CASES[name], "mean")
    problem = reference.problem()
    outputs = problem.outputs()
    exact = problem.loss.fisher_factor(outputs, problem.targets)
    count = 20000
    columns = problem.loss.sampled_factor(outputs, problem.targets, count, torch.Generator().manual_seed(1))
    products = count * columns[:, :, None] * columns[:, None]
    error = products.mean(dim=3) - exact @ exact.mT
    assert bool((error.abs() <= 6 * products.std(dim=3) / count**0.5 + 1e-12).all())


# -------------------------------------------------------------------------------------------- names, functions, options


@pytest.mark.parametrize(
    ("given", "module"),
    [
        ("nll", nn.NLLLoss()),
        ("huber", nn.HuberLoss()),
        ("smooth-l1", nn.SmoothL1Loss()),
        ("l1", nn.L1Loss()),
        ("poisson-nll", nn.PoissonNLLLoss()),
        ("gaussian-nll", nn.GaussianNLLLoss()),
        ("bce-of-probabilities", nn.BCELoss()),
        ("kl-div", nn.KLDivLoss(reduction="batchmean")),
        ("mse-sum", nn.MSELoss(reduction="sum")),
        ("cross-entropy-sum", cv.CrossEntropy(reduction="sum")),
        ("huber-sum", nn.HuberLoss(reduction="sum")),
        (functional.nll_loss, nn.NLLLoss()),
        (functional.kl_div, nn.KLDivLoss()),
        (functional.huber_loss, nn.HuberLoss()),
        (functional.binary_cross_entropy, nn.BCELoss()),
    ],
    ids=lambda thing: thing if isinstance(thing, str) else getattr(thing, "__name__", type(thing).__name__),
)
def test_names_functions_and_modules_of_one_loss_are_the_same(given, module):
    assert repr(losses.resolve_loss(given)) == repr(losses.resolve_loss(module))


def test_losses_print_the_options_that_are_not_defaults():
    assert repr(losses.resolve_loss(nn.HuberLoss(delta=2.0, reduction="sum"))) == "Huber(delta=2.0, reduction='sum')"
    assert repr(losses.resolve_loss(nn.BCELoss(WEIGHT))) == "BinaryCrossEntropyOfProbabilities(weight of 3 numbers)"
    assert repr(losses.resolve_loss("cross-entropy-sum")) == "CrossEntropy(reduction='sum')"


def test_a_log_variance_is_the_variance_in_another_coordinate(generator):
    outputs = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    targets = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    loss = losses.GaussianLikelihood(log_variance=True)
    second = torch.stack(
        [
            torch.autograd.functional.hessian(lambda f, y=y: loss.terms(f[None], y[None])[0], f)
            for f, y in zip(outputs, targets, strict=True)
        ]
    )
    assert torch.allclose(loss.hessian(outputs, targets), second, rtol=0, atol=1e-13)
    means, logs = outputs.chunk(2, dim=1)
    expected = functional.gaussian_nll_loss(means, targets, logs.exp(), reduction="sum")
    assert float(loss.terms(outputs, targets).sum()) == pytest.approx(float(expected), rel=1e-14)
    columns = loss.sampled_factor(outputs, targets, 20000, torch.Generator().manual_seed(1))
    factor = loss.fisher_factor(outputs, targets)
    assert torch.allclose(columns @ columns.mT, factor @ factor.mT, rtol=0.15, atol=0.3)


REFUSED = {
    "a weight for each example": (nn.BCELoss(torch.rand(NUM, 1)), LABELS, (nn.Sigmoid(),), "weights of single example"),
    "counts below zero": (nn.PoissonNLLLoss(), -drawn("counts") - 1, (), r"needs counts >= 0 .* got -"),
    "rates below zero": (nn.PoissonNLLLoss(log_input=False), drawn("counts"), (), "rates >= 0.*log_input=True if"),
    "probabilities of one": (nn.BCELoss(), LABELS, (nn.Hardtanh(0.0, 1e-300),), "strictly between 0 and 1"),
    "labels above one": (nn.BCELoss(), 2 * LABELS + 1, (nn.Sigmoid(),), r"targets in \[0, 1\]"),
    "a small variance": (nn.GaussianNLLLoss(eps=10.0), drawn("reals", NUM, 1)[:, :1], (), "below eps = 10"),
    "no room for variances": (nn.GaussianNLLLoss(), drawn("reals"), (), r"shape \(N, 2 C\)"),
    "probabilities for classes": (nn.NLLLoss(), drawn("probabilities"), (nn.LogSoftmax(1),), "torch.nn.KLDivLoss"),
    "classes for probabilities": (nn.KLDivLoss(), CLASS, (nn.LogSoftmax(1),), "For classes use torch.nn.NLLLoss"),
    "log-probabilities as targets": (nn.KLDivLoss(), -drawn("labels") - 1, (nn.LogSoftmax(1),), "use log_target=True"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_outputs_and_targets_that_do_not_fit_a_likelihood_are_refused(kind):
    module, targets, head, message = REFUSED[kind]
    num_outputs = 2 if kind == "a small variance" else CLASSES
    with pytest.raises(cv.InputError, match=message):
        cv.Problem.from_module(model_of(head, num_outputs), loss=module, data=(inputs_of(), targets))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.HuberLoss(), "the loss 'huber' is not declared to be one"),
        (nn.SmoothL1Loss(), "the loss 'smooth-l1' is not declared to be one"),
        (nn.NLLLoss(), "outputs of negative-log-likelihood are not log-probabilities"),
        (nn.KLDivLoss(), "outputs of kullback-leibler are not log-probabilities"),
    ],
)
def test_a_fisher_without_a_likelihood_is_refused(module, message):
    targets = CLASS if isinstance(module, nn.NLLLoss) else drawn("probabilities")
    problem = cv.Problem.from_module(model_of(()), loss=module, data=(inputs_of(), targets))
    assert float(cv.gradient_covariance(problem).dense().trace()) > 0
    if problem.loss.name in ("negative-log-likelihood", "kullback-leibler"):
        with pytest.raises(
            cv.NotDefinedError, match=r"exactly zero.*outputs are not log-probabilities.*For logits use"
        ):
            cv.ggn(problem)
    for build in (
        cv.fisher,
        partial(cv.monte_carlo_fisher, num_samples=2),
        partial(cv.empirical_fisher, scale="fisher"),
    ):
        with pytest.raises(cv.NotDefinedError, match=message):
            build(problem)


# ------------------------------------------------------------------------------------------ piecewise linear losses


@pytest.mark.parametrize(
    "module", [nn.HuberLoss(delta=0.7), nn.SmoothL1Loss(beta=0.7), nn.HuberLoss(delta=0.7, reduction="sum")]
)
def test_a_ggn_that_lacks_outputs_says_how_many(module):
    reference = Reference(Case(lambda **_: module, drawn("reals")), module.reduction)
    problem = reference.problem()
    outside = int(((problem.outputs() - problem.targets).abs() >= 0.7).sum())
    assert 0 < outside < problem.targets.numel()
    with pytest.warns(UserWarning, match=f"is linear in {outside} of the 15 outputs of all examples"):
        matrix = cv.ggn(problem)
    assert distance(matrix.dense(), reference.ggn()) < TIGHT
    assert distance(cv.hessian(problem).dense(), reference.hessian()) < TIGHT
    assert cv.spectrum(matrix).rank <= problem.targets.numel() - outside


@pytest.mark.parametrize(
    "loss",
    [
        nn.HuberLoss(delta=1e-9),
        nn.SmoothL1Loss(beta=0.0),
        nn.PoissonNLLLoss(log_input=False),
        lambda f, y: (f - y).abs().mean(),
        lambda f, y: (f * y).sum(),
    ],
)
def test_a_ggn_that_lacks_every_output_is_zero_and_says_so(loss):
    counts = isinstance(loss, nn.PoissonNLLLoss)
    targets = torch.zeros(NUM, CLASSES, dtype=torch.float64) if counts else drawn("reals")
    problem = cv.Problem.from_module(
        model_of((nn.Softplus(),) if counts else ()), loss=loss, data=(inputs_of(), targets)
    )
    assert cv.hessian(problem).dense().any()
    with pytest.warns(
        UserWarning, match=r"the GGN is exactly zero.*cv\.hessian contains the curvature that is left out"
    ):
        assert not cv.ggn(problem).dense().any()


@pytest.mark.parametrize(
    "loss",
    [
        lambda f, y: functional.nll_loss(f, y),
        lambda f, y: -f.gather(0, y[None])[0],
        lambda f, y: functional.nll_loss(f[None], y[None], reduction="sum"),
    ],
)
def test_a_function_that_is_linear_in_log_probabilities_has_no_ggn_and_a_way_out(loss):
    model, data = model_of((nn.LogSoftmax(1),)), (inputs_of(), CLASS)
    problem = cv.Problem.from_module(model, loss=loss, data=data)
    with pytest.raises(cv.NotDefinedError, match=r'GGN is exactly zero.*use loss="cross-entropy" with classes or prob'):
        cv.ggn(problem)
    advised = cv.Problem.from_module(model, loss="cross-entropy", data=data)
    assert distance(cv.hessian(advised).dense(), cv.hessian(problem).dense()) < TIGHT


def test_the_rank_of_a_second_moment_counts_outputs_in_which_the_loss_is_linear():
    """A unit that only reaches outputs without curvature is not null for the gradients."""
    reference = Reference(Case(lambda **_: nn.HuberLoss(delta=0.05), drawn("reals")), "mean")
    matrix = cv.empirical_fisher(reference.problem())
    assert cv.spectrum(matrix).rank == int(torch.linalg.matrix_rank(matrix.dense(), hermitian=True)) == NUM


# ------------------------------------------------------------------------------------------- advice that would rescale


def test_a_batch_loss_of_single_examples_is_refused_with_the_factor_that_it_would_be_off_by():
    model, targets = model_of((nn.LogSoftmax(1),)), drawn("probabilities")

    def batchmean(outputs, targets):
        """The function as it is usually written, here in operations that vmap has."""
        return -(targets * outputs).sum() / len(outputs)

    message = (
        r"KLDivLoss.*PerExample\(function\) accepts it as it is.*mean of its values for single examples, 0.333 times"
    )
    with pytest.raises(cv.InputError, match=message):
        cv.Problem.from_module(model, loss=batchmean, data=(inputs_of(), targets))
    module = nn.KLDivLoss(reduction="batchmean")  # what the message advises
    problem = cv.Problem.from_module(model, loss=module, data=(inputs_of(), targets))
    expected = functional.kl_div(model(inputs_of()).detach(), targets, reduction="batchmean")
    assert problem.value() == pytest.approx(float(expected), rel=1e-14)


# ---------------------------------------------------------------------------------------- what a sum is recorded as


def test_a_sum_is_the_mean_times_its_denominator_and_says_so(tmp_path):
    model, data = model_of(()), (inputs_of(), LABELS)
    mean, total = (
        cv.Problem.from_module(model, loss=nn.BCEWithLogitsLoss(reduction=reduction), data=data)
        for reduction in ("mean", "sum")
    )
    count = NUM * CLASSES
    for build in (cv.hessian, cv.ggn, cv.fisher, partial(cv.empirical_fisher, scale="fisher")):
        assert distance(build(total).dense(), count * build(mean).dense()) < TIGHT
    for build in (cv.empirical_fisher, cv.gradient_covariance):
        assert distance(build(total).dense(), count**2 * build(mean).dense()) < TIGHT
    assert total.notes == (
        "The loss binary-cross-entropy is a sum, not a mean: Hessian, GGN and Fisher are 15 times those of the mean "
        "loss, empirical Fisher and gradient covariance 15^2 times.",
    )
    assert "sum over examples" in repr(total)
    assert mean.notes == ()
    spectra = {name: cv.spectrum(cv.ggn(problem)) for name, problem in (("mean", mean), ("sum", total))}
    assert spectra["sum"].where.reduction == "sum"
    assert "ggn, standard, sum over examples" in repr(spectra["sum"])
    assert "sum over examples" in repr(
        cv.ggn(total).trace_estimate() if hasattr(cv.ggn(total), "x") else spectra["sum"]
    )
    for spectrum in spectra.values():
        loaded = cv.Spectrum.load(spectrum.save(tmp_path / "spectrum.npz"))
        assert loaded.where == spectrum.where
    assert "reduction" not in str(np.load(spectra["mean"].save(tmp_path / "mean.npz"))["about"])
    with pytest.raises(cv.ConfigurationError, match="different scale, the mean over examples and the sum"):
        cv.ggn(mean) + cv.ggn(total)


def tripled(output, target):
    return 3 * functional.cross_entropy(output, target)


def with_forward(module):
    module.forward = tripled
    return module


def with_hook(module):
    module.register_forward_hook(lambda _module, _inputs, value: 3 * value)
    return module


def with_backward_hook(module):
    module.register_full_backward_pre_hook(lambda _module, gradients: (3 * gradients[0],))
    return module


@pytest.mark.parametrize(
    ("change", "words"),
    [(with_forward, "forward replaced on the instance"), (with_hook, "a hook"), (with_backward_hook, "a hook")],
)
def test_a_loss_module_that_may_compute_another_function_than_its_type_is_refused(change, words):
    model, data = nn.Linear(3, 2).double(), (torch.eye(3, dtype=torch.float64), torch.tensor([0, 1, 1]))
    with pytest.raises(cv.ConfigurationError, match=f"CrossEntropyLoss has {words}, so it may .* Pass a callable"):
        cv.Problem.from_module(model, loss=change(nn.CrossEntropyLoss()), data=data)
    plain, advised = (cv.Problem.from_module(model, loss=loss, data=data) for loss in ("cross-entropy", tripled))
    torch.testing.assert_close(cv.ggn(advised).dense(), 3 * cv.ggn(plain).dense(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("num_samples", [2.5, "3", None])
def test_a_number_of_draws_that_is_no_integer_is_refused(num_samples):
    data = (torch.eye(3, dtype=torch.float64), torch.tensor([0, 1, 1]))
    problem = cv.Problem.from_module(nn.Linear(3, 2).double(), loss="cross-entropy", data=data)
    with pytest.raises(cv.ConfigurationError, match="num_samples must be an integer of at least 1, got"):
        cv.monte_carlo_fisher(problem, num_samples)
