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
# # 5. Natural gradient and whitening
#
# *A course in curvature for people who know PyTorch, 5 of 8.* Next: [the edge of
# stability](06_edge_of_stability.ipynb).
#
# The *natural gradient* multiplies the gradient by the inverse of the Fisher matrix $F$: it steps far where the model
# hardly changes and carefully where it changes much. In coordinates where $F$ is the identity, *whitened* ones, it is
# the plain gradient. Salimans & Kingma (2016) suggest that weight normalization comes near to this. This notebook
# measures how near.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

import curvature as cv
from curvature.report.figures.style import BLACK, BLUE, GRAY, GREEN, VERMILLION, finish
from curvature.studies.training import SGD, Schedule, train

fast = os.environ.get("CURVATURE_FAST") == "1"  # fewer examples, for the tests

# %% [markdown]
# ## How good is a gradient step?
#
# Train a network for a few epochs, and then look at one step. Near the weights the loss is about $L - t\, g^T d +
# \frac{t^2}{2}\, d^T A\, d$ for a step $t d$, with $A = F + \lambda I$. The damping $\lambda$ (here 1/1000 of the mean
# eigenvalue) keeps the inverse finite. The best $d$ is the natural gradient $A^{-1} g$. The *efficiency* $E$ of another
# direction is its best decrease, as a share of that.

# %%
start = cv.zoo.digits_problem(200 if fast else 600, widths=(8,), seed=0)
schedule = Schedule(10, batch_size=50, checkpoints={"trained": 10})
run = train(start, cv.Standard(), schedule, arm="standard", seed=0, optimizer=SGD(0.2))
problem = start.at(run.checkpoints[0].weights)
fisher, gradient = cv.fisher(problem).materialized(), problem.gradient()
plain = cv.efficiency(problem, cv.Standard(), fisher=fisher)
print(f"efficiency of gradient descent: {plain.efficiency:.3f}")

# %%
natural = cv.natural_gradient_step(problem, fisher=fisher)
figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
lengths = np.linspace(0, 1, 41)
looks = (("gradient", -gradient, BLACK, "-"), ("natural gradient", natural, GREEN, "--"))
for name, step, color, line in looks:
    damped = fisher @ step[:, None] + plain.damping * step[:, None]
    best = float(-(gradient @ step) / (step @ damped[:, 0]))
    losses = [problem.value(problem.weights + length * best * step) for length in lengths]
    ax.plot(lengths, losses, color=color, linestyle=line, label=name)
ax.legend(fontsize="small")
ax = finish(ax, "Loss along two directions", "step, over the best step of the quadratic model", "loss")

# %% [markdown]
# *How to read it.* Both lines start at the same weights, and 1 is the best step of the quadratic model. The natural
# gradient reaches a loss that the plain gradient reaches at no length. It does so before 1: so far away the loss is not
# a parabola, which is why such methods take shorter steps or more damping.

# %% [markdown]
# ## Where does weight norm stand?
#
# A gradient step in any chart is a step $-K g$ on the weights, with a matrix $K$ that belongs to the chart. So charts
# and preconditioners are compared by one number. `compare_charts` adds controls: the same multipliers around random
# directions (*placebo*), the best single stretch, K-FAC, and the natural gradient *neuron by neuron*, the most that any
# chart with one block per neuron could do.

# %%
steps = cv.compare_charts(problem, fisher=fisher)
index = {step.label: step.index for step in steps}
print(f"index of weight norm at the paper's gauge: {index['weight-norm (paper)']:.3f}")
ax = cv.figures.plot_efficiency(steps)

# %% [markdown]
# *How to read it.* One dot per chart, ordered by efficiency; 1 is the natural gradient. The *index* puts gradient
# descent (dotted line) at 0 and the neuron-block natural gradient (dashed) at 1. At PyTorch's gauge weight norm *is*
# gradient descent.

# %% [markdown]
# ## Is it the direction of the weights that matters?
#
# Weight norm treats the direction of each neuron's $w$ differently from all others. If $w$ is special, random
# directions with the same multipliers should do worse.

# %%
gauge = cv.WeightNorm("paper")
charts = [gauge, *(cv.Placebo("paper", seed=seed) for seed in range(20))]
compared = cv.compare_charts(problem, charts, fisher=fisher, closeness=False)
weight_norm, *placebos = (step.efficiency for step in compared)
rank = sum(placebo < weight_norm for placebo in placebos)
print(f"weight norm does better than {rank} of 20 placebos")
figure, ax = plt.subplots(figsize=(6.4, 2.6), layout="constrained")
ax.plot(placebos, [0] * 20, color=GRAY, marker="|", markersize=20, linestyle="none", label="random directions")
ax.plot([weight_norm], [0], color=VERMILLION, marker="D", linestyle="none", label="direction of w")
ax.set_yticks([])
ax.legend(fontsize="small")
ax = finish(ax, "Same multipliers around other directions", "efficiency", "")

