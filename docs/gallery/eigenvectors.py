"""Which layer an eigenvector belongs to.

Squared components of the eigenvectors of the twenty largest eigenvalues, summed over each parameter. The sum of a
column is 1. Here the largest ones belong to the weights of the first layer, and the biases of the last layer come
after them.
"""

import numpy as np
from matplotlib import pyplot as plt

import curvature as cv

problem = cv.zoo.digits_problem(300, widths=(8,))
vectors = cv.extremal_eigenvalues(cv.ggn(problem), num_largest=20).vectors
names = ["0.weight", "0.bias", "2.weight", "2.bias"]
share = np.array([(vectors[name] ** 2).reshape(20, -1).sum(axis=1) for name in names])

figure, ax = plt.subplots()
ax.set_xticks(range(1, 21, 3))
ax.bar(range(1, 21), share[0], label=names[0], color="#0072B2")
for row in range(1, 4):
    color, hatch = ["#56B4E9", "#E69F00", "#D55E00"][row - 1], ["//", "", "xx"][row - 1]
    ax.bar(range(1, 21), share[row], bottom=share[:row].sum(axis=0), label=names[row], color=color, hatch=hatch)
ax.set(
    xlabel="eigenvector, by its eigenvalue from the largest",
    ylabel="share",
    title="Eigenvectors of the GGN by parameter",
)
ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
