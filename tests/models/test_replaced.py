"""Modules that run other code than their layers say: every route is that of the code, by plain autograd."""

import functools
import types

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

import curvature as cv
from curvature.matrices.fast.paths import fast_path
from curvature.models.layers import trace_layers
from curvature.models.module.replaced import runs_its_type
from curvature.studies import training
from oracles import built, distance, drawn

INPUTS = drawn(6, 3)
IMAGES = drawn(6, 1, 5, 5)
LABELS = torch.arange(6) % 2
DAMPING = 0.1


def chain():
    return built(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))


def images():
    return built(lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(18, 2)))


# ---------------------------------------------------------------------------------------------------- kinds of changes


def method_on_the_model(module):
    module.forward = types.MethodType(lambda self, z: 3.0 * type(self).forward(self, z), module)


def closure_on_the_model(module):
    original = module.forward
    module.forward = lambda z: 3.0 * original(z)


def wrapper_with_the_names_of_the_original(module):
    original = module.forward

    @functools.wraps(original)
    def forward(*arguments, factor=1.7):
        return factor * original(*arguments)

    module.forward = forward


def partial_on_the_model(module):
    def scaled(original, factor, inputs):
        return factor * original(inputs)

    module.forward = functools.partial(scaled, module.forward, 2.5)


def closure_that_names_layers(module):
    module.forward = lambda z: module[-1](torch.flatten(torch.sin(module[0](z)), 1))


def global_variable(module):
    scope = {"model": module, "original": module.forward}
    exec("def helper(z):\n    return original(z)\n\ndef forward(z):\n    return 2 * helper(z)", scope)
    module.forward = scope["forward"]


def method_of_an_activation(module):
    module[1].forward = types.MethodType(lambda _, z: torch.sin(z), module[1])


def method_of_a_linear_layer(module):
    last = module[-1]
    last.forward = types.MethodType(lambda self, z: functional.linear(z, 2 * self.weight, self.bias), last)


def inner_method_of_a_convolution(module):
    first = module[0]
    if isinstance(first, nn.Conv2d):
        first._conv_forward = types.MethodType(lambda _, z, w, b: functional.conv2d(z, w.square(), b), first)
    else:
        first.forward = types.MethodType(lambda self, z: functional.linear(z, self.weight.square(), self.bias), first)


def forward_hook(module):
    module[1].register_forward_hook(lambda _layer, _inputs, outputs: 2 * outputs)


def forward_hook_on_the_model(module):
    module.register_forward_hook(lambda _layer, _inputs, outputs: outputs + outputs**2)


def pre_hook(module):
    module[-1].register_forward_pre_hook(lambda _layer, inputs: (inputs[0].sin(),))


def hook_that_names_another_layer(module):
    first = module[0]
    module.register_forward_hook(lambda _layer, _inputs, outputs: outputs * first.bias.sum())


def hook_on_a_nested_container(module):
    module.add_module("9", nn.Sequential(nn.Identity()))
    module[-1].register_forward_hook(lambda _layer, _inputs, outputs: outputs**2)


class Doubled(nn.Linear):
    def forward(self, inputs):
        return 2 * super().forward(inputs)


def subclass_of_a_layer(module):
    module[-1].__class__ = Doubled


class Called(nn.Linear):
    def __call__(self, inputs):
        return super().__call__(inputs).sin()


def subclass_that_overrides_call(module):
    module[-1].__class__ = Called


class Residual(nn.Sequential):
    def forward(self, inputs):
        outputs = super().forward(inputs)
        return outputs + 0.1 * outputs**3


def subclass_of_the_container(module):
    module.__class__ = Residual


class Squared(nn.Module):
    def forward(self, weight):
        return weight**2


def parametrized(module):
    parametrize.register_parametrization(module[-1], "weight", Squared())


def detach_in_a_layer(module):
    last = module[-1]
    last.forward = types.MethodType(lambda self, z: functional.linear(z.detach(), self.weight, self.bias), last)


