"""Weights written as matrix products: ranks and null directions against the published counts, and what is refused."""

import pytest
import torch

import curvature as cv
from curvature.layout import Entry, Layout
from oracles import distance, normal

SHAPES = [(6, 8, 2), (10, 16, 3)]  # rows, columns and rank of the adapter


def chart_of(parameterization, rows, columns, rank=None):
    """The chart at a random matrix, of less than full rank where that is asked for."""
    layout = Layout((Entry("w", (rows, columns), "w", neuron_axis=0, normalized=True),))
    inner = rank or min(rows, columns)
    weights = normal(1, rows, inner) @ normal(2, inner, columns) / inner**0.5
    return parameterization.at(layout, weights.reshape(-1))


def jacobian_of(chart):
    """By automatic differentiation of the map."""
    return torch.autograd.functional.jacobian(chart.to_weights, chart.coordinates)


def rank_of(chart):
    return int(torch.linalg.matrix_rank(jacobian_of(chart)))


@pytest.mark.parametrize(("rows", "columns", "rank"), SHAPES)
def test_lora_reaches_the_dimension_of_the_matrices_of_its_rank_and_only_b_is_live_at_the_start(rows, columns, rank):
    generic = chart_of(cv.LoRA(rank, alpha=2.5, init="pissa"), rows, columns)
    start = chart_of(cv.LoRA(rank, alpha=2.5), rows, columns)
    assert generic.dim == start.dim == rank * (rows + columns)
    assert generic.dim - generic.null_dim == rank_of(generic) == rank * (rows + columns - rank)
    assert generic.null_dim == rank**2
    assert start.dim - start.null_dim == rank_of(start) == rows * rank
    assert not jacobian_of(start)[:, : rank * columns].any()
    counts = {(6, 8, 2): (24, 28, 12), (10, 16, 3): (69, 78, 30)}
    assert (rank_of(generic), generic.dim, rank_of(start)) == counts[rows, columns, rank]


@pytest.mark.parametrize(("rows", "columns", "rank"), SHAPES)
def test_dora_reaches_one_length_for_each_row_more_than_lora(rows, columns, rank):
    generic = chart_of(cv.DoRA(rank, alpha=2.5, init="pissa"), rows, columns)
    start = chart_of(cv.DoRA(rank, alpha=2.5), rows, columns)
    assert generic.dim - generic.null_dim == rank_of(generic) == rows + rank * (rows + columns - rank)
    assert generic.null_dim == rank**2
    assert start.dim - start.null_dim == rank_of(start) == rows + rows * rank
    counts = {(6, 8, 2): (30, 34, 18), (10, 16, 3): (79, 88, 40)}
    assert (rank_of(generic), generic.dim, rank_of(start)) == counts[rows, columns, rank]
    columns_normed = chart_of(cv.DoRA(rank, init="pissa", dim=1), rows, columns)
    assert columns_normed.dim - columns_normed.null_dim == columns + rank * (rows + columns - rank)


@pytest.mark.parametrize(
    ("rows", "columns", "width", "rank", "null"),
    [
        (5, 7, None, None, 25),  # k^2 at full rank
        (7, 5, None, None, 25),
        (5, 7, 3, 3, 9),
        (5, 7, 6, None, 6 * 12 - 35),  # wider than the matrix: all that 35 weights leave
        (5, 7, 4, 2, 4 * 12 - (35 - 3 * 5)),  # of less than full rank, K = 0 on what both factors miss
    ],
)
def test_deep_linear_weights_have_the_null_directions_of_gl_k(rows, columns, width, rank, null):
    chart = chart_of(cv.DeepLinear(width), rows, columns, rank)
    assert chart.null_dim == chart.dim - rank_of(chart) == null


