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
# # 2. Six matrices that are called curvature
#
# *A course in curvature for people who know PyTorch, 2 of 8.* Next: [which eigenvalues
# count](03_which_eigenvalues_count.ipynb).
#
# Hessian, generalized Gauss-Newton (GGN), Fisher, Monte Carlo Fisher, empirical Fisher and gradient covariance: six
# matrices of one network at one point, whose names papers and packages often exchange. When do they agree, and how far
# apart are they when they do not?

# %%
import os

import matplotlib.pyplot as plt
import torch

import curvature as cv
from curvature.report.figures.style import BLACK, BLUE, GREEN, VERMILLION, finish
from curvature.report.words import matrix_name
from curvature.studies.training import SGD, Schedule, train

fast = os.environ.get("CURVATURE_FAST") == "1"  # fewer examples, for the tests

# %% [markdown]
# ## What are they?
#
# With $f_n$ the outputs for example $n$, $J_n$ their Jacobian, $p_n$ the model's own prediction, $\ell_n$ the loss and
# $g_n$ its gradient at the label of the data:
#
# | matrix | definition | uses the labels of the data |
# | --- | --- | --- |
# | Hessian | $\frac1N \sum_n \nabla^2 \ell_n$ | yes |
# | GGN | $\frac1N \sum_n J_n^T (\nabla_f^2 \ell_n) J_n$ | not for cross-entropy |
# | Fisher | $\frac1N \sum_n E_{y \sim p_n}\, [\nabla \log p_n(y)\, \nabla \log p_n(y)^T]$ | no |
# | Monte Carlo Fisher | the same expectation, by labels drawn from $p_n$ | no |
# | empirical Fisher | $\frac1N \sum_n g_n g_n^T$ | yes |
# | gradient covariance | $\frac1N \sum_n (g_n - \bar g)(g_n - \bar g)^T$ | yes |


# %%
def six(problem):
    builders = (cv.hessian, cv.ggn, cv.fisher, cv.empirical_fisher, cv.gradient_covariance)
    matrices = {build.__name__: build(problem).materialized() for build in builders}
    return matrices | {"monte_carlo_fisher": cv.monte_carlo_fisher(problem, 1).materialized()}


start = cv.zoo.digits_problem(200 if fast else 600, widths=(6,), seed=0)
matrices = six(start)
traces = {name: float(A.entries().trace()) for name, A in matrices.items()}
ratio = traces["empirical_fisher"] / traces["fisher"]
print(f"trace of the empirical Fisher, over that of the Fisher: {ratio:.2f}")

# %%
figure, panels = plt.subplots(2, 3, figsize=(6.4, 4.6), layout="constrained")
last = slice(-22, None)  # of the output layer: the weights of the last two outputs, and ten biases
for ax, (name, A) in zip(panels.flat, matrices.items(), strict=True):
    block = A.entries()[last, last]
    image = ax.imshow(block.sign() * block.abs().sqrt(), cmap="RdBu", vmin=-0.4, vmax=0.4)
    ax.set_title(matrix_name(name), fontsize="medium")
    ax.axis("off")
_ = figure.colorbar(image, ax=panels, label="signed square root of the entry", shrink=0.8)

# %% [markdown]
# *How to read it.* A part of the output layer: six weights of each of the last two outputs, then all ten biases. The
# six matrices have the same pattern. What differs is hard to see in entries, so the next section compares numbers.

# %% [markdown]
# ## Which of them agree?
#
# Compare every pair by the relative distance $\|A - B\| / \|B\|$ in the Frobenius norm, at random weights. *GGN and
# Fisher* are equal for every loss that is the negative logarithm of a natural exponential family: cross-entropy,
# logistic, squared error with unit variance. The two are computed by different formulas here, so their equality is a
# check.


# %%
def distance(A, B):
    return float(torch.linalg.norm(A.entries() - B.entries()) / torch.linalg.norm(B.entries()))


table = torch.tensor([[distance(A, B) for B in matrices.values()] for A in matrices.values()])
equal = distance(matrices["ggn"], matrices["fisher"])
print(f"GGN and Fisher differ by {equal:.0e}")

# %%
figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
ax.imshow(table.clamp(1e-2).log(), cmap="cividis_r", aspect="auto")
for row in range(6):
    for column in range(6):
        number = float(table[row, column])
        shade = "white" if number > 0.35 else "black"
        ax.text(column, row, f"{number:.2f}", ha="center", va="center", color=shade)
labels = [matrix_name(name).replace(" ", "\n") for name in matrices]
ax.set_xticks(range(6), labels=labels, fontsize="small")
ax.set_yticks(range(6), labels=labels, fontsize="small")
_ = ax.set_title("Distance of the row from the column, relative to the column", fontsize="medium")

# %% [markdown]
# *How to read it.* Pale cells are pairs that agree. GGN and Fisher are one matrix. The Monte Carlo Fisher estimates it,
# here from one label per example. The empirical Fisher is three times as far from it. The Hessian is near to none of
# them at random weights.

