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
# # 4. Weight norm is a chart
#
# *A course in curvature for people who know PyTorch, 4 of 8.* Next: [natural gradient and
# whitening](05_natural_gradient_and_whitening.ipynb).
#
# Weight normalization writes each neuron's weights as $w = g\, v / \|v\|$ (Salimans & Kingma 2016). The network stays
# the same function; what changes are the coordinates in which it is trained, a *chart* of the weights. Three things
# follow, and each has misled people: the *gauge* $\|v\|$ matters, each neuron has a *null direction*, and the second
# derivative of PyTorch's own weight norm is wrong.

# %%
import os

import matplotlib.pyplot as plt
import torch
from torch.nn.utils import parameters_to_vector, parametrizations

import curvature as cv
from curvature.report.figures.style import BLACK, BLUE, ORANGE, SKY, VERMILLION, finish

fast = os.environ.get("CURVATURE_FAST") == "1"  # fewer examples, for the tests
problem = cv.zoo.digits_problem(200 if fast else 600, widths=(6,), seed=0)
ggn, hessian = cv.ggn(problem).materialized(), cv.hessian(problem).materialized()

# %% [markdown]
# ## What does the gauge change?
#
# Let $u = v / \|v\|$ and $\rho = (g / \|v\|)^2$. A gradient step in $(g, v)$ moves the weights of a neuron by
# $-\eta\,(u u^T + \rho\,(I - u u^T))\,\nabla L$: along $u$ it is a plain gradient step, in all other directions it is
# $\rho$ times as long. PyTorch's wrapper starts at $v = w$, where $\rho = 1$. The *stretch* $\|v\| / |g| = \rho^{-1/2}$
# is free. No eigenvalue of the GGN moves by more than the factor $\rho$ (Ostrowski's theorem).

# %%
stretches = (0.25, 0.5, 1.0, 2.0, 4.0)
standard = cv.spectrum(ggn)
half = standard.rank // 2  # the upper half, far from rounding
factors = {}
for stretch in stretches:
    spectrum = cv.spectrum(cv.effective(ggn, cv.WeightNorm(stretch=stretch)))
    factors[stretch] = spectrum.eigenvalues[-half:] / standard.eigenvalues[-half:]
print(f"stretch 1/4: eigenvalues times {factors[0.25].min():.2f} to {factors[0.25].max():.2f}; rho is 16")

# %%
figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
styles = ((VERMILLION, "--"), (ORANGE, "-."), (BLACK, "-"), (SKY, ":"), (BLUE, "--"))
for (stretch, factor), (color, line) in zip(factors.items(), styles, strict=True):
    ax.plot(range(1, half + 1), factor[::-1], color=color, linestyle=line, label=f"stretch {stretch:g}")
ax.set(xscale="log", yscale="log")
ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
ax = finish(ax, "GGN of one function at five gauges", "rank of the eigenvalue", "eigenvalue over its standard value")

# %% [markdown]
# *How to read it.* One line per gauge. At stretch 1 nothing moves. At another stretch most eigenvalues move by nearly
# $\rho$ and a few by less, so the ratios between them, and with them the conditioning, change.

# %% [markdown]
# ## Does another gauge improve conditioning?
#
# `cv.measure` computes the condition numbers of one problem in many charts. The coordinates differ in number, so the
# comparison is made on the weights: `effective` is $K^{1/2} A K^{1/2}$, the curvature that a step of the chart meets.

# %%
charts = [cv.Standard(), *(cv.WeightNorm(stretch=stretch) for stretch in stretches)]
study = cv.measure(problem, charts, matrices=("ggn",), gradient=False, progress=False)
numbers = study.of(cv.ConditionNumbers)
kappas = {measured.record.gauge: float(measured.record["kappa_80"]) for measured in numbers}
print(f"kappa_80 at stretch 4 over stretch 1: {kappas['stretch=4'] / kappas['stretch=1']:.2f}")
ax = cv.figures.plot_gauge_sweep(numbers, quantity="kappa_80")

# %% [markdown]
# *How to read it.* The horizontal line is the standard chart; the dotted one marks PyTorch's gauge, where both agree.
# For this network a long $v$ makes conditioning worse and a short one hardly changes it. Plain gradient descent only
# ever makes $v$ longer.

