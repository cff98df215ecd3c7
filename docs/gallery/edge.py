"""The edge of stability.

Full-batch gradient descent on 200 digits. The largest eigenvalue of the Hessian grows until it reaches 2 / (learning
rate), the largest curvature at which a step is stable (line), and then stays near it while the loss still falls.
"""

import torch

import curvature as cv

torch.manual_seed(0)
X, labels = cv.zoo.digits(200)
y = torch.nn.functional.one_hot(labels, 10).double()
model = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.Tanh(), torch.nn.Linear(16, 10)).double()
problem = cv.Problem.from_module(model, loss="half-squared-error", data=(X, y))
tracker = cv.Tracker(problem, every=50, matrices=("hessian",), sharpness=False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.15)
for _ in range(2000):
    optimizer.zero_grad()
    (0.5 * (model(X) - y).square().sum(dim=1).mean()).backward()
    optimizer.step()
    tracker.step(model)
ax = cv.figures.plot_track(tracker.track, learning_rate=0.15)
