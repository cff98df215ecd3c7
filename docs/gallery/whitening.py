"""Does projecting out the weights whiten the gradient noise?

Distance of each neuron's gradient covariance from a multiple of the identity, before and after one direction is
removed; lower is whiter. Removing *any* direction helps a little, so `w` has to be compared with a random one
(dotted).
"""

import curvature as cv
from small_study import study

ax = cv.figures.plot_whitening(study.of(cv.Whitening, arm="weight-norm", checkpoint="late"))
