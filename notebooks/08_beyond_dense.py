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
# # 8. Beyond dense matrices
#
# *A course in curvature for people who know PyTorch, 8 of 8.* First: [one spectrum](01_one_spectrum.ipynb).
#
# All eigenvalues of $P$ weights need memory for $P^2$ numbers and time for $P^3$ operations. A *product* of the matrix
# with a vector needs about two gradients, however large $P$ is. This notebook shows what products alone can tell, how
# sure it is, and what they cannot tell.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

import curvature as cv
from curvature.report.figures.style import BLACK, BLUE, VERMILLION, finish

fast = os.environ.get("CURVATURE_FAST") == "1"  # fewer examples, for the tests

# %% [markdown]
# ## When is a matrix too large?
#
# `cv.plan` says before anything is allocated. A network with 34 000 weights does not fit into 4 GB; one with 1210 does,
# and its exact eigenvalues are what everything below is compared with.

# %%
large = cv.zoo.digits_problem(100 if fast else 300, widths=(128, 64) if fast else (256, 64))
small = cv.zoo.digits_problem(200 if fast else 600, widths=(16,))
try:
    cv.plan(cv.hessian(large), max_memory=4e9)
except cv.ResourceError as error:
    print(error)
exact = cv.spectrum(cv.hessian(small))

# %%
figure, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
weights = np.logspace(2, 9, 50)
ax.plot(weights, 8 * weights**2 / 1e9, color=BLACK, label="all entries of the matrix")
ax.plot(weights, 8 * weights / 1e9, color=BLUE, linestyle="--", label="one vector")
ax.plot([small.dim, large.dim], [8 * p.dim**2 / 1e9 for p in (small, large)], "o", color=VERMILLION, label="here")
ax.set(xscale="log", yscale="log")
ax.legend(fontsize="small")
ax = finish(ax, "Memory in float64", "weights", "GB")

# %% [markdown]
# *How to read it.* At a million weights the matrix needs 8000 GB and a vector 8 MB. Methods that need only products
# store some tens of vectors.

# %% [markdown]
# ## What are the ends of the spectrum?
#
# *Lanczos* multiplies a random vector again and again, and finds the ends first. Each value comes with a bound: some
# eigenvalue of the matrix lies within it. That none was missed is checked with `verify=True`.

# %%
ends = cv.extremal_eigenvalues(cv.hessian(small), num_largest=8, num_smallest=4, verify=True)
error = float(max(abs(ends.largest - exact.eigenvalues[::-1][:8])))
print(f"8 largest and 4 smallest of {small.dim} by {ends.num_products} products; largest error {error:.0e}")
ax = cv.figures.plot_extremes([ends])

# %% [markdown]
# *How to read it.* From left to right the first, second, ... eigenvalue from either end, negative ones hollow. The
# bounds are shorter than the markers.

# %% [markdown]
# ## How are the others distributed?
#
# Single eigenvalues in the middle are out of reach, their *density* is not. Stochastic Lanczos quadrature starts
# Lanczos at several random vectors. The band says how much these differ; nothing finer than the width of a bin can be
# read.

# %%
density = cv.spectral_density(cv.hessian(small), num_matvecs=60, num_probes=8)
print(f"{density.num_products} products resolve {density.resolution:.3f} of a range of {np.ptp(density.nodes):.2f}")
ax = cv.figures.plot_density([density])

# %% [markdown]
# *How to read it.* The line is the mean over random vectors, the band its 95 % interval; the axis is logarithmic. The
# dotted line is the height of a single eigenvalue: the bumps at the right are a few *outliers*, one by one.

# %% [markdown]
# ## Is the band right?
#
# The *cumulative* band is made so that it contains the true share at each point with a probability of 95 %, the error
# of the quadrature included. Here the truth is known.

