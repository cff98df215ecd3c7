"""Gradient noise per neuron: against per-example gradients by hand, synthetic covariances, and sampling."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import curvature as cv
from curvature.linalg.operator import SymmetricOperator
from curvature.models import zoo
from curvature.natural_gradient.whitening import alignments, mean_cosine, whitening
from oracles import drawn

ROUNDING = 1e-10  # relative: eigenvectors of 3 x 3 matrices with gaps of a tenth of the norm, with room


def seeded():
    return torch.Generator().manual_seed(17)


def network(num_examples=15):
    """3-2-2 network with tanh and squared loss; module and problem."""
    module = zoo.mlp((3, 2, 2))
    for number, parameter in enumerate(module.parameters()):
        parameter.data = drawn(*parameter.shape, seed=30 + number)
    inputs, targets = drawn(num_examples, 3) + 0.5, drawn(num_examples, 2, seed=2)
    return module, cv.Problem.from_module(module, loss="half-squared-error", data=(inputs, targets))


def covariances_by_hand(module, problem):
    """Population covariance of every neuron's incoming weight gradient, one backward pass per example."""
    gradients = {"0": [], "2": []}
    for x, y in zip(problem.inputs, problem.targets, strict=True):
        loss = 0.5 * ((module(x[None])[0] - y) ** 2).sum()
        for path, part in zip(gradients, torch.autograd.grad(loss, (module[0].weight, module[2].weight)), strict=True):
            gradients[path].append(part)
    found = {}
    for path, parts in gradients.items():
        stacked = torch.stack(parts).numpy()
        found |= {f"{path}[{k}]": np.atleast_2d(np.cov(stacked[:, k].T, ddof=0)) for k in range(stacked.shape[1])}
    return found


def linear_problem(dim=3, fan_out=2, num_examples=12):
    module = nn.Linear(dim, fan_out, bias=False).double()
    module.weight.data = drawn(fan_out, dim, seed=3)
    data = drawn(num_examples, dim), drawn(num_examples, fan_out, seed=4)
    return cv.Problem.from_module(module, loss="half-squared-error", data=data)


# ----------------------------------------------------------------------------------------------------- mean cosine


@pytest.mark.parametrize(
    ("dim", "expected"), [(1, 1.0), (2, 2 / math.pi), (3, 0.5), (4, 4 / (3 * math.pi)), (5, 3 / 8)]
)
def test_mean_cosine_of_small_dimensions_is_known(dim, expected):
    assert mean_cosine(dim) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("dim", [2, 7, 64])
def test_mean_cosine_is_that_of_random_directions(dim):
    directions = drawn(40_000, dim, seed=dim)
    cosines = (directions[:, 0] / torch.linalg.vector_norm(directions, dim=1)).abs()
    standard_error = float(cosines.std()) / len(cosines) ** 0.5
    assert abs(float(cosines.mean()) - mean_cosine(dim)) < 4 * standard_error
    assert standard_error < 0.01 * mean_cosine(dim)


def test_mean_cosine_of_many_dimensions_approaches_its_asymptote():
    assert mean_cosine(10**6) == pytest.approx(math.sqrt(2 / (math.pi * 10**6)), rel=1e-5)


# ------------------------------------------------------------------------------------------------------- alignments


def test_alignments_are_those_of_gradients_computed_one_by_one():
    module, problem = network()
    covariances = covariances_by_hand(module, problem)
    hidden = torch.tanh(problem.inputs @ module[0].weight.T + module[0].bias).detach()
    weights = {"0": module[0].weight.detach().numpy(), "2": module[2].weight.detach().numpy()}
    means = {"0": problem.inputs.mean(dim=0).numpy(), "2": hidden.mean(dim=0).numpy()}
    found = {(record.neuron, record.direction): record for record in alignments(problem, seed=seeded())}
    assert len(found) == 4 * 3
    for neuron, covariance in covariances.items():
        path, row = neuron[0], int(neuron[2])
        values, vectors = np.linalg.eigh(covariance)
        for name, direction in (("w", weights[path][row]), ("mean input", means[path])):
            record, unit = found[neuron, name], direction / np.linalg.norm(direction)
            assert record.cosine == pytest.approx(abs(unit @ vectors[:, -1]), rel=ROUNDING)
            assert record.rayleigh == pytest.approx(unit @ covariance @ unit / values.mean(), rel=ROUNDING)
            assert (record.dim, record.num_examples) == (len(unit), 15)
            assert record.null_cosine == mean_cosine(len(unit))


