"""Every eigenvalue of a network's curvature, largest first.

Both axes are logarithmic. Read the height at the left: the largest eigenvalue. A steep fall there means few
directions carry most of the curvature. The curve ends at the rank; eigenvalues below the noise floor (shaded) cannot
be told from zero.
"""

import curvature as cv

problem = cv.zoo.digits_problem(300, widths=(8,))
ax = cv.figures.plot_spectrum(cv.spectrum(cv.ggn(problem)))
