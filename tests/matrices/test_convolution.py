"""The fast path for convolutional networks: equal to the generic one where it applies, out of the way elsewhere."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import curvature as cv
from curvature.errors import ConfigurationError
from curvature.matrices import MATRICES
from curvature.matrices.fast import convolution, layer_blocks, network, network_factor, network_products, steps
from curvature.matrices.fast.chain import ELEMENTWISE, chain_of
from curvature.matrices.fast.network import network_of
from curvature.matrices.fast.paths import fast_path
from curvature.models.losses import CrossEntropy
from oracles import distance, factor_of, hessian_and_ggn_of_half_squared_error, initialized, welsch

# Said once by torch, of its own making.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")

ROUNDING = 1e-12  # relative to the Frobenius norm: a few thousand units of rounding in float64
EXACT = ("hessian", "ggn", "fisher", "empirical_fisher", "gradient_covariance")
CONVOLUTION = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOLS = {
    "max": {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d},
    "adaptive-max": {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d},
    "average": {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d},
    "adaptive-average": {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d},
    "zeros": {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d},
}
ACTIVATIONS = {
    "tanh": nn.Tanh,
    "relu-in-place": lambda: nn.ReLU(inplace=True),
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}
LOSSES = ("cross-entropy", "weighted", "mse", "welsch")


def loss_and_targets(kind, num_examples, num_outputs, generator):
    labels = torch.randint(num_outputs, (num_examples,), generator=generator)
    reals = torch.randn(num_examples, num_outputs, generator=generator, dtype=torch.float64)
    if kind == "weighted":
        labels[1::3] = -100
        weight = 0.2 + torch.rand(num_outputs, generator=generator, dtype=torch.float64)
        return CrossEntropy(weight, label_smoothing=0.1), labels
    return {"cross-entropy": (kind, labels), "mse": (kind, reals), "welsch": (welsch, reals)}[kind]


def assert_same(problem, names=EXACT):
    """Dense matrices, and products with blocks of three and with one vector, are those of the generic route."""
    block = torch.randn(problem.dim, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for name in names:
        if name == "fisher" and not problem.loss.likelihood:
            continue
        operator = MATRICES[name](problem, method="structured")
        expected = MATRICES[name](problem, method="generic").dense()
        # A covariance of (nearly) equal gradients is rounding; what rounds is of the size of the second moment.
        scale = expected
        if name == "gradient_covariance":
            scale = MATRICES["empirical_fisher"](problem, method="generic").dense()
        assert distance(operator.dense(), expected, scale) < ROUNDING, name
        size = torch.linalg.norm(scale) * torch.linalg.norm(block)
        assert distance(operator @ block, expected @ block, size) < ROUNDING, name
        assert distance(operator @ block[:, 0], expected @ block[:, 0], size) < ROUNDING, name


def pool(kind, axes, shape):
    """A pooling layer that the image is large enough for; None if it is not."""
    if kind.startswith("adaptive"):
        return POOLS[kind][axes](tuple(max(1, side // 2) for side in shape))
    if kind == "zeros":
        return POOLS[kind][axes](1)
    return POOLS[kind][axes](2, stride=1) if min(shape) > 1 else None


@st.composite
def networks(draw):
    """Any network that the fast path claims to cover: ``(module, loss, (inputs, targets))``."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    axes = draw(st.sampled_from((1, 2, 2, 2, 3)))
    shape = (draw(st.integers(1, 2)), *draw(st.lists(st.integers(2, 6 - axes), min_size=axes, max_size=axes)))
    num_examples = draw(st.sampled_from((1, 2, 7)))
    inputs = torch.randn(num_examples, *shape, generator=generator, dtype=torch.float64)
    layers, signal = [], inputs

    def add(layer):
        nonlocal signal
        layers.append(layer.double().eval())
        signal = layer(signal.clone()).detach()

    depth = draw(st.integers(1, 3))
    for number in range(depth):
        if number and draw(st.booleans()):
            add(nn.Identity())
        width = draw(st.integers(1, 3))
        bias = draw(st.booleans())
        if draw(st.booleans()):
            settings = {"kernel_size": draw(st.integers(1, 3)), "padding": "same", "dilation": draw(st.integers(1, 2))}
        else:
            kernel = tuple(draw(st.integers(1, min(3, side))) for side in signal.shape[2:])
            settings = {
                "kernel_size": kernel,
                "stride": draw(st.integers(1, 2)),
                "padding": tuple(draw(st.integers(0, 1)) for _ in kernel),
                "dilation": tuple(
                    draw(st.sampled_from((1, 2))) if 2 * (k - 1) < side else 1
                    for k, side in zip(kernel, signal.shape[2:], strict=True)
                ),
            }
        add(CONVOLUTION[axes](signal.shape[1], width, bias=bias, **settings))
        behind = draw(st.lists(st.sampled_from((*ACTIVATIONS, *POOLS, "norm")), max_size=3))
        for kind in behind:
            if kind == "norm":
                add(NORM[axes](width, affine=False))
            elif kind in POOLS:
                layer = pool(kind, axes, signal.shape[2:])
                if layer is not None and signal.numel() < 60 * num_examples:
                    add(layer)
            elif "in-place" not in kind or isinstance(layers[-1], tuple(CONVOLUTION.values())):
                add(ACTIVATIONS[kind]())
    if draw(st.booleans()):
        add(CONVOLUTION[axes](signal.shape[1], 3, 1))
        add(POOLS["adaptive-average"][axes](1))
        add(nn.Flatten())
    else:
        add(nn.Flatten())
        for width in draw(st.sampled_from(((3,), (2, 3)))):
            add(nn.Linear(signal.shape[1], width))
            if width == 2:
                add(nn.Tanh())
    module = initialized(nn.Sequential(*layers), generator)
    size = float(module(inputs.clone()).detach().abs().max())
    *_, last = (layer for layer in layers if isinstance(layer, (nn.Linear, *CONVOLUTION.values())))
    for parameter in last.parameters() if size > 5 else ():
        parameter.data *= 5 / size  # autograd loses digits in the softmax of a class that is all but certain
    parameters = list(module.parameters())
    trainable = draw(st.integers(0, len(parameters) - 1))
    for number, parameter in enumerate(parameters):
        parameter.requires_grad_(number == trainable or draw(st.integers(0, 3)) > 0)
    loss, targets = loss_and_targets(draw(st.sampled_from(LOSSES)), num_examples, 3, generator)
    return module, loss, (inputs, targets)


