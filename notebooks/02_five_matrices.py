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
# # Five matrices that are called curvature
#
# Hessian, generalized Gauss-Newton (GGN), Fisher, empirical Fisher and gradient covariance: five matrices of one
# network at one point, whose names papers and packages often exchange. When do they agree, and how far apart are they
# when they do not?

# %%
import os

import matplotlib.pyplot as plt
import torch

import curvature as cv
from curvature.studies.training import SGD, Schedule, train

fast = os.environ.get("CURVATURE_FAST") == "1"


def distance(A, B):
    """Relative difference of two matrices, in the Frobenius norm of the second."""
    A, B = A.entries(), B.entries()
    return float(torch.linalg.norm(A - B) / torch.linalg.norm(B))


# %% [markdown]
# ## One network, five matrices
#
# With $f_n$ the outputs for example $n$, $J_n$ their Jacobian, $p$ the model's own prediction and $g_n$ the gradient
# of the loss of example $n$ at its label:
#
# | matrix | definition | labels of the data? |
# | --- | --- | --- |
# | Hessian | $\nabla^2 L$ | yes |
# | GGN | $\frac1N \sum_n J_n^T (\nabla_f^2 \ell_n) J_n$ | not for cross-entropy |
# | Fisher | $\frac1N \sum_n E_{y \sim p}\, [\nabla \log p(y)\, \nabla \log p(y)^T]$ | no: the model's own |
# | empirical Fisher | $\frac1N \sum_n g_n g_n^T$ | yes |
# | gradient covariance | $\frac1N \sum_n (g_n - \bar g)(g_n - \bar g)^T$ | yes |

# %%
start = cv.zoo.digits_problem(200 if fast else 600, widths=(6,), seed=0)
run = train(
    start,
    cv.Standard(),
    Schedule(150, batch_size=50, checkpoints={"at initialization": 0, "after 3 epochs": 3, "after 150 epochs": 150}),
    arm="standard",
    seed=0,
    optimizer=SGD(0.5),
)


def matrices(problem):
    builders = (cv.hessian, cv.ggn, cv.fisher, cv.empirical_fisher, cv.gradient_covariance)
    return {build.__name__: build(problem).materialized() for build in builders}


problems = {point.name: start.at(point.weights) for point in run.checkpoints}
by_point = {name: matrices(problem) for name, problem in problems.items()}

# %% [markdown]
# ## Which agree always?
#
# *GGN and Fisher*, for every loss that is the negative logarithm of a natural exponential family: softmax
# cross-entropy, logistic, squared error with unit variance. They are computed by different formulas here, so the
# equality is a check. *Empirical Fisher and gradient covariance* differ by $\bar g \bar g^T$, one rank.

# %%
for name, each in by_point.items():
    mean = problems[name].gradient()
    shifted = each["gradient_covariance"].entries() + torch.outer(mean, mean)
    outer = float(torch.linalg.norm(shifted - each["empirical_fisher"].entries()))
    print(f"{name:>18}: GGN - Fisher {distance(each['ggn'], each['fisher']):.0e}; C + gg' - EF {outer:.0e}")

# %% [markdown]
# ## Which agree sometimes?
#
# The Hessian is the GGN plus the outputs' own curvature, weighted by the residuals: the two approach each other as
# the fit improves. The expectation of the empirical Fisher is the Fisher only if the labels follow the model. Training
# on a finite set does not achieve that: as the fit improves, the empirical Fisher vanishes at another rate (Kunstner,
# Hennig & Balles 2019).

# %%
pairs = (("hessian", "ggn"), ("empirical_fisher", "fisher"), ("gradient_covariance", "empirical_fisher"))
table = {pair: [distance(each[pair[0]], each[pair[1]]) for each in by_point.values()] for pair in pairs}
for (first, second), numbers in table.items():
    print(f"|{first} - {second}| / |{second}|:", ", ".join(f"{number:.2f}" for number in numbers))

# %%
figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
styles = (("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", ":"))
for (pair, numbers), (color, marker, line) in zip(table.items(), styles, strict=True):
    label = " and ".join(name.replace("_", " ") for name in pair)
    ax.plot(list(by_point), numbers, color=color, marker=marker, linestyle=line, label=label)
ax.set(xlabel="checkpoint", ylabel="relative distance (Frobenius norm)", yscale="log")
ax.set_title("Pairs of matrices along one training run", loc="left", fontsize="medium")
ax.legend(fontsize="small")

# %% [markdown]
# ## When does the empirical Fisher estimate the Fisher?
#
# When every label is drawn from the model's own prediction. The second moment of the gradients is then an unbiased
# estimate of the Fisher, the *Monte Carlo Fisher*, whose error falls as $1/\sqrt{\text{draws}}$.

# %%
point = problems["at initialization"]
fisher = by_point["at initialization"]["fisher"]
draws = (1, 4, 16, 64)
sampled = [distance(cv.monte_carlo_fisher(point, count).materialized(), fisher) for count in draws]
empirical = distance(by_point["at initialization"]["empirical_fisher"], fisher)
for count, number in zip(draws, sampled, strict=True):
    print(f"{count:3d} labels per example: {number:.3f}")
print(f"the labels of the data: {empirical:.3f}")

# %% [markdown]
# ## And for a linear model?
#
# The outputs have no curvature, so Hessian, GGN and Fisher are one matrix for any weights and labels.

# %%
linear = cv.Problem.from_module(cv.zoo.mlp((64, 10)), loss="cross-entropy", data=cv.zoo.digits(100))
linear_gap = distance(cv.hessian(linear).materialized(), cv.ggn(linear).materialized())
print(f"softmax regression, Hessian and GGN differ by {linear_gap:.0e}")

# %% [markdown]
# So a number needs the name of its matrix. The results of this notebook:

# %%
for name, each in by_point.items():
    mean = problems[name].gradient()
    shifted = each["gradient_covariance"].entries() + torch.outer(mean, mean)
    assert distance(each["ggn"], each["fisher"]) < 1e-12
    assert torch.allclose(shifted, each["empirical_fisher"].entries(), rtol=0, atol=1e-12)
hessian_gap, empirical_gap = table["hessian", "ggn"], table["empirical_fisher", "fisher"]
assert hessian_gap[0] > 0.5
assert hessian_gap[-1] < 0.5 * hessian_gap[0]
assert min(empirical_gap) > 0.3
assert sampled[-1] < sampled[0] / 4
assert empirical > 2 * sampled[-1]
assert linear_gap < 1e-12
print(f"Hessian to GGN: {hessian_gap[0]:.2f}, trained {hessian_gap[-1]:.2f}; never alike: {min(empirical_gap):.2f}")
