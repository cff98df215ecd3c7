"""Seeded models and embedded data: reproducible, without a trace in global state, with the curvature they promise."""

import numpy as np
import pytest
import torch
from sklearn import datasets
from sklearn.datasets import load_digits
from torch import nn

import curvature as cv
from curvature.errors import ConfigurationError
from curvature.models import zoo

ROUNDING = 1e-13  # of the largest eigenvalue


def assert_same_spectrum(matrix, expected):
    found = torch.linalg.eigvalsh(matrix)
    expected = torch.as_tensor(expected, dtype=torch.float64).sort().values
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < ROUNDING * float(expected[-1])


BUILDERS = {
    "mlp": lambda seed: zoo.mlp((5, 4, 3), seed=seed),
    "cnn": lambda seed: zoo.cnn((2, 3), seed=seed),
    "digits-mlp": lambda seed: zoo.MODELS["digits-mlp"](widths=(3,), seed=seed),
    "digits-cnn": lambda seed: zoo.MODELS["digits-cnn"](channels=(2,), seed=seed),
    "builtin-mlp": lambda seed: zoo.MODELS["mlp"](3, 2, widths=(4,), seed=seed),
    "housing": lambda seed: zoo.housing(20, seed=seed),
    "digits_problem": lambda seed: zoo.digits_problem(20, widths=(3,), seed=seed),
    "linear_regression": lambda seed: zoo.linear_regression(20, 3, seed=seed),
    "softmax_regression": lambda seed: zoo.softmax_regression(20, 3, 4, seed=seed),
    "two_layer_linear": lambda seed: zoo.two_layer_linear((3, 2, 4), seed=seed)[0],
}


def fingerprint(built):
    """All numbers in a module or a problem, as one vector."""
    if isinstance(built, cv.Problem):
        return torch.cat([built.weights, built.inputs.reshape(-1), built.targets.double().reshape(-1)])
    if isinstance(built, tuple):
        return torch.cat([part.double().reshape(-1) for part in built])
    return torch.cat([parameter.detach().reshape(-1) for parameter in built.parameters()])


