"""Each preconditioner against its formula, computed densely by hand from per-example derivatives."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

import curvature as cv
from curvature.errors import ConfigurationError
from curvature.models import zoo
from curvature.natural_gradient.preconditioners import KINDS, Preconditioners, absolute_damping, preconditioner
from curvature.records.damping import Damping
from oracles import distance, drawn

ROUNDING = 1e-10  # relative: 1e-16 times the condition number of the damped blocks, below 1e4, with room
DAMPING = 0.02


def identity(size):
    return torch.eye(size, dtype=torch.float64)


def inverse(matrix):
    return torch.linalg.inv(matrix).contiguous()  # torch.kron wants it so


def classifier(activation=nn.Tanh, *, in_place=None, bias=True):
    """3-4-3 softmax network, module and problem."""
    options = {} if in_place is None else {"inplace": in_place}
    module = nn.Sequential(nn.Linear(3, 4, bias=bias), activation(**options), nn.Linear(4, 3)).double()
    for number, parameter in enumerate(module.parameters()):
        parameter.data = drawn(*parameter.shape, seed=10 + number)
    targets = torch.randint(3, (8,), generator=torch.Generator().manual_seed(5))
    return module, cv.Problem.from_module(module, loss="cross-entropy", data=(drawn(8, 3), targets))


def fisher_by_hand(module, inputs):
    """Expectation over examples and the model's labels of the outer product of scores, one backward pass each."""
    total = 0
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for n, label in itertools.product(range(len(inputs)), range(module(inputs).shape[1])):
        value = functional.cross_entropy(module(inputs[n : n + 1]), torch.tensor([label]))
        score = torch.cat([part.reshape(-1) for part in torch.autograd.grad(value, parameters)])
        total = total + float(torch.exp(-value.detach())) * torch.outer(score, score) / len(inputs)
    return total


def metric(problem, chart):
    at = chart.at(problem.layout, problem.weights)
    return at.metric(identity(problem.dim))


def kept_in_blocks(matrix, groups):
    """The matrix with everything set to zero that crosses two groups."""
    groups = torch.tensor(groups)
    return torch.where(groups[:, None] == groups[None], matrix, 0.0)


# Weights of the first layer row by row, its biases, then the same of the second: who belongs to which neuron and layer.
NEURONS = (
    [row for row in range(4) for _ in range(3)]
    + list(range(4))
    + [4 + row for row in range(3) for _ in range(4)]
    + [4, 5, 6]
)
LAYERS = [0] * 16 + [1] * 15


@pytest.mark.parametrize(
    ("kind", "groups"),
    [("jacobi", range(31)), ("neuron-block", NEURONS), ("layer-block", LAYERS), ("full", [0] * 31)],
)
def test_block_preconditioners_are_the_inverses_of_the_damped_blocks(kind, groups):
    module, problem = classifier()
    fisher = fisher_by_hand(module, problem.inputs)
    shift = DAMPING * float(fisher.diagonal().sum()) / 31
    expected = inverse(kept_in_blocks(fisher + shift * identity(31), list(groups)))
    assert distance(metric(problem, preconditioner(problem, kind, relative_damping=DAMPING)), expected) < ROUNDING


def augmented(inputs):
    return torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], dim=1)


def factors_by_hand(module, inputs):
    """``(A, G)`` of both layers of a 3-4-3 softmax network with tanh, from formulas."""
    first, second = module[0], module[2]
    hidden = torch.tanh(first(inputs)).detach()
    probabilities = torch.softmax(second(hidden), dim=1).detach()
    outer = [torch.diag(p) - torch.outer(p, p) for p in probabilities]
    backward = [torch.diag(1 - h**2) @ second.weight.detach().T for h in hidden]
    count = len(inputs)
    scores = sum(back @ middle @ back.T for back, middle in zip(backward, outer, strict=True)) / count
    return [
        (augmented(inputs).T @ augmented(inputs) / count, scores),
        (augmented(hidden).T @ augmented(hidden) / count, sum(outer) / count),
    ]