def one_example_at_a_time(patch):
    """One column of a product, one pair of channels of a contraction."""
    for room in (convolution, network_factor):
        patch.setattr(room, "examples_at_once", lambda *_: 1)
    patch.setattr(layer_blocks, "_PIECE_BYTES", 1)
    patch.setattr(network_products, "_TANGENT_BYTES", 1)


@given(
    case=networks(),
    one_by_one=st.booleans(),
    matrix_bytes=st.sampled_from((1, steps._MATRIX_BYTES)),
)
@settings(max_examples=50)
def test_structured_matrices_equal_generic_ones_for_every_network(case, one_by_one, matrix_bytes):
    module, loss, data = case
    with pytest.MonkeyPatch.context() as patch:
        if one_by_one:
            one_example_at_a_time(patch)
        patch.setattr(steps, "_MATRIX_BYTES", matrix_bytes)  # 1: no convolution as a matrix
        problem = cv.Problem.from_module(module, loss=loss, data=data)
        assert chain_of(problem) is None
        assert network_of(problem) is not None
        assert_same(problem, ("hessian", "ggn", "empirical_fisher"))


def small(activation=nn.Tanh, pooling=None, loss="cross-entropy", num_examples=6, dtype=torch.float64):
    """Two convolutions and two linear layers; the columns of the first layer are weights, of the others outputs."""
    generator = torch.Generator().manual_seed(5)
    module = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        activation(),
        *([] if pooling is None else [pooling]),
        nn.Conv2d(2, 3, 2, stride=2, padding=1),
        activation(),
        nn.Flatten(),
        nn.LazyLinear(4),
        activation(),
        nn.Linear(4, 3),
    )
    module(torch.zeros(1, 1, 5, 4))
    inputs = torch.randn(num_examples, 1, 5, 4, generator=generator, dtype=torch.float64)
    loss, targets = loss_and_targets(loss, num_examples, 3, generator)
    return cv.Problem.from_module(initialized(module, generator), loss=loss, data=(inputs, targets), dtype=dtype)


