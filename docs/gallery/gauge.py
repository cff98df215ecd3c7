"""A condition number against the gauge.

One trained function; only the length of `v` changes. At stretch 1, the canonical gauge, weight norm equals the
standard chart (line). No stretch can move it by a factor of more than its square, or that of its inverse.
"""

import curvature as cv
from small_study import study

numbers = study.of(cv.ConditionNumbers, matrix="ggn", arm="weight-norm", checkpoint="late")
ax = cv.figures.plot_gauge_sweep(numbers, quantity="kappa_80")
