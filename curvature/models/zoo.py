"""Small seeded models and data without a download; some with curvature known on paper."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral

import numpy as np
import torch
from torch import Tensor, nn

from curvature.errors import ConfigurationError
from curvature.models import Problem

__all__ = [
    "DATA",
    "MODELS",
    "breast_cancer",
    "cnn",
    "diabetes",
    "digits",
    "digits_problem",
    "housing",
    "linear_regression",
    "mlp",
    "softmax_regression",
    "two_layer_linear",
    "wine",
]

_MOST_ROWS = 10**7  # of a made table: more would fill the memory before anything is measured
_ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "identity": nn.Identity}


def digits(num_examples: int | None = None, *, image: bool = False) -> tuple[Tensor, Tensor]:
    """The 1797 handwritten 8 x 8 digits of scikit-learn, pixels in [0, 1], in their own order.

    Real data that come with the package: no download. Some pixels are 0 on every image, so every model on them has
    known null directions. ``num_examples`` takes the first ones; ``image=True`` gives ``(N, 1, 8, 8)``.
    """
    from sklearn.datasets import load_digits  # slow to import, and not every user needs it

    inputs, targets = load_digits(return_X_y=True)
    _refuse_count(num_examples, len(inputs))
    pixels = torch.as_tensor(inputs[:num_examples], dtype=torch.float64) / 16
    labels = torch.as_tensor(targets[:num_examples])
    return (pixels.view(-1, 1, 8, 8) if image else pixels), labels


def breast_cancer(num_examples: int | None = None) -> tuple[Tensor, Tensor]:
    """569 tumours by 30 measurements, benign or malignant (Street, Wolberg & Mangasarian 1993), from scikit-learn.

    This table and the next two: columns of mean 0 and variance 1 over all rows, and the rows shuffled once with a fixed
    seed, since they come sorted; ``num_examples`` takes the first ones.
    """
    from sklearn.datasets import load_breast_cancer

    return _table(*load_breast_cancer(return_X_y=True), num_examples)


def wine(num_examples: int | None = None) -> tuple[Tensor, Tensor]:
    """178 wines of three cultivars by 13 measurements (Forina et al. 1988), from scikit-learn."""
    from sklearn.datasets import load_wine

    return _table(*load_wine(return_X_y=True), num_examples)


def diabetes(num_examples: int | None = None) -> tuple[Tensor, Tensor]:
    """442 patients by 10 measurements, and the progression of the disease (Efron et al. 2004), from scikit-learn.

    Targets ``(N, 1)`` of mean 0 and variance 1.
    """
    from sklearn.datasets import load_diabetes

    return _table(*load_diabetes(return_X_y=True), num_examples)


def housing(num_examples: int | None = None, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A *made* table in the manner of the California housing data, which are no part of any package: no download.

    Eight columns as there: income and population with heavy tails, age, rooms and bedrooms nearly proportional to each
    other (the ill-conditioned pair), occupancy with outliers, and two coordinates along a slanted coast with two
    cities. The price grows with income, falls with the distance to a city, and is cut off at the top. Nothing is fitted
    to the real table. 2000 rows unless ``num_examples`` says otherwise, columns and price of mean 0 and variance 1.
    """
    generator = torch.Generator().manual_seed(seed)
    count = 2000 if num_examples is None else num_examples
    if not 2 <= count <= _MOST_ROWS:
        raise ConfigurationError(f"num_examples must be at least 2 and at most {_MOST_ROWS}, got {num_examples}.")

    def normal() -> Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    income = (1.2 + 0.45 * normal()).exp()
    age = (28 + 12 * normal()).clamp(1, 52)
    rooms = 3 + 0.6 * income + 0.4 * normal().exp()
    bedrooms = 0.2 * rooms + 0.03 * normal()
    population = (7.0 + 0.75 * normal()).exp()
    occupancy = 2.8 + 0.5 * normal() + 0.2 * (normal() ** 2) * (normal() > 2)
    south = torch.rand(count, generator=generator, dtype=torch.float64) < 0.55
    latitude = torch.where(south, 34.0, 37.7) + 0.6 * normal()
    longitude = -118.2 - 1.05 * (latitude - 34.0) + 0.5 * normal()
    city = torch.where(south, 34.05, 37.75)
    distance = ((latitude - city) ** 2 + (longitude + 118.2 + 1.05 * (city - 34.0)) ** 2).sqrt()
    price = 0.4 * income + 1.5 * (-distance).exp() + 0.01 * age - 0.1 * occupancy + 0.3 * normal()
    columns = [income, age, rooms, bedrooms, population, occupancy, latitude, longitude]
    return _standardized(torch.stack(columns, dim=1)), _standardized(price.clamp(max=3.5)[:, None])