@pytest.mark.parametrize(
    ("parameterization", "right", "left"),
    [(cv.LoRA(3, alpha=2.5, init="pissa"), "a", "b"), (cv.DeepLinear(), "w1", "w2")],
    ids=repr,
)
def test_mixing_the_inner_coordinates_moves_nothing(parameterization, right, left):
    r"""``(B G, G^{-1} A)`` has the same product: its derivative at ``G = I`` is ``(B X, -X A)``."""
    chart = chart_of(parameterization, 6, 8)
    parts = chart.layout.unflatten(chart.coordinates)
    a, b = parts[f"w.{right}"], parts[f"w.{left}"]
    mixing = normal(3, len(a), len(a))
    null = torch.cat([-(mixing @ a).reshape(-1), (b @ mixing).reshape(-1)])
    assert float(chart.push(null[:, None]).norm()) < 1e-13 * float(null.norm())


def test_a_product_preconditions_by_the_grams_of_its_factors():
    left, right = normal(1, 4, 2), normal(2, 2, 5)
    base = normal(3, 4, 5)
    parts = {"a": right, "b": left, "base": base, "scale": torch.tensor(1.5)}
    layout = Layout((Entry("w", (4, 5), "w", neuron_axis=0, normalized=True),))
    chart = cv.LoRA(2, values={"w": parts}).at(layout, (base + 1.5 * left @ right).reshape(-1))
    metric = chart.metric(torch.eye(20, dtype=torch.float64))
    eye = torch.eye(4, dtype=torch.float64), torch.eye(5, dtype=torch.float64)
    expected = 2.25 * (torch.kron(left @ left.T, eye[1]) + torch.kron(eye[0], right.T @ right))
    assert distance(metric, expected) < 1e-14
    across = chart.horizontal(torch.eye(20, dtype=torch.float64))
    assert distance(chart.metric_root(across.T), jacobian_of(chart)) < 1e-13  # J = K^(1/2) O


def test_balanced_deep_linear_weights_precondition_by_the_roots_of_their_grams():
    """Arora et al. (2018), theorem 1 for two layers: ``(W W^T)^(1/2) G + G (W^T W)^(1/2)``."""
    chart = chart_of(cv.DeepLinear(), 4, 6)
    weight, gradient = chart.to_weights(chart.coordinates).view(4, 6), normal(5, 4, 6)
    u, values, v = torch.linalg.svd(weight, full_matrices=False)
    expected = (u * values) @ u.T @ gradient + gradient @ (v.T * values) @ v
    assert distance(chart.metric(gradient.reshape(-1, 1)).view(4, 6), expected) < 1e-13


def test_dora_is_weight_normalization_of_an_adapted_matrix():
    """Where the adapter has full rank, ``V`` moves freely, through another factorization of the same matrix."""
    dora = chart_of(cv.DoRA(2, alpha=3, init="pissa"), 5, 7)
    lora = chart_of(cv.LoRA(2, alpha=3, init="pissa"), 5, 7)
    weights = dora.to_weights(dora.coordinates)
    norms = cv.WeightNorm().at(lora.weight_layout, weights)
    lift = jacobian_of(lora)
    expected = jacobian_of(norms) @ torch.block_diag(torch.eye(5, dtype=torch.float64), lift)
    assert distance(jacobian_of(dora), expected) < 1e-13


def test_the_start_of_an_adapter_is_drawn_once_for_each_weight_as_peft_draws_it():
    chart, again, other = (chart_of(cv.LoRA(2, seed=seed), 30, 400) for seed in (3, 3, 4))
    a, b = chart.layout.unflatten(chart.coordinates).values()
    assert torch.equal(chart.coordinates, again.coordinates)
    assert not torch.equal(chart.coordinates, other.coordinates)
    assert not b.any()
    reference = torch.empty(2, 400, dtype=torch.float64)
    torch.nn.init.kaiming_uniform_(reference, a=5**0.5, generator=torch.Generator().manual_seed(0))
    assert float(a.abs().max()) <= 400**-0.5
    assert abs(float(a.std() / reference.std()) - 1) < 0.1


