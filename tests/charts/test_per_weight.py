"""What the charts written weight by weight can reach, how many coordinates move nothing, and what they refuse."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import curvature as cv
from curvature.charts.chart import Chart
from curvature.layout import Entry, Layout
from oracles import distance, normal

ROWS, LENGTH = 3, 5
LAYOUT = Layout(
    (Entry("0.weight", (ROWS, LENGTH), "0", neuron_axis=0, normalized=True), Entry("0.bias", (ROWS,), "0", 0))
)
WEIGHTS = normal(4, LAYOUT.dim)


@pytest.mark.parametrize(
    ("chart", "coordinates", "rank"),
    [
        (cv.Sphere(), ROWS * LENGTH, ROWS * (LENGTH - 1)),
        (cv.Sphere(per="matrix"), ROWS * LENGTH, ROWS * LENGTH - 1),
        (cv.RandomWeightFactorization(), ROWS * (LENGTH + 1), ROWS * LENGTH),
        (cv.RandomWeightFactorization(log_scale=True), ROWS * (LENGTH + 1), ROWS * LENGTH),
        (cv.WeightStandardization(), ROWS * (LENGTH + 1), ROWS * (LENGTH - 1)),
        (cv.WeightStandardization(frozen=("g",)), ROWS * LENGTH, ROWS * (LENGTH - 2)),
        (cv.SpectralNorm(), ROWS * LENGTH, ROWS * LENGTH - 1),
        (cv.SpectralNorm(frozen=()), ROWS * LENGTH + 1, ROWS * LENGTH),
        (cv.WeightNorm().freeze("g"), ROWS * LENGTH, ROWS * (LENGTH - 1)),
    ],
    ids=repr,
)
def test_ranks_and_null_dimensions_are_those_of_the_formulas(chart, coordinates, rank):
    at_point = chart.at(LAYOUT, chart.nearest(LAYOUT, WEIGHTS))
    jacobian = at_point.push(torch.eye(at_point.dim, dtype=torch.float64))[: ROWS * LENGTH]
    assert at_point.dim == coordinates + ROWS
    assert at_point.null_dim == coordinates - rank
    assert int(torch.linalg.matrix_rank(jacobian)) == rank


def test_metrics_of_a_row_are_the_published_formulas():
    rows = WEIGHTS[: ROWS * LENGTH].view(ROWS, LENGTH)
    identity = torch.eye(LENGTH, dtype=torch.float64)

    def first_block(chart, weights=WEIGHTS):
        return chart.at(LAYOUT, weights).metric(torch.eye(LAYOUT.dim, dtype=torch.float64))[:LENGTH, :LENGTH]

    unit = rows[0] / rows[0].norm()
    assert distance(first_block(cv.Sphere(stretch=2.0)), 0.25 * (identity - torch.outer(unit, unit))) < 1e-14
    v = rows[0] / 0.7
    assert distance(first_block(cv.RandomWeightFactorization(scale=0.7)), 0.49 * identity + torch.outer(v, v)) < 1e-14
    chart = cv.WeightStandardization(stretch=3.0)
    nearest = chart.nearest(LAYOUT, WEIGHTS)
    row = nearest[:LENGTH]
    unit, centring = row / row.norm(), identity - 1 / LENGTH
    expected = torch.outer(unit, unit) + (centring - torch.outer(unit, unit)) / 9
    assert distance(first_block(chart, nearest), expected) < 1e-14


def test_the_sphere_is_weight_normalization_with_g_frozen():
    matrix, slope = normal(1, LAYOUT.dim, LAYOUT.dim), normal(2, LAYOUT.dim)
    matrix = matrix + matrix.T
    sphere, frozen = (c.at(LAYOUT, WEIGHTS) for c in (cv.Sphere(stretch=2.0), cv.WeightNorm(stretch=2.0).freeze("g")))
    assert distance(sphere.coordinates, frozen.coordinates) < 1e-15
    for move in ("pulled_back", "effective"):
        assert distance(getattr(sphere, move)(matrix, slope), getattr(frozen, move)(matrix, slope)) < 1e-13


def test_published_factors_are_drawn_once_for_each_weight():
    chart = cv.RandomWeightFactorization(seed=3).at(LAYOUT, WEIGHTS)
    again = cv.RandomWeightFactorization(seed=3).at(LAYOUT, WEIGHTS)
    other = cv.RandomWeightFactorization(seed=4).at(LAYOUT, WEIGHTS)
    assert torch.equal(chart.coordinates, again.coordinates)
    assert not torch.equal(chart.coordinates, other.coordinates)
    large = Layout((Entry("w", (4000, 2), "", 0, normalized=True),))
    s = cv.RandomWeightFactorization(seed=1).at(large, normal(5, 8000)).coordinates[:4000].log()
    assert abs(float(s.mean()) - 1) < 5 * 0.1 / math.sqrt(4000)
    assert abs(float(s.std()) - 0.1) < 5 * 0.1 / math.sqrt(8000)


def test_the_spectral_norm_equals_that_of_pytorch_in_value_and_gradient(generator):
    """PyTorch's power iteration, run to convergence, against the singular value decomposition."""
    torch.manual_seed(0)
    layer = parametrizations.spectral_norm(nn.Linear(LENGTH, ROWS).double(), n_power_iterations=200)
    raw = layer.parametrizations.weight.original
    weight = layer.weight
    cotangent = normal(generator, ROWS, LENGTH)
    (expected,) = torch.autograd.grad(weight, raw, cotangent)
    values = {"0.weight": {"gain": torch.ones((), dtype=torch.float64), "v": raw.detach()}}
    point = torch.cat([weight.detach().reshape(-1), WEIGHTS[-ROWS:]])
    chart = cv.SpectralNorm(values=values).at(LAYOUT, point)
    pulled = chart.pull(torch.cat([cotangent.reshape(-1), torch.zeros(ROWS, dtype=torch.float64)])[:, None])
    assert distance(pulled[: ROWS * LENGTH, 0].view(ROWS, LENGTH), expected) < 1e-12