DATA = {"digits": digits, "breast-cancer": breast_cancer, "wine": wine, "diabetes": diabetes, "housing": housing}


def mlp(
    widths: Sequence[int] = (64, 16, 10), *, activation: str = "tanh", seed: int = 0, dtype: torch.dtype = torch.float64
) -> nn.Sequential:
    """Fully connected network with these widths (inputs, hidden layers, outputs); PyTorch's default initialization.

    >>> sum(p.numel() for p in mlp((4, 3, 2)).parameters())
    23
    """
    _refuse_sizes(widths, "widths")
    if len(widths) < 2:
        raise ConfigurationError(f"widths must list at least inputs and outputs, got {widths!r}.")
    layers: list[nn.Module] = []
    with _seeded(seed):
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out, dtype=dtype), _activation(activation)]
    return nn.Sequential(*layers[:-1]).eval()


def cnn(
    channels: Sequence[int] = (4, 8), *, activation: str = "tanh", seed: int = 0, dtype: torch.dtype = torch.float64
) -> nn.Sequential:
    """Small convolutional network for ``(N, 1, 8, 8)`` digits: 3 x 3 convolutions, stride 2, then one linear layer."""
    _refuse_sizes(channels, "channels")
    layers: list[nn.Module] = []
    with _seeded(seed):
        sizes = (1, *channels)
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1, dtype=dtype), _activation(activation)]
        side = 8
        for _ in channels:
            side = (side + 1) // 2
        layers += [nn.Flatten(), nn.Linear(sizes[-1] * side**2, 10, dtype=dtype)]
    return nn.Sequential(*layers).eval()


def digits_problem(
    num_examples: int | None = None,
    *,
    widths: Sequence[int] = (16,),
    activation: str = "tanh",
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """Digits with a fully connected classifier of these hidden widths, softmax cross-entropy, at initialization."""
    model = mlp((64, *widths, 10), activation=activation, seed=seed)
    return Problem.from_module(model, loss="cross-entropy", data=digits(num_examples), dtype=dtype)


def linear_regression(num_examples: int = 200, dim: int = 20, *, noise: float = 0.1, seed: int = 0) -> Problem:
    r"""Least squares with half squared error at its optimum: Hessian = GGN = Fisher $= X^T X / N$, no bias.

    Gaussian inputs, so the spectrum lies between the Marchenko-Pastur edges $(1 \pm \sqrt{d/N})^2$.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_examples, dim, generator=generator, dtype=torch.float64)
    truth = torch.randn(dim, 1, generator=generator, dtype=torch.float64)
    targets = inputs @ truth + noise * torch.randn(num_examples, 1, generator=generator, dtype=torch.float64)
    with _seeded(seed):
        layer = nn.Linear(dim, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        # The default driver, gelsy, reads its pivots from memory that torch 2.13 does not clear (pytorch issue 187411).
        layer.weight.copy_(torch.linalg.lstsq(inputs, targets, driver="gelsd").solution.T)
    return Problem.from_module(layer, loss="half-squared-error", data=(inputs, targets))


def softmax_regression(num_examples: int = 100, dim: int = 5, num_classes: int = 3, *, seed: int = 0) -> Problem:
    r"""Softmax regression at zero weights: $H = \frac1C (I - \frac1C 1 1^T) \otimes \Sigma$, no bias.

    Eigenvalues with $\Sigma = X^T X / N$: those of $\Sigma / C$, each ``C - 1`` times, and ``dim`` zeros.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_examples, dim, generator=generator, dtype=torch.float64)
    targets = torch.randint(num_classes, (num_examples,), generator=generator)
    with _seeded(seed):
        layer = nn.Linear(dim, num_classes, bias=False, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    return Problem.from_module(layer, loss="cross-entropy", data=(inputs, targets))


def two_layer_linear(
    widths: tuple[int, int, int] = (5, 4, 3), *, num_examples: int = 50, seed: int = 0
) -> tuple[Problem, tuple[Tensor, Tensor]]:
    r"""Linear network $W_2 W_1 x$ on exactly whitened inputs with half squared error, and its ``(W_1, W_2)``.

    The non-zero GGN eigenvalues are $\{\sigma_i(W_2)^2 + \sigma_j(W_1)^2\}$, singular values padded with zeros.
    """
    generator = torch.Generator().manual_seed(seed)
    fan_in, hidden, fan_out = widths
    if num_examples < fan_in:
        raise ConfigurationError(f"whitening {fan_in} inputs needs at least {fan_in} examples, got {num_examples}.")
    inputs = torch.randn(num_examples, fan_in, generator=generator, dtype=torch.float64)
    inputs = torch.linalg.qr(inputs).Q * num_examples**0.5
    targets = torch.randn(num_examples, fan_out, generator=generator, dtype=torch.float64)
    with _seeded(seed):
        model = nn.Sequential(
            nn.Linear(fan_in, hidden, bias=False, dtype=torch.float64),
            nn.Linear(hidden, fan_out, bias=False, dtype=torch.float64),
        )
    with torch.no_grad():
        for layer in model:
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64))
    problem = Problem.from_module(model, loss="half-squared-error", data=(inputs, targets))
    return problem, (model[0].weight.detach().clone(), model[1].weight.detach().clone())


