"""Null directions by formula: counts on paper, each vector against the dense matrix, all against its nullity."""

from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import curvature as cv
from curvature.linalg.facts import NullSpace
from curvature.linalg.operator import SymmetricOperator
from curvature.linalg.rank import MAX_NULL_DIRECTIONS, formula_rank, verified
from curvature.matrices import MATRICES, nullspace
from curvature.matrices.nullspace import known_null_space
from curvature.models import zoo
from curvature.models.losses import CrossEntropy
from oracles import drawn, factor_of, operator_of, welsch

NULL = 1e-13  # |A n| relative to the largest eigenvalue: a few hundred units of rounding
SEMIDEFINITE = ("ggn", "fisher", "empirical_fisher", "gradient_covariance")


def labels(num_examples, num_classes):
    return torch.randint(num_classes, (num_examples,), generator=torch.Generator().manual_seed(7))


def with_weights(module, seed=3):
    module = module.double().eval()
    for number, parameter in enumerate(module.parameters()):
        parameter.data = 0.8 * drawn(*parameter.shape, seed=1000 * seed + number)
    return module


def relu_network(seed=3):
    """The ReLU 4-6-3 network of the counts on paper; no unit is dead on the data below."""
    return with_weights(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), seed)


def problem_of(module, *, loss="cross-entropy", inputs=None, targets=None):
    inputs = drawn(60, 4) if inputs is None else inputs
    if targets is None:
        width = module(inputs).shape[1]
        targets = labels(len(inputs), width) if loss == "cross-entropy" else drawn(len(inputs), width, seed=9)
    return cv.Problem.from_module(module, loss=loss, data=(inputs, targets))


def largest(matrix):
    return float(torch.linalg.matrix_norm(matrix, ord=2))


def numerical_rank(problem):
    """Rank of the GGN from the singular values of its factor, which show zeros at the square root of their size."""
    columns = factor_of(cv.ggn(problem, method="generic"))
    values = torch.linalg.svdvals(columns)
    rank = int((values > 1e-12 * values[0]).sum())
    assert rank == len(values) or values[rank] < 1e-3 * values[rank - 1]  # a gap, or the count would mean nothing
    return rank


def assert_all_null(problem, names, *, second_order=False):
    space = known_null_space(problem, second_order=second_order)
    identity = torch.eye(space.dim, dtype=torch.float64)
    assert torch.allclose(space.basis.T @ space.basis, identity, rtol=0, atol=1e-12)
    assert sum(space.reasons.values()) == space.dim
    for name in names:
        matrix = MATRICES[name](problem, method="generic").dense()
        lengths = torch.linalg.vector_norm(matrix @ space.basis, dim=0)
        assert (lengths < NULL * largest(matrix)).all(), name
    return space


# ------------------------------------------------------------------------------------------------- counts on paper


def test_relu_softmax_network_has_thirteen_null_directions():
    """Four inputs, six hidden units, three classes: ``6 + 1`` of the softmax shift and 6 of rescaling."""
    problem = problem_of(relu_network())
    space = assert_all_null(problem, SEMIDEFINITE)
    assert space.reasons == {"of the softmax shift": 7, "of rescaling across an activation": 6}
    assert problem.dim - numerical_rank(problem) == 13


@pytest.mark.parametrize("gauge", [{}, {"stretch": 2.0}, {"gauge": "paper"}])
def test_weight_norm_keeps_the_rank_and_adds_one_zero_per_neuron(gauge):
    operator = cv.ggn(problem_of(relu_network()))
    standard = cv.spectrum(operator)
    normed = cv.spectrum(cv.pullback(operator, cv.WeightNorm(**gauge)))
    assert (standard.dim - standard.rank, normed.dim - normed.rank) == (13, 22)
    assert standard.rank == normed.rank
    for record in (standard, normed):
        zeros = record.dim - record.rank
        assert abs(record.eigenvalues[zeros - 1]) < NULL * record.eigenvalues[-1] < 1e-3 * record.eigenvalues[zeros]
        assert "13 verified null directions (7 of the softmax shift, 6 of rescaling" in record.rank_rule


