"""What is recorded of linear and convolutional layers, against direct computation and autograd on the user's module."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

import curvature as cv
from curvature.errors import NonFiniteError
from curvature.models.layers import trace_layers
from oracles import drawn

ROUNDING = 1e-13  # relative to the largest entry: sums of a few dozen products in float64


def assert_equal_up_to_rounding(found, expected):
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= ROUNDING * max(1.0, float(expected.abs().max()))


def problem_of(module, inputs, *, targets=None, chunk_size=None):
    if targets is None:
        targets = torch.zeros_like(module.double()(inputs)).detach()
    return cv.Problem.from_module(module, loss="half-squared-error", data=(inputs, targets), chunk_size=chunk_size)


def basis_of_outputs(outputs, _targets):
    """The columns of the identity in output space, as a factor."""
    width = outputs[0].numel()
    return torch.eye(width, dtype=outputs.dtype).expand(len(outputs), width, width)


@pytest.mark.parametrize("chunk_size", [None, 1, 4])
def test_inputs_of_linear_layers_are_those_of_a_forward_pass_by_hand(chunk_size, mlp):
    module = mlp(3, 4, 2)
    inputs = drawn(6, 3)
    hidden = torch.tanh(inputs @ module[0].weight.T + module[0].bias).detach()
    traces = trace_layers(problem_of(module, inputs, chunk_size=chunk_size))
    assert list(traces) == ["0", "2"]
    ones = torch.ones(6, 1, 1, dtype=torch.float64)
    assert_equal_up_to_rounding(traces["0"].inputs, torch.cat([inputs[:, None], ones], dim=2))
    assert_equal_up_to_rounding(traces["2"].inputs, torch.cat([hidden[:, None], ones], dim=2))
    assert traces["0"].output_gradients is None


@pytest.mark.parametrize("chunk_size", [None, 1, 4])
def test_output_gradients_are_the_jacobian_of_the_outputs_in_the_layers_outputs(chunk_size, mlp):
    module = mlp(3, 4, 2)
    inputs = drawn(6, 3)
    hidden = torch.tanh(module[0](inputs)).detach()
    expected = module[2].weight.detach() * (1 - hidden[:, None] ** 2)  # d f_r / d z_h, by hand
    traces = trace_layers(problem_of(module, inputs, chunk_size=chunk_size), basis_of_outputs)
    assert_equal_up_to_rounding(traces["0"].output_gradients, expected[:, :, None])
    identity = torch.eye(2, dtype=torch.float64).expand(6, 2, 2)
    assert_equal_up_to_rounding(traces["2"].output_gradients, identity[:, :, None])


def test_rows_point_at_the_weights_and_the_bias_of_each_neuron(mlp, cnn):
    for module, inputs in ((mlp(3, 4, 2), drawn(5, 3)), (cnn(), drawn(5, 1, 4, 4))):
        problem = problem_of(module, inputs)
        for path, trace in trace_layers(problem).items():
            layer = module.get_submodule(path)
            expected = torch.cat([layer.weight.detach().flatten(1), layer.bias.detach()[:, None]], dim=1)
            assert torch.equal(problem.weights[trace.rows(problem)], expected)


CONVOLUTIONS = {
    "plain": (lambda: nn.Conv2d(2, 3, 2), (2, 4, 5)),
    "one-position": (lambda: nn.Conv2d(2, 3, (4, 5)), (2, 4, 5)),
    "stride": (lambda: nn.Conv2d(2, 3, 3, stride=(2, 1)), (2, 5, 5)),
    "padding": (lambda: nn.Conv2d(2, 3, 3, padding=(1, 2)), (2, 4, 4)),
    "dilation": (lambda: nn.Conv2d(2, 3, 2, dilation=(2, 1), padding=1, stride=2), (2, 5, 4)),
    "no-bias": (lambda: nn.Conv2d(2, 3, 2, bias=False), (2, 4, 4)),
    "plain-1d": (lambda: nn.Conv1d(2, 3, 2), (2, 6)),
    "all-options-1d": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=2, dilation=2), (2, 7)),
    "linear-on-positions": (lambda: nn.Linear(3, 4), (5, 3)),
    "linear-on-a-grid-of-positions": (lambda: nn.Linear(3, 4), (2, 5, 3)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_outer_products_summed_over_positions_are_the_weight_gradients_of_autograd(kind, chunk_size):
    build, shape = CONVOLUTIONS[kind]
    module = nn.Sequential(build(), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2, dtype=torch.float64)).double()
    inputs = drawn(5, *shape)
    module(inputs)
    cotangents = drawn(5, 2, seed=2)
    # The cotangents travel as targets, so that each chunk of examples has its own.
    problem = problem_of(module, inputs, targets=cotangents, chunk_size=chunk_size)
    trace = trace_layers(problem, lambda _outputs, targets: targets[:, :, None])["0"]
    found = torch.einsum("nrto, nti -> noi", trace.output_gradients, trace.inputs)
    parameters = [parameter for parameter in (module[0].weight, module[0].bias) if parameter is not None]
    for n in range(5):
        objective = (module(inputs[n : n + 1]) * cotangents[n]).sum()
        gradients = torch.autograd.grad(objective, parameters)
        columns = [gradients[0].flatten(1), *(part[:, None] for part in gradients[1:])]
        assert_equal_up_to_rounding(found[n], torch.cat(columns, dim=1))


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_patches_times_weights_are_the_outputs_of_the_layer(kind):
    build, shape = CONVOLUTIONS[kind]
    layer = build().double()
    inputs = drawn(4, *shape)
    problem = problem_of(nn.Sequential(layer), inputs)
    trace = trace_layers(problem)["0"]
    found = trace.inputs @ problem.weights[trace.rows(problem)].T  # (N, T, fan_out)
    outputs = layer(inputs).detach()
    if not isinstance(layer, nn.Linear):
        outputs = outputs.flatten(2).mT
    assert_equal_up_to_rounding(found, outputs.reshape(4, -1, found.shape[2]))


def test_only_the_first_layer_has_inputs_that_do_not_depend_on_weights(mlp):
    traces = trace_layers(problem_of(mlp(3, 4, 3, 2), drawn(5, 3)))
    assert [trace.depends_on_weights for trace in traces.values()] == [False, True, True]
    assert [trace.is_output for trace in traces.values()] == [False, False, True]


def test_behind_frozen_layers_inputs_do_not_depend_on_weights(mlp):
    module = mlp(3, 4, 3, 2)
    module[0].requires_grad_(False)
    traces = trace_layers(problem_of(module, drawn(5, 3)), basis_of_outputs)
    assert {path: trace.depends_on_weights for path, trace in traces.items()} == {"2": False, "4": True}


def test_an_activation_behind_the_last_layer_makes_it_no_output(mlp):
    module = nn.Sequential(*mlp(3, 2), nn.Tanh())
    assert not trace_layers(problem_of(module, drawn(5, 3)))["0"].is_output


def test_a_frozen_bias_is_no_part_of_the_rows(mlp):
    module = mlp(3, 2)
    module[0].bias.requires_grad_(False)
    problem = problem_of(module, drawn(5, 3))
    trace = trace_layers(problem)["0"]
    assert trace.bias is None
    assert trace.inputs.shape == (5, 1, 3)
    assert trace.rows(problem).shape == (2, 3)


def test_weight_normalized_layers_are_recorded_like_plain_ones(mlp):
    module = mlp(3, 4, 2)
    normalized = copy.deepcopy(module)
    weight_norm(normalized[0])
    inputs = drawn(5, 3)
    plain = trace_layers(problem_of(module, inputs), basis_of_outputs)
    found = trace_layers(problem_of(normalized, inputs), basis_of_outputs)
    assert found.keys() == plain.keys()
    for path, trace in plain.items():
        assert_equal_up_to_rounding(found[path].inputs, trace.inputs)
        assert_equal_up_to_rounding(found[path].output_gradients, trace.output_gradients)


class Called(nn.Module):
    """Calls its two layers as told: ``twice``, ``by-keyword``, ``never``, ``by-function`` or ``plainly``."""

    def __init__(self, how):
        super().__init__()
        self.first, self.second, self.how = nn.Linear(3, 3), nn.Linear(3, 2), how

    def forward(self, inputs):
        hidden = torch.tanh(
            {
                "twice": lambda: self.first(self.first(inputs)),
                "by-keyword": lambda: self.first(input=inputs),
                "never": lambda: inputs,
                "by-function": lambda: functional.linear(inputs, self.first.weight, self.first.bias),
                "plainly": lambda: self.first(inputs),
            }[self.how]()
        )
        return self.second(hidden)


def tied():
    module = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    module[2].weight = module[0].weight
    return module


LEFT_OUT = {
    "used-twice": (lambda: Called("twice"), (3,), ["second"]),
    "never-used": (lambda: Called("never"), (3,), ["second"]),
    "used-by-function": (lambda: Called("by-function"), (3,), ["second"]),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(2, 2, 2, groups=2), nn.Flatten(), nn.Linear(8, 2)), (2, 3, 3), ["2"]),
    "reflecting": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 2, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(32, 2)),
        (1, 3, 3),
        ["2"],
    ),
    "padding-by-name": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding="same"), nn.Flatten(), nn.Linear(18, 2)),
        (1, 3, 3),
        ["2"],
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(1, 2, 2), nn.Flatten(), nn.Linear(18, 2)),
        (1, 2, 2),
        ["2"],
    ),
    "tied": (tied, (3,), ["4"]),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_layers_whose_outer_products_would_not_be_the_gradient_are_left_out(kind):
    build, shape, kept = LEFT_OUT[kind]
    assert list(trace_layers(problem_of(build(), drawn(5, *shape)), basis_of_outputs)) == kept


def test_a_layer_called_by_keyword_is_recorded_or_left_out():
    inputs = drawn(5, 3)
    module = Called("by-keyword")
    traces = trace_layers(problem_of(module, inputs), basis_of_outputs)
    module.how = "plainly"
    expected = trace_layers(problem_of(module, inputs), basis_of_outputs)
    assert set(traces) >= {"second"}
    for path, trace in traces.items():
        assert_equal_up_to_rounding(trace.inputs, expected[path].inputs)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, inputs):
        return self.scale * inputs


@pytest.mark.parametrize("factor", [None, basis_of_outputs])
def test_a_model_without_layers_has_no_traces(factor):
    assert trace_layers(problem_of(Scale(), drawn(5, 3)), factor) == {}


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.ELU])
def test_activations_in_place_change_nothing(activation):
    inputs = drawn(5, 3)
    traces = []
    for in_place in (False, True):
        module = nn.Sequential(nn.Linear(3, 4), activation(inplace=in_place), nn.Linear(4, 2)).double()
        for number, parameter in enumerate(module.parameters()):
            parameter.data = drawn(*parameter.shape, seed=number)
        traces.append(trace_layers(problem_of(module, inputs), basis_of_outputs))
    plain, found = traces
    for path, trace in plain.items():
        assert_equal_up_to_rounding(found[path].inputs, trace.inputs)
        assert_equal_up_to_rounding(found[path].output_gradients, trace.output_gradients)
        assert found[path].is_output == trace.is_output


class Explosive(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.armed = nn.Linear(3, 2), False

    def forward(self, inputs):
        if self.armed:
            raise NonFiniteError("boom")
        return self.layer(inputs)


def test_no_hook_stays_on_the_model_even_after_an_error():
    problem = problem_of(Explosive(), drawn(5, 3))
    trace_layers(problem, basis_of_outputs)
    assert not any(layer._forward_hooks for layer in problem.model.modules())
    problem.model.armed = True
    with pytest.raises(NonFiniteError, match="boom"):
        trace_layers(problem)
    assert not any(layer._forward_hooks for layer in problem.model.modules())
