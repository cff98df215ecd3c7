"""The private copy of a module: nothing that the user made is run, written to or changed by an analysis."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.utils import parametrizations

import curvature as cv
from oracles import legacy_weight_norm

GENERATOR = torch.Generator().manual_seed(7)
INPUTS = torch.randn(5, 3, generator=GENERATOR, dtype=torch.float64)
REALS = torch.randn(5, 2, generator=GENERATOR, dtype=torch.float64)
SEEN = []


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def hessian_by_double_backward(module, inputs=INPUTS, targets=REALS):
    parameters = list(module.parameters())
    gradient = torch.autograd.grad(mse_loss(module(inputs), targets), parameters, create_graph=True)
    rows = []
    for entry in torch.cat([part.reshape(-1) for part in gradient]):
        parts = torch.autograd.grad(entry, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(rows)


def analyse(module):
    """Every kind of pass: by closed forms and by autograd, a spectrum and a block."""
    problem = cv.Problem.from_module(module, loss="mse", data=(INPUTS, REALS))
    hessian = cv.hessian(problem)
    cv.spectrum(hessian)
    cv.ggn(problem, method="generic").dense()
    problem.gradient()
    cv.hessian(problem.subset("2")).dense()
    return hessian.dense()


def remember(_module, _inputs, output):
    SEEN.append(output)


class Recorder:
    def __init__(self):
        self.seen = []

    def __call__(self, _module, inputs, output):
        self.seen += [inputs, output]

    def method(self, _module, *arguments):
        self.seen.append(arguments)


def recording_hooks(module):
    """Register hooks of every form on a module; return what they would record into."""
    closure, called, bound, applied, nested = [], Recorder(), Recorder(), [], {"seen": []}
    module[0].register_forward_hook(lambda _m, _i, output: closure.append(output))
    module[0].register_forward_hook(remember)
    module[1].register_forward_hook(called)
    module[1].register_forward_pre_hook(bound.method)
    module[2].register_forward_hook(partial(lambda store, _m, _i, out: store.append(out), applied))

    def keep(_m, _args, _kwargs, output):
        nested["seen"].append(output)
        if output.requires_grad:
            output.register_hook(lambda gradient: nested["seen"].append(gradient))

    module[2].register_forward_hook(keep, with_kwargs=True)
    module.register_full_backward_hook(lambda _m, before, after: closure.extend([before, after]))
    module[0].register_full_backward_pre_hook(lambda _m, gradients: closure.append(gradients))
    for parameter in module.parameters():
        parameter.register_hook(lambda gradient: closure.append(gradient))
        parameter.register_post_accumulate_grad_hook(lambda p: closure.append(p.grad))
    return closure, called.seen, bound.seen, applied, nested["seen"], SEEN


def test_hooks_neither_fire_into_the_users_buffers_nor_collect_gradients():
    module = network()
    buffers = recording_hooks(module)
    found = analyse(module)
    assert [len(buffer) for buffer in buffers] == [0] * 6
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.allclose(found, hessian_by_double_backward(network()), rtol=1e-12, atol=1e-15)
    module(INPUTS.clone().requires_grad_()).sum().backward()
    assert all(buffers)  # they still fire for the user
    SEEN.clear()


def test_hooks_that_have_recorded_tensors_with_a_graph_can_be_copied():
    module, seen = network(), {}
    module[1].register_forward_hook(lambda _m, _i, output: seen.update(hidden=output))
    module(INPUTS)
    kept = seen["hidden"]
    assert torch.allclose(analyse(module), hessian_by_double_backward(network()), rtol=1e-12, atol=1e-15)
    assert seen["hidden"] is kept
    assert kept.grad_fn is not None


def test_hooks_that_change_values_belong_to_the_function():
    module, scale = network(), torch.tensor(3.0, dtype=torch.float64)
    module[1].register_forward_hook(lambda _m, _i, output: scale * output**2)
    module[2].register_forward_pre_hook(lambda _m, inputs: (inputs[0] + module[0].bias,))
    assert torch.allclose(analyse(module), hessian_by_double_backward(module), rtol=1e-11, atol=1e-14)


def test_hooks_that_only_record_are_removed_from_the_copy():
    module = network()
    recording_hooks(module)
    problem = cv.Problem.from_module(module, loss="mse", data=(INPUTS, REALS))
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in problem.model.modules())


class Extractor(nn.Module):
    """Forward returns what a hook has recorded, as wrappers that extract features do."""

    def __init__(self, record):
        super().__init__()
        self.body, self.features = network(), {}
        self.body[1].register_forward_hook(record(self))

    def forward(self, inputs):
        self.body(inputs)
        return self.features["hidden"][:, :2]


class MethodExtractor(Extractor):
    def keep(self, _module, _inputs, output):
        self.features["hidden"] = output


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        (Extractor, lambda extractor: lambda _m, _i, output: extractor.features.update(hidden=output)),
        (MethodExtractor, lambda extractor: extractor.keep),
    ],
)
def test_hooks_that_record_what_forward_returns_belong_to_the_function(kind, record):
    module = kind(record)
    problem = cv.Problem.from_module(module, loss="mse", data=(INPUTS, REALS))
    expected = hessian_by_double_backward(nn.Sequential(network()[0], nn.Tanh(), FirstTwo()))
    found = cv.hessian(problem, method="generic").dense()[:16, :16]
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-15)
    assert module.features == {}


class FirstTwo(nn.Module):
    def forward(self, inputs):
        return inputs[:, :2]


def test_hooks_that_write_in_place_or_into_the_module_belong_to_the_function():
    module = network()

    def triple(_module, _inputs, output):
        output.mul_(3)

    module[0].register_forward_hook(triple)
    module[2].register_forward_pre_hook(lambda layer, _inputs: setattr(layer, "scale", layer.weight.sum()))
    module[2].register_forward_hook(lambda layer, _inputs, output: output * layer.scale)
    problem = cv.Problem.from_module(module, loss="mse", data=(INPUTS, REALS))
    assert sum(len(layer._forward_hooks) for layer in problem.model.modules()) == 2
    found = cv.hessian(problem, method="generic").dense()
    assert torch.allclose(found, hessian_by_double_backward(module), rtol=1e-11, atol=1e-14)


def test_a_hook_whose_objects_cannot_be_copied_is_refused_by_name(tmp_path):
    module = network()
    with (tmp_path / "log").open("w") as stream:

        def write(_module, _inputs, output):
            stream.write(f"{output}\n")

        module[0].register_forward_hook(write)
        with pytest.raises(cv.InputError, match=r"write'.* of layer '0' \(Linear\).*cannot be copied.*Remove it first"):
            analyse(module)


def test_a_global_hook_is_refused_by_name():
    handle = nn.modules.module.register_module_forward_hook(remember)
    try:
        with pytest.raises(cv.InputError, match=r"global hook 'remember'"):
            analyse(network())
    finally:
        handle.remove()
    assert SEEN == []


def test_a_forward_replaced_on_the_instance_runs_on_the_copy():
    module = network()
    module.forward = lambda inputs: module[2](torch.sin(module[0](inputs)))
    problem = cv.Problem.from_module(module, loss="mse", data=(INPUTS, REALS))
    found = cv.hessian(problem, method="generic").dense()
    assert torch.allclose(found, hessian_by_double_backward(module), rtol=1e-11, atol=1e-14)


def everything(module):
    """All that an analysis could change, as comparable values."""
    return {
        "state": {name: value.clone() for name, value in module.state_dict().items()},
        "modes": [layer.training for layer in module.modules()],
        "trainable": [parameter.requires_grad for parameter in module.parameters()],
        "identities": [id(tensor) for tensor in (*module.parameters(), *module.buffers())],
        "gradients": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "classes": [type(layer) for layer in module.modules()],
        "hooks": [[*layer._forward_hooks.values(), *layer._forward_pre_hooks.values()] for layer in module.modules()],
        "attributes": [sorted(vars(layer)) for layer in module.modules()],
        "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()),  # noqa: NPY002
    }


def same(first, second):
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


class Recurrent(nn.Module):
    """The last output of a recurrent layer whose weights are normalized."""

    def __init__(self, kind, normalize, names):
        super().__init__()
        self.body = kind(3, 2, batch_first=True)
        for name in names:
            self.body = normalize(self.body, name)

    def forward(self, inputs):
        return self.body(inputs[:, None, :].repeat(1, 2, 1))[0][:, -1]


def recurrent(kind, normalize, names, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Recurrent(kind, normalize, names).double()


def trained(module):
    """The module after a step of gradient descent, with its gradients still there."""
    mse_loss(module(INPUTS), REALS).backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    return module


def with_hooks(module):
    recording_hooks(module)
    return module


MODULES = {
    "trained": lambda: trained(network()),
    "with hooks": lambda: with_hooks(network()),
    "partly frozen": lambda: (m := network(), m[0].requires_grad_(False))[0],
    "batch norm": lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double().eval(),
    "weight norm": lambda: trained(nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2)))).double(),
    "legacy weight norm": lambda: trained(nn.Sequential(legacy_weight_norm(nn.Linear(3, 2))).double()),
    "recurrent": lambda: trained(recurrent(nn.LSTM, parametrizations.weight_norm, ["weight_hh_l0"])),
}


@pytest.mark.parametrize("name", MODULES)
def test_an_analysis_leaves_the_module_as_it_was(name):
    module = (
        MODULES[name]()
        if name != "weight norm"
        else nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2).double()))
    )
    before = everything(module)
    problem = cv.Problem.from_module(module, loss="mse", data=(INPUTS, REALS))
    cv.spectrum(cv.hessian(problem))
    cv.spectrum(cv.ggn(problem))
    assert same(everything(module), before)


KINDS = {
    "LSTM, one weight": (nn.LSTM, parametrizations.weight_norm, ["weight_hh_l0"]),
    "LSTM, both weights": (nn.LSTM, parametrizations.weight_norm, ["weight_hh_l0", "weight_ih_l0"]),
    "GRU": (nn.GRU, parametrizations.weight_norm, ["weight_ih_l0"]),
    "RNN": (nn.RNN, parametrizations.weight_norm, ["weight_hh_l0"]),
    "RNN, legacy": (nn.RNN, legacy_weight_norm, ["weight_hh_l0"]),
    "LSTM, orthogonal": (nn.LSTM, partial(parametrizations.orthogonal, orthogonal_map="cayley"), ["weight_hh_l0"]),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_parametrized_recurrent_layer_after_a_step_has_the_hessian_of_finite_differences(name):
    module = trained(recurrent(*KINDS[name]))
    problem = cv.Problem.from_module(module, loss="mse", data=(INPUTS, REALS))
    # In the coordinates of the module: the chart of its weight norm, or the weights themselves.
    hessian = cv.pullback(cv.hessian(problem), problem.chart).dense()
    parameters = list(module.parameters())

    def gradient():
        parts = torch.autograd.grad(mse_loss(module(INPUTS), REALS), parameters)
        return torch.cat([part.reshape(-1) for part in parts])

    columns = []
    for parameter in parameters:
        flat = parameter.data.view(-1)
        for position in range(len(flat)):
            value = float(flat[position])
            flat[position] = value + 1e-5
            above = gradient()
            flat[position] = value - 1e-5
            columns.append((above - gradient()) / 2e-5)
            flat[position] = value
    expected = torch.stack(columns, 1)
    # The order of the coordinates differs: a symmetric matrix is compared by its eigenvalues.
    assert torch.allclose(
        torch.linalg.eigvalsh(hessian), torch.linalg.eigvalsh((expected + expected.T) / 2), rtol=1e-6, atol=1e-8
    )
