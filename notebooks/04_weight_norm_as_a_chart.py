# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Weight norm is a chart
#
# Weight normalization writes each neuron's weights as $w = g\, v / \|v\|$ (Salimans & Kingma 2016). The network stays
# the same function; what changes are the coordinates in which it is trained, a *chart* of the weights. Three things
# follow, and each has misled people: the *gauge* $\|v\|$ matters, each neuron has a *null direction*, and the second
# derivative of PyTorch's own weight norm is wrong.

# %%
import copy
import os

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import curvature as cv

fast = os.environ.get("CURVATURE_FAST") == "1"
problem = cv.zoo.digits_problem(200 if fast else 600, widths=(6,), seed=0)
ggn = cv.ggn(problem).materialized()
hessian = cv.hessian(problem).materialized()

# %% [markdown]
# ## How does the gauge move the spectrum of one matrix?
#
# With $u = v / \|v\|$ and $\rho = (g / \|v\|)^2$, a gradient step in $(g, v)$ moves each neuron's weights by
# $-\eta\,(u u^T + \rho\,(I - u u^T))\,\nabla L$: $\rho = 1$, where PyTorch's wrapper starts, is the plain gradient
# step. By Ostrowski's theorem no eigenvalue of the GGN moves by more than the factor $\rho$.

# %%
stretches = (0.25, 0.5, 1.0, 2.0, 4.0)  # ||v|| / |g| = rho ** -0.5
standard = cv.spectrum(ggn)
effective = {s: cv.spectrum(cv.effective(ggn, cv.WeightNorm(stretch=s))) for s in stretches}
half = standard.rank // 2  # the upper half: far from rounding
moved = {}
for stretch, spectrum in effective.items():
    ratios = spectrum.eigenvalues[-half:] / standard.eigenvalues[-half:]
    moved[stretch] = ratios
    rho = stretch**-2
    print(f"stretch {stretch:4}: eigenvalues times {ratios.min():.3f} to {ratios.max():.3f}; rho = {rho:.3f}")

# %%
figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
styles = (("#D55E00", "--"), ("#E69F00", "-."), ("#000000", "-"), ("#56B4E9", ":"), ("#0072B2", "--"))
for (stretch, ratios), (color, line) in zip(moved.items(), styles, strict=True):
    ax.plot(range(1, half + 1), ratios[::-1], color=color, linestyle=line, label=f"stretch {stretch:g}")
ax.set(xscale="log", yscale="log", xlabel="rank of the eigenvalue", ylabel="eigenvalue over its standard value")
ax.set_title("The gauge moves the spectrum of the GGN; the function is the same", loc="left", fontsize="medium")
ax.legend(fontsize="small")

# %% [markdown]
# ## For which matrices does each neuron have a null direction?
#
# Scaling $v$ changes nothing: along $(g, v) = (0, v)$ the weights do not move. So every matrix of first derivatives
# is zero there. Away from stationary points the Hessian is not: $H n = -(0, \partial L / \partial v)$ for that neuron,
# while $n^T H n = 0$. This creates pairs of spurious eigenvalues $\pm$, which are not a property of the network.

# %%
chart = cv.WeightNorm(stretch=0.5)
local = chart.at(problem.layout, problem.weights)
named = local.layout.unflatten(local.coordinates)
directions = []
for name, part in named.items():
    if name.endswith(".v"):
        for row in range(len(part)):
            zero = {other: torch.zeros_like(values) for other, values in named.items()}
            zero[name][row] = part[row]
            directions.append(local.layout.flatten(zero))
directions = torch.stack(directions, dim=1)
along_ggn = cv.pullback(ggn, chart) @ directions
along_hessian = cv.pullback(hessian, chart) @ directions
slope = local.pull(problem.gradient()[:, None])
expected = -slope * (directions != 0)
print(f"{directions.shape[1]} neurons; |G n| <= {float(along_ggn.abs().max()):.0e}")
print(f"|H n| = {float(along_hessian.abs().max()):.3f}, and H n + dL/dv <= ", end="")
print(f"{float((along_hessian - expected).abs().max()):.0e}")

