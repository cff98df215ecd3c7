"""The scale of the empirical Fisher against the Fisher: with labels drawn from the model, in closed form and by "
"draws."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import curvature as cv
from curvature.charts import Standard
from curvature.matrices import MATRICES
from curvature.matrices.gradient_moments import scale_of_loss
from curvature.natural_gradient import Controls
from curvature.report.directory import study_document
from curvature.studies import SpectrumSettings, run_spectrum
from oracles import built, distance, drawn

SCALED = partial(cv.empirical_fisher, scale="fisher")


def network(num_outputs, *head):
    return built(lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, num_outputs), *head))


def bernoulli(outputs):
    """Every joint label of all examples with its probability."""
    chance = outputs.sigmoid()
    for labels in itertools.product((0.0, 1.0), repeat=outputs.numel()):
        label = torch.tensor(labels, dtype=torch.float64).view_as(outputs)
        yield float((label * chance + (1 - label) * (1 - chance)).prod()), label


def categorical(outputs):
    probabilities = outputs.softmax(dim=1)
    places = outputs[:, 0].shape
    for labels in itertools.product(range(outputs.shape[1]), repeat=math.prod(places)):
        label = torch.tensor(labels).view(places)
        yield float(probabilities.gather(1, label[:, None]).prod()), label


def gaussian(outputs, variance):
    """Labels at one standard deviation on either side have the second moments of a Gaussian."""
    for signs in itertools.product((-1.0, 1.0), repeat=outputs.numel()):
        yield (
            2.0 ** -outputs.numel(),
            outputs + variance**0.5 * torch.tensor(signs, dtype=torch.float64).view_as(outputs),
        )


TOKENS = nn.Unflatten(1, (2, 3))
# loss, model, distribution of the labels, number of examples, Fisher over the mean of the empirical Fisher
CASES = {
    "bce, 1 output": (nn.BCEWithLogitsLoss(), (1,), bernoulli, 2, 1),
    "bce, 2 outputs": (nn.BCEWithLogitsLoss(), (2,), bernoulli, 2, 2),
    "bce, 5 outputs": (nn.BCEWithLogitsLoss(), (5,), bernoulli, 1, 5),
    "bce, sum": (nn.BCEWithLogitsLoss(reduction="sum"), (2,), bernoulli, 2, 0.5),
    "mse, 3 outputs": (nn.MSELoss(), (3,), partial(gaussian, variance=0.5), 1, 3),
    "mse, sum": (nn.MSELoss(reduction="sum"), (2,), partial(gaussian, variance=0.5), 2, 0.5),
    "half squared error": (cv.HalfSquaredError(), (3,), partial(gaussian, variance=1.0), 1, 1),
    "cross-entropy": (nn.CrossEntropyLoss(), (3,), categorical, 2, 1),
    "cross-entropy, 3 tokens": (nn.CrossEntropyLoss(), (6, TOKENS), categorical, 1, 3),
    "cross-entropy, sum of 3 tokens": (nn.CrossEntropyLoss(reduction="sum"), (6, TOKENS), categorical, 1, 1),
    "cross-entropy, sequences": (cv.CrossEntropy(unit="sequence"), (6, TOKENS), categorical, 1, 1),
    "nll": (nn.NLLLoss(), (3, nn.LogSoftmax(1)), categorical, 2, 1),
    "bce of probabilities": (nn.BCELoss(), (2, nn.Sigmoid()), lambda f: bernoulli(f.logit()), 2, 2),
}


@pytest.mark.parametrize("name", CASES)
def test_the_mean_over_labels_of_the_model_is_the_fisher_up_to_the_number_of_terms(name):
    loss, model, labels, num, factor = CASES[name]
    module, inputs = network(*model), drawn(num, 2)
    with torch.no_grad():
        outputs = module(inputs)
    means = dict.fromkeys((cv.empirical_fisher, SCALED), 0.0)
    total = 0.0
    for chance, label in labels(outputs):
        problem = cv.Problem.from_module(module, loss=loss, data=(inputs, label))
        for build in means:
            means[build] = means[build] + chance * build(problem, method="generic").dense()
        total += chance
    assert total == pytest.approx(1.0, rel=1e-12)
    expected = cv.fisher(problem).dense()
    assert distance(means[SCALED], expected) < 1e-11
    assert distance(means[cv.empirical_fisher], expected / factor) < 1e-11
    assert scale_of_loss(problem) == pytest.approx((factor, factor), rel=1e-12)


@pytest.mark.parametrize("num_outputs", [1, 2, 5])
def test_draws_of_labels_have_the_factor_within_four_standard_errors(num_outputs):
    module, inputs = network(num_outputs), drawn(200, 2)
    chance = module(inputs).detach().sigmoid()
    generator = torch.Generator().manual_seed(3)
    traces = {build: [] for build in (cv.empirical_fisher, SCALED)}
    for _ in range(30):
        labels = torch.bernoulli(chance, generator=generator)
        problem = cv.Problem.from_module(module, loss="bce", data=(inputs, labels))
        for build, values in traces.items():
            values.append(float(build(problem).dense().trace()))
    fisher = float(cv.fisher(problem).dense().trace())
    for build, factor in ((cv.empirical_fisher, num_outputs), (SCALED, 1)):
        mean, error = np.mean(traces[build]), np.std(traces[build], ddof=1) / 30**0.5
        assert abs(factor * mean - fisher) < 4 * factor * error
        assert error < 0.03 * mean  # a factor of two would be seen


@pytest.mark.parametrize("weighted", [False, True])
def test_weights_of_classes_and_ignored_examples_belong_to_both_scales_alike(weighted):
    """Single labels: the scores with the weights of the data's labels, so both scales are one matrix."""
    weight = torch.tensor([0.5, 3.0, 1.0], dtype=torch.float64) if weighted else None
    labels = torch.tensor([0, 2, 1, -100, 1])
    problem = cv.Problem.from_module(network(3), loss=nn.CrossEntropyLoss(weight), data=(drawn(5, 2), labels))
    assert distance(SCALED(problem).dense(), cv.empirical_fisher(problem).dense()) < 1e-13
    assert distance(SCALED(problem, method="generic").dense(), cv.empirical_fisher(problem).dense()) < 1e-13