# %% [markdown]
# ## Do they come closer in training?
#
# The Hessian is the GGN plus the curvature of the outputs, weighted by the residuals, so the two approach each other as
# the fit improves. The empirical Fisher equals the Fisher on average only if the labels follow the model. Training on a
# finite set does not achieve that (Kunstner, Hennig & Balles 2019).

# %%
epochs = (0, 3, 30, 150)
schedule = Schedule(150, batch_size=50, checkpoints={str(epoch): epoch for epoch in epochs})
run = train(start, cv.Standard(), schedule, arm="standard", seed=0, optimizer=SGD(0.5))
along = [six(start.at(point.weights)) for point in run.checkpoints]
pairs = {("hessian", "ggn"): [], ("empirical_fisher", "fisher"): [], ("gradient_covariance", "empirical_fisher"): []}
for each in along:
    for pair, numbers in pairs.items():
        numbers.append(distance(each[pair[0]], each[pair[1]]))
hessian_gap, empirical_gap, _ = pairs.values()
print(f"Hessian from GGN: {hessian_gap[0]:.2f} at the start, {hessian_gap[-1]:.2f} trained")

# %%
figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
for pair, look in zip(pairs, ((BLUE, "o", "-"), (VERMILLION, "s", "--"), (GREEN, "^", ":")), strict=True):
    label = " from ".join(matrix_name(name) for name in pair)
    color, marker, line = look
    ax.plot([str(epoch) for epoch in epochs], pairs[pair], color=color, marker=marker, linestyle=line, label=label)
ax.set_yscale("log")
ax.legend(fontsize="small")
ax = finish(ax, "Three pairs along one training run", "epoch", "relative distance")

# %% [markdown]
# *How to read it.* A falling line is a pair that becomes one matrix. Hessian and GGN do. Empirical Fisher and Fisher do
# not at any time. Gradient covariance and empirical Fisher differ only by the outer product of the mean gradient, which
# vanishes at a minimum.

# %% [markdown]
# ## When does the empirical Fisher estimate the Fisher?
#
# When every label is drawn from the model's own prediction. This is the *Monte Carlo Fisher*, an unbiased estimate,
# whose error falls with the square root of the number of labels per example.

# %%
fisher, draws = matrices["fisher"], (1, 4, 16, 64)
sampled = [distance(cv.monte_carlo_fisher(start, count).materialized(), fisher) for count in draws]
labelled = distance(matrices["empirical_fisher"], fisher)
print(f"64 labels per example: {sampled[-1]:.3f}; the labels of the data: {labelled:.3f}")

# %%
figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
ax.plot(draws, sampled, color=BLUE, marker="o", label="labels drawn from the model")
ax.plot(draws, [sampled[0] / count**0.5 for count in draws], color=BLACK, linestyle=":", label="slope -1/2")
ax.axhline(labelled, color=VERMILLION, linestyle="--", label="labels of the data")
ax.set(xscale="log", yscale="log", ylim=(0.01, 1))
ax.set_xticks(draws, labels=draws)
ax.minorticks_off()
ax.legend(fontsize="small")
ax = finish(ax, "Error of two estimates of the Fisher", "labels per example", "relative distance from the Fisher")

# %% [markdown]
# *How to read it.* The solid line falls with slope -1/2: drawing more labels helps. The dashed line does not depend on
# any number of draws: the labels of the data estimate something else.

# %% [markdown]
# ## Is there a model for which all are simple?
#
# The outputs of a linear model have no curvature. Its Hessian, GGN and Fisher are one matrix, at any weights and
# labels.

# %%
linear = cv.Problem.from_module(cv.zoo.mlp((64, 10)), loss="cross-entropy", data=cv.zoo.digits(200))
linear_six = six(linear)
linear_gap = distance(linear_six["hessian"], linear_six["ggn"])
print(f"softmax regression: Hessian and GGN differ by {linear_gap:.0e}")
shown = ("hessian", "fisher", "empirical_fisher")
title = "Three matrices of softmax regression"
ax = cv.figures.plot_spectra([cv.spectrum(linear_six[name]) for name in shown], title=title)

# %% [markdown]
# *How to read it.* The lines of Hessian and Fisher cover each other. The empirical Fisher has a lower rank, since it is
# a sum of one outer product per example.

# %% [markdown]
# ## What have we learned?
#
# A number needs the name of its matrix. The numbers of this notebook:

# %%
for point, each in zip(run.checkpoints, along, strict=True):
    mean = start.at(point.weights).gradient()
    shifted = each["gradient_covariance"].entries() + torch.outer(mean, mean)
    assert distance(each["ggn"], each["fisher"]) < 1e-12
    assert torch.allclose(shifted, each["empirical_fisher"].entries(), rtol=0, atol=1e-12)
assert hessian_gap[0] > 0.5
assert hessian_gap[-1] < 0.5 * hessian_gap[0]
assert min(empirical_gap) > 0.3
assert sampled[-1] < sampled[0] / 4
assert labelled > 2 * sampled[-1]
assert linear_gap < 1e-12
print(f"Hessian to GGN {hessian_gap[0]:.2f}, trained {hessian_gap[-1]:.2f}; never alike: {min(empirical_gap):.2f}")