def test_the_spectral_norm_of_a_transposed_convolution_is_that_of_its_output_channels():
    layer = nn.ConvTranspose2d(2, 3, 2).double()
    torch.manual_seed(0)
    normed = parametrizations.spectral_norm(nn.ConvTranspose2d(2, 3, 2).double(), n_power_iterations=200)
    raw = normed.parametrizations.weight.original.detach()
    layer.weight.data = raw.clone()
    problem = cv.Problem.from_module(layer, loss="mse", data=(normal(1, 4, 2, 2, 2), normal(2, 4, 3, 3, 3)))
    chart = cv.SpectralNorm().at(problem.layout, problem.weights)
    assert distance(raw / chart.maps["weight"].parts["gain"], normed.weight.detach()) < 1e-12
    slope, tangents = normal(3, problem.dim), normal(4, chart.dim, 2)
    closed, default = (kind.second_order_product(chart, slope, tangents) for kind in (type(chart), cv.charts.Chart))
    assert distance(closed, default) < 1e-11


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("frozen", [(), ("gain",), ("v",)], ids=str)
def test_the_metric_of_the_spectral_norm_is_that_of_its_jacobian(frozen, rank):
    weight = normal(1, ROWS, rank) @ normal(2, rank, LENGTH)
    point = torch.cat([weight.reshape(-1), WEIGHTS[-ROWS:]])
    chart = cv.SpectralNorm(stretch=2.0, frozen=frozen).at(LAYOUT, point)
    jacobian = torch.func.jacrev(chart.to_weights)(chart.coordinates)
    identity = torch.eye(LAYOUT.dim, dtype=torch.float64)
    assert distance(chart.metric(identity), jacobian @ jacobian.T) < 1e-13
    assert chart.dim - chart.null_dim == int(torch.linalg.matrix_rank(jacobian))


