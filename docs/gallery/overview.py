"""An overview of a model, layer by layer.

The bar of a layer reaches from its smallest resolved eigenvalue to its largest, so its length is the logarithm of a
condition number. Layers whose bars lie far apart need different learning rates.
"""

import torch

import curvature as cv

torch.manual_seed(0)
net = torch.nn.Sequential(
    torch.nn.Linear(64, 12), torch.nn.Tanh(), torch.nn.Linear(12, 8), torch.nn.Tanh(), torch.nn.Linear(8, 10)
)
problem = cv.Problem.from_module(net, loss="cross-entropy", data=cv.zoo.digits(300))
ax = cv.figures.plot_analysis(cv.analyze(problem))
