"""The empirical Fisher is not the Fisher.

Along training, the distance of the empirical Fisher and of the Hessian from the Fisher, relative to it. A distance of
1 says that it is negligible next to the Fisher: where the fit is good, the empirical Fisher is. The Hessian comes
closer, since its difference from the Fisher is weighted by the residuals.
"""

import torch
from matplotlib import pyplot as plt

import curvature as cv

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 6), torch.nn.Tanh(), torch.nn.Linear(6, 10)).double()
X, y = cv.zoo.digits(200)
optimizer, steps = torch.optim.SGD(model.parameters(), lr=0.5), [0, 10, 30, 100, 300, 1000]
empirical, hessian = [], []
for step in range(1001):
    if step in steps:
        problem = cv.Problem.from_module(model, loss="cross-entropy", data=(X, y))
        fisher = cv.fisher(problem).dense()
        empirical.append((cv.empirical_fisher(problem, scale="fisher").dense() - fisher).norm() / fisher.norm())
        hessian.append((cv.hessian(problem).dense() - fisher).norm() / fisher.norm())
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(X), y).backward()
    optimizer.step()

figure, ax = plt.subplots()
ax.plot(steps, empirical, "s--", label="empirical Fisher", color="#D55E00")
ax.plot(steps, hessian, "o-", label="Hessian", color="#0072B2")
ax.set(
    xscale="symlog", ylim=0, xlabel="step", ylabel="|| A - Fisher || / || Fisher ||", title="Distance from the Fisher"
)
ax.legend(fontsize="small")
