"""Wrappers around a module: what is measured is the module inside, under its own names."""

import copy
import re

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel

import curvature as cv

GENERATOR = torch.Generator().manual_seed(5)
INPUTS = torch.randn(6, 3, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.randint(2, (6,), generator=GENERATOR)
NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def by_double_backward(module, run=None):
    """Hessian of the mean cross-entropy, one backward pass for each entry of the gradient."""
    parameters = list(module.parameters())
    loss = cross_entropy((run or module)(INPUTS), LABELS)
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    rows = []
    for entry in torch.cat([part.reshape(-1) for part in gradient]):
        parts = torch.autograd.grad(entry, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(rows)


def problem(module):
    return cv.Problem.from_module(module, loss="cross-entropy", data=(INPUTS, LABELS))


@pytest.fixture(scope="module")
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def compiled(module):
    return torch.compile(module, backend="aot_eager")


def compiled_and_trained(module):
    made = compiled(module)
    cross_entropy(made(INPUTS), LABELS).backward()
    return made


def compiled_in_place(module):
    module.compile(backend="aot_eager")
    module(INPUTS)
    return module


def compiled_forward(module):
    module.forward = torch.compile(module.forward, backend="aot_eager")
    module(INPUTS)
    return module


WRAPPERS = {
    "compiled": (compiled, "compiled by torch.compile"),
    "compiled and trained": (compiled_and_trained, "compiled by torch.compile"),
    "compiled in place": (compiled_in_place, "compiled in place"),
    "compiled forward": (compiled_forward, None),
    "compiled layer": (lambda m: nn.Sequential(m[0], compiled(m[1]), compiled(m[2])), "layer '2'.*torch.compile"),
    "data parallel": (nn.DataParallel, "DataParallel; the module in it was used, on one device"),
    "averaged": (AveragedModel, "at the averaged weights"),
    "averaged, data parallel, compiled": (lambda m: AveragedModel(nn.DataParallel(compiled(m))), "torch.compile"),
    "checkpoint wrapper": (lambda m: nn.Sequential(m[0], m[1], checkpoint_wrapper(m[2])), "activation checkpointing"),
    "data parallel inside": (lambda m: nn.Sequential(m[0], m[1], nn.DataParallel(m[2])), "layer '2'.*DataParallel"),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_module_has_the_hessian_and_the_names_of_the_module_inside(name):
    wrap, note = WRAPPERS[name]
    expected = by_double_backward(network())
    found = problem(wrap(network()))
    assert list(found.layout.slices) == NAMES
    assert torch.allclose(cv.hessian(found).dense(), expected, rtol=1e-12, atol=1e-15)
    assert torch.allclose(cv.hessian(found, method="generic").dense(), expected, rtol=1e-12, atol=1e-15)
    if note is None:
        assert found.notes == ()
    else:
        assert [text for text in found.notes if re.search(note, text)]


@pytest.mark.usefixtures("one_process")
def test_distributed_data_parallel_is_unwrapped_and_its_note_names_the_data():
    found = problem(nn.parallel.DistributedDataParallel(network()))
    assert list(found.layout.slices) == NAMES
    assert "on the data of this process alone" in found.notes[0]
    assert torch.allclose(cv.hessian(found).dense(), by_double_backward(network()), rtol=1e-12, atol=1e-15)


def test_an_averaged_model_is_measured_at_its_averaged_weights():
    first, second = network(1), network(2)
    averaged = AveragedModel(first)
    averaged.update_parameters(first)
    averaged.update_parameters(second)
    middle = copy.deepcopy(first)
    with torch.no_grad():
        for own, other in zip(middle.parameters(), second.parameters(), strict=True):
            own.add_(other).div_(2)
    assert torch.allclose(cv.hessian(problem(averaged)).dense(), by_double_backward(middle), rtol=1e-12, atol=1e-15)


class CompiledStep(nn.Module):
    """A method compiled in the class, as ``@torch.compile`` on ``forward`` does."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def body(self, inputs):
        return self.last(torch.tanh(self.first(inputs)))

    @torch.compile(backend="aot_eager")
    def forward(self, inputs):
        return self.body(inputs)


def test_a_forward_compiled_in_its_class_is_run_uncompiled():
    module = CompiledStep().double()
    module(INPUTS)
    expected = by_double_backward(module, module.body)
    assert torch.allclose(cv.hessian(problem(module)).dense(), expected, rtol=1e-12, atol=1e-15)
    assert "CompiledFunction" in type(module(INPUTS).grad_fn).__name__ or module(INPUTS).grad_fn is not None


def test_a_wrapper_stays_compiled_and_as_it_was():
    inner = network()
    module = compiled(inner)
    module(INPUTS)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    problem(module)
    assert type(module).__name__ == "OptimizedModule"
    assert module._orig_mod is inner
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert type(module(INPUTS).grad_fn).__name__ == "CompiledFunctionBackward"


def test_a_wrapper_with_hooks_of_its_own_is_refused():
    module = nn.DataParallel(network())
    module.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    with pytest.raises(cv.InputError, match="is a wrapper with hooks, which would be lost"):
        problem(module)


@pytest.mark.parametrize("script", [torch.jit.script, lambda m: torch.jit.trace(m, INPUTS)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused_also_inside_another_module(script):
    scripted = script(network())
    for module in (scripted, nn.Sequential(scripted, nn.Linear(2, 2).double())):
        with pytest.raises(cv.InputError, match="TorchScript module"):
            problem(module)


@pytest.mark.usefixtures("one_process")
def test_a_sharded_module_is_refused_with_what_to_do():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    module = network()
    fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(cv.InputError, match=r"sharded by fully_shard.*full state_dict into a plain module"):
        problem(module)


@pytest.mark.parametrize("register", ["full_backward", "full_backward_pre", "tensor"])
def test_hooks_on_gradients_do_not_run_and_are_named(register):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    data = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 2
    plain = cv.Problem.from_module(module, loss="cross-entropy", data=data)
    if register == "full_backward":
        module[2].register_full_backward_hook(lambda _, inputs, __: tuple(3 * g for g in inputs))
    elif register == "full_backward_pre":
        module[2].register_full_backward_pre_hook(lambda _, outputs: tuple(3 * g for g in outputs))
    else:
        module[2].weight.register_hook(lambda g: 3 * g)
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=data)
    assert torch.equal(problem.gradient(), plain.gradient())
    assert plain.notes == ()
    assert [note for note in problem.notes if "hooks on the gradients of layer '2' (Linear) do not run" in note]
