"""Small problems, some with curvature known on paper."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from curvature.arrays import Float64
from curvature.errors import ConfigurationError
from curvature.models.problem import Problem
from curvature.models.zoo.datasets import digits
from curvature.models.zoo.networks import mlp, seeded

__all__ = ["digits_problem", "linear_regression", "softmax_regression", "two_layer_linear"]


def digits_problem(
    num_examples: int | None = None,
    *,
    widths: Sequence[int] = (16,),
    activation: str = "tanh",
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """Build the problem of a fully connected classifier of digits, softmax cross-entropy, at initialization.

    Parameters
    ----------
    num_examples
        Take the first ones; None takes all 1797.
    widths
        Hidden layers.
    activation, seed
        As for :func:`mlp`.
    dtype
        Precision of the problem.

    Returns
    -------
    Problem
        With 64 inputs and 10 outputs.
    """
    model = mlp((64, *widths, 10), activation=activation, seed=seed)
    return Problem.from_module(model, loss="cross-entropy", data=digits(num_examples), dtype=dtype)


def linear_regression(num_examples: int = 200, dim: int = 20, *, noise: float = 0.1, seed: int = 0) -> Problem:
    r"""Build least squares at its optimum, half squared error, no bias: Hessian = GGN = Fisher $= X^T X / N$.

    Parameters
    ----------
    num_examples, dim
        $N$ and $d$; the inputs are Gaussian, so the spectrum is close to $[(1 - \sqrt{d/N})^2, (1 + \sqrt{d/N})^2]$
        (Marchenko & Pastur).
    noise
        Standard deviation of the targets around a linear function.
    seed
        Seed of the data.

    Returns
    -------
    Problem
        With $d$ weights.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_examples, dim, generator=generator, dtype=torch.float64)
    truth = torch.randn(dim, 1, generator=generator, dtype=torch.float64)
    targets = inputs @ truth + noise * torch.randn(num_examples, 1, generator=generator, dtype=torch.float64)
    with seeded(seed):
        layer = nn.Linear(dim, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        # The default driver, gelsy, reads its pivots from memory that torch 2.13 does not clear (pytorch issue 187411).
        layer.weight.copy_(torch.linalg.lstsq(inputs, targets, driver="gelsd").solution.T)
    return Problem.from_module(layer, loss="half-squared-error", data=(inputs, targets))


def softmax_regression(num_examples: int = 100, dim: int = 5, num_classes: int = 3, *, seed: int = 0) -> Problem:
    r"""Build softmax regression at zero weights, no bias: $H = \frac1C (I - \frac1C 1 1^T) \otimes \Sigma$.

    Its eigenvalues are those of $\Sigma / C$ with $\Sigma = X^T X / N$, each ``C - 1`` times, and ``dim`` zeros.

    Parameters
    ----------
    num_examples, dim, num_classes
        $N$, the length of an input, and $C$.
    seed
        Seed of the data.

    Returns
    -------
    Problem
        With ``dim * num_classes`` weights.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_examples, dim, generator=generator, dtype=torch.float64)
    targets = torch.randint(num_classes, (num_examples,), generator=generator)
    with seeded(seed):
        layer = nn.Linear(dim, num_classes, bias=False, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    return Problem.from_module(layer, loss="cross-entropy", data=(inputs, targets))


def two_layer_linear(
    widths: tuple[int, int, int] = (5, 4, 3), *, num_examples: int = 50, seed: int = 0
) -> tuple[Problem, tuple[Float64[Tensor, "hidden inputs"], Float64[Tensor, "outputs hidden"]]]:
    r"""Build a linear network $W_2 W_1 x$ on exactly whitened inputs with half squared error.

    The non-zero GGN eigenvalues are $\{\sigma_i(W_2)^2 + \sigma_j(W_1)^2\}$, singular values padded with zeros.

    Parameters
    ----------
    widths
        Inputs, hidden units, outputs.
    num_examples
        At least the number of inputs, or they cannot be white.
    seed
        Seed of weights and data.

    Returns
    -------
    problem, (W_1, W_2)
        The problem, and its two matrices.

    Raises
    ------
    ConfigurationError
        If there are fewer examples than inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    fan_in, hidden, fan_out = widths
    if num_examples < fan_in:
        raise ConfigurationError(f"whitening {fan_in} inputs needs at least {fan_in} examples, got {num_examples}.")
    inputs = torch.randn(num_examples, fan_in, generator=generator, dtype=torch.float64)
    inputs = torch.linalg.qr(inputs).Q * num_examples**0.5
    targets = torch.randn(num_examples, fan_out, generator=generator, dtype=torch.float64)
    with seeded(seed):
        model = nn.Sequential(
            nn.Linear(fan_in, hidden, bias=False, dtype=torch.float64),
            nn.Linear(hidden, fan_out, bias=False, dtype=torch.float64),
        )
    first, second = model.parameters()
    with torch.no_grad():
        for weight in (first, second):
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    problem = Problem.from_module(model, loss="half-squared-error", data=(inputs, targets))
    return problem, (first.detach().clone(), second.detach().clone())