def test_the_module_normalized_by_pytorch_has_the_same_rank():
    module = relu_network()
    for layer in (module[0], module[2]):
        weight_norm(layer)
    problem = problem_of(module)
    record = cv.spectrum(cv.pullback(cv.ggn(problem), problem.chart))
    assert (record.dim, record.rank) == (60, 38)


@pytest.mark.parametrize("chart", [cv.WeightNorm(stretch=3.0), cv.ScaledStandard(2.0), cv.Placebo(seed=1, stretch=2.0)])
def test_effective_matrices_have_the_rank_of_the_matrix_on_the_weights(chart):
    record = cv.spectrum(cv.effective(cv.ggn(problem_of(relu_network())), chart))
    assert (record.dim, record.rank) == (51, 38)


def test_the_hessian_in_a_bent_chart_keeps_the_null_directions_of_what_the_chart_leaves_alone():
    operator = cv.hessian(problem_of(relu_network()))
    assert cv.spectrum(operator).rank_rule.startswith("formula")
    # The shift of all biases of the last layer; the shifts of its normalized rows are bent.
    record = cv.spectrum(cv.pullback(operator, cv.WeightNorm(stretch=2.0)))
    assert record.possible_ranks == (record.dim - 1, record.dim - 1)
    assert "1 verified null directions (1 among the weights that the chart keeps)" in record.rank_rule


@pytest.mark.parametrize("widths", [(5, 4, 3), (3, 4, 5), (2, 6, 2), (4, 1, 3)])
def test_two_linear_layers_have_the_square_of_the_hidden_width(widths):
    """Mixing of the hidden units; where there are more of them than inputs or outputs, nothing else is null either."""
    problem, _ = zoo.two_layer_linear(widths)
    space = assert_all_null(problem, SEMIDEFINITE)
    fan_in, hidden, fan_out = widths
    rank = min(widths)  # of the product: r (a + b - r) dimensions of such matrices
    expected = hidden * (fan_in + fan_out) - rank * (fan_in + fan_out - rank)
    assert space.dim == expected == problem.dim - numerical_rank(problem)
    if hidden <= min(fan_in, fan_out):
        assert space.reasons == {"of mixing between linear layers": hidden**2}


def test_between_linear_layers_with_biases_the_hidden_units_can_also_be_shifted():
    problem = problem_of(with_weights(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5))), loss="mse")
    assert problem.dim - numerical_rank(problem) == 3**2 + 3
    assert assert_all_null(problem, SEMIDEFINITE).dim == 3**2 + 3


@pytest.mark.parametrize(
    "loss",
    [
        "cross-entropy",
        CrossEntropy(torch.tensor([1.0, 0.5, 2.0])),
        CrossEntropy(ignore_index=1),
        CrossEntropy(label_smoothing=0.3),
    ],
    ids=["plain", "weights", "ignore", "smoothing"],
)
@pytest.mark.parametrize("bias", [True, False])
def test_softmax_shift_is_null_for_the_hessian_too(loss, bias):
    module = with_weights(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=bias)))
    problem = problem_of(module, loss=loss, targets=labels(60, 3))
    first = assert_all_null(problem, SEMIDEFINITE)
    second = assert_all_null(problem, ("hessian",), second_order=True)
    assert first.reasons == second.reasons == {"of the softmax shift": 5 + bias}


def test_softmax_shift_holds_for_soft_targets_and_through_a_convolution():
    module = with_weights(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)))
    targets = drawn(60, 3, seed=9).softmax(dim=1)
    problem = problem_of(module, loss=CrossEntropy(), inputs=drawn(60, 1, 4, 4), targets=targets)
    assert assert_all_null(problem, SEMIDEFINITE).reasons == {"of the softmax shift": 9}
    assert assert_all_null(problem, ("hessian",), second_order=True).reasons == {"of the softmax shift": 9}