def in_layout(problem, per_layer):
    """Put matrices over augmented rows, ``[w, b]`` neuron by neuron, into the order of the layout."""
    total = identity(problem.dim)
    for (weight, bias), block in per_layer.items():
        where_weight, where_bias = problem.layout.slices[weight], problem.layout.slices.get(bias)
        fan_out = problem.unflatten(problem.weights)[weight].shape[0]
        index = torch.arange(where_weight.start, where_weight.stop).view(fan_out, -1)
        if where_bias is not None:
            index = torch.cat([index, torch.arange(where_bias.start, where_bias.stop)[:, None]], dim=1)
        index = index.reshape(-1)
        total[index[:, None], index[None]] = block
    return total


def kfac_by_hand(inputs, scores, shift):
    pi = ((inputs.trace() / len(inputs)) / (scores.trace() / len(scores))).sqrt()
    left = inverse(scores + shift**0.5 / pi * identity(len(scores)))
    return torch.kron(left, inverse(inputs + pi * shift**0.5 * identity(len(inputs))))


@pytest.mark.parametrize("kind", ["neuron-block", "layer-block", "full"])
def test_the_roots_of_block_preconditioners_agree_with_their_triangles(kind):
    _, problem = classifier()
    at = preconditioner(problem, kind, damping=DAMPING).at(problem.layout, problem.weights)
    root = at.metric_root(identity(problem.dim))
    assert distance(root @ root, at.metric(identity(problem.dim))) < ROUNDING
    assert distance(at.push(identity(problem.dim)), root) < ROUNDING
    matrix = drawn(problem.dim, problem.dim)
    matrix = matrix @ matrix.T
    expected = torch.linalg.eigvalsh(root @ matrix @ root)
    similar = at.similar(matrix)
    assert distance(torch.linalg.eigvalsh((similar + similar.T) / 2), expected) < ROUNDING


@pytest.mark.parametrize("by", ["layer", "neuron"])
def test_every_block_has_its_own_triangle_also_where_that_is_part_of_the_whole(by):
    module, problem = classifier()
    shared, damped = Preconditioners(problem), fisher_by_hand(module, problem.inputs) + DAMPING * identity(problem.dim)
    shared.factorized("all", DAMPING)
    triangles = shared.factorized(by, DAMPING)
    assert len(triangles) == len(problem.layout.blocks(by))
    for rows, triangle in triangles:
        assert torch.equal(triangle, triangle.tril())
        assert distance(triangle @ triangle.T, damped[rows][:, rows]) < ROUNDING


def test_kfac_is_the_kronecker_product_of_damped_factors():
    module, problem = classifier()
    shift = DAMPING * float(fisher_by_hand(module, problem.inputs).trace()) / 31
    blocks = [kfac_by_hand(*factors, shift) for factors in factors_by_hand(module, problem.inputs)]
    expected = in_layout(problem, dict(zip((("0.weight", "0.bias"), ("2.weight", "2.bias")), blocks, strict=True)))
    assert distance(metric(problem, preconditioner(problem, "kfac", relative_damping=DAMPING)), expected) < ROUNDING


def test_prong_is_the_inverse_second_moment_of_the_inputs_of_every_neuron():
    module, problem = classifier()
    blocks = []
    for (inputs, _), fan_out in zip(factors_by_hand(module, problem.inputs), (4, 3), strict=True):
        shift = DAMPING * inputs.trace() / len(inputs)
        blocks.append(torch.kron(identity(fan_out), inverse(inputs + shift * identity(len(inputs)))))
    expected = in_layout(problem, dict(zip((("0.weight", "0.bias"), ("2.weight", "2.bias")), blocks, strict=True)))
    assert distance(metric(problem, preconditioner(problem, "prong", relative_damping=DAMPING)), expected) < ROUNDING


