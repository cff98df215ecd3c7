"""Real and synthetic data sets that need no download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from curvature.arrays import Float64, Int
from curvature.errors import ConfigurationError

__all__ = ["ALPHABET", "DATA", "breast_cancer", "characters", "diabetes", "digits", "housing", "wine"]

ALPHABET = " eatsinrocd*"  # of the texts of `characters`; * is any other character
_MOST_ROWS = 10**7  # of a synthetic table: more would fill the memory before anything is measured


def digits(
    num_examples: int | None = None, *, image: bool = False
) -> tuple[Float64[Tensor, "examples ..."], Int[Tensor, "examples"]]:
    """Load the 1797 handwritten 8 x 8 digits of scikit-learn, pixels in [0, 1], in their original order.

    Real data that come with the package: no download. Some pixels are 0 on every image, so every model on them has
    known null directions.

    Parameters
    ----------
    num_examples
        Take the first ones; None takes all.
    image
        Return images instead of flat vectors.

    Returns
    -------
    inputs, labels
        ``(N, 64)``, or ``(N, 1, 8, 8)`` for images, in float64; and classes 0 to 9, ``(N,)``.
    """
    table = _digits_table()
    _refuse_count(num_examples, len(table))
    pixels = torch.as_tensor(table[:num_examples, :-1], dtype=torch.float64) / 16
    labels = torch.as_tensor(table[:num_examples, -1], dtype=torch.int64)
    return (pixels.view(-1, 1, 8, 8) if image else pixels), labels


def _digits_table() -> np.ndarray:
    """Pixels from 0 to 16 and the class, one row for each digit.

    Read from the file of scikit-learn, which takes a twentieth of the time that importing scikit-learn does.
    """
    package = find_spec("sklearn")
    file = Path(package.origin).parent / "datasets/data/digits.csv.gz" if package and package.origin else None
    if file is not None and file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # which says what is missing, or where its file is now

    return np.column_stack(load_digits(return_X_y=True))


def breast_cancer(num_examples: int | None = None) -> tuple[Float64[Tensor, "examples 30"], Int[Tensor, "examples"]]:
    """Load 569 tumours by 30 measurements, benign or malignant (Street, Wolberg & Mangasarian 1993).

    From scikit-learn: no download. The rows are shuffled once with a fixed seed, since they come sorted.

    Parameters
    ----------
    num_examples
        Take the first ones; None takes all.

    Returns
    -------
    inputs, labels
        ``(N, 30)``, columns of mean 0 and variance 1 over all rows; and classes ``(N,)``.
    """
    from sklearn.datasets import load_breast_cancer

    return _table(load_breast_cancer(return_X_y=True), num_examples)


def wine(num_examples: int | None = None) -> tuple[Float64[Tensor, "examples 13"], Int[Tensor, "examples"]]:
    """Load 178 wines of three cultivars by 13 measurements (Forina et al. 1988).

    From scikit-learn: no download. The rows are shuffled once with a fixed seed, since they come sorted.

    Parameters
    ----------
    num_examples
        Take the first ones; None takes all.

    Returns
    -------
    inputs, labels
        ``(N, 13)``, columns of mean 0 and variance 1 over all rows; and classes ``(N,)``.
    """
    from sklearn.datasets import load_wine

    return _table(load_wine(return_X_y=True), num_examples)


def diabetes(num_examples: int | None = None) -> tuple[Float64[Tensor, "examples 10"], Float64[Tensor, "examples 1"]]:
    """Load 442 patients by 10 measurements, and the progression of their disease (Efron et al. 2004).

    From scikit-learn: no download. The rows are shuffled once with a fixed seed.

    Parameters
    ----------
    num_examples
        Take the first ones; None takes all.

    Returns
    -------
    inputs, targets
        ``(N, 10)`` and ``(N, 1)``, columns of mean 0 and variance 1 over all rows.
    """
    from sklearn.datasets import load_diabetes

    return _table(load_diabetes(return_X_y=True), num_examples)


def housing(
    num_examples: int | None = None, *, seed: int = 0
) -> tuple[Float64[Tensor, "examples 8"], Float64[Tensor, "examples 1"]]:
    """Draw a *synthetic* table that resembles the California housing data, which need a download.

    Eight columns as in the real table: income and population with heavy tails, age, rooms and bedrooms nearly
    proportional to each other (the ill-conditioned pair), occupancy with outliers, and two coordinates along a slanted
    coast with two cities. The price grows with income, falls with the distance to a city, and is cut off at the top.
    Nothing is fitted to the real table.

    Parameters
    ----------
    num_examples
        Number of rows; None draws 2000.
    seed
        Seed of the table.

    Returns
    -------
    inputs, targets
        ``(N, 8)`` and ``(N, 1)``, columns of mean 0 and variance 1.

    Raises
    ------
    ConfigurationError
        If the number of rows is below 2 or above 10 million.
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


def characters(
    num_examples: int | None = None, *, length: int = 6
) -> tuple[Float64[Tensor, "examples length 12"], Int[Tensor, "examples"]]:
    """Cut the descriptions of scikit-learn's data sets into short texts, each with the character that follows it.

    Real English text that comes with the package: no download. Letters in lower case; the space and the ten most
    frequent letters are told apart, the rest is one class. The texts do not overlap, and are shuffled once with a
    fixed seed.

    Parameters
    ----------
    num_examples
        Take the first ones; None takes all.
    length
        Characters of a text.

    Returns
    -------
    inputs, labels
        One-hot characters of :data:`ALPHABET`, ``(N, length, 12)``; and the next character, 0 to 11, ``(N,)``.
    """
    from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_linnerud, load_wine

    loaders = (load_digits, load_breast_cancer, load_wine, load_diabetes, load_linnerud)
    text = " ".join(" ".join(load().DESCR.lower() for load in loaders).split())
    rest = len(ALPHABET) - 1
    codes = torch.tensor([max(ALPHABET.find(character), -1) % (rest + 1) for character in text])
    windows = codes[: len(codes) // (length + 1) * (length + 1)].view(-1, length + 1)
    _refuse_count(num_examples, len(windows))
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))[:num_examples]
    inputs = torch.nn.functional.one_hot(windows[order, :-1], rest + 1).double()
    return inputs, windows[order, -1]


DATA = {
    "digits": digits,
    "breast-cancer": breast_cancer,
    "wine": wine,
    "diabetes": diabetes,
    "housing": housing,
    "characters": characters,
}


def _table(data: tuple[np.ndarray, np.ndarray], num_examples: int | None) -> tuple[Tensor, Tensor]:
    """Standardize the columns and shuffle the rows; real targets are standardized too."""
    rows, labels = data
    _refuse_count(num_examples, len(rows))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    inputs = _standardized(torch.as_tensor(rows, dtype=torch.float64))
    targets = torch.as_tensor(labels)
    if targets.is_floating_point():
        targets = _standardized(targets[:, None])
    return inputs[order][:num_examples], targets[order][:num_examples]


def _standardized(columns: Tensor) -> Tensor:
    centred = columns - columns.mean(dim=0)
    return centred / centred.std(dim=0, correction=0)


def _refuse_count(num_examples: int | None, count: int) -> None:
    if num_examples is not None and not 1 <= num_examples <= count:
        raise ConfigurationError(f"num_examples must be between 1 and {count}, got {num_examples}.")