@pytest.mark.parametrize("activation", ELEMENTWISE)
def test_every_activation_gives_the_generic_matrices(activation):
    assert_same(small(activation), ("hessian", "ggn"))


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_gives_the_generic_matrices(loss):
    assert_same(small(loss=loss))


@pytest.mark.parametrize(
    "pooling",
    [
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        nn.MaxPool2d(2, stride=1, dilation=2),
        nn.AvgPool2d(2, padding=1, ceil_mode=True, count_include_pad=False),
        nn.AdaptiveMaxPool2d((3, 2)),
        nn.AdaptiveAvgPool2d((2, None)),
        nn.ZeroPad2d((1, 0, 2, 0)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_every_pooling_gives_the_generic_matrices(pooling):
    assert_same(small(pooling=pooling), ("hessian", "ggn", "empirical_fisher"))


def test_every_reduction_of_the_whitelist_is_tested_here():
    assert {kind for kinds in POOLS.values() for kind in kinds.values()} == {*network.SPATIAL, *network.MAXIMA}
    assert {*CONVOLUTION.values()} == {*steps.CONVOLUTIONS}
    assert {*NORM.values()} == {*network.NORMS}


def test_matrices_equal_those_of_autograd_on_the_module_itself():
    generator = torch.Generator().manual_seed(2)
    module = nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        nn.Tanh(),
        nn.MaxPool2d(2, stride=1),
        nn.Conv2d(3, 2, 2, padding="same"),
        nn.Sigmoid(),
        nn.AvgPool2d(2, stride=1),
        nn.Conv2d(2, 3, 1, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(3, 2),
    )
    module = initialized(module, generator)
    inputs = torch.randn(6, 2, 5, 5, generator=generator, dtype=torch.float64)
    targets = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    hessian, ggn = hessian_and_ggn_of_half_squared_error(module, inputs, targets)
    problem = cv.Problem.from_module(module, loss="half-squared-error", data=(inputs, targets))
    assert distance(cv.hessian(problem, method="structured").dense(), hessian) < ROUNDING
    assert distance(cv.ggn(problem, method="structured").dense(), ggn) < ROUNDING


def test_outputs_may_have_positions_and_an_activation_behind_them():
    generator = torch.Generator().manual_seed(2)
    module = initialized(nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Conv1d(3, 2, 2), nn.Softplus()), generator)
    inputs = torch.randn(5, 2, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(2, (5, 2), generator=generator)
    # Two classes at two positions: the axis of the classes cannot be told from the shapes.
    assert_same(cv.Problem.from_module(module, loss=cv.CrossEntropy(class_axis=1), data=(inputs, labels)))


@pytest.mark.parametrize("flatten", [nn.Flatten(2), nn.Flatten(1, 2), nn.Flatten(-2)])
def test_a_partial_flatten_between_convolutions_keeps_its_order(flatten):
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(5, 1, 4, 3, generator=generator, dtype=torch.float64)
    first = nn.Conv2d(1, 2, 2, padding=1)
    channels = flatten(first(inputs.float())).shape[1]
    module = nn.Sequential(first, nn.Tanh(), flatten, nn.Conv1d(channels, 2, 2), nn.GELU(), nn.Flatten())
    module = initialized(nn.Sequential(module, nn.Linear(module(inputs.float()).shape[1], 3)), generator)
    labels = torch.randint(3, (5,), generator=generator)
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(inputs, labels))
    assert chain_of(problem) is None
    assert network_of(problem) is not None
    assert_same(problem, ("hessian", "ggn"))


def test_normalizations_on_both_sides_of_a_flatten_are_not_taken_for_one():
    generator = torch.Generator().manual_seed(2)
    norms = nn.BatchNorm2d(2, affine=False), nn.Flatten(), nn.BatchNorm1d(8, affine=False)
    module = initialized(nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), *norms, nn.GELU(), nn.Linear(8, 3)), generator)
    inputs = torch.randn(5, 1, 3, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (5,), generator=generator)
    assert_same(cv.Problem.from_module(module, loss="cross-entropy", data=(inputs, labels)), ("hessian", "ggn"))