def test_a_chart_of_fewer_coordinates_than_weights_moves_a_matrix_without_its_metric(monkeypatch):
    problem = cv.zoo.digits_problem(num_examples=20, widths=(4,))
    monkeypatch.setattr(cv.DoRA, "metric", lambda *_: pytest.fail("the dense metric was built"))
    moved = cv.pullback(cv.ggn(problem), cv.DoRA(1))
    assert torch.isfinite(moved @ torch.ones(moved.dim, 1, dtype=torch.float64)).all()


def test_a_chart_that_leaves_weights_frozen_moves_a_matrix_without_its_jacobian(mlp, regression_data, monkeypatch):
    """Weight norm has one coordinate more for each row, so with the biases frozen there are as many as weights."""
    problem = cv.Problem.from_module(mlp(3, 4, 2), loss="mse", data=regression_data(8, 3, 2))
    monkeypatch.setattr(Chart, "_polar", property(lambda _: pytest.fail("the Jacobian is decomposed")))
    frozen = cv.WeightNorm(stretch=2.0).freeze("bias")
    moved = cv.pullback(cv.ggn(problem), frozen)
    assert moved.dim == problem.dim
    jacobian = frozen.at(problem.layout, problem.weights).push(torch.eye(moved.dim, dtype=torch.float64))
    assert distance(moved.dense(), jacobian.T @ cv.ggn(problem).dense() @ jacobian) < 1e-14


def test_training_moves_the_parts_and_keeps_what_is_frozen():
    chart = cv.WeightStandardization(frozen=("g",)).at(LAYOUT, cv.WeightStandardization().nearest(LAYOUT, WEIGHTS))
    theta = chart.coordinates + 0.1 * normal(7, chart.dim)
    moved = chart.moved(theta).at(LAYOUT, chart.to_weights(theta))
    assert torch.equal(moved.coordinates, theta)
    assert moved.gauge == "checkpoint, g frozen"
    parts = moved.maps["0.weight"].parts
    assert torch.equal(parts["g"], chart.maps["0.weight"].parts["g"])


@pytest.mark.parametrize("chart", [cv.WeightStandardization(), cv.Sphere(radius=2.0)], ids=repr)
def test_weights_out_of_reach_are_refused_and_the_nearest_are_the_nearest(chart):
    with pytest.raises(cv.InputError, match=r"cannot represent '0.weight'.*cv.nearest"):
        chart.at(LAYOUT, WEIGHTS)
    nearest = chart.nearest(LAYOUT, WEIGHTS)
    at_point = chart.at(LAYOUT, nearest)
    # Stationary: what is left of the way is orthogonal to everything that the coordinates can do.
    assert float(at_point.pull((WEIGHTS - nearest)[:, None]).abs().max()) < 1e-14
    assert distance(chart.nearest(LAYOUT, nearest), nearest) < 1e-15


def test_the_problem_at_the_nearest_weights_says_how_far_it_moved(mlp, regression_data):
    problem = cv.Problem.from_module(mlp(3, 4, 2), loss="mse", data=regression_data(8, 3, 2))
    moved = cv.nearest(problem, cv.WeightStandardization())
    distance_moved = float((moved.weights - problem.weights).norm() / problem.weights.norm())
    (note,) = moved.notes
    assert f"{distance_moved:.2g} (relative)" in note
    assert f"{moved.value():.6g} in place of {problem.value():.6g}" in note
    assert cv.nearest(problem, cv.Sphere()).notes == ()
    assert torch.equal(cv.nearest(problem, cv.Sphere()).weights, problem.weights)
    assert problem.notes == ()
    with pytest.raises(cv.ConfigurationError, match=r"must be a Parameterization.*got str"):
        cv.nearest(problem, "sphere")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: cv.Sphere(per="column"), "per must be 'row' or 'matrix'"),
        (lambda: cv.Sphere(stretch=0.0), "stretch"),
        (lambda: cv.Sphere(radius=-1.0), "radius must be a positive number"),
        (lambda: cv.RandomWeightFactorization(scale=0.0), "scale must be a positive number"),
        (lambda: cv.RandomWeightFactorization(deviation=-1.0), "deviation not negative"),
        (lambda: cv.WeightStandardization(frozen=("s",)), "no part 's': its parts are g, v"),
        (lambda: cv.WeightStandardization(frozen=("g", "v")), "no part left"),
        (lambda: cv.SpectralNorm(stretch=math.nan), "positive number"),
    ],
)
def test_wrong_options_are_refused(build, words):
    with pytest.raises(cv.ConfigurationError, match=words):
        build()


