"""Condition number against the share of the rank that it covers.

Each point divides the largest eigenvalue by the one at that share of the rank; `kappa_50`, `kappa_80` and `kappa_95`
are three points of the curve. Where two charts cross, which one is "better conditioned" depends on the share.
"""

import numpy as np
from matplotlib import pyplot as plt

import curvature as cv

ggn = cv.ggn(cv.zoo.digits_problem(300, widths=(8,))).materialized()
figure, ax = plt.subplots()
for chart, style in [(cv.Standard(), "k-"), (cv.WeightNorm(stretch=3.0), "C0--"), (cv.WeightNorm("paper"), "C1-.")]:
    spectrum = cv.spectrum(cv.pullback(ggn, chart))
    resolved = spectrum.eigenvalues[::-1][: spectrum.rank]
    share = 100 * np.arange(1, spectrum.rank + 1) / spectrum.rank
    ax.semilogy(share, resolved[0] / resolved, style, label=spectrum.where.chart_label)
for percent in (50, 80, 95):
    ax.axvline(percent, color="0.8", linewidth=0.8)
ax.set(
    xlabel="share of the rank (%)", ylabel="largest eigenvalue / eigenvalue there", title="Condition numbers of the GGN"
)
ax.legend(fontsize="small")