# %% [markdown]
# ## Which matrices are zero along the null direction?
#
# Scaling $v$ changes nothing: along $n = (0, v)$ in $(g, v)$ the weights stay. So every matrix of first derivatives is
# zero there. The Hessian is not: $n^T H n = 0$, but $H n = -(0, \partial L / \partial v)$, which vanishes at a
# stationary point only.

# %%
chart = cv.WeightNorm(stretch=0.5)
local = chart.at(problem.layout, problem.weights)
parts, columns = local.layout.unflatten(local.coordinates), []
for name in ("0.weight.v", "2.weight.v"):
    for row in range(len(parts[name])):
        null = local.layout.unflatten(torch.zeros_like(local.coordinates))
        null[name][row] = parts[name][row]
        columns.append(local.layout.flatten(null))
nulls = torch.stack(columns, dim=1)  # a column for each neuron

# %%
along_ggn, along_hessian = (cv.pullback(A, chart) @ nulls for A in (ggn, hessian))
slope = -local.pull(problem.gradient()[:, None]) * (nulls != 0)
lengths = {name: (A.norm(dim=0) / nulls.norm(dim=0)).clamp(min=1e-20) for name, A in
           (("GGN", along_ggn), ("Hessian", along_hessian))}  # fmt: skip
print(f"smallest |H n| / |n|: {lengths['Hessian'].min():.1e}; largest |G n| / |n|: {lengths['GGN'].max():.0e}")
figure, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
for (name, values), color, marker in zip(lengths.items(), (BLUE, VERMILLION), "ox", strict=True):
    ax.plot(range(1, len(values) + 1), values, color=color, marker=marker, linestyle="none", label=name)
ax.set(yscale="log")
ax.legend(fontsize="small")
ax = finish(ax, "Product with the null direction of each neuron", "neuron", "length of A n over that of n")

# %% [markdown]
# *How to read it.* One column for each neuron, six hidden ones and ten outputs. The dots are zeros: rounding errors
# near $10^{-17}$, and exact zeros, drawn at $10^{-20}$. The crosses are not.

# %% [markdown]
# ## How many negative eigenvalues come from the coordinates?
#
# Since $n^T H n = 0$ and $H n \ne 0$, the Hessian in these coordinates has eigenvalues of both signs, whatever the loss
# is. `effective` leaves the null directions out. Look at the loss in the plane of $n$ and $H n$ of one neuron.

# %%
in_chart = cv.spectrum(cv.pullback(hessian, chart)).inertia[0]
horizontal = cv.spectrum(cv.effective(hessian, chart)).inertia[0]  # without the null directions
print(f"negative eigenvalues of the Hessian: {in_chart}; without the null directions {horizontal}")
size = 0.9 * float(nulls[:, 0].norm())
plane = {"the null direction": nulls[:, 0], "its product with H": along_hessian[:, 0]}
ax = cv.figures.plot_landscape(cv.landscape(problem, directions=plane, chart=chart, extent=size))

# %% [markdown]
# *How to read it.* Colours are the loss, dashed lines the parabola that the Hessian predicts. The loss depends only on
# the direction in which $v$ points, so its colours are rays, and along the horizontal line through the point it does
# not change. Yet the dashed lines are those of a saddle. The coordinates make it, as polar coordinates would: a shorter
# $v$ turns faster. Leave the null directions out, as `effective` does, before you count negative eigenvalues.

# %% [markdown]
# ## Is PyTorch's second derivative of its own weight norm right?
#
# No. `torch.nn.utils.parametrizations.weight_norm` calls a fused function whose double backward treats the saved norm
# as a constant. First derivatives are right, so training is right. A Hessian by differentiating twice is wrong, and
# nothing warns. The judge is a finite difference of the (right) gradient.

# %%
net = cv.zoo.mlp((4, 5, 3), seed=1)
for layer in (net[0], net[2]):
    parametrizations.weight_norm(layer)
X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
y = torch.arange(20) % 3
point, sizes = parameters_to_vector(net.parameters()).detach(), [p.numel() for p in net.parameters()]