CHANGES = [
    method_on_the_model,
    closure_on_the_model,
    wrapper_with_the_names_of_the_original,
    partial_on_the_model,
    closure_that_names_layers,
    global_variable,
    method_of_an_activation,
    method_of_a_linear_layer,
    inner_method_of_a_convolution,
    forward_hook,
    forward_hook_on_the_model,
    pre_hook,
    hook_that_names_another_layer,
    hook_on_a_nested_container,
    subclass_of_a_layer,
    subclass_that_overrides_call,
    subclass_of_the_container,
    parametrized,
]


# ------------------------------------------------------------------------------------------------------------- oracles


def flat(parts):
    return torch.cat([part.reshape(-1) for part in parts])


def rows_of(outputs, parameters):
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    zero = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    rows = [
        flat(torch.autograd.grad(entry, parameters, **options)) if entry.requires_grad else zero
        for entry in outputs.reshape(-1)
    ]
    return torch.stack(rows).detach()


def by_autograd(module, inputs):
    """Outputs, gradient, Hessian, GGN and per-example gradients of the user's own module, by plain backward passes."""
    parameters = list(module.parameters())
    outputs = module(inputs)
    losses = functional.cross_entropy(outputs, LABELS, reduction="none")
    slopes = torch.autograd.grad(
        losses.mean(), parameters, create_graph=True, allow_unused=True, materialize_grads=True
    )
    jacobian = rows_of(outputs, parameters).reshape(*outputs.shape, -1)
    p = outputs.detach().softmax(dim=1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return types.SimpleNamespace(
        outputs=outputs.detach(),
        gradient=flat(slopes).detach(),
        hessian=rows_of(flat(slopes), parameters),
        ggn=torch.einsum("ncp, ncd, ndq -> pq", jacobian, middle, jacobian) / len(outputs),
        slopes=rows_of(losses, parameters),
    )


def check_every_route(module, inputs, *, generic=True):
    expected = by_autograd(module, inputs)
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(inputs, LABELS))
    assert fast_path(problem) is None or not generic
    gradient, hessian, ggn = expected.gradient, expected.hessian, expected.ggn
    damped = ggn + DAMPING * torch.eye(len(ggn), dtype=ggn.dtype)
    assert distance(problem.outputs(), expected.outputs) < 1e-13
    assert distance(problem.gradient(), gradient) < 1e-12
    operator, block = cv.hessian(problem), drawn(problem.dim, 2)
    assert distance(operator.dense(), hessian) < 1e-12
    assert distance(operator @ block, hessian @ block) < 1e-12
    assert abs(cv.trace(operator).value - float(hessian.trace())) < 1e-12 * float(hessian.abs().sum())
    assert distance(torch.as_tensor(cv.diagonal(operator).value), hessian.diagonal()) < 1e-12
    values = torch.linalg.eigvalsh(hessian)
    assert cv.inertia(operator, 1e-3).above == int((values > 1e-3).sum())
    for matrix in (cv.ggn(problem), cv.fisher(problem)):
        assert distance(matrix.dense(), ggn) < 1e-12
        assert distance(matrix @ block, ggn @ block) < 1e-12
    assert abs(cv.log_determinant(cv.ggn(problem), DAMPING).value - float(torch.logdet(damped))) < 1e-9
    centred = expected.slopes - expected.slopes.mean(dim=0)
    assert distance(cv.empirical_fisher(problem).dense(), expected.slopes.T @ expected.slopes / len(LABELS)) < 1e-12
    assert distance(cv.gradient_covariance(problem).dense(), centred.T @ centred / len(LABELS)) < 1e-12
    natural = torch.linalg.solve(damped, gradient)
    assert distance(cv.natural_gradient_step(problem, damping=DAMPING), -natural) < 1e-10
    share = float((gradient @ gradient) ** 2 / ((gradient @ damped @ gradient) * (gradient @ natural)))
    assert abs(cv.efficiency(problem, cv.Standard(), damping=DAMPING).efficiency - share) < 1e-10
    return problem


OF_IMAGES = (method_on_the_model, inner_method_of_a_convolution, forward_hook, pre_hook, subclass_of_a_layer)


