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
# # 6. Along training, and the edge of stability
#
# *A course in curvature for people who know PyTorch, 6 of 8.* Next: [your own model](07_your_own_model.ipynb).
#
# On a parabola with curvature $\lambda$, gradient descent with learning rate $\eta$ diverges as soon as $\lambda >
# 2/\eta$. Networks train on for thousands of steps at about that value, the *edge of stability* (Cohen et al. 2021,
# arXiv:2103.00065). This notebook tracks curvature during training, and asks in which coordinates the edge is.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.nn.utils import parametrizations

import curvature as cv
from curvature.report.figures.style import BLACK, BLUE, GRAY, VERMILLION, finish

fast = os.environ.get("CURVATURE_FAST") == "1"  # fewer examples and steps, for the tests

# %% [markdown]
# ## How is curvature tracked?
#
# By a `Tracker` in your own loop. Here it is plain PyTorch: gradient descent on all examples, with squared error on
# one-hot targets, since its curvature does not vanish as the fit improves. The tracker reads the model and changes
# nothing. It measures the coordinates of the model unless it is given a chart.

# %%
X, labels = cv.zoo.digits(40 if fast else 100)
targets = torch.nn.functional.one_hot(labels, 10).double()
steps = 400 if fast else 1500


# %%
def descend(model, rate, steps, watch=()):
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(steps):
        loss = 0.5 * (model(X) - targets).square().sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for tracker in watch:
            tracker.step(model)
    return loss.item()


# %%
def tracked(model, rate, charts=(None,)):
    problem = cv.Problem.from_module(model, loss="half-squared-error", data=(X, targets))
    options = {"every": 50, "matrices": ("hessian",), "num_eigenvalues": 1}
    trackers = [cv.Tracker(problem, chart=chart, **options) for chart in charts]
    for tracker in trackers:
        tracker.measure(model, step=0)
    descend(model, rate, steps, trackers)
    return [tracker.track for tracker in trackers]


# %%
def late(track, name="hessian/largest_1"):
    values = track.to_dataframe()[name]
    return float(values[values.index > steps / 2].median())


(track,) = tracked(cv.zoo.mlp((64, 8, 10)), rate=0.12)
print(f"rate times largest eigenvalue, median of the second half: {0.12 * late(track):.2f}")
ax = cv.figures.plot_track(track, learning_rate=0.12)

# %% [markdown]
# *How to read it.* The line with dots is the largest eigenvalue of the Hessian. It rises until it is above the dotted
# line, $2 / \eta$, where steps become unstable, and is thrown back to it. The crosses are explained two sections below.

# %% [markdown]
# ## Is it the learning rate that decides?
#
# If it is, half the rate should give twice the sharpness, provided that training gets there.

# %%
runs = {0.12: track} | {rate: tracked(cv.zoo.mlp((64, 8, 10)), rate)[0] for rate in (0.16, 0.24)}
print("rate times largest eigenvalue:", ", ".join(f"{rate * late(run):.2f}" for rate, run in runs.items()))

# %%
figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
looks = ((BLUE, "-", "o"), (VERMILLION, "--", "s"), (BLACK, "-.", "^"))
for (rate, run), (color, line, marker) in zip(runs.items(), looks, strict=True):
    values = run.to_dataframe()["hessian/largest_1"]
    ax.plot(values, color=color, linestyle=line, marker=marker, markevery=4, label=f"rate {rate}")
    ax.axhline(2 / rate, color=color, linestyle=":", linewidth=1)
ax.legend(fontsize="small")
ax = finish(ax, "Sharpness at three learning rates", "step", "largest eigenvalue")

# %% [markdown]
# *How to read it.* Each line ends near the dotted one of its colour, $2/\eta$ for its own rate, whether it comes from
# below or from above.

# %% [markdown]
# ## Is there a cheaper number?
#
# The *critical sharpness* is $2/\eta_c$, with $\eta_c$ the smallest rate at which a step along the gradient raises the
# loss. It needs forward passes only, and every row of a track has it (Kalra et al. 2026, arXiv:2601.16979).

# %%
table = runs[0.16].to_dataframe()
ratio = table["critical_sharpness"] / table["hessian/largest_1"]
cheap = late(runs[0.16], "critical_sharpness") / late(runs[0.16])
print(f"critical sharpness over the largest eigenvalue, second half: {cheap:.2f}")
figure, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
ax.plot(ratio, color=BLUE, marker="o", markersize=3)
ax.axhline(1, color=GRAY, linestyle=":")
ax = finish(ax, "Critical sharpness over the largest eigenvalue", "step", "ratio")

# %% [markdown]
# *How to read it.* This is the run at rate 0.16. At 1 the cheap number is the largest eigenvalue. It gets there at the
# edge, where the gradient points along the sharpest direction, and is far below wherever the gradient does not.

