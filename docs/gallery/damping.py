"""What damping does to a condition number.

To the left the damping is too small to matter; to the right it dominates and everything is well conditioned. A damped
condition number means nothing without its damping. The effective dimension counts the eigenvalues above it.
"""

from matplotlib import pyplot as plt

import curvature as cv

spectrum = cv.spectrum(cv.ggn(cv.zoo.digits_problem(300, widths=(8,))))
damped = cv.condition_numbers(spectrum).damped
relative = [damping / spectrum.eigenvalues.mean() for damping in damped]

figure, ax = plt.subplots()
ax.loglog(relative, [kappa.value for kappa, _ in damped.values()], "o-", color="#0072B2", label="condition number")
ax.loglog(relative, [size.value for _, size in damped.values()], "s--", color="#D55E00", label="effective dimension")
ax.set(xlabel="damping / mean eigenvalue", ylabel="with damping", title="GGN of a digits network")
ax.legend(fontsize="small")
