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
# # Five minutes, one spectrum
#
# A `Problem` is a network with its data and its loss. Its curvature is a matrix on the *weights*; a parameterization is
# a *chart* in which the same matrix is written. This notebook computes one exact spectrum and looks at it in three
# charts.

# %%
import os

import torch

import curvature as cv

fast = os.environ.get("CURVATURE_FAST") == "1"
torch.manual_seed(0)

# %% [markdown]
# ## What is measured?
#
# Any `nn.Module` will do; this is a small classifier of scikit-learn's 8 x 8 digits, not trained yet. The data are read
# once, in order. The module is copied and never changed. Everything is computed in float64.

# %%
model = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.Tanh(), torch.nn.Linear(8, 10))
X, y = cv.zoo.digits(300 if fast else 1797)
problem = cv.Problem.from_module(model, loss="cross-entropy", data=(X, y))
problem.dim, problem.num_examples, problem.value()

# %% [markdown]
# ## What does the curvature look like?
#
# The generalized Gauss-Newton matrix (GGN) has no negative eigenvalues, and for this loss it is the Fisher information.
# Its spectrum records its matrix, chart, gauge, rank and the noise floor, below which eigenvalues cannot be
# distinguished from zero.

# %%
ggn = cv.ggn(problem).materialized()
standard = cv.spectrum(ggn)
standard

# %%
cv.figures.plot_spectrum(standard)
# %% [markdown]
# Some pixels are 0 in every image, and a softmax does not change when one vector is added to all its rows: those
# directions are null by construction. They are counted by a formula and verified, so the rank does not depend on a
# tolerance.

# %%
print(standard.rank_rule)

# %% [markdown]
# ## How well conditioned is it?
#
# The ratio of the largest to the smallest eigenvalue would be rounding noise. `kappa_80` is the ratio of the largest
# eigenvalue to the one at 80 % of the rank.

# %%
standard.condition_numbers()

# %% [markdown]
# ## Does weight normalization change that?
#
# At the *canonical* gauge, $v = w$ and $g = \|w\|$, which PyTorch's wrapper produces, it does not: the non-zero
# eigenvalues are the same, and each neuron adds one exact zero. At another gauge of the same function it does.

# %%
canonical = cv.spectrum(cv.pullback(ggn, cv.WeightNorm()))
stretched = cv.spectrum(cv.pullback(ggn, cv.WeightNorm(stretch=3.0)))
for spectrum in (standard, canonical, stretched):
    print(spectrum.dim, spectrum.condition_numbers())

# %% [markdown]
# So a condition number needs its gauge. A tool that converts a trained network to weight norm and compares sees no
# difference, even if weight norm changes training. The results of this notebook:

# %%
num_neurons = 8 + 10
extra = canonical.dim - standard.dim
largest = standard.eigenvalues[-1]
deviation = abs(canonical.eigenvalues[extra:] - standard.eigenvalues).max() / largest
assert extra == num_neurons
assert deviation < 1e-12
assert standard.rank == canonical.rank == stretched.rank
ratio = stretched.condition_numbers()["kappa_80"].value / standard.condition_numbers()["kappa_80"].value
assert ratio > 1.5
print(f"canonical gauge: {deviation:.1e} of the largest eigenvalue; stretch 3: kappa_80 times {ratio:.2f}")
