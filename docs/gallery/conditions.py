"""A condition number along training.

Median over the seeds, bars to the lowest and the highest. Compare lines of *one* arm to see what a gauge does at the
same weights; lines of two arms differ by their trajectories too.
"""

import curvature as cv
from small_study import study

numbers = study.of(cv.ConditionNumbers, matrix="ggn", gauge="-") + study.of(
    cv.ConditionNumbers, matrix="ggn", gauge="checkpoint"
)
ax = cv.figures.plot_conditions_along_training(numbers, quantity="kappa_80")
