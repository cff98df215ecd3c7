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
# # 1. One spectrum
#
# *A course in curvature for people who know PyTorch, 1 of 8.* Next: [six matrices](02_six_matrices.ipynb).
#
# Near its weights, the loss of a network is a parabola along every direction. The *curvature matrix* says how steep
# each parabola is, and its eigenvalues, the *spectrum*, decide which learning rates are stable and how slowly the
# flattest directions are learned. Here you compute one exact spectrum, read its picture, and ask whether weight
# normalization changes it.

# %%
import os

import matplotlib.pyplot as plt
import torch

import curvature as cv

fast = os.environ.get("CURVATURE_FAST") == "1"  # fewer examples, for the tests

# %% [markdown]
# ## What is measured?
#
# A *problem*: a network with its loss and its data. Any `nn.Module` will do. This one classifies 8 x 8 images of digits
# and has not been trained. `Problem.from_module` copies the module, reads the data once and in order, and computes in
# float64.

# %%
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.Tanh(), torch.nn.Linear(8, 10))
X, y = cv.zoo.digits(300 if fast else 1797)
problem = cv.Problem.from_module(model, loss="cross-entropy", data=(X, y))
print(f"loss of {problem.dim} random weights, mean over {problem.num_examples} images: {problem.value():.3f}")
figure, panels = plt.subplots(1, 8, figsize=(6.4, 1.1), layout="constrained")
for ax, image, label in zip(panels, X, y, strict=False):
    ax.imshow(image.view(8, 8), cmap="gray_r")
    ax.set_title(int(label), fontsize="small")
    ax.axis("off")

# %% [markdown]
# *How to read it.* The first eight images, each with its label. Guessing one of ten classes would have the loss
# $\log 10 = 2.303$.

# %% [markdown]
# ## How does curvature show in the loss?
#
# Walk away from the weights in the direction of largest curvature, the eigenvector of the largest eigenvalue of the
# Hessian. Slope and curvature at the start predict the loss near by.

# %%
line = cv.landscape(problem, directions="largest", extent=2.0)
print(f"curvature along this direction: {line.curvatures[0, 0]:.3f}")
ax = cv.figures.plot_landscape(line)

# %% [markdown]
# *How to read it.* The solid line is the loss, the dashed one the parabola with the same slope and curvature at 0. They
# agree near 0 and separate farther away: curvature is local.

# %% [markdown]
# ## What do all eigenvalues look like?
#
# This network has 610 weights, so the matrix has 610 eigenvalues. From here on the matrix is the *generalized
# Gauss-Newton matrix* (GGN): the part of the Hessian that remains if the network is replaced by its linear
# approximation. It has no negative eigenvalues. Notebook 2 compares it with its relatives.

# %%
ggn = cv.ggn(problem).materialized()  # computed once, used for every chart below
standard = cv.spectrum(ggn)
print(f"rank {standard.rank} of {standard.dim}: {standard.rank_rule}")
ax = cv.figures.plot_spectrum(standard)

# %% [markdown]
# *How to read it.* Each dot is an eigenvalue, the largest at the left; both axes are logarithmic. The dotted line is
# the *rank*: eigenvalues to its right are zero in exact arithmetic and rounding errors in float64. They are known by a
# formula here (pixels that are 0 in every image, and a direction that softmax ignores), not chosen by a tolerance.
# Notebook 3 explains how. A cell that ends in `standard` shows the same picture with a table of its main numbers.

# %% [markdown]
# ## How well conditioned is it?
#
# Gradient descent at a learning rate of $1 / \lambda_1$ needs about $\kappa = \lambda_1 / \lambda_k$ steps for the
# direction of eigenvalue $\lambda_k$. The ratio to the smallest eigenvalue would be decided by a single direction or by
# rounding. So `kappa_80` divides by the eigenvalue at 80 % of the rank.

# %%
numbers = standard.condition_numbers()
kappa = numbers["kappa_80"]
print(f"kappa_80 = {kappa:.4g}, certainly between {kappa.low:.6g} and {kappa.high:.6g}")
ax = cv.figures.plot_histogram(standard)

# %% [markdown]
# *How to read it.* Bars count eigenvalues; the axis is logarithmic. A well conditioned matrix has one tall bar. This
# one spreads over ten decades. The dotted bar at the left counts what is below the noise floor.

# %% [markdown]
# ## Does weight normalization change it?
#
# Weight normalization writes a neuron's weights as $w = g\, v / \|v\|$. The network is the same function, but it is
# trained in other coordinates: a *chart* of the weights. The length $\|v\|$ is free, and is called the *gauge*. PyTorch
# starts at $v = w$; here is also $v = 3 w$.

# %%
pytorch = cv.spectrum(cv.pullback(ggn, cv.WeightNorm()))
stretched = cv.spectrum(cv.pullback(ggn, cv.WeightNorm(stretch=3.0)))
ratio = stretched.condition_numbers()["kappa_80"] / kappa
print(f"stretch 3 multiplies kappa_80 by {ratio:.2f}")
ax = cv.figures.plot_spectra([standard, pytorch, stretched])

# %% [markdown]
# *How to read it.* One line per chart. At PyTorch's gauge (*canonical*) the line covers the standard one: the non-zero
# eigenvalues are the same. At stretch 3 the small ones fall by a factor of 9, the largest by less, so the ratio between
# them grows.

# %% [markdown]
# ## What have we learned?
#
# A spectrum needs the name of its matrix, its chart and its gauge. A tool that converts a network to weight norm and
# compares at once sees no difference, even if weight norm changes training. The numbers of this notebook:

# %%
extra = pytorch.dim - standard.dim  # one null direction per neuron
deviation = abs(pytorch.eigenvalues[extra:] - standard.eigenvalues).max() / standard.eigenvalues[-1]
assert extra == 8 + 10
assert deviation < 1e-12
assert standard.rank == pytorch.rank == stretched.rank
assert kappa.low <= kappa.value <= kappa.high
assert ratio > 1.5
assert abs(line.curvatures[0, 0] / cv.spectrum(cv.hessian(problem)).eigenvalues[-1] - 1) < 1e-3
print(f"PyTorch's gauge: equal to {deviation:.0e}; stretch 3: kappa_80 times {ratio:.2f}")