def _digits_mlp(widths: Sequence[int] = (16,), activation: str = "tanh", seed: int = 0) -> nn.Module:
    _refuse_sizes(widths, "widths")
    return mlp((64, *widths, 10), activation=activation, seed=seed)


def _mlp(
    inputs: int, outputs: int, widths: Sequence[int] = (16,), activation: str = "tanh", seed: int = 0
) -> nn.Module:
    _refuse_sizes(widths, "widths")
    _refuse_sizes((inputs, outputs), "inputs and outputs")
    return mlp((inputs, *widths, outputs), activation=activation, seed=seed)


MODELS = {"digits-mlp": _digits_mlp, "digits-cnn": cnn, "mlp": _mlp}


def _table(rows: np.ndarray, targets: np.ndarray, num_examples: int | None) -> tuple[Tensor, Tensor]:
    _refuse_count(num_examples, len(rows))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    inputs = _standardized(torch.as_tensor(rows, dtype=torch.float64))
    found = torch.as_tensor(targets)
    if found.is_floating_point():
        found = _standardized(found[:, None])
    return inputs[order][:num_examples], found[order][:num_examples]


def _standardized(columns: Tensor) -> Tensor:
    centred = columns - columns.mean(dim=0)
    return centred / centred.std(dim=0, correction=0)


def _refuse_count(num_examples: int | None, count: int) -> None:
    if num_examples is not None and not 1 <= num_examples <= count:
        raise ConfigurationError(f"num_examples must be between 1 and {count}, got {num_examples}.")


def _refuse_sizes(sizes: Sequence[int], what: str) -> None:
    """Refuse what is no list of sizes before torch does, whose words would be about something else."""
    whole = isinstance(sizes, Sequence) and all(isinstance(n, Integral) and not isinstance(n, bool) for n in sizes)
    if not whole or any(n < 1 for n in sizes):
        raise ConfigurationError(f"{what} must list positive whole numbers, got {sizes!r}.")


def _activation(name: str) -> nn.Module:
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise ConfigurationError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {name!r}.")
    return _ACTIVATIONS[name]()


class _seeded:  # reads as a verb in a with statement
    """Initialize layers from a seed and put the global generator back."""

    def __init__(self, seed: int):
        self.seed = seed

    def __enter__(self) -> None:
        self.state = torch.get_rng_state()
        torch.default_generator.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self.state)
