"""Steps compared on the weights: efficiency by other routes, its bounds, and what does not depend on coordinates."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from torch import nn

import curvature as cv
from curvature.charts import LinearChart
from curvature.errors import ConfigurationError, NotDefinedError
from curvature.linalg.operator import SymmetricOperator
from curvature.models import zoo
from curvature.natural_gradient import (
    Controls,
    best_stretch,
    best_stretches,
    control_charts,
    preconditioner,
    stretches,
    top_directions,
)
from oracles import distance, drawn

ROUNDING = 1e-10  # relative: 1e-16 times the condition number of A, below 1e4, with room
DAMPING = 0.01


def classifier(widths=(3, 4, 3), num_examples=12):
    module = zoo.mlp(widths)
    for number, parameter in enumerate(module.parameters()):
        parameter.data = 0.8 * drawn(*parameter.shape, seed=10 + number)
    targets = torch.randint(widths[-1], (num_examples,), generator=torch.Generator().manual_seed(5))
    return cv.Problem.from_module(module, loss="cross-entropy", data=(drawn(num_examples, widths[0]), targets))


def regression(num_examples=40):
    """A network whose Fisher has full rank: tanh, squared loss, more residuals than weights."""
    module = zoo.mlp((3, 3, 2))
    for number, parameter in enumerate(module.parameters()):
        parameter.data = 0.8 * drawn(*parameter.shape, seed=20 + number)
    return cv.Problem.from_module(
        module, loss="half-squared-error", data=(drawn(num_examples, 3), drawn(num_examples, 2, seed=2))
    )


def damped_fisher(problem, damping=DAMPING):
    matrix = cv.fisher(problem, method="generic").dense()
    return matrix + damping * float(matrix.trace()) / problem.dim * torch.eye(problem.dim, dtype=torch.float64)


def metric(problem, chart):
    """``K = J J^T`` from the Jacobian of the chart's own map, by autograd."""
    at = chart.at(problem.layout, problem.weights)
    jacobian = torch.autograd.functional.jacobian(at.to_weights, at.coordinates)
    return jacobian @ jacobian.T


CHARTS = {
    "standard": cv.Standard(),
    "weight-norm": cv.WeightNorm(),
    "weight-norm-stretched": cv.WeightNorm(stretch=3.0),
    "weight-norm-compressed": cv.WeightNorm(stretch=0.2),
    "weight-norm-paper": cv.WeightNorm("paper"),
    "scaled-standard": cv.ScaledStandard(),
    "placebo": cv.Placebo(seed=4, stretch=3.0),
    "diagonal": LinearChart(0.1 + drawn(31).abs()),
    "rectangular": LinearChart(drawn(31, 40)),
    "singular": LinearChart(drawn(31, 5)),
}


# ------------------------------------------------------------------------------------------------------------ steps


@pytest.mark.parametrize("chart", CHARTS)
def test_step_of_a_chart_is_minus_k_times_the_gradient(chart):
    problem = classifier()
    expected = -metric(problem, CHARTS[chart]) @ problem.gradient()
    assert distance(cv.chart_step(problem, CHARTS[chart]), expected) < 1e-13


def test_step_of_weight_norm_is_a_small_step_of_gradient_descent_in_its_coordinates():
    problem = classifier()
    at = cv.WeightNorm(stretch=2.0).at(problem.layout, problem.weights)

    def moved(rate):
        point = at.coordinates.clone().requires_grad_()
        outputs = problem.predict(at.to_weights(point), problem.inputs)
        loss = nn.functional.cross_entropy(outputs, problem.targets)
        return at.to_weights(at.coordinates - rate * torch.autograd.grad(loss, point)[0])

    difference = (moved(1e-5) - moved(-1e-5)) / 2e-5
    assert distance(cv.chart_step(problem, cv.WeightNorm(stretch=2.0)), difference) < 1e-8


@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_damped_natural_gradient_step_solves_the_damped_system(damping):
    problem = classifier()
    expected = -torch.linalg.solve(damped_fisher(problem, damping), problem.gradient())
    assert distance(cv.natural_gradient_step(problem, relative_damping=damping), expected) < ROUNDING


