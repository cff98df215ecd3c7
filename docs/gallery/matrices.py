"""Hessian, GGN, empirical Fisher and gradient covariance of one network.

The Hessian has eigenvalues of both signs; the figure shows absolute values, negative ones hollow. The GGN has none
below zero and, for this loss, is the Fisher. The empirical Fisher has the rank of at most one direction for each
example.
"""

import curvature as cv

problem = cv.zoo.digits_problem(200, widths=(8,))
matrices = [cv.hessian, cv.ggn, cv.empirical_fisher, cv.gradient_covariance]
ax = cv.figures.plot_spectra([cv.spectrum(matrix(problem)) for matrix in matrices])
