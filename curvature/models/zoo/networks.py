"""Small seeded networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from numbers import Integral

import torch
from torch import nn

from curvature.errors import ConfigurationError

__all__ = ["MODELS", "cnn", "mlp", "seeded"]

_ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "identity": nn.Identity}


def mlp(
    widths: Sequence[int] = (64, 16, 10), *, activation: str = "tanh", seed: int = 0, dtype: torch.dtype = torch.float64
) -> nn.Sequential:
    """Build a fully connected network with PyTorch's default initialization.

    Parameters
    ----------
    widths
        Inputs, hidden layers, outputs.
    activation
        ``"tanh"``, ``"relu"``, ``"gelu"`` or ``"identity"``, between the layers.
    seed
        Seed of the initialization; the global generator is left as it is.
    dtype
        Precision of the parameters.

    Returns
    -------
    nn.Sequential
        In evaluation mode.

    Raises
    ------
    ConfigurationError
        If a width or the activation is not one.

    Examples
    --------
    >>> sum(p.numel() for p in mlp((4, 3, 2)).parameters())
    23
    """
    _refuse_sizes(widths, "widths")
    if len(widths) < 2:
        raise ConfigurationError(f"widths must list at least inputs and outputs, got {widths!r}.")
    layers: list[nn.Module] = []
    with seeded(seed):
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out, dtype=dtype), _activation(activation)]
    return nn.Sequential(*layers[:-1]).eval()


def cnn(
    channels: Sequence[int] = (4, 8), *, activation: str = "tanh", seed: int = 0, dtype: torch.dtype = torch.float64
) -> nn.Sequential:
    """Build a small convolutional network for digits ``(N, 1, 8, 8)``: convolutions, then one linear layer.

    Parameters
    ----------
    channels
        Output channels of each 3 x 3 convolution, stride 2.
    activation
        As for :func:`mlp`, after each convolution.
    seed
        Seed of the initialization; the global generator is left as it is.
    dtype
        Precision of the parameters.

    Returns
    -------
    nn.Sequential
        In evaluation mode, with 10 outputs.

    Raises
    ------
    ConfigurationError
        If a number of channels or the activation is not one.
    """
    _refuse_sizes(channels, "channels")
    layers: list[nn.Module] = []
    with seeded(seed):
        sizes = (1, *channels)
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1, dtype=dtype), _activation(activation)]
        side = 8
        for _ in channels:
            side = (side + 1) // 2
        layers += [nn.Flatten(), nn.Linear(sizes[-1] * side**2, 10, dtype=dtype)]
    return nn.Sequential(*layers).eval()


def _digits_mlp(widths: Sequence[int] = (16,), activation: str = "tanh", seed: int = 0) -> nn.Module:
    _refuse_sizes(widths, "widths")
    return mlp((64, *widths, 10), activation=activation, seed=seed)


def _mlp(
    inputs: int, outputs: int, widths: Sequence[int] = (16,), activation: str = "tanh", seed: int = 0
) -> nn.Module:
    _refuse_sizes(widths, "widths")
    _refuse_sizes((inputs, outputs), "inputs and outputs")
    return mlp((inputs, *widths, outputs), activation=activation, seed=seed)


MODELS: dict[str, Callable[..., nn.Module]] = {"digits-mlp": _digits_mlp, "digits-cnn": cnn, "mlp": _mlp}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initialize layers from a seed and restore the global generator.

    Parameters
    ----------
    seed
        Seed of torch's global generator inside the block.

    Yields
    ------
    None
        While layers are built.
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _refuse_sizes(sizes: Sequence[int], what: str) -> None:
    """Refuse anything but a list of sizes here, since the message of torch would be about something else."""
    whole = isinstance(sizes, Sequence) and all(isinstance(n, Integral) and not isinstance(n, bool) for n in sizes)
    if not whole or any(n < 1 for n in sizes):
        raise ConfigurationError(f"{what} must list positive whole numbers, got {sizes!r}.")


def _activation(name: str) -> nn.Module:
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise ConfigurationError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {name!r}.")
    return _ACTIVATIONS[name]()