def problem_of_bce(num_outputs=3, num=6, **options):
    labels = torch.randint(2, (num, num_outputs), generator=torch.Generator().manual_seed(2)).double()
    loss = nn.BCEWithLogitsLoss(**options)
    return cv.Problem.from_module(network(num_outputs), loss=loss, data=(drawn(num, 2), labels))


def test_the_default_is_the_covariance_of_the_gradients_and_their_mean_and_the_other_scale_is_not():
    problem = problem_of_bce()
    mean = problem.gradient()
    sum_of_both = cv.gradient_covariance(problem).dense() + torch.outer(mean, mean)
    assert distance(cv.empirical_fisher(problem).dense(), sum_of_both) < 1e-12
    assert distance(SCALED(problem).dense(), 3 * sum_of_both) < 1e-12


def test_a_spectrum_says_which_scale_it_has():
    problem = problem_of_bce()
    spectra = [cv.spectrum(build(problem)) for build in (cv.empirical_fisher, SCALED)]
    names = ["empirical_fisher", "empirical_fisher_at_fisher_scale"]
    assert [spectrum.where.matrix for spectrum in spectra] == names
    assert "Spectrum(empirical_fisher_at_fisher_scale, standard" in repr(spectra[1])
    assert np.allclose(spectra[1].eigenvalues, 3 * spectra[0].eigenvalues, rtol=0, atol=1e-12)
    assert distance(MATRICES[names[1]](problem).dense(), SCALED(problem).dense()) == 0
    moved = cv.pullback(SCALED(problem), cv.WeightNorm())
    assert moved.where.matrix == names[1]


def test_a_study_keeps_the_scales_apart_and_warns_of_the_factor():
    problem = problem_of_bce()
    names = ("fisher", "empirical_fisher", "empirical_fisher_at_fisher_scale")
    study = run_spectrum(problem, SpectrumSettings(names, (Standard(),)))
    (warning,) = study.warnings
    assert "With labels drawn from the model, the Fisher is 3 times its mean" in warning
    document = study_document(study)
    assert [row["matrix"] for row in document["spectra"]] == list(names)
    assert run_spectrum(problem, SpectrumSettings((names[0], names[2]), (Standard(),))).warnings == ()
    single = run_spectrum(problem_of_bce(1), SpectrumSettings(names[:2], (Standard(),)))
    assert single.warnings == ()


def test_an_empirical_fisher_of_another_scale_does_not_take_the_place_of_the_fisher():
    problem = problem_of_bce()
    with pytest.raises(cv.ConfigurationError, match=r"cannot replace the Fisher: .* is 3 times its mean"):
        cv.natural_gradient_step(problem, fisher=cv.empirical_fisher(problem), damping=0.1)
    with pytest.raises(cv.ConfigurationError, match="cannot replace the Fisher"):
        Controls(problem, cv.empirical_fisher(problem))
    step = cv.natural_gradient_step(problem, fisher=SCALED(problem), damping=0.1)
    damped = SCALED(problem).dense() + 0.1 * torch.eye(problem.dim, dtype=torch.float64)
    assert distance(step, -torch.linalg.solve(damped, problem.gradient())) < 1e-10
    single = problem_of_bce(1)
    cv.natural_gradient_step(single, fisher=cv.empirical_fisher(single), damping=0.1)


def test_a_scale_without_a_meaning_is_refused():
    data = (drawn(4, 2), torch.tensor([0, 1, 2, 1]))
    smoothed = cv.Problem.from_module(network(3), loss=nn.CrossEntropyLoss(label_smoothing=0.1), data=data)
    with pytest.raises(cv.NotDefinedError, match=r"label_smoothing=0\.1 .* not the score of any label"):
        SCALED(smoothed)
    assert cv.empirical_fisher(smoothed).dense().any()
    with pytest.raises(cv.ConfigurationError, match="scale must be 'loss' or 'fisher', got 'mean'"):
        cv.empirical_fisher(smoothed, scale="mean")
    huber = cv.Problem.from_module(network(2), loss="huber", data=(drawn(4, 2), drawn(4, 2, seed=2)))
    with pytest.raises(cv.NotDefinedError, match="'huber' is not declared to be one"):
        SCALED(huber)
