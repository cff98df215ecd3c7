"""A density without a decomposition.

Stochastic Lanczos quadrature reads the matrix through products only. The band is a 95 % interval over random probes.
Nothing narrower than a bin can be read; single eigenvalues at the ends belong to the figure of extremal eigenvalues.
"""

import curvature as cv

problem = cv.zoo.digits_problem(300, widths=(16,))
ax = cv.figures.plot_density([cv.spectral_density(cv.hessian(problem))])