class Whitened(nn.Module):
    """The same function with ``z = V (T [a, 1])``: a fixed whitening before every layer, trained in ``V``."""

    def __init__(self, module, inputs, damping):
        super().__init__()
        self.transforms, self.parts = [], nn.ParameterList()
        signal = inputs
        for layer in module:
            if not isinstance(layer, nn.Linear):
                signal = layer(signal).detach()
                continue
            moment = augmented(signal).T @ augmented(signal) / len(signal)
            damped = moment + damping * moment.trace() / len(moment) * identity(len(moment))
            # Any square root does: a triangular one here, a symmetric one in the package.
            transform = inverse(torch.linalg.cholesky(damped))
            rows = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()
            self.transforms.append(transform)
            self.parts.append(nn.Parameter(rows @ inverse(transform)))
            signal = layer(signal).detach()

    def rows(self):
        return [part @ transform for part, transform in zip(self.parts, self.transforms, strict=True)]

    def forward(self, inputs):
        first, second = (part.T for part in self.parts)
        hidden = torch.tanh(augmented(inputs) @ self.transforms[0].T @ first)
        return augmented(hidden) @ self.transforms[1].T @ second


def test_a_step_with_prong_is_a_gradient_step_of_the_network_with_whitened_inputs():
    module, problem = classifier()
    whitened = Whitened(module, problem.inputs, DAMPING)
    assert torch.allclose(whitened(problem.inputs), module(problem.inputs), rtol=0, atol=1e-12)
    before = torch.cat([part.detach().reshape(-1) for part in whitened.rows()])
    functional.cross_entropy(whitened(problem.inputs), problem.targets).backward()
    with torch.no_grad():
        for part in whitened.parts:
            part -= part.grad
    moved = torch.cat([part.detach().reshape(-1) for part in whitened.rows()]) - before
    named = problem.unflatten(cv.chart_step(problem, preconditioner(problem, "prong", relative_damping=DAMPING)))
    found = [
        torch.cat([named[f"{path}.weight"], named[f"{path}.bias"][:, None]], dim=1).reshape(-1) for path in ("0", "2")
    ]
    assert distance(torch.cat(found), moved) < ROUNDING


# ------------------------------------------------------------------------------------------ where K-FAC is exact


def assert_kfac_is_exact(problem, damping=1e-12, tolerance=1e-4):
    """At vanishing damping the inverse of K-FAC is the layer-block-diagonal Fisher, up to the root of the damping."""
    fisher = cv.fisher(problem, method="generic").dense()
    groups = torch.zeros(problem.dim, dtype=torch.long)
    for number, index in enumerate(problem.layout.blocks("layer").values()):
        groups[index] = number
    found = inverse(metric(problem, preconditioner(problem, "kfac", relative_damping=damping)))
    assert distance(found, kept_in_blocks(fisher, groups.tolist())) < tolerance


def test_kfac_is_exact_for_one_linear_layer_with_squared_loss():
    module = nn.Linear(3, 2).double()
    assert_kfac_is_exact(cv.Problem.from_module(module, loss="half-squared-error", data=(drawn(9, 3), drawn(9, 2))))


def test_kfac_is_exact_layer_by_layer_for_a_linear_network_with_squared_loss():
    """There the output gradients are the same for every example."""
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3)).double()
    for number, parameter in enumerate(module.parameters()):
        parameter.data = drawn(*parameter.shape, seed=number)
    assert_kfac_is_exact(cv.Problem.from_module(module, loss="mse", data=(drawn(9, 3), drawn(9, 3, seed=2))))


def test_kfac_is_not_exact_where_both_factors_depend_on_the_example():
    with pytest.raises(AssertionError):
        assert_kfac_is_exact(classifier()[1], tolerance=1e-2)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Conv2d(2, 2, 2),
        lambda: nn.Conv2d(1, 3, 2, stride=2, padding=1, bias=False),
        lambda: nn.Conv1d(2, 3, 2, dilation=2),
    ],
)
def test_kfac_is_exact_for_one_convolution_whose_outputs_are_the_models(layer):
    """Squared loss on all positions: each output depends on its own patch, every output gradient is a unit vector."""
    module = layer().double()
    shape = (module.in_channels, 6) if isinstance(module, nn.Conv1d) else (module.in_channels, 4, 4)
    inputs = drawn(9, *shape)
    targets = torch.zeros_like(module(inputs)).detach()
    assert_kfac_is_exact(cv.Problem.from_module(module, loss="half-squared-error", data=(inputs, targets)))


