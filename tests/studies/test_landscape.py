"""The loss along directions: values against the module at moved weights, the model against dense matrices."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import curvature as cv
from curvature.charts import Standard
from curvature.studies.landscape import filter_normalized
from oracles import built, drawn, seeded

INPUTS, LABELS = drawn(12, 3), torch.arange(12) % 4
MODULE = built(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)), seed=2)
PROBLEM = cv.Problem.from_module(MODULE, loss="cross-entropy", data=(INPUTS, LABELS))
STRETCHED = cv.WeightNorm(stretch=2.0)


def loss_at(weights):
    """The mean loss of PyTorch's module with these flat weights in place of its own."""
    module = copy.deepcopy(MODULE)
    nn.utils.vector_to_parameters(weights, module.parameters())
    with torch.no_grad():
        return float(nn.functional.cross_entropy(module(INPUTS), LABELS))


def effective_weights(coordinates):
    """``w = g v / ||v||`` by hand, from the named coordinates of a weight-normalized chart."""
    layout = STRETCHED.at(PROBLEM.layout, PROBLEM.weights).layout
    named, parts = layout.unflatten(coordinates), []
    for name in PROBLEM.layout.slices:
        if name in named:
            parts.append(named[name].reshape(-1))
            continue
        (g, v) = (part for key, part in named.items() if key.startswith(name))
        g, v = (g, v) if g.numel() < v.numel() else (v, g)
        parts.append((g.reshape(-1, 1) * v / v.norm(dim=1, keepdim=True)).reshape(-1))
    return torch.cat(parts)


def test_a_line_in_the_weights_is_the_loss_of_the_module_at_moved_weights():
    direction = drawn(PROBLEM.dim, seed=3)
    line = cv.landscape(PROBLEM, directions=direction, extent=0.7, num_points=9)
    unit = direction / direction.norm()
    expected = [loss_at(PROBLEM.weights + a * unit) for a in np.linspace(-0.7, 0.7, 9)]
    assert np.allclose(line.distances[0], np.linspace(-0.7, 0.7, 9), rtol=1e-15, atol=0)
    assert np.allclose(line.values, expected, rtol=1e-13)
    assert line.origin == pytest.approx(PROBLEM.value(), rel=1e-14)


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
@pytest.mark.parametrize("chart", [None, STRETCHED], ids=["weights", "weight norm"])
def test_the_quadratic_model_is_that_of_the_dense_matrix(matrix, chart):
    operator = getattr(cv, matrix)(PROBLEM)
    point = (chart or Standard()).at(PROBLEM.layout, PROBLEM.weights)
    if chart is not None:
        operator = cv.pullback(operator, chart)
    first, second = (drawn(point.dim, seed=seed) for seed in (4, 5))
    plane = cv.landscape(PROBLEM, directions=(first, second), chart=chart, matrix=matrix, extent=(0.5, 2), num_points=5)
    basis = torch.stack([first / first.norm(), second / second.norm()], dim=1)
    gradient = point.pull(PROBLEM.gradient()[:, None])[:, 0]
    for i, a in enumerate(np.linspace(-0.5, 0.5, 5)):
        for j, b in enumerate(np.linspace(-2, 2, 5)):
            move = basis @ torch.tensor([a, b], dtype=torch.float64)
            expected = PROBLEM.value() + move @ gradient + move @ operator.dense() @ move / 2
            assert plane.quadratic[i, j] == pytest.approx(float(expected), rel=1e-12)
    assert plane.cosine == pytest.approx(float(basis[:, 0] @ basis[:, 1]), rel=1e-12)
    assert plane.where == operator.where


def test_in_weight_norm_the_lengths_and_directions_move_straight_and_the_weights_follow():
    point = STRETCHED.at(PROBLEM.layout, PROBLEM.weights)
    directions = {"one": drawn(point.dim, seed=6), "other": drawn(point.dim, seed=7)}
    plane = cv.landscape(PROBLEM, directions=directions, chart=STRETCHED, extent=1.5, num_points=3)
    one, other = (part / part.norm() for part in directions.values())
    for i, a in enumerate((-1.5, 0, 1.5)):
        for j, b in enumerate((-1.5, 0, 1.5)):
            expected = loss_at(effective_weights(point.coordinates + a * one + b * other))
            assert plane.values[i, j] == pytest.approx(expected, rel=1e-12)
    assert plane.directions == ("one", "other")
    assert plane.label == "hessian, weight-norm (stretch=2)"


@pytest.mark.parametrize("chart", [None, STRETCHED], ids=["weights", "weight norm"])
def test_the_model_meets_the_loss_to_third_order(chart):
    """Halving the distance divides what is left by eight."""
    differences = []
    for extent in (0.02, 0.01):
        line = cv.landscape(PROBLEM, directions="random", chart=chart, extent=extent, num_points=3)
        differences.append(np.abs(line.values - line.quadratic).max())
    assert differences[0] / differences[1] == pytest.approx(8, rel=0.1)


def test_eigenvectors_have_their_eigenvalue_as_curvature():
    matrix = cv.pullback(cv.hessian(PROBLEM), STRETCHED)
    values = torch.linalg.eigvalsh(matrix.dense())
    for word, value in (("largest", values[-1]), ("smallest", values[0])):
        line = cv.landscape(PROBLEM, directions=word, chart=STRETCHED, num_points=3)
        assert line.curvatures[0, 0] == pytest.approx(float(value), rel=1e-6)
        assert line.directions == (f"{word} eigenvector",)
    vectors = cv.extremal_eigenvalues(matrix, num_largest=3).vectors
    plane = cv.landscape(PROBLEM, directions=vectors, chart=STRETCHED, num_points=3)
    assert np.allclose(plane.curvatures, np.diag(values.flip(0)[:2].numpy()), atol=1e-6 * float(values[-1]))
    named = cv.landscape(PROBLEM, directions=vectors.vector(-1), chart=STRETCHED, num_points=3)
    assert named.curvatures[0, 0] == pytest.approx(float(values[-1]), rel=1e-6)