@pytest.mark.parametrize("name", ["hessian", "ggn"])
def test_cutting_the_data_into_single_examples_changes_nothing(name, monkeypatch):
    problem = small(num_examples=9)
    whole = MATRICES[name](problem, method="structured").dense()
    one_example_at_a_time(monkeypatch)
    assert distance(MATRICES[name](problem, method="structured").dense(), whole) < ROUNDING


@pytest.mark.parametrize("name", EXACT)
def test_single_precision_matrices_are_right_to_single_precision(name):
    single = small(dtype=torch.float32)
    expected = MATRICES[name](small().at(single.weights.double()), method="generic").dense()
    found = MATRICES[name](single, method="structured").dense()
    assert found.dtype == torch.float32
    assert distance(found.double(), expected) < 100 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("name", ["ggn", "fisher", "empirical_fisher", "monte_carlo_fisher"])
def test_factor_blocks_equal_the_generic_ones_column_by_column(name):
    problem = small(pooling=nn.MaxPool2d(2, stride=1))

    def columns(method):
        drawn = (2, torch.Generator().manual_seed(3)) if name == "monte_carlo_fisher" else ()
        return factor_of(MATRICES[name](problem, *drawn, method=method))

    assert distance(columns("structured"), columns("generic")) < ROUNDING


@pytest.mark.parametrize("name", ["hessian", "ggn"])
def test_weight_norm_on_a_network_pulls_back_as_on_the_generic_route(name):
    generator = torch.Generator().manual_seed(1)
    module = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Conv2d(2, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(2, 3))
    module = initialized(module, generator)
    for layer in module:
        if hasattr(layer, "weight"):
            weight_norm(layer)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.3)
    inputs = torch.randn(7, 1, 3, 3, generator=generator, dtype=torch.float64)
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(inputs, torch.arange(7) % 3))
    found = cv.pullback(MATRICES[name](problem, method="structured"), problem.chart).dense()
    expected = cv.pullback(MATRICES[name](problem, method="generic"), problem.chart).dense()
    assert problem.chart.gauge == "checkpoint"
    assert distance(found, expected) < ROUNDING


def test_an_activation_in_place_before_the_first_layer_leaves_the_data_alone():
    generator = torch.Generator().manual_seed(1)
    module = nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool1d(2), nn.Conv1d(1, 2, 2), nn.Flatten(), nn.Linear(2, 2))
    module = initialized(module, generator)
    inputs = torch.randn(4, 1, 4, generator=generator, dtype=torch.float64)
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(inputs, torch.arange(4) % 2))
    before = problem.inputs.clone()
    assert_same(problem, ("hessian",))
    assert torch.equal(problem.inputs, before)


