r"""Trace, diagonal and traces of functions of a matrix, each with the interval that it lies in.

What is exact is not estimated: a kept matrix, a factor, a cheap dense form, or a dimension within the budget gives the
value up to rounding. Otherwise random probes are spent, and the interval is one whose coverage has been measured on
flat, exponentially and polynomially decaying spectra and on a few outliers (``tests/test_estimators.py``).

Two corrections make 95 % mean 95 %. *Independent samples* (Hutchinson, the second part of Hutch++) of a matrix with a
few large eigenvalues are skewed like a chi-squared variable, and Student's interval covers 89 to 94 %: it is widened
to hold the interval that corrects for the skewness (Hall 1992). *Leave-one-out samples* (XTrace, XNysTrace, XDiag)
share all but one of their vectors, so their spread understates the error, the more the faster the spectrum decays: 95 %
intervals cover 55 to 80 %, and up to 3.4 times the width would be needed. The standard error is therefore the jackknife
of the whole estimate over its vectors, whose mean square is never below the variance (Efron & Stein 1981). It costs no
products, covers 95 to 100 %, and is too long by a factor of two to four where the estimate is most accurate.

What not to conclude: a trace is dominated by the largest eigenvalues, so its interval says nothing about the small
ones; a log-determinant with damping is mostly the damping where the matrix is rank-deficient; intervals of two
estimates from the same probes are not independent; intervals of a diagonal hold entry by entry, and one in twenty may
not; and 95 % was measured on randomly rotated spectra, not proven for every matrix: random signs can miss a single
large entry off the diagonal of an otherwise diagonal matrix.
"""

from curvature.linalg.sums import log_determinant, spectral_sum
from curvature.linalg.traces import diagonal, trace

__all__ = ["diagonal", "log_determinant", "spectral_sum", "trace"]