def test_kfac_of_a_convolution_with_one_position_is_that_of_the_linear_layer():
    linear = nn.Sequential(nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    for number, parameter in enumerate(linear.parameters()):
        parameter.data = drawn(*parameter.shape, seed=number)
    convolution = nn.Conv2d(2, 3, 2).double()
    convolution.weight.data = linear[0].weight.data.view(3, 2, 2, 2)
    convolution.bias.data = linear[0].bias.data
    other = nn.Sequential(convolution, nn.Tanh(), nn.Flatten(), linear[2])
    inputs, targets = drawn(12, 8), torch.arange(12) % 2
    first = cv.Problem.from_module(linear, loss="cross-entropy", data=(inputs, targets))
    second = cv.Problem.from_module(other, loss="cross-entropy", data=(inputs.view(12, 2, 2, 2), targets))
    for kind in ("kfac", "prong"):
        expected = metric(first, preconditioner(first, kind, relative_damping=DAMPING))
        assert distance(metric(second, preconditioner(second, kind, relative_damping=DAMPING)), expected) < ROUNDING


def test_kfac_of_a_convolution_has_the_factors_of_grosse_and_martens():
    """``A``: patches summed over positions; ``G``: scores averaged over positions (arXiv:1602.01407)."""
    module = nn.Sequential(nn.Conv1d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3)).double()
    for number, parameter in enumerate(module.parameters()):
        parameter.data = drawn(*parameter.shape, seed=number)
    inputs, targets = drawn(5, 1, 4), torch.arange(5) % 3
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(inputs, targets))
    patches, scores = 0, 0
    for n in range(5):
        for t in range(3):
            row = torch.cat([inputs[n, 0, t : t + 2], torch.ones(1, dtype=torch.float64)])
            patches = patches + torch.outer(row, row) / 5
        for label in range(3):
            pre = module[0](inputs[n : n + 1]).detach().requires_grad_()
            value = functional.cross_entropy(module[1:](pre), torch.tensor([label]))
            score = torch.autograd.grad(value, pre)[0][0]  # (channels, positions)
            scores = scores + float(torch.exp(-value.detach())) * score @ score.T / (5 * 3)
    shift = DAMPING * float(fisher_by_hand(module, inputs).trace()) / problem.dim
    where = torch.arange(6)  # 2 channels of 2 weights, then 2 biases
    rows = torch.tensor([0, 1, 4, 2, 3, 5])
    expected = torch.zeros(6, 6, dtype=torch.float64)
    expected[rows[:, None], rows[None]] = kfac_by_hand(patches, scores, shift)
    found = metric(problem, preconditioner(problem, "kfac", relative_damping=DAMPING))
    assert distance(found[where][:, where], expected) < ROUNDING
    assert float(found[:6, 6:].abs().max()) == 0


# ------------------------------------------------------------------------------------------------- the odd cases


class Scaled(nn.Module):
    """A linear layer behind a scale that belongs to no layer."""

    def __init__(self):
        super().__init__()
        self.scale, self.layer = nn.Parameter(drawn(3, seed=7)), nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, inputs):
        return self.layer(inputs * self.scale)


@pytest.mark.parametrize("kind", ["kfac", "prong"])
def test_parameters_outside_of_layers_get_the_jacobi_preconditioner(kind):
    problem = cv.Problem.from_module(Scaled(), loss="cross-entropy", data=(drawn(7, 3), torch.arange(7) % 2))
    found = metric(problem, preconditioner(problem, kind, relative_damping=DAMPING))
    jacobi = metric(problem, preconditioner(problem, "jacobi", relative_damping=DAMPING))
    assert distance(found[:3], jacobi[:3]) < ROUNDING


@pytest.mark.parametrize("kind", ["kfac", "prong"])
def test_a_model_without_layers_gets_the_jacobi_preconditioner_throughout(kind):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(drawn(3, seed=7))

        def forward(self, inputs):
            return inputs * self.scale

    problem = cv.Problem.from_module(Scale(), loss="mse", data=(drawn(7, 3), drawn(7, 3, seed=2)))
    jacobi = metric(problem, preconditioner(problem, "jacobi", relative_damping=DAMPING))
    assert distance(metric(problem, preconditioner(problem, kind, relative_damping=DAMPING)), jacobi) < ROUNDING


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_bias_takes_its_rows_and_columns_with_it(kind):
    module, _ = classifier()
    module[0].bias.requires_grad_(False)
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(drawn(8, 3), torch.arange(8) % 3))
    found = metric(problem, preconditioner(problem, kind, relative_damping=DAMPING))
    assert found.shape == (27, 27)
    if kind == "prong":
        moment = problem.inputs.T @ problem.inputs / 8
        expected = inverse(moment + DAMPING * moment.trace() / 3 * identity(3))
        assert distance(found[:3, :3], expected) < ROUNDING