def test_random_directions_depend_on_the_generator_alone():
    _, problem = network()
    first, again = (alignments(problem, seed=seeded()) for _ in range(2))
    other = alignments(problem, seed=torch.Generator().manual_seed(18))
    assert first == again
    for a, b in zip(first, other, strict=True):
        assert (a == b) is (a.direction != "random")


def test_random_directions_have_the_mean_cosine_on_average():
    problem = linear_problem(dim=5, fan_out=40)
    covariance = SymmetricOperator.from_dense(torch.diag(torch.arange(1.0, 201.0, dtype=torch.float64)))
    generator = seeded()
    found = [
        record
        for _ in range(10)
        for record in alignments(problem, seed=generator, covariance=covariance)
        if record.direction == "random"
    ]
    cosines = np.array([record.cosine for record in found])
    rayleighs = np.array([record.rayleigh for record in found])
    assert len(found) == 400
    assert abs(cosines.mean() - mean_cosine(5)) < 4 * cosines.std() / 20
    assert abs(rayleighs.mean() - 1) < 4 * rayleighs.std() / 20


def spiked(directions, height=50.0):
    """``I + height * d d^T`` for every row of ``directions``: a covariance with a known top direction."""
    blocks = []
    for direction in directions:
        unit = direction / torch.linalg.vector_norm(direction)
        blocks.append(torch.eye(len(unit), dtype=torch.float64) + height * torch.outer(unit, unit))
    return SymmetricOperator.from_dense(torch.block_diag(*blocks))


def test_weights_along_the_dominant_direction_have_cosine_one():
    problem = linear_problem()
    covariance = spiked(problem.weights.view(2, 3))
    for record in alignments(problem, seed=seeded(), covariance=covariance):
        if record.direction == "w":
            assert record.cosine == pytest.approx(1, abs=1e-12)
            assert record.cosine <= 1
            assert record.rayleigh == pytest.approx(51 / (53 / 3), rel=1e-12)


def test_weights_across_the_dominant_direction_have_cosine_zero():
    problem = linear_problem()
    across = torch.linalg.cross(problem.weights.view(2, 3), drawn(2, 3, seed=8))
    for record in alignments(problem, seed=seeded(), covariance=spiked(across)):
        if record.direction == "w":
            assert record.cosine == pytest.approx(0, abs=1e-12)
            assert record.rayleigh == pytest.approx(1 / (53 / 3), rel=1e-12)


def test_no_direction_is_special_in_isotropic_noise():
    problem = linear_problem()
    covariance = SymmetricOperator.from_dense(0.3 * torch.eye(6, dtype=torch.float64))
    for record in alignments(problem, seed=seeded(), covariance=covariance):
        assert record.rayleigh == pytest.approx(1, rel=1e-13)
    for record in whitening(problem, seed=seeded(), covariance=covariance):
        assert record.bures == pytest.approx(0, abs=1e-13)
        assert record.am_gm_damped == pytest.approx(0, abs=1e-13)
        assert record.l1_over_mean == pytest.approx(1, rel=1e-13)


def test_neurons_whose_gradient_does_not_vary_are_left_out():
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, 0.5], [-0.3, 1.0]]))
        module[0].bias.copy_(torch.tensor([-100.0, 0.1]))  # the first unit is dead
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(drawn(8, 2), torch.arange(8) % 2))
    expected = {"0[1]", "2[0]", "2[1]"}
    assert {record.neuron for record in alignments(problem, seed=seeded())} == expected
    assert {record.neuron for record in whitening(problem, seed=seeded())} == expected


def test_zero_weights_have_no_direction():
    problem = linear_problem()
    problem = problem.at(problem.weights * torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    directions = [(r.neuron, r.direction) for r in alignments(problem, seed=seeded())]
    assert ("[0]", "w") not in directions
    assert ("[1]", "w") in directions
    assert ("[0]", "w") not in [(r.neuron, r.projection) for r in whitening(problem, seed=seeded())]


def test_filters_of_a_convolution_are_neurons():
    module = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2)).double()
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(drawn(9, 1, 3, 3), torch.arange(9) % 2))
    found = alignments(problem, seed=seeded())
    assert {(record.neuron, record.dim) for record in found} == {("0[0]", 4), ("0[1]", 4), ("3[0]", 8), ("3[1]", 8)}
    # The mean input of a filter is the mean patch; here in closed form, since patches are 2 x 2 of 3 x 3.
    patches = torch.stack([problem.inputs[:, 0, i : i + 2, j : j + 2].reshape(9, 4) for i in (0, 1) for j in (0, 1)])
    mean = patches.mean(dim=(0, 1))
    block = cv.gradient_covariance(problem, method="generic").dense()[:4, :4]
    top = torch.linalg.eigh(block).eigenvectors[:, -1]
    expected = float((mean / torch.linalg.vector_norm(mean) @ top).abs())
    (record,) = (r for r in found if (r.neuron, r.direction) == ("0[0]", "mean input"))
    assert record.cosine == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("dim", [1, None])
