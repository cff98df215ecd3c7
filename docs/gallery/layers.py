"""Condition number of each layer's own block, by gauge.

A heat map: layers down, charts across. The block of a layer is what a learning rate for that layer alone would see.
"""

import curvature as cv
from curvature.records import Measured

problem = cv.zoo.digits_problem(300, widths=(12, 8))
charts = [cv.Standard(), cv.WeightNorm(stretch=0.5), cv.WeightNorm(stretch=2.0), cv.WeightNorm("paper")]
numbers = [
    Measured("digits", 0, "init", 0, cv.spectrum(block).condition_numbers())
    for chart in charts
    for block in cv.blocks(cv.pullback(cv.ggn(problem), chart), "layer").values()
]
ax = cv.figures.plot_layers(numbers, quantity="kappa_80")
