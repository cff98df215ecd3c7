"""DoRA layers, whose norm peft detaches: matrices are those of the loss."""

import torch
from torch import nn
from torch.nn import functional

import curvature as cv
from oracles import drawn


class Magnitude(nn.Module):
    """As ``peft.tuners.lora.dora.DoraLinearLayer`` computes it."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight.norm(dim=1).detach())

    def forward(self, x, base, a, b):
        norm = torch.linalg.norm(base.weight + (b.weight @ a.weight).detach(), dim=1).detach()
        scale = self.weight / norm
        return (scale - 1) * (base(x) - base.bias) + scale * b(a(x))


Magnitude.__module__ = "peft.tuners.lora.dora"


class Dora(nn.Module):
    def __init__(self):
        super().__init__()
        self.base, self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)
        self.base.requires_grad_(False)
        self.magnitude = Magnitude(self.base.weight)

    def forward(self, x):
        return torch.tanh(self.base(x) + self.magnitude(x, self.base, self.a, self.b))


def test_matrices_of_dora_are_those_of_the_loss():
    torch.manual_seed(0)
    module, x, y = Dora().double(), drawn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(x, y))
    names = ["a.weight", "b.weight", "magnitude.weight"]
    assert list(problem.layout.slices) == names

    def outputs(vector):
        a, b, m = problem.layout.unflatten(vector).values()
        weight = module.base.weight + b @ a
        return torch.tanh(functional.linear(x, (m / weight.norm(dim=1))[:, None] * weight, module.base.bias))

    expected = torch.autograd.functional.hessian(lambda v: functional.cross_entropy(outputs(v), y), problem.weights)
    torch.testing.assert_close(cv.hessian(problem).dense(), expected, rtol=1e-10, atol=1e-13)
    assert cv.spectrum(cv.ggn(problem)).checks
    assert any("its DoRA layers (1)" in note for note in problem.notes)
    assert "forward" not in vars(module.magnitude)


def test_a_subset_of_dora_keeps_the_derivative_of_the_norm():
    torch.manual_seed(0)
    problem = cv.Problem.from_module(Dora().double(), loss="cross-entropy", data=(drawn(6, 4), torch.arange(6) % 3))
    whole, part = cv.hessian(problem).dense(), cv.hessian(problem.subset("a.weight")).dense()
    torch.testing.assert_close(part, whole[:8, :8], rtol=1e-12, atol=1e-14)