@pytest.mark.parametrize("kind", BUILDERS)
def test_seeds_reproduce(kind):
    first, again, other = (fingerprint(BUILDERS[kind](seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("dim", [3, 20])
def test_the_least_squares_solution_does_not_depend_on_what_memory_held_before(dim):
    """The pivots of LAPACK's gelsy are input, too; torch 2.13 passes them uninitialized."""
    found = set()
    for fill in (0, 1, -1, 7):
        waste = [torch.full((dim,), fill, dtype=torch.int32) for _ in range(200)]
        del waste
        found.add(zoo.linear_regression(40, dim).weights.numpy().tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("kind", BUILDERS)
def test_the_global_generator_is_neither_used_nor_moved(kind):
    torch.manual_seed(1)
    first = fingerprint(BUILDERS[kind](0))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = fingerprint(BUILDERS[kind](0))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)


def test_the_global_generator_is_put_back_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(ConfigurationError):
        zoo.mlp((4, 3, 2), activation="sine")
    assert torch.equal(torch.get_rng_state(), before)


# -------------------------------------------------------------------------------------------------- known curvature


def test_linear_regression_is_at_the_optimum_of_least_squares():
    problem = zoo.linear_regression(30, 4)
    expected, *_ = np.linalg.lstsq(problem.inputs.numpy(), problem.targets.numpy(), rcond=None)
    assert np.allclose(problem.weights.numpy(), expected[:, 0], rtol=1e-12)
    assert float(problem.gradient().abs().max()) < 1e-14


def test_linear_regression_has_one_curvature_under_three_names():
    problem = zoo.linear_regression(30, 4)
    values = np.linalg.svd(problem.inputs.numpy(), compute_uv=False) ** 2 / 30
    for matrix in (cv.hessian(problem), cv.ggn(problem), cv.fisher(problem)):
        assert_same_spectrum(matrix.dense(), values)


@pytest.mark.parametrize("seed", range(3))
def test_linear_regression_has_the_edges_of_marchenko_and_pastur(seed):
    """``(1 -+ sqrt(d/N))^2``; at this size the extremes stay within a twentieth of them."""
    values = cv.spectrum(cv.hessian(zoo.linear_regression(2000, 100, seed=seed))).eigenvalues
    root = (100 / 2000) ** 0.5
    assert values[0] == pytest.approx((1 - root) ** 2, abs=0.05)
    assert values[-1] == pytest.approx((1 + root) ** 2, abs=0.05)
    assert values.mean() == pytest.approx(1, abs=0.01)


def test_softmax_regression_at_zero_weights_has_the_input_covariance_c_minus_one_times():
    problem = zoo.softmax_regression(50, 4, 3)
    assert not problem.weights.any()
    values = np.linalg.svd(problem.inputs.numpy(), compute_uv=False) ** 2 / 50
    for matrix in (cv.hessian(problem), cv.ggn(problem), cv.fisher(problem)):
        assert_same_spectrum(matrix.dense(), [*np.repeat(values / 3, 2), *np.zeros(4)])


@pytest.mark.parametrize("widths", [(5, 4, 3), (3, 6, 2), (2, 2, 5)])
def test_two_layer_linear_network_has_sums_of_squared_singular_values(widths):
    problem, (first, second) = zoo.two_layer_linear(widths)
    fan_in, hidden, fan_out = widths
    assert torch.allclose(problem.inputs.T @ problem.inputs / 50, torch.eye(fan_in, dtype=torch.float64), atol=1e-13)
    assert torch.equal(torch.cat([first.reshape(-1), second.reshape(-1)]), problem.weights)
    left = np.zeros(fan_out)
    right = np.zeros(fan_in)
    for padded, matrix in ((left, second), (right, first)):
        values = np.linalg.svd(matrix.numpy(), compute_uv=False) ** 2
        padded[: len(values)] = values
    sums = (left[:, None] + right[None]).reshape(-1)
    dim = hidden * (fan_in + fan_out)
    expected = np.sort(sums)[::-1][: min(dim, len(sums))]
    assert dim >= len(sums) or np.allclose(np.sort(sums)[: len(sums) - dim], 0)
    assert_same_spectrum(cv.ggn(problem).dense(), [*expected, *np.zeros(dim - len(expected))])


# --------------------------------------------------------------------------------------------------- data and shapes


@pytest.mark.parametrize("by_file", [True, False])
def test_digits_are_those_of_scikit_learn(by_file, monkeypatch):
    if not by_file:  # as where a later version keeps them in another place
        monkeypatch.setattr("curvature.models.zoo.datasets.find_spec", lambda _name: None)
    inputs, targets = zoo.digits()
    assert targets.dtype == torch.int64
    raw = load_digits()
    assert np.array_equal(inputs.numpy() * 16, raw.data)
    assert np.array_equal(targets.numpy(), raw.target)
    assert (inputs.shape, inputs.dtype) == ((1797, 64), torch.float64)
    images, labels = zoo.digits(7, image=True)
    assert torch.equal(images.reshape(7, 64), inputs[:7])
    assert images.shape == (7, 1, 8, 8)
    assert torch.equal(labels, targets[:7])


@pytest.mark.parametrize("num_examples", [0, -1, 1798])
def test_digits_that_there_are_not_are_refused(num_examples):
    with pytest.raises(ConfigurationError, match="num_examples must be between 1 and 1797"):
        zoo.digits(num_examples)


@pytest.mark.parametrize("channels", [(2,), (2, 3), (2, 3, 2)])
def test_convolutional_networks_take_digits_to_ten_logits(channels):
    assert zoo.cnn(channels)(zoo.digits(3, image=True)[0]).shape == (3, 10)


def test_fully_connected_networks_have_an_activation_between_layers_alone():
    module = zoo.mlp((4, 3, 3, 2), activation="relu")
    assert [type(layer) for layer in module] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert not module.training
    assert zoo.mlp((4, 2), dtype=torch.float32)[0].weight.dtype == torch.float32


def test_models_by_name_run_on_digits():
    assert zoo.MODELS["digits-mlp"]()(zoo.digits(2)[0]).shape == (2, 10)
    assert zoo.MODELS["digits-cnn"]()(zoo.digits(2, image=True)[0]).shape == (2, 10)


def test_digits_problem_is_softmax_classification_in_the_precision_asked_for():
    problem = zoo.digits_problem(30, widths=(5, 4), dtype=torch.float32)
    assert (problem.num_examples, problem.num_outputs, problem.dtype) == (30, 10, torch.float32)
    assert problem.loss.name == "cross-entropy"
    assert problem.dim == 64 * 5 + 5 + 5 * 4 + 4 + 4 * 10 + 10


@pytest.mark.parametrize("widths", [(4,), (4, 0, 2), (4, -1), (4, 1.5, 2), (4, True, 2), "42"])
def test_impossible_widths_are_refused(widths):
    with pytest.raises(ConfigurationError, match=r"widths must list (at least inputs and outputs|positive whole)"):
        zoo.mlp(widths)


def test_unknown_activations_are_refused_with_the_names_there_are():
    with pytest.raises(ConfigurationError, match="activation must be one of tanh, relu, gelu, identity, got 'sine'"):
        zoo.mlp((4, 3, 2), activation="sine")


def test_whitening_needs_as_many_examples_as_inputs():
    with pytest.raises(ConfigurationError, match="whitening 5 inputs needs at least 5 examples, got 4"):
        zoo.two_layer_linear((5, 4, 3), num_examples=4)


@pytest.mark.parametrize("name", ["breast-cancer", "wine", "diabetes"])
def test_tables_are_those_of_scikit_learn_standardized_and_shuffled_once(name):
    inputs, targets = zoo.DATA[name]()
    raw = getattr(datasets, f"load_{name.replace('-', '_')}")()
    expected = (raw.data - raw.data.mean(axis=0)) / raw.data.std(axis=0)
    numbers = targets.is_floating_point()
    labels = (raw.target - raw.target.mean()) / raw.target.std() if numbers else raw.target
    assert targets.shape == ((len(labels), 1) if numbers else (len(labels),))
    joined = np.column_stack([inputs.numpy(), targets.numpy()])
    wanted = np.column_stack([expected, labels])
    by_row = [table[np.lexsort(table.round(9).T)] for table in (joined, wanted)]
    assert np.allclose(*by_row, atol=1e-12)
    assert not np.allclose(joined, wanted, atol=0.1)
    few, fewer = zoo.DATA[name](40)
    assert torch.equal(few, inputs[:40])
    assert torch.equal(fewer, targets[:40])
    assert numbers or set(fewer.tolist()) == set(raw.target.tolist())  # sorted rows would hold one class
    with pytest.raises(ConfigurationError, match=f"between 1 and {len(labels)}"):
        zoo.DATA[name](len(labels) + 1)


def test_made_houses_are_ill_conditioned_heavy_tailed_and_cut_off_at_the_top():
    inputs, price = zoo.housing()
    assert (inputs.shape, price.shape) == ((2000, 8), (2000, 1))
    assert torch.allclose(inputs.mean(dim=0), torch.zeros(8, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(inputs.std(dim=0, correction=0), torch.ones(8, dtype=torch.float64), atol=1e-12)
    correlation = inputs.T @ inputs / 2000
    assert float(correlation[2, 3]) > 0.95  # rooms and bedrooms
    assert float(correlation[6, 7]) < -0.9  # the coast
    assert 10 < float(torch.linalg.cond(inputs)) < 100
    assert float(inputs[:, 4].max()) > 5  # the tail of the population
    assert 0.02 < float((price == price.max()).double().mean()) < 0.15
    solution = torch.linalg.lstsq(inputs, price, driver="gelsd").solution
    assert 0.1 < float((inputs @ solution - price).square().mean()) < 0.6  # learnable, not linear
    with pytest.raises(ConfigurationError, match="at least 2"):
        zoo.housing(1)
