"""Every chart on an MLP, a CNN and a one-block transformer, against a double backward through the composed function."""

import math

import pytest
import torch
from torch import nn

import curvature as cv
from oracles import distance, normal


class Block(nn.Module):
    """A causal transformer of one block with two heads on tokens ``(N, T)``, in elementary operations."""

    def __init__(self, tokens=3, width=4, heads=2):
        super().__init__()
        self.embed, self.heads = nn.Embedding(tokens, width), heads
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out, self.up, self.down = nn.Linear(width, width), nn.Linear(width, 3), nn.Linear(3, width)
        self.head = nn.Linear(width, tokens)

    def forward(self, tokens):
        stream = self.embed(tokens)
        size, length, width = stream.shape
        q, k, v = (
            part.view(size, length, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm(stream)).chunk(3, -1)
        )
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        ahead = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(ahead, -math.inf).softmax(-1) @ v
        stream = stream + self.out(mixed.transpose(1, 2).reshape(size, length, width))
        return self.head(stream + self.down(torch.tanh(self.up(stream))))


@pytest.fixture(scope="module")
def problems():
    generator = torch.Generator().manual_seed(3)

    def build(module, loss, data):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(0.5 * normal(generator, *parameter.shape))
        return cv.Problem.from_module(module, loss=loss, data=data)

    tokens = torch.randint(0, 3, (2, 4), generator=generator)
    return {
        "mlp": build(
            nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
            "cross-entropy",
            (normal(generator, 7, 4), torch.arange(7) % 3),
        ),
        "cnn": build(
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2)),
            "mse",
            (normal(generator, 5, 1, 4, 4), normal(generator, 5, 2)),
        ),
        "transformer": build(Block(), "cross-entropy", (tokens, tokens.roll(-1, 1))),
    }


CHARTS = {
    "weight-norm": cv.WeightNorm(stretch=2.0),
    "sphere": cv.Sphere(stretch=0.7),
    "sphere-per-matrix": cv.Sphere(per="matrix"),
    "factorization": cv.RandomWeightFactorization(scale=0.8),
    "factorization-log-scale": cv.RandomWeightFactorization(log_scale=True),
    "standardization": cv.WeightStandardization(stretch=2.0),
    "standardization-frozen": cv.WeightStandardization(frozen=("g",)),
    "spectral-norm": cv.SpectralNorm(),
    "spectral-norm-with-gain": cv.SpectralNorm(stretch=2.0, frozen=()),
    "block-scale-mup": cv.BlockScale("mup"),
    "lora": cv.LoRA(2, alpha=3),
    "lora-pissa": cv.LoRA(2, init="pissa"),
    "dora": cv.DoRA(2),
    "dora-pissa": cv.DoRA(2, alpha=3, init="pissa"),
    "dora-of-columns": cv.DoRA(2, init="pissa", dim=1),
    "deep-linear": cv.DeepLinear(),
    "deep-linear-narrow": cv.DeepLinear(1),
    "weight-norm-frozen": cv.WeightNorm().freeze("g"),
}


@pytest.mark.parametrize("network", ["mlp", "cnn", "transformer"])
@pytest.mark.parametrize("name", CHARTS)
def test_hessian_equals_a_double_backward_through_the_composed_function(name, network, problems):
    """Not by ``torch.func.hessian``, which errs on LayerNorm."""
    problem = cv.nearest(problems[network], CHARTS[name])
    chart = CHARTS[name].at(problem.layout, problem.weights)
    tangents = normal(torch.Generator().manual_seed(2), chart.dim, 3)
    theta = chart.coordinates.clone().requires_grad_()
    outputs = problem.predict(chart.to_weights(theta), problem.inputs)
    loss = problem.loss.terms(outputs, problem.targets).sum() / problem.denominator
    (slope,) = torch.autograd.grad(loss, theta, create_graph=True)
    columns = [torch.autograd.grad(slope, theta, tangent, retain_graph=True)[0] for tangent in tangents.T]
    hessian = cv.pullback(cv.hessian(problem), CHARTS[name])
    assert distance(hessian @ tangents, torch.stack(columns, 1)) < 1e-12
    if network != "transformer":
        assert distance(hessian.dense() @ tangents, torch.stack(columns, 1)) < 1e-12


@pytest.mark.parametrize("name", CHARTS)
def test_ggn_has_the_same_eigenvalues_in_the_coordinates_and_on_the_weights(name, problems):
    problem = cv.nearest(problems["mlp"], CHARTS[name])
    pulled, kept = (move(cv.ggn(problem), CHARTS[name]).dense() for move in (cv.pullback, cv.effective))
    chart = CHARTS[name].at(problem.layout, problem.weights)
    jacobian = torch.func.jacrev(chart.to_weights)(chart.coordinates)
    assert distance(pulled, jacobian.T @ cv.ggn(problem).dense() @ jacobian) < 1e-13
    assert distance(torch.linalg.eigvalsh(kept)[-10:], torch.linalg.eigvalsh(pulled)[-10:]) < 1e-13
