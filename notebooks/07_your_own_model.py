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
# # 7. Your own model
#
# *A course in curvature for people who know PyTorch, 7 of 8.* Next: [beyond dense matrices](08_beyond_dense.ipynb).
#
# Real models take dictionaries, read tokens with padding, return more than logits, or are not networks at all. This
# notebook measures four of them: a classifier of text, a model of the next character, a formula of physics, and the
# first one again while it trains.

# %%
import os

import matplotlib.pyplot as plt
import sklearn.datasets
import torch
from reader import Reader

import curvature as cv
from curvature.report.figures.style import BLUE, VERMILLION, finish

fast = os.environ.get("CURVATURE_FAST") == "1"  # fewer examples, for the tests

# %% [markdown]
# ## What if the model takes a dictionary?
#
# Then the data are a dictionary too. The text comes with scikit-learn: from one line of a description the model tells
# whether it is about digits or about breast cancer. Lines have different lengths, so there is a mask, as in language
# models, and the output is a dictionary as well.

# %%
texts = [sklearn.datasets.load_digits().DESCR, sklearn.datasets.load_breast_cancer().DESCR]
alphabet = " abcdefghijklmnopqrstuvwxyz"
lines = [(line.lower(), label) for label, text in enumerate(texts) for line in text.splitlines()]
lines = [("".join(letter for letter in line if letter in alphabet)[:24], label) for line, label in lines]
lines = [(line, label) for line, label in lines if len(line) > 10][: 60 if fast else None]
ids = torch.zeros(len(lines), 24, dtype=torch.long)
mask = torch.zeros(len(lines), 24, dtype=torch.float64)
for row, (line, _) in enumerate(lines):
    ids[row, : len(line)] = torch.tensor([alphabet.index(letter) for letter in line])
    mask[row, : len(line)] = 1
data = {"input_ids": ids, "mask": mask, "labels": torch.tensor([label for _, label in lines])}


# %% [markdown]
# The model is a class in a file of yours, here `reader.py` next to this notebook: an embedding, its mean over the
# letters that the mask marks, and two linear layers. Its `forward(input_ids, mask)` returns a dictionary with `logits`
# and `mean`. The entries of the data are passed by their names, the one called `labels` is the target, and `logits` is
# found.

# %%
torch.manual_seed(0)
model = Reader(len(alphabet)).double()
reader = cv.Problem.from_module(model, loss="cross-entropy", data=data)
analysis = cv.analyze(reader, progress=False)
share = max(analysis.layers, key=lambda layer: layer.gradient_share)
print(f"most of the gradient, {share.gradient_share:.0%}, belongs to layer {share.layer}")
ax = cv.figures.plot_analysis(analysis)

# %% [markdown]
# *How to read it.* One row per layer, about the block of the GGN that belongs to it: the dot is its largest eigenvalue,
# the thick bar ends where `kappa_80` does. At the right is its share of the gradient. A layer much steeper than the
# others limits the learning rate of all.

# %% [markdown]
# ## What if there are tokens?
#
# A model of the next character has an output at each position. The loss is a mean over tokens, as in PyTorch, or over
# sequences, each with the sum over its tokens. Padding has the label -100. The choice multiplies every matrix by the
# number of tokens per sequence, so say which one it is.

# %%
first = slice(0, 10 if fast else 40)  # sequences
inputs, following = ids[first, :-1], torch.where(mask[first, 1:] > 0, ids[first, 1:], -100)
torch.manual_seed(0)
bigrams = torch.nn.Sequential(torch.nn.Embedding(len(alphabet), 6), torch.nn.Linear(6, len(alphabet)))
spectra = {}
for unit in ("token", "sequence"):
    loss = cv.CrossEntropy(unit=unit)
    problem = cv.Problem.from_module(bigrams, loss=loss, data=(inputs, following), chunk_size=10)
    spectra[unit] = cv.spectrum(cv.ggn(problem))
ratio = spectra["sequence"].eigenvalues[-1] / spectra["token"].eigenvalues[-1]
tokens = int((following != -100).sum()) / len(following)
print(f"largest eigenvalues: ratio {ratio:.3f}; tokens per sequence: {tokens:.3f}; rank {spectra['token'].rank}")

# %%
figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
for (unit, spectrum), (color, line) in zip(spectra.items(), ((BLUE, "-"), (VERMILLION, "--")), strict=True):
    values = spectrum.on_rank
    ax.plot(range(1, len(values) + 1), values, color=color, linestyle=line, label=f"mean over {unit}s")
ax.set(xscale="log", yscale="log")
ax.legend(fontsize="small")
ax = finish(ax, "GGN of a model of the next character", "rank", "eigenvalue")

# %% [markdown]
# *How to read it.* One line above the other at the same distance: the same shape, another unit. Ratios of eigenvalues
# do not depend on it; learning rates do.

# %% [markdown]
# ## What if it is not a network?
#
# `Problem.from_function` takes any scalar function of named tensors. Here is a data set with certified answers:
# *Misra1a* of NIST, $y = b_1 (1 - e^{-b_2 x})$. The curvature at the best fit gives the standard errors of the
# parameters, the square roots of the diagonal of $s^2 (J^T J)^{-1}$.

