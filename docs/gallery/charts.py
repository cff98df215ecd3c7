"""One function in three charts.

The same network, weights and outputs. At the canonical gauge weight norm lies exactly on the standard spectrum. A
longer `v` (stretch 3) lowers the curvature across each neuron's weights ninefold, and leaves that along them.
"""

import curvature as cv

ggn = cv.ggn(cv.zoo.digits_problem(300, widths=(8,))).materialized()
charts = [cv.Standard(), cv.WeightNorm(), cv.WeightNorm(stretch=3.0)]
ax = cv.figures.plot_spectra([cv.spectrum(cv.pullback(ggn, chart)) for chart in charts])