@pytest.mark.parametrize("block", ["layer", "neuron"])
@pytest.mark.parametrize("damping", [0.0, 1e-2])
def test_block_natural_gradient_steps_solve_block_by_block(block, damping):
    problem = regression()
    matrix = damped_fisher(problem, damping)
    expected = torch.zeros_like(problem.weights)
    rows = [(f"{layer}.{leaf}", slice(None)) for layer in (0, 2) for leaf in ("weight", "bias")]
    members = [rows[:2], rows[2:]]
    if block == "neuron":
        members = [
            [(f"{layer}.weight", k), (f"{layer}.bias", k)] for layer, width in ((0, 3), (2, 2)) for k in range(width)
        ]
    index = problem.unflatten(torch.arange(problem.dim))
    for names in members:
        where = torch.cat([index[name][key].reshape(-1) for name, key in names])
        expected[where] = -torch.linalg.solve(matrix[where][:, where], problem.gradient()[where])
    assert distance(cv.natural_gradient_step(problem, relative_damping=damping, block=block), expected) < 1e-8


def test_undamped_natural_gradient_step_is_that_of_the_pseudoinverse():
    problem = classifier()  # the softmax shift makes its Fisher singular
    fisher = cv.fisher(problem, method="generic").dense()
    expected = -torch.linalg.pinv(fisher, rtol=1e-13, hermitian=True) @ problem.gradient()
    step = cv.natural_gradient_step(problem, relative_damping=0)
    assert distance(step, expected) < 1e-7  # 1e-16 times the condition number on the rank, about 1e7, with room
    assert distance(fisher @ step, -problem.gradient()) < 1e-9


def test_natural_gradient_step_of_least_squares_goes_to_the_optimum():
    optimum = zoo.linear_regression(50, 5)
    problem = optimum.at(optimum.weights + drawn(5))
    step = cv.natural_gradient_step(problem, relative_damping=0)
    assert distance(problem.weights + step, optimum.weights) < 1e-13


def in_weight_norm(problem, stretch, damping):
    """The natural-gradient step taken in the coordinates of weight norm, and pushed forward to the weights."""
    chart = cv.WeightNorm(stretch=stretch)
    at = chart.at(problem.layout, problem.weights)
    fisher = cv.pullback(cv.fisher(problem), chart).dense()
    slope = at.pull(problem.gradient()[:, None])[:, 0]
    if damping:
        return -at.push(torch.linalg.solve(fisher + damping * torch.eye(at.dim, dtype=torch.float64), slope)[:, None])[
            :, 0
        ]
    return -at.push((torch.linalg.pinv(fisher, rtol=1e-12, hermitian=True) @ slope)[:, None])[:, 0]


@pytest.mark.parametrize("stretch", [0.5, 1.0, 3.0])
def test_undamped_natural_gradient_is_coordinate_free(stretch):
    problem = regression()
    expected = cv.natural_gradient_step(problem, relative_damping=0)
    assert distance(in_weight_norm(problem, stretch, 0), expected) < 1e-8


def test_on_a_singular_fisher_it_is_coordinate_free_where_the_fisher_looks():
    problem = classifier()
    fisher = cv.fisher(problem).dense()
    expected = fisher @ cv.natural_gradient_step(problem, relative_damping=0)
    assert distance(fisher @ in_weight_norm(problem, 3.0, 0), expected) < 1e-7


@pytest.mark.parametrize(("stretch", "same"), [(1.0, True), (3.0, False)])
def test_damped_natural_gradient_depends_on_the_coordinates(stretch, same):
    """Damping the pullback pushes forward to damping by ``K^-1``: plain damping at the canonical gauge alone."""
    problem = regression()
    shift = DAMPING * float(cv.fisher(problem).dense().trace()) / problem.dim
    found = in_weight_norm(problem, stretch, shift)
    inverse = torch.linalg.inv(metric(problem, cv.WeightNorm(stretch=stretch)))
    expected = -torch.linalg.solve(cv.fisher(problem).dense() + shift * inverse, problem.gradient())
    assert distance(found, expected) < ROUNDING
    plain = cv.natural_gradient_step(problem, relative_damping=DAMPING)
    assert distance(expected, plain) < 1e-10 if same else distance(expected, plain) > 0.1


# ------------------------------------------------------------------------------------------------------- efficiency


@pytest.mark.parametrize("chart", CHARTS)
def test_efficiency_is_the_ratio_of_the_best_decreases_of_the_quadratic_model(chart):
    problem = classifier()
    matrix, slope = damped_fisher(problem).numpy(), problem.gradient().numpy()

    def model(step):
        return slope @ step + 0.5 * step @ matrix @ step

    direction = cv.chart_step(problem, CHARTS[chart]).numpy()
    direction = direction / np.linalg.norm(direction)
    along = minimize_scalar(lambda rate: model(rate * direction), options={"xtol": 1e-12}).fun
    anywhere = minimize(model, np.zeros(31), jac=lambda s: slope + matrix @ s, options={"gtol": 1e-10}).fun
    assert along < 0
    found = cv.efficiency(problem, CHARTS[chart], relative_damping=DAMPING)
    assert found.efficiency == pytest.approx(along / anywhere, rel=1e-6)