# %% [markdown]
# *How to read it.* If the direction of $w$ did not matter, the diamond would be among the bars. Here it lies far to the
# left: the random directions do better. Weight norm speeds up the directions that turn $w$, and in the output layer of
# a trained network the gradient wants to scale $w$ (two sections below).

# %% [markdown]
# ## Would another gauge do better?
#
# The stretch $\|v\| / |g|$ is the one number per neuron that weight norm has to offer. Sweep it for all neurons
# together.

# %%
stretches = np.logspace(-2, 2, 17)
swept = cv.compare_charts(
    problem, [cv.WeightNorm(stretch=float(stretch)) for stretch in stretches], fisher=fisher, closeness=False
)
best = max(swept, key=lambda step: step.efficiency)
print(f"the best stretch has efficiency {best.efficiency:.3f} and index {best.index:.2f}")
ceiling = next(step.efficiency for step in steps if step.chart == "neuron-block")

# %%
figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
ax.plot(stretches, [step.efficiency for step in swept], color=BLUE, marker="o", label="weight norm")
ax.axhline(plain.efficiency, color=BLACK, linestyle=":", label="gradient descent")
ax.axhline(ceiling, color=GREEN, linestyle="--", label="neuron-block natural gradient")
ax.axvline(1, color=GRAY, linewidth=0.8, label="PyTorch's gauge")
ax.set(xscale="log", ylim=(0, 1))
ax.legend(fontsize="small")
ax = finish(ax, "Efficiency of weight norm against its gauge", "stretch ‖v‖ / |g|", "efficiency")

# %% [markdown]
# *How to read it.* At the left the step turns each $w$ and keeps its length, at the right it scales each $w$ and keeps
# its direction. Between the best gauge and the dashed line is what one number per neuron cannot do.

# %% [markdown]
# ## Does weight norm whiten the gradients?
#
# Salimans & Kingma argue that $w$ is close to the dominant eigenvector of the covariance of its gradients, so that
# projecting it out brings the covariance closer to the identity. Measure the cosine, neuron by neuron.

# %%
alignments = cv.alignments(problem)
cosines = {}
for layer in ("0", "2"):  # names of the two linear layers in the module
    along_w = [a.cosine for a in alignments if a.direction == "w" and a.neuron.startswith(layer)]
    cosines[layer] = float(np.median(along_w))
print(f"median cosine of w with the top eigenvector: {cosines['0']:.2f} and {cosines['2']:.2f} in the two layers")
ax = cv.figures.plot_alignment(alignments)

# %% [markdown]
# *How to read it.* One dot per neuron, a bar at the median; the dotted lines are what a random direction has. In the
# output layer (squares) the claim holds for this network. In the first layer (circles) $w$ is as far from the top
# eigenvector as any random direction; the mean input of the layer is that eigenvector. Removing a mean is what batch
# normalization does.

# %% [markdown]
# ## Does the answer depend on the damping?
#
# A large damping makes the natural gradient itself a gradient step, and all efficiencies go to 1. So the comparison
# needs its damping, and a look at others.

# %%
dampings = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
charts = [cv.Standard(), cv.WeightNorm("paper")]
dependence = cv.compare_charts(problem, charts, relative_dampings=dampings, fisher=fisher, closeness=False)
shares = {(step.chart, step.relative_damping): step.efficiency for step in dependence}
ratios = [shares["weight-norm", damping] / shares["standard", damping] for damping in dampings]
print(f"weight norm over gradient descent: {min(ratios):.2f} to {max(ratios):.2f} over six dampings")
ax = cv.figures.plot_efficiency_damping(dependence)

# %% [markdown]
# *How to read it.* One line per chart. Their order is what to look for: it would have to be the same at every damping
# before one chart is called closer to the natural gradient.

# %% [markdown]
# ## What have we learned?
#
# For this network and these weights, weight norm is gradient descent at PyTorch's gauge, a little worse at the paper's,
# and not quite half way to the neuron-block natural gradient at the best one. One network is an example, not evidence:
# `curvature compare` repeats this over seeds, with intervals. The numbers of this notebook:

# %%
canonical = next(step for step in steps if step.label == "weight-norm (canonical)")
assert abs(canonical.efficiency - plain.efficiency) < 1e-9
assert abs(next(step for step in steps if step.chart == "natural-gradient").efficiency - 1) < 1e-9
assert plain.efficiency < ceiling < 1
assert abs(index["weight-norm (paper)"]) < 0.2
assert best.efficiency < ceiling
assert cosines["0"] < 0.2 < 0.5 < cosines["2"]
assert all(0 <= step.efficiency <= 1 + 1e-12 for step in (*steps, *swept, *dependence))
print(f"gradient descent {plain.efficiency:.2f}, weight norm {weight_norm:.2f}, best gauge {best.efficiency:.2f}")