# %%
x = [77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1, 689.1, 760.0]
y = [10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78]
x, y, b1, b2 = (torch.tensor(values, dtype=torch.float64) for values in (x, y, 238.94212918, 5.5015643181e-4))


def misra(b, x):
    return b["b1"] * (1 - torch.exp(-b["b2"] * x))


certified = {"b1": b1, "b2": b2}
fit = cv.Problem.from_function("half-squared-error", certified, (x[:, None], y[:, None]), outputs=misra)

# %%
spectrum = cv.spectrum(cv.ggn(fit), method="factor", vectors=True)  # of J^T J / N
variance = 2 * fit.value() / (len(x) - 2)  # s^2 / N
errors = (variance * (spectrum.vectors.columns**2 / spectrum.eigenvalues).sum(axis=1)) ** 0.5
print(f"standard errors {errors[0]:.7f} and {errors[1]:.7e}; certified 2.7070075 and 7.2668688e-06")
directions = {"ceiling b1": torch.tensor([1.0, 0.0]), "rate b2": torch.tensor([0.0, 1.0])}
extent = tuple(3 * float(error) for error in errors)
valley = cv.landscape(fit, directions=directions, extent=extent, matrix="ggn")
ax = cv.figures.plot_landscape(valley)

# %% [markdown]
# *How to read it.* Colours are the loss, dashed lines the parabola of the GGN, three standard errors to each side. The
# narrow valley says that the data determine a combination of the two parameters much better than either of them. The
# condition number of the GGN is $6 \cdot 10^{13}$.

# %% [markdown]
# ## How does curvature change while it trains?
#
# A `Tracker` reads the model after each step of your loop, here of Adam with minibatches. It always measures on the
# data of the problem, so rows are comparable.

# %%
tracker = cv.Tracker(reader, every=20, matrices=("hessian", "ggn"), num_eigenvalues=1, whole_spectrum_up_to=0)
tracker.measure(model, step=0)
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
generator = torch.Generator().manual_seed(0)
for _ in range(100 if fast else 200):
    batch = torch.randint(len(ids), (16,), generator=generator)
    optimizer.zero_grad()
    logits = model(ids[batch], mask[batch])["logits"]
    torch.nn.functional.cross_entropy(logits, data["labels"][batch]).backward()
    optimizer.step()
    tracker.step(model)

# %%
table = tracker.track.to_dataframe()
growth = table["ggn/largest_1"].iloc[-1] / table["ggn/largest_1"].iloc[0]
print(f"loss {table['loss'].iloc[0]:.2f} to {table['loss'].iloc[-1]:.2f}; largest eigenvalue times {growth:.1f}")
ax = cv.figures.plot_track(tracker.track)

# %% [markdown]
# *How to read it.* Where the lines of Hessian and GGN meet, the residuals no longer matter. The critical sharpness of
# notebook 6 falls far below them while the gradient points elsewhere than along the sharpest direction.

# %% [markdown]
# ## What is refused?
#
# Everything that would make a number wrong without a warning: random layers in training mode, batches that depend on
# each other, data that shuffle. The error says what to do.

# %%
torch.manual_seed(0)
noisy = torch.nn.Sequential(torch.nn.Linear(64, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 10)).double()
X, labels = cv.zoo.digits(50)
try:
    cv.Problem.from_module(noisy.train(), loss="cross-entropy", data=(X, labels))
except cv.CurvatureError as error:
    print(error)

# %%
calls = [torch.nn.functional.cross_entropy(noisy(X), labels).item() for _ in range(40)]
spread = max(calls) / min(calls) - 1
steady = torch.nn.functional.cross_entropy(noisy.eval()(X), labels).item()
figure, ax = plt.subplots(figsize=(6.4, 3.0), layout="constrained")
ax.plot(range(1, 41), calls, color=VERMILLION, marker="x", linestyle="none", label="training mode")
ax.axhline(steady, color=BLUE, label="evaluation mode")
ax.legend(fontsize="small")
ax = finish(ax, f"Loss of one network at the same weights: it varies by {spread:.0%}", "call", "loss")

# %% [markdown]
# *How to read it.* Each cross is another call with the same weights and data. Dropout draws another network each time,
# so there is no one matrix to measure. After `eval()` there is: the line.

# %% [markdown]
# ## What have we learned?
#
# A problem is a function of weights; nearly every model is one. The numbers of this notebook:

# %%
assert abs(ratio / tokens - 1) < 1e-9
assert abs(errors[0] / 2.7070075241 - 1) < 1e-6
assert abs(errors[1] / 7.2668688436e-6 - 1) < 1e-6
assert 5e13 < spectrum.condition_numbers()["kappa_rank"].value < 6e13
assert sum(layer.gradient_share for layer in analysis.layers) > 1 - 1e-9
assert table["loss"].iloc[-1] < table["loss"].iloc[0]
assert len(tracker.track.points) == (6 if fast else 11)
assert spread > 0.05
print(f"standard error of b1 {errors[0]:.7f}, certified 2.7070075; tokens per sequence {tokens:.1f}")
