"""Loss along training, with and without weight norm.

Thin lines are seeds, thick ones their medians. Both arms share initial weights, data, order and learning rate, so
this figure does not say which of them trains faster.
"""

import curvature as cv
from small_study import study

ax = cv.figures.plot_training(study.curves)