@pytest.mark.parametrize("loss", ["bce", "mse", "half-squared-error"])
def test_other_losses_have_no_shift(loss):
    module = with_weights(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    targets = drawn(60, 3, seed=9).sigmoid()
    assert known_null_space(problem_of(module, loss=loss, targets=targets), second_order=False).dim == 0


def test_an_activation_behind_the_logits_breaks_the_shift():
    module = with_weights(nn.Sequential(nn.Linear(4, 3), nn.Tanh()))
    assert known_null_space(problem_of(module), second_order=False).dim == 0


def test_a_dead_unit_frees_its_incoming_and_outgoing_weights():
    """``fan_in + 1 + fan_out``, of which one is rescaling, and one outgoing direction is of the softmax shift."""
    module = relu_network()
    with torch.no_grad():
        module[0].bias[1] = -50
    alive = known_null_space(problem_of(relu_network()), second_order=False)
    problem = problem_of(module)
    space = assert_all_null(problem, SEMIDEFINITE)
    assert space.dim == alive.dim - 1 + (4 + 1 + 3) - 1 == problem.dim - numerical_rank(problem)
    assert space.reasons["of units that do not reach the loss"] == 5


def test_a_dead_unit_in_place_is_seen_too():
    found = []
    for in_place in (False, True):
        module = with_weights(nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=in_place), nn.Linear(6, 3)))
        with torch.no_grad():
            module[0].bias[1] = -50
        found.append(known_null_space(problem_of(module), second_order=False).reasons)
    assert found[0] == found[1]


def constant_and_duplicated(epsilon=0.0):
    """Columns: free, zero, constant, a copy of the first, free."""
    inputs = drawn(60, 5)
    inputs[:, 1] = 0
    inputs[:, 2] = 0.7
    inputs[:, 3] = inputs[:, 0] + epsilon * drawn(60, seed=4)
    return inputs


@pytest.mark.parametrize(("bias", "per_neuron"), [(True, 3), (False, 2)])
def test_constant_and_duplicated_inputs_free_directions_in_every_neuron(bias, per_neuron):
    """A zero column and a copy; a constant column only beside a bias, which says the same."""
    module = with_weights(nn.Sequential(nn.Linear(5, 4, bias=bias), nn.Tanh(), nn.Linear(4, 3)))
    problem = problem_of(module, loss="mse", inputs=constant_and_duplicated())
    expected = {"of constant or dependent layer inputs": 4 * per_neuron}
    assert assert_all_null(problem, SEMIDEFINITE).reasons == expected
    assert assert_all_null(problem, ("hessian",), second_order=True).reasons == expected
    assert problem.dim - numerical_rank(problem) == 4 * per_neuron


