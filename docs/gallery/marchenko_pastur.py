"""Linear regression against random-matrix theory.

For normal inputs the eigenvalues of the Hessian of a linear regression follow the law of Marchenko and Pastur (line).
A sample of finite size alone spreads eigenvalues that are all 1 in expectation: the condition number of *noise* is
not 1.
"""

import numpy as np
import torch
from matplotlib import pyplot as plt

import curvature as cv

N, d = 400, 100
X = torch.randn(N, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
line = torch.nn.Linear(d, 1, bias=False).double()
problem = cv.Problem.from_module(line, loss="half-squared-error", data=(X, torch.zeros(N, 1, dtype=torch.float64)))
eigenvalues = cv.spectrum(cv.hessian(problem)).eigenvalues

low, high = (1 - (d / N) ** 0.5) ** 2, (1 + (d / N) ** 0.5) ** 2
x = np.linspace(low, high, 300)[1:-1]
figure, ax = plt.subplots()
ax.hist(eigenvalues, bins=25, density=True, color="#56B4E9", label=f"eigenvalues, d = {d}, N = {N}")
ax.plot(x, np.sqrt((high - x) * (x - low)) * N / (2 * np.pi * d * x), color="black", label="Marchenko-Pastur law")
ax.set(xlabel="eigenvalue", ylabel="density", title="Hessian of a linear regression on noise")
ax.legend(fontsize="small")
