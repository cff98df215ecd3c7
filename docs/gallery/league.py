"""Which method is closest to the natural gradient.

One step of each method from the same weights, as a share of the progress of the damped natural gradient. The dotted
lines are gradient descent and the natural gradient neuron by neuron. With several seeds there are intervals.
"""

import curvature as cv

problem = cv.zoo.digits_problem(num_examples=300, widths=(6,))
ax = cv.figures.plot_league(cv.whitening_league(problem, cv.WeightNorm(stretch=2.0)))