def test_inputs_that_are_almost_copies_are_not_taken_for_copies():
    module = with_weights(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    problem = problem_of(module, loss="mse", inputs=constant_and_duplicated(epsilon=1e-6))
    assert known_null_space(problem, second_order=False).dim == 4 * 2


def test_fewer_examples_than_inputs_leave_null_directions():
    module = with_weights(nn.Linear(6, 2))
    problem = problem_of(module, loss="mse", inputs=drawn(4, 6))
    assert (
        assert_all_null(problem, (*SEMIDEFINITE, "hessian")).dim == 2 * (7 - 4) == problem.dim - numerical_rank(problem)
    )


class Spare(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(4, 3), nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, inputs):
        return self.used(inputs)


def test_unused_parameters_are_null_in_every_matrix():
    problem = problem_of(with_weights(Spare()), loss="mse")
    assert set(problem.unused) == {"spare.weight", "spare.bias", "scale"}
    assert assert_all_null(problem, SEMIDEFINITE).reasons == {"of unused parameters": 11}
    assert assert_all_null(problem, ("hessian",), second_order=True).reasons == {"of unused parameters": 11}
    assert cv.spectrum(cv.ggn(problem)).rank == problem.dim - 11


def test_digits_have_sixty_five_known_null_directions_on_64_16_10():
    """Three pixels are 0 on every image, times 16 hidden units, and ``16 + 1`` of the softmax shift."""
    problem = zoo.digits_problem()
    blank = int((problem.inputs.abs().max(dim=0).values == 0).sum())
    for second_order, operator in ((False, cv.ggn(problem)), (True, cv.hessian(problem))):
        space = known_null_space(problem, second_order=second_order)
        assert space.reasons == {"of constant or dependent layer inputs": 16 * blank, "of the softmax shift": 17}
        assert space.dim == 65
        rank, rule = verified(space, operator)
        assert rank == problem.dim - 65
        assert "65 verified null directions" in rule


# --------------------------------------------------------------------------------- agreement with the dense matrix


@st.composite
def networks(draw):
    """Generic networks of two or three layers; biases on one side of a linear pair only."""
    widths = draw(st.lists(st.integers(2, 4), min_size=3, max_size=4))
    layers, linear_before = [], False
    for number, (fan_in, fan_out) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(fan_in, fan_out, bias=draw(st.booleans()) and not linear_before))
        if number + 2 < len(widths):
            kind = draw(st.sampled_from(("tanh", "leaky", "none")))
            # Two linear pairs in a row overlap in ways for which there is no list.
            kind = "tanh" if kind == "none" and (linear_before or number > 0) else kind
            linear_before = kind == "none"
            layers += {"tanh": [nn.Tanh()], "leaky": [nn.LeakyReLU(0.3)], "none": []}[kind]
    module = with_weights(nn.Sequential(*layers), seed=draw(st.integers(0, 10**6)))
    inputs = drawn(100, widths[0])
    assume(all(kinks_differ(module[:k](inputs)) for k, layer in enumerate(module) if isinstance(layer, nn.LeakyReLU)))
    return module, draw(st.sampled_from(("cross-entropy", "mse"))), inputs


def kinks_differ(pre_activations):
    """Whether the data tell the kinks of all units apart from each other and from none; else more is null than that."""
    signs = torch.cat([pre_activations.sign(), torch.ones_like(pre_activations[:, :1])], dim=1)
    same = (signs.T @ signs).abs() - len(signs) * torch.eye(signs.shape[1])
    return bool((same <= len(signs) - 2 * 10).all())


@given(network=networks())
@settings(max_examples=40)
def test_known_directions_are_all_there_are_on_generic_networks(network):
    module, loss, inputs = network
    problem = problem_of(module, loss=loss, inputs=inputs)
    space = assert_all_null(problem, ("ggn",))
    assert space.dim == problem.dim - numerical_rank(problem)
    assert verified(space, cv.ggn(problem))[0] == problem.dim - space.dim


@given(network=networks())
def test_the_hessian_has_every_null_direction_that_is_claimed_for_it(network):
    module, loss, inputs = network
    problem = problem_of(module, loss=loss, inputs=inputs)
    space = assert_all_null(problem, ("hessian",), second_order=True)
    rank, _ = verified(space, cv.hessian(problem))
    values = torch.linalg.eigvalsh(cv.hessian(problem, method="generic").dense()).abs()
    assert int((values > NULL * values.max()).sum()) <= rank == problem.dim - space.dim


def test_nesting_containers_hides_no_direction():
    flat = relu_network()
    nested = nn.Sequential(nn.Sequential(flat[0], flat[1]), nn.Sequential(flat[2]))
    found = [known_null_space(problem_of(module), second_order=False).dim for module in (flat, nested)]
    assert found == [13, 13]


# -------------------------------------------------------------------------------- what does not hold is not counted


def test_rescaling_is_not_null_for_the_hessian_away_from_stationary_points():
    """There ``H z = (-gradient of the incoming, +gradient of the outgoing weights)``."""
    problem = problem_of(relu_network())
    assert known_null_space(problem, second_order=True).reasons == {"of the softmax shift": 7}
    point, slope = (problem.unflatten(vector) for vector in (problem.weights, problem.gradient()))
    direction = {name: torch.zeros_like(part) for name, part in point.items()}
    expected = {name: torch.zeros_like(part) for name, part in point.items()}
    for name, index, sign in (("0.weight", 2, 1.0), ("0.bias", 2, 1.0), ("2.weight", (slice(None), 2), -1.0)):
        direction[name][index] = sign * point[name][index]
        expected[name][index] = -sign * slope[name][index]
    product = cv.hessian(problem) @ problem.flatten(direction)
    assert float(problem.flatten(expected).abs().max()) > 1e-3  # away from a minimum, or the test would say nothing
    assert torch.allclose(product, problem.flatten(expected), rtol=0, atol=1e-13)
    assert float((cv.ggn(problem) @ problem.flatten(direction)).abs().max()) < 1e-15