def test_two_eigenvectors_of_one_eigenvalue_span_a_plane():
    vectors = cv.spectrum(cv.hessian(PROBLEM), vectors=2).vectors
    alike = replace(vectors, eigenvalues=np.full(2, vectors.eigenvalues[-1]))
    plane = cv.landscape(PROBLEM, directions=alike, extent=0.1, num_points=3)
    value = f"{vectors.eigenvalues[-1]:.4g}"
    assert plane.directions == (f"eigenvector of {value} 1", f"eigenvector of {value} 2")
    assert sorted(np.diag(plane.curvatures)) == pytest.approx(sorted(vectors.eigenvalues), rel=1e-10)


def test_the_slope_along_the_gradient_is_its_norm():
    line = cv.landscape(PROBLEM, directions="gradient", num_points=3)
    assert line.slopes[0] == pytest.approx(float(PROBLEM.gradient().norm()), rel=1e-13)


def test_every_filter_of_a_random_direction_is_as_long_as_that_of_the_point():
    """As in Li et al. (2018): one filter is one output channel, also where channels are on the second axis."""
    module = built(
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 2), nn.Tanh(), nn.ConvTranspose2d(3, 2, 2), nn.Flatten(), nn.Linear(18, 2)
        )
    )
    problem = cv.Problem.from_module(module, loss="mse", data=(drawn(4, 1, 3, 3), drawn(4, 2)))
    drawing = filter_normalized(problem.layout, problem.weights, seeded(0))
    own, direction = (problem.unflatten(vector) for vector in (problem.weights, drawing))
    for name in ("0.weight", "4.weight"):
        assert torch.allclose(direction[name].flatten(1).norm(dim=1), own[name].flatten(1).norm(dim=1))
    channels = [part["2.weight"].movedim(1, 0).flatten(1).norm(dim=1) for part in (direction, own)]
    assert torch.allclose(*channels)
    assert not any(direction[name].any() for name in direction if name.endswith("bias"))
    vector = cv.Problem.from_function(lambda x: x.square().sum(), torch.tensor([3.0, 4.0]))
    assert float(filter_normalized(vector.layout, vector.weights, seeded(0)).norm()) == pytest.approx(5)


def test_two_random_directions_differ_and_a_seed_repeats_them():
    first, again, other = (
        cv.landscape(PROBLEM, directions=("random", "random"), num_points=3, seed=seed) for seed in (1, 1, 2)
    )
    assert first.directions == ("random direction 1", "random direction 2")
    assert abs(first.cosine) < 0.9
    assert np.array_equal(first.values, again.values)
    assert not np.array_equal(first.values, other.values)


def test_a_penalty_is_part_of_values_and_model():
    problem = cv.Problem.from_module(MODULE, loss="cross-entropy", data=(INPUTS, LABELS), weight_decay=0.5)
    direction = drawn(PROBLEM.dim)
    moved = PROBLEM.weights - direction / direction.norm()
    for matrix in ("hessian", "ggn"):
        with_decay, without = (
            cv.landscape(p, directions=direction, matrix=matrix, extent=1.0, num_points=3) for p in (problem, PROBLEM)
        )
        assert with_decay.curvatures[0, 0] - without.curvatures[0, 0] == pytest.approx(0.5, rel=1e-9)
        assert with_decay.values[0] == pytest.approx(without.values[0] + 0.25 * float(moved.square().sum()))


def test_a_loss_that_is_not_finite_is_a_gap_and_the_record_comes_back(tmp_path):
    problem = cv.Problem.from_function(lambda x: x[0].log() * x[0] + x[1] ** 2, torch.tensor([1.0, 0.5]))
    directions = {"left": np.array([1.0, 0]), "up": np.array([0, 1.0])}
    plane = cv.landscape(problem, directions=directions, extent=2, num_points=5)
    assert np.isnan(plane.values[:2]).all()
    assert plane.num_gaps == 10
    assert "not finite at 10 points" in repr(plane)
    assert plane.values[3, 2] == pytest.approx(2 * np.log(2) + 0.25)
    loaded = cv.Landscape.load(plane.save(tmp_path / "plane.npz"))
    assert repr(loaded) == repr(plane)
    assert np.array_equal(loaded.values, plane.values, equal_nan=True)
    assert np.array_equal(loaded.curvatures, plane.curvatures)
    rows = plane.to_dataframe()
    assert list(rows.columns) == ["left", "up", "value", "quadratic", "matrix", "chart", "gauge"]
    at = rows[(rows.left == 1) & (rows.up == -2)]
    assert at.value.item() == plane.values[3, 0]
    assert at.quadratic.item() == plane.quadratic[3, 0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"directions": "up"}, "the direction 'up' is unknown"),
        ({"directions": 3}, "of type int is unknown"),
        ({"directions": ["random"] * 3}, "3 directions are given"),
        ({"directions": torch.zeros(44).double()}, "is zero or not finite"),
        ({"directions": torch.ones(5).double()}, r"has shape \(5,\), but standard has 44 coordinates"),
        ({"directions": ("gradient", "gradient")}, "are parallel"),
        ({"extent": 0}, "must be a positive distance"),
        ({"extent": (1.0, 2.0)}, "one for each of the 1 directions"),
        ({"num_points": 4}, "must be an odd number"),
        ({"matrix": "fisher"}, "matrix='hessian' or 'ggn', got 'fisher'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, words):
    with pytest.raises(cv.ConfigurationError, match=words):
        cv.landscape(PROBLEM, **options)
