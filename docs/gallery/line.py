"""The loss along its sharpest direction.

The loss (solid) and its quadratic model (dashed) along the eigenvector of the largest eigenvalue. Where they part, a
step of that length is no longer explained by the curvature at the point.
"""

import curvature as cv

problem = cv.zoo.digits_problem(300, widths=(8,))
ax = cv.figures.plot_landscape(cv.landscape(problem, directions="largest", extent=6.0))