def test_points_without_a_derivative_are_refused():
    zero = WEIGHTS.clone()
    zero[LENGTH : 2 * LENGTH] = 0
    for chart in (cv.Sphere(), cv.WeightStandardization()):
        with pytest.raises(cv.InputError, match="row 1"):
            chart.at(LAYOUT, zero)
    constant = WEIGHTS.clone()
    constant[LENGTH : 2 * LENGTH] = 0.1  # whose mean, subtracted, may leave rounding
    for move in (cv.WeightStandardization().nearest, cv.WeightStandardization().at):
        with pytest.raises(cv.InputError, match=r"row 1 of layer '0' \(0.weight\) is constant"):
            move(LAYOUT, constant)
    orthogonal = torch.cat([torch.eye(ROWS, LENGTH, dtype=torch.float64).reshape(-1), WEIGHTS[-ROWS:]])
    with pytest.raises(cv.InputError, match=r"two largest singular values of '0.weight' are equal"):
        cv.SpectralNorm().at(LAYOUT, orthogonal)
    with pytest.raises(cv.InputError, match="are zero"):
        cv.SpectralNorm().at(LAYOUT, torch.zeros_like(WEIGHTS))
    with pytest.raises(cv.ConfigurationError, match="applies to no weight here"):
        cv.Sphere(layers="^7").at(LAYOUT, WEIGHTS)
    with pytest.raises(cv.ConfigurationError, match="do not reproduce its weights"):
        cv.Sphere(values={"0.weight": {"v": torch.ones(ROWS, LENGTH), "c": torch.ones(ROWS)}}).at(LAYOUT, WEIGHTS)
    with pytest.raises(cv.ConfigurationError, match=r"needs c, v of '0.weight', got v"):
        cv.Sphere(values={"0.weight": {"v": torch.ones(ROWS, LENGTH)}}).at(LAYOUT, WEIGHTS)
    with pytest.raises(cv.InputError, match=r"'nothing' matches no coordinate; they are 0.weight.g, 0.weight.v"):
        cv.WeightNorm().freeze("nothing").at(LAYOUT, WEIGHTS)
    with pytest.raises(cv.InputError, match=r"'\*g' is not a regular expression"):
        cv.WeightNorm().freeze("*g").at(LAYOUT, WEIGHTS)
    with pytest.raises(cv.ConfigurationError, match="leaves no coordinate"):
        cv.Standard().freeze("0").at(LAYOUT, WEIGHTS)


def test_second_derivatives_of_the_spectral_norm_survive_equal_singular_values_below_the_largest(generator):
    """There the derivatives of a singular value decomposition are NaN; central differences are the witness."""
    left, right = (torch.linalg.qr(normal(seed, 4, 4)).Q for seed in (1, 2))
    layout = Layout((Entry("w", (4, 4), "", 0, normalized=True),))
    point = (left * torch.tensor([3.0, 1.0, 1.0, 0.0], dtype=torch.float64)) @ right.T
    chart = cv.SpectralNorm(frozen=()).at(layout, point.reshape(-1))
    slope, tangent, h = normal(generator, 16), normal(generator, chart.dim), 1e-5

    def pulled(theta):
        return chart.moved(theta).at(layout, chart.to_weights(theta)).pull(slope[:, None])[:, 0]

    second = (pulled(chart.coordinates + h * tangent) - pulled(chart.coordinates - h * tangent)) / (2 * h)
    product = chart.second_order_product(slope, tangent[:, None])[:, 0]
    assert bool(torch.isfinite(product).all())
    assert distance(product, second) < 1e-8
