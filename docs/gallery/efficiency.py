"""How close a gradient step is to the natural gradient.

The share of the progress of the damped natural gradient that one step makes in each chart, one dot for each seed. The
dashed line is the best that a chart can do neuron by neuron, so no gauge of weight norm is beyond it.
"""

import curvature as cv
from small_study import study

ax = cv.figures.plot_efficiency(study.of(cv.StepComparison, arm="weight-norm", checkpoint="late"))
