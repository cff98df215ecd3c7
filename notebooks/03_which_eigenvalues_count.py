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
# # 3. Which eigenvalues count
#
# *A course in curvature for people who know PyTorch, 3 of 8.* Next: [weight norm as a
# chart](04_weight_norm_as_a_chart.ipynb).
#
# A condition number divides the largest eigenvalue by a small one. Small eigenvalues are where rounding errors, exact
# zeros and the tolerance of a library decide what you get. This notebook shows which eigenvalues are numbers, which are
# zeros, and what can be concluded when neither is known.

# %%
import os

import matplotlib.pyplot as plt
import torch

import curvature as cv
from curvature.report.figures.style import BLACK, BLUE, GRAY, VERMILLION, finish

fast = os.environ.get("CURVATURE_FAST") == "1"  # fewer examples, for the tests

# %% [markdown]
# ## How small may an eigenvalue be?
#
# Build a linear regression whose eigenvalues are known: $1, 0.1, 0.01, \ldots, 10^{-20}$. LAPACK computes those of the
# matrix in float64, which has 16 digits *of the largest eigenvalue*.

# %%
generator = torch.Generator().manual_seed(0)
exact = 10.0 ** -torch.arange(21, dtype=torch.float64)
left, right = (
    torch.linalg.qr(torch.randn(rows, 21, generator=generator, dtype=torch.float64))[0] for rows in (100, 21)
)
X = 100**0.5 * left * exact.sqrt() @ right.T  # X^T X / 100 has these eigenvalues
module = torch.nn.Linear(21, 1, bias=False)
regression = cv.Problem.from_module(module, loss="half-squared-error", data=(X, torch.zeros(100, 1)))
dense = cv.spectrum(cv.ggn(regression), method="dense")
print(f"noise floor {dense.noise_floor:.0e}: {dense.num_resolved} of 21 eigenvalues are above it")
ax = cv.figures.plot_spectrum(dense)

# %% [markdown]
# *How to read it.* The dots are eigenvalues, the largest at the left. They fall along the known line until they meet
# the hatched *noise floor*. What is computed inside the floor (a cross) is rounding: an eigenvalue there may be zero or
# not.

# %% [markdown]
# ## Can another route see more?
#
# The GGN is a product, $A = B B^T$. The eigenvalues of $A$ are the squares of the singular values of $B$, which float64
# resolves to $10^{-16}$ of the largest. Squared, that is $10^{-32}$.

# %%
factor = cv.spectrum(cv.ggn(regression), method="factor")
errors = {record.method: abs(record.eigenvalues / exact.flip(0).numpy() - 1) for record in (dense, factor)}
print(f"largest relative error, eigenvalue 1e-20 included: {errors['factor'].max():.0e} by the factor")
figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
ax.plot(exact.flip(0), errors["dense"], color=VERMILLION, marker="x", linestyle="none", label="from the entries")
ax.plot(exact.flip(0), errors["factor"], color=BLUE, marker="o", linestyle="none", label="from the factor")
ax.axvline(dense.noise_floor, color=GRAY, linestyle=":", label="noise floor of the entries")
ax.set(xscale="log", yscale="log")
ax.legend(fontsize="small")
ax = finish(ax, "Error of the computed eigenvalues", "exact eigenvalue", "relative error")

# %% [markdown]
# *How to read it.* A point at height 1 has no correct digit. Crosses reach that height at the noise floor, as it
# promises. Dots have digits down to the smallest eigenvalue.

# %% [markdown]
# ## What is a condition number then?
#
# What follows from the intervals of its eigenvalues. Where the denominator is below the floor there is only a bound,
# and it is printed as one. `float()` of a bound raises an error, so that nobody computes with it by mistake.

# %%
both = {record.method: record.condition_numbers() for record in (dense, factor)}
bound, number = (numbers["kappa_rank"] for numbers in both.values())
print(f"kappa_rank: {bound} from the entries, {number} from the factor")

# %%
figure, ax = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
looks = (("dense", VERMILLION, "x", 0.12), ("factor", BLUE, "o", -0.12))
for method, color, marker, shift in looks:
    for row, name in enumerate(("kappa_50", "kappa_80", "kappa_95", "kappa_rank")):
        number = both[method][name]
        ax.plot(number.value, row + shift, color=color, marker=marker, label=None if row else f"by the {method} method")
        ax.plot([number.low, min(number.high, 1e24)], [row + shift] * 2, color=color)
ax.set_yticks(range(4), labels=("kappa_50", "kappa_80", "kappa_95", "kappa_rank"))
ax.set(xscale="log", xlim=(1e9, 1e24))
ax.legend(fontsize="small", loc="lower right")
ax = finish(ax, "Condition numbers with their intervals", "condition number", "")