def test_equal_hidden_units_free_directions_in_the_ggn_but_not_in_the_hessian():
    """Their outgoing weights can be exchanged for each other only as long as the units stay equal."""
    module = with_weights(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    with torch.no_grad():
        module[0].weight[1] = module[0].weight[0]
        module[0].bias[1] = module[0].bias[0]
    problem = problem_of(module, loss="mse")
    space = assert_all_null(problem, SEMIDEFINITE)
    assert space.reasons == {"of constant or dependent layer inputs": 3}
    assert problem.dim - numerical_rank(problem) == 3
    assert known_null_space(problem, second_order=True).dim == 0
    assert float((cv.hessian(problem) @ space.basis).abs().max()) > 1e-3


def test_a_direction_that_is_not_null_is_dropped_and_said():
    module = relu_network()
    module[0].bias.requires_grad_(False)  # then scaling the weights alone is no symmetry
    problem = problem_of(module)
    space = known_null_space(problem, second_order=False)
    rank, rule = verified(space, cv.ggn(problem))
    assert space.dim == 13
    assert rank == problem.dim - 7 == numerical_rank(problem)
    assert "7 verified null directions" in rule
    assert "6 of them not null here, not counted" in rule


def test_verification_counts_what_a_matrix_really_annihilates():
    values = torch.tensor([0.0, 1e-17, 1e-9, 1.0, 2.0], dtype=torch.float64)
    operator = SymmetricOperator.from_dense(torch.diag(values))
    space = NullSpace(torch.eye(5, dtype=torch.float64)[:, :4], {"by decree": 4})
    rank, rule = verified(space, operator)
    assert rank == 3
    assert rule == "formula: 5 - 2 verified null directions (4 by decree; 2 of them not null here, not counted)"


@pytest.mark.parametrize("size", [3e-13, 1e-11, 1e-3])
@pytest.mark.parametrize("place", [0, 77, 199])
def test_one_direction_among_many_that_is_not_null_is_found_out(size, place):
    values = torch.cat([torch.zeros(200), torch.ones(50)]).double()
    values[place] = size
    rotation = torch.linalg.qr(drawn(250, 250)).Q
    columns = []
    operator = operator_of(rotation @ torch.diag(values) @ rotation.T, widths=columns)
    rank, rule = verified(NullSpace(rotation[:, :200], {"by decree": 200}), operator)
    assert rank == 51
    assert rule.endswith("(200 by decree; 1 of them not null here, not counted)")
    assert sum(columns) > 200


def test_many_null_directions_are_verified_by_a_few_products():
    rotation = torch.linalg.qr(drawn(250, 250)).Q
    columns = []
    operator = operator_of(rotation[:, 200:] @ rotation[:, 200:].T, widths=columns)
    assert verified(NullSpace(rotation[:, :200], {"by decree": 200}), operator)[0] == 50
    assert sum(columns) < 40


def test_no_null_directions_are_looked_for_where_few_examples_bound_the_rank(monkeypatch):
    problem = problem_of(
        with_weights(nn.Sequential(nn.Linear(4, 900), nn.Tanh(), nn.Linear(900, 3))), inputs=drawn(5, 4)
    )
    assert problem.dim - MAX_NULL_DIRECTIONS > 10
    found = verified(known_null_space(problem, second_order=False), cv.ggn(problem))
    monkeypatch.setattr("curvature.matrices.weight_space.known_null_space", None)
    rank = formula_rank(cv.ggn(problem))
    assert rank == found == (10, "formula: at most 10 by the number of examples and outputs")


def test_a_basis_grows_by_what_is_new_and_stays_orthonormal():
    basis = nullspace._extend(torch.zeros(9, 0, dtype=torch.float64), torch.eye(9, dtype=torch.float64)[:, :2])
    mixed = torch.eye(9, dtype=torch.float64)[:, [1, 2, 2, 3]]
    mixed[4, 3] = 1.0
    mixed = torch.cat([mixed, torch.zeros(9, 1, dtype=torch.float64)], dim=1)
    basis = nullspace._extend(basis, mixed)
    assert basis.shape == (9, 4)
    assert torch.allclose(basis.T @ basis, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-15)
    assert torch.allclose(basis @ (basis.T @ mixed), mixed, rtol=0, atol=1e-15)
    assert nullspace._extend(basis, mixed).shape == (9, 4)


def test_the_zero_matrix_has_rank_zero():
    operator = SymmetricOperator.from_dense(torch.zeros(4, 4, dtype=torch.float64))
    assert verified(NullSpace(torch.eye(4, dtype=torch.float64), {"by decree": 4}), operator)[0] == 0


def test_a_full_matrix_is_said_to_be_full():
    problem = zoo.linear_regression(30, 4)
    space = known_null_space(problem, second_order=False)
    assert space.dim == 0
    assert verified(space, cv.ggn(problem)) == (4, "formula: full")


def test_the_number_of_examples_bounds_the_rank_where_it_is_the_smaller():
    module = with_weights(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    problem = problem_of(module, inputs=drawn(6, 4))
    assert cv.spectrum(cv.empirical_fisher(problem)).rank == 6
    assert cv.spectrum(cv.gradient_covariance(problem)).rank == 5
    assert cv.spectrum(cv.ggn(problem)).rank == 6 * 2
    assert cv.spectrum(cv.ggn(problem)).rank_rule == "formula: at most 12 by the number of examples and outputs"


def test_directions_that_need_no_convex_loss_are_found_for_any_loss():
    problem = problem_of(relu_network(), loss=welsch)
    assert assert_all_null(problem, ("ggn", "empirical_fisher")).reasons == {"of rescaling across an activation": 6}


def test_models_without_layers_and_with_keyword_calls_have_a_rank():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, inputs):
            return inputs * self.scale

    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, inputs):
            return self.layer(input=inputs)

    for module, rank in ((Scale(), 4), (Keyword(), 15)):
        assert cv.spectrum(cv.ggn(problem_of(module.double(), loss="mse"))).rank == rank