@pytest.mark.parametrize("kind", KINDS)
def test_an_activation_in_place_changes_no_preconditioner(kind):
    plain, in_place = (classifier(nn.ReLU, in_place=flag)[1] for flag in (False, True))
    expected = metric(plain, preconditioner(plain, kind, relative_damping=DAMPING))
    assert distance(metric(in_place, preconditioner(in_place, kind, relative_damping=DAMPING)), expected) < ROUNDING


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_at_zero_lets_no_score_through_and_is_no_obstacle(kind):
    """Zero-initialized last layers are common; the layers before them then have a zero block in the Fisher."""
    module, _ = classifier()
    nn.init.zeros_(module[2].weight)
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(drawn(8, 3), torch.arange(8) % 3))
    found = metric(problem, preconditioner(problem, kind, relative_damping=DAMPING))
    assert torch.isfinite(found).all()
    assert float(torch.linalg.eigvalsh(found)[0]) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_preconditioner_is_positive_definite_and_says_what_it_is(kind):
    _, problem = classifier()
    chart = preconditioner(problem, kind, relative_damping=0.25)
    assert float(torch.linalg.eigvalsh(metric(problem, chart))[0]) > 0
    assert (chart.name, chart.gauge) == ("natural-gradient" if kind == "full" else kind, "relative damping=0.25")


@pytest.mark.parametrize("kind", KINDS)
def test_preconditioners_made_together_are_those_made_alone(kind):
    _, problem = classifier()
    together = Preconditioners(problem)
    for damping in (1e-3, 0.3):
        for other in KINDS:
            together.chart(other, relative_damping=damping)
        alone = preconditioner(problem, kind, relative_damping=damping)
        assert torch.equal(metric(problem, together.chart(kind, relative_damping=damping)), metric(problem, alone))


def test_a_given_fisher_is_the_one_that_is_inverted():
    _, problem = classifier()
    given = cv.empirical_fisher(problem)
    matrix = given.dense()
    shift = DAMPING * float(matrix.trace()) / 31
    found = metric(problem, preconditioner(problem, "full", relative_damping=DAMPING, fisher=given))
    assert distance(found, inverse(matrix + shift * identity(31))) < ROUNDING


def test_the_neuron_blocks_of_softmax_regression_at_zero_weights_are_multiples_of_the_input_covariance():
    """``Sigma (C - 1) / C^2`` for every class."""
    problem = zoo.softmax_regression(40, 3, 4)
    covariance = problem.inputs.T @ problem.inputs / 40
    block = covariance * (4 - 1) / 4**2
    shift = DAMPING * float(block.trace()) / 3
    expected = torch.kron(identity(4), inverse(block + shift * identity(3)))
    assert (
        distance(metric(problem, preconditioner(problem, "neuron-block", relative_damping=DAMPING)), expected)
        < ROUNDING
    )


def test_damping_is_relative_to_the_mean_eigenvalue():
    values = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    assert absolute_damping(torch.diag(values), Damping(0.1, is_relative=True)) == pytest.approx(0.3, rel=1e-15)


@pytest.mark.parametrize("damping", [0.0, -1e-3, float("nan")])
def test_no_damping_is_refused(damping):
    with pytest.raises(ConfigurationError, match="damping must be positive"):
        preconditioner(classifier()[1], "full", relative_damping=damping)


def test_unknown_preconditioners_are_refused_with_the_names_there_are():
    with pytest.raises(ConfigurationError, match="neuron-block, layer-block, kfac, ekfac, prong, full, got 'adam'"):
        preconditioner(classifier()[1], "adam")