def test_rows_that_are_not_neurons_have_no_mean_input(dim):
    """Weight norm over other axes: its rows run across the layer's inputs, so the mean input is no direction there."""
    module = nn.Sequential(weight_norm(nn.Linear(3, 5), dim=dim), nn.Tanh(), weight_norm(nn.Linear(5, 2))).double()
    problem = cv.Problem.from_module(module, loss="mse", data=(drawn(9, 3), drawn(9, 2, seed=2)))
    found = alignments(problem, seed=seeded())
    with_mean = {record.neuron for record in found if record.direction == "mean input"}
    assert with_mean == {"2[0]", "2[1]"}
    assert len(whitening(problem, seed=seeded())) == 4 * (2 + (3 if dim == 1 else 1))


# -------------------------------------------------------------------------------------------------------- whitening


def sphericity_by_hand(covariance):
    values = np.clip(np.linalg.eigvalsh(covariance), 0, None)
    shifted = values + 1e-6 * values.mean()
    return {
        "bures": 1 - np.sqrt(values).sum() ** 2 / (len(values) * values.sum()),
        "am_gm_damped": np.log(shifted.mean()) - np.log(shifted).mean(),
        "l1_over_mean": values.max() / values.mean(),
    }


def test_whitening_is_that_of_the_projected_gradients():
    """Project each example's gradient, then take the covariance in any basis of the complement."""
    module, problem = network()
    covariances = covariances_by_hand(module, problem)
    weights = {"0": module[0].weight.detach().numpy(), "2": module[2].weight.detach().numpy()}
    found = {(record.neuron, record.projection): record for record in whitening(problem, seed=seeded())}
    assert len(found) == 4 * 4
    for neuron, covariance in covariances.items():
        w = weights[neuron[0]][int(neuron[2])]
        top = np.linalg.eigh(covariance)[1][:, -1]
        for name, direction in (("none", None), ("w", w), ("e1", top)):
            basis = np.eye(len(w))
            if direction is not None:
                basis = np.linalg.svd(direction[None])[2][1:].T  # the null space of a row
            expected = sphericity_by_hand(basis.T @ covariance @ basis)
            record = found[neuron, name]
            assert record.dim == basis.shape[1]
            for quantity, value in expected.items():
                assert getattr(record, quantity) == pytest.approx(value, rel=1e-8, abs=1e-13), (name, quantity)


def test_projecting_out_the_one_dominant_direction_whitens():
    problem = linear_problem()
    found = whitening(problem, seed=seeded(), covariance=spiked(problem.weights.view(2, 3)))
    for record in found:
        spherical = record.projection in ("w", "e1")
        assert (record.bures < 1e-12) is spherical
        assert (abs(record.l1_over_mean - 1) < 1e-12) is spherical


def test_projections_interlace():
    """The largest eigenvalue on a complement lies between the second and the first; for ``e1`` at the second."""
    module, problem = network()
    covariances = covariances_by_hand(module, problem)
    rayleigh = {(r.neuron, r.direction): r.rayleigh for r in alignments(problem, seed=seeded())}
    checked = 0
    for record in whitening(problem, seed=seeded()):
        values = np.linalg.eigvalsh(covariances[record.neuron])
        if record.projection == "none":
            assert record.l1_over_mean * values.mean() == pytest.approx(values[-1], rel=ROUNDING)
            continue
        if record.projection == "e1":
            removed = values[-1]
        else:
            removed = rayleigh[record.neuron, record.projection] * values.mean()  # the same draws, in the same order
        largest = record.l1_over_mean * (values.sum() - removed) / record.dim
        assert values[-2] * (1 - 1e-9) <= largest <= values[-1] * (1 + 1e-9)
        if record.projection == "e1":
            assert largest == pytest.approx(values[-2], rel=ROUNDING)
        checked += 1
    assert checked == 4 * 3


def test_one_dimension_has_no_complement():
    problem = linear_problem(dim=1)
    assert {record.projection for record in whitening(problem, seed=seeded())} == {"none"}
    assert {record.cosine for record in alignments(problem, seed=seeded())} == {1.0}