@pytest.mark.parametrize("place", ["inputs", "weights of a unit", "weights after a unit"])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU])  # small inputs kill a unit of a ReLU
def test_what_is_small_is_not_counted_as_null(place, activation):
    """Scaling two inputs, or a unit, keeps the directions that are null for every value of the scale."""
    module = with_weights(nn.Sequential(nn.Linear(4, 3), activation(), nn.Linear(3, 2)))
    inputs, small = drawn(60, 4), 1e-14

    def scaled(by):
        copy, data = deepcopy(module), inputs.clone()
        with torch.no_grad():
            if place == "inputs":
                data[:, 2:] *= by
            elif place == "weights of a unit":
                copy[0].weight[1] *= by
                copy[0].bias[1] *= by
            else:
                copy[2].weight[:, 1] *= by
        return problem_of(copy, inputs=data)

    assert known_null_space(scaled(small), second_order=False).dim == _null_dim(scaled(1.0))


def _null_dim(problem):
    return known_null_space(problem, second_order=False).dim


def test_features_that_differ_in_the_twelfth_digit_are_not_dependent():
    inputs = drawn(60, 4)
    inputs[:, 3] = inputs[:, 2] * (1 + 1e-12 * drawn(60, seed=5))
    module = with_weights(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))
    assert _null_dim(problem_of(module, inputs=inputs)) == _null_dim(problem_of(module))
    inputs[:, 3] = inputs[:, 2]
    assert _null_dim(problem_of(module, inputs=inputs)) == 3 + _null_dim(problem_of(module))