def loss(vector):
    parts = zip(net.named_parameters(), vector.split(sizes), strict=True)
    named = {name: part.view_as(old) for (name, old), part in parts}
    return torch.nn.functional.cross_entropy(torch.func.functional_call(net, named, (X,)), y)


# %%
def gradient(vector):
    vector = vector.clone().requires_grad_()
    return torch.autograd.grad(loss(vector), vector)[0]


twice = torch.autograd.functional.hessian(loss, point)  # PyTorch's double backward
steps = 1e-5 * torch.eye(len(point), dtype=torch.float64)
truth = torch.stack([(gradient(point + step) - gradient(point - step)) / 2e-5 for step in steps])
unwrapped = cv.Problem.from_module(net, loss="cross-entropy", data=(X, y))
ours = cv.pullback(cv.hessian(unwrapped), unwrapped.chart).dense()
right, fused, here = (torch.linalg.eigvalsh((A + A.T) / 2) for A in (truth, twice, ours))

# %%
errors = {name: float((values - right).abs().max() / right.abs().max()) for name, values in
          (("twice", fused), ("here", here))}  # fmt: skip
print(f"largest error of an eigenvalue: double backward {errors['twice']:.0%}, curvature {errors['here']:.0e}")
figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
ax.plot(right, color=BLACK, marker="o", fillstyle="none", markersize=8, linestyle="none", label="finite differences")
ax.plot(here, color=BLUE, marker=".", linestyle="none", label="curvature")
ax.plot(fused, color=VERMILLION, marker="x", linestyle="none", label="PyTorch, differentiated twice")
ax.legend(fontsize="small")
ax = finish(ax, "Hessian of a weight-normalized network", "index of the eigenvalue", "eigenvalue")

# %% [markdown]
# *How to read it.* Dots inside circles are right; crosses outside of them are wrong. `curvature` unwraps a
# weight-normalized layer into its weights and a chart with closed forms, and never differentiates twice through it.
# `curvature doctor` tells whether your version of PyTorch still has the error.

# %% [markdown]
# ## Which other reparameterizations are charts?
#
# All that write weights as a smooth function of coordinates. *Random weight factorization* ($w = s\, v$) is weight norm
# without the division. The *sphere* is weight norm with $g$ frozen. *LoRA* adds a product of two small matrices. Frozen
# and narrow charts reach fewer directions than there are weights; the rank says how many.

# %%
charts = [cv.Standard(), cv.RandomWeightFactorization(), cv.Sphere(), cv.LoRA(2, init="pissa")]
others = [cv.spectrum(cv.effective(ggn, chart)) for chart in charts]
local = charts[-1].at(problem.layout, problem.weights)
print(f"LoRA: {local.dim} coordinates reach {local.dim - local.null_dim} of {problem.dim} directions")
ax = cv.figures.plot_spectra(others)

# %% [markdown]
# *How to read it.* One line per chart, at the same weights. A line that ends early belongs to a chart that reaches
# fewer directions, so condition numbers of two lines that end at different ranks are not compared.

# %% [markdown]
# ## What have we learned?
#
# Name the gauge, leave out the null directions, and do not differentiate PyTorch's weight norm twice. The numbers of
# this notebook:

# %%
assert abs(factors[1.0] - 1).max() < 1e-9
for stretch, factor in factors.items():
    assert min(1, stretch**-2) * (1 - 1e-9) <= factor.min()
    assert factor.max() <= max(1, stretch**-2) * (1 + 1e-9)
assert kappas["stretch=4"] > 1.5 * kappas["stretch=1"]
assert lengths["GGN"].max() < 1e-13 < 1e-4 < lengths["Hessian"].min()
assert torch.allclose(along_hessian, slope, rtol=0, atol=1e-12)
assert in_chart > horizontal
assert errors["here"] < 1e-8
assert others[1].rank == others[0].rank > others[2].rank > others[3].rank
assert torch.linalg.norm(twice - twice.T) > 1e-3 * torch.linalg.norm(twice)
print(f"here {errors['here']:.0e}; PyTorch's weight norm differentiated twice {errors['twice']:.0e}")
