"""How close a gradient step is to the natural gradient, against the damping.

The damping is the same for all charts, on the weights. A ranking that holds at one damping only says little about the
charts.
"""

import curvature as cv
from small_study import study

ax = cv.figures.plot_efficiency_damping(study.of(cv.StepComparison, arm="weight-norm", checkpoint="late"))