@pytest.mark.parametrize("chart", CHARTS)
def test_efficiency_is_the_squared_cosine_with_the_natural_gradient_in_the_norm_of_a(chart):
    problem = classifier()
    root = torch.linalg.cholesky(damped_fisher(problem)).T  # ||L^T x|| is the A-norm of x
    step = root @ cv.chart_step(problem, CHARTS[chart])
    natural = root @ cv.natural_gradient_step(problem, relative_damping=DAMPING)
    cosine = float(step @ natural / (torch.linalg.norm(step) * torch.linalg.norm(natural)))
    found = cv.efficiency(problem, CHARTS[chart], relative_damping=DAMPING)
    assert found.efficiency == pytest.approx(cosine**2, rel=ROUNDING)


@st.composite
def spectra_and_charts(draw):
    """A semidefinite matrix with a wide spectrum, in the place of the Fisher, and any linear chart."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    exponents = torch.tensor(draw(st.lists(st.floats(-4, 2), min_size=6, max_size=6)), dtype=torch.float64)
    values = 10.0**exponents
    values[: draw(st.integers(0, 5))] = 0
    other = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    multipliers = torch.tensor(draw(st.lists(st.floats(-2, 2), min_size=6, max_size=6)), dtype=torch.float64)
    weights = torch.randn(6, generator=generator, dtype=torch.float64)
    return (basis * values) @ basis.T, other * 10.0**multipliers, weights


@given(drawn_case=spectra_and_charts(), damping=st.sampled_from((1e-4, 1e-2, 1.0)))
@settings(max_examples=60)
def test_efficiency_lies_between_the_bound_of_kantorovich_and_one(drawn_case, damping):
    fisher, factor, weights = drawn_case
    problem = zoo.linear_regression(20, 6).at(weights)
    given_fisher = SymmetricOperator.from_dense(fisher)
    found = cv.efficiency(problem, LinearChart(factor), relative_damping=damping, fisher=given_fisher)
    assert found.damping == pytest.approx(damping * float(fisher.trace()) / 6, rel=1e-12)
    damped = fisher + found.damping * torch.eye(6, dtype=torch.float64)
    values = torch.linalg.eigvalsh(factor.T @ damped @ factor)
    kappa = float(values[-1] / values[0])
    rounding = 1e-13 * kappa + 1e-12  # of the smallest eigenvalues, and of the quotient
    assert found.kappa == pytest.approx(kappa, rel=max(1e-8, 100 * rounding))
    assert 4 * kappa / (1 + kappa) ** 2 <= found.efficiency * (1 + 100 * rounding)
    assert 0 <= found.efficiency <= 1 + rounding


def test_the_bound_of_kantorovich_is_attained():
    """By a gradient that is half of the top and half of the bottom eigenvector, in the norm of the inverse."""
    fisher = torch.diag(torch.tensor([9.0, 3.0, 1.0], dtype=torch.float64))
    optimum = zoo.linear_regression(30, 3)
    lengths = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    problem = optimum.at(optimum.weights + torch.linalg.solve(cv.hessian(optimum).dense(), lengths))
    found = cv.efficiency(problem, cv.Standard(), relative_damping=1e-12, fisher=SymmetricOperator.from_dense(fisher))
    assert found.efficiency == pytest.approx(4 * 9 / (1 + 9) ** 2, rel=1e-9)


@pytest.mark.parametrize("damping", [1e-4, 1e-1])
def test_the_natural_gradient_chart_has_efficiency_one_and_distance_zero(damping):
    problem = classifier()
    chart = preconditioner(problem, "full", relative_damping=damping)
    found = cv.efficiency(problem, chart, relative_damping=damping)
    assert found.efficiency == pytest.approx(1, abs=ROUNDING)
    assert found.kappa == pytest.approx(1, abs=1e-8)
    assert found.am_gm == pytest.approx(0, abs=1e-8)
    assert found.ai_distance == pytest.approx(0, abs=1e-8)


def test_efficiency_and_distance_do_not_depend_on_the_learning_rate():
    """A multiple of a chart takes the same steps at another learning rate."""
    problem = classifier()
    factor = 0.1 + drawn(31).abs()
    first, second = (
        cv.efficiency(problem, LinearChart(scale * factor), relative_damping=DAMPING) for scale in (1.0, 7.0)
    )
    for name in ("efficiency", "index", "kappa", "am_gm", "ai_distance"):
        assert getattr(first, name) == pytest.approx(getattr(second, name), rel=1e-10), name


@pytest.mark.parametrize("chart", [name for name in CHARTS if name != "singular"])
def test_closeness_is_that_of_the_generalized_eigenvalues_of_k_and_a(chart):
    problem = classifier()
    values = torch.linalg.eigvals(metric(problem, CHARTS[chart]) @ damped_fisher(problem)).real.numpy()
    found = cv.efficiency(problem, CHARTS[chart], relative_damping=DAMPING)
    assert found.kappa == pytest.approx(values.max() / values.min(), rel=1e-7)
    assert found.am_gm == pytest.approx(np.log(values.mean()) - np.log(values).mean(), rel=1e-8)
    assert found.ai_distance == pytest.approx(np.std(np.log(values)), rel=1e-8)


def test_a_singular_chart_is_close_to_no_inverse():
    found = cv.efficiency(classifier(), CHARTS["singular"], relative_damping=DAMPING)
    assert math.isnan(found.kappa)
    assert math.isnan(found.am_gm)
    assert 0 < found.efficiency < 1


def test_the_canonical_gauge_is_gradient_descent():
    problem = classifier()
    standard, canonical = (
        cv.efficiency(problem, chart, relative_damping=DAMPING) for chart in (cv.Standard(), cv.WeightNorm())
    )
    for name in ("efficiency", "kappa", "am_gm", "ai_distance"):
        assert getattr(canonical, name) == pytest.approx(getattr(standard, name), rel=1e-10), name


# ------------------------------------------------------------------------------------------------- index and scopes


def blocks_by_hand(problem, by):
    """Names and members of the blocks of a network of two linear layers, from the shapes alone."""
    index = problem.unflatten(torch.arange(problem.dim))
    if by == "all":
        return {"all": torch.arange(problem.dim)}
    found = {}
    for layer in ("0", "2"):
        weight, bias = index[f"{layer}.weight"], index[f"{layer}.bias"]
        if by == "layer":
            found[layer] = torch.cat([weight.reshape(-1), bias])
        else:
            found |= {f"{layer}[{k}]": torch.cat([weight[k], bias[k : k + 1]]) for k in range(len(bias))}
    return found


@pytest.mark.parametrize("by", ["all", "layer", "neuron"])
def test_each_scope_compares_the_blocks_that_belong_to_it(by):
    problem = classifier()
    chart = cv.WeightNorm(stretch=3.0)
    found = cv.compare_charts(problem, [chart], relative_dampings=(DAMPING,), block=by)
    expected = blocks_by_hand(problem, by)
    assert [comparison.block for comparison in found] == list(expected)
    matrix, k, slope = damped_fisher(problem), metric(problem, chart), problem.gradient()
    for comparison, where in zip(found, expected.values(), strict=True):
        a, g = matrix[where][:, where], slope[where]
        step = k[where][:, where] @ g
        value = (g @ step) ** 2 / ((step @ a @ step) * (g @ torch.linalg.solve(a, g)))
        assert comparison.efficiency == pytest.approx(float(value), rel=ROUNDING)


@pytest.mark.parametrize("by", ["all", "layer", "neuron"])
@pytest.mark.parametrize("damping", [1e-4, 1e-1])
def test_index_is_zero_for_gradient_descent_and_one_for_the_neuron_block(by, damping):
    problem = classifier()
    ends = [cv.Standard(), preconditioner(problem, "neuron-block", relative_damping=damping)]
    found = cv.compare_charts(problem, ends, relative_dampings=(damping,), block=by)
    indices = {name: [c.index for c in found if c.block == name] for name in blocks_by_hand(problem, by)}
    assert all(values == [0.0, 1.0] for values in indices.values())


def test_index_places_a_chart_between_the_two_ends():
    problem = classifier()
    charts = [
        cv.Standard(),
        cv.WeightNorm(stretch=3.0),
        preconditioner(problem, "neuron-block", relative_damping=DAMPING),
    ]
    low, found, high = cv.compare_charts(problem, charts, relative_dampings=(DAMPING,))
    expected = (found.efficiency - low.efficiency) / (high.efficiency - low.efficiency)
    assert found.index == pytest.approx(expected, rel=1e-12)


def test_index_is_undefined_where_the_ends_coincide():
    """One neuron, whitened inputs: the Fisher is the identity and gradient descent is the natural gradient."""
    inputs = torch.linalg.qr(drawn(20, 3)).Q * 20**0.5
    module = nn.Linear(3, 1, bias=False).double()
    problem = cv.Problem.from_module(module, loss="half-squared-error", data=(inputs, drawn(20, 1, seed=2)))
    found = cv.efficiency(problem, cv.WeightNorm(stretch=2.0), relative_damping=DAMPING)
    assert math.isnan(found.index)


@pytest.mark.parametrize(("by", "kind"), [("neuron", "neuron-block"), ("layer", "layer-block"), ("all", "full")])
def test_within_its_own_blocks_block_natural_gradient_is_perfect(by, kind):
    problem = classifier()
    chart = preconditioner(problem, kind, relative_damping=DAMPING)
    for comparison in cv.compare_charts(problem, [chart], relative_dampings=(DAMPING,), block=by):
        assert comparison.efficiency == pytest.approx(1, abs=ROUNDING)


def test_a_block_without_gradient_is_left_out():
    """That of a dead unit."""
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, 0.5], [-0.3, 1.0]]))
        module[0].bias.copy_(torch.tensor([-100.0, 0.1]))
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(drawn(8, 2), torch.arange(8) % 2))
    found = cv.compare_charts(problem, [cv.Standard()], block="neuron")
    assert [comparison.block for comparison in found] == ["0[1]", "2[0]", "2[1]"]


# --------------------------------------------------------------------------------------------------------- controls


def test_control_charts_are_the_promised_ones():
    problem = classifier()
    names = [(chart.name, chart.gauge) for chart in control_charts(problem, relative_damping=DAMPING)]
    damped = "relative damping=0.01"
    assert names == [
        ("standard", "-"),
        ("weight-norm", "canonical"),
        ("weight-norm", "paper"),
        ("placebo", "paper"),
        ("e1-direction", "paper"),
        ("weight-norm", "best stretch"),
        ("jacobi", damped),
        ("neuron-block", damped),
        ("layer-block", damped),
        ("kfac", damped),
        ("prong", damped),
        ("natural-gradient", damped),
    ]


def test_the_modules_own_gauge_is_among_the_controls():
    module = zoo.mlp((3, 4, 3))
    nn.utils.parametrizations.weight_norm(module[0])
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(drawn(8, 3), torch.arange(8) % 3))
    gauges = [chart.gauge for chart in control_charts(problem) if chart.name == "weight-norm"]
    assert gauges == ["canonical", "paper", "checkpoint", "best stretch"]


def test_comparisons_over_dampings_use_controls_made_at_each_damping():
    problem = classifier()
    found = cv.compare_charts(problem, relative_dampings=(1e-3, 1e-1))
    assert [c.relative_damping for c in found if c.chart == "natural-gradient"] == [1e-3, 1e-1]
    for comparison in found:
        assert 0 <= comparison.efficiency <= 1 + 1e-9
        if comparison.chart == "natural-gradient":
            assert comparison.efficiency == pytest.approx(1, abs=1e-9)


def test_controls_shared_between_calls_change_nothing():
    problem = classifier()
    shared = Controls(problem)
    for damping in (1e-3, 1e-1):
        alone = cv.compare_charts(problem, relative_dampings=(damping,))
        assert cv.compare_charts(problem, relative_dampings=(damping,), controls=shared) == alone


def test_the_direction_of_the_noise_control_is_the_top_eigenvector_of_each_neurons_gradients():
    problem = classifier()
    gradients = torch.stack(
        [
            cv.Problem.from_module(problem.model.requires_grad_(), loss="cross-entropy", data=data).gradient(
                problem.weights
            )
            for data in zip(problem.inputs.split(1), problem.targets.split(1), strict=True)
        ]
    )
    for name, rows in top_directions(problem).items():
        for row, where in zip(rows, problem.unflatten(torch.arange(problem.dim))[name], strict=True):
            block = torch.cov(gradients[:, where].T)
            values, vectors = torch.linalg.eigh(block)
            assert values[-1] > 1.1 * values[-2]
            assert float((row @ vectors[:, -1]).abs()) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("damping", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("widths", [(3, 4, 3), (5, 2), (1, 3, 2)])
def test_best_stretch_is_the_best_of_a_fine_grid(widths, damping):
    problem = classifier(widths)
    stretches = np.logspace(-4, 4, 161)
    charts = [cv.WeightNorm(stretch=float(stretch)) for stretch in stretches]
    grid = cv.compare_charts(problem, charts, relative_dampings=(damping,), closeness=False)
    found = best_stretch(problem, relative_damping=damping)
    best = cv.efficiency(problem, cv.WeightNorm(stretch=found), relative_damping=damping).efficiency
    top = max(comparison.efficiency for comparison in grid)
    assert best >= top * (1 - 1e-12)
    assert best <= top * 1.01  # and the grid is fine enough to have seen it
    assert 1e-4 <= found <= 1e4


@pytest.mark.parametrize(("weights", "stretch"), [((1.0, 0.0), 1e4), ((0.0, 1.0), 1e-4)])
def test_best_stretch_is_the_end_of_its_range_where_the_best_is_beyond(weights, stretch):
    """Gradient (1, 1), Fisher [[1, 1.5], [1.5, 3]]: the second coordinate only spoils a step along the first."""
    inputs = torch.linalg.qr(drawn(20, 2)).Q * 20**0.5
    module = nn.Linear(2, 1, bias=False).double()
    module.weight.data = torch.tensor([weights], dtype=torch.float64)
    optimum = module.weight.detach() - torch.ones(1, 2, dtype=torch.float64)
    problem = cv.Problem.from_module(module, loss="half-squared-error", data=(inputs, inputs @ optimum.T))
    assert torch.allclose(problem.gradient(), torch.ones(2, dtype=torch.float64), rtol=1e-12)
    fisher = SymmetricOperator.from_dense(torch.tensor([[1.0, 1.5], [1.5, 3.0]], dtype=torch.float64))
    assert best_stretch(problem, relative_damping=1e-9, fisher=fisher) == pytest.approx(stretch, rel=1e-12)


SCOPES = ("network", "layer", "neuron")


def efficiency_at(problem, stretches, damping=DAMPING):
    """``E`` at one stretch per row: from the definition, with dense matrices and the Jacobian by autograd."""
    matrix, slope = damped_fisher(problem, damping), problem.gradient()
    step = metric(problem, cv.WeightNorm(stretch=stretches)) @ slope
    return float((slope @ step) ** 2 / ((step @ matrix @ step) * (slope @ torch.linalg.solve(matrix, slope))))


def kappa_at(problem, stretches):
    matrix = cv.effective(cv.fisher(problem), cv.WeightNorm(stretch=stretches))
    return cv.spectrum(matrix).condition_numbers()["kappa_80"].value


@pytest.mark.parametrize("widths", [(3, 4, 3), (3, 3, 2, 3)])
@pytest.mark.parametrize("damping", [1e-4, 1e-1])
def test_the_best_one_stretch_is_that_of_the_closed_form(widths, damping):
    problem = classifier(widths)
    found = best_stretches(problem, by="network", relative_damping=damping)
    values = torch.cat(list(found.values()))
    assert torch.equal(values, values[:1].expand_as(values))
    assert float(values[0]) == pytest.approx(best_stretch(problem, relative_damping=damping), rel=1e-9)


@pytest.mark.parametrize("build", [classifier, regression])
def test_finer_groups_are_never_less_efficient_and_gradient_descent_is_beaten(build):
    problem = build()
    values = [efficiency_at(problem, best_stretches(problem, by=by, relative_damping=DAMPING)) for by in SCOPES]
    assert efficiency_at(problem, 1.0) <= values[0] * (1 + 1e-12)
    assert values[0] < values[1] < values[2]
    assert (
        values[2]
        <= cv.efficiency(problem, preconditioner(problem, "full", relative_damping=DAMPING)).efficiency + 1e-12
    )


@pytest.mark.parametrize("by", ["layer", "neuron"])
def test_no_search_over_stretches_is_more_efficient(by):
    """Against Nelder-Mead over log stretches from several starts: a route without least squares."""
    problem = classifier()
    matrix, slope = damped_fisher(problem), problem.gradient()
    found = best_stretches(problem, by=by, relative_damping=DAMPING)
    sizes = [len(rows) for rows in found.values()]

    def lost(logs):
        values = torch.as_tensor(np.exp(np.clip(logs, -9, 9)))
        parts = (
            [part.expand(n) for part, n in zip(values, sizes, strict=True)] if by == "layer" else values.split(sizes)
        )
        step = cv.chart_step(problem, cv.WeightNorm(stretch=dict(zip(found, parts, strict=True))))
        return -float((slope @ step) ** 2 / (step @ matrix @ step) / (slope @ torch.linalg.solve(matrix, slope)))

    count = 2 if by == "layer" else sum(sizes)
    searched = min(
        minimize(lost, np.full(count, start), method="Nelder-Mead", options={"maxfev": 400}).fun for start in (0.0, 1.0)
    )
    best = efficiency_at(problem, found)
    assert best >= -searched * (1 - 1e-6)  # the clipped ends of the range cost less than that
    assert best <= -searched * 1.1  # and the search came near it


@pytest.mark.parametrize(("weights", "stretch"), [((1.0, 0.0), 1e4), ((0.0, 1.0), 1e-4)])
def test_best_stretches_are_the_end_of_their_range_where_the_best_is_beyond(weights, stretch):
    """The problem of the closed form above: Fisher [[1, 1.5], [1.5, 3]], gradient (1, 1)."""
    inputs = drawn(20, 2) @ torch.linalg.inv(torch.linalg.qr(drawn(20, 2)).R) * 20**0.5  # whitened
    inputs = inputs @ torch.linalg.cholesky(torch.tensor([[1.0, 1.5], [1.5, 3.0]], dtype=torch.float64)).T
    module = nn.Linear(2, 1, bias=False).double()
    module.weight.data = torch.tensor([weights], dtype=torch.float64)
    fisher = torch.tensor([[1.0, 1.5], [1.5, 3.0]], dtype=torch.float64)
    optimum = module.weight.detach() - torch.linalg.solve(fisher, torch.ones(2, dtype=torch.float64))
    problem = cv.Problem.from_module(module, loss="half-squared-error", data=(inputs, inputs @ optimum.T))
    assert torch.allclose(problem.gradient(), torch.ones(2, dtype=torch.float64), rtol=1e-12)
    found = best_stretches(problem, by="neuron", relative_damping=1e-9)
    assert found["weight"].tolist() == pytest.approx([stretch], rel=1e-12)


def test_a_neuron_without_a_gradient_keeps_the_canonical_gauge():
    module = zoo.mlp((3, 4, 3), activation="relu")
    module[0].bias.data[2] = -100.0  # dead on all data
    targets = torch.randint(3, (12,), generator=torch.Generator().manual_seed(5))
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(drawn(12, 3), targets))
    found = best_stretches(problem, by="neuron", relative_damping=DAMPING)["0.weight"]
    assert float(found[2]) == 1
    assert int((found == 1).sum()) == 1


@pytest.mark.parametrize("build", [classifier, regression])
def test_finer_groups_have_no_larger_kappa_and_the_canonical_gauge_is_no_better(build):
    problem = build()
    values = [kappa_at(problem, best_stretches(problem, by=by, criterion="kappa")) for by in SCOPES]
    assert values[0] <= kappa_at(problem, 1.0) * (1 + 1e-9)
    assert values[1] <= values[0] * (1 + 1e-9)
    assert values[2] <= values[1] * (1 + 1e-9)
    assert values[2] < 0.9 * kappa_at(problem, 1.0)


def test_the_search_for_finer_groups_begins_where_the_coarser_one_ended(monkeypatch):
    problem = classifier()
    network = best_stretches(problem, by="network", criterion="kappa")
    least = stretches._least_kappa

    def patched(problem, groups, *rest):
        return least(problem, groups, *rest) if groups.count == 1 else rest[-1][0]

    monkeypatch.setattr(stretches, "_least_kappa", patched)
    neuron = best_stretches(problem, by="neuron", criterion="kappa")
    assert not torch.allclose(network["0.weight"], torch.ones(4, dtype=torch.float64), rtol=0.01)
    for name, rows in network.items():
        assert torch.allclose(neuron[name], rows, rtol=1e-12)


def test_the_one_stretch_of_least_kappa_is_at_least_as_good_as_a_grid():
    problem = classifier()
    found = kappa_at(problem, best_stretches(problem, by="network", criterion="kappa"))
    grid = min(kappa_at(problem, float(stretch)) for stretch in np.logspace(-2, 2, 41))
    assert found <= 1.05 * grid


def test_kappa_is_least_where_w_is_the_top_eigenvector_and_rho_undoes_the_gap():
    """Least squares, science of the pullback: ``{l_1} U {rho l_j}``; best where the largest of the rest reaches l_1."""
    spectrum = torch.tensor([8.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    inputs = torch.linalg.qr(drawn(30, 4)).Q * 30**0.5 * spectrum.sqrt()
    module = nn.Linear(4, 1, bias=False).double()
    module.weight.data = torch.tensor([[1.5, 0.0, 0.0, 0.0]], dtype=torch.float64)
    problem = cv.Problem.from_module(module, loss="half-squared-error", data=(inputs, inputs @ drawn(4, 1)))
    found = kappa_at(problem, best_stretches(problem, criterion="kappa"))
    # kappa_80 of four eigenvalues is l_1 / l_4: 16 at rho = 1, 2 / 0.5 = 4 for rho from 4 to 16.
    assert kappa_at(problem, 1.0) == pytest.approx(16)
    assert found == pytest.approx(4, rel=1e-9)


@pytest.mark.parametrize("wrong", [{"by": "row"}, {"criterion": "kappa_80"}])
def test_unknown_groups_and_criteria_are_refused(wrong):
    with pytest.raises(ConfigurationError, match="must be one of"):
        best_stretches(classifier(), **wrong)


def test_a_kappa_below_the_noise_floor_is_not_minimized():
    inputs = drawn(20, 4) * torch.tensor([1.0, 1.0, 1.0, 1e-9])
    module = nn.Linear(4, 1, bias=False).double()
    problem = cv.Problem.from_module(module, loss="half-squared-error", data=(inputs, drawn(20, 1)))
    with pytest.raises(NotDefinedError, match="kappa_80 is not resolved"):
        best_stretches(problem, criterion="kappa")


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("damping", [0.0, -1e-3])
def test_efficiency_without_damping_is_refused(damping):
    with pytest.raises(ConfigurationError, match="damping must be positive"):
        cv.efficiency(classifier(), cv.Standard(), relative_damping=damping)
    with pytest.raises(ConfigurationError, match="damping must be positive"):
        best_stretch(classifier(), relative_damping=damping)


def test_a_negative_damping_of_the_natural_gradient_is_refused():
    with pytest.raises(ConfigurationError, match="damping must be finite and not negative"):
        cv.natural_gradient_step(classifier(), relative_damping=-1e-3)


FORMS = {  # what takes a damping, and a number that depends on it
    "natural_gradient_step": lambda problem, **form: float(cv.natural_gradient_step(problem, **form).norm()),
    "efficiency": lambda problem, **form: cv.efficiency(problem, cv.Standard(), **form).efficiency,
    "best_stretch": best_stretch,
    "best_stretches": lambda problem, **form: float(best_stretches(problem, **form)["0.weight"].sum()),
    "control_charts": lambda problem, **form: sum(
        float(cv.chart_step(problem, chart).norm()) for chart in control_charts(problem, **form)
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_two_forms_of_a_damping_give_the_same_numbers(name):
    problem = regression()
    shift = DAMPING * float(cv.fisher(problem).dense().trace()) / problem.dim
    relative = FORMS[name](problem, relative_damping=DAMPING)
    assert FORMS[name](problem, damping=shift) == pytest.approx(relative, rel=1e-9)
    assert FORMS[name](problem, damping=2 * shift) != pytest.approx(relative, rel=1e-9)


@pytest.mark.parametrize("name", FORMS)
def test_both_forms_of_a_damping_are_refused(name):
    with pytest.raises(ConfigurationError, match="not both"):
        FORMS[name](classifier(), damping=DAMPING, relative_damping=DAMPING)


def test_comparisons_take_either_form_and_record_both():
    problem = classifier()
    mean = float(cv.fisher(problem).dense().trace()) / problem.dim
    relative = cv.compare_charts(problem, relative_dampings=(1e-3, 1e-1))
    absolute = cv.compare_charts(problem, dampings=(1e-3 * mean, 1e-1 * mean))
    for first, second in zip(relative, absolute, strict=True):
        assert second.damping == pytest.approx(first.damping, rel=1e-14)
        assert second.relative_damping == pytest.approx(first.relative_damping, rel=1e-14)
        assert second.efficiency == pytest.approx(first.efficiency, rel=1e-9)
    assert cv.compare_charts(problem, dampings=()) == cv.compare_charts(problem, relative_dampings=()) == ()
    with pytest.raises(ConfigurationError, match="not both"):
        cv.compare_charts(problem, dampings=(1e-3,), relative_dampings=(1e-3,))


def stationary():
    """A linear model that fits its targets exactly: the gradient is zero to the last bit."""
    module = nn.Linear(3, 2).double()
    inputs = drawn(6, 3)
    return cv.Problem.from_module(module, loss="half-squared-error", data=(inputs, module(inputs).detach()))


@pytest.mark.parametrize(
    "compare",
    [
        lambda problem: cv.efficiency(problem, cv.Standard()),
        cv.compare_charts,
        best_stretch,
        best_stretches,
        control_charts,
    ],
    ids=["efficiency", "compare_charts", "best_stretch", "best_stretches", "control_charts"],
)
def test_a_zero_gradient_is_refused(compare):
    problem = stationary()
    assert not problem.gradient().any()
    with pytest.raises(NotDefinedError, match="gradient is zero"):
        compare(problem)


def test_the_natural_gradient_step_of_a_zero_gradient_is_zero():
    assert not cv.natural_gradient_step(stationary(), relative_damping=1e-3).any()


def test_a_loss_without_likelihood_has_no_natural_gradient():
    module = zoo.mlp((3, 2))
    problem = cv.Problem.from_module(module, loss=lambda f, y: ((f - y) ** 4).sum(), data=(drawn(5, 3), drawn(5, 2)))
    with pytest.raises(NotDefinedError, match="likelihood"):
        cv.natural_gradient_step(problem, relative_damping=1e-3)
