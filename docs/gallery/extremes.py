"""The ends of a spectrum, with error bounds.

Counted from each end, negative eigenvalues hollow. A bar reaches as far as an eigenvalue may be; where it is shorter
than its marker, Lanczos has converged.
"""

import curvature as cv

problem = cv.zoo.digits_problem(300, widths=(16,))
ends = cv.extremal_eigenvalues(cv.hessian(problem), num_largest=8, num_smallest=8)
ax = cv.figures.plot_extremes([ends])