def test_pissa_holds_the_first_singular_triplets_whatever_the_factor():
    for alpha in (2, 7):
        chart = chart_of(cv.LoRA(2, alpha=alpha, init="pissa"), 6, 8)
        parts = chart.maps["w"].parts
        low = parts["scale"] * parts["b"] @ parts["a"]
        weight = chart.to_weights(chart.coordinates).view(6, 8)
        u, values, v = torch.linalg.svd(weight, full_matrices=False)
        assert distance(low, (u[:, :2] * values[:2]) @ v[:2]) < 1e-13
        assert distance(parts["b"].T @ parts["b"], parts["a"] @ parts["a"].T) < 1e-13


@pytest.mark.parametrize(
    ("parameterization", "axes"),
    [
        (cv.LoRA(4), {"a": None, "b": 0}),  # of rank 4 every matrix below has the shape of the weight
        (cv.DeepLinear(), {"w1": None, "w2": 0}),
        (cv.DoRA(4), {"g": 0, "a": None, "b": 0}),
        (cv.DoRA(4, dim=1), {"g": None, "a": None, "b": 0}),
        (cv.RandomWeightFactorization(), {"s": 0, "v": 0}),
    ],
    ids=repr,
)
def test_only_rows_of_the_left_factor_belong_to_a_neuron(parameterization, axes):
    chart = chart_of(parameterization, 4, 4)
    assert {entry.name.removeprefix("w."): entry.neuron_axis for entry in chart.layout.entries} == axes


def test_narrow_deep_linear_weights_are_the_truncated_matrix():
    chart = cv.DeepLinear(2)
    layout = Layout((Entry("w", (5, 7), "w", neuron_axis=0, normalized=True),))
    weights = normal(1, 35)
    with pytest.raises(cv.InputError, match=r"deep-linear cannot represent 'w'.*cv.nearest"):
        chart.at(layout, weights)
    nearest = chart.nearest(layout, weights)
    rest = torch.linalg.svdvals(weights.view(5, 7))[2:]
    assert abs(float((weights - nearest).norm() / rest.norm()) - 1) < 1e-13
    assert chart.at(layout, nearest).null_dim == 4


def test_training_moves_the_adapter_and_keeps_its_base():
    chart = chart_of(cv.LoRA(2, alpha=3), 6, 8)
    theta = chart.coordinates + 0.1 * normal(7, chart.dim)
    moved = chart.moved(theta).at(chart.weight_layout, chart.to_weights(theta))
    assert torch.equal(moved.coordinates, theta)
    assert torch.equal(moved.maps["w"].parts["base"], chart.maps["w"].parts["base"])
    assert moved.gauge == "checkpoint"


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: cv.LoRA(0), "rank must be a positive whole number, got 0"),
        (lambda: cv.LoRA(2.5), "rank must be a positive whole number, got 2.5"),
        (lambda: cv.LoRA(2, alpha=-1), "alpha must be a positive number, got -1"),
        (lambda: cv.LoRA(2, init="ones"), "init must be 'zero' or 'pissa', got 'ones'"),
        (lambda: cv.DoRA(2, dim=2), "dim must be 0"),
        (lambda: cv.DeepLinear(0), "width must be a positive whole number, got 0"),
        (lambda: cv.DoRA(frozen=("m",)), "dora has no part 'm': its parts are g, a, b"),
    ],
)
def test_wrong_options_are_refused(build, words):
    with pytest.raises(cv.ConfigurationError, match=words):
        build()


def test_a_zero_row_has_no_direction():
    layout = Layout((Entry("w", (2, 3), "w", neuron_axis=0, normalized=True),))
    weights = torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    with pytest.raises(cv.InputError, match=r"the weights of layer 'w' \(w\) is zero in row 0"):
        cv.DoRA(1).at(layout, weights)
    cv.LoRA(1).at(layout, weights)
