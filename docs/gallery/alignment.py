"""Do the weights lie along the gradient noise?

One dot per neuron and seed, a bar at the median: how close a direction is to the top eigenvector of the neuron's
gradient covariance. If the weights `w` were that direction, their dots would be near 1 and above the mean input.
"""

import curvature as cv
from small_study import study

ax = cv.figures.plot_alignment(study.of(cv.Alignment, arm="weight-norm", checkpoint="late"))