@pytest.mark.parametrize(
    ("change", "build"), [*((change, chain) for change in CHANGES), *((change, images) for change in OF_IMAGES)]
)
def test_every_route_is_that_of_the_code_that_runs(change, build):
    module = build()
    change(module)
    check_every_route(module, IMAGES if build is images else INPUTS)


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
def test_global_hooks_are_refused_and_later_ones_take_the_generic_path(kind):
    problem = cv.Problem.from_module(chain(), loss="cross-entropy", data=(INPUTS, LABELS))
    assert fast_path(problem) is not None
    handle = getattr(nn.modules.module, f"register_module_{kind}")(lambda *_: None)
    try:
        assert fast_path(problem) is None
        with pytest.raises(cv.InputError, match="global hook"):
            cv.Problem.from_module(chain(), loss="cross-entropy", data=(INPUTS, LABELS))
    finally:
        handle.remove()
    assert fast_path(problem) is not None


# What no look at the layers can see: the classes and functions of torch themselves are replaced.
PATCHES = {
    "an activation": (nn.Tanh, "forward", lambda _, z: torch.sin(z)),
    "a layer": (nn.Linear, "forward", lambda self, z: functional.linear(z, self.weight.sin(), self.bias)),
    "the container": (nn.Sequential, "forward", lambda self, z: functools.reduce(lambda v, f: f(v), self, z) ** 2),
    "derivatives of an activation": (nn.Tanh, "forward", lambda _, z: (torch.tanh(z) + torch.tanh(z).detach()) / 2),
    "derivatives of a layer": (
        nn.Linear,
        "forward",
        lambda self, z: (
            (nn.functional.linear(z, self.weight) + nn.functional.linear(z.detach(), self.weight)) / 2 + self.bias
        ),
    ),
}


@pytest.mark.filterwarnings("ignore:PyTorch's gradient is not the derivative")
@pytest.mark.parametrize("build", [chain, images])
@pytest.mark.parametrize("patch", PATCHES)
def test_methods_replaced_on_classes_of_torch_are_seen_by_numbers(patch, build, monkeypatch):
    kind, name, function = PATCHES[patch]
    monkeypatch.setattr(kind, name, function)
    # The closed forms differentiate activations as modules: they may stay.
    check_every_route(build(), IMAGES if build is images else INPUTS, generic=kind is not nn.Tanh)


@pytest.mark.filterwarnings("ignore:PyTorch's gradient is not the derivative")
def test_detached_layer_is_refused(monkeypatch):
    module = chain()
    detach_in_a_layer(module)
    with pytest.raises(cv.InputError, match="PyTorch finds no derivative"):
        cv.Problem.from_module(module, loss="cross-entropy", data=(INPUTS, LABELS))
    monkeypatch.setattr(nn.Tanh, "forward", lambda _, z: torch.tanh(z).detach() + 0 * z)
    problem = cv.Problem.from_module(chain(), loss="cross-entropy", data=(INPUTS, LABELS))
    with pytest.raises(cv.SelfCheckError, match="finite differences of the gradient"):
        cv.spectrum(cv.hessian(problem))


def test_plain_networks_keep_their_closed_forms_at_every_point_and_the_comparison_is_made_once(monkeypatch):
    from curvature.matrices.fast import paths

    compared = []
    original = paths._agree
    monkeypatch.setattr(paths, "_agree", lambda *arguments: compared.append(1) or original(*arguments))
    for build, inputs in ((chain, INPUTS), (images, IMAGES)):
        for dtype in (torch.float64, torch.float32):
            problem = cv.Problem.from_module(build(), loss="cross-entropy", data=(inputs, LABELS), dtype=dtype)
            for point in (problem, problem.at(10 * problem.weights), problem.at(1e-6 * problem.weights)):
                assert fast_path(point) is not None
    assert len(compared) == 4


def test_code_that_differs_for_late_examples_alone_is_seen_by_the_replaced_method():
    inputs = torch.cat([-INPUTS.abs(), -INPUTS.abs(), INPUTS.abs()])
    module = chain()

    def kinked(self, z):
        return nn.Linear.forward(self, torch.where(z[:, :1] > 0, z.sin(), z))

    module[0].forward = types.MethodType(kinked, module[0])
    labels = LABELS.repeat(3)
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(inputs, labels))
    parameters = list(module.parameters())
    slopes = torch.autograd.grad(functional.cross_entropy(module(inputs), labels), parameters, create_graph=True)
    assert distance(cv.hessian(problem).dense(), rows_of(flat(slopes), parameters)) < 1e-12