@pytest.mark.parametrize("num_outputs", [2, 4, 30])
def test_each_block_of_a_ggn_is_summed_over_columns_or_positions_whichever_are_fewer(num_outputs):
    generator = torch.Generator().manual_seed(1)
    module = nn.Sequential(nn.Conv1d(1, 8, 2), nn.Tanh(), nn.Conv1d(8, 4, 2), nn.Flatten(), nn.Linear(16, num_outputs))
    inputs = torch.randn(4, 1, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(num_outputs, (4,), generator=generator)
    data = (inputs, labels)
    problem = cv.Problem.from_module(initialized(module, generator), loss="cross-entropy", data=data)
    sizes, last = (24, 68, 17 * num_outputs), num_outputs - 1
    expected = min(last, 5) * 24 * 12 + min(last, 4) * 68 * (24 + 34)
    expected += sizes[2] * (24 + 68 + sizes[2] / 2)
    assert cv.ggn(problem).routes.entries.multiplications == 4 * expected
    assert_same(problem, ("ggn", "fisher", "empirical_fisher"))
    by_positions = fast_path(problem).contraction(problem.loss.hessian, second_order=False).compute()
    assert distance(cv.ggn(problem).dense(), by_positions) < ROUNDING


# ------------------------------------------------------------------------------ what is a network, and what is not


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv1d(2, 2, 3, padding=1)

    def forward(self, inputs):
        return inputs + self.body(inputs).tanh()


class OwnConvolution(nn.Conv1d):
    def forward(self, inputs):
        return super().forward(inputs) ** 3


def reused():
    layer = nn.Conv1d(2, 2, 1)
    return nn.Sequential(layer, nn.Tanh(), layer)


def tied():
    module = nn.Sequential(nn.Conv1d(2, 2, 1), nn.Tanh(), nn.Conv1d(2, 2, 1))
    module[2].weight = module[0].weight
    return module


def hooked():
    module = nn.Sequential(nn.Conv1d(2, 2, 2), nn.Tanh(), nn.Conv1d(2, 2, 2))
    module[0].register_forward_hook(lambda _module, _inputs, output: output**2)
    return module


def behind_a_convolution(*layers):
    return nn.Sequential(nn.Conv1d(2, 2, 2), nn.Tanh(), *layers)


# Inputs are (N, 2, 4).
NOT_NETWORKS = {
    "residual": lambda: nn.Sequential(nn.Conv1d(2, 2, 2), Residual()),
    "layer-of-its-own": lambda: nn.Sequential(OwnConvolution(2, 2, 2), nn.Tanh()),
    "reused": reused,
    "tied": tied,
    "hooked": hooked,
    "circular": lambda: nn.Sequential(nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular"), nn.Tanh()),
    "groups": lambda: nn.Sequential(nn.Conv1d(2, 2, 2, groups=2), nn.Tanh()),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose1d(2, 2, 2), nn.Tanh()),
    "trained-norm": lambda: behind_a_convolution(nn.BatchNorm1d(2)),
    "group-norm": lambda: behind_a_convolution(nn.GroupNorm(1, 2)),
    "softmax": lambda: behind_a_convolution(nn.Softmax(1)),
    "linear-on-positions": lambda: behind_a_convolution(nn.Linear(3, 2)),
    "lp-pool": lambda: behind_a_convolution(nn.LPPool1d(2, 2)),
}


@pytest.mark.parametrize("kind", NOT_NETWORKS)
def test_other_models_have_the_matrices_of_autograd_and_refuse_the_structured_method(kind):
    generator = torch.Generator().manual_seed(11)
    module = initialized(nn.Sequential(NOT_NETWORKS[kind](), nn.Flatten()), generator)
    inputs = torch.randn(5, 2, 4, generator=generator, dtype=torch.float64)
    targets = torch.randn(module(inputs).shape, generator=generator, dtype=torch.float64)
    # A copy, since functional_call does not put back the parameters of a layer that is used twice.
    hessian, ggn = hessian_and_ggn_of_half_squared_error(copy.deepcopy(module), inputs, targets)
    problem = cv.Problem.from_module(module, loss="half-squared-error", data=(inputs, targets))
    assert fast_path(problem) is None
    assert distance(cv.hessian(problem).dense(), hessian) < ROUNDING
    assert distance(cv.ggn(problem).dense(), ggn) < ROUNDING
    with pytest.raises(ConfigurationError, match=r"method='structured' needs a torch\.nn\.Sequential of Linear"):
        cv.hessian(problem, method="structured")


@pytest.mark.parametrize("frozen", [True, False])
def test_batch_norm_is_taken_only_where_its_factors_are_frozen(frozen):
    generator = torch.Generator().manual_seed(1)
    module = initialized(nn.Sequential(nn.Conv1d(2, 2, 2), nn.BatchNorm1d(2), nn.Tanh(), nn.Flatten()), generator)
    module[1].requires_grad_(not frozen)
    inputs = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(inputs, torch.arange(5) % 4))
    assert (fast_path(problem) is not None) is frozen
    if frozen:
        assert_same(problem)
