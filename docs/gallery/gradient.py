"""How much of the gradient lies along each eigenvector.

Each dot is a direction: its curvature across, the squared gradient along it upwards. Gradient descent needs a long
time for the directions at the left, but they count only as far as the gradient has a part in them: this is what
`gd_time` weighs.
"""

from matplotlib import pyplot as plt

import curvature as cv

spectrum = cv.spectrum(cv.ggn(cv.zoo.digits_problem(300, widths=(8,))), gradient=True)
kept = spectrum.eigenvalues > spectrum.noise_floor

figure, ax = plt.subplots()
ax.loglog(spectrum.eigenvalues[kept], spectrum.gradient_weights[kept], ".", color="#0072B2")
ax.set(
    xlabel="eigenvalue of the GGN",
    ylabel="squared gradient along its eigenvector",
    title="The gradient in the eigenbasis",
)
