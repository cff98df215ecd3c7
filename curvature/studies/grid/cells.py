"""What a cell of a grid is made of: data sets, architectures of a given size, and optimizers with their rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from curvature.errors import ConfigurationError
from curvature.models import Problem, zoo
from curvature.studies.training import SGD, Adam, Optimizer

__all__ = ["ARCHITECTURES", "DATA_SETS", "OPTIMIZERS", "Cell", "cell_problem", "refuse_large_batch", "unsuited"]

_USUAL_BATCH = 64  # of fewer examples it is all
_WIDEST = 256  # width at which the search for a network of a given size ends

Build = Callable[[tuple[int, ...], int, int, int], nn.Module]
"""``build(shape, outputs, width, seed)``: a network for inputs of this shape."""


@dataclass(frozen=True)
class DataSet:
    """A data set of the zoo with its loss, and the loss at which all arms of a cell are compared.

    Attributes
    ----------
    load
        From the number of examples to inputs and targets.
    loss
        Name of the loss.
    level
        A loss that every architecture reaches in training, and none of them at the start.
    """

    load: Callable[[int | None], tuple[Tensor, Tensor]]
    loss: str
    level: float


@dataclass(frozen=True)
class Architecture:
    """A family of networks that differ in their width.

    Attributes
    ----------
    build
        Makes a network.
    axes
        Numbers of axes of an example that it can take: 1 for a table, 2 for a sequence, 3 for an image.
    """

    build: Build
    axes: tuple[int, ...]


def _mlp(num_hidden: int, activation: str) -> Build:
    def build(shape: tuple[int, ...], outputs: int, width: int, seed: int) -> nn.Module:
        widths = (int(np.prod(shape)), *[width] * num_hidden, outputs)
        network = zoo.mlp(widths, activation=activation, seed=seed)
        return network if len(shape) == 1 else nn.Sequential(nn.Flatten(), *network).eval()

    return build


def _cnn(_shape: tuple[int, ...], _outputs: int, width: int, seed: int) -> nn.Module:
    return zoo.cnn((max(1, width // 2), width), seed=seed)


def _residual(shape: tuple[int, ...], outputs: int, width: int, seed: int) -> nn.Module:
    return zoo.residual_mlp(int(np.prod(shape)), outputs, width=width, seed=seed)


def _transformer(shape: tuple[int, ...], outputs: int, width: int, seed: int) -> nn.Module:
    *_, length, inputs = shape  # the rows of an image are its tokens
    network = zoo.transformer(length, inputs, outputs, width=width, seed=seed)
    return network if len(shape) == 2 else nn.Sequential(nn.Flatten(1, 2), network).eval()


DATA_SETS = {
    "digits": DataSet(lambda count: zoo.digits(count, image=True), "cross-entropy", 1.0),
    "breast-cancer": DataSet(zoo.breast_cancer, "cross-entropy", 0.15),
    "wine": DataSet(zoo.wine, "cross-entropy", 0.2),
    "diabetes": DataSet(zoo.diabetes, "half-squared-error", 0.25),
    "characters": DataSet(zoo.characters, "cross-entropy", 2.0),
}
ARCHITECTURES = {
    "tanh-mlp": Architecture(_mlp(1, "tanh"), (1, 2, 3)),
    "relu-mlp-3": Architecture(_mlp(3, "relu"), (1, 2, 3)),
    "cnn": Architecture(_cnn, (3,)),
    "residual-mlp": Architecture(_residual, (1, 2, 3)),
    "transformer": Architecture(_transformer, (2, 3)),
}
# The rule, and the grid of rates that each arm is tuned over; it grows where the best is at its edge.
OPTIMIZERS: dict[str, tuple[Optimizer, tuple[float, ...]]] = {
    "sgd": (SGD(0.1), tuple(float(rate) for rate in np.logspace(-2, 1, 7))),
    "momentum": (SGD(0.1, momentum=0.9), tuple(float(rate) for rate in np.logspace(-3, 0, 7))),
    "adam": (Adam(0.01), tuple(float(rate) for rate in np.logspace(-3.5, -0.5, 7))),
}


@dataclass(frozen=True)
class Cell:
    """One combination of a grid.

    Attributes
    ----------
    data, architecture, optimizer
        Names in ``DATA_SETS``, ``ARCHITECTURES`` and ``OPTIMIZERS``.
    batch_size
        Examples of a step.

    Examples
    --------
    >>> Cell("digits", "tanh-mlp", "sgd").name
    'digits, tanh-mlp, sgd'
    """

    data: str
    architecture: str
    optimizer: str
    batch_size: int = _USUAL_BATCH

    @property
    def name(self) -> str:
        """The three names, and the size of the batches where it is not the usual one."""
        words = [self.data, self.architecture, self.optimizer]
        return ", ".join([*words, f"batches of {self.batch_size}"] if self.batch_size != _USUAL_BATCH else words)


def unsuited(cell: Cell) -> str:
    """Say why an architecture cannot take the data of its cell.

    Parameters
    ----------
    cell
        With known names.

    Returns
    -------
    str
        The reason; empty if it can.
    """
    inputs, _ = DATA_SETS[cell.data].load(2)
    if inputs.ndim - 1 in ARCHITECTURES[cell.architecture].axes:
        return ""
    kind = {1: "a table", 2: "a sequence", 3: "an image"}[inputs.ndim - 1]
    return f"{cell.architecture} cannot take {cell.data}: an example is {kind}"


def refuse_large_batch(cell: Cell, num_examples: int | None) -> None:
    """Raise an error that names a data set with fewer examples than were asked for in a batch.

    Parameters
    ----------
    cell
        With known names.
    num_examples
        As for :func:`cell_problem`.

    Raises
    ------
    ConfigurationError
        If there are fewer, unless the size is the usual one.
    """
    if cell.batch_size <= _USUAL_BATCH:
        return
    available = len(DATA_SETS[cell.data].load(None)[0][:num_examples])
    if cell.batch_size > available:
        raise ConfigurationError(
            f"a batch of {cell.batch_size} is more than the {available} examples of {cell.data} in this grid. Use a "
            f"batch size of at most {available}."
        )


def cell_problem(cell: Cell, seed: int, *, num_examples: int | None, num_weights: int) -> Problem:
    """Build the problem of a cell at the initial weights of a seed.

    Parameters
    ----------
    cell
        Data set and architecture.
    seed
        Of the initialization.
    num_examples
        Take the first ones; None, or more than there are: all.
    num_weights
        The widest network of the architecture with at most so many weights is taken.

    Returns
    -------
    Problem
        In double precision.

    Raises
    ------
    ConfigurationError
        If the narrowest network has more weights.
    """
    data_set = DATA_SETS[cell.data]
    inputs, targets = data_set.load(None)
    inputs, targets = inputs[:num_examples], targets[:num_examples]
    outputs = targets.shape[1] if targets.is_floating_point() else int(targets.max()) + 1
    build, shape = ARCHITECTURES[cell.architecture].build, tuple(inputs.shape[1:])
    width = _width(lambda width: build(shape, outputs, width, 0), num_weights)
    if not width:
        smallest = _num_weights(build(shape, outputs, 1, 0))
        raise ConfigurationError(
            f"{cell.architecture} on {cell.data} has more than {num_weights} weights at its smallest: it needs "
            f"num_weights={smallest}."
        )
    model = build(shape, outputs, width, seed)
    return Problem.from_module(model, loss=data_set.loss, data=(inputs, targets))


def _width(build: Callable[[int], nn.Module], num_weights: int) -> int:
    """The largest width at which a network has at most so many weights; 0 if there is none."""
    low, high = 0, _WIDEST
    while low < high:
        middle = (low + high + 1) // 2
        fits = _num_weights(build(middle)) <= num_weights
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _num_weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