# %% [markdown]
# *How to read it.* Lines are intervals. A line that leaves the figure at the right is a lower bound: the matrix may be
# singular. The factor gives numbers, and they lie inside the bounds of the entries.

# %% [markdown]
# ## Which zeros are known?
#
# Some directions cannot change the loss: the weights of a pixel that is 0 in every image, a vector added to all rows
# before softmax, the scale that a ReLU passes on, a dead unit. They are counted by formulas, and each is verified by a
# product with the matrix. The usual alternative, a tolerance, gives the rank you choose.

# %%
digits = cv.zoo.digits_problem(200 if fast else 600, widths=(8,), activation="relu")
ggn = cv.ggn(digits).materialized()
spectrum = cv.spectrum(ggn)
single = cv.spectrum(cv.ggn(cv.zoo.digits_problem(200 if fast else 600, widths=(8,), activation="relu",
                                                   dtype=torch.float32)), method="dense")  # fmt: skip
print(f"rank {spectrum.rank} of {spectrum.dim}: {spectrum.rank_rule}")

# %%
tolerances = 10.0 ** -torch.arange(5, 19, dtype=torch.float64)
figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
for record, color, marker in ((single, VERMILLION, "s"), (spectrum, BLUE, "o")):
    values = torch.from_numpy(record.eigenvalues / record.eigenvalues[-1])
    ranks = [int((values > tolerance).sum()) for tolerance in tolerances]
    ax.plot(tolerances, ranks, color=color, marker=marker, label=f"by tolerance, {record.dtype}")
ax.axhline(spectrum.rank, color=BLACK, linestyle="--", label="by formula")
ax.set(xscale="log", ylim=(460, 560))
ax.legend(fontsize="small")
ax = finish(ax, "Rank of one GGN", "tolerance, relative to the largest eigenvalue", "rank")

# %% [markdown]
# *How to read it.* A tolerance works if it lies on a flat stretch at the right height. In float64 there is one here. In
# float32 the only flat stretch is at a wrong height, where rounding errors are counted. The dashed line needs no
# tolerance.

# %% [markdown]
# ## What does damping do?
#
# Many methods add $\delta I$. That removes the question, and replaces it by another: the condition number is then
# mostly $\delta$. So `condition_numbers` shows it in decades of the mean eigenvalue, with the *effective dimension*
# $\sum \lambda / (\lambda + \delta)$, the number of directions that the damping leaves.

# %%
numbers = spectrum.condition_numbers()
dampings = list(numbers.damped)
kappas, dimensions = ([float(pair[k]) for pair in numbers.damped.values()] for k in (0, 1))
print(f"damping by 1/1000 of the mean leaves {dimensions[3]:.0f} of {spectrum.rank} directions")
figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
ax.plot(dampings, kappas, color=BLUE, marker="o", label="damped condition number")
ax.plot(dampings, dimensions, color=VERMILLION, marker="s", linestyle="--", label="effective dimension")
ax.axhline(spectrum.rank, color=BLACK, linestyle=":", label="rank")
ax.set(xscale="log", yscale="log")
ax.legend(fontsize="small")
ax = finish(ax, "GGN with damping", "damping  (loss/weight²)", "no unit")

# %% [markdown]
# *How to read it.* The solid line has slope -1: the number says how large the damping is. Where the dashed line is
# below the rank, directions are lost to the damping.

# %% [markdown]
# ## And if eigenvalues are negative?
#
# The Hessian away from a minimum has both signs, and no condition number. Its *inertia* counts them: negative, zero,
# positive. Ratios of absolute values exist, under names of their own.

# %%
hessian = cv.spectrum(cv.hessian(digits))
print("inertia (negative, zero, positive):", hessian.inertia)
ax = cv.figures.plot_histogram(hessian)

# %% [markdown]
# *How to read it.* Bars of the two signs grow apart from the middle line. The bar at the left counts eigenvalues below
# the noise floor, which have no sign.

# %% [markdown]
# ## What have we learned?
#
# Read a spectrum with its floor, take zeros from formulas, and quote a bound as a bound. The numbers of this notebook:

# %%
assert dense.num_resolved < 16 < factor.num_resolved == 21
assert errors["factor"].max() < 1e-3
assert errors["dense"].max() > 1
assert both["dense"]["kappa_rank"].status == "lower_bound"
assert both["dense"]["kappa_rank"].low < both["factor"]["kappa_rank"].value
assert abs(both["factor"]["kappa_rank"].value / 1e20 - 1) < 1e-3
assert spectrum.possible_ranks == (spectrum.rank, spectrum.rank)
assert max(dimensions) < spectrum.rank
assert hessian.condition_numbers()["kappa_80"].status == "indefinite"
print(f"entries: {dense.num_resolved} eigenvalues; factor: {factor.num_resolved}; rank by formula: {spectrum.rank}")