# %%
grid = np.linspace(exact.eigenvalues[0], exact.eigenvalues[-1], 400)
low, middle, high = density.cumulative(grid)
share = np.searchsorted(exact.eigenvalues, grid, side="right") / exact.dim
covered = float(((low <= share + 1e-9) & (share <= high + 1e-9)).mean())
print(f"the band contains the truth at {covered:.0%} of the points")
figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
ax.fill_between(grid, low, high, color=BLUE, alpha=0.25, linewidth=0, label="band")
ax.plot(grid, middle, color=BLUE, linestyle="--", label="estimate")
ax.plot(grid, share, color=BLACK, linewidth=1, label="exact")
ax.legend(fontsize="small")
ax = finish(ax, "Share of eigenvalues that are at most x", "x", "share")

# %% [markdown]
# *How to read it.* The black line should stay inside the band. The step at 0 is the bulk: most eigenvalues are tiny.
# How tiny, and so the condition number, no density can say.

# %% [markdown]
# ## What is the sum of all eigenvalues?
#
# The trace needs no eigenvalue. Random vectors of signs estimate it (Hutchinson), with an interval that shrinks with
# the square root of their number.

# %%
counts = (10, 20, 40, 80, 160, 320)
estimates = [cv.trace(cv.hessian(small), method="hutchinson", num_products=count) for count in counts]
print(f"trace by 320 products {estimates[-1].value:.2f}, in [{estimates[-1].low:.2f}, {estimates[-1].high:.2f}]; "
      f"exact {exact.trace:.2f}")  # fmt: skip
figure, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
values = np.array([[each.value, each.low, each.high] for each in estimates]).T
ax.errorbar(counts, values[0], [values[0] - values[1], values[2] - values[0]], color=BLUE, marker="o", linestyle="none")
ax.axhline(exact.trace, color=VERMILLION, linestyle="--")
ax.set(xscale="log")
ax = finish(ax, "Trace of the Hessian, estimated", "products", "trace, 95 % interval")

# %% [markdown]
# *How to read it.* Bars are 95 % intervals, and the dashed line is exact. About one bar in twenty may miss it.

# %% [markdown]
# ## And the network that did not fit?
#
# The same calls. They know nothing of the matrix but its products.

# %%
top = cv.extremal_eigenvalues(cv.hessian(large), num_largest=3, num_smallest=1)
wide = cv.spectral_density(cv.hessian(large), num_matvecs=30, num_probes=4)
print(f"{large.dim} weights: largest eigenvalue {top.largest[0]:.4f} by {top.num_products} products")
ax = cv.figures.plot_density([wide])

# %% [markdown]
# *How to read it.* As above; bins are wider, since there were fewer products.

# %% [markdown]
# ## What can products not tell?
#
# Whether a tiny eigenvalue is zero. So a condition number has an upper bound only with damping.

# %%
ggn_ends = cv.extremal_eigenvalues(cv.ggn(large), num_largest=1)
dampings = 10.0 ** -np.arange(0, 15)
bounds = [cv.damped_condition_number(ggn_ends, float(damping)) for damping in dampings]
undamped = cv.damped_condition_number(ggn_ends)
print(f"without damping: in [{undamped.low:.3g}, {undamped.high:.3g}]")
figure, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
ax.fill_between(dampings, [b.low for b in bounds], [b.high for b in bounds], color=BLUE, alpha=0.3, linewidth=0)
ax.set(xscale="log", yscale="log")
ax = finish(ax, "Condition number of the damped GGN, from its ends", "damping  (loss/weight²)", "interval")

# %% [markdown]
# *How to read it.* The shaded region is the interval. Down to a damping of about $10^{-6}$ both ends agree. Below, the
# lower end stops at what Lanczos has seen, and the upper end goes on with slope -1: it says what the damping allows,
# not what the matrix is.

# %% [markdown]
# ## What if the data do not fit either?
#
# With `stream=True` nothing is copied: each product reads the loader again, chunk by chunk, and compares it with the
# first pass. A loader that shuffles or augments at random is refused.

