"""A Hessian counted by decade.

Positive eigenvalues to the right, negative ones to the left, null ones in one bar. The height of a bar is a count, so
this figure shows where *most* directions are, while the decay by rank shows where the *curvature* is.
"""

import curvature as cv

problem = cv.zoo.digits_problem(300, widths=(8,))
ax = cv.figures.plot_histogram(cv.spectrum(cv.hessian(problem)))
