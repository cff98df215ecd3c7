"""A narrow valley.

Filled contours are the loss, dashed ones its quadratic model at the minimum: a function of two tensors, here
Rosenbrock's, without a network. The condition number is 2508.
"""

import torch

import curvature as cv


def rosenbrock(x):
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


valley = cv.Problem.from_function(rosenbrock, torch.tensor([1.0, 1.0]))
axes = {"x": torch.tensor([1.0, 0.0]), "y": torch.tensor([0.0, 1.0])}
ax = cv.figures.plot_landscape(cv.landscape(valley, directions=axes, extent=0.8))