# %%
inertia = {
    "on the weights": cv.spectrum(hessian).inertia,
    "in (g, v)": cv.spectrum(cv.pullback(hessian, chart)).inertia,
    "in (g, v), horizontally": cv.spectrum(cv.effective(hessian, chart)).inertia,
}
for coordinates, (negative, zero, positive) in inertia.items():
    print(f"{coordinates:>24}: {negative} negative, {zero} zero, {positive} positive eigenvalues")

# %% [markdown]
# ## Is PyTorch's second derivative of its own weight norm right?
#
# No. `nn.utils.parametrizations.weight_norm` calls a fused function whose double backward treats the saved norm as a
# constant. First derivatives are right, so training is right; a Hessian by differentiating twice is wrong, and nothing
# warns. The cells below compute the same small network in three ways, against finite differences of the (right)
# gradient.

# %%


class Composite(nn.Module):
    """Weight norm by elementary operations, which PyTorch differentiates correctly."""

    def forward(self, g, v):
        return g * v / torch.linalg.vector_norm(v, dim=1, keepdim=True)

    def right_inverse(self, weight):
        return torch.linalg.vector_norm(weight, dim=1, keepdim=True), weight


fused = cv.zoo.mlp((4, 5, 3), seed=1)
composite = copy.deepcopy(fused)
for layer in (0, 2):
    parametrizations.weight_norm(fused[layer])
    parametrize.register_parametrization(composite[layer], "weight", Composite())
generator = torch.Generator().manual_seed(0)
X = torch.randn(20, 4, generator=generator, dtype=torch.float64)
y = torch.randint(3, (20,), generator=generator)


def gradient(module, vector):
    module = copy.deepcopy(module)
    nn.utils.vector_to_parameters(vector, module.parameters())
    loss = nn.functional.cross_entropy(module(X), y)
    return torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(module.parameters()))])


def twice(module):
    """Hessian by double backward."""
    parameters = list(module.parameters())
    slopes = torch.autograd.grad(nn.functional.cross_entropy(module(X), y), parameters, create_graph=True)
    slope = torch.cat([part.reshape(-1) for part in slopes])
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True) for entry in slope]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


point = nn.utils.parameters_to_vector(fused.parameters()).detach()
step = 1e-5
truth = torch.stack(
    [
        (gradient(fused, point + step * e) - gradient(fused, point - step * e)) / (2 * step)
        for e in torch.eye(len(point), dtype=torch.float64)
    ]
)


def error(matrix):
    """Largest difference of an eigenvalue of the symmetric part, over the largest one of the truth."""
    values, expected = (torch.linalg.eigvalsh((part + part.T) / 2) for part in (matrix, truth))
    return float((values - expected).abs().max() / expected.abs().max())


unwrapped = cv.Problem.from_module(fused, loss="cross-entropy", data=(X, y))
ours = cv.pullback(cv.hessian(unwrapped), unwrapped.chart).dense()
errors = {"fused, twice": error(twice(fused)), "composite, twice": error(twice(composite)), "here": error(ours)}
asymmetry = float(torch.linalg.norm(twice(fused) - twice(fused).T) / torch.linalg.norm(twice(fused)))
for name, number in errors.items():
    print(f"{name:>17}: eigenvalues off by {number:.1e}")
print(f"the fused one is not even symmetric: {asymmetry:.2f}")

# %% [markdown]
# `curvature` unwraps a weight-normalized layer into its weights and a chart with closed forms, and never differentiates
# twice through it. The results of this notebook (a test of the package checks that PyTorch's error is still there):

# %%
assert abs(moved[1.0] - 1).max() < 1e-9
for stretch, ratios in moved.items():
    assert min(1, stretch**-2) * (1 - 1e-9) <= ratios.min()
    assert ratios.max() <= max(1, stretch**-2) * (1 + 1e-9)
assert moved[0.25].max() > 4
assert along_ggn.abs().max() < 1e-12 * ggn.entries().abs().max() * directions.abs().max() * 100
assert torch.allclose(along_hessian, expected, rtol=0, atol=1e-12)
assert along_hessian.abs().max() > 1e-3
assert inertia["in (g, v)"][0] > inertia["in (g, v), horizontally"][0]
assert errors["here"] < 1e-8
assert errors["composite, twice"] < 1e-8
print(f"here {errors['here']:.0e}, torch's fused weight norm differentiated twice {errors['fused, twice']:.0e}")