# %% [markdown]
# ## In which coordinates is the edge?
#
# With weight norm the steps are taken in $(g, v)$, so the edge should be there and not on the weights. Start at two
# gauges, $v$ half as long as $g$ and twice as long, and track both Hessians.


# %%
def weight_normalized(stretch=1.0):
    model = cv.zoo.mlp((64, 8, 10))
    for layer in (model[0], model[2]):
        parametrizations.weight_norm(layer)
        layer.parametrizations.weight.original1.data *= stretch  # v
    return model


# %%
starts = {0.5: 0.05, 2.0: 0.5}  # stretch and learning rate
pairs, edges = {}, {}
for stretch, rate in starts.items():
    pairs[stretch] = tracked(weight_normalized(stretch), rate, (None, cv.Standard()))
    edges[stretch] = [rate * late(run) for run in pairs[stretch]]
words = (f"{own:.2f} in (g, v), {weights:.2f} on the weights" for own, weights in edges.values())
print("rate times largest eigenvalue:", "; ".join(words))

# %%
figure, panels = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained", sharey=True)
for ax, (stretch, rate) in zip(panels, starts.items(), strict=True):
    looks = (("in (g, v)", BLUE, "-", "o"), ("on the weights", VERMILLION, "--", "s"))
    for run, (name, color, line, marker) in zip(pairs[stretch], looks, strict=True):
        values = rate * run.to_dataframe()["hessian/largest_1"]
        ax.plot(values, color=color, linestyle=line, marker=marker, markevery=4, label=name)
    ax.axhline(2, color=GRAY, linestyle=":")
    ax = finish(ax, f"weight norm, started at stretch {stretch:g}", "step", "")
panels[0].set_ylabel("learning rate x largest eigenvalue")
_ = panels[0].legend(fontsize="small")

# %% [markdown]
# *How to read it.* Solid lines settle at the dotted edge at 2, in both panels. Dashed lines settle far below it on the
# left and far above it on the right. A sharpness on the weights says nothing about the stability of weight norm.

# %% [markdown]
# ## Does weight norm allow larger learning rates?
#
# Each step makes $v$ longer, exactly: $\|v\|^2$ grows by $\eta^2 \|\partial L / \partial v\|^2$. A longer $v$ makes the
# next steps smaller. So a rate that is too large corrects itself, up to a point. Train at a range of rates.

# %%
grid = np.logspace(-2, 0.5, 6 if fast else 11)
finals, lengths = {"standard": [], "weight norm": []}, []
for rate in grid:
    model = weight_normalized()
    before = model[0].parametrizations.weight.original1.norm(dim=1)
    finals["weight norm"].append(descend(model, rate, 300))
    finals["standard"].append(descend(cv.zoo.mlp((64, 8, 10)), rate, 300))
    lengths.append(float((model[0].parametrizations.weight.original1.norm(dim=1) / before).detach().max()))
works = {
    name: max(rate for rate, loss in zip(grid, losses, strict=True) if loss < 0.25) for name, losses in finals.items()
}
print(f"largest rate with a loss below 0.25: {works['standard']:.2f}, with weight norm {works['weight norm']:.2f}")

# %%
figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
for (name, losses), color, line, marker in zip(finals.items(), (BLACK, BLUE), "-:", "os", strict=True):
    shown = [loss if loss < 10 else np.nan for loss in losses]
    ax.plot(grid, shown, color=color, linestyle=line, marker=marker, label=name)
ax.set(xscale="log", yscale="log")
ax.legend(fontsize="small")
ax = finish(ax, "Loss after 300 steps", "learning rate", "loss")

# %% [markdown]
# *How to read it.* A line ends where training diverges. Weight norm goes on at rates where the standard network does
# not. One network and one seed are an example: `curvature compare` tests the claim with minibatches and many seeds.

# %% [markdown]
# ## What have we learned?
#
# Sharpness belongs to the coordinates in which the steps are taken, and the learning rate sets it. The numbers of this
# notebook:

# %%
assert all(1.7 < rate * late(run) < 2.4 for rate, run in runs.items())
for own, weights in edges.values():
    assert 1.8 < own < 2.5
    assert abs(weights - 2) > 0.8
assert edges[0.5][1] < 1.2 < 2.8 < edges[2.0][1]
assert 0.8 < cheap < 1.1
assert works["weight norm"] > works["standard"]
finite = [length for length in lengths if np.isfinite(length)]
assert min(finite) >= 1 - 1e-12
assert max(finite) > 1.5
print(f"edge {0.16 * late(runs[0.16]):.2f}; in (g, v) {edges[0.5][0]:.2f} and {edges[2.0][0]:.2f}")