# %%
X, y = cv.zoo.digits(small.num_examples)
loader = DataLoader(TensorDataset(X, y), batch_size=50)
streamed = cv.Problem.from_module(
    cv.zoo.mlp((64, 16, 10)), loss="cross-entropy", data=loader, stream=True, chunk_size=100
)
again = cv.extremal_eigenvalues(cv.hessian(streamed), num_largest=8, num_smallest=4)
difference = float(abs(again.largest - ends.largest).max() / ends.largest[0])
print(f"streamed and in memory differ by {difference:.0e} of the largest eigenvalue")
ax = cv.figures.plot_extremes([ends, again], title="The ends of one spectrum")
handles = ax.get_legend().legend_handles
_ = ax.legend(handles, ["in memory", "streamed", "negative"], fontsize="small")

# %% [markdown]
# *How to read it.* Markers side by side at equal heights: streaming changes memory and time, not numbers.

# %% [markdown]
# ## Can many devices share the work?
#
# A matrix of the mean loss is the mean of those of equal parts of the data. So give each device a part and a copy
# of the model, and average their products. CUDA works asynchronously: a plain loop keeps all devices busy. Here four
# parts share one processor. Independent runs (seeds, networks, checkpoints) need none of this: `--jobs`, and `--backend
# dask` for several machines, give each to a process of its own.

# %%
devices = ["cpu"] * 4  # on a machine with GPUs: ["cuda:0", "cuda:1", ...]
parts = []
for number, device in enumerate(devices):
    share = tuple(tensor[number :: len(devices)].to(device) for tensor in (X, y))
    model = cv.zoo.mlp((64, 16, 10)).to(device)
    parts.append(cv.hessian(cv.Problem.from_module(model, loss="cross-entropy", data=share)))


def product(block):
    return sum((part @ block.to(part.device)).cpu() for part in parts) / len(parts)


# %%
where = cv.hessian(small).where
shared = cv.SymmetricOperator(
    where=where, dim=small.dim, matmat=product, dtype=torch.float64, device=torch.device("cpu")
)
together = cv.extremal_eigenvalues(shared, num_largest=8, num_smallest=4)
apart = [cv.extremal_eigenvalues(part, num_largest=8).largest for part in parts]
gap = float(abs(together.largest - ends.largest).max() / ends.largest[0])
print(f"four parts and one matrix differ by {gap:.0e} of the largest eigenvalue")

# %%
figure, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
for number, values in enumerate(apart):
    ax.plot(range(1, 9), values, color=BLUE, marker="x", linestyle="none", label=None if number else "one part")
ax.plot(range(1, 9), together.largest, color=BLACK, marker="o", mfc="none", linestyle="none", label="averaged products")
ax.plot(range(1, 9), ends.largest, color=VERMILLION, marker=".", linestyle="none", label="all data at once")
ax.legend(fontsize="small")
ax = finish(ax, "Largest eigenvalues, from parts of the data", "rank", "eigenvalue")

# %% [markdown]
# *How to read it.* Dots inside circles: the averaged products have the eigenvalues of all data. The crosses are those
# of each part. Their mean would be something else, so average products and not eigenvalues.

# %% [markdown]
# ## What have we learned?
#
# Products give the ends with bounds, the density and sums with bands, and no smallest eigenvalue. The numbers of this
# notebook:

# %%
assert ends.certified or ends.converged
assert error < 1e-6
assert covered > 0.95
assert all(each.low < each.value < each.high for each in estimates)
assert sum(each.low <= exact.trace <= each.high for each in estimates) >= 5
assert top.largest[0] > 0 > top.smallest[0]
assert np.isinf(undamped.high)
assert max(difference, gap) < 1e-6
print(f"ends to {error:.0e}, band right at {covered:.0%}, trace {estimates[-1].value:.2f} of {exact.trace:.2f}")
