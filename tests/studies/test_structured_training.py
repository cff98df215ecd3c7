"""Training of models with several inputs and of models with frozen layers, against plain PyTorch."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import curvature as cv
from curvature.studies.training import SGD, Schedule, train

X = {
    name: torch.randn(20, size, generator=torch.Generator().manual_seed(size)) for name, size in (("x", 3), ("side", 2))
}
LABELS = torch.arange(20) % 3
SCHEDULE = Schedule(epochs=2, batch_size=8, checkpoints={"late": 2})


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x, side):
        return {"scores": self.out(torch.tanh(self.a(x) + self.b(side))), "input": x}


def problem_of(module, data=(X, LABELS)):
    return cv.Problem.from_module(module, loss="cross-entropy", data=data, output="scores")


@pytest.mark.parametrize("frozen", [(), ("a",)])
def test_training_on_named_inputs_is_that_of_pytorch(frozen):
    torch.manual_seed(0)
    module = Two().double()
    for name in frozen:
        getattr(module, name).requires_grad_(False)
    run = train(problem_of(module), cv.Standard(), SCHEDULE, arm="standard", seed=3, optimizer=SGD(0.2))
    inputs = {name: part.double() for name, part in X.items()}
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer, generator = torch.optim.SGD(trained, 0.2), torch.Generator().manual_seed(3)
    for _ in range(2):
        for rows in torch.randperm(20, generator=generator).split(8):
            optimizer.zero_grad()
            batch = {name: part[rows] for name, part in inputs.items()}
            functional.cross_entropy(module(**batch)["scores"], LABELS[rows]).backward()
            optimizer.step()
    expected = torch.cat([parameter.detach().reshape(-1) for parameter in trained])
    torch.testing.assert_close(run.checkpoints[0].weights, expected, rtol=1e-12, atol=1e-14)


def test_a_subset_is_trained_as_the_module_with_the_others_frozen():
    torch.manual_seed(0)
    module = Two()
    whole = problem_of(module).subset("^(b|out)[.]")
    module.a.requires_grad_(False)
    runs = [
        train(start, cv.WeightNorm(), SCHEDULE, arm="weight-norm", seed=0, optimizer=SGD(0.2))
        for start in (whole, problem_of(module))
    ]
    assert torch.equal(runs[0].checkpoints[0].weights, runs[1].checkpoints[0].weights)


def test_layers_that_are_all_frozen_are_named():
    problem = problem_of(Two()).subset("bias")
    with pytest.raises(cv.ConfigurationError, match="a, b, out are frozen"):
        cv.study(problem, num_seeds=1)


def test_packed_graphs_are_not_trained():
    packed = cv.Packed(dict(X), LABELS)
    with pytest.raises(cv.ConfigurationError, match="packed graphs are one example"):
        cv.study(problem_of(Two(), packed), num_seeds=1)
