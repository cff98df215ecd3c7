"""Half a spectrum of rounding, or all of it.

A least-squares problem with singular values from 1 down to 1e-10, and so eigenvalues down to 1e-20. From the entries
of the matrix everything below the noise floor (dotted) is rounding. From its factor every eigenvalue is right.
"""

import torch
from matplotlib import pyplot as plt

import curvature as cv

singular = torch.logspace(0, -10, 40, dtype=torch.float64)
generator = torch.Generator().manual_seed(0)
left, right = (torch.linalg.qr(torch.randn(n, 40, dtype=torch.float64, generator=generator)).Q for n in (60, 40))
X = (left * singular) @ right.T
line = torch.nn.Linear(40, 1, bias=False).double()
problem = cv.Problem.from_module(line, loss="half-squared-error", data=(X, torch.zeros(60, 1, dtype=torch.float64)))
entries, factor = (cv.spectrum(cv.ggn(problem), method=method) for method in ("dense", "factor"))

figure, ax = plt.subplots()
rank = range(1, 41)
ax.semilogy(rank, abs(entries.eigenvalues[::-1]), "v", label="by the entries", color="#D55E00")
ax.semilogy(rank, factor.eigenvalues[::-1], "o", label="by the factor", color="#0072B2", markersize=4)
ax.semilogy(rank, singular.square() / 60, "-", label="truth", color="black", linewidth=0.8)
ax.axhline(entries.noise_floor, color="0.4", linestyle=":", label="noise floor of the entries")
ax.set(xlabel="rank", ylabel="|eigenvalue|", title="Eigenvalues of a least-squares problem")
ax.legend(fontsize="small")