def test_hook_that_looks_and_does_not_touch_leaves_the_numbers_alone():
    module = chain()
    module[0].register_forward_hook(lambda *_: None)
    check_every_route(module, INPUTS, generic=False)


# ---------------------------------------------------------------------------------------------- other readers of layers


def test_preconditioners_read_only_layers_that_are_affine_in_their_parameters():
    for change, kept in ((subclass_of_a_layer, {"0"}), (method_of_a_linear_layer, {"0"}), (pre_hook, {"0"})):
        module = chain()
        change(module)
        problem = cv.Problem.from_module(module, loss="cross-entropy", data=(INPUTS, LABELS))
        assert trace_layers(problem).keys() == kept
        for kind in ("kfac", "prong"):
            step = cv.chart_step(problem, cv.preconditioner(problem, kind, damping=DAMPING))
            assert float(step @ problem.gradient()) < 0
    plain = cv.Problem.from_module(chain(), loss="cross-entropy", data=(INPUTS, LABELS))
    assert trace_layers(plain).keys() == {"0", "2"}


def test_affine_layers_of_a_class_that_was_replaced_are_seen_by_numbers(monkeypatch):
    monkeypatch.setattr(
        nn.Linear, "forward", lambda self, z: functional.linear(z, self.weight.sin(), self.bias), raising=True
    )
    problem = cv.Problem.from_module(chain(), loss="cross-entropy", data=(INPUTS, LABELS))
    assert trace_layers(problem) == {}


def test_training_runs_the_code_of_the_module():
    module = chain()
    closure_on_the_model(module)
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(INPUTS, LABELS))
    schedule = training.Schedule(epochs=3, batch_size=6, checkpoints={"end": 3})
    run = training.train(problem, cv.Standard(), schedule, arm="a", seed=0, optimizer=training.SGD(0.2))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.2)
    for _ in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(module(INPUTS), LABELS).backward()
        optimizer.step()
    assert distance(run.checkpoints[0].weights, flat(module.parameters()).detach()) < 1e-13
    changed = chain()
    subclass_of_a_layer(changed)
    other = cv.Problem.from_module(changed, loss="cross-entropy", data=(INPUTS, LABELS))
    with pytest.raises(cv.ConfigurationError, match="cannot be batch-normalized"):
        training.BatchNormalized(other)


# ---------------------------------------------------------------------------------------------------- copies of modules


def test_copy_runs_on_its_own_weights_and_the_users_functions_stay():
    module = chain()
    closure_on_the_model(module)
    before = module.forward
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(INPUTS, LABELS))
    assert module.forward is before
    assert problem.unused == ()
    with torch.no_grad():
        module[0].weight.zero_()
    assert distance(problem.subset("0").outputs(), problem.outputs()) < 1e-15
    assert float(problem.gradient()[:12].abs().max()) > 0


def test_function_that_holds_a_parameter_of_the_module_is_refused_with_the_way_out():
    module = chain()
    weight = module[2].weight
    module[2].forward = lambda z: functional.linear(z, weight)
    with pytest.raises(cv.InputError, match=r"refers to the parameters 2\.weight through variables.*types\.MethodType"):
        cv.Problem.from_module(module, loss="cross-entropy", data=(INPUTS, LABELS))


def test_recursive_and_nested_functions_are_rebound():
    module = chain()
    original = module.forward

    def outer(inputs, depth=2):
        def inner():
            return original(inputs) if depth == 0 else 1.5 * outer(inputs, depth - 1)

        return inner()

    module.forward = outer
    check_every_route(module, INPUTS)


def test_layer_runs_its_type_unless_something_was_put_in_between():
    layer = nn.Linear(2, 2)
    assert runs_its_type(layer)
    layer.note = "an attribute that is no code"
    assert runs_its_type(layer)
    layer.forward = layer.forward
    assert not runs_its_type(layer)
    del layer.forward
    assert runs_its_type(layer)
    layer.register_forward_pre_hook(lambda *_: None).remove()
    assert runs_its_type(layer)
    layer._compiled_call_impl = layer.forward  # as compile() does
    assert not runs_its_type(layer)
