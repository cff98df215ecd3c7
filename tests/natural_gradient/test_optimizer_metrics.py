"""Optimizers as linear charts: against the formulas of their papers, PyTorch's own Adam, and one update by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import curvature as cv
from oracles import distance, drawn, weighted

EPSILON = 1e-4


@pytest.fixture(scope="module")
def case():
    """A 3-4-3 softmax network, its problem, and its per-example gradients by autograd, by name."""
    module = weighted(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    x, y = drawn(8, 3), torch.arange(8) % 3
    problem = cv.Problem.from_module(module, loss="cross-entropy", data=(x, y))
    rows = [
        torch.autograd.grad(functional.cross_entropy(module(x[n : n + 1]), y[n : n + 1]), tuple(module.parameters()))
        for n in range(8)
    ]
    names = [name for name, _ in module.named_parameters()]
    return (
        module,
        problem,
        {name: torch.stack(parts) for name, parts in zip(names, zip(*rows, strict=True), strict=True)},
    )


def metric(problem, chart):
    return chart.at(problem.layout, problem.weights).metric(torch.eye(problem.dim, dtype=torch.float64))


def power(matrix, exponent):
    values, vectors = torch.linalg.eigh(matrix + EPSILON * torch.eye(len(matrix), dtype=torch.float64))
    return (vectors * values**exponent) @ vectors.T


def test_adam_is_the_inverse_root_of_the_second_moments(case):
    _, problem, gradients = case
    v = torch.cat([g.square().mean(0).reshape(-1) for g in gradients.values()])
    found = metric(problem, cv.optimizer_metric(problem, "adam", epsilon=EPSILON))
    assert distance(found, torch.diag(1 / (v.sqrt() + EPSILON))) < 1e-13


def test_a_batch_has_its_share_of_the_mean_gradient(case):
    """All 64 ordered pairs of examples, each the mean of two gradients."""
    _, problem, gradients = case
    pairs = [(g[:, None] + g[None]).flatten(0, 1) / 2 for g in gradients.values()]
    v = torch.cat([g.square().mean(0).reshape(-1) for g in pairs])
    found = metric(problem, cv.optimizer_metric(problem, "adam", batch_size=2, epsilon=EPSILON))
    assert distance(found, torch.diag(1 / (v.sqrt() + EPSILON))) < 1e-13


def test_shampoo_takes_a_fourth_root_from_each_side(case):
    _, problem, gradients = case
    blocks = []
    for g in gradients.values():
        if g.ndim == 2:
            blocks.append(power(g.T @ g / 8, -1 / 2))
        else:
            left, right = torch.einsum("nik, njk -> ij", g, g) / 8, torch.einsum("nki, nkj -> ij", g, g) / 8
            blocks.append(torch.kron(power(left, -1 / 4), power(right, -1 / 4)))
    found = metric(problem, cv.optimizer_metric(problem, "shampoo", epsilon=EPSILON))
    assert distance(found, torch.block_diag(*blocks)) < 1e-11


def test_soap_is_adam_in_the_eigenvectors_of_shampoo(case):
    """As an update: turn the gradient, divide by the root of its second moment there, turn back."""
    _, problem, gradients = case
    mix = drawn(8)  # a gradient, since SOAP does not move where none points: those of a softmax sum to zero
    update = torch.cat([torch.tensordot(mix, g, 1).reshape(-1) for g in gradients.values()])
    parts = []
    for g, u in zip(gradients.values(), problem.unflatten(update).values(), strict=True):
        if g.ndim == 2:
            parts.append(u / (g.square().mean(0).sqrt() + EPSILON))
            continue
        left, right = torch.einsum("nik, njk -> ij", g, g) / 8, torch.einsum("nki, nkj -> ij", g, g) / 8
        q, p = torch.linalg.eigh(left).eigenvectors, torch.linalg.eigh(right).eigenvectors
        turned = (q.T @ g @ p).square().mean(0)
        parts.append(q @ ((q.T @ u @ p) / (turned.sqrt() + EPSILON)) @ p.T)
    expected = torch.cat([part.reshape(-1) for part in parts])
    found = metric(problem, cv.optimizer_metric(problem, "soap", epsilon=EPSILON)) @ update
    assert distance(found, expected) < 1e-11


@pytest.mark.parametrize(
    ("kind", "options"),
    [(torch.optim.Adam, {}), (torch.optim.AdamW, {"weight_decay": 0.1}), (torch.optim.Adam, {"amsgrad": True})],
)
def test_the_state_of_adam_gives_the_step_of_adam(case, kind, options):
    """A step without momentum is the learning rate times the metric times the gradient."""
    _, problem, _ = case
    module = weighted(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    optimizer = kind(module.parameters(), lr=0.01, betas=(0.0, 0.9), eps=EPSILON, **options)
    inputs, labels = problem.inputs, problem.targets
    for _ in range(3):
        before = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
        optimizer.zero_grad()
        functional.cross_entropy(module(inputs), labels).backward()
        gradient = torch.cat([p.grad.reshape(-1) for p in module.parameters()])
        optimizer.step()
    after = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    chart = cv.optimizer_metric(problem, "adam", moments=cv.adam_moments(optimizer, module), epsilon=EPSILON)
    step = -0.01 * metric(problem, chart) @ gradient - 0.01 * options.get("weight_decay", 0.0) * before
    assert distance(after - before, step) < 1e-13
    assert chart.label == "adam (checkpoint)"


def test_ekfac_rescales_the_eigenvectors_of_kfac_by_the_fisher(case):
    _, problem, _ = case
    fisher = cv.fisher(problem).dense()
    found = metric(problem, cv.preconditioner(problem, "ekfac", damping=0.02))
    # In any basis whose diagonal it inverts, the metric times the damped Fisher has a diagonal of ones there.
    whole = torch.eye(problem.dim, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(found)
    diagonal = torch.einsum("im, ij, jm -> m", vectors, fisher + 0.02 * whole, vectors)
    assert distance(values * diagonal, torch.ones_like(values)) < 1e-9
    kfac = metric(problem, cv.preconditioner(problem, "kfac", damping=0.02))
    assert float(torch.linalg.norm(found @ kfac - kfac @ found)) < 1e-9 * float(torch.linalg.norm(found @ kfac))


def test_convolutions_are_matrices_of_their_output_channels():
    module = weighted(nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 2)).double())
    problem = cv.Problem.from_module(module, loss="mse", data=(drawn(5, 1, 3, 3), drawn(5, 2)))
    for kind in ("shampoo", "soap"):
        chart = cv.optimizer_metric(problem, kind).at(problem.layout, problem.weights)
        assert chart.null_dim == (0 if kind == "shampoo" else 2 * (8 - 5))  # five examples, eight inputs, two outputs
        pulled, kept = (
            move(cv.ggn(problem), cv.optimizer_metric(problem, kind)) for move in (cv.pullback, cv.effective)
        )
        assert distance(pulled.dense().trace(), kept.dense().trace()) < 1e-12


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "muon"}, "kind must be one of adam, shampoo, soap, got 'muon'"),
        ({"batch_size": 0}, "batch_size must be a positive whole number"),
        ({"epsilon": 0.0}, "epsilon must be a positive number"),
        ({"kind": "soap", "moments": {}}, "moments are those of Adam"),
        (
            {"moments": {"0.weight": torch.ones(4, 3)}},
            "moments lack '0.bias', '2.weight', '2.bias'; they have '0.weight'",
        ),
    ],
)
def test_wrong_options_are_refused(case, options, words):
    with pytest.raises(cv.ConfigurationError, match=words):
        cv.optimizer_metric(case[1], **options)


def test_an_optimizer_without_the_state_is_refused(case):
    module = case[0]
    with pytest.raises(cv.ConfigurationError, match=r"needs torch.optim.Adam or AdamW, got SGD"):
        cv.adam_moments(torch.optim.SGD(module.parameters()), module)
    with pytest.raises(cv.InputError, match=r"no second moments of '0.weight' yet: take a step"):
        cv.adam_moments(torch.optim.Adam(module.parameters()), module)
    with pytest.raises(cv.InputError, match="a parameter that the module does not have"):
        cv.adam_moments(torch.optim.Adam(nn.Linear(1, 1).parameters()), module)
