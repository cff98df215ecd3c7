"""Gains moved into the next matrix: the same function, another curvature, as the Jacobian of the move says."""

import pytest
import torch
from torch import nn

import curvature as cv
from oracles import distance, normal


def problem_of(module, generator, width=4, outputs=2):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 + normal(generator, *parameter.shape))
    return cv.Problem.from_module(module, loss="mse", data=(normal(generator, 9, width), normal(generator, 9, outputs)))


def network(norm, bias=True):
    return nn.Sequential(nn.Linear(4, 5), norm, nn.Linear(5, 3, bias=bias), nn.Tanh(), nn.Linear(3, 2)).double()


@pytest.mark.parametrize("gain", [1.0, -0.2, 30.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", [nn.LayerNorm(5), nn.RMSNorm(5)], ids=["layer", "rms"])
def test_the_function_stays_and_the_gain_is_what_was_asked_for(norm, bias, gain, generator):
    problem = problem_of(network(norm, bias), generator)
    folded = cv.fold_norms(problem, gain=gain)
    assert distance(folded.outputs(), problem.outputs()) < 1e-13
    named = folded.unflatten(folded.weights)
    assert torch.equal(named["1.weight"], torch.full((5,), gain, dtype=torch.float64))
    if bias and isinstance(norm, nn.LayerNorm):
        assert not named["1.bias"].any()
    assert "1 are folded" in folded.notes[-1]
    assert problem.notes == ()


def test_the_gradient_changes_by_the_gain_that_moved(generator):
    """With ``W -> W diag(gamma)`` the derivative in an entry of the matrix is divided by its gain."""
    problem = problem_of(network(nn.LayerNorm(5)), generator)
    folded = cv.fold_norms(problem)
    gain, shift = (problem.unflatten(problem.weights)[name] for name in ("1.weight", "1.bias"))
    before, after = (point.unflatten(point.gradient()) for point in (problem, folded))
    # W x = W' x' + const with x = gamma x' + beta: dL/dW = dL/d(output) x^T.
    expected = after["2.weight"] * gain + after["2.bias"][:, None] * shift
    assert distance(before["2.weight"], expected) < 1e-12


def test_sharpness_is_changed_at_will_by_a_gauge_of_one_function(generator):
    problem = problem_of(network(nn.LayerNorm(5)), generator)
    tops = [
        float(torch.linalg.eigvalsh(cv.hessian(cv.fold_norms(problem, gain=gain)).dense())[-1])
        for gain in (1.0, 1e3, 1e6)
    ]
    assert tops[2] > 1e10 * tops[0]


def frozen(norm, generator):
    """A batch normalization in eval mode, with statistics as training leaves them."""
    norm = norm.double().eval()
    norm.running_mean.copy_(normal(generator, len(norm.weight)))
    norm.running_var.copy_(0.3 + normal(generator, len(norm.weight)).square())
    return norm


def behind(layer, norm):
    """A network in which a batch normalization is behind a layer, for inputs of four numbers."""
    size = () if isinstance(layer, nn.Linear) else (2, *[1] * (layer.weight.ndim - 3), 2)
    first = nn.Unflatten(1, size) if size else nn.Identity()
    return nn.Sequential(first, layer, norm, nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)).double().eval()


LAYERS = {
    "linear": (lambda bias: nn.Linear(4, 3, bias=bias), nn.BatchNorm1d),
    "conv1d": (lambda bias: nn.Conv1d(2, 3, 2, bias=bias), nn.BatchNorm1d),
    "conv2d of groups": (lambda bias: nn.Conv2d(2, 4, 1, groups=2, bias=bias), nn.BatchNorm2d),
    "transposed": (lambda bias: nn.ConvTranspose1d(2, 3, 2, bias=bias), nn.BatchNorm1d),
}


@pytest.mark.parametrize("gain", [1.0, -0.2, 30.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_frozen_batch_norm_is_folded_into_the_layer_before_it(kind, bias, gain, generator):
    build, norm = LAYERS[kind]
    layer = build(bias)
    width = layer.out_features if kind == "linear" else layer.out_channels
    module = behind(layer, frozen(norm(width), generator))
    module(torch.zeros(1, 4, dtype=torch.float64))  # the lazy layer
    problem = problem_of(module, generator)
    folded = cv.fold_norms(problem, gain=gain)
    assert distance(folded.outputs(), problem.outputs()) < 1e-13
    named = folded.unflatten(folded.weights)
    assert torch.equal(named["2.weight"], torch.full((width,), gain, dtype=torch.float64))
    assert bool(named["2.bias"].any()) is not bias  # the shift stays where the layer has no bias
    assert "2 are folded into the layers before them" in folded.notes[-1]
    # Without the normalization both are the network that PyTorch's own fusion makes.
    parts = [{name: part.clone() for name, part in p.unflatten(p.weights).items()} for p in (problem, folded)]
    fused = [
        torch.nn.utils.fusion.fuse_conv_bn_weights(
            part["1.weight"], part.get("1.bias"), module[2].running_mean, module[2].running_var, module[2].eps,
            part["2.weight"], part["2.bias"], transpose=kind == "transposed",
        )
        for part in parts
    ]  # fmt: skip
    for before, after in zip(*fused, strict=True):
        assert distance(after, before) < 1e-13


def test_a_gain_that_is_zero_is_folded_before_a_batch_norm(generator):
    module = behind(nn.Linear(4, 3), frozen(nn.BatchNorm1d(3), generator))
    module(torch.zeros(1, 4, dtype=torch.float64))
    problem = problem_of(module, generator)
    weights = problem.weights.clone()
    weights[problem.layout.slices["2.weight"].start] = 0
    folded = cv.fold_norms(problem.at(weights))
    assert distance(folded.outputs(), problem.outputs(weights)) < 1e-13
    assert not folded.unflatten(folded.weights)["1.weight"][0].any()


@pytest.mark.parametrize("fixed", ["1.bias", "2.bias"])
def test_a_bias_or_a_shift_that_is_not_trained_stays_as_it_is(fixed, generator):
    module = behind(nn.Linear(4, 3), frozen(nn.BatchNorm1d(3), generator))
    module(torch.zeros(1, 4, dtype=torch.float64))
    with torch.no_grad():
        module.get_parameter(fixed).copy_(normal(generator, 3))
    module.get_parameter(fixed).requires_grad_(False)
    problem = problem_of(module, generator)
    folded = cv.fold_norms(problem, gain=2.0)
    assert distance(folded.outputs(), problem.outputs()) < 1e-13
    assert not torch.equal(folded.weights, problem.weights)


def test_layer_and_batch_norms_of_one_network_are_both_folded(generator):
    module = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3), frozen(nn.BatchNorm1d(3), generator), nn.Linear(3, 2))
    problem = problem_of(module.double().eval(), generator)
    folded = cv.fold_norms(problem)
    assert distance(folded.outputs(), problem.outputs()) < 1e-13
    assert [note.partition(" are")[0] for note in folded.notes] == ["The gains of 0", "The gains of 2"]
    named = folded.unflatten(folded.weights)
    for name in ("0.weight", "2.weight"):
        assert torch.equal(named[name], torch.ones_like(named[name]))


class Branching(nn.Module):
    """Something else than the batch normalization reads the layer before it."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 2), nn.BatchNorm1d(2)

    def forward(self, inputs):
        hidden = self.linear(inputs)
        return self.norm(hidden) + hidden


class Shared(nn.Module):
    """Something else than a linear layer reads the normalized features."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, inputs):
        normed = self.norm(inputs)
        return self.linear(normed) + normed[:, :2]


@pytest.mark.parametrize(
    "module",
    [
        Shared(),
        nn.Sequential(nn.Linear(4, 2)),
        Branching().eval(),
        nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2, affine=False)).eval(),
    ],
    ids=["shared", "none", "branching", "without a gain"],
)
def test_what_cannot_be_folded_is_refused(module, generator):
    with pytest.raises(cv.InputError, match="no normalization can be folded"):
        cv.fold_norms(problem_of(module.double(), generator))


@pytest.mark.parametrize("gain", [0.0, float("nan")])
def test_an_impossible_gain_is_refused(gain, generator):
    with pytest.raises(cv.ConfigurationError, match="gain must be a finite number"):
        cv.fold_norms(problem_of(network(nn.LayerNorm(5)), generator), gain=gain)
